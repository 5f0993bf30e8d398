//! The measurements of the preflight, compared with the known workload of a guest. No part of a measurement stays
//! behind.

use crate::support::{MIB, WAIT, block_on, builder, idle, judge_running, migrate, settings, spec, start};
use qferry::internals::{
    endpoint::Address,
    migration::{Builder, Plan, Settings},
    preflight::{checks::Severity, measurements::GuestMeasurements},
    quantity::Rate,
    storage::verify::identity::ProofLevel,
};
use qferry_bed::{Done, Guest, Pair, Side, Spec, Style, Workload, free_port};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A guest with a known workload: 10 MiB/s over 32 MiB of RAM, and 100 writes of 8 KiB a second.
fn known() -> Workload {
    Workload { ram: 32 * MIB, dirty: 10 * MIB, write: 100, block: 8192, read: 0, ..Workload::default() }
}

fn predicting(pair: &Pair, change: impl FnOnce(&mut Settings)) -> Builder {
    let mut settings = settings(pair);
    settings.predict = true;
    change(&mut settings);
    builder(pair).settings(settings)
}

fn look(pair: &Pair, change: impl FnOnce(&mut Settings)) -> Plan {
    predicting(pair, change).check().unwrap().wait_blocking().unwrap_or_else(|failure| panic!("{failure:?}"))
}

#[track_caller]
fn measured(plan: &Plan) -> &GuestMeasurements {
    plan.measured().unwrap_or_else(|| panic!("{:#?}", plan.findings))
}

/// Nothing of a measurement is left in the two QEMUs and in the runtime directory.
#[track_caller]
fn nothing_left(pair: &Pair) {
    assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new(), "on the source");
    assert_eq!(pair.destination.leftovers().unwrap(), Vec::<String>::new(), "on the destination");
    assert_eq!(std::fs::read_dir(pair.run_dir()).unwrap().count(), 0, "in the runtime directory");
}

#[track_caller]
fn within<T: PartialOrd + Copy + std::fmt::Debug>(value: T, least: T, most: T, all: &GuestMeasurements) {
    assert!(least <= value && value <= most, "{value:?} is not from {least:?} to {most:?}: {all:#?}");
}

/// The least and the most work of the guest in any window of at least this length, scaled to this length. Nobody knows
/// which window QEMU measured, and a busy host slows the guest down now and then.
fn least_and_most(pair: &Pair, began: Instant, window: Duration, what: impl Fn(Done) -> u64) -> (f64, f64) {
    const STEP: Duration = Duration::from_millis(20);
    let ended = Instant::now();
    // The guest's record may arrive late.
    pair.wait_for_beats(Side::Source, 50, WAIT).unwrap();
    let ends = (0..).map(|number| began + STEP * number).take_while(|end| *end <= ended + STEP * 10);
    let sums: Vec<u64> = ends.map(|end| what(pair.done(began, end))).collect();
    let steps = window.div_duration_f64(STEP);
    let mut all = Vec::new();
    for (from, before) in sums.iter().enumerate() {
        let after = sums.iter().enumerate().skip(from + steps as usize);
        all.extend(after.map(|(until, after)| (after - before) as f64 * steps / (until - from) as f64));
    }
    (all.iter().copied().fold(f64::INFINITY, f64::min), all.iter().copied().fold(0.0, f64::max))
}

/// A rate that a probe over a unix socket or loopback may have. How fast the host is decides it: `scripts/bench
/// predict` compares the estimate with the result.
#[track_caller]
fn arrives(rate: Option<Rate>) {
    let rate = rate.unwrap();
    assert!(Rate(MIB) < rate && rate < Rate(1 << 36), "{rate:?}");
}

