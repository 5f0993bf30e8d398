//! What the engine makes in the two QEMUs to move disks: block jobs, NBD exports, probes of the link; and what an earlier
//! engine left there.

pub mod cleanup;
pub mod export;
pub mod leftover;
pub mod link_probe;
pub mod mirror_job;
pub mod start_race;
