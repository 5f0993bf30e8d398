//! How long QEMU took to save or to load the state of one device while the guest stood still.
//!
//! Pure.

use super::{ledger::LedgerMark, side::Side};
use serde::{Deserialize, Serialize};
use std::{cmp::Reverse, fmt, fmt::Write};

/// What QEMU did with the state of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DevicePhase {
    /// The source saved the state.
    Save,
    /// The destination loaded the state.
    Load,
    /// A word of a later version that this version does not know.
    #[serde(other)]
    Unknown,
}

impl DevicePhase {
    /// The word of the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Save => "save",
            Self::Load => "load",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for DevicePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The time that one device took on one side, by QEMU's own count.
///
/// The source saves one device after the other, and the destination loads each as it comes in, so the times of the two
/// sides overlap. All of them lie in the ledger's span [`DeviceTime::SPAN`]: the source says `completed` only when the
/// destination has loaded everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeviceTime {
    /// The side whose QEMU took the time.
    pub side: Side,
    /// Whether the state was saved or loaded.
    pub phase: DevicePhase,
    /// QEMU's name of the device's state, such as `ram`, `cpu` or `0000:00:03.0/virtio-blk`.
    pub device: String,
    /// The number by which QEMU tells devices of one name apart.
    pub instance: u32,
    /// Whether the state was copied while the guest ran, too, as RAM is: the time is that of its last part.
    pub iterable: bool,
    /// The time in microseconds.
    pub us: u64,
}

impl DeviceTime {
    /// The span of the ledger in which the times lie.
    pub const SPAN: &'static str = LedgerMark::SourceCompleted.span();
}

/// The devices that took longest, in words, with the sum of the others: at most `most` by name.
pub fn describe_devices<'a>(devices: impl Iterator<Item = &'a DeviceTime>, most: usize) -> String {
    let mut devices: Vec<&DeviceTime> = devices.collect();
    devices.sort_by_key(|device| Reverse(device.us));
    let millis = |us: u64| us as f64 / 1000.0;
    let sum = |devices: &[&DeviceTime]| devices.iter().fold(0u64, |sum, device| sum.saturating_add(device.us));
    let (named, others) = devices.split_at(most.min(devices.len()));
    let mut words = format!("{:.3} ms", millis(sum(&devices)));
    for (number, device) in named.iter().enumerate() {
        let instance = if device.instance == 0 { String::new() } else { format!(" {}", device.instance) };
        let before = if number == 0 { ": " } else { ", " };
        // a String takes everything
        write!(words, "{before}{}{instance} {:.3}", device.device, millis(device.us)).ok();
    }
    if !others.is_empty() {
        write!(words, ", {} others {:.3}", others.len(), millis(sum(others))).ok();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_are_named_and_the_others_summed() {
        let device = |(device, instance, us): (&str, u32, u64)| DeviceTime {
            side: Side::Source,
            phase: DevicePhase::Save,
            device: device.to_owned(),
            instance,
            iterable: false,
            us,
        };
        let devices = [("pit", 0, 1), ("ram", 0, 3000), ("dma", 1, 20), ("cpu", 0, 400)].map(device);
        for (most, words) in [
            (9, "3.421 ms: ram 3.000, cpu 0.400, dma 1 0.020, pit 0.001"),
            (2, "3.421 ms: ram 3.000, cpu 0.400, 2 others 0.021"),
            (0, "3.421 ms, 4 others 3.421"),
        ] {
            assert_eq!(describe_devices(devices.iter(), most), words);
        }
        assert_eq!(describe_devices([].iter(), 2), "0.000 ms");
        let endless = [("a", 0, u64::MAX), ("b", 0, u64::MAX)].map(device);
        assert!(describe_devices(endless.iter(), 0).starts_with("18446744073709552"));
        assert_eq!(DeviceTime::SPAN, "ram-and-devices");
    }
}
