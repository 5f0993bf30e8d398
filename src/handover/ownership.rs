//! The proofs that a step of the handover needs: each can only be made here, from what QEMU answered.
//!
//! Pure. The chain is `Disengaged` (the disks are whole on the destination and nobody writes them) → `Handed`
//! (`migrate-continue` was sent: the source may not resume without proof) → `Arrived` (all state is there) → the guest
//! runs. A step consumes the proof of the one before, so none can be left out or taken twice.

use crate::qemu::reply::{Job, JobStatus};
use thiserror::Error;

/// Why the disks are not proved to be whole and free.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotDisengaged {
    /// A mirror did not end well.
    #[error("the mirror {job} did not settle: {error}")]
    Mirror {
        /// Its job.
        job: String,
        /// What is known.
        error: String,
    },
    /// An export is still open: its client could write while the destination does.
    #[error("the export {0} is still open on the destination")]
    Export(String),
}

/// Every mirror concluded without an error, and no export is left: the destination's disks are whole, and no one can
/// write to them.
#[derive(Debug)]
pub struct Disengaged(());

impl Disengaged {
    /// Checks the source's answer to `query-jobs` and the destination's to `query-block-exports`.
    ///
    /// # Errors
    /// What is in the way.
    pub fn prove<'a>(
        mirrors: impl Iterator<Item = &'a str>,
        jobs: &[Job],
        exports: &[String],
    ) -> Result<Self, NotDisengaged> {
        for name in mirrors {
            let failed = |error: &str| NotDisengaged::Mirror { job: name.to_owned(), error: error.to_owned() };
            let job = jobs.iter().find(|job| job.id == name).ok_or_else(|| failed("its job has vanished"))?;
            match (&job.error, &job.status) {
                (Some(error), _) => return Err(failed(error)),
                (None, JobStatus::Concluded) => {}
                (None, status) => return Err(failed(&format!("status {status}"))),
            }
        }
        match exports.first() {
            Some(export) => Err(NotDisengaged::Export(export.clone())),
            None => Ok(Self(())),
        }
    }
}

/// `migrate-continue` may have reached the source.
#[derive(Debug)]
pub struct Handed(());

impl Handed {
    pub(super) fn new(_: Disengaged) -> Self {
        Self(())
    }
}

/// Both sides reported `completed`: the source stands still for good, the destination has all state.
#[derive(Debug)]
pub struct Arrived(());

impl Arrived {
    pub(super) fn new(_: Handed) -> Self {
        Self(())
    }

    /// The destination reported `completed` and the source's process is dead.
    pub(super) fn outlived(_: SourceCannotRun) -> Self {
        Self(())
    }
}

/// The source's process has ended.
#[derive(Debug)]
pub struct SourceCannotRun(());

impl SourceCannotRun {
    pub(super) fn dead() -> Self {
        Self(())
    }
}

/// Why the destination cannot run the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestinationCannotRun {
    /// `migrate-continue` was never sent: it has not the guest's last state and never will.
    NeverContinued,
    /// Its process has ended, and it was never told to run.
    Dead,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(id: &str, status: &str, error: Option<&str>) -> Job {
        serde_json::from_value(json!({"id": id, "status": status, "error": error})).expect("a job")
    }

    #[test]
    fn only_settled_mirrors_and_closed_exports_disengage() {
        let good = || vec![job("a", "concluded", None), job("b", "concluded", None)];
        let prove =
            |jobs: &[Job], exports: &[String]| Disengaged::prove(["a", "b"].into_iter(), jobs, exports).map(drop);
        let mirror =
            |job: &str, error: &str| Err(NotDisengaged::Mirror { job: job.to_owned(), error: error.to_owned() });
        assert_eq!(prove(&good(), &[]), Ok(()));
        assert_eq!(prove(&good()[..1], &[]), mirror("b", "its job has vanished"));
        assert_eq!(prove(&[job("a", "concluded", Some("Input/output error"))], &[]), mirror("a", "Input/output error"));
        assert_eq!(prove(&[job("a", "ready", None)], &[]), mirror("a", "status ready"));
        assert_eq!(prove(&good(), &["e".to_owned()]), Err(NotDisengaged::Export("e".to_owned())));
    }
}
