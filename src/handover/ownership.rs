//! The proofs that a step of the handover needs: each can only be made here, from what proves it.
//!
//! Pure. The chain is [`DisksDisengaged`] (the disks are whole on the destination and nobody writes them) →
//! [`ContinueSent`] (`migrate-continue` was sent: the source may not resume without proof) → [`ArrivalProof`] (the
//! source stands still for good, and the destination has all that it needs to run) → the guest runs. A step consumes
//! the proof of the one before, so none can be left out or taken twice. On the way back [`DestinationCannotRun`] is
//! what `cont` to the source needs; it is lent, for what it says stays true.
//!
//! No proof is `Clone`, none can be deserialized, and no function outside this crate makes one. The names are public,
//! so that a signature can ask for a proof:
//!
//! ```
//! use qferry::internals::handover::ownership::{
//!     ArrivalProof, BeforeContinue, ContinueSent, DestinationCannotRun, DisksDisengaged, FencedSide, ProcessEnded,
//!     SourceCannotRun,
//! };
//! ```
//!
//! Their constructors are not:
//!
//! ```compile_fail
//! # use qferry::internals::handover::ownership::DestinationCannotRun;
//! let forged = DestinationCannotRun("it has ended");
//! ```
//! ```compile_fail
//! # use qferry::internals::handover::ownership::DestinationCannotRun;
//! let forged = DestinationCannotRun::of_journal();
//! ```
//! ```compile_fail
//! # use qferry::internals::handover::ownership::{ProcessEnded, SourceCannotRun};
//! fn forge(ended: ProcessEnded) -> Option<SourceCannotRun> {
//!     SourceCannotRun::of_ended_process(ended)
//! }
//! ```
//! ```compile_fail
//! # use qferry::internals::handover::ownership::BeforeContinue;
//! let forged = BeforeContinue::begin();
//! ```
//! ```compile_fail
//! # use qferry::internals::handover::ownership::DisksDisengaged;
//! let forged = DisksDisengaged::prove(std::iter::empty(), &[], &[]);
//! ```
//! ```compile_fail
//! # use qferry::internals::handover::ownership::DestinationCannotRun;
//! fn copy(proof: &DestinationCannotRun) -> DestinationCannotRun {
//!     proof.clone()
//! }
//! ```
//! ```compile_fail
//! # use qferry::internals::handover::exchange;
//! let forged = exchange::prove_outlived;
//! ```

use crate::{
    progress::Side,
    qemu::reply::{JobInfo, JobStatus, MigrationInfo, MigrationStatus, RunState},
};
use std::process::ExitStatus;
use thiserror::Error;

/// Why the disks are not proved to be whole and free.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotDisengaged {
    /// A mirror did not end well.
    #[error("the mirror {job} did not settle: {error}")]
    Mirror {
        /// The mirror's job.
        job: String,
        /// QEMU's error, or the job's unexpected status.
        error: String,
    },
    /// An export is still open: its client could write while the destination does.
    #[error("the export {0} is still open on the destination")]
    Export(String),
    /// The guest was handed over before; each migration does so once.
    #[error("migrate-continue was sent before")]
    Continued,
}

/// Every mirror concluded without an error, and no export is left: the destination's disks are whole, and nobody can
/// write to them.
#[derive(Debug)]
pub struct DisksDisengaged(());

impl DisksDisengaged {
    /// Checks the source's answer to `query-jobs` and the destination's to `query-block-exports`. A migration that
    /// moves no disk has neither mirrors nor exports.
    ///
    /// # Errors
    /// What is in the way.
    pub(crate) fn prove<'a>(
        mirrors: impl Iterator<Item = &'a str>,
        jobs: &[JobInfo],
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
pub struct ContinueSent(());

impl ContinueSent {
    /// `migrate-continue` is about to be sent: from here on the destination may come to run the guest.
    pub(super) fn new(_: DisksDisengaged, _: BeforeContinue) -> Self {
        Self(())
    }
}

/// The source stands still for good, and the destination has all state, or in postcopy all but pages, which it fetches.
#[derive(Debug)]
pub struct ArrivalProof(());

impl ArrivalProof {
    pub(super) fn new(_: ContinueSent, _: SourceStands, _: DestinationLoaded) -> Self {
        Self(())
    }

