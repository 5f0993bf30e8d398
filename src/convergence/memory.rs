//! The ladder for RAM: what is done when it does not converge, the mildest first.
//!
//! Pure.

use super::{
    bandwidth::HELD,
    decision::Action,
    estimate::MemoryEstimate,
    history::History,
    millis,
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
        let behind = if disk.ready { disk.behind() } else { 0.0 };
        // the flush that ends a mirror takes about what a write takes
        behind + disk.latency_since.or(disk.latency_before).unwrap_or_default()
    });
    let buffered = match now.memory.estimate() {
        // below a ceiling the link keeps up, and nothing is held back
        Some(_) if now.job.ceiling.is_none() => now.job.buffered as f64 / tail_rate(now) * 1000.0,
        _ => 0.0,
    };
    millis(policy.device_state) + round_trips + settle.fold(0.0, f64::max) + buffered
}

/// Bytes per second that the rest of RAM is sent at with the guest stopped.
pub(super) fn tail_rate(now: &History) -> f64 {
    let share = now.applied.share.memory.map_or(0.0, |rate| rate.0 as f64);
    // a ceiling that is not reached is not what the link carries
    let is_reached = now.memory.carried().is_none_or(|carried| carried > share * REACHED);
    // while it is held back, or right after, the wire carries what it is let
    let held = now.applied.held || now.applied.share.memory == Some(HELD);
    let measured = now.memory.carried().filter(|_| !held).unwrap_or(now.memory.fastest());
    told(now).filter(|_| is_reached).unwrap_or(measured).max(1.0)
}

/// The ceiling, which is what QEMU is told to reckon with.
fn told(now: &History) -> Option<f64> {
    now.job.ceiling.map(|rate| rate.0 as f64)
}

/// The part of a downtime limit that QEMU is to be told for what RAM's tail may take: where it was told of more bandwidth
/// than there is, it would stop the guest for longer.
fn part(now: &History, tail: f64) -> f64 {
    told(now).filter(|_| now.job.abilities.switchover_bandwidth).map_or(1.0, |told| (tail / told.max(1.0)).min(1.0))
}

/// The most that RAM's tail may take, milliseconds, so that the whole stays within the budget.
fn allowed(policy: &Policy, now: &History) -> f64 {
    (millis(now.job.budget) - overhead(policy, now)).max(1.0)
}

/// The downtime limit to begin with: an idle guest must not pay for a generous budget.
pub(super) fn first_limit(policy: &Policy, now: &History) -> Duration {
    let first = policy.first_limit(now.job.budget);
    match policy.observe || policy.schedule.is_some() {
        true => first,
        false => first.min(Duration::from_secs_f64(allowed(policy, now) / 1000.0)),
    }
}

