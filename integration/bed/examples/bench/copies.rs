//! The speed of copies: the engine's mirrors and its copies of missing layers, against `qemu-img convert` between the
//! same two places.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use qferry_bed::{DiskSpec, Error, Half, Layer, Machine, Pair, Result, Side, Spec};
use serde_json::{Value, json};

use crate::storage::{nothing_left, speed};
use crate::table::middle;
use crate::{MIB, Ran, run};

/// A disk and what is in it.
pub(crate) const SIZE: u64 = 4096 * MIB;
pub(crate) const DATA: u64 = 1024 * MIB;
/// The limit for a source to run again.
const WAIT: Duration = Duration::from_secs(20);

/// MiB a second.
pub(crate) struct Mirror {
    pub(crate) engine: f64,
    pub(crate) convert: f64,
}

/// The storage phase of one source that migrates again and again, each time to a fresh destination.
pub(crate) fn mirror(qferry: &Path, runs: usize) -> Result<Mirror> {
    let disk = DiskSpec { size: SIZE, backing: SIZE, backing_data: 0, overlay_data: DATA, ..DiskSpec::default() };
    let mut pair = Pair::start(&Spec { disks: vec![disk], ..Spec::quick() })?;
    let (mut engine, mut convert) = (Vec::new(), Vec::new());
    for number in 0..runs {
        for turn in [number % 2, (number + 1) % 2] {
            settle()?;
            let took = if turn == 0 { by_convert(&pair)? } else { by_mirror(qferry, &pair)? };
            let (name, taken) = if turn == 0 { ("convert", &mut convert) } else { ("mirror", &mut engine) };
            println!("{:>3} {name:<20} {:>7.1} MiB/s", number + 1, speed(DATA, took));
            taken.push(speed(DATA, took));
            if number == 0 {
                pair.guest_visible_equal(0)?;
            }
            pair.restart_destination(true)?;
        }
    }
    Ok(Mirror { engine: middle(engine), convert: middle(convert) })
}

fn by_mirror(qferry: &Path, pair: &Pair) -> Result<Duration> {
    let mut command = Command::new(qferry);
    command.args(["migrate", "--json", "--keep-source", "--verify-backing", "off", "--source"]);
    command.arg(pair.source.qmp_path()).arg("--destination").arg(pair.destination.qmp_path());
    let ran = run(command.env("XDG_RUNTIME_DIR", pair.run_dir()).env("XDG_STATE_HOME", pair.run_dir()))?;
    let copied = ran.line("outcome")?["disks"][0]["bytes_copied"].as_u64();
    if copied.is_none_or(|copied| copied < DATA) {
        return Err(Error::new(format!("the mirror copied {copied:?} bytes of {DATA}")));
    }
    let at = |state| at(&ran, |line| line["phase"] == "storage" && line["state"] == state);
    let took = at("end")? - at("begin")?;
    nothing_left(&[&pair.source, &pair.destination], &pair.run_dir())?;
    // No guest may run on either side when the destination is thrown away.
    pair.destination.qmp("stop", &json!({}))?;
    pair.source.qmp("cont", &json!({}))?;
    pair.source.wait_for_status("running", WAIT)?;
    Ok(took)
}

/// The time of the last such event.
fn at(ran: &Ran, wanted: impl Fn(&Value) -> bool) -> Result<Duration> {
    let found = ran.lines().filter(|line| wanted(line)).last().and_then(|line| line["t_ms"].as_u64());
    found.map(Duration::from_millis).ok_or_else(|| Error::new(format!("an event is missing in {}", ran.stdout)))
}

fn by_convert(pair: &Pair) -> Result<Duration> {
    let source = Served::start(&pair.source, &pair.run_dir(), &pair.source.node(0)?, false)?;
    let destination = Served::start(&pair.destination, &pair.run_dir(), &pair.destination.node(0)?, true)?;
    let mut command = Command::new(pair.build(Side::Source).program("qemu-img"));
    // The default of `qemu-img` never flushes, as a mirror does before it is ready.
    command.args(["convert", "-n", "--target-is-zero", "-t", "writeback", "-f", "raw", "-O", "raw"]);
    let took = run(command.args([source.url(), destination.url()]))?.took;
    source.stop()?;
    destination.stop()?;
    nothing_left(&[&pair.source, &pair.destination], &pair.run_dir())?;
    Ok(took)
}

/// A node that can be reached over NBD.
struct Served<'a> {
    machine: &'a Machine,
    socket: PathBuf,
}

impl<'a> Served<'a> {
    fn start(machine: &'a Machine, folder: &Path, node: &str, writable: bool) -> Result<Self> {
        let socket = folder.join(format!("{}.nbd", machine.side()));
        machine.qmp("nbd-server-start", &json!({"addr": {"type": "unix", "data": {"path": socket}}}))?;
        let export = json!({"type": "nbd", "id": "bench", "node-name": node, "name": "bench", "writable": writable});
        machine.qmp("block-export-add", &export)?;
        Ok(Self { machine, socket })
    }

    fn url(&self) -> String {
        format!("nbd+unix:///bench?socket={}", self.socket.display())
    }

    fn stop(self) -> Result<()> {
        self.machine.qmp("nbd-server-stop", &json!({}))?;
        // QEMU removes the socket as a rule.
        drop(fs::remove_file(&self.socket));
        Ok(())
    }
}

