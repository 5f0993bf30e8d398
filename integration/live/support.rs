//! Migrations of a pair, and the judgement of their end.

use qferry::internals::{
    endpoint::Address,
    migration::{Builder, JournalPlace, Migration, Running, Settings},
    progress::{Ending, Event, EventKind, Outcome, Phase, PhaseState, RunsOn},
};
use qferry_bed::{Build, DiskSpec, ImageFacts, Pair, Side, Spec, Workload, image_facts};
use serde_json::{Value, json};
use std::{
    future::Future,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

pub(crate) const MIB: u64 = 1 << 20;
/// The limit for anything that a guest does on a busy machine.
pub(crate) const WAIT: Duration = Duration::from_secs(120);

/// The blackout budget of tests of other things. A single flush of a disk has taken half a second in CI, so the budget
/// is large enough that no busy machine makes the engine roll back.
const BUDGET: Duration = Duration::from_secs(3);
/// The limit for a switchover in these tests.
const SWITCHOVER: Duration = Duration::from_secs(40);

/// The command `qferry`. Its sockets go to XDG_RUNTIME_DIR/qferry, its journal to XDG_STATE_HOME.
pub(crate) fn qferry(pair: &Pair, verb: &str) -> Command {
    qferry_within(pair, verb, SWITCHOVER)
}

/// The command `qferry` with this limit for a switchover.
pub(crate) fn qferry_within(pair: &Pair, verb: &str, switchover: Duration) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    command.arg(verb).env("XDG_RUNTIME_DIR", pair.run_dir()).env("XDG_STATE_HOME", pair.run_dir());
    command.stdin(Stdio::null());
    if verb == "migrate" {
        let seconds = |time: Duration| format!("{}s", time.as_secs());
        command.args(["--downtime", &seconds(BUDGET), "--switchover-timeout", &seconds(switchover)]);
    }
    command
}

/// A guest that does nothing but beat. It verifies all of its memory once a second, for which a judgement waits.
pub(crate) fn idle() -> Workload {
    Workload { ram: 8 * MIB, dirty: 0, write: 0, read: 0, ..Workload::default() }
}

/// A guest that does a little of everything. It rewrites all of its memory in two seconds, and all slots in less.
pub(crate) fn busy() -> Workload {
    Workload { ram: 8 * MIB, dirty: 4 * MIB, write: 50, read: 100, ..Workload::default() }
}

pub(crate) fn spec(version: &str, workload: Workload) -> Spec {
    Spec { version: version.to_owned(), workload, ..Spec::default() }
}

