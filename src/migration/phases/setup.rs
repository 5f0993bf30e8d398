//! Sets up what convergence needs: capabilities and parameters, and the NBD server with an export for each disk.

use crate::{
    memory::{apply, tuning},
    migration::{
        Effect, Failure, attempt::Attempt, context::Context, pair::QemuPair, runtime_dir, work_order::WorkOrder,
    },
    progress::Side,
    storage::mirror::export,
};
use qapi::qmp;

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
        let setup = wanted.for_side(side, process.features());
        let before = apply::read(process, &setup).await?;
        attempt.log.note([Effect::Tuned { side, before }]).await?;
        let throttling = apply::set_up(process, &setup).await?;
        if side == Side::Source {
            attempt.throttling = throttling;
        }
    }
    if let Some(ceiling) = settings.bandwidth {
        // the bandwidth that QEMU measures beside the mirrors is less than the rest of RAM will have without them
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
