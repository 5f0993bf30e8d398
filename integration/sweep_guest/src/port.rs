//! Input and output ports, and the debug port on which the guest speaks.

use core::arch::asm;

/// isa-debugcon's own default, because SeaBIOS prints on 0x402.
const DEBUG: u16 = 0xe9;

pub fn out8(port: u16, value: u8) {
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

pub fn out16(port: u16, value: u16) {
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

pub fn out32(port: u16, value: u32) {
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) }
}

pub fn in8(port: u16) -> u8 {
    let value: u8;
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags)) }
    value
}

pub fn in16(port: u16) -> u16 {
    let value: u16;
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nostack, preserves_flags)) }
    value
}

pub fn in32(port: u16) -> u32 {
    let value: u32;
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags)) }
    value
}

/// Says `text` in one instruction, which a hypervisor may take as one exit.
pub fn say(text: &[u8]) {
    unsafe {
        asm!("rep outsb", in("dx") DEBUG, inout("rsi") text.as_ptr() => _, inout("rcx") text.len() => _, options(nostack, readonly))
    }
}

/// Says a number in hexadecimal.
pub fn number(value: u64) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[(rest & 15) as usize];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    say(&digits[at..]);
}
