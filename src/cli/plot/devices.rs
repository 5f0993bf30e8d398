//! How long each device took within the blackout, as rows of the picture and of the page's table.
//!
//! Pure. QEMU tells lengths and no times of day: every bar begins where the ledger's span with the devices begins.

use crate::progress::{DeviceTime, Outcome, Side};
use std::cmp::Reverse;

/// The devices of a side that have rows of their own in the picture, and in the table.
const ROWS: usize = 6;
const TABLE: usize = 200;
/// Most characters of a device's name.
const NAME: usize = 60;
/// What is to be known of the bars.
pub(super) const NOTE: &str = "devices: lengths by QEMU's own count; when each began is not recorded";

/// A device, or several together, on one side.
struct DeviceLength {
    verb: &'static str,
    side: Side,
    name: String,
    ms: f64,
}

/// The devices of both sides, the longest of each side first, and the others of each side together.
fn longest(outcome: &Outcome, most: usize) -> Vec<DeviceLength> {
    let mut told = Vec::new();
    for (side, verb) in [(Side::Source, "saved"), (Side::Destination, "loaded")] {
        let mut devices: Vec<&DeviceTime> = outcome.devices.iter().filter(|device| device.side == side).collect();
        devices.sort_by_key(|device| Reverse(device.us));
        let (named, others) = devices.split_at(most.min(devices.len()));
        for device in named {
            let name: String = device.device.chars().take(NAME).collect();
            let instance = if device.instance == 0 { String::new() } else { format!(" {}", device.instance) };
            told.push(DeviceLength { verb, side, name: format!("{name}{instance}"), ms: millis(device.us) });
        }
        if !others.is_empty() {
            let us = others.iter().fold(0u64, |sum, device| sum.saturating_add(device.us));
            told.push(DeviceLength { verb, side, name: format!("{} others", others.len()), ms: millis(us) });
        }
    }
    told
}

fn millis(us: u64) -> f64 {
    us as f64 / 1000.0
}

/// The rows of the picture. The number comes first, for a long name is cut.
pub(super) fn rows(outcome: &Outcome) -> Vec<(String, f64)> {
    let row = |DeviceLength { verb, name, ms, .. }: DeviceLength| (format!("device {verb}, {ms:.3} ms: {name}"), ms);
    longest(outcome, ROWS).into_iter().map(row).collect()
}

/// The rows of the table.
pub(super) fn table(outcome: &Outcome) -> Vec<(String, f64)> {
    let row = |DeviceLength { verb, side, name, ms }: DeviceLength| (format!("{name}, {verb} at the {side}"), ms);
    longest(outcome, TABLE).into_iter().map(row).collect()
}
