//! Puts a side out of the way that does not answer: the last resort, and only where someone else decided that it is safe.
//!
//! It must never take silence for success: a process is fenced when the kernel says that it has ended, or the user's command
//! that it cannot run.

use crate::migration::{
    engine::Context,
    way_back::rollback::{QUIT, QemuPair},
    work_order::Route,
};
use crate::{
    handover::{
        exchange,
        ownership::{FencedSide, ProcessEnded},
        watchdog,
    },
    progress::Reporter,
    qemu::Process,
};
use std::process::Stdio;
use tokio::{process::Command, time::timeout};

/// The part of the switchover's time that a fence command may take.
const FENCED: f64 = 0.3;

impl Context {
    /// Makes sure that a side cannot run the guest: ends its process where it is one of this host, and asks the user's
    /// command elsewhere. `None` where it is not proved.
    pub(crate) async fn fence(&self, process: &Process, why: &str) -> Option<FencedSide> {
        let report = &self.report;
        if let Some(ended) = kill(process, why, report).await {
            return ended.map(FencedSide::by_kill);
        }
        let command = self.settings.fence_command.as_ref()?;
        let name = process.name();
        report.action("fence", format!("{name}: {} is run: {why}", command.display()));
        let mut command = Command::new(command);
        command.arg(name.side.as_str()).arg(&name.address).arg(why).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // an interrupt in the terminal is for us
        command.process_group(0);
        let limit = self.settings.switchover_limit().mul_f64(FENCED);
        let Ok(ended) = timeout(limit, command.status()).await else {
            report.warn("not-fenced", format!("{name}: the fence command did not end within {limit:?}"));
            return None;
        };
        match ended {
            Ok(status) => {
                let fenced = FencedSide::by_command(name.side, status);
                if fenced.is_none() {
                    report.warn("not-fenced", format!("{name}: the fence command ended with {status}"));
                }
                fenced
            }
            Err(error) => {
                report.warn("not-fenced", format!("{name}: the fence command could not be run: {error}"));
                None
            }
        }
    }

    /// Frees a source that hangs, before `migrate-continue`: by ending its connections out of band, and where that does
    /// nothing, as while it connects to an NBD server, by fencing the destination that it waits for.
    pub(crate) async fn free(&self, sides: &QemuPair, route: &Route) {
        let QemuPair { source, destination, .. } = sides;
        self.yank(source, route).await;
        let still = !source.is_gone() && !watchdog::answers(source).await;
        if still && !destination.is_gone() && !watchdog::answers(destination).await {
            self.fence(destination, "it does not answer, and the source hangs in what it waits for of it").await;
        }
    }

    /// Ends what the source has open for this run, out of band.
    pub(crate) async fn yank(&self, source: &Process, route: &Route) {
        let nodes = route.pairs.iter().map(|pair| pair.names.nbd.as_str());
        for freed in watchdog::free(source, nodes, true).await {
            self.report.action("yank", format!("{}: its {freed} is ended, for nothing comes of it", source.name()));
        }
    }
}

/// Ends a process of this host, and gives the proof that the process has ended, if there is one; `None` where the process is
/// not known to be one of this host.
pub(crate) async fn kill(process: &Process, why: &str, report: &Reporter) -> Option<Option<ProcessEnded>> {
    let killed = process.kill()?;
    report.action("fence", format!("{}: its process is ended: {why}", process.name()));
    Some(match killed {
        Ok(()) => exchange::prove_ended(process, QUIT).await,
        Err(error) => {
            report.warn("not-fenced", format!("{}: {error}", process.name()));
            None
        }
    })
}
