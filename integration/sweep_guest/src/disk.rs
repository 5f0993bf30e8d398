//! The disks: blocks are written at a rate, one at a time to each disk, and read back in turn. Every sector says its
//! disk, its block and the number of its write.

use crate::{
    Latencies,
    clock::{Clock, Pace},
    complain, pci,
    virtio::{self, NEXT, Ring, WRITTEN_BY_DEVICE},
};

const LEGACY_BLOCK: u32 = 0x1001_1af4;
const FLUSH: u32 = 1 << 9;
const MOST: usize = 8;
const MAGIC: u64 = u64::from_le_bytes(*b"qf-sweep");

pub struct Work {
    /// Writes a second.
    pub rate: u64,
    /// Bytes of one.
    pub block: u32,
    /// Bytes from the disk's beginning that are written to.
    pub span: u64,
    /// Bytes from the beginning that are written before the guest is ready.
    pub fill: u64,
    pub sync: bool,
    /// Blocks checked a second.
    pub check: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Request {
    None,
    Write,
    Flush,
    Read,
}

struct Disk {
    number: u64,
    device: virtio::Device,
    ring: Ring,
    header: *mut u64,
    status: *mut u8,
    buffer: *mut u64,
    /// The number of the last write to each block, 0 is none.
    latest: *mut u32,
    /// The blocks that may be written at all, and how many of the first are written at the rate.
    blocks: u64,
    span: u64,
    writes: Pace,
    checks: Pace,
    sectors: u32,
    sync: bool,
    request: Request,
    block: u64,
    began: u64,
    written: u64,
    verified: u64,
    seed: u64,
}

pub struct Disks {
    disks: [Option<Disk>; MOST],
    pub latencies: Latencies,
}

impl Disks {
    pub fn find(work: &Work, clock: &Clock) -> Self {
        let mut disks = [const { None }; MOST];
        let found = pci::find(LEGACY_BLOCK);
        for (number, (place, found)) in disks.iter_mut().zip(found).enumerate() {
            *place = Disk::start(number as u64, &found, work);
        }
        let mut disks = Self { disks, latencies: Latencies::new(b'd') };
        for disk in disks.disks.iter_mut().flatten() {
            disk.fill(work.fill / u64::from(work.block), clock, &mut disks.latencies);
        }
        disks.latencies = Latencies::new(b'd');
        disks
    }

    fn all(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().flatten()
    }

    pub fn count(&self) -> u64 {
        self.all().count() as u64
    }

    pub fn blocks(&self) -> u64 {
        self.all().map(|disk| disk.blocks).sum()
    }

    pub fn written(&self) -> u64 {
        self.all().map(|disk| disk.written).sum()
    }

    pub fn verified(&self) -> u64 {
        self.all().map(|disk| disk.verified).sum()
    }

    pub fn work(&mut self, clock: &Clock, is_checking: bool) {
        for disk in self.disks.iter_mut().flatten() {
            disk.work(clock, &mut self.latencies, is_checking);
        }
    }
}

impl Disk {
    fn start(number: u64, found: &pci::Device, work: &Work) -> Option<Self> {
        let device = virtio::Device::start(found, if work.sync { FLUSH } else { 0 })?;
        let ring = device.ring(0);
        device.ready();
        let capacity = (u64::from(device.configuration32(4)) << 32 | u64::from(device.configuration32(0))) * 512;
        // A count of 4 bytes for each block has its room in the guest's first memory.
        let blocks = (capacity.min(work.span.max(work.fill)) / u64::from(work.block)).min(1 << 18);
        let span = (work.span / u64::from(work.block)).min(blocks);
        if span == 0 {
            complain(b"a disk has no room for one block, bytes:", capacity);
        }
        let pace = |rate| Pace::new(if span == 0 { 0 } else { rate });
        let page = virtio::pages(4096);
        Some(Self {
            number, ring, blocks, span, sync: device.features & FLUSH != 0, device,
            header: page.cast(), status: unsafe { page.add(64) },
            buffer: virtio::pages(work.block as usize).cast(),
            latest: virtio::pages(blocks as usize * 4 + 4).cast(),
            sectors: work.block / 512, writes: pace(work.rate), checks: pace(work.check), request: Request::None,
            block: 0, began: 0, written: 0, verified: 0, seed: number + 1,
        })
    }

