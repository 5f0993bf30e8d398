//! The golden order: the commands to each side, and those within the blackout.

use super::*;

pub(crate) fn golden(shape: &PairShape) -> Vec<String> {
    let each =
        |lines: &[&'static str]| -> Vec<&'static str> { (0..shape.disks).flat_map(|_| lines.to_vec()).collect() };
    let mut golden = vec!["destination: stop"];
    if shape.disks > 0 {
        golden.push("destination: nbd-server-start");
        golden.extend(each(&["destination: block-export-add"]));
        golden.extend(each(&["source: block-dirty-bitmap-add", "source: drive-mirror"]));
        golden.extend(each(&["source: block-dirty-bitmap-remove"]));
    }
    if shape.block_job_change {
        golden.extend(each(&["source: block-job-change"]));
        // The new speed wakes the mirrors, so that they notice that they are in step.
        golden.extend(each(&["source: block-job-set-speed"]));
    }
    // The burst: what RAM's migration needs is set right before it.
    golden.extend([
        "destination: migrate-set-capabilities",
        "destination: migrate-incoming",
        "source: migrate-set-capabilities",
        "source: migrate-set-parameters",
        "source: migrate",
    ]);
    golden.extend(each(&["source: block-job-cancel"]));
    golden.push("destination: stop");
    if shape.disks > 0 {
        golden.push("destination: nbd-server-stop");
    }
    golden.push("source: migrate-continue");
    if shape.guest == "running" {
        golden.push("destination: cont");
    }
    golden.extend(["source: quit", "destination: migrate-set-capabilities"]);
    golden.into_iter().map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn golden_order() {
    for disks in [0, 1, 3] {
        for (block_job_change, exit_on_error) in [(true, true), (true, false), (false, true), (false, false)] {
            for guest in ["running", "paused"] {
                let shape = PairShape { disks, block_job_change, exit_on_error, guest, processes: false };
                let mut model = ModelPair::new(&shape);
                let run = model.migrate().await;
                moved(&model, &run);
                assert_eq!(run.told(), golden(&shape), "{shape:?}");
                let incoming = &model.destination.saw("migrate-incoming").await.arguments["exit-on-error"];
                assert_eq!(*incoming, if exit_on_error { json!(false) } else { Value::Null });
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_blackout_holds_nothing_but_the_handover() {
    for disks in [0, 1, 3] {
        let mut model = ModelPair::new(&PairShape { disks, ..PairShape::default() });
        let run = model.migrate().await;
        moved(&model, &run);
        let window = run.blackout();
        let commands = |side: &str| -> Vec<&str> {
            let of_side = window.iter().filter_map(|(line, _)| line.strip_prefix(side)?.strip_prefix(": "));
            of_side.filter(|name| name.chars().any(|c| c.is_ascii_lowercase())).collect()
        };
        let mut at_source = vec!["block-job-cancel"; disks];
        // The rest of RAM, asked for behind the end of the mirrors, tells whether the budget will be kept.
        at_source.push("query-migrate");
        // The destination is told to wait once more, and says whether it does.
        let mut at_destination = vec!["stop", "query-status"];
        if disks > 0 {
            at_source.push("query-jobs");
            at_destination.push("nbd-server-stop");
        }
        // Nobody writes to the destination's disks any more, whether this run did or not.
        at_destination.push("query-block-exports");
        at_source.push("migrate-continue");
        at_destination.push("cont");
        assert_eq!((commands("source"), commands("destination")), (at_source, at_destination));
        let begin = window[0].1;
        assert!(window.iter().all(|(_, at)| *at == begin), "time passed: {window:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_mirror_is_told_to_settle_before_any_answer_is_awaited() {
    let mut model = ModelPair::new(&disks(3));
    let shared = model.shared.clone();
    model.on(Source, "block-job-cancel", move |seen| {
        let mut steps = vec![AnswerStep::Hold("all")];
        steps.extend(shared.answer(Source, seen));
        steps
    });
    let migration = model.builder().start_here().unwrap();
    model.source.saw_times("block-job-cancel", 3).await;
    model.source.release("all");
    let run = model.follow(migration).await;
    moved(&model, &run);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_ram_is_asked_for_and_not_waited_for() {
    let mut model = model();
    let shared = model.shared.clone();
    model.on(Source, "query-migrate", move |seen| {
        let stands = shared.state().source.migration.as_deref() == Some("pre-switchover");
        let mut steps = if stands { vec![AnswerStep::Hold("left")] } else { Vec::new() };
        steps.extend(shared.answer(Source, seen));
        steps
    });
    let migration = model.builder().start_here().unwrap();
    let stopped = tokio::time::timeout(Duration::from_secs(60), model.destination.saw("nbd-server-stop")).await;
    assert!(stopped.is_ok(), "{:#?}", model.log);
    model.source.release("left");
    let run = model.follow(migration).await;
    moved(&model, &run);
}
