//! The ladder for RAM: what is done when it does not converge, the mildest first.
//!
//! Pure.

use super::{
    decision::Action,
    disks::millis,
    estimate::Memory,
    history::History,
    policy::{Policy, RamRung},
};
use crate::quantity::{Bytes, Rate};
use std::time::Duration;

/// Round trips of the engine while the guest stands still: the mirrors' end, the exports' end, `migrate-continue`, `cont`.
const ROUND_TRIPS: f64 = 4.0;
/// How long RAM must have been foreseen not to converge in time, milliseconds: less may be a burst.
const CONFIRMED: f64 = 1000.0;
/// Milliseconds after which a throttle that QEMU does not show has come to nothing.
const UNSEEN: f64 = 10_000.0;
/// A guest that dirties less than this, as a part of what is sent, is not what RAM has to wait for.
const LIGHT: f64 = 0.3;
/// By how much a limit is set above what it must let pass: two counts are never the same.
const MARGIN: f64 = 1.1;
/// What RAM must get of its share of a ceiling for the ceiling to be what holds it.
const REACHED: f64 = 0.8;
/// A limit that is raised by less would not show.
const NOTABLE: f64 = 1.05;
/// From this load on everything that was sent is found dirty again, and what the guest really dirties is not seen; it is
/// taken to be at least the second.
const SATURATED: f64 = 0.95;
const BEYOND: f64 = 1.5;
/// The steps of the throttle, per cent.
const STEP: u8 = 10;

/// Milliseconds of the blackout that are not RAM.
pub(super) fn overhead(policy: &Policy, now: &History) -> f64 {
    let round_trips = ROUND_TRIPS * now.round_trip.get().unwrap_or_default();
    let settle = now.disks.values().map(|track| {
        let disk = track.estimate();
        let behind = match disk.ready && !disk.synced && disk.rate > 0.0 {
            true => disk.remaining / disk.rate * 1000.0,
            false => 0.0,
        };
        // the flush that ends a mirror takes about what a write takes
        behind + disk.latency_since.or(disk.latency_before).unwrap_or_default()
    });
    millis(policy.device_state) + round_trips + settle.fold(0.0, f64::max)
}

/// Bytes per second that the rest of RAM is sent at with the guest stopped.
pub(super) fn tail_rate(now: &History) -> f64 {
    let share = now.done.share.memory.map_or(0.0, |rate| rate.0 as f64);
    // a ceiling that is not reached is not what the link carries
    let is_reached = now.task.link.is_some() || now.memory.carried().is_none_or(|carried| carried > share * REACHED);
    let measured = now.memory.carried().unwrap_or(now.memory.fastest());
    told(now).filter(|_| is_reached).unwrap_or(measured).max(1.0)
}

/// What is given of the link, or else the ceiling.
fn told(now: &History) -> Option<f64> {
    now.task.link.or(now.task.ceiling).map(|rate| rate.0 as f64)
}

/// The part of a downtime limit that QEMU is to be told for what RAM's tail may take: where it was told of more bandwidth
/// than there is, it would stop the guest for longer.
fn part(now: &History, tail: f64) -> f64 {
    told(now).filter(|_| now.task.can.switchover_bandwidth).map_or(1.0, |told| (tail / told.max(1.0)).min(1.0))
}

/// The most that RAM's tail may take, milliseconds, so that the whole stays within the budget.
fn allowed(policy: &Policy, now: &History) -> f64 {
    (millis(now.task.budget) - overhead(policy, now)).max(1.0)
}

/// The downtime limit to begin with: an idle guest must not pay for a generous budget.
pub(super) fn first_limit(policy: &Policy, now: &History) -> Duration {
    let first = policy.first_limit(now.task.budget);
    match policy.observe || policy.schedule.is_some() {
        true => first,
        false => first.min(Duration::from_secs_f64(allowed(policy, now) / 1000.0)),
    }
}

