//! The faults.

use std::time::Duration;

use qferry::internals::progress::Phase;
use qferry_bed::{Deed, Deviation, DiskSpec, Filter, Side, Spec, Workload};

use super::point::{Past, Point};

const MIB: u64 = 1 << 20;
/// Longer than the engine waits for an answer.
const LATE: Duration = Duration::from_secs(11);

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL for a QEMU.
    Killed(Side),
    /// SIGSTOP for the destination.
    Frozen,
    /// SIGSTOP for the destination, and SIGCONT a second later.
    Thawed,
    /// SIGKILL for the engine; `qferry recover` looks after it.
    EngineKilled,
    /// The channel of RAM is cut.
    MigrationCut,
    /// The channel of disks is cut.
    NbdCut,
    /// The channel of disks carries nothing any more, and nobody is told.
    NbdHole,
    /// The destination's file system is full.
    Full,
    /// The destination's disk fails to write.
    WriteError,
    /// The source's disk fails to read.
    ReadError,
    /// The destination does not take the state of a device.
    StateRefused,
    /// The connection to a monitor is cut.
    Cut(Side),
    /// A command is carried out and the connection is cut in place of its answer.
    ReplyLost,
    /// A monitor's answers come later than anybody waits.
    Late(Side),
    /// A second engine does the same with the same pair.
    SecondEngine,
}

impl Fault {
    /// All of them.
    pub(crate) const ALL: [Self; 18] = [
        Self::Killed(Side::Destination),
        Self::Frozen,
        Self::Thawed,
        Self::Killed(Side::Source),
        Self::EngineKilled,
        Self::MigrationCut,
        Self::NbdCut,
        Self::NbdHole,
        Self::Full,
        Self::WriteError,
        Self::ReadError,
        Self::StateRefused,
        Self::Cut(Side::Source),
        Self::Cut(Side::Destination),
        Self::ReplyLost,
        Self::Late(Side::Source),
        Self::Late(Side::Destination),
        Self::SecondEngine,
    ];

    /// The name on the command line and in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Killed(Side::Destination) => "destination-killed",
            Self::Killed(Side::Source) => "source-killed",
            Self::Frozen => "destination-frozen",
            Self::Thawed => "destination-thawed",
            Self::EngineKilled => "engine-killed",
            Self::MigrationCut => "migration-cut",
            Self::NbdCut => "nbd-cut",
            Self::NbdHole => "nbd-black-hole",
            Self::Full => "destination-full",
            Self::WriteError => "destination-eio",
            Self::ReadError => "source-eio",
            Self::StateRefused => "state-refused",
            Self::Cut(Side::Source) => "source-qmp-cut",
            Self::Cut(Side::Destination) => "destination-qmp-cut",
            Self::ReplyLost => "reply-lost",
            Self::Late(Side::Source) => "source-qmp-late",
            Self::Late(Side::Destination) => "destination-qmp-late",
            Self::SecondEngine => "second-engine",
        }
    }

    /// The description for people.
    pub(crate) fn told(self) -> &'static str {
        match self {
            Self::Killed(Side::Destination) => "SIGKILL for the destination's QEMU",
            Self::Killed(Side::Source) => "SIGKILL for the source's QEMU",
            Self::Frozen => "SIGSTOP for the destination's QEMU, until the engine has ended",
            Self::Thawed => "SIGSTOP for the destination's QEMU, and SIGCONT a second later",
            Self::EngineKilled => "SIGKILL for the engine, then `qferry recover`, twice",
            Self::MigrationCut => "the connection that carries RAM is cut",
            Self::NbdCut => "the connection that carries the disks is cut",
            Self::NbdHole => "the connection that carries the disks stays open and carries nothing any more",
            Self::Full => "the file system of the destination's images is full",
            Self::WriteError => "the destination's image fails with EIO when it is written (blkdebug)",
            Self::ReadError => "the source's image fails with EIO when it is read (blkdebug)",
            Self::StateRefused => {
                "the destination's disk device lacks features that the guest uses, and refuses the device's state"
            }
            Self::Cut(Side::Source) => "the connection to the source's monitor is closed",
            Self::Cut(Side::Destination) => "the connection to the destination's monitor is closed",
            Self::ReplyLost => "the command is carried out, and the connection is closed in place of its answer",
            Self::Late(Side::Source) => "the source's monitor is silent for 11 s",
            Self::Late(Side::Destination) => "the destination's monitor is silent for 11 s",
            Self::SecondEngine => "a second engine migrates the same pair, over other monitors",
        }
    }

    /// The reason to leave the fault out at a point, if there is one.
    pub(crate) fn left_out(self, point: &Point) -> Option<&'static str> {
        let past = point.past();
        match self {
            Self::WriteError | Self::ReadError if *point != Point::Phase(Phase::Storage) => {
                Some("a failing disk matters only while it is copied")
            }
            Self::StateRefused if *point != Point::Phase(Phase::Handover) => {
                Some("a device's state arrives only at the end")
            }
            Self::ReplyLost if !matches!(point, Point::Command { .. }) => Some("only a command has a reply"),
            Self::NbdCut | Self::NbdHole | Self::Full if past >= Past::Exports => {
                Some("the disks have arrived by then")
            }
            Self::SecondEngine if past == Past::Started && point.names("migrate-set-capabilities") => {
                Some("the source has been told to quit")
            }
            Self::MigrationCut if past >= Past::Given => Some("RAM has arrived by then"),
            _ => None,
        }
    }

    /// The proxy's deed to the command before which the point is.
    pub(crate) fn deed(self) -> Deed {
        if self == Self::ReplyLost { Deed::CutAfter } else { Deed::Pass }
    }

    /// The deviation of the destination for this fault.
    pub(crate) fn deviation(self) -> Option<Deviation> {
        match self {
            Self::Full => Some(Deviation::SmallFileSystem { bytes: 40 * MIB }),
            Self::WriteError => Some(Deviation::WriteError { disk: 0 }),
            Self::StateRefused => Some(Deviation::LesserDevice { disk: 0 }),
            _ => None,
        }
    }

    /// Whether the fault keeps the engine from reaching a live QEMU, so that leftovers there may rightly be named.
    pub(crate) fn blinds(self) -> bool {
        matches!(self, Self::Frozen | Self::Cut(_) | Self::ReplyLost | Self::Late(_) | Self::SecondEngine)
    }

    /// Whether the fault needs a source of its own.
    pub(crate) fn needs_own_source(self) -> bool {
        self == Self::ReadError
    }

    /// The time by which a monitor is late.
    pub(crate) fn late() -> Duration {
        LATE
    }

    /// The guest for this fault.
    pub(crate) fn spec(self, version: &str) -> Spec {
        let workload =
            Workload { ram: 4 * MIB, dirty: 8 * MIB, write: 100, read: 100, slots: 32, ..Workload::default() };
        let (version, disks) = (version.to_owned(), vec![DiskSpec::small()]);
        let spec = Spec { version, workload, disks, memory: 128, tcp: true, ..Spec::default() };
        match self.needs_own_source() {
            true => Spec {
                disks: vec![DiskSpec { filter_below: Some(Filter::ReadError), ..DiskSpec::small() }],
                version: spec.version,
                tcp: true,
                ..Spec::quick()
            },
            false => spec,
        }
    }
}
