//! The steps before a migration that read contents: the proof of backing files. The copies, whose
//! figures are in [`crate::copies`], are measured as well.

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use qferry_bed::{DiskSpec, Error, Layer, Machine, Pair, Result, Spec};
use serde_json::json;

use crate::copies::{self, DATA, SIZE};
use crate::table::{Required, Table, middle};
use crate::{MIB, Ran, mib, millis, run, runs};

const GIB: u64 = 1024 * MIB;
/// The space that this part takes at most in the folder for temporary files.
const ROOM: u64 = 8 * GIB;
/// The size of a base that a sample is taken of, and in how many pieces its data is: a map is as long as there are
/// pieces.
const BASE: u64 = 10 * GIB;
const PIECES: u64 = 8192;

/// Measures, and says whether every requirement was met.
pub(crate) fn bench(qferry: &Path) -> Result<bool> {
    let runs = runs(4);
    println!("storage: {runs} runs of each, alternating where there is a yardstick\n");
    let room = room()?;
    if room < ROOM {
        let folder = env::temp_dir();
        return Err(Error::new(format!("{} has {} MiB of 8 GiB: set TMPDIR", folder.display(), room / MIB)));
    }
    let sample = |layer| proof(qferry, "sample", Layer { pieces: PIECES, ..layer }, runs);
    let samples = [sample(Layer::qcow2(BASE, DATA))?, sample(Layer::raw(BASE, DATA))?];
    let full = proof(qferry, "full", Layer::qcow2(SIZE, DATA), runs.min(3))?;
    let mirror = copies::mirror(qferry, runs)?;
    let layers = copies::population(qferry, runs)?;

    let mut table = Table::begin("engine");
    let second = Some(Required::AtMost(1.0));
    for (format, sample) in ["qcow2", "raw"].iter().zip(samples) {
        table.row(&format!("sample of 10 GiB {format}, against 1 s"), "ms", sample, Some(1000.0), second);
    }
    table.row("full, of each side", "MiB/s", mib(DATA) * 1000.0 / full, None, None);
    let least = Some(Required::AtLeast(0.95));
    table.row("mirror, against convert -n", "MiB/s", mirror.engine, Some(mirror.convert), least);
    for layer in &layers {
        let (engine, convert) = (&layer.engine, Some(layer.convert));
        let name = format!("populate {}, against convert", layer.format);
        table.row(&name, "MiB/s", engine.copy, convert, least);
        table.row("  the whole command", "MiB/s", engine.command, convert, None);
        table.row("  from the last byte to the proof", "ms", engine.verify, None, None);
    }
    println!(
        "\nmedians; copies end on stable storage on both sides; populate reads back what it wrote, convert does not"
    );
    Ok(table.met)
}

fn room() -> Result<u64> {
    let folder = env::temp_dir();
    let found = rustix::fs::statvfs(&folder);
    let found = found.map_err(|error| Error::new(format!("the room in {}: {error}", folder.display())))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// The milliseconds of a whole check that proves such a base.
fn proof(qferry: &Path, how: &str, layer: Layer, runs: usize) -> Result<f64> {
    let format = layer.format.name();
    let disk = DiskSpec { size: layer.size, overlay_data: MIB, ..DiskSpec::chain([layer]) };
    let pair = Pair::start(&Spec { disks: vec![disk], ..Spec::quick() })?;
    copies::settle()?;
    let mut taken = Vec::new();
    for number in 0..runs {
        let took = millis(proved(qferry, &pair, how)?.took);
        println!("{:>3} {how} of a {format} base {took:>7.1} ms", number + 1);
        taken.push(took);
    }
    Ok(middle(taken))
}

/// A check that is known to have read something.
fn proved(qferry: &Path, pair: &Pair, how: &str) -> Result<Ran> {
    let ran = check(qferry, pair, how, &[])?;
    match ran.stderr.contains("verified:") {
        true => Ok(ran),
        false => Err(Error::new(format!("nothing was verified: {}", ran.stderr))),
    }
}

pub(crate) fn check(qferry: &Path, pair: &Pair, how: &str, more: &[&str]) -> Result<Ran> {
    let mut command = Command::new(qferry);
    command.args(["check", "--verify-backing", how, "--source"]).arg(pair.source.qmp_path());
    command.arg("--destination").arg(pair.destination.qmp_path()).args(more);
    let ran = run(command.env("XDG_RUNTIME_DIR", pair.run_dir()).env("XDG_STATE_HOME", pair.run_dir()))?;
    nothing_left(&[&pair.source, &pair.destination], &pair.run_dir())?;
    Ok(ran)
}

pub(crate) fn speed(bytes: u64, took: Duration) -> f64 {
    mib(bytes) / took.as_secs_f64()
}

/// An error if anything is left in the QEMUs or in the run folder, for the next figure would be of something else.
pub(crate) fn nothing_left(machines: &[&Machine], run: &Path) -> Result<()> {
    for machine in machines {
        let mut left = machine.leftovers()?;
        // QEMU removes an export some time after the command.
        for _ in 0..20 {
            if left.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            machine.qmp("query-status", &json!({}))?;
            left = machine.leftovers()?;
        }
        if !left.is_empty() {
            return Err(Error::new(format!("left in the {}: {left:?}", machine.side())));
        }
    }
    let mut folders = vec![run.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => folders.push(entry.path()),
                false => return Err(Error::new(format!("{} is left", entry.path().display()))),
            }
        }
    }
    Ok(())
}
