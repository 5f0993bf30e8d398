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
    let allowed = millis(budget) * (1.0 + policy.slack);
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
    use crate::convergence::fixture::{ControllerRun, job, policy};

    #[test]
    fn before_anything_is_measured_qemu_is_believed() {
        let mut run = ControllerRun::new(&policy("converge"), job(), &[]);
        assert_eq!(predicted_blackout(&run.policy, &run.history), None);
        run.look(0, None, &[]);
        let estimate = run.keep_budget(3.0, 1 << 40).expect("by its limit");
        assert!((18.0..20.0).contains(&estimate), "3 + 10 + 5 + two round trips: {estimate}");
        assert!(run.keep_budget(400.0, 0).is_err());
    }

    #[test]
    fn mirrors_that_are_not_ready_are_waited_for_within_the_budget() {
        let run = ControllerRun::new(&policy("converge"), job(), &["a"]);
        let waited = |ms| keep_budget(&run.policy, &run.history, Duration::from_millis(ms), PendingRest::Mirrors);
        assert_eq!(waited(360).map_err(|_| ()), Ok(360.0));
        let over = waited(361).expect_err("300 ms and a fifth");
        assert!(over.because.contains("361 ms ago, before its mirrors were ready"), "{over:?}");
    }
}
