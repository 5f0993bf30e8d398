//! Listening to the guest from outside: its beats and lines on the debug port, and its answers on the network.
//!
//! Owns the threads that stamp what arrives with this host's clock. They are threads of their own, because a stamp
//! must not wait for anything else that the sweep does.

use super::{command::GUEST_MAC, debug_lines::GuestHeard, measures::EchoAnswer};
use std::{
    io::{self, Read},
    os::unix::net::{UnixDatagram, UnixListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often a thread that hears nothing looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);
/// The time between two probes.
const PROBE: Duration = Duration::from_millis(1);

/// Nanoseconds since the sweep's start, by one clock for all stamps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SweepClock(Instant);

impl SweepClock {
    /// A clock that begins now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// The time now.
    pub(crate) fn now(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A thread that ends when this is dropped.
#[derive(Debug)]
struct EndingThread {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EndingThread {
    fn start(name: &str, work: impl FnOnce(&AtomicBool) + Send + 'static) -> io::Result<Self> {
        let ends = Arc::new(AtomicBool::new(false));
        let seen = ends.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || work(&seen))?;
        Ok(Self { ends, thread: Some(thread) })
    }
}

impl Drop for EndingThread {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // a thread that panicked has ended as well
            thread.join().ok();
        }
    }
}

fn is_quiet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// The debug port of one QEMU.
#[derive(Debug)]
pub(crate) struct DebugPort {
    heard: Arc<Mutex<GuestHeard>>,
    _thread: EndingThread,
}

impl DebugPort {
    /// Listens at a socket to which QEMU will connect.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn listen(socket: &Path, clock: SweepClock) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let heard = Arc::new(Mutex::new(GuestHeard::default()));
        let shared = heard.clone();
        let thread = EndingThread::start("debug port", move |ends| listen(&listener, ends, &shared, clock))?;
        Ok(Self { heard, _thread: thread })
    }

    /// What was heard so far.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&GuestHeard) -> T) -> T {
        read(&self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn listen(listener: &UnixListener, ends: &AtomicBool, heard: &Mutex<GuestHeard>, clock: SweepClock) {
    let is_over = || ends.load(Ordering::Relaxed);
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if is_quiet(&error) && !is_over() => thread::sleep(Duration::from_millis(2)),
            Err(_) => return,
        }
    };
    if stream.set_nonblocking(false).is_err() || stream.set_read_timeout(Some(LOOK)).is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    while !is_over() {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                let now = clock.now();
                heard.lock().unwrap_or_else(PoisonError::into_inner).take(&buffer[..length], now);
            }
            Err(error) if is_quiet(&error) => {}
            Err(_) => return,
        }
    }
}

/// What the probes of a guest's network came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct ProbedNetwork {
    pub(crate) answers: Vec<EchoAnswer>,
    /// When the destination first announced the guest's address.
    pub(crate) announced: Option<u64>,
}

#[derive(Debug, Default)]
struct ProbeState {
    source: Option<PathBuf>,
    destination: Option<PathBuf>,
    probed: ProbedNetwork,
}

/// Probes the guest's network card from outside, as a switch would that has both QEMUs at its ports.
#[derive(Debug)]
pub(crate) struct NetworkProbe {
    state: Arc<Mutex<ProbeState>>,
    _thread: EndingThread,
}

impl NetworkProbe {
    /// Begins with the socket of the guest's switch.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn start(socket: &Path, clock: SweepClock) -> io::Result<Self> {
        let socket = UnixDatagram::bind(socket)?;
        socket.set_nonblocking(true)?;
        let state = Arc::new(Mutex::new(ProbeState::default()));
        let shared = state.clone();
        let thread = EndingThread::start("network probe", move |ends| probe(&socket, ends, &shared, clock))?;
        Ok(Self { state, _thread: thread })
    }

    /// Says which sockets the two QEMUs have, and begins anew.
    pub(crate) fn watch(&self, source: &Path, destination: Option<&Path>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = ProbeState {
            source: Some(source.to_owned()),
            destination: destination.map(Path::to_owned),
            probed: ProbedNetwork::default(),
        };
    }

    /// What came of it since.
    pub(crate) fn probed(&self) -> ProbedNetwork {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).probed.clone()
    }
}

fn probe(socket: &UnixDatagram, ends: &AtomicBool, state: &Mutex<ProbeState>, clock: SweepClock) {
    let mut buffer = [0; 2048];
    while !ends.load(Ordering::Relaxed) {
        let frame = echo_frame(clock.now());
        {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            for peer in [&state.source, &state.destination].into_iter().flatten() {
                // A QEMU that is not there yet, or whose guest does not take its frames, gets none.
                socket.send_to(&frame, peer).ok();
            }
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let now = clock.now();
                let from_destination =
                    from.as_pathname().is_some_and(|from| state.destination.as_deref() == Some(from));
                match echoed(&buffer[..length]) {
                    Some(sent) => {
                        let took = now.saturating_sub(sent);
                        state.probed.answers.push(EchoAnswer { received: now, took, from_destination });
                    }
                    None if from_destination && buffer[6..12] == GUEST_MAC => {
                        state.probed.announced.get_or_insert(now);
                    }
                    None => {}
                }
            }
        }
        thread::sleep(PROBE);
    }
}

const PROBE_MAC: [u8; 6] = [0x52, 0x54, 0, 0x71, 0x66, 2];
const PROBE_ADDRESS: [u8; 4] = [10, 9, 0, 1];
const GUEST_ADDRESS: [u8; 4] = [10, 9, 0, 2];
/// The bytes before the payload: Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;

/// A UDP datagram to the guest's port 7 that carries a time.
fn echo_frame(now: u64) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADERS + 8);
    frame.extend(GUEST_MAC);
    frame.extend(PROBE_MAC);
    frame.extend([8, 0]);
    let mut header = [0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&PROBE_ADDRESS);
    header[16..20].copy_from_slice(&GUEST_ADDRESS);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame.extend(header);
    frame.extend([0x4e, 0x20, 0, 7, 0, 16, 0, 0]); // from port 20000 to 7, 16 bytes, without a sum
    frame.extend(now.to_le_bytes());
    frame
}

/// The time that an answer carries back.
fn echoed(frame: &[u8]) -> Option<u64> {
    let is_answer = frame.len() >= HEADERS + 8 && frame[..6] == PROBE_MAC && frame[34..36] == [0, 7];
    let payload = frame.get(HEADERS..HEADERS + 8).filter(|_| is_answer)?;
    Some(u64::from_le_bytes(payload.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_carries_its_time_and_other_frames_none() {
        let mut frame = echo_frame(77);
        assert_eq!(echoed(&frame), None, "a question is no answer");
        frame[..6].copy_from_slice(&PROBE_MAC);
        frame[34..38].copy_from_slice(&[0, 7, 0x4e, 0x20]);
        assert_eq!(echoed(&frame), Some(77));
        (0..frame.len()).for_each(|length| assert_eq!(echoed(&frame[..length]), None));
        // The sum over a right header is all ones.
        let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
