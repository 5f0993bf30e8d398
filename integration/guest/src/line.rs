//! The lines the guest says on its debug port, one a line, numbers in hexadecimal.
//!
//! | line | meaning |
//! |---|---|
//! | `p` | booted, and parked until the command line no longer says so |
//! | `r P D` | ready: P pages are filled and D disks are open |
//! | `bN` | beat N, counted from 1 without a gap |
//! | `wD S G` | disk D, slot S: generation G is about to be written |
//! | `zD S G` | disk D, slot S: as generation G it is about to be zeroed and given back |
//! | `aD G` | disk D: generation G was written or zeroed, and flushed |
//! | `mN` | N pages of memory verified so far, going round in order |
//! | `sD N` | N slots of disk D read back and verified so far, going round in order |
//! | `E text` | something is wrong: content that should not be there, a failed call, a panic |
//!
//! Every byte costs an exit from the guest, so lines are short.

use std::fmt;
use std::str::FromStr;

/// One line from the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The guest has booted and waits for another command line.
    Parked,
    /// The workload is set up and begins.
    Ready {
        /// Pages of memory that are filled and will be verified.
        pages: u64,
        /// Disks found.
        disks: u64,
    },
    /// The guest is alive; counted from 1.
    Beat(u64),
    /// A write is about to be issued.
    Announce {
        /// The disk, counted from 0.
        disk: usize,
        /// The slot on it.
        slot: u32,
        /// The number of this write on its disk, counted from 1.
        generation: u64,
    },
    /// A slot is about to be zeroed.
    Zero {
        /// The disk, counted from 0.
        disk: usize,
        /// The slot on it.
        slot: u32,
        /// Its number among the disk's writes.
        generation: u64,
    },
    /// The write or zeroing announced last on this disk has returned.
    Acknowledge {
        /// The disk.
        disk: usize,
        /// The write's number.
        generation: u64,
    },
    /// Pages verified since the start.
    Pages(u64),
    /// Slots of a disk read back since the start.
    Slots {
        /// The disk.
        disk: usize,
        /// The count so far.
        total: u64,
    },
    /// Something is wrong.
    Error(String),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parked => f.write_str("p"),
            Self::Ready { pages, disks } => write!(f, "r {pages:x} {disks:x}"),
            Self::Beat(number) => write!(f, "b{number:x}"),
            Self::Announce { disk, slot, generation } => write!(f, "w{disk:x} {slot:x} {generation:x}"),
            Self::Zero { disk, slot, generation } => write!(f, "z{disk:x} {slot:x} {generation:x}"),
            Self::Acknowledge { disk, generation } => write!(f, "a{disk:x} {generation:x}"),
            Self::Pages(total) => write!(f, "m{total:x}"),
            Self::Slots { disk, total } => write!(f, "s{disk:x} {total:x}"),
            Self::Error(text) => write!(f, "E {}", text.replace('\n', " ")),
        }
    }
}

/// A line that no guest of this package says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown(pub String);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a line of the guest's: {:?}", self.0)
    }
}

impl std::error::Error for Unknown {}

impl FromStr for Line {
    type Err = Unknown;

    fn from_str(line: &str) -> Result<Self, Unknown> {
        parse(line).ok_or_else(|| Unknown(line.to_owned()))
    }
}

fn parse(line: &str) -> Option<Line> {
    if let Some(text) = line.strip_prefix("E ") {
        return Some(Line::Error(text.to_owned()));
    }
    let kind = line.chars().next()?;
    let mut words = line.get(kind.len_utf8()..)?.split_whitespace();
    let mut number = || u64::from_str_radix(words.next()?, 16).ok();
    let parsed = match kind {
        'p' => Line::Parked,
        'r' => Line::Ready { pages: number()?, disks: number()? },
        'b' => Line::Beat(number()?),
        'w' => Line::Announce { disk: index(number()?)?, slot: u32::try_from(number()?).ok()?, generation: number()? },
        'z' => Line::Zero { disk: index(number()?)?, slot: u32::try_from(number()?).ok()?, generation: number()? },
        'a' => Line::Acknowledge { disk: index(number()?)?, generation: number()? },
        'm' => Line::Pages(number()?),
        's' => Line::Slots { disk: index(number()?)?, total: number()? },
        _ => return None,
    };
    words.next().is_none().then_some(parsed)
}

fn index(number: u64) -> Option<usize> {
    usize::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_reads_back_as_it_was_said() {
        for line in [
            Line::Parked,
            Line::Ready { pages: 16384, disks: 3 },
            Line::Beat(1),
            Line::Beat(u64::MAX),
            Line::Announce { disk: 2, slot: 255, generation: 4096 },
            Line::Zero { disk: 2, slot: 255, generation: 4096 },
            Line::Acknowledge { disk: 11, generation: 4096 },
            Line::Pages(1 << 40),
            Line::Slots { disk: 0, total: 16 },
            Line::Error("disk 0: slot 3 holds generation 4".into()),
        ] {
            assert_eq!(line.to_string().parse(), Ok(line));
        }
    }

    #[test]
    fn an_error_stays_one_line() {
        assert_eq!(Line::Error("panicked at\nmain.rs".into()).to_string(), "E panicked at main.rs");
    }

    #[test]
    fn what_is_not_whole_is_not_taken() {
        for line in ["", "b", "bx", "w0 1", "a0", "a0 1 2", "SeaBIOS (version 1.16)", "E", "é"] {
            assert_eq!(line.parse::<Line>(), Err(Unknown(line.to_owned())), "{line}");
        }
    }
}
