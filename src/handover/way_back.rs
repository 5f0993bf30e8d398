//! What the way back does with each side: what becomes of the destination, and what becomes of the source's guest.
//!
//! Pure. The way back begins where no `migrate-continue` was sent, or where a verdict has found the guest on the
//! source. Both decisions rest on the answers of the two sides and on what this engine has followed of them. Silence
//! is never taken for an answer: what was not asked, or cannot be, is left alone, and what may run the guest even more
//! so.

use crate::qemu::reply::{MigrationStatus, RunState};

/// What is proved of the guest when the way back begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WayBackGround {
    /// No engine of this migration has sent `migrate-continue`.
    NotGiven,
    /// A verdict has found the guest on the source: whatever the destination has is older, and never ran.
    OnSource,
}

/// How the destination answers when the way back comes to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DestinationSight {
    /// QEMU answers.
    Answers {
        /// QEMU's run state.
        run: RunState,
        /// The status of the migration, as the destination reports it.
        migration: MigrationStatus,
    },
    /// QEMU answers out of band only: its main loop hangs. The vCPUs may run.
    Hung,
    /// QEMU does not answer, and may yet be alive.
    Silent,
    /// The monitor is closed, and nothing proves that the process has ended.
    Unreachable,
    /// The QEMU at the address is not the one that took part.
    Another,
    /// The process is proved to have ended, or was fenced.
    Ended,
}

/// What the source has passed on, by its own answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceHolding {
    /// The source answers, and does not say `completed`.
    Holds,
    /// The source answers `completed`, though no engine of this migration sent `migrate-continue`: somebody else
    /// switched `pause-before-switchover` off, or sent it.
    Passed,
    /// The source does not answer.
    Silent,
    /// The source's process has ended.
    Ended,
}

impl SourceHolding {
    /// What an answer to `query-migrate` says.
    pub fn of_answer(status: &MigrationStatus) -> Self {
        match status {
            MigrationStatus::Completed => Self::Passed,
            _ => Self::Holds,
        }
    }

    /// What is known without an answer. That an event told `completed` before counts for nothing: a source that is gone
    /// takes nothing back, and what the destination has may be the only copy.
    pub fn without_answer(has_ended: bool) -> Self {
        if has_ended { Self::Ended } else { Self::Silent }
    }
}

/// Everything that the decision about the destination rests on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DestinationFacts {
    /// What is proved of the guest.
    pub ground: WayBackGround,
    /// How the destination answers now.
    pub sight: DestinationSight,
    /// This run has told the destination to listen; otherwise the destination serves disks alone.
    pub listened: bool,
    /// The destination has answered this engine at least once.
    pub asked: bool,
    /// This engine has heard every event of the destination since before the destination was told to listen. A recovery
    /// has not, and neither has an engine whose connection was cut.
    pub followed: bool,
    /// The destination's events told that it ran.
    pub has_run: bool,
    /// The destination is a process of this host that is proved to be the one that took part.
    pub killable: bool,
    /// What the source has passed on.
    pub source: SourceHolding,
}

/// What tells whether the source's migration leads to this run's destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CourseFacts {
    /// The status of the migration, as the source reports it.
    pub source: MigrationStatus,
    /// The status of the migration, as the destination reports it; `None` without an answer.
    pub destination: Option<MigrationStatus>,
    /// The source's events have told that another migration began after this run's.
    pub is_followed: bool,
    /// This engine has sent `migrate` itself. A recovery has not, and finds whatever migration is under way by now.
    pub is_begun: bool,
    /// The destination, and a migration that nothing proves to be this run's, were given the time to change.
    pub waited: bool,
    /// The destination's events have told, without a gap, that a source connected.
    pub told_active: bool,
    /// The destination's events have told, without a gap, that everything was loaded.
    pub told_completed: bool,
}

/// Where the source's migration leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MigrationCourse {
    /// To this run's destination, as far as can be told.
    ToDestination,
    /// The destination changes yet. Where it comes to its end, or nothing more comes of it, the course is known.
    NotKnownYet,
    /// To another QEMU, or to a file: the migration is somebody else's.
    Elsewhere,
}

/// Finds out whether a migration of the source that is under way or has completed is this run's.
///
/// An engine may have been called off right before its `migrate`, or may have died long ago; then the migration that
/// the source reports is somebody else's, who must not be interfered with, and the end of this run's destination proves
/// nothing of the guest. A destination to which a migration leads is `active` once the source is, and is `completed`
/// before the source is: the return path sees to that.
///
/// Where this engine has not sent `migrate`, a destination that takes nothing in proves nothing: the migration under
/// way may be one to a third QEMU, begun once this run's was over. Such a migration is left to whoever began it. One of
/// this run's to a destination that is dead fails by itself.
pub fn find_course(facts: &CourseFacts) -> MigrationCourse {
    use MigrationCourse::{Elsewhere, NotKnownYet, ToDestination};
    use MigrationStatus::{Active, Completed, Device, None as Idle, Other, PreSwitchover, Setup};
    let CourseFacts { source, destination, is_followed, is_begun, waited, told_active, told_completed } = facts;
    if *is_followed {
        return Elsewhere;
    }
    if *told_completed || (*told_active && *source != Completed) {
        return ToDestination;
    }
    match (source, destination) {
        (_, Some(Completed)) => ToDestination,
        // Somebody has switched the return path off, or the channel hangs of a migration that has failed.
        (Completed, Some(Active)) => NotKnownYet,
        (_, Some(Active)) => ToDestination,
        (Completed, _) => Elsewhere,
        // A guest that stands in `pre-switchover` stands by this run's capability, whoever began the migration, and
        // comes back by a cancel alone. An engine that set the capability itself would send `migrate-continue` at once.
        (PreSwitchover, _) if !is_begun && !waited => NotKnownYet,
        (Setup | Active | Other(_), _) if !is_begun => NotKnownYet,
        // The source connects, and the destination takes a moment to accept the connection.
        (Setup, _) => ToDestination,
        (_, Some(Setup | Idle)) => NotKnownYet,
        // The destination has failed, or does not answer: what passes the guest on may lead elsewhere.
        (Device, _) => Elsewhere,
        _ => ToDestination,
    }
}

