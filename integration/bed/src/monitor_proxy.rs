//! A proxy in front of one QMP monitor, which does to single commands what a network, a busy host or a dying process
//! may do to them.
//!
//! Lines pass unchanged in both directions. The proxy knows of QMP only where the name and id of a command stand, and
//! must never send anything of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Context, Result};
use crate::record::Side;

/// A command on its way to a QEMU.
#[derive(Clone, Debug)]
pub struct Command {
    /// The side of that QEMU.
    pub side: Side,
    /// The name.
    pub name: String,
    /// The arguments, or null.
    pub arguments: Value,
    /// Whether the command was sent as `exec-oob`.
    pub oob: bool,
    /// The time of arrival at the proxy.
    pub at: Instant,
}

/// All commands that the proxies of a pair have seen, in the order in which they came. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Tape(Arc<Mutex<Vec<Command>>>);

impl Tape {
    /// The commands so far.
    pub fn commands(&self) -> Vec<Command> {
        lock(&self.0).clone()
    }

    /// Notes a command, and returns the index of the rule that applies.
    fn note(&self, command: Command, rules: &[Rule]) -> Option<usize> {
        let mut commands = lock(&self.0);
        commands.push(command);
        rules.iter().position(|rule| (rule.when)(&commands))
    }
}

/// The fate of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The command is delivered.
    Pass,
    /// The command is not delivered, and nobody says so.
    Drop,
    /// The connection is cut in its place.
    CutBefore,
    /// The command is delivered, and the connection is cut in place of QEMU's answer.
    CutAfter,
    /// The command is delivered, and for this long no answer or event of QEMU comes through.
    Late(Duration),
}

/// Whether a rule applies to the last of these commands.
type When = Box<dyn Fn(&[Command]) -> bool + Send>;

struct Rule {
    when: When,
    first: Box<dyn FnOnce() + Send>,
    deed: Deed,
}

/// A rule's condition: the `nth` command of a name to a side, counted from 1.
pub fn nth(side: Side, name: &str, nth: usize) -> impl Fn(&[Command]) -> bool + Send + 'static {
    let name = name.to_owned();
    move |seen| {
        let is_it = |command: &&Command| command.side == side && command.name == name;
        seen.last().as_ref().is_some_and(is_it) && seen.iter().filter(is_it).count() == nth
    }
}

/// A command that is held back, now or later.
pub struct Held {
    reached: Receiver<()>,
    /// The end of the channel that lets the command go when it is dropped.
    _go: Sender<()>,
}

impl Held {
    /// Waits until the command has come and is held. False if no such command came in that time.
    pub fn wait(&self, patience: Duration) -> bool {
        self.reached.recv_timeout(patience).is_ok()
    }

    /// Lets the command go, as dropping this value does.
    pub fn release(self) {}
}

/// A proxy. Dropping the proxy cuts its connections.
pub struct MonitorProxy {
    path: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    side: Side,
    qemu: PathBuf,
    tape: Tape,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// The replacements in commands: name, text, and new text.
    replaced: Vec<(String, String, String)>,
    /// Whether the greeting is passed on without its offers.
    offers_nothing: bool,
    streams: Vec<UnixStream>,
    /// The time until which no answer or event comes through.
    late: Option<Instant>,
    /// The id of the command whose answer is to be lost.
    lost: Option<Value>,
    over: bool,
}

impl MonitorProxy {
    /// Listens at `path` for clients of the monitor at `qemu`. A second client is passed on like the first; QEMU serves
    /// one at a time.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(side: Side, path: PathBuf, qemu: PathBuf, tape: &Tape) -> Result<Self> {
        let listener = UnixListener::bind(&path).context(|| format!("listening at {}", path.display()))?;
        let shared = Arc::new(Shared { side, qemu, tape: tape.clone(), state: Mutex::default() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let over = lock(&accepting.state).over;
                match client {
                    Ok(client) if !over => accepting.connect(client),
                    _ => return,
                }
            }
        });
        Ok(Self { path, shared })
    }

    /// The socket of the proxy.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For the first command that `when` accepts, `first` is called, and then the deed is done. `when` sees all
    /// commands that the proxies of the tape have seen, this one last, and is asked only about commands to this
    /// monitor.
    pub fn rule(
        &self,
        when: impl Fn(&[Command]) -> bool + Send + 'static,
        first: impl FnOnce() + Send + 'static,
        deed: Deed,
    ) {
        lock(&self.shared.state).rules.push(Rule { when: Box::new(when), first: Box::new(first), deed });
    }

    /// Holds the first command that `when` accepts, and all behind it, until the returned value is dropped.
    pub fn hold(&self, when: impl Fn(&[Command]) -> bool + Send + 'static) -> Held {
        let (reached, told) = channel();
        let (go, released) = channel::<()>();
        // A dropped end lets the command go.
        let first = move || {
            if reached.send(()).is_ok() {
                while released.recv().is_ok() {}
            }
        };
        self.rule(when, first, Deed::Pass);
        Held { reached: told, _go: go }
    }

    /// Replaces a text in every command of a name.
    pub fn replace(&self, name: &str, text: &str, by: &str) {
        lock(&self.shared.state).replaced.push((name.to_owned(), text.to_owned(), by.to_owned()));
    }

    /// Passes greetings on without the capabilities that QEMU offers, as a program in between does that has a greeting
    /// of its own.
    pub fn offer_nothing(&self) {
        lock(&self.shared.state).offers_nothing = true;
    }

    /// Cuts all connections there are. New ones are accepted.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Holds back answers and events for this long from now on.
    pub fn late(&self, by: Duration) {
        lock(&self.shared.state).late = Some(Instant::now() + by);
    }
}

