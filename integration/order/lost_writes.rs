//! Never a lost write: without the proof that every mirror has ended well, the guest is not handed over.
//!
//! Promise: no-lost-write.

use super::*;

/// Three disks of which the second does not settle.
async fn not_settled(how: MirrorEnd, message: &str) {
    let mut model = ModelPair::new(&disks(3));
    model.state().mirror_ends[1] = how;
    let run = model.migrate().await;
    assert_eq!(run.count("source: migrate-continue"), 0, "{run:?}");
    let code = match how {
        MirrorEnd::ErrorInQueryOnly | MirrorEnd::Vanished => "not-disengaged",
        MirrorEnd::Never => "no-answer",
        _ => "mirror-failed",
    };
    back(&model, &run, Ending::RolledBack, code);
    assert!(run.message().contains(message), "{run:?}");
    assert_eq!(run.count("source: migrate_cancel"), 1, "{run:?}");
    assert_eq!(run.count("source: cont"), 0, "QEMU resumes it by itself: {run:?}");
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_concludes_with_an_error_stops_the_switchover() {
    not_settled(MirrorEnd::Error, "Input/output error").await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_was_not_ready_stops_the_switchover() {
    not_settled(MirrorEnd::NotReady, "not ready").await;
}

#[tokio::test(start_paused = true)]
async fn the_query_is_believed_over_the_events() {
    not_settled(MirrorEnd::ErrorInQueryOnly, "Input/output error").await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_vanished_proves_nothing() {
    not_settled(MirrorEnd::Vanished, "vanished").await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_never_concludes_stops_the_switchover() {
    not_settled(MirrorEnd::Never, "end of the mirrors").await;
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_someone_else_ended_while_the_guest_ran_is_not_taken_for_settled() {
    for (phase, command) in [("storage", "block-job-change"), ("memory", "migrate")] {
        let mut model = model();
        let shared = model.shared.clone();
        model.when(Source, command, move || shared.state().conclude("mirror-0", MirrorEnd::Well));
        let run = model.migrate().await;
        assert_eq!(run.count("source: migrate-continue"), 0, "{phase}: {run:?}");
        back(&model, &run, Ending::RolledBack, "mirror-failed");
    }
}

#[tokio::test(start_paused = true)]
async fn an_export_that_stays_stops_the_switchover() {
    let mut model = model();
    model.state().exports_linger = true;
    let run = model.migrate().await;
    assert_eq!(run.count("source: migrate-continue"), 0, "{run:?}");
    assert_eq!((run.outcome.outcome, run.code()), (Ending::RolledBack, "not-disengaged"), "{run:?}");
    assert!(run.message().contains("-export-0"), "{run:?}");
    assert_eq!(model.state().source.run, "running");
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_the_exports_are_not_proved_closed() {
    for command in ["nbd-server-stop", "query-block-exports"] {
        let mut model = model();
        let asked = model.shared.clone();
        // The first queries come from the preflight, and from the looks before and behind `migrate`.
        let mut times = 0;
        model.on(Destination, command, move |seen| {
            times += 1;
            if seen.name == "query-block-exports" && times <= 3 { asked.answer(Destination, seen) } else { Vec::new() }
        });
        let run = model.migrate().await;
        assert_eq!(run.count("source: migrate-continue"), 0, "{command}: {run:?}");
        back(&model, &run, Ending::RolledBack, "switchover-timeout");
    }
}
