//! What a judgement is told of one side: the answers to one look, and what the events have told before it.

use crate::{
    handover::{exchange, judgement::SideSighting, ownership::ProcessEnded},
    memory::precopy,
    qemu::{Observed, Process, reply::MigrationStatus},
};
use std::{future::pending, time::Duration};
use tokio::time::sleep;

/// How long a side may take for one look, and to be seen to have ended.
const LOOK: Duration = Duration::from_secs(1);

/// Whether another client has begun a migration after this run's.
pub(super) fn is_followed(source: &Process) -> bool {
    source.own_migration.is_followed(&source.observed())
}

/// Whether a source has given its migration up after it stopped the guest: QEMU then resumes the guest by itself.
pub(super) fn gave_up(seen: &Observed) -> bool {
    seen.runs_again() || [MigrationStatus::Failed, MigrationStatus::Cancelled].iter().any(|s| seen.entered(s).is_some())
}

/// Looks at one side; a side whose end is proved is not asked again.
pub(super) async fn look(process: &Process, ended: bool) -> SideSighting<ProcessEnded> {
    if ended {
        return SideSighting::Silent;
    }
    let asked = async {
        match precopy::run_and_status(process).await {
            Ok(answers) => answers,
            Err(_) => pending().await,
        }
    };
    let died = async {
        match exchange::prove_ended(process, LOOK).await {
            Some(ended) => ended,
            None => pending().await,
        }
    };
    let hangs = async { tokio::join!(process.answers_out_of_band(), sleep(LOOK)).0 };
    // The three questions run at the same time, for a guest may stand still.
    tokio::select! {
        biased;
        (run, migration) = asked => SideSighting::Answered { run, migration },
        ended = died => SideSighting::Ended(ended),
        hangs = hangs => if hangs { SideSighting::Hung } else { SideSighting::Silent },
    }
}
