//! A guest of 512 bytes: a boot sector that waits, writes, and then does to its machine what a guest system would.
//!
//! SeaBIOS starts the sector in real mode from the first disk, a third of a second after QEMU's start. Ports and values
//! are those of QEMU's machine `pc`.
//!
//! ```
//! use qferry_bed::{BootSector, Spec};
//!
//! // runs for about two seconds, then powers the machine off
//! let spec = Spec { boot: Some(BootSector::new().wait(40).power_off()), ..Spec::quick() };
//! ```

use std::fs;
use std::path::Path;

use crate::disk::Format;
use crate::error::{Context, Result};
use crate::qemu_build::Build;

/// The length of a boot sector.
const LENGTH: usize = 512;
/// Where SeaBIOS loads the sector.
const ORIGIN: u16 = 0x7c00;
/// Where the sector keeps the number of the disk it was started from.
const DRIVE: [u8; 2] = 0x0600u16.to_le_bytes();
/// The double word in which SeaBIOS counts ticks.
const TICKS: [u8; 2] = 0x046cu16.to_le_bytes();

/// The program of a boot sector, made step by step. After the last step the processor halts and still takes interrupts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootSector {
    code: Vec<u8>,
}

impl Default for BootSector {
    fn default() -> Self {
        Self::new()
    }
}

impl BootSector {
    /// The ticks of a second, nearly.
    pub const SECOND: u32 = 18;

    /// A guest that does nothing.
    pub fn new() -> Self {
        let empty = Self { code: Vec::new() };
        // xor ax, ax; mov ds, ax; mov es, ax; mov [DRIVE], dl; sti
        empty.then(&[0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x88, 0x16]).then(&DRIVE).then(&[0xfb])
    }

    /// Waits for so many ticks of the BIOS clock, 55 ms each. The clock stands while the guest is stopped.
    #[must_use]
    pub fn wait(self, ticks: u32) -> Self {
        // mov eax, [TICKS]; add eax, ticks; mov ebx, eax; again: hlt; cmp [TICKS], ebx; jb again
        let begun = self.then(&[0x66, 0xa1]).then(&TICKS).then(&[0x66, 0x05]).then(&ticks.to_le_bytes());
        begun.then(&[0x66, 0x89, 0xc3, 0xf4, 0x66, 0x39, 0x1e]).then(&TICKS).then(&[0x72, 0xf8])
    }

    /// Waits for a key, which QMP's `send-key` presses; see [`crate::Machine::press_key`].
    #[must_use]
    pub fn wait_for_key(self) -> Self {
        // mov ah, 0; int 0x16
        self.then(&[0xb4, 0x00, 0xcd, 0x16])
    }

    /// Writes a byte to a port.
    #[must_use]
    pub fn out_byte(self, port: u16, value: u8) -> Self {
        // mov dx, port; mov al, value; out dx, al
        self.then(&[0xba]).then(&port.to_le_bytes()).then(&[0xb0, value, 0xee])
    }

    /// Writes a word to a port.
    #[must_use]
    pub fn out_word(self, port: u16, value: u16) -> Self {
        // mov dx, port; mov ax, value; out dx, ax
        self.then(&[0xba]).then(&port.to_le_bytes()).then(&[0xb8]).then(&value.to_le_bytes()).then(&[0xef])
    }

    /// Powers the machine off: ACPI S5.
    #[must_use]
    pub fn power_off(self) -> Self {
        self.out_word(0x604, 0x2000)
    }

    /// Suspends the machine: ACPI S3.
    #[must_use]
    pub fn suspend(self) -> Self {
        self.out_word(0x604, 0x2400)
    }

    /// Resets the machine.
    #[must_use]
    pub fn reset(self) -> Self {
        self.out_byte(0xcf9, 6)
    }

    /// Reports a panic to the device `pvpanic`, which the spec must ask for.
    #[must_use]
    pub fn panic(self) -> Self {
        self.out_byte(0x505, 1)
    }

    /// Writes to the disk that the sector was started from: `count` sectors, 64 at most, from sector `first` on.
    #[must_use]
    pub fn write(self, first: u32, count: u8) -> Self {
        assert!(count <= 64, "the bytes are taken from the segment of the sector itself");
        let packet = ORIGIN + u16::try_from(self.code.len() + 2).unwrap_or(u16::MAX);
        // jmp over the packet: its length, the count, the buffer's offset and segment, the first sector
        let packed = self.then(&[0xeb, 16, 16, 0, count, 0]).then(&ORIGIN.to_le_bytes()).then(&[0, 0]);
        let packed = packed.then(&u64::from(first).to_le_bytes());
        // mov si, packet; mov dl, [DRIVE]; mov ax, 0x4300; int 0x13
        let addressed = packed.then(&[0xbe]).then(&packet.to_le_bytes()).then(&[0x8a, 0x16]).then(&DRIVE);
        addressed.then(&[0xb8, 0x00, 0x43, 0xcd, 0x13])
    }

