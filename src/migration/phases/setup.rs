//! Sets up what the copying of disks needs: the NBD server, with an export for each disk.
//!
//! Migration capabilities and parameters are none of it. They would bind whatever migration somebody else starts while
//! disks are copied, a snapshot to a file above all.

use super::{second_look::require_free, switchover::keep_waiting};
use crate::{
    endpoint::{Address, DialError, dial},
    memory::{apply, tuning::SideTuning},
    migration::{
        Effect, Failure, attempt::Attempt, context::Context, pair::QemuPair, runtime_dir, work_order::WorkOrder,
    },
    qemu::{Process, ProcessError},
    storage::mirror::export,
};
use serde_json::Map;
use std::time::Duration;

/// How long the host of an NBD server has to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Tries the capabilities that were asked for, and starts the destination's NBD server.
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
    for process in [source, destination] {
        rehearse(context, process, order, attempt).await?;
    }
    // `stop` takes back the autostart of a QEMU that was started without -S. It must not meet a guest that another
    // engine has moved there since the checks.
    require_free(destination).await?;
    keep_waiting(destination).await?;

    if !route.pairs.is_empty() {
        let socket = runtime_dir::socket_effect(&settings.runtime_dir, nbd);
        attempt.log.note(socket.clone().into_iter().chain([Effect::NbdServer])).await?;
        if let Err(error) = export::start_server(destination, nbd, Some(route.pairs.len())).await {
            if error.is_refusal() {
                // a server that was there before is somebody else's, and so is its socket
                for effect in [Effect::NbdServer].into_iter().chain(socket) {
                    attempt.log.undone(&effect, report).await;
                }
            }
            return Err(error.into());
        }
        context.keep_private(nbd);
        require_answer(order, nbd).await?;
        for pair in &route.pairs {
            export::add(destination, pair).await?;
        }
        require_free(destination).await?;
    }
    Ok(())
}

/// Requires that the NBD server answers where the source's QEMU reaches what the engine reaches: a QEMU that opens an
/// address at which packets are dropped keeps its guest standing until it gives up.
async fn require_answer(order: &WorkOrder, nbd: &Address) -> Result<(), Failure> {
    let Address::Tcp { .. } = nbd else { return Ok(()) };
    if !order.proved.source.process.shares_network {
        return Ok(());
    }
    match dial(nbd, ANSWER).await {
        Err(DialError::TimedOut { address, waited }) => Err(Failure::NoAnswerFrom { address, waited }),
        // QEMU tells of any other error at once, in its own words
        _ => Ok(()),
    }
}

/// Tries whether a side takes the capabilities that the settings ask for. They are put back at once: what a migration
/// needs is set right before `migrate`, see [`memory_start`](super::memory_start).
async fn rehearse(
    context: &Context,
    process: &Process,
    order: &WorkOrder,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    let tuning = order.tuning(&context.settings);
    if tuning.asked_for().is_empty() {
        return Ok(());
    }
    let side = process.name().side;
    let wanted = SideTuning { parameters: Map::new(), ..tuning.for_side(side, process.features()) };
    let before = apply::read_capabilities(process, &wanted).await?;
    let effect = Effect::Tuned { side, before: before.clone() };
    attempt.log.note([effect.clone()]).await?;
    let rehearsed = apply::rehearse(process, &wanted, &before).await;
    if rehearsed.as_ref().map_or_else(ProcessError::is_refusal, |()| true) {
        attempt.log.undone(&effect, &context.report).await;
    }
    Ok(rehearsed?)
}
