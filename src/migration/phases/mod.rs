//! What each phase of a migration does; their order is the engine's alone.

pub(super) mod cleanup;
pub(super) mod convergence;
pub(super) mod postcopy;
pub(super) mod setup;