    /// Touches so many pages of memory, 128 at most.
    #[must_use]
    pub fn dirty(self, pages: u16) -> Self {
        assert!(pages <= 128, "real mode reaches no more between the sector and the video memory");
        // mov cx, pages; mov bx, 0x1000; again: mov es, bx; inc byte [es:0]; add bx, 0x100; loop again
        let begun = self.then(&[0xb9]).then(&pages.to_le_bytes()).then(&[0xbb, 0x00, 0x10]);
        begun.then(&[0x8e, 0xc3, 0x26, 0xfe, 0x06, 0x00, 0x00, 0x81, 0xc3, 0x00, 0x01, 0xe2, 0xf3])
    }

    /// Does these steps over and over.
    #[must_use]
    pub fn repeat(self, steps: impl FnOnce(Self) -> Self) -> Self {
        let begin = self.code.len();
        let looped = steps(self);
        // jmp begin, counted from behind this instruction of three bytes
        let back = u16::try_from(looped.code.len() + 3 - begin).unwrap_or(u16::MAX);
        looped.then(&[0xe9]).then(&back.wrapping_neg().to_le_bytes())
    }

    /// Does these steps at every NMI, which `inject-nmi` brings, and then halts.
    #[must_use]
    pub fn on_nmi(self, steps: impl FnOnce(Self) -> Self) -> Self {
        // jmp over the handler
        let begin = self.code.len() + 3;
        let handler = ORIGIN + u16::try_from(begin).unwrap_or(u16::MAX);
        let handled = steps(self.then(&[0xe9, 0, 0]));
        // again: hlt; jmp again
        let mut handled = handled.then(&[0xf4, 0xeb, 0xfd]);
        let over = u16::try_from(handled.code.len() - begin).unwrap_or(u16::MAX).to_le_bytes();
        handled.code[begin - 2..begin].copy_from_slice(&over);
        // mov word [0x0008], handler; mov word [0x000a], 0: the second vector
        handled.then(&[0xc7, 0x06, 0x08, 0x00]).then(&handler.to_le_bytes()).then(&[0xc7, 0x06, 0x0a, 0x00, 0, 0])
    }

    /// The sector.
    ///
    /// # Panics
    /// The steps do not fit.
    pub fn bytes(&self) -> [u8; LENGTH] {
        let mut sector = [0; LENGTH];
        // again: hlt; jmp again
        let code = [&self.code[..], &[0xf4, 0xeb, 0xfd]].concat();
        assert!(code.len() <= LENGTH - 2, "{} bytes of code are too many for a boot sector", code.len());
        for (byte, code) in sector.iter_mut().zip(code.into_iter().chain(std::iter::repeat(0))) {
            *byte = code;
        }
        sector[LENGTH - 2..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }

    /// Makes a raw image of that size with the sector in it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn write_raw(&self, path: &Path, size: u64) -> Result<()> {
        let made = fs::write(path, self.bytes()).and_then(|()| fs::OpenOptions::new().write(true).open(path));
        let sized = made.and_then(|file| file.set_len(size.max(LENGTH as u64)));
        sized.context(|| format!("creating {}", path.display()))
    }

    /// Writes the sector to the begin of an image.
    pub(crate) fn install(&self, build: &Build, image: &Path, format: Format) -> Result<()> {
        let sector = image.with_extension("boot");
        fs::write(&sector, self.bytes()).context(|| format!("creating {}", sector.display()))?;
        let written = build.io_on(image, format, [format!("write -q -s {} 0 {LENGTH}", sector.display()).as_str()]);
        fs::remove_file(&sector).context(|| format!("removing {}", sector.display()))?;
        written.map(drop)
    }

    fn then(mut self, bytes: &[u8]) -> Self {
        self.code.extend_from_slice(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_is_whole() {
        let sector = BootSector::new().repeat(|steps| steps.dirty(8).wait(1).write(64, 8)).bytes();
        assert_eq!(sector[510..], [0x55, 0xaa]);
        // the jump leads back to the step after the prologue
        let begin = BootSector::new().code.len();
        let jump = sector.windows(3).position(|bytes| bytes[0] == 0xe9 && bytes[2] == 0xff).expect("a jump");
        let offset = u16::from_le_bytes([sector[jump + 1], sector[jump + 2]]);
        assert_eq!((jump as u16 + 3).wrapping_add(offset), begin as u16);
    }

    #[test]
    fn an_nmi_leads_to_its_steps() {
        let sector = BootSector::new().on_nmi(BootSector::power_off).wait(1).bytes();
        let begin = BootSector::new().code.len();
        // mov dx, 0x604 begins the handler, and mov word [0x0008] follows the halt behind the handler
        assert_eq!(sector[begin + 3..begin + 6], [0xba, 0x04, 0x06]);
        let over = begin + 3 + usize::from(u16::from_le_bytes([sector[begin + 1], sector[begin + 2]]));
        assert_eq!(sector[over..over + 4], [0xc7, 0x06, 0x08, 0x00]);
        let handler = u16::from_le_bytes([sector[over + 4], sector[over + 5]]);
        assert_eq!(handler, ORIGIN + begin as u16 + 3);
    }

    #[test]
    #[should_panic(expected = "too many")]
    fn a_program_that_does_not_fit_is_refused() {
        let long = (0..100).fold(BootSector::new(), |steps, _| steps.wait(1));
        long.bytes();
    }
}
