//! The ladder for RAM: the actions for RAM that does not converge, the mildest first.
//!
//! Pure.

use super::{
    decision::{Action, Decision},
    estimate::MemoryEstimate,
    history::{History, MemoryState},
    millis,
    policy::{Policy, RamRung},
    times,
};
use crate::quantity::{Bytes, Rate};
use std::{fmt, time::Duration};

/// Round trips of the engine while the guest stands still: the mirrors' end, the exports' end, `migrate-continue`,
/// `cont`.
const ROUND_TRIPS: f64 = 4.0;
/// The number of flushes of a disk between the guest's stop and the end of its mirror (measured on 7.2, 10.0 and 11.1).
const FLUSHES: f64 = 2.0;
/// The time for which RAM must have seemed not to converge: less may be a burst.
const CONFIRMED: Duration = Duration::from_secs(1);
/// The time after which a throttle that QEMU does not show has come to nothing, and the syncs that must have passed as
/// well: QEMU throttles at a sync, and at the second one where it has just done so.
const UNSEEN: Duration = Duration::from_secs(10);
const UNSEEN_SYNCS: u64 = 2;
/// The time before the end of RAM's first pass from which a throttle is armed. The guest may do something else until a
/// later end.
const AHEAD: Duration = Duration::from_secs(30);
/// The same where QEMU syncs within passes: QEMU then throttles within a second or two, and a first pass needs no
/// throttle.
const AT_ONCE: Duration = Duration::from_secs(2);
/// The time that a pass must still take for the guest's dirty rate to be measured beside it: the window, the reading of
/// the pages, and a look.
const MEASURES: Duration = Duration::from_secs(1);
/// The time before the end of the second pass in which a throttle is armed that may be needed: a few looks.
const SOON: Duration = Duration::from_millis(400);
/// The usual load from which a throttle may be needed. What the second pass leaves tells more, and QEMU throttles only
/// at its end.
const DOUBTFUL: f64 = 0.7;
/// Up to this load RAM converges within a pass or two, so the guest's dirtying is no reason to act.
pub(super) const LIGHT: f64 = 0.3;
/// The factor by which a limit is set above the count that it must let pass: two counts are never the same.
const MARGIN: f64 = 1.1;
/// The part of its share that RAM must get for the ceiling to be what slows it down.
const REACHED: f64 = 0.8;
/// A raise of the limit by a smaller factor would not show.
const NOTABLE: f64 = 1.05;
/// From this load on everything that was sent is found dirty again, which hides how much more the guest dirties.
const SATURATED: f64 = 0.95;
/// The least load that such a guest is taken to have.
const BEYOND: f64 = 1.5;
/// The steps of the throttle, per cent.
pub(super) const STEP: u8 = 10;

/// Milliseconds of the blackout that are not RAM.
pub(super) fn overhead(policy: &Policy, now: &History) -> f64 {
    let round_trips = ROUND_TRIPS * now.round_trip.get().unwrap_or_default();
    let mirrors = now.disks.values().map(|track| {
        let disk = track.estimate();
        let behind = if disk.ready { disk.behind() } else { 0.0 };
        let write = disk.latency_since.or(disk.latency_before).unwrap_or_default();
        // QEMU flushes the disk when it stops the guest, and once more when the mirror ends. A guest that has not
        // flushed leaves only its writes to go by.
        behind + disk.flush.map_or(write, |flush| flush * FLUSHES)
    });
    let buffered = match now.memory.estimate() {
        // below a ceiling the link keeps up, and nothing waits in the sender's buffers
        Some(_) if now.job.ceiling.is_none() => now.job.buffered as f64 / tail_rate(now) * 1000.0,
        _ => 0.0,
    };
    millis(policy.device_state) + round_trips + mirrors.fold(0.0, f64::max) + buffered
}

