//! `qferry diagnose` beside migrations that nothing of the engine's runs, each stuck for a cause made on purpose.

mod channels;
mod disks;
mod hosts;
mod owners;

use crate::{
    command::qferry,
    machines::ask,
    support::{MIB, WAIT, start, until, writes},
};
use qferry_bed::{Bare, BootSector, DiskSpec, Machine, Pair, Spec};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// A quick pair whose guest does this.
fn guest(version: &str, boot: Option<BootSector>) -> Pair {
    let disks = vec![DiskSpec { overlay_data: 4 * MIB, ..DiskSpec::small() }];
    start(&Spec { version: version.to_owned(), boot, disks, ..Spec::quick() })
}

/// What `qferry diagnose` says: the exit code and the last object on stdout.
fn diagnosed(arguments: &[&str]) -> (i32, Value) {
    diagnosed_for("3s", arguments)
}

/// The same, looked at for so long.
fn diagnosed_for(lasting: &str, arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    let output = command.args(["diagnose", "--json", "--for", lasting]).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let told = || format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let last = text.lines().last().unwrap_or_else(|| panic!("{}", told()));
    (output.status.code().unwrap_or_else(|| panic!("{}", told())), serde_json::from_str(last).unwrap())
}

fn path(machine: &Machine) -> String {
    machine.qmp_path().display().to_string()
}

/// Both sides, in the wrong order: QEMU's answers tell which is which.
fn both(pair: &Pair) -> (i32, Value) {
    diagnosed(&[&path(&pair.destination), &path(&pair.source)])
}

/// Both sides, for no longer than it takes to tell slow from stuck.
fn short(pair: &Pair) -> (i32, Value) {
    diagnosed_for("2500ms", &[&path(&pair.source), &path(&pair.destination)])
}

fn codes(diagnosis: &Value) -> Vec<&str> {
    diagnosis["causes"].as_array().unwrap().iter().map(|cause| cause["code"].as_str().unwrap()).collect()
}

/// The first cause has this code, with evidence and a remedy.
#[track_caller]
fn expect(code: &str, (exit, diagnosis): &(i32, Value)) {
    let told = || without_processes(diagnosis);
    assert_eq!(*exit, 10, "{code}: {:#}", told());
    assert_eq!(codes(diagnosis).first(), Some(&code), "{:#}", told());
    let cause = &diagnosis["causes"][0];
    assert!(!cause["evidence"].as_array().unwrap().is_empty() && cause["remedy"] != "", "{cause:#}");
}

/// A diagnosis for people who read the log of a test.
fn without_processes(diagnosis: &Value) -> Value {
    let mut told = diagnosis.clone();
    for side in ["source", "destination"] {
        told[side].as_object_mut().and_then(|side| side.remove("process"));
    }
    told
}

#[track_caller]
fn healthy((exit, diagnosis): &(i32, Value)) {
    assert_eq!((*exit, codes(diagnosis)), (0, vec![]), "{diagnosis:#}");
}

/// Begins to send RAM, with these capabilities and parameters.
fn send(pair: &Pair, capabilities: &[&str], parameters: &Value) {
    let at = pair.run_dir().join("ram");
    send_to(pair, capabilities, parameters, (&at, &at));
}

/// The same, to a socket before the one at which the destination listens.
fn send_to(pair: &Pair, capabilities: &[&str], parameters: &Value, (front, behind): (&Path, &Path)) {
    let on: Vec<Value> = capabilities.iter().map(|name| json!({ "capability": name, "state": true })).collect();
    if !on.is_empty() {
        for machine in [&pair.source, &pair.destination] {
            machine.qmp("migrate-set-capabilities", &json!({ "capabilities": on })).unwrap();
        }
    }
    pair.source.qmp("migrate-set-parameters", parameters).unwrap();
    let [front, behind] = [front, behind].map(|path| json!({ "uri": format!("unix:{}", path.display()) }));
    pair.destination.qmp("migrate-incoming", &behind).unwrap();
    pair.source.qmp("migrate", &front).unwrap();
}

