//! Hundreds of migrations in the model, and what must hold for every one of them.

#![cfg(test)] // tells clippy that this is all test, helpers too

use super::{
    history::{Can, Task},
    policy::Policy,
    simulate::{Course, Guest, GuestDisk, Link, simulate},
};
use std::time::Duration;

const MIB: f64 = (1 << 20) as f64;
const GBIT: f64 = 125e6 * 0.95;

fn policy(name: &str) -> Policy {
    Policy::built_in(name).expect(name).parse().expect(name)
}

fn link(bandwidth: f64, continuous: bool) -> Link {
    Link {
        bandwidth,
        memory_rate: 1e9,
        mirror_rate: 350.0 * MIB,
        round_trip: 0.5,
        device_state: 6.0,
        continuous,
        switchover_bandwidth: true,
    }
}

fn guest(memory: f64, working_set: f64, dirty_rate: f64) -> Guest {
    Guest { memory, used: memory * 0.6, working_set, dirty_rate, ..Guest::default() }
}

fn can() -> Can {
    Can { write_blocking: true, throttle: true, postcopy: false, overlap: true }
}

fn task(guest: &Guest, budget: u64) -> Task {
    Task {
        budget: Duration::from_millis(budget),
        memory: guest.memory as u64,
        disks: guest.disks.iter().map(|disk| disk.bytes as u64).collect(),
        can: can(),
        ..Task::default()
    }
}

fn run(name: &str, guest: &Guest, link: &Link) -> Course {
    let policy = policy(name);
    let task = Task { timeout: Some(Duration::from_secs(60)), ..task(guest, 300) };
    simulate(&policy, &task, guest, link)
}

#[test]
fn explore() {
    let (mut lost, mut all) = (0, 0);
    for continuous in [false, true] {
        for (memory, set) in [(256.0, 64.0), (256.0, 96.0), (256.0, 128.0), (320.0, 128.0), (384.0, 96.0), (512.0, 64.0), (512.0, 128.0)] {
                for load in [0.0, 0.5, 0.9, 1.5] {
                    let guest = guest(memory * MIB, set * MIB, load * GBIT);
                    let link = link(GBIT, continuous);
                    let ours = run("converge", &guest, &link);
                    println!("{continuous} {memory} {set} {load} {:8.0} {:?}", ours.total_ms, ours.blackout_ms);
                    for (at, action, because) in &ours.actions {
                        println!("      {at:.0} {action:?} {because}");
                    }
                    for name in ["nova", "vdsm", "kubevirt"] {
                        let other = run(name, &guest, &link);
                        let Some(blackout) = other.blackout_ms else { continue };
                        all += 1;
                        let (t, b) = (ours.total_ms > other.total_ms * 1.05 + 100.0, ours.blackout_ms.is_none_or(|ours| ours > blackout * 1.05 + 5.0));
                        if t || b {
                            lost += 1;
                            println!("   LOST {t} {b} to {name} {:8.0} {:?}", other.total_ms, blackout);
                        }
                    }
                }
        }
    }
    println!("lost {lost} of {all}");
}
