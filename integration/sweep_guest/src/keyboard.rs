//! The keyboard controller, read without interrupts: the one way in which the guest can be asked for something.

use crate::port::in8;

/// Codes of keys that are pressed, as the firmware leaves the controller.
pub const V: u8 = 0x2f;
pub const Q: u8 = 0x10;

/// The next code, if there is one. A machine without such a controller answers with ones alone.
pub fn pressed() -> Option<u8> {
    let status = in8(0x64);
    (status != 0xff && status & 1 == 1).then(|| in8(0x60))
}