/// What becomes of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationFate {
    /// Tell it to quit, which it can be asked to.
    Quit,
    /// End its process: it does not answer, has nothing that is needed, and is proved to be ours.
    Fence,
    /// Touch nothing.
    LeaveAlone(LeaveReason),
    /// Nothing is left of it.
    AlreadyGone,
}

/// Why a destination is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LeaveReason {
    /// The destination runs the guest, or has run it.
    HasRun,
    /// The destination may have run the guest while nobody followed it.
    MayHaveRun,
    /// The destination may have the only whole copy of the guest.
    OnlyCopy,
    /// The destination has not answered this engine, or not all the time: what it does is not known.
    NotFollowed,
    /// The destination does not answer, and is no process that this engine may end.
    Silent,
    /// The destination's monitor is closed, and its process may live.
    Unreachable,
    /// Another QEMU answers at its address.
    AnotherQemu,
    /// Somebody else has told the destination to listen.
    AnotherMigration,
    /// The guest's disk is the destination's export: another client has completed a mirror.
    HasDisk,
}

impl LeaveReason {
    /// Whether the guest may be the destination's now: then nothing at all is done any more, on either side.
    pub fn is_taken_over(self) -> bool {
        matches!(self, Self::HasRun | Self::MayHaveRun | Self::OnlyCopy | Self::AnotherMigration)
    }

    /// The reason in words, which follow the destination's name.
    pub fn describe(self) -> &'static str {
        match self {
            Self::HasRun => "it runs the guest, or has run it",
            Self::MayHaveRun => "it may have run the guest while nobody followed it",
            Self::OnlyCopy => "it may have the only whole copy of the guest",
            Self::NotFollowed => "it has not answered since this engine began, so that nobody knows what it does",
            Self::Silent => "it does not answer, and is no process of this host that could be ended",
            Self::Unreachable => "its monitor is closed, which does not prove that its process has ended",
            Self::AnotherQemu => "another QEMU answers at its address",
            Self::AnotherMigration => "it takes somebody else's migration",
            Self::HasDisk => "it has a disk of the guest, whose mirror another client has completed",
        }
    }
}

/// Decides what becomes of a destination that was told to listen.
pub fn decide_destination(facts: &DestinationFacts) -> DestinationFate {
    use DestinationFate::{AlreadyGone, Fence, LeaveAlone, Quit};
    let DestinationFacts { ground, sight, listened, asked, followed, has_run, killable, source } = facts;
    match sight {
        // What the guest did there is lost to the source, whatever has become of the destination since.
        _ if *has_run => LeaveAlone(LeaveReason::HasRun),
        // The source has passed everything on, and nobody knows what the destination did with it before it ended.
        DestinationSight::Ended
            if *ground == WayBackGround::NotGiven && *listened && !followed && *source == SourceHolding::Passed =>
        {
            LeaveAlone(LeaveReason::MayHaveRun)
        }
        DestinationSight::Ended => AlreadyGone,
        DestinationSight::Another => LeaveAlone(LeaveReason::AnotherQemu),
        DestinationSight::Unreachable => LeaveAlone(LeaveReason::Unreachable),
        DestinationSight::Answers { migration, .. } if !listened && *migration != MigrationStatus::None => {
            LeaveAlone(LeaveReason::AnotherMigration)
        }
        DestinationSight::Answers { run, .. } if run.is_live() => LeaveAlone(LeaveReason::HasRun),
        // Only a QEMU that is `inmigrate` certainly never ran: nothing leads back to that state.
        DestinationSight::Answers { run: RunState::InMigrate, .. } => Quit,
        DestinationSight::Answers { .. } if *ground == WayBackGround::OnSource => Quit,
        DestinationSight::Answers { .. } if !followed => LeaveAlone(LeaveReason::MayHaveRun),
        DestinationSight::Answers { migration, .. } if migration.is_postcopy() => LeaveAlone(LeaveReason::MayHaveRun),
        DestinationSight::Answers { migration: MigrationStatus::Completed, .. } => match source {
            SourceHolding::Holds | SourceHolding::Passed => Quit,
            SourceHolding::Silent | SourceHolding::Ended => LeaveAlone(LeaveReason::OnlyCopy),
        },
        DestinationSight::Answers { .. } => Quit,
        DestinationSight::Hung | DestinationSight::Silent if !asked || !followed => {
            LeaveAlone(LeaveReason::NotFollowed)
        }
        DestinationSight::Hung | DestinationSight::Silent => match (ground, source) {
            (WayBackGround::OnSource, _) | (_, SourceHolding::Holds) if *killable => Fence,
            (WayBackGround::OnSource, _) | (_, SourceHolding::Holds) => LeaveAlone(LeaveReason::Silent),
            // With `cont` sent to it beforehand it runs by itself once it has everything.
            (WayBackGround::NotGiven, _) => LeaveAlone(LeaveReason::OnlyCopy),
        },
    }
}

