//! The blackout budget: how long the guest would stand still, and whether the user allows that.
//!
//! Pure. The code `over-budget` is decided here alone, for the run and for its simulation.

use super::{history::History, memory, millis, policy::Policy};
use crate::quantity::Bytes;
use std::time::Duration;

/// The rest of a migration that a guest which stands still has to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PendingRest {
    /// Mirrors that were not ready when QEMU stopped the guest.
    Mirrors,
    /// The handover, with so much of RAM yet to be sent.
    Memory(Bytes),
}

/// A blackout that the user does not allow.
#[derive(Debug, Clone, PartialEq)]
pub struct OverBudget {
    /// The blackout that a handover would come to, milliseconds.
    pub estimate_ms: f64,
    /// The reason, with the numbers that it rests on.
    pub because: String,
    /// The change that would have let the guest move.
    pub needed: String,
}

impl OverBudget {
    /// The stable word for it.
    pub const CODE: &'static str = "over-budget";
}

/// Milliseconds of blackout if the guest were stopped now; `None` before RAM was measured.
pub fn predicted_blackout(policy: &Policy, history: &History) -> Option<f64> {
    let memory = history.memory.estimate()?;
    Some(memory.fresh / memory::tail_rate(history) * 1000.0 + memory::overhead(policy, history))
}

/// Whether a guest that has stood still for so long may be kept waiting for the rest. Returns the blackout that it
/// comes to, milliseconds.
///
/// # Errors
/// The blackout would exceed the budget by more than the policy's slack.
pub fn keep_budget(policy: &Policy, history: &History, stood: Duration, rest: PendingRest) -> Result<f64, OverBudget> {
    let budget = history.job.budget;
    let stood = millis(stood);
    let allowed = millis(policy.longest_blackout(budget, history.job.strict));
    match rest {
        PendingRest::Mirrors if stood <= allowed => Ok(stood),
        PendingRest::Mirrors => Err(OverBudget {
            estimate_ms: stood,
            because: format!("QEMU stopped the guest {stood:.0} ms ago, before its mirrors were ready"),
            needed: "a lower bandwidth for RAM, or a larger budget".to_owned(),
        }),
        PendingRest::Memory(remaining) => {
            let estimate = stood + rest_of_handover(policy, history, remaining);
            if policy.observe || estimate <= allowed.max(millis(policy.stop_and_copy)) {
                return Ok(estimate);
            }
            Err(OverBudget {
                estimate_ms: estimate,
                because: format!(
                    "the guest has stood still for {stood:.0} ms, and its blackout would take about {estimate:.0} ms of a budget of {} ms",
                    budget.as_millis()
                ),
                needed: format!("a budget of {:.0} ms", estimate.ceil()),
            })
        }
    }
}

/// Milliseconds that the handover needs with so much of RAM yet to be sent.
fn rest_of_handover(policy: &Policy, history: &History, remaining: Bytes) -> f64 {
    // only QEMU knows the bandwidth before RAM was measured, and it stops the guest where the rest fits into its limit
    let limit = history.applied.downtime.unwrap_or(history.job.budget);
    let rest = match history.memory.estimate() {
        Some(_) => remaining.0 as f64 / memory::tail_rate(history) * 1000.0,
        None => millis(limit),
    };
    let round_trips = history.round_trip.get().unwrap_or_default() * 2.0;
    rest + millis(policy.device_state) + round_trips
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::{
        ConvergenceJob,
        fixture::{ControllerRun, job, policy},
    };

    #[test]
    fn before_anything_is_measured_qemu_is_believed() {
        let mut run = ControllerRun::new(&policy("converge"), job(), &[]);
        assert_eq!(predicted_blackout(&run.policy, &run.history), None);
        run.look(0, None, &[]);
        let estimate = run.keep_budget(3.0, 1 << 40).expect("by its limit");
        assert!((18.0..20.0).contains(&estimate), "3 + 10 + 5 + two round trips: {estimate}");
        assert!(run.keep_budget(440.0, 0).is_err());
    }

    #[test]
    fn mirrors_that_are_not_ready_are_waited_for_within_the_budget() {
        let run = ControllerRun::new(&policy("converge"), job(), &["a"]);
        let waited = |ms| keep_budget(&run.policy, &run.history, Duration::from_millis(ms), PendingRest::Mirrors);
        assert_eq!(waited(450).map_err(|_| ()), Ok(450.0));
        let over = waited(451).expect_err("300 ms and a half");
        assert!(over.because.contains("451 ms ago, before its mirrors were ready"), "{over:?}");
    }

    #[test]
    fn a_try_is_not_thrown_away_for_milliseconds() {
        for (budget, slack, strict, longest) in [
            (300, 0.5, false, 450),
            (300, 0.5, true, 300),
            (20, 0.5, false, 70),
            (20, 0.2, false, 70),
            (20, 0.0, false, 20),
            (20, 1.0, true, 20),
            (1000, 0.2, false, 1200),
        ] {
            let policy = Policy { slack, ..Policy::default() };
            let given = ConvergenceJob { budget: Duration::from_millis(budget), strict, ..job() };
            let run = ControllerRun::new(&policy, given, &["a"]);
            // the rest of RAM by QEMU's limit, and 5 ms for device state
            let rest = budget as f64 + 5.0;
            for (stood, is_kept) in [(longest as f64 - rest, true), (longest as f64 - rest + 0.1, false)] {
                if stood >= 0.0 {
                    assert_eq!(run.keep_budget(stood, 0).is_ok(), is_kept, "{budget} {slack} {strict}: {stood}");
                }
            }
            let waited = |ms| keep_budget(&policy, &run.history, Duration::from_millis(ms), PendingRest::Mirrors);
            assert!(waited(longest).is_ok() && waited(longest + 1).is_err(), "{budget} {slack} {strict}");
        }
    }

    #[test]
    fn a_main_loop_that_stalled_once_does_not_decide() {
        let mut run = ControllerRun::new(&policy("converge"), job(), &[]);
        for _ in 0..5 {
            run.look(100, None, &[]);
        }
        run.look_slowly(1400, 1400.0, None, &[]);
        let stood = 12.0;
        let estimate = run.keep_budget(stood, 0).expect("one slow answer decides nothing");
        assert!(estimate < 30.0, "{estimate}");
        // answers that are slow again and again are believed, unless the stop itself shows faster ones
        for _ in 0..9 {
            run.look_slowly(300, 300.0, None, &[]);
        }
        assert!(run.keep_budget(stood, 0).is_err());
        run.history.answered_at_stop(2.0);
        assert!(run.keep_budget(stood, 0).is_ok());
    }
}
