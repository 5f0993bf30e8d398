//! The names of a run: each has the run's id, so that nothing of another run is taken for this one's own.

use super::*;
use qferry::internals::{
    journal,
    migration::{JournalPlace, record::Record},
    run_id::RunId,
};
use std::collections::BTreeSet;

#[tokio::test(start_paused = true)]
async fn all_that_a_run_makes_has_its_id() {
    let mut runs = BTreeSet::new();
    for _ in 0..2 {
        let mut model = ModelPair::new(&disks(2));
        let path = model.directory.path().join("journal");
        let migration = model.builder().journal(JournalPlace::File(path.clone())).start_here().unwrap();
        let run = model.follow(migration).await;
        moved(&model, &run);
        let entries = journal::read::<Record>(&path).unwrap();
        let Record::Begun(begun) = &entries[0].record else { panic!("{entries:?}") };
        assert!(!begun.run.is_of_earlier_version(), "{begun:?}");
        let mut named = 0;
        for (_, seen) in &run.log {
            let target: Value =
                serde_json::from_str(seen.arguments["target"].as_str().unwrap_or_default().trim_start_matches("json:"))
                    .unwrap_or_default();
            let names = match seen.name.as_str() {
                "drive-mirror" => vec![
                    &seen.arguments["job-id"],
                    &seen.arguments["node-name"],
                    &target["file"]["node-name"],
                    &target["file"]["export"],
                ],
                "block-export-add" => vec![&seen.arguments["id"], &seen.arguments["name"]],
                "block-dirty-bitmap-add" => vec![&seen.arguments["name"]],
                _ => continue,
            };
            for name in names {
                let name = name.as_str().unwrap();
                assert_eq!(RunId::of_name(name).map(|(run, _)| run), Some(begun.run.clone()), "{seen:?}");
                assert!(name.len() <= 31, "QEMU takes no longer name of a node: {name}");
                named += 1;
            }
        }
        assert_eq!(named, 14, "{:?}", run.log);
        runs.insert(begun.run.clone());
    }
    assert_eq!(runs.len(), 2, "two runs share no name");
}
