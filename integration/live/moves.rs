//! Migrations that succeed: versions, workloads and configurations.

mod announcement;
mod keep_alive;
mod listeners;
mod race;
mod upgrades;

use super::support::{
    MIB, WAIT, begins, block_on, builder, busy, idle, judge_disks, judge_moved, judge_running, migrate, migrate_and,
    migrate_when, on_source_host, settings, spec, start,
};
use qferry::internals::{
    endpoint::{Address, Endpoint, ProcessHandle},
    migration::{JournalPlace, Migration, Running},
    progress::{Ending, Event, EventKind, Outcome, Phase, RunsOn},
    quantity::Rate,
};
use qferry_bed::{DiskSpec, Guest, Link, Pair, Side, Spec, Style, Workload, free_port};

fn moves(spec: &Spec) {
    let pair = start(spec);
    let outcome = migrate(builder(&pair));
    judge_running(&pair, &outcome);
}

#[test]
fn a_busy_guest_on_10_0_2() {
    moves(&spec("10.0.2", busy()));
}

#[test]
fn an_idle_guest_over_a_link_between_two_hosts() {
    let pair = start(&Spec { link: Some(Link::gigabit()), ..spec("10.0.13", idle()) });
    let outcome = on_source_host(&pair, || migrate(builder(&pair)));
    judge_running(&pair, &outcome);
    let copied = outcome.ram.bytes + outcome.disks[0].bytes_copied;
    let sent = pair.wire().unwrap().sent(Side::Source).unwrap();
    assert!(sent >= copied, "{sent} bytes on the link of {copied}: {outcome:#?}");
    let most = Link::gigabit().bits_per_second as f64 / 8.0;
    let rate = sent as f64 / (outcome.total_ms as f64 / 1000.0);
    assert!(rate <= most, "{rate} bytes a second over a link of {most}");
}

#[test]
fn a_busy_disk() {
    let workload = Workload { write: 400, block: 16 << 10, ..busy() };
    moves(&spec("10.0.13", workload));
}

#[test]
fn three_disks_of_different_sizes_one_untouched() {
    let disk = |size: u64, overlay_data: u64| DiskSpec {
        size: size * MIB,
        backing: size * MIB,
        backing_data: 8 * MIB,
        overlay_data: overlay_data * MIB,
        ..DiskSpec::default()
    };
    // Nobody writes to the second overlay, so it stays empty, and its mirror's `len` is 0.
    let disks = vec![disk(64, 8), disk(96, 0), disk(32, 24)];
    let pair = start(&Spec { disks, ..spec("10.0.13", idle()) });
    let outcome = migrate(builder(&pair));
    judge_running(&pair, &outcome);
    let copied: Vec<u64> = outcome.disks.iter().map(|disk| disk.bytes_copied / MIB).collect();
    assert_eq!(copied, [8, 0, 24]);
    assert_eq!(outcome.disks.iter().map(|disk| disk.virtual_size / MIB).collect::<Vec<_>>(), [64, 96, 32]);
}

#[test]
fn three_busy_disks_by_drive() {
    let disk = DiskSpec {
        size: 64 * MIB,
        backing: 64 * MIB,
        backing_data: 8 * MIB,
        overlay_data: 4 * MIB,
        ..DiskSpec::default()
    };
    moves(&Spec { disks: vec![disk; 3], style: Style::Drive, ..spec("10.0.13", busy()) });
}

#[test]
fn an_overlay_larger_than_its_backing_file_with_large_clusters() {
    let disk = DiskSpec { backing: 16 * MIB, backing_data: 8 * MIB, cluster: MIB, ..DiskSpec::default() };
    moves(&Spec { disks: vec![disk], ..spec("10.0.13", busy()) });
}

#[test]
fn a_paused_guest_stays_paused() {
    let pair = start(&Spec { guest: Guest::Paused, ..spec("10.0.13", busy()) });
    let outcome = migrate(builder(&pair));
    judge_moved(&pair, &outcome);
    assert_eq!(outcome.blackout_ms, None, "it never ran");
    assert_eq!(pair.destination.status().unwrap(), "paused");
    // The guest's owner resumes the guest, which is whole.
    pair.destination.qmp("cont", &serde_json::json!({})).unwrap();
    pair.wait_until_verified(WAIT).unwrap();
    judge_disks(&pair, Side::Destination);
}

/// Migrates, and runs a command of the guest's owner once RAM is sent.
fn once_ram_is_sent(pair: &Pair, command: &str) -> Outcome {
    let sending = |kind: &EventKind| matches!(kind, EventKind::Memory { status, .. } if status == "active");
    let act = |_: &Running<Outcome>| drop(pair.source.qmp(command, &serde_json::json!({})).unwrap());
    migrate_when(builder(pair).bandwidth(Rate(16 * MIB)), sending, act).0
}

