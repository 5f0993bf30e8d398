//! The decision over disks and RAM, after each sample.
//!
//! Pure.

use super::{
    OverBudget, bandwidth,
    decision::{Action, Decision},
    disks,
    history::{History, TIMEOUT},
    memory, millis,
    policy::Policy,
    sample::MigrationSample,
    schedule,
    stage::{ConvergenceStage, MirrorProgress},
};
use crate::quantity::{Bytes, Rate};
use std::time::Duration;

/// The factor by which the mirrors may need longer than RAM for RAM to be started beside them. RAM that is started too
/// early is sent twice.
const AHEAD: f64 = 2.0;
/// The time that mirrors must have had their shares before the rest of a ceiling is taken for granted.
const STEADY: Duration = Duration::from_secs(1);
/// The least memory that is worth sending beside mirrors, 768 MiB. QEMU passes over a GiB of zero pages within a few
/// looks, so less could end before it is held back.
const SMALL: u64 = 3 << 28;
/// The part of a ceiling that the mirrors must leave for RAM to be started beside them.
const ROOM: f64 = 0.2;
/// The downtime limit beside mirrors that are not in step. Together with [`Action::HoldMemory`] it keeps QEMU from
/// stopping the guest; with a limit of 0 QEMU would not count dirty pages anew before it stops the guest.
const LEAST_LIMIT: Duration = Duration::from_millis(1);

/// Decides what to do after `sample`. The same policy, history and sample always give the same decision. The caller
/// carries it out and passes both to [`History::record`].
pub fn decide(policy: &Policy, history: &History, sample: &MigrationSample) -> Decision {
    let now = history.after(sample);
    let stage = ConvergenceStage::of(&now);
    let is_over = match stage {
        ConvergenceStage::TimedOut | ConvergenceStage::Postcopy { running: true } => true,
        ConvergenceStage::GivenUp { .. } => !policy.observe,
        _ => false,
    };
    if is_over {
        return Decision::wait("nothing is left to decide");
    }
    // postcopy that was asked for need not have begun, so the timeout counts on
    if let Some(timeout) = now.job.timeout.filter(|timeout| now.at >= *timeout) {
        return give_up_in_time(policy, &now, timeout);
    }
    match stage {
        // a policy that only observes has the migration go on
        ConvergenceStage::GivenUp { memory_started: false } => match start(policy, &now, MirrorProgress::of(&now)) {
            Ok(because) => Decision::act(Action::StartMemory, because),
            Err(because) => Decision::wait(because),
        },
        ConvergenceStage::GivenUp { .. } | ConvergenceStage::Postcopy { .. } | ConvergenceStage::TimedOut => {
            Decision::wait("nothing is left to decide but the timeout")
        }
        ConvergenceStage::Disks(_) | ConvergenceStage::Overlap { .. } | ConvergenceStage::Memory { .. } => {
            converge(policy, history.at, now, stage)
        }
    }
}

/// The decision of a migration that is under way. `before` is the time of the look before this one.
fn converge(policy: &Policy, before: Duration, mut now: History, stage: ConvergenceStage) -> Decision {
    let mut parts = disks::decide(policy, &now);
    if let Some(end) = parts.iter().position(Decision::gives_up) {
        return parts.swap_remove(end);
    }
    note_all(&mut now, &parts);
    let for_memory = match stage {
        ConvergenceStage::Disks(mirrors) => start_or_wait(policy, &now, mirrors),
        ConvergenceStage::Memory { held: true } => release(policy, &now),
        ConvergenceStage::Memory { held: false } => match &policy.schedule {
            Some(schedule) => schedule::decide(policy, schedule, &now, before),
            None => memory::decide(policy, &now),
        },
        _ => Decision::wait("RAM is sent beside mirrors that are not in step yet"),
    };
    if for_memory.gives_up() {
        return for_memory;
    }
    note_all(&mut now, std::slice::from_ref(&for_memory));
    parts.push(for_memory);
    let shares = bandwidth::shares(&now);
    if shares != now.applied.shares {
        let because = shares.describe();
        // the shares come before QEMU may stop the guest: a command after that would be a part of the blackout
        parts.insert(0, Decision::act(Action::ShareBandwidth(shares), because));
    }
    Decision::merge(parts)
}

