//! The blackout as the guest feels it: the ledger against the guest's own beat, with slow flushes on either side.
//!
//! Promise: true-blackout.

mod devices;
mod timerless;

use super::{
    proxied::Proxied,
    support::{builder, busy, judge_back, judge_running, migrate_and, migrate_when, qferry, spec, start},
};
use qferry::internals::{
    endpoint::Address,
    migration::Running,
    progress::{Ending, Event, EventKind, Outcome, PauseCause, Phase},
    quantity::Rate,
    storage::verify::identity::ProofLevel,
};
use qferry_bed::{Pair, Side, Spec, Workload, flush_slowly};
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};

/// The time between two beats: a busy host wakes a guest some milliseconds late.
const BEAT: Duration = Duration::from_millis(100);
const SLOW: Duration = Duration::from_millis(400);

/// A guest that has a write or its flush under way nearly always.
fn writing(version: &str) -> Spec {
    let workload = Workload { beat: BEAT, ram: 8 << 20, dirty: 1 << 20, write: 20, read: 0, ..Workload::default() };
    Spec { slow_flush: true, ..spec(version, workload) }
}

fn sends(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Memory { status, .. } if status == "active")
}

/// Whether the guest's beat and the ledger agree. A busy host that does not wake the guest in time makes its silence
/// longer, as it does at other times of the run: the longest such gap on either side is allowed for.
fn agrees_with_the_beat(version: &str, slow: Side) -> bool {
    let pair = start(&writing(version));
    let began = Instant::now();
    let act = |_: &Running<Outcome>| pair.machine(slow).flush_slowly(SLOW).unwrap();
    let (outcome, _) = migrate_and(builder(&pair), Phase::Memory, act);
    pair.machine(slow).flush_slowly(Duration::ZERO).ok();
    let blackout = outcome.blackout_ms.unwrap_or_else(|| panic!("{outcome:#?}"));
    // QEMU's own figure, in whole milliseconds, is of the source's part alone. How much of a flush falls into the stop
    // is chance.
    let downtime = outcome.qemu_downtime_ms.expect("QEMU told it") as f64;
    assert!(blackout + 3.0 >= downtime, "{outcome:#?}");
    let last = outcome.pauses.last().expect("the blackout is a pause");
    assert_eq!((last.why, last.ms), (PauseCause::Switchover, blackout));
    // A guest that comes from a 7.2 may have lost its timer. STOP comes first there, which `judge_running` compares.
    let mut agrees = true;
    if version != "7.2" {
        pair.wait_for_beats(Side::Destination, 5, super::support::WAIT).unwrap();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let [before, after] = [Side::Source, Side::Destination].map(|side| {
            let mut beats = pair.beats(side);
            beats.retain(|beat| beat.at >= began);
            beats
        });
        let (last, first) = (before.last().expect("beats"), after.first().expect("beats"));
        let silence = ms(first.at - last.at);
        let gaps = [&before, &after].into_iter().flat_map(|beats| beats.windows(2));
        let noise = gaps.map(|beats| ms(beats[1].at - beats[0].at)).fold(0.0, f64::max);
        let apart = 2.0 * ms(BEAT);
        assert!(silence + apart >= blackout, "{silence} ms without a beat: {outcome:#?}");
        agrees = silence <= blackout + apart.max(noise);
        println!(
            "{version}: {silence:.0} ms without a beat, {noise:.0} at other times, a blackout of {blackout:.0} ms"
        );
    }
    judge_running(&pair, &outcome);
    agrees
}

fn agree_once_in_three(version: &str, slow: Side) {
    assert!(
        (0..3).any(|_| agrees_with_the_beat(version, slow)),
        "{version}: the guest was silent for longer each time than its ledger and its host explain"
    );
}

#[test]
fn the_ledger_agrees_with_the_beat_while_the_source_flushes_slowly() {
    ["10.0.13", "11.1", "7.2"].into_iter().for_each(|version| agree_once_in_three(version, Side::Source));
}

#[test]
fn the_ledger_agrees_with_the_beat_while_the_destination_flushes_slowly() {
    ["10.0.13", "11.1", "7.2"].into_iter().for_each(|version| agree_once_in_three(version, Side::Destination));
}