/// Bytes per second that the rest of RAM is sent at with the guest stopped.
pub(super) fn tail_rate(now: &History) -> f64 {
    let share = now.applied.shares.memory.rate().map_or(0.0, |rate| rate.0 as f64);
    // a ceiling that RAM does not reach is not the bandwidth of the link
    let is_reached = now.memory.carried().is_none_or(|carried| carried > share * REACHED);
    // a trickle is no measure of the link, and beside mirrors RAM does not have the wire to itself
    let is_held = now.applied.memory == MemoryState::Held || now.applied.shares.trickles();
    let measured = now.memory.carried().filter(|_| !is_held).unwrap_or(now.memory.fastest());
    ceiling(now).filter(|_| is_reached).unwrap_or(measured).max(1.0)
}

/// The ceiling, which QEMU is told as the bandwidth of the switchover.
fn ceiling(now: &History) -> Option<f64> {
    now.job.ceiling.map(|rate| rate.0 as f64)
}

/// The factor from the time that RAM's tail may take to the downtime limit that QEMU is told. QEMU that was told more
/// bandwidth than there is would otherwise stop the guest for longer.
fn limit_factor(now: &History, tail: f64) -> f64 {
    let told = ceiling(now).filter(|_| now.job.abilities.switchover_bandwidth);
    told.map_or(1.0, |told| (tail / told.max(1.0)).min(1.0))
}

/// The longest time that RAM's tail may take, milliseconds, so that the whole blackout stays within the budget.
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

/// Decides for RAM, once the guest's stop depends on RAM alone.
pub(super) fn decide(policy: &Policy, now: &History) -> Decision {
    let silent = now.since(now.memory.moved());
    if now.memory.last().is_some() && silent > policy.give_up {
        let needed = "a destination that reads from the link, or a link that carries more".to_owned();
        let because = format!("nothing of RAM has been sent for {:.0} s", silent.as_secs_f64());
        return Decision::give_up("ram-stalled", needed, because);
    }
    let Some(memory) = now.memory.estimate() else { return Decision::wait("RAM has just been started") };
    let sent = now.memory.last().map_or(0, |last| last.processed);
    if !memory.first_pass_over {
        let armed = now.memory.foreseen().and_then(|foreseen| arm(policy, now, foreseen));
        let first = format!("RAM's first pass: {} of {}", Bytes(sent), Bytes(now.job.memory));
        return armed.unwrap_or_else(|| Decision::wait(first));
    }
    let Some(load) = memory.load() else { return Decision::wait("nothing is known of RAM's pace yet") };
    let decision = MemoryOutlook::new(policy, now, memory, load).decide();
    let armed = if decision.actions.is_empty() { arm_in_doubt(policy, now, memory) } else { None };
    armed.unwrap_or(decision)
}

/// The throttle that RAM may need after its second pass, shortly before that pass ends. QEMU throttles at that sync for
/// the first time, and a throttle that is decided after the sync takes effect two passes later.
fn arm_in_doubt(policy: &Policy, now: &History, memory: MemoryEstimate) -> Option<Decision> {
    let load = now.memory.usual_load().filter(|load| *load >= DOUBTFUL && now.memory.is_provisional())?;
    let is_due = now.memory.left_of_pass().is_some_and(|left| left <= SOON);
    if !is_due || !may_arm(policy, now) {
        return None;
    }
    let outlook = MemoryOutlook::new(policy, now, memory, load);
    let is_soon = memory.time_to(outlook.rest, load).is_some_and(|time| time <= millis(outlook.patience));
    let percent = outlook.throttle();
    let because = format!(
        "QEMU has measured that the guest dirties {:.0} % of what is sent: the guest is throttled by {percent} %, which QEMU \
         is told before the second pass ends, since QEMU throttles only at the end of a pass",
        load * 100.0
    );
    (!is_soon).then(|| Decision::act(Action::Throttle(percent), because))
}

