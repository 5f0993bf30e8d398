//! Who has the guest, and who waits for whom.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    pair::{MonitorReach, PairLooks, SideLooks},
    remedy::RemedyCommand,
};
use crate::{
    codes::DiagnosisCode,
    progress::Side,
    qemu::reply::{MigrationStatus, RunState},
};

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    causes.extend(both_running(looks));
    causes.extend(both_paused(looks));
    causes.extend(never_started(looks));
    causes.extend(waiting_for_continue(looks));
    causes.extend(controller_waits(looks));
    for (side, seen) in looks.sides() {
        causes.extend(ended(side, seen));
    }
}

fn both_running(looks: &PairLooks) -> Option<Cause> {
    let (source, destination) = looks.source.as_ref().zip(looks.destination.as_ref())?;
    if !source.runs() || !destination.runs() {
        return None;
    }
    let postcopy = |side: &SideLooks| side.status().is_some_and(MigrationStatus::is_postcopy);
    if postcopy(source) || postcopy(destination) {
        return None;
    }
    let (confidence, proof) = looks.one_guest().ok()?;
    let evidence = vec!["query-status says running on both sides".to_owned(), proof];
    Some(Cause::new(DiagnosisCode::BothRunning, confidence, evidence).remedy(
        "stop one of them at once, and before the other is trusted look at its disks: both may have written",
        "the guest that is ended loses what it did since the other was started",
    ))
}

fn both_paused(looks: &PairLooks) -> Option<Cause> {
    let (source, destination) = looks.source.as_ref().zip(looks.destination.as_ref())?;
    if !source.stood() || !destination.stood() || !source.lasted() {
        return None;
    }
    let said = |side: &SideLooks| {
        let run = side.run().map_or("unknown", RunState::as_str);
        format!("{run}, migration {}", side.status().map_or("none", MigrationStatus::as_str))
    };
    let evidence = vec![format!("source: {}", said(source)), format!("destination: {}", said(destination))];
    match (source.status(), destination.status()) {
        // in postcopy neither side has the whole guest
        (Some(status), _) | (_, Some(status)) if status.is_postcopy() => None,
        // the source waits: that is a cause of its own
        (Some(MigrationStatus::PreSwitchover | MigrationStatus::Device | MigrationStatus::Active), _) => None,
        (Some(MigrationStatus::Completed), _) if destination.run() == Some(&RunState::InMigrate) => {
            let cause = Cause::new(DiagnosisCode::BothPaused, Confidence::Likely, evidence);
            Some(cause.remedy(
                "find out why the destination has not loaded the state before anything is started",
                "a source that is started after completed can be a second runner",
            ))
        }
        (Some(MigrationStatus::Completed), _) => {
            // an export that is left open has to be closed first, and is a cause of its own
            let is_open = destination.last().is_some_and(|look| !look.exports.is_empty());
            let confidence = if is_open { Confidence::Likely } else { Confidence::Certain };
            let cause = Cause::new(DiagnosisCode::BothPaused, confidence, evidence);
            Some(cause.remedy(
                "the destination has the whole guest: qferry recover, where qferry moved it; else cont on the \
                 destination, once the manager is proved to be gone",
                "a manager that still lives may start the guest on the source",
            ))
        }
        // before any migration a guest that its owner has paused beside a destination that waits is as it should be
        (None | Some(MigrationStatus::None), _) => None,
        _ => {
            let cause = Cause::new(DiagnosisCode::BothPaused, Confidence::Possible, evidence);
            Some(cause.remedy(
                "the guest belongs to the source: cont there, if it was not its owner who stopped it",
                "an owner who stopped the guest on purpose",
            ))
        }
    }
}

/// A guest that has arrived whole and stands still, where nothing is seen of the source.
fn never_started(looks: &PairLooks) -> Option<Cause> {
    let destination = looks.destination.as_ref().filter(|side| side.has_arrived() && side.stood() && side.lasted())?;
    let (source, confidence) = match &looks.source {
        None => ("the source was not looked at".to_owned(), Confidence::Possible),
        Some(SideLooks { reach: MonitorReach::Gone { words }, .. }) => (words.clone(), Confidence::Likely),
        Some(source) if source.looks.is_empty() => ("nothing is seen of the source".to_owned(), Confidence::Possible),
        Some(_) => return None,
    };
    let run = destination.run().map_or("unknown", RunState::as_str);
    let evidence = vec![
        format!(
            "the destination's migration has completed, and its guest stood still for {:.1} s: {run}",
            destination.span().as_secs_f64()
        ),
        source,
        "a guest that its owner had paused before it moved looks the same".to_owned(),
    ];
    Some(Cause::new(DiagnosisCode::BothPaused, confidence, evidence).remedy(
        "look at the source as well: where it is proved to run nothing any more, the destination has the whole guest; \
         qferry recover, where qferry moved it; else cont on the destination, once the manager is proved to be gone",
        "a source that still runs the guest, or a manager that starts it there, is a second runner",
    ))
}

