//! Events and outcomes are read as they were written, and their JSON is spelled as the contract has it.

use super::*;
use crate::codes::{FailureCode, Finding, FindingCode};
use proptest::prelude::*;
use serde_json::{Value, json};

fn read(json: &Value) -> Event {
    serde_json::from_value(json.clone()).unwrap_or_else(|error| panic!("{json}: {error}"))
}

fn outcome() -> Outcome {
    Outcome {
        outcome: Ending::RolledBack,
        runs_on: RunsOn::Source,
        reason: Some(Reason { code: FailureCode::MirrorFailed, message: "no space".to_owned() }),
        findings: vec![Finding::new(FindingCode::SameProcess, "b", "it is")],
        total_ms: 1200,
        blackout_ms: Some(8.125),
        pauses: vec![GuestPause::new(PauseCause::MirrorStart, 2.5), GuestPause::new(PauseCause::WentBack, 8.125)],
        paused_ms: 10.625,
        qemu_downtime_ms: None,
        ledger: vec![LedgerSpan { span: "quiesce".to_owned(), ms: 8.125 }],
        ledger_clock: Some(LedgerClock::Engine),
        devices: vec![DeviceTime {
            side: Side::Source,
            phase: DevicePhase::Save,
            device: "ram".to_owned(),
            instance: 0,
            iterable: true,
            us: 56,
        }],
        devices_unknown: Some("how long".to_owned()),
        disks: vec![DiskOutcome {
            source: "virtio0".to_owned(),
            destination: "virtio0".to_owned(),
            bytes_copied: 5,
            virtual_size: 9,
            mode: "full".to_owned(),
            write_latency_us: Some(3),
            write_blocking_latency_us: None,
            guest_writes: Some(GuestWrites {
                copying: None,
                write_blocking: Some(WriteTimes { writes: 9, p50_at_most_us: Some(14), p99_at_most_us: None }),
            }),
        }],
        ram: RamOutcome {
            bytes: 7,
            iterations: 2,
            throttle_max_pct: 20,
            postcopy: true,
            postcopy_blocktime: Some(PostcopyBlocktime {
                all_vcpus_ms: 3,
                vcpu_ms: vec![3, 4],
                mean_fault_us: None,
                p99_fault_at_most_us: Some(512),
            }),
        },
        predicted: Some(Estimate { rung: Some(EstimatedRung::StopAndCopy), ..Estimate::default() }),
        leftovers: vec!["source (unix:/s): the job qferry-x".to_owned()],
        another_try: Some(AnotherTry { images: vec!["/d/disk0".to_owned()], start_destination: true }),
    }
}

fn outcome_json() -> Value {
    json!({
        "v": 1, "t_ms": 1200, "type": "outcome", "outcome": "rolled-back", "runs_on": "source",
        "reason": {"code": "mirror-failed", "message": "no space"},
        "findings": [{
            "code": "same-process", "severity": "blocker", "subject": "b", "message": "it is",
            "remedy": "give the QMP socket of the destination's own QEMU",
        }],
        "total_ms": 1200, "blackout_ms": 8.125, "qemu_downtime_ms": null,
        "pauses": [{"why": "mirror-start", "ms": 2.5}, {"why": "went-back", "ms": 8.125}], "paused_ms": 10.625,
        "ledger": [{"span": "quiesce", "ms": 8.125}], "ledger_clock": "engine",
        "devices": [
            {"side": "source", "phase": "save", "device": "ram", "instance": 0, "iterable": true, "us": 56},
        ],
        "devices_unknown": "how long",
        "disks": [{
            "source": "virtio0", "destination": "virtio0", "bytes_copied": 5, "virtual_size": 9, "mode": "full",
            "write_latency_us": 3, "write_blocking_latency_us": null,
            "guest_writes": {
                "copying": null, "write_blocking": {"writes": 9, "p50_at_most_us": 14, "p99_at_most_us": null},
            },
        }],
        "ram": {
            "bytes": 7, "iterations": 2, "throttle_max_pct": 20, "postcopy": true,
            "postcopy_blocktime": {
                "all_vcpus_ms": 3, "vcpu_ms": [3, 4], "mean_fault_us": null, "p99_fault_at_most_us": 512,
            },
        },
        "predicted": {
            "total_ms": null, "blackout_ms": null, "disk_bytes": null, "ram_bytes": null, "converges": null,
            "rung": "stop-and-copy",
        },
        "leftovers": ["source (unix:/s): the job qferry-x"],
                "another_try": {"images": ["/d/disk0"], "start_destination": true},
    })
}

