//! The lines of QEMU's own log (`-D`, or its stderr) that tell how long the state of each device took: those of the
//! trace events `vmstate_downtime_save` and `vmstate_downtime_load`, which QEMU has since 8.2.
//!
//! Pure. The log belongs to people and may be shared, so anything else may be in it. With `-msg timestamp=on` a line
//! begins with `THREAD@SECONDS:` up to 10.0 and with a date and a blank from 11.1 on, and else with the event's name.

use crate::progress::{DevicePhase, DeviceTime, Side};
use std::{cmp::Reverse, collections::BTreeSet};

/// The longest line that is read, in bytes: QEMU's name of a device has at most 256.
pub const LOG_LINE: usize = 1024;
/// The longest name of a device that is kept, in bytes.
const NAME: usize = 256;
/// The most devices of one side that are read: each vCPU is four or so.
const DEVICES: usize = 8192;
/// The most devices of one side that are told one by one.
const TOLD: usize = 256;

/// What a line tells of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLine<'a> {
    /// The thread that wrote the line, by its id on QEMU's host, where the line names the thread.
    pub thread: Option<u32>,
    /// Whether the state was saved or loaded.
    pub phase: DevicePhase,
    /// Whether the state was copied while the guest ran, too.
    pub iterable: bool,
    /// QEMU's name of the device.
    pub device: &'a str,
    /// The number of the device among those of its name.
    pub instance: u32,
    /// The time in microseconds.
    pub us: u64,
}

/// Reads a line; `None` where the line tells of no device.
pub fn read_device_line(line: &str) -> Option<DeviceLine<'_>> {
    if line.len() > LOG_LINE {
        return None;
    }
    let (before, event) = line.trim_end().split_once("vmstate_downtime_")?;
    let (phase, rest) = match event.split_once(' ')? {
        ("save", rest) => (DevicePhase::Save, rest),
        ("load", rest) => (DevicePhase::Load, rest),
        _ => return None,
    };
    let rest = rest.strip_prefix("type=")?;
    let (kind, rest) = rest.split_once(" idstr=")?;
    let iterable = match kind {
        "iterable" => true,
        "non-iterable" => false,
        _ => return None,
    };
    // The name may hold anything, and the two numbers end the line.
    let (rest, us) = rest.rsplit_once(" downtime=")?;
    let (device, instance) = rest.rsplit_once(" instance_id=")?;
    let is_name = !device.is_empty() && device.len() <= NAME && !device.chars().any(char::is_control);
    is_name.then_some(())?;
    let (instance, us) = (instance.parse().ok()?, us.parse().ok()?);
    Some(DeviceLine { thread: thread(before)?, phase, iterable, device, instance, us })
}

/// The thread of a line by what precedes the event's name; `Some(None)` where the line names no thread, and `None` for
/// what precedes no event.
fn thread(before: &str) -> Option<Option<u32>> {
    let is_time = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b"-+:.TZ ".contains(&b));
    match before.split_once('@') {
        Some((thread, time)) if is_time(time) => Some(Some(thread.parse().ok()?)),
        None if is_time(before) => Some(None),
        _ => None,
    }
}

/// The devices of one side, from the part of its log that one migration has written.
#[derive(Debug)]
pub struct DeviceLines {
    side: Side,
    found: Vec<DeviceTime>,
    known: BTreeSet<(bool, String, u32)>,
    /// Whether a device was told twice: then another QEMU writes to the same log.
    doubtful: bool,
}

impl DeviceLines {
    /// None yet of the side's devices.
    pub fn new(side: Side) -> Self {
        Self { side, found: Vec::new(), known: BTreeSet::new(), doubtful: false }
    }

    /// Takes a line in. The source saves and the destination loads, so two sides may share a log. `is_foreign` tells of
    /// a thread whether it is another QEMU's.
    pub fn take(&mut self, line: &DeviceLine<'_>, is_foreign: impl FnOnce(u32) -> bool) {
        let phase = match self.side {
            Side::Source => DevicePhase::Save,
            Side::Destination => DevicePhase::Load,
        };
        if line.phase != phase || self.found.len() == DEVICES || line.thread.is_some_and(is_foreign) {
            return;
        }
        let &DeviceLine { iterable, device, instance, us, .. } = line;
        if !self.known.insert((iterable, device.to_owned(), instance)) {
            self.doubtful = true;
            return;
        }
        self.found.push(DeviceTime { side: self.side, phase, device: device.to_owned(), instance, iterable, us });
    }

