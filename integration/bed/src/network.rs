//! A network of two: a guest's virtio-net card, and the bed, which asks for the card's address by ARP.
//!
//! The guest's kernel answers by itself. A question and its answer pass both rings of the card.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use qferry_guest::NETWORK;

use crate::error::{Context, Error, Result};

/// The sockets of QEMU and of the bed, in the machine's folder.
const CARD: &str = "net";
const BED: &str = "net-bed";
/// The bed's addresses on this network.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0xbe, 0xd0, 1];
const ADDRESS: [u8; 4] = [NETWORK[0], NETWORK[1], NETWORK[2], 1];
/// The time between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The argument for QEMU's end of the network.
pub(crate) fn backend(folder: &Path) -> String {
    let [card, bed] = [CARD, BED].map(|name| folder.join(name).display().to_string());
    format!("dgram,id=net,local.type=unix,local.path={card},remote.type=unix,remote.path={bed}")
}

/// Asks until the guest answers.
pub(crate) fn ask(folder: &Path, patience: Duration) -> Result<()> {
    let own = folder.join(BED);
    let socket = UnixDatagram::bind(&own).context(|| "joining the guest's network")?;
    let asked = exchange(&socket, &folder.join(CARD), patience);
    drop(socket);
    fs::remove_file(&own).context(|| format!("removing {}", own.display()))?;
    asked
}

fn exchange(socket: &UnixDatagram, card: &Path, patience: Duration) -> Result<()> {
    socket.set_read_timeout(Some(ASK_AGAIN)).context(|| "listening to the guest's network")?;
    let deadline = Instant::now() + patience;
    let mut frame = [0; 2048];
    while Instant::now() < deadline {
        socket.send_to(&question(), card).context(|| "asking the guest's network card")?;
        let asked = Instant::now();
        while asked.elapsed() < ASK_AGAIN {
            match socket.recv(&mut frame) {
                Ok(length) if is_answer(&frame[..length]) => return Ok(()),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    Err(Error::new(format!("the guest did not answer at its network card in {patience:?}")))
}

/// A frame to everybody that asks who has the guest's address.
fn question() -> Vec<u8> {
    let header = [&[0xff; 6][..], &MAC, &[0x08, 0x06]].concat();
    let asked = [&[0, 1, 0x08, 0, 6, 4, 0, 1][..], &MAC, &ADDRESS, &[0; 6], &NETWORK].concat();
    let mut frame = [header, asked].concat();
    frame.resize(60, 0); // the least length of a frame
    frame
}

/// Whether a frame is the answer of the guest's address.
fn is_answer(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x06])
        && frame.get(20..22) == Some(&[0, 2])
        && frame.get(28..32) == Some(&NETWORK)
}
