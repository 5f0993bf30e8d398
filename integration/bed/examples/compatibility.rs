//! Moves a booted guest between the supported versions in every order, and tells what became of it as a table in
//! Markdown: `compatibility QFERRY`, with the path of the command; see `scripts/compatibility`.
//!
//! The guest has drivers for a virtio-blk disk, a virtio-scsi controller with an empty drive, and a virtio-net card,
//! and writes all the time. Once it has moved, the guest verifies all of its memory and all that it wrote, and answers
//! at its card. A refused move is tried again with the refusal forced. What does not move with all devices is tried
//! with fewer.

use std::env;
use std::ffi::OsStr;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use qferry_bed::{Deviation, Error, Guest, Pair, Result, Side, Spec, Workload};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(60);
/// The versions, each with the newest machine types that it has in common with all later ones.
const VERSIONS: [(&str, &str); 3] = [("7.2", "7.2"), ("10.0.13", "10.0"), ("11.1", "11.1")];
const BOARDS: [&str; 2] = ["pc-i440fx", "pc-q35"];
/// A guest of 7.2 may lose a timer while it boots under TCG, and hang.
const BOOTS: usize = 3;

/// The devices of a machine.
#[derive(Clone, Copy)]
struct Devices {
    name: &'static str,
    has_scsi: bool,
    has_net: bool,
    /// Whether the devices of the destination have room for rings of 1024 entries.
    has_room: bool,
}

const ALL: Devices = Devices { name: "blk, scsi, net", has_scsi: true, has_net: true, has_room: false };
/// What is tried where all devices together do not move.
const FEWER: [Devices; 4] = [
    Devices { name: "blk", has_scsi: false, has_net: false, has_room: false },
    Devices { name: "blk with `queue-size=1024`", has_scsi: false, has_net: false, has_room: true },
    Devices {
        name: "blk with `queue-size=1024`, scsi with `virtqueue_size=1024`",
        has_scsi: true,
        has_net: false,
        has_room: true,
    },
    Devices { name: "blk with `queue-size=1024`, net", has_scsi: false, has_net: true, has_room: true },
];

/// One order on one board.
struct Order {
    source: &'static str,
    destination: &'static str,
    /// The machine type of both sides.
    machine: String,
}

/// What became of a move.
struct Told {
    /// The engine's word, with its reason.
    outcome: String,
    /// The code of a refusal.
    refused: Option<String>,
    has_moved: bool,
}