/// Whether a throttle may be armed for the end of a pass: it is the next rung, and none is set.
fn may_arm(policy: &Policy, now: &History) -> bool {
    // the downtime limit is raised once RAM's rest is known, and no rung after the throttle is climbed before that
    let is_next = policy.ram.iter().find(|rung| **rung != RamRung::Downtime) == Some(&RamRung::Throttle);
    is_next && now.job.abilities.throttle && now.applied.throttle == 0
}

/// The throttle that RAM is foreseen to need after its first pass, while that pass still runs. QEMU throttles only at a
/// sync that ends a pass, so a throttle that is decided after the sync leaves the whole next pass to the guest.
fn arm(policy: &Policy, now: &History, foreseen: MemoryEstimate) -> Option<Decision> {
    // less than is sent converges, if slowly: the first sync tells how much of it there is
    let load = foreseen.load().filter(|load| *load >= 1.0)?;
    let ahead = if now.memory.syncs_within_passes() { AT_ONCE } else { AHEAD };
    let is_due = now.memory.left_of_pass().is_some_and(|left| left <= ahead);
    if !is_due || !may_arm(policy, now) {
        return None;
    }
    let outlook = MemoryOutlook::new(policy, now, foreseen, load);
    let percent = outlook.throttle();
    let because = format!(
        "{} are dirtied against {} sent ({:.0} %): the guest is throttled by {percent} %, which QEMU is told before the \
         first pass ends, since QEMU throttles only at the end of a pass",
        Rate(foreseen.dirty_rate as u64),
        Rate(foreseen.pace as u64),
        load * 100.0,
    );
    Some(Decision::act(Action::Throttle(percent), because))
}

impl History {
    /// Whether QEMU should measure the guest's dirty rate again, beside RAM's first pass. No measurement runs when the
    /// guest may be stopped: the pages that QEMU reads for it take a core for a while.
    pub fn wants_measurement(&self) -> bool {
        let is_long = self.memory.left_of_pass().is_some_and(|left| left >= MEASURES);
        is_long && !self.stands && self.applied.throttle == 0 && self.memory.wants_measurement(self.at, LIGHT)
    }

    /// Bytes per second that the guest dirties, as far as is known.
    pub fn dirty_rate(&self) -> f64 {
        let estimate = self.memory.estimate();
        let foreseen = self.memory.foreseen().filter(|_| estimate.is_none_or(|memory| !memory.first_pass_over));
        foreseen.or(estimate).map_or(0.0, |memory| memory.dirty_rate)
    }
}

/// The estimate of RAM, held against the downtime limit and the policy.
struct MemoryOutlook<'a> {
    policy: &'a Policy,
    now: &'a History,
    memory: MemoryEstimate,
    /// The rest has not shrunk for longer than the patience, whatever the rates say.
    stands_still: bool,
    /// [`MemoryEstimate::load`]; at least 1 where the rest stands still.
    load: f64,
    /// See [`tail_rate`].
    tail: f64,
    /// See [`limit_factor`].
    factor: f64,
    /// The time that RAM's tail takes by the present downtime limit, milliseconds.
    limit: f64,
    /// The bytes that are sent in that time.
    rest: f64,
    /// The time that RAM may need yet before more is done than to wait.
    patience: Duration,
}

impl<'a> MemoryOutlook<'a> {
    fn new(policy: &'a Policy, now: &'a History, memory: MemoryEstimate, load: f64) -> Self {
        let patience = patience(policy, now);
        let stands_still = memory.worse >= 2 && now.since(memory.best_at.max(now.applied.changed)) > patience;
        let tail = tail_rate(now);
        let factor = limit_factor(now, tail);
        let limit = now.applied.downtime.map_or(millis(policy.first), millis) / factor;
        Self {
            policy,
            now,
            memory,
            stands_still,
            load: if stands_still { load.max(1.0) } else { load },
            tail,
            factor,
            limit,
            rest: tail * limit / 1000.0,
            patience,
        }
    }

