//! The decision that follows when the handover fails after `migrate-continue`, or the engine dies after it.
//!
//! Pure. The decision rests on the state of each side, on what is known of the destination's `cont`, and on nothing
//! else: a guest is started or resumed only where the other side is proved unable to run it. A handover that can be
//! finished is finished; otherwise the source takes the guest back, once the destination is out of the way; and where
//! nothing is proved nothing is done, and a person is told what to find out.
//!
//! Silence must never be taken for death, nor a status that this version does not know for a proof. That both hold
//! whatever is lost, dies or freezes is checked by exhaustion in `integration/handover/`.

use crate::qemu::reply::{MigrationStatus, RunState};

/// What is known of one side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SideState {
    /// QEMU answers.
    Answers {
        /// QEMU's run state.
        run: RunState,
        /// The status of the migration, as this side reports it.
        migration: MigrationStatus,
    },
    /// QEMU's main loop hangs: only out-of-band commands are answered. The vCPUs may run.
    Hung,
    /// QEMU does not answer, and may yet be alive.
    Silent,
    /// This side is proved to run no guest any more: the process has ended, accepted our `quit`, or was fenced; or, for
    /// the destination, the journal says so.
    Dead,
}

impl SideState {
    /// Whether the guest is live here. A guest that suspended itself (S3) is: any interrupt can wake it.
    fn runs(&self) -> bool {
        self.is(&RunState::Running) || self.is(&RunState::Suspended)
    }

    /// Whether the guest stands here by its own doing or its owner's. QEMU's stop for a migration has other run states,
    /// and a migration that is over has resumed a guest that ran.
    fn stands_by_itself(&self) -> bool {
        use RunState::{GuestPanicked, InternalError, IoError, Paused, Shutdown, Watchdog};
        [Paused, Shutdown, GuestPanicked, IoError, Watchdog, InternalError].iter().any(|run| self.is(run))
    }

    /// Whether this side may answer otherwise later, given time alone.
    fn may_change(&self) -> bool {
        match self {
            Self::Silent | Self::Hung => true,
            Self::Answers { migration, .. } => !self.is_another() && !migration.is_over(),
            Self::Dead => false,
        }
    }

    /// Whether this destination has given up loading the guest, and never ran it.
    fn has_failed_to_load(&self) -> bool {
        use MigrationStatus::{Cancelled, Failed};
        let Self::Answers { run, migration } = self else { return false };
        *run == RunState::InMigrate && matches!(migration, Failed | Cancelled)
    }

    fn is(&self, state: &RunState) -> bool {
        matches!(self, Self::Answers { run, .. } if run == state)
    }

    /// Whether this QEMU took no part in the migration: the one that did would remember it.
    fn is_another(&self) -> bool {
        matches!(self, Self::Answers { migration: MigrationStatus::None, .. })
    }

    /// Whether this source is past the point where QEMU lets it resume, and has pages that the destination may lack.
    fn is_in_postcopy(&self) -> bool {
        matches!(self, Self::Answers { migration, .. } if migration.is_postcopy())
    }

    /// Whether this source says that everything was passed on, and has not been resumed since: it never runs the guest
    /// again by itself. A source that a person resumed and stopped again is `paused`.
    fn says_it_stands(&self) -> bool {
        let stopped = self.is(&RunState::PostMigrate) || self.is(&RunState::FinishMigrate);
        stopped && matches!(self, Self::Answers { migration: MigrationStatus::Completed, .. })
    }

    /// Whether this source proves that not everything was passed on. Only of a source that never was in postcopy.
    fn says_it_has_the_guest(&self) -> bool {
        use MigrationStatus::{Active, Cancelled, Cancelling, Device, Failed, Failing, PreSwitchover, Setup};
        let Self::Answers { migration, .. } = self else { return false };
        matches!(migration, Setup | Active | PreSwitchover | Device | Failed | Failing | Cancelling | Cancelled)
    }

    /// Whether this source resumes the guest once the destination is out of the way, as far as can be told. From a
    /// status that this version does not know, QEMU may do anything.
    fn takes_back(&self) -> bool {
        match self {
            Self::Answers { migration, .. } => !matches!(migration, MigrationStatus::Other(_)),
            Self::Hung => true,
            Self::Silent | Self::Dead => false,
        }
    }
}

/// What is known of `cont` to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContKnowledge {
    /// No engine has sent one: this engine knows, or the journal says `Resuming`, which is written only once the
    /// destination is dead. For a guest that was paused none is ever sent.
    Never,
    /// QEMU refused every one that was sent.
    Refused,
    /// No engine has sent one, or QEMU refused each: the journal of an engine that died proves no more, and since its
    /// death anybody may have sent one, such as a person who finished the handover by hand. The same of a guest that
    /// somebody has started before an engine did.
    NotByEngine,
    /// The engine that knew has died. An engine sends `cont` only after the source has said `completed`.
    Unknown,
    /// At least one was sent, and not refused: the destination may run the guest, or have run it.
    Sent,
}

impl ContKnowledge {
    /// After another `cont` that left this process, and that QEMU refused or did not. A refusal of this `cont` tells
    /// nothing about an earlier one that was not refused.
    #[must_use]
    pub fn take_answer(self, refused: bool) -> Self {
        match (self, refused) {
            (_, false) => Self::Sent,
            // A destination that a person had started would have its disks, and be started again.
            (Self::Never | Self::Refused | Self::NotByEngine, true) => Self::Refused,
            (before @ (Self::Unknown | Self::Sent), true) => before,
        }
    }

    /// Whether the destination certainly never ran the guest.
    pub(super) fn had_no_effect(self) -> bool {
        matches!(self, Self::Never | Self::Refused)
    }

    /// Whether an engine may have sent one that QEMU did not refuse.
    pub(super) fn may_be_an_engines(self) -> bool {
        matches!(self, Self::Unknown | Self::Sent)
    }
}

/// Which side can be put out of the way for certain though it does not answer: by killing a process of this host, or by
/// the user's command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct UsableFences {
    /// The source.
    pub source: bool,
    /// The destination.
    pub destination: bool,
}

