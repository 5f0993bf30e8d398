//! How one ceiling is divided between the mirrors and RAM.
//!
//! Pure.

use super::history::{History, Share};
use crate::quantity::Rate;
use std::collections::BTreeMap;

/// What RAM is held back to while a mirror is not ready yet: a page in each of QEMU's windows of 100 ms. 0 would be no limit.
pub(super) const HELD: Rate = Rate(4096);
/// How much more a favoured mirror gets than another.
const FAVOUR: u64 = 4;
/// The least part of the ceiling that RAM gets however much the guest writes to its disks.
const LEAST: f64 = 0.25;
/// By which part of the ceiling a share must be off before it is changed: a share that follows every sample settles nowhere.
const HYSTERESIS: f64 = 0.125;
/// For how much of its fastest pace RAM is held back before its end, seconds: a look at it must come in between.
const RESERVE: f64 = 0.3;

/// How the ceiling is shared out, as far as things stand.
pub(super) fn share(history: &History) -> Share {
    let task = &history.task;
    let waiting = history.disks.values().any(|disk| !disk.estimate().ready);
    let overlapped = history.done.memory_since.is_some() && !is_settled(history);
    let memory = match (overlapped, task.ceiling) {
        (true, _) if is_held(history) => Some(HELD),
        (_, None) => None,
        (true, Some(ceiling)) => Some(room(history, ceiling)),
        (false, Some(ceiling)) => {
            let written: f64 = history.disks.values().map(|disk| disk.estimate().write_rate).sum();
            Some(at_least(ceiling, ceiling.0 as f64 - written))
        }
    };
    let memory = match (memory, history.done.share.memory, task.ceiling) {
        // near enough to what it is
        (Some(new), Some(old), Some(ceiling)) if new != HELD && old != HELD => {
            let off = (new.0 as f64 - old.0 as f64).abs();
            Some(if off < ceiling.0 as f64 * HYSTERESIS { old } else { new })
        }
        (new, _, _) => new,
    };
    let for_mirrors = [task.ceiling, task.disk_ceiling].into_iter().flatten().min();
    let weight = |disk: &str| if history.done.favoured.iter().any(|name| name == disk) { FAVOUR } else { 1 };
    // those that are ready only carry what the guest writes: once one is, the others get its part
    let takes_part = |disk: &String| !waiting || history.disks.get(disk).is_some_and(|track| !track.estimate().ready);
    let all: u64 = history.disks.keys().filter(|&disk| takes_part(disk)).map(|disk| weight(disk)).sum();
    let mirrors: BTreeMap<String, Option<Rate>> = history
        .disks
        .keys()
        .map(|disk| {
            let equal = u64::try_from(history.disks.len()).unwrap_or(u64::MAX);
            let part = |total: Rate| match takes_part(disk) {
                true => total.0 / all.max(1) * weight(disk),
                false => total.0 / equal.max(1),
            };
            // 0 would mean no limit
            (disk.clone(), for_mirrors.map(|total| Rate(part(total).max(1))))
        })
        .collect();
    Share { memory, mirrors }
}

/// Every mirror is ready, and none can fall behind any more where QEMU can see to that.
pub(super) fn is_settled(history: &History) -> bool {
    history.disks.values().all(|track| {
        let disk = track.estimate();
        disk.ready && (disk.synced || !history.task.can.write_blocking)
    })
}

/// What the mirrors leave of a ceiling.
pub(super) fn room(history: &History, ceiling: Rate) -> Rate {
    let copied: f64 = history.disks.values().map(|disk| disk.estimate().rate).sum();
    at_least(ceiling, ceiling.0 as f64 - copied)
}

/// Whether RAM is so far that it must wait for the mirrors: with the rest it could be through before it is looked at again,
/// and then the guest would stand still for as long as they need.
fn is_held(history: &History) -> bool {
    let held = history.done.share.memory == Some(HELD);
    held || history.memory.last().is_some_and(|now| {
        let peak = history.memory.estimate().map_or(0.0, |memory| memory.peak);
        (now.remaining as f64) < (peak * RESERVE).max(now.total as f64 / 8.0)
    })
}

fn at_least(ceiling: Rate, rate: f64) -> Rate {
    Rate(rate.max(ceiling.0 as f64 * LEAST).max(1.0) as u64)
}
