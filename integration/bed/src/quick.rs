//! A source without a destination yet, and the files and arguments of a destination.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::PATIENCE;
use crate::booted::Booted;
use crate::command_line::{arguments, monitors};
use crate::deviation::{Mounted, create_destination, id_of};
use crate::disk::{DiskFiles, create};
use crate::error::{Context, Error, Result};
use crate::machine::{Launch, Machine};
use crate::pair::{Pair, check_spec};
use crate::qemu_build::Build;
use crate::record::{Record, Side};
use crate::spec::{Guest, Spec};
use crate::wire::Wire;

/// Beats that show a guest to be up.
const UP: u64 = 3;

/// A source with its guest and no destination yet.
pub struct Half {
    /// The QEMU on which the guest begins.
    pub source: Machine,
    pub(crate) spec: Spec,
    pub(crate) builds: [Build; 2],
    pub(crate) record: Arc<Record>,
    /// The file system of the source's top images, if they have one of their own.
    pub(crate) room: Option<Mounted>,
    pub(crate) folder: TempDir,
    started: Instant,
}

/// Arguments and files that a test made for a destination.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Arguments for QEMU, `-blockdev` and `-device` and the like.
    pub arguments: Vec<String>,
    /// The files behind them, for judgements.
    pub disks: Vec<DiskFiles>,
    /// Whether these are all arguments. Otherwise they replace the bed's arguments for disks, and the bed adds machine,
    /// memory, `-incoming defer` and the rest. The bed's monitors are added in any case if they are missing.
    pub whole: bool,
}

impl Half {
    /// Makes the source's disks, starts it, and waits until the guest is as the spec wants it.
    ///
    /// # Errors
    /// A part of the bed is missing, the spec contradicts itself, or QEMU or the guest does not start.
    pub fn start(spec: &Spec) -> Result<Self> {
        let half = Self::begin(spec)?;
        half.wait_for_guest()?;
        Ok(half)
    }

    /// Starts the source without waiting for the guest.
    pub(crate) fn begin(spec: &Spec) -> Result<Self> {
        let mut spec = spec.clone();
        spec.fill_in();
        check_spec(&spec)?;
        let builds =
            [Build::locate(&spec.version)?, Build::locate(spec.destination_version.as_ref().unwrap_or(&spec.version))?];
        let folder = tempfile::Builder::new().prefix("qferry-").tempdir().context(|| "creating the pair's folder")?;
        for name in ["source", "destination", "run"] {
            fs::create_dir(folder.path().join(name)).context(|| format!("creating the folder {name}"))?;
        }
        let home = folder.path().join("source");
        let room = spec.source_room.map(|bytes| Mounted::tmpfs(home.join("small"), bytes)).transpose()?;
        let tops = room.as_ref().map_or(home.as_path(), Mounted::path);
        let disks = create(&builds[0], &spec.disks, Side::Source, &home, tops)?;
        if let Some((boot, first)) = spec.boot.as_ref().zip(disks.first()) {
            boot.install(&builds[0], &first.overlay, first.format)?;
        }
        let record = Arc::new(Record::default());
        let booted = Booted::find(&spec, &builds[0])?;
        let mut words = arguments(Side::Source, &spec, &builds, &home, &disks, None)?;
        words.extend(booted.as_ref().map(|_| "-S".to_owned()));
        let started = Instant::now();
        let source = Machine::start(Launch {
            side: Side::Source,
            build: &builds[0],
            folder: &home,
            arguments: words,
            booted: booted.as_ref(),
            devices: devices(&spec, Side::Source),
            disks,
            apart: spec.apart,
            slow_flush: spec.slow_flush,
            own_clock: spec.own_clock,
            wire: spec.link.map(|link| Wire::start(link).map(Arc::new)).transpose()?,
            record: (!spec.quick).then_some(&record),
        })?;
        Ok(Self { source, spec, builds, record, room, folder, started })
    }