/// A relay to the socket behind it, where QEMU listens later: it carries the first bytes as they come, and from then on
/// so many a second.
fn slow_link(pair: &Pair, mut first: usize, rate: usize) -> (PathBuf, PathBuf) {
    let [front, behind] = ["slow", "behind"].map(|name| pair.run_dir().join(name));
    let (listener, target) = (UnixListener::bind(&front).unwrap(), behind.clone());
    std::thread::spawn(move || {
        let (mut from, _) = listener.accept().unwrap();
        let mut to = UnixStream::connect(target).unwrap();
        let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
        let mut bytes = vec![0; rate / 50];
        // the rate is kept where the relay itself gets its time late
        let mut due = Instant::now();
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if to.write_all(&bytes[..count]).is_err() {
                return;
            }
            first = first.saturating_sub(count);
            let idle = Instant::now() - Duration::from_millis(100);
            due = due.max(idle);
            if first == 0 {
                due += Duration::from_secs(1).mul_f64(count as f64 / rate as f64);
                sleep(due.saturating_duration_since(Instant::now()));
            }
        }
    });
    (front, behind)
}

fn wait_for_migration(status: &str, look: impl Fn() -> Value) {
    let begun = Instant::now();
    loop {
        let now = look()["status"].clone();
        if now == status {
            return;
        }
        assert!(begun.elapsed() < WAIT, "{now} and not {status}");
        sleep(Duration::from_millis(20));
    }
}

/// Begins to mirror the only disk to the destination.
fn mirror(pair: &Pair, parameters: &Value) {
    let socket = pair.run_dir().join("nbd");
    mirror_to(pair, parameters, (&socket, &socket));
}

/// The same, over a socket before the one at which the destination listens.
fn mirror_to(pair: &Pair, parameters: &Value, (front, behind): (&Path, &Path)) {
    export(&pair.destination, behind);
    let target = format!("nbd+unix:///disk?socket={}", front.display());
    let mut mirror = json!({ "job-id": "mirror", "device": pair.source.node(0).unwrap(), "target": target, "sync": "top",
        "mode": "existing", "format": "raw" });
    mirror.as_object_mut().unwrap().extend(parameters.as_object().unwrap().clone());
    pair.source.qmp("drive-mirror", &mirror).unwrap();
}

fn export(machine: &Machine, socket: &Path) {
    let server = json!({ "addr": { "type": "unix", "data": { "path": socket } } });
    machine.qmp("nbd-server-start", &server).unwrap();
    let export = json!({ "id": "export", "type": "nbd", "node-name": machine.node(0).unwrap(), "name": "disk", "writable": true });
    machine.qmp("block-export-add", &export).unwrap();
}

fn writer() -> BootSector {
    BootSector::new().repeat(|steps| steps.wait(1).write(64, 64))
}

/// A pair whose guest dirties memory without end. Its first write says that it has booted.
fn dirtying(version: &str) -> Pair {
    let pair = guest(version, Some(BootSector::new().write(64, 1).repeat(|steps| steps.dirty(128))));
    until(&pair, "query-blockstats", |blocks| writes(blocks) > 0);
    pair
}

#[test]
fn a_healthy_migration_has_no_cause() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let pair = guest(version, Some(BootSector::new().repeat(|steps| steps.dirty(1).wait(18))));
        healthy(&both(&pair));
        // a mirror at a low ceiling, and then RAM
        mirror(&pair, &json!({ "speed": MIB }));
        healthy(&both(&pair));
        pair.source.qmp("block-job-cancel", &json!({ "device": "mirror", "force": true })).unwrap();
        pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_CANCELLED").unwrap();
        pair.destination.qmp("nbd-server-stop", &json!({})).unwrap();
        send(&pair, &[], &json!({ "max-bandwidth": 16 << 10, "downtime-limit": 1 }));
        healthy(&both(&pair));
        pair.source.qmp("migrate_cancel", &json!({})).unwrap();
    }
}

#[test]
fn a_source_that_waits_for_migrate_continue_is_taken_back() {
    for version in ["10.0.13", "7.2"] {
        let pair = guest(version, None);
        send(&pair, &["pause-before-switchover"], &json!({ "downtime-limit": 2000 }));
        wait_for_migration("pre-switchover", || pair.source.qmp("query-migrate", &json!({})).unwrap());
        expect("waiting-for-continue", &both(&pair));
        let (exit, _) = diagnosed(&[&path(&pair.source), "--fix", "waiting-for-continue"]);
        assert_eq!(exit, 2, "nobody was asked");
        wait_for_migration("pre-switchover", || pair.source.qmp("query-migrate", &json!({})).unwrap());
        let (exit, diagnosis) = diagnosed(&[&path(&pair.source), "--fix", "waiting-for-continue", "--yes"]);
        assert_eq!(exit, 0, "{diagnosis:#}");
        pair.source.wait_for_status("running", WAIT).unwrap();
    }
}