fn main() -> ExitCode {
    let Some(qferry) = env::args_os().nth(1) else {
        eprintln!("usage: compatibility QFERRY");
        return ExitCode::from(2);
    };
    println!("| from | to | machine | devices | outcome | by force |");
    println!("|---|---|---|---|---|---|");
    let mut is_well = true;
    for order in orders() {
        if row(&qferry, &order, ALL, &mut is_well) {
            continue;
        }
        for devices in FEWER {
            row(&qferry, &order, devices, &mut is_well);
        }
    }
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every order on every board.
fn orders() -> Vec<Order> {
    let mut orders = Vec::new();
    for board in BOARDS {
        for (from, (source, _)) in VERSIONS.into_iter().enumerate() {
            for (to, (destination, _)) in VERSIONS.into_iter().enumerate().filter(|(to, _)| *to != from) {
                let machine = format!("{board}-{}", VERSIONS[from.min(to)].1);
                orders.push(Order { source, destination, machine });
            }
        }
    }
    orders
}

/// Prints the row of an order with some devices. Whether the guest moved, by force or without.
fn row(qferry: &OsStr, order: &Order, devices: Devices, is_well: &mut bool) -> bool {
    let (cells, has_moved) = attempt(qferry, order, devices).unwrap_or_else(|error| {
        *is_well = false;
        ([format!("WRONG: {}", error.to_string().replace(['\n', '|'], " ")), String::new()], true)
    });
    let Order { source, destination, machine } = order;
    let [plain, forced] = cells;
    println!("| {source} | {destination} | `{machine}` | {} | {plain} | {forced} |", devices.name);
    has_moved
}

/// Moves a guest, if need be with every refusal forced. The two cells of the outcomes, and whether the guest moved.
fn attempt(qferry: &OsStr, order: &Order, devices: Devices) -> Result<([String; 2], bool)> {
    let pair = start(order, devices)?;
    let mut plain = None;
    let mut forced: Vec<String> = Vec::new();
    loop {
        let told = migrate(qferry, &pair, &forced)?;
        let guest = judge(&pair, devices, told.has_moved)?;
        match told.refused.filter(|code| !forced.contains(code)) {
            Some(code) => {
                plain.get_or_insert(told.outcome);
                forced.push(code);
            }
            None => {
                let outcome = format!("{}, {guest}", told.outcome);
                let codes: Vec<String> = forced.iter().map(|code| format!("`{code}`")).collect();
                let cells = match plain {
                    None => [outcome, String::new()],
                    Some(plain) => [plain, format!("{}: {outcome}", codes.join(", "))],
                };
                return Ok((cells, told.has_moved));
            }
        }
    }
}

fn start(order: &Order, devices: Devices) -> Result<Pair> {
    let scsi =
        if devices.has_room { "virtio-scsi-pci,id=scsi0,virtqueue_size=1024" } else { "virtio-scsi-pci,id=scsi0" };
    let mut extra = vec!["-machine", &order.machine, "-cpu", "qemu64"];
    if devices.has_scsi {
        extra.extend(["-device", scsi, "-device", "scsi-cd,bus=scsi0.0,id=cd0"]);
    }
    let spec = Spec {
        version: order.source.to_owned(),
        destination_version: Some(order.destination.to_owned()),
        workload: Workload { ram: 8 << 20, dirty: 4 << 20, write: 50, read: 100, ..Workload::default() },
        more_drivers: true,
        network: devices.has_net,
        // 7.2 under TCG loses pages that a guest dirties while RAM is sent, with any engine and to any version.
        guest: if order.source == "7.2" { Guest::Paused } else { Guest::Running },
        destination: if devices.has_room { vec![Deviation::LargerRings { disk: 0 }] } else { Vec::new() },
        extra: extra.into_iter().map(str::to_owned).collect(),
        ..Spec::default()
    };
    let mut started = Pair::start(&spec);
    for _ in 1..BOOTS {
        if started.is_ok() {
            break;
        }
        started = Pair::start(&spec);
    }
    started
}

fn migrate(qferry: &OsStr, pair: &Pair, force: &[String]) -> Result<Told> {
    let mut command = Command::new(qferry);
    command.arg("migrate").env("XDG_RUNTIME_DIR", pair.run_dir()).env("XDG_STATE_HOME", pair.run_dir());
    command.arg("--source").arg(pair.source.qmp_path()).arg("--destination").arg(pair.destination.qmp_path());
    command.args(["--json", "--downtime", "3s", "--switchover-timeout", "40s"]);
    command.args(force.iter().flat_map(|code| ["--force", code]));
    let output = command.stdin(Stdio::null()).output().map_err(|error| Error::new(format!("starting it: {error}")))?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<Value> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let Some(outcome) = lines.last().filter(|line| line["type"] == "outcome") else {
        return Err(Error::new(format!("no outcome: {}", String::from_utf8_lossy(&output.stderr))));
    };
    let ending = outcome["outcome"].as_str().unwrap_or_default();
    let code = outcome["reason"]["code"].as_str();
    let reason = code.map_or_else(String::new, |code| format!(" (`{code}`)"));
    let refused = code.filter(|_| ending == "refused").map(str::to_owned);
    Ok(Told { outcome: format!("{ending}{reason}"), refused, has_moved: ending == "moved" })
}

/// Looks at the guest, which must be on one side alone and whole there.
fn judge(pair: &Pair, devices: Devices, has_moved: bool) -> Result<&'static str> {
    let (side, other) = if has_moved { (Side::Destination, Side::Source) } else { (Side::Source, Side::Destination) };
    let was_paused = pair.spec().guest == Guest::Paused;
    let (status, wanted) = (pair.machine(side).status()?, if was_paused { "paused" } else { "running" });
    // An engine that has moved a guest, or gone back, has ended the other QEMU; a refused one waits.
    let is_alone = !pair.machine(other).alive()? || pair.machine(other).status()? != "running";
    if status != wanted || !is_alone {
        return Err(Error::new(format!("the guest is {status} on the {side}, alone: {is_alone}")));
    }
    if was_paused && !has_moved {
        return Ok("still paused there");
    }
    if was_paused {
        pair.machine(side).qmp("cont", &json!({}))?;
    }
    pair.wait_for_beats(side, 20, WAIT)?;
    if devices.has_net {
        pair.machine(side).answers_at_its_card(WAIT)?;
    }
    if !has_moved {
        return Ok("still whole on the source");
    }
    pair.wait_until_verified(WAIT)?;
    pair.machine(side).finish()?;
    if let Some(error) = pair.errors().first() {
        return Err(Error::new(error.clone()));
    }
    pair.check_disks(side)?;
    Ok("whole")
}
