//! Guests that are hard to move, on 10.0.13 and on 11.1, which counts passes and bytes differently.

use crate::support::{
    MIB, WAIT, builder, cancel, idle, judge_back, judge_running, migrate_and, migrate_when, on_source_host, settings,
    spec, start,
};
use qferry::internals::{
    convergence::Policy,
    migration::Settings,
    progress::{Ending, Event, EventKind, Outcome, Phase, PhaseState},
    quantity::Rate,
};
use qferry_bed::{DiskSpec, Done, Link, Pair, Spec, Workload};
use serde_json::json;
use std::{
    cell::Cell,
    thread::sleep,
    time::{Duration, Instant},
};

/// The bandwidth ceiling of most tests.
const CEILING: u64 = 32 * MIB;

/// The blackout budget. Together with the ceiling, the budget decides how much RAM may be left when the guest stops.
const BUDGET: Duration = Duration::from_millis(300);

/// A guest that is never idle and rewrites 48 MiB at this rate.
fn dirtying(rate: u64) -> Workload {
    Workload { ram: 48 * MIB, dirty: rate, verify: 24 * MIB, compute: rate > 0, ..idle() }
}

fn policy(text: &str) -> Policy {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn built_in(name: &str) -> Policy {
    policy(Policy::built_in(name).unwrap())
}

fn run(pair: &Pair, change: impl FnOnce(&mut Settings)) -> (Outcome, Vec<Event>) {
    let mut settings = settings(pair);
    (settings.bandwidth, settings.downtime) = (Some(Rate(CEILING)), BUDGET);
    change(&mut settings);
    migrate_and(builder(pair).settings(settings), Phase::Connect, |_| ())
}

/// The last pause of the guest on the source, by the timestamps of QEMU's events.
fn stood(pair: &Pair) -> Duration {
    let events = pair.source.events().unwrap();
    let last = |name: &str| events.iter().rfind(|event| event.name == name).map(|event| event.time);
    last("RESUME").zip(last("STOP")).map_or(Duration::ZERO, |(resume, stop)| resume.saturating_sub(stop))
}

/// Moves a guest, and judges it where it then runs. A switchover takes some 40 ms; on a host that is so busy that a
/// single flush takes longer than the budget the engine goes back, which is right if the guest truly stood still for
/// that long.
fn moved(spec: &Spec, change: impl Fn(&Pair, &mut Settings)) -> (Outcome, Vec<Event>) {
    let pair = start(spec);
    let (outcome, events) = run(&pair, |settings| change(&pair, settings));
    match outcome.reason.as_ref().map(|reason| reason.code.as_str()) {
        Some("over-budget") => {
            assert!(stood(&pair) >= BUDGET / 2, "{:?}: {outcome:#?}\n{}", stood(&pair), told(&events));
            judge_back(&pair, &outcome, Ending::RolledBack, "running");
        }
        _ => {
            assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}\n{}", told(&events));
            judge_running(&pair, &outcome);
        }
    }
    (outcome, events)
}

/// The guest's work within two seconds, which a busy host slows down.
fn now(pair: &Pair) -> (Done, f64) {
    let from = Instant::now();
    sleep(Duration::from_secs(2));
    let until = Instant::now();
    (pair.done(from, until), (until - from).as_secs_f64())
}

/// A ceiling for RAM, so that the guest dirties this many per cent of it.
fn ceiling(pair: &Pair, per_cent: u64) -> Option<Rate> {
    let (done, seconds) = now(pair);
    Some(Rate((done.pages as f64 * 4096.0 / seconds * 100.0 / per_cent as f64) as u64))
}

/// The reasons that the engine gave for an action.
fn reasons<'a>(events: &'a [Event], wanted: &str) -> Vec<&'a str> {
    let reason = |event: &'a Event| match &event.kind {
        EventKind::Action { action, because, .. } if action == wanted => Some(because.as_str()),
        _ => None,
    };
    events.iter().filter_map(reason).collect()
}

fn told(events: &[Event]) -> String {
    let lines =
        events.iter().filter(|event| matches!(event.kind, EventKind::Action { .. } | EventKind::Warning { .. }));
    lines.map(|event| format!("{event:?}\n")).collect()
}