/// What is known of a destination that does not answer, where the source hangs in what it waits for of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrozenDestination {
    /// This engine has heard every event of the destination since before the destination was told to listen.
    pub followed: bool,
    /// The destination's events told that it ran.
    pub has_run: bool,
    /// The events of either side told that the source passes the guest on, or has: the destination may have the only
    /// whole copy, and runs it by itself where somebody has sent `cont` beforehand.
    pub is_passed_on: bool,
}

/// Whether a destination that does not answer may be ended so that the source, which hangs, is freed. Such a source
/// says nothing of what it has passed on, so that what the events told before decides.
pub fn may_end_to_free(destination: &FrozenDestination) -> bool {
    let FrozenDestination { followed, has_run, is_passed_on } = *destination;
    followed && !has_run && !is_passed_on
}

/// Everything that the decision about the source's guest rests on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceFacts {
    /// The guest's owner wants it to run, as far as the engine has taken in.
    pub wants_running: bool,
    /// The source's run state.
    pub run: RunState,
    /// The status of the migration, as the source reports it after the cancel.
    pub migration: MigrationStatus,
    /// The engine's own `stop`, made for a mirror's start, is not undone.
    pub stopped_by_engine: bool,
    /// QEMU was given the time to resume the guest by itself.
    pub waited: bool,
    /// The destination is proved unable to run the guest, and never ran it.
    pub destination_ended: bool,
    /// The destination's events told that it ran: what the source has of the guest is older.
    pub destination_has_run: bool,
    /// The source's last migration is somebody else's, and this engine's destination has taken nothing of it.
    pub is_anothers: bool,
}

/// What becomes of the source's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceStep {
    /// Send `cont`.
    Cont,
    /// Wait until QEMU resumes the guest by itself, then decide again.
    AwaitResume,
    /// Leave the guest as it stands: it runs, or stands by its own or its owner's doing.
    Leave,
}

/// Decides what becomes of the source's guest once its migration was cancelled, or never begun.
///
/// QEMU stops a guest for a migration by `finish-migrate`, and resumes after a cancel what ran. So a guest that is
/// `paused` then was stopped by its owner, unless the engine's own `stop` stands; and a guest that stopped by itself
/// has a run state that says so.
pub fn decide_source(facts: &SourceFacts) -> SourceStep {
    let SourceFacts { wants_running, run, migration, stopped_by_engine, waited, destination_ended, .. } = facts;
    let is_anothers = &facts.is_anothers;
    if !wants_running || facts.destination_has_run {
        return SourceStep::Leave;
    }
    match (run, migration) {
        // A reset of a guest that stands by the engine's `stop` makes `prelaunch` of `paused`.
        (RunState::Paused | RunState::Prelaunch, _) if *stopped_by_engine => SourceStep::Cont,
        (RunState::PostMigrate | RunState::FinishMigrate, MigrationStatus::Completed) if *is_anothers => {
            SourceStep::Leave
        }
        // `cont` to a source that has passed everything on needs the proof that the destination is out of the way.
        (RunState::PostMigrate | RunState::FinishMigrate, MigrationStatus::Completed) => match destination_ended {
            true => SourceStep::Cont,
            false => SourceStep::Leave,
        },
        (RunState::FinishMigrate, status) if *waited => match status.is_over() {
            true => SourceStep::Cont,
            false => SourceStep::Leave,
        },
        (RunState::FinishMigrate, _) => SourceStep::AwaitResume,
        (RunState::Other(_), _) if !waited => SourceStep::AwaitResume,
        // QEMU 7.2 leaves a guest in `postmigrate` whose migration was cancelled and that its owner had stopped.
        _ => SourceStep::Leave,
    }
}

/// Whether the source's last answer proves that the way back is done: the guest runs there, or stands as its owner or
/// the guest itself has left it, however it stood before. Nothing may be left of QEMU's stop for a migration, nor of
/// the engine's own `stop`.
///
/// In `postmigrate` a guest was passed on. After this engine's own migration the guest is the source's again only where
/// `destination_ended` says that the destination is out of the way. After somebody else's, such as one to a file, the
/// guest is left to whoever made that migration, once this engine's destination has taken nothing of it.
///
/// Where the destination has run the guest, nothing that the source has is as it was before. A source that runs and
/// whose QEMU has never begun a migration has passed nothing on: what the destination runs is another guest.
pub fn is_left_on_source(facts: &SourceFacts) -> bool {
    use MigrationStatus::{Cancelled, Completed, Failed};
    let is_left = decide_source(facts) == SourceStep::Leave;
    let has_kept = facts.run == RunState::Running && facts.migration == MigrationStatus::None;
    is_left
        && (!facts.destination_has_run || has_kept)
        && match (&facts.run, &facts.migration) {
            (RunState::PostMigrate, Completed) => facts.destination_ended || facts.is_anothers,
            // QEMU 7.2 leaves a guest so that its owner had stopped before QEMU did, once the migration is cancelled.
            (RunState::PostMigrate, status) => matches!(status, Cancelled | Failed),
            (RunState::InMigrate | RunState::FinishMigrate | RunState::Other(_), _) => false,
            _ => true,
        }
}

/// What is known of a source that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LostSource {
    /// The process is proved to have ended.
    pub proved: bool,
    /// SHUTDOWN was the last that was heard of the guest.
    pub told: bool,
    /// The source's events told that a migration has completed, or may have, which no engine of this run let complete:
    /// the guest is elsewhere.
    pub passed: bool,
    /// The destination was told to listen.
    pub listened: bool,
    /// Every event of the destination was heard since before it was told to listen, and none told that it ran; or a
    /// verdict says that it never did.
    pub never_ran: bool,
    /// What becomes of the destination.
    pub destination: DestinationFate,
}

