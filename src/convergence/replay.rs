//! The controller over again: what a transcript keeps of the controller, and the same decisions from the same samples.
//!
//! Pure. The decisions are those of [`decide`] and [`keep_budget`], which also decide a migration; nothing of them is
//! copied. Numbers are written so that they read back as the same: times as whole microseconds, rates as whole bytes.

use super::{
    Action, BuildAbilities, ConvergenceJob, Decision, History, MigrationSample, OverBudget, PendingRest, Policy,
    decide, keep_budget,
};
use crate::quantity::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the controller was given, and what it decided, in the order in which it came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControllerNote {
    /// The controller begins.
    Begin(Box<ControllerBegin>),
    /// The controller looked and decided.
    Look(Box<ControllerLook>),
    /// The guest stood still, and its mirrors were waited for.
    Waited(MigrationSample),
    /// QEMU refused an action.
    TakenBack(Action),
    /// QEMU answered while the guest stood still, after so many microseconds.
    StopAnswered {
        /// The time.
        us: u64,
    },
    /// Whether the guest may be kept waiting was asked.
    BudgetAsked(BudgetQuestion),
}

/// What the controller begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControllerBegin {
    /// Version of these notes.
    pub v: u32,
    /// The policy.
    pub policy: Policy,
    /// The job, by that policy.
    pub job: ConvergenceJob,
    /// What QEMU and the settings allow whatever the policy is.
    pub build: BuildAbilities,
    /// The disks that have mirrors.
    pub disks: Vec<String>,
}

/// One look and its decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControllerLook {
    /// The sample.
    pub sample: MigrationSample,
    /// The decision, unless it was to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
}

/// The question whether a guest that stands still may be kept waiting, and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BudgetQuestion {
    /// Microseconds for which the guest had stood still.
    pub stood_us: u64,
    /// Bytes of RAM yet to be sent; none while mirrors were waited for.
    pub left: Option<u64>,
    /// The answer.
    pub kept: bool,
}

impl ControllerBegin {
    /// The version of these notes that this crate writes, and the only one that it replays.
    pub const VERSION: u32 = 1;
}

impl ControllerLook {
    /// A look and its decision; a decision to wait is left out, since it follows from the sample.
    pub fn new(sample: &MigrationSample, decision: &Decision) -> Self {
        let decision = (!decision.actions.is_empty()).then(|| decision.clone());
        Self { sample: sample.clone(), decision }
    }
}

impl BudgetQuestion {
    /// The time for which the guest had stood still, in whole microseconds, with which the question is asked as well.
    pub fn stood(&self) -> Duration {
        Duration::from_micros(self.stood_us)
    }

    /// The rest that was waited for.
    pub fn rest(&self) -> PendingRest {
        self.left.map_or(PendingRest::Mirrors, |left| PendingRest::Memory(Bytes(left)))
    }
}

/// The controller over again.
#[derive(Debug, Clone)]
pub struct ControllerReplay {
    policy: Policy,
    history: History,
}

impl ControllerReplay {
    /// Begins as recorded.
    pub fn as_recorded(begin: &ControllerBegin) -> Self {
        Self { policy: begin.policy.clone(), history: History::new(begin.job.clone(), begin.disks.clone()) }
    }

    /// Begins with another policy and the budget that goes with it.
    pub fn with_policy(begin: &ControllerBegin, policy: Policy, budget: Duration) -> Self {
        let job = ConvergenceJob { budget, abilities: begin.build.under(&policy), ..begin.job.clone() };
        Self { policy, history: History::new(job, begin.disks.clone()) }
    }

    /// Decides on a sample.
    pub fn look(&mut self, sample: &MigrationSample) -> Decision {
        let decision = decide(&self.policy, &self.history, sample);
        self.history.record(sample, &decision);
        decision
    }

    /// Takes in a sample on which nothing is decided.
    pub fn wait(&mut self, sample: &MigrationSample) {
        self.history.record(sample, &Decision::default());
    }

    /// Takes in that QEMU refused an action, which it would have refused this policy, too.
    pub fn take_back(&mut self, action: &Action) {
        self.history.take_back(action);
    }

    /// Takes in an answer that came while the guest stood still.
    pub fn answered_at_stop(&mut self, us: u64) {
        self.history.answered_at_stop(us as f64 / 1000.0);
    }

