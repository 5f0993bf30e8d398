//! A panic of the engine: it is judged from the run's own records, and never comes to two runners.

use super::{
    ModelPair,
    model::{MigrationRun, PairShape},
};
use qferry::internals::{
    migration::panic_at,
    progress::{Ending, RunsOn},
};

async fn panicked(moment: &str) -> (ModelPair, MigrationRun) {
    let mut model = ModelPair::new(&PairShape::default());
    let migration = panic_at(model.builder_reached_again(), moment).start_here().unwrap();
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Undetermined, "internal"), "{moment}: {run:?}");
    assert!(run.message().contains(moment), "{moment}: {run:?}");
    (model, run)
}

#[tokio::test(start_paused = true)]
async fn the_way_back_is_taken_where_it_is_proved() {
    for moment in ["prepare begin", "storage begin", "memory begin", "switchover begin"] {
        let (model, run) = panicked(moment).await;
        assert_eq!(run.outcome.runs_on, RunsOn::Source, "{moment}: {run:?}");
        assert!(run.message().contains("nothing is left to recover"), "{moment}: {run:?}");
        let state = model.state();
        assert_eq!(state.source.run, "running", "{moment}: {run:?}");
        assert_ne!(state.destination.run, "running", "{moment}: {run:?}");
        assert!(state.source.jobs.is_empty(), "{moment}: {run:?}");
        assert!(state.destination.run == "gone" || state.destination.exports.is_empty(), "{moment}: {run:?}");
        assert_eq!(run.outcome.leftovers, Vec::<String>::new(), "{moment}: {run:?}");
        assert_eq!(run.count("destination: cont"), 0, "{moment}: {run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_was_handed_over_stays_there() {
    for moment in ["handover end", "cleanup begin"] {
        let (model, run) = panicked(moment).await;
        assert_eq!(run.outcome.runs_on, RunsOn::Destination, "{moment}: {run:?}");
        let state = model.state();
        assert_eq!(state.destination.run, "running", "{moment}: {run:?}");
        assert_ne!(state.source.run, "running", "{moment}: {run:?}");
        assert_eq!(run.count("source: cont"), 0, "{moment}: {run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn between_the_two_there_are_never_two_runners() {
    let (model, run) = panicked("handover begin").await;
    let state = model.state();
    let runners = [&state.source.run, &state.destination.run].map(|run| run == "running");
    match run.outcome.runs_on {
        RunsOn::Source => assert_eq!(runners, [true, false], "{run:?}"),
        RunsOn::Destination => assert_eq!(runners, [false, true], "{run:?}"),
        _ => assert_ne!(runners, [true, true], "{run:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn before_anything_was_changed_nothing_is_undone() {
    for moment in ["connect begin", "preflight begin"] {
        let (model, run) = panicked(moment).await;
        assert!(run.message().contains("the migration had not begun"), "{moment}: {run:?}");
        assert_eq!(model.state().source.run, "running", "{moment}: {run:?}");
    }
}
