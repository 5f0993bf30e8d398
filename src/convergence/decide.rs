//! The decision: one function over disks and RAM.
//!
//! Pure.

use super::{
    decision::{Action, Decision},
    disks,
    history::History,
    memory,
    policy::Policy,
    sample::Sample,
    schedule, share,
};
use crate::quantity::{Bytes, Rate};
use std::time::Duration;

/// By how much longer the mirrors may need than RAM for RAM to be started beside them: begun too early, it is sent twice.
const AHEAD: f64 = 2.0;
/// The part of a ceiling that the mirrors must leave for RAM to be started beside them.
const ROOM: f64 = 0.2;

/// Decides what is to be done after `sample`. The same policy, history and sample always give the same; whoever carries it
/// out calls [`History::record`] with both then.
pub fn decide(policy: &Policy, history: &History, sample: &Sample) -> Decision {
    let mut now = history.after(sample);
    let decided = || Decision { actions: Vec::new(), because: "it is decided already".to_owned() };
    if now.done.gave_up || sample.ram.is_some_and(|ram| ram.postcopy) {
        return decided();
    }
    if let Some(timeout) = now.task.timeout.filter(|timeout| now.at >= disks::millis(*timeout)) {
        return give_up_in_time(policy, &now, timeout);
    }
    // it need not have come to it yet, which is why the timeout counts still
    if now.done.postcopy {
        return decided();
    }
    let mut steps = disks::decide(policy, &now);
    let mut waiting = None;
    for (action, _) in &steps {
        now.note(action);
    }
    if now.done.memory_since.is_none() {
        match start(policy, &now) {
            (true, because) => {
                let limit = memory::first_limit(policy, &now);
                steps.extend([(Action::DowntimeLimit(limit), because), (Action::StartMemory, String::new())]);
            }
            (false, because) => waiting = Some(because),
        }
    } else if share::is_settled(&now) {
        let (action, because) = match &policy.schedule {
            Some(schedule) => schedule::decide(policy, schedule, &now, history.at),
            None => memory::decide(policy, &now),
        };
        match action {
            Some(action) => steps.push((action, because)),
            None => waiting = Some(because),
        }
    }
    let mut next = history.after(sample);
    for (action, _) in &steps {
        next.note(action);
    }
    let share = share::share(&next);
    if share != next.done.share {
        let limit = |rate: Option<Rate>| rate.map_or("no limit".to_owned(), |rate| rate.to_string());
        let mirrors: Vec<String> =
            share.mirrors.iter().map(|(disk, rate)| format!("{disk}: {}", limit(*rate))).collect();
        let because = format!("RAM may have {}, mirrors {}", limit(share.memory), mirrors.join(", "));
        steps.push((Action::Share(share), because));
    }
    if let Some(last) = steps.iter().position(|(action, _)| matches!(action, Action::GiveUp { .. })) {
        steps.drain(..last);
        steps.truncate(1);
    }
    let mut told: Vec<String> =
        steps.iter().map(|(_, because)| because.clone()).filter(|text| !text.is_empty()).collect();
    if told.is_empty() {
        told.extend(waiting);
    }
    Decision { actions: steps.into_iter().map(|(action, _)| action).collect(), because: told.join("; ") }
}

/// Milliseconds of blackout if the guest were stopped now; None before RAM was measured.
pub fn predicted_blackout(policy: &Policy, history: &History) -> Option<f64> {
    let memory = history.memory.estimate()?;
    Some(memory.fresh / memory::tail_rate(history) * 1000.0 + memory::overhead(policy, history))
}

/// Whether the guest may be handed over, once it stands still: `stood` milliseconds so far, `remaining` bytes yet to be
/// sent.
///
/// # Errors
/// It would exceed the budget by more than the policy's slack; how many milliseconds are foreseen.
pub fn may_hand_over(policy: &Policy, history: &History, stood: f64, remaining: u64) -> Result<f64, f64> {
    // before anything was measured only QEMU knows: it reckons with its limit
    let limit = history.done.downtime.unwrap_or(history.task.budget);
    let rest = history
        .memory
        .estimate()
        .map_or(disks::millis(limit), |_| remaining as f64 / memory::tail_rate(history) * 1000.0);
    let trips = history.round_trip.get().unwrap_or_default() * 2.0;
    let foreseen = stood + rest + disks::millis(policy.device_state) + trips;
    let allowed = disks::millis(history.task.budget) * (1.0 + policy.slack);
    if policy.observe || foreseen <= allowed.max(disks::millis(policy.stop_and_copy)) {
        Ok(foreseen)
    } else {
        Err(foreseen)
    }
}

/// Whether to send RAM from now on.
fn start(policy: &Policy, now: &History) -> (bool, String) {
    let unready: Vec<_> =
        now.disks.iter().map(|(name, track)| (name, track.estimate())).filter(|(_, disk)| !disk.ready).collect();
    if unready.is_empty() {
        let settled = share::is_settled(now);
        let because =
            if settled { "every mirror is ready: RAM is sent" } else { "the mirrors are to be in step with the guest" };
        return (settled, because.to_owned());
    }
    let copied: f64 = unready.iter().map(|(_, disk)| disk.rate).sum();
    let left: f64 = unready.iter().map(|(_, disk)| disk.remaining).sum();
    let waiting = format!("the mirrors copy {}, {} remain", Rate(copied as u64), Bytes(left as u64));
    if !policy.overlap || !now.task.can.overlap || copied <= 0.0 {
        return (false, waiting);
    }
    let longest = unready.iter().map(|(_, disk)| disk.time_to_ready());
    let Some(longest) = longest.collect::<Option<Vec<_>>>().map(|times| times.into_iter().fold(0.0, f64::max)) else {
        return (false, format!("{waiting}: RAM waits, for one of them does not catch up"));
    };
    let room = now.task.ceiling.map_or(copied, |ceiling| ceiling.0 as f64 - copied);
    if now.task.ceiling.is_some_and(|ceiling| room < ceiling.0 as f64 * ROOM) {
        return (false, format!("{waiting}: they leave no room for RAM"));
    }
    if now.task.dirty_rate.is_some_and(|dirtied| dirtied > room) {
        return (
            false,
            format!("{waiting}: RAM waits, for the guest would dirty it faster than it can be sent beside them"),
        );
    }
    let memory = now.task.memory as f64 / room * 1000.0;
    if longest > memory * AHEAD {
        return (
            false,
            format!("{waiting}, for {:.0} s: RAM waits, it needs {:.0} s", longest / 1000.0, memory / 1000.0),
        );
    }
    let because =
        format!("{waiting}, for {:.1} s: RAM is sent beside them, in about {:.1} s", longest / 1000.0, memory / 1000.0);
    (true, because)
}

fn give_up_in_time(policy: &Policy, now: &History, timeout: Duration) -> Decision {
    let needed = match now.memory.estimate() {
        Some(estimate) if share::is_settled(now) => memory::remedy(policy, now, &estimate),
        _ => {
            let left: f64 = now.disks.values().map(|track| track.estimate().remaining).sum();
            format!("{} of disks were still to be copied", Bytes(left as u64))
        }
    };
    let because = format!("it has taken {:.1} s of {:.1} s", now.at / 1000.0, timeout.as_secs_f64());
    Decision { actions: vec![Action::GiveUp { code: "timeout", needed }], because }
}
