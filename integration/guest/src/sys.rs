//! The calls that an init cannot make without `unsafe`: I/O ports, mounts, modules, network cards, page-aligned memory.
//! This module has nothing else, and no state.
#![allow(unsafe_code)] // port I/O is an instruction, and std has no mount, no finit_module and no mapping

use std::arch::asm;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Error, Result};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::slice;

fn checked(result: i64) -> Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Lets this thread and the ones it starts use I/O ports.
pub(crate) fn allow_port_access() -> Result<()> {
    // SAFETY: takes a number; widens what this process may do and changes no memory.
    checked(unsafe { libc::iopl(3) }.into())
}

/// Writes bytes to an I/O port. `allow_port_access` comes first, or the process is killed.
pub(crate) fn write_port(port: u16, bytes: &[u8]) {
    for byte in bytes {
        // SAFETY: the port is the debug console's alone; the instruction touches no memory and no flags.
        unsafe { asm!("out dx, al", in("dx") port, in("al") *byte, options(nomem, nostack, preserves_flags)) };
    }
}

/// Writes a value to a port of the machine, as a word or as a byte.
pub(crate) fn command_machine((port, value, is_word): (u16, u16, bool)) {
    match is_word {
        // SAFETY: the ports are those of power management; whether the machine goes on is the workload's wish.
        true => unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) },
        false => write_port(port, &[value.to_le_bytes()[0]]),
    }
}

/// The first `length` bytes of item `key` of the machine's `fw_cfg` device.
pub(crate) fn firmware_item(key: u16, length: usize) -> Vec<u8> {
    // SAFETY: the ports are that device's alone, and no driver for it is loaded; the instruction touches no memory.
    unsafe { asm!("out dx, ax", in("dx") 0x510_u16, in("ax") key, options(nomem, nostack, preserves_flags)) };
    let next = || {
        let byte: u8;
        // SAFETY: as above.
        unsafe { asm!("in al, dx", in("dx") 0x511_u16, out("al") byte, options(nomem, nostack, preserves_flags)) };
        byte
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Mounts a file system that needs no device.
pub(crate) fn mount(kind: &CStr, at: &CStr) -> Result<()> {
    // SAFETY: all strings are terminated and outlive the call; there is no data argument.
    checked(unsafe { libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) }.into())
}

/// Loads a kernel module.
pub(crate) fn load_module(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let parameters = CString::default();
    // SAFETY: the descriptor is open, the string is terminated, both outlive the call.
    checked(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) })
}

/// Gives a network card an address of the network 10.0.0.0/8, and switches the card on.
pub(crate) fn raise_network(card: &CStr, address: [u8; 4]) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: numbers and arrays of numbers, of which zeroes are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (byte, name) in request.ifr_name.iter_mut().zip(card.to_bytes()) {
        *byte = *name as libc::c_char;
    }
    let mut told = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: [0; 14] };
    for (byte, number) in told.sa_data.iter_mut().skip(2).zip(address) {
        *byte = number as libc::c_char;
    }
    request.ifr_ifru.ifru_addr = told;
    // SAFETY: the descriptor is open and the pointer is to a live value for the length of the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, &raw const request) }.into())?;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: as above.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())
}

/// Zeroes a range of a block device and gives it back, as far as the device can.
pub(crate) fn punch(file: &File, offset: u64, length: u64) -> Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (Ok(offset), Ok(length)) = (libc::off_t::try_from(offset), libc::off_t::try_from(length)) else {
        return Err(Error::from_raw_os_error(libc::EFBIG));
    };
    // SAFETY: the descriptor is open for the length of the call, which takes numbers besides.
    checked(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) }.into())
}

/// Puts this thread before all ordinary ones, so that work does not delay beats and writes.
pub(crate) fn run_first(priority: i32) -> Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the pointer is to a live value for the length of the call; 0 is the calling thread.
    checked(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) }.into())
}

/// Page-aligned words of zero, for the rest of the process's life.
pub(crate) fn words(count: usize) -> Result<&'static mut [u64]> {
    let length = (count * 8).max(1);
    // SAFETY: a new private mapping at an address of the kernel's choice overlaps nothing.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: the mapping is `length` zeroed bytes, page-aligned, never unmapped, and referred to from here alone.
    Ok(unsafe { slice::from_raw_parts_mut(start.cast(), count) })
}

/// The same memory as bytes, for O_DIRECT.
pub(crate) fn bytes(words: &mut [u64]) -> &mut [u8] {
    let length = size_of_val(words);
    // SAFETY: any byte is a valid u8, u8 has no alignment, and the borrow carries over.
    unsafe { slice::from_raw_parts_mut(words.as_mut_ptr().cast(), length) }
}
