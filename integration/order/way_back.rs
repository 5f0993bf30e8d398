//! The way back: effects are undone, and those that cannot be are named.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_source_that_does_not_resume_by_itself_is_resumed_once() {
    let mut model = model();
    model.state().source_resumes = false;
    let migration = cancel_at(&mut model, Destination, "nbd-server-stop");
    let run = model.follow(migration).await;
    back(&model, &run, Ending::Cancelled, "cancelled");
    assert_eq!(run.count("source: cont"), 1, "{run:?}");
    assert!(run.position("source: migrate_cancel") < run.position("source: cont"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_migration_that_cannot_be_cancelled_is_reported() {
    for unanswered in [true, false] {
        // The guest still runs, and the migration would stop it later.
        let mut model = model();
        model.state().converges = false;
        if unanswered {
            model.silent(Source, "migrate_cancel");
        } else {
            model.refused(Source, "migrate_cancel");
        }
        // The source does not notice either that its destination is gone.
        model.silent(Destination, "quit");
        let migration = cancel_at(&mut model, Source, "migrate");
        let run = model.follow(migration).await;
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{run:?}");
        assert!(run.outcome.leftovers.iter().any(|left| left.contains("migration")), "{run:?}");
        assert!(run.warned("not-undone"), "{run:?}");

        // The guest is stopped already.
        let mut model = self::model();
        if unanswered {
            model.silent(Source, "migrate_cancel");
        } else {
            model.refused(Source, "migrate_cancel");
        }
        let migration = cancel_at(&mut model, Destination, "nbd-server-stop");
        let run = model.follow(migration).await;
        undetermined(&run);
        assert_eq!(run.count("destination: cont"), 0, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_is_named() {
    for (command, left) in [("job-dismiss", "-mirror-0"), ("block-dirty-bitmap-remove", "-guard-0")] {
        let mut model = model();
        model.refused(Source, command);
        let migration = cancel_at(&mut model, Destination, "migrate-incoming");
        let run = model.follow(migration).await;
        let wanted = if command == "job-dismiss" { Ending::Stuck } else { Ending::RolledBack };
        assert_eq!(run.outcome.runs_on, RunsOn::Source, "{run:?}");
        if command == "job-dismiss" {
            assert_eq!(run.outcome.outcome, wanted, "{run:?}");
            assert!(run.outcome.leftovers.iter().any(|line| line.contains(left)), "{run:?}");
        } else {
            // The start of the mirror already needs `block-dirty-bitmap-remove`.
            assert_eq!(run.outcome.outcome, Ending::Stuck, "{run:?}");
        }
        assert_eq!(model.state().source.run, "running");
    }
    let mut model = model();
    model.state().exports_linger = true;
    let migration = cancel_at(&mut model, Source, "drive-mirror");
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{run:?}");
    assert!(run.outcome.leftovers.iter().any(|line| line.contains("-export-0")), "{run:?}");
}

/// Behind a dead link QEMU connects anew for each request that is still to fail, and each of these connections waits.
#[tokio::test(start_paused = true)]
async fn the_connection_of_a_mirror_is_ended_until_the_mirror_ends() {
    for needed in [1, 3] {
        let mut model = model();
        model.on(Source, "block-job-cancel", |_| vec![AnswerStep::Return(json!({}))]);
        let shared = model.shared.clone();
        let mut yanks = 0;
        model.on(Source, "yank", move |_| {
            yanks += 1;
            if yanks == needed {
                shared.state().conclude("mirror-0", MirrorEnd::Error);
            }
            vec![AnswerStep::Return(json!({}))]
        });
        let migration = cancel_at(&mut model, Destination, "migrate-incoming");
        let run = model.follow(migration).await;
        assert_eq!(
            (run.outcome.outcome, run.outcome.runs_on),
            (Ending::Cancelled, RunsOn::Source),
            "{needed}: {run:?}"
        );
        assert_eq!((run.count("source: yank"), run.outcome.leftovers.len()), (needed, 0), "{needed}: {run:?}");
    }
}

/// A source that can throttle its guest, and whose accelerator allows or refuses `dirty-limit`.
fn throttling(takes_dirty_limit: bool) -> ModelPair {
    let model = model();
    model::add_capabilities(&mut model.state().source.schema, &["auto-converge", "dirty-limit"]);
    let shared = model.shared.clone();
    model.on(Source, "migrate-set-capabilities", move |seen| {
        let on = |name| json!({ "capability": name, "state": true });
        let list = seen.arguments["capabilities"].as_array().unwrap();
        match list.contains(&on("dirty-limit")) && !takes_dirty_limit {
            true => vec![AnswerStep::error("dirty-limit requires KVM with accelerator property 'dirty-ring-size' set")],
            false => shared.answer(Source, seen),
        }
    });
    let shared = model.shared.clone();
    model.when(Source, "migrate", move || {
        let state = shared.state();
        let is_on = |name: &str| state.source.capabilities[name];
        assert_eq!((is_on("dirty-limit"), is_on("auto-converge")), (takes_dirty_limit, !takes_dirty_limit));
        let of = |name: &str| state.source.parameters[name].clone();
        assert_eq!([of("throttle-trigger-threshold"), of("max-cpu-throttle")], [json!(25), json!(1)]);
        assert_eq!(of("vcpu-dirty-limit"), if takes_dirty_limit { json!(1 << 20) } else { json!(1) });
    });
    model
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_throttled_by_what_its_accelerator_allows() {
    for takes_dirty_limit in [true, false] {
        let mut model = throttling(takes_dirty_limit);
        let run = model.migrate().await;
        moved(&model, &run);
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttle_does_not_outlive_a_migration_that_failed() {
    for takes_dirty_limit in [true, false] {
        let mut model = throttling(takes_dirty_limit);
        model.state().after_continue = AfterContinue::DestinationFails;
        let run = model.migrate().await;
        back(&model, &run, Ending::RolledBack, "handover-failed");
        // QEMU ends a dirty limit by itself only after `migrate_cancel`.
        assert_eq!(run.count("source: cancel-vcpu-dirty-limit"), 1, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn settings_that_cannot_be_put_back_are_named() {
    let mut model = model();
    let mut times = 0;
    let shared = model.shared.clone();
    model.on(Source, "migrate-set-parameters", move |seen| {
        times += 1;
        if times == 1 { shared.answer(Source, seen) } else { vec![AnswerStep::error("no")] }
    });
    let migration = cancel_at(&mut model, Source, "migrate");
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{run:?}");
    assert!(run.outcome.leftovers.iter().any(|line| line.contains("parameters")), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_gone_leaves_nothing_proved() {
    for command in ["drive-mirror", "migrate", "block-job-cancel"] {
        let mut model = model();
        let shared = model.shared.clone();
        model.when(Source, command, move || shared.state().die(Source));
        let run = model.migrate().await;
        undetermined(&run);
        assert_eq!(run.code(), "source-gone", "{run:?}");
        assert_eq!(run.count("destination: cont"), 0, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_gone_leaves_the_guest_where_it_is() {
    for (side, command) in [
        (Destination, "stop"),
        (Destination, "block-export-add"),
        (Source, "drive-mirror"),
        (Source, "migrate"),
        (Source, "block-job-cancel"),
        (Destination, "nbd-server-stop"),
    ] {
        let mut model = processes();
        let shared = model.shared.clone();
        model.when(side, command, move || shared.state().die(Destination));
        let run = model.migrate().await;
        back(&model, &run, Ending::RolledBack, "destination-gone");
        // The monitor of a QEMU on another host has closed, and whatever is behind it may be there yet.
        let mut model = self::model();
        let shared = model.shared.clone();
        model.when(side, command, move || shared.state().die(Destination));
        let run = model.migrate().await;
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{run:?}");
        assert!(run.outcome.leftovers.iter().any(|line| line.starts_with("destination")), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_is_never_resumed() {
    let paused = || ModelPair::new(&PairShape { guest: "paused", ..PairShape::default() });
    for (side, command) in [(Source, "drive-mirror"), (Source, "migrate"), (Destination, "nbd-server-stop")] {
        let mut model = paused();
        let migration = cancel_at(&mut model, side, command);
        let run = model.follow(migration).await;
        back(&model, &run, Ending::Cancelled, "cancelled");
        assert_eq!(run.count("source: cont"), 0, "{run:?}");
    }
    for then in
        [AfterContinue::DestinationFails, AfterContinue::DestinationCloses, AfterContinue::DestinationClosesLate]
    {
        for processes in [true, false] {
            let mut model = ModelPair::new(&PairShape { guest: "paused", processes, ..PairShape::default() });
            model.state().after_continue = then;
            let run = model.migrate().await;
            assert_eq!(run.count("source: cont") + run.count("destination: cont"), 0, "{run:?}");
            let wanted = match (then, processes) {
                (AfterContinue::DestinationClosesLate, false) => Ending::Undetermined,
                (AfterContinue::DestinationCloses, false) => Ending::Stuck,
                _ => Ending::RolledBack,
            };
            assert_eq!(run.outcome.outcome, wanted, "{then:?} {run:?}");
        }
    }
}
