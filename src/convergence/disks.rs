//! The ladder for disks: the actions for a mirror that does not catch up with its guest.
//!
//! Pure.

use super::{
    decision::{Action, Decision},
    estimate::{DiskEstimate, DiskTrack, wait_at},
    history::History,
    policy::{DiskRung, Policy},
};
use crate::quantity::{Bytes, Rate};
use std::time::Duration;

/// The time without a gain after which a mirror is helped.
const STANDSTILL: Duration = Duration::from_secs(3);
/// The longest that the guest's writes wait for a mirror that copies nothing. Guests give a command to a SCSI or IDE
/// disk up after 30 s, and the way back takes time, too.
const WRITES_WAIT: Duration = Duration::from_secs(10);
/// The code of a mirror that does not catch up.
const NOT_CONVERGING: &str = "disk-not-converging";

/// The actions for the mirrors, each with its reason; a decision to give up stands alone.
pub(super) fn decide(policy: &Policy, now: &History) -> Vec<Decision> {
    if let Some(decision) = free_writes(policy, now) {
        return vec![decision];
    }
    let all_ready = now.disks.values().all(|track| track.estimate().ready);
    match all_ready && now.job.abilities.write_blocking {
        true => block_writes(policy, now),
        false => help(policy, now),
    }
}

/// Gives up a mirror that the guest's writes wait for, and that copies nothing: the link or the destination is dead.
fn free_writes(policy: &Policy, now: &History) -> Option<Decision> {
    let patience = WRITES_WAIT.min(policy.give_up);
    let (name, track, waited) = now.disks.iter().find_map(|(name, track)| {
        let waited = now.since(track.writes_wait()?);
        (waited > with_wait(now, name, patience)).then_some((name, track, waited))
    })?;
    let (paused, waited) = (why_paused(&track.estimate()), waited.as_secs_f64().round());
    let because =
        format!("the mirror of {name}{paused} has copied nothing for {waited} s, and the guest's writes wait for it");
    Some(Decision::give_up(NOT_CONVERGING, "a link to the destination that carries the disks".to_owned(), because))
}

/// The decisions for mirrors that are all ready, where QEMU can block writes.
fn block_writes(policy: &Policy, now: &History) -> Vec<Decision> {
    let out_of_step = |(name, track): &(&String, &DiskTrack)| {
        track.out_of_step().is_some_and(|since| now.since(since) > with_wait(now, name, policy.give_up))
    };
    if let Some((name, track)) = now.disks.iter().find(out_of_step) {
        let left = Bytes(track.estimate().remaining as u64);
        let because = format!("the mirror of {name} does not get in step with its guest's writes, {left} remain");
        return vec![Decision::give_up(NOT_CONVERGING, format!("a mirror of {name} that gets in step"), because)];
    }
    let background = |name: &&String| !now.applied.write_blocking.contains(name);
    let left: Vec<String> = now.disks.keys().filter(background).cloned().collect();
    if left.is_empty() {
        return Vec::new();
    }
    let because =
        format!("every mirror is ready: from now on the guest's writes wait for the mirror ({})", left.join(", "));
    vec![Decision::act(Action::WriteBlocking(left), because)]
}

/// What a person is told of a mirror that is paused.
fn why_paused(disk: &DiskEstimate) -> &'static str {
    if disk.paused { " (its job is paused, until somebody sends block-job-resume)" } else { "" }
}

/// The next rung of the ladder for each mirror that gains nothing.
fn help(policy: &Policy, now: &History) -> Vec<Decision> {
    let mut steps = Vec::new();
    for (name, track) in &now.disks {
        let disk = track.estimate();
        if !stands_still(now, name, &disk) {
            continue;
        }
        let paused = why_paused(&disk);
        let told = format!(
            "the mirror of {name}{paused} copies {} while its guest dirties {}, and {} have remained for {} s",
            rate(disk.rate),
            rate(disk.growth),
            Bytes(disk.remaining as u64),
            now.since(disk.gained_at).as_secs_f64().round()
        );
        match policy.disks.iter().find_map(|rung| climb(*rung, now, name, &told)) {
            Some(step) => steps.push(step),
            None if now.since(disk.gained_at) > with_wait(now, name, policy.give_up) => {
                // growth misses writes to what is dirty already, however often it is written
                let written = disk.growth.max(disk.write_rate);
                let needed = match disk.paused {
                    true => format!("a mirror of {name} that nobody pauses"),
                    false => format!("a mirror of more than {}, or a guest that writes less", rate(written)),
                };
                return vec![Decision::give_up(NOT_CONVERGING, needed, told)];
            }
            None => {}
        }
    }
    steps
}

