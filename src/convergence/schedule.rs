//! A published schedule: steps by time and passes, whatever RAM does.
//!
//! Pure. It is there to compare with.

use super::{
    decision::Action,
    disks::millis,
    history::History,
    memory::remedy,
    policy::{Policy, Schedule, Then},
};

const GIB: f64 = (1u64 << 30) as f64;

/// What the schedule has next, and why. `before` is when it was looked at last.
pub(super) fn decide(policy: &Policy, schedule: &Schedule, now: &History, before: f64) -> (Option<Action>, String) {
    let told = |text: &str| format!("{}: {text}", policy.name);
    let give_up = |because: String| {
        let needed = now.memory.estimate().map_or_else(String::new, |memory| remedy(policy, now, &memory));
        (Some(Action::GiveUp { code: "ram-not-converging", needed }), because)
    };
    let gib = gib(schedule, now);
    let end = millis(schedule.give_up_per_gib) * gib;
    if end > 0.0 && now.at >= end {
        return give_up(told(&format!("its {:.0} s for {gib:.1} GiB are over", end / 1000.0)));
    }
    let poll = millis(schedule.poll);
    if (now.at / poll).floor() <= (before / poll).floor() {
        return (None, told("it is not yet to be looked at"));
    }
    let Some(step) = schedule.steps.get(now.done.steps) else { return (None, told("its steps are all taken")) };
    let syncs = now.memory.last().map_or(0, |last| last.syncs);
    // the first count begins the first pass
    let passes = syncs.saturating_sub(1);
    let due = passes >= step.passes
        && now.at >= millis(step.after).max(millis(step.after_per_gib) * gib)
        && (now.done.steps == 0 || now.at >= now.done.stepped.0 + millis(schedule.cooldown))
        && (!schedule.at_new_pass || syncs > now.done.stepped.1);
    if !due {
        return (None, told(&format!("step {} is not due after {passes} passes", now.done.steps + 1)));
    }
    let because = told(&format!("step {} is due, after {passes} passes", now.done.steps + 1));
    match step.then {
        Then::Downtime(limit) => (Some(Action::DowntimeLimit(limit.min(now.task.budget))), because),
        Then::Postcopy => (Some(Action::Postcopy), because),
        Then::GiveUp => give_up(because),
    }
}

/// GiB of RAM and disks, each of them at least what the schedule reckons with.
fn gib(schedule: &Schedule, now: &History) -> f64 {
    let counted = |bytes: u64| (bytes as f64 / GIB).max(schedule.least_gib as f64);
    counted(now.task.memory) + now.task.disks.iter().map(|disk| counted(*disk)).sum::<f64>()
}