pub(crate) fn start(spec: &Spec) -> Pair {
    Pair::start(spec).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a future on a runtime like the command's own.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

pub(crate) fn builder(pair: &Pair) -> Builder {
    let address = |path| Address::unix(path).unwrap();
    Migration::builder(address(pair.source.qmp_path()), address(pair.destination.qmp_path())).settings(settings(pair))
}

/// The settings for a pair: runtime directory, journal, and addresses on the link if there is one.
pub(crate) fn settings(pair: &Pair) -> Settings {
    static JOURNALS: AtomicUsize = AtomicUsize::new(0);
    let journal = format!("journal-{}", JOURNALS.fetch_add(1, Ordering::Relaxed));
    let journal = JournalPlace::File(pair.run_dir().with_file_name(journal));
    let mut settings = Settings::default();
    settings.downtime = BUDGET;
    settings.switchover_timeout = Some(SWITCHOVER);
    settings.runtime_dir = pair.run_dir();
    settings.journal = journal;
    let Some(wire) = pair.wire() else { return settings };
    let address = |address: String| Some(address.parse::<Address>().unwrap());
    settings.nbd_address = address(wire.nbd(Side::Destination));
    settings.migrate_address = address(wire.ram());
    settings.source_nbd_address = address(wire.nbd(Side::Source));
    settings.allow_plaintext = true;
    settings
}

/// Acts on the source's host, from where the engine reaches both ends of the pair's link.
pub(crate) fn on_source_host<T: Send>(pair: &Pair, act: impl FnOnce() -> T + Send) -> T {
    let wire = pair.wire().expect("a spec with a link");
    wire.on(Side::Source, act).unwrap_or_else(|error| panic!("{error}"))
}

/// Removes the limit on the pages that a guest in postcopy lacks.
pub(crate) fn hurry(pair: &Pair) {
    pair.source.qmp("migrate-set-parameters", &json!({"max-postcopy-bandwidth": 0})).unwrap();
}

/// Asks a migration to give up.
pub(crate) fn cancel(running: &Running<Outcome>) {
    running.control().cancel();
}

/// Waits for an answer of the source.
pub(crate) fn until(pair: &Pair, command: &str, done: impl Fn(&Value) -> bool) {
    let begun = Instant::now();
    while !done(&pair.source.qmp(command, &json!({})).unwrap()) {
        assert!(begun.elapsed() < WAIT, "{command}");
        sleep(Duration::from_millis(20));
    }
}

/// The writes of a guest to its first disk, by an answer to `query-blockstats`.
pub(crate) fn writes(blocks: &Value) -> u64 {
    blocks[0]["stats"]["wr_operations"].as_u64().unwrap()
}

/// Whether a phase begins.
pub(crate) fn begins(kind: &EventKind, wanted: Phase) -> bool {
    matches!(kind, EventKind::Phase { phase, state: PhaseState::Begin, .. } if *phase == wanted)
}

/// Migrates, and acts at the begin of a phase. The engine is on this thread, and stands still meanwhile.
pub(crate) fn migrate_and(builder: Builder, at: Phase, act: impl FnOnce(&Running<Outcome>)) -> (Outcome, Vec<Event>) {
    migrate_when(builder, |kind| begins(kind, at), act)
}

/// Migrates, and acts at the first event that fits.
pub(crate) fn migrate_when(
    builder: Builder,
    when: impl Fn(&EventKind) -> bool,
    act: impl FnOnce(&Running<Outcome>),
) -> (Outcome, Vec<Event>) {
    block_on(async {
        let mut migration = builder.start_here().unwrap();
        let mut events = migration.events();
        let (mut all, mut act) = (Vec::new(), Some(act));
        while let Some(event) = events.next().await {
            if when(&event.kind) {
                if let Some(act) = act.take() {
                    act(&migration);
                }
            }
            let last = matches!(event.kind, EventKind::Outcome(_));
            all.push(event);
            if last {
                break;
            }
        }
        assert!(act.is_none(), "what was waited for never came: {all:#?}");
        (migration.wait().await, all)
    })
}

pub(crate) fn migrate(builder: Builder) -> Outcome {
    migrate_and(builder, Phase::Connect, |_| ()).0
}

fn image(pair: &Pair, side: Side, disk: usize) -> ImageFacts {
    let build: &Build = pair.build(side);
    image_facts(build, &pair.machine(side).disks()[disk].overlay).unwrap_or_else(|error| panic!("{error}"))
}

/// The guest is at the destination, the source has quit, and nothing is left behind.
pub(crate) fn judge_moved(pair: &Pair, outcome: &Outcome) {
    assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}\n{}", last_words(pair));
    assert_eq!(outcome.runs_on, RunsOn::Destination);
    assert_eq!(outcome.reason, None);
    assert_eq!(outcome.leftovers, Vec::<String>::new());
    assert!(pair.source.wait_for_end(WAIT).is_ok(), "the source was to quit");
    if let Some(left) = answer(pair, pair.destination.leftovers()) {
        assert_eq!(left, Vec::<String>::new(), "left behind on the destination");
    }
    assert_eq!(files(pair), Vec::<String>::new(), "left behind in the runtime directory");
}

/// The answer of the destination. None if its guest came from a 7.2 and has ended QEMU, as may happen at any moment
/// (see [`Pair::errors`]); the disk is judged all the same.
fn answer<T>(pair: &Pair, answer: qferry_bed::Result<T>) -> Option<T> {
    match answer {
        Err(_) if pair.spec().version == "7.2" && pair.destination.wait_for_end(WAIT).is_ok() => None,
        Err(error) => panic!("{error}"),
        Ok(answer) => Some(answer),
    }
}