/// One rung for a mirror; `None` where it was climbed already, or cannot be.
fn climb(rung: DiskRung, now: &History, name: &String, told: &str) -> Option<Decision> {
    match rung {
        DiskRung::Bandwidth => {
            let is_limited = now.applied.shares.mirrors.values().any(Option::is_some) && now.disks.len() > 1;
            (is_limited && !now.applied.favoured.contains(name)).then(|| {
                Decision::act(Action::Favour(name.clone()), format!("{told}: the mirror gets more of the bandwidth"))
            })
        }
        DiskRung::WriteBlocking => {
            let is_able = now.job.abilities.write_blocking;
            (is_able && !now.applied.write_blocking.contains(name)).then(|| {
                let action = Action::WriteBlocking(vec![name.clone()]);
                Decision::act(action, format!("{told}: from now on its guest's writes wait for it"))
            })
        }
    }
}

/// Whether a mirror was looked at for long enough and gains nothing on its guest.
fn stands_still(now: &History, name: &str, disk: &DiskEstimate) -> bool {
    let is_open = !disk.ready || (!now.job.abilities.write_blocking && !now.is_close(disk));
    is_open && now.since(disk.gained_at) > with_wait(now, name, STANDSTILL)
}

/// This patience with a mirror, and the time that the mirror's own limit makes it wait.
fn with_wait(now: &History, name: &str, patience: Duration) -> Duration {
    patience.saturating_add(wait_at(now.applied.shares.mirror(name)))
}

