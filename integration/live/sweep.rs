//! `qferry sweep`: real trials with the guest that ships with qferry, a kill in their midst, and what is kept.

mod browser;
mod sealed;
mod tuned;

use super::command::text;
use browser::Browser;
use qferry_bed::Build;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Everything takes far less; a busy host may give a guest a tenth of its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// A small sweep, whose budgets a guest with a tenth of its time keeps as well.
fn spec() -> String {
    let build = Build::locate("10.0.13").expect("scripts/setup has unpacked it");
    format!(
        "name = \"a small one\"\nrepeats = 2\nwarm-up = \"200ms\"\nbefore = \"400ms\"\nafter = \"600ms\"\n\
         [machine]\nqemu = \"{}\"\nqemu-img = \"{}\"\naccelerator = \"tcg\"\nmemory = \"96MiB\"\n\
         [disks]\nsize = \"64MiB\"\nfilled = \"8MiB\"\n\
         [workload]\nmemory = \"16MiB\"\ndirty = \"2MiB/s\"\npattern = \"random\"\nspan = \"16MiB\"\n\
         [[factor]]\nfield = \"migrate.downtime\"\nvalues = [\"5s\", \"8s\"]\n",
        build.program("qemu-system-x86_64").display(),
        build.program("qemu-img").display(),
    )
}

fn sweep(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    command.arg("sweep").args(arguments).current_dir(folder).env("XDG_RUNTIME_DIR", folder.join("run"));
    command
}

fn trials(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("out/trials.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The processes that have a file of this folder in their command line or environment: the sweep, and all that it has
/// started.
fn processes(folder: &Path) -> Vec<String> {
    let name = folder.display().to_string();
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let words = |path: &Path, file: &str| {
        String::from_utf8_lossy(&fs::read(path.join(file)).unwrap_or_default()).replace('\0', " ")
    };
    let lines = all.map(|entry| (words(&entry.path(), "cmdline"), words(&entry.path(), "environ")));
    lines
        .filter(|(line, environment)| line.contains(&name) || environment.contains(&name))
        .map(|(line, _)| line)
        .collect()
}

/// Waits until all that a sweep has started is gone.
#[track_caller]
fn all_end(folder: &Path) {
    let began = Instant::now();
    while !processes(folder).is_empty() {
        let took = began.elapsed();
        assert!(took < Duration::from_secs(20), "what the sweep started outlives it: {:?}", processes(folder));
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_sweep_that_is_killed_goes_on_and_keeps_every_trial() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("run")).unwrap();
    fs::write(folder.join("spec.toml"), spec()).unwrap();
    let mut first = sweep(folder, &["spec.toml", "--out", "out"]).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while trials(folder).is_empty() {
        assert!(began.elapsed() < PATIENCE && first.try_wait().unwrap().is_none(), "the first trial comes to no end");
        sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&first), Signal::KILL).unwrap();
    first.wait().unwrap();
    all_end(folder);
    let kept = trials(folder).len();
    assert!((1..4).contains(&kept), "{kept}");

    let rest = sweep(folder, &["spec.toml", "--out", "out", "--resume", "--goal", "blackout<100s"]).output().unwrap();
    assert!(rest.status.success(), "{}", text(&rest.stderr));
    assert!(text(&rest.stdout).starts_with("blackout<100s: "), "{}", text(&rest.stdout));
    all_end(folder);
    assert!(!folder.join("out/images").exists());

    let trials = trials(folder);
    let numbers: BTreeSet<u64> = trials.iter().filter_map(|trial| trial["trial"].as_u64()).collect();
    assert_eq!((numbers.len(), trials.len()), (4, 4), "every trial once");
    for trial in &trials {
        assert_eq!((&trial["outcome"], &trial["invalid"]), (&"moved".into(), &serde_json::json!([])), "{trial}");
        let figure = |name: &str| trial["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {trial}"));
        assert!(figure("verified.pages") >= 4096.0 && figure("verified.blocks") >= 128.0, "all data was read: {trial}");
        let spans = trial["figures"].as_object().unwrap().iter().filter(|(name, _)| name.starts_with("ledger."));
        let sum: f64 = spans.filter_map(|(_, value)| value.as_f64()).sum();
        assert!((sum - figure("blackout")).abs() < 0.01, "the ledger sums up to the blackout: {trial}");
        assert!(figure("outside.beats") >= figure("blackout") * 0.5, "a guest that is stopped is not heard: {trial}");
        for name in ["outside.echo", "guest.pages.before", "guest.writes.after", "disk.bytes", "cpu.engine", "command"]
        {
            assert!(figure(name) > 0.0, "{name}: {trial}");
        }
    }
    // one guest goes to and fro: the second of each sweep's trials is its second migration
    assert!(trials.iter().any(|trial| trial["leg"].as_u64() >= Some(2)));
    let out = folder.join("out");
    shows_its_results(&out);
    // a picture of an earlier report goes where the next report does not draw it
    fs::write(out.join("plots/of-earlier-trials.svg"), "<svg/>").unwrap();
    assert!(sweep(folder, &["spec.toml", "--out", "out", "--resume"]).output().unwrap().status.success());
    let pictures = shows_its_results(&out);
    is_readable(&out.join("report.html"), pictures);

    let same = sweep(folder, &["--compare", "out", "out", "--fail-if", "blackout>1.1x"]).output().unwrap();
    assert!(same.status.success(), "{}", text(&same.stderr));
    let worse = sweep(folder, &["--out", "out", "--fail-if", "blackout.max>0.001ms"]).output().unwrap();
    assert_eq!(worse.status.code(), Some(1));
}

