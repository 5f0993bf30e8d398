//! A guest that does not stop, and one that stood still for long.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    pair::{PairLooks, SideLooks},
};
use crate::{
    codes::DiagnosisCode,
    qemu::reply::{MigrationStatus, RunState},
};

/// The blackout from which a guest's own timers and its clock are off by what people notice, milliseconds.
const NOTICED: u64 = 2000;

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    causes.extend(looks.source.as_ref().and_then(not_stopping));
    causes.extend(clock(looks));
}

/// A guest that QEMU is about to stop. QEMU tells the run state before it waits for the virtual CPUs, and the status of
/// the migration after that.
fn not_stopping(source: &SideLooks) -> Option<Cause> {
    let is_stopping = |run: Option<&RunState>| run == Some(&RunState::FinishMigrate);
    let stays = source.looks.iter().all(|look| is_stopping(look.run.as_ref()));
    if !stays || !source.kept(&MigrationStatus::Active) {
        return None;
    }
    let mut evidence = vec![format!(
        "the source was in finish-migrate for {:.1} s, and its migration is still active",
        source.span().as_secs_f64()
    )];
    let threads = source.process.iter().flat_map(|process| &process.threads);
    evidence.extend(threads.filter(|thread| thread.name.starts_with("CPU ")).map(|thread| {
        let waits = thread.waits_in.as_ref().map_or_else(String::new, |function| format!(", waits in {function}"));
        format!("the thread {} is in state {}{waits}", thread.name, thread.state)
    }));
    Some(Cause::new(DiagnosisCode::VcpuNotStopping, Confidence::Likely, evidence).remedy(
        "wait until the guest is past its boot or the reset of a device, then begin again; the thread that does not sleep \
         is the virtual CPU to look into",
        "none: the guest goes on running on the source once the migration is cancelled",
    ))
}

/// A guest that has moved, with a long blackout.
fn clock(looks: &PairLooks) -> Option<Cause> {
    let (source, destination) = looks.source.as_ref().zip(looks.destination.as_ref())?;
    let downtime = source.migration()?.downtime.filter(|downtime| *downtime >= NOTICED)?;
    if source.status() != Some(&MigrationStatus::Completed) || !destination.runs() {
        return None;
    }
    let evidence = vec![format!("query-migrate: completed, with a downtime of {downtime} ms")];
    Some(Cause::new(DiagnosisCode::ClockJump, Confidence::Possible, evidence).remedy(
        "set the guest's clock, with guest-set-time where its agent runs; a guest with kvm-clock, or one that asks a time \
         server, does so itself",
        "programs in the guest see the time jump",
    ))
}
