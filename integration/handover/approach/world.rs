//! The two QEMUs from before `migrate` on: the guest with its own and its owner's doings, the disks, the RAM channel.

pub(crate) use super::guest_stand::GuestStand;

use super::engine::ApproachEngine;
use qferry::internals::{
    progress::{Moment, Side},
    qemu::{
        HaltSeen, Observed,
        reply::{MigrationStatus, RunState},
    },
};
use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

/// QEMU's own stop of the source's guest, for the sake of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MigrationHalt {
    /// `finish-migrate`.
    Switchover,
    /// `postmigrate`.
    Completed,
}

/// The source's migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourcePhase {
    Idle,
    Sends,
    /// `pre-switchover`.
    Waits,
    Device,
    Completed,
    Failed,
    Cancelled,
}

/// All mirrors of the run, as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MirrorPhase {
    None,
    Copies,
    Ready,
    Settled,
}

/// The destination's migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DestinationPhase {
    Fresh,
    Listens,
    /// Everything is loaded: `completed`.
    Loaded,
    Failed,
}

/// Who else is at a monitor's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MonitorAddress {
    /// Nobody: the monitor serves an engine that connects.
    Free,
    /// Another client holds the monitor.
    Held,
    /// The QEMU has ended, and another one answers.
    Another,
}

/// Whether a process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum QemuPresence {
    Up,
    Ended,
}

/// What the source's events have told: the number of the last STOP and of the last RESUME.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct SeenEvents {
    pub(crate) stopped: Option<u8>,
    pub(crate) resumed: Option<u8>,
    /// The event that told why the guest stopped by itself.
    pub(crate) halted: Option<(u8, GuestStand)>,
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl SeenEvents {
    /// The same as the engine sees it.
    pub(crate) fn observed(self) -> Observed {
        let moment = |number: u8| {
            let since = Duration::from_secs(u64::from(number));
            Moment::at(*START + since, since)
        };
        let halted = self.halted.map(|(number, stand)| HaltSeen { moment: moment(number), run: stand.run_state() });
        let (stopped, resumed) = (self.stopped.map(moment), self.resumed.map(moment));
        Observed { stopped, resumed, halted, ..Observed::default() }
    }
}

/// The source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SourceQemu {
    pub(crate) presence: QemuPresence,
    pub(crate) stand: GuestStand,
    pub(crate) halt: Option<MigrationHalt>,
    pub(crate) phase: SourcePhase,
    /// The migration is another client's, or another run's.
    pub(crate) is_foreign: bool,
    /// Another run's mirror is on a disk, and QEMU takes no second one.
    pub(crate) is_mirrored: bool,
    /// The capability `pause-before-switchover`.
    pub(crate) pauses: bool,
    /// The capability `return-path`.
    pub(crate) returns: bool,
    pub(crate) mirror: MirrorPhase,
    pub(crate) seen: SeenEvents,
    pub(crate) address: MonitorAddress,
    /// A device or a medium is not the one that the checks have seen.
    pub(crate) changed: bool,
}

/// The destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DestinationQemu {
    pub(crate) presence: QemuPresence,
    pub(crate) phase: DestinationPhase,
    /// A source has connected.
    pub(crate) is_connected: bool,
    pub(crate) autostart: bool,
    pub(crate) runs: bool,
    pub(crate) exported: bool,
    pub(crate) address: MonitorAddress,
    /// The incoming migration is another run's.
    pub(crate) is_foreign: bool,
    /// The NBD server is another run's.
    pub(crate) is_served: bool,
}

/// What the journal says of the handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RecordedClaim {
    Source,
    Given,
    Resuming,
}

/// The journal, folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ApproachJournal {
    /// The guest is to run where the migration ends.
    pub(crate) runs: bool,
    pub(crate) exported: bool,
    pub(crate) mirrored: bool,
    pub(crate) incoming: bool,
    pub(crate) migrate: bool,
    /// The source's capabilities are this run's.
    pub(crate) tuned: bool,
    pub(crate) claim: RecordedClaim,
    /// `Starting` is in the journal, and no `NotStarted` behind it.
    pub(crate) starting: bool,
}

