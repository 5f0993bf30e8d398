//! The controller's decisions: each is carried out, and nothing else is.

use super::*;
use crate::lost_events::without;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

/// The parameters that the source was told to set after the start of RAM, each with its place in the log.
fn set_while_sending(run: &MigrationRun) -> Vec<(usize, Value)> {
    let at = |name: &str| run.log.iter().position(|(side, seen)| side == "source" && seen.name == name);
    let (begin, end) = (at("migrate").unwrap(), at("migrate_cancel").or(at("quit")).unwrap());
    let sets = |(at, (side, seen)): (usize, &(String, fake::ReceivedCommand))| {
        let set = side == "source" && seen.name == "migrate-set-parameters" && (begin..end).contains(&at);
        set.then(|| (at, seen.arguments.clone()))
    };
    run.log.iter().enumerate().filter_map(sets).collect()
}

/// The place in the log of the first event of a name.
#[track_caller]
fn first(run: &MigrationRun, event: &str) -> usize {
    run.log.iter().position(|(_, seen)| seen.name == event).unwrap_or_else(|| panic!("no {event}: {run:?}"))
}

/// A disk that takes three seconds to copy, and RAM that takes half a second beside it.
fn overlapping() -> ModelPair {
    let model = model();
    let mut state = model.state();
    (state.len, state.mirror_takes, state.ram_takes) = (512 << 20, Duration::from_secs(3), Duration::from_millis(500));
    model::add_switchover_bandwidth(&mut state.source.schema);
    model::add_zero_page_detection(&mut state.source.schema);
    // Less RAM would be sent before the engine can hold it back.
    (state.source.ram, state.destination.ram) = (1 << 30, 1 << 30);
    drop(state);
    model
}

