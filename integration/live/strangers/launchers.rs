//! Sockets of monitors that another process has made: a launcher that passed the socket on to QEMU, and one that
//! forwards from the socket and runs another QEMU by now.

use super::super::{
    bare::Bare,
    support::{WAIT, block_on, judge_moved, migrate, migrate_when, settings, start},
};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use qferry::internals::{
    endpoint::{self, Address},
    migration::{Builder, Migration},
    progress::{Ending, EventKind, Outcome, RunsOn},
    quantity::Rate,
};
use qferry_bed::{Build, Machine, Pair, Spec};
use serde_json::json;
use std::{
    fs, io,
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Starts a QEMU with a running guest, whose standard input is a listening socket.
fn qemu_with(listener: &UnixListener, version: &str, folder: &Path, name: &str, more: &[&str]) -> Bare {
    let mut command = Command::new(Build::locate(version).unwrap().program("qemu-system-x86_64"));
    command.args(["-nodefaults", "-display", "none", "-machine", "pc,accel=tcg", "-m", "64M"]);
    command.args(["-chardev", "socket,id=passed,fd=0,server=on,wait=off"]).args(more);
    for monitor in ["qmp", "watch"] {
        let path = folder.join(format!("{name}.{monitor}"));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", path.display()));
    }
    command.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
    Bare::spawn(command, folder, name)
}

/// The process that the kernel names for a socket.
fn named(socket: &Path) -> u32 {
    let stream = UnixStream::connect(socket).unwrap();
    getsockopt(&stream, PeerCredentials).unwrap().pid().unsigned_abs()
}

/// QEMU listens once more at the socket that it was given, and the kernel names QEMU from then on, whatever became of
/// the launcher and its pid.
#[test]
fn a_socket_that_a_launcher_passed_on_names_qemu() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passed");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(named(&path), std::process::id());
        drop(listener.accept().unwrap());
        let monitor = ["-mon", "chardev=passed,mode=control"];
        let qemu = qemu_with(&listener, version, folder.path(), "launched", &monitor);
        drop(listener);
        let address = Address::unix(&path).unwrap();
        let dialed = block_on(async { endpoint::dial(&address, WAIT).await.unwrap() });
        let peer = dialed.peer.expect("a process");
        assert_eq!((peer.pid(), peer.is_qemu()), (qemu.pid(), true), "{version}");
    }
}

/// A socket that leads to a QEMU of the pair, though the kernel names another QEMU, with a guest of its own: what a
/// launcher leaves that listens, forwards in a process of its own, and runs another QEMU then; or a forwarder that has
/// ended, and whose pid another QEMU has.
struct StrangersSocket {
    path: PathBuf,
    stranger: Bare,
    ends: Arc<AtomicBool>,
    forwarder: Option<JoinHandle<()>>,
}

impl StrangersSocket {
    fn new(machine: &Machine, folder: &Path) -> Self {
        let name = machine.side().to_string();
        let (made, path) = (folder.join("made"), folder.join(&name));
        let listener = UnixListener::bind(&made).unwrap();
        let stranger = qemu_with(&listener, "10.0.13", folder, &format!("stranger-{name}"), &[]);
        // A QEMU that closes a socket removes the name that the socket had at first.
        fs::rename(&made, &path).unwrap();
        stranger.ask("chardev-remove", &json!({"id": "passed"}));
        assert_eq!((named(&path), stranger.status().as_str()), (stranger.pid(), "running"));
        drop(listener.accept().unwrap());
        let (behind, ends) = (machine.qmp_path(), Arc::new(AtomicBool::new(false)));
        let over = Arc::clone(&ends);
        let forwarder = thread::spawn(move || {
            for accepted in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                forward(accepted.unwrap(), UnixStream::connect(&behind));
            }
        });
        Self { path, stranger, ends, forwarder: Some(forwarder) }
    }
}

impl Drop for StrangersSocket {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if UnixStream::connect(&self.path).is_ok() {
            drop(self.forwarder.take().map(JoinHandle::join));
        }
    }
}

/// Copies both ways. A QEMU that is gone closes the accepted stream.
fn forward(accepted: UnixStream, connected: io::Result<UnixStream>) {
    let Ok(connected) = connected else { return };
    let copy = |mut from: UnixStream, mut to: UnixStream| {
        thread::spawn(move || {
            drop(io::copy(&mut from, &mut to));
            drop(to.shutdown(Shutdown::Both));
        });
    };
    copy(accepted.try_clone().unwrap(), connected.try_clone().unwrap());
    copy(connected, accepted);
}

/// A pair whose sockets name QEMUs that take no part.
struct Misnamed {
    pair: Pair,
    folder: PathBuf,
    sockets: [StrangersSocket; 2],
}

impl Misnamed {
    fn new() -> Self {
        let pair = start(&Spec::quick());
        let folder = pair.run_dir().with_file_name("misnamed");
        fs::create_dir(&folder).unwrap();
        let sockets = [&pair.source, &pair.destination].map(|machine| StrangersSocket::new(machine, &folder));
        Self { pair, folder, sockets }
    }

    fn builder(&self) -> Builder {
        let address = |name: &str| Address::unix(self.folder.join(name)).unwrap();
        let mut settings = settings(&self.pair);
        settings.nbd_address = Some(address("nbd"));
        settings.migrate_address = Some(address("ram"));
        settings.source_nbd_address = Some(address("source-nbd"));
        Migration::builder(address("source"), address("destination")).settings(settings)
    }

    fn judge_strangers(&self, outcome: &Outcome) {
        for socket in &self.sockets {
            assert_eq!(socket.stranger.status(), "running", "{outcome:#?}");
        }
    }
}

/// The end of the source is the end of its own QEMU, and not of the one that the kernel names.
/// Promise: only-who-took-part.
#[test]
fn a_guest_moves_beside_qemus_that_made_the_sockets() {
    let scene = Misnamed::new();
    let outcome = migrate(scene.builder());
    judge_moved(&scene.pair, &outcome);
    scene.judge_strangers(&outcome);
}

/// A destination that answers nothing is ended by force only as a process that is known to be the destination's.
/// Promise: only-who-took-part.
#[test]
fn a_qemu_that_made_a_socket_is_not_ended_for_the_one_behind_it() {
    let scene = Misnamed::new();
    let pair = &scene.pair;
    let sends = |kind: &EventKind| {
        // Whom to end has been decided by then, and the rest of the way back need not wait for the destination.
        if matches!(kind, EventKind::Warning { code, .. } if code == "not-undone") {
            pair.destination.continue_process().unwrap();
        }
        matches!(kind, EventKind::Memory { transferred, .. } if *transferred > 0)
    };
    let builder = scene.builder().bandwidth(Rate(2 << 20)).switchover_timeout(Duration::from_secs(12));
    let (outcome, _) = migrate_when(builder, sends, |_| pair.destination.stop_process().unwrap());
    scene.judge_strangers(&outcome);
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Stuck, RunsOn::Source), "{outcome:#?}");
    assert_eq!(pair.source.status().unwrap(), "running", "{outcome:#?}");
    assert!(pair.destination.alive().unwrap(), "nobody could tell which process to end: {outcome:#?}");
}
