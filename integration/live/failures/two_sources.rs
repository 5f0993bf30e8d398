//! Two engines at once with two sources and the same destination: the destination gets one guest, and the other guest
//! stays where it is.

use crate::support::{WAIT, migrate, settings, start};
use qferry::internals::{
    endpoint::Address,
    migration::{JournalPlace, Migration},
    progress::{Ending, Outcome, RunsOn},
    storage::verify::identity::ProofLevel,
};
use qferry_bed::{Machine, Pair, Spec};
use std::{path::PathBuf, thread, time::Duration};

/// Moves the guest of a source to one of the destination's two monitors. Without a journal neither engine sees the
/// other, and without a proof of the backing files nothing of the disks tells them apart.
fn move_to(pair: &Pair, destination: PathBuf, name: &str) -> Outcome {
    let mut settings = settings(pair);
    settings.journal = JournalPlace::Nowhere;
    settings.runtime_dir = pair.run_dir().with_file_name(name);
    settings.verify_backing = ProofLevel::Off;
    let [source, destination] = [pair.source.qmp_path(), destination].map(|path| Address::unix(path).unwrap());
    migrate(Migration::builder(source, destination).settings(settings))
}

fn runs(machine: &Machine) -> bool {
    machine.status().is_ok_and(|status| status == "running")
}

#[test]
fn of_two_guests_that_are_moved_to_one_destination_one_arrives_at_most() {
    for late in [0, 20, 60] {
        let pairs = [0, 1].map(|_| start(&Spec { second_monitor: true, ..Spec::quick() }));
        let destination = &pairs[0].destination;
        let monitors = [destination.qmp_path(), destination.second_qmp_path()];
        let outcomes: Vec<Outcome> = thread::scope(|scope| {
            let engines = [0, 1].map(|number| {
                let (pair, monitor) = (&pairs[number], monitors[number].clone());
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(late * number as u64));
                    move_to(pair, monitor, &format!("engine-{number}"))
                })
            });
            engines.map(|engine| engine.join().unwrap()).into()
        });
        let told = format!("{late} ms: {outcomes:#?}");
        let moved = outcomes.iter().filter(|outcome| outcome.outcome == Ending::Moved).count();
        assert!(moved <= 1, "{told}");
        assert_eq!(runs(destination), moved == 1, "{told}");
        for (pair, outcome) in pairs.iter().zip(&outcomes) {
            if outcome.outcome == Ending::Moved {
                assert_eq!(outcome.runs_on, RunsOn::Destination, "{told}");
                pair.source.wait_for_end(WAIT).unwrap();
            } else {
                // An engine that is refused at a destination that runs a guest says of no side that its guest is there.
                let is_refused = (outcome.outcome, outcome.runs_on) == (Ending::Refused, RunsOn::Unknown);
                assert!(is_refused || outcome.runs_on == RunsOn::Source, "{told}");
                assert!(runs(&pair.source), "{told}");
            }
        }
    }
}