/// What must never happen, and has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct BrokenPromises {
    /// A side began to run after the other one had.
    pub(crate) undone: bool,
    /// `cont` was sent to a guest that its owner or itself had stopped.
    pub(crate) against_owner: bool,
    /// A destination that ran was ended, or a source that had the guest.
    pub(crate) killed: bool,
    /// A guest that another run has handed over was stopped.
    pub(crate) stopped: bool,
    /// What an engine said at its end was not so.
    pub(crate) untrue: bool,
    /// The destination was started with disks that were not whole.
    pub(crate) torn_disks: bool,
    /// Another client's migration was cancelled.
    pub(crate) foreign_cancelled: bool,
    /// Another QEMU than the one that took part was taken for that one.
    pub(crate) stranger: bool,
    /// The QEMU that took part was not taken for that one.
    pub(crate) unrecognized: bool,
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ApproachWorld {
    pub(crate) source: SourceQemu,
    pub(crate) destination: DestinationQemu,
    /// The RAM channel is whole.
    pub(crate) channel: bool,
    /// All of the guest's state is on its way or there.
    pub(crate) sent: bool,
    pub(crate) journal: ApproachJournal,
    pub(crate) engine: ApproachEngine,
    pub(crate) recoveries: u8,
    pub(crate) faults: u8,
    /// The source has run the guest since all of its state was on its way.
    pub(crate) source_ran_on: bool,
    pub(crate) destination_ran: bool,
    /// Another client has sent `cont` to the destination after the engine's last `stop`: nobody can prevent that.
    pub(crate) foreign_cont: bool,
    /// Another client has sent `migrate-continue`, and may start the destination.
    pub(crate) foreign_continued: bool,
    /// A person has sent `migrate-continue`: nothing tells an engine what else that person did.
    pub(crate) person_continued: bool,
    /// The engine has sent its last `stop`, and lets the disks go.
    pub(crate) disengaged: bool,
    /// An engine that may have sent `cont` to the destination has died.
    pub(crate) cont_forgotten: bool,
    /// A `cont` to the destination has no answer: the destination may have run the guest.
    pub(crate) cont_lost: bool,
    pub(crate) broken: BrokenPromises,
}

impl SourceQemu {
    /// The answers to `query-status` and `query-migrate`.
    pub(crate) fn answer(&self) -> (RunState, MigrationStatus) {
        let run = match self.halt {
            None => self.stand.run_state(),
            Some(MigrationHalt::Switchover) => RunState::FinishMigrate,
            Some(MigrationHalt::Completed) => RunState::PostMigrate,
        };
        let migration = match self.phase {
            SourcePhase::Idle => MigrationStatus::None,
            SourcePhase::Sends => MigrationStatus::Active,
            SourcePhase::Waits => MigrationStatus::PreSwitchover,
            SourcePhase::Device => MigrationStatus::Device,
            SourcePhase::Completed => MigrationStatus::Completed,
            SourcePhase::Failed => MigrationStatus::Failed,
            SourcePhase::Cancelled => MigrationStatus::Cancelled,
        };
        (run, migration)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.presence == QemuPresence::Up
    }

    pub(crate) fn runs(&self) -> bool {
        self.is_up() && self.halt.is_none() && self.stand == GuestStand::Runs
    }

    fn next_event(&self) -> u8 {
        let halted = self.seen.halted.map(|(number, _)| number);
        1 + self.seen.stopped.max(self.seen.resumed).max(halted).unwrap_or(0)
    }

    pub(crate) fn tell_stop(&mut self) {
        self.seen.stopped = Some(self.next_event());
    }

