//! A destination that is lost after it ran the guest: what its events told counts, whatever becomes of it.
//!
//! Promise: no-lost-write.
//! Promise: ended-is-proved.

use super::*;
use qferry::internals::progress::PauseCause;

/// Another client hands the guest over at this command, and starts the destination.
fn taken_over(command: &'static str, then: impl FnOnce(&mut PairState) + Send + 'static) -> ModelPair {
    let model = processes();
    let shared = model.shared.clone();
    model.when(Source, command, move || {
        tokio::spawn(async move {
            let mut state = shared.state();
            state.hand_over();
            state.destination.run = "running".to_owned();
            state.emit(Destination, "RESUME", Value::Null);
            then(&mut state);
        });
    });
    model
}

#[track_caller]
fn untouched(run: &MigrationRun) {
    let touched = ["source: quit", "destination: quit", "source: cont", "destination: cont"];
    assert_eq!(touched.map(|command| run.count(command)), [0; 4], "{run:?}");
    assert_eq!(run.actions("fence"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_is_not_resumed_after_a_destination_that_ran_and_is_gone() {
    for is_shut_down in [false, true] {
        let mut model = taken_over("migrate", move |state| {
            if is_shut_down {
                state.emit(Destination, "SHUTDOWN", json!({ "guest": false, "reason": "host-qmp-quit" }));
            }
            state.die(Destination);
        });
        let run = model.migrate().await;
        undetermined(&run);
        untouched(&run);
        assert!(run.warned("taken-over"), "{run:?}");
        assert_eq!(model.state().source.run, "postmigrate", "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_ran_on_the_destination_has_not_ended_with_its_source() {
    let mut model = taken_over("migrate", |state| {
        state.die(Destination);
        state.die(Source);
    });
    let run = model.migrate().await;
    undetermined(&run);
    untouched(&run);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_destination_that_ran_is_not_ended_for_a_source_that_hangs() {
    let model = processes();
    let shared = model.shared.clone();
    let freezers = (model.source.freezer(), model.destination.freezer());
    model.when(Source, "block-job-cancel", move || {
        tokio::spawn(async move {
            let mut state = shared.state();
            // A source that hangs tells nothing.
            state.muted = |side, _, _| side == Source;
            state.hand_over();
            state.destination.run = "running".to_owned();
            state.emit(Destination, "RESUME", Value::Null);
            (freezers.0)();
            (freezers.1)();
        });
    });
    let mut model = model;
    let run = model.migrate().await;
    undetermined(&run);
    untouched(&run);
    assert!(run.actions("yank") > 0, "the source is freed as far as that harms nobody: {run:?}");
}

/// A destination that somebody ends while `cont` is on its way: with this event before the end, and after a RESUME.
fn ended_for(reason: &'static str, resumes: bool) -> ModelPair {
    let model = processes();
    let shared = model.shared.clone();
    model.on(Destination, "cont", move |_| {
        let mut state = shared.state();
        if resumes {
            state.emit(Destination, "RESUME", Value::Null);
        }
        if !reason.is_empty() {
            state.emit(Destination, "SHUTDOWN", json!({ "guest": reason == "guest-shutdown", "reason": reason }));
        }
        state.die(Destination);
        Vec::new()
    });
    model
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_ended_before_cont_gives_the_guest_back() {
    for reason in ["host-qmp-quit", "host-signal"] {
        let mut model = ended_for(reason, false);
        let run = model.migrate().await;
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{run:?}");
        assert_eq!((run.count("source: cont"), run.count("source: quit")), (1, 0), "{run:?}");
        assert_eq!(model.state().source.run, "running", "{run:?}");
    }
    for (reason, resumes) in [("", false), ("guest-shutdown", false), ("host-qmp-quit", true)] {
        let mut model = ended_for(reason, resumes);
        let run = model.migrate().await;
        assert_eq!(run.count("source: cont"), 0, "{reason} {resumes}: {run:?}");
        assert_ne!(run.outcome.runs_on, RunsOn::Source, "{reason} {resumes}: {run:?}");
    }
}

/// A guest that is shut down on the destination right after it was started there.
fn shut_down(processes: bool, word: &'static str) -> ModelPair {
    let model = ModelPair::new(&PairShape { processes, ..PairShape::default() });
    let shared = model.shared.clone();
    model.on(Destination, "cont", move |seen| {
        let steps = shared.answer(Destination, seen);
        let shared = shared.clone();
        tokio::spawn(async move {
            let mut state = shared.state();
            if !word.is_empty() {
                state.emit(Destination, "SHUTDOWN", json!({ "guest": word == "guest-shutdown", "reason": word }));
            }
            state.die(Destination);
        });
        steps
    });
    model
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_shut_down_on_the_destination_has_moved() {
    for processes in [true, false] {
        for word in ["guest-shutdown", "host-qmp-quit"] {
            let mut model = shut_down(processes, word);
            let run = model.migrate().await;
            assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Moved, RunsOn::None), "{run:?}");
            assert_eq!((&run.outcome.reason, &run.outcome.leftovers), (&None, &Vec::new()), "{run:?}");
            assert!(run.warned("guest-state"), "{run:?}");
            assert_eq!(run.outcome.pauses.last().map(|pause| pause.why), Some(PauseCause::Switchover), "{run:?}");
            assert_eq!((run.count("source: cont"), run.count("source: quit")), (0, 1), "{run:?}");
        }
        // Without the word nothing tells that what the guest wrote is on the disks.
        let mut model = shut_down(processes, "");
        let run = model.migrate().await;
        undetermined(&run);
        assert_eq!((run.count("source: cont"), run.count("source: quit")), (0, 0), "{run:?}");
    }
}
