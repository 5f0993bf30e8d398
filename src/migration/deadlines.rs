//! How the time of a switchover is divided: what each step may take, so that enough is left for the way back.
//!
//! The whole is [`Settings::switchover_limit`](super::Settings::switchover_limit), counted from the moment when
//! QEMU stops the guest's vCPUs, which can be long before its STOP.

use super::{context::Context, guest::GuestIntent};
use crate::qemu::Process;
use std::time::Duration;
use tokio::time::Instant;

/// How long the source may leave something unanswered while its guest is to run: the guest's disks hang as QEMU does
/// then.
pub(crate) const STALLS: Duration = Duration::from_secs(10);
/// The part after which a source that answers nothing is taken to hang.
pub(crate) const HANGS: f64 = 0.25;
/// The part by which every mirror must have ended.
pub(crate) const SETTLED: f64 = 0.35;
/// The part by which every export must be closed and `migrate-continue` sent.
pub(crate) const DISENGAGED: f64 = 0.4;
/// The part by which the destination must have the guest.
pub(crate) const ARRIVED: f64 = 0.45;
/// The part by which the guest must run on the destination.
pub(crate) const STARTED: f64 = 0.55;

/// What is left of a part of the switchover's time, counted from the guest's stop. A guest that its owner paused has no
/// time that runs out, and may have stood for hours.
pub(crate) fn left(context: &Context, source: &Process, guest: &GuestIntent, part: f64) -> Duration {
    let stop = source.observed().stood_since().filter(|_| guest.wants_running());
    let stood = stop.map_or(Duration::ZERO, |stop| stop.elapsed());
    context.settings.switchover_limit().mul_f64(part).saturating_sub(stood)
}

/// How long a source may leave something unanswered once QEMU may have stopped its guest, until its main loop is taken
/// to hang in what it waits for.
pub(crate) fn patience(context: &Context) -> Duration {
    context.settings.switchover_limit().mul_f64(HANGS).min(STALLS)
}

/// When that part is over.
pub(crate) fn by(context: &Context, source: &Process, guest: &GuestIntent, part: f64) -> Instant {
    Instant::now() + left(context, source, guest, part)
}
