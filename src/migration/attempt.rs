//! What has come of one migration so far: what was changed, what the guest's owner wants, and the figures of the
//! outcome.

use super::{Failure, guest::GuestIntent, intents::IntentLog};
use crate::{
    convergence::History,
    handover::{ownership::BeforeContinue, verdict::ContKnowledge},
    memory::tuning::ThrottleMethod,
    progress::{BlackoutLedger, Estimate, LedgerClock, RamOutcome, Reporter},
};
use std::collections::BTreeMap;

/// What has come of a migration so far.
pub(crate) struct Attempt {
    /// What was changed, and the journal that says so.
    pub(crate) log: IntentLog,
    /// What the guest's owner wants of the guest.
    pub(crate) guest: GuestIntent,
    pub(crate) ledger: BlackoutLedger,
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
    /// QEMU's own figure for the downtime, milliseconds.
    pub(crate) downtime: Option<u64>,
    /// What could not be removed.
    pub(crate) leftovers: Vec<String>,
    /// What the controller knew when the guest was stopped.
    pub(crate) history: Option<History>,
    /// The estimate that was made before the migration began, where the user asked for one.
    pub(crate) predicted: Option<Estimate>,
    /// How QEMU can slow the guest down.
    pub(crate) throttling: ThrottleMethod,
}

impl Attempt {
    pub(crate) fn new(log: IntentLog, guest: GuestIntent, clock: LedgerClock) -> Self {
        Self {
            log,
            guest,
            ledger: BlackoutLedger::new(clock),
            ram: RamOutcome::default(),
            given: false,
            destination_followed: true,
            before_continue: None,
            copied: BTreeMap::new(),
            downtime: None,
            leftovers: Vec::new(),
            history: None,
            predicted: None,
            throttling: ThrottleMethod::None,
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
