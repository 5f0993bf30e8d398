//! A relay in the way of a channel between two QEMUs, NBD or migration, that can be cut or black-holed.
//!
//! The relay moves bytes and does not look at them. QEMU listens behind the relay, and its peer connects in front. As
//! an engine tells both sides one address, [`crate::MonitorProxy::replace`] changes that address for one of them.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use crate::error::{Context, Result};

/// The bytes read at a time. With so many the relay is no bottleneck of a migration.
const CHUNK: usize = 256 << 10;

/// The fate of bytes in the relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flow {
    /// Bytes pass.
    #[default]
    Open,
    /// Bytes stay, and no end is told, as on a link that is dead without a reset.
    Hole,
    /// Connections are ended, new ones as well.
    Cut,
}

/// A relay. Dropping the relay cuts all its connections.
pub struct ChannelProxy {
    front: PathBuf,
    behind: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    flow: Flow,
    /// Bytes from behind the relay do not pass.
    mute: bool,
    carried: u64,
    /// Both ends of every connection, held only by the threads that carry bytes. Bytes that a dead QEMU left unread
    /// must go with it, or the other QEMU, which waits to write more, never hears of the end.
    connections: Vec<Weak<[UnixStream; 2]>>,
    over: bool,
}

impl ChannelProxy {
    /// Listens at `front` and connects each client with `behind`, where QEMU may begin to listen later.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(front: PathBuf, behind: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&front).context(|| format!("listening at {}", front.display()))?;
        let shared = Arc::new(Shared::default());
        let (accepting, target) = (Arc::clone(&shared), behind.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(std::io::Result::ok) {
                let state = accepting.lock();
                if state.over {
                    return;
                }
                if state.flow == Flow::Cut {
                    continue;
                }
                drop(state);
                if let Err(error) = UnixStream::connect(&target).map(|qemu| accepting.join([stream, qemu])) {
                    eprintln!("a relay: {}: {error}", target.display());
                }
            }
        });
        Ok(Self { front, behind, shared })
    }

    /// The socket of the relay.
    pub fn front(&self) -> &Path {
        &self.front
    }

    /// The socket on which QEMU has to listen.
    pub fn behind(&self) -> &Path {
        &self.behind
    }

    /// Ends all connections, and every new one at once.
    pub fn cut(&self) {
        let connections = std::mem::take(&mut self.set(Flow::Cut).connections);
        for ends in connections.iter().filter_map(Weak::upgrade) {
            end(&ends);
        }
    }

    /// Forwards nothing any more, and ends nothing.
    pub fn black_hole(&self) {
        drop(self.set(Flow::Hole));
    }

    /// Keeps to itself from now on what the QEMU behind the relay says, and still forwards what it is told.
    pub fn swallow_answers(&self) {
        self.shared.lock().mute = true;
    }

    /// Forwards again, also the bytes that came meanwhile. Connections that were cut stay cut.
    pub fn resume(&self) {
        if self.shared.lock().flow == Flow::Hole {
            drop(self.set(Flow::Open));
        }
    }

    /// Bytes forwarded so far, both ways together.
    pub fn carried(&self) -> u64 {
        self.shared.lock().carried
    }

    fn set(&self, flow: Flow) -> MutexGuard<'_, State> {
        let mut state = self.shared.lock();
        state.flow = flow;
        self.shared.changed.notify_all();
        state
    }
}

