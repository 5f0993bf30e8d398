//! Postcopy, once the guest runs on the destination: its pages are fetched, over a new channel where the old one
//! breaks.
//!
//! Each side has a part of the guest. Nothing interrupts this phase, neither side may be ended, and the source may
//! never resume.

use crate::{
    endpoint::Address,
    memory::postcopy::{self, PostcopyError},
    migration::{
        Failure, attempt::Attempt, context::Context, interrupt::cancelled, pair::QemuPair, runtime_dir,
        work_order::Route,
    },
    progress::describe,
};
use qapi::qmp;
use std::time::Duration;
use tokio::time::sleep;

/// How often a broken channel is made anew, as long as nothing is sent in between: for more than six minutes. No person
/// could do it as well, for a destination whose main loop hangs negotiates out-of-band commands with no new client.
const ATTEMPTS: u32 = 30;
/// How long to wait before the first new channel; each later wait is twice as long, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
/// The longest wait between two channels.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Waits until all of the guest's pages are on the destination.
pub(crate) async fn fetch(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    let asked_to_cancel = async {
        cancelled(&context.cancel).await;
        let message = "the guest runs on the destination and part of its memory is still on the source: \
                       there is no way back, and the rest is waited for";
        context.report.warn("too-late-to-cancel", message);
        std::future::pending().await
    };
    tokio::select! {
        biased;
        fetched = fetch_all(context, pair, route, attempt) => fetched,
        never = asked_to_cancel => never,
    }
}

async fn fetch_all(context: &Context, pair: &QemuPair, route: &Route, attempt: &mut Attempt) -> Result<(), Failure> {
    let QemuPair { source, destination } = pair;
    let report = &context.report;
    let first = route.ram();
    if let Some(ceiling) = context.settings.bandwidth {
        if let Err(error) = postcopy::limit(source, ceiling).await {
            report.warn("postcopy-unlimited", describe(&error));
        }
    }
    let (mut tries, mut channels, mut listening) = (0u32, 0u32, None);
    loop {
        let sent = attempt.ram.bytes;
        let broken = match postcopy::until_completed(source, destination, &mut attempt.ram, report).await {
            Err(error @ PostcopyError::Broken(_)) => error,
            Err(error @ PostcopyError::Ended { .. }) => {
                // QEMU may resume a guest that runs elsewhere; to stop it is safe whatever QEMU did
                drop(source.act(&qmp::stop {}).await);
                return Err(error.into());
            }
            other => {
                other?;
                attempt.ram.postcopy_blocktime = postcopy::blocktime(destination).await;
                return Ok(());
            }
        };
        if attempt.ram.bytes > sent {
            tries = 0;
        }
        if tries == ATTEMPTS {
            return Err(broken.into());
        }
        report.warn("postcopy-paused", format!("{}: the guest waits for its pages", describe(&broken)));
        sleep(PAUSE.saturating_mul(2u32.saturating_pow(tries)).min(LONGEST_PAUSE)).await;
        tries += 1;
        channels += 1;
        let address = runtime_dir::another_socket(&context.settings.runtime_dir, first, channels);
        report.action("recover-postcopy", format!("a new channel over {address}, try {tries} of {ATTEMPTS}"));
        if let Err(error) = make_channel(context, pair, address, &mut listening, attempt).await {
            report.warn("postcopy-paused", describe(&error));
        }
    }
}

/// Makes the channel anew. A destination that still listens since the last try refuses to do so a second time.
async fn make_channel(
    context: &Context,
    pair: &QemuPair,
    address: Address,
    listening: &mut Option<Address>,
    attempt: &mut Attempt,
) -> Result<(), PostcopyError> {
    let QemuPair { source, destination } = pair;
    postcopy::pause(source, destination).await?;
    let socket = runtime_dir::socket_effect(&context.settings.runtime_dir, &address);
    if let Err(error) = attempt.log.note_in_time(socket).await {
        // the guest waits for its pages, and all that a record leaves that is lost, or late, is a file
        context.report.warn("journal", describe(&error));
    }
    let address = match (postcopy::listen(destination, &address).await, &*listening) {
        (Ok(()), _) => listening.insert(address),
        (Err(error), Some(before)) if error.is_refusal() => before,
        (Err(error), _) => return Err(error.into()),
    };
    context.keep_private(address);
    Ok(postcopy::resume(source, address).await?)
}
