//! Holds the house in shape: which room may use which, which files are pure, and who may send `cont`.

#![cfg(test)] // tells clippy that this is all test, helpers too

mod inside;
mod lines;
mod modules;
mod names;
mod not_yet;
mod promises;
mod reader;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const LEAVES: [&str; 5] = ["quantity", "run_id", "progress", "codes", "trust"];
const WIRE: [&str; 3] = ["qmp", "endpoint", "nbd"];

/// What each room may use, besides itself and the leaves.
fn allowed(room: &str) -> Vec<&'static str> {
    match room {
        "quantity" | "run_id" | "codes" | "trust" | "endpoint" | "qmp" | "nbd" | "journal" => vec![],
        "progress" => vec!["quantity", "codes"],
        "recording" => vec!["qmp", "qemu"],
        "convergence" => vec!["quantity"],
        "qemu" => WIRE.to_vec(),
        "storage" | "memory" | "handover" => [&WIRE[..], &["qemu"]].concat(),
        "preflight" => [&WIRE[..], &["qemu", "storage", "memory"]].concat(),
        "diagnosis" => [&WIRE[..], &["qemu", "storage", "memory", "recording"]].concat(),
        "migration" => {
            [&WIRE[..], &["qemu", "storage", "memory", "handover", "preflight", "diagnosis", "journal", "convergence"]]
                .concat()
        }
        "prepare" | "experiment" => [&allowed("migration")[..], &["migration"]].concat(),
        "cli" => [&allowed("migration")[..], &["migration", "prepare", "experiment", "recording"]].concat(),
        "main" => vec!["cli"],
        "lib" => vec![],
        other => panic!("a room that the house does not know: {other}"),
    }
}

/// Files that must be pure, and say so.
const PURE: &[&str] = &[
    "cli/shell.rs",
    "codes/failure.rs",
    "codes/finding.rs",
    "codes/found.rs",
    "codes/mod.rs",
    "codes/setting.rs",
    "convergence/bandwidth.rs",
    "convergence/budget.rs",
    "convergence/decide.rs",
    "convergence/decision.rs",
    "convergence/disks.rs",
    "convergence/estimate/disk.rs",
    "convergence/estimate/mod.rs",
    "convergence/estimate/ram.rs",
    "convergence/guest_model.rs",
    "convergence/history.rs",
    "convergence/job.rs",
    "convergence/memory.rs",
    "convergence/policy.rs",
    "convergence/policy_file.rs",
    "convergence/predict.rs",
    "convergence/replay.rs",
    "convergence/sample.rs",
    "convergence/schedule.rs",
    "convergence/schedule_step.rs",
    "convergence/shares.rs",
    "convergence/simulate.rs",
    "convergence/stage.rs",
    "endpoint/address.rs",
    "endpoint/process_stat.rs",
    "experiment/analysis.rs",
    "experiment/censored.rs",
    "experiment/command.rs",
    "experiment/condition.rs",
    "experiment/debug_lines.rs",
    "experiment/grid.rs",
    "experiment/limits.rs",
    "experiment/link.rs",
    "experiment/measures.rs",
    "experiment/metrics.rs",
    "experiment/migrator.rs",
    "experiment/placeholder.rs",
    "experiment/run_changes.rs",
    "experiment/spec.rs",
    "experiment/spec_error.rs",
    "experiment/statistics.rs",
    "experiment/tables.rs",
    "experiment/trial_record.rs",
    "handover/judgement.rs",
    "handover/ownership.rs",
    "handover/verdict.rs",
    "journal/fold.rs",
    "journal/format.rs",
    "memory/sample.rs",
    "memory/tuning.rs",
    "migration/plan.rs",
    "migration/record.rs",
    "migration/work_order.rs",
    "nbd/assembly.rs",
    "nbd/buffers.rs",
    "nbd/extents.rs",
    "nbd/wire.rs",
    "preflight/checks/capabilities.rs",
    "preflight/checks/contents.rs",
    "preflight/checks/cpu.rs",
    "preflight/checks/devices.rs",
    "preflight/checks/disk_places.rs",
    "preflight/checks/disks.rs",
    "preflight/checks/images.rs",
    "preflight/checks/machine.rs",
    "preflight/checks/mod.rs",
    "preflight/checks/network.rs",
    "preflight/checks/sides.rs",
    "preflight/facts/cpu.rs",
    "preflight/facts/devices.rs",
    "preflight/facts/disk_place.rs",
    "preflight/facts/ram_blocks.rs",
    "preflight/measurements.rs",
    "preflight/comparison_plan.rs",
    "prepare/command_line.rs",
    "prepare/requirements.rs",
    "prepare/steps.rs",
    "progress/ledger.rs",
    "qemu/features.rs",
    "qemu/schema.rs",
    "qmp/frame.rs",
    "recording/series.rs",
    "recording/timeline.rs",
    "storage/files/image.rs",
    "storage/mirror/leftover.rs",
    "storage/mirror/start_race.rs",
    "storage/model/bitmaps.rs",
    "storage/model/chain.rs",
    "storage/model/layout.rs",
    "storage/model/path_map.rs",
    "storage/verify/identity.rs",
    "trust/rule.rs",
];

