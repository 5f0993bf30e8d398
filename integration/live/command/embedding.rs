//! `examples/migrate.rs`, as an embedder would run it.

use crate::support::{WAIT, busy, judge_disks, spec, start};
use qferry_bed::Side;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The path of the example, beside the command. Cargo builds examples before it runs all tests, but not for a single
/// one.
fn example() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_qferry")).parent().unwrap();
    let path = folder.join("examples/migrate");
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    path
}

#[test]
fn the_example_moves_a_guest() {
    let pair = start(&spec("10.0.13", busy()));
    let mut command = Command::new(example());
    command
        .arg(pair.source.qmp_path())
        .arg(pair.destination.qmp_path())
        .env("XDG_RUNTIME_DIR", pair.run_dir())
        .env("XDG_STATE_HOME", pair.run_dir());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for word in ["storage: Begin", "disk disk0: ", "ready: true", "memory: ", "cleanup: End", "moved, after a blackout"]
    {
        assert!(text.contains(word), "no '{word}' in {text}");
    }
    pair.source.wait_for_end(WAIT).unwrap();
    assert_eq!(pair.runners().unwrap(), [Side::Destination]);
    pair.wait_for_beats(Side::Destination, 20, WAIT).unwrap();
    judge_disks(&pair, Side::Destination);
}
