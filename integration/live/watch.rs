//! `qferry watch` and `qferry migrate --tui`, driven in a terminal beside real migrations.

use super::{
    command::{qferry, text},
    support::{self, WAIT, busy, idle, spec, start},
};
use qferry_bed::{Bare, Pair, Side, Spec};
use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::sleep,
    time::{Duration, Instant},
};

/// What leaves the other screen of a terminal.
const LEFT: &str = "\x1b[?1049l";

/// A program in a terminal.
struct Driven {
    child: Child,
    master: OwnedFd,
    screen: Arc<Mutex<(vt100::Parser, String)>>,
}

impl Driven {
    /// Starts it in a terminal of its own with so many columns and rows.
    fn start(command: &Command, (columns, rows): (u16, u16)) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        tcsetwinsize(&master, size(columns, rows)).unwrap();
        let terminal = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let stdio = || Stdio::from(terminal.try_clone().unwrap());
        // a session of its own, whose terminal this is
        let mut own = Command::new("setsid");
        own.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args()).env("TERM", "xterm");
        own.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child = own.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let screen = Arc::new(Mutex::new((vt100::Parser::new(rows, columns, 0), String::new())));
        let (seen, mut reader) = (screen.clone(), File::from(master.try_clone().unwrap()));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                let mut seen = seen.lock().unwrap();
                seen.0.process(&bytes[..count]);
                seen.1.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, master, screen }
    }

    fn shown(&self) -> String {
        self.screen.lock().unwrap().0.screen().contents()
    }

    /// Waits until the screen shows all of these.
    #[track_caller]
    fn wait(&self, words: &[&str]) -> String {
        let begun = Instant::now();
        loop {
            let shown = self.shown();
            if words.iter().all(|word| shown.contains(word)) {
                return shown;
            }
            assert!(begun.elapsed() < WAIT, "{words:?} in:\n{shown}");
            sleep(Duration::from_millis(20));
        }
    }

    fn press(&self, keys: &str) {
        File::from(self.master.try_clone().unwrap()).write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.screen.lock().unwrap().0.set_size(rows, columns);
        tcsetwinsize(&self.master, size(columns, rows)).unwrap();
    }

    /// Waits for the end, and gives it with all that was ever written.
    fn end(&mut self) -> (ExitStatus, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // the last output may still be under way
                sleep(Duration::from_millis(200));
                return (status, self.screen.lock().unwrap().1.clone());
            }
            assert!(begun.elapsed() < WAIT, "it does not end:\n{}", self.shown());
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn watch(pair: &Pair) -> Command {
    let mut command = support::qferry(pair, "watch");
    // in the wrong order
    command.arg(pair.destination.second_qmp_path()).arg(pair.source.second_qmp_path());
    command
}

#[test]
fn a_watch_in_a_terminal_follows_a_migration_to_its_end() {
    let pair = start(&Spec { second_monitor: true, ..spec("10.0.13", busy()) });
    let mut watch = Driven::start(&watch(&pair), (80, 24));
    watch.wait(&["qferry watch", "running, no migration", "inmigrate, no migration", "Nothing wrong found"]);
    let mut migration = qferry(&pair, &["--bandwidth", "16MiB/s"]);
    let mut migration = migration.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    watch.wait(&["Progress", "left of", "JOB_STATUS_CHANGE"]);
    watch.press("?");
    watch.wait(&["Help", "quit; the migration goes on"]);
    watch.press("?p");
    let paused = watch.wait(&["PAUSED"]);
    assert!(!paused.contains("Help"), "{paused}");
    watch.press("p");
    watch.resize(140, 40);
    // wide enough for curves of their own
    watch.wait(&["RAM left:", "RAM sent:"]);
    assert_eq!(migration.wait().unwrap().code(), Some(0));
    let end = watch.wait(&["The guest has moved", "gone; dialled anew", "RESUME", "from STOP to RESUME"]);
    assert!(!end.contains("source-gone"), "{end}");
    watch.press("q");
    let (status, written) = watch.end();
    assert_eq!(status.code(), Some(0), "{written}");
    let after = written.rsplit_once(LEFT).unwrap_or_else(|| panic!("{written:?}")).1;
    assert!(after.contains("The guest has moved") && !after.contains("\x1b[?1049h"), "{after:?}");
    assert_eq!(pair.runners().unwrap(), [Side::Destination]);
}

#[test]
fn a_migration_in_the_live_view_gives_the_terminal_back_with_its_outcome() {
    let pair = start(&spec("10.0.13", idle()));
    let mut migration = Driven::start(&qferry(&pair, &["--tui", "--bandwidth", "32MiB/s"]), (80, 24));
    migration.wait(&["qferry migrate", "Ctrl-C cancel", "Progress", "RAM", "budget 3000 ms"]);
    let (status, written) = migration.end();
    assert_eq!(status.code(), Some(0), "{written}");
    let after = written.rsplit_once(LEFT).unwrap_or_else(|| panic!("{written:?}")).1;
    assert!(after.contains("moved: the guest is on the destination") && after.contains("blackout"), "{after:?}");
    assert_eq!(pair.runners().unwrap(), [Side::Destination]);
    // without a terminal it is said beforehand
    let refused = qferry(&pair, &["--tui"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("--tui needs"), "{}", text(&refused.stderr));
}

#[test]
fn a_watch_streams_samples_events_and_diagnoses_until_its_reader_goes() {
    let source = Bare::start("10.0.13", &[]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    command.args(["watch", "--json"]).arg(source.qmp_path()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = |kind: &str| -> Value {
        loop {
            let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            assert!(line["v"] == 1 && line["t_ms"].is_u64(), "{line}");
            if line["type"] == kind {
                return line;
            }
        }
    };
    let sample = next("sample");
    assert_eq!(sample["source"]["run_state"], "running", "{sample:#}");
    let healthy = next("diagnosis");
    assert_eq!(healthy["causes"], json!([]), "{healthy:#}");
    drop(source);
    let gone = next("diagnosis");
    assert_eq!(gone["causes"][0]["code"], "source-gone", "{gone:#}");
    drop(lines);
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < WAIT, "the reader has gone");
        sleep(Duration::from_millis(20));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // and without a terminal it says what would do
    let refused = Command::new(env!("CARGO_BIN_EXE_qferry")).args(["watch", "/nowhere"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("--json"), "{}", text(&refused.stderr));
}