/// Whether a guest whose source is gone has ended: it runs nowhere, and the source's disks are whole. Asked on the way
/// back alone, and never so where the destination may have been given the guest: a person may have finished by hand
/// what an engine that died had begun.
pub fn has_ended(lost: &LostSource) -> bool {
    let destination_is_harmless = match lost.destination {
        // The destination has answered that it does not run the guest, and never did.
        DestinationFate::Quit | DestinationFate::Fence => true,
        DestinationFate::AlreadyGone => lost.never_ran || !lost.listened,
        DestinationFate::LeaveAlone(reason) => !reason.is_taken_over() && lost.never_ran && !lost.listened,
    };
    (lost.proved || lost.told) && !lost.passed && destination_is_harmless
}

/// What is known of a destination that is lost after the guest was handed over to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LostDestination {
    /// The destination was started, or its events told that it ran the guest.
    pub has_run: bool,
    /// SHUTDOWN was the last that was heard of the guest there, or of its QEMU.
    pub told: bool,
    /// The process is proved to have ended, or its monitor has closed.
    pub is_gone: bool,
}

/// Whether a guest that was handed over has ended on the destination by a shutdown: then the move is complete, QEMU has
/// written what the guest wrote to the destination's disks, and what the source has is older and of no use. A QEMU that
/// ends without SHUTDOWN has crashed or was killed, and tells nothing of that kind.
pub fn has_ended_on_destination(lost: &LostDestination) -> bool {
    lost.has_run && lost.told && lost.is_gone
}

#[cfg(test)]
mod tests {
    //! Promise: ended-is-proved, foreign-migration.

    use super::*;
    use proptest::prelude::*;

    fn answers(run: &str, migration: &str) -> DestinationSight {
        DestinationSight::Answers { run: RunState::from(run), migration: MigrationStatus::from(migration) }
    }

    fn facts(ground: WayBackGround, sight: DestinationSight, source: SourceHolding) -> DestinationFacts {
        let (asked, followed, has_run, killable) = (true, true, false, true);
        DestinationFacts { ground, sight, listened: true, asked, followed, has_run, killable, source }
    }

    const SOURCES: [SourceHolding; 4] =
        [SourceHolding::Holds, SourceHolding::Passed, SourceHolding::Silent, SourceHolding::Ended];

    #[test]
    fn a_source_that_is_gone_has_passed_nothing_on_that_could_come_back() {
        assert_eq!(SourceHolding::of_answer(&MigrationStatus::Completed), SourceHolding::Passed);
        for status in ["none", "active", "pre-switchover", "device", "failed", "cancelled", "of-tomorrow"] {
            assert_eq!(SourceHolding::of_answer(&MigrationStatus::from(status)), SourceHolding::Holds, "{status}");
        }
        let loaded = || answers("paused", "completed");
        for has_ended in [false, true] {
            let known = facts(WayBackGround::NotGiven, loaded(), SourceHolding::without_answer(has_ended));
            assert_eq!(decide_destination(&known), DestinationFate::LeaveAlone(LeaveReason::OnlyCopy));
        }
    }

    #[test]
    fn a_migration_that_leads_elsewhere_is_told_by_the_destination() {
        use MigrationCourse::{Elsewhere, NotKnownYet, ToDestination};
        let course = |source: &str, destination: Option<&str>, told_active: bool, told_completed: bool| {
            let (source, destination) = (MigrationStatus::from(source), destination.map(MigrationStatus::from));
            let (is_followed, is_begun, waited) = (false, true, false);
            let facts = CourseFacts { source, destination, is_followed, is_begun, waited, told_active, told_completed };
            let followed = CourseFacts { is_followed: true, ..facts.clone() };
            assert_eq!(find_course(&followed), Elsewhere, "another migration has begun since");
            find_course(&facts)
        };
        let under_way = ["active", "pre-switchover", "device", "of-tomorrow"];
        for source in under_way.into_iter().chain(["completed", "setup"]) {
            assert_eq!(course(source, Some("completed"), false, false), ToDestination, "{source}");
            assert_eq!(course(source, None, true, true), ToDestination, "{source}");
        }
        for source in under_way {
            assert_eq!(course(source, Some("active"), false, false), ToDestination, "{source}");
            assert_eq!(course(source, Some("failed"), true, false), ToDestination, "{source}");
            // a source that is past `setup` has connected, and not to this destination
            for destination in ["setup", "none"] {
                assert_eq!(course(source, Some(destination), false, false), NotKnownYet, "{source}, {destination}");
            }
        }
        assert_eq!(course("setup", Some("setup"), false, false), ToDestination);
        for destination in [None, Some("failed")] {
            // a guest that stands in `pre-switchover` comes back by a cancel alone
            assert_eq!(course("pre-switchover", destination, false, false), ToDestination, "{destination:?}");
            assert_eq!(course("device", destination, false, false), Elsewhere, "{destination:?}");
        }
        // the destination has everything before the source says `completed`
        for destination in [None, Some("none"), Some("setup"), Some("failed")] {
            assert_eq!(course("completed", destination, true, false), Elsewhere, "{destination:?}");
        }
        assert_eq!(course("completed", Some("active"), true, false), NotKnownYet);
    }