#[test]
fn every_kind_is_spelled_as_the_contract_has_it() {
    let text = str::to_owned;
    for (event, json) in [
        (
            Event::new(1, EventKind::Phase { phase: Phase::Handover, state: PhaseState::End }),
            json!({"v": 1, "t_ms": 1, "type": "phase", "phase": "handover", "state": "end"}),
        ),
        (
            Event::new(
                2,
                EventKind::Disk {
                    disk: text("virtio0"),
                    status: text("running"),
                    copied: 1,
                    total: 2,
                    ready: false,
                    rate: 3,
                    growth: 4,
                    write_rate: 5,
                    write_latency_us: Some(6),
                    eta_ms: None,
                },
            ),
            json!({
                "v": 1, "t_ms": 2, "type": "disk", "disk": "virtio0", "status": "running", "copied": 1, "total": 2,
                "ready": false, "rate": 3, "growth": 4, "write_rate": 5, "write_latency_us": 6, "eta_ms": null,
            }),
        ),
        (
            Event::new(
                3,
                EventKind::Memory {
                    status: text("active"),
                    transferred: 1,
                    remaining: 2,
                    total: 3,
                    dirty_rate: 4,
                    bandwidth: 5,
                    working_set: 6,
                    throttle_pct: 7,
                    predicted_blackout_ms: None,
                    eta_ms: Some(8),
                },
            ),
            json!({
                "v": 1, "t_ms": 3, "type": "memory", "status": "active", "transferred": 1, "remaining": 2, "total": 3,
                "dirty_rate": 4, "bandwidth": 5, "working_set": 6, "throttle_pct": 7, "predicted_blackout_ms": null,
                "eta_ms": 8,
            }),
        ),
        (
            Event::new(
                4,
                EventKind::Image { image: text("/b"), doing: text("compare"), done: 1, total: 2, rate: None },
            ),
            json!({"v": 1, "t_ms": 4, "type": "image", "image": "/b", "doing": "compare", "done": 1, "total": 2}),
        ),
        (
            Event::new(
                5,
                EventKind::Image { image: text("/b"), doing: text("copy"), done: 1, total: 2, rate: Some(3) },
            ),
            json!({"v": 1, "t_ms": 5, "type": "image", "image": "/b", "doing": "copy", "done": 1, "total": 2, "rate": 3}),
        ),
        (
            Event::new(6, EventKind::Step { step: text("create"), image: text("/o"), state: PhaseState::Begin }),
            json!({"v": 1, "t_ms": 6, "type": "step", "step": "create", "image": "/o", "state": "begin"}),
        ),
        (
            Event::new(
                7,
                EventKind::Action {
                    action: text("throttle"),
                    because: text("2 s left"),
                    details: [
                        ("throttle_pct", 20u64.into()),
                        ("disks", vec!["a".to_owned()].into()),
                        ("share", ActionDetail::Number(0.5)),
                    ]
                    .map(|(name, value)| (name.to_owned(), value))
                    .into(),
                },
            ),
            json!({
                "v": 1, "t_ms": 7, "type": "action", "action": "throttle", "because": "2 s left",
                "details": { "throttle_pct": 20, "disks": ["a"], "share": 0.5 },
            }),
        ),
        (
            Event::new(8, EventKind::Warning { code: text("not-compared"), message: text("no server") }),
            json!({"v": 1, "t_ms": 8, "type": "warning", "code": "not-compared", "message": "no server"}),
        ),
        (Event::new(1200, EventKind::Outcome(Box::new(outcome()))), outcome_json()),
    ] {
        assert_eq!(serde_json::to_value(&event).expect("serialises"), json);
        assert_eq!(read(&json), event);
    }
}

#[test]
fn every_word_is_the_one_that_is_printed() {
    fn said<T: serde::Serialize>(value: T) -> Value {
        serde_json::to_value(value).expect("serialises")
    }
    use {Ending as E, EstimatedRung as R, Phase as P};
    for phase in [P::Connect, P::Preflight, P::Prepare, P::Storage, P::Memory, P::Switchover, P::Handover, P::Postcopy]
    {
        assert_eq!(said(phase), phase.as_str());
    }
    for ending in [E::Moved, E::Refused, E::RolledBack, E::Cancelled, E::Stuck, E::Undetermined, E::Ended] {
        assert_eq!(said(ending), ending.as_str());
    }
    for rung in [R::None, R::Downtime, R::Throttle, R::Postcopy, R::StopAndCopy, R::GiveUp] {
        assert_eq!(said(rung), rung.as_str());
    }
    for why in [PauseCause::MirrorStart, PauseCause::Switchover, PauseCause::WentBack] {
        assert_eq!(said(why), why.as_str());
    }
    for side in [Side::Source, Side::Destination] {
        assert_eq!(said(side), side.as_str());
    }
}

