//! What postcopy leaves to be done once the guest runs on the destination: its pages are fetched, over a new channel where
//! the old one breaks.
//!
//! Nothing interrupts it: each side has a part of the guest. It must never end one of them, and never resume the source.

use crate::migration::{
    Failure,
    engine::{Attempt, Context},
    interrupt::cancelled,
    way_back::rollback::QemuPair,
    work_order::Route,
};
use crate::{
    endpoint::Address,
    memory::postcopy::{self, PostcopyError},
    progress::describe,
};
use qapi::qmp;
use std::{path::PathBuf, time::Duration};
use tokio::time::sleep;

/// How often a broken channel is made anew, as long as nothing is sent in between: for more than six minutes. Nobody else
/// can do it as well, for a destination whose main loop hangs negotiates out-of-band commands with no new client.
const ATTEMPTS: u32 = 30;
/// How long the first of them is waited for; each later one takes twice as long, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
/// The longest wait between two of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

impl Context {
    /// Waits until all of the guest's pages are on the destination.
    pub(crate) async fn fetch(&self, sides: &QemuPair, route: &Route, course: &mut Attempt) -> Result<(), Failure> {
        let asked = async {
            cancelled(&self.cancel).await;
            let message = "the guest runs on the destination and part of its memory is still on the source: \
                           there is no way back, and the rest is waited for";
            self.report.warn("too-late-to-cancel", message);
            std::future::pending().await
        };
        tokio::select! {
            biased;
            fetched = self.fetch_all(sides, route, course) => fetched,
            never = asked => never,
        }
    }

    async fn fetch_all(&self, sides: &QemuPair, route: &Route, course: &mut Attempt) -> Result<(), Failure> {
        let QemuPair { source, destination, .. } = sides;
        let first = route.ram();
        if let Some(ceiling) = self.settings.bandwidth {
            if let Err(error) = postcopy::limit(source, ceiling).await {
                self.report.warn("postcopy-unlimited", describe(&error));
            }
        }
        let (mut attempt, mut channels, mut listening) = (0u32, 0u32, None);
        loop {
            let sent = course.ram.bytes;
            let broken = match postcopy::until_completed(source, destination, &mut course.ram, &self.report).await {
                Err(error @ PostcopyError::Broken(_)) => error,
                Err(error @ PostcopyError::Ended { .. }) => {
                    // it may resume a guest that runs elsewhere; to stop it is safe whatever it did
                    drop(source.act(&qmp::stop {}).await);
                    return Err(error.into());
                }
                other => return Ok(other?),
            };
            if course.ram.bytes > sent {
                attempt = 0;
            }
            if attempt == ATTEMPTS {
                return Err(broken.into());
            }
            self.report.warn("postcopy-paused", format!("{}: the guest waits for its pages", describe(&broken)));
            sleep(PAUSE.saturating_mul(2u32.saturating_pow(attempt)).min(LONGEST_PAUSE)).await;
            attempt += 1;
            channels += 1;
            let address = self.another(first, channels);
            self.report
                .action("recover-postcopy", format!("a new channel over {address}, try {attempt} of {ATTEMPTS}"));
            if let Err(error) = self.recover(sides, address, &mut listening, course).await {
                self.report.warn("postcopy-paused", describe(&error));
            }
        }
    }

    /// Makes the channel anew. A destination that still listens since the last try refuses to do so a second time.
    async fn recover(
        &self,
        sides: &QemuPair,
        address: Address,
        listening: &mut Option<Address>,
        course: &mut Attempt,
    ) -> Result<(), PostcopyError> {
        let QemuPair { source, destination, .. } = sides;
        postcopy::pause(source, destination).await?;
        if let Err(error) = course.log.note(self.socket(&address)).await {
            // the guest waits for its pages, and what is left is a file
            self.report.warn("journal", describe(&error));
        }
        let address = match (postcopy::listen(destination, &address).await, &*listening) {
            (Ok(()), _) => listening.insert(address),
            (Err(error), Some(before)) if error.is_refusal() => before,
            (Err(error), _) => return Err(error.into()),
        };
        self.settings.keep_private(address);
        Ok(postcopy::resume(source, address).await?)
    }

    /// Where the destination listens for a channel after the first: a socket of ours gets another path, so that the old
    /// listener cannot be in the way; a port of the user's stays, being the one that is open between two hosts.
    fn another(&self, first: &Address, channel: u32) -> Address {
        let other = self.settings.own_socket(first).and_then(|path| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!("{channel}"));
            Address::unix(PathBuf::from(name)).ok()
        });
        other.unwrap_or_else(|| first.clone())
    }
}
