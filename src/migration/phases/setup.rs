//! What is set up before anything converges: settings, exports, and a mirror for each disk.

use crate::migration::{
    Effect, Failure,
    engine::{Attempt, Context},
    phases::convergence::Converge,
    way_back::rollback::QemuPair,
    work_order::{Route, WorkOrder},
};
use crate::{
    endpoint::Address,
    handover::{exchange, ownership::NotDisengaged},
    memory::{apply, tuning},
    progress::Side,
    qemu::reply::RunState,
    storage::{
        export, guard,
        layout::Pair,
        mirror::{self, MirrorError},
    },
};
use qapi::qmp;
use std::time::Instant;
use tokio::time::timeout;

impl Context {
    pub(crate) async fn prepare(
        &self,
        sides: &QemuPair,
        order: &WorkOrder,
        course: &mut Attempt,
    ) -> Result<(), Failure> {
        let route = &order.route;
        let QemuPair { source, destination, .. } = sides;
        let (nbd, ram) = (route.nbd(), route.ram());
        self.settings.make_runtime_dir([nbd, ram])?;
        let wanted = self.settings.tuning(order.bitmaps);
        for process in [source, destination] {
            let side = process.name().side;
            let setup = wanted.setup(side, process.features());
            let before = apply::read(process, &setup).await?;
            course.log.note([Effect::Tuned { side, before }]).await?;
            let throttling = apply::set_up(process, &setup).await?;
            if side == Side::Source {
                course.throttling = throttling;
            }
        }
        if let Some(ceiling) = self.settings.bandwidth {
            // what QEMU measures under a ceiling is not what the rest of RAM will have, once the mirrors are through
            apply::set_parameters(source, &tuning::switchover_bandwidth(Some(ceiling), source.features())).await?;
        }
        // it waits already; this takes back an autostart, for a QEMU that was started without -S
        destination.act(&qmp::stop {}).await?;

        if !route.pairs.is_empty() {
            let socket = self.socket(nbd);
            course.log.note(socket.clone().into_iter().chain([Effect::NbdServer])).await?;
            if let Err(error) = export::start_server(destination, nbd).await {
                if error.is_refusal() {
                    // a server that is there already is not ours, and nor is its socket
                    for effect in [Effect::NbdServer].into_iter().chain(socket) {
                        course.log.undone(&effect, &self.report).await;
                    }
                }
                return Err(error.into());
            }
            self.settings.keep_private(nbd);
            for pair in &route.pairs {
                export::add(destination, pair).await?;
            }
        }
        Ok(())
    }

    /// Starts a mirror for each disk, its start proved free of lost writes.
    pub(crate) async fn start_mirrors(
        &self,
        sides: &QemuPair,
        converge: &Converge<'_>,
        route: &Route,
        course: &mut Attempt,
    ) -> Result<(), Failure> {
        let source = &sides.source;
        course.log.note(route.pairs.iter().map(|pair| Effect::Mirror(pair.names.job.clone()))).await?;
        let nbd = route.nbd();
        let mut pairs: Vec<&Pair> = route.pairs.iter().collect();
        for attempt in 1..=guard::ATTEMPTS {
            let dirty = mirror::start(source, &pairs, nbd, |pair| converge.speed(pair)).await?;
            for (pair, bytes) in &dirty {
                let because = format!(
                    "{bytes} bytes were written to {} while its mirror started (attempt {attempt} of {}), \
                     and QEMU 8.0 to 10.2.1 can lose such a write",
                    pair.source.name(),
                    guard::ATTEMPTS
                );
                self.report.action("restart-mirror", because);
            }
            pairs = dirty.into_iter().map(|(pair, _)| pair).collect();
            if pairs.is_empty() {
                return Ok(());
            }
        }
        self.start_stopped(sides, &pairs, nbd, converge, course).await
    }

    /// Starts mirrors with the guest stopped, for one that writes so often that no start is free of a write.
    async fn start_stopped(
        &self,
        sides: &QemuPair,
        pairs: &[&Pair],
        nbd: &Address,
        converge: &Converge<'_>,
        course: &mut Attempt,
    ) -> Result<(), Failure> {
        let source = &sides.source;
        let because =
            format!("the guest wrote during each of {} starts: its mirrors start with it stopped", guard::ATTEMPTS);
        self.report.action("stop-for-mirror", because);
        // its owner may have resumed it since it was looked at: it writes
        let runs = source.ask(&qmp::query_status {}).await?.status == RunState::Running;
        if runs && !sides.was_running {
            course.note_resume().await?;
        }
        course.log.note([Effect::Stopped]).await?;
        let stopped = Instant::now();
        source.act(&qmp::stop {}).await?;
        let limit = self.settings.switchover_limit() / 2;
        let started = timeout(limit, mirror::start(source, pairs, nbd, |pair| converge.speed(pair)));
        let dirty = started.await.map_err(|_| Failure::SwitchoverTimeout(limit))??;
        if runs {
            let before = course.before_continue.as_ref().ok_or(NotDisengaged::Continued)?;
            exchange::resume_source(source, before.destination_cannot_run()).await?;
        }
        course.log.undone(&Effect::Stopped, &self.report).await;
        self.report
            .warn("stopped-for-mirror", format!("the guest was stopped for {} ms", stopped.elapsed().as_millis()));
        match dirty.first() {
            None => Ok(()),
            Some((pair, bytes)) => Err(Failure::Mirror(MirrorError::Failed {
                disk: pair.source.name().to_owned(),
                error: format!(
                    "{bytes} bytes were written while it started with the guest stopped: something else writes to it"
                ),
            })),
        }
    }
}
