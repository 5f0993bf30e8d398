//! The histograms of the guest's writes on the source: none is left, and those of another client stay.

use crate::support::{begins, builder, cancel, judge_back, judge_moved, migrate_and, migrate_when, start};
use qferry::internals::progress::{Ending, EventKind, Phase};
use qferry_bed::{Pair, Spec};
use serde_json::{Value, json};

/// The histograms of the source's first disk.
fn histograms(pair: &Pair) -> Vec<(String, Value)> {
    let stats = pair.source.qmp("query-blockstats", &json!({})).unwrap()[0]["stats"].clone();
    let all = stats.as_object().unwrap().clone().into_iter();
    all.filter(|(name, _)| name.ends_with("_latency_histogram")).collect()
}

fn device(pair: &Pair) -> Value {
    pair.source.qmp("query-blockstats", &json!({})).unwrap()[0]["qdev"].clone()
}

fn quick(version: &str) -> Pair {
    start(&Spec { version: version.to_owned(), ..Spec::quick() })
}

#[test]
fn the_source_counts_writes_while_mirrors_are_there_and_no_longer() {
    for (version, keeps) in [("7.2", false), ("10.0.13", true), ("11.1", false)] {
        let pair = quick(version);
        let mut during = Vec::new();
        let ready = |kind: &EventKind| begins(kind, Phase::Memory);
        if keeps {
            let (outcome, _) = migrate_when(builder(&pair).keep_source(), ready, |_| during = histograms(&pair));
            assert_eq!(outcome.outcome, Ending::Moved, "{version}: {outcome:#?}");
        } else {
            let (outcome, _) = migrate_when(builder(&pair), ready, |running| {
                during = histograms(&pair);
                cancel(running);
            });
            judge_back(&pair, &outcome, Ending::Cancelled, "running");
        }
        let names: Vec<&str> = during.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["wr_latency_histogram"], "{version}");
        assert_eq!(histograms(&pair), [], "{version}: none is left");
    }
}

#[test]
fn histograms_that_the_guests_owner_has_set_stay_as_they_are() {
    let pair = quick("10.0.13");
    let set = json!({"id": device(&pair), "boundaries-flush": [1000, 2000]});
    pair.source.qmp("block-latency-histogram-set", &set).unwrap();
    let before: Vec<String> = histograms(&pair).into_iter().map(|(name, _)| name).collect();
    let mut during = Vec::new();
    let (outcome, _) = migrate_and(builder(&pair), Phase::Memory, |_| during = histograms(&pair));
    judge_moved(&pair, &outcome);
    let during: Vec<String> = during.into_iter().map(|(name, _)| name).collect();
    assert_eq!((&before, &during), (&vec!["flush_latency_histogram".to_owned()], &before));
    assert_eq!(outcome.disks[0].guest_writes, None);
}
