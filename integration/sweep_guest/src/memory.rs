//! The memory that is dirtied: every page says which it is and how often it was written, and is checked before it is
//! written again, so a page that came over stale is found.

use crate::{
    Latencies,
    clock::{Clock, Pace},
    complain,
};

/// All below belongs to the guest itself.
pub const FIRST: u64 = 16 << 20;
/// What the page tables map.
pub const MAPPED: u64 = 64 << 30;
/// Pages between two looks at the clock.
const STEP: u64 = 16;

pub struct Memory {
    /// Where the counts begin, one of 4 bytes for each page: what the page must say.
    counts: *mut u32,
    regions: [(u64, u64); 4],
    pages: u64,
    random: bool,
    next: u64,
    checked: Pace,
    paid: Pace,
    behind: bool,
    seed: u64,
    pub written: u64,
    pub verified: u64,
    pub latencies: Latencies,
}

const fn scatter(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Memory {
    /// Fills at most `wanted` pages of the regions, after the counts, which come first.
    pub fn fill(mut regions: [(u64, u64); 4], wanted: u64, rate: u64, random: bool, check: u64) -> Self {
        let table = (wanted * 4).next_multiple_of(4096);
        let counts = regions[0].0 as *mut u32;
        let room = regions.iter().map(|(_, size)| size >> 12).sum::<u64>();
        let fits = regions[0].1 > table && room >= wanted + (table >> 12);
        if wanted > 0 && !fits {
            complain(b"the working set does not fit, pages there:", room);
        }
        regions[0] = (regions[0].0 + table, regions[0].1.saturating_sub(table));
        let pages = if fits { wanted } else { 0 };
        let mut memory = Self {
            counts, regions, pages, random, next: 0, paid: Pace::new(rate), checked: Pace::new(if pages > 0 { check } else { 0 }), behind: false, seed: 1,
            written: 0, verified: 0, latencies: Latencies::new(b'm'),
        };
        for page in 0..pages {
            memory.put(page, 1);
        }
        memory
    }

    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether work is due at once, so that the guest does not rest.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    fn at(&self, page: u64) -> *mut u64 {
        let mut offset = page << 12;
        for (start, size) in self.regions {
            if offset < size {
                return (start + offset) as *mut u64;
            }
            offset -= size;
        }
        self.regions[0].0 as *mut u64 // `fill` saw that all pages have a place
    }

    fn put(&mut self, page: u64, count: u32) {
        unsafe {
            let at = self.at(page);
            at.write_volatile(scatter(page ^ (u64::from(count) << 32)));
            at.add(511).write_volatile(u64::from(count));
            self.counts.add(page as usize).write_volatile(count);
        }
    }

    fn check(&self, page: u64) -> u32 {
        let (count, said, tail) = unsafe {
            let at = self.at(page);
            (self.counts.add(page as usize).read_volatile(), at.read_volatile(), at.add(511).read_volatile())
        };
        if said != scatter(page ^ (u64::from(count) << 32)) || tail != u64::from(count) {
            complain(b"memory is not as it was written, page", page);
        }
        count
    }

    fn pick(&mut self) -> u64 {
        if self.random {
            self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            ((u128::from(self.seed) * u128::from(self.pages)) >> 64) as u64
        } else {
            self.next = (self.next + 1) % self.pages;
            self.next
        }
    }

    /// Writes what is due, until the time of `end`, and checks if that is asked for.
    pub fn work(&mut self, clock: &Clock, end: u64, is_checking: bool) {
        self.behind = false;
        if self.pages == 0 {
            return;
        }
        let mut before = clock.now();
        let mut due = self.paid.due(before);
        while due > 0 && before < end {
            let pages = due.min(STEP);
            for _ in 0..pages {
                let page = self.pick();
                let count = self.check(page);
                self.put(page, count.wrapping_add(1));
                self.written += 1;
                let now = clock.now();
                self.latencies.add(now - before);
                before = now;
            }
            due -= pages;
        }
        self.paid.owe(due);
        self.behind = due > 0;
        let mut due = if is_checking { self.checked.due(before) } else { 0 };
        while due > 0 && before < end {
            self.check(self.verified % self.pages);
            self.verified += 1;
            due -= 1;
            if due % STEP == 0 {
                before = clock.now();
            }
        }
        if is_checking {
            self.checked.owe(due);
        }
    }
}
