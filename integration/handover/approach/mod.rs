//! The approach: what leads up to the handover, from before the first change to the guest that runs on the destination,
//! or to the end of the way back; and the recovery of an engine that died anywhere in between.
//!
//! What decides is the shipped code: `GuestIntent` tells the stops of the guest and its owner from QEMU's,
//! `participant` tells the QEMU that took part from another, the functions of `handover::way_back` say what becomes of
//! each side, and the `Judgement` follows a handover that failed.
//! The driver between them is the model's own, in the order of `migration/engine.rs` and `way_back/rollback.rs`.
//!
//! The world is larger than the handover's, so its steps are coarser: a command and its answer are one step, and so is
//! a question with the command that follows from the answer at once. What may come between two such steps is a guest
//! that stops by itself, its owner, another client of either monitor, a person who finishes by hand, a process that
//! ends or is replaced, a monitor or a RAM channel that closes, and the engine's own end. Frozen processes and commands
//! without an answer are the handover's model's.
//!
//! [`rivals`] has two such engines that do not know of each other, and share a source, a destination, or both.
//!
//! Left out is what nobody can tell or prevent: an owner's `stop` in the instant before QEMU's own, of which no event
//! says whose it was; `cont` to a source that has completed; and `cont` to a destination after the engine's last
//! `stop`. A recovery is assumed to begin once the other of two engines is over: the other's journal, or the names of
//! what that engine has made, refuses an earlier one. What is known to be broken is named with its exploration, and
//! must be found there.

mod engine;
mod explorations;
mod guest_stand;
mod identity;
mod model;
mod mutants;
mod properties;
mod rivals;
mod way_back;
mod world;
