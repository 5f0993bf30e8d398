//! What the guest's owner does to the guest at a moment at which the engine cannot ask in time.

use super::*;

/// Has `query-status` of the source say of a guest that stands still that QEMU has stopped it for the migration: a
/// guest that stands dirties no page, so its RAM converges before the engine asks.
fn asked_too_late(model: &ModelPair) {
    let shared = model.shared.clone();
    model.on(Source, "query-status", move |seen| {
        let late = {
            let state = shared.state();
            state.source.run == "paused" && state.source.migration.as_deref() == Some("active")
        };
        match late {
            true => vec![AnswerStep::Return(json!({"running": false, "status": "finish-migrate"}))],
            false => shared.answer(Source, seen),
        }
    });
}

#[tokio::test(start_paused = true)]
async fn an_owner_who_stops_the_guest_between_the_last_look_and_migrate_keeps_it_stopped() {
    for cancels in [false, true] {
        let mut model = model();
        asked_too_late(&model);
        let (shared, mut times) = (model.shared.clone(), 0);
        model.on(Source, "migrate-set-parameters", move |seen| {
            times += 1;
            if times == 1 {
                shared.state().stop_by_owner();
            }
            let mut answer = vec![AnswerStep::Delay(Duration::from_millis(2))];
            answer.extend(shared.answer(Source, seen));
            answer
        });
        let migration = match cancels {
            true => cancel_at(&mut model, Destination, "nbd-server-stop"),
            false => model.builder().start_here().unwrap(),
        };
        let run = model.follow(migration).await;
        match cancels {
            true => back(&model, &run, Ending::Cancelled, "cancelled"),
            false => moved(&model, &run),
        }
        assert_eq!(run.count("source: cont") + run.count("destination: cont"), 0, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_who_stops_the_guest_on_the_way_back_has_it_stopped_there() {
    // Behind the last look, while the mirrors are removed.
    let mut model = model();
    let shared = model.shared.clone();
    model.when(Source, "job-dismiss", move || shared.state().stop_by_owner());
    let migration = cancel_at(&mut model, Destination, "migrate-incoming");
    let run = model.follow(migration).await;
    back(&model, &run, Ending::Cancelled, "cancelled");
    // Right before QEMU's own stop: after the cancel QEMU 7.2 leaves such a guest in `postmigrate`.
    let mut model = self::model();
    let shared = model.shared.clone();
    model.on(Source, "migrate_cancel", move |_| {
        let mut state = shared.state();
        state.enter(Source, "cancelled");
        (state.source.run, state.guest_ran) = ("postmigrate".to_owned(), false);
        vec![AnswerStep::Return(json!({}))]
    });
    let migration = cancel_at(&mut model, Destination, "nbd-server-stop");
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Cancelled, RunsOn::Source), "{run:?}");
    assert_eq!(run.count("source: cont"), 0, "{run:?}");
}
