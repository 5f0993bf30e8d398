//! Somebody else's migration of the same source, begun once this run's was over.
//!
//! Promise: foreign-migration.

use super::{
    other_run::{begun, party},
    *,
};
use qferry::internals::{
    journal::Journal,
    migration::{Effect, Migration, record::Record},
};
use std::path::Path;

/// Lets another client cancel this run's migration once it is under way, and begin one of its own at once.
fn another_begins(model: &ModelPair, then: impl FnOnce(&mut PairState) + Send + 'static) {
    let shared = model.shared.clone();
    model.when(Source, "migrate", move || {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(400)).await;
            for (side, status) in
                [(Source, "cancelled"), (Destination, "failed"), (Source, "setup"), (Source, "active")]
            {
                shared.state().enter(side, status);
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            then(&mut shared.state());
        });
    });
}

/// The settings are back once QEMU takes them, and where it never does, what holds them is said.
#[tokio::test(start_paused = true)]
async fn settings_that_somebody_elses_migration_holds_are_put_back_after_it() {
    let mut model = model();
    model.state().converges = false;
    another_begins(&model, |state| state.enter(Source, "cancelled"));
    let run = model.migrate().await;
    assert_eq!((run.outcome.runs_on, run.count("source: migrate_cancel")), (RunsOn::Source, 0), "{run:?}");
    assert_eq!(run.outcome.leftovers, Vec::<String>::new(), "{run:?}");
    let fresh = self::model();
    assert_eq!(model.state().source.capabilities, fresh.state().source.capabilities, "{run:?}");
    assert_eq!(model.state().source.parameters, fresh.state().source.parameters, "{run:?}");

    type Then = fn(&mut PairState);
    let cases: [(Then, &str); 2] = [
        (|_| {}, "no change of them while somebody else's"),
        (
            |state| {
                state.source.run = "finish-migrate".to_owned();
                state.enter(Source, "pre-switchover");
            },
            "waits in pre-switchover by this run's pause-before-switchover",
        ),
    ];
    for (then, words) in cases {
        let mut model = self::model();
        model.state().converges = false;
        another_begins(&model, then);
        let run = model.migrate().await;
        assert_eq!((run.count("source: migrate_cancel"), run.count("source: migrate-continue")), (0, 0), "{run:?}");
        assert!(run.outcome.leftovers.iter().any(|left| left.contains(words)), "{words}: {run:?}");
    }
}

/// The journal of an engine that died while RAM was sent.
fn journal(path: &Path) {
    let party = |name: &str| party(&format!("unix:/nowhere/{name}"), None);
    let begun = begun(path.parent().unwrap(), party("source"), party("destination"));
    let mut journal = Journal::create(path).unwrap();
    journal.append(&Record::Begun(Box::new(begun))).unwrap();
    journal.append(&Record::Effects(vec![Effect::Incoming, Effect::Migrate])).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_recovery_cancels_a_migration_only_where_the_destination_takes_it() {
    for (at_destination, fails, cancelled, ending) in [
        // an engine that died alone
        ("active", false, 1, Ending::RolledBack),
        // somebody has cancelled this run's migration and begun one to a third QEMU
        ("failed", false, 0, Ending::Stuck),
        // The migration of this run, to a destination that has failed, notices that a little later.
        ("failed", true, 0, Ending::RolledBack),
    ] {
        let mut model = model();
        let path = model.directory.path().join("journal");
        journal(&path);
        {
            let mut state = model.state();
            state.source.migration = Some("active".to_owned());
            state.destination.migration = Some(at_destination.to_owned());
            state.leads_elsewhere = ending == Ending::Stuck;
        }
        let shared = model.shared.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if fails {
                shared.state().fail_source();
            }
        });
        let [source, destination] = model.endpoints();
        let recovery = Migration::recover(&path).source(source).destination(destination).start_here().unwrap();
        let run = model.follow(recovery).await;
        let told = (run.outcome.outcome, run.outcome.runs_on, run.count("source: migrate_cancel"));
        assert_eq!(told, (ending, RunsOn::Source, cancelled), "{at_destination} {fails}: {run:?}");
        let is_named = run.outcome.leftovers.iter().any(|left| left.contains("nothing proves to be this run's"));
        assert_eq!(is_named, ending == Ending::Stuck, "{run:?}");
        if is_named {
            assert_eq!(model.state().source.migration.as_deref(), Some("active"), "{run:?}");
        }
    }
}
