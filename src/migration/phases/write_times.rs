//! Has QEMU count how long the guest's writes take while mirrors copy, so that the price of write-blocking is told.

use crate::{
    migration::{
        Effect, Failure,
        attempt::Attempt,
        context::Context,
        work_order::Route,
        write_counts::{self, WriteCounts},
    },
    qemu::{
        Process, SentCommand,
        reply::{BlockStats, TolerantList},
    },
    storage::mirror::write_histogram::{self, HistogramOwner},
};
use qapi::qmp;

/// A question for QEMU's counts.
type AskedCounts = SentCommand<TolerantList<BlockStats>>;

/// Asks for the counts, where QEMU counts any writes. The question is sent when the function is called.
pub(super) fn ask_counts(source: &Process, counts: &WriteCounts) -> Option<AskedCounts> {
    counts.is_counting().then(|| source.ask(&qmp::query_blockstats { query_nodes: None }))
}

/// Takes the counts in that were asked for. A QEMU that does not answer leaves the last ones.
pub(super) async fn take_counts(asked: Option<AskedCounts>, counts: &mut WriteCounts) {
    if let Some(asked) = asked {
        if let Ok(told) = asked.await {
            counts.look(&told.0);
        }
    }
}

/// Sets a histogram for each disk that moves, but for those where another client has set any. A histogram that an
/// engine left is taken over.
pub(super) async fn count_writes(
    context: &Context,
    source: &Process,
    route: &Route,
    attempt: &mut Attempt,
) -> Result<(), Failure> {
    if !source.features().latency_histograms {
        return Ok(());
    }
    let known = source.ask(&qmp::query_blockstats { query_nodes: None }).await?.0;
    let is_free = |device: &&str| {
        let found = known.iter().find(|one| one.qdev.as_deref() == Some(*device));
        found.is_some_and(|one| {
            matches!(write_histogram::owner(&one.stats), HistogramOwner::Nobody | HistogramOwner::Engine)
        })
    };
    let devices = route.pairs.iter().filter_map(write_counts::device).filter(is_free);
    let devices: Vec<String> = devices.map(str::to_owned).collect();
    if devices.is_empty() {
        return Ok(());
    }
    attempt.log.note(devices.iter().cloned().map(Effect::WriteTimes)).await?;
    let sent: Vec<_> = devices.iter().map(|device| write_histogram::begin(source, device)).collect();
    for (device, sent) in devices.into_iter().zip(sent) {
        match sent.await {
            Ok(()) => attempt.write_counts.begin(device),
            Err(error) if error.is_refusal() => {
                tracing::debug!(%error, "the guest's writes are not counted");
                attempt.log.undone(&Effect::WriteTimes(device), &context.report).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
