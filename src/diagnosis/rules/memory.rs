//! RAM that does not converge.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    pair::{AT_LIMIT, PairLooks, SideLooks},
    remedy::RemedyCommand,
};
use crate::{
    codes::DiagnosisCode,
    progress::Side,
    qemu::reply::{MigrationRamStats, MigrationStatus},
    quantity::{Bytes, Rate},
};
use serde_json::json;

/// The first pass sends all of RAM, and says nothing about convergence.
const PASSES: u64 = 3;
/// The part of the bandwidth from which the guest's dirtying counts as as fast.
const AS_FAST: f64 = 0.95;
/// The same where passes are short: QEMU counts what was dirtied by the second, in which there are a few passes, or one
/// more.
const AS_FAST_BY_FEW: f64 = 0.85;
/// The passes seen to end from which the memory to send shrinks visibly where it does at all.
const SEEN_PASSES: usize = 3;
/// The passes without a gain from which on a guest that dirties less than is sent counts as not converging: some in
/// each half of the looks.
const SETTLED: u64 = 6;
/// A limit that no link reaches: 1 TiB/s.
const UNLIMITED: u64 = 1 << 40;
/// The part by which the memory to send must have shrunk to count as converging.
const GAIN: f64 = 0.1;
/// The same where the guest dirties as fast as is sent: looks at random moments of short passes differ by that much.
const GAIN_AS_FAST: f64 = 0.4;

/// QEMU's own limit of the downtime, milliseconds.
const USUAL_DOWNTIME: u64 = 300;

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    causes.extend(looks.source.iter().flat_map(stays));
}

/// RAM that is sent without an end in sight.
fn stays(source: &SideLooks) -> Vec<Cause> {
    if !source.kept(&MigrationStatus::Active) {
        return Vec::new();
    }
    let all: Vec<&MigrationRamStats> = source.looks.iter().filter_map(|look| look.migration.ram.as_ref()).collect();
    let Some((first, last)) = all.first().zip(all.last()) else { return Vec::new() };
    if all.len() < source.looks.len()
        || first.dirty_sync_count < PASSES
        || last.dirty_sync_count == first.dirty_sync_count
    {
        return Vec::new();
    }
    let seconds = source.span().as_secs_f64();
    let sent = last.transferred.saturating_sub(first.transferred) as f64 / seconds;
    let dirtied = |ram: &MigrationRamStats| ram.dirty_pages_rate.saturating_mul(ram.page_size) as f64;
    let slowest = all.iter().map(|ram| dirtied(ram)).fold(f64::INFINITY, f64::min);
    let remaining: Vec<u64> = all.iter().map(|ram| ram.remaining).collect();
    let ended = remaining.windows(2).filter(|pair| matches!(pair, [then, now] if then < now)).count();
    let is_fast = slowest >= sent * if ended >= SEEN_PASSES { AS_FAST_BY_FEW } else { AS_FAST };
    // A guest that dirties less than is sent converges pass by pass: it does not if many passes have gained nothing.
    if !is_fast && last.dirty_sync_count.saturating_sub(first.dirty_sync_count) < SETTLED {
        return Vec::new();
    }
    let gain = if is_fast { GAIN_AS_FAST } else { GAIN };
    // The memory to send is most right after a sync, and between two syncs anything below.
    let shrinks = |numbers: &[u64]| {
        let most = |numbers: &[u64]| numbers.iter().copied().max().unwrap_or_default() as f64;
        let (before, after) = numbers.split_at(numbers.len() / 2);
        most(after) < most(before) * (1.0 - gain)
    };
    // Few looks at short passes see a shrinking rest by chance. QEMU's forecast goes by the whole rest of a sync.
    let forecast: Vec<u64> = source.looks.iter().filter_map(|look| look.migration.expected_downtime).collect();
    let is_foretold = is_fast && forecast.len() == all.len() && !shrinks(&forecast);
    if sent <= 0.0 || shrinks(&remaining) && !is_foretold {
        return Vec::new();
    }
    let throttle = source.migration().and_then(|migration| migration.cpu_throttle_percentage).unwrap_or_default();
    let mut evidence = vec![format!(
        "{} of RAM were sent at {} over {seconds:.1} s, and the guest dirties {} ({} passes so far)",
        Bytes(last.transferred.saturating_sub(first.transferred)),
        Rate(sent as u64),
        Rate(dirtied(last) as u64),
        last.dirty_sync_count
    )];
    evidence.push(format!(
        "{} were left at the first look, {} at the last",
        Bytes(first.remaining),
        Bytes(last.remaining)
    ));
    if throttle > 0 {
        evidence.push(format!("QEMU throttles the guest by {throttle} %"));
    }
    let limit = source.parameter("max-bandwidth").filter(|&limit| limit > 0);
    let capped = limit.filter(|&limit| sent >= limit as f64 * AT_LIMIT);
    let small = too_small(source, evidence.clone());
    // a working set that is rewritten within a pass is counted as dirtied as fast as it is sent, also where a pass is
    // so short that a little more downtime would do
    let fast = match (capped, is_fast) {
        (Some(limit), is_fast) if is_fast || small.is_some() => Some(held_down(limit, evidence)),
        (None, true) => Some(too_fast(evidence)),
        _ => None,
    };
    let is_near = capped.is_none() && is_near(source);
    let possible = |cause: Cause| Cause { confidence: Confidence::Possible, ..cause };
    let (fast, small) = match (fast, small) {
        (Some(fast), Some(small)) if is_near => (Some(possible(fast)), Some(small)),
        (Some(fast), small) => (Some(fast), small.map(possible)),
        (None, small) => (None, small),
    };
    fast.into_iter().chain(small).collect()
}