/// Everything the verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HandoverFacts {
    /// The source.
    pub source: SideState,
    /// The destination.
    pub destination: SideState,
    /// What is known of the destination's `cont`. Where the journal allowed postcopy and its engine died:
    /// [`ContKnowledge::Sent`], because in postcopy the source says `completed` long after the destination was started.
    pub cont: ContKnowledge,
    /// The guest has run on the destination, whoever started it there: the destination's events told so, or the guest's
    /// own requests to the destination's disks prove it.
    pub has_run: bool,
    /// The source was heard to resume the guest, or to give its migration up.
    pub source_gave_up: bool,
    /// The guest ran before the migration; otherwise it stays paused wherever the migration ends.
    pub was_running: bool,
    /// A source that does not answer may have run the guest since the guest was stopped, so the destination's state may
    /// be older: the source's events told that it gave the migration up, or events were missed since the guest was
    /// stopped, or since the source was last seen not to run.
    pub source_resumed: bool,
    /// Which side can be fenced.
    pub fences: UsableFences,
    /// The user vouches that nobody has started the guest on a destination that cannot be asked. The word of a user
    /// allows a fence there, and proves nothing of `cont`.
    pub consents: bool,
    /// There is time to send a `cont` again that the destination has refused: it refuses for a moment where somebody
    /// else holds the lock of an image.
    pub retries_cont: bool,
}

impl HandoverFacts {
    /// What is known of the destination's `cont`, with what is seen now. A conclusion stays true, so the next look
    /// begins with it: an engine that has died sends no `cont` later, and the one it sent came after the source's
    /// `completed` and after the destination had left `inmigrate`. Of a guest that was paused no more is known: its
    /// owner may have started it on the destination since the engine died.
    pub fn infer_cont(&self) -> ContKnowledge {
        let loads = self.destination.is(&RunState::InMigrate) && !self.destination.is_another();
        let never = loads || self.source.says_it_has_the_guest();
        match self.cont {
            ContKnowledge::Never | ContKnowledge::Refused if self.has_run => ContKnowledge::NotByEngine,
            ContKnowledge::Unknown | ContKnowledge::NotByEngine if never && !self.has_run => ContKnowledge::Never,
            known => known,
        }
    }

    /// Whether a later look may prove more, though nothing is done meanwhile.
    pub fn may_change(&self) -> bool {
        let Self { source, destination, .. } = self;
        match (source, destination) {
            // All that a dead source has sent may yet be on its way: the destination loads it, or fails. Pages that are
            // missing in postcopy come from nowhere any more.
            (SideState::Dead, other) => other.may_change() && !other.is_in_postcopy(),
            // What a source reports of a migration whose destination is dead does not lead to the guest any more.
            (other, SideState::Dead) => matches!(other, SideState::Silent | SideState::Hung),
            _ => {
                !(source.is_another() || destination.is_another()) && (source.may_change() || destination.may_change())
            }
        }
    }
}

/// The next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandoverVerdict {
    /// The guest is on the destination as it should be: go on.
    OnDestination,
    /// The guest is on the source as it was: the destination never ran it.
    OnSource,
    /// All state is on the destination, and the source never runs the guest again: start the destination.
    StartDestination,
    /// The destination is dead and never ran the guest: resume the source.
    ResumeSource,
    /// The same, but the source's migration is still under way, where `cont` is refused: cancel it, then look again.
    CancelMigration,
    /// The destination is alive, never ran the guest and will not: quit it, then look again.
    QuitDestination,
    /// The same, but the destination does not answer: fence it, then look again.
    FenceDestination,
    /// The destination has everything and waits; the source does not answer, and might resume: fence it, then look
    /// again, for it may have resumed just before.
    FenceSource,
    /// The destination is dead and never ran the guest, and the source hangs in the migration: break the source's
    /// connections out of band, so that the migration fails and QEMU resumes the guest; then look again.
    FreeSource,
    /// Both are dead and the destination never ran the guest: the guest has ended with the source, whose disks are
    /// whole.
    Ended,
    /// Nothing is proved: leave both as they are. With what a person must find out, and do then.
    Undetermined(&'static str),
}

impl HandoverVerdict {
    /// Whether nothing is left to be done.
    pub fn is_end(self) -> bool {
        matches!(self, Self::OnDestination | Self::OnSource | Self::Ended | Self::Undetermined(_))
    }

    /// Whether the source goes on with the guest by it: by `cont`, or because QEMU resumes a source whose migration
    /// ends.
    pub fn resumes_source(self) -> bool {
        matches!(self, Self::ResumeSource | Self::CancelMigration | Self::FreeSource)
    }
}

const ANOTHER: &str = "the QEMU at one of the two addresses knows of this migration no more: it is another QEMU than \
     the one that took part, or another client has begun a migration there since: find out with query-status which \
     QEMU has the guest before you send cont to any";
const POSTCOPY: &str = "the source is in postcopy, where QEMU can neither cancel the migration nor resume the guest \
     there: if the destination is alive and 'paused', send cont to it and leave the source alone until query-migrate \
     says 'completed' on both sides; if the destination is gone, the guest can only be started anew, from the \
     source's disks";
const BOTH: &str = "the destination runs the guest and the source may run it too: ask both with query-status, and \
     stop the side whose disks are older";
const SOURCE_RUNS: &str = "the source has the guest, but the destination may have run it as well: make sure that the \
     destination is gone, and that nothing it wrote is missed";
const STRANGE: &str = "one side reports a status that this version does not know: ask both with query-status and \
     query-migrate, and send cont to one side only when the other is gone";
const REFUSED: &str = "the destination refuses to run the guest and the source does not answer: once the source \
     answers query-migrate with 'completed', quit the destination and send cont to the source";
const SOURCE_SILENT: &str = "the destination has the whole guest and waits to be started, but the source does not \
     answer and may resume the guest: make sure that the source's process is gone and did not resume after the \
     handover, then send cont to the destination";
const RAN_AND_STANDS: &str = "the guest has run on the destination and is paused there, and the source does not answer: \
     make sure that the source's process is gone and did not resume after the handover; the guest's owner resumes it on \
     the destination";
const SOURCE_RAN: &str = "the source is gone and may have run the guest after the handover, so the destination's \
     state may be older: if the source's log says that it did not resume, send cont to the destination; otherwise \
     start the guest anew from the source's disks";
const DESTINATION_LACKS: &str = "the destination has only a part of the guest and the source does not answer: make \
     the source answer, quit the destination, then resume the source with migrate_cancel or cont; if the source is \
     gone, start the guest anew from its disks";
const MAY_RUN: &str = "the destination does not answer and may run the guest: ask it with query-status once it \
     answers, or make sure that it is gone and never ran the guest, before you send cont to the source";
const MAY_RUN_BY_HAND: &str = "the destination does not answer; the engine that died has not started it, but somebody \
     else may have since: ask it with query-status once it answers; only if nobody has started the guest there, give \
     the recovery a fence command, or end the destination and send cont to the source";
const IN_THE_WAY: &str = "the destination does not answer and has not run the guest: make sure that its process is \
     gone, then resume the source with migrate_cancel or cont";
const BOTH_SILENT: &str = "neither side answers, and the destination has not run the guest: once the source answers \
     query-status, make sure that the destination is gone, then resume the source with migrate_cancel or cont";
