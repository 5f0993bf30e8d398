//! A guest whose source has ended: where it runs nowhere, and that is proved, no end says less.

use super::*;

#[track_caller]
fn ended(model: &ModelPair, run: &MigrationRun) {
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Ended, RunsOn::None), "{run:?}");
    assert_eq!((run.code(), &run.outcome.leftovers), ("source-gone", &Vec::new()), "{run:?}");
    assert_eq!(run.count("source: cont") + run.count("destination: cont"), 0, "{run:?}");
    sound(model, run, "ended");
    assert_eq!(model.state().destination.run, "gone", "{run:?}");
}

fn both_die_at_the_handover(model: &ModelPair) {
    let shared = model.shared.clone();
    model.when(Source, "migrate-continue", move || {
        let mut state = shared.state();
        state.die(Destination);
        state.die(Source);
    });
}

#[tokio::test(start_paused = true)]
async fn a_guest_has_ended_where_both_processes_end_at_the_handover() {
    for guest in ["running", "paused"] {
        let mut model = ModelPair::new(&PairShape { guest, processes: true, ..PairShape::default() });
        both_die_at_the_handover(&model);
        let run = model.migrate().await;
        ended(&model, &run);
    }
    // A monitor that closes proves no end.
    let mut model = model();
    both_die_at_the_handover(&model);
    let run = model.migrate().await;
    undetermined(&run);
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_source_ends_on_the_way_back_has_ended() {
    for (side, command) in [(Source, "migrate_cancel"), (Destination, "quit")] {
        let mut model = processes();
        let shared = model.shared.clone();
        model.when(side, command, move || shared.state().die(Source));
        let migration = cancel_at(&mut model, Destination, "nbd-server-stop");
        let run = model.follow(migration).await;
        ended(&model, &run);
    }
    // Another client has let the migration complete, and the destination, which never ran the guest, is ended first.
    let mut model = processes();
    let shared = model.shared.clone();
    model.when(Source, "migrate", move || {
        tokio::spawn(async move { shared.state().hand_over() });
    });
    let shared = model.shared.clone();
    model.when(Destination, "quit", move || shared.state().die(Source));
    let run = model.migrate().await;
    ended(&model, &run);
    // A source that has passed on, whose verdict leads back, and that ends then.
    let mut model = processes();
    model.state().after_continue = AfterContinue::DestinationFails;
    let shared = model.shared.clone();
    model.when(Destination, "quit", move || shared.state().die(Source));
    let run = model.migrate().await;
    ended(&model, &run);
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_whose_destination_ends_before_it_ran_is_on_the_source_yet() {
    for source_ends in [false, true] {
        let mut model = ModelPair::new(&PairShape { guest: "paused", processes: true, ..PairShape::default() });
        let shared = model.shared.clone();
        model.on(Destination, "query-status", move |seen| {
            let is_over = shared.state().source.migration.as_deref() == Some("completed");
            if is_over {
                shared.state().die(Destination);
                if source_ends {
                    shared.state().die(Source);
                }
                return Vec::new();
            }
            shared.answer(Destination, seen)
        });
        let run = model.migrate().await;
        if source_ends {
            ended(&model, &run);
            continue;
        }
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{run:?}");
        assert_eq!(run.count("source: cont") + run.count("source: quit"), 0, "{run:?}");
        assert_eq!(model.state().source.run, "postmigrate", "{run:?}");
    }
}