/// What is to be done for RAM, and why.
pub(super) fn decide(policy: &Policy, now: &History) -> (Option<Action>, String) {
    let Some(memory) = now.memory.estimate() else { return wait("RAM has just been started".to_owned()) };
    let sent = now.memory.last().map_or(0, |last| last.processed);
    let (Some(load), true) = (memory.load(), memory.first_pass_over) else {
        return wait(format!("RAM's first pass: {} of {}", Bytes(sent), Bytes(now.task.memory)));
    };
    let still = stands_still(policy, now, &memory);
    let load = if still { load.max(1.0) } else { load };
    let tail = tail_rate(now);
    let part = part(now, tail);
    let downtime = |millis: f64| Action::DowntimeLimit(Duration::from_secs_f64(millis * part / 1000.0));
    // what it comes to
    let limit = now.done.downtime.map_or(millis(policy.first), millis) / part;
    let rest = tail * limit / 1000.0;
    let patience = patience(policy, now);
    let busy = millis(policy.busy).min(allowed(policy, now));
    if policy.ram.contains(&RamRung::Downtime) && load > LIGHT && busy > limit * NOTABLE {
        let because =
            format!("{}: RAM's tail may take {busy:.0} ms of a guest that is busy", numbers(&memory, load, limit));
        return (Some(downtime(busy)), because);
    }
    if let Some(time) = memory.time_to(rest, load).filter(|time| !still && (*time <= patience || load <= LIGHT)) {
        return wait(format!("RAM is about to fit: {}, in {time:.0} ms", numbers(&memory, load, limit)));
    }
    if !has_settled(now) {
        return wait(format!("the throttle of {} % is still to show", now.done.throttle));
    }
    if !is_confirmed(policy, now, &memory, rest, patience) {
        return wait(format!("RAM may not fit in time, which is yet to be seen: {}", numbers(&memory, load, limit)));
    }
    let lowest = now.memory.recent().map(|(_, memory)| memory.fresh).fold(memory.fresh, f64::min);
    let needed = lowest / tail * 1000.0 * MARGIN;
    let numbers = numbers(&memory, load, limit);
    let raise = || {
        let foreseen = needed + overhead(policy, now);
        let because = format!(
            "{numbers}: it would take {needed:.0} ms at its lowest ({}), {foreseen:.0} ms of blackout in all of a budget of {} ms",
            Bytes(lowest as u64),
            now.task.budget.as_millis()
        );
        (Some(downtime(needed)), because)
    };
    let fits = needed > limit * NOTABLE && needed <= allowed(policy, now);
    for rung in &policy.ram {
        match rung {
            RamRung::Downtime if fits && is_worth_it(policy, now, load, needed - limit) => return raise(),
            RamRung::Throttle if now.task.can.throttle && now.done.throttle < policy.throttle_max => {
                let (percent, time) = throttle(policy, now, &memory, rest);
                let because = match time {
                    Some(time) => format!("{numbers}: throttled by {percent} % it would fit in {:.1} s", time / 1000.0),
                    None => format!("{numbers}: it is throttled by {percent} %"),
                };
                return (Some(Action::Throttle(percent)), because);
            }
            RamRung::Postcopy if now.task.can.postcopy => {
                return (Some(Action::Postcopy), format!("{numbers}: the guest goes on at the destination"));
            }
            RamRung::StopAndCopy if needed > limit * NOTABLE => {
                let foreseen = needed + overhead(policy, now);
                if foreseen <= millis(policy.stop_and_copy) {
                    let because = format!("{numbers}: it is stopped for {foreseen:.0} ms, as the policy allows");
                    return (Some(downtime(needed)), because);
                }
            }
            _ => {}
        }
    }
    if policy.ram.contains(&RamRung::Downtime) && fits && load >= 1.0 {
        return raise();
    }
    let since = now.at - memory.best_at.max(now.done.changed);
    if since > millis(policy.give_up) && memory.worse > 0 {
        let because = format!("{numbers}, and nothing has improved for {:.0} s", since / 1000.0);
        return (Some(Action::GiveUp { code: "ram-not-converging", needed: remedy(policy, now, &memory) }), because);
    }
    wait(format!("{numbers}: nothing more is to be done but to wait"))
}

