//! What the guest's owner wants of the guest: that it runs where the migration ends, or stays as it stands.
//!
//! Pure. QEMU tells by run states and by STOP and RESUME how the guest stands; this file tells a stop by the guest's
//! owner, or by the guest itself, from the stop that QEMU makes for the migration. A guest that its owner paused, or
//! that has panicked, powered off or met a disk error, must never be sent `cont`.

use crate::{
    progress::Moment,
    qemu::{
        Observed,
        reply::{MigrationStatus, RunState},
    },
};

/// How the guest stands, QEMU's own stop for the migration aside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Stance {
    /// The guest runs.
    Runs,
    /// The guest's owner has paused the guest.
    Paused,
    /// The guest has stopped by itself; the run state says why.
    Halted(RunState),
}

impl Stance {
    /// Reads a run state. `None` for a state that QEMU is in for the sake of a migration, or that nobody knows: such a
    /// state says nothing of the guest's owner.
    fn read(run: &RunState) -> Option<Self> {
        match run {
            RunState::Running => Some(Self::Runs),
            // A reset makes `prelaunch` of any state in which a guest stands still.
            RunState::Paused | RunState::Prelaunch => Some(Self::Paused),
            RunState::Shutdown
            | RunState::GuestPanicked
            | RunState::IoError
            | RunState::Watchdog
            | RunState::InternalError => Some(Self::Halted(run.clone())),
            RunState::InMigrate
            | RunState::FinishMigrate
            | RunState::PostMigrate
            // A guest that suspends itself (S3) goes on as it was: QEMU moves its suspension with it from 9.0 on.
            | RunState::Suspended
            | RunState::Other(_) => None,
        }
    }
}

/// What the guest's owner wants, as far as the source has told. The model in `integration/handover/` drives the intent,
/// too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GuestIntent {
    /// How the guest stood when it was last asked before RAM was sent; once the guest is stopped for the switchover,
    /// how it is to stand where the migration ends.
    stance: Stance,
    /// The guest's last RESUME before RAM was sent.
    resumed_before: Option<Moment>,
    /// The guest stood still when RAM was begun, and its owner has resumed it since.
    resumed: bool,
    /// The STOP by which the guest's owner, or the guest itself, has stopped the guest while RAM is sent.
    stopped_by_owner: Option<Moment>,
    /// The STOP that is taken for QEMU's own, made for the switchover.
    stopped_by_qemu: Option<Moment>,
    /// The state in which the guest stands by itself, where it came to that since the migration began.
    halt: Option<RunState>,
    /// What the journal says.
    journalled: bool,
}

impl GuestIntent {
    /// The intent that the preflight saw, which the journal begins with.
    pub fn new(run: &RunState) -> Self {
        // a guest that has suspended itself is suspended again once it is told to run
        let stance = if run.is_live() { Some(Stance::Runs) } else { Stance::read(run) };
        Self::with(stance.unwrap_or(Stance::Paused))
    }

    /// The intent that a journal ends with.
    pub fn from_journal(runs: bool) -> Self {
        Self::with(if runs { Stance::Runs } else { Stance::Paused })
    }

    fn with(stance: Stance) -> Self {
        let journalled = stance == Stance::Runs;
        let (stopped_by_owner, stopped_by_qemu, halt) = (None, None, None);
        Self { stance, resumed_before: None, resumed: false, stopped_by_owner, stopped_by_qemu, halt, journalled }
    }

    /// Whether the guest is to run where the migration ends, as far as it was taken in.
    pub fn wants_running(&self) -> bool {
        self.runs_at_heart() && self.stopped_by_owner.is_none()
    }

    /// The same, with the newest events.
    pub fn is_to_run(&self, seen: &Observed) -> bool {
        let is_stopped = self.stopped_by_owner.is_some() && self.stopped_by_owner == seen.stands_since();
        (self.runs_at_heart() || self.has_resumed(seen)) && !is_stopped
    }

