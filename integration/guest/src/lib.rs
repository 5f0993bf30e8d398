//! The language between the guest's workload and the bed that watches the guest.
//!
//! The binary of this package is the guest's init, which tells on a debug port what happens, in [lines](mod@line). The
//! bed passes a [`Workload`] on the kernel's command line, and recognises the guest's [`block`]s when it reads an image
//! offline.

pub mod block;
pub mod line;
pub mod page;
mod workload;

pub use workload::{Act, Workload};

/// The I/O port of the debug console: the device's own default, because SeaBIOS prints on 0x402.
pub const PORT: u16 = 0xe9;

/// The address of the guest at its network card, if the machine has one.
pub const NETWORK: [u8; 4] = [10, 9, 0, 2];

/// The word on the kernel's command line that keeps a booted guest from beginning its work.
pub const PARK: &str = "qferry-park";

/// Scatters the bits of `value` (splitmix64), so that neighbouring numbers give unlike content.
const fn scatter(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The difference between neighbouring words of pages and sectors. The number is odd, so a word seldom repeats.
const STEP: u64 = 0x2545_f491_4f6c_dd1d;
