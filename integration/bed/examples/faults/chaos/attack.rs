//! The attacks: what somebody else, the guest or the host may do to a migration at any moment.

use std::fmt;
use std::time::Duration;

use qferry_bed::{Act, Random, Side};

/// The capabilities that an attacker switches.
const CAPABILITIES: [&str; 6] =
    ["pause-before-switchover", "events", "return-path", "auto-converge", "late-block-activate", "xbzrle"];
/// The parameters that an attacker sets, with values that are legal.
const PARAMETERS: [(&str, u64); 4] =
    [("max-bandwidth", 4 << 20), ("downtime-limit", 5), ("downtime-limit", 1900), ("announce-rounds", 3)];

/// The steps of a wall clock, in seconds.
const STEPS: [i64; 4] = [5, -5, 3600, -3600];

/// The programs whose wall clock is set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Clocks {
    /// The engine and both QEMUs, as on one host.
    All,
    /// The engine alone, as on a host of its own.
    Engine,
    /// One QEMU, as on a host of its own.
    Of(Side),
}

/// One deed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Attack {
    /// `stop`.
    Stop(Side),
    /// `cont`.
    Cont(Side),
    /// `stop` on the source, and `cont` after this time.
    Pause(Duration),
    /// `system_reset`, which ends a QEMU of the bed.
    Reset(Side),
    /// `system_powerdown`.
    PowerButton,
    /// `quit`.
    Quit(Side),
    /// `device_del` of a `scsi-hd`.
    Unplug(Side),
    /// `device_del` of a `scsi-hd`, and `device_add` of another image in its place.
    Exchange,
    /// `device_add` of a further `scsi-hd`.
    PlugDisk(Side),
    /// `device_add` of a USB tablet.
    PlugUsb(Side),
    /// The CD-ROM's medium is removed.
    Eject(Side),
    /// Another medium in the CD-ROM.
    ChangeMedium(Side),
    /// `block-job-pause` of one of the engine's jobs, and `block-job-resume` after this time.
    JobPause(Duration),
    /// `block-job-cancel` of one of them.
    JobCancel {
        /// With `force`.
        force: bool,
    },
    /// `block-job-set-speed`.
    JobSpeed(u64),
    /// `migrate` to a file.
    MigrateAway,
    /// `migrate_cancel`.
    MigrateCancel,
    /// `migrate-set-capabilities`.
    Capability(Side, &'static str, bool),
    /// `migrate-set-parameters`.
    Parameter(Side, &'static str, u64),
    /// `block_resize` of the `scsi-hd`.
    Resize,
    /// `block_set_io_throttle` of the guest's disk.
    Throttle(u64),
    /// `balloon`.
    Balloon(u64),
    /// `nbd-server-stop` on the destination.
    NbdServerStop,
    /// `block-export-del` on the destination, with mode `hard`.
    ExportDel,
    /// SIGSTOP for the engine, and SIGCONT after this time.
    EngineStop(Duration),
    /// SIGKILL for the engine; `qferry recover` looks after it.
    EngineKill,
    /// SIGINT for the engine.
    EngineInterrupt,
    /// The connection to a monitor is cut.
    MonitorCut(Side),
    /// A monitor is silent for this long.
    MonitorLate(Side, Duration),
    /// The connection that carries RAM is cut.
    RamCut,
    /// The connection that carries the disks is cut.
    NbdCut,
    /// SIGKILL for a QEMU.
    Kill(Side),
    /// SIGSTOP for a QEMU, and SIGCONT after this time.
    Freeze(Side, Duration),
    /// The file system of the source's images is filled.
    Fill,
    /// Each flush of a QEMU takes so much longer from now on.
    SlowFlush(Side, Duration),
    /// The wall clock is set so many seconds ahead.
    Clock(Clocks, i64),
    /// A second engine is told to migrate the same guest, over monitors of its own.
    SecondEngine,
    /// The guest acts on its own machine, told so by an NMI; where `pauses`, QEMU is told to pause instead of ending.
    Guest {
        /// The deed.
        act: Act,
        /// `set-action` with `pause`.
        pauses: bool,
    },
}

impl Attack {
    /// Draws one, with its details.
    pub(crate) fn draw(random: &mut Random) -> Self {
        let side = random.one_of(&[Side::Source, Side::Source, Side::Destination]);
        let ms = |random: &mut Random, most: u64| Duration::from_millis(10 + random.below(most));
        let choice: [(u8, u64); 31] = [
            (0, 4),
            (1, 4),
            (2, 4),
            (3, 2),
            (4, 1),
            (5, 3),
            (6, 3),
            (7, 2),
            (8, 2),
            (9, 2),
            (10, 2),
            (11, 2),
            (12, 2),
            (13, 3),
            (14, 1),
            (15, 3),
            (16, 3),
            (17, 5),
            (18, 3),
            (19, 2),
            (20, 2),
            (21, 1),
            (22, 2),
            (23, 2),
            (24, 3),
            (25, 4),
            (26, 2),
            (27, 5),
            (28, 4),
            (29, 3),
            (30, 9),
        ];
        match random.weighed(&choice) {
            0 => Self::Stop(side),
            1 => Self::Cont(side),
            2 => Self::Pause(ms(random, 700)),
            3 => Self::Reset(side),
            4 => Self::PowerButton,
            5 => Self::Quit(side),
            6 => Self::Unplug(side),
            7 => Self::Exchange,
            8 => Self::PlugDisk(side),
            9 => Self::PlugUsb(side),
            10 => Self::Eject(side),
            11 => Self::ChangeMedium(side),
            12 => Self::JobPause(ms(random, 2000)),
            13 => Self::JobCancel { force: random.once_in(2) },
            14 => Self::JobSpeed(random.one_of(&[1 << 20, 64 << 20])),
            15 => Self::MigrateAway,
            16 => Self::MigrateCancel,
            17 => Self::Capability(side, random.one_of(&CAPABILITIES), random.once_in(3)),
            18 => {
                let (name, value) = random.one_of(&PARAMETERS);
                Self::Parameter(side, name, value)
            }
            19 => Self::Resize,
            20 => Self::Throttle(random.one_of(&[20, 200])),
            21 => Self::Balloon(64 << 20),
            22 => Self::NbdServerStop,
            23 => Self::ExportDel,
            24 => Self::EngineStop(ms(random, 3000)),
            25 => random.one_of(&[Self::EngineKill, Self::EngineKill, Self::EngineInterrupt]),
            26 => Self::Kill(side),
            27 => random.one_of(&[
                Self::MonitorCut(side),
                Self::MonitorLate(side, Duration::from_millis(1500)),
                Self::RamCut,
                Self::RamCut,
                Self::NbdCut,
            ]),
            28 => Self::Freeze(side, ms(random, 3000)),
            29 => Self::Fill,
            _ => Self::Guest { act: random.one_of(&Act::ALL), pauses: random.once_in(2) },
        }
    }

    /// Draws what may come on top of other attacks. The engine knows that `proxied` QEMUs may be on other hosts, whose
    /// clocks are their own.
    pub(crate) fn draw_further(random: &mut Random, proxied: bool) -> Option<Self> {
        let side = random.one_of(&[Side::Source, Side::Destination]);
        let (by, step) = (Duration::from_millis(100 + random.below(1400)), random.one_of(&STEPS));
        let clocks = match proxied {
            true => random.one_of(&[Clocks::All, Clocks::Engine, Clocks::Of(side)]),
            false => Clocks::All,
        };
        match random.weighed(&[(0, 10), (1, 5), (2, 4), (3, 1)]) {
            0 => None,
            1 => Some(Self::SlowFlush(side, by)),
            2 => Some(Self::Clock(clocks, step)),
            _ => Some(Self::SecondEngine),
        }
    }

    /// The kind of attack, as it stands in the table.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Stop(side) => format!("{side}: stop"),
            Self::Cont(side) => format!("{side}: cont"),
            Self::Pause(_) => "source: stop, cont".to_owned(),
            Self::Reset(side) => format!("{side}: system_reset"),
            Self::PowerButton => "source: system_powerdown".to_owned(),
            Self::Quit(side) => format!("{side}: quit"),
            Self::Unplug(side) => format!("{side}: device_del of a disk"),
            Self::Exchange => "source: device_del, device_add of another image".to_owned(),
            Self::PlugDisk(side) => format!("{side}: device_add of a disk"),
            Self::PlugUsb(side) => format!("{side}: device_add of a USB tablet"),
            Self::Eject(side) => format!("{side}: medium removed"),
            Self::ChangeMedium(side) => format!("{side}: medium changed"),
            Self::JobPause(_) => "source: block-job-pause, block-job-resume".to_owned(),
            Self::JobCancel { force } => format!("source: block-job-cancel{}", if *force { " force" } else { "" }),
            Self::JobSpeed(_) => "source: block-job-set-speed".to_owned(),
            Self::MigrateAway => "source: migrate to a file".to_owned(),
            Self::MigrateCancel => "source: migrate_cancel".to_owned(),
            Self::Capability(side, name, _) => format!("{side}: capability {name}"),
            Self::Parameter(side, name, _) => format!("{side}: parameter {name}"),
            Self::Resize => "source: block_resize".to_owned(),
            Self::Throttle(_) => "source: block_set_io_throttle".to_owned(),
            Self::Balloon(_) => "source: balloon".to_owned(),
            Self::NbdServerStop => "destination: nbd-server-stop".to_owned(),
            Self::ExportDel => "destination: block-export-del".to_owned(),
            Self::EngineStop(_) => "engine: SIGSTOP, SIGCONT".to_owned(),
            Self::EngineKill => "engine: SIGKILL, recover".to_owned(),
            Self::EngineInterrupt => "engine: SIGINT".to_owned(),
            Self::MonitorCut(side) => format!("{side}: monitor cut"),
            Self::MonitorLate(side, _) => format!("{side}: monitor silent"),
            Self::RamCut => "RAM channel cut".to_owned(),
            Self::NbdCut => "NBD channel cut".to_owned(),
            Self::Kill(side) => format!("{side}: SIGKILL"),
            Self::Freeze(side, _) => format!("{side}: SIGSTOP, SIGCONT"),
            Self::Fill => "source: file system full".to_owned(),
            Self::SlowFlush(side, _) => format!("{side}: slow flushes"),
            Self::Clock(Clocks::All, _) => "clock of all set".to_owned(),
            Self::Clock(Clocks::Engine, _) => "engine: clock set".to_owned(),
            Self::Clock(Clocks::Of(side), _) => format!("{side}: clock set"),
            Self::SecondEngine => "a second engine".to_owned(),
            Self::Guest { act, pauses } => {
                let word = match act {
                    Act::PowerOff => "powers off",
                    Act::Reset => "resets",
                    Act::Panic => "panics",
                    Act::Suspend => "suspends",
                };
                format!("guest {word}{}", if *pauses { " (action: pause)" } else { "" })
            }
        }
    }

    /// Whether proxies between the engine and both QEMUs are needed.
    pub(crate) fn needs_proxies(&self) -> bool {
        matches!(self, Self::MonitorCut(_) | Self::MonitorLate(..) | Self::RamCut | Self::NbdCut)
    }
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind())?;
        match self {
            Self::Pause(by)
            | Self::JobPause(by)
            | Self::EngineStop(by)
            | Self::MonitorLate(_, by)
            | Self::SlowFlush(_, by)
            | Self::Freeze(_, by) => write!(f, " ({} ms)", by.as_millis()),
            Self::JobSpeed(value) | Self::Throttle(value) | Self::Balloon(value) | Self::Parameter(_, _, value) => {
                write!(f, " {value}")
            }
            Self::Clock(_, by) => write!(f, " by {by} s"),
            Self::Capability(_, _, on) => write!(f, " {}", if *on { "on" } else { "off" }),
            _ => Ok(()),
        }
    }
}