fn note_all(now: &mut History, parts: &[Decision]) {
    parts.iter().flat_map(|part| &part.actions).for_each(|action| now.note(action));
}

fn start_or_wait(policy: &Policy, now: &History, mirrors: MirrorProgress) -> Decision {
    let because = match start(policy, now, mirrors) {
        Ok(because) => because,
        Err(because) => return Decision::wait(because),
    };
    if mirrors == MirrorProgress::InStep {
        if let Some(waits) = wait_for_the_budget(policy, now) {
            return waits;
        }
    }
    let actions = match mirrors {
        MirrorProgress::InStep => {
            vec![Action::DowntimeLimit(memory::first_limit(policy, now)), Action::StartMemory]
        }
        _ => vec![Action::HoldMemory, Action::DowntimeLimit(LEAST_LIMIT), Action::StartMemory],
    };
    Decision { actions, because }
}

/// The wait for a moment at which the blackout fits into the budget, and its end; `None` where the blackout fits. A
/// guest that QEMU may not stop yet goes on undisturbed meanwhile, and nothing is lost.
fn wait_for_the_budget(policy: &Policy, now: &History) -> Option<Decision> {
    let overhead = memory::overhead(policy, now);
    let longest = policy.longest_blackout(now.job.budget, now.job.strict).max(policy.stop_and_copy);
    if policy.observe || policy.schedule.is_some() || overhead <= millis(longest) {
        return None;
    }
    let because = format!(
        "the blackout would take about {overhead:.0} ms without any RAM, for the disks' flushes, the answers of QEMU and \
         the device state, and {} ms are allowed",
        longest.as_millis()
    );
    let waited = now.since(now.in_step.unwrap_or(now.at));
    if waited <= policy.give_up {
        return Some(Decision::wait(format!("{because}: RAM waits for faster disks")));
    }
    let needed = format!("a budget of {:.0} ms, or disks that flush faster", overhead.ceil());
    Some(Decision::give_up(OverBudget::CODE, needed, because))
}

fn release(policy: &Policy, now: &History) -> Decision {
    if let Some(waits) = wait_for_the_budget(policy, now) {
        return waits;
    }
    // the limit before the release: a limit that is set while RAM is held does not count as a step of a schedule
    let actions = vec![Action::DowntimeLimit(memory::first_limit(policy, now)), Action::ReleaseMemory];
    Decision { actions, because: "every mirror is in step: QEMU may stop the guest from now on".to_owned() }
}

/// Why RAM is started now, or else why it waits.
fn start(policy: &Policy, now: &History, mirrors: MirrorProgress) -> Result<String, String> {
    match mirrors {
        MirrorProgress::InStep => Ok("every mirror is ready: RAM is sent".to_owned()),
        MirrorProgress::Ready => Err("the mirrors are ready and not yet in step with the guest".to_owned()),
        MirrorProgress::Copying => overlap(policy, now),
    }
}

/// Why RAM is started beside mirrors that still copy, or else why it waits for them.
fn overlap(policy: &Policy, now: &History) -> Result<String, String> {
    let copying: Vec<_> =
        now.disks.values().map(|track| (track, track.estimate())).filter(|(_, disk)| !disk.ready).collect();
    let copied: f64 = copying.iter().map(|(_, disk)| disk.rate).sum();
    let left: f64 = copying.iter().map(|(_, disk)| disk.remaining).sum();
    let waiting = format!("the mirrors copy {}, {} remain", Rate(copied as u64), Bytes(left as u64));
    if !policy.overlap || !now.job.abilities.overlap || copied <= 0.0 {
        return Err(waiting);
    }
    if now.stands {
        return Err(format!("{waiting}: RAM waits, since the guest stands still, and its RAM could end before them"));
    }
    let times: Option<Vec<f64>> = copying.iter().map(|(_, disk)| disk.time_to_ready()).collect();
    let Some(longest) = times.map(|times| times.into_iter().fold(0.0, f64::max)) else {
        return Err(format!("{waiting}: RAM waits, since one of the mirrors does not catch up"));
    };
    if let Some(ceiling) = now.job.ceiling {
        let is_steady = |since: Duration| now.since(since) >= STEADY;
        if !copying.iter().all(|(track, _)| track.steady_since().is_some_and(is_steady)) {
            return Err(format!("{waiting}: the rest of the ceiling is not known yet"));
        }
        if ceiling.0 as f64 - copied < ceiling.0 as f64 * ROOM {
            return Err(format!("{waiting}: the mirrors leave no room for RAM"));
        }
    }
    let room = now.job.ceiling.map_or(copied, |ceiling| ceiling.0 as f64 - copied);
    if now.job.dirty_rate.is_some_and(|dirtied| dirtied > room) {
        return Err(format!(
            "{waiting}: RAM waits, since beside the mirrors it would be sent slower than it is dirtied"
        ));
    }
    if now.job.memory < SMALL {
        return Err(format!("{waiting}: RAM waits, since it is so small that it could end before it is held back"));
    }
    let (disk_seconds, ram_seconds) = (longest / 1000.0, now.job.memory as f64 / room);
    if disk_seconds > ram_seconds * AHEAD {
        return Err(format!("{waiting} for {disk_seconds:.0} s: RAM waits, since it needs only {ram_seconds:.0} s"));
    }
    Ok(format!("{waiting} for {disk_seconds:.1} s: RAM is sent beside them, in about {ram_seconds:.1} s"))
}