impl Drop for MonitorProxy {
    fn drop(&mut self) {
        lock(&self.shared.state).over = true;
        // The connection wakes the accepting thread, which then ends.
        drop(UnixStream::connect(&self.path));
        self.shared.cut();
        drop(fs::remove_file(&self.path));
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: UnixStream) {
        let Ok(qemu) = UnixStream::connect(&self.qemu) else { return };
        let Ok(copies) = [&client, &qemu].into_iter().map(UnixStream::try_clone).collect::<std::io::Result<Vec<_>>>()
        else {
            return;
        };
        let Ok([more_client, more_qemu]) = <[UnixStream; 2]>::try_from(copies) else { return };
        let mut state = lock(&self.state);
        state.streams.extend([&client, &qemu].into_iter().filter_map(|stream| stream.try_clone().ok()));
        drop(state);
        let (up, down) = (Arc::clone(self), Arc::clone(self));
        thread::spawn(move || up.commands(&client, &qemu));
        thread::spawn(move || down.answers(&more_qemu, &more_client));
    }

    fn cut(&self) {
        end(&lock(&self.state).streams.split_off(0));
    }

    /// Carries commands from the client to QEMU, until either closes.
    fn commands(&self, client: &UnixStream, mut qemu: &UnixStream) {
        let (mut lines, mut line) = (BufReader::new(client), Vec::new());
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            let written = match self.judge(&mut line) {
                Deed::Drop => Ok(()),
                Deed::CutBefore => break,
                Deed::Pass | Deed::CutAfter | Deed::Late(_) => qemu.write_all(&line),
            };
            if written.is_err() {
                break;
            }
            line.clear();
        }
        end_both(client, qemu);
    }

    /// Carries answers and events from QEMU to the client, until either closes.
    fn answers(&self, qemu: &UnixStream, mut client: &UnixStream) {
        let (mut lines, mut line) = (BufReader::new(qemu), Vec::new());
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            let state = lock(&self.state);
            let (lost, late, offers_nothing) = (state.lost.clone(), state.late, state.offers_nothing);
            drop(state);
            if offers_nothing {
                withhold_offers(&mut line);
            }
            if let Some(left) = late.and_then(|late| late.checked_duration_since(Instant::now())) {
                thread::sleep(left);
            }
            let is_lost = |lost: Value| serde_json::from_slice::<Value>(&line).is_ok_and(|line| line["id"] == lost);
            if lost.is_some_and(is_lost) || client.write_all(&line).is_err() {
                break;
            }
            line.clear();
        }
        end_both(client, qemu);
    }

    /// Notes a command, and decides on its fate.
    fn judge(&self, line: &mut Vec<u8>) -> Deed {
        let Ok(message) = serde_json::from_slice::<Value>(line) else { return Deed::Pass };
        let oob = message.get("exec-oob").is_some();
        let name = message[if oob { "exec-oob" } else { "execute" }].as_str().unwrap_or_default().to_owned();
        let arguments = message["arguments"].clone();
        let command = Command { side: self.side, name: name.clone(), arguments, oob, at: Instant::now() };
        let mut state = lock(&self.state);
        for (_, text, by) in state.replaced.iter().filter(|(of, ..)| *of == name) {
            *line = String::from_utf8_lossy(line).replace(text, by).into_bytes();
        }
        let Some(found) = self.tape.note(command, &state.rules) else { return Deed::Pass };
        let rule = state.rules.remove(found);
        drop(state);
        (rule.first)();
        let mut state = lock(&self.state);
        match rule.deed {
            Deed::CutAfter => state.lost = Some(message["id"].clone()),
            Deed::Late(by) => state.late = Some(Instant::now() + by),
            Deed::Pass | Deed::Drop | Deed::CutBefore => {}
        }
        rule.deed
    }
}

/// Empties the list of capabilities of a greeting. Any other line stays as it is.
fn withhold_offers(line: &mut Vec<u8>) {
    let Ok(mut message) = serde_json::from_slice::<Value>(line) else { return };
    if let Some(capabilities) = message.get_mut("QMP").and_then(|greeting| greeting.get_mut("capabilities")) {
        *capabilities = Value::Array(Vec::new());
        *line = format!("{message}\n").into_bytes();
    }
}

