//! What ends a migration early, up to `migrate-continue`: the user, a timeout, or a QEMU that goes away or hangs.
//!
//! An interruption drops the work and names the reason. The way back undoes what the work had begun.

use super::{Failure, context::Context, deadlines, pair::QemuPair};
use crate::{handover::watchdog, qemu::Observed};
use qapi::qmp;
use std::{future::pending, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

/// How long a death may take to be seen after the command that failed because of it: a process that dies closes its
/// sockets one after the other.
const DEATH: Duration = Duration::from_millis(100);
/// How much later than the user's timeout a run is given up. The controller gives up in time, and says what was
/// missing; this is for a QEMU that does not answer the controller.
const OVERTIME: Duration = Duration::from_secs(1);

/// The time between two looks at the destination while the source is silent.
const AGAIN: Duration = Duration::from_millis(200);
/// How often QEMU is asked for the run state that an event has announced, and how long after the last time.
const HALTS: u32 = 20;
const HALT: Duration = Duration::from_millis(5);

/// How long the work may take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// The user's timeout, and when it is over.
    timeout: Option<(Duration, Instant)>,
    /// The time in which the guest may stand still, and when it is over.
    switchover: Option<(Duration, Instant)>,
    /// How long the source may leave something unanswered.
    silence: Option<SilenceBounds>,
    /// Whether a guest that stops by itself ends the work at once.
    halt: bool,
}

/// How long the source may leave something unanswered.
#[derive(Debug, Clone, Copy)]
struct SilenceBounds {
    /// The time after which its main loop is taken to hang in what it waits for of the destination, unless the
    /// destination answers.
    patience: Duration,
    /// The longest time, whatever the destination answers.
    longest: Duration,
}

impl SilenceBounds {
    /// Before QEMU may stop the guest. A QEMU that hangs stops the guest at its next access to a device.
    const WHILE_THE_GUEST_RUNS: Self = Self { patience: deadlines::STALLS, longest: deadlines::STALLS };
}

impl Bounds {
    /// While the guest is to run.
    pub(crate) fn before_memory(context: &Context) -> Self {
        let limit = |timeout: Duration| Some((timeout, context.began.checked_add(timeout + OVERTIME)?));
        Self {
            timeout: context.settings.timeout.and_then(limit),
            switchover: None,
            silence: Some(SilenceBounds::WHILE_THE_GUEST_RUNS),
            halt: true,
        }
    }

    /// While RAM is sent: QEMU may stop the guest at any time, and hang before it can tell.
    pub(crate) fn while_memory_is_sent(context: &Context) -> Self {
        let part = |part: f64| context.settings.switchover_limit().mul_f64(part);
        let patience = deadlines::patience(context);
        let silence = SilenceBounds { patience, longest: part(deadlines::DISENGAGED).max(patience) };
        // the loop that sends RAM follows the guest itself
        Self { silence: Some(silence), halt: false, ..Self::before_memory(context) }
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
        // A question to the source must not fail before its silence is judged.
        let _given = bounds.silence.map(|bounds| pair.source.grace.give(bounds.longest + AGAIN));
        let failure = tokio::select! {
            biased;
            () = cancelled(&self.context.cancel) => return Err(Failure::Cancelled),
            death = death(pair) => return Err(death),
            waited = over(bounds.timeout) => return Err(Failure::Timeout(waited)),
            waited = over(bounds.switchover) => return Err(self.late(bounds, waited).await),
            failure = silence(pair, bounds.silence) => return Err(failure),
            failure = halt(pair), if bounds.halt => return Err(failure),
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

impl Interruption<'_> {
    /// Why the guest was not passed on in time. A source that is silent then, for so long that a destination which does
    /// not answer would have been found out, waits for disks.
    async fn late(&self, bounds: Bounds, waited: Duration) -> Failure {
        let source = &self.pair.source;
        let patience = bounds.silence.map_or(Duration::MAX, |bounds| bounds.patience);
        match source.has_left_unanswered(patience).await {
            true => Failure::Flushes { at: source.name().clone(), waited: patience },
            false => Failure::SwitchoverTimeout(waited),
        }
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

/// Waits until the source has been silent for too long.
///
/// A source whose main loop stands still waits either for the destination's NBD server, or for its own disks: QEMU
/// drains and flushes them when it stops the guest. A destination that answers serves NBD as well, so a source beside
/// such a destination is given the time that the user allows for the switchover.
async fn silence(pair: &QemuPair, bounds: Option<SilenceBounds>) -> Failure {
    let Some(SilenceBounds { patience, longest }) = bounds else { return pending().await };
    let at = || pair.source.name().clone();
    loop {
        pair.source.unanswered(patience).await;
        if longest <= patience || !watchdog::answers(&pair.destination).await {
            return Failure::Hangs { at: at(), waited: patience };
        }
        tokio::select! {
            biased;
            () = pair.source.unanswered(longest) => return Failure::Flushes { at: at(), waited: longest },
            () = sleep(AGAIN) => {}
        }
    }
}

/// Waits until the guest has stopped by itself. An event says so, and the answer that follows counts.
async fn halt(pair: &QemuPair) -> Failure {
    let mut watch = pair.source.watch();
    let mut told = None;
    loop {
        let next = |seen: &Observed| seen.halts_as().is_some() && seen.halted != told;
        let Ok(seen) = watch.wait_for(next).await.map(|seen| seen.halted.clone()) else { return pending().await };
        told = seen;
        let expected = told.as_ref().map(|halt| &halt.run);
        // QEMU stops the guest a moment after the event
        for _ in 0..HALTS {
            match pair.source.ask(&qmp::query_status {}).await {
                Ok(answer) if Some(&answer.status) == expected => return Failure::GuestHalted(answer.status),
                Ok(_) => sleep(HALT).await,
                // a QEMU that is about to end does not answer
                Err(_) => break,
            }
        }
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
