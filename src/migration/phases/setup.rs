//! Sets up what convergence needs: capabilities and parameters, the NBD server with its exports, and a mirror for each disk.

use crate::{
    endpoint::Address,
    handover::{exchange, ownership::NotDisengaged},
    memory::{apply, tuning},
    migration::{
        Effect, Failure,
        attempt::Attempt,
        context::Context,
        pair::QemuPair,
        runtime_dir,
        work_order::{Route, WorkOrder},
    },
    progress::Side,
    qemu::reply::RunState,
    storage::{
        mirror::{
            export,
            mirror_job::{self, MirrorError},
            start_race,
        },
        model::layout::DiskPair,
    },
};
use qapi::qmp;
use std::time::Instant;
use tokio::time::timeout;

/// Sets up both sides for the migration, and the destination's NBD server.
pub(crate) async fn prepare(
    context: &Context,
    pair: &QemuPair,
    order: &WorkOrder,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    let QemuPair { source, destination } = pair;
    let (settings, report, route) = (&context.settings, &context.report, &order.route);
    let (nbd, ram) = (route.nbd(), route.ram());
    runtime_dir::make(&settings.runtime_dir, [nbd, ram])?;
    let wanted = settings.tuning(order.bitmaps);
    for process in [source, destination] {
        let side = process.name().side;
        let setup = wanted.setup(side, process.features());
        let before = apply::read(process, &setup).await?;
        attempt.log.note([Effect::Tuned { side, before }]).await?;
        let throttling = apply::set_up(process, &setup).await?;
        if side == Side::Source {
            attempt.throttling = throttling;
        }
    }
    if let Some(ceiling) = settings.bandwidth {
        // what QEMU measures under a ceiling is not what the rest of RAM will have, once the mirrors are through
        apply::set_parameters(source, &tuning::switchover_bandwidth(Some(ceiling), source.features())).await?;
    }
    // the destination waits already; `stop` takes back the autostart of a QEMU that was started without -S
    destination.act(&qmp::stop {}).await?;

    if !route.pairs.is_empty() {
        let socket = runtime_dir::socket_effect(&settings.runtime_dir, nbd);
        attempt.log.note(socket.clone().into_iter().chain([Effect::NbdServer])).await?;
        if let Err(error) = export::start_server(destination, nbd).await {
            if error.is_refusal() {
                // a server that was there before is somebody else's, and so is its socket
                for effect in [Effect::NbdServer].into_iter().chain(socket) {
                    attempt.log.undone(&effect, report).await;
                }
            }
            return Err(error.into());
        }
        context.keep_private(nbd);
        for pair in &route.pairs {
            export::add(destination, pair).await?;
        }
    }
    Ok(())
}

/// Asks, for the last time before RAM is sent, how the guest stands: copying disks can take hours, and the guest's owner may
/// have paused or resumed it meanwhile.
pub(crate) async fn look_before_memory(pair: &QemuPair, attempt: &mut Attempt) -> Result<(), Failure> {
    attempt.guest.begin_memory(&pair.source.observed());
    // what follows tells whether the source answers
    if let Ok(answer) = pair.source.ask(&qmp::query_status {}).await {
        attempt.guest.look(&answer.status);
    }
    attempt.journal_guest().await
}

/// Starts a mirror for each disk, its start proved free of lost writes. `speed` is what each may copy to begin with, bytes
/// per second.
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
    report.warn("stopped-for-mirror", format!("the guest was stopped for {} ms", stopped.elapsed().as_millis()));
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
