//! The network card: it answers ARP for its address, and echoes what is sent to UDP port 7.

use crate::{
    pci,
    virtio::{self, Ring, WRITTEN_BY_DEVICE},
};

const LEGACY_NET: u32 = 0x1000_1af4;
const HAS_MAC: u32 = 1 << 5;
/// The address of the guest.
const ADDRESS: [u8; 4] = [10, 9, 0, 2];
const FRAME: usize = 2048;
/// Bytes of virtio's own header before each frame.
const HEADER: usize = 10;
const ECHO: [u8; 2] = [0, 7];

pub struct Network {
    device: virtio::Device,
    receive: Ring,
    transmit: Ring,
    buffers: *mut u8,
    /// The descriptors in use for receiving; each has a buffer, and so has each for transmitting.
    count: u16,
    sent: u16,
    mac: [u8; 6],
}

impl Network {
    pub fn find() -> Option<Self> {
        let found = pci::find(LEGACY_NET).next()?;
        let device = virtio::Device::start(&found, HAS_MAC)?;
        let (mut receive, transmit) = (device.ring(0), device.ring(1));
        let count = receive.size().min(transmit.size()).min(64);
        let buffers = virtio::pages(2 * usize::from(count) * FRAME);
        for index in 0..count {
            let buffer = unsafe { buffers.add(usize::from(index) * FRAME) };
            receive.describe(index, buffer, FRAME as u32, WRITTEN_BY_DEVICE);
        }
        device.ready();
        for index in 0..count {
            receive.offer(index);
        }
        let mac = core::array::from_fn(|index| device.configuration8(index as u16));
        Some(Self { device, receive, transmit, buffers, count, sent: 0, mac })
    }

    pub fn work(&mut self) {
        let mut any = false;
        while let Some((index, length)) = self.receive.take() {
            any = true;
            let index = usize::from(index % self.count);
            let length = (length as usize).clamp(HEADER, FRAME) - HEADER;
            let frame = unsafe { core::slice::from_raw_parts(self.buffers.add(index * FRAME + HEADER), length) };
            // A frame for transmission has the buffer after the next; the device is done with it long before its turn
            // comes.
            let place = usize::from(self.count + self.sent % self.count);
            let answer = unsafe { core::slice::from_raw_parts_mut(self.buffers.add(place * FRAME), HEADER + length) };
            if self.answer(frame, answer) {
                while self.transmit.take().is_some() {}
                let slot = self.sent % self.count;
                self.sent = self.sent.wrapping_add(1);
                self.transmit.describe(slot, answer.as_ptr(), answer.len() as u32, 0);
                self.transmit.offer(slot);
            }
            self.receive.offer(index as u16);
        }
        if any {
            self.device.acknowledge();
        }
    }

    /// Whether `answer` now holds what to send.
    fn answer(&self, frame: &[u8], answer: &mut [u8]) -> bool {
        let is_echo = frame.len() >= 42
            && frame[12..14] == [8, 0]
            && frame[14] == 0x45
            && frame[23] == 17
            && frame[30..34] == ADDRESS
            && frame[36..38] == ECHO;
        let asks_address = frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1] && frame[38..42] == ADDRESS;
        if !is_echo && !asks_address {
            return false;
        }
        answer[..HEADER].fill(0);
        let to = &mut answer[HEADER..];
        to.copy_from_slice(frame);
        to[..6].copy_from_slice(&frame[6..12]);
        to[6..12].copy_from_slice(&self.mac);
        if asks_address {
            to[21] = 2;
            to[22..28].copy_from_slice(&self.mac);
            to[28..32].copy_from_slice(&ADDRESS);
            to[32..42].copy_from_slice(&frame[22..32]);
        } else {
            // Swapped addresses and ports leave the header's sum as it was; a UDP sum of zero is none.
            to[26..30].copy_from_slice(&frame[30..34]);
            to[30..34].copy_from_slice(&frame[26..30]);
            to[34..36].copy_from_slice(&frame[36..38]);
            to[36..38].copy_from_slice(&frame[34..36]);
        }
        true
    }
}
