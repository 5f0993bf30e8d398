//! The lines of the guest, from either side, with the host's time of arrival.
//!
//! A guest may be paused in the middle of a line: the source has its beginning, the destination its end. So the first
//! bytes from a destination are kept apart, and joined to the source's last open line.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qferry_guest::line::Line;

use crate::error::{Error, Result};

/// One of the two QEMUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The QEMU on which the guest begins.
    Source,
    /// The QEMU to which the guest shall move.
    Destination,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// One beat of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The time of arrival on the host.
    pub at: Instant,
    /// The number, from 1.
    pub number: u64,
    /// The side that ran the guest.
    pub side: Side,
}

/// The guest's lines on one slot of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The generation last acknowledged; 0 is none.
    pub acknowledged: u64,
    /// The generations announced after the acknowledged one, which may be on the disk or not.
    pub announced: Vec<u64>,
    /// The generations among these that are zeroes, because the guest gave the slot back.
    pub zeroed: Vec<u64>,
}

/// The guest's verifications so far, on all sides together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Pages of memory.
    pub pages: u64,
    /// Slots read back, per disk.
    pub slots: BTreeMap<usize, u64>,
}

/// The guest's work within some time, on all disks together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Pages of memory that were verified, and rewritten if the workload says so. The guest reports them in steps of a
    /// sixteenth of its memory.
    pub pages: u64,
}

/// All lines of the guest of one pair.
#[derive(Default)]
pub(crate) struct Record {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    logs: Vec<Log>,
    verified: Verified,
}

/// The bytes from one process.
struct Log {
    side: Side,
    lines: Vec<(Instant, Line)>,
    beats: u64,
    writes: u64,
    /// The end of a line another process began, until it is whole; `None` where lines begin from the start.
    head: Option<(Vec<u8>, Option<Instant>)>,
    open: Vec<u8>,
    foreign: Vec<String>,
}

impl Record {
    /// Starts a process's log; `feed` and `close` name it by the number returned.
    pub(crate) fn begin(&self, side: Side) -> usize {
        let head = (side == Side::Destination).then(|| (Vec::new(), None));
        let log = Log { side, lines: Vec::new(), beats: 0, writes: 0, head, open: Vec::new(), foreign: Vec::new() };
        let mut state = self.lock();
        state.logs.push(log);
        state.logs.len() - 1
    }

    /// The destination is where the guest begins from now on.
    pub(crate) fn turn(&self) {
        for log in &mut self.lock().logs {
            log.side = Side::Source;
        }
    }

    /// Reads a debug port to its end, all waiting bytes at a time: a guest writes less than a tenth of this in a
    /// second.
    pub(crate) fn read_to_end(self: &Arc<Self>, mut port: UnixStream, log: usize) {
        let mut buffer = [0; 64 << 10];
        while let Ok(length) = port.read(&mut buffer) {
            let at = Instant::now();
            match buffer.get(..length) {
                Some(bytes) if length > 0 => self.feed(log, at, bytes),
                _ => break,
            }
        }
        self.grown.notify_all();
    }