    /// Takes in a run state. Only while none of the engine's commands has stopped the guest.
    pub fn look(&mut self, run: &RunState) {
        if let Some(stance) = Stance::read(run) {
            self.halt = match &stance {
                Stance::Halted(_) if stance == self.stance => self.halt.take(),
                Stance::Halted(run) => Some(run.clone()),
                Stance::Runs | Stance::Paused => None,
            };
            (self.stance, self.resumed, self.stopped_by_owner) = (stance, false, None);
        }
    }

    /// Begins to follow the source's events, just before RAM is sent and before the guest is asked for the last time:
    /// copying disks can take hours, in which its owner may have paused or resumed the guest.
    pub fn begin_memory(&mut self, seen: &Observed) {
        self.resumed_before = seen.resumed;
        (self.resumed, self.stopped_by_owner, self.stopped_by_qemu) = (false, None, None);
    }

    /// Takes in the source's events while RAM is sent. Whether `query-status` must be asked: a guest that stands
    /// still is asked each time, since events are hints, and the stop may be its owner's as well as QEMU's.
    pub fn follow(&mut self, seen: &Observed) -> bool {
        if self.has_resumed(seen) {
            self.resumed = true;
        }
        let runs = self.runs_at_heart();
        let stop = seen.stands_since().filter(|_| runs);
        if self.stopped_by_owner != stop {
            (self.stopped_by_owner, self.halt) = (None, None);
        }
        if stop.is_some_and(|stop| is_before_setup(&stop, seen) || is_before_a_pass(&stop, seen)) {
            self.stopped_by_owner = stop;
        }
        if let Some((run, stop)) = seen.halts_as().zip(stop) {
            // A guest that stands may be stopped for the switchover within a moment, and then no answer tells why.
            (self.stopped_by_owner, self.halt) = (Some(stop), Some(run.clone()));
        }
        if self.stopped_by_qemu != stop {
            self.stopped_by_qemu = None;
        }
        !runs || (stop.is_some() && ![self.stopped_by_owner, self.stopped_by_qemu].contains(&stop))
    }

    /// Takes in the answer to the question that [`Self::follow`] asked for; `seen` is what was seen when it was asked.
    pub fn answered(&mut self, run: &RunState, seen: &Observed) {
        if !self.runs_at_heart() {
            self.resumed = *run == RunState::Running;
            return;
        }
        let stop = seen.stands_since();
        match Stance::read(run) {
            Some(Stance::Paused) => self.stopped_by_owner = stop,
            Some(Stance::Halted(run)) => (self.stopped_by_owner, self.halt) = (stop, Some(run)),
            Some(Stance::Runs) | None => self.stopped_by_qemu = stop,
        }
    }

    /// The state in which the guest stands by itself, where it has come to that since the migration began.
    pub fn halt(&self) -> Option<&RunState> {
        self.halt.as_ref()
    }

    /// Whether the guest stands by QEMU's own stop for the switchover: the event `pre-switchover` is about to come.
    pub fn is_stopped_by_qemu(&self) -> bool {
        self.stopped_by_qemu.is_some()
    }

    /// Takes the last word: from here on the engine's own commands decide how the guest stands.
    pub fn settle(&mut self, seen: &Observed) {
        self.follow(seen);
        self.stance = match (self.is_to_run(seen), self.stance.clone()) {
            (true, _) => Stance::Runs,
            (false, Stance::Runs) => self.halt.clone().map_or(Stance::Paused, Stance::Halted),
            (false, stance) => stance,
        };
        (self.resumed, self.stopped_by_owner, self.stopped_by_qemu) = (false, None, None);
    }

    /// What the journal is to be told, where it says something else; it counts as told from here on.
    pub fn take_change(&mut self) -> Option<bool> {
        let runs = self.wants_running();
        (std::mem::replace(&mut self.journalled, runs) != runs).then_some(runs)
    }

    /// The guest's owner wants it to run, a stop since RAM was begun aside.
    fn runs_at_heart(&self) -> bool {
        self.stance == Stance::Runs || self.resumed
    }

