//! Two engines at once with the same source and the same destination: whatever each says of the guest is so.

use crate::support::{WAIT, migrate, settings, start};
use qferry::internals::{
    endpoint::Address,
    migration::{Builder, JournalPlace, Migration},
    progress::{Ending, Outcome, RunsOn},
    storage::model::layout::StorageMode,
};
use qferry_bed::{Deviation, Machine, Pair, Side, Spec};
use serde_json::json;
use std::{thread, time::Duration};

/// An engine over one of the two monitors of each QEMU. Without a journal neither sees the other beforehand.
fn engine(pair: &Pair, number: usize, storage: StorageMode) -> Builder {
    let monitor = |machine: &Machine| match number {
        0 => machine.qmp_path(),
        _ => machine.second_qmp_path(),
    };
    let mut settings = settings(pair);
    settings.journal = JournalPlace::Nowhere;
    settings.selection.storage = storage;
    settings.runtime_dir = pair.run_dir().with_file_name(format!("engine-{number}"));
    let [source, destination] = [&pair.source, &pair.destination].map(|side| Address::unix(monitor(side)).unwrap());
    Migration::builder(source, destination).settings(settings)
}

/// Without disks nothing of the one engine is seen by the other before RAM is sent.
#[test]
fn two_engines_at_once_agree_on_where_the_guest_is() {
    let rounds = [("running", 0), ("paused", 0), ("paused", 15), ("running", 60), ("paused", 120)];
    both_migrate(&rounds, StorageMode::None);
}

/// Each proves the disks, and one of the two finds the mirrors or the exports of the other.
#[test]
fn two_engines_at_once_with_disks_that_are_verified_move_the_guest_once_at_most() {
    both_migrate(&[("running", 0), ("paused", 40), ("running", 150)], StorageMode::Incremental);
}

fn both_migrate(rounds: &[(&str, u64)], storage: StorageMode) {
    let shares_disks = storage == StorageMode::None;
    for &(guest, late) in rounds {
        let destination = if shares_disks { vec![Deviation::SourcesImage { disk: 0 }] } else { Vec::new() };
        let pair = start(&Spec { second_monitor: true, destination, ..Spec::quick() });
        if guest == "paused" {
            pair.source.qmp("stop", &json!({})).unwrap();
        }
        let outcomes: Vec<Outcome> = thread::scope(|scope| {
            let engines = [0, 1].map(|number| {
                let pair = &pair;
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(late * number as u64));
                    migrate(engine(pair, number, storage))
                })
            });
            while !engines.iter().all(thread::ScopedJoinHandle::is_finished) {
                assert!(pair.runners().unwrap().len() <= 1, "two runners");
                thread::sleep(Duration::from_millis(2));
            }
            engines.map(|engine| engine.join().unwrap()).into()
        });
        let told = format!("{guest}, {late} ms: {outcomes:#?}");
        let moved = outcomes.iter().filter(|outcome| outcome.outcome == Ending::Moved).count();
        assert!(moved <= 1, "{told}");
        for outcome in &outcomes {
            let is_so = match outcome.runs_on {
                // An engine that is refused beside the other's disks ends long before the other.
                RunsOn::Source => !shares_disks || (moved == 0 && pair.source.status().unwrap() == guest),
                RunsOn::Destination => moved == 1 && pair.destination.status().unwrap() == guest,
                RunsOn::None => false,
                _ => true,
            };
            assert!(is_so, "{told}");
        }
        if moved == 1 {
            pair.source.wait_for_end(WAIT).unwrap();
            assert_eq!(pair.destination.status().unwrap(), guest, "{told}");
        }
        let runners = pair.runners().unwrap();
        let expected = match (guest, moved) {
            ("paused", _) => vec![],
            (_, 1) => vec![Side::Destination],
            _ => vec![Side::Source],
        };
        assert_eq!(runners, expected, "{told}");
    }
}
