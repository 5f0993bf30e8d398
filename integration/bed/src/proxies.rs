//! The proxies between the engine and a pair: both monitors, and the channels of NBD and RAM.

use std::path::Path;

use crate::{ChannelProxy, MonitorProxy, Pair, Result, Side, Tape};

/// The proxies of one migration.
pub struct Proxies {
    /// Both monitors, the source's first.
    pub monitors: [MonitorProxy; 2],
    /// The channel of NBD.
    pub nbd: ChannelProxy,
    /// The channel of RAM.
    pub ram: ChannelProxy,
    /// What went through the monitors.
    pub tape: Tape,
}

impl Proxies {
    /// Starts all proxies, with their sockets in a folder.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn start(pair: &Pair, folder: &Path) -> Result<Self> {
        let tape = Tape::default();
        let monitor =
            |side: Side, name: &str| MonitorProxy::start(side, folder.join(name), pair.machine(side).qmp_path(), &tape);
        let monitors = [monitor(Side::Source, "source")?, monitor(Side::Destination, "destination")?];
        let channel = |name: &str| ChannelProxy::start(folder.join(name), folder.join(format!("{name}-behind")));
        let (nbd, ram) = (channel("nbd")?, channel("ram")?);
        // The engine tells both sides the addresses of the relays, so the destination's are replaced.
        for (command, relay) in [("nbd-server-start", &nbd), ("migrate-incoming", &ram)] {
            let [front, behind] = [relay.front(), relay.behind()].map(|path| path.display().to_string());
            monitors[1].replace(command, &front, &behind);
        }
        Ok(Self { monitors, nbd, ram, tape })
    }
}
