//! Starts the mirrors, and proves of each that no write was lost while it started.

use crate::{
    endpoint::Address,
    handover::{exchange, ownership::NotDisengaged},
    migration::{Effect, Failure, attempt::Attempt, context::Context, pair::QemuPair, work_order::Route},
    progress::{GuestPause, PauseCause},
    qemu::reply::RunState,
    storage::{
        mirror::{
            mirror_job::{self, MirrorError},
            start_race,
        },
        model::layout::DiskPair,
    },
};
use qapi::qmp;
use std::time::Instant;
use tokio::time::timeout;

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
    for number in 1..=start_race::ATTEMPTS {
        let dirty = mirror_job::start(&pair.source, &pairs, nbd, &speed).await?;
        for (pair, bytes) in &dirty {
            let because = format!(
                "{bytes} bytes were written to {} while its mirror started (attempt {number} of {}), \
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
    start_with_guest_stopped(context, pair, &pairs, nbd, speed, attempt).await
}

/// Starts mirrors with the guest stopped, for a guest that writes so often that no start is free of a write.
async fn start_with_guest_stopped(
    context: &Context,
    pair: &QemuPair,
    pairs: &[&DiskPair],
    nbd: &Address,
    speed: impl Fn(&DiskPair) -> Option<u64>,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    let (source, report) = (&pair.source, &context.report);
    let because = format!(
        "the guest wrote during each of {} starts: its mirrors start with the guest stopped",
        start_race::ATTEMPTS
    );
    report.action("stop-for-mirror", because);
    // the guest writes, so its owner may have resumed it since it was last looked at
    let runs = source.ask(&qmp::query_status {}).await?.status == RunState::Running;
    if runs {
        attempt.guest.note_resume();
        attempt.journal_guest().await?;
    }
    attempt.log.note([Effect::Stopped]).await?;
    let stopped = Instant::now();
    source.act(&qmp::stop {}).await?;
    let limit = context.settings.switchover_limit() / 2;
    let started = timeout(limit, mirror_job::start(source, pairs, nbd, speed));
    let dirty = started.await.map_err(|_| Failure::SwitchoverTimeout(limit))??;
    if runs {
        let before = attempt.before_continue.as_ref().ok_or(NotDisengaged::Continued)?;
        exchange::resume_source(source, before.destination_cannot_run()).await?;
    }
    attempt.log.undone(&Effect::Stopped, report).await;
    if runs {
        let pause = stopped.elapsed().as_secs_f64() * 1000.0;
        attempt.pauses.push(GuestPause::new(PauseCause::MirrorStart, pause));
        report.warn("stopped-for-mirror", format!("the guest was stopped for {pause:.0} ms"));
    }
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