    fn decide(&self) -> Decision {
        let Self { policy, now, load, limit, .. } = *self;
        let busy = millis(policy.busy).min(allowed(policy, now));
        if policy.ram.contains(&RamRung::Downtime) && load > LIGHT && busy > limit * NOTABLE {
            let because = format!("{self}: the guest is busy, so RAM's tail may take {busy:.0} ms");
            return self.limit_to(busy, because);
        }
        let time = self.memory.time_to(self.rest, load);
        if let Some(time) = time.filter(|time| !self.stands_still && (*time <= millis(self.patience) || load <= LIGHT))
        {
            return Decision::wait(format!("RAM will fit: {self}, in {time:.0} ms"));
        }
        if !has_throttle_shown(now) {
            return Decision::wait(format!("the throttle of {} % does not show yet", now.applied.throttle));
        }
        if !self.is_confirmed() {
            return Decision::wait(format!("RAM may not fit in time, which is not certain yet: {self}"));
        }
        let needed = lowest(now, &self.memory) / self.tail * 1000.0 * MARGIN;
        if let Some(step) = policy.ram.iter().find_map(|rung| self.climb(*rung, needed)) {
            return step;
        }
        if policy.ram.contains(&RamRung::Downtime) && self.fits_budget(needed) && load >= 1.0 {
            return self.raise(needed);
        }
        let since = now.since(self.memory.best_at.max(now.applied.changed));
        if since > policy.give_up && self.memory.worse > 0 {
            let because = format!("{self}, and nothing has improved for {:.0} s", since.as_secs_f64());
            return Decision::give_up("ram-not-converging", remedy(policy, now, &self.memory), because);
        }
        Decision::wait(format!("{self}: every rung is climbed, and RAM may still converge"))
    }

    /// One rung; `None` where it was climbed already, or does not help. `needed` is the time that RAM's tail takes
    /// where least of RAM remains, milliseconds.
    fn climb(&self, rung: RamRung, needed: f64) -> Option<Decision> {
        let Self { policy, now, limit, .. } = *self;
        let abilities = now.job.abilities;
        match rung {
            RamRung::Downtime => {
                (self.fits_budget(needed) && self.is_worth_it(needed - limit)).then(|| self.raise(needed))
            }
            RamRung::Throttle => (abilities.throttle && now.applied.throttle < policy.throttle_max).then(|| {
                let percent = self.throttle();
                // A rest that stands still does not fit, whatever its size: QEMU counts more than the looks see.
                let saves = self.saves(percent).filter(|_| !self.stands_still);
                if let Some(saved) = saves.filter(|saved| *saved < millis(self.patience)) {
                    let saved = saved.max(0.0);
                    return Decision::wait(format!("RAM will fit: {self}; a throttle would save {saved:.0} ms only"));
                }
                let because = match self.time_throttled(percent) {
                    Some(time) => format!("{self}: throttled by {percent} % RAM would fit in {:.1} s", time / 1000.0),
                    None => format!("{self}: the guest is throttled by {percent} %"),
                };
                Decision::act(Action::Throttle(percent), because)
            }),
            RamRung::Postcopy => abilities
                .postcopy
                .then(|| Decision::act(Action::Postcopy, format!("{self}: the guest resumes on the destination"))),
            RamRung::StopAndCopy => {
                let blackout = needed + overhead(policy, now);
                (needed > limit * NOTABLE && blackout <= millis(policy.stop_and_copy)).then(|| {
                    let because = format!("{self}: the guest is stopped for {blackout:.0} ms, as the policy allows");
                    self.limit_to(needed, because)
                })
            }
        }
    }

    /// Sets the downtime limit so that RAM's tail may take so many milliseconds.
    fn limit_to(&self, tail: f64, because: String) -> Decision {
        Decision::act(Action::DowntimeLimit(Duration::from_secs_f64(tail * self.factor / 1000.0)), because)
    }

