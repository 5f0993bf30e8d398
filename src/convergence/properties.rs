//! Properties of the decisions that hold whatever is sampled, nonsense too.

#![cfg(test)] // tells clippy that this is all test, helpers too

use super::{
    budget::{PendingRest, keep_budget, predicted_blackout},
    decide::decide,
    decision::{Action, Decision},
    fixture::limit,
    history::History,
    job::{Abilities, ConvergenceJob},
    memory::{overhead, tail_rate},
    millis,
    policy::Policy,
    sample::{MigrationSample, MirrorSample, RamSample},
};
use crate::quantity::{Bytes, Rate};
use proptest::prelude::*;
use std::time::Duration;

/// A counter: small, as large as a guest's, or as large as can be. A counter may fall from one sample to the next.
fn counter() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..1000u64, (0..1u64 << 34), (0..1u64 << 34), any::<u64>()]
}

fn ram() -> impl Strategy<Value = RamSample> {
    (counter(), counter(), counter(), counter(), 0..100u64, 0..200u64).prop_map(
        |(transferred, processed, remaining, total, throttle_pct, syncs)| RamSample {
            transferred,
            processed,
            remaining,
            total,
            measured_dirty_rate: (transferred % 3 == 0).then_some(transferred),
            measurements: syncs / 4,
            throttle_pct,
            syncs,
            postcopy: false,
        },
    )
}

fn mirror(disk: &'static str) -> impl Strategy<Value = MirrorSample> {
    let state = (any::<bool>(), prop_oneof![Just(None), any::<bool>().prop_map(Some)]);
    (counter(), counter(), counter(), counter(), counter(), state).prop_map(
        move |(len, offset, written, writes, write_ns, (ready, actively_synced))| MirrorSample {
            disk: disk.to_owned(),
            len,
            offset,
            ready,
            actively_synced,
            paused: writes % 5 == 0,
            written,
            writes,
            write_ns,
            flushes: writes / 8,
            flush_ns: write_ns,
        },
    )
}

/// Samples a while apart; the clock does not always go on.
fn samples() -> impl Strategy<Value = Vec<MigrationSample>> {
    let mirrors = prop_oneof![
        Just(Vec::new()).boxed(),
        mirror("a").prop_map(|a| vec![a]).boxed(),
        (mirror("a"), mirror("b")).prop_map(|(a, b)| vec![a, b]).boxed(),
    ];
    let one = (0..900u64, 0..50u64, any::<bool>(), proptest::option::of(ram()), mirrors);
    proptest::collection::vec(one, 1..60).prop_map(|all| {
        let mut at = 0;
        let sample = |(later, took, stands, ram, mirrors)| {
            at += later;
            MigrationSample { at_ms: at as f64, round_trip_ms: took as f64, stands, ram, mirrors }
        };
        all.into_iter().map(sample).collect()
    })
}

/// Samples of a plausible run whose guest dirties memory at wild rates.
fn plausible() -> impl Strategy<Value = Vec<MigrationSample>> {
    let total = 1u64 << 29;
    proptest::collection::vec((90..130u64, 0..3u64 << 23, 0..3u64 << 23, any::<bool>()), 30..200).prop_map(move |all| {
        let (mut at, mut ram) = (0, RamSample { total, remaining: total, ..RamSample::default() });
        let next = |(later, sent, dirtied, counted): (u64, u64, u64, bool)| {
            at += later;
            let sent = sent.min(ram.remaining);
            ram.transferred += sent;
            ram.processed += sent;
            ram.remaining = (ram.remaining - sent + if counted { dirtied } else { 0 }).min(total);
            ram.syncs += u64::from(counted);
            MigrationSample { at_ms: at as f64, round_trip_ms: 0.5, stands: false, ram: Some(ram), mirrors: Vec::new() }
        };
        all.into_iter().map(next).collect()
    })
}

