//! The workload that runs as init inside the test guest. The init beats, keeps memory, writes and reads its disks,
//! tells on the debug port what happens, and never exits.

mod disk;
mod memory;
mod pace;
mod parking;
mod port;
mod sys;

use std::fs;
use std::panic;
use std::path::Path;
use std::thread;
use std::time::Instant;

use qferry_guest::line::Line;
use qferry_guest::{Act, NETWORK, Workload};

use disk::Disk;
use pace::{Pace, sleep_until};
use port::{complain, say};

/// The beats between two looks for an NMI.
const LOOKS: u64 = 4;

fn main() {
    if sys::allow_port_access().is_ok() {
        panic::set_hook(Box::new(|panic| {
            complain(panic.to_string());
            wait_for_ever(); // an init that exits takes the kernel down, and the line with it
        }));
        if let Err(text) = run() {
            complain(text);
        }
    }
    wait_for_ever();
}

fn wait_for_ever() -> ! {
    loop {
        thread::park();
    }
}

fn run() -> Result<(), String> {
    for (kind, at) in [(c"proc", c"/proc"), (c"sysfs", c"/sys"), (c"devtmpfs", c"/dev")] {
        sys::mount(kind, at).map_err(|error| format!("mounting {}: {error}", at.to_string_lossy()))?;
    }
    let words = fs::read_to_string("/proc/cmdline").map_err(|error| format!("no command line: {error}"))?;
    let words = parking::wait_for_another(words);
    load_modules()?;
    if Path::new("/sys/class/net/eth0").exists() {
        sys::raise_network(c"eth0", NETWORK).map_err(|error| format!("raising eth0: {error}"))?;
    }
    let workload = Workload::from_command_line(&words)?;

    let memory = memory::fill(&workload)?;
    let disks = (0..).map(|number| Disk::open(number, &workload)).take(workload.disks as usize);
    let disks = disks.collect::<Result<Vec<_>, _>>()?;
    say(&Line::Ready { pages: workload.pages(), disks: workload.disks });

    for mut disk in disks {
        let workload = workload.clone();
        start("disk", move || {
            ask_to_run_first(1);
            disk.work(&workload);
        })?;
    }
    let kept = workload.clone();
    start("memory", move || memory::keep(memory, &kept))?;
    ask_to_run_first(2);
    beat(&workload)
}

fn load_modules() -> Result<(), String> {
    let entries = fs::read_dir("/modules").map_err(|error| format!("no /modules: {error}"))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .try_for_each(|path| sys::load_module(path).map_err(|error| format!("loading {}: {error}", path.display())))
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(drop).map_err(|error| format!("starting a thread for {name}: {error}"))
}

fn ask_to_run_first(priority: i32) {
    if let Err(error) = sys::run_first(priority) {
        complain(format!("no priority: {error}"));
    }
}

/// Whether the host has sent an NMI, by which it tells the guest to act.
fn has_met_an_nmi() -> bool {
    let counts = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    let count = counts.lines().find_map(|line| line.trim_start().strip_prefix("NMI:"));
    count.and_then(|counts| counts.split_whitespace().next()).is_some_and(|count| count != "0")
}

fn beat(workload: &Workload) -> ! {
    let mut pace = Pace::every(workload.beat);
    let mut number = 0;
    let mut act = Act::numbered(workload.act);
    loop {
        pace.next().into_iter().for_each(sleep_until);
        if pace.take(Instant::now()) {
            number += 1;
            say(&Line::Beat(number));
            if let Some(act) = act.take_if(|_| number % LOOKS == 0 && has_met_an_nmi()) {
                sys::command_machine(act.port());
            }
        }
    }
}
