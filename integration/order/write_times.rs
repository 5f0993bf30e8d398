//! The histograms of the guest's writes: set and removed as they were found, and told by what they counted.

use super::*;
use std::sync::{Arc, Mutex};

const DEVICE: &str = "/machine/peripheral/disk0/virtio-backend";
const SET: &str = "block-latency-histogram-set";

/// The histograms of the source's device, by their keys in `query-blockstats`.
type Histograms = Arc<Mutex<serde_json::Map<String, Value>>>;

/// A pair whose source has these histograms for its disk. The first bin of a histogram counts one write at each answer,
/// and once a mirror is write-blocking the 13th counts two.
fn counting(shape: &PairShape, found: &Value) -> (ModelPair, Histograms) {
    let model = ModelPair::new(shape);
    model::add_histograms(&mut model.state().source.schema);
    let histograms: Histograms = Arc::new(Mutex::new(found.as_object().unwrap().clone()));
    let (set, shared) = (histograms.clone(), model.shared.clone());
    model.on(Source, "query-blockstats", move |_| {
        let mut set = set.lock().unwrap();
        let blocks = shared.state().source.jobs.iter().any(|job| job.write_blocking);
        if let Some(bins) = set.get_mut("wr_latency_histogram").and_then(|writes| writes["bins"].as_array_mut()) {
            let (bin, more) = if blocks { (12, 2) } else { (0, 1) };
            if let Some(count) = bins.get_mut(bin) {
                *count = json!(count.as_u64().unwrap() + more);
            }
        }
        let mut stats = json!({"wr_bytes": 0, "wr_operations": 0, "wr_total_time_ns": 0});
        stats.as_object_mut().unwrap().extend(set.clone());
        vec![AnswerStep::Return(json!([{"device": "", "qdev": DEVICE, "node-name": "node-disk0", "stats": stats}]))]
    });
    let set = histograms.clone();
    model.on(Source, SET, move |seen| {
        assert_eq!(seen.arguments["id"], DEVICE);
        let mut set = set.lock().unwrap();
        match seen.arguments["boundaries-write"].as_array() {
            Some(boundaries) => {
                let histogram = json!({"boundaries": boundaries, "bins": vec![0; boundaries.len() + 1]});
                set.insert("wr_latency_histogram".to_owned(), histogram);
            }
            None => set.clear(),
        }
        vec![AnswerStep::Return(json!({}))]
    });
    (model, histograms)
}

fn set_times(run: &MigrationRun) -> usize {
    run.count(&format!("source: {SET}"))
}

#[tokio::test(start_paused = true)]
async fn the_price_of_write_blocking_is_told() {
    let (mut model, _) = counting(&PairShape::default(), &json!({}));
    let run = model.migrate().await;
    moved(&model, &run);
    let writes = run.outcome.disks[0].guest_writes.as_ref().unwrap();
    let (before, since) = (writes.copying.as_ref().unwrap(), writes.write_blocking.as_ref().unwrap());
    assert_eq!((before.p50_at_most_us, before.p99_at_most_us), (Some(7), Some(7)), "{run:?}");
    assert_eq!((since.p50_at_most_us, since.p99_at_most_us), (Some(448), Some(448)), "{run:?}");
    assert!(since.writes % 2 == 0 && before.writes > 0, "{run:?}");
    // Set before the mirrors, and gone with the source.
    assert!(run.position(&format!("source: {SET}")) < run.position("source: drive-mirror"), "{run:?}");
    assert_eq!(set_times(&run), 1, "{run:?}");
    assert!(run.blackout().iter().all(|(line, _)| !line.ends_with("query-blockstats")), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_kept_counts_no_more() {
    let (mut model, histograms) = counting(&PairShape::default(), &json!({}));
    let builder = model.builder().keep_source();
    let run = model.follow(builder.start_here().unwrap()).await;
    moved(&model, &run);
    assert_eq!((set_times(&run), histograms.lock().unwrap().len()), (2, 0), "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn the_way_back_leaves_the_source_as_it_was() {
    for when in ["drive-mirror", "migrate", "migrate-continue"] {
        let (mut model, histograms) = counting(&PairShape::default(), &json!({}));
        model.refused(Source, when);
        let run = model.migrate().await;
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{when}: {run:?}");
        assert_eq!((set_times(&run), histograms.lock().unwrap().len()), (2, 0), "{when}: {run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn histograms_of_another_client_are_not_touched() {
    let of_others = |name: &str| json!({name: {"boundaries": [5], "bins": [0, 0]}});
    for kind in ["wr_latency_histogram", "rd_latency_histogram", "flush_latency_histogram"] {
        let (mut model, histograms) = counting(&PairShape::default(), &of_others(kind));
        model.refused(Source, "migrate-continue");
        let run = model.migrate().await;
        back(&model, &run, Ending::RolledBack, "command-refused");
        assert_eq!((set_times(&run), histograms.lock().unwrap().len()), (0, 1), "{kind}: {run:?}");
        assert_eq!(run.outcome.disks[0].guest_writes, None, "{kind}");
    }
    // Another client comes later: nothing of its own is removed, and what stays is named.
    let (mut model, histograms) = counting(&PairShape::default(), &json!({}));
    let theirs = of_others("flush_latency_histogram");
    let set = histograms.clone();
    model.when(Source, "migrate", move || set.lock().unwrap().extend(theirs.as_object().unwrap().clone()));
    model.refused(Source, "migrate-continue");
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "command-refused");
    assert_eq!((set_times(&run), histograms.lock().unwrap().len()), (1, 2), "{run:?}");
    assert!(run.warned("not-undone"), "{run:?}");
}

/// A histogram that an engine left by its death is taken over, and removed in the end.
#[tokio::test(start_paused = true)]
async fn what_an_engine_left_is_removed_by_the_next() {
    let (mut model, histograms) = counting(&PairShape::default(), &json!({}));
    model.refused(Source, "drive-mirror");
    let taken = histograms.clone();
    let left = Arc::new(Mutex::new(Value::Null));
    let seen = left.clone();
    model.when(Source, "block-dirty-bitmap-add", move || {
        *seen.lock().unwrap() = Value::Object(taken.lock().unwrap().clone());
    });
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "command-refused");
    let left = left.lock().unwrap().clone();
    assert!(left["wr_latency_histogram"]["boundaries"].as_array().is_some_and(|all| all.len() > 9), "{left}");
    let (mut model, histograms) = counting(&PairShape::default(), &left);
    model.refused(Source, "migrate-continue");
    let run = model.migrate().await;
    back(&model, &run, Ending::RolledBack, "command-refused");
    assert_eq!((set_times(&run), histograms.lock().unwrap().len()), (2, 0), "{run:?}");
}
