//! Everything that the engine makes in the two QEMUs to copy disks: block jobs, NBD exports, probes of the link; and
//! the leftovers of an earlier engine.

pub mod cleanup;
pub mod export;
pub mod leftover;
pub mod link_probe;
pub mod mirror_job;
pub mod pivot;
pub mod start_race;
pub mod write_histogram;