    /// Writes the first `blocks` blocks, before anything else is done.
    fn fill(&mut self, blocks: u64, clock: &Clock, latencies: &mut Latencies) {
        for block in 0..blocks.min(self.blocks) {
            self.write(block, clock.now());
            while self.request != Request::None {
                self.finish(clock, latencies);
            }
        }
        self.written = 0;
    }

    fn write(&mut self, block: u64, now: u64) {
        self.block = block;
        self.stamp();
        self.began = now;
        self.send(Request::Write);
    }

    /// Takes the device's answer to the request under way, if it is there.
    fn finish(&mut self, clock: &Clock, latencies: &mut Latencies) {
        if self.request != Request::None && self.ring.take().is_some() {
            self.device.acknowledge();
            self.end(clock.now(), latencies);
        }
    }

    fn work(&mut self, clock: &Clock, latencies: &mut Latencies, is_checking: bool) {
        self.finish(clock, latencies);
        if self.request != Request::None {
            return;
        }
        let now = clock.now();
        let due = self.writes.due(now);
        if due > 0 {
            self.writes.owe(due - 1); // one at a time
            self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            return self.write(((u128::from(self.seed) * u128::from(self.span)) >> 64) as u64, now);
        }
        let due = if is_checking { self.checks.due(now) } else { 0 };
        if due > 0 {
            self.checks.owe(due - 1);
            self.block = self.verified % self.blocks;
            if self.expected(self.block) > 0 {
                self.send(Request::Read);
            } else {
                self.verified += 1; // never written: nothing to know
            }
        }
    }

    fn expected(&self, block: u64) -> u32 {
        unsafe { self.latest.add(block as usize).read() }
    }

    /// Writes what each sector of the block must say.
    fn stamp(&mut self) {
        let count = self.expected(self.block).wrapping_add(1);
        unsafe { self.latest.add(self.block as usize).write(count) };
        for sector in 0..self.sectors as usize {
            let words = [MAGIC, self.number << 48 | self.block, u64::from(count), sector as u64];
            for (index, word) in words.into_iter().enumerate() {
                unsafe { self.buffer.add(sector * 64 + index).write(word) };
            }
        }
    }

    fn send(&mut self, request: Request) {
        self.request = request;
        let kind = match request {
            Request::Write => 1,
            Request::Flush => 4,
            Request::Read | Request::None => 0,
        };
        let sector = if request == Request::Flush { 0 } else { self.block * u64::from(self.sectors) };
        unsafe {
            self.header.write(kind);
            self.header.add(1).write(sector);
            self.status.write(0xff);
        }
        self.ring.describe(0, self.header.cast(), 16, NEXT);
        if request == Request::Flush {
            self.ring.describe(1, self.status, 1, WRITTEN_BY_DEVICE);
        } else {
            let by_device = if request == Request::Read { WRITTEN_BY_DEVICE } else { 0 };
            self.ring.describe(1, self.buffer.cast(), self.sectors * 512, NEXT | by_device);
            self.ring.describe(2, self.status, 1, WRITTEN_BY_DEVICE);
        }
        self.ring.offer(0);
    }

    fn end(&mut self, now: u64, latencies: &mut Latencies) {
        if unsafe { self.status.read_volatile() } != 0 {
            complain(b"a request of a disk failed, block", self.block);
        }
        match self.request {
            Request::Write if self.sync => return self.send(Request::Flush),
            Request::Write | Request::Flush => {
                latencies.add(now - self.began);
                self.written += 1;
            }
            Request::Read => {
                for sector in 0..self.sectors as usize {
                    let word = |index| unsafe { self.buffer.add(sector * 64 + index).read_volatile() };
                    let right = word(0) == MAGIC
                        && word(1) == (self.number << 48 | self.block)
                        && word(2) == u64::from(self.expected(self.block))
                        && word(3) == sector as u64;
                    if !right {
                        complain(b"a disk is not as it was written, block", self.block);
                        break;
                    }
                }
                self.verified += 1;
            }
            Request::None => {}
        }
        self.request = Request::None;
    }
}
