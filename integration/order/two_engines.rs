//! Another engine moves the same guest to the same destination at the same time: what this one says is so.

use super::*;

/// How the other engine's migration ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum OtherEnd {
    Moved,
    /// Moved, and the source has quit.
    MovedAndQuit,
    Failed,
}

/// Has another engine be the first to tell the destination to listen, and end half a second later.
fn other_is_first(model: &ModelPair, guest: &'static str, end: OtherEnd) {
    let shared = model.shared.clone();
    model.on(Destination, "migrate-incoming", move |_| {
        for (side, status) in [(Destination, "setup"), (Source, "setup"), (Destination, "active"), (Source, "active")] {
            shared.state().enter(side, status);
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mut state = shared.state();
            if end == OtherEnd::Failed {
                state.enter(Destination, "failed");
                state.enter(Source, "failed");
                return;
            }
            state.source.run = "postmigrate".to_owned();
            state.enter(Source, "completed");
            state.destination.run = guest.to_owned();
            state.enter(Destination, "completed");
            if end == OtherEnd::MovedAndQuit {
                state.die(Source);
            }
        });
        vec![AnswerStep::error("The incoming migration has already been started")]
    });
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_comes_second_does_not_say_that_the_guest_is_on_the_source() {
    for guest in ["running", "paused"] {
        for disks in [0, 1] {
            for end in [OtherEnd::Moved, OtherEnd::MovedAndQuit, OtherEnd::Failed] {
                let mut model = ModelPair::new(&PairShape { guest, disks, processes: true, ..PairShape::default() });
                other_is_first(&model, guest, end);
                let run = model.migrate().await;
                assert_eq!(run.code(), "destination-used", "{end:?}: {run:?}");
                match end {
                    OtherEnd::Failed => {
                        assert_eq!(run.outcome.runs_on, RunsOn::Source, "{run:?}");
                        assert_eq!(model.state().source.run, guest, "{run:?}");
                    }
                    OtherEnd::Moved | OtherEnd::MovedAndQuit => undetermined(&run),
                }
                assert_eq!(run.count("source: migrate_cancel") + run.count("destination: quit"), 0, "{run:?}");
                assert_eq!(run.count("source: cont") + run.count("destination: cont"), 0, "{run:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_another_engine_has_moved_since_the_checks_is_not_stopped() {
    let mut model = model();
    let (shared, mut asked) = (model.shared.clone(), 0);
    model.on(Destination, "query-status", move |seen| {
        asked += 1;
        if asked == 2 {
            let mut state = shared.state();
            state.source.run = "postmigrate".to_owned();
            state.destination.run = "running".to_owned();
            state.enter(Source, "completed");
            state.enter(Destination, "completed");
        }
        shared.answer(Destination, seen)
    });
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!((run.code(), run.count("destination: stop")), ("destination-state", 0), "{run:?}");
    assert_eq!(model.state().destination.run, "running", "{run:?}");
}
