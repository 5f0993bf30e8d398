//! The workload of the guest, as words on the kernel's command line.

use std::fmt::{self, Write};
use std::time::Duration;

/// The workload of the guest, passed as `qferry.KEY=NUMBER` words. A missing key keeps its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Time between two beats, in whole microseconds.
    pub beat: Duration,
    /// Bytes of memory kept filled and verified.
    pub ram: u64,
    /// Bytes of that memory rewritten a second; each page is verified before.
    pub dirty: u64,
    /// Bytes of that memory verified a second when `dirty` is 0.
    pub verify: u64,
    /// Whether the guest computes between two rewritings instead of sleeping, so that its processor is busy and the
    /// rate falls as it is throttled. Otherwise the guest keeps the rate as long as some of its processor is left.
    pub compute: bool,
    /// The length of a burst of rewriting, after which `calm` follows, in whole milliseconds.
    pub burst: Duration,
    /// The pause between two bursts, in whole milliseconds. At 0 memory is rewritten all the time.
    pub calm: Duration,
    /// Writes a second to each disk.
    pub write: u64,
    /// Slots a second, on each disk that is written to, that are zeroed and given back.
    pub discard: u64,
    /// Slots read back a second from each disk that is written to.
    pub read: u64,
    /// Bytes of one write, a multiple of 512.
    pub block: u64,
    /// The offset of the first slot.
    pub start: u64,
    /// The distance between the beginnings of two slots, at least `block`.
    pub stride: u64,
    /// The number of slots on each disk. Each slot is written once before any is written a second time.
    pub slots: u32,
    /// Disks to wait for; the bed fills this in.
    pub disks: u64,
    /// The deed of the guest to its own machine at the first NMI, which `inject-nmi` brings, as the number of an
    /// [`Act`]; 0 is none.
    pub act: u64,
}

/// The deeds of a guest to its own machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// The guest powers the machine off: ACPI S5.
    PowerOff = 1,
    /// The guest resets the machine.
    Reset = 2,
    /// The guest reports a panic to the device `pvpanic`.
    Panic = 3,
    /// The guest suspends the machine: ACPI S3.
    Suspend = 4,
}

impl Act {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::PowerOff, Self::Reset, Self::Panic, Self::Suspend];

    /// The deed with this number.
    pub fn numbered(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|act| *act as u64 == number)
    }

    /// The port of the machine `pc` that brings the deed about, the value, and whether that is a word.
    pub fn port(self) -> (u16, u16, bool) {
        match self {
            Self::PowerOff => (0x604, 0x2000, true),
            Self::Suspend => (0x604, 0x2400, true),
            Self::Panic => (0x505, 1, false),
            Self::Reset => (0xcf9, 6, false),
        }
    }
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            beat: Duration::from_millis(5),
            ram: 16 << 20,
            dirty: 0,
            verify: 8 << 20,
            compute: false,
            burst: Duration::from_secs(1),
            calm: Duration::ZERO,
            write: 50,
            discard: 0,
            read: 50,
            block: 4096,
            start: 1 << 20,
            stride: 64 << 10,
            slots: 128,
            disks: 0,
            act: 0,
        }
    }
}