/// Moves a guest that dirties this many per cent of the ceiling.
fn moves(version: &str, per_cent: u64) -> (Outcome, Vec<Event>) {
    moved(&spec(version, dirtying(CEILING * per_cent / 100)), |pair, settings| {
        settings.bandwidth = ceiling(pair, per_cent);
    })
}

fn an_idle_guest_does_not_pay(version: &str) {
    let pair = start(&spec(version, dirtying(0)));
    let (outcome, events) = run(&pair, |settings| {
        // the default of the switchover's limit leaves room for such a budget
        (settings.downtime, settings.switchover_timeout) = (Duration::from_secs(20), None);
    });
    judge_running(&pair, &outcome);
    assert_eq!(outcome.ram.throttle_max_pct, 0);
    // If the budget were QEMU's downtime limit, all RAM would have been sent while the guest stood still.
    let left = events.iter().rev().find_map(|event| match event.kind {
        EventKind::Memory { remaining, .. } => Some(remaining),
        _ => None,
    });
    assert!(left.unwrap() < outcome.ram.bytes / 4, "{outcome:#?}\n{}", told(&events));
}

#[test]
fn an_idle_guest_does_not_pay_for_a_generous_budget() {
    an_idle_guest_does_not_pay("10.0.13");
}

#[test]
fn an_idle_guest_does_not_pay_for_a_generous_budget_on_11_1() {
    an_idle_guest_does_not_pay("11.1");
}

#[test]
fn nearly_what_is_sent() {
    moves("10.0.13", 90);
}

#[test]
fn nearly_what_is_sent_on_11_1() {
    moves("11.1", 90);
}

fn more_than_is_sent(version: &str) {
    let (outcome, events) = moves(version, 150);
    // Even at the lowest rest a switchover would take 1.5 s, five times the budget.
    assert!(outcome.ram.throttle_max_pct >= 10, "{outcome:#?}\n{}", told(&events));
    let reasons = reasons(&events, "throttle");
    assert!(reasons.iter().any(|reason| reason.contains("MiB/s are dirtied against")), "{reasons:?}");
}

#[test]
fn more_than_is_sent_is_throttled() {
    more_than_is_sent("10.0.13");
}

#[test]
fn more_than_is_sent_is_throttled_on_11_1() {
    more_than_is_sent("11.1");
}

#[test]
fn bursts() {
    for version in ["10.0.13", "11.1"] {
        let workload =
            Workload { burst: Duration::from_millis(1500), calm: Duration::from_millis(1500), ..dirtying(CEILING * 2) };
        moved(&spec(version, workload), |_, _| ());
    }
}

/// A guest that writes 12 MiB/s to this many blocks of 64 KiB.
fn writer(version: &str, slots: u32) -> Spec {
    let disk = DiskSpec { size: 128 * MIB, backing: 128 * MIB, overlay_data: 16 * MIB, ..DiskSpec::default() };
    let workload = Workload { write: 200, block: 64 << 10, stride: 64 << 10, slots, read: 0, ..idle() };
    Spec { disks: vec![disk], ..spec(version, workload) }
}

/// A third of the bandwidth with which the guest writes.
fn too_little(pair: &Pair) -> Option<Rate> {
    let (done, seconds) = now(pair);
    Some(Rate(((done.writes * pair.spec().workload.block) as f64 / seconds / 3.0) as u64))
}

fn outrun(version: &str, slots: u32) {
    let (outcome, events) = moved(&writer(version, slots), |pair, settings| settings.disk_bandwidth = too_little(pair));
    let reasons = reasons(&events, "write-blocking");
    assert!(reasons.iter().any(|reason| reason.contains("its guest's writes wait for it")), "{}", told(&events));
    assert!(outcome.disks[0].write_blocking_latency_us.is_some(), "what it costs the guest is told: {outcome:#?}");
    let writes = outcome.disks[0].guest_writes.as_ref().expect("QEMU counts the guest's writes");
    for times in [&writes.copying, &writes.write_blocking] {
        let times = times.as_ref().expect("the guest writes all the time");
        assert!(times.writes > 0 && times.p50_at_most_us <= times.p99_at_most_us, "{outcome:#?}");
        assert!(times.p50_at_most_us.is_some_and(|us| us >= 7), "{outcome:#?}");
    }
    let latency = |event: &Event| match event.kind {
        EventKind::Disk { write_latency_us, growth, .. } => growth > 0 && write_latency_us.is_some(),
        _ => false,
    };
    assert!(events.iter().any(latency), "what it costs the guest is told");
}