fn job() -> impl Strategy<Value = ConvergenceJob> {
    let rate = || proptest::option::of((1..1u64 << 40).prop_map(Rate));
    let abilities = proptest::collection::vec(any::<bool>(), 5).prop_map(|abilities| Abilities {
        write_blocking: abilities[0],
        throttle: abilities[1],
        postcopy: abilities[2],
        overlap: abilities[3],
        switchover_bandwidth: abilities[4],
    });
    (0..5000u64, rate(), rate(), proptest::option::of(0..60_000u64), counter(), abilities).prop_map(
        |(budget, ceiling, disk_ceiling, timeout, memory, abilities)| ConvergenceJob {
            budget: Duration::from_millis(budget),
            ceiling,
            disk_ceiling,
            timeout: timeout.map(Duration::from_millis),
            memory,
            abilities,
            ..ConvergenceJob::default()
        },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    let built_in = super::BUILT_IN.map(|(_, text)| text.to_owned());
    let own = "ram = ['downtime', 'throttle', 'stop-and-copy']\nstop-and-copy = '4s'".to_owned();
    let all: Vec<Policy> = built_in.into_iter().chain([own]).map(|text| text.parse().expect("a policy")).collect();
    proptest::sample::select(all)
}

/// Every decision, with the history that it was made on.
fn run(policy: &Policy, job: &ConvergenceJob, samples: &[MigrationSample]) -> Vec<(History, Decision)> {
    let disks = samples.iter().flat_map(|sample| &sample.mirrors).map(|mirror| mirror.disk.clone());
    let mut history = History::new(job.clone(), disks);
    let mut decisions = Vec::new();
    for sample in samples {
        let decision = decide(policy, &history, sample);
        history.record(sample, &decision);
        decisions.push((history.clone(), decision));
    }
    decisions
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn nothing_is_decided_over_budget(policy in policy(), job in job(), samples in prop_oneof![samples(), plausible()]) {
        for (history, decision) in run(&policy, &job, &samples) {
            let budget = millis(job.budget);
            for action in &decision.actions {
                let Action::DowntimeLimit(limit) = action else { continue };
                if policy.schedule.is_some() || policy.observe {
                    // QEMU is told a millisecond at least
                    prop_assert!(*limit <= job.budget.max(Duration::from_millis(1)));
                    continue;
                }
                // a millisecond is left where the overhead takes the whole budget
                let most = (budget - overhead(&policy, &history)).max(1.0).max(millis(policy.stop_and_copy));
                prop_assert!(millis(*limit) <= most + 1e-6, "{limit:?} of {most}");
            }
            let longest = millis(policy.longest_blackout(job.budget, job.strict));
            let allowed = longest.max(millis(policy.stop_and_copy));
            for (stood, remaining) in [(0, 0), (5, 1 << 20), (250, 1 << 30), (10_000, 0)] {
                let stood = Duration::from_millis(stood);
                match keep_budget(&policy, &history, stood, PendingRest::Memory(Bytes(remaining))) {
                    Ok(blackout) => prop_assert!(policy.observe || blackout <= allowed),
                    Err(over) => prop_assert!(over.estimate_ms > allowed && over.estimate_ms.is_finite()),
                }
            }
            prop_assert!(predicted_blackout(&policy, &history).is_none_or(|ms| ms.is_finite() && ms >= 0.0));
        }
    }

    /// What is known of flushes, mirrors, answers and device state is judged before QEMU may stop the guest: where all
    /// of that comes true, and RAM's rest is as long as the limit lets it be, the judgement at the stop goes on.
    #[test]
    fn a_stop_that_comes_as_foreseen_is_no_try_thrown_away(
        policy in policy(), job in job(), samples in prop_oneof![samples(), plausible()]
    ) {
        prop_assume!(!policy.observe && policy.schedule.is_none());
        let allowed = millis(policy.longest_blackout(job.budget, job.strict)).max(millis(policy.stop_and_copy));
        for (history, decision) in run(&policy, &job, &samples) {
            let has = |action: Action| decision.actions.contains(&action);
            let foreseen = overhead(&policy, &history);
            if has(Action::ReleaseMemory) || (has(Action::StartMemory) && !has(Action::HoldMemory)) {
                prop_assert!(foreseen <= allowed, "{foreseen} of {allowed}");
            }
            // a millisecond is left to RAM where the rest takes all that is allowed
            let is_full = foreseen + 1.0 > allowed;
            let Some(limit) = limit(&decision).filter(|_| !has(Action::HoldMemory) && !is_full) else { continue };
            let after_the_look = millis(policy.device_state) + 2.0 * history.round_trip.get().unwrap_or_default();
            let stood = Duration::from_secs_f64((foreseen - after_the_look).max(0.0) / 1000.0);
            let rest = PendingRest::Memory(Bytes((limit.as_secs_f64() * tail_rate(&history)) as u64));
            let judged = keep_budget(&policy, &history, stood, rest);
            prop_assert!(judged.is_ok(), "{limit:?} and {foreseen} ms of {allowed}: {judged:?}");
        }
    }

    #[test]
    fn it_ends_within_the_timeout_whatever_is_seen(policy in policy(), job in job(), samples in samples()) {
        let Some(timeout) = job.timeout else { return Ok(()) };
        let over = |sample: &&MigrationSample| sample.at_ms >= millis(timeout);
        let decisions = run(&policy, &job, &samples);
        let gave_up = |(_, decision): &(History, Decision)| {
            decision.actions.iter().any(|action| matches!(action, Action::GiveUp { .. }))
        };
        if samples.iter().any(|sample| over(&sample)) {
            prop_assert!(decisions.iter().any(gave_up));
        }
        // nothing is done after that
        let end = decisions.iter().position(gave_up).unwrap_or(decisions.len());
        for (_, decision) in decisions.iter().skip(end + 1) {
            // RAM excepted, under a policy that only observes, once the mirrors are ready after all
            let goes_on = policy.observe && decision.actions == [Action::StartMemory];
            prop_assert!(decision.actions.is_empty() || goes_on);
        }
    }

    #[test]
    fn nothing_goes_to_and_fro(policy in policy(), job in job(), samples in prop_oneof![samples(), plausible()]) {
        let (mut limit, mut throttle, mut started) = (Duration::ZERO, 0, 0);
        let mut blocking = Vec::new();
        for (history, decision) in run(&policy, &job, &samples) {
            prop_assert!(!decision.because.is_empty() || decision.actions.is_empty());
            for action in decision.actions {
                match action {
                    Action::DowntimeLimit(next) => {
                        prop_assert!(next >= limit, "{limit:?} to {next:?}");
                        limit = next;
                    }
                    Action::Throttle(next) => {
                        prop_assert!(next > throttle && next <= policy.throttle_max);
                        prop_assert!(policy.may_throttle() || policy.observe);
                        throttle = next;
                    }
                    Action::StartMemory => started += 1,
                    Action::WriteBlocking(disks) => blocking.extend(disks),
                    Action::ShareBandwidth(shares) => {
                        // 0 is no limit to QEMU
                        let all = shares.mirrors.values().copied().chain([shares.memory.rate()]);
                        prop_assert!(all.flatten().all(|rate| rate.0 > 0));
                        prop_assert_eq!(&shares, history.shares());
                    }
                    _ => {}
                }
            }
        }
        prop_assert!(started <= 1);
        blocking.sort();
        prop_assert!(blocking.windows(2).all(|two| two[0] != two[1]), "twice: {:?}", blocking);
    }

    #[test]
    fn a_recorded_run_replays_to_the_same(policy in policy(), job in job(), samples in prop_oneof![samples(), plausible()]) {
        let line = |(sample, (_, decision)): (&MigrationSample, &(History, Decision))| {
            serde_json::json!({ "sample": sample, "decision": decision }).to_string()
        };
        let lines: Vec<String> = samples.iter().zip(&run(&policy, &job, &samples)).map(line).collect();
        let read = |line: &String| -> MigrationSample {
            let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
            serde_json::from_value(line["sample"].clone()).expect("a sample")
        };
        let samples: Vec<MigrationSample> = lines.iter().map(read).collect();
        let again: Vec<String> = samples.iter().zip(&run(&policy, &job, &samples)).map(line).collect();
        prop_assert_eq!(lines, again);
    }
}
