//! The engine against two scripted QEMUs: what it sends to which side in which order, and where it ends when something
//! goes wrong that no real QEMU can be made to do at will.
//!
//! Time is paused, so that missed deadlines cost nothing and nothing depends on how fast the machine is.

#![allow(clippy::unwrap_used, reason = "a test says all it has to say by panicking")]

mod fake;
#[path = "fake/model.rs"]
mod model;
#[path = "order/recovery.rs"]
mod recovery;
#[path = "order/watchdog.rs"]
mod watchdog;

use std::time::Duration;

use fake::Action;
use model::{Continue, Disk, Fault, Job, Model, Run, Settle, Shape, State};
use qferry::convergence::Policy;
use qferry::migration::{Builder, Migration, Settings};
use qferry::progress::{Ending, Kind, RunsOn, Side};
use serde_json::{Value, json};

use Side::{Destination, Source};

fn model() -> Model {
    Model::new(&Shape::default())
}

fn disks(disks: usize) -> Shape {
    Shape { disks, ..Shape::default() }
}

/// Processes of this host, whose deaths are proofs.
fn processes() -> Model {
    Model::new(&Shape { processes: true, ..Shape::default() })
}

#[track_caller]
fn moved(model: &Model, run: &Run) {
    assert_eq!(run.outcome.outcome, Ending::Moved, "{run:?}");
    assert_eq!((run.outcome.runs_on, &run.outcome.reason), (RunsOn::Destination, &None), "{run:?}");
    assert_eq!(run.count("source: cont"), 0, "{run:?}");
    let state = model.state();
    assert_eq!(state.destination.run, if state.ran { "running" } else { "paused" }, "{run:?}");
    assert_ne!(state.source.run, "running", "{run:?}");
    assert!(state.destination.exports.is_empty(), "{run:?}");
}

/// The guest is on the source as it was, nothing of ours is left, and settings are what they were.
#[track_caller]
fn back(model: &Model, run: &Run, ending: Ending, code: &str) {
    assert_eq!((run.outcome.outcome, run.code()), (ending, code), "{run:?}");
    assert_eq!(run.outcome.runs_on, RunsOn::Source, "{run:?}");
    assert_eq!(run.outcome.leftovers, Vec::<String>::new(), "{run:?}");
    assert_eq!(run.count("destination: cont"), 0, "{run:?}");
    let fresh = Model::new(&Shape { disks: 0, ..Shape::default() });
    let (fresh, state) = (fresh.state(), model.state());
    assert_eq!(state.source.run, if state.ran { "running" } else { "paused" }, "{run:?}");
    assert_ne!(state.destination.run, "running", "{run:?}");
    assert!(state.source.jobs.is_empty() && state.source.bitmaps.is_empty(), "{run:?}");
    assert_eq!(state.source.capabilities, fresh.source.capabilities, "{run:?}");
    assert_eq!(state.source.parameters, fresh.source.parameters, "{run:?}");
    if state.destination.run != "gone" {
        assert!(state.destination.exports.is_empty() && !state.destination.server, "{run:?}");
        assert_eq!(state.destination.capabilities, fresh.destination.capabilities, "{run:?}");
    }
}

#[track_caller]
fn undetermined(run: &Run) {
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Undetermined, RunsOn::Unknown), "{run:?}");
    assert!(!run.message().is_empty(), "{run:?}");
}

// 1. The golden order.