/// Measures a guest: workload and link are seen, nothing stays behind, and the destination can still be used.
fn sees(spec: &Spec) -> Pair {
    let pair = start(spec);
    let began = Instant::now();
    let plan = look(&pair, |_| ());
    let took = began.elapsed();
    let gap = pair.longest_gap(began).map(|gap| gap.length);
    let all = measured(&plan);
    eprintln!("{}: {took:?}, longest gap {gap:?}: {all:#?}", spec.version);
    assert_eq!((all.running, all.missing.as_slice()), (true, &[][..]));
    assert!(plan.findings.iter().all(|finding| finding.code != "not-measured"), "{:#?}", plan.findings);
    // QEMU samples pages, and the guest's kernel dirties some as well.
    for &(window, bytes) in &all.dirtied {
        let step = spec.workload.pages() / 16;
        let (least, most) = least_and_most(&pair, began, window, |done| done.pages);
        let [least, most] = [least - step as f64, most + step as f64].map(|pages| pages * 4096.0);
        within(bytes as f64, 0.6 * least, 2.0 * most, all);
    }
    // Writes are counted over all windows together, and a little longer.
    let window: Duration = all.dirtied.iter().map(|(window, _)| *window).sum();
    let (least, most) = least_and_most(&pair, began, window, |done| done.writes);
    let [disk] = all.disks.as_slice() else { panic!("{all:#?}") };
    let in_window = disk.writes * window.as_secs_f64();
    within(in_window, 0.9 * least - 2.0, 1.1 * most + 2.0, all);
    within(disk.bytes.0 as f64 / disk.writes, 8191.0, 8193.0, all);
    within(disk.latency.unwrap(), Duration::from_micros(1), Duration::from_millis(100), all);
    arrives(all.bandwidth);
    within(all.used.unwrap(), 32 * MIB, 192 * MIB, all);
    within(all.source_round_trip, Duration::from_micros(1), Duration::from_millis(100), all);
    within(all.destination_round_trip, Duration::from_micros(1), Duration::from_millis(100), all);
    nothing_left(&pair);
    pair
}

#[test]
fn a_known_guest_on_10_0_13() {
    let pair = sees(&spec("10.0.13", known()));
    judge_running(&pair, &migrate(builder(&pair)));
}

#[test]
fn a_known_guest_by_drive_on_11_1() {
    let pair = sees(&Spec { style: Style::Drive, ..spec("11.1", known()) });
    // The migration measures as well before it begins.
    judge_running(&pair, &migrate(predicting(&pair, |_| ())));
}

/// QEMU 7.2 measures whole seconds only.
#[test]
fn a_known_guest_on_7_2() {
    let pair = sees(&spec("7.2", known()));
    assert_eq!(pair.errors(), Vec::<String>::new());
}

#[test]
fn memory_that_is_dirtied_again_and_again_counts_once() {
    let pair = start(&spec("10.0.13", Workload { ram: 16 * MIB, dirty: 60 * MIB, ..idle() }));
    let began = Instant::now();
    let plan = look(&pair, |settings| settings.bandwidth = Some(Rate(100 * MIB)));
    let all = measured(&plan);
    // With a ceiling no probe is sent, and none is missing.
    assert_eq!((all.bandwidth, all.missing.as_slice()), (None, &[][..]));
    let (window, bytes) = *all.dirtied.last().unwrap();
    // On a busy host the guest may not have dirtied all of its memory within the window.
    let (least, _) = least_and_most(&pair, began, window, |done| done.pages);
    let least = (least * 4096.0).min((16 * MIB) as f64);
    within(bytes as f64, 0.75 * least, (24 * MIB) as f64, all);
}

#[test]
fn of_a_paused_guest_only_the_way_is_measured() {
    let pair = start(&Spec { guest: Guest::Paused, ..spec("10.0.13", known()) });
    let plan = look(&pair, |_| ());
    let all = measured(&plan);
    assert_eq!((all.running, all.dirtied.len(), all.disks.len(), all.missing.len()), (false, 0, 0, 0), "{all:#?}");
    assert!(all.bandwidth.is_some(), "{all:#?}");
    nothing_left(&pair);
}

#[test]
fn a_probe_over_tcp() {
    let pair = start(&Spec::quick());
    let tcp = |port: u16| -> Address { format!("tcp:127.0.0.1:{port}").parse().unwrap() };
    let over_tcp = |settings: &mut Settings| settings.nbd_address = Some(tcp(free_port().unwrap()));
    arrives(measured(&look(&pair, over_tcp)).bandwidth);
    nothing_left(&pair);
}