fn rate(bytes: f64) -> Rate {
    Rate(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::{
        ConvergenceJob, Decision, MirrorSample,
        fixture::{ControllerRun, give_up, job, mib, mirror, policy, ready},
        millis,
    };

    fn told(decision: &Decision) -> String {
        decision.because.clone()
    }

    #[test]
    fn a_mirror_that_does_not_catch_up_is_helped_step_by_step() {
        let mut job = job();
        job.ceiling = Some(mib(100));
        let mut run = ControllerRun::new(&policy("converge"), job, &["fast", "slow"]);
        let (mut favoured, mut blocking, mut ended) = (None, None, None);
        for look in 0..400u64 {
            // 10 MiB a look are copied, and as much is dirtied
            let slow = mirror("slow", 1000 + look * 10, 100 + look * 10);
            let decision = run.look(250, None, &[mirror("fast", 100_000, look * 12), slow]);
            for action in &decision.actions {
                match action {
                    Action::Favour(disk) => favoured = favoured.or(Some((run.at(), disk.clone(), told(&decision)))),
                    Action::WriteBlocking(disks) => blocking = blocking.or(Some((run.at(), disks.clone()))),
                    Action::GiveUp { .. } => ended = ended.or(Some((run.at(), decision.clone()))),
                    _ => {}
                }
            }
        }
        let (favoured, disk, because) = favoured.expect("more of the bandwidth");
        assert!(disk == "slow" && (3000.0..5000.0).contains(&favoured), "{disk} at {favoured}");
        assert!(because.contains("copies 40") && because.contains("dirties 40"), "{because}");
        let (blocking, disks) = blocking.expect("write-blocking");
        assert!(disks == ["slow"] && blocking >= favoured + millis(STANDSTILL), "{disks:?} at {blocking}");
        let (ended, decision) = ended.expect("an end");
        assert!(ended >= blocking + 30_000.0, "at {ended}");
        let (code, needed) = give_up(&decision).expect("given up");
        assert_eq!(code, "disk-not-converging");
        assert!(needed.contains("a mirror of more than 40"), "{needed}");
    }

    #[test]
    fn the_burst_that_a_mirror_begins_with_is_not_what_it_can_do() {
        let mut run = ControllerRun::new(&policy("converge"), job(), &["a"]);
        run.look(0, None, &[mirror("a", 1000, 0)]);
        // 60 MiB in 60 ms, and then as much as is dirtied
        let blocking = (0..200u64).find(|look| {
            let decision = run.look(if *look == 0 { 60 } else { 250 }, None, &[mirror("a", 1000 + look, 60 + look)]);
            decision.actions.iter().any(|action| matches!(action, Action::WriteBlocking(_)))
        });
        assert!(blocking.is_some_and(|look| look < 40), "{blocking:?}");
    }

    #[test]
    fn a_mirror_that_waits_for_its_own_limit_is_not_helped() {
        // 16 MiB at once, and then nothing for 8 s
        let looks = |dirtied: u64| {
            let job = ConvergenceJob { disk_ceiling: Some(mib(2)), ..job() };
            let mut run = ControllerRun::new(&policy("converge"), job, &["a"]);
            (0..400u64).find(|look| {
                let sample = mirror("a", 1000 + look * dirtied / 4, (look / 32 + 1) * 16);
                let actions = run.look(250, None, &[sample]).actions;
                actions.iter().any(|action| matches!(action, Action::WriteBlocking(_) | Action::GiveUp { .. }))
            })
        };
        assert_eq!(looks(1), None);
        // a guest that dirties more than that
        assert!(looks(4).is_some_and(|look| look < 200));
    }

    #[test]
    fn a_mirror_that_copies_nothing_stands_still() {
        let mut job = job();
        job.abilities.write_blocking = false;
        let mut run = ControllerRun::new(&policy("converge"), job, &["a"]);
        let end = (0..200).find(|_| give_up(&run.look(250, None, &[mirror("a", 1000, 500)])).is_some());
        assert!(end.is_some_and(|looks| (120..130).contains(&looks)), "{end:?}");
    }

    #[test]
    fn a_mirror_that_is_ready_is_given_time_for_what_its_guest_writes_at_once() {
        let mut job = job();
        job.abilities.write_blocking = false;
        let mut run = ControllerRun::new(&policy("converge"), job, &["a"]);
        // the mirror copies as much as the guest writes between two looks, but for the last of it
        for look in 0..400u64 {
            run.look(250, None, &[MirrorSample { ready: true, ..mirror("a", 101 + look * 5, 100 + look * 5) }]);
        }
        let behind = |left: u64| MirrorSample { ready: true, ..mirror("a", 3000, 3000 - left) };
        assert!((0..80).all(|look| give_up(&run.look(250, None, &[behind(500 - look)])).is_none()));
        // the patience ends
        assert!((0..200).any(|_| give_up(&run.look(250, None, &[behind(420)])).is_some()));
    }

    #[test]
    fn a_mirror_that_somebody_has_paused_is_not_waited_for_without_end() {
        // paused before QEMU knows how much there is to copy, when a part is copied, and when all is
        for (len, copied) in [(0, 0), (100, 50), (100, 100)] {
            let end = |paused: bool| {
                let mut run = ControllerRun::new(&policy("converge"), job(), &["a"]);
                run.look(250, None, &[mirror("a", len, copied)]);
                (0..400).find_map(|_| {
                    let ready = len > 0 && len == copied;
                    let sample =
                        MirrorSample { paused, ready, actively_synced: Some(ready), ..mirror("a", len, copied) };
                    let decision = run.look(250, None, &[sample]);
                    give_up(&decision).map(|_| told(&decision))
                })
            };
            let words = end(true).expect("an end");
            assert!(words.contains("block-job-resume"), "{words}");
            // an initialisation may take its time
            assert_eq!(end(false).is_none(), len == copied);
        }
    }

    #[test]
    fn a_mirror_that_stands_still_at_a_low_limit_is_waited_for_no_longer_than_the_limit_explains() {
        let mut job = ConvergenceJob { disk_ceiling: Some(mib(4)), ..job() };
        job.abilities.write_blocking = false;
        let mut run = ControllerRun::new(&policy("converge"), job, &["a"]);
        for look in 0..40 {
            run.look(250, None, &[mirror("a", 1000, look)]);
        }
        let stopped = run.at();
        let ended = (0..400).find_map(|_| give_up(&run.look(250, None, &[mirror("a", 1000, 39)])).map(|_| run.at()));
        // 16 MiB at 4 MiB/s explain 4 s of standstill, and the rates are taken over as long
        let ended = ended.expect("an end") - stopped;
        assert!((30_000.0..45_000.0).contains(&ended), "after {ended} ms");
    }

    #[test]
    fn ram_is_not_started_while_a_ready_mirror_is_paused() {
        let mut run = ControllerRun::new(&policy("converge"), job(), &["a"]);
        let mut starts = |paused: bool| {
            let decisions: Vec<_> =
                (0..40).map(|_| run.look(250, None, &[MirrorSample { paused, ..ready("a", true) }])).collect();
            decisions.iter().any(|decision| decision.actions.contains(&Action::StartMemory))
        };
        assert!(!starts(true));
        assert!(starts(false));
    }

    #[test]
    fn a_guests_writes_do_not_wait_for_a_mirror_that_copies_nothing() {
        // when each mirror was given up, in seconds after its counters stood still: the guest's writes wait since then
        let given_up = |synced: bool, left: u64, moves: bool| {
            let mut run = ControllerRun::new(&policy("converge"), job(), &["a"]);
            let mut stood = None;
            for look in 0..200u64 {
                let sample = match look {
                    0..8 => ready("a", synced),
                    _ => {
                        stood = stood.or(Some(run.at()));
                        let copied = 2000 + if moves { look } else { 0 };
                        MirrorSample {
                            actively_synced: Some(synced),
                            ready: true,
                            ..mirror("a", copied + left, copied)
                        }
                    }
                };
                let decision = run.look(250, None, &[sample]);
                if let Some((code, _)) = give_up(&decision) {
                    assert_eq!(code, "disk-not-converging");
                    assert!(told(&decision).contains("writes wait for it"), "{}", told(&decision));
                    return stood.map(|stood| ((run.at() - stood) / 1000.0).round());
                }
            }
            None
        };
        for synced in [false, true] {
            for left in [1, 500] {
                let after = given_up(synced, left, false);
                assert!(after.is_some_and(|after| (10.0..=11.0).contains(&after)), "{synced} {left}: {after:?}");
            }
        }
        assert_eq!((given_up(true, 1, true), given_up(true, 0, false)), (None, None));
    }

    #[test]
    fn a_mirror_that_gains_is_left_alone() {
        let mut run = ControllerRun::new(&policy("converge"), job(), &["a"]);
        for look in 0..200u64 {
            let decision = run.look(250, None, &[mirror("a", 10_000 + look * 8, look * 10)]);
            assert_eq!(decision.actions, [], "{}", decision.because);
        }
    }

    #[test]
    fn mirrors_that_are_ready_get_in_step_or_it_is_given_up() {
        let mut run = ControllerRun::new(&policy("converge"), job(), &["a", "b"]);
        let decision = run.look(250, None, &[ready("a", false), ready("b", false)]);
        assert_eq!(decision.actions, [Action::WriteBlocking(vec!["a".to_owned(), "b".to_owned()])]);
        let mut end = None;
        for _ in 0..200 {
            let decision = run.look(250, None, &[ready("a", true), ready("b", false)]);
            if let Some((code, needed)) = give_up(&decision) {
                end = end.or(Some((run.at(), code.to_owned(), needed.to_owned())));
            } else {
                assert_eq!(decision.actions, []);
            }
        }
        let (at, code, needed) = end.expect("an end");
        assert!(code == "disk-not-converging" && needed.contains("of b") && at > 30_000.0, "{code} {needed} {at}");
    }

    #[test]
    fn without_write_blocking_ready_is_all_there_is() {
        let mut job = job();
        job.abilities.write_blocking = false;
        let mut run = ControllerRun::new(&policy("converge"), job, &["a"]);
        let decision = run.look(250, None, &[ready("a", false)]);
        assert!(decision.actions.contains(&Action::StartMemory), "{decision:?}");
    }
}