#[test]
fn a_mirror_that_its_guest_outruns_gets_write_blocking() {
    outrun("10.0.13", 1024);
}

/// All blocks of a small region are dirty soon. The dirty bytes then grow no more, and the mirror seems to gain.
#[test]
fn a_mirror_that_is_outrun_over_a_small_region_gets_write_blocking_on_11_1() {
    outrun("11.1", 256);
}

#[test]
fn a_mirror_that_nothing_helps_is_given_up() {
    // QEMU 7.2 cannot switch a mirror to `write-blocking`.
    let pair = start(&writer("7.2", 256));
    let (outcome, events) = run(&pair, |settings| {
        settings.disk_bandwidth = too_little(&pair);
        settings.policy = policy("give-up = \"6s\"");
    });
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    let reason = outcome.reason.unwrap();
    assert_eq!(reason.code, "disk-not-converging", "{}", told(&events));
    assert!(reason.message.contains("a mirror of more than"), "{}", reason.message);
}

/// The engine gives up. The guest then runs on unthrottled, and the settings of QEMU are as before.
fn given_up(version: &str, text: &str, code: &str) -> (Outcome, Vec<Event>) {
    // Passes over 24 MiB are short, so that QEMU throttles before the engine gives up.
    let pair = start(&spec(version, Workload { ram: 24 * MIB, ..dirtying(CEILING * 3) }));
    let (outcome, events) = run(&pair, |settings| {
        settings.bandwidth = ceiling(&pair, 300);
        settings.policy = policy(text);
        settings.downtime = Duration::from_millis(60);
    });
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    assert_eq!(outcome.reason.as_ref().unwrap().code, code, "{}", told(&events));
    let throttle = pair.source.qmp("query-migrate", &json!({})).unwrap()["cpu-throttle-percentage"].as_u64();
    assert_eq!(throttle.unwrap_or(0), 0, "the guest is still throttled");
    pair.wait_until_verified(WAIT).unwrap();
    assert_eq!(pair.errors(), Vec::<String>::new());
    (outcome, events)
}

#[test]
fn giving_up_leaves_the_guest_unthrottled() {
    for version in ["10.0.13", "11.1"] {
        let text = "ram = [\"throttle\"]\nthrottle-max = 20\ngive-up = \"6s\"";
        let (outcome, events) = given_up(version, text, "ram-not-converging");
        assert_eq!(outcome.ram.throttle_max_pct, 20, "{}", told(&events));
    }
}

#[test]
fn a_policy_that_observes_changes_nothing() {
    let pair = start(&spec("10.0.13", dirtying(CEILING * 3)));
    let mut settings = settings(&pair);
    (settings.bandwidth, settings.downtime) = (ceiling(&pair, 300), BUDGET);
    (settings.policy, settings.timeout) = (built_in("observe"), Some(WAIT));
    // Cancel ten samples after the engine would have throttled.
    let looks = Cell::new(None);
    let observed = |kind: &EventKind| {
        match (kind, looks.get()) {
            (EventKind::Action { action, .. }, None) if action == "would-throttle" => looks.set(Some(0)),
            (EventKind::Memory { .. }, Some(seen)) => looks.set(Some(seen + 1)),
            _ => {}
        }
        looks.get() == Some(10)
    };
    let (outcome, events) = migrate_when(builder(&pair).settings(settings), observed, cancel);
    judge_back(&pair, &outcome, Ending::Cancelled, "running");
    assert_eq!(outcome.ram.throttle_max_pct, 0);
    assert!(!reasons(&events, "would-throttle").is_empty(), "{}", told(&events));
    assert!(reasons(&events, "throttle").is_empty(), "{}", told(&events));
}