/// A missing layer that was brought.
pub(crate) struct Population {
    pub(crate) format: &'static str,
    pub(crate) engine: Brought,
    /// MiB a second.
    pub(crate) convert: f64,
}

pub(crate) struct Brought {
    /// MiB a second, from the beginning of the copy to a file that is proved and durable.
    pub(crate) copy: f64,
    /// The same of the whole command.
    pub(crate) command: f64,
    /// Milliseconds.
    pub(crate) verify: f64,
}

/// A missing raw layer, and a missing qcow2 layer.
pub(crate) fn population(qferry: &Path, runs: usize) -> Result<Vec<Population>> {
    [Layer::raw(SIZE, DATA), Layer::qcow2(SIZE, DATA)].map(|layer| populate(qferry, layer, runs)).into_iter().collect()
}

fn populate(qferry: &Path, layer: Layer, runs: usize) -> Result<Population> {
    let format = layer.format.name();
    let disk = DiskSpec { size: SIZE, overlay_data: MIB, ..DiskSpec::chain([layer]) };
    let half = Half::start(&Spec { disks: vec![disk], ..Spec::quick() })?;
    let mut engine: [Vec<f64>; 3] = Default::default();
    let mut convert = Vec::new();
    for number in 0..runs {
        for turn in [number % 2, (number + 1) % 2] {
            // A copy is twice as fast if a copy of the same kind came before, which left the host's memory ready.
            layer_by_convert(&half, format)?;
            clear(&half.destination_dir())?;
            settle()?;
            if turn == 0 {
                let took = layer_by_convert(&half, format)?;
                println!("{:>3} convert of {format:<10} {:>7.1} MiB/s", number + 1, speed(DATA, took));
                convert.push(speed(DATA, took));
            } else {
                let [copy, command, verify] = layer_by_engine(qferry, &half)?;
                print!("{:>3} populate {format:<11} {copy:>7.1} MiB/s, whole command {command:>7.1}", number + 1);
                println!(", verified {verify:>6.1} ms after the last byte");
                engine.iter_mut().zip([copy, command, verify]).for_each(|(taken, figure)| taken.push(figure));
            }
            clear(&half.destination_dir())?;
        }
    }
    let [copy, command, verify] = engine.map(middle);
    Ok(Population { format, engine: Brought { copy, command, verify }, convert: middle(convert) })
}

fn layer_by_engine(qferry: &Path, half: &Half) -> Result<[f64; 3]> {
    let mut command = Command::new(qferry);
    command.args(["prepare", "--json", "--populate", "missing", "--apply", "--source"]).arg(half.source.qmp_path());
    command.arg("--qemu-img").arg(half.build(Side::Source).program("qemu-img"));
    command.arg("--map").arg(format!("{}={}", half.source.folder().display(), half.destination_dir().display()));
    let ran = run(command.env("XDG_RUNTIME_DIR", half.run_dir()).env("XDG_STATE_HOME", half.run_dir()))?;
    nothing_left(&[&half.source], &half.run_dir())?;
    let made = entries(&half.destination_dir())?;
    if made.len() != 2 {
        return Err(Error::new(format!("a layer and an overlay were to be made, not {made:?}")));
    }
    let step = |state| at(&ran, |line| line["step"] == "copy" && line["state"] == state);
    let copied = at(&ran, |line| line["type"] == "image" && line["doing"] == "copy")?;
    let verified = at(&ran, |line| line["type"] == "image" && line["doing"] == "verify")?;
    let took = step("end")? - step("begin")?;
    Ok([speed(DATA, took), speed(DATA, ran.took), crate::millis(verified - copied)])
}

fn layer_by_convert(half: &Half, format: &str) -> Result<Duration> {
    let layer = half.source.disks().first().and_then(|disk| disk.backing()).cloned().unwrap_or_default();
    let nodes = half.source.qmp("query-named-block-nodes", &json!({"flat": true}))?;
    let is_it = |node: &&Value| node["drv"] == format && node["file"].as_str().map(Path::new) == Some(&layer);
    let node = nodes.as_array().into_iter().flatten().find(is_it).and_then(|node| node["node-name"].as_str());
    let node = node.ok_or_else(|| Error::new(format!("no node of {}", layer.display())))?;
    let target = half.destination_dir().join("converted");

    let served = Served::start(&half.source, &half.run_dir(), node, false)?;
    let mut command = Command::new(half.build(Side::Source).program("qemu-img"));
    command.args(["convert", "-f", "raw", "-O", format, &served.url()]).arg(&target);
    let began = Instant::now();
    run(&mut command)?;
    let synced = File::open(&target).and_then(|file| file.sync_all());
    synced.map_err(|error| Error::new(format!("syncing {}: {error}", target.display())))?;
    let took = began.elapsed();
    served.stop()?;
    nothing_left(&[&half.source], &half.run_dir())?;
    Ok(took)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let said = |error| Error::new(format!("{}: {error}", folder.display()));
    let found: std::io::Result<Vec<PathBuf>> =
        fs::read_dir(folder).map_err(said)?.map(|entry| entry.map(|entry| entry.path())).collect();
    found.map_err(said)
}

fn clear(folder: &Path) -> Result<()> {
    entries(folder)?.iter().try_for_each(|entry| {
        fs::remove_file(entry).map_err(|error| Error::new(format!("removing {}: {error}", entry.display())))
    })
}

/// Waits until the disk has finished the work of the former run.
pub(crate) fn settle() -> Result<()> {
    run(&mut Command::new("sync")).map(drop)
}