    /// The guest's owner has resumed a guest that stood still before RAM was sent. QEMU itself resumes none of those.
    fn has_resumed(&self, seen: &Observed) -> bool {
        self.stance != Stance::Runs && (self.resumed || seen.resumed != self.resumed_before)
    }
}

/// Whether a STOP came before the source's migration was set up: QEMU stops no guest for a migration before that, so
/// the guest's owner did. A guest that stands converges at once, and then `query-status` is asked too late to tell.
///
/// `setup` is that of the newest migration that the events told of. One of a migration before the engine's proves the
/// same of a STOP that is older still; where none was told, `query-status` alone tells.
fn is_before_setup(stop: &Moment, seen: &Observed) -> bool {
    seen.entered(&MigrationStatus::Setup).is_some_and(|setup| stop.local < setup.local)
}

/// Whether QEMU has counted the dirty pages between the STOP and the state `pre-switchover`. QEMU's own stop comes
/// after the last count, and QEMU counts no more until that state, so the guest's owner made this one. `query-status`
/// would not tell: once QEMU stands in `pre-switchover` its answer says nothing of the owner.
///
/// Without that state a count proves nothing: QEMU counts once more when it passes the guest on, which it does at once
/// where somebody has switched `pause-before-switchover` off.
fn is_before_a_pass(stop: &Moment, seen: &Observed) -> bool {
    let (passed, paused) = (seen.passed, seen.entered(&MigrationStatus::PreSwitchover));
    passed.zip(paused).is_some_and(|(passed, paused)| stop.local < passed.local && passed.local < paused.local)
}

#[cfg(test)]
mod tests {
    //! Promise: left-as-it-stands.

    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    /// What the source's events have told: when the guest last stopped and resumed, in seconds.
    fn seen(stopped: Option<u64>, resumed: Option<u64>) -> Observed {
        let start = *START;
        let moment = |second| Moment::at(start + Duration::from_secs(second), Duration::from_secs(second));
        Observed { stopped: stopped.map(moment), resumed: resumed.map(moment), ..Observed::default() }
    }

    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

    const HALTED: [RunState; 5] =
        [RunState::Shutdown, RunState::GuestPanicked, RunState::IoError, RunState::Watchdog, RunState::InternalError];

    fn states() -> Vec<RunState> {
        let migrating =
            [RunState::InMigrate, RunState::FinishMigrate, RunState::PostMigrate, RunState::Other("new".to_owned())];
        let live = [RunState::Running, RunState::Suspended, RunState::Paused, RunState::Prelaunch];
        [&live[..], &HALTED, &migrating].concat()
    }

    #[test]
    fn only_a_guest_that_runs_is_to_run() {
        for run in states() {
            // a guest that has suspended itself is suspended again where it is told to run
            assert_eq!(GuestIntent::new(&run).wants_running(), run.is_live(), "{run}");
        }
        assert!(GuestIntent::from_journal(true).wants_running());
        assert!(!GuestIntent::from_journal(false).wants_running());
    }

    #[test]
    fn a_state_of_the_migration_says_nothing_of_the_owner() {
        for run in states() {
            for before in [RunState::Running, RunState::Paused, RunState::GuestPanicked] {
                let mut guest = GuestIntent::new(&before);
                guest.look(&run);
                let expected = match Stance::read(&run) {
                    Some(stance) => stance == Stance::Runs,
                    None => before == RunState::Running,
                };
                assert_eq!(guest.wants_running(), expected, "{before} then {run}");
            }
        }
    }

