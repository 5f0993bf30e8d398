//! The transcripts that migrations leave by default.

use super::{lines, qferry, text};
use crate::support::{self, WAIT, idle, spec, start};
use qferry_bed::Pair;
use serde_json::Value;
use std::{
    fs,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// The runs that `qferry history` lists.
fn history(pair: &Pair) -> Vec<Value> {
    let output = support::qferry(pair, "history").arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    lines(&output)
}

fn told(pair: &Pair) -> String {
    let output = support::qferry(pair, "transcript").arg("last").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_migration_leaves_a_transcript_that_is_listed_and_told() {
    let pair = start(&spec("10.0.13", idle()));
    let moved = qferry(&pair, &["--json"]).output().unwrap();
    assert_eq!(moved.status.code(), Some(0), "{}", text(&moved.stderr));
    let events = lines(&moved);
    let outcome = events.last().unwrap();

    let runs = history(&pair);
    let [run] = &runs[..] else { panic!("{runs:#?}") };
    for field in ["outcome", "total_ms", "blackout_ms"] {
        assert_eq!(run[field], outcome[field], "{field}");
    }
    let journal = events.iter().find_map(|event| event["details"]["journal"].as_str()).unwrap();
    let id = Path::new(journal).file_stem().unwrap().to_str().unwrap();
    assert_eq!((&run["run"], &run["state"]), (&id.into(), &"ended".into()));
    let length = fs::metadata(run["file"].as_str().unwrap()).unwrap().len();
    assert!((1000..1 << 20).contains(&length), "{length}");

    let told_run = told(&pair);
    let blackout = format!("blackout {:.3} ms", outcome["blackout_ms"].as_f64().unwrap());
    let parts =
        [&format!("run {id}"), "connect begins", "migrate-continue (", "* RESUME", "handover ends after", "side  "];
    let mut from = 0;
    for part in parts.into_iter().chain(["from STOP to RESUME on the destination", "+0.000 ms  source", &blackout]) {
        let found = told_run[from..].find(part).unwrap_or_else(|| panic!("{part:?} is not in its place: {told_run}"));
        from += found;
    }
    let actions = events.iter().filter(|event| event["type"] == "action");
    let words = actions.map(|event| (event["action"].as_str().unwrap(), event["because"].as_str().unwrap()));
    let mut from = 0;
    for (action, because) in words {
        // The reason of a text is clipped.
        let begin: String = because.chars().take(300).collect();
        let action = format!("{action}: {begin}");
        from += told_run[from..].find(&action).unwrap_or_else(|| panic!("{action} is not in its place: {told_run}"));
    }

    // The same as a picture, which has the blackout and each decision.
    let plot = pair.run_dir().join("plot.html");
    let drawn = support::qferry(&pair, "transcript").args(["last", "--plot"]).arg(&plot).output().unwrap();
    assert_eq!(drawn.status.code(), Some(0), "{}", text(&drawn.stderr));
    let page = fs::read_to_string(&plot).unwrap();
    let page = roxmltree::Document::parse_with_options(
        &page,
        roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() },
    )
    .unwrap();
    let drawn: Vec<&str> = page.descendants().filter_map(|node| node.text()).collect();
    for words in ["Remaining RAM, MiB", "Mirrors, % copied", "ledger: ram-and-devices", &blackout, "start-memory: "] {
        assert!(drawn.iter().any(|text| text.contains(words)), "{words:?} is not in the plot: {drawn:#?}");
    }

    // The controller decides on the recorded samples as it did; a policy that only observes starts otherwise.
    let replay = |policy: &[&str]| {
        let output = support::qferry(&pair, "replay").args(["last", "--json"]).args(policy).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        lines(&output)
    };
    let own = replay(&[]);
    let end = own.last().unwrap();
    assert_eq!((&end["differences"], &end["ends_early"]), (&0.into(), &Value::Null), "{own:#?}");
    assert!(end["looks"].as_u64() > Some(3) && end["recorded"].as_u64() >= Some(2), "{end}");
    let decisions = |lines: &[Value]| -> Vec<Value> {
        lines.iter().filter(|line| line["type"] == "replay-decision").map(|line| line["recorded"].clone()).collect()
    };
    // The same reasons as in the run itself, and the same with the policy given by its name.
    for decision in decisions(&own) {
        let because = &decision["because"];
        assert!(events.iter().any(|event| event["because"] == *because), "{decision} is not in the run");
    }
    assert!(own.iter().all(|line| line["recorded"]["because"] == line["replayed"]["because"] || line["type"] != "replay-decision"), "{own:#?}");
    assert_eq!(replay(&["--policy", "converge"]), own);
    let other = replay(&["--policy", "observe"]);
    let end = other.last().unwrap();
    assert!(end["differences"].as_u64() >= Some(1) && end["first_difference"]["t_ms"].is_u64(), "{other:#?}");
    assert_eq!(decisions(&other)[0], decisions(&own)[0]);

    // A run whose process was killed has no end.
    let sockets = ["s", "d"].map(|name| pair.run_dir().join(name));
    let silent = sockets.each_ref().map(|socket| UnixListener::bind(socket).unwrap());
    let mut command = support::qferry(&pair, "migrate");
    command.arg("--source").arg(&sockets[0]).arg("--destination").arg(&sockets[1]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while history(&pair)[0]["state"] != "running" {
        assert!(began.elapsed() < WAIT && child.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let runs = history(&pair);
    assert_eq!((runs.len(), &runs[0]["state"], &runs[1]["run"]), (2, &"no-end".into(), &id.into()), "{runs:#?}");
    assert!(told(&pair).contains("no end: the last of"), "{}", told(&pair));
    drop(silent);
}

#[test]
fn no_transcript_is_kept_on_request_and_none_that_cannot_be_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
        command.args(["migrate", "--json", "--source", "/nowhere/a", "--destination", "/nowhere/b"]).args(more);
        let output = command.env("XDG_STATE_HOME", folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        output
    };
    let transcripts = folder.path().join("qferry/transcripts");
    refused(&["--no-transcript"]);
    refused(&["--transcript", folder.path().join("mine").to_str().unwrap()]);
    assert!(!transcripts.exists() && folder.path().join("mine").exists());
    refused(&[]);
    assert_eq!(fs::read_dir(&transcripts).unwrap().count(), 1);

    fs::remove_dir_all(&transcripts).unwrap();
    fs::write(&transcripts, "in the way").unwrap();
    let output = refused(&[]);
    let first = &lines(&output)[0];
    assert_eq!((&first["type"], &first["code"]), (&"warning".into(), &"no-transcript".into()));
    assert!(text(&output.stderr).contains("no transcript of this run is kept"), "{}", text(&output.stderr));
    assert_eq!(lines(&output).last().unwrap()["outcome"], "refused");
}
