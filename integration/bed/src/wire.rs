//! Two hosts on one machine: a network namespace for each QEMU of a pair, and between them a link of a known rate.
//!
//! The namespaces have no name and belong to whoever holds their descriptors and to the QEMUs in them: nothing is left
//! when these are gone, however they went.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{Context, Error, Result};
use crate::record::Side;

/// The device in each namespace.
const DEVICE: &str = "veth0";
/// The burst that the shaper lets through after a pause: 4 ms at 1 Gbit/s. With less, a single stream does not reach
/// the rate on a busy machine, because the shaper's timer comes late.
const BURST: &str = "512kb";
/// The queue of the shaper: 8 ms at 1 Gbit/s. No packet is lost, for a local sender stops before.
const LIMIT: &str = "1mb";
/// The ports that RAM and the two NBD servers are given. The namespace is the pair's own, so they are free.
const RAM: u16 = 4445;
const NBD: u16 = 10809;
const COPY: u16 = 5001;
/// The bytes that a copy gives to the kernel at a time.
const CHUNK: usize = 64 << 10;
/// The longest time that a copy may stand still.
const STANDS_STILL: Duration = Duration::from_secs(20);

/// The properties of a link between two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Bits a second in each direction, all headers included.
    pub bits_per_second: u64,
}

impl Link {
    /// 1 Gbit/s: about 114 MiB/s of payload.
    pub const fn gigabit() -> Self {
        Self { bits_per_second: 1_000_000_000 }
    }
}

/// Two hosts with a link between them.
#[derive(Debug)]
pub struct Wire {
    hosts: [File; 2],
    /// Each host's table of the bytes that its devices received and sent.
    counters: [File; 2],
}

/// The speed of a plain TCP copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Bytes of payload a second.
    pub payload: f64,
    /// Bytes a second as the sender's device counted them, headers included.
    pub device: f64,
}

impl Wire {
    /// Makes two namespaces and the link between them.
    ///
    /// # Errors
    /// The caller is not root, or the programs `ip` and `tc` are missing.
    pub fn start(link: Link) -> Result<Self> {
        let [(source, sent), (destination, received)] = [host()?, host()?];
        let wire = Self { hosts: [source, destination], counters: [sent, received] };
        let namespace = format!("/proc/{}/fd/{}", std::process::id(), wire.host(Side::Destination).as_raw_fd());
        let pair = ["link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", &namespace];
        wire.on(Side::Source, || program("ip", &pair))??;
        for side in [Side::Source, Side::Destination] {
            wire.on(side, || set_up(side, link))??;
        }
        Ok(wire)
    }

    fn host(&self, side: Side) -> &File {
        &self.hosts[side as usize]
    }