    /// Whether the guest may be kept waiting.
    ///
    /// # Errors
    /// The blackout would exceed the budget.
    pub fn ask(&self, question: &BudgetQuestion) -> Result<f64, OverBudget> {
        keep_budget(&self.policy, &self.history, question.stood(), question.rest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::{
        fixture::{MIB, job, mirror, policy, ready},
        sample::RamSample,
    };

    fn begin(name: &str) -> ControllerBegin {
        let build = BuildAbilities { write_blocking: true, throttle: true, overlap: true, switchover_bandwidth: true };
        let policy = policy(name);
        let job = ConvergenceJob { abilities: build.under(&policy), dirty_rate: Some(12345.0), ..job() };
        ControllerBegin { v: ControllerBegin::VERSION, policy, job, build, disks: vec!["a".to_owned()] }
    }

    /// Samples of a guest that dirties its RAM faster than the link carries it away.
    fn samples() -> Vec<MigrationSample> {
        let at = |look: u64| look as f64 * 100.0 + 0.123;
        let copying = (0..10).map(|look| MigrationSample {
            at_ms: at(look),
            round_trip_ms: 0.5,
            mirrors: vec![mirror("a", 100, look * 10)],
            ..MigrationSample::default()
        });
        let sending = (10..400u64).map(|look| MigrationSample {
            at_ms: at(look),
            round_trip_ms: 1.25,
            stands: false,
            ram: (look > 12).then(|| RamSample {
                transferred: (look - 12) * 10 * MIB,
                processed: (look - 12) * 10 * MIB,
                remaining: 300 * MIB,
                total: 512 * MIB,
                syncs: (look - 12) / 3,
                ..RamSample::default()
            }),
            mirrors: vec![ready("a", look > 11)],
        });
        copying.chain(sending).collect()
    }

    /// The notes of a run, as they are read back from a transcript.
    fn recorded(begin: &ControllerBegin) -> Vec<ControllerNote> {
        let mut run = ControllerReplay::as_recorded(begin);
        let looks = samples().into_iter().map(|sample| {
            let decision = run.look(&sample);
            ControllerNote::Look(Box::new(ControllerLook::new(&sample, &decision)))
        });
        let notes = [ControllerNote::Begin(Box::new(begin.clone()))].into_iter().chain(looks).collect::<Vec<_>>();
        let written = notes.iter().map(|note| serde_json::to_string(note).expect("JSON"));
        written.map(|text| serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))).collect()
    }

    /// The looks at which a replay decides otherwise.
    fn differences(notes: &[ControllerNote], replay: &mut ControllerReplay) -> Vec<(Decision, Decision)> {
        let looks = notes.iter().filter_map(|note| match note {
            ControllerNote::Look(look) => Some(look),
            _ => None,
        });
        looks
            .map(|look| (look.decision.clone().unwrap_or_default(), replay.look(&look.sample)))
            .filter(|(recorded, replayed)| recorded.actions != replayed.actions)
            .collect()
    }

    #[test]
    fn the_recorded_policy_decides_as_recorded_and_with_the_same_words() {
        for name in ["converge", "postcopy", "patient", "observe", "nova", "vdsm", "kubevirt"] {
            let begin = begin(name);
            let notes = recorded(&begin);
            let ControllerNote::Begin(read) = &notes[0] else { panic!("{:?}", notes[0]) };
            assert_eq!(**read, begin);
            assert_eq!(differences(&notes, &mut ControllerReplay::as_recorded(read)), [], "{name}");
            let decided =
                notes.iter().filter(|note| matches!(note, ControllerNote::Look(look) if look.decision.is_some()));
            assert!(decided.count() >= 1, "{name} decides nothing");
            // the same through the way of other policies
            let mut again = ControllerReplay::with_policy(read, begin.policy.clone(), begin.job.budget);
            assert_eq!(differences(&notes, &mut again), [], "{name}");
        }
    }

    #[test]
    fn another_policy_decides_otherwise() {
        let notes = recorded(&begin("converge"));
        let ControllerNote::Begin(read) = &notes[0] else { panic!("{:?}", notes[0]) };
        let mut replay = ControllerReplay::with_policy(read, policy("postcopy"), read.job.budget);
        let differences = differences(&notes, &mut replay);
        let replayed: Vec<&Action> = differences.iter().flat_map(|pair| &pair.1.actions).collect();
        let recorded: Vec<&Action> = differences.iter().flat_map(|pair| &pair.0.actions).collect();
        assert!(replayed.contains(&&Action::Postcopy), "{differences:?}");
        assert!(recorded.iter().any(|action| matches!(action, Action::Throttle(_))), "{differences:?}");
    }

    #[test]
    fn a_question_for_the_budget_is_asked_again() {
        let begin = begin("converge");
        let replay = ControllerReplay::as_recorded(&begin);
        for (stood_us, left, kept) in
            [(10_000, Some(0), true), (500_000, Some(0), false), (400_000, None, true), (451_000, None, false)]
        {
            let question = BudgetQuestion { stood_us, left, kept };
            assert_eq!(replay.ask(&question).is_ok(), kept, "{question:?}");
        }
        let strict = Policy { slack: 0.0, ..begin.policy.clone() };
        let strict = ControllerReplay::with_policy(&begin, strict, Duration::from_millis(300));
        assert!(strict.ask(&BudgetQuestion { stood_us: 400_000, left: None, kept: true }).is_err());
    }
}
