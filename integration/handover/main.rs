//! The handover as a model, explored to its last state: whatever is lost, dies, freezes or comes late, there are never
//! two runners, nothing that a guest did is undone, and an engine that gives up had no safe way on.
//!
//! The model has two QEMUs as `docs/handover.md` describes them, their monitors, which serve one client at a time and
//! keep the commands that a frozen process has not read, the RAM channel, the journal, the engine after it has written
//! `Given`, and engines that recover from its journal. Each of these engines drives the library's own `Judgement`: the
//! memory, the conclusions, the records and the next step of an engine are the shipped code. The model leaves out
//! postcopy and guests that were paused (tables in `verdict.rs`), and time: a wait may end at any moment, so that no
//! result rests on how long anything takes. One assumption about time is made: an engine that follows a process on its
//! own host can tell a monitor that closed long before its process died from a monitor that closed because its process
//! died.
//!
//! What leads up to the handover is a second model, in [`approach`]: it begins before the first change, and has what a
//! guest and its owner do meanwhile, and other clients.

#![cfg(test)] // tells clippy that all of this is test code, so that a test may say all it has to say by panicking

mod approach;
mod engines;
mod explorations;
mod model;
mod mutants;
mod properties;
mod world;