#[test]
fn a_paused_guest_that_its_owner_resumes_while_ram_is_sent_runs_on() {
    for version in ["10.0.13", "11.1"] {
        let pair = start(&Spec { guest: Guest::Paused, ..spec(version, busy()) });
        judge_running(&pair, &once_ram_is_sent(&pair, "cont"));
    }
}

#[test]
fn a_guest_that_its_owner_pauses_while_disks_are_copied_stays_paused() {
    let pair = start(&spec("10.0.13", busy()));
    let copying = |kind: &EventKind| matches!(kind, EventKind::Disk { copied, .. } if *copied > 0);
    let stop = |_: &Running<Outcome>| drop(pair.source.qmp("stop", &serde_json::json!({})).unwrap());
    let (outcome, _) = migrate_when(builder(&pair).bandwidth(Rate(16 * MIB)), copying, stop);
    judge_moved(&pair, &outcome);
    assert_eq!(outcome.blackout_ms, None);
    assert_eq!(pair.destination.status().unwrap(), "paused");
    judge_disks(&pair, Side::Destination);
}

#[test]
fn a_guest_that_its_owner_pauses_while_ram_is_sent_stays_paused() {
    for version in ["10.0.13", "11.1"] {
        let pair = start(&spec(version, busy()));
        let outcome = once_ram_is_sent(&pair, "stop");
        judge_moved(&pair, &outcome);
        assert_eq!(outcome.blackout_ms, None);
        assert_eq!(pair.destination.status().unwrap(), "paused");
        judge_disks(&pair, Side::Destination);
    }
}

/// Cancels after a command of the guest's owner while RAM is sent. The guest then is as its owner wants it, and the
/// journal says so.
fn goes_back(guest: Guest, command: &str, status: &str) {
    let pair = start(&Spec { guest, disks: vec![DiskSpec::small()], ..spec("10.0.13", idle()) });
    let settings = settings(&pair);
    let JournalPlace::File(journal) = settings.journal.clone() else { panic!("{settings:?}") };
    let outcome = block_on(async {
        let mut migration = builder(&pair).settings(settings).bandwidth(Rate(4 * MIB)).start_here().unwrap();
        let (mut events, mut looks) = (migration.events(), 0);
        while let Some(event) = events.next().await {
            match event.kind {
                EventKind::Memory { status, .. } if status == "active" => looks += 1,
                EventKind::Outcome(_) => break,
                _ => continue,
            }
            match looks {
                1 => drop(pair.source.qmp(command, &serde_json::json!({})).unwrap()),
                // The engine knows by now: QEMU sent its event before the answer of the sample before.
                3 => migration.control().cancel(),
                _ => {}
            }
        }
        migration.wait().await
    });
    assert_eq!((outcome.outcome, outcome.runs_on), (Ending::Cancelled, RunsOn::Source), "{outcome:#?}");
    assert_eq!(pair.source.status().unwrap(), status);
    assert_eq!(outcome.leftovers, Vec::<String>::new());
    let journal = std::fs::read_to_string(journal).unwrap();
    let said: Vec<&str> = journal.lines().filter(|line| line.contains("\"runs\"")).collect();
    assert!(said.len() == 1 && said[0].contains(&format!("\"runs\":{}", status == "running")), "{journal}");
}

#[test]
fn a_guest_that_its_owner_pauses_while_ram_is_sent_is_not_resumed_by_the_way_back() {
    goes_back(Guest::Running, "stop", "paused");
}

#[test]
fn a_paused_guest_that_its_owner_resumes_while_ram_is_sent_runs_after_the_way_back() {
    goes_back(Guest::Paused, "cont", "running");
}

#[test]
fn monitors_nbd_and_ram_over_tcp() {
    let pair = start(&Spec { tcp: true, ..spec("10.0.13", busy()) });
    let tcp = |port: u16| -> Address { format!("tcp:127.0.0.1:{port}").parse().unwrap() };
    let (source, destination) = (pair.source.qmp_port().unwrap(), pair.destination.qmp_port().unwrap());
    let [nbd, ram, at_source] = [(); 3].map(|()| free_port().unwrap());
    let migration = Migration::builder(tcp(source), tcp(destination))
        .addresses(tcp(nbd), tcp(ram))
        .source_nbd_address(tcp(at_source));
    let outcome = migrate(migration.runtime_dir(pair.run_dir()));
    judge_running(&pair, &outcome);
    assert_eq!(outcome.ledger_clock, Some(qferry::internals::progress::LedgerClock::Engine));
}

