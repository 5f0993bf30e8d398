//! A pair of QEMUs with a guest on the first, and the judgement of the guest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qferry_guest::Workload;
use tempfile::TempDir;

use crate::PATIENCE;
use crate::check::{DiskCheck, check};
use crate::deviation::{Deviation, Mounted};
use crate::disk::{Device, DiskFiles, check_disk_specs};
use crate::error::{Error, Result};
use crate::image::{ChainLink, chain, guest_visible_equal};
use crate::machine::Machine;
use crate::qemu_build::Build;
use crate::quick::{Given, Half, no_given_destination, start_destination, throttle_reads};
use crate::record::{Beat, Done, Record, Side, Slot, Verified};
use crate::spec::{Guest, Spec, Style};
use crate::wire::Wire;

/// Two QEMUs that share no file unless told to: on the source a booted guest, the destination waiting with `-incoming
/// defer -S`. Dropping it kills both and removes their files.
pub struct Pair {
    /// The QEMU on which the guest begins.
    pub source: Machine,
    /// The QEMU to which the guest shall move.
    pub destination: Machine,
    /// The time from the start of the source to its first beats.
    pub boot: Duration,
    spec: Spec,
    builds: [Build; 2],
    record: Arc<Record>,
    given: Option<Given>,
    mounted: Option<Mounted>, // before the folder it is mounted in
    room: Option<Mounted>,
    folder: TempDir,
}

/// The longest time without a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The length.
    pub length: Duration,
    /// The beat before the gap.
    pub from: Beat,
    /// The beat after the gap.
    pub to: Beat,
}

impl Pair {
    /// Makes the disks, starts both QEMUs, and waits until the guest beats and its first write is acknowledged.
    ///
    /// # Errors
    /// A part of the bed is missing, the spec contradicts itself, or a QEMU or the guest does not start.
    pub fn start(spec: &Spec) -> Result<Self> {
        Self::join(Half::begin(spec)?, None)
    }

    /// Starts the destination of a source, and waits for the guest.
    pub(crate) fn join(half: Half, given: Option<Given>) -> Result<Self> {
        let home = half.destination_dir();
        let (destination, mounted) =
            start_destination(&half.spec, &half.builds, &home, &half.record, &half.source, given.as_ref(), None)?;
        let boot = half.wait_for_guest()?;
        let Half { source, spec, builds, record, room, folder, .. } = half;
        Ok(Self { source, destination, boot, spec, builds, record, given, mounted, room, folder })
    }

    /// Sets how many reads a second a disk's overlay file on the source may do; 0 is no limit. The disk's spec must
    /// have asked for a throttle.
    ///
    /// # Errors
    /// The disk has no throttle.
    pub fn throttle_reads(&self, disk: usize, reads: u64) -> Result<()> {
        throttle_reads(&self.source, disk, reads)
    }

    /// The spec.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The QEMU build of a side.
    pub fn build(&self, side: Side) -> &Build {
        &self.builds[side as usize]
    }

