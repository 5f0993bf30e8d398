//! Another client completes a mirror (`block-job-complete`): the guest on the source then writes to the destination's
//! image alone.

use crate::{
    proxied::Proxied,
    support::{start, until, writes},
};
use qferry::internals::progress::{Ending, RunsOn};
use qferry_bed::{BootSector, Side, Spec};
use serde_json::json;

/// The guest keeps its disk: it writes on, through an NBD server that nobody stops.
#[test]
fn a_disk_that_somebody_put_on_the_destination_is_not_taken_from_the_guest() {
    let boot = Some(BootSector::new().repeat(|steps| steps.write(64, 8).wait(1)));
    let pair = start(&Spec { boot, ..Spec::quick() });
    until(&pair, "query-blockstats", |blocks| writes(blocks) > 0);
    let proxied = Proxied::new(&pair);
    let complete = || {
        let jobs = pair.source.qmp("query-block-jobs", &json!({})).unwrap();
        pair.source.qmp("block-job-complete", &json!({"device": jobs[0]["device"]})).unwrap();
        until(&pair, "query-jobs", |jobs| jobs.as_array().unwrap().iter().all(|job| job["status"] == "concluded"));
    };
    let (outcome, _) = proxied.migrate_and_at(proxied.builder(), (Side::Source, "migrate"), complete);
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{outcome:#?}");
    let named = |left: &String| left.contains("block-job-complete") && left.contains("mirror it from node");
    assert!(outcome.leftovers.iter().any(named), "{outcome:#?}");
    assert!(pair.destination.alive().unwrap());
    let before = writes(&pair.source.qmp("query-blockstats", &json!({})).unwrap());
    until(&pair, "query-blockstats", |blocks| writes(blocks) > before + 3);
    assert_eq!(pair.source.status().unwrap(), "running");
    let errors = pair.source.events().unwrap().into_iter().filter(|event| event.name == "BLOCK_IO_ERROR").count();
    assert_eq!(errors, 0, "{outcome:#?}");
}