    #[test]
    fn a_migration_that_a_recovery_finds_is_cancelled_only_where_the_destination_takes_it() {
        use MigrationCourse::{Elsewhere, NotKnownYet, ToDestination};
        let course = |source: &str, destination: Option<&str>, waited: bool| {
            let (source, destination) = (MigrationStatus::from(source), destination.map(MigrationStatus::from));
            let (is_followed, is_begun, told) = (false, false, false);
            let (told_active, told_completed) = (told, told);
            find_course(&CourseFacts {
                source,
                destination,
                is_followed,
                is_begun,
                waited,
                told_active,
                told_completed,
            })
        };
        for waited in [false, true] {
            for destination in ["active", "completed"] {
                for source in ["setup", "active", "pre-switchover", "of-tomorrow"] {
                    assert_eq!(course(source, Some(destination), waited), ToDestination, "{source}, {destination}");
                }
            }
            for destination in [None, Some("none"), Some("setup"), Some("failed"), Some("cancelled")] {
                for source in ["setup", "active", "of-tomorrow"] {
                    assert_eq!(course(source, destination, waited), NotKnownYet, "{source}, {destination:?}");
                }
            }
            for destination in [None, Some("failed")] {
                let expected = if waited { ToDestination } else { NotKnownYet };
                assert_eq!(course("pre-switchover", destination, waited), expected, "{destination:?}");
                assert_eq!(course("device", destination, waited), Elsewhere, "{destination:?}");
                assert_eq!(course("completed", destination, waited), Elsewhere, "{destination:?}");
                // QEMU leaves a migration in postcopy alone, and so does the way back
                assert_eq!(course("postcopy-active", destination, waited), ToDestination, "{destination:?}");
            }
        }
    }

    #[test]
    fn a_destination_with_a_part_is_quit() {
        for source in SOURCES {
            for sight in [answers("inmigrate", "active"), answers("inmigrate", "none"), answers("inmigrate", "failed")]
            {
                for ground in [WayBackGround::NotGiven, WayBackGround::OnSource] {
                    let known = facts(ground, sight.clone(), source);
                    assert_eq!(decide_destination(&known), DestinationFate::Quit, "{known:?}");
                    // `inmigrate` proves that it never ran, whoever followed it
                    let unknown = DestinationFacts { followed: false, asked: false, ..known };
                    assert_eq!(decide_destination(&unknown), DestinationFate::Quit, "{unknown:?}");
                }
            }
        }
    }

    #[test]
    fn a_destination_that_another_run_hands_a_guest_to_is_left_alone() {
        let at = |run: &str, migration: &str| DestinationFacts {
            listened: false,
            ..facts(WayBackGround::NotGiven, answers(run, migration), SourceHolding::Ended)
        };
        assert_eq!(decide_destination(&at("inmigrate", "none")), DestinationFate::Quit);
        for (run, migration) in [("inmigrate", "setup"), ("inmigrate", "active"), ("running", "completed")] {
            let fate = decide_destination(&at(run, migration));
            assert_eq!(fate, DestinationFate::LeaveAlone(LeaveReason::AnotherMigration), "{run}, {migration}");
            let (proved, told, listened, never_ran) = (true, false, false, true);
            // The guest may be this one, which another engine moves to the same destination.
            assert!(!has_ended(&LostSource { proved, told, passed: false, listened, never_ran, destination: fate }));
        }
    }

    #[test]
    fn a_stale_copy_is_quit_and_the_only_one_is_not() {
        use DestinationFate::{LeaveAlone, Quit};
        let loaded = || answers("paused", "completed");
        for source in SOURCES {
            assert_eq!(decide_destination(&facts(WayBackGround::OnSource, loaded(), source)), Quit);
            let expected = match source {
                SourceHolding::Holds | SourceHolding::Passed => Quit,
                SourceHolding::Silent | SourceHolding::Ended => LeaveAlone(LeaveReason::OnlyCopy),
            };
            let not_given = facts(WayBackGround::NotGiven, loaded(), source);
            assert_eq!(decide_destination(&not_given), expected, "{source:?}");
            let missed = DestinationFacts { followed: false, ..not_given };
            assert_eq!(decide_destination(&missed), LeaveAlone(LeaveReason::MayHaveRun));
        }
        // a guest that stood on the source arrives as it stood
        for run in ["io-error", "prelaunch", "guest-panicked", "shutdown"] {
            let known = facts(WayBackGround::NotGiven, answers(run, "completed"), SourceHolding::Passed);
            assert_eq!(decide_destination(&known), Quit, "{run}");
        }
    }

    #[test]
    fn a_destination_that_runs_or_ran_is_somebody_elses() {
        let taken_over = DestinationFate::LeaveAlone(LeaveReason::HasRun);
        for source in SOURCES {
            for ground in [WayBackGround::NotGiven, WayBackGround::OnSource] {
                for run in ["running", "suspended"] {
                    assert_eq!(decide_destination(&facts(ground, answers(run, "completed"), source)), taken_over);
                }
                let known = facts(ground, answers("paused", "completed"), source);
                assert_eq!(decide_destination(&DestinationFacts { has_run: true, ..known }), taken_over);
            }
        }
        let postcopy = facts(WayBackGround::NotGiven, answers("paused", "postcopy-active"), SourceHolding::Holds);
        assert!(matches!(decide_destination(&postcopy), DestinationFate::LeaveAlone(LeaveReason::MayHaveRun)));
    }