/// The guest has moved and runs on, its record is whole, and the ledger agrees with the record.
pub(crate) fn judge_running(pair: &Pair, outcome: &Outcome) {
    judge_moved(pair, outcome);
    let blackout = outcome.blackout_ms.expect("it stopped and resumed");
    let sum: f64 = outcome.ledger.iter().map(|span| span.ms).sum();
    assert!((sum - blackout).abs() < 0.001, "{outcome:#?}");
    let asked = pair.destination.status().and_then(|status| Ok((status, pair.blackout()?)));
    if let Some((status, seen)) = answer(pair, asked) {
        assert_eq!(status, "running");
        let seen = seen.as_secs_f64() * 1000.0;
        if outcome.ledger_clock == Some(qferry::internals::progress::LedgerClock::Qemu) {
            // The bed sees STOP and RESUME. QEMU may have drained before it said STOP.
            let drained = outcome.ledger.iter().find(|span| span.span == "drain").map_or(0.0, |span| span.ms);
            assert!((seen + drained - blackout).abs() < 0.5, "the bed saw {seen} ms: {outcome:#?}");
        }
    }
    // A guest that came from a 7.2 may have lost a timer, so only its disk is judged.
    if pair.spec().version != "7.2" {
        pair.wait_for_beats(Side::Destination, 20, WAIT).unwrap_or_else(|error| panic!("{error}"));
        pair.wait_until_verified(WAIT).unwrap_or_else(|error| panic!("{error}"));
    }
    judge_disks(pair, Side::Destination);
}

/// The guest found no fault, and its images hold its acknowledged writes. Ends the QEMU of that side.
pub(crate) fn judge_disks(pair: &Pair, side: Side) {
    pair.machine(side).finish().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(pair.errors(), Vec::<String>::new(), "the own findings of the guest of {}", pair.spec().version);
    pair.check_disks(side).unwrap_or_else(|error| panic!("{error}"));
    for (number, disk) in pair.spec().disks.iter().enumerate() {
        let (at_source, at_destination) = (image(pair, Side::Source, number), image(pair, side, number));
        assert_eq!(at_destination.backing.as_ref(), pair.machine(side).disks()[number].backing(), "disk {number}");
        if side == Side::Destination {
            assert!(!pair.source.alive().unwrap(), "compared while the source writes");
            // The guest's writes after the migration are on the destination alone.
            let later = slots_bytes(pair.spec(), disk);
            let most = at_source.allocated + at_source.allocated / 20 + later;
            assert!(
                at_destination.allocated <= most,
                "disk {number}: {} of at most {most} bytes",
                at_destination.allocated
            );
        }
    }
}

/// The most space that the workload's region takes on a disk: each slot may touch two clusters of its own.
fn slots_bytes(spec: &Spec, disk: &DiskSpec) -> u64 {
    match spec.workload.write {
        0 => 0,
        _ => u64::from(spec.workload.slots) * (disk.cluster * 2).max(spec.workload.block * 2),
    }
}

/// The guest is on the source as before, and nothing is left on either side.
pub(crate) fn judge_back(pair: &Pair, outcome: &Outcome, ending: Ending, status: &str) {
    assert_eq!(outcome.outcome, ending, "{outcome:#?}\n{}", last_words(pair));
    assert_eq!(outcome.runs_on, RunsOn::Source);
    assert!(outcome.reason.as_ref().is_some_and(|reason| !reason.message.is_empty()), "{outcome:#?}");
    assert_eq!(pair.source.status().unwrap(), status);
    assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new(), "left behind on the source: {outcome:#?}");
    assert_eq!(files(pair), Vec::<String>::new(), "left behind in the runtime directory");
    match pair.destination.status() {
        Ok(status) => {
            assert_ne!(status, "running", "two runners");
            assert_eq!(pair.destination.leftovers().unwrap(), Vec::<String>::new(), "left behind on the destination");
        }
        // The monitor closes a while before the process ends.
        Err(_) => drop(pair.destination.wait_for_end(WAIT).unwrap()),
    }
    if status == "running" && !pair.spec().quick {
        pair.wait_for_beats(Side::Source, 20, WAIT).unwrap_or_else(|error| panic!("{error}"));
    }
    assert_eq!(pair.errors(), Vec::<String>::new(), "the own findings of the guest of {}", pair.spec().version);
}

/// The files in the runtime directory. The command keeps its transcripts there on purpose, for these tests make it the
/// state directory, too.
fn files(pair: &Pair) -> Vec<String> {
    let within = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    let run_dir = pair.run_dir();
    let is_kept = |name: &String| name == "qferry" && within(&run_dir.join(name)) == ["transcripts"];
    within(&run_dir).into_iter().filter(|name| !is_kept(name)).collect()
}

fn last_words(pair: &Pair) -> String {
    format!("source: {}\ndestination: {}", pair.source.stderr(), pair.destination.stderr())
}