/// The report on a telephone and on a desk, by day and by night.
fn is_readable(report: &Path, pictures: usize) {
    let mut browser = Browser::start();
    for (width, dark) in [(390, false), (390, true), (1440, false), (1440, true)] {
        let seen = browser.look(report, width, dark);
        let told = || format!("{width} pixels, dark {dark}: {seen:#}");
        assert_eq!((&seen["width"], &seen["plots"]), (&width.into(), &pictures.into()), "{}", told());
        assert!(seen["page"].as_u64().unwrap() <= u64::from(width), "the page is wider than its window: {}", told());
        for nothing in ["wide", "outside", "faint"] {
            assert_eq!(seen[nothing], serde_json::json!([]), "{nothing}: {}", told());
        }
        let number = |name: &str| seen[name].as_f64().unwrap();
        assert!(number("empty") == 0.0 && number("small") >= 9.0, "{}", told());
        assert!(number("contrast") >= 7.0 && (number("paper") < 0.2) == dark, "{}", told());
    }
}

/// Tables with a row each, and a report with its pictures. Returns how many.
fn shows_its_results(out: &Path) -> usize {
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(read("trials.csv").lines().count(), 5);
    assert!(read("results.csv").lines().count() > 4 * 30);
    assert!(read("metrics.csv").lines().count() > 40);
    assert!(read("data_quality.csv").starts_with("trial,counts,censored,why"));
    let report = read("report.html");
    for foreign in ["<script", "src=", "href=", "url(", "@import"] {
        assert!(!report.contains(foreign), "the report fetches or runs something: {foreign}");
    }
    let pictures: Vec<_> = fs::read_dir(out.join("plots")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(pictures.len() >= 8, "{pictures:?}");
    assert_eq!(report.matches("<svg").count(), 2 * pictures.len(), "each for wide and for narrow pages");
    for picture in &pictures {
        let svg = fs::read_to_string(picture).unwrap();
        assert!(roxmltree::Document::parse(&svg).is_ok(), "{}", picture.display());
    }
    pictures.len()
}

#[test]
fn a_limit_ends_a_trial_and_the_trial_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("run")).unwrap();
    let spec = spec().replace("repeats = 2", "repeats = 1\nlimit = \"2s\"\nverify = false");
    let spec = spec.replace("values = [\"5s\", \"8s\"]", "values = [\"5s\"]");
    fs::write(folder.join("spec.toml"), spec + "[migrate]\nbandwidth = \"1MiB/s\"\n").unwrap();
    let ran = sweep(folder, &["spec.toml", "--out", "out", "--json"]).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let trials = trials(folder);
    assert_eq!((&trials[0]["outcome"], &trials[0]["censored"]), (&"cancelled".into(), &true.into()), "{trials:?}");
    let lines: Vec<Value> = text(&ran.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|line| line["type"].as_str().unwrap()).collect::<Vec<_>>(), ["trial", "sweep"]);
    let report = fs::read_to_string(folder.join("out/report.html")).unwrap();
    assert!(report.contains("0 / 1</td>") && report.contains(">at least "), "its total is not left out: {report}");
    let pictures = fs::read_dir(folder.join("out/plots")).unwrap().count();
    is_readable(&folder.join("out/report.html"), pictures);
    let judged = |condition: &str| sweep(folder, &["--out", "out", "--fail-if", condition]).output().unwrap();
    assert_eq!(judged("total>0.5s").status.code(), Some(1), "it has taken that long, whatever it would have");
    let open = judged("total>3s");
    assert!(open.status.success() && text(&open.stderr).contains("is not known: at least"), "{}", text(&open.stderr));
    let quality = fs::read_to_string(folder.join("out/data_quality.csv")).unwrap();
    assert!(
        quality.contains("0,no,yes,\"the guest did not move (cancelled): the limit of the sweep was reached\"")
            || quality.contains("0,no,yes,the guest did not move (cancelled): the limit of the sweep was reached"),
        "{quality}"
    );
}

