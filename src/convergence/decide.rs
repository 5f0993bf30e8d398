//! The decision: one function over disks and RAM.
//!
//! Pure.

use super::{
    bandwidth,
    decision::{Action, Decision},
    disks,
    history::{History, TIMEOUT},
    memory, millis,
    policy::Policy,
    sample::MigrationSample,
    schedule,
};
use crate::quantity::{Bytes, Rate};
use std::time::Duration;

/// By how much longer the mirrors may need than RAM for RAM to be started beside them: begun too early, it is sent twice.
const AHEAD: f64 = 2.0;
/// How long mirrors must have had their shares, milliseconds, before what they leave of a ceiling is taken for granted.
const STEADY: f64 = 1000.0;
/// The least memory that is worth sending beside mirrors, 768 MiB: zero pages are passed over by the GiB in a few looks.
const SMALL: u64 = 3 << 28;
/// The part of a ceiling that the mirrors must leave for RAM to be started beside them.
const ROOM: f64 = 0.2;

/// Decides what is to be done after `sample`. The same policy, history and sample always give the same; whoever carries it
/// out calls [`History::record`] with both then.
pub fn decide(policy: &Policy, history: &History, sample: &MigrationSample) -> Decision {
    let mut now = history.after(sample);
    let decided = || Decision { actions: Vec::new(), because: "it is decided already".to_owned() };
    if sample.ram.is_some_and(|ram| ram.postcopy) || now.applied.timed_out || (now.applied.gave_up && !policy.observe) {
        return decided();
    }
    if let Some(timeout) = now.job.timeout.filter(|timeout| now.at >= millis(*timeout)) {
        return give_up_in_time(policy, &now, timeout);
    }
    if now.applied.gave_up && now.applied.memory_since.is_none() {
        // who only observes waits for the mirrors all the same
        let (starts, because) = start(policy, &now);
        return Decision { actions: if starts { vec![Action::StartMemory] } else { Vec::new() }, because };
    }
    // it need not have come to it yet, which is why the timeout counts still
    if now.applied.gave_up || now.applied.postcopy {
        return decided();
    }
    let mut steps = disks::decide(policy, &now);
    let mut waiting = None;
    for (action, _) in &steps {
        now.note(action);
    }
    let noted = steps.len();
    if now.applied.memory_since.is_none() {
        match start(policy, &now) {
            (true, because) => {
                // beside mirrors that are not ready QEMU must not stop the guest on its own account
                let limit = match bandwidth::is_settled(&now) {
                    true => memory::first_limit(policy, &now),
                    false => {
                        steps.push((Action::SwitchoverBandwidth(Some(bandwidth::NOTHING)), String::new()));
                        Duration::from_millis(1)
                    }
                };
                steps.extend([(Action::DowntimeLimit(limit), because), (Action::StartMemory, String::new())]);
            }
            (false, because) => waiting = Some(because),
        }
    } else if bandwidth::is_settled(&now) && now.applied.held {
        let because = "every mirror is ready and in step: QEMU may stop the guest from here on".to_owned();
        let limit = Action::DowntimeLimit(memory::first_limit(policy, &now));
        // the limit first: a step of a schedule it is none
        steps.extend([(limit, because), (Action::SwitchoverBandwidth(now.job.ceiling), String::new())]);
    } else if bandwidth::is_settled(&now) {
        let (action, because) = match &policy.schedule {
            Some(schedule) => schedule::decide(policy, schedule, &now, history.at),
            None => memory::decide(policy, &now),
        };
        match action {
            Some(action) => steps.push((action, because)),
            None => waiting = Some(because),
        }
    }
    for (action, _) in &steps[noted..] {
        now.note(action);
    }
    let share = bandwidth::share(&now);
    if share != now.applied.share {
        let limit = |rate: Option<Rate>| rate.map_or("no limit".to_owned(), |rate| rate.to_string());
        let mirrors: Vec<String> =
            share.mirrors.iter().map(|(disk, rate)| format!("{disk}: {}", limit(*rate))).collect();
        let because = format!("RAM may have {}, mirrors {}", limit(share.memory), mirrors.join(", "));
        // before QEMU may stop the guest: what is asked then is a part of the blackout
        steps.insert(0, (Action::ShareBandwidth(share), because));
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
    let limit = history.applied.downtime.unwrap_or(history.job.budget);
    let rest =
        history.memory.estimate().map_or(millis(limit), |_| remaining as f64 / memory::tail_rate(history) * 1000.0);
    let trips = history.round_trip.get().unwrap_or_default() * 2.0;
    let foreseen = stood + rest + millis(policy.device_state) + trips;
    let allowed = millis(history.job.budget) * (1.0 + policy.slack);
    if policy.observe || foreseen <= allowed.max(millis(policy.stop_and_copy)) { Ok(foreseen) } else { Err(foreseen) }
}

/// Whether to send RAM from now on.
fn start(policy: &Policy, now: &History) -> (bool, String) {
    let unready: Vec<_> =
        now.disks.iter().map(|(name, track)| (name, track.estimate())).filter(|(_, disk)| !disk.ready).collect();
    if unready.is_empty() {
        let settled = bandwidth::is_settled(now);
        let because =
            if settled { "every mirror is ready: RAM is sent" } else { "the mirrors are to be in step with the guest" };
        return (settled, because.to_owned());
    }
    let copied: f64 = unready.iter().map(|(_, disk)| disk.rate).sum();
    let left: f64 = unready.iter().map(|(_, disk)| disk.remaining).sum();
    let waiting = format!("the mirrors copy {}, {} remain", Rate(copied as u64), Bytes(left as u64));
    if !policy.overlap || !now.job.abilities.overlap || copied <= 0.0 {
        return (false, waiting);
    }
    let longest = unready.iter().map(|(_, disk)| disk.time_to_ready());
    let Some(longest) = longest.collect::<Option<Vec<_>>>().map(|times| times.into_iter().fold(0.0, f64::max)) else {
        return (false, format!("{waiting}: RAM waits, for one of them does not catch up"));
    };
    let is_new = |disk: &String| {
        let since = now.disks.get(disk).and_then(|track| track.steady_since());
        since.is_none_or(|since| now.at - since < STEADY)
    };
    if now.job.ceiling.is_some() && unready.iter().any(|(name, _)| is_new(name)) {
        return (false, format!("{waiting}: what they leave of the ceiling is yet to be seen"));
    }
    let room = now.job.ceiling.map_or(copied, |ceiling| ceiling.0 as f64 - copied);
    if now.job.ceiling.is_some_and(|ceiling| room < ceiling.0 as f64 * ROOM) {
        return (false, format!("{waiting}: they leave no room for RAM"));
    }
    if now.job.dirty_rate.is_some_and(|dirtied| dirtied > room) {
        return (
            false,
            format!("{waiting}: RAM waits, for the guest would dirty it faster than it can be sent beside them"),
        );
    }
    if now.job.memory < SMALL {
        return (false, format!("{waiting}: RAM waits, for it is through before it could be held back"));
    }
    let memory = now.job.memory as f64 / room * 1000.0;
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
        Some(estimate) if bandwidth::is_settled(now) => memory::remedy(policy, now, &estimate),
        _ => {
            let left: f64 = now.disks.values().map(|track| track.estimate().remaining).sum();
            format!("{} of disks were still to be copied", Bytes(left as u64))
        }
    };
    let because = format!("it has taken {:.1} s of {:.1} s", now.at / 1000.0, timeout.as_secs_f64());
    Decision { actions: vec![Action::GiveUp { code: TIMEOUT, needed }], because }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::{
        ConvergenceJob,
        fixture::{ControllerRun, MIB, give_up, job, mib, mirror, policy, ready},
    };

    /// What is decided once a mirror was seen to copy 100 MiB/s, with so much (MiB) yet to copy.
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
        assert!(!starts(&small) && small.because.contains("before it could be held back"), "{small:?}");
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
        let busy = ConvergenceJob { dirty_rate: Some(mib(150).0 as f64), ..job() };
        let busy = beside(&plain, busy, 500);
        assert!(!starts(&busy) && busy.because.contains("dirty it faster"), "{busy:?}");
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
    fn the_timeout_ends_it_wherever_it_is() {
        let given = ConvergenceJob { timeout: Some(Duration::from_secs(2)), ..job() };
        let mut copying = ControllerRun::new(&policy("converge"), given.clone(), &["a"]);
        assert_eq!(give_up(&copying.look(1999, None, &[mirror("a", 100, 50)])), None);
        let decision = copying.look(1, None, &[mirror("a", 100, 60)]);
        assert_eq!(give_up(&decision), Some(("timeout", "40.0 MiB of disks were still to be copied")));
        assert!(decision.because.contains("2.0 s of 2.0 s"), "{decision:?}");
        assert_eq!(copying.look(500, None, &[]).actions, [], "once is enough");
        // also when postcopy was asked for and did not come
        let mut asked = ControllerRun::new(&policy("postcopy"), given.clone(), &[]);
        asked.look(0, None, &[]);
        asked.history.note(&Action::Postcopy);
        assert_eq!(asked.look(100, None, &[]).actions, []);
        assert!(give_up(&asked.look(2000, None, &[])).is_some());
        // but not when it runs
        let mut runs = ControllerRun::new(&policy("postcopy"), given, &[]);
        let ram = crate::convergence::RamSample { postcopy: true, total: 512 * MIB, ..Default::default() };
        assert_eq!(runs.look(3000, Some(ram), &[]).actions, []);
    }

    #[test]
    fn before_anything_is_measured_qemu_is_believed() {
        let mut run = ControllerRun::new(&policy("converge"), job(), &[]);
        assert_eq!(predicted_blackout(&run.policy, &run.history), None);
        run.look(0, None, &[]);
        let foreseen = may_hand_over(&run.policy, &run.history, 3.0, 1 << 40).expect("by its limit");
        assert!((18.0..20.0).contains(&foreseen), "3 + 10 + 5 + two round trips: {foreseen}");
        assert_eq!(may_hand_over(&run.policy, &run.history, 400.0, 0).map_err(|_| ()), Err(()));
    }
}
