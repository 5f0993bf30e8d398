//! What has come of one migration so far: what was changed, what the guest's owner wants, and the figures of the
//! outcome.

use super::{Failure, device_logs::DeviceLogs, guest::GuestIntent, intents::IntentLog, write_counts::WriteCounts};
use crate::{
    convergence::History,
    handover::{ownership::BeforeContinue, verdict::ContKnowledge},
    memory::tuning::ThrottleMethod,
    progress::{
        AnotherTry, BlackoutLedger, Estimate, GuestPause, LedgerClock, LedgerMark, Moment, RamOutcome, Reporter,
    },
    qemu::Observed,
    storage::files::spent_images::HeldImage,
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A drain before STOP that is worth a warning.
const NOTABLE: Duration = Duration::from_millis(50);

/// What has come of a migration so far.
pub(crate) struct Attempt {
    /// What was changed, and the journal that says so.
    pub(crate) log: IntentLog,
    /// What the guest's owner wants of the guest.
    pub(crate) guest: GuestIntent,
    pub(crate) ledger: BlackoutLedger,
    /// The moment when RAM's migration was begun: a stop of the guest from before is none of the switchover's.
    pub(crate) memory_begun: Option<Instant>,
    /// The times for which the guest stood still before the switchover.
    pub(crate) pauses: Vec<GuestPause>,
    pub(crate) ram: RamOutcome,
    /// The journal says that the guest may have been handed over.
    pub(crate) given: bool,
    /// This engine has followed the destination since before the migration. A recovery has not, so a destination that
    /// does not answer it may be anybody's.
    pub(crate) destination_followed: bool,
    /// What allows the source to be resumed; gone once `migrate-continue` was sent.
    pub(crate) before_continue: Option<BeforeContinue>,
    /// Bytes that each mirror copied, by its job.
    pub(crate) copied: BTreeMap<String, u64>,
    /// QEMU's counts of how long the guest's writes took.
    pub(crate) write_counts: WriteCounts,
    /// What is known of how long devices took.
    pub(crate) device_logs: DeviceLogs,
    /// QEMU's own figure for the downtime, milliseconds.
    pub(crate) downtime: Option<u64>,
    /// What could not be removed.
    pub(crate) leftovers: Vec<String>,
    /// The images of the destination that are files of this host.
    pub(crate) images: Vec<HeldImage>,
    /// An earlier engine of this run had begun a mirror, which may be undone by now.
    pub(crate) mirrored_before: bool,
    /// What another try needs, once this one was called off.
    pub(crate) another_try: Option<AnotherTry>,
    /// What the controller knew when the guest was stopped.
    pub(crate) history: Option<History>,
    /// The estimate that was made before the migration began, where the user asked for one.
    pub(crate) predicted: Option<Estimate>,
    /// How QEMU can slow the guest down, once RAM is sent.
    pub(crate) throttling: ThrottleMethod,
    /// The migration parameters that the controller has chosen before RAM is sent.
    pub(crate) first_parameters: Map<String, Value>,
}

impl Attempt {
    pub(crate) fn new(log: IntentLog, guest: GuestIntent, clock: LedgerClock) -> Self {
        Self {
            log,
            guest,
            ledger: BlackoutLedger::new(clock),
            memory_begun: None,
            pauses: Vec::new(),
            ram: RamOutcome::default(),
            given: false,
            destination_followed: true,
            before_continue: None,
            copied: BTreeMap::new(),
            write_counts: WriteCounts::default(),
            device_logs: DeviceLogs::default(),
            downtime: None,
            leftovers: Vec::new(),
            images: Vec::new(),
            mirrored_before: false,
            another_try: None,
            history: None,
            predicted: None,
            throttling: ThrottleMethod::None,
            first_parameters: Map::new(),
        }
    }

    /// Takes in when the guest stopped for the switchover, from the source's events and QEMU's own figure. A stop from
    /// before RAM was begun belongs to somebody else, or is counted already.
    pub(crate) fn take_stop(&mut self, seen: &Observed, report: &Reporter) {
        let is_ours = |stop: &Moment| self.memory_begun.is_some_and(|begun| stop.local >= begun);
        let Some(stop) = seen.stopped.filter(is_ours) else { return };
        self.ledger.mark(LedgerMark::Stop, stop);
        if let Some(stood) = seen.stood {
            self.ledger.mark(LedgerMark::VcpusStopped, stood);
        }
        // postcopy's figure ends elsewhere
        if let Some(downtime) = self.downtime.filter(|_| !self.ram.postcopy) {
            self.ledger.measure(Duration::from_millis(downtime));
        }
        let drain = self.ledger.drain();
        if drain > NOTABLE {
            let message = format!(
                "the guest stood still for {} ms before QEMU said STOP: QEMU waited for the guest's own writes and \
                 flushes, so its disk was slow at that moment",
                drain.as_millis()
            );
            report.warn("late-stop", message);
        }
    }

    /// Journals whether the guest is to run, where its owner has changed that; the record is on its way when this
    /// returns.
    pub(crate) fn journal_guest(&mut self) -> impl Future<Output = Result<(), Failure>> + use<> {
        let change = self.guest.take_change();
        self.log.guest(change)
    }

    /// The same on the way back, which no journal holds up.
    pub(crate) async fn journal_guest_on_the_way_back(&mut self, report: &Reporter) {
        let change = self.guest.take_change();
        self.log.guest_on_the_way_back(change, report).await;
    }
}

/// A failure of the handover, and what may have been done by then.
pub(crate) struct HandoverFailure {
    pub(crate) failure: Failure,
    /// What is known of `cont`, where `migrate-continue` may have had an effect. `None` where it had none: the way
    /// back is as before.
    pub(crate) given: Option<ContKnowledge>,
}

impl HandoverFailure {
    pub(crate) fn new(failure: impl Into<Failure>, given: Option<ContKnowledge>) -> Self {
        Self { failure: failure.into(), given }
    }
}