/// As root or not: without, the namespaces are of a user namespace.
#[test]
fn a_link_carries_what_is_copied_and_ends_with_the_sweep() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("run")).unwrap();
    let spec = spec().replace("repeats = 2", "repeats = 1").replace("migrate.downtime", "link.rate");
    let spec = spec.replace("values = [\"5s\", \"8s\"]", "values = [\"100Mbit/s\", \"400Mbit/s\"]");
    fs::write(folder.join("spec.toml"), spec + "[migrate]\ndowntime = \"8s\"\n").unwrap();
    let plan = sweep(folder, &["spec.toml", "--plan"]).output().unwrap();
    assert!(text(&plan.stdout).contains("link: 100 Mbit/s; or 400 Mbit/s\n"), "{}", text(&plan.stdout));
    let ran = sweep(folder, &["spec.toml", "--out", "out"]).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    all_end(folder);
    let trials = trials(folder);
    assert_eq!(trials.len(), 2);
    for (leg, trial) in (1..).zip(&trials) {
        assert_eq!((&trial["outcome"], &trial["invalid"]), (&"moved".into(), &serde_json::json!([])), "{trial}");
        assert_eq!(trial["leg"], leg, "the guest comes back over the other link: {trial}");
        let figure = |name: &str| trial["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {trial}"));
        let copied = figure("ram.bytes") + figure("disk.bytes");
        assert!((copied..2.0 * copied).contains(&figure("link.bytes")), "each byte crosses the link once: {trial}");
    }

    let mut killed = sweep(folder, &["spec.toml", "--out", "killed"]).stderr(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let is_there = || fs::read_dir(folder.join("run")).unwrap().flatten().any(|run| run.path().join("0.qmp").exists());
    while !is_there() {
        assert!(began.elapsed() < PATIENCE && killed.try_wait().unwrap().is_none(), "no QEMU is started");
        sleep(Duration::from_millis(5));
    }
    assert!(processes(folder).len() >= 4, "the sweep, two ends and a QEMU: {:?}", processes(folder));
    kill_process(Pid::from_child(&killed), Signal::KILL).unwrap();
    killed.wait().unwrap();
    all_end(folder);
}