impl Drop for ChannelProxy {
    fn drop(&mut self) {
        self.cut();
        self.shared.lock().over = true;
        // The connection wakes the accepting thread, which then ends.
        drop(UnixStream::connect(&self.front));
        drop(fs::remove_file(&self.front));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries bytes between two ends, both ways, on threads of their own.
    fn join(self: &Arc<Self>, ends: [UnixStream; 2]) {
        let ends = Arc::new(ends);
        let mut state = self.lock();
        // A cut during the connection counts for that connection, too: dropping both ends closes them.
        if state.flow == Flow::Cut {
            return;
        }
        state.connections.push(Arc::downgrade(&ends));
        drop(state);
        for way in [[0, 1], [1, 0]] {
            let (shared, ends) = (Arc::clone(self), Arc::clone(&ends));
            thread::spawn(move || {
                let [from, to] = way.map(|end| &ends[end]);
                shared.carry(from, to, way == [1, 0]);
                // A dead process closes both directions at once, and the bytes carried so far can still be read.
                end(&ends);
            });
        }
    }

    fn carry(&self, mut from: &UnixStream, mut to: &UnixStream, answers: bool) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            let mut state = self.pass();
            if answers && state.mute {
                continue;
            }
            state.carried += length as u64;
            drop(state);
            if to.write_all(chunk.get(..length).unwrap_or_default()).is_err() {
                break;
            }
        }
        // A black hole swallows the end, too.
        drop(self.pass());
    }

    /// Waits until bytes may pass.
    fn pass(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.flow == Flow::Hole {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }
}

fn end(ends: &[UnixStream; 2]) {
    for stream in ends {
        // A stream that is closed already is fine.
        drop(stream.shutdown(Shutdown::Both));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// The limit for something that must happen.
    const WAIT: Duration = Duration::from_secs(30);
    /// The limit for something that must not happen.
    const SHORT: Duration = Duration::from_millis(100);

    fn relay() -> (tempfile::TempDir, ChannelProxy, UnixStream, UnixStream) {
        let folder = tempfile::tempdir().expect("a folder");
        let behind = UnixListener::bind(folder.path().join("behind")).expect("a free path");
        let proxy =
            ChannelProxy::start(folder.path().join("front"), folder.path().join("behind")).expect("a free path");
        let client = UnixStream::connect(proxy.front()).expect("a relay that listens");
        let (server, _) = behind.accept().expect("a relay that connects");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(WAIT)).expect("a deadline");
        }
        (folder, proxy, client, server)
    }

    fn heard(stream: &mut UnixStream) -> std::io::Result<usize> {
        stream.read(&mut [0; 16])
    }

    #[test]
    fn a_hole_keeps_what_it_was_given_and_ends_nothing() {
        let (_folder, proxy, mut client, mut server) = relay();
        client.write_all(b"one").expect("a connection");
        assert_eq!(heard(&mut server).ok(), Some(3));
        proxy.black_hole();
        client.write_all(b"more").expect("a connection");
        server.set_read_timeout(Some(SHORT)).expect("a deadline");
        assert!(heard(&mut server).is_err(), "nothing comes, and no end either");
        server.set_read_timeout(Some(WAIT)).expect("a deadline");
        proxy.resume();
        assert_eq!(heard(&mut server).ok(), Some(4));
        assert_eq!(proxy.carried(), 7);
    }

    #[test]
    fn what_a_dead_peer_has_not_read_goes_with_it() {
        let (_folder, proxy, mut client, server) = relay();
        client.set_nonblocking(true).expect("a connection");
        let deadline = Instant::now() + WAIT;
        // more than all buffers on the way can hold
        let mut full = 0;
        while full < 50 || proxy.carried() == 0 {
            assert!(Instant::now() < deadline, "{full} refusals, {} bytes carried", proxy.carried());
            match client.write(&[0; CHUNK]) {
                Ok(_) => full = 0,
                Err(_) => full += 1,
            }
            thread::sleep(Duration::from_millis(1));
        }
        drop(server);
        // The kernel reports a reset once if the other end was closed with unread bytes, and not if it was shut down.
        while heard(&mut client).map_err(|error| error.kind()) != Err(std::io::ErrorKind::ConnectionReset) {
            assert!(Instant::now() < deadline, "it is kept");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_cut_ends_both_sides_and_stays() {
        let (_folder, proxy, mut client, mut server) = relay();
        proxy.cut();
        assert_eq!((heard(&mut client).ok(), heard(&mut server).ok()), (Some(0), Some(0)));
        let mut late = UnixStream::connect(proxy.front()).expect("it listens");
        late.set_read_timeout(Some(WAIT)).expect("a deadline");
        assert_eq!(heard(&mut late).ok(), Some(0));
    }
}