    /// Whether a device was told twice.
    pub fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// The devices in QEMU's order; `None` where lines of another QEMU are among them. Where there are very many, those
    /// that took least are one, which says how many.
    pub fn told(self) -> Option<Vec<DeviceTime>> {
        let Self { side, mut found, doubtful, .. } = self;
        if doubtful {
            return None;
        }
        if found.len() > TOLD {
            let mut numbers: Vec<usize> = (0..found.len()).collect();
            numbers.sort_by_key(|number| Reverse(found[*number].us));
            let longest: BTreeSet<usize> = numbers[..TOLD].iter().copied().collect();
            let others = &numbers[TOLD..];
            let us = others.iter().fold(0u64, |sum, number| sum.saturating_add(found[*number].us));
            let device = format!("({} others)", others.len());
            let others = DeviceTime { side, phase: found[0].phase, device, instance: 0, iterable: false, us };
            found = found
                .into_iter()
                .enumerate()
                .filter(|(number, _)| longest.contains(number))
                .map(|(_, one)| one)
                .collect();
            found.push(others);
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_real_qemus_are_read() {
        use DevicePhase::{Load, Save};
        for (line, expected) in [
            // 10.0.13, without and with -msg timestamp=on
            (
                "vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=632",
                (None, Save, true, "ram", 0, 632),
            ),
            (
                "vmstate_downtime_load type=non-iterable idstr=0000:00:1f.2/ich9_ahci instance_id=0 downtime=382",
                (None, Load, false, "0000:00:1f.2/ich9_ahci", 0, 382),
            ),
            (
                "16907@1796048677.694936:vmstate_downtime_save type=non-iterable idstr=dma instance_id=1 downtime=9",
                (Some(16907), Save, false, "dma", 1, 9),
            ),
            (
                "19064@1796048856.797595:vmstate_downtime_load type=iterable idstr=ram instance_id=0 downtime=15",
                (Some(19064), Load, true, "ram", 0, 15),
            ),
            // 11.1.3, with and without
            (
                "2026-11-30T14:24:43.014458Z vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=4",
                (None, Save, true, "ram", 0, 4),
            ),
            (
                "vmstate_downtime_save type=non-iterable idstr=0000:00:03.0/virtio-blk instance_id=0 downtime=526",
                (None, Save, false, "0000:00:03.0/virtio-blk", 0, 526),
            ),
            // a name may hold anything
            (
                "vmstate_downtime_save type=iterable idstr=a instance_id=1 downtime=2 instance_id=3 downtime=4\r",
                (None, Save, true, "a instance_id=1 downtime=2", 3, 4),
            ),
        ] {
            let (thread, phase, iterable, device, instance, us) = expected;
            let expected = DeviceLine { thread, phase, iterable, device, instance, us };
            assert_eq!(read_device_line(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn everything_else_in_a_log_is_passed_over() {
        let long =
            format!("vmstate_downtime_save type=iterable idstr={} instance_id=0 downtime=1", "x".repeat(NAME + 1));
        let longer =
            format!("{}vmstate_downtime_save type=iterable idstr=a instance_id=0 downtime=1", " ".repeat(LOG_LINE));
        for line in [
            "",
            "vmstate_downtime_",
            "vmstate_downtime_checkpoint src-downtime-start",
            "16907@1796048677.697331:vmstate_downtime_checkpoint src-non-iterable-saved",
            "qemu-system-x86_64: warning: nic virtio-net-pci.0 has no peer",
            "vmstate_downtime_save type=odd idstr=ram instance_id=0 downtime=1",
            "vmstate_downtime_save type=iterable idstr= instance_id=0 downtime=1",
            "vmstate_downtime_save type=iterable idstr=ram instance_id=-1 downtime=1",
            "vmstate_downtime_save type=iterable idstr=ram instance_id=4294967296 downtime=1",
            "vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=-1",
            "vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=18446744073709551616",
            "vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=",
            "vmstate_downtime_save type=iterable idstr=ra\u{1b}[2Jm instance_id=0 downtime=1",
            "4294967296@1.5:vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=1",
            // the guest's own words, on a console in the same file
            "[    1.0] echo: vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=1",
            &long,
            &longer,
        ] {
            assert_eq!(read_device_line(line), None, "{line}");
        }
    }

    fn lines(side: Side, lines: &[&str]) -> DeviceLines {
        let mut read = DeviceLines::new(side);
        lines.iter().filter_map(|line| read_device_line(line)).for_each(|line| read.take(&line, |thread| thread == 9));
        read
    }

    #[test]
    fn each_side_has_its_own_lines_of_a_shared_log() {
        let log = [
            "vmstate_downtime_save type=iterable idstr=ram instance_id=0 downtime=1",
            "vmstate_downtime_load type=iterable idstr=ram instance_id=0 downtime=2",
            "vmstate_downtime_save type=non-iterable idstr=ram instance_id=0 downtime=3",
            "9@1.5:vmstate_downtime_save type=non-iterable idstr=ram instance_id=0 downtime=4",
            "8@1.5:vmstate_downtime_save type=non-iterable idstr=cpu instance_id=1 downtime=5",
        ];
        let times = |side| lines(side, &log).told().map(|told| told.iter().map(|one| one.us).collect::<Vec<_>>());
        assert_eq!((times(Side::Source), times(Side::Destination)), (Some(vec![1, 3, 5]), Some(vec![2])));
        // another QEMU's device is told a second time
        let again = [log[0], log[0]];
        assert_eq!(lines(Side::Source, &again).told(), None);
    }

    #[test]
    fn of_very_many_devices_the_longest_are_told() {
        let mut read = DeviceLines::new(Side::Destination);
        for number in 0..TOLD + 3 {
            let us = if number % 2 == 0 { 10 } else { 20 };
            let line = format!("vmstate_downtime_load type=non-iterable idstr=cpu instance_id={number} downtime={us}");
            read.take(&read_device_line(&line).unwrap(), |_| false);
        }
        let told = read.told().unwrap();
        assert_eq!((told.len(), told[0].instance, told[1].instance), (TOLD + 1, 0, 1));
        assert_eq!((told[TOLD].device.as_str(), told[TOLD].us), ("(3 others)", 30));
        assert_eq!(told.iter().map(|one| one.us).sum::<u64>(), (TOLD as u64 + 2) / 2 * 30 + 10);
    }

    #[test]
    fn a_hostile_log_costs_bounded_memory() {
        let mut read = DeviceLines::new(Side::Source);
        for number in 0..10 * DEVICES {
            let line =
                format!("vmstate_downtime_save type=iterable idstr={number} instance_id=0 downtime={}", u64::MAX);
            read.take(&read_device_line(&line).unwrap(), |_| false);
        }
        assert_eq!(read.known.len(), DEVICES);
        assert_eq!(read.told().map(|told| told.len()), Some(TOLD + 1));
    }
}
