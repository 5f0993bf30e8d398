//! The ways in to a monitor that is looked at: connected to, or through libvirt.
//!
//! Owns the addresses of diagnosis and the use of the command `virsh`. A way in never changes anything by itself: it
//! carries the commands that its caller sends, each with a deadline. Names of domains are untrusted: no shell reads
//! them, and no program takes one for an option.

mod domain_process;
mod observed_monitor;
mod virsh_bridge;
mod virsh_call;
mod virsh_domain;
mod virsh_words;

pub use observed_monitor::{ObservedMonitor, ObservedMonitorError};
pub(super) use virsh_call::abort_job;
pub use virsh_domain::VirshDomain;
pub(super) use virsh_words::BARRED;
