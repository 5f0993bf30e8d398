//! `qferry sweep --tune`: a short search, a kill in its midst, and a migration with the policy that it found.

use super::{PATIENCE, all_end, spec, sweep, text};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

const SEARCH: [&str; 6] = ["spec.toml", "--tune", "--trials", "11", "--out", "tuned"];

fn trials(folder: &Path, sweep: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("tuned").join(sweep).join("trials.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn a_search_goes_on_after_a_kill_and_its_policy_moves_a_guest() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("run")).unwrap();
    let spec = spec().replace("before = \"400ms\"\nafter = \"600ms\"", "before = \"200ms\"\nafter = \"200ms\"");
    let (spec, _factor) = spec.split_once("[[factor]]").unwrap();
    let spec = spec.replace("repeats = 2", "repeats = 1");
    fs::write(folder.join("spec.toml"), format!("{spec}[migrate]\ndowntime = \"8s\"\n")).unwrap();

    let mut first = sweep(folder, &SEARCH).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while trials(folder, "round-1").is_empty() {
        assert!(began.elapsed() < PATIENCE && first.try_wait().unwrap().is_none(), "no trial of the first round ends");
        sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&first), Signal::KILL).unwrap();
    first.wait().unwrap();
    all_end(folder);
    let kept = trials(folder, "round-1");
    let reference = fs::read(folder.join("tuned/reference/trials.jsonl")).unwrap();
    assert!((1..4).contains(&kept.len()), "{kept:?}");
    assert!(!folder.join("tuned/policy.toml").exists(), "nothing is found yet");

    let rest = sweep(folder, &SEARCH).args(["--resume", "--json"]).output().unwrap();
    assert!(rest.status.success(), "{}", text(&rest.stderr));
    all_end(folder);
    assert_eq!(fs::read(folder.join("tuned/reference/trials.jsonl")).unwrap(), reference, "what was kept stays");
    assert_eq!(trials(folder, "round-1")[..kept.len()], kept);
    let counts = ["reference", "round-1", "round-2"].map(|sweep| trials(folder, sweep).len());
    assert_eq!(
        counts,
        [3, 4, 4],
        "three candidates once, and then the best twice, each beside the policy as it stands"
    );

    let table = fs::read_to_string(folder.join("tuned/candidates.csv")).unwrap();
    is_in_the_models_order(&table);
    let first_round = fs::read_to_string(folder.join("tuned/round-1/spec.toml")).unwrap();
    for row in table.lines().skip(1).take(3) {
        let label = row.split(',').next().unwrap();
        assert!(first_round.contains(&format!("\"{label}\"")), "{label} is among the best, and is tried");
    }

    let lines: Vec<Value> = text(&rest.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found = lines.iter().find(|line| line["type"] == "tuned").unwrap();
    assert_eq!(found["goal"], "blackout<=8000ms");
    let policy = fs::read_to_string(folder.join("tuned/policy.toml")).unwrap();
    assert!(policy.starts_with("# blackout<=8000ms: ") && policy.contains("name = \"tuned\"\n"), "{policy}");

    // The file is what `qferry migrate --policy` is given in a sweep of its own.
    fs::write(
        folder.join("after.toml"),
        format!("{spec}[migrate]\ndowntime = \"8s\"\npolicy = \"tuned/policy.toml\"\n"),
    )
    .unwrap();
    let moved = sweep(folder, &["after.toml", "--out", "after", "--goal", "blackout<=8s"]).output().unwrap();
    assert!(moved.status.success(), "{}", text(&moved.stderr));
}

/// Those that meet the goal by the model come first, and of these the fastest, in steps of 2 per cent.
fn is_in_the_models_order(table: &str) {
    let mut rows = table.lines();
    assert!(rows.next().unwrap().starts_with("label,total_ms,blackout_ms,"), "{table}");
    let foreseen: Vec<(bool, f64)> = rows
        .filter_map(|row| {
            let mut cells = row.split(',').skip(1).map(|cell| cell.parse::<f64>().ok());
            let (total, blackout) = (cells.next()??, cells.next()??);
            Some((blackout > 8000.0, total))
        })
        .collect();
    assert!(foreseen.len() >= 3, "as many as are tried at first: {table}");
    for pair in foreseen.windows(2) {
        let (one, other) = (pair[0], pair[1]);
        assert!(
            (!one.0 && other.0) || (one.0 == other.0 && other.1 > one.1 * 0.975),
            "{one:?} before {other:?}:\n{table}"
        );
    }
}