    /// The machine of a side.
    pub fn machine(&self, side: Side) -> &Machine {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    /// The two hosts and the link between them, if the spec asked for one.
    pub fn wire(&self) -> Option<&Wire> {
        self.source.wire().map(AsRef::as_ref)
    }

    /// An empty folder for the engine's sockets and journals, removed with the pair.
    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// Replaces the destination by a fresh process, with all its files made anew (and its deviations with them) if
    /// asked.
    ///
    /// # Errors
    /// The destination does not start.
    pub fn restart_destination(&mut self, fresh: bool) -> Result<()> {
        self.destination.kill()?;
        let mut old = Some(self.destination.disks().to_vec());
        if fresh {
            no_given_destination(self.given.as_ref())?;
            old = None;
            self.mounted = None;
        }
        let (home, given) = (self.destination.folder(), self.given.as_ref());
        let (machine, mounted) =
            start_destination(&self.spec, &self.builds, home, &self.record, &self.source, given, old)?;
        self.destination = machine;
        self.mounted = mounted.or(self.mounted.take());
        Ok(())
    }

    /// Turns a pair round after a migration: the destination becomes the source, and a fresh destination waits in the
    /// folder of the former source, on new images over the backing files there.
    ///
    /// # Errors
    /// The source still runs a guest, the two sides are of different versions or on two hosts, or the new destination
    /// does not start.
    pub fn turn(&mut self) -> Result<()> {
        no_given_destination(self.given.as_ref())?;
        if self.wire().is_some() || self.builds[0].version() != self.builds[1].version() {
            return Err(Error::new("only sides that are alike can be turned round"));
        }
        if self.source.alive()? && self.source.status()? == "running" {
            return Err(Error::new("the guest is not on the destination alone"));
        }
        self.source.kill()?;
        // Old files are in nobody's way: files of the same name are made anew.
        (self.mounted, self.room) = (None, None);
        self.record.turn();
        let home = self.source.folder();
        let (machine, mounted) =
            start_destination(&self.spec, &self.builds, home, &self.record, &self.destination, None, None)?;
        self.source = std::mem::replace(&mut self.destination, machine);
        self.source.become_source();
        self.mounted = mounted;
        Ok(())
    }

    /// Replaces the destination by a fresh one with these deviations in place of the spec's.
    ///
    /// # Errors
    /// The destination does not start.
    pub fn deviate(&mut self, deviations: impl Into<Vec<Deviation>>) -> Result<()> {
        self.spec.destination = deviations.into();
        self.restart_destination(true)
    }

    /// Whether a guest would see the same on a disk of both sides, to which nobody should be writing.
    ///
    /// # Errors
    /// The disks differ; the error says where.
    pub fn guest_visible_equal(&self, disk: usize) -> Result<()> {
        let files = |machine: &Machine| {
            let found = machine.disks().get(disk).cloned();
            found.ok_or_else(|| Error::new(format!("there is no disk {disk}")))
        };
        guest_visible_equal(self.build(Side::Destination), &files(&self.source)?, &files(&self.destination)?)
    }

    /// The images of a disk on a side, the top first.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn chain(&self, side: Side, disk: usize) -> Result<Vec<ChainLink>> {
        let files = self.machine(side).disks().get(disk);
        chain(self.build(side), files.ok_or_else(|| Error::new(format!("there is no disk {disk}")))?)
    }

    /// Waits for more beats on a side.
    ///
    /// # Errors
    /// The beats or writes did not come in time; the error has the guest's last lines.
    pub fn wait_for_beats(&self, side: Side, more: u64, patience: Duration) -> Result<()> {
        self.record.wait_for_beats(side, more, patience)
    }

    /// Waits for more acknowledged writes on a side, on all disks together.
    ///
    /// # Errors
    /// The beats or writes did not come in time; the error has the guest's last lines.
    pub fn wait_for_writes(&self, side: Side, more: u64, patience: Duration) -> Result<()> {
        self.record.wait_for_writes(side, more, patience)
    }

    /// Waits until the guest has verified, after this call, all of its memory and every slot of its disks once. Read
    /// [`Pair::errors`] then: this says that it looked, not what it found. Returns at once where the workload neither
    /// verifies memory nor writes.
    ///
    /// # Errors
    /// The guest did not verify everything in time.
    pub fn wait_until_verified(&self, patience: Duration) -> Result<()> {
        let workload = &self.spec.workload;
        let mut wanted = self.record.verified();
        if workload.dirty > 0 || workload.verify > 0 {
            // The guest reports counts in steps. Pages verified before this call and not yet reported must not count.
            wanted.pages += workload.pages() + workload.pages().div_ceil(16).clamp(16, 1024);
        }
        if workload.write > 0 && workload.read > 0 {
            for disk in 0..workload.disks as usize {
                *wanted.slots.entry(disk).or_default() += u64::from(workload.slots) + 8;
            }
        }
        self.record.wait_until_verified(&wanted, patience)
    }

    /// The guest's verifications so far.
    pub fn verified(&self) -> Verified {
        self.record.verified()
    }

    /// The guest's work between two moments, by its own lines. On a busy host the guest does less than its workload
    /// says.
    pub fn done(&self, from: Instant, until: Instant) -> Done {
        self.record.done(from, until)
    }

    /// The beats that arrived from one side.
    pub fn beats(&self, side: Side) -> Vec<Beat> {
        self.record.beats().into_iter().filter(|beat| beat.side == side).collect()
    }

    /// The longest time between two beats on whichever side, among those since a moment: the pause as seen from
    /// outside.
    pub fn longest_gap(&self, since: Instant) -> Option<Gap> {
        let mut beats = self.record.beats();
        beats.retain(|beat| beat.at >= since);
        beats.sort_by_key(|beat| beat.at);
        let gap = |pair: &[Beat]| match pair {
            [from, to] => Some(Gap { length: to.at - from.at, from: *from, to: *to }),
            _ => None,
        };
        beats.windows(2).filter_map(gap).max_by_key(|gap| gap.length)
    }

