//! What is to be done when the exchange fails after `migrate-continue`, or the engine itself died after it.
//!
//! Pure. Decides from what each side is seen to be, from what is known of the destination's `cont`, and from nothing else:
//! a guest is started or resumed only where the other side is proved unable to run it. What can be finished is finished;
//! else the source takes the guest back, behind a destination that is out of the way; and where nothing is proved nothing
//! is done, and a person is told what to find out.
//!
//! It must never take silence for death, nor a status that nobody knows for a proof. That it holds whatever is lost, dies
//! or freezes is checked by exhaustion in `integration/handover.rs`.

use crate::qemu::reply::{MigrationStatus, RunState};

/// What is known of one side.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Seen {
    /// It answers.
    Answers {
        /// Its run state.
        run: RunState,
        /// The migration's status as it tells it.
        migration: MigrationStatus,
    },
    /// Its main loop hangs: it answers out of band alone. Its vCPUs may run.
    Hung,
    /// It does not answer, and may yet be alive.
    Silent,
    /// It is proved that it runs no guest any more: its process has ended, it accepted our `quit`, or it was fenced; or, of the
    /// destination, the journal says that this was so.
    Dead,
}

impl Seen {
    fn runs(&self) -> bool {
        self.is(&RunState::Running)
    }

    fn is(&self, state: &RunState) -> bool {
        matches!(self, Self::Answers { run, .. } if run == state)
    }

    /// Whether it is not the process that had a part in the migration: that one would remember it.
    fn is_another(&self) -> bool {
        matches!(self, Self::Answers { migration: MigrationStatus::None, .. })
    }

    /// Whether it is past the point where QEMU lets it go on as a source, and has pages that the destination may lack.
    fn is_in_postcopy(&self) -> bool {
        matches!(self, Self::Answers { migration, .. } if migration.is_postcopy())
    }

    /// Whether this source says that it has passed everything on, and has not been resumed since: it never runs the guest
    /// again by itself. One that a person resumed and stopped again is `paused`.
    fn says_it_stands(&self) -> bool {
        let stopped = self.is(&RunState::PostMigrate) || self.is(&RunState::FinishMigrate);
        stopped && matches!(self, Self::Answers { migration: MigrationStatus::Completed, .. })
    }

    /// Whether this source proves that it has not passed everything on. Only of a source that never was in postcopy.
    fn says_it_has_the_guest(&self) -> bool {
        use MigrationStatus::{Active, Cancelled, Cancelling, Device, Failed, Failing, PreSwitchover, Setup};
        let Self::Answers { migration, .. } = self else { return false };
        matches!(migration, Setup | Active | PreSwitchover | Device | Failed | Failing | Cancelling | Cancelled)
    }

    /// Whether this source goes on once the destination is out of the way, as far as can be told: what QEMU does from a
    /// status nobody knows, nobody knows.
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
pub enum Start {
    /// None was sent, by any engine: this one knows, or the journal says that the source was let go on, which is written only
    /// once the destination is dead. Nor is one ever sent for a guest that was paused.
    Never,
    /// QEMU refused every one that was sent.
    Refused,
    /// The engine that knew has died. It sends one only after the source has said `completed`.
    Unknown,
    /// At least one was sent, and not refused: the destination may run the guest, or have run it.
    Sent,
}

impl Start {
    /// After another `cont` that left this process, which QEMU refused or did not. That this one was refused tells nothing
    /// of one before it that was not.
    pub fn told(self, refused: bool) -> Self {
        match (self, refused) {
            (_, false) => Self::Sent,
            (Self::Never | Self::Refused, true) => Self::Refused,
            (before @ (Self::Unknown | Self::Sent), true) => before,
        }
    }

    /// Whether the destination certainly never ran the guest.
    fn had_no_effect(self) -> bool {
        matches!(self, Self::Never | Self::Refused)
    }
}

/// Which side can be put out of the way for certain, though it does not answer: killed where it is a process of this host,
/// or by the user's command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Fences {
    /// The source.
    pub source: bool,
    /// The destination.
    pub destination: bool,
}

