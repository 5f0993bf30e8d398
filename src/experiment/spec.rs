//! What a sweep varies, runs and measures, as it is written in TOML.
//!
//! Pure. Owns the shapes and their defaults; `grid` makes trials of them, and the caller reads the file.

use crate::quantity::{Bytes, Rate, duration};
use serde::Deserialize;
use std::{fmt, time::Duration};

/// A sweep, as its file says it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SweepSpec {
    /// The sweep's name in reports.
    pub(crate) name: String,
    /// Trials of each combination of values, which are so many blocks of the sweep.
    pub(crate) repeats: u32,
    pub(crate) order: TrialOrder,
    /// The seed of the order and of the statistics.
    pub(crate) seed: u64,
    /// The guest's work before it is first looked at, after each boot.
    #[serde(with = "duration")]
    pub(crate) warm_up: Duration,
    /// The time before the migration in which the guest's throughput is measured.
    #[serde(with = "duration")]
    pub(crate) before: Duration,
    /// The time after it.
    #[serde(with = "duration")]
    pub(crate) after: Duration,
    /// A migration that lasts longer is cancelled, and counts as one that would have lasted longer.
    #[serde(with = "duration")]
    pub(crate) limit: Duration,
    /// Whether every trial boots a guest anew. Otherwise a guest goes on to and fro while machine, disks and workload
    /// stay the same.
    pub(crate) fresh_guest: bool,
    /// Whether the guest's data must be read in full and found right after every migration.
    pub(crate) verify: bool,
    /// A command of the shell before each migration, and one after it, with the trial's facts in its environment.
    pub(crate) prepare: Option<String>,
    pub(crate) cleanup: Option<String>,
    pub(crate) machine: SweepMachine,
    pub(crate) disks: SweepDisks,
    pub(crate) workload: SweepWorkload,
    pub(crate) link: SweepLink,
    /// What makes the migrations, where it is not `qferry migrate`.
    pub(crate) migrator: Option<SweepMigrator>,
    /// Options of `qferry migrate` by their names; `true` is an option without a value.
    pub(crate) migrate: toml::Table,
    /// Fields of a policy; `base` names the policy that has the rest.
    pub(crate) policy: toml::Table,
    #[serde(rename = "factor")]
    pub(crate) factors: Vec<SweepFactor>,
}

/// The order of the trials of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TrialOrder {
    /// Every combination once, beginning with another one in each block.
    #[default]
    Interleaved,
    /// Every combination once, in an order drawn from the seed.
    Random,
}

impl fmt::Display for TrialOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interleaved => "interleaved",
            Self::Random => "random within blocks",
        })
    }
}

/// What is varied: one field of the file, or several that change together.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SweepFactor {
    /// The field, with dots between the names of its tables: `migrate.downtime`.
    pub(crate) field: Option<String>,
    /// The factor's name in results; the field if there is none.
    pub(crate) name: Option<String>,
    /// The field's values; or tables with a `label` and the fields that it stands for.
    pub(crate) values: Vec<toml::Value>,
}

/// How the two QEMUs are started.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SweepMachine {
    /// The program of both sides.
    pub(crate) qemu: String,
    /// That of the side that the guest moves to, where it is another one. A guest that moves on keeps its own.
    pub(crate) destination_qemu: Option<String>,
    /// The program that makes images.
    pub(crate) qemu_img: String,
    /// The machine type.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// `kvm`, `tcg`, or `auto`: KVM where it can be used.
    pub(crate) accelerator: String,
    pub(crate) memory: Bytes,
    pub(crate) cpus: u32,
    /// Whether the guest has a network card, through which it is probed from outside.
    pub(crate) network: bool,
    /// Arguments for both sides behind those that the sweep makes.
    pub(crate) arguments: Vec<String>,
    /// A command of your own in place of the one that the sweep makes, with placeholders; see `--example`.
    pub(crate) command: Option<Vec<String>>,
    /// What such a command has more on the side that waits for the guest.
    pub(crate) incoming: Vec<String>,
}

/// The disks of the guest: qcow2 images over one image that both sides have.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SweepDisks {
    pub(crate) count: u32,
    pub(crate) size: Bytes,
    /// What the guest writes to each before the first trial, and the mirror has to copy.
    pub(crate) filled: Bytes,
    /// Whether that is sealed then, as a layer that both sides have: what the guest has written since is all that is
    /// copied, there and back.
    pub(crate) sealed: bool,
}

/// The link between the two QEMUs. With nothing of it, they speak over unix sockets.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SweepLink {
    /// Whether the two QEMUs have a link also where nothing of it is shaped.
    pub(crate) unshaped: bool,
    /// The rate of each direction.
    pub(crate) rate: Option<Rate>,
    /// The time that a packet takes, in each direction.
    #[serde(with = "duration::option")]
    pub(crate) delay: Option<Duration>,
    /// The part of the packets that is lost in each direction, such as `0.1%`.
    pub(crate) loss: Option<String>,
}

/// A program that moves the guest in place of `qferry migrate`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SweepMigrator {
    /// The program and its arguments, with placeholders; see `--example`.
    pub(crate) command: Vec<String>,
    /// Whether it starts the destination's QEMU itself.
    #[serde(default)]
    pub(crate) starts_destination: bool,
}

/// What the guest does.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SweepWorkload {
    /// The memory that the guest fills and then dirties.
    pub(crate) memory: Bytes,
    /// How much of it it dirties: a rate such as `80MiB/s`, `0`, or `max`.
    pub(crate) dirty: String,
    /// `sequential` or `random`.
    pub(crate) pattern: String,
    /// Writes a second to each disk.
    pub(crate) writes: u32,
    /// The size of one.
    pub(crate) block: Bytes,
    /// The part of each disk that is written to.
    pub(crate) span: Bytes,
    /// Whether each write is flushed.
    pub(crate) sync: bool,
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Default for SweepSpec {
    fn default() -> Self {
        Self {
            name: "sweep".into(),
            repeats: 5,
            order: TrialOrder::Interleaved,
            seed: 1,
            warm_up: seconds(2),
            before: seconds(2),
            after: seconds(3),
            limit: seconds(120),
            fresh_guest: false,
            verify: true,
            prepare: None,
            cleanup: None,
            machine: SweepMachine::default(),
            disks: SweepDisks::default(),
            workload: SweepWorkload::default(),
            link: SweepLink::default(),
            migrator: None,
            migrate: toml::Table::new(),
            policy: toml::Table::new(),
            factors: Vec::new(),
        }
    }
}

impl Default for SweepMachine {
    fn default() -> Self {
        Self {
            qemu: "qemu-system-x86_64".into(),
            destination_qemu: None,
            qemu_img: "qemu-img".into(),
            kind: "pc".into(),
            accelerator: "auto".into(),
            memory: Bytes(512 << 20),
            cpus: 1,
            network: true,
            arguments: Vec::new(),
            command: None,
            incoming: Vec::new(),
        }
    }
}

impl Default for SweepDisks {
    fn default() -> Self {
        Self { count: 1, size: Bytes(1 << 30), filled: Bytes(64 << 20), sealed: false }
    }
}

impl Default for SweepWorkload {
    fn default() -> Self {
        Self {
            memory: Bytes(256 << 20),
            dirty: "0".into(),
            pattern: "sequential".into(),
            writes: 20,
            block: Bytes(64 << 10),
            span: Bytes(64 << 20),
            sync: false,
        }
    }
}
