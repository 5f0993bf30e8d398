//! Connects to the monitors of the two QEMUs.

use super::{Endpoint, Failure, pair::QemuPair};
use crate::{
    endpoint::{self, PeerPid},
    progress::Side,
    qemu::{Name, Process},
    qmp::{self, Recorder},
};
use std::time::Duration;

/// How long a connection may take.
const DIAL: Duration = Duration::from_secs(10);

/// Connects to both sides at once.
pub(crate) async fn connect(
    source: Endpoint,
    destination: Endpoint,
    recorder: Option<&Recorder>,
) -> Result<QemuPair, Failure> {
    let (source, destination) =
        tokio::try_join!(open(Side::Source, source, recorder), open(Side::Destination, destination, recorder))?;
    Ok(QemuPair { source, destination })
}

/// Connects to one side.
pub(crate) async fn open(side: Side, endpoint: Endpoint, recorder: Option<&Recorder>) -> Result<Process, Failure> {
    let (address, stream, peer) = match endpoint {
        Endpoint::Address(address) => match endpoint::dial(&address, DIAL).await {
            // the process behind the socket may be a forwarder, whose death would prove nothing
            Ok(dialed) => (address.to_string(), dialed.stream, dialed.peer.filter(PeerPid::is_qemu)),
            Err(error) => return Err(Failure::Connect { side, source: Box::new(error) }),
        },
        Endpoint::Stream { name, stream, pid } => (name, stream, pid.and_then(|pid| PeerPid::open(pid).ok())),
    };
    let options = qmp::QmpOptions { recorder: recorder.cloned(), ..qmp::QmpOptions::labelled(side.as_str()) };
    let opened = Process::connect(Name { side, address }, stream, peer, options).await;
    opened.map_err(|error| Failure::Connect { side, source: Box::new(error) })
}
