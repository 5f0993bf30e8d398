//! The approach: what leads up to the handover, from before the first change to the guest that runs on the destination,
//! or to the end of the way back.
//!
//! The world is larger than the handover's, so its steps are coarser: a command and its answer are one step, and so is
//! a question with the command that follows from the answer at once. What may come between two such steps is a guest
//! that stops by itself, its owner, another client, a process that ends, a channel that breaks, and the engine's own
//! end. Frozen processes, cut monitors and commands without an answer are the handover's model's.

mod engine;
mod explorations;
mod model;
mod mutants;
mod properties;
mod way_back;
mod world;