#[test]
fn a_budget_that_cannot_be_kept_is_not_exceeded() {
    let pair = start(&spec("10.0.13", idle()));
    let (outcome, _) = run(&pair, |settings| {
        settings.downtime = Duration::from_millis(1);
        settings.strict_budget = true;
    });
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    assert_eq!(outcome.reason.unwrap().code, "over-budget");
}

#[test]
fn published_schedules_move_a_guest() {
    for name in ["nova", "vdsm", "kubevirt"] {
        moved(&spec("10.0.13", Workload { ram: 16 * MIB, ..dirtying(CEILING / 4) }), |_, settings| {
            settings.policy = built_in(name);
            settings.downtime = settings.policy.budget().unwrap();
        });
    }
}

#[test]
fn a_guest_that_does_not_fit_goes_on_at_the_destination() {
    let (outcome, events) = moved(&spec("10.0.13", dirtying(CEILING * 3)), |pair, settings| {
        settings.bandwidth = ceiling(pair, 300);
        settings.policy = built_in("postcopy");
    });
    assert!(outcome.ram.postcopy, "{outcome:#?}\n{}", told(&events));
}

#[test]
fn a_stop_and_copy_is_only_as_long_as_the_policy_allows() {
    let (_, events) = moved(&spec("10.0.13", dirtying(CEILING * 3)), |pair, settings| {
        settings.bandwidth = ceiling(pair, 300);
        settings.policy = policy("ram = [\"stop-and-copy\"]\nstop-and-copy = \"10s\"");
        settings.downtime = Duration::from_millis(60);
    });
    assert!(reasons(&events, "downtime-limit").iter().any(|reason| reason.contains("as the policy allows")));
}

#[test]
fn memory_is_sent_beside_the_mirrors_and_never_before_they_are_ready() {
    for version in ["10.0.13", "11.1"] {
        let disk = DiskSpec { size: 512 * MIB, backing: 512 * MIB, overlay_data: 256 * MIB, ..DiskSpec::default() };
        let workload = Workload { ram: 256 * MIB, dirty: 32 * MIB, ..idle() };
        let guest = Spec { memory: 1024, disks: vec![disk], ..spec(version, workload) };
        let (_, events) = moved(&guest, |_, settings| {
            settings.bandwidth = None;
            // The mirror is limited, and leaves bandwidth for RAM.
            settings.disk_bandwidth = Some(Rate(80 * MIB));
        });
        let at = |wanted: Phase, begins: PhaseState| {
            events.iter().position(
                |event| matches!(event.kind, EventKind::Phase { phase, state, .. } if phase == wanted && state == begins),
            )
        };
        assert!(at(Phase::Memory, PhaseState::Begin) < at(Phase::Storage, PhaseState::End), "{}", told(&events));
        assert!(at(Phase::Storage, PhaseState::End) < at(Phase::Switchover, PhaseState::Begin), "{}", told(&events));
    }
}

#[test]
fn a_ceiling_is_divided_anew_as_mirrors_get_ready() {
    let disk = |overlay_data| DiskSpec { size: 128 * MIB, backing: 128 * MIB, overlay_data, ..DiskSpec::default() };
    let disks = vec![disk(8 * MIB), disk(64 * MIB)];
    let (_, events) = moved(&Spec { disks, ..spec("10.0.13", idle()) }, |_, _| ());
    let shares = reasons(&events, "share-bandwidth");
    assert!(shares.iter().any(|share| share.contains("disk1: 32.0 MiB/s")), "{shares:?}");
}

#[test]
fn an_estimate_stands_beside_the_result() {
    let pair = start(&Spec {
        link: Some(Link::gigabit()),
        ..spec("10.0.13", Workload { ram: 16 * MIB, ..dirtying(8 * MIB) })
    });
    let (outcome, _) = on_source_host(&pair, || {
        run(&pair, |settings| {
            settings.bandwidth = None;
            settings.predict = true;
        })
    });
    judge_running(&pair, &outcome);
    let predicted = outcome.predicted.expect("it was asked for");
    assert_eq!(predicted.converges, Some(true));
    assert!(predicted.total_ms > Some(0) && predicted.blackout_ms > Some(0), "{predicted:?}");
}
