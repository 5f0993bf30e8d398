//! Open world: statuses and events that no QEMU has yet. (The model adds unknown fields to every answer.)

use super::*;

#[tokio::test(start_paused = true)]
async fn a_status_nobody_knows_means_keep_waiting() {
    for strange in ["wait-unplug", "colo", "a-status-of-tomorrow"] {
        let mut model = model();
        model.state().odd_status = Some(strange);
        let run = model.migrate().await;
        moved(&model, &run);
    }
}

#[tokio::test(start_paused = true)]
async fn events_nobody_knows_are_passed_over() {
    let mut model = model();
    for (side, command) in [
        (Source, "drive-mirror"),
        (Source, "migrate"),
        (Source, "block-job-cancel"),
        (Source, "migrate-continue"),
        (Destination, "cont"),
    ] {
        let shared = model.shared.clone();
        model.when(side, command, move || {
            let mut state = shared.state();
            for data in [json!({"status": {"deep": []}}), json!([1]), json!({"id": "x", "status": 7}), Value::Null] {
                for name in ["EVENT_OF_TOMORROW", "MIGRATION", "JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED"] {
                    state.emit(side, name, data.clone());
                }
            }
        });
    }
    let run = model.migrate().await;
    moved(&model, &run);
}

#[tokio::test(start_paused = true)]
async fn a_status_nobody_knows_proves_nothing_to_the_verdict() {
    for silent in [true, false] {
        let mut model = model();
        let (shared, freeze) = (model.shared.clone(), model.destination.freezer());
        model.on(Source, "migrate-continue", move |_| {
            shared.state().enter(Source, "a-status-of-tomorrow");
            if silent {
                freeze();
            }
            vec![AnswerStep::Return(json!({}))]
        });
        let run = model.migrate().await;
        if silent {
            undetermined(&run);
            assert_eq!(run.count("source: migrate_cancel"), 0, "{run:?}");
        } else {
            back(&model, &run, Ending::RolledBack, "no-answer");
            assert!(run.position("destination: quit") < run.position("source: migrate_cancel"), "{run:?}");
        }
        assert_eq!(run.count("source: cont") + run.count("destination: cont"), 0, "{run:?}");
    }
}
