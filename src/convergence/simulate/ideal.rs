//! The ideal schedule: the course of a migration whose controller knows the guest and the link from the start.
//!
//! Pure. The downtime limit and the throttle are known before RAM is started, and nothing is decided afterwards. RAM
//! then takes
//!
//! ```text
//! T = U / b + F1 / b + F2 / b x (1 - q^n) / (1 - q)
//! ```
//!
//! with `U` bytes of memory in use, the bandwidth `b`, the guest's dirty rate `d` and its working set `W`. The first
//! sync finds `F1 = min(W, d x U / b)` bytes dirty, and the second one `F2 = min(W, d x F1 / b)`. QEMU throttles at the
//! second sync and not before. From then on each pass leaves the part `q = d x (1 - p) / b` of the pass before, where
//! `p` is the throttle, and after `n` passes the rest `F2 x q^n` fits into the downtime limit. No controller sends RAM
//! in less time with that limit and that throttle, so the quotient of a run's time and the ideal one is the price of
//! what the controller had to find out. Where QEMU syncs within passes, too, the ideal throttle is set so late that the
//! first pass, which needs none, hardly feels it.

use super::{AutoConvergeModel, END, SimulatedEnd, SimulatedRun, Simulation};
use crate::convergence::{
    ConvergenceJob, History, Policy, RamRung,
    decision::Action,
    guest_model::{GuestModel, LinkModel},
    memory::{LIGHT, STEP},
    millis,
};

/// The fastest course among those that are no harder on the guest than the policy: with the policy's downtime limit for
/// such a guest, and throttled by no more than leaves a light load.
pub fn ideal(policy: &Policy, job: &ConvergenceJob, guest: &GuestModel, link: &LinkModel) -> SimulatedRun {
    let load = load(job, guest, link);
    let runs = throttles(policy, job, load).map(|percent| run(policy, job, guest, link, percent));
    runs.min_by(|one, other| one.total_ms.total_cmp(&other.total_ms)).unwrap_or_default()
}

/// The guest's dirtying as a part of the bandwidth.
fn load(job: &ConvergenceJob, guest: &GuestModel, link: &LinkModel) -> f64 {
    let ceiling = job.ceiling.map_or(f64::MAX, |rate| rate.0 as f64);
    let part = guest.bursts.map_or(1.0, |bursts| bursts.busy / (bursts.busy + bursts.idle).max(1.0));
    guest.dirty_rate * part / link.bandwidth.min(link.memory_rate).min(ceiling).max(1.0)
}

/// No throttle, and all those that the policy may set, up to the first that leaves a light load.
fn throttles(policy: &Policy, job: &ConvergenceJob, load: f64) -> impl Iterator<Item = u8> + use<> {
    let most = if policy.ram.contains(&RamRung::Throttle) && job.abilities.throttle { policy.throttle_max } else { 0 };
    let is_light = move |percent: u8| load * (1.0 - f64::from(percent) / 100.0) <= LIGHT;
    let steps = (0..=most).step_by(usize::from(STEP)).chain((most % STEP != 0).then_some(most));
    let mut is_enough = false;
    steps.take_while(move |percent| !std::mem::replace(&mut is_enough, is_light(*percent)))
}

