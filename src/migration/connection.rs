//! Connects to the monitors of the two QEMUs.

use super::{Failure, pair::QemuPair};
use crate::{
    endpoint::{Dialed, Endpoint},
    progress::Side,
    qemu::{Process, QemuName},
    qmp::{self, Recorder},
};
use std::time::Duration;

/// How long a connection may take.
const DIAL: Duration = Duration::from_secs(10);

/// Connects to both sides at once.
pub(crate) async fn connect(
    source: &Endpoint,
    destination: &Endpoint,
    recorder: Option<&Recorder>,
) -> Result<QemuPair, Failure> {
    let (source, destination) =
        tokio::try_join!(open(Side::Source, source, recorder), open(Side::Destination, destination, recorder))?;
    Ok(QemuPair { source, destination })
}

/// Connects to one side.
pub(crate) async fn open(side: Side, endpoint: &Endpoint, recorder: Option<&Recorder>) -> Result<Process, Failure> {
    let Dialed { stream, peer } =
        endpoint.dial(DIAL).await.map_err(|error| Failure::Connect { side, source: Box::new(error) })?;
    let options = qmp::QmpOptions { recorder: recorder.cloned(), ..qmp::QmpOptions::labelled(side.as_str()) };
    let name = QemuName { side, address: endpoint.to_string() };
    let opened = Process::connect(name, stream, peer, options).await;
    opened.map_err(|error| Failure::Connect { side, source: Box::new(error) })
}