fn golden(shape: &Shape) -> Vec<String> {
    let each =
        |lines: &[&'static str]| -> Vec<&'static str> { (0..shape.disks).flat_map(|_| lines.to_vec()).collect() };
    let mut golden = vec![
        "source: migrate-set-capabilities",
        "source: migrate-set-parameters",
        "destination: migrate-set-capabilities",
        "destination: stop",
    ];
    if shape.disks > 0 {
        golden.push("destination: nbd-server-start");
        golden.extend(each(&["destination: block-export-add"]));
        golden.extend(each(&["source: block-dirty-bitmap-add", "source: drive-mirror"]));
        golden.extend(each(&["source: block-dirty-bitmap-remove"]));
    }
    if shape.block_job_change {
        golden.extend(each(&["source: block-job-change"]));
        // which wakes them, to see that they are in step
        golden.extend(each(&["source: block-job-set-speed"]));
    }
    // the downtime limit, by what is known of the run by now
    golden.extend(["source: migrate-set-parameters", "destination: migrate-incoming", "source: migrate"]);
    golden.extend(each(&["source: block-job-cancel"]));
    if shape.disks > 0 {
        golden.push("destination: nbd-server-stop");
    }
    golden.push("source: migrate-continue");
    if shape.guest == "running" {
        golden.push("destination: cont");
    }
    golden.extend(["source: quit", "destination: migrate-set-capabilities"]);
    golden.into_iter().map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn golden_order() {
    for disks in [0, 1, 3] {
        for (block_job_change, exit_on_error) in [(true, true), (true, false), (false, true), (false, false)] {
            for guest in ["running", "paused"] {
                let shape = Shape { disks, block_job_change, exit_on_error, guest, processes: false };
                let mut model = Model::new(&shape);
                let run = model.migrate().await;
                moved(&model, &run);
                assert_eq!(run.told(), golden(&shape), "{shape:?}");
                let incoming = &model.destination.saw("migrate-incoming").await.arguments["exit-on-error"];
                assert_eq!(*incoming, if exit_on_error { json!(false) } else { Value::Null });
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_blackout_holds_nothing_but_the_handover() {
    for disks in [0, 1, 3] {
        let mut model = Model::new(&Shape { disks, ..Shape::default() });
        let run = model.migrate().await;
        moved(&model, &run);
        let window = run.blackout();
        let commands: Vec<&str> = window
            .iter()
            .map(|(line, _)| line.as_str())
            .filter(|line| line.chars().skip_while(|c| *c != ' ').any(|c| c.is_ascii_lowercase()))
            .collect();
        let mut expected = vec!["source: block-job-cancel"; disks];
        // how much of RAM is left, on its way behind the mirrors' end: whether the budget will be kept
        expected.push("source: query-migrate");
        if disks > 0 {
            expected.extend(["source: query-jobs", "destination: nbd-server-stop", "destination: query-block-exports"]);
        }
        expected.extend(["source: migrate-continue", "destination: cont"]);
        assert_eq!(commands, expected);
        let begin = window[0].1;
        assert!(window.iter().all(|(_, at)| *at == begin), "time passed: {window:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_mirror_is_told_to_settle_before_any_answer_is_awaited() {
    let mut model = Model::new(&disks(3));
    let world = model.world.clone();
    model.on(Source, "block-job-cancel", move |seen| {
        let mut steps = vec![Action::Hold("all")];
        steps.extend(world.answer(Source, seen));
        steps
    });
    let migration = model.builder().start();
    model.source.saw_times("block-job-cancel", 3).await;
    model.source.release("all");
    let run = model.follow(migration).await;
    moved(&model, &run);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_ram_is_asked_for_and_not_waited_for() {
    let mut model = model();
    let world = model.world.clone();
    model.on(Source, "query-migrate", move |seen| {
        let stands = world.state().source.migration.as_deref() == Some("pre-switchover");
        let mut steps = if stands { vec![Action::Hold("left")] } else { Vec::new() };
        steps.extend(world.answer(Source, seen));
        steps
    });
    let migration = model.builder().start();
    let stopped = tokio::time::timeout(Duration::from_secs(60), model.destination.saw("nbd-server-stop")).await;
    assert!(stopped.is_ok(), "{:#?}", model.log);
    model.source.release("left");
    let run = model.follow(migration).await;
    moved(&model, &run);
}

// 2. Never a lost write.

/// Three disks of which the second does not settle.
async fn not_settled(how: Settle, message: &str) {
    let mut model = Model::new(&disks(3));
    model.state().settle[1] = how;
    let run = model.migrate().await;
    assert_eq!(run.count("source: migrate-continue"), 0, "{run:?}");
    let code = match how {
        Settle::ErrorInQueryOnly | Settle::Vanished => "not-disengaged",
        Settle::Never => "no-answer",
        _ => "mirror-failed",
    };
    back(&model, &run, Ending::RolledBack, code);
    assert!(run.message().contains(message), "{run:?}");
    assert_eq!(run.count("source: migrate_cancel"), 1, "{run:?}");
    assert_eq!(run.count("source: cont"), 0, "QEMU resumes it by itself: {run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_concludes_with_an_error_stops_the_switchover() {
    not_settled(Settle::Error, "Input/output error").await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_was_not_ready_stops_the_switchover() {
    not_settled(Settle::NotReady, "not ready").await;
}

#[tokio::test(start_paused = true)]
async fn the_query_is_believed_over_the_events() {
    not_settled(Settle::ErrorInQueryOnly, "Input/output error").await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_vanished_proves_nothing() {
    not_settled(Settle::Vanished, "vanished").await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_never_concludes_stops_the_switchover() {
    not_settled(Settle::Never, "end of the mirrors").await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_someone_else_ended_while_the_guest_ran_is_not_taken_for_settled() {
    for (phase, command) in [("storage", "block-job-change"), ("memory", "migrate")] {
        let mut model = model();
        let world = model.world.clone();
        model.when(Source, command, move || world.state().conclude("qferry-mirror-0", Settle::Well));
        let run = model.migrate().await;
        assert_eq!(run.count("source: migrate-continue"), 0, "{phase}: {run:?}");
        back(&model, &run, Ending::RolledBack, "mirror-failed");
    }
}

#[tokio::test(start_paused = true)]
async fn an_export_that_stays_stops_the_switchover() {
    let mut model = model();
    model.state().exports_linger = true;
    let run = model.migrate().await;
    assert_eq!(run.count("source: migrate-continue"), 0, "{run:?}");
    assert_eq!((run.outcome.outcome, run.code()), (Ending::RolledBack, "not-disengaged"), "{run:?}");
    assert!(run.message().contains("qferry-export-0"), "{run:?}");
    assert_eq!(model.state().source.run, "running");
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_exports_are_not_proved_closed() {
    for command in ["nbd-server-stop", "query-block-exports"] {
        let mut model = model();
        let asked = model.world.clone();
        // the first is asked in the preflight
        let mut times = 0;
        model.on(Destination, command, move |seen| {
            times += 1;
            if seen.name == "query-block-exports" && times == 1 { asked.answer(Destination, seen) } else { Vec::new() }
        });
        let run = model.migrate().await;
        assert_eq!(run.count("source: migrate-continue"), 0, "{command}: {run:?}");
        back(&model, &run, Ending::RolledBack, "switchover-timeout");
    }
}

// 3. The start-write guard.

#[tokio::test(start_paused = true)]
async fn a_guest_that_writes_during_every_start_is_stopped_for_one() {
    let mut model = Model::new(&disks(2));
    model.state().writes =
        Box::new(|job, _, stopped| Some(if job == "qferry-mirror-1" && !stopped { 65536 } else { 0 }));
    let run = model.migrate().await;
    assert_eq!(run.actions("restart-mirror"), 16, "{run:?}");
    assert_eq!(run.outcome.outcome, Ending::Moved, "{run:?}");
    let stop = run.position("source: stop");
    let told = run.told();
    assert_eq!(
        told[stop - 3..stop + 5],
        [
            // the fifth try is removed
            "source: block-job-cancel",
            "source: job-dismiss",
            "source: block-dirty-bitmap-remove",
            "source: stop",
            "source: block-dirty-bitmap-add",
            "source: drive-mirror",
            "source: block-dirty-bitmap-remove",
            "source: cont",
        ]
    );
    assert_eq!(run.count("source: drive-mirror"), 18, "{run:?}");
    assert_eq!((run.count("source: cont"), run.count("source: stop")), (1, 1), "{run:?}");
    assert!(run.warned("stopped-for-mirror"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_free_of_writes_is_enough() {
    let mut model = model();
    model.state().writes = Box::new(|_, start, _| Some(if start < 3 { 512 } else { 0 }));
    let run = model.migrate().await;
    moved(&model, &run);
    assert_eq!((run.actions("restart-mirror"), run.count("source: stop")), (2, 0), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn writes_even_while_the_guest_is_stopped_roll_back_and_resume_it() {
    let mut model = model();
    model.state().writes = Box::new(|_, _, _| Some(65536));
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "mirror-failed");
    assert_eq!((run.count("source: stop"), run.count("source: cont")), (1, 1), "{run:?}");
    assert_eq!(run.count("source: migrate"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bitmap_that_is_not_there_proves_nothing() {
    let mut model = model();
    model.state().writes = Box::new(|_, _, _| None);
    let run = model.migrate().await;
    assert_eq!(run.count("source: migrate"), 0, "{run:?}");
    assert_eq!(run.outcome.outcome, Ending::RolledBack, "{run:?}");
    assert_eq!(model.state().source.run, "running");
}

#[tokio::test(start_paused = true)]
async fn an_untouched_overlay_is_ready_at_once() {
    let mut model = Model::new(&disks(2));
    model.state().len = 0;
    let run = model.migrate().await;
    moved(&model, &run);
    assert_eq!(run.actions("restart-mirror"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_while_the_guest_is_stopped_for_a_mirror_resumes_it() {
    for command in ["stop", "cont"] {
        let mut model = model();
        model.state().writes = Box::new(|_, _, stopped| Some(if stopped { 0 } else { 1 }));
        let migration = model.builder().start();
        let canceller = migration.canceller();
        model.when(Source, command, move || canceller.cancel());
        let run = model.follow(migration).await;
        back(&model, &run, Ending::Cancelled, "cancelled");
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_is_not_resumed_after_a_start_while_stopped() {
    let mut model = Model::new(&Shape { guest: "paused", ..Shape::default() });
    let mut times = 0;
    model.state().writes = Box::new(move |_, _, _| {
        times += 1;
        Some(if times < 6 { 1 } else { 0 })
    });
    let run = model.migrate().await;
    moved(&model, &run);
}

// 4. Never two runners.

#[tokio::test(start_paused = true)]
async fn a_source_that_resumed_by_itself_has_the_guest() {
    for then in [Continue::DestinationFails, Continue::DestinationCloses] {
        for exit_on_error in [true, false] {
            let mut model = Model::new(&Shape { exit_on_error, ..Shape::default() });
            model.state().then = then;
            let run = model.migrate().await;
            back(&model, &run, Ending::RolledBack, if run.code() == "gone" { "gone" } else { "handover-failed" });
            assert_eq!(run.count("source: cont"), 0, "{run:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_whose_monitor_closed_may_yet_run() {
    let mut model = model();
    model.state().then = Continue::DestinationClosesLate;
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!(run.count("source: cont") + run.count("destination: cont"), 0, "{run:?}");
    assert!(run.message().contains("make sure that its process is gone"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_proved_dead_gives_the_guest_back() {
    let mut model = processes();
    model.state().then = Continue::DestinationClosesLate;
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "gone");
    assert_eq!((run.count("source: cont"), run.count("source: quit")), (1, 0), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_destination_may_yet_run() {
    for processes in [true, false] {
        let mut model = Model::new(&Shape { processes, ..Shape::default() });
        model.state().then = Continue::DestinationFreezes;
        let freeze = model.destination.freezer();
        model.when(Source, "migrate-continue", freeze);
        let run = model.migrate().await;
        undetermined(&run);
        assert_eq!(run.count("source: cont") + run.count("destination: cont"), 0, "{run:?}");
        assert_eq!(run.count("source: quit"), 0, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_cont_quits_the_destination_before_the_source_is_resumed() {
    for processes in [true, false] {
        let mut model = Model::new(&Shape { processes, ..Shape::default() });
        model.refused(Destination, "cont");
        let run = model.migrate().await;
        assert_eq!((run.outcome.outcome, run.code()), (Ending::RolledBack, "command-refused"), "{run:?}");
        assert_eq!(model.state().source.run, "running", "{run:?}");
        let (cont, quit) = (run.position("destination: cont"), run.position("destination: quit"));
        assert!(cont < quit && quit < run.position("source: cont"), "{run:?}");
        assert_eq!(run.count("destination: cont"), 1, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_refuses_cont_and_quit_blocks_the_source() {
    let mut model = model();
    model.refused(Destination, "cont");
    model.refused(Destination, "quit");
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!(run.count("source: cont"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_cont_is_judged_by_what_the_destination_says() {
    for (swallowed, carried_out) in [(1, true), (1, false), (usize::MAX, false)] {
        let mut model = model();
        let (world, mut times) = (model.world.clone(), 0);
        model.on(Destination, "cont", move |seen| {
            times += 1;
            let answer = if carried_out || times > swallowed { world.answer(Destination, seen) } else { Vec::new() };
            if times > swallowed { answer } else { Vec::new() }
        });
        let run = model.migrate().await;
        // one that waits with everything, beside a source that stands for good, is started again
        let conts = if carried_out { 1 } else { 2 };
        if swallowed == 1 {
            moved(&model, &run);
            assert_eq!(run.count("destination: cont"), conts, "{run:?}");
        } else {
            undetermined(&run);
            assert_eq!(run.count("source: quit") + run.count("destination: quit"), 0, "{run:?}");
        }
        assert_eq!(run.count("source: cont"), 0, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_lost_after_cont_is_not_proved_to_run_or_not() {
    for processes in [true, false] {
        let mut model = Model::new(&Shape { processes, ..Shape::default() });
        let world = model.world.clone();
        model.on(Destination, "cont", move |seen| {
            world.answer(Destination, seen);
            world.state().die(Destination);
            Vec::new()
        });
        let run = model.migrate().await;
        undetermined(&run);
        assert_eq!((run.count("source: cont"), run.count("source: quit")), (0, 0), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_lost_after_it_ran_keeps_the_source() {
    for processes in [true, false] {
        let mut model = Model::new(&Shape { processes, ..Shape::default() });
        let world = model.world.clone();
        model.on(Destination, "cont", move |seen| {
            let mut steps = world.answer(Destination, seen);
            world.state().destination.run = "gone".to_owned();
            steps.push(Action::Close);
            steps
        });
        let run = model.migrate().await;
        undetermined(&run);
        assert_eq!((run.count("source: cont"), run.count("source: quit")), (0, 0), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_migrate_continue_hands_nothing_over() {
    let mut model = model();
    model.refused(Source, "migrate-continue");
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "command-refused");
    assert_eq!((run.count("source: migrate_cancel"), run.count("source: cont")), (1, 0), "{run:?}");
    assert!(run.position("source: migrate-continue") < run.position("source: migrate_cancel"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_migrate_continue_that_was_carried_out_is_a_handover() {
    let mut model = model();
    let world = model.world.clone();
    model.on(Source, "migrate-continue", move |seen| {
        world.answer(Source, seen);
        Vec::new()
    });
    let run = model.migrate().await;
    assert_eq!(run.count("source: migrate-continue"), 1, "{run:?}");
    moved(&model, &run);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_migrate_continue_that_was_not_carried_out_is_taken_back() {
    for processes in [true, false] {
        let mut model = Model::new(&Shape { processes, ..Shape::default() });
        model.silent(Source, "migrate-continue");
        let run = model.migrate().await;
        // the destination is ended first, for migrate-continue could still be carried out
        back(&model, &run, Ending::RolledBack, "no-answer");
        assert!(run.position("destination: quit") < run.position("source: migrate_cancel"), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_ram_may_take_as_long_as_was_asked_for() {
    for (downtime, slow, wanted) in [(60, 90, Ending::Moved), (1, 90, Ending::RolledBack)] {
        let mut model = model();
        model.state().slow = Duration::from_secs(slow);
        let migration = model.builder().downtime(Duration::from_secs(downtime)).start();
        let run = model.follow(migration).await;
        assert_eq!(run.outcome.outcome, wanted, "{run:?}");
        sound(&model, &run, "slow");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_died_is_outlived_by_a_destination_that_has_everything() {
    let mut model = processes();
    model.state().then = Continue::SourceDies;
    let run = model.migrate().await;
    moved(&model, &run);
    // without the proof of its death nothing is started
    let mut model = self::model();
    model.state().then = Continue::SourceDies;
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!(run.count("destination: cont"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_resumed_and_died_has_taken_its_writes_with_it() {
    let mut model = processes();
    model.state().then = Continue::SourceResumesAndDies;
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!(run.count("destination: cont"), 0, "its disks are older than what the guest did: {run:?}");
}

#[tokio::test(start_paused = true)]
async fn someone_else_who_starts_the_destination_does_not_make_it_ours() {
    // the source has not completed: it could still resume by itself
    let mut model = model();
    model.state().then = Continue::DestinationFreezes;
    let world = model.world.clone();
    model.on(Source, "migrate-continue", move |_| {
        let mut state = world.state();
        state.enter(Source, "device");
        state.destination.run = "running".to_owned();
        state.enter(Destination, "completed");
        vec![Action::Return(json!({}))]
    });
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!(run.count("source: quit") + run.count("destination: quit"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn someone_else_who_continues_the_migration_has_taken_it_over() {
    // while RAM is copied: the disks are not whole; later they may be, and then it is as if we had asked
    for (side, command) in [(Source, "migrate"), (Source, "block-job-cancel"), (Destination, "nbd-server-stop")] {
        for guest in ["running", "paused"] {
            for processes in [true, false] {
                let mut model = Model::new(&Shape { guest, processes, ..Shape::default() });
                let world = model.world.clone();
                model.when(side, command, move || {
                    tokio::spawn(async move { world.state().hand_over() });
                });
                let run = model.migrate().await;
                sound(&model, &run, command);
                assert_eq!(run.count("source: cont"), 0, "{run:?}");
                if run.outcome.outcome != Ending::Moved {
                    undetermined(&run);
                    assert!(run.warned("taken-over"), "{run:?}");
                    assert_eq!(run.count("source: quit") + run.count("destination: quit"), 0, "{run:?}");
                }
                if command == "migrate" {
                    undetermined(&run);
                    assert_eq!(run.count("destination: cont"), 0, "{run:?}");
                }
            }
        }
    }
}

// Postcopy, where QEMU up to 10 could take it back: it says `postcopy-active` before all device state is out.

/// What `query-migrate` says of a source in postcopy.
fn in_postcopy(pages: u64) -> Value {
    let ram = json!({"transferred": pages, "remaining": 9, "total": 99, "normal": pages, "duplicate": 0});
    json!({"status": "postcopy-active", "ram": ram})
}

fn begin_postcopy(state: &mut State) {
    state.enter(Source, "postcopy-active");
    state.destination.run = "paused".to_owned();
    state.enter(Destination, "postcopy-active");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_takes_postcopy_back_keeps_the_guest() {
    let mut model = model();
    let world = model.world.clone();
    model.on(Source, "migrate-continue", move |_| {
        let mut state = world.state();
        begin_postcopy(&mut state);
        let world = world.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            world.state().fail_source();
        });
        vec![Action::Return(json!({}))]
    });
    let world = model.world.clone();
    // no page is sent
    model.on(Source, "query-migrate", move |_| {
        let status = world.state().source.migration.clone();
        let answer = match status.as_deref() {
            Some("postcopy-active") => in_postcopy(7),
            Some(status) => json!({ "status": status }),
            None => json!({}),
        };
        vec![Action::Return(answer)]
    });
    let run = model.migrate().await;
    assert_eq!(run.count("destination: cont"), 0, "its source resumed: {run:?}");
    back(&model, &run, Ending::RolledBack, "handover-failed");
}

#[tokio::test(start_paused = true)]
async fn a_source_in_postcopy_is_quit_only_when_both_have_completed() {
    let mut model = model();
    let world = model.world.clone();
    model.on(Source, "migrate-continue", move |_| {
        let mut state = world.state();
        begin_postcopy(&mut state);
        vec![Action::Return(json!({}))]
    });
    let ran = std::sync::Arc::new(std::sync::OnceLock::new());
    let (world, mut sent, seen) = (model.world.clone(), 0, ran.clone());
    model.on(Source, "query-migrate", move |_| {
        let mut state = world.state();
        let status = state.source.migration.clone();
        if status.as_deref() != Some("postcopy-active") {
            return vec![Action::Return(json!({ "status": status }))];
        }
        sent += 1;
        if sent == 20 {
            seen.get_or_init(|| state.destination.run.clone());
            state.enter(Source, "completed");
            state.enter(Destination, "completed");
        }
        vec![Action::Return(in_postcopy(sent))]
    });
    let run = model.migrate().await;
    moved(&model, &run);
    assert!(run.outcome.ram.postcopy, "{run:?}");
    assert_eq!(ran.get().map(String::as_str), Some("running"), "it runs while its pages come: {run:?}");
    assert!(run.actions("judge-handover") == 0 && run.count("source: quit") == 1, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_cannot_be_made_anew_leaves_both_as_they_are() {
    let mut model = model();
    let world = model.world.clone();
    model.on(Source, "migrate-continue", move |_| {
        let mut state = world.state();
        begin_postcopy(&mut state);
        state.enter(Source, "postcopy-paused");
        vec![Action::Return(json!({}))]
    });
    let run = model.migrate().await;
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Undetermined, RunsOn::Destination), "{run:?}");
    assert_eq!(run.code(), "postcopy-paused", "{run:?}");
    assert!(run.message().contains("migrate-recover") && run.message().contains("exec-oob"), "{run:?}");
    assert_eq!((run.count("destination: cont"), run.count("source: cont")), (1, 0), "{run:?}");
    assert_eq!(run.count("source: quit") + run.count("destination: quit"), 0, "{run:?}");
    assert_eq!(run.count("source: migrate_cancel"), 0, "{run:?}");
    assert_eq!(run.actions("recover-postcopy"), 30, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_migration_that_someone_else_took_into_postcopy_is_not_cancelled() {
    // 7.2 lets itself be told, and the guest's pages are lost
    for guest in ["running", "paused"] {
        let mut model = Model::new(&Shape { guest, ..Shape::default() });
        let world = model.world.clone();
        let migration = model.builder().start();
        let canceller = migration.canceller();
        model.when(Source, "migrate", move || {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let mut state = world.state();
                state.source.run = "finish-migrate".to_owned();
                state.enter(Source, "postcopy-active");
                canceller.cancel();
            });
        });
        let run = model.follow(migration).await;
        undetermined(&run);
        assert_eq!(run.count("source: migrate_cancel") + run.count("destination: quit"), 0, "{run:?}");
    }
}

// 5. The way back.

fn cancel_at(model: &mut Model, side: Side, command: &'static str) -> Migration {
    let migration = model.builder().start();
    let canceller = migration.canceller();
    model.when(side, command, move || canceller.cancel());
    migration
}

#[tokio::test(start_paused = true)]
async fn a_source_that_does_not_resume_by_itself_is_resumed_once() {
    let mut model = model();
    model.state().resumes = false;
    let migration = cancel_at(&mut model, Destination, "nbd-server-stop");
    let run = model.follow(migration).await;
    back(&model, &run, Ending::Cancelled, "cancelled");
    assert_eq!(run.count("source: cont"), 1, "{run:?}");
    assert!(run.position("source: migrate_cancel") < run.position("source: cont"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_migration_that_cannot_be_cancelled_is_reported() {
    for unanswered in [true, false] {
        // the guest still runs, and would be stopped later
        let mut model = model();
        model.state().converges = false;
        if unanswered {
            model.silent(Source, "migrate_cancel");
        } else {
            model.refused(Source, "migrate_cancel");
        }
        // nor does it notice that its destination is gone
        model.silent(Destination, "quit");
        let migration = cancel_at(&mut model, Source, "migrate");
        let run = model.follow(migration).await;
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{run:?}");
        assert!(run.outcome.leftovers.iter().any(|left| left.contains("migration")), "{run:?}");
        assert!(run.warned("not-undone"), "{run:?}");

        // the guest is stopped
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
    for (command, left) in [("job-dismiss", "qferry-mirror-0"), ("block-dirty-bitmap-remove", "qferry-guard-0")] {
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
            // refused already on the way there
            assert_eq!(run.outcome.outcome, Ending::Stuck, "{run:?}");
        }
        assert_eq!(model.state().source.run, "running");
    }
    let mut model = model();
    model.state().exports_linger = true;
    let migration = cancel_at(&mut model, Source, "drive-mirror");
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{run:?}");
    assert!(run.outcome.leftovers.iter().any(|line| line.contains("qferry-export-0")), "{run:?}");
}

/// A source whose build can slow a guest down, and what its accelerator says to `dirty-limit`.
fn throttling(takes_dirty_limit: bool) -> Model {
    let model = model();
    model::add_capabilities(&mut model.state().source.schema, &["auto-converge", "dirty-limit"]);
    let world = model.world.clone();
    model.on(Source, "migrate-set-capabilities", move |seen| {
        let on = |name| json!({ "capability": name, "state": true });
        let list = seen.arguments["capabilities"].as_array().unwrap();
        match list.contains(&on("dirty-limit")) && !takes_dirty_limit {
            true => vec![Action::error("dirty-limit requires KVM with accelerator property 'dirty-ring-size' set")],
            false => world.answer(Source, seen),
        }
    });
    let world = model.world.clone();
    model.when(Source, "migrate", move || {
        let state = world.state();
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
        model.state().then = Continue::DestinationFails;
        let run = model.migrate().await;
        back(&model, &run, Ending::RolledBack, "handover-failed");
        // QEMU ends a dirty limit by itself only when it is told to cancel
        assert_eq!(run.count("source: cancel-vcpu-dirty-limit"), 1, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn settings_that_cannot_be_put_back_are_named() {
    let mut model = model();
    let mut times = 0;
    let world = model.world.clone();
    model.on(Source, "migrate-set-parameters", move |seen| {
        times += 1;
        if times == 1 { world.answer(Source, seen) } else { vec![Action::error("no")] }
    });
    let migration = cancel_at(&mut model, Source, "drive-mirror");
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{run:?}");
    assert!(run.outcome.leftovers.iter().any(|line| line.contains("parameters")), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_gone_leaves_nothing_proved() {
    for command in ["drive-mirror", "migrate", "block-job-cancel"] {
        let mut model = model();
        let world = model.world.clone();
        model.when(Source, command, move || world.state().die(Source));
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
        let mut model = model();
        let world = model.world.clone();
        model.when(side, command, move || world.state().die(Destination));
        let run = model.migrate().await;
        back(&model, &run, Ending::RolledBack, "destination-gone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_is_never_resumed() {
    let paused = || Model::new(&Shape { guest: "paused", ..Shape::default() });
    for (side, command) in [(Source, "drive-mirror"), (Source, "migrate"), (Destination, "nbd-server-stop")] {
        let mut model = paused();
        let migration = cancel_at(&mut model, side, command);
        let run = model.follow(migration).await;
        back(&model, &run, Ending::Cancelled, "cancelled");
        assert_eq!(run.count("source: cont"), 0, "{run:?}");
    }
    for then in [Continue::DestinationFails, Continue::DestinationCloses, Continue::DestinationClosesLate] {
        for processes in [true, false] {
            let mut model = Model::new(&Shape { guest: "paused", processes, ..Shape::default() });
            model.state().then = then;
            let run = model.migrate().await;
            assert_eq!(run.count("source: cont") + run.count("destination: cont"), 0, "{run:?}");
            let wanted = match (then, processes) {
                (Continue::DestinationClosesLate, false) => Ending::Undetermined,
                _ => Ending::RolledBack,
            };
            assert_eq!(run.outcome.outcome, wanted, "{then:?} {run:?}");
        }
    }
}

// 6. Refusals change nothing.

fn asks_only(run: &[(String, fake::Seen)]) -> bool {
    run.iter().all(|(_, seen)| model::asks(seen))
}

/// Both are made as told, then asked for: first only planned, then to be carried out.
async fn refused(code: &str, shape: &Shape, spoil: impl Fn(&mut State), ask: impl Fn(Builder) -> Builder) {
    let spoiled = || {
        let model = Model::new(shape);
        spoil(&mut model.state());
        model
    };
    let mut model = spoiled();
    let plan = ask(model.builder()).plan().await.unwrap();
    assert!(plan.blockers().any(|finding| finding.code == code), "{code}: {:?}", plan.findings);
    assert!(asks_only(&model.log.lock().unwrap()), "{code}");

    let mut model = spoiled();
    let migration = ask(model.builder()).start();
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, code), "{code}: {run:?}");
    assert!(asks_only(&run.log), "{code}: {run:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_side_says_refuses_the_migration() {
    type Spoil = fn(&mut State);
    let findings: [(&str, Spoil); 26] = [
        ("qemu-lacks", |state| state.source.schema = json!([])),
        ("qemu-lacks", |state| state.destination.schema = json!([{"name": "cont", "meta-type": "command"}])),
        ("source-state", |state| state.source.run = "postmigrate".to_owned()),
        ("source-state", |state| state.source.run = "inmigrate".to_owned()),
        ("source-state", |state| state.source.run = "finish-migrate".to_owned()),
        ("source-state", |state| state.source.run = "a-state-of-tomorrow".to_owned()),
        ("migration-blocked", |state| state.source.blocked = vec!["a device"]),
        ("migration-under-way", |state| state.source.migration = Some("active".to_owned())),
        ("migration-under-way", |state| state.source.migration = Some("a-status-of-tomorrow".to_owned())),
        ("destination-state", |state| state.destination.run = "running".to_owned()),
        ("destination-state", |state| state.destination.run = "a-state-of-tomorrow".to_owned()),
        ("destination-used", |state| state.destination.migration = Some("setup".to_owned())),
        ("destination-used", |state| state.destination.migration = Some("failed".to_owned())),
        ("ram-size", |state| state.destination.ram += 1),
        ("machine-type", |state| state.destination.machine = "pc-q35-10.0"),
        ("cpu-features", |state| state.destination.features = 0),
        ("leftover", |state| state.source.jobs.push(Job::new("qferry-mirror-7", "ready", 1))),
        ("leftover", |state| {
            drop(state.source.bitmaps.insert("node-disk0".to_owned(), ("qferry-guard-0".to_owned(), 0)))
        }),
        ("leftover", |state| state.destination.exports.push("qferry-export-0".to_owned())),
        ("export-open", |state| state.destination.exports.push("of-someone".to_owned())),
        ("disk-missing", |state| drop(state.destination.disks.pop())),
        ("disk-missing", |state| state.destination.disks[0].name = "another".to_owned()),
        ("disk-ambiguous", |state| {
            let disk =
                |file: &str| Disk { name: "disk0".to_owned(), file: file.to_owned(), size: 64 << 20, read_only: false };
            state.destination.disks = vec![disk("a"), disk("b")];
        }),
        ("disk-read-only", |state| state.destination.disks[0].read_only = true),
        ("disk-size", |state| state.destination.disks[0].size -= 512),
        ("disk-size", |state| state.destination.disks[0].size += 512),
    ];
    for (code, spoil) in findings {
        refused(code, &Shape::default(), spoil, |builder| builder).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_be_forced_is_forced_by_its_own_code() {
    let spoiled = || {
        let model = model();
        model.state().destination.machine = "pc-q35-10.0";
        model.state().destination.features = 0;
        model
    };
    let mut half = spoiled();
    let migration = half.builder().force("machine-type").start();
    let run = half.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "cpu-features"), "{run:?}");
    assert!(run.message().contains("avx2") && run.message().contains("--force cpu-features"), "{run:?}");
    assert!(run.warned("machine-type") && asks_only(&run.log), "{run:?}");

    let mut whole = spoiled();
    let migration = whole.builder().force("machine-type").force("cpu-features").force("ram-size").start();
    let run = whole.follow(migration).await;
    moved(&whole, &run);
    assert!(run.warned("machine-type") && run.warned("cpu-features"), "{run:?}");

    let mut never = spoiled();
    never.state().destination.ram += 1;
    let builder = never.builder().force("machine-type").force("cpu-features").force("ram-blocks").force("ram-size");
    let run = never.follow(builder.start()).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "ram-size"), "{run:?}");
}

/// A build that cannot tell is not a machine that differs.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_compared_is_only_told() {
    let mut model = model();
    for command in ["qom-get", "qom-list", "x-query-ramblock", "query-pci"] {
        model.refused(Destination, command);
        model.refused(Source, command);
    }
    let run = model.migrate().await;
    moved(&model, &run);
    let told =
        run.events.iter().filter(|event| matches!(&event.kind, Kind::Warning { code, .. } if code == "not-compared"));
    assert_eq!(told.count(), 3, "machine type, RAM blocks, CPU: {run:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_refuses_the_migration() {
    let none = |_: &mut State| ();
    let tcp = |address: &str| -> qferry::endpoint::Address { address.parse().unwrap() };
    let shape = disks(2);
    refused("disk-unknown", &shape, none, |builder| builder.disk("nothing", None)).await;
    refused("disk-unknown", &shape, none, |builder| builder.disk("disk0", Some("nothing".to_owned()))).await;
    let twice = |builder: Builder| builder.disk("disk0", None).disk("disk1", Some("disk0".to_owned()));
    refused("disk-ambiguous", &shape, none, twice).await;
    refused("address-missing", &shape, none, |builder| builder.settings(Settings::default())).await;
    let plain = |builder: Builder| builder.addresses(tcp("tcp:127.0.0.1:1"), tcp("tcp:192.0.2.1:2"));
    refused("plaintext", &shape, none, plain).await;
    refused("capability-missing", &shape, none, |builder| builder.multifd(2)).await;
    // the source's build alone would do
    let source = |state: &mut State| model::add_capabilities(&mut state.source.schema, &["multifd"]);
    refused("capability-missing", &shape, source, |builder| builder.multifd(2)).await;
    refused("capability-missing", &shape, none, |builder| builder.policy("ram = ['postcopy']".parse().unwrap())).await;
    let both = |state: &mut State| {
        for qemu in [&mut state.source, &mut state.destination] {
            model::add_capabilities(&mut qemu.schema, &["multifd", "postcopy-ram"]);
        }
    };
    let conflicting = |builder: Builder| builder.multifd(2).policy("ram = ['postcopy']".parse().unwrap());
    refused("capability-conflict", &shape, both, conflicting).await;
}

#[tokio::test(start_paused = true)]
async fn a_process_is_not_moved_onto_itself() {
    let mut model = model();
    let pid = i32::try_from(std::process::id()).ok();
    let migration = model.builder_with([pid, pid]).start();
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "same-process"), "{run:?}");
    assert!(asks_only(&run.log), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_plan_only_asks() {
    let mut model = Model::new(&disks(3));
    let plan = model.builder().plan().await.unwrap();
    // a fake's images cannot be read, so nothing is proved of them
    let codes: Vec<&str> = plan.findings.iter().map(|finding| finding.code).collect();
    assert_eq!((codes, plan.disks.len()), (vec!["backing-unverified"], 3), "{plan:?}");
    assert!(asks_only(&model.log.lock().unwrap()), "{:?}", model.log);
}

#[tokio::test(start_paused = true)]
async fn what_is_only_worth_knowing_stops_nothing() {
    let mut model = model();
    model.state().source.jobs.push(Job::new("of-someone", "running", 1));
    model.state().len = 0;
    let run = model.migrate().await;
    assert!(run.warned("job-running"), "{run:?}");
    // it is not ours to judge, and not ours to end
    assert_eq!(run.outcome.outcome, Ending::Moved, "{run:?}");
    assert!(model.state().source.jobs.iter().any(|job| job.id == "of-someone"));

    // a file of this host that both have open is not copied
    let mut model = processes();
    let file = tempfile::NamedTempFile::new().unwrap();
    for side in [Source, Destination] {
        model.state().qemu(side).disks[0].file = file.path().display().to_string();
        model.open(side, file.reopen().unwrap());
    }
    let run = model.migrate().await;
    moved(&model, &run);
    assert!(run.warned("disk-shared") && run.count("source: drive-mirror") == 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn no_answer_and_no_monitor_are_refusals_too() {
    let mut model = model();
    model.silent(Destination, "query-block");
    let run = model.migrate().await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "no-answer"), "{run:?}");
    assert!(asks_only(&run.log), "{run:?}");
    let mut model = self::model();
    model.destination.close();
    let run = model.migrate().await;
    assert_eq!(run.outcome.outcome, Ending::Refused, "{run:?}");
    assert!(asks_only(&run.log), "{run:?}");
}

// 7. Open world. (The model adds fields that nobody knows to every answer.)

#[tokio::test(start_paused = true)]
async fn a_status_nobody_knows_means_keep_waiting() {
    for strange in ["wait-unplug", "colo", "a-status-of-tomorrow"] {
        let mut model = model();
        model.state().strange = Some(strange);
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
        let world = model.world.clone();
        model.when(side, command, move || {
            let mut state = world.state();
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
        let (world, freeze) = (model.world.clone(), model.destination.freezer());
        model.on(Source, "migrate-continue", move |_| {
            world.state().enter(Source, "a-status-of-tomorrow");
            if silent {
                freeze();
            }
            vec![Action::Return(json!({}))]
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

// 8. Lost events.

/// No event of this name, on either side.
fn without(name: &str) -> fn(Side, &str, &Value) -> bool {
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
        let mut model = Model::new(&disks(2));
        model.state().muted = without(lost);
        // looking takes the place of an event that stays away, but not at once
        let migration = model.builder().downtime(Duration::from_secs(20)).start();
        let run = model.follow(migration).await;
        moved(&model, &run);
        // a RESUME that is found by asking makes it too long, never too short
        let known = !["STOP", "everything"].contains(&lost);
        assert_eq!(run.outcome.blackout_ms.is_some(), known, "{lost}: {run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_event_a_mirror_that_failed_is_found_all_the_same() {
    for lost in LOST {
        for how in [Settle::Error, Settle::NotReady, Settle::Vanished] {
            let mut model = Model::new(&disks(2));
            model.state().muted = without(lost);
            model.state().settle[1] = how;
            let run = model.migrate().await;
            assert_eq!(run.count("source: migrate-continue"), 0, "{lost}: {run:?}");
            let code = run.code().to_owned();
            back(&model, &run, Ending::RolledBack, &code);
        }
        // while RAM is copied
        let mut model = model();
        model.state().muted = without(lost);
        let world = model.world.clone();
        model.when(Source, "migrate", move || world.state().conclude("qferry-mirror-0", Settle::Error));
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
            let mut model = Model::new(&disks(2));
            model.state().muted = without(lost);
            model.state().resumes = resumes;
            let migration = cancel_at(&mut model, Destination, "nbd-server-stop");
            let run = model.follow(migration).await;
            back(&model, &run, Ending::Cancelled, "cancelled");

            let mut model = self::model();
            model.state().muted = without(lost);
            model.state().resumes = resumes;
            model.state().then = Continue::DestinationFails;
            let run = model.migrate().await;
            assert_eq!(run.outcome.outcome, Ending::RolledBack, "{lost} {resumes}: {run:?}");
            assert_eq!((run.count("source: cont"), model.state().wrongs.len()), (usize::from(!resumes), 0), "{run:?}");
        }
    }
}

// 9. Cancel, and any one thing that goes wrong anywhere.

/// What holds however a migration went.
#[track_caller]
fn sound(model: &Model, run: &Run, what: &str) {
    let state = model.state();
    assert_eq!(state.wrongs, Vec::<&str>::new(), "{what}: {run:?}");
    let (here, there) = (state.source.run == "running", state.destination.run == "running");
    assert!(!(here && there), "{what}: {run:?}");
    let ending = run.outcome.outcome;
    match ending {
        Ending::Moved => assert_eq!(run.outcome.runs_on, RunsOn::Destination, "{what}: {run:?}"),
        Ending::Undetermined => assert_eq!(run.outcome.runs_on, RunsOn::Unknown, "{what}: {run:?}"),
        // refused before the guest was seen anywhere
        Ending::Refused => assert_ne!(run.outcome.runs_on, RunsOn::Destination, "{what}: {run:?}"),
        _ => assert_eq!(run.outcome.runs_on, RunsOn::Source, "{what}: {run:?}"),
    }
    assert_eq!(run.outcome.reason.is_none(), ending == Ending::Moved, "{what}: {run:?}");
    if ending == Ending::Refused {
        assert!(asks_only(&run.log), "{what}: {run:?}");
    }
    if matches!(ending, Ending::RolledBack | Ending::Cancelled) {
        assert!(state.source.jobs.is_empty() && state.source.bitmaps.is_empty(), "{what}: {run:?}");
        assert_eq!(run.outcome.leftovers, Vec::<String>::new(), "{what}: {run:?}");
    }
    // a QEMU that dies after its last answer is beyond anyone's knowledge
    let died = state.faults.iter().any(|(_, _, fault)| matches!(fault, Fault::Dies | Fault::DiesBefore));
    if state.ran && !died {
        match run.outcome.runs_on {
            RunsOn::Source => assert!(here, "{what}: {run:?}"),
            RunsOn::Destination => assert!(there, "{what}: {run:?}"),
            RunsOn::Unknown => {}
        }
    }
}

async fn with_faults(shape: &Shape, faults: &[(Side, usize, Fault)]) -> (Model, Run) {
    let mut model = Model::new(shape);
    model.state().faults = faults.to_vec();
    let run = tokio::time::timeout(Duration::from_secs(3600), model.migrate()).await;
    let run = run.unwrap_or_else(|_| panic!("it never ends: {faults:?} {:#?}", model.log));
    (model, run)
}

const FAULTS: [Fault; 8] = [
    Fault::Refused,
    Fault::Lost,
    Fault::Unanswered,
    Fault::Dies,
    Fault::DiesBefore,
    Fault::Closes,
    Fault::Mute,
    Fault::Cancel,
];

/// How many commands each side is told in an undisturbed migration.
async fn commands(shape: &Shape) -> [(Side, usize); 2] {
    let (_, run) = with_faults(shape, &[]).await;
    [Source, Destination].map(|side| {
        let of_side = |(at, seen): &&(String, fake::Seen)| at == side.as_str() && seen.id.is_some();
        (side, run.log.iter().filter(of_side).count() - 1)
    })
}

async fn any_one_fault_ends_soundly(shape: Shape) {
    for (side, count) in commands(&shape).await {
        for (number, fault) in (0..count).flat_map(|number| FAULTS.map(|fault| (number, fault))) {
            let (model, run) = with_faults(&shape, &[(side, number, fault)]).await;
            let name = nth(&run, side, number);
            sound(&model, &run, &format!("{side} {name} {fault:?} {shape:?}"));
        }
    }
}

// by far the longest here: each is a test of its own, and they run at once
#[tokio::test(start_paused = true)]
async fn any_one_fault_ends_soundly_with_one_disk() {
    any_one_fault_ends_soundly(Shape::default()).await;
}

#[tokio::test(start_paused = true)]
async fn any_one_fault_ends_soundly_with_two_disks_and_processes() {
    any_one_fault_ends_soundly(Shape { processes: true, ..disks(2) }).await;
}

#[tokio::test(start_paused = true)]
async fn any_one_fault_ends_soundly_with_a_paused_guest() {
    let shape = Shape { guest: "paused", processes: true, exit_on_error: false, ..Shape::default() };
    any_one_fault_ends_soundly(shape).await;
}

fn nth(run: &Run, side: Side, number: usize) -> String {
    let mut of_side = run.log.iter().filter(|(at, seen)| at == side.as_str() && seen.id.is_some());
    of_side.nth(number + 1).map_or_else(String::new, |(_, seen)| seen.name.clone())
}

#[tokio::test(start_paused = true)]
async fn any_two_faults_end_soundly() {
    let shape = Shape { processes: true, ..Shape::default() };
    let [(_, here), (_, there)] = commands(&shape).await;
    // the same every time, and all over the place
    let mut seed: usize = 12345;
    let mut next = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..300 {
        let faults: Vec<_> = (0..2)
            .map(|_| {
                let (side, count) = if next(2) == 0 { (Source, here) } else { (Destination, there) };
                // a way back is longer than the way
                (side, next(count + 10), FAULTS[next(FAULTS.len())])
            })
            .collect();
        let (model, run) = with_faults(&shape, &faults).await;
        sound(&model, &run, &format!("{faults:?}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_comes_in_time_until_the_handover() {
    let shape = disks(2);
    let golden = golden(&shape);
    let handover = golden.iter().position(|line| line == "source: migrate-continue").unwrap();
    for (number, line) in golden.iter().enumerate() {
        let (side, command) = line.split_once(": ").unwrap();
        let side = if side == "source" { Source } else { Destination };
        let mut model = Model::new(&shape);
        let migration = model.builder().start();
        let canceller = migration.canceller();
        let command: &'static str = command.to_owned().leak();
        model.when(side, command, move || {
            canceller.cancel();
            canceller.cancel();
        });
        let run = model.follow(migration).await;
        // at its first occurrence
        let first = golden.iter().position(|other| other == line).unwrap();
        if first < handover {
            back(&model, &run, Ending::Cancelled, "cancelled");
        } else {
            moved(&model, &run);
        }
        sound(&model, &run, &format!("{number} {line}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_before_anything_is_changed_changes_nothing() {
    for command in ["query-qmp-schema", "query-status", "query-block-exports"] {
        let mut model = model();
        let migration = cancel_at(&mut model, Destination, command);
        let run = model.follow(migration).await;
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Cancelled, RunsOn::Source), "{run:?}");
        assert!(asks_only(&run.log), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_is_dropped_cancels() {
    for (side, command) in [(Source, "drive-mirror"), (Source, "migrate"), (Source, "block-job-cancel")] {
        let mut model = model();
        let mut migration = model.builder().start();
        let mut stream = migration.events();
        model.when(side, command, move || drop(migration));
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event);
        }
        let Some(Kind::Outcome(outcome)) = events.last().map(|event| event.kind.clone()) else {
            panic!("{events:#?}");
        };
        let run = model.told(*outcome, events);
        back(&model, &run, Ending::Cancelled, "cancelled");
        sound(&model, &run, command);
    }
}

#[tokio::test(start_paused = true)]
async fn the_timeout_rolls_back_what_does_not_converge() {
    let mut model = model();
    model.state().converges = false;
    // nor is it given up before
    let patient = Policy { give_up: Duration::from_secs(3600), ..Policy::default() };
    let migration = model.builder().policy(patient).timeout(Duration::from_secs(60)).start();
    let run = model.follow(migration).await;
    back(&model, &run, Ending::RolledBack, "timeout");
}

#[tokio::test(start_paused = true)]
async fn a_lost_event_that_costs_the_budget_costs_no_blackout_beyond_it() {
    // what is lost after the last look back is another matter: the guest is on its way by then
    for lost in ["JOB_STATUS_CHANGE", "pre-switchover"] {
        let mut model = Model::new(&disks(2));
        model.state().muted = without(lost);
        let run = model.migrate().await;
        back(&model, &run, Ending::RolledBack, "over-budget");
        assert_eq!(run.count("source: migrate-continue"), 0, "{lost}: {run:?}");
    }
}

// 10. What the controller decides is done, and nothing else.

/// What the source was told to set after RAM was started, and how far the log was by then.
fn set_while_sending(run: &Run) -> Vec<(usize, Value)> {
    let at = |name: &str| run.log.iter().position(|(side, seen)| side == "source" && seen.name == name);
    let (begin, end) = (at("migrate").unwrap(), at("migrate_cancel").or(at("quit")).unwrap());
    let sets = |(at, (side, seen)): (usize, &(String, fake::Seen))| {
        let set = side == "source" && seen.name == "migrate-set-parameters" && (begin..end).contains(&at);
        set.then(|| (at, seen.arguments.clone()))
    };
    run.log.iter().enumerate().filter_map(sets).collect()
}

/// Where in the log an event was first sent.
#[track_caller]
fn first(run: &Run, event: &str) -> usize {
    run.log.iter().position(|(_, seen)| seen.name == event).unwrap_or_else(|| panic!("no {event}: {run:?}"))
}

/// A disk that takes three seconds to copy, and RAM that takes half a second beside it.
fn overlapping() -> Model {
    let model = model();
    let mut state = model.state();
    (state.len, state.copies, state.sends) = (512 << 20, Duration::from_secs(3), Duration::from_millis(500));
    model::add_switchover_bandwidth(&mut state.source.schema);
    // less would be through before it could be held back
    (state.source.ram, state.destination.ram) = (1 << 30, 1 << 30);
    drop(state);
    model
}

#[tokio::test(start_paused = true)]
async fn a_handover_that_would_exceed_the_budget_is_not_begun() {
    for (side, command) in [(Source, "block-job-cancel"), (Destination, "nbd-server-stop")] {
        for (late, wanted) in [(200, Ending::Moved), (400, Ending::RolledBack)] {
            let mut model = model();
            let world = model.world.clone();
            model.on(side, command, move |seen| {
                let mut steps = vec![Action::Delay(Duration::from_millis(late))];
                steps.extend(world.answer(side, seen));
                steps
            });
            let run = model.migrate().await;
            if wanted == Ending::Moved {
                moved(&model, &run);
                continue;
            }
            back(&model, &run, Ending::RolledBack, "over-budget");
            assert_eq!(run.count("source: migrate-continue"), 0, "{run:?}");
            assert_eq!((run.count("source: migrate_cancel"), run.count("source: cont")), (1, 0), "{run:?}");
            assert!(run.message().contains("of a budget of 300 ms"), "{run:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn much_of_ram_that_is_left_counts_against_the_budget() {
    let mut model = model();
    let world = model.world.clone();
    model.on(Source, "query-migrate", move |seen| {
        let mut steps = world.answer(Source, seen);
        if let Some(Action::Return(told)) = steps.first_mut() {
            if told["status"] == "pre-switchover" {
                // twice what the link carries in a second
                told["ram"]["remaining"] = json!(800_u64 << 20);
            }
        }
        steps
    });
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "over-budget");
    assert_eq!(run.count("source: migrate-continue"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn ram_beside_the_mirrors_is_held_until_none_is_behind() {
    let mut model = overlapping();
    let run = model.migrate().await;
    moved(&model, &run);
    let told: Vec<(usize, Value)> =
        set_while_sending(&run).into_iter().filter(|(_, set)| set.get("max-bandwidth").is_some()).collect();
    let rates: Vec<&Value> = told.iter().map(|(_, set)| &set["max-bandwidth"]).collect();
    assert_eq!(rates, [&json!(4096), &json!(1_u64 << 40)], "{run:?}");
    let in_step = run.log.iter().position(|(_, seen)| seen.name == "block-job-change").unwrap();
    assert!(told[0].0 < first(&run, "BLOCK_JOB_READY"), "{run:?}");
    assert!(first(&run, "BLOCK_JOB_READY") < in_step && in_step < told[1].0, "{run:?}");
    assert!(told[1].0 < first(&run, "STOP"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stops_before_its_mirrors_are_ready_waits_for_them_within_the_budget() {
    for lost in ["nothing", "BLOCK_JOB", "JOB_STATUS_CHANGE"] {
        let mut model = overlapping();
        // its RAM is through before it can be held
        (model.state().heeds, model.state().sends) = (false, Duration::from_millis(100));
        if lost != "nothing" {
            model.state().muted = without(lost);
        }
        let migration = model.builder().downtime(Duration::from_secs(10)).start();
        let run = model.follow(migration).await;
        moved(&model, &run);
        assert!(run.position("source: migrate") < run.position("source: block-job-cancel"), "{run:?}");
        if lost == "nothing" {
            assert!(first(&run, "STOP") < first(&run, "BLOCK_JOB_READY"), "{run:?}");
            let settled = run.log.iter().position(|(_, seen)| seen.name == "block-job-cancel").unwrap();
            assert!(first(&run, "BLOCK_JOB_READY") < settled, "{run:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stops_long_before_its_mirrors_are_ready_goes_on_at_home() {
    let mut model = overlapping();
    (model.state().heeds, model.state().sends) = (false, Duration::from_millis(100));
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "over-budget");
    assert!(run.message().contains("mirrors were ready"), "{run:?}");
    // the mirror is ended with force, on the way back
    assert_eq!((run.count("source: migrate-continue"), run.count("source: migrate_cancel")), (0, 1), "{run:?}");
    let window = run.blackout();
    let (stop, resume) = (window.first().unwrap().1, window.last().unwrap().1);
    assert!(resume - stop <= Duration::from_millis(400), "{:?}", resume - stop);
}

#[tokio::test(start_paused = true)]
async fn what_qemu_refuses_the_controller_is_told_and_stops_nothing() {
    let mut model = model();
    model.refused(Source, "block-job-change");
    let run = model.migrate().await;
    moved(&model, &run);
    assert!(run.warned("not-applied"), "{run:?}");
    assert_eq!(run.count("source: block-job-change"), 1, "{run:?}");

    // the first are the setup
    let mut model = self::model();
    let (world, mut times) = (model.world.clone(), 0);
    model.on(Source, "migrate-set-parameters", move |seen| {
        times += 1;
        if times == 2 { vec![Action::error("no")] } else { world.answer(Source, seen) }
    });
    let run = model.migrate().await;
    moved(&model, &run);
    assert!(run.warned("not-applied"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_postcopy_that_is_refused_is_not_waited_for() {
    let mut model = model();
    for qemu in [Source, Destination] {
        let mut state = model.state();
        model::add_capabilities(&mut state.qemu(qemu).schema, &["postcopy-ram"]);
        state.qemu(qemu).capabilities.insert("postcopy-ram".to_owned(), false);
        state.dirties = 1.5;
    }
    model.refused(Source, "migrate-start-postcopy");
    let migration = model.builder().policy("ram = ['postcopy']".parse().unwrap()).start();
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::RolledBack, "ram-not-converging"), "{run:?}");
    assert!(run.warned("not-applied") && !run.outcome.ram.postcopy, "{run:?}");
    assert_eq!(run.count("source: migrate-start-postcopy"), 1, "{run:?}");
    sound(&model, &run, "refused postcopy");
}

/// A disk whose guest writes as fast as its mirror copies.
fn outpaced(block_job_change: bool) -> Model {
    let model = Model::new(&Shape { block_job_change, ..Shape::default() });
    let mut state = model.state();
    (state.len, state.writes_on, state.copies) = (64 << 20, 1.0, Duration::from_secs(1));
    drop(state);
    model
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_stands_still_gets_write_blocking_before_it_is_ready() {
    let mut model = outpaced(true);
    let run = model.migrate().await;
    moved(&model, &run);
    let change = run.log.iter().position(|(_, seen)| seen.name == "block-job-change").unwrap();
    assert!(change < first(&run, "BLOCK_JOB_READY"), "{run:?}");
    assert_eq!(run.count("source: block-job-change"), 1, "{run:?}");
    assert!(run.position("source: block-job-change") < run.position("source: migrate"), "{run:?}");
}

/// What wakes them is a limit that is more than theirs, or none where they have none.
#[tokio::test(start_paused = true)]
async fn mirrors_that_are_ready_are_woken_to_notice_that_they_are_in_step() {
    for ceiling in [None, Some(qferry::quantity::Rate(1 << 30))] {
        let mut model = model();
        let builder = model.builder();
        let builder = match ceiling {
            Some(ceiling) => builder.bandwidth(ceiling),
            None => builder,
        };
        let run = model.follow(builder.start()).await;
        moved(&model, &run);
        let limits: Vec<u64> = run
            .log
            .iter()
            .filter_map(|(_, seen)| match seen.name.as_str() {
                "drive-mirror" => Some(seen.arguments["speed"].as_u64().unwrap_or(0)),
                "block-job-set-speed" => seen.arguments["speed"].as_u64(),
                _ => None,
            })
            .collect();
        let [.., before, last] = limits[..] else { panic!("{run:?}") };
        assert_eq!(last, if ceiling.is_some() { before + 1 } else { 0 }, "{limits:?}");
    }
    // they notice a little later by themselves
    let mut model = model();
    model.refused(Source, "block-job-set-speed");
    let run = model.migrate().await;
    moved(&model, &run);
    assert!(!run.warned("not-applied"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_stands_still_for_good_is_given_up() {
    let mut model = outpaced(false);
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "disk-not-converging");
    assert_eq!(run.count("source: migrate"), 0, "{run:?}");
    assert!(run.message().contains("a mirror of more than"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn ram_that_does_not_converge_is_given_up_with_what_it_would_have_needed() {
    let mut model = model();
    model.state().dirties = 1.5;
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "ram-not-converging");
    assert_eq!((run.count("source: migrate_cancel"), run.count("source: cont")), (1, 0), "{run:?}");
    assert!(run.message().contains("a bandwidth of") && run.message().contains("blackout budget of"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn who_only_observes_changes_nothing() {
    let observe = || "observe = true".parse().unwrap();
    let untouched = |run: &Run| {
        for told in ["source: block-job-change", "source: block-job-set-speed"] {
            assert_eq!(run.count(told), 0, "{run:?}");
        }
        assert_eq!(set_while_sending(run), [], "{run:?}");
        assert!(!run.events.iter().any(|event| {
            let unsaid = ["share-bandwidth", "downtime-limit", "throttle", "write-blocking"];
            matches!(&event.kind, Kind::Action { action, .. } if unsaid.contains(&action.as_str()))
        }));
    };
    // a ceiling that would be shared out anew once one of two mirrors is ready
    let mut model = Model::new(&disks(2));
    model.state().copies = Duration::from_secs(2);
    let world = model.world.clone();
    model.when(Source, "query-blockstats", move || world.state().job("qferry-mirror-0", "ready"));
    let ceiling = qferry::quantity::Rate(2 << 30);
    let migration = model.builder().bandwidth(ceiling).policy(observe()).start();
    let run = model.follow(migration).await;
    moved(&model, &run);
    assert!(run.actions("would-share-bandwidth") > 0, "{run:?}");
    untouched(&run);

    // a mirror that would be given up is waited for
    let mut model = outpaced(true);
    let world = model.world.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        world.state().job("qferry-mirror-0", "ready");
    });
    let migration = model.builder().policy(observe()).start();
    let run = tokio::time::timeout(Duration::from_secs(300), model.follow(migration)).await.unwrap();
    moved(&model, &run);
    assert!(run.actions("would-give-up") > 0, "{run:?}");
    untouched(&run);

    // RAM that would be given up goes on until the user's own timeout
    let mut model = self::model();
    model.state().dirties = 1.5;
    let migration = model.builder().policy(observe()).timeout(Duration::from_secs(90)).start();
    let run = model.follow(migration).await;
    back(&model, &run, Ending::RolledBack, "timeout");
    assert_eq!((run.actions("would-give-up"), run.actions("give-up")), (1, 1), "{run:?}");
    untouched(&run);

    // nor is RAM sent beside a mirror where it cannot be held
    let mut model = overlapping();
    let migration = model.builder().policy(observe()).start();
    let run = model.follow(migration).await;
    moved(&model, &run);
    let began = run.log.iter().position(|(side, seen)| side == "source" && seen.name == "migrate").unwrap();
    assert!(first(&run, "BLOCK_JOB_READY") < began, "{run:?}");
    untouched(&run);
}
