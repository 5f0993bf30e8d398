//! Other runs: those that a journal tells of, and those whose names stand in a QEMU.
//!
//! Promise: one-engine.

use super::{
    other_run::{begun, party},
    *,
};
use qferry::internals::{
    endpoint::{PeerPid, ProcessIdentity},
    journal::Journal,
    migration::{Effect, JournalPlace, Migration, record::Record},
    quantity::Rate,
    run_id::RunId,
};
use std::path::Path;

fn identity(pid: u32) -> ProcessIdentity {
    PeerPid::open(i32::try_from(pid).unwrap()).unwrap().identity().unwrap()
}

/// The processes of a pair, the source's first.
fn identities(model: &ModelPair) -> [ProcessIdentity; 2] {
    let state = model.state();
    [&state.source, &state.destination].map(|qemu| identity(qemu.pid().unwrap()))
}

/// The journal, locked as by a living engine, of a run between these two.
fn journal(path: &Path, [source, destination]: [Option<ProcessIdentity>; 2]) -> (RunId, Journal<Record>) {
    let party = |name: &str, process| party(&format!("unix:/nowhere/{name}"), process);
    let begun = begun(path.parent().unwrap(), party("source", source), party("destination", destination));
    let run = begun.run.clone();
    let mut journal = Journal::create(path).unwrap();
    journal.append(&Record::Begun(Box::new(begun))).unwrap();
    journal.append(&Record::Effects(vec![Effect::NbdServer])).unwrap();
    (run, journal)
}

/// A migration whose journal is beside the other one.
async fn beside(model: &mut ModelPair, clean: bool) -> MigrationRun {
    let own = JournalPlace::File(model.directory.path().join("own.journal"));
    let mut builder = model.builder().journal(own);
    if clean {
        builder = builder.clean();
    }
    let migration = builder.start_here().unwrap();
    model.follow(migration).await
}