/// The course with one throttle, which QEMU is told at the best moment.
fn run(policy: &Policy, job: &ConvergenceJob, guest: &GuestModel, link: &LinkModel, percent: u8) -> SimulatedRun {
    let history = History::new(job.clone(), guest.disks.iter().map(|disk| disk.name.clone()));
    let mut model = Simulation::new(policy, job, guest, link);
    let first = if load(job, guest, link) > LIGHT { policy.busy } else { policy.first };
    model.limit = millis(first.min(job.budget)).min(millis(job.budget) - model.overhead()).max(1.0);
    model.auto_converge = AutoConvergeModel::exactly(0, f64::MAX);
    while model.at < END && !model.stopped {
        if percent > 0 {
            model.auto_converge = AutoConvergeModel::exactly(percent, 0.01);
        }
        if !model.memory_started && model.mirrors.iter().all(|mirror| mirror.ready) {
            model.apply(&Action::StartMemory);
        }
        model.step(&history);
    }
    let (rest, stopped) = (model.rest(), model.stopped);
    let blackout = rest / model.tail_rate() * 1000.0 + model.overhead();
    model.transferred += rest;
    model.finish(if stopped { SimulatedEnd::Moved { blackout } } else { SimulatedEnd::GaveUp })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::job::Abilities;
    use std::time::Duration;

    const MIB: f64 = 1048576.0;

    fn link() -> LinkModel {
        LinkModel {
            bandwidth: 100.0 * MIB,
            memory_rate: 1e9,
            mirror_rate: 350.0 * MIB,
            round_trip: 0.5,
            device_state: 6.0,
            switchover_bandwidth: true,
        }
    }

    fn job() -> ConvergenceJob {
        let abilities = Abilities { throttle: true, ..Abilities::default() };
        ConvergenceJob { budget: Duration::from_millis(300), memory: 1 << 30, abilities, ..ConvergenceJob::default() }
    }

    /// A guest with 600 MiB in use that dirties so much of the bandwidth.
    fn guest(load: f64, working_set: f64) -> GuestModel {
        let used = 600.0 * MIB;
        let (working_set, dirty_rate) = (working_set * MIB, load * 100.0 * MIB);
        GuestModel { memory: used, used, working_set, dirty_rate, ..GuestModel::default() }
    }

    #[test]
    fn the_ideal_course_takes_what_the_formula_says() {
        let policy = Policy::default();
        for (load, working_set, percent) in
            [(0.0, 1.0, 0), (0.5, 200.0, 40), (0.9, 200.0, 70), (1.5, 200.0, 80), (2.0, 400.0, 90), (3.0, 300.0, 90)]
        {
            let guest = guest(load, working_set);
            let ideal = ideal(&policy, &job(), &guest, &link());
            // MiB and seconds
            let (used, bandwidth, dirtied) = (600.0, 100.0, load * 100.0);
            let limit = if load > LIGHT { 0.04 } else { 0.01 };
            let first = working_set.min(dirtied * used / bandwidth);
            let mut rest = working_set.min(dirtied * first / bandwidth);
            let mut time = (used + first) / bandwidth;
            while rest > bandwidth * limit {
                time += rest / bandwidth;
                rest = working_set.min(dirtied * (1.0 - f64::from(percent) / 100.0) * rest / bandwidth);
            }
            let found = ideal.total_ms / 1000.0;
            assert!((found - time).abs() < time * 0.02 + 0.1, "{load} of {working_set}: {found} s, {time} s");
            let blackout = ideal.blackout_ms.expect("moved");
            assert!(blackout <= limit * 1000.0 + 8.5, "{blackout} ms at {load}");
        }
    }

    #[test]
    fn the_ideal_course_is_no_harder_on_the_guest_than_the_policy() {
        let percents = |policy: &Policy, job: &ConvergenceJob, load| throttles(policy, job, load).collect::<Vec<u8>>();
        let policy = Policy::default();
        assert_eq!(percents(&policy, &job(), 0.2), [0]);
        assert_eq!(percents(&policy, &job(), 0.9), [0, 10, 20, 30, 40, 50, 60, 70]);
        assert_eq!(percents(&policy, &job(), 50.0).last(), Some(&99));
        let weak = Policy { throttle_max: 15, ..Policy::default() };
        assert_eq!(percents(&weak, &job(), 0.9), [0, 10, 15]);
        let without = ConvergenceJob { abilities: Abilities::default(), ..job() };
        assert_eq!(percents(&policy, &without, 2.0), [0]);
        // a guest that does not converge by itself has no course then
        assert!(!ideal(&policy, &without, &guest(2.0, 400.0), &link()).moved());
    }
}
