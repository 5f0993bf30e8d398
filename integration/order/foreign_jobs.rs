//! Another client completes a mirror (`block-job-complete`): the guest's disk is on the destination alone by then.
//!
//! Promise: pivoted-disk.

use super::*;

/// What a person has to know is said, and the guest keeps its disk.
#[track_caller]
fn keeps_its_disk(model: &ModelPair, run: &MigrationRun) {
    for command in ["nbd-server-stop", "quit", "block-export-del"] {
        assert_eq!(run.count(&format!("destination: {command}")), 0, "{command}: {run:?}");
    }
    let named = |words: &[&str]| run.outcome.leftovers.iter().any(|left| words.iter().all(|word| left.contains(word)));
    assert!(named(&["disk disk0", "block-job-complete", "mirror it from node"]), "{run:?}");
    assert!(run.message().contains("keep the destination and its image"), "{run:?}");
    assert!(!run.message().contains("anew"), "the image has what the guest wrote: {run:?}");
    let state = model.state();
    assert_eq!((&*state.source.run, state.destination.server), ("running", true), "{run:?}");
    assert_eq!(state.destination.exports.len(), state.source.disks.len(), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_another_client_has_put_on_the_destination_is_not_taken_away() {
    for disks in [1, 2] {
        // while disks are copied, and while RAM is sent
        for (side, command) in [(Source, "block-dirty-bitmap-remove"), (Source, "migrate")] {
            let mut model = ModelPair::new(&self::disks(disks));
            let shared = model.shared.clone();
            model.when(side, command, move || shared.state().pivot("mirror-0"));
            let run = model.migrate().await;
            assert_eq!(
                (run.outcome.outcome, run.outcome.runs_on),
                (Ending::Stuck, RunsOn::Source),
                "{command}: {run:?}"
            );
            assert_eq!(run.code(), "mirror-failed", "{run:?}");
            assert!(run.message().contains("another client has cancelled or completed it"), "{run:?}");
            keeps_its_disk(&model, &run);
            assert!(model.state().source.jobs.is_empty(), "the other mirrors are ended: {run:?}");
        }
    }
}

/// A destination before 9.1 exits when its incoming migration fails: RAM is not cancelled.
#[tokio::test(start_paused = true)]
async fn a_destination_that_would_end_with_its_migration_keeps_it_with_the_disk() {
    let mut model = ModelPair::new(&PairShape { exit_on_error: false, ..disks(2) });
    let shared = model.shared.clone();
    model.when(Source, "migrate", move || shared.state().pivot("mirror-0"));
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!((run.count("source: migrate_cancel"), run.count("source: block-job-cancel")), (0, 0), "{run:?}");
    assert_ne!(model.state().destination.run, "gone", "{run:?}");
    assert!(run.outcome.leftovers.iter().any(|left| left.contains("send migrate-continue")), "{run:?}");
    assert_eq!((run.count("destination: nbd-server-stop"), run.count("destination: quit")), (0, 0), "{run:?}");
}