    /// Both sides report `completed`, no matter which engine sent `migrate-continue`.
    pub(super) fn settled(_: SourceStands, _: DestinationLoaded) -> Self {
        Self(())
    }

    /// The destination reported `completed` and the source cannot run the guest.
    pub(super) fn outlived(_: &SourceCannotRun) -> Self {
        Self(())
    }
}

/// The source reported `completed`, or is at work in postcopy: it never runs the guest again by itself.
#[derive(Debug)]
pub(super) struct SourceStands(());

impl SourceStands {
    /// Checks the source's answer to `query-migrate`. `before` is what [`count_sent_pages`] gave for an earlier answer,
    /// of any time since the guest was stopped.
    ///
    /// A status of `postcopy-active` is not enough. QEMU up to 10 reports it while device state is still being sent,
    /// and takes it back (`failed`, and the guest resumes) where the channel breaks then. QEMU sends no page from the
    /// guest's stop until that is over; so one page more is the proof. From there on a broken channel only makes the
    /// source wait for a new one.
    pub(super) fn prove(answer: &MigrationInfo, before: Option<u64>) -> Option<Self> {
        let stands = match &answer.status {
            Some(MigrationStatus::Completed) => true,
            Some(MigrationStatus::PostcopyActive) => {
                before.zip(count_sent_pages(answer)).is_some_and(|(then, now)| now > then)
            }
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
pub fn count_sent_pages(answer: &MigrationInfo) -> Option<u64> {
    answer.ram.as_ref().map(|ram| ram.normal.saturating_add(ram.duplicate))
}

/// The destination reported `completed`, or is in postcopy with its devices loaded.
#[derive(Debug)]
pub(super) struct DestinationLoaded(());

impl DestinationLoaded {
    /// Checks the run state of a destination that reported `postcopy-active`. QEMU up to 10 reports it before its
    /// devices are loaded, but leaves `inmigrate` only when they are.
    pub(super) fn prove(run: &RunState) -> Option<Self> {
        (*run != RunState::InMigrate).then_some(Self(()))
    }

    /// Checks a destination's answers to `query-migrate` and `query-status`: the destination has everything, and waits.
    pub(super) fn waits(answer: &MigrationInfo, run: &RunState) -> Option<Self> {
        let completed = answer.status == Some(MigrationStatus::Completed);
        (completed && *run == RunState::Paused).then_some(Self(()))
    }

    /// An event or an answer told that the migration has completed.
    pub(super) fn completed() -> Self {
        Self(())
    }
}

/// The process of one side has ended, as the kernel and its monitor tell.
#[derive(Debug)]
pub struct ProcessEnded(Side);

impl ProcessEnded {
    /// The process of `side` was seen to have ended.
    pub(super) fn new(side: Side) -> Self {
        Self(side)
    }
}

/// One side was fenced: it runs nothing any more, whether or not it ran the guest before.
#[derive(Debug)]
pub struct FencedSide(Side);

impl FencedSide {
    /// The process was killed, and has ended.
    pub(crate) fn by_kill(ProcessEnded(side): ProcessEnded) -> Self {
        Self(side)
    }

    /// The user's fence command for `side` has ended; only success says that the side was fenced.
    pub(crate) fn by_command(side: Side, status: ExitStatus) -> Option<Self> {
        status.success().then_some(Self(side))
    }
}

/// The source cannot run the guest any more. That stays true, so the proof is lent and not consumed.
#[derive(Debug)]
pub struct SourceCannotRun(());

impl SourceCannotRun {
    /// The source's process has ended; `None` where the proof is of the other side.
    pub(crate) fn of_ended_process(ProcessEnded(side): ProcessEnded) -> Option<Self> {
        (side == Side::Source).then_some(Self(()))
    }

    /// The source was fenced; `None` where the proof is of the other side.
    pub(crate) fn of_fence(FencedSide(side): FencedSide) -> Option<Self> {
        (side == Side::Source).then_some(Self(()))
    }
}

/// The destination cannot run the guest any more. That stays true, so the proof is lent and not consumed. That the
/// destination did not run the guest *before* is the verdict's to say, from what is known of `cont`.
#[derive(Debug)]
pub struct DestinationCannotRun(&'static str);

impl DestinationCannotRun {
    /// What keeps the destination from running the guest, for the log.
    pub(super) fn describe(&self) -> &'static str {
        self.0
    }

    /// The destination's process has ended; `None` where the proof is of the other side.
    pub(crate) fn of_ended_process(ProcessEnded(side): ProcessEnded) -> Option<Self> {
        (side == Side::Destination).then_some(Self("its process has ended"))
    }

    /// The destination was fenced; `None` where the proof is of the other side.
    pub(crate) fn of_fence(FencedSide(side): FencedSide) -> Option<Self> {
        (side == Side::Destination).then_some(Self("it was fenced"))
    }

    /// The destination accepted `quit`: QEMU runs no guest after that, even before the process is gone.
    pub(super) fn of_accepted_quit() -> Self {
        Self("it accepted quit")
    }

    /// The journal says `Resuming`: the engine that wrote it held such a proof, and died with it.
    pub(crate) fn of_journal() -> Self {
        Self("the journal says that it was out of the way")
    }
}

/// `migrate-continue` has not been sent. Until then the destination has not the guest's last state and cannot run the
/// guest: the token lends that proof, and sending `migrate-continue` consumes the token.
#[derive(Debug)]
pub struct BeforeContinue(DestinationCannotRun);

impl BeforeContinue {
    /// A migration of this engine's own begins, or the journal of another engine has no `Given`. Each migration has at
    /// most one of these.
    pub(crate) fn begin() -> Self {
        Self(DestinationCannotRun("migrate-continue was not sent"))
    }

    /// `migrate-continue` was refused, or never left this process.
    pub(super) fn without_effect() -> Self {
        Self::begin()
    }

    /// The proof that holds for as long as nothing has been sent.
    pub(crate) fn destination_cannot_run(&self) -> &DestinationCannotRun {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(id: &str, status: &str, error: Option<&str>) -> JobInfo {
        serde_json::from_value(json!({"id": id, "status": status, "error": error})).expect("a job")
    }

    #[test]
    fn only_settled_mirrors_and_closed_exports_disengage() {
        let good = || vec![job("a", "concluded", None), job("b", "concluded", None)];
        let prove = |jobs: &[JobInfo], exports: &[String]| {
            DisksDisengaged::prove(["a", "b"].into_iter(), jobs, exports).map(drop)
        };
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
            // QEMU 11.1 may resume from here.
            ("postcopy-device", 11, Some(17), false),
            ("device", 11, Some(17), false),
            ("failed", 11, Some(17), false),
            ("of-tomorrow", 11, Some(17), false),
        ] {
            let proof = SourceStands::prove(&answer(status, now), before);
            assert_eq!(proof.is_some(), stands, "{status} {now} {before:?}");
        }
        assert!(SourceStands::prove(&MigrationInfo::default(), Some(0)).is_none());
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
        assert!(DestinationLoaded::waits(&MigrationInfo::default(), &RunState::Paused).is_none());
    }

    #[test]
    fn a_proof_about_one_side_proves_nothing_about_the_other() {
        use std::os::unix::process::ExitStatusExt;
        let fenced = |side, code: i32| FencedSide::by_command(side, ExitStatus::from_raw(code << 8));
        for (side, source) in [(Side::Source, true), (Side::Destination, false)] {
            assert_eq!(SourceCannotRun::of_ended_process(ProcessEnded::new(side)).is_some(), source);
            assert_eq!(DestinationCannotRun::of_ended_process(ProcessEnded::new(side)).is_some(), !source);
            assert_eq!(fenced(side, 0).and_then(SourceCannotRun::of_fence).is_some(), source);
            assert_eq!(fenced(side, 0).and_then(DestinationCannotRun::of_fence).is_some(), !source);
            assert!(fenced(side, 1).is_none());
            assert!(FencedSide::by_command(side, ExitStatus::from_raw(9)).is_none(), "killed by a signal");
        }
    }
}