/// A note tells what cannot be measured, and the migration is still allowed.
#[test]
fn what_cannot_be_measured_is_noted() {
    let pair = start(&Spec::quick());
    let server = json!({"addr": {"type": "unix", "data": {"path": pair.run_dir().join("theirs")}}});
    pair.destination.qmp("nbd-server-start", &server).unwrap();
    let plan = look(&pair, |settings| settings.verify_backing = ProofLevel::Off);
    let notes: Vec<_> = plan.findings.iter().filter(|finding| finding.code == "not-measured").collect();
    let what: Vec<&str> = notes.iter().map(|finding| finding.subject.as_str()).collect();
    assert_eq!(what, ["dirty-rate", "bandwidth"], "{notes:#?}");
    assert!(notes.iter().all(|finding| finding.severity == Severity::Note), "{notes:#?}");
    assert!(notes[0].message.contains("128.0 MiB"), "{notes:#?}");
    assert!(notes[1].message.contains("already running"), "{notes:#?}");
    assert_eq!(plan.blockers().count(), 0);
    let all = measured(&plan);
    assert_eq!((all.dirtied.len(), all.disks.len(), all.bandwidth), (0, 1, None), "{all:#?}");
    // The NBD server of somebody else is left alone.
    let left = pair.destination.leftovers().unwrap();
    assert!(left.len() == 1 && left[0].contains("theirs"), "{left:?}");
    assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new());
}

#[test]
fn a_check_that_is_cancelled_while_it_measures_leaves_nothing() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let pair = start(&Spec { version: version.to_owned(), ..Spec::quick() });
        block_on(async {
            let mut check = predicting(&pair, |_| ()).check_here().unwrap();
            let control = check.control();
            let waiting = tokio::spawn(async move { check.wait().await });
            // A job on the source is the probe.
            let began = Instant::now();
            while pair.source.qmp("query-jobs", &json!({})).unwrap().as_array().is_none_or(Vec::is_empty) {
                assert!(began.elapsed() < WAIT, "no probe was ever sent");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            control.cancel();
            let ended = waiting.await.unwrap();
            assert!(ended.as_ref().is_err_and(|reason| reason.code == "cancelled"), "{version}: {ended:#?}");
        });
        nothing_left(&pair);
    }
}

/// A killed probe leaves nodes, a job and an export. All have the engine's names, so `--clean` removes them.
#[test]
fn what_a_killed_probe_leaves_is_cleaned_on_the_users_word() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let pair = start(&Spec { version: version.to_owned(), ..Spec::quick() });
        let path = pair.run_dir().join("probe");
        let (at_source, at_destination) = (&pair.source, &pair.destination);
        let null = |name: &str, zeros: bool| json!({"driver": "null-co", "node-name": name, "size": 64 * MIB, "read-zeroes": zeros});
        at_destination.qmp("blockdev-add", &null("qferry-probe-sink", false)).unwrap();
        at_destination.qmp("nbd-server-start", &json!({"addr": {"type": "unix", "data": {"path": path}}})).unwrap();
        let export = json!({
            "type": "nbd", "id": "qferry-probe-export", "node-name": "qferry-probe-sink", "name": "qferry-probe-export",
            "writable": true,
        });
        at_destination.qmp("block-export-add", &export).unwrap();
        at_source.qmp("blockdev-add", &null("qferry-probe-zeros", true)).unwrap();
        let image = json!({"driver": "nbd", "server": {"type": "unix", "path": path}, "export": "qferry-probe-export"});
        let target = json!({
            "driver": "blkdebug", "node-name": "qferry-probe-target", "opt-write-zero": 32 * MIB, "image": image,
        });
        at_source.qmp("blockdev-add", &target).unwrap();
        let mirror = json!({
            "job-id": "qferry-probe-job", "device": "qferry-probe-zeros", "target": "qferry-probe-target", "sync": "full",
            "auto-dismiss": false,
        });
        at_source.qmp("blockdev-mirror", &mirror).unwrap();
        let refused = look(&pair, |_| ());
        assert!(refused.blockers().all(|finding| finding.code == "leftover"), "{:#?}", refused.findings);
        assert!(refused.blockers().count() >= 5 && refused.measured().is_none(), "{:#?}", refused.findings);
        let outcome = migrate(predicting(&pair, |settings| settings.clean = true));
        assert_eq!(outcome.outcome, qferry::internals::progress::Ending::Moved, "{version}: {outcome:#?}");
        let nodes = at_destination.qmp("query-named-block-nodes", &json!({"flat": true})).unwrap();
        let of_the_engine = |node: &Value| node["node-name"].as_str().is_some_and(|name| name.starts_with("qferry-"));
        assert!(!nodes.as_array().unwrap().iter().any(of_the_engine), "{nodes}");
    }
}
