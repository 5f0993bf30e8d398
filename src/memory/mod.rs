//! RAM: capabilities and parameters, the precopy migration up to `pre-switchover`, the pages of postcopy, and samples.
//!
//! This room must never continue a migration that waits in `pre-switchover`: that hands the guest over.

pub mod apply;
pub mod postcopy;
pub mod precopy;
pub mod sample;
pub mod tuning;
