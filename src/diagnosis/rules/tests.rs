//! The rules by table: for each cause what is seen, and for each pair of causes that look alike what tells them apart.

mod alike;
mod refused;

use super::{super::guest_queues::QueueLook, super::look::*, super::pair::*, super::process::*, *};
use crate::{
    progress::Side,
    qemu::reply::{MigrationInfo, RunState},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A side with these looks, half a second apart.
fn side(run: &str, migrations: impl IntoIterator<Item = Value>, jobs: impl Fn(usize) -> Value) -> SideLooks {
    let mut side = SideLooks::new("unix:/side".to_owned(), MonitorReach::Answers);
    for (number, migration) in migrations.into_iter().enumerate() {
        side.looks.push(MonitorLook {
            at: Duration::from_millis(500 * number as u64),
            run: Some(RunState::from(run)),
            migration: serde_json::from_value::<MigrationInfo>(migration).expect("a migration"),
            mirrors: list(&jobs(number)),
            ..MonitorLook::default()
        });
    }
    side.parameters =
        json!({ "max-bandwidth": 1u64 << 40, "downtime-limit": 300 }).as_object().cloned().expect("an object");
    side.yanks = vec![YankLook::Migration, YankLook::BlockNode { node_name: "nbd0".to_owned() }];
    side
}

/// A side that says the same for 3 s.
fn steady(run: &str, migration: Value) -> SideLooks {
    side(run, vec![migration; 7], |_| json!([]))
}

fn only_source(source: SideLooks) -> PairLooks {
    PairLooks { source: Some(source), destination: None }
}

fn pair(source: SideLooks, destination: SideLooks) -> PairLooks {
    PairLooks { source: Some(source), destination: Some(destination) }
}

fn waiting() -> SideLooks {
    steady("inmigrate", json!({}))
}

/// A mirror of 100 MiB.
fn job(offset: u64, len: u64, more: &Value) -> Value {
    let mut job = json!({ "device": "m", "type": "mirror", "len": len * MIB, "offset": offset * MIB, "speed": 0,
        "ready": false, "paused": false, "busy": true, "status": "running", "io-status": "ok" });
    let (Some(job_fields), Some(more)) = (job.as_object_mut(), more.as_object()) else { unreachable!("objects") };
    job_fields.extend(more.clone());
    json!([job])
}

/// RAM at one look: MiB sent and left, pages dirtied a second, passes.
fn ram(sent: u64, left: u64, dirty: u64, passes: u64, expected: u64) -> Value {
    json!({ "status": "active", "expected-downtime": expected, "ram": { "transferred": sent * MIB, "remaining": left * MIB,
        "total": 1024 * MIB, "dirty-pages-rate": dirty, "dirty-sync-count": passes, "page-size": 4096, "normal": sent } })
}

fn with(mut side: SideLooks, change: &dyn Fn(&mut SideLooks)) -> SideLooks {
    change(&mut side);
    side
}

fn codes(looks: &PairLooks) -> Vec<DiagnosisCode> {
    causes(looks).iter().map(|cause| cause.code).collect()
}

fn connection(unsent: u64, state: ConnectionState) -> ProcessLook {
    let connection = ConnectionLook {
        remote: "10.0.0.2:4444".to_owned(),
        remote_port: 4444,
        state,
        unsent,
        ..ConnectionLook::default()
    };
    ProcessLook { pid: 7, state: 'S', connections: vec![connection], ..ProcessLook::default() }
}

/// MiB left and passes of RAM that is sent at 16 MiB/s and dirtied at 9, seen each half second.
const CEILING: [(u64, u64); 7] = [(19, 4), (11, 4), (3, 4), (20, 5), (12, 5), (4, 5), (7, 6)];

#[test]
fn a_healthy_migration_has_no_cause() {
    let idle = |n: usize| ram(100 + 40 * n as u64, 900 - 40 * n as u64, 0, 1, 5000);
    let busy = |n: usize| ram(1000 + 50 * n as u64, 200 - 20 * n as u64, 5000, 4 + n as u64, 400);
    let pass = |n: usize| {
        let (left, passes) = if n < 4 { (40 - 10 * n as u64, 5) } else { (900 - 10 * n as u64, 6) };
        ram(1000 + 50 * n as u64, left, 22_000, passes, 900)
    };
    let quick = |n: usize| ram(1000 + 50 * n as u64, 3, 5000, 4 + 5 * n as u64, 20);
    let none = |_: usize| json!([]);
    let cases = [
        ("nothing is under way", only_source(steady("running", json!({})))),
        ("idle", pair(side("running", (0..7).map(idle), none), waiting())),
        ("busy, and gaining", pair(side("running", (0..7).map(busy), none), waiting())),
        ("slow, at the end of a long pass", pair(side("running", (0..7).map(pass), none), waiting())),
        ("small, and about to switch over", pair(side("running", (0..7).map(quick), none), waiting())),
        (
            "held by a ceiling, with passes as long as the looks",
            only_source(with(
                side(
                    "running",
                    (0..7).map(|n| ram(400 + 8 * n, CEILING[n as usize].0, 2330, CEILING[n as usize].1, 900)),
                    none,
                ),
                &|side| {
                    side.parameters.insert("max-bandwidth".to_owned(), (16 * MIB).into());
                },
            )),
        ),
        (
            "mirrors copy",
            pair(side("running", vec![json!({}); 7], |n| job(10 + 5 * n as u64, 100, &json!({}))), waiting()),
        ),
        (
            "mirrors copy beside a guest that writes",
            pair(
                side("running", vec![json!({}); 7], |n| job(10 + 9 * n as u64, 100 + n as u64, &json!({}))),
                waiting(),
            ),
        ),
        (
            "a mirror that is held down by a limit, between two bursts",
            pair(side("running", vec![json!({}); 7], |_| job(16, 100, &json!({ "speed": 4 * MIB }))), waiting()),
        ),
        (
            "a mirror that follows its guest's writes",
            pair(
                side("running", vec![json!({}); 7], |n| {
                    let at = 100 + n as u64;
                    job(at, at + n as u64 % 3, &json!({ "ready": true, "status": "ready" }))
                }),
                waiting(),
            ),
        ),
        ("RAM that is held down by a limit, between two bursts", {
            let mut source = steady("running", ram(100, 300, 0, 2, 300));
            source.parameters.insert("max-bandwidth".to_owned(), (64u64 << 10).into());
            pair(source, waiting())
        }),
        (
            "mirrors are ready",
            pair(
                side("running", vec![json!({}); 7], |_| job(100, 100, &json!({ "ready": true, "status": "ready" }))),
                waiting(),
            ),
        ),
        (
            "moved",
            pair(
                steady("postmigrate", json!({ "status": "completed" })),
                steady("running", json!({ "status": "completed" })),
            ),
        ),
        ("cancelled", {
            let mut source = steady("running", json!({ "status": "cancelled" }));
            source.yanks.clear();
            pair(source, waiting())
        }),
        ("paused by its owner", only_source(steady("paused", json!({})))),
        ("the destination waits", PairLooks { source: None, destination: Some(waiting()) }),
    ];
    for (name, looks) in cases {
        assert_eq!(causes(&looks), [], "{name}");
    }
}

#[test]
fn each_cause_is_named_by_what_is_seen_of_it() {
    use DiagnosisCode as Code;
    let status = |status: &str| json!({ "status": status });
    let failed = |words: &str| json!({ "status": "failed", "error-desc": words });
    let reach = |reach: MonitorReach| SideLooks::new("unix:/side".to_owned(), reach);
    let hangs = |oob| {
        with(reach(MonitorReach::Hangs { waited: Duration::from_secs(2), oob }), &|side| {
            side.yanks = vec![YankLook::Migration]
        })
    };
    let gone = || reach(MonitorReach::Gone { words: "nobody listens".to_owned() });
    let stopped = |state| {
        with(reach(MonitorReach::NotAsked), &|side| {
            side.process = Some(ProcessLook { pid: 7, state, ..ProcessLook::default() });
        })
    };
    let mirror = |of: &dyn Fn(usize) -> Value| only_source(side("running", vec![json!({}); 7], of));
    let cases: Vec<(PairLooks, Code)> = vec![
        (only_source(stopped('T')), Code::ProcessStopped),
        (only_source(stopped('t')), Code::ProcessStopped),
        (only_source(hangs(Some(true))), Code::MonitorBlocked),
        (
            only_source(reach(MonitorReach::Greets { words: "no answer to qmp_capabilities".to_owned() })),
            Code::MonitorBlocked,
        ),
        (only_source(hangs(Some(false))), Code::MonitorUnresponsive),
        (only_source(hangs(None)), Code::NoOutOfBand),
        (
            only_source(reach(MonitorReach::NoGreeting {
                words: "no greeting".to_owned(),
                holders: MonitorHolders::default(),
            })),
            Code::MonitorUnresponsive,
        ),
        (pair(gone(), waiting()), Code::SourceGone),
        (pair(steady("finish-migrate", status("pre-switchover")), gone()), Code::DestinationGone),
        (pair(steady("finish-migrate", status("pre-switchover")), waiting()), Code::WaitingForContinue),
        (
            pair(
                with(steady("running", json!({})), &|side| side.uuid = Some("6d6f0a6c".to_owned())),
                with(steady("running", json!({})), &|side| side.uuid = Some("6d6f0a6c".to_owned())),
            ),
            Code::BothRunning,
        ),
        (pair(steady("postmigrate", status("completed")), steady("paused", status("completed"))), Code::BothPaused),
        (pair(steady("paused", status("failed")), steady("inmigrate", json!({}))), Code::BothPaused),
        (only_source(steady("guest-panicked", json!({}))), Code::GuestEnded),
        (only_source(steady("io-error", json!({}))), Code::GuestEnded),
        (only_source(steady("postmigrate", status("postcopy-paused"))), Code::PostcopyPaused),
        (only_source(steady("running", failed("Unable to write to socket: Broken pipe"))), Code::LinkDead),
        (
            only_source(steady("running", failed("Failed to connect to '10.0.0.2:4444': Connection refused"))),
            Code::SetupBlocked,
        ),
        (only_source(steady("running", failed("Certificate does not match the hostname localhost"))), Code::Tls),
        (
            only_source(steady("running", failed("multifd_send_sync_main: multifd_send_pages fail"))),
            Code::MultifdIncompatible,
        ),
        (
            only_source(steady("running", failed("Userfaultfd not available: Operation not permitted"))),
            Code::Userfaultfd,
        ),
        (only_source(steady("running", failed("Unable to use zero copy, mlock limit"))), Code::Memlock),
        (only_source(steady("running", failed("A TLS rehandshake was requested"))), Code::TlsRekey),
        (
            pair(
                steady("running", failed("Unable to write to socket: Broken pipe")),
                steady("inmigrate", failed("error while loading state for instance 0x0 of device 'x'")),
            ),
            Code::StateRefused,
        ),
        (
            pair(steady("running", json!({})), steady("inmigrate", failed("Failed to get \"write\" lock"))),
            Code::ImageLocked,
        ),
        (only_source(steady("running", json!({ "blocked-reasons": ["The node is busy"] }))), Code::MigrationBlocked),
        (only_source(steady("running", status("setup"))), Code::SetupBlocked),
        (
            only_source(with(steady("running", status("setup")), &|side| {
                side.parameters.insert("tls-creds".to_owned(), "tls0".into());
            })),
            Code::Tls,
        ),
        (only_source(steady("finish-migrate", status("device"))), Code::DeviceBlocked),
        (only_source(steady("running", status("cancelling"))), Code::CancellingStuck),
        (only_source(steady("running", status("wait-unplug"))), Code::GuestWillNotUnplug),
        (only_source(steady("running", ram(100, 300, 0, 2, 300))), Code::LinkDead),
        (
            only_source(with(steady("running", ram(100, 0, 0, 2, 300)), &|side| {
                side.capabilities.insert("switchover-ack".to_owned());
            })),
            Code::SwitchoverNotAcked,
        ),
        (mirror(&|_| job(10, 100, &json!({ "paused": true, "status": "paused" }))), Code::MirrorPaused),
        (
            mirror(&|_| job(100, 100, &json!({ "paused": true, "status": "standby", "ready": true }))),
            Code::MirrorPaused,
        ),
        (mirror(&|_| job(10, 100, &json!({}))), Code::MirrorStalledIdle),
        (mirror(&|n| job(10 + 5 * n as u64, 100 + 5 * n as u64, &json!({}))), Code::MirrorStarved),
        (
            only_source(side("finish-migrate", vec![status("pre-switchover"); 7], |n| {
                job(10 + n as u64, 100, &json!({}))
            })),
            Code::MirrorNotReady,
        ),
        (mirror_flood(), Code::MirrorFailed),
        (
            only_source(side("running", vec![status("cancelled"); 7], |_| {
                job(100, 100, &json!({ "ready": true, "status": "ready" }))
            })),
            Code::ControllerWaits,
        ),
        (leftover(&json!({ "id": "old", "type": "backup", "status": "concluded" })), Code::LeftoverJob),
        (
            leftover(&json!({ "id": "old", "type": "mirror", "status": "concluded", "error": "No space left" })),
            Code::MirrorFailed,
        ),
        (
            pair(
                steady("postmigrate", status("completed")),
                with(steady("paused", status("completed")), &|side| {
                    for look in &mut side.looks {
                        look.exports = vec![ExportLook { id: "e".to_owned(), ..ExportLook::default() }];
                    }
                }),
            ),
            Code::ExportLeftOpen,
        ),
        (
            only_source(side("running", (0..7).map(|n| ram(1000 + 50 * n, 200, 30_000, 4 + n, 900)), |_| json!([]))),
            Code::NotConverging,
        ),
        (
            only_source(with(
                side("running", (0..7).map(|n| ram(1000 + 50 * n, 200, 30_000, 4 + n, 900)), |_| json!([])),
                &|side| {
                    side.parameters.insert("max-bandwidth".to_owned(), (100 * MIB).into());
                },
            )),
            Code::BandwidthCapped,
        ),
        (
            only_source(side("running", (0..7).map(|n| ram(1000 + 50 * n, 60, 5000, 4 + n, 700)), |_| json!([]))),
            Code::DowntimeTooSmall,
        ),
        (
            only_source(with(steady("running", ram(2, 300, 0, 1, 300)), &|side| {
                side.process = Some(connection(65_536, ConnectionState::Established));
            })),
            Code::Mtu,
        ),
        (only_source(steady("finish-migrate", ram(100, 1, 0, 4, 10))), Code::VcpuNotStopping),
        (
            pair(
                steady("postmigrate", json!({ "status": "completed", "downtime": 4000 })),
                steady("running", status("completed")),
            ),
            Code::ClockJump,
        ),
        (unattended(steady("finish-migrate", status("pre-switchover"))), Code::Ownerless),
        (arrived(&[("tap0", 0)], 5), Code::NetworkUnannounced),
        (stalled_queue(&[1, 1], &[7, 7]), Code::GuestIoStalled),
    ];
    let mut named: Vec<Code> = Vec::new();
    for (looks, code) in &cases {
        let found = causes(looks);
        assert!(found.iter().any(|cause| cause.code == *code), "{code}: {found:#?}");
        for cause in &found {
            assert!(!cause.evidence.is_empty() && !cause.remedy.is_empty() && !cause.risk.is_empty(), "{cause:?}");
            assert_eq!(cause.fixable, cause.fixable && !cause.commands.is_empty());
        }
        named.push(*code);
    }
    for code in Code::ALL {
        assert!(named.contains(code), "no row shows {code}");
    }
}

fn mirror_flood() -> PairLooks {
    let mut source = side("running", vec![json!({}); 7], |n| job(10 + n as u64, 100, &json!({})));
    source.job_errors.add("m", 5000);
    only_source(source)
}

/// A source of whose two monitors this program has one, and nobody the other.
fn unattended(mut source: SideLooks) -> PairLooks {
    source.is_direct = true;
    for look in &mut source.looks {
        look.chardevs = list(&json!([{ "label": "m0", "filename": "unix:/qmp,server=on" },
            { "label": "m1", "filename": "disconnected:unix:/watch,server=on" }]));
    }
    only_source(source)
}

/// A guest that has come to this side, with taps that have sent so many packets.
fn arrived(taps: &[(&str, u64)], rounds: u64) -> PairLooks {
    let mut side = steady("running", json!({ "status": "completed" }));
    side.parameters.insert("announce-rounds".to_owned(), rounds.into());
    let tap = |&(name, sent): &(&str, u64)| TapLook { name: name.to_owned(), sent };
    side.process =
        Some(ProcessLook { pid: 7, state: 'S', taps: taps.iter().map(tap).collect(), ..ProcessLook::default() });
    only_source(side)
}

/// A guest's disk, with the requests under way and the count of the answered ones at looks that are 1.5 s apart.
fn stalled_queue(in_flight: &[u64], answered: &[u64]) -> PairLooks {
    let mut source = steady("running", json!({}));
    for (number, (in_flight, answered)) in in_flight.iter().zip(answered).enumerate() {
        let queue = QueueLook { device: "/disk0".to_owned(), queue: 0, in_flight: *in_flight, answered: *answered };
        source.queues.push((Duration::from_millis(2500 * number as u64), vec![queue]));
    }
    only_source(source)
}

#[test]
fn the_errors_of_one_job_are_no_reason_to_cancel_another() {
    let mut source = side("running", vec![json!({}); 7], |n| job(10 + n as u64, 100, &json!({})));
    source.job_errors.add("backup", 5000);
    assert_eq!(causes(&only_source(source)), []);
    let commands: Vec<String> = causes(&mirror_flood())[0].commands.iter().map(ToString::to_string).collect();
    assert_eq!(commands.len(), 1);
    assert!(commands[0].contains("\"device\":\"m\""), "{commands:?}");
}

fn leftover(job: &Value) -> PairLooks {
    let mut source = steady("running", json!({}));
    for look in &mut source.looks {
        look.concluded = list(&json!([job]));
    }
    only_source(source)
}

/// Looks at random moments of short passes.
#[test]
fn ram_that_is_rewritten_within_a_pass_does_not_converge_whenever_it_is_looked_at() {
    let chances = [
        [300, 120, 480, 200, 350, 60, 400],
        [90, 500, 410, 20, 330, 390, 10],
        // as seen through libvirt, which answers slowly
        [12, 274, 405, 12, 143, 143, 12],
    ];
    for left in chances {
        let migrations = left.into_iter().zip(0..).map(|(left, n)| {
            let mut migration = ram(100 + 5 * n, 0, 2600, 4 + n, 900);
            migration["ram"]["remaining"] = (left * 1024u64).into();
            migration
        });
        assert_eq!(
            codes(&only_source(side("running", migrations, |_| json!([])))).first(),
            Some(&DiagnosisCode::NotConverging)
        );
    }
}

#[test]
fn which_side_is_which_does_not_depend_on_the_order() {
    let source = || side("running", vec![json!({}); 3], |_| job(10, 100, &json!({})));
    for sides in [vec![source(), waiting()], vec![waiting(), source()]] {
        let looks = PairLooks::of(sides);
        assert_eq!(looks.destination.as_ref().and_then(SideLooks::run), Some(&RunState::InMigrate));
    }
    assert!(PairLooks::of(vec![waiting()]).source.is_none());
    assert!(PairLooks::of(vec![source()]).destination.is_none());
}

proptest! {
    /// Whatever a QEMU answers, the rules come to an end, and each cause has its evidence.
    #[test]
    fn no_answer_breaks_a_rule(
        run in "running|paused|inmigrate|finish-migrate|postmigrate|of-tomorrow",
        status in "active|setup|device|cancelling|pre-switchover|failed|completed|of-tomorrow",
        numbers in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()), 0..6),
    ) {
        let migration = |&(sent, left, dirty, passes): &(u64, u64, u64, u64)| json!({ "status": status, "ram": {
            "transferred": sent, "remaining": left, "total": left, "dirty-pages-rate": dirty, "dirty-sync-count": passes } });
        let jobs = |n: usize| json!([{ "device": "m", "type": "mirror", "len": numbers[n].0, "offset": numbers[n].1,
            "status": "running", "speed": numbers[n].2 }]);
        let source = side(&run, numbers.iter().map(migration), jobs);
        for cause in causes(&pair(source, waiting())) {
            prop_assert!(!cause.evidence.is_empty());
        }
    }
}