    /// Acts on one of the hosts, to which sockets and processes that are made meanwhile belong. The act runs on a
    /// thread of its own; processes that it does not wait for stay on that host.
    ///
    /// # Errors
    /// The host cannot be entered.
    pub fn on<T: Send>(&self, side: Side, act: impl FnOnce() -> T + Send) -> Result<T> {
        let host = self.host(side).as_fd();
        let work = move || -> Result<T> {
            setns(host, CloneFlags::CLONE_NEWNET).context(|| format!("entering the host of the {side}"))?;
            Ok(act())
        };
        thread::scope(|scope| match scope.spawn(work).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// An address of the destination for RAM, in the form of both the command and QEMU's `uri`.
    pub fn ram(&self) -> String {
        format!("tcp:{}:{RAM}", address(Side::Destination))
    }

    /// An address for the NBD server of a side, in the same form.
    pub fn nbd(&self, side: Side) -> String {
        format!("tcp:{}:{NBD}", address(side))
    }

    /// The options of the command that send RAM and disks over this link. The command must run on the source's host
    /// ([`Wire::on`]), where a user would start it.
    pub fn options(&self) -> Vec<String> {
        let (ram, nbd, source_nbd) = (self.ram(), self.nbd(Side::Destination), self.nbd(Side::Source));
        let pairs = [("--migrate-address", ram), ("--nbd-address", nbd), ("--source-nbd-address", source_nbd)];
        let words = pairs.into_iter().flat_map(|(option, address)| [option.to_owned(), address]);
        words.chain(["--allow-plaintext".to_owned()]).collect()
    }

    /// Bytes that a side's device has sent so far, headers included.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn sent(&self, side: Side) -> Result<u64> {
        let mut table = vec![0; CHUNK];
        let length = self.counters[side as usize].read_at(&mut table, 0).context(|| "reading a host's counters")?;
        let table = String::from_utf8_lossy(table.get(..length).unwrap_or_default());
        let row = table.lines().filter_map(|row| row.split_once(':')).find(|(name, _)| name.trim() == DEVICE);
        // Eight counters of received packets, and then those of sent ones, bytes first.
        let bytes = row.and_then(|(_, counters)| counters.split_whitespace().nth(8)?.parse().ok());
        bytes.ok_or_else(|| Error::new(format!("no counters of {DEVICE} in {table}")))
    }

    /// Copies so many bytes from the source's host to the destination's over one TCP connection.
    ///
    /// # Errors
    /// The connection broke, or stood still.
    pub fn copy(&self, bytes: u64) -> Result<Speed> {
        let doing = || "a plain copy over the link";
        let (source, destination) = (address(Side::Source), address(Side::Destination));
        let listener = self.on(Side::Destination, || TcpListener::bind((destination, COPY)))?.context(doing)?;
        let stream = self.on(Side::Source, || TcpStream::connect((destination, COPY)))?.context(doing)?;
        let (mut receiver, from) = listener.accept().context(doing)?;
        if from.ip() != source {
            return Err(Error::new(format!("{} connected, which is not the source's host", from.ip())));
        }
        stream.set_write_timeout(Some(STANDS_STILL)).context(doing)?;
        receiver.set_read_timeout(Some(STANDS_STILL)).context(doing)?;
        let (before, began) = (self.sent(Side::Source)?, Instant::now());
        let received = thread::scope(|scope| {
            let sender = scope.spawn(move || send(stream, bytes));
            let received = drain(&mut receiver);
            sender.join().map_err(|_| Error::new("the sender panicked"))?.context(doing)?;
            received.context(doing)
        })?;
        let took = began.elapsed().as_secs_f64();
        if received != bytes {
            return Err(Error::new(format!("{received} of {bytes} bytes arrived over the link")));
        }
        let counted = self.sent(Side::Source)? - before;
        Ok(Speed { payload: bytes as f64 / took, device: counted as f64 / took })
    }
}

fn address(side: Side) -> Ipv4Addr {
    match side {
        Side::Source => Ipv4Addr::new(10, 0, 0, 1),
        Side::Destination => Ipv4Addr::new(10, 0, 0, 2),
    }
}

/// A new network namespace, and its devices' counters. Made by a thread that ends, so that nobody else is moved.
fn host() -> Result<(File, File)> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).context(|| "making a network namespace, which needs root")?;
        let open = |name: &str| File::open(name).context(|| format!("opening {name}"));
        Ok((open("/proc/thread-self/ns/net")?, open("/proc/thread-self/net/dev")?))
    };
    thread::scope(|scope| scope.spawn(make).join().map_err(|_| Error::new("a thread panicked"))?)
}

/// Brings up the devices of a host, which the caller is on, and shapes what it sends.
fn set_up(side: Side, link: Link) -> Result<()> {
    let (address, rate) = (format!("{}/24", address(side)), format!("{}bit", link.bits_per_second));
    program("ip", &["link", "set", "lo", "up"])?;
    program("ip", &["address", "add", &address, "dev", DEVICE])?;
    program("ip", &["link", "set", DEVICE, "up"])?;
    let shaper = ["qdisc", "add", "dev", DEVICE, "root", "tbf", "rate", &rate, "burst", BURST, "limit", LIMIT];
    program("tc", &shaper)
}

fn program(name: &str, words: &[&str]) -> Result<()> {
    let output = Command::new(name).args(words).output().context(|| format!("starting {name}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Error::new(format!("{name} {}: {} {}", words.join(" "), output.status, said.trim())))
        }
    }
}

fn send(mut stream: TcpStream, bytes: u64) -> std::io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(CHUNK as u64);
        stream.write_all(chunk.get(..length as usize).unwrap_or_default())?; // at most a chunk
        left -= length;
    }
    stream.shutdown(Shutdown::Write)
}

fn drain(stream: &mut TcpStream) -> std::io::Result<u64> {
    let (mut chunk, mut received) = (vec![0; CHUNK * 4], 0);
    loop {
        match stream.read(&mut chunk)? {
            0 => return Ok(received),
            length => received += length as u64,
        }
    }
}