    /// Waits until the guest is up, and pauses it if the spec says so. Returns the time since the start.
    pub(crate) fn wait_for_guest(&self) -> Result<Duration> {
        let (spec, record) = (&self.spec, &self.record);
        let mut boot = Duration::ZERO;
        if !spec.quick {
            record.wait_for_beats(Side::Source, UP, PATIENCE).context(|| format!("after {}", self.source.stderr()))?;
            boot = record.beats().get(UP as usize - 1).map_or(boot, |beat| beat.at - self.started);
            if spec.workload.write > 0 && spec.workload.disks > 0 {
                record.wait_for_writes(Side::Source, 1, PATIENCE)?;
            }
        }
        for (number, disk) in spec.disks.iter().enumerate() {
            if let Some(reads) = disk.throttled_reads {
                throttle_reads(&self.source, number, reads)?;
            }
        }
        if spec.guest == Guest::Paused {
            self.source.qmp("stop", &json!({}))?;
        }
        Ok(boot)
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The QEMU build of a side.
    pub fn build(&self, side: Side) -> &Build {
        &self.builds[side as usize]
    }

    /// An empty folder for the engine's sockets and journals, removed with the pair.
    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// The folder that the destination will have, empty as yet.
    pub fn destination_dir(&self) -> PathBuf {
        self.folder.path().join("destination")
    }

    /// Starts a destination on the bed's own images.
    ///
    /// # Errors
    /// The destination does not start.
    pub fn join(self) -> Result<Pair> {
        Pair::join(self, None)
    }

    /// Starts a destination on a test's own files and arguments.
    ///
    /// # Errors
    /// The destination does not start; the error has QEMU's words.
    pub fn join_with(self, given: Given) -> Result<Pair> {
        Pair::join(self, Some(given))
    }
}

pub(crate) fn throttle_reads(source: &Machine, disk: usize, reads: u64) -> Result<()> {
    let path = format!("/objects/reads{disk}");
    let limits = json!({"path": path, "property": "limits", "value": {"iops-read": reads}});
    source.qmp("qom-set", &limits).map(drop)
}

/// The name of each disk's device in `query-block`.
fn devices(spec: &Spec, side: Side) -> Vec<String> {
    let device = |(number, disk): (usize, &crate::DiskSpec)| match disk.device {
        crate::Device::Pflash => "/machine/system.flash1".to_owned(),
        _ => id_of(spec, side, number),
    };
    spec.disks.iter().enumerate().map(device).collect()
}

/// Starts a destination in its folder, on files that are there (`old`) or on new ones.
pub(crate) fn start_destination(
    spec: &Spec,
    builds: &[Build; 2],
    home: &Path,
    record: &Arc<Record>,
    source: &Machine,
    given: Option<&Given>,
    old: Option<Vec<DiskFiles>>,
) -> Result<(Machine, Option<Mounted>)> {
    let mut mounted = None;
    let disks = match (given, old) {
        (Some(given), None) => given.disks.clone(),
        (_, Some(old)) => old,
        (None, None) => {
            let created = create_destination(&builds[1], spec, home, source.disks())?;
            mounted = created.1;
            created.0
        }
    };
    let arguments = match given {
        Some(Given { whole: true, arguments, .. }) => {
            let watch = home.join("watch").display().to_string();
            let has_watch = arguments.iter().any(|argument| argument.contains(&watch));
            let added = monitors(home).into_iter().filter(|_| !has_watch);
            arguments.iter().cloned().chain(added).collect()
        }
        Some(given) => arguments(Side::Destination, spec, builds, home, &disks, Some(&given.arguments))?,
        None => arguments(Side::Destination, spec, builds, home, &disks, None)?,
    };
    let machine = Machine::start(Launch {
        side: Side::Destination,
        build: &builds[1],
        folder: home,
        arguments,
        devices: devices(spec, Side::Destination),
        disks,
        apart: spec.apart,
        slow_flush: spec.slow_flush,
        own_clock: spec.own_clock,
        wire: source.wire().cloned(),
        record: (!spec.quick).then_some(record),
        booted: None,
    })?;
    Ok((machine, mounted))
}

/// An error for a pair whose destination a test has made.
pub(crate) fn no_given_destination(given: Option<&Given>) -> Result<()> {
    match given {
        Some(_) => Err(Error::new("the destination's images were made by somebody else")),
        None => Ok(()),
    }
}
