//! What the sweep's guest says on its debug port: beats, and lines about what it did.
//!
//! Pure. integration/sweep_guest/src/main.rs has the language. A guest is not believed to keep to it: what is not
//! understood is a complaint, and takes a bounded room.

/// Longer lines are cut.
const LINE: usize = 4096;
/// Further complaints are not kept.
const COMPLAINTS: usize = 32;

/// What the guest has when its work begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestReady {
    pub(crate) pages: u64,
    pub(crate) disks: u64,
    /// Blocks of all disks.
    pub(crate) blocks: u64,
    pub(crate) network_cards: u64,
}

/// The guest's counts since its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestCounts {
    /// When they were heard, in nanoseconds of this host's clock.
    pub(crate) heard: u64,
    pub(crate) pages_written: u64,
    pub(crate) disk_writes: u64,
    pub(crate) pages_checked: u64,
    pub(crate) blocks_checked: u64,
    /// Writes since the counts before, by the power of two of nanoseconds that they took.
    pub(crate) page_times: Vec<(u8, u32)>,
    pub(crate) disk_times: Vec<(u8, u32)>,
}

/// All that was heard of a guest from one QEMU.
#[derive(Debug, Clone, Default)]
pub(crate) struct GuestHeard {
    /// When each beat was heard, in nanoseconds.
    pub(crate) beats: Vec<u64>,
    pub(crate) counts: Vec<GuestCounts>,
    pub(crate) ready: Option<GuestReady>,
    /// What the guest says is wrong, and what it said that is not its language.
    pub(crate) complaints: Vec<String>,
    line: Vec<u8>,
}

impl GuestHeard {
    /// Takes bytes that were read at a time of this host's clock.
    pub(crate) fn take(&mut self, bytes: &[u8], heard: u64) {
        for byte in bytes {
            match byte {
                b'.' => self.beats.push(heard),
                b'\n' => {
                    let line = std::mem::take(&mut self.line);
                    self.line(&String::from_utf8_lossy(&line), heard);
                }
                _ if self.line.len() < LINE => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn line(&mut self, line: &str, heard: u64) {
        let understood = match line.split_once(' ') {
            _ if line.is_empty() => true,
            Some(("E", text)) => {
                self.complain(text);
                true
            }
            Some(("r", rest)) => ready(rest).map(|ready| self.ready = Some(ready)).is_some(),
            Some(("s", rest)) => counts(rest, heard).map(|counts| self.counts.push(counts)).is_some(),
            _ => false,
        };
        if !understood {
            self.complain(&format!("not a line of the guest's: {line:?}"));
        }
    }

    fn complain(&mut self, text: &str) {
        if self.complaints.len() < COMPLAINTS {
            self.complaints.push(text.to_owned());
        }
    }
}

fn hexadecimal(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

fn ready(rest: &str) -> Option<GuestReady> {
    let mut words = rest.split(' ').map(hexadecimal);
    let mut number = || words.next()?;
    Some(GuestReady { pages: number()?, disks: number()?, blocks: number()?, network_cards: number()? })
}

fn counts(rest: &str, heard: u64) -> Option<GuestCounts> {
    let mut words = rest.split(' ');
    let mut number = || words.next().and_then(hexadecimal);
    let (_time, _beats) = (number()?, number()?);
    let mut counts = GuestCounts {
        heard,
        pages_written: number()?,
        disk_writes: number()?,
        pages_checked: number()?,
        blocks_checked: number()?,
        page_times: Vec::new(),
        disk_times: Vec::new(),
    };
    for word in words {
        let (kind, rest) = word.split_at_checked(1)?;
        let (power, count) = rest.split_once(':')?;
        let power = u8::try_from(hexadecimal(power)?).ok().filter(|power| *power < 64)?;
        let count = u32::try_from(hexadecimal(count)?).ok()?;
        match kind {
            "m" => counts.page_times.push((power, count)),
            "d" => counts.disk_times.push((power, count)),
            _ => return None,
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn beats_and_lines_are_told_apart() {
        let mut heard = GuestHeard::default();
        heard.take(b"SeaB\n\nr 8000 1 800 1\n..s 3a ", 5);
        heard.take(b"2 14 3.5 6 m8:e d10:1\n.\nE disk 5\n", 9);
        assert_eq!(heard.beats, [5, 5, 9, 9]);
        assert_eq!(heard.ready, Some(GuestReady { pages: 0x8000, disks: 1, blocks: 0x800, network_cards: 1 }));
        assert_eq!(
            heard.complaints,
            [
                "not a line of the guest's: \"SeaB\"",
                "not a line of the guest's: \"s 3a 2 14 35 6 m8:e d10:1\"",
                "disk 5"
            ]
        );
        heard.take(b"s 3a 2 14 3 5 6 m8:e d10:1\n", 11);
        let counts = GuestCounts {
            heard: 11,
            pages_written: 0x14,
            disk_writes: 3,
            pages_checked: 5,
            blocks_checked: 6,
            page_times: vec![(8, 14)],
            disk_times: vec![(16, 1)],
        };
        assert_eq!(heard.counts, [counts]);
    }

    #[test]
    fn a_guest_that_talks_without_end_costs_little() {
        let mut heard = GuestHeard::default();
        (0..100).for_each(|_| heard.take(&[b'x'; 10_000], 1));
        assert_eq!(heard.line.len(), LINE);
        (0..1000).for_each(|_| heard.take(b"?\n", 1));
        assert_eq!(heard.complaints.len(), COMPLAINTS);
    }

    proptest! {
        #[test]
        fn anything_may_come(bytes: Vec<u8>) {
            GuestHeard::default().take(&bytes, 1);
        }
    }
}
