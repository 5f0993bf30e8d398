//! The part of a migration while the guest runs: settings, exports, the disks and the memory.

use super::{
    Effect, Failure, Plan,
    rollback::Sides,
    run::{Course, Engine, addresses},
};
use crate::{
    convergence::RamRung,
    endpoint::Address,
    handover::{exchange, ownership::DestinationCannotRun},
    memory::{postcopy, precopy, tuning},
    progress::Moment,
    qemu::{Observed, reply::MigrationStatus},
    storage::{
        export, guard,
        layout::Pair,
        mirror::{self, MirrorError},
    },
};
use qapi::qmp;
use serde_json::{Map, json};
use std::{
    future::pending,
    time::{Duration, Instant},
};

impl Engine {
    pub(super) async fn prepare(&self, sides: &Sides, plan: &Plan, course: &mut Course) -> Result<(), Failure> {
        let Sides { source, destination, .. } = sides;
        let (nbd, ram) = addresses(plan)?;
        self.settings.make_runtime_dir([nbd, ram])?;
        let mut parameters = tuning::parameters(self.settings.downtime, self.settings.bandwidth);
        let mut more = plan.capabilities().to_vec();
        if self.may_postcopy() {
            more.push(postcopy::CAPABILITY);
            // a limit comes once the guest has resumed
            parameters.insert(postcopy::BANDWIDTH.to_owned(), json!(0));
        }
        for (process, parameters) in [(source, parameters), (destination, Map::new())] {
            let side = process.name().side;
            let capabilities = tuning::capabilities(side, &more);
            let before = tuning::read(process, &capabilities, &parameters).await?;
            course.effects.push(Effect::Tuned { side, before });
            tuning::set_capabilities(process, capabilities.iter().map(|&name| (name, true))).await?;
            tuning::set_parameters(process, &parameters).await?;
        }
        // it waits already; this takes back an autostart, for a QEMU that was started without -S
        destination.act(&qmp::stop {}).await?;

        if !plan.pairs.is_empty() {
            let before = course.effects.len();
            self.note_socket(nbd, course);
            course.effects.push(Effect::NbdServer);
            if let Err(error) = export::start_server(destination, nbd).await {
                if error.is_refusal() {
                    // a server that is there already is not ours, and nor is its socket
                    course.effects.truncate(before);
                }
                return Err(error.into());
            }
            for pair in &plan.pairs {
                export::add(destination, pair).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn copy_disks(&self, sides: &Sides, plan: &Plan, course: &mut Course) -> Result<(), Failure> {
        let source = &sides.source;
        if plan.pairs.is_empty() {
            return Ok(());
        }
        course.effects.extend(plan.pairs.iter().map(|pair| Effect::Mirror(Box::new(pair.clone()))));
        let (nbd, _) = addresses(plan)?;
        let speed = self.settings.mirror_speed(plan.pairs.len());
        let mut pairs: Vec<&Pair> = plan.pairs.iter().collect();
        for attempt in 1..=guard::ATTEMPTS {
            let dirty = mirror::start(source, &pairs, nbd, speed).await?;
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
                break;
            }
        }
        if !pairs.is_empty() {
            self.start_stopped(sides, &pairs, nbd, speed, course).await?;
        }
        mirror::until_ready(source, &plan.pairs, &self.report).await?;
        if source.features().block_job_change {
            mirror::write_blocking(source, &plan.pairs).await?;
        }
        Ok(())
    }

    /// Starts mirrors with the guest stopped, for one that writes so often that no start is free of a write.
    async fn start_stopped(
        &self,
        sides: &Sides,
        pairs: &[&Pair],
        nbd: &Address,
        speed: Option<u64>,
        course: &mut Course,
    ) -> Result<(), Failure> {
        let source = &sides.source;
        let because =
            format!("the guest wrote during each of {} starts: its mirrors start with it stopped", guard::ATTEMPTS);
        self.report.action("stop-for-mirror", because);
        course.effects.push(Effect::Stopped);
        let stopped = Instant::now();
        source.act(&qmp::stop {}).await?;
        let dirty = mirror::start(source, pairs, nbd, speed).await?;
        if sides.was_running {
            exchange::resume_source(source, DestinationCannotRun::NeverContinued).await?;
        }
        course.effects.retain(|effect| *effect != Effect::Stopped);
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

    pub(super) async fn copy_memory(&self, sides: &Sides, plan: &Plan, course: &mut Course) -> Result<Moment, Failure> {
        let Sides { source, destination, .. } = sides;
        let (_, ram) = addresses(plan)?;
        self.note_socket(ram, course);
        course.effects.push(Effect::Incoming);
        if let Err(error) = precopy::listen(destination, ram).await {
            if error.is_refusal() {
                // it never listened: there is nothing to undo
                course.effects.pop();
            }
            return Err(error.into());
        }
        course.effects.push(Effect::Migrate);
        precopy::send(source, ram).await?;
        // until the controller decides on it: for tests of what follows
        let at_once = self.settings.policy.name == "postcopy-at-once";
        course.ram.postcopy = at_once;
        let postcopy = async {
            if at_once {
                let active = |seen: &Observed| seen.entered(&MigrationStatus::Active);
                source.until("active migration", Duration::from_secs(30), active).await?;
                postcopy::start(source).await?;
            }
            pending().await
        };
        tokio::select! {
            failed = postcopy => failed,
            stopped = precopy::until_pre_switchover(source, &mut course.ram, &self.report) => Ok(stopped?),
            failure = mirror::failure(source, &plan.pairs) => Err(failure.into()),
        }
    }

    /// Whether the policy lets the guest go on at the destination before all its pages are there.
    fn may_postcopy(&self) -> bool {
        self.settings.policy.ram.contains(&RamRung::Postcopy)
    }
}
