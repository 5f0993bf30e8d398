//! Starts the mirrors, and proves of each that no write was lost while it started.

use super::guest_watch::refuse_halted;
use crate::{
    convergence::OverBudget,
    endpoint::Address,
    handover::{exchange, ownership::NotDisengaged},
    migration::{Effect, Failure, attempt::Attempt, context::Context, pair::QemuPair, work_order::Route},
    progress::{GuestPause, PauseCause},
    storage::{
        mirror::{
            mirror_job::{self, MirrorError},
            start_race,
        },
        model::layout::DiskPair,
    },
};
use qapi::qmp;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// Starts a mirror for each disk, its start proved free of lost writes. `speed` is what each may copy to begin with,
/// bytes per second.
pub(crate) async fn start_mirrors(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    speed: impl Fn(&DiskPair) -> Option<u64>,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    attempt.log.note(route.pairs.iter().map(|pair| Effect::Mirror(pair.names.job.clone()))).await?;
    let nbd = route.nbd();
    let mut pairs: Vec<&DiskPair> = route.pairs.iter().collect();
    let began = Instant::now();
    let mut quickest = Duration::MAX;
    let mut tries = 0;
    while tries < start_race::ATTEMPTS && began.elapsed() < start_race::PATIENCE {
        tries += 1;
        let starts = Instant::now();
        let dirty = mirror_job::start(&pair.source, &pairs, nbd, &speed).await?;
        quickest = quickest.min(starts.elapsed());
        for (pair, bytes) in &dirty {
            let because = format!(
                "{bytes} bytes were written to {} while its mirror started (attempt {tries} of {}), \
                 and QEMU 8.0 to 10.2.1 can lose such a write",
                pair.source.name(),
                start_race::ATTEMPTS
            );
            context.report.action("restart-mirror", because);
        }
        pairs = dirty.into_iter().map(|(pair, _)| pair).collect();
        if pairs.is_empty() {
            return Ok(());
        }
    }
    start_with_guest_stopped(context, pair, &pairs, nbd, speed, StartTries { tries, quickest }, attempt).await
}

/// The starts with the guest running, none of which was free of a write.
#[derive(Debug, Clone, Copy)]
struct StartTries {
    tries: u32,
    quickest: Duration,
}

/// Starts mirrors with the guest stopped, for a guest that writes so often that no start is free of a write. The stop
/// is a pause like any other: it keeps the budget, or is not made.
async fn start_with_guest_stopped(
    context: &Context,
    pair: &QemuPair,
    pairs: &[&DiskPair],
    nbd: &Address,
    speed: impl Fn(&DiskPair) -> Option<u64>,
    StartTries { tries, quickest }: StartTries,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    let (source, report) = (&pair.source, &context.report);
    let settings = &context.settings;
    let longest = settings.policy.longest_blackout(settings.downtime, settings.strict_budget);
    let over = |ms: u128, what: &str| Failure::GaveUp {
        code: OverBudget::CODE,
        because: format!("the guest wrote during each of {tries} starts of its mirrors, and {what}"),
        needed: format!(
            "a budget of {ms} ms, or a QEMU on the source that cannot lose such a write (10.0.13, 10.2.2, 11.0)"
        ),
    };
    if quickest > longest {
        let ms = quickest.as_millis();
        return Err(over(ms, &format!("a start takes {ms} ms, for which the guest would be stopped")));
    }
    let because = format!("the guest wrote during each of {tries} starts: its mirrors start with the guest stopped");
    report.action("stop-for-mirror", because);
    // The guest writes, so its owner may have resumed it since the last look. The journal must know before the stop.
    attempt.guest.look(&source.ask(&qmp::query_status {}).await?.status);
    attempt.journal_guest().await?;
    refuse_halted(attempt)?;
    attempt.log.note([Effect::Stopped]).await?;
    // QEMU answers in the order of the commands: a guest that does not run here was stopped by its owner or by itself,
    // says no second STOP for the engine's `stop`, and must stay as it stands.
    let (asked, told) = (source.ask(&qmp::query_status {}), source.act(&qmp::stop {}));
    let stopped = Instant::now();
    let found = asked.await?.status;
    told.await?;
    attempt.guest.look(&found);
    attempt.journal_guest().await?;
    refuse_halted(attempt)?;
    let resumed = source.observed().resumed;
    let mut is_stopped_by_engine = found.is_live();
    let limit = longest.min(settings.switchover_limit() / 2);
    let left = limit.saturating_sub(stopped.elapsed());
    let started = timeout(left, mirror_job::start(source, pairs, nbd, speed)).await;
    let started = started.map_err(|_| {
        let ms = limit.as_millis();
        over(ms * 2, &format!("with the guest stopped a start took more than {ms} ms"))
    });
    if source.observed().resumed != resumed {
        // The guest's owner has resumed the guest meanwhile: if it stands still, its owner has stopped it again.
        let now = source.ask(&qmp::query_status {}).await?.status;
        attempt.guest.look(&now);
        attempt.journal_guest().await?;
        is_stopped_by_engine &= now.is_live();
    }
    // also after a start that took too long: the guest stands still for no longer than the budget
    if is_stopped_by_engine && !matches!(started, Ok(Err(_))) {
        let before = attempt.before_continue.as_ref().ok_or(NotDisengaged::Continued)?;
        exchange::resume_source(source, before.destination_cannot_run()).await?;
        let pause = stopped.elapsed().as_secs_f64() * 1000.0;
        attempt.pauses.push(GuestPause::new(PauseCause::MirrorStart, pause));
        report.warn("stopped-for-mirror", format!("the guest was stopped for {pause:.0} ms"));
    }
    let dirty = started??;
    attempt.log.undone(&Effect::Stopped, report).await;
    match dirty.first() {
        None => Ok(()),
        Some((pair, bytes)) => Err(Failure::Mirror(MirrorError::Failed {
            disk: pair.source.name().to_owned(),
            error: format!(
                "{bytes} bytes were written while its mirror started with the guest stopped: something else writes to it"
            ),
        })),
    }
}
