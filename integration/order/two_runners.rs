//! Never two runners: which side has the guest, whatever becomes of either side at the handover.
//!
//! Promise: one-runner.

use super::{watchdog::journaled, *};
use qferry::internals::{
    journal::Journal,
    migration::{JournalPlace, record::Record},
};

#[tokio::test(start_paused = true)]
async fn a_source_that_resumed_by_itself_has_the_guest() {
    for then in [AfterContinue::DestinationFails, AfterContinue::DestinationCloses] {
        for (exit_on_error, processes) in [(true, true), (false, true), (true, false), (false, false)] {
            let mut model = ModelPair::new(&PairShape { exit_on_error, processes, ..PairShape::default() });
            model.state().after_continue = then;
            let run = model.migrate().await;
            assert_eq!(run.count("source: cont"), 0, "{run:?}");
            let is_closed = then == AfterContinue::DestinationCloses || !exit_on_error;
            if is_closed && !processes {
                // The monitor of a QEMU on another host has closed, which does not prove that the QEMU has ended.
                assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{run:?}");
                assert!(run.outcome.leftovers.iter().any(|line| line.contains("an incoming migration")), "{run:?}");
            } else {
                back(&model, &run, Ending::RolledBack, if run.code() == "gone" { "gone" } else { "handover-failed" });
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_whose_monitor_closed_may_yet_run() {
    let mut model = model();
    model.state().after_continue = AfterContinue::DestinationClosesLate;
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!(run.count("source: cont") + run.count("destination: cont"), 0, "{run:?}");
    assert!(run.message().contains("make sure that its process is gone"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_is_proved_dead_gives_the_guest_back() {
    let mut model = processes();
    model.state().after_continue = AfterContinue::DestinationClosesLate;
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "gone");
    assert_eq!((run.count("source: cont"), run.count("source: quit")), (1, 0), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_destination_may_yet_run() {
    for processes in [true, false] {
        let mut model = ModelPair::new(&PairShape { processes, ..PairShape::default() });
        model.state().after_continue = AfterContinue::DestinationFreezes;
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
        let mut model = ModelPair::new(&PairShape { processes, ..PairShape::default() });
        model.refused(Destination, "cont");
        let run = model.migrate().await;
        assert_eq!((run.outcome.outcome, run.code()), (Ending::RolledBack, "command-refused"), "{run:?}");
        assert_eq!(model.state().source.run, "running", "{run:?}");
        let (cont, quit) = (run.position("destination: cont"), run.position("destination: quit"));
        assert!(cont < quit && quit < run.position("source: cont"), "{run:?}");
        // Somebody may hold the lock of an image for a moment.
        assert!(run.count("destination: cont") > 2, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cont_that_is_refused_for_a_moment_is_sent_again() {
    for source_dies in [false, true] {
        let mut model = processes();
        if source_dies {
            // No other side has the guest, so the time of the whole switchover is used.
            model.state().after_continue = AfterContinue::SourceDies;
        }
        let (shared, refusals) = (model.shared.clone(), if source_dies { 10 } else { 3 });
        let mut times = 0;
        model.on(Destination, "cont", move |seen| {
            times += 1;
            if times > refusals { shared.answer(Destination, seen) } else { vec![AnswerStep::error("lock")] }
        });
        let run = model.migrate().await;
        moved(&model, &run);
        assert_eq!((run.count("destination: cont"), run.count("destination: quit")), (refusals + 1, 0), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_starts_late_is_waited_for() {
    // QEMU takes two seconds longer over `cont` than the handover waits for it.
    let mut model = model();
    let (shared, late) = (model.shared.clone(), Duration::from_secs(8));
    model.on(Destination, "cont", move |seen| {
        let (shared, seen) = (shared.clone(), seen.clone());
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            shared.answer(Destination, &seen);
        });
        vec![AnswerStep::Delay(late), AnswerStep::Return(json!({}))]
    });
    let run = model.migrate().await;
    moved(&model, &run);
    assert_eq!(run.count("source: cont"), 0, "{run:?}");
}

/// The journal's words about the destination's start, in order.
fn told_of_start(journal: &std::path::Path) -> Vec<&'static str> {
    let (_, entries) = Journal::<Record>::open(journal).unwrap();
    let words = entries.iter().filter_map(|entry| match entry.record {
        Record::Given => Some("given"),
        Record::Starting => Some("starting"),
        Record::NotStarted => Some("not started"),
        Record::Resuming => Some("resuming"),
        _ => None,
    });
    words.collect()
}

#[tokio::test(start_paused = true)]
async fn the_journal_tells_whether_the_destination_may_have_been_started() {
    let journal = |model: &ModelPair| model.directory.path().join("journal");
    let mut model = model();
    let place = JournalPlace::File(journal(&model));
    let migration = model.builder().journal(place).start_here().unwrap();
    let path = journal(&model);
    model.when(Destination, "cont", move || assert_eq!(told_of_locked(&path), ["given", "starting"]));
    let run = model.follow(migration).await;
    moved(&model, &run);
    assert_eq!(told_of_start(&journal(&model)), ["given", "starting"]);

    // Every `cont` is refused, and so is `quit`: another engine may fence the destination.
    let mut model = self::model();
    model.refused(Destination, "cont");
    model.refused(Destination, "quit");
    let place = JournalPlace::File(journal(&model));
    let migration = model.builder().journal(place).start_here().unwrap();
    let run = model.follow(migration).await;
    undetermined(&run);
    let told = told_of_start(&journal(&model));
    assert_eq!((told.first(), told.last()), (Some(&"given"), Some(&"not started")), "{told:?}");
}

/// The same while the engine holds the journal's lock.
fn told_of_locked(journal: &std::path::Path) -> Vec<&'static str> {
    let text = std::fs::read_to_string(journal).unwrap();
    let words = [("\"given\"", "given"), ("\"starting\"", "starting"), ("\"not-started\"", "not started")];
    let mut found: Vec<(usize, &str)> =
        words.iter().flat_map(|(mark, word)| text.match_indices(mark).map(|(at, _)| (at, *word))).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, word)| word).collect()
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
        let (shared, mut times) = (model.shared.clone(), 0);
        model.on(Destination, "cont", move |seen| {
            times += 1;
            let answer = if carried_out || times > swallowed { shared.answer(Destination, seen) } else { Vec::new() };
            if times > swallowed { answer } else { Vec::new() }
        });
        let run = model.migrate().await;
        // A destination that has everything and waits is started again, for its source cannot resume any more.
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
        let mut model = ModelPair::new(&PairShape { processes, ..PairShape::default() });
        let shared = model.shared.clone();
        model.on(Destination, "cont", move |seen| {
            shared.answer(Destination, seen);
            shared.state().die(Destination);
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
        let mut model = ModelPair::new(&PairShape { processes, ..PairShape::default() });
        let shared = model.shared.clone();
        model.on(Destination, "cont", move |seen| {
            let mut steps = shared.answer(Destination, seen);
            shared.state().destination.run = "gone".to_owned();
            steps.push(AnswerStep::Close);
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
    let shared = model.shared.clone();
    model.on(Source, "migrate-continue", move |seen| {
        shared.answer(Source, seen);
        Vec::new()
    });
    let run = model.migrate().await;
    assert_eq!(run.count("source: migrate-continue"), 1, "{run:?}");
    moved(&model, &run);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_migrate_continue_that_was_not_carried_out_is_taken_back() {
    for processes in [true, false] {
        let mut model = ModelPair::new(&PairShape { processes, ..PairShape::default() });
        model.silent(Source, "migrate-continue");
        let run = model.migrate().await;
        // The destination is ended first, for the source could still carry out `migrate-continue`.
        back(&model, &run, Ending::RolledBack, "no-answer");
        assert!(run.position("destination: quit") < run.position("source: migrate_cancel"), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_ram_may_take_as_long_as_was_asked_for() {
    for (downtime, slow, wanted) in [(60, 90, Ending::Moved), (1, 90, Ending::RolledBack)] {
        let mut model = model();
        model.state().last_ram_takes = Duration::from_secs(slow);
        let migration = model.builder().downtime(Duration::from_secs(downtime)).start_here().unwrap();
        let run = model.follow(migration).await;
        assert_eq!(run.outcome.outcome, wanted, "{run:?}");
        sound(&model, &run, "slow");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_died_is_outlived_by_a_destination_that_has_everything() {
    let mut model = processes();
    model.state().after_continue = AfterContinue::SourceDies;
    let run = model.migrate().await;
    moved(&model, &run);
    // Without the proof of the source's death the destination is not started.
    let mut model = self::model();
    model.state().after_continue = AfterContinue::SourceDies;
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!(run.count("destination: cont"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_resumed_and_died_has_taken_its_writes_with_it() {
    let mut model = processes();
    model.state().after_continue = AfterContinue::SourceResumesAndDies;
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!(run.count("destination: cont"), 0, "its disks are older than what the guest did: {run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_someone_else_starts_is_not_taken_for_a_handover() {
    // A source that has not completed could still resume by itself.
    let mut model = model();
    model.state().after_continue = AfterContinue::DestinationFreezes;
    let shared = model.shared.clone();
    model.on(Source, "migrate-continue", move |_| {
        let mut state = shared.state();
        state.enter(Source, "device");
        state.destination.run = "running".to_owned();
        state.enter(Destination, "completed");
        vec![AnswerStep::Return(json!({}))]
    });
    let run = model.migrate().await;
    undetermined(&run);
    assert_eq!(run.count("source: quit") + run.count("destination: quit"), 0, "{run:?}");
}

/// Somebody has sent `cont` to the destination beforehand, so that it runs by itself once it has everything. QEMU sends
/// RESUME before it says `completed`.
#[tokio::test(start_paused = true)]
async fn what_a_guest_did_on_a_destination_that_is_gone_is_not_undone() {
    for source_fails in [true, false] {
        let mut model = processes();
        let shared = model.shared.clone();
        model.on(Source, "migrate-continue", move |_| {
            let mut state = shared.state();
            state.enter(Source, "device");
            state.destination.run = "running".to_owned();
            state.emit(Destination, "RESUME", Value::Null);
            state.die(Destination);
            if source_fails {
                state.fail_source();
            } else {
                state.source.run = "postmigrate".to_owned();
                state.enter(Source, "completed");
            }
            vec![AnswerStep::Return(json!({}))]
        });
        let (run, records, _) = journaled(&mut model).await;
        undetermined(&run);
        assert_eq!(run.count("source: cont") + run.count("source: quit"), 0, "{run:?}");
        // A later engine must not take the destination for one that never ran.
        let has = |wanted: &Record| records.contains(wanted);
        assert!(has(&Record::Starting) && !has(&Record::NotStarted), "{records:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_migration_that_someone_else_continued_is_taken_back() {
    // While RAM is copied the disks are not whole. Later they may be, and then the handover is as good as the engine's
    // own.
    for (side, command) in [(Source, "migrate"), (Source, "block-job-cancel"), (Destination, "nbd-server-stop")] {
        for guest in ["running", "paused"] {
            for processes in [true, false] {
                let mut model = ModelPair::new(&PairShape { guest, processes, ..PairShape::default() });
                let shared = model.shared.clone();
                model.when(side, command, move || {
                    tokio::spawn(async move { shared.state().hand_over() });
                });
                let run = model.migrate().await;
                sound(&model, &run, command);
                assert!(command != "migrate" || run.outcome.outcome != Ending::Moved, "{run:?}");
                if run.outcome.outcome == Ending::Moved {
                    continue;
                }
                assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{run:?}");
                assert_eq!(run.count("destination: cont"), 0, "{run:?}");
                assert_eq!(run.count("source: cont"), usize::from(guest == "running"), "{run:?}");
                if guest == "running" {
                    assert!(run.position("destination: quit") < run.position("source: cont"), "{run:?}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn someone_else_who_handed_the_guest_over_has_it() {
    for freezes in [false, true] {
        let mut model = processes();
        let shared = model.shared.clone();
        let freeze = model.destination.freezer();
        model.when(Source, "migrate", move || {
            tokio::spawn(async move {
                let mut state = shared.state();
                state.hand_over();
                state.destination.run = "running".to_owned();
                drop(state);
                // what does not answer any more may run all the same
                if freezes {
                    freeze();
                }
            });
        });
        let run = model.migrate().await;
        sound(&model, &run, "migrate");
        undetermined(&run);
        assert!(run.warned("taken-over"), "{run:?}");
        let touched = ["source: quit", "destination: quit", "source: cont", "destination: cont"];
        assert_eq!(touched.map(|command| run.count(command)), [0; 4], "{run:?}");
        assert_eq!(model.state().destination.run, "running", "{run:?}");
    }
}
