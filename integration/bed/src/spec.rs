//! The specification of a pair by a test.

use qferry_guest::Workload;

use crate::boot_sector::BootSector;
use crate::deviation::Deviation;
use crate::disk::{Device, DiskSpec};
use crate::record::Side;
use crate::wire::Link;

/// The form of disks on QEMU's command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// `-blockdev`: nodes are named `diskN`.
    #[default]
    Blockdev,
    /// `-drive`: devices are named `driveN`, and QEMU makes up the names of nodes.
    Drive,
}

/// Whether the guest runs when the pair is handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guest {
    /// The guest runs.
    #[default]
    Running,
    /// The guest has booted and was paused by `stop`.
    Paused,
}

/// A pair of QEMUs and the guest between them.
#[derive(Clone, Debug)]
pub struct Spec {
    /// QEMU's version on the source; its machine type is used on both sides.
    pub version: String,
    /// QEMU's version on the destination, if it is another.
    pub destination_version: Option<String>,
    /// The guest's memory in MiB.
    pub memory: u64,
    /// The guest's workload; the bed fills in `disks`.
    pub workload: Workload,
    /// The disks in order, of the same shape on both sides.
    pub disks: Vec<DiskSpec>,
    /// The deviations of the destination.
    pub destination: Vec<Deviation>,
    /// Whether there is no guest but SeaBIOS, which finds nothing to boot: a pair starts in well under a second, and
    /// nobody beats or writes. See [`Spec::quick`].
    pub quick: bool,
    /// The boot sector of the first disk, in its top image on the source: the guest of a pair that is `quick`.
    pub boot: Option<BootSector>,
    /// Whether the guest has drivers for virtio-scsi and virtio-net, too, which takes it longer to boot.
    pub more_drivers: bool,
    /// Whether there is a virtio-net card, `net0`, at which a guest with more drivers answers: see
    /// [`crate::Machine::answers_at_its_card`].
    pub network: bool,
    /// The form of disks on the command line.
    pub style: Style,
    /// Whether the guest runs when the pair is handed over.
    pub guest: Guest,
    /// Whether each QEMU gets a TCP monitor too, on a port of its choice.
    pub tcp: bool,
    /// Whether each QEMU is in a process group of its own, where a terminal's Ctrl-C does not reach it. The pair must
    /// then be dropped on an interrupt too.
    pub apart: bool,
    /// Whether each QEMU is on a host of its own, with a link like this between them; this needs root. Monitors stay
    /// unix sockets, which both hosts share. See [`crate::Wire`].
    pub link: Option<Link>,
    /// Whether each QEMU gets a second monitor that is nobody's, for a client that interferes. See
    /// [`crate::Machine::second_qmp_path`].
    pub second_monitor: bool,
    /// The size of a file system of its own for the source's top images, which can be filled. Needs root.
    pub source_room: Option<u64>,
    /// Whether flushes of both QEMUs can be made slow: see [`crate::Machine::flush_slowly`].
    pub slow_flush: bool,
    /// Whether both QEMUs have wall clocks of their own: see [`crate::Machine::set_clock_ahead`].
    pub own_clock: bool,
    /// More arguments for both QEMUs.
    pub extra: Vec<String>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            version: "10.0.13".to_owned(),
            destination_version: None,
            memory: 192,
            workload: Workload::default(),
            disks: vec![DiskSpec::default()],
            destination: Vec::new(),
            quick: false,
            boot: None,
            more_drivers: false,
            network: false,
            style: Style::default(),
            guest: Guest::default(),
            tcp: false,
            apart: false,
            link: None,
            second_monitor: false,
            source_room: None,
            slow_flush: false,
            own_clock: false,
            extra: Vec::new(),
        }
    }
}

impl Spec {
    /// A pair without a guest, on one small disk.
    pub fn quick() -> Self {
        let workload = Workload { dirty: 0, verify: 0, write: 0, read: 0, ..Workload::default() };
        Self { quick: true, memory: 32, workload, disks: vec![DiskSpec::small()], ..Self::default() }
    }

    /// Fills in the parts that follow from the rest.
    pub(crate) fn fill_in(&mut self) {
        self.workload.disks = self.disks.iter().filter(|disk| disk.device == Device::Virtio).count() as u64;
    }

    pub(crate) fn deviates(&self, side: Side, deviation: &Deviation) -> bool {
        side == Side::Destination && self.destination.contains(deviation)
    }
}