fn waiting_for_continue(looks: &PairLooks) -> Option<Cause> {
    let source = looks.source.as_ref()?;
    if !source.kept(&MigrationStatus::PreSwitchover) {
        return None;
    }
    let mut evidence = vec![format!("the source was in pre-switchover for {:.1} s", source.span().as_secs_f64())];
    if let Some(run) = source.run() {
        evidence.push(format!("its guest stands still: {run}"));
    }
    let jobs: Vec<String> = source.mirrors().map(|job| format!("{} ({})", job.device, job.status)).collect();
    if !jobs.is_empty() {
        evidence.push(format!("mirrors are still there: {}", jobs.join(", ")));
    }
    let destination = looks.destination.as_ref();
    let waits = destination.is_some_and(|side| side.run() == Some(&RunState::InMigrate));
    evidence.push(match destination {
        None => "the destination was not looked at".to_owned(),
        Some(_) if waits => "the destination waits for the rest (inmigrate)".to_owned(),
        Some(_) => "the destination is not seen to wait for the rest".to_owned(),
    });
    // a program that waits for its mirrors sends it once they are ready
    let is_early = source.mirrors().any(|job| !job.ready);
    let confidence = if is_early { Confidence::Likely } else { Confidence::Certain };
    let cause = Cause::new(DiagnosisCode::WaitingForContinue, confidence, evidence);
    Some(cause.remedy(
        "migrate_cancel on the source takes the guest back; where the program that runs the migration is to go on, it \
         sends migrate-continue itself, once its mirrors have concluded and the exports are closed",
        "the migration has to be begun again; the guest goes on running on the source",
    )
    .command(RemedyCommand::cancel())
    .fixable())
}

fn controller_waits(looks: &PairLooks) -> Option<Cause> {
    let source = looks.source.as_ref()?;
    let over = [MigrationStatus::Cancelled, MigrationStatus::Failed].iter().any(|status| source.kept(status));
    let kept: Vec<String> = source.mirrors().filter(|job| job.ready).map(|job| job.device.clone()).collect();
    if !over || kept.is_empty() || !source.runs() {
        return None;
    }
    let status = source.status().map_or("over", MigrationStatus::as_str);
    let evidence = vec![
        format!("the source's migration is {status}, and its guest runs"),
        format!("mirrors are kept ready: {}", kept.join(", ")),
        "a program that is about to send RAM again would look the same for some seconds".to_owned(),
    ];
    let cause = Cause::new(DiagnosisCode::ControllerWaits, Confidence::Possible, evidence);
    Some(cause.remedy(
        "have the program that runs the migration go back; where it is gone, cancel its mirrors (block-job-cancel)",
        "a mirror that is cancelled has to copy everything again",
    ))
}

/// A guest that has ended by itself.
fn ended(side: Side, seen: &SideLooks) -> Option<Cause> {
    if seen.reach != MonitorReach::Answers {
        return None;
    }
    let run = seen.run()?;
    let (what, remedy) = match run {
        RunState::Shutdown => ("has powered off", "let the migration go back, and treat the guest as powered off"),
        RunState::GuestPanicked => ("has panicked", "save its memory if that is wanted; then reset it"),
        RunState::IoError => {
            ("was stopped at an error of its disk", "make room or mend the storage, and send cont on this side")
        }
        RunState::InternalError => {
            ("was stopped at an error of QEMU or KVM", "reset it; QEMU's own log names the error")
        }
        _ => return None,
    };
    let evidence = vec![format!("query-status on the {side} says {run}: the guest {what}")];
    Some(Cause::new(DiagnosisCode::GuestEnded, Confidence::Certain, evidence).remedy(remedy, "none for the migration"))
}