#[test]
fn a_destination_that_died_in_pre_switchover_is_said_to_be_gone() {
    let pair = guest("11.1", None);
    send(&pair, &["pause-before-switchover"], &json!({ "downtime-limit": 2000 }));
    wait_for_migration("pre-switchover", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    pair.destination.kill().unwrap();
    expect("destination-gone", &both(&pair));
    let arguments = [&*path(&pair.source), &path(&pair.destination), "--fix", "destination-gone", "--yes"];
    let (exit, diagnosis) = diagnosed(&arguments);
    assert_eq!(exit, 0, "{diagnosis:#}");
    pair.source.wait_for_status("running", WAIT).unwrap();
}

#[test]
fn a_process_that_is_stopped_is_named_before_what_follows_from_it() {
    let pair = dirtying("10.0.13");
    send(&pair, &[], &json!({ "max-bandwidth": MIB, "downtime-limit": 1 }));
    wait_for_migration("active", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    pair.destination.stop_process().unwrap();
    let pid = pair.destination.pid().to_string();
    let (told, alone) = (both(&pair), diagnosed(&["--pid", &pid]));
    pair.destination.continue_process().unwrap();
    expect("process-stopped", &told);
    expect("process-stopped", &alone);
    assert!(told.1["causes"][0]["remedy"].as_str().unwrap().contains(&pid), "{:#}", told.1);
    healthy(&diagnosed(&["--pid", &pid]));
    let (exit, error) = diagnosed(&["--pid", "4194305"]);
    assert_eq!((exit, error["type"].as_str()), (1, Some("error")), "{error:#}");
}

#[test]
fn a_monitor_that_somebody_holds_is_said_to_be_held() {
    let pair = guest("10.0.13", None);
    let held = UnixStream::connect(pair.source.qmp_path()).unwrap();
    sleep(Duration::from_millis(200));
    let told = diagnosed(&[&path(&pair.source)]);
    expect("monitor-unresponsive", &told);
    let holder = format!("(pid {})", std::process::id());
    let cause = &told.1["causes"][0];
    assert!(cause["evidence"].to_string().contains(&holder), "{cause:#}");
    assert!(cause["remedy"].to_string().contains(&holder) && cause["confidence"] == "certain", "{cause:#}");
    // a manager that holds the monitor for the time of a call
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sleep(Duration::from_secs(1));
            drop(held);
        });
        healthy(&diagnosed(&[&path(&pair.source)]));
    });
    // nobody holds the monitor of a process that is stopped
    pair.source.stop_process().unwrap();
    let told = diagnosed(&[&path(&pair.source)]);
    pair.source.continue_process().unwrap();
    expect("process-stopped", &told);
    assert!(told.1["causes"].to_string().contains("accepted no client"), "{:#}", told.1);
}