const DESTINATION_ALONE: &str = "the source is gone and the destination does not answer: once the destination \
     answers, send cont to it if query-migrate says 'completed' there and the source's log says that it did not \
     resume; otherwise start the guest anew from the source's disks";
const MAY_HAVE_RUN: &str = "the destination is gone and may have run the guest before: if its log and the times of \
     its disks say that it did not, send cont to the source; otherwise start the guest anew from the destination's \
     disks";
const SOURCE_ALONE: &str = "the destination is gone and never ran the guest, and the source does not answer: once the \
     source answers, resume it with migrate_cancel or cont";
const NOT_STARTED_BY_US: &str = "the destination has the whole guest and may have run it, and the source does not say \
     that it stands still: ask both with query-status and query-migrate, and send cont to the side whose disks were \
     written last, when the other is gone";

/// Decides what to do. Both sides must have had the time to finish what they were doing: a destination that is about to
/// say `completed` is told to quit otherwise.
pub fn decide(facts: &HandoverFacts) -> HandoverVerdict {
    let HandoverFacts { source, destination, was_running, .. } = facts;
    let cont = facts.infer_cont();
    if source.is_another() || destination.is_another() {
        return HandoverVerdict::Undetermined(ANOTHER);
    }
    // A source in postcopy cannot be resumed by any command, and must not be given up: whatever became of the
    // destination, the destination may need the source's pages yet.
    if source.is_in_postcopy() {
        return match !cont.had_no_effect() && destination.runs() && !source.runs() {
            true => HandoverVerdict::OnDestination,
            false => HandoverVerdict::Undetermined(POSTCOPY),
        };
    }
    // A completed migration leaves `postmigrate`, not `paused`.
    if source.runs() || (!was_running && source.is(&RunState::Paused)) {
        // QEMU resumes a source by itself where the migration failed. A destination that was never started waits with
        // its vCPUs stopped; two sides that run are for a person to sort out.
        return match (cont.had_no_effect(), destination.runs()) {
            (true, false) => HandoverVerdict::OnSource,
            (false, false) => HandoverVerdict::Undetermined(SOURCE_RUNS),
            (_, true) => HandoverVerdict::Undetermined(BOTH),
        };
    }
    match destination {
        SideState::Answers { .. } if destination.runs() => judge_running_destination(source, cont),
        SideState::Answers { run: RunState::Paused, migration: MigrationStatus::Completed } => {
            judge_loaded_destination(facts, cont)
        }
        SideState::Answers { run: RunState::Paused | RunState::InMigrate, migration } => match cont.had_no_effect() {
            // The destination has only a part, and a source that lives still has everything.
            true if matches!(source, SideState::Answers { .. } | SideState::Hung) => HandoverVerdict::QuitDestination,
            // What has failed to load is never loaded: the guest has ended with its source.
            true if *source == SideState::Dead && destination.has_failed_to_load() => HandoverVerdict::QuitDestination,
            _ if migration.is_postcopy() => HandoverVerdict::Undetermined(POSTCOPY),
            true => HandoverVerdict::Undetermined(DESTINATION_LACKS),
            false => HandoverVerdict::Undetermined(NOT_STARTED_BY_US),
        },
        // The guest has moved, and has stopped there since.
        SideState::Answers { migration: MigrationStatus::Completed, .. }
            if facts.has_run && destination.stands_by_itself() && stands_for_good(source) && !facts.source_gave_up =>
        {
            HandoverVerdict::OnDestination
        }
        // Any other run state (`io-error`, `shutdown`) means that the guest may have run here.
        SideState::Answers { .. } => HandoverVerdict::Undetermined(STRANGE),
        SideState::Silent | SideState::Hung => match (cont.had_no_effect(), source.takes_back()) {
            (true, true) if facts.fences.destination => HandoverVerdict::FenceDestination,
            (true, true) => HandoverVerdict::Undetermined(IN_THE_WAY),
            // The destination is not fenced here: its state may be the only one that is left.
            (true, false) => HandoverVerdict::Undetermined(match source {
                SideState::Answers { .. } => STRANGE,
                SideState::Dead => DESTINATION_ALONE,
                SideState::Hung | SideState::Silent => BOTH_SILENT,
            }),
            (false, _) if cont == ContKnowledge::NotByEngine && !facts.has_run => match source.takes_back() {
                true if facts.consents && facts.fences.destination => HandoverVerdict::FenceDestination,
                _ => HandoverVerdict::Undetermined(MAY_RUN_BY_HAND),
            },
            (false, _) => HandoverVerdict::Undetermined(MAY_RUN),
        },
        SideState::Dead if cont.had_no_effect() => judge_lone_source(source, *was_running),
        SideState::Dead => HandoverVerdict::Undetermined(MAY_HAVE_RUN),
    }
}

/// Whether a source makes the destination the only side that can run the guest, no matter who starts it there.
fn stands_for_good(source: &SideState) -> bool {
    *source == SideState::Dead || source.says_it_stands()
}

/// The destination runs, and the source does not.
fn judge_running_destination(source: &SideState, cont: ContKnowledge) -> HandoverVerdict {
    // Only an engine starts a destination, and only after the source stood for good; unless the source denies
    // it.
    let started = cont.may_be_an_engines() && !matches!(source, SideState::Answers { .. });
    match stands_for_good(source) || started {
        true => HandoverVerdict::OnDestination,
        // Somebody else started the destination, and the source may yet fail and resume.
        false => HandoverVerdict::Undetermined(BOTH),
    }
}

/// The destination has everything and stands still; the source does not run.
///
/// After [`ContKnowledge::Sent`] the destination may have run, and its owner may have paused it since. The destination
/// is started all the same: the source stands for good, so there are no two runners; an owner who paused the guest
/// within these seconds can do so again, while a `cont` that was lost would leave the guest to stand for ever. A guest
/// that QEMU itself stopped has another run state than `paused`. Where the guest is proved to have run there
/// no `cont` was lost, and who paused the guest is its owner.
fn judge_loaded_destination(facts: &HandoverFacts, cont: ContKnowledge) -> HandoverVerdict {
    let HandoverFacts { source, was_running, source_resumed, fences, .. } = facts;
    let starts = *was_running && !facts.has_run;
    let finish = if starts { HandoverVerdict::StartDestination } else { HandoverVerdict::OnDestination };
    // A guest that was paused is not resumed by a migration that fails.
    let may_have_run = *was_running && *source_resumed;
    match source {
        // The destination refuses to start, and the source still has everything.
        SideState::Answers { .. }
            if source.says_it_stands() && cont == ContKnowledge::Refused && !facts.retries_cont =>
        {
            HandoverVerdict::QuitDestination
        }
        SideState::Answers { .. } if source.says_it_stands() => finish,
        SideState::Answers { .. } if cont.had_no_effect() && source.takes_back() => HandoverVerdict::QuitDestination,
        SideState::Answers { migration: MigrationStatus::Other(_), .. } => HandoverVerdict::Undetermined(STRANGE),
        SideState::Answers { .. } => HandoverVerdict::Undetermined(NOT_STARTED_BY_US),
        // A `cont` that was refused is tried again: no other side has the guest.
        // A source that nobody has heard resume stood for good when the destination was started.
        SideState::Dead if !may_have_run || (facts.has_run && !facts.source_gave_up) => finish,
        SideState::Dead => HandoverVerdict::Undetermined(SOURCE_RAN),
        SideState::Silent | SideState::Hung if cont == ContKnowledge::Refused => HandoverVerdict::Undetermined(REFUSED),
        // A source that hangs is fenced though it could be freed: the destination's copy is whole, and the source's is
        // in a process that hangs.
        SideState::Silent | SideState::Hung if fences.source && !may_have_run => HandoverVerdict::FenceSource,
        SideState::Silent | SideState::Hung if facts.has_run => HandoverVerdict::Undetermined(RAN_AND_STANDS),
        SideState::Silent | SideState::Hung => HandoverVerdict::Undetermined(SOURCE_SILENT),
    }
}

