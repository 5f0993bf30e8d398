//! What each phase of a migration does. Their order is the engine's alone; no phase knows another.

pub(super) mod cleanup;
pub(super) mod convergence;
pub(super) mod handover;
pub(super) mod postcopy;
pub(super) mod setup;
pub(super) mod switchover;