#[test]
fn a_process_is_described_without_a_monitor() {
    let extra = ["-object", "secret,id=sec0,data=hunter2hunter2", "-name", "vm1,debug-threads=on"];
    let extra = extra.map(str::to_owned).to_vec();
    let disks = vec![DiskSpec { overlay_data: 4 * MIB, ..DiskSpec::small() }];
    let boot = Some(BootSector::new().write(64, 1).repeat(|steps| steps.dirty(128)));
    let spec = Spec { version: "10.0.13".to_owned(), boot, disks, extra, ..Spec::quick() };
    let pair = start(&spec);
    until(&pair, "query-blockstats", |blocks| writes(blocks) > 0);
    send(&pair, &[], &json!({ "max-bandwidth": MIB, "downtime-limit": 1 }));
    wait_for_migration("active", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    let told = diagnosed(&["--pid", &pair.source.pid().to_string()]);
    healthy(&told);
    let process = &told.1["source"]["process"];
    let threads = process["threads"].as_array().unwrap();
    // the guest's vCPU is busy, and named
    let vcpu = threads.iter().find(|thread| thread["name"].as_str().unwrap().starts_with("CPU 0"));
    assert!(vcpu.is_some_and(|vcpu| vcpu["cpu_pct"].as_f64().unwrap() > 1.0), "{threads:#?}");
    assert!(threads.iter().any(|thread| thread["waits_in"].is_string()), "{threads:#?}");
    // the other end of the RAM channel is the destination
    let sockets = process["sockets"].as_array().unwrap();
    let to_destination = sockets.iter().find(|socket| socket["peer_pid"] == pair.destination.pid());
    let path = pair.run_dir().join("ram");
    assert!(to_destination.is_some_and(|socket| socket["local"] == path.to_str().unwrap()), "{sockets:#?}");
    let overlay = pair.source.disks()[0].overlay.display().to_string();
    let images = process["images"].as_array().unwrap();
    assert!(images.iter().any(|image| image["path"] == *overlay && image["writable"] == true), "{images:#?}");
    assert!(process["descriptors"].as_u64().unwrap() > 5, "{process:#}");
    let command = &process["command"];
    assert!(command.to_string().contains("[redacted]") && !command.to_string().contains("hunter2"), "{command}");

    // a destination that does not read is named by its process, which is the source's peer
    pair.destination.stop_process().unwrap();
    let told = diagnosed(&["--pid", &pair.source.pid().to_string()]);
    pair.destination.continue_process().unwrap();
    expect("process-stopped", &told);
    let peer = format!("(pid {})", pair.destination.pid());
    assert!(told.1["causes"][0]["evidence"].to_string().contains(&peer), "{:#}", told.1);
}

#[test]
fn a_main_loop_that_waits_for_a_frozen_destination_is_said_to_hang() {
    let pair = guest("10.0.13", Some(writer()));
    mirror(&pair, &json!({ "copy-mode": "write-blocking" }));
    pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_READY").unwrap();
    until(&pair, "query-blockstats", |blocks| writes(blocks) > 0);
    pair.destination.stop_process().unwrap();
    // a write of the guest is under way to the frozen destination, and QEMU waits for it when it stops the guest
    sleep(Duration::from_secs(1));
    let told = std::thread::scope(|scope| {
        let stop = scope.spawn(|| pair.source.qmp("stop", &json!({})).map(drop));
        sleep(Duration::from_secs(1));
        let told = diagnosed(&[&path(&pair.source)]);
        pair.destination.continue_process().unwrap();
        drop(stop.join());
        told
    });
    // the kernel knows whom the connection leads to, and that this process does not run
    expect("process-stopped", &told);
    let cause = &told.1["causes"][0]["evidence"];
    assert!(cause.to_string().contains(&format!("(pid {})", pair.destination.pid())), "{cause:#}");
    assert!(codes(&told.1).contains(&"monitor-blocked"), "{:#}", told.1);
    pair.source.wait_for_status("paused", WAIT).unwrap();
}

#[test]
fn mirrors_that_are_paused_or_left_are_named() {
    let pair = guest("10.0.13", Some(writer()));
    mirror(&pair, &json!({ "speed": MIB, "auto-dismiss": false }));
    let source = path(&pair.source);
    pair.source.qmp("block-job-pause", &json!({ "device": "mirror" })).unwrap();
    expect("mirror-paused", &both(&pair));
    let (exit, diagnosis) = diagnosed(&[&source, "--fix", "mirror-paused", "--yes"]);
    assert_eq!(exit, 0, "{diagnosis:#}");
    let jobs = pair.source.qmp("query-block-jobs", &json!({})).unwrap();
    assert_eq!(jobs[0]["paused"], false, "{jobs}");
    pair.source.qmp("block-job-cancel", &json!({ "device": "mirror", "force": true })).unwrap();
    pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_CANCELLED").unwrap();
    expect("leftover-job", &both(&pair));
    let (exit, diagnosis) = diagnosed(&[&source, "--fix", "leftover-job", "--yes"]);
    assert_eq!(exit, 0, "{diagnosis:#}");
    assert_eq!(pair.source.qmp("query-jobs", &json!({})).unwrap(), json!([]));
}

#[test]
fn a_guest_on_both_sides_or_on_none_is_named() {
    let uuid = ["-uuid", "6d6f0a6c-7f2b-4d3b-8f4e-1c2d3e4f5a6b"].map(str::to_owned).to_vec();
    let pair = start(&Spec { version: "10.0.13".to_owned(), extra: uuid, ..Spec::quick() });
    send(&pair, &[], &json!({ "downtime-limit": 2000 }));
    wait_for_migration("completed", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    pair.destination.wait_for_status("paused", WAIT).unwrap();
    let stands = diagnosed(&[&path(&pair.source), &path(&pair.destination)]);
    expect("both-paused", &stands);
    for machine in [&pair.destination, &pair.source] {
        machine.qmp("cont", &json!({})).unwrap();
    }
    let runs = diagnosed(&[&path(&pair.source), &path(&pair.destination)]);
    expect("both-running", &runs);
    assert_eq!(runs.1["causes"][0]["confidence"], "certain");
}

#[test]
fn guests_that_end_and_migrations_that_fail_are_named_by_qemus_words() {
    let pair = guest("11.1", None);
    pair.source.qmp("migrate", &json!({ "uri": "unix:/nobody/listens" })).unwrap();
    wait_for_migration("failed", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    expect("setup-blocked", &both(&pair));

    let pvpanic = ["-device", "pvpanic", "-action", "panic=pause"].map(str::to_owned).to_vec();
    let boot = Some(BootSector::new().panic());
    let panics = start(&Spec { version: "10.0.13".to_owned(), boot, extra: pvpanic, ..Spec::quick() });
    panics.source.wait_for_status("guest-panicked", WAIT).unwrap();
    expect("guest-ended", &diagnosed(&[&path(&panics.source)]));

    let source = Bare::start("10.0.13", &[]).unwrap();
    let smaller = Bare::start("10.0.13", &["-m", "32M", "-incoming", "defer", "-S"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = format!("unix:{}", folder.path().join("ram").display());
    ask(&smaller, "migrate-incoming", &json!({ "uri": at, "exit-on-error": false }));
    ask(&source, "migrate", &json!({ "uri": at }));
    wait_for_migration("failed", || ask(&smaller, "query-migrate", &json!({})));
    let told = diagnosed(&[source.qmp_path().to_str().unwrap(), smaller.qmp_path().to_str().unwrap()]);
    expect("state-refused", &told);
}

#[test]
fn ram_that_a_limit_holds_down_is_named() {
    let pair = dirtying("10.0.13");
    // QEMU is told that the last RAM would take seconds, so that no burst makes it switch over
    send(&pair, &[], &json!({ "max-bandwidth": MIB, "downtime-limit": 1, "avail-switchover-bandwidth": 100_000 }));
    // QEMU knows how fast the guest dirties after a second or two
    until(&pair, "query-migrate", |info| info["ram"]["dirty-sync-count"].as_u64().unwrap_or_default() > 8);
    expect("bandwidth-capped", &both(&pair));
    pair.source.qmp("migrate_cancel", &json!({})).unwrap();
}

/// Migrations of the engine's that take long and are well: each is looked at for as long as it copies.
#[test]
fn a_healthy_migration_has_no_cause_in_fifty_looks() {
    let dirty = || BootSector::new().repeat(|steps| steps.dirty(128));
    let cases = [
        ("idle", None, ["--disk-bandwidth", "1MiB/s"]),
        ("busy", Some(dirty()), ["--disk-bandwidth", "1MiB/s"]),
        ("held down by a ceiling", Some(dirty()), ["--bandwidth", "1MiB/s"]),
    ];
    std::thread::scope(|scope| {
        for (name, boot, options) in cases {
            scope.spawn(move || has_no_cause(name, boot, &options));
        }
    });
}

fn has_no_cause(name: &str, boot: Option<BootSector>, options: &[&str]) {
    let disks = vec![DiskSpec { size: 32 * MIB, overlay_data: 24 * MIB, ..DiskSpec::small() }];
    let pair = start(&Spec { boot, disks, second_monitor: true, ..Spec::quick() });
    let mut migration = qferry(&pair, options).stdout(Stdio::null()).spawn().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    command.args(["watch", "--json"]).arg(pair.source.second_qmp_path()).arg(pair.destination.second_qmp_path());
    let mut watch = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut looks = 0;
    for line in BufReader::new(watch.stdout.take().unwrap()).lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        match line["type"].as_str() {
            Some("diagnosis") => assert_eq!(line["causes"], json!([]), "{name}, after {looks} looks: {line:#}"),
            Some("sample") => {
                assert!(looks == 0 || migration.try_wait().unwrap().is_none(), "{name}: over after {looks} looks");
                looks += u32::from(line["source"]["mirrors"].as_array().is_some_and(|mirrors| !mirrors.is_empty()));
            }
            _ => {}
        }
        if looks == 50 {
            break;
        }
    }
    assert_eq!(looks, 50, "{name}");
    drop((watch.kill(), watch.wait(), migration.kill(), migration.wait()));
}