#[test]
fn a_later_version_can_be_read() {
    let kind = read(&json!({"v": 2, "t_ms": 1, "type": "handed-over", "blackout_ms": 3.5})).kind;
    assert_eq!(kind, EventKind::Unknown);
    let phase = read(&json!({"v": 1, "t_ms": 1, "type": "phase", "phase": "network", "state": "begin", "of": "eth0"}));
    assert_eq!(phase.kind, EventKind::Phase { phase: Phase::Unknown, state: PhaseState::Begin });

    let mut later = outcome_json();
    later["outcome"] = json!("hibernated");
    later["runs_on"] = json!("third");
    later["ledger_clock"] = json!("ptp");
    later["pauses"] = json!([{"why": "rehearsal", "ms": 1.0}]);
    later["predicted"]["rung"] = json!("hibernate");
    later["network"] = json!({"announced": true});
    let expected = Outcome {
        outcome: Ending::Unknown,
        runs_on: RunsOn::Unknown,
        ledger_clock: None,
        pauses: vec![GuestPause::new(PauseCause::Unknown, 1.0)],
        predicted: Some(Estimate::default()),
        ..outcome()
    };
    assert_eq!(read(&later).kind, EventKind::Outcome(Box::new(expected)));
    assert_eq!(Ending::Unknown.exit_code(), 1, "no success, and no end that the contract defines");
}

fn word() -> impl Strategy<Value = String> {
    "[a-z -]{0,12}"
}

/// Milliseconds as the ledger gives them: exact to the microsecond.
fn millis() -> impl Strategy<Value = f64> {
    (0u64..1 << 50).prop_map(|micros| micros as f64 / 1000.0)
}

fn ending() -> impl Strategy<Value = Ending> {
    use Ending as E;
    let ended = [E::Moved, E::Refused, E::RolledBack, E::Cancelled, E::Stuck, E::Undetermined, E::Ended, E::Unknown];
    prop::sample::select(ended.to_vec())
}

prop_compose! {
    fn any_estimate()(
        numbers: [Option<u64>; 4],
        converges: Option<bool>,
        rung in prop::option::of(prop::sample::select(vec![EstimatedRung::None, EstimatedRung::GiveUp])),
    ) -> Estimate {
        let [total_ms, blackout_ms, disk_bytes, ram_bytes] = numbers;
        Estimate { total_ms, blackout_ms, disk_bytes, ram_bytes, converges, rung }
    }
}

prop_compose! {
    fn any_disk()(
        source in word(),
        destination in word(),
        mode in word(),
        sizes: [u64; 2],
        latencies: [Option<u64>; 2],
    ) -> DiskOutcome {
        let [bytes_copied, virtual_size] = sizes;
        let [write_latency_us, write_blocking_latency_us] = latencies;
        let times = |us| WriteTimes { writes: bytes_copied, p50_at_most_us: us, p99_at_most_us: write_latency_us };
        let guest_writes = write_latency_us.map(|_| GuestWrites {
            copying: write_blocking_latency_us.map(|_| times(write_blocking_latency_us)),
            write_blocking: Some(times(None)),
        });
        DiskOutcome {
            source, destination, bytes_copied, virtual_size, mode, write_latency_us, write_blocking_latency_us, guest_writes,
        }
    }
}