#[tokio::test(start_paused = true)]
async fn a_qemu_that_another_engine_is_at_work_with_is_left_alone() {
    let elsewhere = || Some(identity(std::process::id()));
    for (both, clean) in [(true, false), (true, true), (false, false)] {
        for side in [Source, Destination] {
            let mut model = processes();
            let [source, destination] = identities(&model).map(Some);
            let path = model.directory.path().join("other.journal");
            // The other engine has one of the two as its source, and another QEMU as its destination, or this one's.
            let parties = match (both, side) {
                (true, _) => [source, destination],
                (false, Source) => [source, elsewhere()],
                (false, Destination) => [elsewhere(), destination],
            };
            let (run, live) = journal(&path, parties);
            model.state().destination.exports.push(run.name("export-0"));
            let refused = beside(&mut model, clean).await;
            assert_eq!((refused.outcome.outcome, refused.code()), (Ending::Refused, "qemu-in-use"), "{refused:?}");
            let pid = std::process::id();
            for word in [&format!("pid {pid}"), path.to_str().unwrap()] {
                assert!(refused.message().contains(word), "{word}: {refused:?}");
            }
            assert!(asks_only(&refused.log), "{refused:?}");
            assert!(!model.directory.path().join("own.journal").exists(), "a refusal leaves no journal");
            drop(live);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_live_engine_of_another_pair_is_in_nobodys_way() {
    let mut model = processes();
    let elsewhere = || Some(identity(std::process::id()));
    let (_, _live) = journal(&model.directory.path().join("other.journal"), [elsewhere(), None]);
    let run = beside(&mut model, false).await;
    moved(&model, &run);
}

#[tokio::test(start_paused = true)]
async fn of_two_engines_that_looked_at_once_none_begins_before_the_other_is_seen() {
    let mut model = processes();
    let [source, destination] = identities(&model).map(Some);
    let path = model.directory.path().join("other.journal");
    // The other engine makes its journal after this one's checks, and before this one's journal.
    let other = std::sync::Arc::new(std::sync::Mutex::new(None));
    let (made, shared, mut asked) = (other.clone(), model.shared.clone(), 0);
    model.on(Source, "query-status", move |seen| {
        asked += 1;
        // The first question is that of the checks, the second that of a measurement.
        if asked == 2 {
            *made.lock().unwrap() = Some(journal(&path, [source.clone(), destination.clone()]));
        }
        shared.answer(Source, seen)
    });
    let own = JournalPlace::File(model.directory.path().join("own.journal"));
    let builder = model.builder().journal(own).bandwidth(Rate(1 << 30)).predict();
    let migration = builder.start_here().unwrap();
    let refused = model.follow(migration).await;
    assert!(other.lock().unwrap().is_some(), "{refused:?}");
    assert_eq!((refused.outcome.outcome, refused.code()), (Ending::Refused, "qemu-in-use"), "{refused:?}");
    assert_eq!(refused.count("source: migrate-set-capabilities"), 0, "{refused:?}");
    assert!(!model.directory.path().join("own.journal").exists());
}

/// To find out whose a journal is, both QEMUs are asked; a connector that reaches its QEMU once is enough for that.
#[tokio::test(start_paused = true)]
async fn a_dead_engine_of_another_pair_costs_no_second_connection() {
    let mut model = model();
    let (_, dead) = journal(&model.directory.path().join("other.journal"), [None, None]);
    drop(dead);
    let run = beside(&mut model, true).await;
    moved(&model, &run);
}

#[tokio::test(start_paused = true)]
async fn a_dead_engines_journal_is_named_with_what_it_left() {
    let mut model = processes();
    let path = model.directory.path().join("other.journal");
    let (run, dead) = journal(&path, identities(&model).map(Some));
    drop(dead);
    model.state().source.jobs.push(MirrorJob::new(&run.name("mirror-0"), "ready", 1));
    let refused = beside(&mut model, false).await;
    assert_eq!((refused.outcome.outcome, refused.code()), (Ending::Refused, "leftover"), "{refused:?}");
    let told = format!("qferry recover {}", path.display());
    assert!(refused.message().contains(&told), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_for_a_migration_that_is_refused_all_the_same() {
    let mut model = model();
    model.state().source.jobs.push(MirrorJob::new("qferry-mirror-7", "ready", 1));
    model.state().destination.exports.push("of-someone".to_owned());
    let run = beside(&mut model, true).await;
    assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "export-open"), "{run:?}");
    assert!(asks_only(&run.log), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_something_was_removed_says_so() {
    let mut model = model();
    model.state().source.jobs.push(MirrorJob::new("qferry-mirror-0", "ready", 1));
    drop(model.state().source.bitmaps.insert("node-disk0".to_owned(), ("qferry-guard-0".to_owned(), 0)));
    model.refused(Source, "block-dirty-bitmap-remove");
    let run = beside(&mut model, true).await;
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{run:?}");
    assert!(run.message().contains("block job qferry-mirror-0"), "{run:?}");
    assert!(!run.message().contains("guard"), "the bitmap is still there: {run:?}");
    assert_eq!(model.state().source.run, "running");
}

#[tokio::test(start_paused = true)]
async fn the_way_back_leaves_another_runs_export_and_the_server_alone() {
    let mut model = model();
    let another = RunId::new().name("export-0");
    let (shared, id) = (model.shared.clone(), another.clone());
    model.when(Source, "block-dirty-bitmap-add", move || shared.state().destination.exports.push(id.clone()));
    model.refused(Source, "drive-mirror");
    let run = model.migrate().await;
    assert_eq!((run.outcome.outcome, run.outcome.leftovers.len()), (Ending::RolledBack, 0), "{run:?}");
    assert_eq!(run.count("destination: nbd-server-stop"), 0, "{run:?}");
    let state = model.state();
    assert!(state.destination.server && state.destination.exports == [another], "{:?}", state.destination.exports);
}

#[tokio::test(start_paused = true)]
async fn a_recovery_of_an_old_journal_is_refused_where_another_run_has_begun() {
    let model = processes();
    let path = model.directory.path().join("old.journal");
    let (_, dead) = journal(&path, [None, None]);
    drop(dead);
    for (at, make) in [("the source", "mirror-0"), ("the destination", "export-0")] {
        let mut model = processes();
        let name = RunId::new().name(make);
        match make {
            "mirror-0" => model.state().source.jobs.push(MirrorJob::new(&name, "ready", 1)),
            _ => model.state().destination.exports.push(name.clone()),
        }
        let [source, destination] = model.endpoints();
        let recovery = Migration::recover(&path).source(source).destination(destination).start_here().unwrap();
        let run = model.follow(recovery).await;
        assert_eq!((run.outcome.outcome, run.code()), (Ending::Refused, "qemu-in-use"), "{at}: {run:?}");
        assert!(run.message().contains(&name), "{at}: {run:?}");
        assert!(asks_only(&run.log), "{at}: {run:?}");
    }
}