/// What would have let RAM converge.
pub(super) fn remedy(policy: &Policy, now: &History, memory: &Memory) -> String {
    let lowest = now.memory.recent().map(|(_, memory)| memory.fresh).fold(memory.fresh, f64::min);
    let budget = lowest / tail_rate(now) * 1000.0 * MARGIN + overhead(policy, now);
    // so that the rest is through within the patience, dirtying and all
    let bandwidth = memory.dirty_rate + memory.fresh / (patience(policy, now) / 1000.0);
    format!(
        "a bandwidth of {} (it was {}) or a blackout budget of {:.0} ms (it was {} ms) would have done",
        Rate(bandwidth as u64),
        Rate(memory.bandwidth as u64),
        budget.ceil(),
        now.task.budget.as_millis()
    )
}

/// The smallest throttle that leaves a light load, or else the largest, and the time until RAM fits then. A short throttle
/// that does is better than several that do not: QEMU takes a second or more for each.
fn throttle(policy: &Policy, now: &History, memory: &Memory, rest: f64) -> (u8, Option<f64>) {
    let runs = |percent: u8| 1.0 - f64::from(percent) / 100.0;
    let load = memory.load().unwrap_or(1.0);
    // a guest that keeps up with what is sent may dirty much more than is found
    let found = if load > SATURATED { load.max(BEYOND) } else { load };
    // without any throttle
    let whole = found / runs(now.done.throttle.min(99));
    // where the last one did not do, what the guest still runs is halved at least
    let least = if now.done.throttle > 0 { (100 - now.done.throttle) / 2 } else { STEP };
    let mut percent = now.done.throttle.saturating_add(least).div_ceil(STEP) * STEP;
    while percent < policy.throttle_max && whole * runs(percent) > LIGHT {
        percent += STEP;
    }
    let percent = percent.min(policy.throttle_max);
    (percent, memory.time_to(rest, whole * runs(percent)))
}

fn patience(policy: &Policy, now: &History) -> f64 {
    let so_far = now.at - now.memory.began().unwrap_or(now.at);
    millis(policy.patience).max(so_far * policy.patience_share)
}

/// Whether the last throttle shows, or has had its time to.
fn has_settled(now: &History) -> bool {
    let shown = now.memory.last().is_some_and(|last| last.throttle_pct >= u64::from(now.done.throttle));
    shown || now.at - now.done.changed > UNSEEN
}

/// Whether what remains has been no less for a while, whatever the rates say.
fn stands_still(policy: &Policy, now: &History, memory: &Memory) -> bool {
    memory.worse >= 2 && now.at - memory.best_at.max(now.done.changed) > patience(policy, now)
}

/// Whether a blackout that is longer by so many milliseconds is worth what it saves: where RAM converges slowly, the time
/// to do so; where it can be throttled, the time that takes.
fn is_worth_it(policy: &Policy, now: &History, load: f64, longer: f64) -> bool {
    let otherwise = match policy.ram.contains(&RamRung::Throttle) && now.task.can.throttle {
        true => millis(policy.patience),
        false => f64::MAX,
    };
    let waited = if load < 1.0 { longer / (1.0 - load) } else { f64::MAX };
    waited.min(otherwise) >= longer * policy.worth
}

/// Whether RAM has been foreseen not to fit in time again and again, for long enough.
fn is_confirmed(policy: &Policy, now: &History, memory: &Memory, rest: f64, patience: f64) -> bool {
    let doubtful = |memory: &Memory| {
        let time = memory.load().and_then(|load| memory.time_to(rest, load));
        memory.first_pass_over && time.is_none_or(|time| time > patience) && memory.load() > Some(LIGHT)
    };
    if stands_still(policy, now, memory) {
        return true;
    }
    let streak: Vec<f64> =
        now.memory.recent().rev().take_while(|(_, memory)| doubtful(memory)).map(|(since, _)| *since).collect();
    streak.last().is_some_and(|first| now.at - first >= CONFIRMED)
}

fn numbers(memory: &Memory, load: f64, limit: f64) -> String {
    format!(
        "{} remain, {} are dirtied against {} sent ({:.0} %), the downtime limit is {limit:.0} ms",
        Bytes(memory.fresh as u64),
        Rate(memory.dirty_rate as u64),
        Rate(memory.bandwidth as u64),
        load * 100.0
    )
}

fn wait(because: String) -> (Option<Action>, String) {
    (None, because)
}