prop_compose! {
    fn any_outcome()(
        (outcome, runs_on) in (ending(), prop::sample::select(vec![RunsOn::Source, RunsOn::Destination, RunsOn::None, RunsOn::Unknown])),
        reason in prop::option::of((word(), word())),
        (total_ms, qemu_downtime_ms) in any::<(u64, Option<u64>)>(),
        blackout_ms in prop::option::of(millis()),
        (pauses, paused_ms) in (prop::collection::vec(millis(), 0..3), millis()),
        ledger in prop::collection::vec((word(), millis()), 0..4),
        ledger_clock in prop::option::of(prop::sample::select(vec![LedgerClock::Qemu, LedgerClock::Engine])),
        disks in prop::collection::vec(any_disk(), 0..3),
        (bytes, iterations, throttle_max_pct, postcopy) in any::<(u64, u64, u64, bool)>(),
        predicted in prop::option::of(any_estimate()),
        leftovers in prop::collection::vec(word(), 0..3),
        images in prop::option::of(prop::collection::vec(word(), 0..3)),
    ) -> Outcome {
        Outcome {
            outcome,
            runs_on,
            reason: reason.map(|(code, message)| Reason { code: FailureCode::from(code.as_str()), message }),
            findings: Vec::new(),
            total_ms,
            blackout_ms,
            pauses: pauses.into_iter().map(|ms| GuestPause::new(PauseCause::MirrorStart, ms)).collect(),
            paused_ms,
            qemu_downtime_ms,
            ledger: ledger.into_iter().map(|(span, ms)| LedgerSpan { span, ms }).collect(),
            ledger_clock,
            devices: Vec::new(),
            devices_unknown: None,
            disks,
            ram: RamOutcome {
                bytes,
                iterations,
                throttle_max_pct,
                postcopy,
                postcopy_blocktime: postcopy.then(|| PostcopyBlocktime {
                    all_vcpus_ms: iterations,
                    vcpu_ms: vec![bytes],
                    mean_fault_us: Some(throttle_max_pct),
                    p99_fault_at_most_us: None,
                }),
            },
            predicted,
            leftovers,
            another_try: images.map(|images| AnotherTry { images, start_destination: postcopy }),
        }
    }
}

fn any_kind() -> impl Strategy<Value = EventKind> {
    use Phase as P;
    let phases = [
        P::Connect,
        P::Preflight,
        P::Prepare,
        P::Storage,
        P::Memory,
        P::Switchover,
        P::Handover,
        P::Postcopy,
        P::Cleanup,
    ];
    let state = || prop::sample::select(vec![PhaseState::Begin, PhaseState::End]);
    prop_oneof![
        (prop::sample::select(phases.to_vec()), state()).prop_map(|(phase, state)| EventKind::Phase { phase, state }),
        (word(), word(), any::<[u64; 5]>(), any::<bool>(), any::<[Option<u64>; 2]>()).prop_map(
            |(disk, status, [copied, total, rate, growth, write_rate], ready, [write_latency_us, eta_ms])| {
                EventKind::Disk {
                    disk,
                    status,
                    copied,
                    total,
                    ready,
                    rate,
                    growth,
                    write_rate,
                    write_latency_us,
                    eta_ms,
                }
            }
        ),
        (word(), word(), state()).prop_map(|(step, image, state)| EventKind::Step { step, image, state }),
        (word(), any::<[u64; 7]>(), any::<[Option<u64>; 2]>()).prop_map(
            |(status, numbers, [predicted_blackout_ms, eta_ms])| {
                let [transferred, remaining, total, dirty_rate, bandwidth, working_set, throttle_pct] = numbers;
                EventKind::Memory {
                    status,
                    transferred,
                    remaining,
                    total,
                    dirty_rate,
                    bandwidth,
                    working_set,
                    throttle_pct,
                    predicted_blackout_ms,
                    eta_ms,
                }
            }
        ),
        (word(), word(), any::<[u64; 2]>(), any::<Option<u64>>())
            .prop_map(|(image, doing, [done, total], rate)| EventKind::Image { image, doing, done, total, rate }),
        (word(), word()).prop_map(|(action, because)| EventKind::Action {
            action,
            because,
            details: ActionDetails::default()
        }),
        (word(), word()).prop_map(|(code, message)| EventKind::Warning { code, message }),
        any_outcome().prop_map(|outcome| EventKind::Outcome(Box::new(outcome))),
        Just(EventKind::Unknown),
    ]
}

proptest! {
    #[test]
    fn what_is_written_reads_back_equal(t_ms: u64, kind in any_kind()) {
        let event = Event::new(t_ms, kind);
        let line = serde_json::to_string(&event).expect("serialises");
        prop_assert_eq!(serde_json::from_str::<Event>(&line).expect("reads"), event);
    }

    #[test]
    fn an_outcome_reads_back_equal(outcome in any_outcome()) {
        let text = serde_json::to_string(&outcome).expect("serialises");
        prop_assert_eq!(serde_json::from_str::<Outcome>(&text).expect("reads"), outcome);
    }
}