    fn feed(&self, log: usize, at: Instant, bytes: &[u8]) {
        let mut state = self.lock();
        let mut whole = false;
        for byte in bytes {
            whole |= *byte == b'\n';
            state.take(log, at, *byte);
        }
        if whole {
            self.grown.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `enough` accepts the record, or the time is over.
    fn wait(&self, patience: Duration, what: &str, mut enough: impl FnMut(&State) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if enough(&state) {
                return Ok(());
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                drop(state);
                return Err(Error::new(format!("no {what} in {patience:?}; the guest said: {}", self.last_words())));
            };
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn wait_for_beats(&self, side: Side, more: u64, patience: Duration) -> Result<()> {
        let wanted = self.lock().beats(side) + more;
        self.wait(patience, &format!("{more} more beats on the {side}"), |state| state.beats(side) >= wanted)
    }

    pub(crate) fn wait_for_writes(&self, side: Side, more: u64, patience: Duration) -> Result<()> {
        let wanted = self.lock().writes(side) + more;
        self.wait(patience, &format!("{more} more writes on the {side}"), |state| state.writes(side) >= wanted)
    }

    pub(crate) fn wait_until_verified(&self, wanted: &Verified, patience: Duration) -> Result<()> {
        let waited = self.wait(patience, "verification of all memory and disks", |state| state.verified.covers(wanted));
        waited.map_err(|error| Error::new(format!("{error}; {:?} was awaited, {:?} came", wanted, self.verified())))
    }

    pub(crate) fn verified(&self) -> Verified {
        self.lock().verified.clone()
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.lock().logs.iter().map(|log| log.writes).sum()
    }

    pub(crate) fn lines(&self) -> Vec<(Side, Instant, Line)> {
        self.lock().joined().0
    }

    pub(crate) fn done(&self, from: Instant, until: Instant) -> Done {
        let (mut done, mut pages) = (Done::default(), None);
        for (_, at, line) in self.lines() {
            let counts = from <= at && at < until;
            match line {
                Line::Acknowledge { .. } if counts => done.writes += 1,
                Line::Pages(total) => {
                    let before = pages.replace(total).unwrap_or_default();
                    done.pages += if counts { total.saturating_sub(before) } else { 0 };
                }
                _ => {}
            }
        }
        done
    }

    pub(crate) fn beats(&self) -> Vec<Beat> {
        let beat = |(side, at, line)| match line {
            Line::Beat(number) => Some(Beat { at, number, side }),
            _ => None,
        };
        self.lines().into_iter().filter_map(beat).collect()
    }

    /// The errors that the guest's lines report, or their order shows.
    pub(crate) fn errors(&self) -> Vec<String> {
        let (lines, mut errors) = self.lock().joined();
        errors.extend(lines.iter().filter_map(|(side, _, line)| match line {
            Line::Error(text) => Some(format!("{side}: {text}")),
            _ => None,
        }));
        let mut last = 0;
        for (side, _, line) in &lines {
            if let Line::Beat(number) = line {
                if *number != last + 1 {
                    errors.push(format!("{side}: beat {number} follows beat {last}"));
                }
                last = *number;
            }
        }
        errors.extend(writes(&lines).err());
        errors
    }

    /// Each disk's slots that were written or announced.
    pub(crate) fn slots(&self) -> Result<BTreeMap<usize, BTreeMap<u32, Slot>>> {
        writes(&self.lines()).map_err(Error::new)
    }

    fn last_words(&self) -> String {
        let lines = self.lines();
        let last: Vec<_> = lines.iter().rev().take(8).rev().map(|(side, _, line)| format!("{side}: {line}")).collect();
        if last.is_empty() { "nothing".to_owned() } else { last.join(" | ") }
    }
}

fn writes(lines: &[(Side, Instant, Line)]) -> std::result::Result<BTreeMap<usize, BTreeMap<u32, Slot>>, String> {
    let mut disks: BTreeMap<usize, BTreeMap<u32, Slot>> = BTreeMap::new();
    let mut open = BTreeMap::new();
    for (side, _, line) in lines {
        match line {
            Line::Announce { disk, slot, generation } => {
                open.insert(*disk, (*slot, *generation));
                disks.entry(*disk).or_default().entry(*slot).or_default().announced.push(*generation);
            }
            Line::Zero { disk, slot, generation } => {
                open.insert(*disk, (*slot, *generation));
                let written = disks.entry(*disk).or_default().entry(*slot).or_default();
                written.announced.push(*generation);
                written.zeroed.push(*generation);
            }
            Line::Acknowledge { disk, generation } => match open.remove(disk) {
                Some((slot, announced)) if announced == *generation => {
                    let written = disks.entry(*disk).or_default().entry(slot).or_default();
                    written.acknowledged = *generation;
                    written.announced.retain(|announced| announced > generation);
                    written.zeroed.retain(|zeroed| zeroed >= generation);
                }
                other => {
                    return Err(format!("{side}: disk {disk}: write {generation} acknowledged, announced {other:?}"));
                }
            },
            _ => {}
        }
    }
    Ok(disks)
}

impl State {
    fn take(&mut self, log: usize, at: Instant, byte: u8) {
        let Some(log) = self.logs.get_mut(log) else {
            return;
        };
        if let Some((head, ended @ None)) = &mut log.head {
            if byte == b'\n' {
                *ended = Some(at);
            } else {
                head.push(byte);
            }
            return;
        }
        if byte != b'\n' {
            log.open.push(byte);
            return;
        }
        let text = String::from_utf8_lossy(&log.open).into_owned();
        log.open.clear();
        match text.parse::<Line>() {
            Ok(line) => {
                match &line {
                    Line::Beat(_) => log.beats += 1,
                    Line::Acknowledge { .. } => log.writes += 1,
                    Line::Pages(total) => self.verified.pages = *total,
                    Line::Slots { disk, total } => {
                        self.verified.slots.insert(*disk, *total);
                    }
                    Line::Parked | Line::Ready { .. } | Line::Announce { .. } | Line::Zero { .. } | Line::Error(_) => {}
                }
                log.lines.push((at, line));
            }
            Err(unknown) => log.foreign.push(unknown.to_string()),
        }
    }

    fn beats(&self, side: Side) -> u64 {
        self.logs.iter().filter(|log| log.side == side).map(|log| log.beats).sum()
    }

    fn writes(&self, side: Side) -> u64 {
        self.logs.iter().filter(|log| log.side == side).map(|log| log.writes).sum()
    }

    /// All lines in the order the guest said them, and the texts that were none.
    fn joined(&self) -> (Vec<(Side, Instant, Line)>, Vec<String>) {
        let (mut lines, mut foreign) = (Vec::new(), Vec::new());
        let mut open: &[u8] = &[];
        for log in &self.logs {
            if let Some((head, Some(at))) = &log.head {
                let text = String::from_utf8_lossy(&[open, head].concat()).into_owned();
                match text.parse() {
                    Ok(line) => lines.push((log.side, *at, line)),
                    Err(unknown) => foreign.push(format!("{}: where the guest moved: {unknown}", log.side)),
                }
            }
            lines.extend(log.lines.iter().map(|(at, line)| (log.side, *at, line.clone())));
            foreign.extend(log.foreign.iter().map(|text| format!("{}: {text}", log.side)));
            if !matches!(log.head, Some((_, None))) {
                open = &log.open; // a destination that never ran has cut no line
            }
        }
        (lines, foreign)
    }
}

impl Verified {
    /// Whether each count has reached the one wanted.
    fn covers(&self, wanted: &Self) -> bool {
        self.pages >= wanted.pages
            && wanted.slots.iter().all(|(disk, wanted)| self.slots.get(disk).is_some_and(|count| count >= wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(record: &Record, log: usize, text: &str) {
        for byte in text.bytes() {
            record.feed(log, Instant::now(), &[byte]);
        }
    }

    #[test]
    fn a_line_cut_by_the_move_is_joined() {
        for (before, after) in
            [("b1\nb", "2\nb3\n"), ("b1\nb2", "\nb3\n"), ("b1\n", "b2\nb3\n"), ("b1\nb2\n", "b3\nb4\n")]
        {
            let record = Record::default();
            let (source, destination) = (record.begin(Side::Source), record.begin(Side::Destination));
            said(&record, source, before);
            said(&record, destination, after);
            assert_eq!(record.errors(), Vec::<String>::new(), "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_guest_that_runs_twice_shows_in_its_beats() {
        let record = Record::default();
        let (source, destination) = (record.begin(Side::Source), record.begin(Side::Destination));
        said(&record, source, "b1\nb2\nb3\n");
        said(&record, destination, "b3\nb4\n");
        assert_eq!(record.errors(), ["destination: beat 3 follows beat 3"]);
    }

    #[test]
    fn a_failed_attempt_leaves_the_source_whole() {
        let record = Record::default();
        let source = record.begin(Side::Source);
        record.begin(Side::Destination);
        said(&record, source, "b1\nb2\nb");
        said(&record, source, "3\nb4");
        let second = record.begin(Side::Destination);
        said(&record, second, "\nb5\n");
        // The first destination wrote nothing and has no open line; the second continues the source's.
        assert_eq!(record.beats().len(), 5);
        assert_eq!(record.errors(), Vec::<String>::new());
    }

    #[test]
    fn there_and_back_is_one_record() {
        let record = Record::default();
        let (first, second) = (record.begin(Side::Source), record.begin(Side::Destination));
        said(&record, first, "b1\nb");
        said(&record, second, "2\nb3\nb4");
        record.turn();
        // A destination that never ran, and the one to which the guest goes back.
        let third = [record.begin(Side::Destination), record.begin(Side::Destination)][1];
        said(&record, third, "\nb5\n");
        assert_eq!(record.errors(), Vec::<String>::new());
        let sides: Vec<Side> = record.beats().into_iter().map(|beat| beat.side).collect();
        assert_eq!(sides, [[Side::Source; 3].as_slice(), &[Side::Destination; 2]].concat());
    }

    #[test]
    fn what_may_be_in_a_slot() {
        let record = Record::default();
        let source = record.begin(Side::Source);
        said(&record, source, "w0 5 1\na0 1\nw0 6 2\na0 2\nw0 5 3\nz0 6 4\na0 4\nw1 0 1\n");
        let slots = record.slots().expect("writes in order");
        assert_eq!(slots[&0][&5], Slot { acknowledged: 1, announced: vec![3], zeroed: vec![] });
        assert_eq!(slots[&0][&6], Slot { acknowledged: 4, announced: vec![], zeroed: vec![4] });
        assert_eq!(slots[&1][&0], Slot { acknowledged: 0, announced: vec![1], zeroed: vec![] });
        said(&record, source, "a1 2\nE disk 0: bad\n?\n");
        assert_eq!(record.errors().len(), 3, "{:?}", record.errors());
    }
}