struct Source {
    path: String,
    text: String,
    /// Without comments and without what follows `#[cfg(test)]`.
    code: String,
    docs: String,
}

fn sources() -> Vec<Source> {
    let read = |(path, text): (String, String)| {
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let is_comment = |line: &&str| line.trim_start().starts_with("//");
        let code = product.lines().filter(|line| !is_comment(line)).collect::<Vec<_>>().join("\n");
        let docs = text.lines().filter(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n");
        Source { path, text, code, docs }
    };
    files("src").into_iter().map(read).collect()
}

/// The Rust files below a folder of the repository: the path below that folder, and the text.
fn files(folder: &str) -> Vec<(String, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    walk(&root, &mut found);
    assert!(found.len() > 20, "the walk has lost its way");
    let read =
        |path: &PathBuf| (path.strip_prefix(&root).unwrap().display().to_string(), fs::read_to_string(path).unwrap());
    found.iter().map(read).collect()
}

fn room(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap_or(path)
}

/// The rooms that a piece of code names: `crate::room`, `qferry::room`, and the members of `crate::{room::..., room}`.
fn used(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for root in ["crate::", "qferry::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => rooms.extend(members(group)),
                None => rooms.extend(word(rest)),
            }
        }
    }
    rooms
}

/// The first word of each member of a `{...}` group, whose opening brace is already read.
fn members(group: &str) -> Vec<String> {
    let (mut depth, mut found, mut expecting) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expecting = true,
            c if expecting && !c.is_whitespace() => {
                found.extend(word(&group[at..]));
                expecting = false;
            }
            _ => {}
        }
    }
    found
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

#[test]
fn rooms_use_only_what_lies_below_them() {
    for Source { path, code, .. } in sources() {
        let room = room(&path);
        for used in used(&code) {
            let leaf = LEAVES.contains(&used.as_str()) && !LEAVES.contains(&room);
            let ok = used == room || leaf || allowed(room).contains(&used.as_str());
            assert!(ok, "{path} uses {used}, which {room} may not");
        }
    }
}

#[test]
fn the_reader_of_uses_sees_groups() {
    let code = "use crate::{a::{b, c}, d};\nuse crate::e::f;\nlet x = crate::g::h();";
    assert_eq!(used(code).into_iter().collect::<Vec<_>>(), ["a", "d", "e", "g"]);
}

#[test]
fn pure_files_are_pure() {
    let sources = sources();
    for path in PURE {
        let file = sources.iter().find(|source| source.path == *path).unwrap_or_else(|| panic!("{path} is gone"));
        assert!(file.docs.contains("Pure."), "{path} does not say in its //! that it is pure");
    }
    for Source { path, code, docs, .. } in &sources {
        if docs.contains("Pure.") {
            for word in
                ["async ", "await", "tokio", "tracing", "Instant::now", "SystemTime::now", "std::fs", "std::env"]
            {
                assert!(!code.contains(word), "{path} says that it is pure and has '{word}'");
            }
        }
    }
}