/// Everything the verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Facts {
    /// The source.
    pub source: Seen,
    /// The destination.
    pub destination: Seen,
    /// What is known of the destination's `cont`. Where the journal allowed postcopy and its engine died: [`Start::Sent`],
    /// for there the source says `completed` long after the destination was started.
    pub start: Start,
    /// The guest ran before the migration; otherwise it stays paused wherever it ends.
    pub was_running: bool,
    /// The source, where it does not answer, may have run the guest since it was stopped, which makes what the destination
    /// has older: its events told that it gave the migration up; or no one has followed them up to now, since the guest was
    /// stopped or since the source was last seen not to run.
    pub source_resumed: bool,
    /// Which side can be fenced.
    pub fences: Fences,
}

impl Facts {
    /// What is known of the destination's `cont`, with what is seen now. It stays true once it was, so the next look begins
    /// with it: an engine that has died sends none later, and its `cont` came after the source's `completed` and after the
    /// destination had left `inmigrate`.
    pub fn start(&self) -> Start {
        let loads = self.destination.is(&RunState::InMigrate) && !self.destination.is_another();
        let never = !self.was_running || loads || self.source.says_it_has_the_guest();
        match self.start {
            Start::Unknown if never => Start::Never,
            known => known,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The guest is on the destination as it should be: go on.
    OnDestination,
    /// The guest is on the source as it was: the destination never ran it.
    OnSource,
    /// All state is on the destination, and the source never runs it again: start it there.
    StartDestination,
    /// The destination is dead and never ran the guest: resume the source.
    ResumeSource,
    /// The same, but the source still has its migration under way and takes no `cont`: cancel it, then look again.
    CancelMigration,
    /// The destination is alive, never ran the guest and will not: quit it, then look again.
    QuitDestination,
    /// The same, but it does not answer: fence it, then look again.
    FenceDestination,
    /// The destination has everything and waits; the source does not answer, and might go on: fence it, then look again,
    /// for it may have gone on just before.
    FenceSource,
    /// The destination is dead and never ran the guest, and the source hangs in the migration: break its connections out of
    /// band, upon which the migration fails and QEMU resumes the guest; then look again.
    FreeSource,
    /// Nothing is proved: leave both as they are. With what a person must find out, and do then.
    Undetermined(&'static str),
}

const ANOTHER: &str = "a QEMU without a migration answers at the address of one side, so it is not the one that had a part \
     in this: find that one with query-status before cont is sent anywhere";
const POSTCOPY: &str = "the source is in postcopy, where QEMU neither cancels nor lets the guest go on: if the destination is \
     alive and 'paused', send cont there and leave the source alone until query-migrate says 'completed' on both; if it is \
     gone, the guest can only be started anew, from the source's disks";
const BOTH: &str = "the destination runs the guest and the source may go on with it: ask both with query-status, and stop the \
     one whose disks are older";
const SOURCE_RUNS: &str = "the source has the guest, but the destination may have run it as well: make sure that the \
     destination is gone, and that nothing it wrote is missed";
const STRANGE: &str = "a side has a status that this engine does not know: ask both with query-status and query-migrate, and \
     send cont to one only when the other is gone";
const REFUSED: &str = "the destination refuses to run the guest and the source does not answer: once the source answers \
     query-migrate with 'completed', quit the destination and send cont to the source";
const SOURCE_SILENT: &str = "the destination has everything and waits, and the source may go on with the guest: see that the \
     source's process is gone and did not run after the handover, then send cont to the destination";
const SOURCE_RAN: &str = "the source is gone and may have run the guest after the handover, so the destination's state may be \
     older: if its log says that it did not resume, send cont to the destination; else start the guest anew from the \
     source's disks";
const DESTINATION_LACKS: &str = "the destination has only a part of the guest and the source does not answer: make the source \
     answer, quit the destination, then let the source go on with migrate_cancel or cont; if it is gone, start the guest \
     anew from its disks";
const MAY_RUN: &str = "the destination does not answer and may run the guest: ask it with query-status once it does, or make \
     sure that it is gone and never ran, before cont is sent to the source";
const IN_THE_WAY: &str = "the destination does not answer and has not run the guest: make sure that its process is gone, then \
     let the source go on with migrate_cancel or cont";
const BOTH_SILENT: &str = "neither side answers, and the destination has not run the guest: once the source answers \
     query-status, make sure that the destination is gone, then let the source go on with migrate_cancel or cont";
const DESTINATION_ALONE: &str = "the source is gone and the destination does not answer: once it does, send cont to it if \
     query-migrate says 'completed' there and the source's log says that it did not resume; else start the guest anew from \
     the source's disks";
const MAY_HAVE_RUN: &str = "the destination is gone and may have run the guest before: if its log and its disks' times say \
     that it did not, send cont to the source; else start the guest anew from the destination's disks";
const SOURCE_ALONE: &str = "the destination is gone and never ran the guest, and the source does not answer: once it does, let \
     it go on with migrate_cancel or cont";
const NO_ONE: &str = "both are gone, and the destination never ran the guest: start it anew from the source's disks";
const NOT_STARTED_BY_US: &str = "the destination has everything, may have run, and the source does not say that it stands \
     still: ask both with query-status and query-migrate, and send cont to the one whose disks were written last, when the \
     other is gone";

/// Decides. Both sides have had the time to bring to an end what they were at: one that is about to say `completed` is
/// told to quit otherwise.
pub fn decide(facts: &Facts) -> Verdict {
    let Facts { source, destination, was_running, .. } = facts;
    let start = facts.start();
    if source.is_another() || destination.is_another() {
        return Verdict::Undetermined(ANOTHER);
    }
    // no command resumes it, and it must not be given up: the destination may need its pages yet, whatever became of it
    if source.is_in_postcopy() {
        return match !start.had_no_effect() && destination.runs() && !source.runs() {
            true => Verdict::OnDestination,
            false => Verdict::Undetermined(POSTCOPY),
        };
    }
    // `paused` is not what a completed migration leaves: that is `postmigrate`
    if source.runs() || (!was_running && source.is(&RunState::Paused)) {
        // QEMU resumes a source by itself where the migration failed. A destination that was never started waits with
        // its vCPUs stopped; one that runs as well is beyond us.
        return match (start.had_no_effect(), destination.runs()) {
            (true, false) => Verdict::OnSource,
            (false, false) => Verdict::Undetermined(SOURCE_RUNS),
            (_, true) => Verdict::Undetermined(BOTH),
        };
    }
    match destination {
        Seen::Answers { run: RunState::Running, .. } => running(source, start),
        Seen::Answers { run: RunState::Paused, migration: MigrationStatus::Completed } => arrived(facts, start),
        Seen::Answers { run: RunState::Paused | RunState::InMigrate, migration } => match start.had_no_effect() {
            // it has only a part, and a source that lives still has everything
            true if matches!(source, Seen::Answers { .. } | Seen::Hung) => Verdict::QuitDestination,
            _ if migration.is_postcopy() => Verdict::Undetermined(POSTCOPY),
            true => Verdict::Undetermined(DESTINATION_LACKS),
            false => Verdict::Undetermined(NOT_STARTED_BY_US),
        },
        // by the word it may have run, or be about to
        Seen::Answers { .. } => Verdict::Undetermined(STRANGE),
        Seen::Silent | Seen::Hung => match (start.had_no_effect(), source.takes_back()) {
            (true, true) if facts.fences.destination => Verdict::FenceDestination,
            (true, true) => Verdict::Undetermined(IN_THE_WAY),
            // it may have the only state that is left
            (true, false) => Verdict::Undetermined(match source {
                Seen::Answers { .. } => STRANGE,
                Seen::Dead => DESTINATION_ALONE,
                Seen::Hung | Seen::Silent => BOTH_SILENT,
            }),
            (false, _) => Verdict::Undetermined(MAY_RUN),
        },
        Seen::Dead if start.had_no_effect() => source_alone(source, *was_running),
        Seen::Dead => Verdict::Undetermined(MAY_HAVE_RUN),
    }
}

/// The destination runs, and the source does not.
fn running(source: &Seen, start: Start) -> Verdict {
    // whoever started it
    let stands = *source == Seen::Dead || source.says_it_stands();
    // nobody but an engine of ours starts it, and that only after the source stood for good; unless the source denies it
    let started = !start.had_no_effect() && !matches!(source, Seen::Answers { .. });
    match stands || started {
        true => Verdict::OnDestination,
        // someone else started it, and the source may yet fail and resume
        false => Verdict::Undetermined(BOTH),
    }
}

/// The destination has everything and stands still; the source does not run.
///
/// After [`Start::Sent`] it may have run, and have been paused by its owner since. It is started all the same: the source
/// stands for good, so there are no two runners; whoever paused it within these seconds can do so again, while a `cont` that
/// was lost would leave the guest to stand for ever. What QEMU itself stops has other run states than `paused`.
fn arrived(facts: &Facts, start: Start) -> Verdict {
    let Facts { source, was_running, source_resumed, fences, .. } = facts;
    let finish = if *was_running { Verdict::StartDestination } else { Verdict::OnDestination };
    // a guest that was paused is not resumed by a migration that fails
    let may_have_run = *was_running && *source_resumed;
    match source {
        // it refused to start, and the source still has everything
        Seen::Answers { .. } if source.says_it_stands() && start == Start::Refused => Verdict::QuitDestination,
        Seen::Answers { .. } if source.says_it_stands() => finish,
        Seen::Answers { .. } if start.had_no_effect() && source.takes_back() => Verdict::QuitDestination,
        Seen::Answers { migration: MigrationStatus::Other(_), .. } => Verdict::Undetermined(STRANGE),
        Seen::Answers { .. } => Verdict::Undetermined(NOT_STARTED_BY_US),
        // refused or not: no one else has the guest
        Seen::Dead if !may_have_run => finish,
        Seen::Dead => Verdict::Undetermined(SOURCE_RAN),
        Seen::Silent | Seen::Hung if start == Start::Refused => Verdict::Undetermined(REFUSED),
        // also where it could be freed: the destination's copy is whole, and the source's is in a process that hangs
        Seen::Silent | Seen::Hung if fences.source && !may_have_run => Verdict::FenceSource,
        Seen::Silent | Seen::Hung => Verdict::Undetermined(SOURCE_SILENT),
    }
}

/// The destination is dead and never ran the guest; the source does not run.
fn source_alone(source: &Seen, was_running: bool) -> Verdict {
    match source {
        Seen::Answers { migration, .. } if !migration.is_over() => Verdict::CancelMigration,
        Seen::Answers { .. } if was_running => Verdict::ResumeSource,
        // stopped, and a `cont` of its owner's works: nothing may be run that was paused
        Seen::Answers { .. } => Verdict::OnSource,
        Seen::Hung => Verdict::FreeSource,
        Seen::Silent => Verdict::Undetermined(SOURCE_ALONE),
        Seen::Dead => Verdict::Undetermined(NO_ONE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Start::{Never, Refused, Sent, Unknown};
    use proptest::prelude::*;

    const ALL: [Start; 4] = [Never, Refused, Unknown, Sent];
    /// Stands for any verdict of that kind.
    const UNDETERMINED: Verdict = Verdict::Undetermined("");

    fn answers(run: &str, migration: &str) -> Seen {
        Seen::Answers { run: RunState::from(run), migration: MigrationStatus::from(migration) }
    }

    fn postmigrate() -> Seen {
        answers("postmigrate", "completed")
    }

    fn loaded() -> Seen {
        answers("paused", "completed")
    }

    fn waits() -> Seen {
        answers("finish-migrate", "pre-switchover")
    }

    fn runs_there() -> Seen {
        answers("running", "completed")
    }

    fn incoming() -> Seen {
        answers("inmigrate", "active")
    }

    fn failed_there() -> Seen {
        answers("inmigrate", "failed")
    }

    fn facts(source: Seen, destination: Seen, start: Start) -> Facts {
        Facts { source, destination, start, was_running: true, source_resumed: false, fences: Fences::default() }
    }

    /// Without the words of the undetermined ones.
    fn verdict(facts: &Facts) -> Verdict {
        match decide(facts) {
            Verdict::Undetermined(_) => UNDETERMINED,
            other => other,
        }
    }

    #[track_caller]
    fn check(source: &Seen, destination: &Seen, starts: &[Start], expected: Verdict) {
        for start in starts {
            let facts = facts(source.clone(), destination.clone(), *start);
            assert_eq!(verdict(&facts), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_destination_that_runs() {
        use Verdict::OnDestination;
        check(&postmigrate(), &runs_there(), &ALL, OnDestination);
        check(&Seen::Dead, &runs_there(), &ALL, OnDestination);
        for source in [Seen::Silent, Seen::Hung] {
            check(&source, &runs_there(), &[Sent, Unknown], OnDestination);
            check(&source, &runs_there(), &[Never, Refused], UNDETERMINED);
        }
        // not started by us, and the source may yet fail and resume
        check(&waits(), &runs_there(), &ALL, UNDETERMINED);
        check(&answers("running", "failed"), &runs_there(), &ALL, UNDETERMINED);
        // resumed and stopped again: what it has is newer
        check(&answers("paused", "completed"), &runs_there(), &ALL, UNDETERMINED);
    }

    #[test]
    fn a_destination_that_has_everything_is_started() {
        use Verdict::{QuitDestination, StartDestination};
        check(&postmigrate(), &loaded(), &[Never, Unknown, Sent], StartDestination);
        check(&answers("finish-migrate", "completed"), &loaded(), &[Never, Unknown, Sent], StartDestination);
        check(&postmigrate(), &loaded(), &[Refused], QuitDestination);
        // there is no other: it is tried once more
        check(&Seen::Dead, &loaded(), &ALL, StartDestination);
        // it has not completed, and so no engine has ever sent `cont`
        for status in ["device", "failed", "cancelled", "failing"] {
            check(&answers("finish-migrate", status), &loaded(), &[Never, Refused, Unknown], QuitDestination);
            check(&answers("finish-migrate", status), &loaded(), &[Sent], UNDETERMINED);
        }
        check(&answers("paused", "completed"), &loaded(), &[Never, Refused], QuitDestination);
        check(&answers("paused", "completed"), &loaded(), &[Unknown, Sent], UNDETERMINED);
        for source in [Seen::Silent, Seen::Hung] {
            check(&source, &loaded(), &ALL, UNDETERMINED);
        }
    }

    #[test]
    fn what_may_be_older_is_not_started() {
        for source in [Seen::Dead, Seen::Silent, Seen::Hung] {
            for start in ALL {
                let facts = Facts {
                    source_resumed: true,
                    fences: Fences { source: true, destination: true },
                    ..facts(source.clone(), loaded(), start)
                };
                assert_eq!(verdict(&facts), UNDETERMINED, "{facts:?}");
                // a paused guest is not resumed by a migration that fails
                let paused = Facts { was_running: false, ..facts };
                assert_ne!(verdict(&paused), Verdict::StartDestination, "{paused:?}");
            }
        }
        // its own word counts for more than what was not followed
        let facts = Facts { source_resumed: true, ..facts(postmigrate(), loaded(), Unknown) };
        assert_eq!(decide(&facts), Verdict::StartDestination);
    }

    #[test]
    fn a_destination_that_never_ran_is_quit() {
        use Verdict::QuitDestination;
        for source in [waits(), answers("finish-migrate", "device"), answers("postmigrate", "failed"), Seen::Hung] {
            for destination in [incoming(), failed_there(), answers("paused", "failed")] {
                check(&source, &destination, &[Never, Refused], QuitDestination);
                check(&source, &destination, &[Sent], UNDETERMINED);
            }
        }
        // `inmigrate` proves it, and so does a source that has not completed
        check(&postmigrate(), &failed_there(), &[Never, Refused, Unknown], QuitDestination);
        check(&postmigrate(), &answers("paused", "failed"), &[Unknown], UNDETERMINED);
        check(&waits(), &answers("paused", "failed"), &[Unknown], QuitDestination);
        // 11.1 resumes from here once the destination is gone
        check(&answers("finish-migrate", "postcopy-device"), &failed_there(), &[Never], QuitDestination);
        // it is the better part of nothing
        check(&Seen::Dead, &incoming(), &ALL, UNDETERMINED);
        check(&Seen::Silent, &incoming(), &ALL, UNDETERMINED);
    }

    #[test]
    fn a_destination_that_is_dead() {
        use Verdict::{CancelMigration, FreeSource, ResumeSource};
        let starts = [Never, Refused, Unknown];
        check(&waits(), &Seen::Dead, &starts, CancelMigration);
        check(&answers("finish-migrate", "device"), &Seen::Dead, &starts, CancelMigration);
        check(&answers("paused", "failed"), &Seen::Dead, &starts, ResumeSource);
        check(&postmigrate(), &Seen::Dead, &[Never, Refused], ResumeSource);
        check(&Seen::Hung, &Seen::Dead, &[Never, Refused], FreeSource);
        // the engine that has died may have started it before it died too
        check(&postmigrate(), &Seen::Dead, &[Unknown, Sent], UNDETERMINED);
        check(&Seen::Hung, &Seen::Dead, &[Unknown, Sent], UNDETERMINED);
        check(&waits(), &Seen::Dead, &[Sent], UNDETERMINED);
        check(&Seen::Silent, &Seen::Dead, &ALL, UNDETERMINED);
        check(&Seen::Dead, &Seen::Dead, &ALL, UNDETERMINED);
    }

    #[test]
    fn a_source_that_resumed_by_itself() {
        for destination in [failed_there(), loaded(), Seen::Dead, Seen::Silent, Seen::Hung] {
            for status in ["failed", "cancelled"] {
                check(&answers("running", status), &destination, &[Never, Refused, Unknown], Verdict::OnSource);
                check(&answers("running", status), &destination, &[Sent], UNDETERMINED);
            }
            // by whomever
            check(&answers("running", "completed"), &destination, &[Never, Refused], Verdict::OnSource);
        }
        for destination in [loaded(), Seen::Dead, Seen::Silent, Seen::Hung] {
            check(&answers("running", "completed"), &destination, &[Unknown, Sent], UNDETERMINED);
        }
    }

    #[test]
    fn who_does_not_answer_is_fenced_only_where_nothing_can_be_lost() {
        let fenced = |source: Seen, destination: Seen, start| {
            let fences = Fences { source: true, destination: true };
            verdict(&Facts { fences, ..facts(source, destination, start) })
        };
        for silent in [Seen::Silent, Seen::Hung] {
            for start in [Never, Refused] {
                for source in [waits(), postmigrate(), Seen::Hung] {
                    assert_eq!(fenced(source, silent.clone(), start), Verdict::FenceDestination);
                }
            }
            assert_eq!(fenced(waits(), silent.clone(), Unknown), Verdict::FenceDestination);
            for source in [waits(), postmigrate(), Seen::Hung, Seen::Silent, Seen::Dead] {
                assert_eq!(fenced(source, silent.clone(), Sent), UNDETERMINED);
            }
            assert_eq!(fenced(postmigrate(), silent.clone(), Unknown), UNDETERMINED);
            assert_eq!(fenced(Seen::Hung, silent.clone(), Unknown), UNDETERMINED);
            for start in ALL {
                // the only state there may be
                assert_eq!(fenced(Seen::Silent, silent.clone(), start), UNDETERMINED);
                assert_eq!(fenced(Seen::Dead, silent.clone(), start), UNDETERMINED);
                let expected = if start == Refused { UNDETERMINED } else { Verdict::FenceSource };
                assert_eq!(fenced(silent.clone(), loaded(), start), expected);
            }
            assert_eq!(
                fenced(silent.clone(), incoming(), Never),
                match silent {
                    Seen::Hung => Verdict::QuitDestination,
                    _ => UNDETERMINED,
                }
            );
        }
        check(&waits(), &Seen::Silent, &ALL, UNDETERMINED);
    }

    #[test]
    fn a_guest_that_was_paused_stays_so() {
        let paused = |source: Seen, destination: Seen| {
            verdict(&Facts { was_running: false, ..facts(source, destination, Never) })
        };
        assert_eq!(paused(postmigrate(), loaded()), Verdict::OnDestination);
        assert_eq!(paused(Seen::Dead, loaded()), Verdict::OnDestination);
        assert_eq!(paused(answers("finish-migrate", "device"), loaded()), Verdict::QuitDestination);
        assert_eq!(paused(answers("paused", "failed"), failed_there()), Verdict::OnSource);
        assert_eq!(paused(postmigrate(), Seen::Dead), Verdict::OnSource);
        assert_eq!(paused(waits(), Seen::Dead), Verdict::CancelMigration);
        // no engine starts one that was paused
        let facts = Facts { was_running: false, ..facts(postmigrate(), Seen::Dead, Unknown) };
        assert_eq!(facts.start(), Never);
    }

    #[test]
    fn in_postcopy_neither_side_has_the_whole_guest() {
        let postcopy = |run: &str, word: &str| answers(run, &format!("postcopy-{word}"));
        for word in ["active", "paused", "recover", "recover-setup"] {
            let source = postcopy("finish-migrate", word);
            check(&source, &postcopy("running", "active"), &[Sent], Verdict::OnDestination);
            check(&source, &postcopy("running", "active"), &[Never, Refused], UNDETERMINED);
            for destination in [postcopy("paused", "active"), loaded(), failed_there(), Seen::Dead, Seen::Silent] {
                check(&source, &destination, &ALL, UNDETERMINED);
            }
        }
        let there = postcopy("paused", "active");
        check(&Seen::Dead, &there, &ALL, UNDETERMINED);
        check(&answers("running", "failed"), &there, &[Never], Verdict::OnSource);
        check(&answers("running", "failed"), &there, &[Sent], UNDETERMINED);
        check(&Seen::Dead, &postcopy("running", "active"), &[Sent], Verdict::OnDestination);
    }

    #[test]
    fn what_nobody_knows_proves_nothing() {
        let strange = answers("finish-migrate", "of-tomorrow");
        check(&strange, &loaded(), &ALL, UNDETERMINED);
        check(&strange, &incoming(), &[Never, Refused, Unknown], Verdict::QuitDestination);
        check(&strange, &Seen::Silent, &ALL, UNDETERMINED);
        check(&strange, &Seen::Dead, &[Unknown, Sent], UNDETERMINED);
        check(&postmigrate(), &answers("io-error", "completed"), &ALL, UNDETERMINED);
        check(&postmigrate(), &answers("paused", "of-tomorrow"), &[Unknown, Sent], UNDETERMINED);
    }

    #[test]
    fn another_qemu_at_the_address_is_left_alone() {
        for run in ["running", "paused", "inmigrate", "prelaunch", "postmigrate"] {
            for other in [postmigrate(), loaded(), runs_there(), answers("running", "failed"), Seen::Dead, Seen::Silent]
            {
                check(&answers(run, "none"), &other, &ALL, UNDETERMINED);
                check(&other, &answers(run, "none"), &ALL, UNDETERMINED);
            }
        }
        // and it teaches nothing
        assert_eq!(facts(postmigrate(), answers("inmigrate", "none"), Unknown).start(), Unknown);
    }

    #[test]
    fn a_refusal_tells_of_itself_alone() {
        assert_eq!(ALL.map(|start| start.told(false)), [Sent; 4]);
        assert_eq!(ALL.map(|start| start.told(true)), [Refused, Refused, Unknown, Sent]);
    }

    #[test]
    fn a_person_is_told_what_to_find_out() {
        let words = |source: Seen, destination: Seen, start| match decide(&facts(source, destination, start)) {
            Verdict::Undetermined(words) => words,
            other => panic!("{other:?}"),
        };
        assert_eq!(words(postmigrate(), Seen::Silent, Sent), MAY_RUN);
        assert_eq!(words(postmigrate(), Seen::Silent, Never), IN_THE_WAY);
        assert_eq!(words(postmigrate(), Seen::Dead, Unknown), MAY_HAVE_RUN);
        assert_eq!(words(Seen::Silent, Seen::Silent, Never), BOTH_SILENT);
        assert_eq!(words(Seen::Dead, Seen::Silent, Never), DESTINATION_ALONE);
        assert_eq!(words(Seen::Silent, Seen::Dead, Never), SOURCE_ALONE);
        assert_eq!(words(Seen::Dead, Seen::Dead, Never), NO_ONE);
        assert_eq!(words(Seen::Silent, loaded(), Never), SOURCE_SILENT);
        assert_eq!(words(Seen::Silent, loaded(), Refused), REFUSED);
        assert_eq!(words(Seen::Dead, incoming(), Never), DESTINATION_LACKS);
        assert_eq!(words(waits(), runs_there(), Never), BOTH);
        assert_eq!(words(answers("running", "completed"), Seen::Silent, Sent), SOURCE_RUNS);
        assert_eq!(words(answers("finish-migrate", "postcopy-paused"), Seen::Dead, Sent), POSTCOPY);
        assert_eq!(words(Seen::Dead, answers("paused", "postcopy-active"), Never), POSTCOPY);
        assert_eq!(words(answers("running", "none"), loaded(), Never), ANOTHER);
        assert_eq!(words(postmigrate(), answers("io-error", "completed"), Sent), STRANGE);
        assert_eq!(words(answers("paused", "completed"), loaded(), Sent), NOT_STARTED_BY_US);
        let older = Facts { source_resumed: true, ..facts(Seen::Dead, loaded(), Never) };
        assert_eq!(decide(&older), Verdict::Undetermined(SOURCE_RAN));
    }

    fn seen() -> impl Strategy<Value = Seen> {
        let run = prop::sample::select(vec![
            "running",
            "paused",
            "inmigrate",
            "finish-migrate",
            "postmigrate",
            "io-error",
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
            1 => Just(Seen::Silent),
            1 => Just(Seen::Hung),
            1 => Just(Seen::Dead),
            1 => Just(loaded()),
            1 => Just(postmigrate()),
            4 => (run, migration).prop_map(|(run, migration)| answers(run, migration)),
        ]
    }

    fn any_facts() -> impl Strategy<Value = Facts> {
        let fences = any::<(bool, bool)>().prop_map(|(source, destination)| Fences { source, destination });
        let rest = (any::<bool>(), any::<bool>(), fences);
        (seen(), seen(), prop::sample::select(ALL.to_vec()), rest).prop_map(
            |(source, destination, start, (was_running, source_resumed, fences))| Facts {
                source,
                destination,
                start,
                was_running,
                source_resumed,
                fences,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn never_two_runners(facts in any_facts()) {
            let verdict = decide(&facts);
            let Facts { source, destination, was_running, source_resumed, fences, .. } = &facts;
            let unheard = matches!(facts.start(), Never | Refused);
            let undetermined = matches!(verdict, Verdict::Undetermined(_));
            // each side has what the other lacks
            prop_assert!(!source.is_in_postcopy() || undetermined || verdict == Verdict::OnDestination);
            prop_assert!(!(source.is_another() || destination.is_another()) || undetermined);
            let silent = |side: &Seen| matches!(side, Seen::Silent | Seen::Hung);
            match verdict {
                Verdict::ResumeSource => prop_assert!(*destination == Seen::Dead && unheard && *was_running),
                Verdict::CancelMigration => prop_assert!(*destination == Seen::Dead && unheard),
                Verdict::FreeSource => prop_assert!(*destination == Seen::Dead && unheard && *source == Seen::Hung),
                Verdict::StartDestination => {
                    prop_assert!(*destination == loaded() && *was_running);
                    prop_assert!(source.says_it_stands() || (*source == Seen::Dead && !source_resumed));
                }
                Verdict::QuitDestination => {
                    let still = destination.is(&RunState::Paused) || destination.is(&RunState::InMigrate);
                    let lives = matches!(source, Seen::Answers { .. } | Seen::Hung);
                    prop_assert!(unheard && still && lives);
                    prop_assert!(source.takes_back() || *destination != loaded());
                }
                Verdict::FenceDestination => {
                    prop_assert!(unheard && silent(destination) && source.takes_back() && fences.destination);
                }
                Verdict::FenceSource => {
                    prop_assert!(silent(source) && *destination == loaded() && fences.source);
                    prop_assert!(!(*was_running && *source_resumed));
                }
                Verdict::OnDestination => {
                    let stands = source.says_it_stands() || *source == Seen::Dead;
                    prop_assert!(!source.runs() && (!unheard || stands));
                    prop_assert!(destination.runs() || (!was_running && *destination == loaded()));
                }
                Verdict::OnSource => prop_assert!(!destination.runs() && unheard),
                Verdict::Undetermined(words) => prop_assert!(words.len() > 40),
            }
        }

        #[test]
        fn more_is_never_done_where_less_is_known(facts in any_facts()) {
            // a fence only ever turns an undetermined case into one that goes on
            let without = Facts { fences: Fences::default(), ..facts.clone() };
            let (with, without) = (decide(&facts), decide(&without));
            prop_assert!(with == without || matches!(without, Verdict::Undetermined(_)));
            // and whoever does not answer in-band either is not treated better for it
            let sent = decide(&Facts { start: Sent, ..facts.clone() });
            prop_assert!(!matches!(
                sent,
                Verdict::ResumeSource | Verdict::CancelMigration | Verdict::FreeSource | Verdict::QuitDestination
                    | Verdict::FenceDestination | Verdict::OnSource
            ));
        }
    }
}