/// The budget counts what QEMU drains and flushes before it says STOP, and the reason names the flush. Whether a flush
/// is under way when QEMU stops the guest is chance: without one, the guest moves within a part of the flush's time.
#[test]
fn a_flush_beyond_the_budget_leads_back_and_is_named() {
    let pair = start(&writing("10.0.13"));
    let act = |_: &Running<Outcome>| pair.source.flush_slowly(SLOW * 3).unwrap();
    let builder = builder(&pair).downtime(Duration::from_millis(300)).bandwidth(Rate(16 << 20));
    let (outcome, _) = migrate_when(builder, sends, act);
    pair.source.flush_slowly(Duration::ZERO).ok();
    if outcome.outcome == Ending::Moved {
        assert!(outcome.blackout_ms.is_some_and(|ms| ms < 1000.0), "{outcome:#?}");
        return judge_running(&pair, &outcome);
    }
    let reason = outcome.reason.as_ref().map_or("", |reason| reason.message.as_str());
    assert!(reason.contains("drained and flushed the source's disks"), "{outcome:#?}");
    assert!(outcome.blackout_ms.is_some_and(|ms| ms >= 1000.0), "{outcome:#?}");
    assert_eq!(outcome.pauses.last().map(|pause| pause.why), Some(PauseCause::WentBack));
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
}

/// The engine flushes the images itself while the guest runs, so that QEMU finds little to flush at the stop. Nothing
/// waits for such a flush: in this engine each takes an hour, and the move is over long before.
/// Promise: no-endless-wait.
#[test]
fn images_are_flushed_while_the_guest_runs_and_nothing_waits_for_that() {
    let pair = start(&spec("10.0.13", busy()));
    let folder = tempfile::tempdir().unwrap();
    let mut command = qferry(&pair, "migrate");
    // A journal would be flushed, too, and be waited for. RAM takes seconds at this bandwidth.
    command.args(["--json", "--no-journal", "--bandwidth", "32MiB/s", "--source"]).arg(pair.source.qmp_path());
    command.arg("--destination").arg(pair.destination.qmp_path());
    command.env("XDG_RUNTIME_DIR", folder.path());
    flush_slowly(&mut command, folder.path(), Duration::from_secs(3600)).unwrap();
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = |key: &str, value: &str| lines.iter().position(|line| line[key] == value);
    let (flushed, switchover) = (first("action", "flush-images"), first("phase", "switchover"));
    assert!(flushed.is_some() && flushed < switchover, "{told}");
    let outcome: Outcome = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    judge_running(&pair, &outcome);
}

/// A flush is no hang: the destination answers meanwhile. It is waited for beyond the time after which a silent source
/// is freed, for a part of what the switchover may take.
/// Promise: no-endless-wait.
#[test]
fn a_flush_of_seconds_is_waited_for_within_the_time_of_the_switchover() {
    let pair = start(&writing("10.0.13"));
    // The source's main loop is silent for one flush or two, and a hang would be seen after ten seconds.
    let flush = Duration::from_secs(11);
    let act = |_: &Running<Outcome>| pair.source.flush_slowly(flush).unwrap();
    let builder = builder(&pair).downtime(flush * 4).switchover_timeout(flush * 12).bandwidth(Rate(16 << 20));
    let (outcome, events) = migrate_when(builder, sends, act);
    pair.source.flush_slowly(Duration::ZERO).ok();
    assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
    let yanks = |event: &Event| matches!(&event.kind, EventKind::Action { action, .. } if action == "yank");
    assert!(!events.iter().any(yanks), "{events:#?}");
    judge_running(&pair, &outcome);
}

/// The source stalls once while RAM is sent: nothing is known from that of its answers at the stop.
#[test]
fn a_stall_of_the_source_before_its_stop_decides_nothing() {
    let pair = start(&writing("10.0.13"));
    let stall = |pair: &Pair| {
        pair.source.stop_process().unwrap();
        thread::sleep(Duration::from_millis(1400));
        pair.source.continue_process().unwrap();
    };
    thread::scope(|scope| {
        let builder = builder(&pair).downtime(Duration::from_secs(1)).strict_budget().bandwidth(Rate(16 << 20));
        // The engine is on this thread, and must not stand still meanwhile.
        let (outcome, _) = migrate_when(builder, sends, |_| drop(scope.spawn(|| stall(&pair))));
        judge_running(&pair, &outcome);
    });
}

