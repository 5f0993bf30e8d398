//! Lost events: the engine's queries take their place.

use super::*;

/// No event of this name, on either side.
pub(crate) fn without(name: &str) -> fn(Side, &str, &Value) -> bool {
    match name {
        "STOP" => |_, event, _| event == "STOP",
        "RESUME" => |_, event, _| event == "RESUME",
        "MIGRATION" => |_, event, _| event == "MIGRATION",
        "JOB_STATUS_CHANGE" => |_, event, _| event == "JOB_STATUS_CHANGE",
        "BLOCK_JOB" => |_, event, _| event.starts_with("BLOCK_JOB"),
        "pre-switchover" => |_, _, data| data["status"] == "pre-switchover",
        "completed" => |_, _, data| data["status"] == "completed",
        "everything" => |_, _, _| true,
        other => panic!("{other}"),
    }
}

const LOST: [&str; 8] =
    ["STOP", "RESUME", "MIGRATION", "JOB_STATUS_CHANGE", "BLOCK_JOB", "pre-switchover", "completed", "everything"];

#[tokio::test(start_paused = true)]
async fn without_an_event_the_guest_moves_all_the_same() {
    for lost in LOST {
        let mut model = ModelPair::new(&disks(2));
        model.state().muted = without(lost);
        // A query takes the place of an event that stays away, but only after a while.
        let migration = model.builder().downtime(Duration::from_secs(20)).start_here().unwrap();
        let run = model.follow(migration).await;
        moved(&model, &run);
        // A RESUME that a query finds makes the blackout too long, never too short.
        let known = !["STOP", "everything"].contains(&lost);
        assert_eq!(run.outcome.blackout_ms.is_some(), known, "{lost}: {run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_event_a_mirror_that_failed_is_found_all_the_same() {
    for lost in LOST {
        for how in [MirrorEnd::Error, MirrorEnd::NotReady, MirrorEnd::Vanished] {
            let mut model = ModelPair::new(&disks(2));
            model.state().muted = without(lost);
            model.state().mirror_ends[1] = how;
            let run = model.migrate().await;
            assert_eq!(run.count("source: migrate-continue"), 0, "{lost}: {run:?}");
            let code = run.code().to_owned();
            back(&model, &run, Ending::RolledBack, &code);
        }
        // A mirror fails while RAM is copied.
        let mut model = model();
        model.state().muted = without(lost);
        let shared = model.shared.clone();
        model.when(Source, "migrate", move || shared.state().conclude("mirror-0", MirrorEnd::Error));
        let run = model.migrate().await;
        assert_eq!(run.count("source: migrate-continue"), 0, "{lost}: {run:?}");
        let code = run.code().to_owned();
        back(&model, &run, Ending::RolledBack, &code);
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_event_the_way_back_is_gone_all_the_same() {
    for lost in LOST {
        for resumes in [true, false] {
            let mut model = ModelPair::new(&disks(2));
            model.state().muted = without(lost);
            model.state().source_resumes = resumes;
            let migration = cancel_at(&mut model, Destination, "nbd-server-stop");
            let run = model.follow(migration).await;
            back(&model, &run, Ending::Cancelled, "cancelled");

            let mut model = self::model();
            model.state().muted = without(lost);
            model.state().source_resumes = resumes;
            model.state().after_continue = AfterContinue::DestinationFails;
            let run = model.migrate().await;
            assert_eq!(run.outcome.outcome, Ending::RolledBack, "{lost} {resumes}: {run:?}");
            assert_eq!(
                (run.count("source: cont"), model.state().violations.len()),
                (usize::from(!resumes), 0),
                "{run:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_event_that_costs_the_budget_costs_no_blackout_beyond_it() {
    // Only events before the last look at the budget count: after it, the guest is handed over.
    for lost in ["JOB_STATUS_CHANGE", "pre-switchover"] {
        let mut model = ModelPair::new(&disks(2));
        model.state().muted = without(lost);
        let run = model.migrate().await;
        back(&model, &run, Ending::RolledBack, "over-budget");
        assert_eq!(run.count("source: migrate-continue"), 0, "{lost}: {run:?}");
    }
}
