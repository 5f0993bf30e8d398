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
    if source.is_same_socket(destination) {
        return Err(Failure::OneSocket { named: source.to_string(), also: destination.to_string() });
    }
    let (source, destination) =
        tokio::try_join!(meet(Side::Source, source, recorder), meet(Side::Destination, destination, recorder))?;
    if source.is_same_program(&destination) {
        // the question for features makes the guest of the source stand still for a moment
        let destination = read_features(destination).await?;
        return Ok(QemuPair { source: source.with_features_of(&destination), destination });
    }
    let (source, destination) = tokio::try_join!(read_features(source), read_features(destination))?;
    Ok(QemuPair { source, destination })
}

/// Connects to one side.
pub(crate) async fn open(side: Side, endpoint: &Endpoint, recorder: Option<&Recorder>) -> Result<Process, Failure> {
    read_features(meet(side, endpoint, recorder).await?).await
}

async fn read_features(process: Process) -> Result<Process, Failure> {
    let side = process.name().side;
    process.read_features().await.map_err(|error| Failure::Connect { side, source: Box::new(error) })
}

async fn meet(side: Side, endpoint: &Endpoint, recorder: Option<&Recorder>) -> Result<Process, Failure> {
    let Dialed { stream, peer, unseen } =
        endpoint.dial(DIAL).await.map_err(|error| Failure::Connect { side, source: Box::new(error) })?;
    let options = qmp::QmpOptions { recorder: recorder.cloned(), ..qmp::QmpOptions::labelled(side.as_str()) };
    let name = QemuName { side, address: endpoint.to_string() };
    let met = Process::meet(name, stream, peer, options).await;
    let met = met.map_err(|error| Failure::Connect { side, source: Box::new(error) })?.with_unseen(unseen);
    Ok(with_own_process(endpoint, met).await)
}

/// The QEMU of an endpoint, without a process that the kernel names wrongly.
pub(crate) async fn with_own_process(endpoint: &Endpoint, process: Process) -> Process {
    match endpoint {
        Endpoint::Address(_) => process.without_a_strangers_process().await,
        // The embedder vouches for the process.
        Endpoint::Connector { .. } => process,
    }
}