    /// The time from the source's last STOP to the destination's first RESUME, by QEMU's own time stamps.
    ///
    /// # Errors
    /// One of the two events is missing.
    pub fn blackout(&self) -> Result<Duration> {
        let stop = self.source.events()?.into_iter().rfind(|event| event.name == "STOP");
        let resume = self.destination.events()?.into_iter().find(|event| event.name == "RESUME");
        match (stop, resume) {
            (Some(stop), Some(resume)) => Ok(resume.time.saturating_sub(stop.time)),
            _ => Err(Error::new("no STOP on the source or no RESUME on the destination")),
        }
    }

    /// Writes acknowledged so far, on all sides and disks together.
    pub fn acknowledged(&self) -> u64 {
        self.record.acknowledged()
    }

    /// The slots of each disk that were written or announced.
    ///
    /// # Errors
    /// An acknowledgement without a write.
    pub fn slots(&self) -> Result<BTreeMap<usize, BTreeMap<u32, Slot>>> {
        self.record.slots()
    }

    /// The number of a disk's slots whose last write gave them back. A slow disk changes their share.
    ///
    /// # Errors
    /// An acknowledgement without a write.
    pub fn zeroed(&self, disk: usize) -> Result<u32> {
        let is_zeroed = |slot: &&Slot| slot.zeroed.contains(&slot.acknowledged);
        let zeroed = self.slots()?.get(&disk).map_or(0, |slots| slots.values().filter(is_zeroed).count());
        Ok(u32::try_from(zeroed).unwrap_or(u32::MAX))
    }

    /// The sides whose QEMU says that its guest runs. Two are one too many.
    ///
    /// # Errors
    /// A QEMU that is up does not answer.
    pub fn runners(&self) -> Result<Vec<Side>> {
        let mut running = Vec::new();
        for machine in [&self.source, &self.destination] {
            match machine.status() {
                Ok(status) if status == "running" => running.push(machine.side()),
                // The monitor closes a while before the process ends.
                Err(error) if machine.wait_for_end(PATIENCE).is_err() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(running)
    }

    /// The errors that the guest's lines report, or their order shows: a beat that is missing or came twice (a second
    /// runner), an acknowledgement without a write. An empty list is good.
    ///
    /// Lines of a guest that came from a 7.2 are left out. Under TCG that QEMU now and then misses that the guest has
    /// dirtied a page, so where RAM takes more than a pass the guest may wake with old pages: the guest does some work
    /// twice and finds its own pages newer than it knows, loses timers, or panics. No engine is needed for that: 12 of
    /// 48 straight lines at 32 MiB/s with both processors busy, none of 12 on 10.0.13. The disks are read offline. A
    /// guest that was paused for the move dirties nothing, so its lines count.
    pub fn errors(&self) -> Vec<String> {
        let mut errors = self.record.errors();
        if self.spec.version == "7.2" && self.spec.guest == Guest::Running {
            let moved = format!("{}: ", Side::Destination);
            errors.retain(|error| !error.starts_with(&moved));
        }
        errors
    }

    /// Ends a side's QEMU (pausing the guest first) and reads its disks offline, one after the other: every slot holds
    /// the generation last acknowledged or a later one that was announced, and the rest what was there before.
    ///
    /// # Errors
    /// A disk does not hold the guest's writes; the error names disk, slot and generations.
    pub fn check_disks(&self, side: Side) -> Result<Vec<DiskCheck>> {
        let machine = self.machine(side);
        machine.finish()?;
        let said = self.record.slots()?;
        let nothing = BTreeMap::new();
        let scratch = self.folder.path().join("scratch.raw");
        let look = |(number, files): (usize, &DiskFiles)| {
            let said = said.get(&number).unwrap_or(&nothing);
            check(self.build(side), files, &scratch, number, &self.spec.disks, &self.spec.workload, said)
        };
        machine.disks().iter().enumerate().map(look).collect()
    }
}

/// Whether the parts of a spec fit together.
pub(crate) fn check_spec(spec: &Spec) -> Result<()> {
    let workload: &Workload = &spec.workload;
    workload.check().map_err(Error::new)?;
    check_disk_specs(&spec.disks)?;
    if spec.tcp && spec.link.is_some() {
        return Err(Error::new("monitors on TCP could not be reached: each would be on a host of its own"));
    }
    for (number, disk) in spec.disks.iter().enumerate() {
        if workload.write > 0 && disk.device == Device::Virtio && workload.end() > disk.size {
            return Err(Error::new(format!(
                "disk {number} ends at {}, the last slot at {}",
                disk.size,
                workload.end()
            )));
        }
        let filters = [disk.filter_above, disk.filter_below];
        if (disk.throttled_reads.is_some() || filters != [None; 2]) && spec.style == Style::Drive {
            return Err(Error::new("throttled reads and filters need -blockdev"));
        }
    }
    Ok(())
}
