//! A virtio device by its legacy ports, and one ring of it.

use core::{cell::UnsafeCell, ptr, sync::atomic::{Ordering, fence}};

use crate::{
    clock, complain, pci,
    port::{in8, in16, in32, out8, out16, out32},
};

/// Room for rings and buffers, which devices reach by its address.
const ROOM: usize = 8 << 20;

#[repr(C, align(4096))]
struct Room(UnsafeCell<[u8; ROOM]>);
// There is one CPU.
unsafe impl Sync for Room {}
static MEMORY: Room = Room(UnsafeCell::new([0; ROOM]));
static mut TAKEN: usize = 0;

/// Takes whole pages of that room for good.
pub fn pages(bytes: usize) -> *mut u8 {
    unsafe {
        let at = TAKEN;
        TAKEN += bytes.next_multiple_of(4096);
        if TAKEN > ROOM {
            complain(b"no room left for rings, bytes wanted:", bytes as u64);
            clock::halt();
        }
        MEMORY.0.get().cast::<u8>().add(at)
    }
}

pub struct Device {
    ports: u16,
    pub features: u32,
}

#[repr(C)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

pub struct Ring {
    notify: u16,
    number: u16,
    size: u16,
    descriptors: *mut Descriptor,
    available: *mut u16,
    used: *mut u16,
    seen: u16,
}

pub const NEXT: u16 = 1;
pub const WRITTEN_BY_DEVICE: u16 = 2;

impl Device {
    /// Starts the device with those of `wanted` features that it offers.
    pub fn start(found: &pci::Device, wanted: u32) -> Option<Self> {
        found.enable();
        let Some(ports) = found.ports() else {
            complain(b"a virtio device has no legacy ports (disable-legacy=off), interrupt line", found.interrupt_line().into());
            return None;
        };
        clock::unmask(found.interrupt_line());
        out8(ports + 18, 0);
        out8(ports + 18, 3);
        let features = in32(ports) & wanted;
        out32(ports + 4, features);
        Some(Self { ports, features })
    }

    pub fn ring(&self, number: u16) -> Ring {
        out16(self.ports + 14, number);
        let size = in16(self.ports + 12);
        let count = usize::from(size);
        let used = (16 * count + 6 + 2 * count).next_multiple_of(4096);
        let base = pages(used + 6 + 8 * count);
        out32(self.ports + 8, (base as usize >> 12) as u32);
        let (available, used) = unsafe { (base.add(16 * count).cast(), base.add(used).cast()) };
        Ring { notify: self.ports + 16, number, size, descriptors: base.cast(), available, used, seen: 0 }
    }

    /// Says that the rings are there.
    pub fn ready(&self) {
        out8(self.ports + 18, 7);
    }

    pub fn configuration8(&self, at: u16) -> u8 {
        in8(self.ports + 20 + at)
    }

    pub fn configuration32(&self, at: u16) -> u32 {
        in32(self.ports + 20 + at)
    }

    /// Takes the device's interrupt back.
    pub fn acknowledge(&self) {
        in8(self.ports + 19);
    }
}

impl Ring {
    pub fn size(&self) -> u16 {
        self.size
    }

    pub fn describe(&mut self, index: u16, address: *const u8, length: u32, flags: u16) {
        let next = if flags & NEXT != 0 { index + 1 } else { 0 };
        let descriptor = Descriptor { address: address as u64, length, flags, next };
        unsafe { ptr::write_volatile(self.descriptors.add(usize::from(index)), descriptor) }
    }

    /// Gives the device the chain that begins at `head`.
    pub fn offer(&mut self, head: u16) {
        unsafe {
            let index = self.available.add(1);
            let at = index.read_volatile();
            self.available.add(2 + usize::from(at % self.size)).write_volatile(head);
            fence(Ordering::SeqCst);
            index.write_volatile(at.wrapping_add(1));
            fence(Ordering::SeqCst);
        }
        out16(self.notify, self.number);
    }

    /// The head and the length of a chain that the device is done with.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        unsafe {
            fence(Ordering::SeqCst);
            if self.used.add(1).read_volatile() == self.seen {
                return None;
            }
            let element = self.used.add(2).cast::<u32>().add(2 * usize::from(self.seen % self.size));
            self.seen = self.seen.wrapping_add(1);
            Some((element.read_unaligned() as u16, element.add(1).read_unaligned()))
        }
    }
}
