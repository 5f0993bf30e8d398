//! The guest of `qferry sweep`: it dirties memory and writes to disks at set rates, and tells on a debug port what it
//! did and how long each write took. It needs no operating system, so that a trial begins a moment after QEMU does.
//!
//! The kernel's command line says what it does, numbers in decimal:
//!
//! | word | meaning | default |
//! |---|---|---|
//! | `mem=N` | MiB of working set that it fills and then dirties | 0 |
//! | `dirty=N` | pages of 4 KiB dirtied a second; `max` for as many as it can | 0 |
//! | `pattern=WORD` | `sequential`, or `random` | sequential |
//! | `write=N` | writes a second to each disk | 0 |
//! | `block=N` | bytes of such a write, at most 1 MiB | 4096 |
//! | `span=N` | MiB at the beginning of each disk that it writes to, at most 4096 | 64 |
//! | `fill=N` | MiB at the beginning of each disk that are written before the guest is ready | 0 |
//! | `sync=N` | 1: every write is flushed before it counts | 0 |
//! | `check=N` | pages that it checks a second while asked to, and a hundredth as many blocks | 200000 |
//!
//! It begins to check when the key V is pressed on its keyboard, and ends when Q is.
//!
//! What it says, numbers in hexadecimal, every byte of which costs an exit from the guest:
//!
//! | line | meaning |
//! |---|---|
//! | `r P D B N` | ready: P pages are filled, D disks with B blocks in all and N network cards are found |
//! | `.` | one beat, about each millisecond; it stands alone between lines |
//! | `s T B M W V R ...` | each 50 ms, what was done since the start; see below |
//! | `E text` | something is wrong: content that should not be there, a failed call, a fault |
//!
//! At T ns of the guest's clock there were B beats, M pages were written and W blocks of disks, V pages and R blocks
//! were read in turn and found right. Then come `mK:C` and `dK:C`: C writes of pages or blocks since the line before
//! took between 2^K and 2^(K+1) ns.

#![no_std]
#![no_main]

mod clock;
mod disk;
mod keyboard;
mod memory;
mod net;
mod pci;
mod port;
mod virtio;

use core::{arch::global_asm, panic::PanicInfo};

use clock::Clock;
use port::{number, say};

global_asm!(include_str!("../boot.s"), options(att_syntax));

/// What is wrong once is seldom wrong only once, and a line costs the guest's time.
const COMPLAINTS: u32 = 20;

/// How long each write took, by powers of two of nanoseconds.
pub struct Latencies {
    letter: u8,
    counts: [u32; 40],
}

impl Latencies {
    pub const fn new(letter: u8) -> Self {
        Self { letter, counts: [0; 40] }
    }

    pub fn add(&mut self, nanoseconds: u64) {
        let bucket = 63 - (nanoseconds | 1).leading_zeros() as usize;
        self.counts[if bucket < 40 { bucket } else { 39 }] += 1;
    }

    fn tell(&mut self) {
        for bucket in 0..self.counts.len() {
            let count = core::mem::take(&mut self.counts[bucket]);
            if count > 0 {
                say(&[b' ', self.letter]);
                number(bucket as u64);
                say(b":");
                number(u64::from(count));
            }
        }
    }
}

static mut COMPLAINED: u32 = 0;

pub fn complain(text: &[u8], detail: u64) {
    // There is one CPU, and no interrupt handler complains.
    unsafe {
        COMPLAINED += 1;
        if COMPLAINED > COMPLAINTS {
            return;
        }
    }
    say(b"\nE ");
    say(text);
    say(b" ");
    number(detail);
    say(b"\n");
}