    #[test]
    fn a_stop_while_ram_is_sent_is_its_owners_or_qemus() {
        for (run, wants) in [
            (RunState::Paused, false),
            (RunState::IoError, false),
            (RunState::GuestPanicked, false),
            (RunState::FinishMigrate, true),
            (RunState::Other("new".to_owned()), true),
        ] {
            let mut guest = GuestIntent::new(&RunState::Running);
            guest.begin_memory(&seen(None, None));
            assert!(!guest.follow(&seen(None, None)), "a guest that runs need not be asked");
            let stop = seen(Some(1), None);
            assert!(guest.follow(&stop), "a stop is asked about");
            guest.answered(&run, &stop);
            assert_eq!(guest.is_stopped_by_qemu(), wants, "{run}");
            assert_eq!((guest.wants_running(), guest.is_to_run(&stop)), (wants, wants), "{run}");
            assert!(!guest.follow(&stop), "and asked about once: {run}");
            // a later stop is another
            let again = seen(Some(3), Some(2));
            assert!(guest.follow(&again) && guest.is_to_run(&again), "{run}");
        }
    }

    /// What is told of the guest, each at the second of its place in the row.
    fn told(row: &[&str]) -> Observed {
        let mut observed = Observed::default();
        for (second, event) in (1..).zip(row) {
            let moment = Moment::at(*START + Duration::from_secs(second), Duration::from_secs(second));
            match *event {
                "STOP" => observed.stopped = Some(moment),
                "RESUME" => observed.resumed = Some(moment),
                "pass" => observed.passed = Some(moment),
                status => {
                    if status == "setup" {
                        observed.migration.clear();
                    }
                    observed.migration.insert(MigrationStatus::from(status), moment);
                }
            }
        }
        observed
    }

    #[test]
    fn a_stop_before_the_migration_was_set_up_is_its_owners() {
        // Whether `query-status` must be asked, and whether the guest is to run if its answer comes too late.
        for (row, asks, runs) in [
            (&["STOP", "setup", "active", "pre-switchover"][..], false, false),
            (&["setup", "active", "STOP", "pre-switchover"], true, true),
            (&["setup", "STOP"], true, true),
            (&["STOP", "RESUME", "setup", "active"], false, true),
            (&["STOP", "RESUME", "setup", "active", "STOP", "pre-switchover"], true, true),
            (&["STOP", "setup", "RESUME", "active"], false, true),
            (&["STOP", "setup", "RESUME", "active", "STOP"], true, true),
            (&["RESUME", "STOP", "setup", "active"], false, false),
            // Of a migration before the engine's own, whose `setup` is not heard of yet.
            (&["STOP", "setup", "cancelled"], false, false),
            (&["setup", "cancelled", "STOP"], true, true),
            (&["setup", "cancelled", "STOP", "setup", "active"], false, false),
            // QEMU counts the dirty pages right before its own stop, and once more behind the switchover.
            (&["setup", "active", "pass", "STOP", "pre-switchover"], true, true),
            (&["setup", "active", "STOP", "pass", "pre-switchover"], false, false),
            (&["setup", "active", "pass", "STOP", "pass"], true, true),
            (&["setup", "active", "pass", "STOP", "device", "pass", "completed"], true, true),
            (&["setup", "active", "pass", "STOP", "pre-switchover", "device", "pass"], true, true),
            (&["setup", "active", "STOP", "pass", "RESUME", "pass", "STOP", "pre-switchover"], true, true),
            // A QEMU that tells nothing of its migration is asked.
            (&["STOP"], true, true),
            (&["STOP", "active", "pre-switchover"], true, true),
            (&["STOP", "RESUME"], false, true),
        ] {
            let seen = told(row);
            for late in [RunState::FinishMigrate, RunState::PostMigrate] {
                let mut guest = GuestIntent::new(&RunState::Running);
                guest.begin_memory(&Observed::default());
                guest.look(&RunState::Running);
                assert_eq!(guest.follow(&seen), asks, "{row:?}");
                if asks {
                    guest.answered(&late, &seen);
                }
                assert_eq!((guest.is_to_run(&seen), guest.wants_running()), (runs, runs), "{row:?}");
                assert_eq!(guest.take_change(), (!runs).then_some(false), "{row:?}");
                guest.settle(&seen);
                assert_eq!(guest.wants_running(), runs, "{row:?}");
                // An answer in time tells by itself.
                let mut asked = GuestIntent::new(&RunState::Running);
                asked.begin_memory(&Observed::default());
                if asked.follow(&seen) {
                    asked.answered(&RunState::Paused, &seen);
                    asked.settle(&seen);
                    assert!(!asked.wants_running(), "{row:?}");
                }
            }
            // Without a look in between, the last word is the same.
            let mut guest = GuestIntent::new(&RunState::Running);
            guest.begin_memory(&Observed::default());
            guest.settle(&seen);
            assert_eq!(guest.wants_running(), runs, "{row:?}");
        }
    }

