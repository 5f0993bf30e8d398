//! Parts that are one `qferry sweep`: its run, and the trials that it leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use qferry_bed::{Build, Error, Result, Spec, target_dir};
use serde_json::Value;

/// A trial of a sweep.
pub(crate) struct Trial {
    pub(crate) number: u64,
    /// The values of its factors, in the order of the spec.
    pub(crate) levels: Vec<String>,
    /// Whether the guest moved.
    pub(crate) moved: bool,
    /// Whether nothing speaks against the trial's figures.
    pub(crate) valid: bool,
    /// What was measured, by name.
    pub(crate) figures: BTreeMap<String, f64>,
}

/// Runs the sweep of a spec into a folder under target/, where an earlier one of the same spec goes on that was not
/// finished. `trials` is how many trials a finished one has.
pub(crate) fn run(qferry: &Path, name: &str, spec: &str, trials: usize) -> Result<PathBuf> {
    let folder = target_dir().join(format!("bench-{name}"));
    let resumes = goes_on(&folder, spec, trials);
    if !resumes && folder.exists() {
        fs::remove_dir_all(&folder).map_err(of(&folder))?;
    }
    let file = target_dir().join(format!("bench-{name}.toml"));
    fs::write(&file, spec).map_err(of(&file))?;
    let mut sweep = Command::new(qferry);
    sweep.arg("sweep").arg(&file).arg("--out").arg(&folder).args(resumes.then_some("--resume"));
    let ended = sweep.status().map_err(of(qferry))?;
    match ended.success() {
        true => Ok(folder),
        false => Err(Error::new(format!("qferry sweep: {ended}"))),
    }
}

/// A spec with the number of repeats and the paths of QEMU's programs in place of @REPEATS@, @QEMU@ and @QEMU_IMG@.
pub(crate) fn filled_in(spec: &str, repeats: usize) -> Result<String> {
    Ok(spec
        .replace("@REPEATS@", &repeats.to_string())
        .replace("@QEMU@", &program("qemu-system-x86_64")?)
        .replace("@QEMU_IMG@", &program("qemu-img")?))
}

/// The path of one of QEMU's programs.
pub(crate) fn program(name: &str) -> Result<String> {
    let path = Build::locate(&Spec::default().version)?.program(name);
    path.canonicalize().map(|path| path.display().to_string()).map_err(of(&path))
}

/// The trials of a sweep's folder.
pub(crate) fn trials(folder: &Path) -> Result<Vec<Trial>> {
    let file = folder.join("trials.jsonl");
    let text = fs::read_to_string(&file).map_err(of(&file))?;
    let read = |line: &str| {
        let record: Value = serde_json::from_str(line).ok()?;
        let levels = record["levels"].as_array()?.iter();
        let figures = record["figures"].as_object()?.iter();
        Some(Trial {
            number: record["trial"].as_u64()?,
            levels: levels.map(|level| level.as_str().unwrap_or_default().to_owned()).collect(),
            moved: record["outcome"] == "moved",
            valid: record["invalid"].as_array().is_some_and(Vec::is_empty),
            figures: figures.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect(),
        })
    };
    Ok(text.lines().filter_map(read).collect())
}

/// An error with the path that it is about.
pub(crate) fn of(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.display().to_string();
    move |error| Error::new(format!("{path}: {error}"))
}

/// Whether a folder has a part of this sweep.
fn goes_on(folder: &Path, spec: &str, trials: usize) -> bool {
    let kept = fs::read_to_string(folder.join("trials.jsonl")).unwrap_or_default().lines().count();
    let is_same = fs::read_to_string(folder.join("spec.toml")).is_ok_and(|before| before == spec);
    is_same && (1..trials).contains(&kept)
}
