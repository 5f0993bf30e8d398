//! A published schedule: steps by time and passes, whatever RAM does.
//!
//! Pure. Schedules are built in for comparison with the controller's own ladder.

use super::{
    decision::{Action, Decision},
    history::History,
    memory::remedy,
    policy::{Policy, PublishedSchedule},
    schedule_step::StepAction,
    times,
};
use std::time::Duration;

const GIB: f64 = (1u64 << 30) as f64;

/// The next step of the schedule, if it is due. `before` is the time of the look before this one.
pub(super) fn decide(policy: &Policy, schedule: &PublishedSchedule, now: &History, before: Duration) -> Decision {
    let told = |text: &str| format!("{}: {text}", policy.name);
    let give_up = |because: String| {
        let needed = now.memory.estimate().map_or_else(String::new, |memory| remedy(policy, now, &memory));
        Decision::give_up("ram-not-converging", needed, because)
    };
    let gib = gib(schedule, now);
    let end = times(schedule.give_up_per_gib, gib);
    if !end.is_zero() && now.at >= end {
        return give_up(told(&format!("its {:.0} s for {gib:.1} GiB are over", end.as_secs_f64())));
    }
    let polls = |at: Duration| at.as_nanos() / schedule.poll.as_nanos().max(1);
    if polls(now.at) <= polls(before) {
        return Decision::wait(told("the next look of the schedule is not due yet"));
    }
    let state = &now.applied.schedule;
    let Some(step) = schedule.steps.get(state.steps) else {
        return Decision::wait(told("all steps of the schedule are taken"));
    };
    let syncs = now.memory.last().map_or(0, |last| last.syncs);
    // the first sync begins the first pass
    let passes = syncs.saturating_sub(1);
    let due = passes >= step.passes
        && now.at >= step.after.max(times(step.after_per_gib, gib))
        && (state.steps == 0 || now.since(state.stepped_at) >= schedule.cooldown)
        && (!schedule.at_new_pass || syncs > state.syncs);
    let number = state.steps + 1;
    if !due {
        return Decision::wait(told(&format!("step {number} is not due after {passes} passes")));
    }
    let because = told(&format!("step {number} is due after {passes} passes"));
    match step.then {
        StepAction::Downtime(limit) => Decision::act(Action::DowntimeLimit(limit.min(now.job.budget)), because),
        StepAction::Postcopy => Decision::act(Action::Postcopy, because),
        StepAction::GiveUp => give_up(because),
    }
}

/// GiB of RAM and disks, each of them at least as large as the schedule counts it.
fn gib(schedule: &PublishedSchedule, now: &History) -> f64 {
    let counted = |bytes: u64| (bytes as f64 / GIB).max(schedule.least_gib as f64);
    counted(now.job.memory) + now.job.disks.iter().map(|disk| counted(*disk)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use crate::convergence::{
        ConvergenceJob,
        fixture::{ControllerRun, MIB, give_up, job, limit, policy},
        sample::RamSample,
    };
    use std::time::Duration;

    /// The actions of a schedule in so many seconds, with a pass each `pass` seconds: the second, and the limit or
    /// nothing.
    fn course(name: &str, given: ConvergenceJob, pass: u64, seconds: u64) -> Vec<(u64, Option<u64>)> {
        let mut run = ControllerRun::new(&policy(name), given, &[]);
        let mut done = Vec::new();
        for look in 0..seconds * 10 {
            let at = look * 100;
            let ram = RamSample {
                transferred: at << 10,
                processed: at << 10,
                remaining: 100 * MIB,
                total: 512 * MIB,
                syncs: 1 + at / (pass * 1000),
                ..RamSample::default()
            };
            let decision = run.look(if look == 0 { 0 } else { 100 }, (look > 0).then_some(ram), &[]);
            if let Some(limit) = limit(&decision) {
                done.push((at / 1000, Some(limit.as_millis() as u64)));
            }
            if give_up(&decision).is_some() {
                done.push((at / 1000, None));
                break;
            }
        }
        done
    }

    fn generous() -> ConvergenceJob {
        ConvergenceJob { budget: Duration::from_secs(5), ..job() }
    }

    #[test]
    fn nova_steps_by_time() {
        // 512 MiB count as 2 GiB: 75 s for each
        let steps: Vec<(u64, Option<u64>)> = (1..=10).map(|step| (step * 150, Some(50 + 45 * step))).collect();
        let expected = [vec![(0, Some(50))], steps, vec![(1600, None)]].concat();
        assert_eq!(course("nova", generous(), 3, 1700), expected);
    }

    #[test]
    fn a_disk_counts_for_nova_too() {
        let given = ConvergenceJob { disks: vec![10 << 30], ..generous() };
        // RAM counts 2 GiB, the disk 10
        assert_eq!(course("nova", given, 3, 1000), [(0, Some(50)), (900, Some(95))]);
    }

    #[test]
    fn vdsm_steps_by_passes_every_ten_seconds() {
        // a pass takes 4 s, so each look finds two or three more
        let expected = [(0, 100), (10, 150), (20, 200), (30, 300), (40, 400), (50, 500)].map(|(at, ms)| (at, Some(ms)));
        assert_eq!(course("vdsm", generous(), 4, 100), [&expected[..], &[(60, None)]].concat());
        // a look that finds no new pass takes no step
        let slow = course("vdsm", generous(), 25, 160);
        assert_eq!(slow, [(0, Some(100)), (50, Some(150)), (80, Some(200)), (100, Some(300)), (130, Some(400))]);
    }

    #[test]
    fn kubevirt_steps_after_three_passes_and_then_every_ten_seconds() {
        let limits = [257, 364, 471, 579, 686, 793, 900];
        let done = course("kubevirt", generous(), 2, 80);
        assert_eq!(done[0], (0, Some(150)));
        for (index, limit) in limits.into_iter().enumerate() {
            // three passes take six seconds, and KubeVirt looks every 0.4 s
            let at = 6 + 10 * index as u64;
            assert!(done[index + 1].1 == Some(limit) && (at..=at + 3).contains(&done[index + 1].0), "{done:?}");
        }
        // half a GiB at 150 s per GiB
        assert_eq!(done.last(), Some(&(75, None)));
    }

    #[test]
    fn no_step_goes_beyond_the_budget() {
        let limits: Vec<u64> = course("kubevirt", job(), 2, 70).into_iter().filter_map(|(_, limit)| limit).collect();
        assert_eq!(limits, [150, 257, 300, 300, 300, 300, 300, 300]);
    }
}
