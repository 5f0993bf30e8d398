//! What ends a migration early, up to `migrate-continue`: the user, a timeout, or a QEMU that goes away or hangs.
//!
//! An interruption drops the work and names the reason. The way back undoes what the work had begun.

use super::{Failure, context::Context, deadlines, pair::QemuPair};
use std::{future::pending, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

/// How long a death may take to be seen after the command that failed because of it: a process that dies closes its
/// sockets one after the other.
const DEATH: Duration = Duration::from_millis(100);
/// How much later than the user's timeout a run is given up. The controller gives up in time, and says what was
/// missing; this is for a QEMU that does not answer the controller.
const OVERTIME: Duration = Duration::from_secs(1);
/// How long the source may leave something unanswered while its guest is to run: the guest's disks hang as QEMU does
/// then.
const STALLS: Duration = Duration::from_secs(10);

/// How long the work may take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// The user's timeout, and when it is over.
    timeout: Option<(Duration, Instant)>,
    /// The time in which the guest may stand still, and when it is over.
    switchover: Option<(Duration, Instant)>,
    /// How long the source may leave something unanswered before its main loop is taken to hang.
    hang: Option<Duration>,
}

impl Bounds {
    /// While the guest is to run.
    pub(crate) fn before_memory(context: &Context) -> Self {
        let limit = |timeout: Duration| Some((timeout, context.began.checked_add(timeout + OVERTIME)?));
        Self { timeout: context.settings.timeout.and_then(limit), switchover: None, hang: Some(STALLS) }
    }

    /// While RAM is sent: QEMU may stop the guest at any time, and hang before it can tell.
    pub(crate) fn while_memory_is_sent(context: &Context) -> Self {
        let hang = context.settings.switchover_limit().mul_f64(deadlines::HANGS).min(STALLS);
        Self { hang: Some(hang), ..Self::before_memory(context) }
    }

    /// While the guest stands still before `migrate-continue`; `left` is what it may still take.
    pub(crate) fn for_the_switchover(context: &Context, left: Duration) -> Self {
        let switchover = Some((left, Instant::now() + left));
        Self { timeout: None, switchover, ..Self::while_memory_is_sent(context) }
    }
}

/// Ends work that is done with the two QEMUs.
pub(crate) struct Interruption<'a> {
    context: &'a Context,
    pair: &'a QemuPair,
}

impl<'a> Interruption<'a> {
    pub(crate) fn new(context: &'a Context, pair: &'a QemuPair) -> Self {
        Self { context, pair }
    }

    /// Does the work unless something ends it first.
    pub(crate) async fn unless<T>(
        &self,
        bounds: Bounds,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let pair = self.pair;
        let failure = tokio::select! {
            biased;
            () = cancelled(&self.context.cancel) => return Err(Failure::Cancelled),
            death = death(pair) => return Err(death),
            waited = over(bounds.timeout) => return Err(Failure::Timeout(waited)),
            waited = over(bounds.switchover) => return Err(Failure::SwitchoverTimeout(waited)),
            waited = hang(pair, bounds.hang) => return Err(Failure::Hangs { at: pair.source.name().clone(), waited }),
            done = work => match done {
                Ok(done) => return Ok(done),
                // the controller itself gave up, so no death explains it, and waiting for one would prolong a pause
                Err(failure @ Failure::GaveUp { .. }) => return Err(failure),
                Err(failure) => failure,
            },
        };
        // a death that makes a command fail is the better reason than the command's failure
        Err(timeout(DEATH, death(pair)).await.unwrap_or(failure))
    }
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

async fn death(pair: &QemuPair) -> Failure {
    tokio::select! {
        biased;
        gone = pair.source.gone() => Failure::SourceGone(gone),
        gone = pair.destination.gone() => Failure::DestinationGone(gone),
    }
}

async fn hang(pair: &QemuPair, patience: Option<Duration>) -> Duration {
    match patience {
        Some(patience) => {
            pair.source.unanswered(patience).await;
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