impl Workload {
    /// Reads the words of a kernel command line that are meant for the guest.
    ///
    /// # Errors
    /// A sentence on the word that is not understood, or on values that contradict each other.
    pub fn from_command_line(line: &str) -> Result<Self, String> {
        let mut workload = Self::default();
        for word in line.split_whitespace().filter_map(|word| word.strip_prefix("qferry.")) {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("qferry.{word} has no value"))?;
            let number: u64 = value.parse().map_err(|_| format!("qferry.{word} is not a number"))?;
            match key {
                "beat" => workload.beat = Duration::from_micros(number),
                "ram" => workload.ram = number,
                "dirty" => workload.dirty = number,
                "verify" => workload.verify = number,
                "compute" => workload.compute = number != 0,
                "burst" => workload.burst = Duration::from_millis(number),
                "calm" => workload.calm = Duration::from_millis(number),
                "write" => workload.write = number,
                "discard" => workload.discard = number,
                "read" => workload.read = number,
                "block" => workload.block = number,
                "start" => workload.start = number,
                "stride" => workload.stride = number,
                "slots" => workload.slots = u32::try_from(number).map_err(|_| format!("qferry.{word} is too large"))?,
                "disks" => workload.disks = number,
                "act" => workload.act = number,
                _ => return Err(format!("qferry.{word} is not known")),
            }
        }
        workload.check().map(|()| workload)
    }

    /// Whether the values fit together.
    ///
    /// # Errors
    /// A sentence on the first that does not.
    pub fn check(&self) -> Result<(), String> {
        let sector = super::block::SECTOR as u64;
        if self.beat < Duration::from_micros(100) {
            return Err("beats closer than 100 microseconds".to_owned());
        }
        if self.act != 0 && Act::numbered(self.act).is_none() {
            return Err(format!("no deed has the number {}", self.act));
        }
        if self.burst.is_zero() {
            return Err("bursts that are empty".to_owned());
        }
        if self.slots == 0 || self.block == 0 {
            return Err("no slots, or empty blocks".to_owned());
        }
        if [self.block, self.start, self.stride].iter().any(|bytes| bytes % sector != 0) {
            return Err(format!("block, start and stride must be multiples of {sector}"));
        }
        if self.stride < self.block {
            return Err("slots overlap: stride is less than block".to_owned());
        }
        Ok(())
    }

    /// The offset of a slot on its disk.
    pub fn offset(&self, slot: u32) -> u64 {
        self.start + u64::from(slot) * self.stride
    }

    /// The end of the last slot: the least size of a disk.
    pub fn end(&self) -> u64 {
        self.offset(self.slots.saturating_sub(1)) + self.block
    }

    /// The slot of a disk's write number `generation` (from 1). The order is scattered, and visits all slots before any
    /// a second time.
    pub fn slot(&self, generation: u64) -> u32 {
        let slots = u64::from(self.slots);
        // A step without a common factor with the number of slots visits every one of them.
        let mut step = slots * 5 / 8 + 1;
        while common_factor(step, slots) != 1 {
            step += 1;
        }
        u32::try_from(generation.wrapping_sub(1) % slots * step % slots).unwrap_or_default()
    }

    /// Pages of memory kept.
    pub fn pages(&self) -> u64 {
        self.ram / 4096
    }
}

fn common_factor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_factor(b, a % b) }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let beat = u64::try_from(self.beat.as_micros()).unwrap_or(u64::MAX);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let words = [
            ("beat", beat),
            ("ram", self.ram),
            ("dirty", self.dirty),
            ("verify", self.verify),
            ("compute", u64::from(self.compute)),
            ("burst", millis(self.burst)),
            ("calm", millis(self.calm)),
            ("write", self.write),
            ("discard", self.discard),
            ("read", self.read),
            ("block", self.block),
            ("start", self.start),
            ("stride", self.stride),
            ("slots", u64::from(self.slots)),
            ("disks", self.disks),
            ("act", self.act),
        ];
        for (index, (key, value)) in words.into_iter().enumerate() {
            if index > 0 {
                f.write_char(' ')?;
            }
            write!(f, "qferry.{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_says() {
        let workload = Workload {
            beat: Duration::from_micros(2500),
            dirty: 10 << 20,
            compute: true,
            calm: Duration::from_millis(1500),
            slots: 77,
            discard: 5,
            disks: 3,
            act: Act::Panic as u64,
            ..Workload::default()
        };
        assert_eq!(Workload::from_command_line(&format!("quiet nohz=off {workload} panic=-1")), Ok(workload));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        for line in [
            "qferry.beat",
            "qferry.ram=64MiB",
            "qferry.speed=1",
            "qferry.stride=512",
            "qferry.slots=0",
            "qferry.burst=0",
            "qferry.act=5",
        ] {
            assert!(Workload::from_command_line(line).is_err(), "{line}");
        }
    }

    #[test]
    fn touches_every_slot_before_any_again() {
        for slots in [1, 2, 3, 64, 77, 128, 1000] {
            let workload = Workload { slots, ..Workload::default() };
            let mut seen: Vec<u32> = (1..=u64::from(slots)).map(|generation| workload.slot(generation)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..slots).collect::<Vec<_>>(), "{slots} slots");
        }
    }
}