    fn tell_resume(&mut self) {
        self.seen.resumed = Some(self.next_event());
    }

    /// The guest stops by its own or its owner's doing.
    pub(crate) fn stop_by_itself(&mut self, stand: GuestStand) {
        self.stand = stand;
        if stand.is_halted() {
            self.seen.halted = Some((self.next_event(), stand));
        }
        // A guest that suspends itself is not stopped by QEMU.
        if stand != GuestStand::Suspended {
            self.tell_stop();
        }
    }
}

impl DestinationQemu {
    /// The answers to `query-status` and `query-migrate`; `stand` is how the guest stood when it was sent.
    pub(crate) fn answer(&self, stand: GuestStand) -> (RunState, MigrationStatus) {
        let migration = match self.phase {
            DestinationPhase::Fresh => MigrationStatus::None,
            DestinationPhase::Listens if self.is_connected => MigrationStatus::Active,
            DestinationPhase::Listens => MigrationStatus::Setup,
            DestinationPhase::Loaded => MigrationStatus::Completed,
            DestinationPhase::Failed => MigrationStatus::Failed,
        };
        let run = match (self.phase, stand) {
            (DestinationPhase::Loaded, GuestStand::Suspended) if self.runs => RunState::Suspended,
            (DestinationPhase::Loaded, _) if self.runs => RunState::Running,
            (DestinationPhase::Loaded, stand) if stand.is_live() => RunState::Paused,
            (DestinationPhase::Loaded, stand) => stand.run_state(),
            _ => RunState::InMigrate,
        };
        (run, migration)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.presence == QemuPresence::Up
    }
}

impl ApproachWorld {
    /// Both QEMUs before anything was changed, and an engine whose preflight has just looked.
    pub(crate) fn new(stand: GuestStand) -> Self {
        let source = SourceQemu {
            presence: QemuPresence::Up,
            stand,
            halt: None,
            phase: SourcePhase::Idle,
            is_foreign: false,
            is_mirrored: false,
            pauses: false,
            returns: false,
            mirror: MirrorPhase::None,
            seen: SeenEvents::default(),
            address: MonitorAddress::Free,
            changed: false,
        };
        let engine = ApproachEngine::new(&source.answer().0);
        let journal = ApproachJournal {
            runs: engine.guest.wants_running(),
            exported: false,
            mirrored: false,
            incoming: false,
            migrate: false,
            tuned: false,
            claim: RecordedClaim::Source,
            starting: false,
        };
        let destination = DestinationQemu {
            presence: QemuPresence::Up,
            phase: DestinationPhase::Fresh,
            is_connected: false,
            autostart: false,
            runs: false,
            exported: false,
            address: MonitorAddress::Free,
            is_foreign: false,
            is_served: false,
        };
        Self {
            source,
            destination,
            channel: true,
            sent: false,
            journal,
            engine,
            recoveries: 0,
            faults: 0,
            source_ran_on: false,
            destination_ran: false,
            foreign_cont: false,
            foreign_continued: false,
            person_continued: false,
            disengaged: false,
            cont_forgotten: false,
            cont_lost: false,
            broken: BrokenPromises::default(),
        }
    }