#[tokio::test(start_paused = true)]
async fn a_handover_that_would_exceed_the_budget_is_not_begun() {
    for (side, command) in [(Source, "block-job-cancel"), (Destination, "nbd-server-stop")] {
        // The budget is 300 ms, and to go back for some more would cost all that was copied.
        for (late, strict, wanted) in [
            (200, true, Ending::Moved),
            (350, false, Ending::Moved),
            (350, true, Ending::RolledBack),
            (500, false, Ending::RolledBack),
        ] {
            let mut model = model();
            let shared = model.shared.clone();
            model.on(side, command, move |seen| {
                let mut steps = vec![AnswerStep::Delay(Duration::from_millis(late))];
                steps.extend(shared.answer(side, seen));
                steps
            });
            let builder = if strict { model.builder().strict_budget() } else { model.builder() };
            let run = model.follow(builder.start_here().unwrap()).await;
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
async fn much_that_is_left_of_ram_or_of_devices_counts_against_the_budget() {
    // QEMU 11.1 counts RAM and devices together, too.
    for counted in ["/ram/remaining", "/remaining"] {
        let mut model = model();
        let shared = model.shared.clone();
        model.on(Source, "query-migrate", move |seen| {
            let mut steps = shared.answer(Source, seen);
            if let Some(AnswerStep::Return(told)) = steps.first_mut() {
                if told["status"] == "pre-switchover" {
                    told["remaining"] = told["ram"]["remaining"].clone();
                    // twice the bytes that the link carries in a second
                    *told.pointer_mut(counted).unwrap() = json!(800_u64 << 20);
                }
            }
            steps
        });
        let run = model.migrate().await;
        back(&model, &run, Ending::RolledBack, "over-budget");
        assert_eq!(run.count("source: migrate-continue"), 0, "{counted}: {run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn ram_beside_the_mirrors_is_held_until_none_is_behind() {
    let mut model = overlapping();
    let run = model.migrate().await;
    moved(&model, &run);
    let told: Vec<(usize, Value)> =
        set_while_sending(&run).into_iter().filter(|(_, set)| set.get("max-bandwidth").is_some()).collect();
    let rates: Vec<&Value> = told.iter().map(|(_, set)| &set["max-bandwidth"]).collect();
    assert_eq!(rates, [&json!(10), &json!(1_u64 << 40)], "{run:?}");
    let in_step = run.log.iter().position(|(_, seen)| seen.name == "block-job-change").unwrap();
    assert!(told[0].0 < first(&run, "BLOCK_JOB_READY"), "{run:?}");
    assert!(first(&run, "BLOCK_JOB_READY") < in_step && in_step < told[1].0, "{run:?}");
    assert!(told[1].0 < first(&run, "STOP"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_stops_before_its_mirrors_are_ready_waits_for_them_within_the_budget() {
    for lost in ["nothing", "BLOCK_JOB", "JOB_STATUS_CHANGE"] {
        let mut model = overlapping();
        // All RAM is sent before the engine can hold it back.
        (model.state().heeds_max_bandwidth, model.state().ram_takes) = (false, Duration::from_millis(100));
        if lost != "nothing" {
            model.state().muted = without(lost);
        }
        let migration = model.builder().downtime(Duration::from_secs(10)).start_here().unwrap();
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
async fn a_guest_that_stops_long_before_its_mirrors_are_ready_resumes_on_the_source() {
    let mut model = overlapping();
    (model.state().heeds_max_bandwidth, model.state().ram_takes) = (false, Duration::from_millis(100));
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "over-budget");
    assert!(run.message().contains("mirrors were ready"), "{run:?}");
    // The way back ends the mirror with `force`.
    assert_eq!((run.count("source: migrate-continue"), run.count("source: migrate_cancel")), (0, 1), "{run:?}");
    let window = run.blackout();
    let (stop, resume) = (window.first().unwrap().1, window.last().unwrap().1);
    assert!(resume - stop <= Duration::from_millis(500), "{:?}", resume - stop);
}

/// The run states in which the owner has found the guest that it paused, each a second after the pause.
type FoundStates = Arc<Mutex<Vec<String>>>;

/// Has the owner pause the guest once RAM is looked at for the second time, and resume it a second later, where QEMU
/// takes the owner's `cont`.
fn pauses_beside_the_mirrors(model: &ModelPair, resumes: bool) -> FoundStates {
    let (found, mut looks) = (FoundStates::default(), 0);
    let (shared, seen) = (model.shared.clone(), found.clone());
    model.on(Source, "query-migrate", move |asked| {
        let mut state = shared.state();
        looks += usize::from(state.source.migration.as_deref() == Some("active"));
        if looks == 2 && state.source.run == "running" {
            state.source.run = "paused".to_owned();
            state.emit(Source, "STOP", Value::Null);
            let (shared, seen) = (shared.clone(), seen.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let mut state = shared.state();
                let run = state.source.run.clone();
                if resumes && run == "paused" {
                    state.source.run = "running".to_owned();
                    state.emit(Source, "RESUME", Value::Null);
                }
                seen.lock().unwrap().push(run);
            });
        }
        drop(state);
        shared.answer(Source, asked)
    });
    found
}

#[tokio::test(start_paused = true)]
async fn an_owner_who_pauses_the_guest_beside_the_mirrors_can_resume_it_at_once() {
    for resumes in [true, false] {
        let mut model = overlapping();
        model.state().zero_pages = true;
        let found = pauses_beside_the_mirrors(&model, resumes);
        let run = model.migrate().await;
        assert_eq!(*found.lock().unwrap(), ["paused"], "QEMU refuses `cont` in another state: {run:?}");
        assert_eq!((run.outcome.outcome, run.count("destination: cont")), (Ending::Moved, usize::from(resumes)));
        let held = |(at, set): (usize, Value)| (set["zero-page-detection"] == "none").then_some(at);
        let held = set_while_sending(&run).into_iter().find_map(held).unwrap_or_else(|| panic!("{run:?}"));
        assert!(first(&run, "STOP") < held && held < first(&run, "BLOCK_JOB_READY"), "{run:?}");
        let arrived = |(_, seen): &(String, fake::ReceivedCommand)| seen.arguments["status"] == "pre-switchover";
        let arrived = run.log.iter().position(arrived).unwrap();
        assert!(first(&run, "BLOCK_JOB_READY") < arrived, "{run:?}");
        assert_eq!(model.state().violations, Vec::<&str>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_whose_ram_has_ended_is_not_kept_from_its_owner_for_long() {
    let mut model = overlapping();
    model.state().heeds_max_bandwidth = false;
    let found = pauses_beside_the_mirrors(&model, true);
    let shared = model.shared.clone();
    // RAM cannot be held back, and the mirror comes to no end: its destination does not answer.
    model.when(Source, "migrate", move || shared.state().source.jobs[0].status = "paused");
    let run = model.migrate().await;
    assert_eq!(*found.lock().unwrap(), ["finish-migrate"], "{run:?}");
    assert_eq!((run.outcome.outcome, run.code()), (Ending::RolledBack, "switchover-timeout"), "{run:?}");
    assert!(run.message().contains("`overlap = false`") && run.message().contains("start it anew"), "{run:?}");
    assert_eq!((run.count("source: migrate_cancel"), run.count("source: cont")), (1, 0), "{run:?}");
    assert_eq!(model.state().source.run, "paused");
    assert_eq!(model.state().violations, Vec::<&str>::new());
}

#[tokio::test(start_paused = true)]
async fn what_qemu_refuses_the_controller_is_told_and_stops_nothing() {
    let mut model = model();
    model.refused(Source, "block-job-change");
    let run = model.migrate().await;
    moved(&model, &run);
    assert!(run.warned("not-applied"), "{run:?}");
    assert_eq!(run.count("source: block-job-change"), 1, "{run:?}");

    // The first `migrate-set-parameters` belongs to the burst that ends with `migrate`.
    let mut model = self::model();
    // A guest that dirties nearly as fast as RAM is sent has the controller raise the limit.
    model.state().dirtied_share = 0.9;
    let (shared, mut times) = (model.shared.clone(), 0);
    model.on(Source, "migrate-set-parameters", move |seen| {
        times += 1;
        if times == 2 { vec![AnswerStep::error("no")] } else { shared.answer(Source, seen) }
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
        state.dirtied_share = 1.5;
    }
    model.refused(Source, "migrate-start-postcopy");
    let migration = model.builder().policy("ram = ['postcopy']".parse().unwrap()).start_here().unwrap();
    let run = model.follow(migration).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::RolledBack, "ram-not-converging"), "{run:?}");
    assert!(run.warned("not-applied") && !run.outcome.ram.postcopy, "{run:?}");
    assert_eq!(run.count("source: migrate-start-postcopy"), 1, "{run:?}");
    sound(&model, &run, "refused postcopy");
}

/// A disk whose guest writes as fast as its mirror copies.
fn outpaced(block_job_change: bool) -> ModelPair {
    let model = ModelPair::new(&PairShape { block_job_change, ..PairShape::default() });
    let mut state = model.state();
    (state.len, state.added_share, state.mirror_takes) = (64 << 20, 1.0, Duration::from_secs(1));
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

/// A `block-job-set-speed` with a higher limit wakes the mirrors, or with none where they have none.
#[tokio::test(start_paused = true)]
async fn mirrors_that_are_ready_are_woken_to_notice_that_they_are_in_step() {
    for ceiling in [None, Some(qferry::internals::quantity::Rate(1 << 30))] {
        let mut model = model();
        let builder = model.builder();
        let builder = match ceiling {
            Some(ceiling) => builder.bandwidth(ceiling),
            None => builder,
        };
        let run = model.follow(builder.start_here().unwrap()).await;
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
    // A mirror whose wake-up is refused notices a little later by itself.
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
    model.state().dirtied_share = 1.5;
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "ram-not-converging");
    assert_eq!((run.count("source: migrate_cancel"), run.count("source: cont")), (1, 0), "{run:?}");
    assert!(run.message().contains("a bandwidth of") && run.message().contains("blackout budget of"), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_only_observes_changes_nothing() {
    let observe = || "observe = true".parse().unwrap();
    let untouched = |run: &MigrationRun| {
        for told in ["source: block-job-change", "source: block-job-set-speed"] {
            assert_eq!(run.count(told), 0, "{run:?}");
        }
        assert_eq!(set_while_sending(run), [], "{run:?}");
        assert!(!run.events.iter().any(|event| {
            let unsaid = ["share-bandwidth", "downtime-limit", "throttle", "write-blocking"];
            matches!(&event.kind, EventKind::Action { action, .. } if unsaid.contains(&action.as_str()))
        }));
    };
    // The ceiling would be divided anew once one of two mirrors is ready.
    let mut model = ModelPair::new(&disks(2));
    model.state().mirror_takes = Duration::from_secs(2);
    let shared = model.shared.clone();
    model.when(Source, "query-blockstats", move || shared.state().job("mirror-0", "ready"));
    let ceiling = qferry::internals::quantity::Rate(2 << 30);
    let migration = model.builder().bandwidth(ceiling).policy(observe()).start_here().unwrap();
    let run = model.follow(migration).await;
    moved(&model, &run);
    assert!(run.actions("would-share-bandwidth") > 0, "{run:?}");
    untouched(&run);

    // The engine waits for a mirror that it would have given up.
    let mut model = outpaced(true);
    let shared = model.shared.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        shared.state().job("mirror-0", "ready");
    });
    let migration = model.builder().policy(observe()).start_here().unwrap();
    let run = tokio::time::timeout(Duration::from_secs(300), model.follow(migration)).await.unwrap();
    moved(&model, &run);
    assert!(run.actions("would-give-up") > 0, "{run:?}");
    untouched(&run);

    // RAM that would be given up goes on until the timeout that the user has set.
    let mut model = self::model();
    model.state().dirtied_share = 1.5;
    let migration = model.builder().policy(observe()).timeout(Duration::from_secs(90)).start_here().unwrap();
    let run = model.follow(migration).await;
    back(&model, &run, Ending::RolledBack, "timeout");
    assert_eq!((run.actions("would-give-up"), run.actions("give-up")), (1, 1), "{run:?}");
    untouched(&run);

    // A policy that only observes cannot hold RAM back, so RAM is not sent beside a mirror either.
    let mut model = overlapping();
    let migration = model.builder().policy(observe()).start_here().unwrap();
    let run = model.follow(migration).await;
    moved(&model, &run);
    let began = run.log.iter().position(|(side, seen)| side == "source" && seen.name == "migrate").unwrap();
    assert!(first(&run, "BLOCK_JOB_READY") < began, "{run:?}");
    untouched(&run);
}

/// A mirror that has nothing left to copy gains nothing by which a destination that lives can be told from a frozen
/// one.
#[tokio::test(start_paused = true)]
async fn a_destination_that_freezes_before_a_copied_mirror_is_ready_is_given_up() {
    let mut model = ModelPair::new(&PairShape { block_job_change: false, ..PairShape::default() });
    // The mirror is never ready, and says that it has copied everything. RAM goes on for longer than the engine waits.
    (model.state().added_share, model.state().ram_takes) = (1.0, Duration::from_secs(3600));
    let frozen = Arc::new(AtomicBool::new(false));
    let (shared, freeze, freezes, mut asked) = (model.shared.clone(), model.destination.freezer(), frozen.clone(), 0);
    model.on(Source, "query-block-jobs", move |seen| {
        let mut answer = shared.answer(Source, seen);
        asked += 1;
        // Long after the last look at the destination, which follows `migrate`.
        if asked == 100 {
            freeze();
            freezes.store(true, Ordering::Relaxed);
        }
        if let [AnswerStep::Return(Value::Array(jobs))] = &mut answer[..] {
            for job in jobs {
                (job["len"], job["offset"]) = (json!(64 << 20), json!(64 << 20));
            }
        }
        answer
    });
    model.on(Destination, "query-yank", move |_| match frozen.load(Ordering::Relaxed) {
        true => Vec::new(),
        false => vec![AnswerStep::Return(json!([]))],
    });
    let run = tokio::time::timeout(Duration::from_secs(120), model.migrate()).await.expect("an end");
    assert_eq!((run.code(), run.outcome.runs_on), ("no-answer", RunsOn::Source), "{run:?}");
    assert!(run.message().contains("a mirror that has copied everything waits for it"), "{run:?}");
    assert_eq!(model.state().source.run, "running");
}