/// PVH's start information: the command line and the map of memory are all that counts.
#[repr(C)]
struct StartInformation {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MemoryMapEntry {
    start: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// The value of a word of the command line.
fn setting(line: &'static [u8], name: &[u8]) -> Option<&'static [u8]> {
    line.split(|byte| *byte == b' ').find_map(|word| word.strip_prefix(name)?.strip_prefix(b"="))
}

fn decimal(line: &'static [u8], name: &[u8], default: u64) -> u64 {
    let Some(digits) = setting(line, name) else { return default };
    if digits == b"max" {
        return u64::MAX;
    }
    digits.iter().fold(0, |sum, digit| {
        if !digit.is_ascii_digit() {
            complain(b"a setting is no number, digit", u64::from(*digit));
        }
        sum * 10 + u64::from(digit.wrapping_sub(b'0'))
    })
}

#[unsafe(no_mangle)]
extern "C" fn guest_main(start: *const StartInformation) -> ! {
    let start = unsafe { &*start };
    let line = unsafe {
        let text = start.command_line as *const u8;
        let mut length = 0;
        while start.command_line != 0 && *text.add(length) != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(if length == 0 { b"".as_ptr() } else { text }, length)
    };
    let clock = Clock::start();
    let mut regions = [(0, 0); 4];
    let mut found = 0;
    for index in 0..start.memory_map_entries as usize {
        let entry = unsafe { &*(start.memory_map as *const MemoryMapEntry).add(index) };
        let (from, end) = (entry.start.max(memory::FIRST), (entry.start + entry.size).min(memory::MAPPED) & !0xfff);
        if entry.kind == 1 && from < end && found < regions.len() {
            regions[found] = (from, end - from);
            found += 1;
        }
    }
    let wanted = decimal(line, b"mem", 0) * 256;
    let check = decimal(line, b"check", 200_000);
    let random = setting(line, b"pattern") == Some(b"random");
    let mut memory = memory::Memory::fill(regions, wanted, decimal(line, b"dirty", 0), random, check);
    let mut disks = disk::Disks::find(&disk::Work {
        rate: decimal(line, b"write", 0),
        block: (decimal(line, b"block", 4096).clamp(512, 1 << 20) as u32) & !511,
        span: decimal(line, b"span", 64).min(4096) << 20,
        fill: decimal(line, b"fill", 0) << 20,
        sync: decimal(line, b"sync", 0) == 1,
        check: check / 100,
    }, &clock);
    let mut net = net::Network::find();
    say(b"\nr ");
    number(memory.pages());
    say(b" ");
    number(disks.count());
    say(b" ");
    number(disks.blocks());
    say(b" ");
    number(u64::from(net.is_some()));
    say(b"\n");

    let (mut beats, mut next_beat, mut next_line) = (0_u64, clock.now(), clock.now());
    let mut is_checking = false;
    loop {
        let now = clock.now();
        if now >= next_beat {
            say(b".");
            beats += 1;
            // A beat that is late makes no later one early.
            next_beat = (next_beat + 1_000_000).max(now + 500_000);
        }
        match keyboard::pressed() {
            Some(keyboard::V) => is_checking = true,
            Some(keyboard::Q) => is_checking = false,
            _ => {}
        }
        memory.work(&clock, next_beat, is_checking);
        disks.work(&clock, is_checking);
        if let Some(net) = &mut net {
            net.work();
        }
        if now >= next_line {
            next_line = now + 50_000_000;
            say(b"\ns ");
            let totals = [now, beats, memory.written, disks.written(), memory.verified, disks.verified()];
            for (index, total) in totals.into_iter().enumerate() {
                if index > 0 {
                    say(b" ");
                }
                number(total);
            }
            memory.latencies.tell();
            disks.latencies.tell();
            say(b"\n");
        }
        if !memory.is_behind() && clock.now() < next_beat {
            clock::wait();
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn guest_fault(address: u64, at: u64) -> ! {
    complain(b"fault at", at);
    complain(b"fault of address", address);
    loop {
        clock::halt();
    }
}

#[panic_handler]
fn panic(information: &PanicInfo) -> ! {
    complain(b"panic in line", information.location().map_or(0, |place| u64::from(place.line())));
    loop {
        clock::halt();
    }
}

// The compiler calls these by name, and no C library is there to have them.
global_asm!(
    ".text", ".globl memcpy, memmove, memset, memcmp, bcmp",
    "memcpy: movq %rdi, %rax", "movq %rdx, %rcx", "rep movsb", "ret",
    "memmove: movq %rdi, %rax", "movq %rdx, %rcx", "cmpq %rsi, %rdi", "jbe 1f",
    "leaq -1(%rdi,%rdx), %rdi", "leaq -1(%rsi,%rdx), %rsi", "std", "rep movsb", "cld", "ret",
    "1: rep movsb", "ret",
    "memset: movq %rdi, %r8", "movl %esi, %eax", "movq %rdx, %rcx", "rep stosb", "movq %r8, %rax", "ret",
    ".globl strlen, rust_eh_personality",
    "strlen: xorl %eax, %eax", "3: cmpb $0, (%rdi,%rax)", "je 4f", "incq %rax", "jmp 3b", "4: ret",
    "rust_eh_personality: ud2", // named by core's tables, which are left out
    "bcmp:", "memcmp: xorl %eax, %eax", "movq %rdx, %rcx", "cmpq %rcx, %rcx", "repe cmpsb", "je 2f",
    "movzbl -1(%rdi), %eax", "movzbl -1(%rsi), %ecx", "subl %ecx, %eax", "2: ret",
    options(att_syntax)
);
