//! The start-write guard: a mirror is started again if the guest wrote while that mirror started.

use super::*;
use qferry::internals::progress::PauseCause;

#[tokio::test(start_paused = true)]
async fn a_guest_that_writes_during_every_start_is_stopped_for_one() {
    let mut model = ModelPair::new(&disks(2));
    model.state().guard_counts =
        Box::new(|job, _, stopped| Some(if job.ends_with("-mirror-1") && !stopped { 65536 } else { 0 }));
    let run = model.migrate().await;
    assert_eq!(run.actions("restart-mirror"), 16, "{run:?}");
    assert_eq!(run.outcome.outcome, Ending::Moved, "{run:?}");
    let stop = run.position("source: stop");
    let told = run.told();
    assert_eq!(
        told[stop - 3..stop + 5],
        [
            // The fifth mirror is removed.
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
    let causes: Vec<_> = run.outcome.pauses.iter().map(|pause| pause.why).collect();
    assert_eq!(causes, [PauseCause::MirrorStart, PauseCause::Switchover], "{run:?}");
    let blackout = run.outcome.blackout_ms.expect("it stopped and resumed");
    assert_eq!(run.outcome.pauses[1].ms, blackout, "{run:?}");
    assert!((run.outcome.paused_ms - run.outcome.pauses[0].ms - blackout).abs() < 1e-6, "{run:?}");
}

/// Has `act` done at the question with this number, from 0, after the last start with the guest running.
fn at_last_question(model: &ModelPair, number: usize, act: impl Fn(&mut PairState) + Send + 'static) {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let starts = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = starts.clone();
    model.state().guard_counts = Box::new(move |_, start, stopped| {
        counted.fetch_max(start, Relaxed);
        Some(u64::from(!stopped))
    });
    let (shared, mut asked) = (model.shared.clone(), 0);
    model.on(Source, "query-status", move |seen| {
        let answer = shared.answer(Source, seen);
        if starts.load(Relaxed) >= 16 {
            if asked == number {
                act(&mut shared.state());
            }
            asked += 1;
        }
        answer
    });
}

#[tokio::test(start_paused = true)]
async fn an_owner_who_stops_the_guest_before_the_engine_does_keeps_it_stopped() {
    for cancels in [false, true] {
        let mut model = model();
        at_last_question(&model, 0, PairState::stop_by_owner);
        if cancels {
            // The way back must know that the engine's stop stopped nobody.
            let shared = model.shared.clone();
            model.on(Source, "drive-mirror", move |seen| {
                if shared.state().source.run == "paused" {
                    shared.state().control.as_ref().unwrap().cancel();
                }
                shared.answer(Source, seen)
            });
        }
        let run = model.migrate().await;
        match cancels {
            false => moved(&model, &run),
            true => back(&model, &run, Ending::Cancelled, "cancelled"),
        }
        assert_eq!((run.count("source: stop"), run.count("source: cont")), (1, 0), "{run:?}");
        assert_eq!(run.count("destination: cont"), 0, "{run:?}");
        assert!(!run.warned("stopped-for-mirror"), "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_halts_before_the_engine_stops_it_is_left_as_it_stands() {
    let mut model = model();
    at_last_question(&model, 0, |state| {
        state.source.run = "guest-panicked".to_owned();
        state.emit(Source, "STOP", Value::Null);
        state.guest_ran = false;
    });
    let run = model.migrate().await;
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{run:?}");
    assert_eq!((model.state().source.run.as_str(), run.count("source: cont")), ("guest-panicked", 0), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn an_owner_who_resumes_and_stops_the_guest_during_the_engines_stop_keeps_it_stopped() {
    let mut model = model();
    at_last_question(&model, usize::MAX, |_| {});
    let shared = model.shared.clone();
    model.on(Source, "drive-mirror", move |seen| {
        {
            let mut state = shared.state();
            if state.source.run == "paused" {
                state.emit(Source, "RESUME", Value::Null);
                state.emit(Source, "STOP", Value::Null);
                state.guest_ran = false;
            }
        }
        shared.answer(Source, seen)
    });
    let run = model.migrate().await;
    moved(&model, &run);
    assert_eq!((run.count("source: stop"), run.count("source: cont")), (1, 0), "{run:?}");
    assert_eq!(run.count("destination: cont"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_free_of_writes_is_enough() {
    let mut model = model();
    model.state().guard_counts = Box::new(|_, start, _| Some(if start < 3 { 512 } else { 0 }));
    let run = model.migrate().await;
    moved(&model, &run);
    assert_eq!((run.actions("restart-mirror"), run.count("source: stop")), (2, 0), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn writes_even_while_the_guest_is_stopped_roll_back_and_resume_it() {
    let mut model = model();
    model.state().guard_counts = Box::new(|_, _, _| Some(65536));
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "mirror-failed");
    assert_eq!((run.count("source: stop"), run.count("source: cont")), (1, 1), "{run:?}");
    assert_eq!(run.count("source: migrate"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bitmap_that_is_not_there_proves_nothing() {
    let mut model = model();
    model.state().guard_counts = Box::new(|_, _, _| None);
    let run = model.migrate().await;
    assert_eq!(run.count("source: migrate"), 0, "{run:?}");
    assert_eq!(run.outcome.outcome, Ending::RolledBack, "{run:?}");
    assert_eq!(model.state().source.run, "running");
}

#[tokio::test(start_paused = true)]
async fn an_untouched_overlay_is_ready_at_once() {
    let mut model = ModelPair::new(&disks(2));
    model.state().len = 0;
    let run = model.migrate().await;
    moved(&model, &run);
    assert_eq!(run.actions("restart-mirror"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cancel_while_the_guest_is_stopped_for_a_mirror_resumes_it() {
    for command in ["stop", "cont"] {
        let mut model = model();
        model.state().guard_counts = Box::new(|_, _, stopped| Some(if stopped { 0 } else { 1 }));
        let migration = model.builder().start_here().unwrap();
        let control = migration.control();
        model.when(Source, command, move || control.cancel());
        let run = model.follow(migration).await;
        back(&model, &run, Ending::Cancelled, "cancelled");
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_is_not_resumed_after_a_start_while_stopped() {
    let mut model = ModelPair::new(&PairShape { guest: "paused", ..PairShape::default() });
    let mut times = 0;
    model.state().guard_counts = Box::new(move |_, _, _| {
        times += 1;
        Some(if times < 6 { 1 } else { 0 })
    });
    let run = model.migrate().await;
    moved(&model, &run);
}

/// A start that takes longer than the budget is not made with the guest stopped, nor tried again and again.
#[tokio::test(start_paused = true)]
async fn a_guest_is_not_stopped_for_a_start_beyond_the_budget() {
    let mut model = model();
    model.state().guard_counts = Box::new(|_, _, stopped| Some(if stopped { 0 } else { 65536 }));
    let shared = model.shared.clone();
    model.on(Source, "drive-mirror", move |seen| {
        let mut steps = vec![AnswerStep::Delay(Duration::from_millis(700))];
        steps.extend(shared.answer(Source, seen));
        steps
    });
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "over-budget");
    assert!(run.message().contains("wrote during each of 5 starts"), "{run:?}");
    assert_eq!((run.count("source: stop"), run.outcome.pauses.len()), (0, 0), "{run:?}");
}

/// With the guest stopped a start is slower than any before: the guest resumes once the budget is used up.
#[tokio::test(start_paused = true)]
async fn a_guest_that_is_stopped_for_a_start_stands_no_longer_than_the_budget() {
    let mut model = model();
    model.state().guard_counts = Box::new(|_, _, stopped| Some(if stopped { 0 } else { 65536 }));
    let (shared, mut starts) = (model.shared.clone(), 0);
    model.on(Source, "drive-mirror", move |seen| {
        starts += 1;
        let late = Duration::from_millis(if starts > 16 { 2000 } else { 0 });
        let mut steps = vec![AnswerStep::Delay(late)];
        steps.extend(shared.answer(Source, seen));
        steps
    });
    let run = model.migrate().await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::RolledBack, "over-budget"), "{run:?}");
    let pauses: Vec<_> = run.outcome.pauses.iter().map(|pause| pause.why).collect();
    assert_eq!(pauses, [PauseCause::MirrorStart], "{run:?}");
    let pause = run.outcome.pauses[0].ms;
    // QEMU answers `cont` after the start that it is at.
    assert!((450.0..2100.0).contains(&pause), "{pause}");
    assert_eq!(model.state().source.run, "running");
}