    fn raise(&self, needed: f64) -> Decision {
        let because = format!(
            "{self}: RAM's tail would take {needed:.0} ms at its lowest ({}), and the whole blackout {:.0} ms of a budget of {} ms",
            Bytes(lowest(self.now, &self.memory) as u64),
            needed + overhead(self.policy, self.now),
            self.now.job.budget.as_millis()
        );
        self.limit_to(needed, because)
    }

    fn fits_budget(&self, needed: f64) -> bool {
        needed > self.limit * NOTABLE && needed <= allowed(self.policy, self.now)
    }

    /// Whether a blackout that is longer by so many milliseconds is worth the time that it saves: the time to converge
    /// where RAM does so slowly, the time that throttling takes where the guest can be throttled.
    fn is_worth_it(&self, longer: f64) -> bool {
        let policy = self.policy;
        let by_throttle = match policy.ram.contains(&RamRung::Throttle) && self.now.job.abilities.throttle {
            true => millis(policy.patience),
            false => f64::MAX,
        };
        let by_itself = if self.load < 1.0 { longer / (1.0 - self.load) } else { f64::MAX };
        by_itself.min(by_throttle) >= longer * policy.worth
    }

    /// Whether estimate after estimate has said for long enough that RAM does not fit in time.
    fn is_confirmed(&self) -> bool {
        let is_doubtful = |memory: &MemoryEstimate| {
            let time = memory.load().and_then(|load| memory.time_to(self.rest, load));
            memory.first_pass_over
                && time.is_none_or(|time| time > millis(self.patience))
                && memory.load().is_some_and(|load| load > LIGHT)
        };
        let doubted = self.now.memory.recent().rev().take_while(|dated| is_doubtful(&dated.memory)).last();
        self.stands_still || doubted.is_some_and(|dated| self.now.since(dated.since) >= CONFIRMED)
    }

    /// The smallest throttle that leaves a light load, or else the largest. One strong throttle that suffices is
    /// better than several weak ones that do not: QEMU takes a second or more for each.
    fn throttle(&self) -> u8 {
        let (most, present) = (self.policy.throttle_max, self.now.applied.throttle);
        // a throttle that was not enough is followed by one that at least halves the time in which the guest runs
        let least = if present > 0 { (100 - present) / 2 } else { STEP };
        let mut percent = present.saturating_add(least).div_ceil(STEP) * STEP;
        while percent < most && self.load_throttled(percent) > LIGHT {
            percent += STEP;
        }
        percent.min(most)
    }

    /// Milliseconds until RAM fits with the guest throttled by so many per cent; `None` if never.
    fn time_throttled(&self, percent: u8) -> Option<f64> {
        self.memory.time_to(self.rest, self.load_throttled(percent))
    }

    /// Milliseconds that a throttle by so many per cent saves; `None` where RAM does not converge without one. QEMU
    /// throttles at the end of the present pass, so that pass leaves what it leaves anyway.
    fn saves(&self, percent: u8) -> Option<f64> {
        let is_hidden = self.now.memory.syncs_within_passes();
        let load = if is_hidden { self.load.max(self.true_load()) } else { self.load };
        let by_itself = self.memory.time_to(self.rest, load)?;
        let pass = self.memory.fresh / self.memory.pace * 1000.0;
        let (wait, fresh) = match is_hidden {
            true => (pass.min(millis(AT_ONCE)), self.memory.fresh),
            false => (pass, self.memory.fresh * self.load),
        };
        let then = MemoryEstimate { fresh, ..self.memory };
        Some(by_itself - wait - then.time_to(self.rest, self.load_throttled(percent))?)
    }

    /// The load of the guest, also as far as syncs hide it: all that was sent is found dirty again at most, and where
    /// QEMU syncs within passes, pages that are still to be sent are not found again. A throttle goes by this load,
    /// and the need for one goes by the least that was measured: a throttle that is too weak costs a whole pass.
    fn true_load(&self) -> f64 {
        let load = self.memory.load().unwrap_or(1.0);
        let measured = self.now.memory.highest_load().filter(|_| self.now.applied.throttle == 0);
        let is_hidden = load > SATURATED || self.now.memory.syncs_within_passes() || self.now.memory.is_provisional();
        match measured {
            Some(measured) if is_hidden => load.max(measured),
            None if load > SATURATED => load.max(BEYOND),
            _ => load,
        }
    }

