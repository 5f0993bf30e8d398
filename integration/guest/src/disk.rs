//! A disk that is written to and read back, slot by slot.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use qferry_guest::Workload;
use qferry_guest::block::{self, SECTOR, Stamp};
use qferry_guest::line::Line;

use crate::pace::{Pace, sleep_until};
use crate::port::{complain, say};
use crate::sys;

/// The time within which the disks must appear after their driver.
const APPEARS: Duration = Duration::from_secs(10);
/// The number of errors after which this disk is left alone.
const ERRORS: u32 = 20;
/// The number of slots between two reports of the count.
const REPORT: u64 = 8;

/// One disk under test.
pub(crate) struct Disk {
    number: usize,
    file: File,
    /// The generation last acknowledged in each slot, 0 is none, and whether it was a zeroing.
    latest: Vec<(u64, bool)>,
    written: u64,
    read: u64,
    errors: u32,
    buffer: &'static mut [u64],
}

impl Disk {
    /// Finds the disk whose serial is `diskN` and opens it past the page cache.
    pub(crate) fn open(number: usize, workload: &Workload) -> Result<Self, String> {
        let path = find(&format!("disk{number}")).ok_or_else(|| format!("disk {number} did not appear"))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
            .open(&path)
            .map_err(|error| format!("disk {number}: {}: {error}", path.display()))?;
        let length = usize::try_from(workload.block).map_err(|_| "block is too large".to_owned())?;
        let buffer = sys::words(length / 8).map_err(|error| format!("disk {number}: no buffer: {error}"))?;
        let latest = vec![(0, false); workload.slots as usize];
        Ok(Self { number, file, latest, written: 0, read: 0, errors: 0, buffer })
    }

    /// Writes and reads back at the workload's rates, until too much is wrong.
    pub(crate) fn work(&mut self, workload: &Workload) {
        let mut writes = Pace::per_second(workload.write);
        let mut discards = Pace::per_second(if workload.write > 0 { workload.discard } else { 0 });
        let mut reads = Pace::per_second(if workload.write > 0 { workload.read } else { 0 });
        while self.errors < ERRORS {
            let Some(next) = [writes.next(), discards.next(), reads.next()].into_iter().flatten().min() else {
                return;
            };
            sleep_until(next);
            let now = Instant::now();
            let due = [
                writes.take(now).then_some(Self::write as fn(&mut Self, &Workload) -> Result<(), String>),
                discards.take(now).then_some(Self::discard),
                reads.take(now).then_some(Self::verify),
            ];
            if let Err(text) = due.into_iter().flatten().try_for_each(|step| step(self, workload)) {
                self.errors += 1;
                complain(format!("disk {}: {text}", self.number));
            }
        }
        complain(format!("disk {}: given up", self.number));
    }

    fn write(&mut self, workload: &Workload) -> Result<(), String> {
        let (disk, generation) = (self.number, self.written + 1);
        let slot = workload.slot(generation);
        let bytes = sys::bytes(self.buffer);
        block::fill(bytes, disk, slot, generation);
        say(&Line::Announce { disk, slot, generation });
        self.written = generation;
        self.file
            .write_all_at(bytes, workload.offset(slot))
            .map_err(|error| format!("slot {slot}: write {generation}: {error}"))?;
        say(&Line::Acknowledge { disk, generation });
        self.note(slot, (generation, false));
        Ok(())
    }

    fn discard(&mut self, workload: &Workload) -> Result<(), String> {
        let (disk, generation) = (self.number, self.written + 1);
        let slot = workload.slot(generation);
        say(&Line::Zero { disk, slot, generation });
        self.written = generation;
        sys::punch(&self.file, workload.offset(slot), workload.block)
            .and_then(|()| self.file.sync_data()) // O_DSYNC is for writes alone
            .map_err(|error| format!("slot {slot}: discard {generation}: {error}"))?;
        say(&Line::Acknowledge { disk, generation });
        self.note(slot, (generation, true));
        Ok(())
    }

    fn note(&mut self, slot: u32, done: (u64, bool)) {
        if let Some(latest) = self.latest.get_mut(slot as usize) {
            *latest = done;
        }
    }

    /// Reads the next slot in order. A slot not written yet counts too: a count grown by the number of slots has seen
    /// all.
    fn verify(&mut self, workload: &Workload) -> Result<(), String> {
        let slot = (self.read % u64::from(workload.slots)) as u32; // less than a u32
        self.read += 1;
        if self.read % REPORT == 0 {
            say(&Line::Slots { disk: self.number, total: self.read });
        }
        let (generation, zeroed) = self.latest.get(slot as usize).copied().unwrap_or_default();
        if generation == 0 {
            return Ok(());
        }
        let bytes = sys::bytes(self.buffer);
        self.file.read_exact_at(bytes, workload.offset(slot)).map_err(|error| format!("slot {slot}: read: {error}"))?;
        for (sector, content) in (0..).zip(bytes.chunks_exact(SECTOR)) {
            let expected = Stamp { disk: self.number, slot, sector, generation };
            if zeroed && content.iter().all(|byte| *byte == 0) {
                continue;
            }
            let found = block::read(content);
            if zeroed || found != Ok(expected) {
                return Err(format!(
                    "slot {slot}: generation {generation} (zeroed: {zeroed}), sector {sector} holds {found:?}"
                ));
            }
        }
        Ok(())
    }
}

fn find(serial: &str) -> Option<PathBuf> {
    let deadline = Instant::now() + APPEARS;
    while Instant::now() < deadline {
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let found = fs::read_to_string(entry.path().join("serial"));
            if found.is_ok_and(|found| found.trim() == serial) {
                return Some(PathBuf::from("/dev").join(entry.file_name()));
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    None
}