fn give_up_in_time(policy: &Policy, now: &History, timeout: Duration) -> Decision {
    let in_step = MirrorProgress::of(now) == MirrorProgress::InStep;
    let needed = match now.memory.estimate().filter(|_| in_step) {
        Some(estimate) => memory::remedy(policy, now, &estimate),
        None => {
            let left: f64 = now.disks.values().map(|track| track.estimate().remaining).sum();
            format!("{} of disks were still to be copied", Bytes(left as u64))
        }
    };
    let because = format!("the migration has taken {:.1} s of {:.1} s", now.at.as_secs_f64(), timeout.as_secs_f64());
    Decision::give_up(TIMEOUT, needed, because)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::{
        ConvergenceJob,
        fixture::{ControllerRun, MIB, give_up, job, mib, mirror, policy, ready},
    };

    /// The decision once a mirror was seen to copy 100 MiB/s, with `left` MiB yet to copy.
    fn beside(policy: &Policy, job: ConvergenceJob, left: u64) -> Decision {
        let mut run = ControllerRun::new(policy, job, &["a"]);
        let all = left + 400;
        for second in 0..4u64 {
            run.look(1000, None, &[mirror("a", all, second * 100)]);
        }
        run.look(1000, None, &[mirror("a", all, 400)])
    }

    fn starts(decision: &Decision) -> bool {
        decision.actions.contains(&Action::StartMemory)
    }

    #[test]
    fn ram_overlaps_the_mirrors_when_it_needs_about_as_long() {
        // 1 GiB at 100 MiB/s
        let plain = policy("converge");
        let large = || ConvergenceJob { memory: 1 << 30, ..job() };
        for (left, expected) in [(1800, true), (800, true), (3000, false)] {
            let mut early = ControllerRun::new(&plain, large(), &["a"]);
            let all = left + 400;
            let decisions: Vec<bool> =
                (0..5u64).map(|second| starts(&early.look(1000, None, &[mirror("a", all, second * 100)]))).collect();
            assert_eq!(decisions.contains(&true), expected, "{left}: {decisions:?}");
        }
        let small = beside(&plain, job(), 900);
        assert!(!starts(&small) && small.because.contains("could end before it is held back"), "{small:?}");
        let far = beside(&plain, large(), 6000);
        assert!(!starts(&far) && far.because.contains("RAM waits"), "{far:?}");
    }

    #[test]
    fn ram_does_not_overlap_where_it_may_not_or_would_not_pay() {
        let plain = policy("converge");
        let one_after_the_other = Policy { overlap: false, ..plain.clone() };
        assert!(!starts(&beside(&one_after_the_other, job(), 500)));
        let mut held = job();
        held.abilities.overlap = false;
        assert!(!starts(&beside(&plain, held, 500)));
        let full = ConvergenceJob { ceiling: Some(mib(110)), ..job() };
        let full = beside(&plain, full, 500);
        assert!(!starts(&full) && full.because.contains("no room"), "{full:?}");
        let mut stands = ControllerRun::new(&plain, ConvergenceJob { memory: 1 << 30, ..job() }, &["a"]);
        stands.stands = true;
        let decisions: Vec<Decision> =
            (0..5u64).map(|second| stands.look(1000, None, &[mirror("a", 1200, second * 100)])).collect();
        assert!(!decisions.iter().any(starts) && decisions[4].because.contains("stands still"), "{decisions:?}");
        let busy = ConvergenceJob { dirty_rate: Some(mib(150).0 as f64), ..job() };
        let busy = beside(&plain, busy, 500);
        assert!(!starts(&busy) && busy.because.contains("slower than it is dirtied"), "{busy:?}");
    }

    #[test]
    fn ram_is_started_once_with_its_first_limit() {
        for (name, limit) in [("converge", 10), ("observe", 300), ("nova", 50), ("kubevirt", 150)] {
            let mut run = ControllerRun::new(&policy(name), job(), &[]);
            let decision = run.look(0, None, &[]);
            let expected = [Action::DowntimeLimit(Duration::from_millis(limit)), Action::StartMemory];
            assert_eq!(decision.actions, expected, "{name}");
            assert_eq!(run.look(100, None, &[]).actions, []);
        }
    }

    #[test]
    fn ram_waits_until_no_write_may_be_behind() {
        let mut run = ControllerRun::new(&policy("patient"), job(), &["a"]);
        let decision = run.look(250, None, &[ready("a", false)]);
        assert!(matches!(&decision.actions[..], [Action::WriteBlocking(_)]), "{decision:?}");
        assert_eq!(run.look(250, None, &[ready("a", false)]).actions, []);
        assert!(starts(&run.look(250, None, &[ready("a", true)])));
    }

    #[test]
    fn ram_waits_while_the_disks_flush_too_slowly_for_the_budget() {
        let mut run = ControllerRun::new(&policy("converge"), job(), &["a"]);
        let mut flushes = 0;
        let mut flushed = |took_ms: u64| {
            flushes += 1;
            let mut mirror = ready("a", true);
            (mirror.flushes, mirror.flush_ns) = (flushes, 0);
            mirror.flush_ns = took_ms * 1_000_000 * flushes;
            mirror
        };
        run.look(250, None, &[ready("a", false)]);
        let mut waits = |run: &mut ControllerRun, took_ms| run.look(250, None, &[flushed(took_ms)]);
        waits(&mut run, 400);
        let decision = waits(&mut run, 400);
        assert!(decision.because.contains("without any RAM"), "{decision:?}");
        let decisions: Vec<Decision> = (0..130).map(|_| waits(&mut run, 400)).collect();
        let end = decisions.iter().find_map(give_up).expect("an end");
        assert!(end.0 == "over-budget" && end.1.contains("disks that flush faster"), "{end:?}");
        assert!(!decisions.iter().any(starts));
        // a budget that has room for the flushes
        let given = ConvergenceJob { budget: Duration::from_secs(2), ..job() };
        let mut run = ControllerRun::new(&policy("converge"), given, &["a"]);
        run.look(250, None, &[ready("a", false)]);
        assert!((0..5).any(|_| starts(&waits(&mut run, 400))));
    }

    #[test]
    fn the_timeout_ends_it_wherever_it_is() {
        let given = ConvergenceJob { timeout: Some(Duration::from_secs(2)), ..job() };
        let mut copying = ControllerRun::new(&policy("converge"), given.clone(), &["a"]);
        assert_eq!(give_up(&copying.look(1999, None, &[mirror("a", 100, 50)])), None);
        let decision = copying.look(1, None, &[mirror("a", 100, 60)]);
        assert_eq!(give_up(&decision), Some(("timeout", "40.0 MiB of disks were still to be copied")));
        assert!(decision.because.contains("2.0 s of 2.0 s"), "{decision:?}");
        assert_eq!(copying.look(500, None, &[]).actions, [], "once is enough");
        // the timeout counts while postcopy was asked for and did not begin
        let mut asked = ControllerRun::new(&policy("postcopy"), given.clone(), &[]);
        asked.look(0, None, &[]);
        asked.history.note(&Action::Postcopy);
        assert_eq!(asked.look(100, None, &[]).actions, []);
        assert!(give_up(&asked.look(2000, None, &[])).is_some());
        // postcopy that runs is never given up
        let mut runs = ControllerRun::new(&policy("postcopy"), given, &[]);
        let ram = crate::convergence::RamSample { postcopy: true, total: 512 * MIB, ..Default::default() };
        assert_eq!(runs.look(3000, Some(ram), &[]).actions, []);
    }
}