    #[test]
    fn an_owner_who_resumes_wants_it_to_run() {
        for (before, run) in [(RunState::Paused, true), (RunState::IoError, true)] {
            let mut guest = GuestIntent::new(&before);
            let old = seen(Some(2), Some(1));
            guest.begin_memory(&old);
            assert!(guest.follow(&old), "a guest that stands still is asked each time");
            guest.answered(&before, &old);
            assert!(!guest.wants_running());
            let resumed = seen(Some(2), Some(3));
            assert_eq!(guest.is_to_run(&resumed), run, "an event tells before it was taken in");
            guest.follow(&resumed);
            assert_eq!(guest.take_change(), Some(true));
            assert_eq!(guest.take_change(), None, "the journal is told once");
            // the stop that follows is QEMU's own
            let stop = seen(Some(4), Some(3));
            assert!(guest.follow(&stop));
            guest.answered(&RunState::FinishMigrate, &stop);
            assert!(guest.is_stopped_by_qemu());
            guest.settle(&stop);
            assert!(guest.wants_running());
        }
        // where the event was lost the answer tells
        let mut guest = GuestIntent::new(&RunState::Paused);
        guest.begin_memory(&seen(None, None));
        guest.answered(&RunState::Running, &seen(None, None));
        assert!(guest.wants_running());
    }

    #[test]
    fn a_pause_is_over_once_its_owner_resumes() {
        let mut guest = GuestIntent::new(&RunState::Running);
        guest.begin_memory(&seen(None, None));
        let stop = seen(Some(1), None);
        guest.follow(&stop);
        guest.answered(&RunState::Paused, &stop);
        assert_eq!(guest.take_change(), Some(false));
        guest.follow(&seen(Some(1), Some(2)));
        assert_eq!(guest.take_change(), Some(true));
    }

    #[test]
    fn the_last_word_stays() {
        let mut guest = GuestIntent::new(&RunState::Running);
        guest.begin_memory(&seen(None, None));
        let stop = seen(Some(1), None);
        guest.follow(&stop);
        guest.answered(&RunState::Paused, &stop);
        guest.settle(&stop);
        // QEMU resumes and stops as the way back goes: none of that is the owner's
        assert!(!guest.wants_running());
    }

    fn any_state() -> impl Strategy<Value = RunState> {
        prop::sample::select(states())
    }

    proptest! {
        /// Whatever is told in whatever order: a guest whose last answer says that it stopped by itself or by its
        /// owner is not to run, until a RESUME or an answer `running`.
        #[test]
        fn a_guest_that_was_stopped_is_not_started(
            before in any_state(),
            answers in prop::collection::vec((any_state(), 0u64..4, 0u64..4), 0..12),
            last in prop::sample::select([&[RunState::Paused][..], &HALTED].concat()),
        ) {
            let mut guest = GuestIntent::new(&before);
            guest.begin_memory(&seen(None, None));
            for (run, stopped, resumed) in answers {
                let now = seen(Some(stopped), Some(resumed));
                if guest.follow(&now) {
                    guest.answered(&run, &now);
                }
            }
            let stop = seen(Some(9), Some(8));
            if guest.follow(&stop) {
                guest.answered(&last, &stop);
                guest.settle(&stop);
                prop_assert!(!guest.wants_running());
            }
        }
    }
}
