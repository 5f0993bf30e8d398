//! RAM: capabilities and parameters, the precopy migration up to `pre-switchover`, and its samples.
//!
//! It must never continue a migration that waits in `pre-switchover`: that hands the guest over.

pub mod apply;
pub mod precopy;
pub mod sample;
pub mod tuning;