fn end_both(one: &UnixStream, other: &UnixStream) {
    for stream in [one, other] {
        // A stream that is closed already is fine.
        drop(stream.shutdown(Shutdown::Both));
    }
}

fn end(streams: &[UnixStream]) {
    for stream in streams {
        drop(stream.shutdown(Shutdown::Both));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    /// A monitor that answers every line with its id, and reports the lines.
    fn monitor(path: &Path) -> Receiver<String> {
        let (listener, (sender, got)) = (UnixListener::bind(path).expect("a free path"), channel());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(std::result::Result::ok) {
                let mut answers = stream.try_clone().expect("a second descriptor");
                for line in BufReader::new(stream).lines().map_while(std::result::Result::ok) {
                    let id = serde_json::from_str::<Value>(&line).expect("JSON")["id"].clone();
                    drop(sender.send(line));
                    drop(writeln!(answers, "{}", serde_json::json!({"return": {}, "id": id})));
                }
            }
        });
        got
    }

    struct Bench {
        _folder: tempfile::TempDir,
        proxy: MonitorProxy,
        got: Receiver<String>,
        tape: Tape,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let got = monitor(&folder.path().join("qemu"));
            let tape = Tape::default();
            let path = |name: &str| folder.path().join(name);
            let proxy = MonitorProxy::start(Side::Source, path("proxy"), path("qemu"), &tape).expect("a proxy");
            Self { _folder: folder, proxy, got, tape }
        }

        fn client(&self) -> BufReader<UnixStream> {
            let stream = UnixStream::connect(self.proxy.path()).expect("a proxy that listens");
            stream.set_read_timeout(Some(SOON)).expect("a deadline");
            BufReader::new(stream)
        }
    }

    fn say(client: &mut BufReader<UnixStream>, name: &str, id: u64) {
        let line = serde_json::json!({"execute": name, "arguments": {"path": "here"}, "id": id});
        writeln!(client.get_mut(), "{line}").expect("a connection");
    }

    /// The id of the next answer; none at the end of the connection.
    fn answer(client: &mut BufReader<UnixStream>) -> Option<u64> {
        let mut line = String::new();
        match client.read_line(&mut line) {
            Ok(1..) => serde_json::from_str::<Value>(&line).expect("JSON")["id"].as_u64(),
            _ => None,
        }
    }

    #[test]
    fn commands_pass_in_order_and_are_noted() {
        let bench = Bench::new();
        bench.proxy.replace("b", "here", "there");
        let mut client = bench.client();
        for (id, name) in ["a", "b", "a"].into_iter().enumerate() {
            say(&mut client, name, id as u64);
            assert_eq!(answer(&mut client), Some(id as u64));
        }
        let names: Vec<_> = bench.tape.commands().into_iter().map(|command| command.name).collect();
        assert_eq!(names, ["a", "b", "a"]);
        let got: Vec<_> = bench.got.try_iter().collect();
        let told = |line: &String, path: &str| line.contains(&format!("\"path\":\"{path}\""));
        assert!(told(&got[0], "here") && told(&got[1], "there"), "{got:?}");
    }

    #[test]
    fn the_second_of_a_name_is_held_until_it_is_released() {
        let bench = Bench::new();
        let held = bench.proxy.hold(nth(Side::Source, "a", 2));
        let mut client = bench.client();
        say(&mut client, "a", 1);
        assert_eq!(answer(&mut client), Some(1));
        assert!(!held.wait(Duration::ZERO));
        say(&mut client, "a", 2);
        assert!(held.wait(SOON));
        assert_eq!(bench.got.try_iter().count(), 1);
        held.release();
        assert_eq!(answer(&mut client), Some(2));
    }

    #[test]
    fn what_is_cut_before_is_not_delivered_and_what_is_cut_after_is() {
        for (deed, delivered) in [(Deed::CutBefore, 1), (Deed::CutAfter, 2)] {
            let bench = Bench::new();
            bench.proxy.rule(nth(Side::Source, "b", 1), || (), deed);
            let mut client = bench.client();
            say(&mut client, "a", 1);
            assert_eq!(answer(&mut client), Some(1));
            say(&mut client, "b", 2);
            assert_eq!(answer(&mut client), None);
            assert_eq!(bench.got.try_iter().count(), delivered, "{deed:?}");
            let mut again = bench.client();
            say(&mut again, "b", 3);
            assert_eq!(answer(&mut again), Some(3), "a rule is for one command");
        }
    }

    #[test]
    fn what_is_dropped_is_never_answered_and_what_is_late_is() {
        let bench = Bench::new();
        bench.proxy.rule(nth(Side::Source, "a", 1), || (), Deed::Drop);
        bench.proxy.rule(nth(Side::Source, "b", 1), || (), Deed::Late(Duration::from_millis(200)));
        let mut client = bench.client();
        say(&mut client, "a", 1);
        let began = Instant::now();
        say(&mut client, "b", 2);
        assert_eq!(answer(&mut client), Some(2));
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    }
}
