//! Keep-alive on the connections between two QEMUs.

use crate::support::{begins, builder, judge_moved, migrate_when, start};
use qferry::internals::{
    endpoint::Address,
    progress::{EventKind, Phase},
};
use qferry_bed::{Spec, free_port};
use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

/// The longest time to a probe, in the kernel's hundredths of a second.
const SOON: u64 = 300;

/// The connections to or from a local port, each by its two ports, with the kernel's timer and its time.
fn connections(port: u16) -> BTreeMap<(u16, u16), (String, u64)> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let port_of = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
    let connection = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (timer, when) = words[5].split_once(':').unwrap();
        let ports = (port_of(words[1]), port_of(words[2]));
        let is_it = words[3] == "01" && [ports.0, ports.1].contains(&port);
        is_it.then(|| (ports, (timer.to_owned(), u64::from_str_radix(when, 16).unwrap())))
    };
    table.lines().skip(1).filter_map(connection).collect()
}

/// Whether both ends of a connection send probes soon, once nothing is on its way.
fn is_kept_alive(port: u16) -> bool {
    let found = connections(port);
    found.len() == 2 && found.values().all(|(timer, when)| timer == "02" && *when <= SOON)
}

fn settles(port: u16) -> bool {
    let began = Instant::now();
    while !is_kept_alive(port) {
        if began.elapsed() > Duration::from_secs(2) {
            eprintln!("{port}: {:?}", connections(port));
            return false;
        }
        sleep(Duration::from_millis(20));
    }
    true
}

/// The engine stands still while the test looks: at mirrors that are ready, and at RAM in the switchover. 10.0.13
/// cannot set the times.
#[test]
fn both_ends_of_both_channels_probe_a_silent_peer() {
    for (version, kept) in [("11.1", true), ("10.0.13", false)] {
        let pair = start(&Spec { version: version.to_owned(), ..Spec::quick() });
        let ports = [free_port().unwrap(), free_port().unwrap()];
        let [nbd, ram] = ports.map(|port| format!("tcp:127.0.0.1:{port}").parse::<Address>().unwrap());
        let look = |port| if kept { settles(port) } else { is_kept_alive(port) };
        let (at_nbd, at_ram) = (Cell::new(None), Cell::new(None));
        let when = |kind: &EventKind| {
            if begins(kind, Phase::Memory) {
                at_nbd.set(Some(look(ports[0])));
            }
            begins(kind, Phase::Switchover)
        };
        let (outcome, _) = migrate_when(builder(&pair).addresses(nbd, ram), when, |_| at_ram.set(Some(look(ports[1]))));
        judge_moved(&pair, &outcome);
        assert_eq!((at_nbd.get(), at_ram.get()), (Some(kept), Some(kept)), "{version}");
    }
}