    pub(crate) fn is_up(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source.is_up(),
            Side::Destination => self.destination.is_up(),
        }
    }

    /// Whether the engine gets answers of a side.
    pub(crate) fn asks(&self, side: Side) -> bool {
        let reached = match side {
            Side::Source => self.engine.reaches_source,
            Side::Destination => self.engine.reaches_destination,
        };
        self.is_up(side) && reached
    }

    pub(crate) fn address(&self, side: Side) -> MonitorAddress {
        match side {
            Side::Source => self.source.address,
            Side::Destination => self.destination.address,
        }
    }

    pub(crate) fn set_address(&mut self, side: Side, address: MonitorAddress) {
        match side {
            Side::Source => self.source.address = address,
            Side::Destination => self.destination.address = address,
        }
    }

    /// The engine's connection to a side is gone.
    pub(crate) fn lose_contact(&mut self, side: Side) {
        let engine = &mut self.engine;
        match side {
            Side::Source => (engine.reaches_source, engine.follows_source) = (false, false),
            Side::Destination => (engine.reaches_destination, engine.follows_destination) = (false, false),
        }
    }

    /// QEMU stops the guest for the switchover.
    pub(crate) fn halt_source(&mut self) {
        if self.source.stand.is_live() {
            self.source.tell_stop();
        }
        self.source.halt = Some(MigrationHalt::Switchover);
    }

    /// The source's migration ends badly: QEMU resumes a guest that it had stopped.
    pub(crate) fn end_source_migration(&mut self, phase: SourcePhase) {
        self.source.phase = phase;
        self.channel = false;
        if self.source.halt.take().is_some() && self.source.stand.is_live() {
            self.source.tell_resume();
            self.note_source_run();
        }
    }

    fn note_source_run(&mut self) {
        if self.sent {
            self.source_ran_on = true;
            self.broken.undone |= self.destination_ran;
        }
    }

    /// `cont` to the source; whether QEMU accepted it.
    pub(crate) fn continue_source(&mut self) -> bool {
        match (self.source.halt, self.source.stand) {
            (Some(MigrationHalt::Switchover), _) | (None, GuestStand::Shutdown) => return false,
            (None, GuestStand::Runs | GuestStand::Suspended) => return true,
            _ => {}
        }
        let was_completed = self.source.halt.take().is_some();
        // A suspended guest that a migration had stopped stays suspended.
        if !(was_completed && self.source.stand == GuestStand::Suspended) {
            self.source.stand = GuestStand::Runs;
        }
        self.source.tell_resume();
        self.note_source_run();
        true
    }

    /// The destination has everything, and begins to run it where `cont` came before.
    pub(crate) fn load(&mut self) {
        self.destination.phase = DestinationPhase::Loaded;
        if self.destination.autostart && self.source.stand.is_live() {
            self.run_destination();
        }
    }

    /// The destination runs the guest.
    pub(crate) fn run_destination(&mut self) {
        self.broken.undone |= self.source_ran_on;
        (self.destination.runs, self.destination_ran) = (true, true);
    }

    /// Another client sends `cont` to the destination.
    pub(crate) fn continue_destination_for_another(&mut self) {
        self.foreign_cont |= self.disengaged;
        match self.destination.phase {
            DestinationPhase::Loaded => self.run_destination(),
            _ => self.destination.autostart = true,
        }
    }

    /// The migration of the source is over, or none was begun.
    pub(crate) fn is_source_idle(&self) -> bool {
        use SourcePhase::{Cancelled, Completed, Failed, Idle};
        matches!(self.source.phase, Idle | Completed | Failed | Cancelled)
    }

    /// The source's migration of this run has completed.
    pub(crate) fn has_passed(&self) -> bool {
        self.source.phase == SourcePhase::Completed && !self.source.is_foreign
    }

    /// Whether a migration is under way that is not this run's.
    pub(crate) fn is_migrated_by_another(&self) -> bool {
        self.source.is_up() && self.source.is_foreign && !self.is_source_idle()
    }

    /// Whether it cannot be known any more if the destination ran the guest before it ended.
    pub(crate) fn is_cont_in_doubt(&self) -> bool {
        let completed = self.source.phase == SourcePhase::Completed || !self.source.is_up();
        self.cont_lost || (self.cont_forgotten && completed)
    }

    /// The process of a side ends, by whatever.
    pub(crate) fn die(&mut self, side: Side) {
        match side {
            Side::Source => self.source.presence = QemuPresence::Ended,
            Side::Destination => {
                let destination = &mut self.destination;
                (destination.presence, destination.runs, destination.exported) = (QemuPresence::Ended, false, false);
            }
        }
        self.channel = false;
    }
}
