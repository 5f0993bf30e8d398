//! Why a migration is stuck: a migration of the engine's, or one that any other program has started.
//!
//! Owns the looks at one side or both, the rules that name causes, and the commands that get a migration out. Looking
//! changes nothing in QEMU and takes a few seconds, because only the rate of a counter tells slow from stuck. The
//! rules must never act; a remedy is data.

mod cause;
#[cfg(feature = "cli")]
mod foreign;
mod guest_queues;
mod look;
mod meeting;
mod mirror_nodes;
mod pair;
mod process;
mod process_report;
#[cfg(feature = "cli")]
mod recorded;
mod remedy;
mod report;
mod rules;
mod sampling;
mod side_identity;
mod steady_causes;
mod still_there;
mod watching;
mod way_in;
mod window;

pub use cause::{Cause, Confidence};
#[cfg(feature = "cli")]
pub(crate) use foreign::ForeignLooks;
pub use process_report::{OpenFileReport, ProcessReport, SocketReport, ThreadReport};
#[cfg(feature = "cli")]
pub(crate) use recorded::{READ_ANSWERS, RecordedLooks};
pub use remedy::{RemedyCommand, carry_out};
pub use report::{Diagnosis, MirrorReport, SideReport};
#[cfg(feature = "cli")]
pub(crate) use sampling::LOOKED_FOR;
pub use sampling::{DiagnoseSettings, DiagnosisError, diagnose};
pub use watching::{WatchSettings, Watching};
pub use way_in::{ObservedMonitor, ObservedMonitorError, VirshDomain};
pub use window::{WatchSnapshot, WatchedEvent};