/// Programs of a shell in place of the engine: one that moves the guest, one that only says so, one that fails, and one
/// that has the destination's QEMU started itself.
#[test]
fn other_programs_are_measured_by_what_their_qemus_tell() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("run")).unwrap();
    let qferry = format!("{} migrate --downtime 8s --source", env!("CARGO_BIN_EXE_qferry"));
    let moves =
        format!("[\"sh\", \"-c\", \"exec {qferry} $0 --destination $1\", \"{{source-qmp}}\", \"{{destination-qmp}}\"]");
    let machine = r#"["sh", "-c", "case \"$*\" in *-incoming*) : >$0; until [ -e $0.go ]; do sleep 0.02; done; rm $0 ;; esac; exec \"$@\"",
        "{qmp}", "{qemu}", "-accel", "{accelerator}", "-m", "{memory-mib}", "-nodefaults", "-display", "none", "-kernel", "{guest}",
        "-append", "{append}", "-chardev", "socket,id=debug,path={debug}", "-device", "isa-debugcon,iobase=0xe9,chardev=debug",
        "-blockdev", "driver=qcow2,node-name=disk0,file.driver=file,file.filename={disk0}",
        "-device", "virtio-blk-pci,id=disk0,drive=disk0,disable-legacy=off",
        "-qmp", "unix:{qmp},server=on,wait=off", "-qmp", "unix:{events},server=on,wait=off"]"#.replace('\n', " ");
    let starts = format!(
        "[\"sh\", \"-c\", \": >$1.go; until [ -S $1 ]; do sleep 0.02; done; exec {qferry} $0 --destination $1\", \
         \"{{source-qmp}}\", \"{{destination-qmp}}\"]"
    );
    let values = format!(
        "values = [\n{{ label = \"moves\", \"migrator.command\" = {moves} }},\n\
         {{ label = \"lies\", \"migrator.command\" = [\"true\"] }},\n\
         {{ label = \"fails\", \"migrator.command\" = [\"sh\", \"-c\", \"echo no way >&2; exit 3\"] }},\n\
         {{ label = \"starts\", \"migrator.command\" = {starts}, \"migrator.starts-destination\" = true, \
         \"machine.command\" = {machine}, \"machine.incoming\" = [\"-incoming\", \"defer\", \"-S\"] }}]"
    );
    let spec = spec().replace("repeats = 2", "repeats = 1").replace("field = \"migrate.downtime\"", "name = \"by\"");
    fs::write(folder.join("spec.toml"), spec.replace("values = [\"5s\", \"8s\"]", &values)).unwrap();
    let ran = sweep(folder, &["spec.toml", "--out", "out"]).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    all_end(folder);
    let trials = trials(folder);
    let outcomes: Vec<_> = trials.iter().map(|trial| trial["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["moved", "undetermined", "failed", "moved"], "{trials:#?}");
    let reason = |at: usize| trials[at]["reason"].as_str().unwrap();
    assert!(reason(1).ends_with("the guest runs on the source"), "{}", reason(1));
    assert_eq!(reason(2), "no way (the guest runs on the source)");
    for (at, is_started) in [(0, true), (3, false)] {
        let trial = &trials[at];
        let figure = |name: &str| trial["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {trial}"));
        assert!(figure("blackout.events") > 0.0 && figure("outside.beats") > 0.0, "{trial}");
        assert!(figure("verified.pages") >= 4096.0 && figure("verified.blocks") >= 128.0, "all data was read: {trial}");
        assert_eq!(figure("total.with-start") > figure("command"), is_started, "{trial}");
        assert!(figure("cpu.source") > 0.0 && figure("cpu.destination") > 0.0, "{trial}");
        assert_eq!(
            (&trial["invalid"], &trial["figures"]["blackout"]),
            (&serde_json::json!([]), &Value::Null),
            "{trial}"
        );
    }
}

#[test]
fn a_spec_that_cannot_be_used_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wrong = |spec: &str, words: &[&str]| {
        fs::write(folder.join("spec.toml"), spec).unwrap();
        let ran = sweep(folder, &["spec.toml", "--out", "out"]).output().unwrap();
        assert_eq!(ran.status.code(), Some(2), "{spec}");
        words.iter().for_each(|word| assert!(text(&ran.stderr).contains(word), "{spec}: {}", text(&ran.stderr)));
        assert!(!folder.join("out").exists());
    };
    wrong("repeats = 0", &["line 1", "repeats is 0", "at least 1"]);
    wrong("[migrate]\ndowntme = \"5ms\"", &["[migrate]", "downtme"]);
    wrong("[migrate]\ndowntime = \"fast\"", &["[migrate]", "fast", "50ms"]);
    let example = sweep(folder, &["--example"]).output().unwrap();
    fs::write(folder.join("example.toml"), &example.stdout).unwrap();
    let plan = sweep(folder, &["example.toml", "--plan"]).output().unwrap();
    assert!(plan.status.success(), "{}", text(&plan.stderr));
    assert!(text(&plan.stdout).contains("20 trials"), "{}", text(&plan.stdout));
}
