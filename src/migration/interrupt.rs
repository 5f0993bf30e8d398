//! What ends a migration early, up to `migrate-continue`: the user, a timeout, or a QEMU that goes away or hangs.
//!
//! It only drops the work and names the reason. What the work had begun is undone by the way back.

use super::{Failure, way_back::rollback::QemuPair};
use std::{future::pending, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

/// How long a death may take to be seen after the command that it made fail: its sockets close one after the other.
const GRACE: Duration = Duration::from_millis(100);

/// How long the work may take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// The user's timeout, and when it is over.
    pub(crate) timeout: Option<(Duration, Instant)>,
    /// The same for the time that the guest may stand still in.
    pub(crate) switchover: Option<(Duration, Instant)>,
    /// How long the source may leave something unanswered before its main loop is taken to hang.
    pub(crate) hang: Option<Duration>,
}

/// Does the work unless something ends it first. `cancel` turns true, or closes, when the user cancels.
pub(crate) async fn unless_interrupted<T>(
    sides: &QemuPair,
    cancel: &watch::Receiver<bool>,
    bounds: Bounds,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let failure = tokio::select! {
        biased;
        () = cancelled(cancel) => return Err(Failure::Cancelled),
        death = death(sides) => return Err(death),
        waited = over(bounds.timeout) => return Err(Failure::Timeout(waited)),
        waited = over(bounds.switchover) => return Err(Failure::SwitchoverTimeout(waited)),
        waited = hang(sides, bounds.hang) => return Err(Failure::Hangs { at: sides.source.name().clone(), waited }),
        done = work => match done {
            Ok(done) => return Ok(done),
            // no command failed, and a guest that may stand still waits for its way back
            Err(failure @ Failure::GaveUp { .. }) => return Err(failure),
            Err(failure) => failure,
        },
    };
    // a death that makes a command fail is the better reason than the command's failure
    Err(timeout(GRACE, death(sides)).await.unwrap_or(failure))
}

/// Does the work unless the user cancels first. A canceller that is gone cancels, too.
pub(crate) async fn unless_cancelled<T>(
    cancel: &watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = cancelled(cancel) => Err(Failure::Cancelled),
        done = work => Ok(done),
    }
}

/// Waits until the user cancels.
pub(crate) async fn cancelled(cancel: &watch::Receiver<bool>) {
    drop(cancel.clone().wait_for(|cancelled| *cancelled).await);
}

async fn death(sides: &QemuPair) -> Failure {
    tokio::select! {
        biased;
        gone = sides.source.gone() => Failure::SourceGone(gone),
        gone = sides.destination.gone() => Failure::DestinationGone(gone),
    }
}

async fn hang(sides: &QemuPair, patience: Option<Duration>) -> Duration {
    match patience {
        Some(patience) => {
            sides.source.unanswered(patience).await;
            patience
        }
        None => pending().await,
    }
}

async fn over(limit: Option<(Duration, Instant)>) -> Duration {
    match limit {
        Some((waited, deadline)) => {
            sleep_until(deadline).await;
            waited
        }
        None => pending().await,
    }
}
