//! What each phase of a migration does. Their order is the engine's alone.
//!
//! `convergence` is the phases `storage` and `memory`, which may overlap; `mirrors` and `sampling` are parts of it.
//! No other phase knows another.

pub(super) mod cleanup;
pub(super) mod convergence;
pub(super) mod handover;
mod mirrors;
pub(super) mod postcopy;
mod sampling;
pub(super) mod setup;
pub(super) mod switchover;
