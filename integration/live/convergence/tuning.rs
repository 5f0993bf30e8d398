//! The ways to send RAM: channels, compression, xbzrle, throttling. The settings of both QEMUs are put back after each.

use crate::support::{MIB, WAIT, builder, busy, idle, judge_back, judge_running, migrate, migrate_when, spec, start};
use qferry::internals::{
    convergence::Policy,
    memory::tuning::{Compression, throttle},
    migration::{Builder, Running},
    progress::{Ending, EventKind, Outcome},
    quantity::Rate,
};
use qferry_bed::{Pair, Side, Workload};
use serde_json::{Value, json};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

const VERSIONS: [&str; 3] = ["10.0.13", "11.1", "7.2"];

/// Whether a migration capability of the source is on.
fn is_on(pair: &Pair, name: &str) -> bool {
    let all = pair.source.qmp("query-migrate-capabilities", &json!({})).unwrap();
    all.as_array().unwrap().iter().any(|capability| capability["capability"] == name && capability["state"] == true)
}

/// Moves a guest, and looks at the settings once RAM is sent: they are set right before `migrate`.
///
/// No ceiling is set, for a guest of 7.2 seldom outlives a slow migration that sends pages again (see
/// [`Pair::errors`]).
fn moves(version: &str, how: impl FnOnce(Builder) -> Builder, on: &str, parameter: &(&str, Value)) {
    let pair = start(&spec(version, busy()));
    let look = |_: &Running<Outcome>| {
        assert!(is_on(&pair, on), "{version}: {on}");
        let parameters = pair.source.qmp("query-migrate-parameters", &json!({})).unwrap();
        assert_eq!(parameters[parameter.0], parameter.1, "{version}: {}", parameter.0);
    };
    let (outcome, _) = migrate_when(how(builder(&pair)), |kind| matches!(kind, EventKind::Memory { .. }), look);
    judge_running(&pair, &outcome);
}

#[test]
fn ram_over_two_channels() {
    for version in VERSIONS {
        moves(version, |builder| builder.multifd(2), "multifd", &("multifd-channels", json!(2)));
    }
}

#[test]
fn ram_over_two_channels_that_compress() {
    // QEMU 7.2 is left out: compression is slow under TCG, and its guests do not outlive a slow migration.
    for (version, how, name) in [
        ("10.0.13", Compression::Zstd, "zstd"),
        ("10.0.13", Compression::Zlib, "zlib"),
        ("11.1", Compression::Zstd, "zstd"),
    ] {
        let parameter = ("multifd-compression", json!(name));
        moves(version, |builder| builder.multifd(2).compress(how), "multifd", &parameter);
    }
}

fn policy(text: &str) -> Policy {
    text.parse().unwrap()
}

#[test]
fn ram_by_its_differences() {
    for version in VERSIONS {
        let policy = policy("xbzrle = '32MiB'");
        moves(version, |builder| builder.policy(policy), "xbzrle", &("xbzrle-cache-size", json!(32 * MIB)));
    }
}

#[test]
fn what_a_former_user_left_on_is_off_meanwhile_and_back_afterwards() {
    let pair = start(&spec("10.0.13", busy()));
    let names = ["xbzrle", "auto-converge", "release-ram"];
    let on: Vec<Value> = names.iter().map(|name| json!({"capability": name, "state": true})).collect();
    pair.source.qmp("migrate-set-capabilities", &json!({"capabilities": on})).unwrap();
    pair.source.qmp("migrate-set-parameters", &json!({"cpu-throttle-initial": 77, "downtime-limit": 1234})).unwrap();
    let sending = |kind: &EventKind| matches!(kind, EventKind::Memory { status, .. } if status == "active");
    let policy = policy("ram = []");
    let cancel = |migration: &Running<Outcome>| {
        assert_eq!(names.map(|name| is_on(&pair, name)), [false; 3]);
        migration.control().cancel();
    };
    let (outcome, _) = migrate_when(builder(&pair).policy(policy).bandwidth(Rate(16 * MIB)), sending, cancel);
    assert_eq!(outcome.outcome, Ending::Cancelled, "{outcome:#?}");
    assert_eq!(names.map(|name| is_on(&pair, name)), [true; 3]);
    let parameters = pair.source.qmp("query-migrate-parameters", &json!({})).unwrap();
    assert_eq!((&parameters["cpu-throttle-initial"], &parameters["downtime-limit"]), (&json!(77), &json!(1234)));
}

#[test]
fn what_does_not_go_together_is_refused_before_anything_is_touched() {
    let pair = start(&spec("10.0.13", idle()));
    let policy = policy("xbzrle = '32MiB'");
    let outcome = migrate(builder(&pair).multifd(2).policy(policy));
    assert_eq!(outcome.reason.as_ref().unwrap().code, "capability-conflict", "{outcome:#?}");
    judge_back(&pair, &outcome, Ending::Refused, "running");
}