/// What is to be done for RAM, and why.
pub(super) fn decide(policy: &Policy, now: &History) -> (Option<Action>, String) {
    let still = now.at - now.memory.moved();
    if now.memory.last().is_some() && still > millis(policy.give_up) {
        let needed = "a destination that takes what it is sent, or a link that carries it".to_owned();
        let because = format!("nothing of RAM has been sent for {:.0} s", still / 1000.0);
        return (Some(Action::GiveUp { code: "ram-stalled", needed }), because);
    }
    let Some(memory) = now.memory.estimate() else { return wait("RAM has just been started".to_owned()) };
    let sent = now.memory.last().map_or(0, |last| last.processed);
    let (Some(load), true) = (memory.load(), memory.first_pass_over) else {
        return wait(format!("RAM's first pass: {} of {}", Bytes(sent), Bytes(now.job.memory)));
    };
    let still = stands_still(policy, now, &memory);
    let load = if still { load.max(1.0) } else { load };
    let tail = tail_rate(now);
    let part = part(now, tail);
    let downtime = |millis: f64| Action::DowntimeLimit(Duration::from_secs_f64(millis * part / 1000.0));
    // what it comes to
    let limit = now.applied.downtime.map_or(millis(policy.first), millis) / part;
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
        return wait(format!("the throttle of {} % is still to show", now.applied.throttle));
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
            now.job.budget.as_millis()
        );
        (Some(downtime(needed)), because)
    };
    let fits = needed > limit * NOTABLE && needed <= allowed(policy, now);
    for rung in &policy.ram {
        match rung {
            RamRung::Downtime if fits && is_worth_it(policy, now, load, needed - limit) => return raise(),
            RamRung::Throttle if now.job.abilities.throttle && now.applied.throttle < policy.throttle_max => {
                let (percent, time) = throttle(policy, now, &memory, rest);
                let because = match time {
                    Some(time) => format!("{numbers}: throttled by {percent} % it would fit in {:.1} s", time / 1000.0),
                    None => format!("{numbers}: it is throttled by {percent} %"),
                };
                return (Some(Action::Throttle(percent)), because);
            }
            RamRung::Postcopy if now.job.abilities.postcopy => {
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
    let since = now.at - memory.best_at.max(now.applied.changed);
    if since > millis(policy.give_up) && memory.worse > 0 {
        let because = format!("{numbers}, and nothing has improved for {:.0} s", since / 1000.0);
        return (Some(Action::GiveUp { code: "ram-not-converging", needed: remedy(policy, now, &memory) }), because);
    }
    wait(format!("{numbers}: nothing more is to be done but to wait"))
}

/// What would have let RAM converge.
pub(super) fn remedy(policy: &Policy, now: &History, memory: &MemoryEstimate) -> String {
    let lowest = now.memory.recent().map(|(_, memory)| memory.fresh).fold(memory.fresh, f64::min);
    let budget = lowest / tail_rate(now) * 1000.0 * MARGIN + overhead(policy, now);
    // so that the rest is through within the patience, dirtying and all
    let bandwidth = memory.dirty_rate + memory.fresh / (patience(policy, now) / 1000.0);
    format!(
        "a bandwidth of {} (it was {}) or a blackout budget of {:.0} ms (it was {} ms) would have done",
        Rate(bandwidth as u64),
        Rate(memory.bandwidth as u64),
        budget.ceil(),
        now.job.budget.as_millis()
    )
}

/// The smallest throttle that leaves a light load, or else the largest, and the time until RAM fits then. A short throttle
/// that does is better than several that do not: QEMU takes a second or more for each.
fn throttle(policy: &Policy, now: &History, memory: &MemoryEstimate, rest: f64) -> (u8, Option<f64>) {
    let runs = |percent: u8| 1.0 - f64::from(percent) / 100.0;
    let load = memory.load().unwrap_or(1.0);
    // a guest that keeps up with what is sent may dirty much more than is found
    let found = if load > SATURATED { load.max(BEYOND) } else { load };
    // without any throttle
    let whole = found / runs(now.applied.throttle.min(99));
    // where the last one did not do, what the guest still runs is halved at least
    let least = if now.applied.throttle > 0 { (100 - now.applied.throttle) / 2 } else { STEP };
    let mut percent = now.applied.throttle.saturating_add(least).div_ceil(STEP) * STEP;
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
    let shown = now.memory.last().is_some_and(|last| last.throttle_pct >= u64::from(now.applied.throttle));
    shown || now.at - now.applied.changed > UNSEEN
}

/// Whether what remains has been no less for a while, whatever the rates say.
fn stands_still(policy: &Policy, now: &History, memory: &MemoryEstimate) -> bool {
    memory.worse >= 2 && now.at - memory.best_at.max(now.applied.changed) > patience(policy, now)
}

/// Whether a blackout that is longer by so many milliseconds is worth what it saves: where RAM converges slowly, the time
/// to do so; where it can be throttled, the time that takes.
fn is_worth_it(policy: &Policy, now: &History, load: f64, longer: f64) -> bool {
    let otherwise = match policy.ram.contains(&RamRung::Throttle) && now.job.abilities.throttle {
        true => millis(policy.patience),
        false => f64::MAX,
    };
    let waited = if load < 1.0 { longer / (1.0 - load) } else { f64::MAX };
    waited.min(otherwise) >= longer * policy.worth
}

/// Whether RAM has been foreseen not to fit in time again and again, for long enough.
fn is_confirmed(policy: &Policy, now: &History, memory: &MemoryEstimate, rest: f64, patience: f64) -> bool {
    let doubtful = |memory: &MemoryEstimate| {
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

fn numbers(memory: &MemoryEstimate, load: f64, limit: f64) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::{
        ConvergenceJob, Decision,
        fixture::{ControllerRun, GuestRam, give_up, job, limit, mib, policy, throttle},
        may_hand_over, predicted_blackout,
    };

    /// Looks at RAM until something is done that `wanted` is looking for; what came before must not be done.
    fn until(
        run: &mut ControllerRun,
        ram: &mut GuestRam,
        most: u64,
        wanted: fn(&Decision) -> bool,
    ) -> Option<Decision> {
        (0..most / 100).find_map(|_| {
            let decision = run.look(100, Some(ram.after(100)), &[]);
            if let Some(percent) = throttle(&decision) {
                ram.throttle = u64::from(percent);
            }
            wanted(&decision).then_some(decision)
        })
    }

    fn started(policy: &str, job: ConvergenceJob) -> ControllerRun {
        let mut run = ControllerRun::new(&policy.parse().expect("a policy"), job, &[]);
        let decision = run.look(0, None, &[]);
        assert!(decision.actions.contains(&Action::StartMemory), "{decision:?}");
        run
    }

    fn built_in(name: &str) -> &'static str {
        Policy::built_in(name).expect(name)
    }

    #[test]
    fn it_waits_while_it_improves() {
        for continuous in [false, true] {
            let (mut run, mut ram) = (started(built_in("converge"), job()), GuestRam::new(20.0, 400.0, continuous));
            let acted = until(&mut run, &mut ram, 6000, |decision| !decision.actions.is_empty());
            assert_eq!(acted, None, "a light load needs nothing");
        }
    }

    #[test]
    fn a_busy_guest_may_take_a_little_longer_and_no_more_than_the_budget() {
        for (budget, most) in [(300, 40), (30, 24)] {
            let given = ConvergenceJob { budget: Duration::from_millis(budget), ..job() };
            let (mut run, mut ram) = (started(built_in("converge"), given), GuestRam::new(60.0, 300.0, false));
            let decision = until(&mut run, &mut ram, 20_000, |decision| limit(decision).is_some()).expect("a limit");
            let limit = limit(&decision).expect("a limit");
            assert!(limit <= Duration::from_millis(most) && limit >= Duration::from_millis(most - 3), "{decision:?}");
        }
    }

    #[test]
    fn a_throttle_is_as_strong_as_needed_and_comes_early() {
        for continuous in [false, true] {
            for (dirtied, least, most) in [(85.0, 30, 80), (200.0, 30, 90)] {
                let (mut run, mut ram) =
                    (started(built_in("converge"), job()), GuestRam::new(dirtied, 200.0, continuous));
                let decision = until(&mut run, &mut ram, 20_000, |decision| throttle(decision).is_some());
                let percent = decision.as_ref().and_then(throttle).expect("a throttle");
                assert!((least..=most).contains(&percent), "{continuous}: {decision:?}");
                // the first pass takes five seconds
                assert!(run.at() < 14_000.0, "{continuous}: at {}", run.at());
                assert!(decision.is_some_and(|decision| decision.because.contains("are dirtied against")));
                // once it shows, it either does or the next one is stronger
                let next = until(&mut run, &mut ram, 4000, |decision| throttle(decision).is_some());
                assert!(next.as_ref().and_then(throttle).is_none_or(|next| next > percent), "{next:?}");
            }
        }
    }

    #[test]
    fn nothing_more_is_done_before_a_throttle_shows() {
        let (mut run, mut ram) = (started(built_in("converge"), job()), GuestRam::new(200.0, 200.0, false));
        until(&mut run, &mut ram, 20_000, |decision| throttle(decision).is_some()).expect("a throttle");
        let at = run.at();
        ram.throttle = 0;
        let next = until(&mut run, &mut ram, 20_000, |decision| !decision.actions.is_empty()).expect("something");
        assert!(run.at() - at > UNSEEN, "{next:?} after {}", run.at() - at);
    }

    #[test]
    fn a_local_minimum_is_let_pass_within_the_budget() {
        // 20 MiB are rewritten much faster than they can be sent: 200 ms
        let text = "ram = ['downtime']\ngive-up = '10s'";
        let (mut run, mut ram) = (started(text, job()), GuestRam::new(500.0, 20.0, false));
        let raised = |decision: &Decision| limit(decision).is_some_and(|limit| limit > Duration::from_millis(50));
        let decision = until(&mut run, &mut ram, 30_000, raised).expect("a limit");
        let limit = limit(&decision).map(|limit| limit.as_secs_f64() * 1000.0).expect("a limit");
        assert!((200.0..=240.0).contains(&limit), "{decision:?}");
        assert!(decision.because.contains("at its lowest") && decision.because.contains("300 ms"), "{decision:?}");
        // and not beyond it
        let given = ConvergenceJob { budget: Duration::from_millis(150), ..job() };
        let (mut run, mut ram) = (started(text, given), GuestRam::new(500.0, 20.0, false));
        let decision = until(&mut run, &mut ram, 60_000, |decision| give_up(decision).is_some()).expect("an end");
        let (code, needed) = give_up(&decision).expect("given up");
        assert_eq!(code, "ram-not-converging");
        // what it says is enough: 20 MiB at 100 MiB/s, with the margin and the rest of the blackout
        let budget: f64 = needed
            .split("budget of ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .and_then(|ms| ms.parse().ok())
            .expect("a budget");
        assert!((200.0..260.0).contains(&budget), "{needed}");
        assert!(needed.contains("a bandwidth of") && needed.contains("it was 150 ms"), "{needed}");
        let given = ConvergenceJob { budget: Duration::from_millis(budget as u64), ..job() };
        let (mut run, mut ram) = (started(text, given), GuestRam::new(500.0, 20.0, false));
        assert!(until(&mut run, &mut ram, 30_000, raised).is_some(), "{needed}");
    }

    #[test]
    fn after_the_last_throttle_it_is_given_up() {
        // it dirties as much as before, whatever QEMU says
        let (mut run, mut ram) = (started(built_in("converge"), job()), GuestRam::new(1e5, 400.0, false));
        let mut percents = Vec::new();
        let end = (0..3000).find_map(|_| {
            let decision = run.look(100, Some(ram.after(100)), &[]);
            percents.extend(throttle(&decision));
            ram.throttle = percents.last().copied().unwrap_or_default().into();
            give_up(&decision).map(|(code, needed)| (code.to_owned(), needed.to_owned()))
        });
        let (code, needed) = end.expect("an end");
        assert!(code == "ram-not-converging" && needed.contains("a blackout budget of"), "{code}: {needed}");
        assert!(percents.is_sorted() && percents.last() == Some(&99) && percents.len() < 6, "{percents:?}");
    }

    #[test]
    fn postcopy_is_started_where_it_does_not_fit() {
        let (mut run, mut ram) = (started(built_in("postcopy"), job()), GuestRam::new(200.0, 300.0, false));
        let wanted = |decision: &Decision| decision.actions.contains(&Action::Postcopy);
        assert!(until(&mut run, &mut ram, 20_000, wanted).is_some());
        assert_eq!(until(&mut run, &mut ram, 5000, |decision| !decision.actions.is_empty()), None);
    }

    #[test]
    fn a_stop_and_copy_is_as_long_as_the_policy_allows() {
        let text = |longest: &str| format!("give-up = '5s'\nram = ['stop-and-copy']\nstop-and-copy = '{longest}'");
        let (mut run, mut ram) = (started(&text("3s"), job()), GuestRam::new(500.0, 200.0, false));
        let decision = until(&mut run, &mut ram, 30_000, |decision| limit(decision).is_some()).expect("a limit");
        assert!(limit(&decision).is_some_and(|limit| limit > Duration::from_secs(2)), "{decision:?}");
        assert!(may_hand_over(&run.policy, &run.history, 100.0, mib(200).0).is_ok());
        assert!(may_hand_over(&run.policy, &run.history, 100.0, mib(400).0).is_err());
        let (mut run, mut ram) = (started(&text("1s"), job()), GuestRam::new(500.0, 200.0, false));
        let decision = until(&mut run, &mut ram, 30_000, |decision| !decision.actions.is_empty()).expect("an end");
        assert!(give_up(&decision).is_some(), "{decision:?}");
    }

    #[test]
    fn a_ceiling_that_is_not_reached_is_not_what_the_link_carries() {
        for (ceiling, remaining, expected) in [(Some(110), 20, 200.0), (Some(1000), 20, 200.0), (None, 20, 200.0)] {
            let given = ConvergenceJob { ceiling: ceiling.map(mib), ..job() };
            let (mut run, mut ram) = (started(built_in("converge"), given), GuestRam::new(0.0, 1.0, false));
            until(&mut run, &mut ram, 2000, |_| false);
            let foreseen = may_hand_over(&run.policy, &run.history, 0.0, mib(remaining).0).expect("within 360 ms");
            assert!((expected * 0.85..expected + 20.0).contains(&foreseen), "{ceiling:?}: {foreseen}");
            assert!(may_hand_over(&run.policy, &run.history, 0.0, mib(60).0).is_err(), "{ceiling:?}");
            assert!(predicted_blackout(&run.policy, &run.history).is_some());
        }
        // QEMU stops the guest by the bandwidth that it was told
        let given = ConvergenceJob { ceiling: Some(mib(1000)), ..job() };
        let (mut run, mut ram) = (started(built_in("converge"), given), GuestRam::new(60.0, 300.0, false));
        let decision = until(&mut run, &mut ram, 20_000, |decision| limit(decision).is_some());
        // its first limit of 10 ms is 100 ms of what there is
        assert_eq!(decision, None);
    }

    #[test]
    fn what_it_would_have_needed_is_said_also_without_a_throttle() {
        let mut given = job();
        given.abilities.throttle = false;
        let mut run = ControllerRun::new(&policy("converge"), given, &[]);
        run.look(0, None, &[]);
        let mut ram = GuestRam::new(200.0, 200.0, true);
        let decision = until(&mut run, &mut ram, 90_000, |decision| give_up(decision).is_some()).expect("an end");
        assert!(decision.because.contains("nothing has improved for 30 s"), "{decision:?}");
    }
}