    /// The load of the guest, throttled by so many per cent.
    fn load_throttled(&self, percent: u8) -> f64 {
        let runs = |percent: u8| 1.0 - f64::from(percent) / 100.0;
        self.true_load() / runs(self.now.applied.throttle.min(99)) * runs(percent)
    }
}

impl fmt::Display for MemoryOutlook<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} remain, {} are dirtied against {} sent ({:.0} %), the downtime limit is {:.0} ms",
            Bytes(self.memory.fresh as u64),
            Rate(self.memory.dirty_rate as u64),
            Rate(self.memory.bandwidth as u64),
            self.load * 100.0,
            self.limit
        )
    }
}

/// The bandwidth or the budget with which RAM would have converged, in words.
pub(super) fn remedy(policy: &Policy, now: &History, memory: &MemoryEstimate) -> String {
    let budget = lowest(now, memory) / tail_rate(now) * 1000.0 * MARGIN + overhead(policy, now);
    // this bandwidth sends the rest within the patience, while the guest dirties on
    let bandwidth = memory.dirty_rate + memory.fresh / patience(policy, now).as_secs_f64();
    format!(
        "a bandwidth of {} (it was {}) or a blackout budget of {:.0} ms (it was {} ms) would have sufficed",
        Rate(bandwidth as u64),
        Rate(memory.bandwidth as u64),
        budget.ceil(),
        now.job.budget.as_millis()
    )
}

/// The least that remained of late, bytes.
fn lowest(now: &History, memory: &MemoryEstimate) -> f64 {
    now.memory.recent().map(|dated| dated.memory.fresh).fold(memory.fresh, f64::min)
}

fn patience(policy: &Policy, now: &History) -> Duration {
    let so_far = now.since(now.memory.began().unwrap_or(now.at));
    policy.patience.max(times(so_far, policy.patience_share))
}

