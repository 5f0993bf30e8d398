//! What is to be done when the exchange fails after `migrate-continue`.
//!
//! Pure. Decides from what each side is seen to be, and from nothing else: a guest is started or resumed only where the
//! other side is proved unable to run it, and where nothing is proved nothing is done.

use crate::qemu::reply::{MigrationStatus, RunState};

/// What is known of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It answers.
    Answers {
        /// Its run state.
        run: RunState,
        /// The migration's status as it tells it.
        migration: MigrationStatus,
    },
    /// It does not answer, and may yet be alive.
    Silent,
    /// Its process is proved to have ended.
    Dead,
}

impl Seen {
    fn runs(&self) -> bool {
        self.is(&RunState::Running)
    }

    fn is(&self, state: &RunState) -> bool {
        matches!(self, Self::Answers { run, .. } if run == state)
    }

    /// Whether it is past the point where QEMU lets it go on as a source, and has pages that the destination may lack.
    fn is_in_postcopy(&self) -> bool {
        matches!(self, Self::Answers { migration, .. } if migration.is_postcopy())
    }

    /// Whether it is proved that it will never run the guest again by itself.
    fn stands_for_good(&self) -> bool {
        matches!(self, Self::Dead | Self::Answers { migration: MigrationStatus::Completed, .. })
    }
}

/// Everything the verdict rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The source.
    pub source: Seen,
    /// The destination.
    pub destination: Seen,
    /// `cont` may have reached the destination (sent, and not refused).
    pub started: bool,
    /// The guest ran before the migration; otherwise it stays paused wherever it ends.
    pub was_running: bool,
    /// The source gave the migration up and may have run the guest since: what the destination has is older.
    pub source_resumed: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The guest is on the destination as it should be: go on.
    OnDestination,
    /// The guest is on the source as it was: the destination never got it.
    OnSource,
    /// All state is on the destination and the source is dead: start it there.
    StartDestination,
    /// The destination is dead and was never started: resume the source.
    ResumeSource,
    /// The same, but the source still has its migration under way and takes no `cont`: cancel it, then look again.
    CancelMigration,
    /// The destination is alive, was never started and will not be: quit it, then look again.
    QuitDestination,
    /// Nothing is proved: leave both as they are.
    Undetermined,
}

