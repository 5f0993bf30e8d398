//! The start of RAM's migration: the last look at the guest before it, `migrate-incoming` and `migrate`.

use crate::{
    memory::precopy,
    migration::{Effect, Failure, attempt::Attempt, context::Context, pair::QemuPair, runtime_dir, work_order::Route},
};
use qapi::qmp;

/// Asks, for the last time before RAM is sent, how the guest stands: copying disks can take hours, and the guest's
/// owner may have paused or resumed it meanwhile.
pub(crate) async fn look_before_memory(qemus: &QemuPair, attempt: &mut Attempt) -> Result<(), Failure> {
    attempt.guest.begin_memory(&qemus.source.observed());
    // a source that does not answer is found out by the commands that follow
    if let Ok(answer) = qemus.source.ask(&qmp::query_status {}).await {
        attempt.guest.look(&answer.status);
    }
    attempt.journal_guest().await
}

/// Starts to send RAM.
pub(super) async fn start_memory(
    context: &Context,
    qemus: &QemuPair,
    route: &Route,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    let ram = route.ram();
    let socket = runtime_dir::socket_effect(&context.settings.runtime_dir, ram);
    attempt.log.note(socket.into_iter().chain([Effect::Incoming])).await?;
    if let Err(error) = precopy::listen(&qemus.destination, ram).await {
        if error.is_refusal() {
            // a destination that refused never listened: there is nothing to undo
            attempt.log.undone(&Effect::Incoming, &context.report).await;
        }
        return Err(error.into());
    }
    context.keep_private(ram);
    attempt.log.note([Effect::Migrate]).await?;
    precopy::send(&qemus.source, ram).await?;
    Ok(())
}
