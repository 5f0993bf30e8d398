//! The two QEMUs, their monitors, and everything else that is there whether or not an engine looks.

use crate::engines::ModelledEngine;
use qferry::internals::{
    progress::Side,
    qemu::reply::{MigrationStatus, RunState},
};

/// How one QEMU's process fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum QemuLife {
    Up,
    /// The main loop hangs; out-of-band commands are answered.
    Hung,
    Frozen,
    Dead,
}

/// How far one QEMU is in the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MigrationPhase {
    /// The source in `pre-switchover`.
    Waits,
    /// The source in `device`.
    Sends,
    /// Either side in `completed`.
    Completed,
    /// Either side in `failed`; the source has resumed by then.
    Failed,
    /// The destination in `inmigrate`.
    Loads,
}

/// A command that an engine sends to one of the monitors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MonitorCommand {
    Continue,
    ContDestination,
    QuitDestination,
    CancelMigration,
    ContSource,
}

/// The client that a monitor serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MonitorClient {
    /// The engine of that number.
    Engine(usize),
    /// The connection is gone. Commands that came over it before may yet be carried out, and are not answered.
    Nobody,
    /// A second migration of the same pair, started elsewhere: its preflight finds that neither side is free and gives
    /// up, and until then nobody else is served.
    Another,
}

/// One QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ModelledQemu {
    pub(crate) life: QemuLife,
    pub(crate) phase: MigrationPhase,
    pub(crate) runs: bool,
    pub(crate) client: MonitorClient,
    /// Commands that were received and not read yet.
    pub(crate) inbox: Vec<MonitorCommand>,
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HandoverWorld {
    pub(crate) source: ModelledQemu,
    pub(crate) destination: ModelledQemu,
    /// The source may have sent everything.
    pub(crate) sent: bool,
    /// The RAM channel is whole.
    pub(crate) channel: bool,
    /// `Given` is in the journal.
    pub(crate) given: bool,
    /// `Starting` is in the journal, and no `NotStarted` behind it.
    pub(crate) starting: bool,
    /// `Resuming` is in the journal: the destination is out of the way. An earlier `Resuming` would be wrong, for the
    /// engine may yet turn round and start a destination that comes back.
    pub(crate) resuming: bool,
    /// An engine could not write `Resuming`, and went on without.
    pub(crate) record_lost: bool,
    pub(crate) engines: Vec<ModelledEngine>,
    pub(crate) recoveries: u8,
    pub(crate) faults: u8,
    pub(crate) source_ran: bool,
    pub(crate) destination_ran: bool,
    /// A side began to run after the other one had.
    pub(crate) undone: bool,
    /// An engine has ended a destination that ran.
    pub(crate) killed: bool,
}

impl ModelledQemu {
    pub(crate) fn new(phase: MigrationPhase) -> Self {
        Self { life: QemuLife::Up, phase, runs: false, client: MonitorClient::Engine(0), inbox: Vec::new() }
    }

    /// The answers to `query-status` and `query-migrate`.
    pub(crate) fn answer(&self, side: Side) -> (RunState, MigrationStatus) {
        let (run, migration) = match self.phase {
            MigrationPhase::Waits => (RunState::FinishMigrate, MigrationStatus::PreSwitchover),
            MigrationPhase::Sends => (RunState::FinishMigrate, MigrationStatus::Device),
            MigrationPhase::Completed if side == Side::Destination => (RunState::Paused, MigrationStatus::Completed),
            MigrationPhase::Completed => (RunState::PostMigrate, MigrationStatus::Completed),
            MigrationPhase::Failed => (RunState::InMigrate, MigrationStatus::Failed),
            MigrationPhase::Loads => (RunState::InMigrate, MigrationStatus::Active),
        };
        (if self.runs { RunState::Running } else { run }, migration)
    }
}

impl HandoverWorld {
    /// The guest stopped in `pre-switchover`, and one engine.
    pub(crate) fn new(engine: ModelledEngine) -> Self {
        Self {
            source: ModelledQemu::new(MigrationPhase::Waits),
            destination: ModelledQemu::new(MigrationPhase::Loads),
            sent: false,
            channel: true,
            given: false,
            starting: false,
            resuming: false,
            record_lost: false,
            engines: vec![engine],
            recoveries: 0,
            faults: 0,
            source_ran: false,
            destination_ran: false,
            undone: false,
            killed: false,
        }
    }

    pub(crate) fn qemu(&self, side: Side) -> &ModelledQemu {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    pub(crate) fn qemu_mut(&mut self, side: Side) -> &mut ModelledQemu {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    fn run_source(&mut self) {
        self.undone |= self.destination_ran;
        (self.source.runs, self.source_ran) = (true, true);
        if let MonitorClient::Engine(engine) = self.source.client {
            self.engines[engine].heard_resume = true;
        }
    }

    fn run_destination(&mut self) {
        self.undone |= self.source_ran;
        (self.destination.runs, self.destination_ran) = (true, true);
    }

    /// The source's migration fails, and QEMU resumes the guest.
    pub(crate) fn fail_source(&mut self) {
        self.source.phase = MigrationPhase::Failed;
        self.channel = false;
        self.run_source();
    }

    pub(crate) fn die(&mut self, side: Side) {
        let qemu = self.qemu_mut(side);
        (qemu.life, qemu.runs, qemu.client) = (QemuLife::Dead, false, MonitorClient::Nobody);
        qemu.inbox.clear();
        self.channel = false;
    }

    /// An engine ends a side: by `quit`, or by a fence.
    pub(crate) fn end(&mut self, side: Side) {
        self.killed |= side == Side::Destination && self.destination.runs;
        self.die(side);
    }

    /// QEMU carries a command out; whether QEMU accepted it.
    pub(crate) fn carry_out(&mut self, command: MonitorCommand) -> bool {
        use MigrationPhase::{Completed, Failed, Sends, Waits};
        match (command, self.source.phase) {
            (MonitorCommand::Continue, Waits) => (self.source.phase, self.sent) = (Sends, true),
            (MonitorCommand::CancelMigration, Waits | Sends) => self.fail_source(),
            (MonitorCommand::ContSource, Completed) => self.run_source(),
            (MonitorCommand::CancelMigration, _) | (MonitorCommand::ContSource, Failed) => {}
            (MonitorCommand::QuitDestination, _) => self.end(Side::Destination),
            (MonitorCommand::ContDestination, _) if self.destination.phase == Completed => self.run_destination(),
            _ => return false,
        }
        true
    }

    /// Closes the connections of an engine that is no more.
    pub(crate) fn hang_up(&mut self, engine: usize) {
        for side in [Side::Source, Side::Destination] {
            let qemu = self.qemu_mut(side);
            if qemu.client == MonitorClient::Engine(engine) {
                qemu.client = MonitorClient::Nobody;
            }
        }
    }

    /// Sends a command, where the engine has the monitor; whether it was sent.
    pub(crate) fn send(&mut self, engine: usize, side: Side, command: MonitorCommand) -> bool {
        let held = self.qemu(side).client == MonitorClient::Engine(engine);
        if held {
            self.qemu_mut(side).inbox.push(command);
        }
        held
    }
}