/// Decides.
pub fn decide(facts: &Facts) -> Verdict {
    let Facts { source, destination, started, was_running, source_resumed } = facts;
    // no command resumes it, and it must not be given up: the destination may need its pages yet, whatever became of it
    if source.is_in_postcopy() {
        return match *started && destination.runs() && !source.runs() {
            true => Verdict::OnDestination,
            false => Verdict::Undetermined,
        };
    }
    // `paused` is not what a completed migration leaves: that is `postmigrate`
    if source.runs() || (!was_running && source.is(&RunState::Paused)) {
        // QEMU resumes a source by itself where the migration failed. A destination that was never started waits with
        // its vCPUs stopped; one that runs as well is beyond us.
        return match (started, destination.runs()) {
            (false, false) => Verdict::OnSource,
            _ => Verdict::Undetermined,
        };
    }
    match destination {
        Seen::Answers { run: RunState::Running, .. } => match *started || source.stands_for_good() {
            true => Verdict::OnDestination,
            // someone else started it, and the source may yet fail and resume
            false => Verdict::Undetermined,
        },
        Seen::Answers { migration: MigrationStatus::Completed, .. } if !was_running && !started => match source {
            Seen::Answers { migration: MigrationStatus::Completed, .. } | Seen::Dead => Verdict::OnDestination,
            _ => Verdict::Undetermined,
        },
        Seen::Answers { migration: MigrationStatus::Completed, .. } if !started => match source {
            Seen::Dead if !source_resumed => Verdict::StartDestination,
            // it refused to start, or the source does not say `completed`: the source still has everything
            Seen::Answers { .. } => Verdict::QuitDestination,
            Seen::Silent | Seen::Dead => Verdict::Undetermined,
        },
        Seen::Answers { .. } if !started && matches!(source, Seen::Answers { .. }) => Verdict::QuitDestination,
        Seen::Dead if !started => match source {
            Seen::Answers { migration, .. } if !migration.is_over() => Verdict::CancelMigration,
            Seen::Answers { .. } if *was_running => Verdict::ResumeSource,
            // stopped, and a `cont` of its owner's works: nothing may be run that was paused
            Seen::Answers { .. } => Verdict::OnSource,
            Seen::Silent | Seen::Dead => Verdict::Undetermined,
        },
        Seen::Answers { .. } | Seen::Silent | Seen::Dead => Verdict::Undetermined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answers(run: RunState, migration: MigrationStatus) -> Seen {
        Seen::Answers { run, migration }
    }

    fn postmigrate() -> Seen {
        answers(RunState::PostMigrate, MigrationStatus::Completed)
    }

    fn arrived() -> Seen {
        answers(RunState::Paused, MigrationStatus::Completed)
    }

    #[test]
    fn verdicts() {
        let failed = |run| answers(run, MigrationStatus::Failed);
        let waits = || answers(RunState::FinishMigrate, MigrationStatus::PreSwitchover);
        let status = |word: &str| MigrationStatus::from(format!("postcopy-{word}").as_str());
        let postcopy = |word: &str| answers(RunState::FinishMigrate, status(word));
        let running = |word: &str| answers(RunState::Running, status(word));
        let loaded = || answers(RunState::Paused, status("active"));
        let waiting = || answers(RunState::InMigrate, MigrationStatus::Active);
        for (source, destination, started, was_running, verdict) in [
            (postmigrate(), answers(RunState::Running, MigrationStatus::Completed), true, true, Verdict::OnDestination),
            (Seen::Silent, answers(RunState::Running, MigrationStatus::Completed), true, true, Verdict::OnDestination),
            (Seen::Silent, answers(RunState::Running, MigrationStatus::Completed), false, true, Verdict::Undetermined),
            (waits(), answers(RunState::Running, MigrationStatus::Completed), false, true, Verdict::Undetermined),
            (waits(), failed(RunState::InMigrate), false, true, Verdict::QuitDestination),
            (waits(), Seen::Dead, false, true, Verdict::CancelMigration),
            (waits(), Seen::Dead, true, true, Verdict::Undetermined),
            (failed(RunState::Running), failed(RunState::InMigrate), false, true, Verdict::OnSource),
            (failed(RunState::Running), Seen::Dead, false, true, Verdict::OnSource),
            (failed(RunState::Running), Seen::Silent, false, true, Verdict::OnSource),
            (postmigrate(), Seen::Dead, false, true, Verdict::ResumeSource),
            (postmigrate(), Seen::Dead, true, true, Verdict::Undetermined),
            (postmigrate(), Seen::Silent, false, true, Verdict::Undetermined),
            (postmigrate(), failed(RunState::InMigrate), false, true, Verdict::QuitDestination),
            (postmigrate(), arrived(), false, true, Verdict::QuitDestination),
            (postmigrate(), arrived(), true, true, Verdict::Undetermined),
            (Seen::Dead, arrived(), false, true, Verdict::StartDestination),
            (Seen::Dead, waiting(), false, true, Verdict::Undetermined),
            (Seen::Dead, Seen::Dead, false, true, Verdict::Undetermined),
            (Seen::Silent, arrived(), false, true, Verdict::Undetermined),
            (postmigrate(), arrived(), false, false, Verdict::OnDestination),
            (failed(RunState::Paused), failed(RunState::InMigrate), false, false, Verdict::OnSource),
            (postmigrate(), Seen::Dead, false, false, Verdict::OnSource),
            (failed(RunState::Paused), failed(RunState::InMigrate), false, true, Verdict::QuitDestination),
            // postcopy: from `postcopy-active` on the source takes neither cont nor migrate_cancel
            (postcopy("active"), running("active"), true, true, Verdict::OnDestination),
            (postcopy("paused"), running("paused"), true, true, Verdict::OnDestination),
            (postcopy("active"), running("active"), false, true, Verdict::Undetermined),
            (postcopy("active"), loaded(), false, true, Verdict::Undetermined),
            (postcopy("active"), loaded(), true, true, Verdict::Undetermined),
            (postcopy("active"), loaded(), false, false, Verdict::Undetermined),
            (postcopy("active"), arrived(), false, true, Verdict::Undetermined),
            (postcopy("active"), failed(RunState::InMigrate), false, true, Verdict::Undetermined),
            (postcopy("paused"), Seen::Dead, false, true, Verdict::Undetermined),
            (postcopy("recover"), Seen::Dead, true, true, Verdict::Undetermined),
            (postcopy("recover-setup"), Seen::Silent, true, true, Verdict::Undetermined),
            (Seen::Dead, loaded(), false, true, Verdict::Undetermined),
            (Seen::Dead, loaded(), true, true, Verdict::Undetermined),
            // 11.1 resumes from here once the destination is gone
            (postcopy("device"), failed(RunState::InMigrate), false, true, Verdict::QuitDestination),
            (failed(RunState::Running), loaded(), true, true, Verdict::Undetermined),
        ] {
            let facts = Facts { source, destination, started, was_running, source_resumed: false };
            assert_eq!(decide(&facts), verdict, "{facts:?}");
        }
        // it ran on after the destination had everything, and took that with it
        let facts = Facts {
            source: Seen::Dead,
            destination: arrived(),
            started: false,
            was_running: true,
            source_resumed: true,
        };
        assert_eq!(decide(&facts), Verdict::Undetermined);
    }

    fn seen() -> impl Strategy<Value = Seen> {
        let run =
            prop::sample::select(vec!["running", "paused", "inmigrate", "finish-migrate", "postmigrate", "strange"]);
        let migration = prop::sample::select(vec![
            "none",
            "active",
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
            Just(Seen::Silent),
            Just(Seen::Dead),
            (run, migration)
                .prop_map(|(run, migration)| answers(RunState::from(run), MigrationStatus::from(migration))),
        ]
    }

    proptest! {
        #[test]
        fn never_two_runners(
            source in seen(), destination in seen(), started: bool, was_running: bool, source_resumed: bool
        ) {
            let (here, there) = (source.clone(), destination.clone());
            let verdict = decide(&Facts { source: source.clone(), destination: destination.clone(), started, was_running, source_resumed });
            if source.is_in_postcopy() {
                // each side has what the other lacks
                prop_assert!(matches!(verdict, Verdict::Undetermined | Verdict::OnDestination), "{:?}", verdict);
            }
            match decide(&Facts { source: here, destination: there, started, was_running, source_resumed }) {
                Verdict::ResumeSource => prop_assert!(destination == Seen::Dead && !started && was_running),
                Verdict::CancelMigration => prop_assert!(destination == Seen::Dead && !started),
                Verdict::StartDestination => {
                    prop_assert!(source == Seen::Dead && !source_resumed && !started && was_running);
                    prop_assert!(destination == arrived_like(&destination));
                }
                Verdict::QuitDestination => prop_assert!(!started && !destination.runs()),
                Verdict::OnDestination => prop_assert!(!source.runs() && (started || source.stands_for_good())),
                Verdict::OnSource => prop_assert!(!destination.runs() && !started),
                Verdict::Undetermined => {}
            }
        }
    }

    /// The same run state with a completed migration.
    fn arrived_like(seen: &Seen) -> Seen {
        match seen {
            Seen::Answers { run, .. } => answers(run.clone(), MigrationStatus::Completed),
            other => other.clone(),
        }
    }
}
