//! Postcopy, which QEMU up to 10 can take back: `postcopy-active` comes before all device state is sent.

use super::*;

/// The answer of a source in postcopy to `query-migrate`.
fn in_postcopy(pages: u64) -> Value {
    let ram = json!({"transferred": pages, "remaining": 9, "total": 99, "normal": pages, "duplicate": 0});
    json!({"status": "postcopy-active", "ram": ram})
}

fn begin_postcopy(state: &mut PairState) {
    state.enter(Source, "postcopy-active");
    state.destination.run = "paused".to_owned();
    state.enter(Destination, "postcopy-active");
}

/// Has the pair go on in postcopy after `migrate-continue`, and complete at the twentieth question. `at_the_end` sees
/// the pair right before that.
fn moves_by_postcopy(model: &ModelPair, at_the_end: impl Fn(&PairState) + Send + 'static) {
    let shared = model.shared.clone();
    model.on(Source, "migrate-continue", move |_| {
        begin_postcopy(&mut shared.state());
        vec![AnswerStep::Return(json!({}))]
    });
    let (shared, mut sent) = (model.shared.clone(), 0);
    model.on(Source, "query-migrate", move |_| {
        let mut state = shared.state();
        let status = state.source.migration.clone();
        if status.as_deref() != Some("postcopy-active") {
            return vec![AnswerStep::Return(json!({ "status": status }))];
        }
        sent += 1;
        if sent == 20 {
            at_the_end(&state);
            state.enter(Source, "completed");
            state.enter(Destination, "completed");
        }
        vec![AnswerStep::Return(in_postcopy(sent))]
    });
}

#[tokio::test(start_paused = true)]
async fn a_source_that_takes_postcopy_back_keeps_the_guest() {
    let mut model = model();
    let shared = model.shared.clone();
    model.on(Source, "migrate-continue", move |_| {
        let mut state = shared.state();
        begin_postcopy(&mut state);
        let shared = shared.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            shared.state().fail_source();
        });
        vec![AnswerStep::Return(json!({}))]
    });
    let shared = model.shared.clone();
    // The count of pages stands still: no page is sent.
    model.on(Source, "query-migrate", move |_| {
        let status = shared.state().source.migration.clone();
        let answer = match status.as_deref() {
            Some("postcopy-active") => in_postcopy(7),
            Some(status) => json!({ "status": status }),
            None => json!({}),
        };
        vec![AnswerStep::Return(answer)]
    });
    let run = model.migrate().await;
    assert_eq!(run.count("destination: cont"), 0, "its source resumed: {run:?}");
    back(&model, &run, Ending::RolledBack, "handover-failed");
}

