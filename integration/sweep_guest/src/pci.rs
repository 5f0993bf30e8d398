//! Devices on the first PCI bus, found by configuration space.

use crate::port::{in32, out32};

pub struct Device {
    slot: u32,
    function: u32,
}

impl Device {
    fn address(&self, register: u32) -> u32 {
        0x8000_0000 | (self.slot << 11) | (self.function << 8) | register
    }

    pub fn read(&self, register: u32) -> u32 {
        out32(0xcf8, self.address(register));
        in32(0xcfc)
    }

    pub fn write(&self, register: u32, value: u32) {
        out32(0xcf8, self.address(register));
        out32(0xcfc, value);
    }

    /// The base of the ports of its first address register, if that is one of ports.
    pub fn ports(&self) -> Option<u16> {
        let bar = self.read(0x10);
        (bar & 1 == 1 && bar & !3 != 0).then_some((bar & !3) as u16)
    }

    /// Lets the device answer at its ports and reach memory.
    pub fn enable(&self) {
        self.write(4, (self.read(4) & 0xffff) | 5);
    }

    pub fn interrupt_line(&self) -> u8 {
        self.read(0x3c) as u8
    }
}

/// The devices of the first bus whose vendor and device ids are `ids`, in the order of their slots.
pub fn find(ids: u32) -> impl Iterator<Item = Device> {
    (0..256).map(|place| Device { slot: place >> 3, function: place & 7 }).filter(move |device| device.read(0) == ids)
}