/// Whether the guest would have to stop for hardly longer than it may.
fn is_near(source: &SideLooks) -> bool {
    let limit = source.parameter("downtime-limit").unwrap_or_default();
    let most = source.looks.iter().filter_map(|look| look.migration.expected_downtime).max();
    most.is_some_and(|most| most <= limit.saturating_mul(2).max(USUAL_DOWNTIME))
}

/// A limit keeps the bandwidth below what the guest dirties.
fn held_down(limit: u64, mut evidence: Vec<String>) -> Cause {
    evidence.push(format!("max-bandwidth is {}", Rate(limit)));
    let cause = Cause::new(DiagnosisCode::BandwidthCapped, Confidence::Likely, evidence);
    cause
        .remedy(
            "raise max-bandwidth as far as the link carries; where the guest dirties more than that, throttle it or go over \
             to postcopy",
            "other traffic of the link gets less",
        )
        .command(RemedyCommand::new(Side::Source, "migrate-set-parameters", json!({ "max-bandwidth": UNLIMITED })))
        .fixable()
}

/// The guest dirties as much as the channel carries.
fn too_fast(evidence: Vec<String>) -> Cause {
    Cause::new(DiagnosisCode::NotConverging, Confidence::Likely, evidence).remedy(
        "throttle the guest (auto-converge), go over to postcopy, raise downtime-limit to what the remaining RAM needs, or \
         begin again with compression; qferry migrate does the first by itself, and its policy postcopy the second",
        "a throttled guest is slow; in postcopy a broken channel stops the guest",
    )
}

/// What is left would fit through the channel, but not in the time for which QEMU may stop the guest.
fn too_small(source: &SideLooks, mut evidence: Vec<String>) -> Option<Cause> {
    let limit = source.parameter("downtime-limit")?;
    let expected: Vec<u64> = source.looks.iter().filter_map(|look| look.migration.expected_downtime).collect();
    let (least, most) = expected.iter().min().zip(expected.iter().max())?;
    if expected.len() < source.looks.len() || *least <= limit {
        return None;
    }
    evidence.push(format!("QEMU expects to stop the guest for {least} ms or more, and downtime-limit is {limit} ms"));
    let raised = most.saturating_add(most / 10).saturating_add(1);
    let cause = Cause::new(DiagnosisCode::DowntimeTooSmall, Confidence::Likely, evidence);
    Some(
        cause
            .remedy(
                format!("raise downtime-limit to {raised} ms, if the guest may stand still for so long"),
                "the guest stands still for as long",
            )
            .command(RemedyCommand::new(Side::Source, "migrate-set-parameters", json!({ "downtime-limit": raised })))
            .fixable(),
    )
}
