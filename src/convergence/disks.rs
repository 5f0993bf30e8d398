//! What is done for a mirror that does not catch up with its guest.
//!
//! Pure.

use super::{
    decision::Action,
    estimate::{Disk, DiskTrack},
    history::History,
    policy::{DiskRung, Policy},
};
use crate::quantity::{Bytes, Rate};
use std::time::Duration;

/// Milliseconds that a mirror must have gained nothing before anything is done for it.
const STANDSTILL: f64 = 3000.0;
/// What a mirror must gain on its guest, as a part of its rate, not to be taken for one that never gets there.
const GAIN: f64 = 0.05;

/// What is to be done, each with its reason.
pub(super) fn decide(policy: &Policy, now: &History) -> Vec<(Action, String)> {
    let mut steps = Vec::new();
    let all_ready = now.disks.values().all(|track| track.estimate().ready);
    let able = now.task.can.write_blocking;
    if all_ready && able {
        let late = |name: &&String| !now.done.write_blocking.contains(name);
        let left: Vec<String> = now.disks.keys().filter(late).cloned().collect();
        if !left.is_empty() {
            let because = format!("every mirror is ready: from here no write may be behind ({})", left.join(", "));
            steps.push((Action::WriteBlocking(left), because));
        }
        let out_of_step = |(_, track): &(&String, &DiskTrack)| {
            track.out_of_step().is_some_and(|since| now.at - since > millis(policy.give_up))
        };
        if let Some((name, track)) = now.disks.iter().find(out_of_step) {
            let left = Bytes(track.estimate().remaining as u64);
            let told = format!("the mirror of {name} does not get in step with its guest's writes, {left} remain");
            let needed = format!("a mirror of {name} that gets in step");
            return vec![(Action::GiveUp { code: "disk-not-converging", needed }, told)];
        }
        return steps;
    }
    for (name, track) in &now.disks {
        let disk = track.estimate();
        if !stands_still(&disk, now.at) {
            continue;
        }
        let told = format!(
            "the mirror of {name} copies {} while its guest dirties {}, and {} remain for {} s",
            rate(disk.rate),
            rate(disk.growth),
            Bytes(disk.remaining as u64),
            ((now.at - disk.best_at) / 1000.0).round()
        );
        let next = policy.disks.iter().find_map(|rung| match rung {
            DiskRung::Bandwidth => {
                let limited = now.done.share.mirrors.values().any(Option::is_some) && now.disks.len() > 1;
                let first = !now.done.favoured.contains(name);
                (limited && first)
                    .then(|| (Action::Favour(name.clone()), format!("{told}: it gets more of the bandwidth")))
            }
            DiskRung::WriteBlocking => {
                let first = !now.done.write_blocking.contains(name);
                let step =
                    || (Action::WriteBlocking(vec![name.clone()]), format!("{told}: its guest's writes wait for it"));
                (able && first).then(step)
            }
        });
        match next {
            Some(step) => steps.push(step),
            None if now.at - disk.best_at > millis(policy.give_up) => {
                let needed = format!("a mirror of more than {}, or a guest that writes less", rate(disk.growth));
                return vec![(Action::GiveUp { code: "disk-not-converging", needed }, told)];
            }
            None => {}
        }
    }
    steps
}

/// A mirror that was looked at for long enough and gains nothing.
fn stands_still(disk: &Disk, at: f64) -> bool {
    !disk.ready && at - disk.best_at > STANDSTILL && disk.rate - disk.growth <= disk.rate * GAIN
}

fn rate(bytes: f64) -> Rate {
    Rate(bytes as u64)
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