/// Whether QEMU shows the last throttle, or has had its time to.
fn has_throttle_shown(now: &History) -> bool {
    let Some(last) = now.memory.last() else { return true };
    let syncs = last.syncs.saturating_sub(now.applied.throttle_syncs);
    let is_late = now.since(now.applied.changed) > UNSEEN && syncs > UNSEEN_SYNCS;
    last.throttle_pct >= u64::from(now.applied.throttle) || is_late
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::{
        ConvergenceJob, Decision,
        fixture::{ControllerRun, GuestRam, give_up, job, limit, mib, policy, throttle},
        predicted_blackout,
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
        for (continuous, measures) in [(false, false), (false, true), (true, false), (true, true)] {
            for (dirtied, least, most) in [(85.0, 30, 80), (200.0, 30, 90)] {
                if continuous && dirtied < 100.0 {
                    // with syncs within passes less remains at the end of the first, and a throttle hardly pays
                    continue;
                }
                let (mut run, mut ram) =
                    (started(built_in("converge"), job()), GuestRam::new(dirtied, 200.0, continuous));
                ram.measures = measures;
                let decision = until(&mut run, &mut ram, 20_000, |decision| throttle(decision).is_some());
                let percent = decision.as_ref().and_then(throttle).expect("a throttle");
                assert!((least..=most).contains(&percent), "{continuous}: {decision:?}");
                // the first pass takes five seconds
                assert!(run.at() < 14_000.0, "{continuous}: at {}", run.at());
                assert!(decision.is_some_and(|decision| decision.because.contains("are dirtied against")));
                // a throttle that shows either suffices or is followed by a stronger one
                let next = until(&mut run, &mut ram, 4000, |decision| throttle(decision).is_some());
                assert!(next.as_ref().and_then(throttle).is_none_or(|next| next > percent), "{next:?}");
            }
        }
    }

    /// The first throttle of a guest that dirties so much of 200 MiB: its moment in seconds, and its strength. RAM's
    /// first pass takes 5.1 s, and the second one at most two more.
    fn first_throttle(policy: &str, dirtied: impl Fn(u64) -> f64, measures: bool) -> Option<(f64, u8)> {
        let (mut run, mut ram) = (started(policy, job()), GuestRam::new(0.0, 200.0, false));
        ram.measures = measures;
        (0..80).find_map(|look| {
            ram.dirtied = dirtied(look * 100);
            let percent = throttle(&run.look(100, Some(ram.after(100)), &[]));
            percent.map(|percent| (run.at() / 1000.0, percent))
        })
    }

    #[test]
    fn a_throttle_is_armed_before_the_pass_ends_in_which_the_need_is_seen() {
        let burst = |from: u64, until: u64| move |at: u64| if (from..until).contains(&at) { 200.0 } else { 20.0 };
        let constant = |rate: f64| move |_: u64| rate;
        // a busy host: one measurement of three finds little
        let hidden = |rate: f64| move |at: u64| if at / 500 % 3 == 0 { 40.0 } else { rate };
        type Dirtied<'a> = &'a dyn Fn(u64) -> f64;
        for (named, dirtied, measures, expected) in [
            // two measurements in the first pass suffice
            ("2 x", &constant(200.0) as Dirtied, true, Some((1.0..2.0, 90))),
            ("1.5 x", &constant(150.0), true, Some((1.0..2.0, 80))),
            ("1.1 x", &constant(110.0), true, Some((1.0..2.0, 80))),
            // RAM converges by itself, but slowly: the first sync tells how slowly, and the second pass has begun
            ("0.9 x", &constant(90.0), true, Some((5.1..5.6, 70))),
            // the need is in doubt after the first pass, and QEMU throttles at the end of the second, at 7.1 s
            ("1.5 x, hidden", &hidden(150.0), true, Some((6.5..7.1, 80))),
            ("0.6 x, hidden", &hidden(60.0), true, None),
            // a throttle would save less than the patience
            ("0.5 x", &constant(50.0), true, None),
            ("idle", &constant(0.0), true, None),
            // a burst in one measurement, in the first pass or right before its end
            ("burst at once", &burst(0, 500), true, None),
            ("burst at last", &burst(4500, 5000), true, None),
            ("burst in two measurements", &burst(1200, 1800), true, None),
            // without measurements the second pass is the first to tell, and its end comes first
            ("2 x, not measured", &constant(200.0), false, Some((7.0..8.0, 80))),
        ] {
            let found = first_throttle(built_in("converge"), dirtied, measures);
            let is_right = match (&found, &expected) {
                (Some((at, percent)), Some((when, most))) => when.contains(at) && percent <= most && *percent >= 60,
                (None, None) => true,
                _ => false,
            };
            assert!(is_right, "{named}: {found:?} in place of {expected:?}");
        }
    }

    #[test]
    fn only_a_throttle_that_is_the_next_rung_is_armed_in_the_first_pass() {
        for (policy, is_armed) in [
            ("ram = ['downtime', 'throttle', 'postcopy']", true),
            ("ram = ['throttle']", true),
            ("ram = ['downtime', 'postcopy']", false),
            ("ram = ['downtime']", false),
            ("ram = ['stop-and-copy', 'throttle']\nstop-and-copy = '30s'", false),
        ] {
            let at = first_throttle(policy, |_| 200.0, true).map(|(at, _)| at);
            assert_eq!(at.is_some_and(|at| at < 5.0), is_armed, "{policy}: {at:?}");
        }
        let mut without = job();
        without.abilities.throttle = false;
        let (mut run, mut ram) = (started(built_in("converge"), without), GuestRam::new(200.0, 200.0, false));
        ram.measures = true;
        assert_eq!(until(&mut run, &mut ram, 8000, |decision| throttle(decision).is_some()), None);
    }

    #[test]
    fn a_long_first_pass_is_not_armed_at_its_begin() {
        // 30 MiB/s of 10: the first pass takes 51 s, and where QEMU syncs within passes, the throttle would be felt
        for (continuous, earliest, latest) in [(false, 20.0, 24.0), (true, 48.0, 53.0)] {
            let (mut run, mut ram) = (started(built_in("converge"), job()), GuestRam::new(30.0, 200.0, continuous));
            (ram.measures, ram.sent) = (true, 10.0);
            until(&mut run, &mut ram, 60_000, |decision| throttle(decision).is_some()).expect("a throttle");
            let at = run.at() / 1000.0;
            assert!((earliest..latest).contains(&at), "{continuous}: {at}");
        }
    }

    #[test]
    fn the_dirty_rate_is_measured_while_that_tells_something() {
        for (dirtied, wants_more) in [(0.0, false), (20.0, false), (200.0, true)] {
            let (mut run, mut ram) = (started(built_in("patient"), job()), GuestRam::new(dirtied, 200.0, false));
            ram.measures = true;
            let mut measured = Vec::new();
            for _ in 0..70 {
                let sample = ram.after(100);
                run.look(100, Some(sample), &[]);
                measured.push((run.history.wants_measurement(), sample.measurements));
            }
            // a guest that dirties little is not looked at again, and no window runs when the pass may end
            let is_wanted = measured.iter().any(|(wants, count)| *wants && *count > 0);
            assert_eq!(is_wanted, wants_more, "{dirtied}: {measured:?}");
            assert!(measured[42..50].iter().all(|(wants, _)| !wants), "{dirtied}: {measured:?}");
        }
    }

    #[test]
    fn nothing_more_is_done_before_a_throttle_shows() {
        let (mut run, mut ram) = (started(built_in("converge"), job()), GuestRam::new(200.0, 200.0, false));
        until(&mut run, &mut ram, 20_000, |decision| throttle(decision).is_some()).expect("a throttle");
        let at = run.at();
        ram.throttle = 0;
        let next = until(&mut run, &mut ram, 20_000, |decision| !decision.actions.is_empty()).expect("something");
        assert!(run.at() - at > millis(UNSEEN), "{next:?} after {}", run.at() - at);
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
        // a limit beyond the budget is not set
        let given = ConvergenceJob { budget: Duration::from_millis(150), ..job() };
        let (mut run, mut ram) = (started(text, given), GuestRam::new(500.0, 20.0, false));
        let decision = until(&mut run, &mut ram, 60_000, |decision| give_up(decision).is_some()).expect("an end");
        let (code, needed) = give_up(&decision).expect("given up");
        assert_eq!(code, "ram-not-converging");
        // the remedy suffices: 20 MiB at 100 MiB/s, with the margin and the rest of the blackout
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
        // the guest dirties as much as before, whatever throttle QEMU shows
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
        assert!(run.keep_budget(100.0, mib(200).0).is_ok());
        assert!(run.keep_budget(100.0, mib(400).0).is_err());
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
            let blackout = run.keep_budget(0.0, mib(remaining).0).expect("within 360 ms");
            assert!((expected * 0.85..expected + 20.0).contains(&blackout), "{ceiling:?}: {blackout}");
            assert!(run.keep_budget(0.0, mib(60).0).is_err(), "{ceiling:?}");
            assert!(predicted_blackout(&run.policy, &run.history).is_some());
        }
        // QEMU stops the guest by the bandwidth that it was told
        let given = ConvergenceJob { ceiling: Some(mib(1000)), ..job() };
        let (mut run, mut ram) = (started(built_in("converge"), given), GuestRam::new(60.0, 300.0, false));
        let decision = until(&mut run, &mut ram, 20_000, |decision| limit(decision).is_some());
        // the first limit of 10 ms at the ceiling is 100 ms at the link's bandwidth
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
