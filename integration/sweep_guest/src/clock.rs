//! The guest's clock, which is the time-stamp counter, and its rest until the next tick.

use core::arch::{asm, x86_64::_rdtsc};

use crate::port::{in8, out8};

const PIT_HZ: u64 = 1_193_182;
/// The share of a second over which the counter is measured against the timer.
const MEASURED: u64 = 50;

pub struct Clock {
    zero: u64,
    /// Nanoseconds per tick of the counter, times 2^32.
    scale: u64,
}

impl Clock {
    /// Measures the counter, and starts the timer that ends [`wait`] a thousand times a second.
    pub fn start() -> Self {
        // Both interrupt controllers begin at vector 32. Every interrupt is let through: the handler takes any.
        for (first, second, vectors, cascade) in [(0x20, 0x21, 32, 4), (0xa0, 0xa1, 40, 2)] {
            for (port, value) in [(first, 0x11), (second, vectors), (second, cascade), (second, 1)] {
                out8(port, value);
            }
        }
        out8(0x21, 0xff);
        out8(0xa1, 0xff);
        unmask(0);
        // Timer 2 counts down once; its end shows at port 0x61.
        let count = PIT_HZ / MEASURED;
        out8(0x61, (in8(0x61) & !2) | 1);
        out8(0x43, 0xb0);
        out8(0x42, count as u8);
        out8(0x42, (count >> 8) as u8);
        let zero = unsafe { _rdtsc() };
        while in8(0x61) & 0x20 == 0 {}
        let ticks = unsafe { _rdtsc() } - zero;
        let scale = ((1_000_000_000 / MEASURED) << 32) / ticks.max(1);
        let count = PIT_HZ / 1000;
        out8(0x43, 0x34);
        out8(0x40, count as u8);
        out8(0x40, (count >> 8) as u8);
        Self { zero, scale }
    }

    /// Nanoseconds since the start, by a clock that stands while the guest does.
    pub fn now(&self) -> u64 {
        let ticks = unsafe { _rdtsc() }.wrapping_sub(self.zero);
        ((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64
    }
}

/// What is due at a rate.
pub struct Pace {
    rate: u64,
    /// The time until which all that was due was given out.
    paid: u64,
}

impl Pace {
    /// What a guest that stood still or was throttled has missed is not made up for, beyond this: its throughput is
    /// to show the loss.
    const LATE: u64 = 4_000_000;

    /// A pace of `rate` a second; the greatest number stands for no limit.
    pub fn new(rate: u64) -> Self {
        Self { rate, paid: 0 }
    }

    /// How much is due at the time of `now`.
    pub fn due(&mut self, now: u64) -> u64 {
        if self.rate == 0 || self.rate == u64::MAX {
            return self.rate;
        }
        self.paid = self.paid.max(now.saturating_sub(Self::LATE.max(1_000_000_000 / self.rate)));
        let due = ((u128::from(now - self.paid) * u128::from(self.rate)) / 1_000_000_000) as u64;
        self.paid += self.time(due);
        due
    }

    /// Takes back what was given out and not done.
    pub fn owe(&mut self, rest: u64) {
        if self.rate != 0 && self.rate != u64::MAX {
            self.paid -= self.time(rest);
        }
    }

    fn time(&self, count: u64) -> u64 {
        ((u128::from(count) * 1_000_000_000) / u128::from(self.rate)) as u64
    }
}

/// Lets an interrupt line through.
pub fn unmask(line: u8) {
    if line < 8 {
        out8(0x21, in8(0x21) & !(1 << line));
    } else if line < 16 {
        out8(0xa1, in8(0xa1) & !(1 << (line - 8)));
        out8(0x21, in8(0x21) & !4);
    }
}

/// Rests until the next interrupt. Interrupts are on for this instruction alone, so no other code meets one; the
/// stack is moved first, because code of the surrounding function may use what lies below it.
pub fn wait() {
    unsafe { asm!("sub rsp, 256", "sti", "hlt", "cli", "add rsp, 256") }
}

/// Stops for good.
pub fn halt() {
    unsafe { asm!("cli", "hlt") }
}