/// The destination is dead and never ran the guest; the source does not run.
fn judge_lone_source(source: &SideState, was_running: bool) -> HandoverVerdict {
    match source {
        SideState::Answers { migration, .. } if !migration.is_over() => HandoverVerdict::CancelMigration,
        SideState::Answers { .. } if was_running && !source.stands_by_itself() => HandoverVerdict::ResumeSource,
        // The source is stopped and obeys its owner's `cont`. A guest that was paused, or has been paused since, or has
        // stopped by itself, must not be resumed by us.
        SideState::Answers { .. } => HandoverVerdict::OnSource,
        SideState::Hung => HandoverVerdict::FreeSource,
        SideState::Silent => HandoverVerdict::Undetermined(SOURCE_ALONE),
        SideState::Dead => HandoverVerdict::Ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContKnowledge::{Never, NotByEngine, Refused, Sent, Unknown};
    use proptest::prelude::*;

    const ALL: [ContKnowledge; 4] = [Never, Refused, Unknown, Sent];
    /// Any undetermined verdict, whatever its advice.
    const UNDETERMINED: HandoverVerdict = HandoverVerdict::Undetermined("");

    fn answers(run: &str, migration: &str) -> SideState {
        SideState::Answers { run: RunState::from(run), migration: MigrationStatus::from(migration) }
    }

    fn postmigrate() -> SideState {
        answers("postmigrate", "completed")
    }

    fn loaded() -> SideState {
        answers("paused", "completed")
    }

    fn waits() -> SideState {
        answers("finish-migrate", "pre-switchover")
    }

    fn destination_runs() -> SideState {
        answers("running", "completed")
    }

    fn incoming() -> SideState {
        answers("inmigrate", "active")
    }

    fn destination_failed() -> SideState {
        answers("inmigrate", "failed")
    }

    fn facts(source: SideState, destination: SideState, cont: ContKnowledge) -> HandoverFacts {
        HandoverFacts {
            source,
            destination,
            cont,
            has_run: false,
            source_gave_up: false,
            was_running: true,
            source_resumed: false,
            fences: UsableFences::default(),
            consents: false,
            retries_cont: false,
        }
    }

    /// The verdict without the advice of an undetermined one.
    fn verdict(facts: &HandoverFacts) -> HandoverVerdict {
        match decide(facts) {
            HandoverVerdict::Undetermined(_) => UNDETERMINED,
            other => other,
        }
    }

    #[track_caller]
    fn check(source: &SideState, destination: &SideState, conts: &[ContKnowledge], expected: HandoverVerdict) {
        for cont in conts {
            let facts = facts(source.clone(), destination.clone(), *cont);
            assert_eq!(verdict(&facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_destination_that_runs() {
        use HandoverVerdict::OnDestination;
        check(&postmigrate(), &destination_runs(), &ALL, OnDestination);
        check(&SideState::Dead, &destination_runs(), &ALL, OnDestination);
        for source in [SideState::Silent, SideState::Hung] {
            check(&source, &destination_runs(), &[Sent, Unknown], OnDestination);
            check(&source, &destination_runs(), &[Never, Refused], UNDETERMINED);
        }
        // Somebody else started the destination, and the source may yet fail and resume.
        check(&waits(), &destination_runs(), &ALL, UNDETERMINED);
        check(&answers("running", "failed"), &destination_runs(), &ALL, UNDETERMINED);
        // The source was resumed and stopped again: its state is newer.
        check(&answers("paused", "completed"), &destination_runs(), &ALL, UNDETERMINED);
    }

    #[test]
    fn a_destination_that_has_everything_is_started() {
        use HandoverVerdict::{QuitDestination, StartDestination};
        check(&postmigrate(), &loaded(), &[Never, Unknown, Sent], StartDestination);
        check(&answers("finish-migrate", "completed"), &loaded(), &[Never, Unknown, Sent], StartDestination);
        check(&postmigrate(), &loaded(), &[Refused], QuitDestination);
        let again = HandoverFacts { retries_cont: true, ..facts(postmigrate(), loaded(), Refused) };
        assert_eq!(verdict(&again), StartDestination, "the lock of an image may be somebody else's for a moment");
        // No other side has the guest: `cont` is tried once more.
        check(&SideState::Dead, &loaded(), &ALL, StartDestination);
        // The source has not completed, so no engine has ever sent `cont`.
        for status in ["device", "failed", "cancelled", "failing"] {
            check(&answers("finish-migrate", status), &loaded(), &[Never, Refused, Unknown], QuitDestination);
            check(&answers("finish-migrate", status), &loaded(), &[Sent], UNDETERMINED);
        }
        check(&answers("paused", "completed"), &loaded(), &[Never, Refused], QuitDestination);
        check(&answers("paused", "completed"), &loaded(), &[Unknown, Sent], UNDETERMINED);
        for source in [SideState::Silent, SideState::Hung] {
            check(&source, &loaded(), &ALL, UNDETERMINED);
        }
    }

    #[test]
    fn what_may_be_older_is_not_started() {
        for source in [SideState::Dead, SideState::Silent, SideState::Hung] {
            for cont in ALL {
                let facts = HandoverFacts {
                    source_resumed: true,
                    fences: UsableFences { source: true, destination: true },
                    ..facts(source.clone(), loaded(), cont)
                };
                assert_eq!(verdict(&facts), UNDETERMINED, "{facts:?}");
                // A paused guest is not resumed by a migration that fails.
                let paused = HandoverFacts { was_running: false, ..facts };
                assert_ne!(verdict(&paused), HandoverVerdict::StartDestination, "{paused:?}");
            }
        }
        // The source's own answer counts for more than events that were missed.
        let facts = HandoverFacts { source_resumed: true, ..facts(postmigrate(), loaded(), Unknown) };
        assert_eq!(decide(&facts), HandoverVerdict::StartDestination);
    }

    #[test]
    fn a_destination_that_never_ran_is_quit() {
        use HandoverVerdict::QuitDestination;
        for source in [waits(), answers("finish-migrate", "device"), answers("postmigrate", "failed"), SideState::Hung]
        {
            for destination in [incoming(), destination_failed(), answers("paused", "failed")] {
                check(&source, &destination, &[Never, Refused], QuitDestination);
                check(&source, &destination, &[Sent], UNDETERMINED);
            }
        }
        // `inmigrate` proves that no `cont` was sent, and so does a source that has not completed.
        check(&postmigrate(), &destination_failed(), &[Never, Refused, Unknown], QuitDestination);
        check(&postmigrate(), &answers("paused", "failed"), &[Unknown], UNDETERMINED);
        check(&waits(), &answers("paused", "failed"), &[Unknown], QuitDestination);
        // QEMU 11.1 resumes from here once the destination is gone.
        check(&answers("finish-migrate", "postcopy-device"), &destination_failed(), &[Never], QuitDestination);
        // What a source has sent before it died may yet be loaded, and what has failed to load may not.
        check(&SideState::Dead, &incoming(), &ALL, UNDETERMINED);
        for status in ["failed", "cancelled"] {
            check(&SideState::Dead, &answers("inmigrate", status), &[Never, Refused, Unknown], QuitDestination);
            check(&SideState::Dead, &answers("inmigrate", status), &[Sent], UNDETERMINED);
            check(&SideState::Dead, &answers("paused", status), &ALL, UNDETERMINED);
            check(&SideState::Silent, &answers("inmigrate", status), &ALL, UNDETERMINED);
        }
        check(&SideState::Silent, &incoming(), &ALL, UNDETERMINED);
    }

    #[test]
    fn a_destination_that_is_dead() {
        use HandoverVerdict::{CancelMigration, FreeSource, ResumeSource};
        let conts = [Never, Refused, Unknown];
        check(&waits(), &SideState::Dead, &conts, CancelMigration);
        check(&answers("finish-migrate", "device"), &SideState::Dead, &conts, CancelMigration);
        check(&answers("finish-migrate", "failed"), &SideState::Dead, &conts, ResumeSource);
        check(&postmigrate(), &SideState::Dead, &[Never, Refused], ResumeSource);
        check(&SideState::Hung, &SideState::Dead, &[Never, Refused], FreeSource);
        // The engine that died may have started the destination before the destination died, too.
        check(&postmigrate(), &SideState::Dead, &[Unknown, Sent], UNDETERMINED);
        check(&SideState::Hung, &SideState::Dead, &[Unknown, Sent], UNDETERMINED);
        check(&waits(), &SideState::Dead, &[Sent], UNDETERMINED);
        check(&SideState::Silent, &SideState::Dead, &ALL, UNDETERMINED);
    }

    #[test]
    fn a_guest_has_ended_where_both_are_dead_and_the_destination_never_ran_it() {
        check(&SideState::Dead, &SideState::Dead, &[Never, Refused], HandoverVerdict::Ended);
        check(&SideState::Dead, &SideState::Dead, &[Unknown, Sent], UNDETERMINED);
        for was_running in [false, true] {
            for source_resumed in [false, true] {
                // Whether the source had resumed the guest before it died or not: its disks are the newer ones.
                let facts =
                    HandoverFacts { was_running, source_resumed, ..facts(SideState::Dead, SideState::Dead, Never) };
                assert_eq!((decide(&facts), facts.may_change()), (HandoverVerdict::Ended, false));
            }
        }
        for gone in [SideState::Silent, SideState::Hung] {
            for cont in ALL {
                assert_ne!(decide(&facts(gone.clone(), SideState::Dead, cont)), HandoverVerdict::Ended);
                assert_ne!(decide(&facts(SideState::Dead, gone.clone(), cont)), HandoverVerdict::Ended);
            }
        }
    }

    #[test]
    fn a_source_that_resumed_by_itself() {
        for destination in [destination_failed(), loaded(), SideState::Dead, SideState::Silent, SideState::Hung] {
            for status in ["failed", "cancelled"] {
                check(&answers("running", status), &destination, &[Never, Refused, Unknown], HandoverVerdict::OnSource);
                check(&answers("running", status), &destination, &[Sent], UNDETERMINED);
            }
            // Whoever resumed the source.
            check(&answers("running", "completed"), &destination, &[Never, Refused], HandoverVerdict::OnSource);
        }
        for destination in [loaded(), SideState::Dead, SideState::Silent, SideState::Hung] {
            check(&answers("running", "completed"), &destination, &[Unknown, Sent], UNDETERMINED);
        }
    }

    #[test]
    fn who_does_not_answer_is_fenced_only_where_nothing_can_be_lost() {
        let fenced = |source: SideState, destination: SideState, cont| {
            let fences = UsableFences { source: true, destination: true };
            verdict(&HandoverFacts { fences, ..facts(source, destination, cont) })
        };
        for silent in [SideState::Silent, SideState::Hung] {
            for cont in [Never, Refused] {
                for source in [waits(), postmigrate(), SideState::Hung] {
                    assert_eq!(fenced(source, silent.clone(), cont), HandoverVerdict::FenceDestination);
                }
            }
            assert_eq!(fenced(waits(), silent.clone(), Unknown), HandoverVerdict::FenceDestination);
            for source in [waits(), postmigrate(), SideState::Hung, SideState::Silent, SideState::Dead] {
                assert_eq!(fenced(source, silent.clone(), Sent), UNDETERMINED);
            }
            assert_eq!(fenced(postmigrate(), silent.clone(), Unknown), UNDETERMINED);
            assert_eq!(fenced(SideState::Hung, silent.clone(), Unknown), UNDETERMINED);
            for cont in ALL {
                // The destination may have the only state there is.
                assert_eq!(fenced(SideState::Silent, silent.clone(), cont), UNDETERMINED);
                assert_eq!(fenced(SideState::Dead, silent.clone(), cont), UNDETERMINED);
                let expected = if cont == Refused { UNDETERMINED } else { HandoverVerdict::FenceSource };
                assert_eq!(fenced(silent.clone(), loaded(), cont), expected);
            }
            assert_eq!(
                fenced(silent.clone(), incoming(), Never),
                match silent {
                    SideState::Hung => HandoverVerdict::QuitDestination,
                    _ => UNDETERMINED,
                }
            );
        }
        check(&waits(), &SideState::Silent, &ALL, UNDETERMINED);
    }

    #[test]
    fn the_word_of_a_user_allows_one_fence_and_nothing_else() {
        let judged = |source: SideState, destination: SideState, cont, has_run| {
            let fences = UsableFences { source: true, destination: true };
            let facts = HandoverFacts { fences, has_run, ..facts(source, destination, cont) };
            (verdict(&facts), verdict(&HandoverFacts { consents: true, ..facts }))
        };
        for silent in [SideState::Silent, SideState::Hung] {
            for source in [postmigrate(), answers("paused", "completed"), SideState::Hung] {
                let fences = (UNDETERMINED, HandoverVerdict::FenceDestination);
                assert_eq!(judged(source.clone(), silent.clone(), NotByEngine, false), fences, "{source:?}");
                // No word of a user undoes what is proved, nor tells what an engine did that has died.
                for (cont, has_run) in [(NotByEngine, true), (Unknown, false), (Sent, false)] {
                    let left = judged(source.clone(), silent.clone(), cont, has_run);
                    assert_eq!(left, (UNDETERMINED, UNDETERMINED), "{source:?} {cont:?} {has_run}");
                }
            }
            // The destination may have the only state there is.
            for source in [SideState::Silent, SideState::Dead, answers("finish-migrate", "of-tomorrow")] {
                assert_eq!(judged(source, silent.clone(), NotByEngine, false).1, UNDETERMINED);
            }
        }
        // A destination that is not silent tells more than the user knows: the guest may have run there, and been
        // paused or ended since.
        for destination in [SideState::Dead, loaded(), answers("paused", "failed"), answers("io-error", "completed")] {
            let (without, with) = judged(answers("paused", "completed"), destination, NotByEngine, false);
            assert_eq!((without, with), (UNDETERMINED, UNDETERMINED));
        }
    }

    #[test]
    fn a_guest_that_was_paused_stays_so() {
        let paused = |source: SideState, destination: SideState| {
            verdict(&HandoverFacts { was_running: false, ..facts(source, destination, Never) })
        };
        assert_eq!(paused(postmigrate(), loaded()), HandoverVerdict::OnDestination);
        assert_eq!(paused(SideState::Dead, loaded()), HandoverVerdict::OnDestination);
        assert_eq!(paused(answers("finish-migrate", "device"), loaded()), HandoverVerdict::QuitDestination);
        assert_eq!(paused(answers("paused", "failed"), destination_failed()), HandoverVerdict::OnSource);
        assert_eq!(paused(postmigrate(), SideState::Dead), HandoverVerdict::OnSource);
        assert_eq!(paused(waits(), SideState::Dead), HandoverVerdict::CancelMigration);
    }

    #[test]
    fn what_happened_after_an_engine_died_is_not_known() {
        use HandoverVerdict::{FenceDestination, OnDestination, QuitDestination, ResumeSource, StartDestination};
        let fences = UsableFences { source: true, destination: true };
        for was_running in [true, false] {
            let judged = |source: SideState, destination: SideState, cont| {
                verdict(&HandoverFacts { fences, was_running, ..facts(source, destination, cont) })
            };
            for cont in [NotByEngine, Unknown] {
                // A person may have finished the handover, and the guest have run on the destination.
                for gone in [SideState::Dead, SideState::Silent, SideState::Hung] {
                    for source in [postmigrate(), SideState::Dead, SideState::Silent, SideState::Hung] {
                        assert_eq!(judged(source, gone.clone(), cont), UNDETERMINED);
                    }
                }
                assert_eq!(judged(answers("running", "completed"), SideState::Dead, cont), UNDETERMINED);
                assert_eq!(judged(answers("paused", "completed"), loaded(), cont), UNDETERMINED);
                assert_eq!(judged(postmigrate(), destination_runs(), cont), OnDestination);
                // Either side's answer proves that the destination never ran.
                for silent in [SideState::Silent, SideState::Hung] {
                    assert_eq!(judged(waits(), silent, cont), FenceDestination);
                }
                assert_eq!(judged(answers("finish-migrate", "failed"), loaded(), cont), QuitDestination);
                assert_eq!(judged(postmigrate(), destination_failed(), cont), QuitDestination);
            }
            let expected = if was_running { ResumeSource } else { HandoverVerdict::OnSource };
            assert_eq!(judged(postmigrate(), SideState::Dead, Never), expected, "an engine that lives knows");
        }
        check(&postmigrate(), &loaded(), &[NotByEngine], StartDestination);
        check(&SideState::Silent, &destination_runs(), &[NotByEngine], UNDETERMINED);
    }

    #[test]
    fn nothing_is_done_to_a_guest_that_has_run_on_the_destination() {
        let all = [ALL.to_vec(), vec![NotByEngine]].concat();
        let ran = |source: SideState, destination: SideState, cont| {
            let fences = UsableFences { source: true, destination: true };
            verdict(&HandoverFacts { has_run: true, fences, ..facts(source, destination, cont) })
        };
        for cont in all {
            for run in ["paused", "io-error", "shutdown", "guest-panicked", "watchdog", "internal-error"] {
                let stopped = || answers(run, "completed");
                // The owner has paused the guest there, or it has stopped by itself.
                for source in [postmigrate(), SideState::Dead] {
                    assert_eq!(ran(source, stopped(), cont), HandoverVerdict::OnDestination, "{run} {cont:?}");
                }
                for source in [answers("running", "completed"), answers("running", "failed"), waits()] {
                    assert_eq!(ran(source, stopped(), cont), UNDETERMINED, "{run} {cont:?}");
                }
            }
            // What the guest wrote there is not to be undone.
            for gone in [SideState::Dead, SideState::Silent, SideState::Hung] {
                for source in [postmigrate(), waits(), answers("finish-migrate", "failed"), SideState::Dead] {
                    assert_eq!(ran(source, gone.clone(), cont), UNDETERMINED, "{cont:?}");
                }
            }
            assert_eq!(ran(postmigrate(), destination_runs(), cont), HandoverVerdict::OnDestination);
            // A recovery has not followed the source. One that was heard to resume may have run the guest last.
            for (source_gave_up, expected) in [(false, HandoverVerdict::OnDestination), (true, UNDETERMINED)] {
                let dead = facts(SideState::Dead, loaded(), cont);
                let unfollowed = HandoverFacts { has_run: true, source_resumed: true, source_gave_up, ..dead };
                assert_eq!(verdict(&unfollowed), expected, "{cont:?}");
            }
        }
        assert_eq!(ran(SideState::Silent, destination_runs(), Sent), HandoverVerdict::OnDestination);
    }

    #[test]
    fn a_guest_that_stands_by_itself_is_not_resumed() {
        for run in ["paused", "shutdown", "guest-panicked", "io-error", "watchdog", "internal-error", "suspended"] {
            for migration in ["failed", "cancelled", "completed"] {
                let source = answers(run, migration);
                check(&source, &SideState::Dead, &[Never, Refused], HandoverVerdict::OnSource);
            }
            let under_way = answers(run, "pre-switchover");
            let expected =
                if run == "suspended" { HandoverVerdict::OnSource } else { HandoverVerdict::CancelMigration };
            check(&under_way, &SideState::Dead, &[Never, Refused], expected);
        }
        check(&answers("finish-migrate", "failed"), &SideState::Dead, &[Never], HandoverVerdict::ResumeSource);
        check(&postmigrate(), &SideState::Dead, &[Never], HandoverVerdict::ResumeSource);
    }

    #[test]
    fn a_guest_that_has_suspended_itself_is_live() {
        check(&postmigrate(), &answers("suspended", "completed"), &ALL, HandoverVerdict::OnDestination);
        check(&answers("suspended", "failed"), &destination_failed(), &[Never, Refused], HandoverVerdict::OnSource);
        check(&answers("suspended", "failed"), &answers("suspended", "completed"), &ALL, UNDETERMINED);
    }

    #[test]
    fn time_alone_changes_what_is_silent_or_under_way() {
        let may_change = |source: SideState, destination: SideState| facts(source, destination, Sent).may_change();
        for silent in [SideState::Silent, SideState::Hung] {
            for other in [postmigrate(), loaded(), destination_runs(), SideState::Dead, SideState::Silent] {
                assert!(may_change(other.clone(), silent.clone()) && may_change(silent.clone(), other));
            }
        }
        assert!(may_change(answers("finish-migrate", "device"), destination_runs()));
        assert!(may_change(answers("finish-migrate", "of-tomorrow"), loaded()));
        for settled in [postmigrate(), answers("running", "failed")] {
            assert!(!may_change(settled.clone(), destination_runs()) && !may_change(settled, SideState::Dead));
        }
        // The destination may yet load what a dead source has sent.
        assert!(may_change(SideState::Dead, incoming()) && !may_change(SideState::Dead, destination_failed()));
        assert!(!may_change(SideState::Dead, answers("inmigrate", "postcopy-active")));
        assert!(!may_change(answers("running", "none"), incoming()));
        assert!(!may_change(answers("finish-migrate", "postcopy-active"), SideState::Dead));
    }

    #[test]
    fn in_postcopy_neither_side_has_the_whole_guest() {
        let postcopy = |run: &str, word: &str| answers(run, &format!("postcopy-{word}"));
        for word in ["active", "paused", "recover", "recover-setup"] {
            let source = postcopy("finish-migrate", word);
            check(&source, &postcopy("running", "active"), &[Sent], HandoverVerdict::OnDestination);
            check(&source, &postcopy("running", "active"), &[Never, Refused], UNDETERMINED);
            for destination in
                [postcopy("paused", "active"), loaded(), destination_failed(), SideState::Dead, SideState::Silent]
            {
                check(&source, &destination, &ALL, UNDETERMINED);
            }
        }
        let destination = postcopy("paused", "active");
        check(&SideState::Dead, &destination, &ALL, UNDETERMINED);
        check(&answers("running", "failed"), &destination, &[Never], HandoverVerdict::OnSource);
        check(&answers("running", "failed"), &destination, &[Sent], UNDETERMINED);
        check(&SideState::Dead, &postcopy("running", "active"), &[Sent], HandoverVerdict::OnDestination);
    }

    #[test]
    fn what_nobody_knows_proves_nothing() {
        let strange = answers("finish-migrate", "of-tomorrow");
        check(&strange, &loaded(), &ALL, UNDETERMINED);
        check(&strange, &incoming(), &[Never, Refused, Unknown], HandoverVerdict::QuitDestination);
        check(&strange, &SideState::Silent, &ALL, UNDETERMINED);
        check(&strange, &SideState::Dead, &[Unknown, Sent], UNDETERMINED);
        check(&postmigrate(), &answers("io-error", "completed"), &ALL, UNDETERMINED);
        check(&postmigrate(), &answers("paused", "of-tomorrow"), &[Unknown, Sent], UNDETERMINED);
    }

    #[test]
    fn another_qemu_at_the_address_is_left_alone() {
        for run in ["running", "paused", "inmigrate", "prelaunch", "postmigrate"] {
            for other in [
                postmigrate(),
                loaded(),
                destination_runs(),
                answers("running", "failed"),
                SideState::Dead,
                SideState::Silent,
            ] {
                check(&answers(run, "none"), &other, &ALL, UNDETERMINED);
                check(&other, &answers(run, "none"), &ALL, UNDETERMINED);
            }
        }
        // Another QEMU's answer proves nothing about `cont`.
        assert_eq!(facts(postmigrate(), answers("inmigrate", "none"), Unknown).infer_cont(), Unknown);
    }

    #[test]
    fn a_refusal_tells_of_itself_alone() {
        assert_eq!(ALL.map(|cont| cont.take_answer(false)), [Sent; 4]);
        assert_eq!(ALL.map(|cont| cont.take_answer(true)), [Refused, Refused, Unknown, Sent]);
        assert_eq!([true, false].map(|refused| NotByEngine.take_answer(refused)), [Refused, Sent]);
    }

    #[test]
    fn a_person_is_told_what_to_find_out() {
        let words = |source: SideState, destination: SideState, cont| match decide(&facts(source, destination, cont)) {
            HandoverVerdict::Undetermined(words) => words,
            other => panic!("{other:?}"),
        };
        assert_eq!(words(postmigrate(), SideState::Silent, Sent), MAY_RUN);
        assert_eq!(words(postmigrate(), SideState::Silent, NotByEngine), MAY_RUN_BY_HAND);
        assert_eq!(words(postmigrate(), SideState::Silent, Never), IN_THE_WAY);
        assert_eq!(words(postmigrate(), SideState::Dead, Unknown), MAY_HAVE_RUN);
        assert_eq!(words(SideState::Silent, SideState::Silent, Never), BOTH_SILENT);
        assert_eq!(words(SideState::Dead, SideState::Silent, Never), DESTINATION_ALONE);
        assert_eq!(words(SideState::Silent, SideState::Dead, Never), SOURCE_ALONE);
        assert_eq!(words(SideState::Silent, loaded(), Never), SOURCE_SILENT);
        assert_eq!(words(SideState::Silent, loaded(), Refused), REFUSED);
        assert_eq!(words(SideState::Dead, incoming(), Never), DESTINATION_LACKS);
        assert_eq!(words(waits(), destination_runs(), Never), BOTH);
        assert_eq!(words(answers("running", "completed"), SideState::Silent, Sent), SOURCE_RUNS);
        assert_eq!(words(answers("finish-migrate", "postcopy-paused"), SideState::Dead, Sent), POSTCOPY);
        assert_eq!(words(SideState::Dead, answers("paused", "postcopy-active"), Never), POSTCOPY);
        assert_eq!(words(answers("running", "none"), loaded(), Never), ANOTHER);
        assert_eq!(words(postmigrate(), answers("io-error", "completed"), Sent), STRANGE);
        assert_eq!(words(answers("paused", "completed"), loaded(), Sent), NOT_STARTED_BY_US);
        let older = HandoverFacts { source_resumed: true, ..facts(SideState::Dead, loaded(), Never) };
        assert_eq!(decide(&older), HandoverVerdict::Undetermined(SOURCE_RAN));
    }

    fn any_side_state() -> impl Strategy<Value = SideState> {
        let run = prop::sample::select(vec![
            "running",
            "paused",
            "inmigrate",
            "finish-migrate",
            "postmigrate",
            "io-error",
            "suspended",
            "shutdown",
            "strange",
        ]);
        let migration = prop::sample::select(vec![
            "none",
            "active",
            "pre-switchover",
            "device",
            "postcopy-device",
            "postcopy-active",
            "postcopy-paused",
            "postcopy-recover",
            "completed",
            "failed",
            "cancelled",
            "strange",
        ]);
        prop_oneof![
            1 => Just(SideState::Silent),
            1 => Just(SideState::Hung),
            1 => Just(SideState::Dead),
            1 => Just(loaded()),
            1 => Just(postmigrate()),
            4 => (run, migration).prop_map(|(run, migration)| answers(run, migration)),
        ]
    }

    fn any_facts() -> impl Strategy<Value = HandoverFacts> {
        let fences = any::<(bool, bool)>().prop_map(|(source, destination)| UsableFences { source, destination });
        let rest = (any::<[bool; 6]>(), fences);
        let conts = [ALL.to_vec(), vec![NotByEngine]].concat();
        (any_side_state(), any_side_state(), prop::sample::select(conts), rest).prop_map(
            |(source, destination, cont, (flags, fences))| {
                let [was_running, resumed, retries_cont, has_run, source_gave_up, consents] = flags;
                let source_resumed = resumed || source_gave_up;
                HandoverFacts {
                    source,
                    destination,
                    cont,
                    has_run,
                    source_gave_up,
                    was_running,
                    source_resumed,
                    fences,
                    consents,
                    retries_cont,
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn never_two_runners(facts in any_facts()) {
            let verdict = decide(&facts);
            let HandoverFacts { source, destination, was_running, source_resumed, fences, .. } = &facts;
            let unheard = matches!(facts.infer_cont(), Never | Refused);
            let undetermined = matches!(verdict, HandoverVerdict::Undetermined(_));
            // In postcopy each side has what the other lacks.
            prop_assert!(!source.is_in_postcopy() || undetermined || verdict == HandoverVerdict::OnDestination);
            prop_assert!(!(source.is_another() || destination.is_another()) || undetermined);
            let silent = |side: &SideState| matches!(side, SideState::Silent | SideState::Hung);
            match verdict {
                HandoverVerdict::ResumeSource => {
                    prop_assert!(*destination == SideState::Dead && unheard && *was_running);
                    prop_assert!(!source.stands_by_itself());
                }
                HandoverVerdict::CancelMigration => prop_assert!(*destination == SideState::Dead && unheard),
                HandoverVerdict::FreeSource => {
                    prop_assert!(*destination == SideState::Dead && unheard && *source == SideState::Hung);
                }
                HandoverVerdict::StartDestination => {
                    prop_assert!(*destination == loaded() && *was_running && !facts.has_run);
                    prop_assert!(source.says_it_stands() || (*source == SideState::Dead && !source_resumed));
                }
                HandoverVerdict::QuitDestination => {
                    let still = destination.is(&RunState::Paused) || destination.is(&RunState::InMigrate);
                    let lives = matches!(source, SideState::Answers { .. } | SideState::Hung)
                        || (*source == SideState::Dead && destination.has_failed_to_load());
                    prop_assert!(unheard && still && lives);
                    prop_assert!(source.takes_back() || *destination != loaded());
                }
                HandoverVerdict::FenceDestination => {
                    let vouched = facts.consents && facts.infer_cont() == NotByEngine && !facts.has_run;
                    prop_assert!(unheard || vouched);
                    prop_assert!(silent(destination) && source.takes_back() && fences.destination);
                }
                HandoverVerdict::FenceSource => {
                    prop_assert!(silent(source) && *destination == loaded() && fences.source);
                    prop_assert!(!(*was_running && *source_resumed));
                }
                HandoverVerdict::OnDestination => {
                    let stands = source.says_it_stands() || *source == SideState::Dead;
                    prop_assert!(!source.runs() && (!unheard || stands));
                    let is_left_paused = !was_running && *destination == loaded();
                    prop_assert!(destination.runs() || is_left_paused || (facts.has_run && destination.stands_by_itself()));
                }
                HandoverVerdict::OnSource => prop_assert!(!destination.runs() && unheard),
                HandoverVerdict::Ended => {
                    prop_assert!(*source == SideState::Dead && *destination == SideState::Dead && unheard);
                }
                HandoverVerdict::Undetermined(words) => prop_assert!(words.len() > 40),
            }
        }

        #[test]
        fn more_is_never_done_where_less_is_known(facts in any_facts()) {
            // A fence only ever turns an undetermined case into one that goes on.
            let without = HandoverFacts { fences: UsableFences::default(), ..facts.clone() };
            let (with, without) = (decide(&facts), decide(&without));
            prop_assert!(with == without || matches!(without, HandoverVerdict::Undetermined(_)));
            // The word of a user allows a fence of the destination, and changes nothing else.
            let vouched = decide(&HandoverFacts { consents: true, ..facts.clone() });
            let unvouched = decide(&HandoverFacts { consents: false, ..facts.clone() });
            let is_allowed = vouched == HandoverVerdict::FenceDestination
                && matches!(unvouched, HandoverVerdict::Undetermined(_));
            prop_assert!(vouched == unvouched || is_allowed);
            // A `cont` that was sent rules out every verdict that ends the destination or resumes the source.
            let sent = decide(&HandoverFacts { cont: Sent, ..facts.clone() });
            prop_assert!(!matches!(
                sent,
                HandoverVerdict::ResumeSource
                    | HandoverVerdict::CancelMigration
                    | HandoverVerdict::FreeSource
                    | HandoverVerdict::QuitDestination
                    | HandoverVerdict::FenceDestination | HandoverVerdict::OnSource
            ));
        }
    }
}