/// In write-blocking mode the guest's writes wait for the destination: a frozen one is found out by its silence out of
/// band, and let go of.
/// Promise: no-endless-wait.
#[test]
fn a_guests_writes_do_not_wait_for_a_frozen_destination() {
    let pair = start(&writing("10.0.13"));
    thread::scope(|scope| {
        let freeze = || {
            pair.destination.stop_process().unwrap();
            let frozen = Instant::now();
            // One write may have been answered before, and some are under way.
            pair.wait_for_writes(Side::Source, 10, super::support::WAIT).unwrap();
            frozen.elapsed()
        };
        let builder = builder(&pair).downtime(Duration::from_millis(300)).bandwidth(Rate(8 << 20));
        let mut frozen = None;
        let (outcome, _) = migrate_when(builder, sends, |_| frozen = Some(scope.spawn(freeze)));
        let reason = outcome.reason.as_ref().map_or("", |reason| reason.message.as_str());
        assert!(reason.contains("not even out of band"), "{outcome:#?}");
        let waited = frozen.expect("it was begun").join().unwrap();
        // On a host with five times as much to do as it can, ten writes took one to two seconds. Without the look
        // at the destination the guest waits for ten, until the source is found to hang.
        assert!(waited < Duration::from_secs(5), "{waited:?}: {outcome:#?}");
        judge_back(&pair, &outcome, Ending::RolledBack, "running");
    });
}

/// The destination answers, and the link to it carries no disks any more: the guest's writes wait until the mirror is
/// given up that copies nothing.
/// Promise: no-endless-wait.
#[test]
fn a_guests_writes_do_not_wait_for_a_dead_link() {
    // RAM that does not converge is under way until the mirror is given up. An engine that never does so has a limit.
    let workload = Workload { ram: 64 << 20, dirty: 64 << 20, ..writing("10.0.13").workload };
    let pair = start(&Spec { workload, ..writing("10.0.13") });
    let proxied = Proxied::new(&pair);
    let disks = proxied.relay_disks();
    let mut settings = proxied.settings();
    settings.nbd_address = Some(Address::unix(disks.front()).unwrap());
    settings.verify_backing = ProofLevel::Off;
    let builder = proxied.builder_with(settings).policy("ram = []".parse().unwrap());
    let builder = builder.bandwidth(Rate(8 << 20)).timeout(Duration::from_secs(120));
    let (outcome, _) = migrate_when(builder, sends, |_| disks.black_hole());
    let reason = outcome.reason.as_ref().map_or("", |reason| reason.message.as_str());
    assert!(reason.contains("the guest's writes wait for it"), "{outcome:#?}");
    pair.wait_for_writes(Side::Source, 10, super::support::WAIT).unwrap();
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
}

/// While QEMU opens the destination's export its main loop waits, and the guest with it: for a second, if nobody
/// answers there. The destination answers again in time for the way back.
/// Promise: no-endless-wait.
#[test]
fn a_guest_stands_a_second_for_an_export_that_nobody_opens() {
    const THAWED_AFTER: Duration = Duration::from_secs(5);
    let pair = start(&writing("10.0.13"));
    let proxied = Proxied::new(&pair);
    let mut frozen = None;
    let outcome = thread::scope(|scope| {
        let thaw = || {
            thread::sleep(THAWED_AFTER);
            pair.destination.continue_process().unwrap();
        };
        let freeze = || {
            pair.destination.stop_process().unwrap();
            frozen = Some(Instant::now());
            scope.spawn(thaw);
        };
        proxied.migrate_and_at(proxied.builder(), (Side::Source, "drive-mirror"), freeze).0
    });
    let frozen = frozen.expect("it was frozen");
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    assert_eq!(outcome.blackout_ms, None, "nobody stopped it: {outcome:#?}");
    let beats = pair.beats(Side::Source);
    let gaps = beats.windows(2).filter(|beats| beats[1].at > frozen).map(|beats| beats[1].at - beats[0].at);
    let longest = gaps.max().expect("the guest beats on");
    // A busy host wakes QEMU and its guest late.
    assert!(longest < THAWED_AFTER * 3 / 5, "{longest:?} without a beat: {outcome:#?}");
}