#[tokio::test(start_paused = true)]
async fn a_source_in_postcopy_is_quit_only_when_both_have_completed() {
    let mut model = model();
    let ran = std::sync::Arc::new(std::sync::OnceLock::new());
    let seen = ran.clone();
    moves_by_postcopy(&model, move |state| drop(seen.set(state.destination.run.clone())));
    let run = model.migrate().await;
    moved(&model, &run);
    assert!(run.outcome.ram.postcopy, "{run:?}");
    assert_eq!(ran.get().map(String::as_str), Some("running"), "it runs while its pages come: {run:?}");
    assert!(run.actions("judge-handover") == 0 && run.count("source: quit") == 1, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_cannot_be_made_anew_leaves_both_as_they_are() {
    let mut model = model();
    let shared = model.shared.clone();
    model.on(Source, "migrate-continue", move |_| {
        let mut state = shared.state();
        begin_postcopy(&mut state);
        state.enter(Source, "postcopy-paused");
        vec![AnswerStep::Return(json!({}))]
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
    // QEMU 7.2 obeys `migrate_cancel` in postcopy, and the guest's pages are lost.
    for guest in ["running", "paused"] {
        let mut model = ModelPair::new(&PairShape { guest, ..PairShape::default() });
        let shared = model.shared.clone();
        let migration = model.builder().start_here().unwrap();
        let control = migration.control();
        model.when(Source, "migrate", move || {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let mut state = shared.state();
                state.source.run = "finish-migrate".to_owned();
                state.enter(Source, "postcopy-active");
                control.cancel();
            });
        });
        let run = model.follow(migration).await;
        undetermined(&run);
        assert_eq!(run.count("source: migrate_cancel") + run.count("destination: quit"), 0, "{run:?}");
    }
}

/// A pair of builds that know postcopy, and on either side these capabilities more.
fn knowing(source: &[&'static str], destination: &[&'static str]) -> ModelPair {
    let model = model();
    for (side, more) in [(Source, source), (Destination, destination)] {
        let mut state = model.state();
        for name in ["postcopy-ram"].iter().chain(more) {
            model::add_capabilities(&mut state.qemu(side).schema, &[name]);
            state.qemu(side).capabilities.insert((*name).to_owned(), false);
        }
    }
    model
}

/// The capabilities that a side was told to turn on.
async fn turned_on(model: &ModelPair, side: Side) -> Vec<String> {
    let told = model.fake(side).seen();
    let told = told.iter().filter(|seen| seen.name == "migrate-set-capabilities");
    let all = told.flat_map(|seen| seen.arguments["capabilities"].as_array().unwrap().clone());
    let on = all.filter(|one| one["state"] == true);
    on.map(|one| one["capability"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn pages_that_a_guest_waits_for_have_a_channel_where_both_builds_know_it() {
    let (both, preempt, blocktime) =
        (["postcopy-preempt", "postcopy-blocktime"], "postcopy-preempt", "postcopy-blocktime");
    let rows: [(&[&'static str], &[&'static str], bool, bool); 4] = [
        (&both, &both, true, true),
        (&both, &both[1..], false, true),
        (&both[..1], &both[..1], true, false),
        (&[], &both, false, true),
    ];
    for (source, destination, preempts, counts) in rows {
        let mut model = knowing(source, destination);
        let builder = model.builder().policy("ram = ['downtime', 'postcopy']".parse().unwrap());
        let run = model.follow(builder.start_here().unwrap()).await;
        moved(&model, &run);
        let (at_source, at_destination) = (turned_on(&model, Source).await, turned_on(&model, Destination).await);
        let has = |all: &[String], name: &str| all.iter().any(|one| one == name);
        assert_eq!((has(&at_source, preempt), has(&at_destination, preempt)), (preempts, preempts), "{run:?}");
        assert_eq!((has(&at_source, blocktime), has(&at_destination, blocktime)), (false, counts), "{run:?}");
        let state = model.state();
        let left = both.iter().any(|name| state.destination.capabilities.get(*name) == Some(&true));
        assert!(!left, "they are put back: {run:?}");
    }
    // Without postcopy nothing of it is turned on.
    let mut model = knowing(&both, &both);
    let run = model.migrate().await;
    moved(&model, &run);
    let all = [turned_on(&model, Source).await, turned_on(&model, Destination).await].concat();
    assert!(!all.iter().any(|name| name.starts_with("postcopy")), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn the_waits_that_the_destination_counted_are_told() {
    let mut model = knowing(&[], &["postcopy-blocktime"]);
    moves_by_postcopy(&model, |_| ());
    let shared = model.shared.clone();
    model.on(Destination, "query-migrate", move |_| {
        let mut answer = json!({"postcopy-blocktime": 12, "postcopy-vcpu-blocktime": [12, 34]});
        if let Some(status) = &shared.state().destination.migration {
            answer["status"] = json!(status);
        }
        vec![AnswerStep::Return(answer)]
    });
    let run = model.migrate().await;
    moved(&model, &run);
    let told = run.outcome.ram.postcopy_blocktime.as_ref().unwrap();
    assert_eq!((told.all_vcpus_ms, &told.vcpu_ms[..], told.mean_fault_us), (12, &[12, 34][..], None), "{run:?}");
}