#[test]
fn one_file_hands_the_guest_over() {
    for Source { path, code, .. } in sources() {
        for command in ["qmp::cont", "migrate_continue", "\"cont\"", "\"migrate-continue\"", "cont {}"] {
            // the list of needed commands only names it
            let names_it = path == "qemu/features.rs" && command == "\"migrate-continue\"";
            let found = code.contains(command) && !names_it;
            assert!(!found || path == "handover/exchange.rs", "{path} has {command}");
        }
    }
    let exchange = sources().into_iter().find(|source| source.path == "handover/exchange.rs").unwrap();
    assert_eq!(exchange.code.matches("qmp::cont").count(), 2, "one for each side, each with its proof");
    assert_eq!(exchange.code.matches("qmp::migrate_continue").count(), 1);
}

#[test]
fn a_proof_without_an_answer_is_made_in_one_place() {
    // These two rest on what the engine knows of itself and of the journal, so each use is listed.
    for (constructor, uses) in [("BeforeContinue::begin(", 2), ("DestinationCannotRun::of_journal(", 1)] {
        let elsewhere = sources().into_iter().filter(|source| room(&source.path) != "handover");
        let found: usize = elsewhere.map(|source| source.code.matches(constructor).count()).sum();
        assert_eq!(found, uses, "{constructor}) is called where nothing is known to prove it");
    }
}

#[test]
fn every_module_says_what_it_is() {
    for Source { path, docs, .. } in sources() {
        assert!(!docs.is_empty(), "{path} has no //!");
    }
}

/// An embedder's user has no flags: the library names settings, and the command alone says `--nbd-address`.
#[test]
fn no_text_outside_the_command_names_a_flag() {
    const OF_OTHER_PROGRAMS: [(&str, &str); 6] = [
        ("storage/files/qemu_img.rs", "--output=json"),
        ("diagnosis/way_in/virsh_domain.rs", "--domain"),
        ("diagnosis/way_in/virsh_bridge.rs", "--loop"),
        ("experiment/command.rs", "--"), // the command that a trial runs
        ("experiment/link.rs", "--preserve-credentials"),
        ("experiment/started_qemu.rs", "--pdeathsig"),
    ];
    // a test, which makes a document for the command's users
    const DOCUMENT: &str = "codes/document.rs";
    let library = sources().into_iter().filter(|source| room(&source.path) != "cli" && source.path != DOCUMENT);
    for Source { path, code, .. } in library {
        let starts =
            code.match_indices("--").filter(|(at, _)| code[at + 2..].starts_with(|c: char| c.is_ascii_lowercase()));
        for (at, _) in starts {
            let flag = &code[at..code.len().min(at + 40)];
            let known = OF_OTHER_PROGRAMS.iter().any(|(file, option)| path == *file && flag.starts_with(option));
            assert!(known, "{path} names a flag: {flag}");
        }
    }
}

/// integration/sweep_guest/build writes the file and the sums of what it was made from.
#[test]
fn the_guest_that_ships_is_of_these_sources() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/sweep_guest");
    let sums = "../../src/experiment/guest/sources.sha256";
    let checked = std::process::Command::new("sha256sum")
        .args(["--check", "--quiet", "--strict", sums])
        .current_dir(&folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success(), "{said}: run integration/sweep_guest/build and commit what it writes");
    let listed = fs::read_to_string(folder.join(sums)).unwrap();
    let sources = fs::read_dir(folder.join("src")).unwrap().flatten().map(|entry| entry.file_name());
    for source in sources {
        let name = format!("src/{}", source.to_string_lossy());
        assert!(listed.lines().any(|line| line.ends_with(&name)), "{name} is not among the sources");
    }
}