/// The time of the guest's CPU thread, as shares of two seconds. The rest is time that the thread waited for a
/// processor.
#[derive(Debug)]
struct Spent {
    ran: f64,
    /// QEMU throttles a CPU thread by sleep, and this guest is never idle.
    slept: f64,
}

fn spent(pair: &Pair) -> Spent {
    let cpus = pair.source.qmp("query-cpus-fast", &json!({})).unwrap();
    let account = format!("/proc/{}/task/{}/schedstat", pair.source.pid(), cpus[0]["thread-id"]);
    let ran_and_waited = || -> [f64; 2] {
        let account = std::fs::read_to_string(&account).unwrap();
        let mut nanoseconds = account.split_whitespace().map(|word| word.parse().unwrap());
        [(); 2].map(|()| nanoseconds.next().unwrap())
    };
    let (before, began) = (ran_and_waited(), Instant::now());
    sleep(Duration::from_secs(2));
    let (after, took) = (ran_and_waited(), began.elapsed().as_nanos() as f64);
    let [ran, waited] = [0, 1].map(|which| (after[which] - before[which]) / took);
    Spent { ran, slept: 1.0 - ran - waited }
}

fn is_free(pair: &Pair) {
    let free = spent(pair);
    assert!(free.slept < 0.1, "{}: {free:?}", pair.spec().version);
}

fn throttled(pair: &Pair) -> Option<u64> {
    pair.source.qmp("query-migrate", &json!({})).unwrap()["cpu-throttle-percentage"].as_u64()
}

/// Slows RAM down after its first pass, so that the migration does not converge: a guest that is throttled on a busy
/// host may dirty less than is sent.
fn hold(pair: &Pair) {
    let began = Instant::now();
    while pair.source.qmp("query-migrate", &json!({})).unwrap()["ram"]["dirty-sync-count"].as_u64() < Some(2) {
        assert!(began.elapsed() < WAIT, "RAM's first pass never ended");
        sleep(Duration::from_millis(100));
    }
    pair.source.qmp("migrate-set-parameters", &json!({"max-bandwidth": 8 * MIB})).unwrap();
}

fn throttle_to(pair: &Pair, percent: u8) {
    pair.source.qmp("migrate-set-parameters", &throttle(percent).into()).unwrap();
    let began = Instant::now();
    while throttled(pair) != Some(percent.into()) {
        assert!(began.elapsed() < WAIT, "{percent} per cent never showed, but {:?}", throttled(pair));
        sleep(Duration::from_millis(100));
    }
}

/// The guest is throttled as asked for, and then less.
fn obeys(version: &str, pair: &Pair) {
    throttle_to(pair, 90);
    let slow = spent(pair);
    assert!(slow.slept > slow.ran * 4.0, "{version}, at 90 per cent: {slow:?}");
    throttle_to(pair, 30);
    let looser = spent(pair);
    assert!(looser.slept < 0.5 && looser.slept > looser.ran / 4.0, "{version}, at 30 per cent: {looser:?}");
}

/// A guest that writes as fast as it can is throttled, and runs freely at the end.
fn slows_down(version: &str, end: impl FnOnce(&Pair, &Running<Outcome>), ending: Ending) {
    let workload = Workload { ram: 8 * MIB, dirty: 4096 * MIB, ..idle() };
    let pair = start(&spec(version, workload));
    let sending = |kind: &EventKind| matches!(kind, EventKind::Memory { status, .. } if status == "active");
    let act = |migration: &Running<Outcome>| {
        // No throttle is on before the test sets one.
        assert!(throttled(&pair).is_none_or(|percent| percent <= 1), "{version}: {:?}", throttled(&pair));
        is_free(&pair);
        hold(&pair);
        end(&pair, migration);
    };
    let slowly = builder(&pair).bandwidth(Rate(32 * MIB)).downtime(Duration::from_millis(1));
    let (outcome, _) = migrate_when(slowly, sending, act);
    // QEMU 7.2 takes its time to quit while it listens, and may crash meanwhile.
    pair.destination.wait_for_end(WAIT).unwrap();
    judge_back(&pair, &outcome, ending, "running");
    is_free(&pair);
}

#[test]
fn a_guest_that_was_slowed_down_is_free_after_a_cancel() {
    for version in VERSIONS {
        let cancel = |pair: &Pair, migration: &Running<Outcome>| {
            obeys(version, pair);
            throttle_to(pair, 95);
            migration.control().cancel();
        };
        slows_down(version, cancel, Ending::Cancelled);
    }
}

#[test]
fn a_guest_that_was_slowed_down_is_free_after_a_failure() {
    for version in VERSIONS {
        let fail = |pair: &Pair, _: &Running<Outcome>| {
            throttle_to(pair, 95);
            pair.machine(Side::Destination).kill().unwrap();
        };
        slows_down(version, fail, Ending::RolledBack);
    }
}
