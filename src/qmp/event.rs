//! An event with the stamps of its receipt.
//!
//! The module owns the stamps. An event is never decoded: name and data stay as QEMU sent them.

use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::frame::EventFrame;

/// An event with the stamps of its receipt.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// Number of the event on this connection, from 0, without gaps.
    pub sequence: u64,
    /// Time at which this process read the event; for measuring spans.
    pub received: Instant,
    /// The same moment on the wall clock; for comparing with logs.
    pub received_wall: SystemTime,
    /// QEMU's own clock when it emitted the event, since the Unix epoch; `None` if QEMU could not read its clock. The
    /// clock of QEMU's host may differ from that of this host.
    pub emitted: Option<Duration>,
    /// Time at which the oldest in-band command was sent that QEMU had not answered when the event came.
    pub unanswered: Option<Instant>,
    /// Time at which the last answer to an in-band command before the event came.
    pub answered: Option<Instant>,
    /// QEMU's name of the event, such as `BLOCK_JOB_READY`. Any name can occur.
    pub name: String,
    /// Data of the event; `Null` where QEMU sent none. Any member can be missing, any enum value unknown.
    pub data: Value,
}

impl QmpEvent {
    /// `unanswered` and `answered` are the members of these names.
    pub(super) fn stamp(
        sequence: u64,
        frame: EventFrame,
        unanswered: Option<Instant>,
        answered: Option<Instant>,
    ) -> Self {
        let (received, received_wall) = both_clocks();
        Self {
            sequence,
            received,
            received_wall,
            emitted: frame.timestamp,
            unanswered,
            answered,
            name: frame.name,
            data: frame.data,
        }
    }
}

/// Both clocks at one moment. A process that is interrupted between the two reads would see two moments, so the clocks
/// are read again then.
fn both_clocks() -> (Instant, SystemTime) {
    const TOGETHER: Duration = Duration::from_micros(20);
    let mut tries = 3;
    loop {
        let before = Instant::now();
        let both = (tokio::time::Instant::now().into_std(), SystemTime::now());
        tries -= 1;
        if tries == 0 || before.elapsed() < TOGETHER {
            return both;
        }
    }
}