    #[test]
    fn what_does_not_answer_is_ended_only_as_ours_and_useless() {
        use DestinationFate::{Fence, LeaveAlone};
        for sight in [DestinationSight::Silent, DestinationSight::Hung] {
            for (ground, source, expected) in [
                (WayBackGround::NotGiven, SourceHolding::Holds, Fence),
                (WayBackGround::OnSource, SourceHolding::Silent, Fence),
                (WayBackGround::NotGiven, SourceHolding::Passed, LeaveAlone(LeaveReason::OnlyCopy)),
                (WayBackGround::NotGiven, SourceHolding::Silent, LeaveAlone(LeaveReason::OnlyCopy)),
                (WayBackGround::NotGiven, SourceHolding::Ended, LeaveAlone(LeaveReason::OnlyCopy)),
            ] {
                let known = facts(ground, sight.clone(), source);
                assert_eq!(decide_destination(&known), expected, "{known:?}");
                let remote = DestinationFacts { killable: false, ..known.clone() };
                let left = if expected == Fence { LeaveAlone(LeaveReason::Silent) } else { expected };
                assert_eq!(decide_destination(&remote), left, "{remote:?}");
                for unknown in
                    [DestinationFacts { asked: false, ..known.clone() }, DestinationFacts { followed: false, ..known }]
                {
                    assert_eq!(decide_destination(&unknown), LeaveAlone(LeaveReason::NotFollowed), "{unknown:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_gone_or_another_is_not_touched() {
        for (sight, expected) in [
            (DestinationSight::Ended, DestinationFate::AlreadyGone),
            (DestinationSight::Another, DestinationFate::LeaveAlone(LeaveReason::AnotherQemu)),
            (DestinationSight::Unreachable, DestinationFate::LeaveAlone(LeaveReason::Unreachable)),
        ] {
            for source in SOURCES {
                assert_eq!(decide_destination(&facts(WayBackGround::OnSource, sight.clone(), source)), expected);
            }
        }
    }

    #[test]
    fn a_destination_that_is_gone_counts_for_what_was_heard_of_it() {
        use DestinationFate::{AlreadyGone, LeaveAlone};
        let sights = [
            DestinationSight::Ended,
            DestinationSight::Another,
            DestinationSight::Unreachable,
            DestinationSight::Silent,
            DestinationSight::Hung,
        ];
        for ground in [WayBackGround::NotGiven, WayBackGround::OnSource] {
            for source in SOURCES {
                for sight in sights.clone() {
                    let ran = DestinationFacts { has_run: true, ..facts(ground, sight, source) };
                    assert_eq!(decide_destination(&ran), LeaveAlone(LeaveReason::HasRun), "{ran:?}");
                }
                let unheard = DestinationFacts { followed: false, ..facts(ground, DestinationSight::Ended, source) };
                let is_doubtful = ground == WayBackGround::NotGiven && source == SourceHolding::Passed;
                let expected = if is_doubtful { LeaveAlone(LeaveReason::MayHaveRun) } else { AlreadyGone };
                assert_eq!(decide_destination(&unheard), expected, "{unheard:?}");
                // This engine has put it out of the way.
                assert_eq!(decide_destination(&DestinationFacts { listened: false, ..unheard }), AlreadyGone);
            }
        }
    }

    #[test]
    fn a_frozen_destination_is_ended_for_its_source_only_where_nothing_was_passed_on() {
        for known in 0..8 {
            let (followed, has_run, is_passed_on) = (known & 1 != 0, known & 2 != 0, known & 4 != 0);
            let frozen = FrozenDestination { followed, has_run, is_passed_on };
            assert_eq!(may_end_to_free(&frozen), known == 1, "{frozen:?}");
        }
    }

    #[test]
    fn a_guest_that_was_shut_down_on_the_destination_has_moved() {
        for known in 0..8 {
            let (has_run, told, is_gone) = (known & 1 != 0, known & 2 != 0, known & 4 != 0);
            let lost = LostDestination { has_run, told, is_gone };
            assert_eq!(has_ended_on_destination(&lost), known == 7, "{lost:?}");
        }
    }

    fn source(run: &str, migration: &str) -> SourceFacts {
        SourceFacts {
            wants_running: true,
            run: RunState::from(run),
            migration: MigrationStatus::from(migration),
            stopped_by_engine: false,
            waited: false,
            destination_ended: false,
            destination_has_run: false,
            is_anothers: false,
        }
    }

    #[test]
    fn a_guest_that_stands_by_itself_or_its_owner_is_left() {
        let own = ["shutdown", "guest-panicked", "io-error", "watchdog", "internal-error", "suspended", "running"];
        for run in own.into_iter().chain(["paused", "prelaunch", "inmigrate"]) {
            for migration in ["none", "cancelled", "failed", "completed", "active"] {
                for waited in [false, true] {
                    let facts = SourceFacts { waited, destination_ended: true, ..source(run, migration) };
                    assert_eq!(decide_source(&facts), SourceStep::Leave, "{facts:?}");
                }
            }
        }
        // QEMU 7.2 forgets that such a guest was paused
        assert_eq!(decide_source(&source("postmigrate", "cancelled")), SourceStep::Leave);
    }

    #[test]
    fn a_guest_that_qemu_stopped_runs_again() {
        for status in ["cancelled", "failed", "cancelling"] {
            assert_eq!(decide_source(&source("finish-migrate", status)), SourceStep::AwaitResume, "{status}");
        }
        let waited = |status| SourceFacts { waited: true, ..source("finish-migrate", status) };
        assert_eq!(decide_source(&waited("cancelled")), SourceStep::Cont);
        // `cont` is refused while the migration is under way
        assert_eq!(decide_source(&waited("cancelling")), SourceStep::Leave);
    }

    #[test]
    fn a_source_that_passed_all_on_needs_the_proof() {
        for (destination_ended, expected) in [(false, SourceStep::Leave), (true, SourceStep::Cont)] {
            for run in ["postmigrate", "finish-migrate"] {
                for waited in [false, true] {
                    let facts = SourceFacts { destination_ended, waited, ..source(run, "completed") };
                    assert_eq!(decide_source(&facts), expected, "{facts:?}");
                }
            }
        }
    }

    #[test]
    fn whatever_the_source_answers_at_the_end_is_proved_unless_a_stop_of_qemus_is_left() {
        let stands = ["paused", "prelaunch", "shutdown", "guest-panicked", "io-error", "watchdog", "internal-error"];
        for wants_running in [false, true] {
            for destination_ended in [false, true] {
                let facts = |run: &str, migration: &str| SourceFacts {
                    wants_running,
                    destination_ended,
                    waited: true,
                    ..source(run, migration)
                };
                for migration in ["none", "cancelled", "failed", "completed"] {
                    for run in stands.iter().chain(&["running", "suspended"]) {
                        assert!(is_left_on_source(&facts(run, migration)), "{run} {migration}");
                    }
                    for run in ["inmigrate", "finish-migrate", "of-tomorrow"] {
                        assert!(!is_left_on_source(&facts(run, migration)), "{run} {migration}");
                    }
                }
                for migration in ["cancelled", "failed"] {
                    assert!(is_left_on_source(&facts("postmigrate", migration)));
                }
                // Passed on: a guest that ran would be sent `cont` first.
                let completed = is_left_on_source(&facts("postmigrate", "completed"));
                assert_eq!(completed, destination_ended && !wants_running);
                let anothers = SourceFacts { is_anothers: true, ..facts("postmigrate", "completed") };
                assert!(is_left_on_source(&anothers), "{anothers:?}");
                for migration in ["none", "active", "pre-switchover", "of-tomorrow"] {
                    assert!(!is_left_on_source(&facts("postmigrate", migration)), "{migration}");
                }
                let by_engine = SourceFacts { stopped_by_engine: true, ..facts("paused", "none") };
                assert_eq!(is_left_on_source(&by_engine), !wants_running);
            }
        }
    }

    #[test]
    fn the_engines_own_stop_is_undone() {
        for run in ["paused", "prelaunch"] {
            let stopped = SourceFacts { stopped_by_engine: true, ..source(run, "none") };
            assert_eq!(decide_source(&stopped), SourceStep::Cont);
            assert_eq!(decide_source(&SourceFacts { wants_running: false, ..stopped }), SourceStep::Leave);
        }
        for run in ["io-error", "guest-panicked", "running", "suspended", "shutdown"] {
            let stopped = SourceFacts { stopped_by_engine: true, ..source(run, "none") };
            assert_eq!(decide_source(&stopped), SourceStep::Leave, "{run}");
        }
    }

    #[test]
    fn a_guest_has_ended_only_where_nobody_else_can_have_it() {
        use DestinationFate::{AlreadyGone, Fence, LeaveAlone, Quit};
        let harmless = [Quit, Fence, AlreadyGone];
        for destination in harmless {
            for (proved, told, expected) in [(true, false, true), (false, true, true), (false, false, false)] {
                let lost = LostSource { proved, told, passed: false, listened: true, never_ran: true, destination };
                assert_eq!(has_ended(&lost), expected, "{lost:?}");
            }
        }
        for reason in [LeaveReason::HasRun, LeaveReason::MayHaveRun, LeaveReason::OnlyCopy] {
            for (listened, never_ran) in [(false, false), (false, true), (true, false), (true, true)] {
                let destination = LeaveAlone(reason);
                let lost = LostSource { proved: true, told: true, passed: false, listened, never_ran, destination };
                assert!(!has_ended(&lost), "{lost:?}");
            }
        }
        // What is not known of the destination proves nothing, unless it never listened.
        for destination in [AlreadyGone, LeaveAlone(LeaveReason::Unreachable), LeaveAlone(LeaveReason::NotFollowed)] {
            let (listened, never_ran) = (true, false);
            let unknown = LostSource { proved: true, told: true, passed: false, listened, never_ran, destination };
            assert!(!has_ended(&unknown), "{unknown:?}");
            let idle = LostSource { listened: false, never_ran: true, ..unknown };
            assert!(has_ended(&idle), "{idle:?}");
            assert!(!has_ended(&LostSource { passed: true, ..idle }), "another engine has passed the guest on");
        }
    }

    fn any_run() -> impl Strategy<Value = RunState> {
        let states = ["running", "paused", "prelaunch", "inmigrate", "finish-migrate", "postmigrate", "suspended"];
        let halted = ["shutdown", "guest-panicked", "io-error", "watchdog", "internal-error", "of-tomorrow"];
        prop::sample::select([&states[..], &halted].concat()).prop_map(RunState::from)
    }

    fn any_status() -> impl Strategy<Value = MigrationStatus> {
        let states = ["none", "setup", "active", "pre-switchover", "device", "completed", "failed", "cancelled"];
        let others = ["cancelling", "postcopy-active", "postcopy-paused", "of-tomorrow"];
        prop::sample::select([&states[..], &others].concat()).prop_map(MigrationStatus::from)
    }

    fn any_sight() -> impl Strategy<Value = DestinationSight> {
        prop_oneof![
            6 => (any_run(), any_status()).prop_map(|(run, migration)| DestinationSight::Answers { run, migration }),
            1 => Just(DestinationSight::Hung),
            1 => Just(DestinationSight::Silent),
            1 => Just(DestinationSight::Unreachable),
            1 => Just(DestinationSight::Another),
            1 => Just(DestinationSight::Ended),
        ]
    }

    proptest! {
        /// Whatever else holds: nothing is ended by force that could not be asked, or that this engine has not
        /// followed, and nothing is ended at all that has run.
        #[test]
        fn no_destination_is_ended_that_may_have_run(
            sight in any_sight(),
            on_source in any::<bool>(),
            known in any::<(bool, bool, bool, bool)>(),
            source in prop::sample::select(SOURCES.to_vec()),
        ) {
            let (asked, followed, has_run, killable) = known;
            let ground = if on_source { WayBackGround::OnSource } else { WayBackGround::NotGiven };
            let listened = true;
            let facts = DestinationFacts { ground, sight, listened, asked, followed, has_run, killable, source };
            match decide_destination(&facts) {
                DestinationFate::Fence => prop_assert!(asked && followed && killable, "{facts:?}"),
                DestinationFate::Quit => match &facts.sight {
                    DestinationSight::Answers { run, .. } => {
                        prop_assert!(!has_run && !run.is_live(), "{facts:?}");
                        prop_assert!(followed || on_source || *run == RunState::InMigrate, "{facts:?}");
                    }
                    _ => prop_assert!(false, "{facts:?}"),
                },
                _ => {}
            }
        }

        /// After a destination that has run the guest, or that may have had and run all of it unheard, no `cont` goes
        /// to the source, nothing is said to be as before, and no guest is said to have ended.
        #[test]
        fn nothing_is_taken_back_from_a_destination_that_may_have_run(
            sight in any_sight(),
            on_source in any::<bool>(),
            known in any::<(bool, bool, bool, bool)>(),
            is_told in any::<(bool, bool, bool, bool, bool)>(),
            source in prop::sample::select(SOURCES.to_vec()),
            (run, migration) in (any_run(), any_status()),
        ) {
            let (asked, followed, has_run, killable) = known;
            let (wants_running, stopped_by_engine, waited, proved, told) = is_told;
            let ground = if on_source { WayBackGround::OnSource } else { WayBackGround::NotGiven };
            let is_loading = matches!(sight, DestinationSight::Answers { run: RunState::InMigrate, .. });
            let is_unheard = !followed && !on_source && !is_loading;
            // One answer tells both.
            let source = match (&migration, source) {
                (MigrationStatus::Completed, _) => SourceHolding::Passed,
                (_, SourceHolding::Passed) => SourceHolding::Holds,
                (_, other) => other,
            };
            let listened = true;
            let facts = DestinationFacts { ground, sight, listened, asked, followed, has_run, killable, source };
            let destination = decide_destination(&facts);
            let may_have_run = has_run || (is_unheard && source == SourceHolding::Passed);
            let is_out_of_the_way = !matches!(destination, DestinationFate::LeaveAlone(_));
            prop_assert!(!(may_have_run && is_out_of_the_way), "{facts:?}");

            let taken = SourceFacts {
                wants_running,
                run,
                migration,
                stopped_by_engine: stopped_by_engine && has_run,
                waited,
                destination_ended: is_out_of_the_way,
                destination_has_run: has_run,
                is_anothers: false,
            };
            let is_passed = matches!(taken.run, RunState::PostMigrate) && source == SourceHolding::Passed;
            if has_run || (may_have_run && is_passed) {
                prop_assert!(decide_source(&taken) != SourceStep::Cont, "{facts:?} {taken:?}");
                // a source that runs and never began a migration has passed nothing on
                let has_kept = taken.run == RunState::Running && taken.migration == MigrationStatus::None;
                prop_assert_eq!(is_left_on_source(&taken), has_kept, "{:?} {:?}", facts, taken);
            }
            let never_ran = on_source || (followed && !has_run);
            let lost = LostSource { proved, told, passed: false, listened, never_ran, destination };
            let is_lost_unheard = is_unheard && !matches!(facts.sight, DestinationSight::Answers { .. });
            prop_assert!(!(has_ended(&lost) && (has_run || is_lost_unheard)), "{facts:?} {lost:?}");

            let frozen = FrozenDestination { followed, has_run, is_passed_on: source == SourceHolding::Passed };
            prop_assert!(!(may_end_to_free(&frozen) && (may_have_run || !followed)), "{frozen:?}");
        }

        /// `cont` goes only to a guest that is to run and that QEMU, or this engine, has stopped.
        #[test]
        fn no_guest_is_started_that_stands_by_itself(
            run in any_run(),
            migration in any_status(),
            known in any::<(bool, bool, bool, bool, bool, bool)>(),
        ) {
            let (wants_running, stopped_by_engine, waited, destination_ended, destination_has_run, is_anothers) = known;
            let facts = SourceFacts {
                wants_running,
                run,
                migration,
                stopped_by_engine,
                waited,
                destination_ended,
                destination_has_run,
                is_anothers,
            };
            if decide_source(&facts) == SourceStep::Cont {
                prop_assert!(wants_running);
                let is_stopped_by_another = match facts.run {
                    RunState::Paused | RunState::Prelaunch => !stopped_by_engine,
                    RunState::FinishMigrate | RunState::PostMigrate => !facts.migration.is_over(),
                    _ => true,
                };
                prop_assert!(!is_stopped_by_another, "{facts:?}");
                prop_assert!(facts.migration != MigrationStatus::Completed || (destination_ended && !is_anothers) || stopped_by_engine);
            }
        }
    }
}
