//! The promises of docs/handover.md and README.md: each names tests that exist, and a test of a guarantee names its
//! promise.

use crate::files;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// A file of the repository.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// The words between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the table below a heading, as their cells.
fn rows<'a>(document: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let below = document.split_once(heading).unwrap_or_else(|| panic!("no heading {heading:?}")).1;
    let table = below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    table.skip(2).map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// The text of the test file that a document names, below `integration/` or in `src/`.
fn file_of(path: &str) -> Option<String> {
    if path.starts_with("src/") { read(path) } else { read(&format!("integration/{path}")) }
}

/// The promises that a text says it holds.
fn marks(text: &str) -> BTreeSet<String> {
    let lines =
        text.lines().filter_map(|line| line.trim_start().trim_start_matches(['/', '!', ' ']).strip_prefix("Promise: "));
    lines.flat_map(|names| names.trim_end_matches('.').split(", ")).map(str::to_owned).collect()
}

/// What is wrong with the naming of a test: `path`, or `path: test`.
fn problem(named: &str) -> Option<String> {
    let (path, test) = named.split_once(": ").map_or((named, None), |(path, test)| (path, Some(test)));
    match (file_of(path), test) {
        (None, _) => Some(format!("{path} does not exist")),
        (Some(text), Some(test)) if !text.contains(&format!("fn {test}")) => Some(format!("{path} has no {test}")),
        _ => None,
    }
}

#[test]
fn a_guarantee_and_its_tests_name_each_other() {
    let document = read("docs/handover.md").unwrap();
    let mut promised: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows(&document, "## Guaranteed") {
        let [promise, what, whom, tests] = row[..] else { panic!("not four cells: {row:?}") };
        assert!(!what.is_empty() && !whom.is_empty(), "{row:?}");
        let promise = promise.trim_matches('`').to_owned();
        let tests: Vec<&str> = quoted(tests).collect();
        assert!(!tests.is_empty(), "{promise} has no test");
        for named in tests {
            assert_eq!(problem(named), None, "{promise}");
            let path = named.split(": ").next().unwrap_or(named);
            promised.entry(path.to_owned()).or_default().insert(promise.clone());
        }
    }
    let mut marked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (folder, prefix) in [("integration", ""), ("src", "src/")] {
        for (path, text) in files(folder) {
            let marks = marks(&text);
            if !marks.is_empty() && path != "structure/promises.rs" {
                marked.insert(format!("{prefix}{path}"), marks);
            }
        }
    }
    assert_eq!(marked, promised, "left: what tests say; right: what docs/handover.md says");
}

#[test]
fn a_promise_of_the_readme_names_tests_that_exist() {
    let document = read("README.md").unwrap();
    let rows = rows(&document, "## What is promised, and the test that holds it");
    assert!(rows.len() > 30, "{rows:?}");
    let mut problems = Vec::new();
    for row in &rows {
        let mut path = "";
        for named in quoted(row[1]) {
            if named.contains('/') && named.ends_with(".rs") {
                path = named;
                problems.extend(problem(named));
            } else if named.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
                && named.contains('_')
            {
                problems.extend(problem(&format!("{path}: {named}")));
            }
        }
    }
    assert_eq!(problems, Vec::<String>::new());
}

#[test]
fn a_name_that_is_wrong_is_found() {
    assert!(problem("live/no_such_file.rs").is_some() && problem("live/strangers.rs: no_such_test").is_some());
    assert_eq!(problem("live/strangers.rs: a_recovery_touches_no_other_qemu"), None);
    let text = "//! Promise: one, two.\n    /// Promise: three.\n// A Promise: four.\n";
    assert_eq!(marks(text), ["one", "two", "three"].map(str::to_owned).into());
}
