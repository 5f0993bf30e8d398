//! What ends a migration early, up to `migrate-continue`: the user, the timeout, or a QEMU that goes away.
//!
//! It only drops the work and names the reason. What the work had begun is undone by the way back.

use super::{Failure, rollback::Sides};
use std::{future::pending, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

/// How long a death may take to be seen after the command that it made fail: its sockets close one after the other.
const GRACE: Duration = Duration::from_millis(100);

/// Does the work unless something ends it first. `cancel` turns true, or closes, when the user cancels; `limit` is the
/// user's timeout and when it is over.
pub(super) async fn unless_interrupted<T>(
    sides: &Sides,
    cancel: &watch::Receiver<bool>,
    limit: Option<(Duration, Instant)>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let failure = tokio::select! {
        biased;
        () = cancelled(cancel) => return Err(Failure::Cancelled),
        death = death(sides) => return Err(death),
        waited = over(limit) => return Err(Failure::Timeout(waited)),
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
pub(super) async fn unless_cancelled<T>(
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
pub(super) async fn cancelled(cancel: &watch::Receiver<bool>) {
    drop(cancel.clone().wait_for(|cancelled| *cancelled).await);
}

async fn death(sides: &Sides) -> Failure {
    tokio::select! {
        biased;
        gone = sides.source.gone() => Failure::SourceGone(gone),
        gone = sides.destination.gone() => Failure::DestinationGone(gone),
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
