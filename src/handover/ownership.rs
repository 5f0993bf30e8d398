//! The proofs that a step of the handover needs: each can only be made here, from what QEMU answered.
//!
//! Pure. The chain is `Disengaged` (the disks are whole on the destination and nobody writes them) → `Handed`
//! (`migrate-continue` was sent: the source may not resume without proof) → `Arrived` (the source stands still for good,
//! and the destination has all that it needs to run) → the guest runs. A step consumes the proof of the one before, so none
//! can be left out or taken twice.

use crate::qemu::reply::{Job, JobStatus, Migration, MigrationStatus, RunState};
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

/// The source stands still for good, and the destination has all state, or in postcopy all but pages, which it fetches.
#[derive(Debug)]
pub struct Arrived(());

impl Arrived {
    pub(super) fn new(_: Handed, _: SourceStands, _: DestinationLoaded) -> Self {
        Self(())
    }

    /// Both sides report `completed`: whoever let the source go on.
    pub(super) fn settled(_: SourceStands, _: DestinationLoaded) -> Self {
        Self(())
    }

    /// The destination reported `completed` and the source's process is dead.
    pub(super) fn outlived(_: SourceCannotRun) -> Self {
        Self(())
    }
}

/// The source reported `completed`, or is at work in postcopy: it never runs the guest again by itself.
#[derive(Debug)]
pub struct SourceStands(());

impl SourceStands {
    /// Checks the source's answer to `query-migrate`. `before` is what [`pages`] gave for an answer of before: of any time
    /// since the guest was stopped.
    ///
    /// That it says `postcopy-active` is not enough. QEMU up to 10 says so while it still sends device state, and takes it
    /// back (`failed`, and the guest resumes) where the channel breaks then. It sends no page from the guest's stop until
    /// that is over; so one page more is the proof. From there on a broken channel only makes it wait for a new one.
    pub(super) fn prove(answer: &Migration, before: Option<u64>) -> Option<Self> {
        let stands = match &answer.status {
            Some(MigrationStatus::Completed) => true,
            Some(MigrationStatus::PostcopyActive) => before.zip(pages(answer)).is_some_and(|(then, now)| now > then),
            Some(status) => status.is_postcopy(),
            None => false,
        };
        stands.then_some(Self(()))
    }

    /// An event told that the migration has completed.
    pub(super) fn completed() -> Self {
        Self(())
    }
}

/// The pages that a source has sent so far.
pub fn pages(answer: &Migration) -> Option<u64> {
    answer.ram.as_ref().map(|ram| ram.normal.saturating_add(ram.duplicate))
}

/// The destination reported `completed`, or is in postcopy with its devices loaded.
#[derive(Debug)]
pub struct DestinationLoaded(());

impl DestinationLoaded {
    /// Checks the run state of a destination that reported `postcopy-active`. Up to QEMU 10 it does so before its devices
    /// are loaded, but leaves `inmigrate` only when they are.
    pub(super) fn prove(run: &RunState) -> Option<Self> {
        (*run != RunState::InMigrate).then_some(Self(()))
    }

    /// Checks a destination's answers to `query-migrate` and `query-status`: it has everything, and waits.
    pub(super) fn waits(answer: &Migration, run: &RunState) -> Option<Self> {
        let completed = answer.status == Some(MigrationStatus::Completed);
        (completed && *run == RunState::Paused).then_some(Self(()))
    }

    /// An event or an answer told that the migration has completed.
    pub(super) fn completed() -> Self {
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
    /// Its process has ended, and it never ran the guest.
    Dead,
    /// It never ran the guest, and accepted our `quit`, after which it runs nothing, even before it is gone.
    Quit,
    /// It never ran the guest, and was killed for certain: by the kernel's word, or by that of the user's command.
    Fenced,
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

    #[test]
    fn a_source_in_postcopy_stands_once_it_sends_pages() {
        let answer = |status: &str, pages: u64| {
            let ram = json!({"transferred": 1, "remaining": 1, "total": 1, "normal": pages, "duplicate": 7});
            serde_json::from_value(json!({"status": status, "ram": ram})).expect("an answer")
        };
        for (status, now, before, stands) in [
            ("completed", 10, None, true),
            ("postcopy-paused", 10, None, true),
            ("postcopy-recover", 10, None, true),
            ("postcopy-active", 10, None, false),
            ("postcopy-active", 10, Some(17), false),
            ("postcopy-active", 11, Some(17), true),
            // 11.1 may resume from here
            ("postcopy-device", 11, Some(17), false),
            ("device", 11, Some(17), false),
            ("failed", 11, Some(17), false),
            ("of-tomorrow", 11, Some(17), false),
        ] {
            let proof = SourceStands::prove(&answer(status, now), before);
            assert_eq!(proof.is_some(), stands, "{status} {now} {before:?}");
        }
        assert!(SourceStands::prove(&Migration::default(), Some(0)).is_none());
    }

    #[test]
    fn a_destination_that_still_loads_does_not_run() {
        assert!(DestinationLoaded::prove(&RunState::InMigrate).is_none());
        assert!(DestinationLoaded::prove(&RunState::Paused).is_some());
    }

    #[test]
    fn only_a_destination_that_is_paused_with_everything_waits_for_its_start() {
        let answer = |status: &str| serde_json::from_value(json!({ "status": status })).expect("an answer");
        let waits = |status: &str, run: &str| DestinationLoaded::waits(&answer(status), &RunState::from(run)).is_some();
        assert!(waits("completed", "paused"));
        assert!(!waits("completed", "running") && !waits("completed", "io-error") && !waits("active", "paused"));
        assert!(!waits("postcopy-active", "paused") && !waits("failed", "inmigrate") && !waits("none", "paused"));
        assert!(DestinationLoaded::waits(&Migration::default(), &RunState::Paused).is_none());
    }
}
