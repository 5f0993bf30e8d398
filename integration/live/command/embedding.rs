//! The library as an embedder uses it: by its public face alone. The example, the engine's own thread, connectors
//! that are called again, and a panic of the engine.

use crate::support::{WAIT, block_on, busy, judge_disks, spec, start};
use qferry::{
    Address, Builder, Ending, Endpoint, Event, EventKind, JournalPlace, Migration, Phase, PhaseState, ProcessHandle,
    RunsOn, internals::migration::panic_at,
};
use qferry_bed::{Machine, Pair, Side};
use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The path of the example, beside the command. Cargo builds examples before it runs all tests, but not for a single
/// one.
fn example() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_qferry")).parent().unwrap();
    let path = folder.join("examples/migrate");
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    path
}

#[test]
fn the_example_moves_a_guest() {
    let pair = start(&spec("10.0.13", busy()));
    let mut command = Command::new(example());
    command
        .arg(pair.source.qmp_path())
        .arg(pair.destination.qmp_path())
        .arg("3000") // no busy host makes the engine roll back
        .env("XDG_RUNTIME_DIR", pair.run_dir())
        .env("XDG_STATE_HOME", pair.run_dir());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for word in ["storage: Begin", "disk disk0: ", "ready: true", "memory: ", "cleanup: End", "moved, after a blackout"]
    {
        assert!(text.contains(word), "no '{word}' in {text}");
    }
    pair.source.wait_for_end(WAIT).unwrap();
    assert_eq!(pair.runners().unwrap(), [Side::Destination]);
    pair.wait_for_beats(Side::Destination, 20, WAIT).unwrap();
    judge_disks(&pair, Side::Destination);
}

/// A migration of the pair that leaves its files in the pair's folder.
fn builder(pair: &Pair) -> Builder {
    let monitor = |machine: &Machine| -> Address { machine.qmp_path().display().to_string().parse().unwrap() };
    let journal = JournalPlace::File(pair.run_dir().with_file_name("journal"));
    let builder = Migration::builder(monitor(&pair.source), monitor(&pair.destination));
    builder.runtime_dir(pair.run_dir()).journal(journal).downtime(Duration::from_secs(1))
}

fn begins(event: &Event, wanted: Phase) -> bool {
    matches!(event.kind, EventKind::Phase { phase, state: PhaseState::Begin, .. } if phase == wanted)
}

#[test]
fn the_engine_needs_no_runtime() {
    let pair = start(&spec("10.0.13", busy()));
    let mut events = Vec::new();
    let outcome = builder(&pair).run_blocking(|event| events.push(event.clone())).unwrap();
    assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
    assert!(events.iter().any(|event| begins(event, Phase::Handover)), "{events:#?}");
    assert!(
        matches!(events.last(), Some(Event { kind: EventKind::Outcome(last), .. }) if **last == outcome),
        "{events:#?}"
    );
}

/// The whole migration happens while the only thread of the embedder's runtime is blocked: nothing of the engine is
/// on it.
#[test]
fn an_embedder_that_blocks_its_runtime_holds_nothing_up() {
    let pair = start(&spec("10.0.13", busy()));
    let outcome = block_on(async {
        let mut running = builder(&pair).start().unwrap();
        running.wait_blocking()
    });
    assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
    assert_eq!(pair.runners().unwrap(), [Side::Destination]);
}

/// An endpoint whose connections a test can cut; all that were made are in `made`.
fn cut_off(machine: &Machine, made: &Arc<Mutex<Vec<UnixStream>>>) -> Endpoint {
    let (path, made) = (machine.qmp_path(), made.clone());
    let connect = move || {
        let connected = UnixStream::connect(&path).and_then(|stream| {
            made.lock().unwrap().push(stream.try_clone()?);
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        // The engine's runtime is to have the stream, so it is made a stream of tokio's when it is polled there.
        async move { tokio::net::UnixStream::from_std(connected?) }
    };
    Endpoint::connector(machine.side().to_string(), connect)
        .with_process(ProcessHandle::from_pid(machine.pid()).unwrap())
}

#[test]
fn a_connector_is_called_again_when_a_monitor_was_cut() {
    for cut in [Side::Source, Side::Destination] {
        let pair = start(&spec("10.0.13", busy()));
        let made = [(); 2].map(|()| Arc::new(Mutex::new(Vec::new())));
        let sides = [&pair.source, &pair.destination];
        let [source, destination] = [0, 1].map(|side| cut_off(sides[side], &made[side]));
        let of_cut = &made[usize::from(cut == Side::Destination)];
        let mut reconnected = 0;
        let journal = JournalPlace::File(pair.run_dir().with_file_name("journal"));
        let builder = Migration::builder(source, destination).runtime_dir(pair.run_dir()).journal(journal);
        let outcome = builder
            .run_blocking(|event| {
                if begins(event, Phase::Storage) {
                    of_cut.lock().unwrap()[0].shutdown(Shutdown::Both).unwrap();
                }
                reconnected +=
                    usize::from(matches!(&event.kind, EventKind::Action { action, .. } if action == "reconnect"));
            })
            .unwrap();
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{cut}: {outcome:#?}");
        assert_eq!((reconnected, of_cut.lock().unwrap().len()), (1, 2), "{cut}: {outcome:#?}");
        assert_eq!(pair.runners().unwrap(), [Side::Source]);
    }
}

#[test]
fn a_panic_of_the_engine_ends_on_the_side_that_is_proved() {
    for (moment, side) in [("memory begin", Side::Source), ("cleanup begin", Side::Destination)] {
        let pair = start(&spec("10.0.13", busy()));
        let mut running = panic_at(builder(&pair), moment).start().unwrap();
        let outcome = running.wait_blocking();
        let reason = outcome.reason.as_ref().unwrap();
        let runs_on = if side == Side::Source { RunsOn::Source } else { RunsOn::Destination };
        assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Undetermined, runs_on), "{outcome:#?}");
        assert_eq!(reason.code, "internal", "{outcome:#?}");
        assert!(reason.message.contains(moment), "{outcome:#?}");
        assert_eq!(outcome.leftovers, Vec::<String>::new(), "{outcome:#?}");
        assert_eq!(pair.runners().unwrap(), [side]);
        pair.wait_for_beats(side, 20, WAIT).unwrap();
    }
}