/// Forwards a monitor to another socket, as `ssh -L` does.
fn forward(to: std::path::PathBuf, at: &std::path::Path) {
    use std::os::unix::net::{UnixListener, UnixStream};
    let listener = UnixListener::bind(at).unwrap();
    std::thread::spawn(move || {
        let (accepted, connected) = (listener.accept().unwrap().0, UnixStream::connect(to).unwrap());
        let copy = |mut from: UnixStream, mut to: UnixStream| {
            std::thread::spawn(move || {
                drop(std::io::copy(&mut from, &mut to));
                drop(to.shutdown(std::net::Shutdown::Both));
            })
        };
        copy(accepted.try_clone().unwrap(), connected.try_clone().unwrap());
        copy(connected, accepted);
    });
}

#[test]
fn a_forwarder_is_not_taken_for_qemu() {
    let pair = start(&spec("10.0.13", busy()));
    let at = |name: &str| pair.source.folder().join(name);
    let forwarded = |name| Address::unix(at(name)).unwrap();
    let moving = || {
        forward(pair.source.qmp_path(), &at("a"));
        forward(pair.destination.qmp_path(), &at("b"));
        Migration::builder(forwarded("a"), forwarded("b")).runtime_dir(pair.run_dir())
    };
    // The peer of both sockets is this process, so the engine does not know that the QEMUs are on this host.
    let refused = migrate(moving());
    assert_eq!(refused.reason.as_ref().unwrap().code, "address-missing", "{refused:#?}");
    std::fs::remove_file(at("a")).unwrap();
    std::fs::remove_file(at("b")).unwrap();
    let run = |name| Address::unix(pair.run_dir().join(name)).unwrap();
    let outcome = migrate(moving().addresses(run("nbd"), run("ram")).source_nbd_address(run("source-nbd")));
    judge_running(&pair, &outcome);
    assert_eq!(outcome.ledger_clock, Some(qferry::internals::progress::LedgerClock::Engine));
}

#[test]
fn connections_that_the_embedder_holds() {
    let pair = start(&spec("10.0.13", busy()));
    let outcome = block_on(async {
        let mut ends = Vec::new();
        for machine in [&pair.source, &pair.destination] {
            let path = machine.qmp_path();
            let endpoint =
                Endpoint::connector(machine.side().to_string(), move || tokio::net::UnixStream::connect(path.clone()));
            ends.push(endpoint.with_process(ProcessHandle::from_pid(machine.pid()).unwrap()));
        }
        let (destination, source) = (ends.pop().unwrap(), ends.pop().unwrap());
        Migration::builder(source, destination).runtime_dir(pair.run_dir()).start_here().unwrap().wait().await
    });
    judge_running(&pair, &outcome);
}

#[test]
fn the_source_can_be_kept() {
    let pair = start(&spec("10.0.13", busy()));
    let outcome = migrate(builder(&pair).keep_source());
    assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
    assert_eq!(pair.source.status().unwrap(), "postmigrate");
    assert_eq!(pair.source.leftovers().unwrap(), Vec::<String>::new());
    pair.source.kill().unwrap();
    judge_running(&pair, &outcome);
}

#[test]
fn ceilings_are_kept_and_progress_is_told() {
    let disk = DiskSpec { overlay_data: 32 * MIB, ..DiskSpec::default() };
    let pair = start(&Spec { disks: vec![disk], ..spec("10.0.13", idle()) });
    let (outcome, events) = migrate_and(builder(&pair).bandwidth(Rate(16 * MIB)), Phase::Storage, |_| ());
    let samples: Vec<(u64, u64)> = events
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::Disk { copied, total, .. } => Some((copied, total)),
            _ => None,
        })
        .collect();
    assert!(samples.len() > 4, "{samples:?}");
    assert!(samples.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{samples:?}");
    assert!(samples.iter().any(|&(copied, total)| copied > 0 && copied < total), "{samples:?}");
    // A mirror copies a burst of 16 MiB before it waits for its limit for the first time.
    let begun = events.iter().find(|event| begins(&event.kind, Phase::Storage)).expect("disks were copied").t_ms;
    let ready = |event: &&Event| matches!(event.kind, EventKind::Disk { ready: true, .. });
    let took = events.iter().find(ready).expect("the mirror was ready").t_ms - begun;
    assert!(took >= 900, "32 MiB at 16 MiB a second took {took} ms: {samples:?}");
    assert!(events.iter().any(|event| matches!(event.kind, EventKind::Memory { total, .. } if total >= 192 * MIB)));
    judge_running(&pair, &outcome);
}
