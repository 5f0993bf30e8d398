//! Plans that are interrupted, and plans of the command: neither changes anything.

use super::{
    super::support::{MIB, WAIT, block_on, start},
    State, blocker, engine, found, look, moves, quick, side,
};
use qferry::internals::{
    migration::{Control, Plan, Settings},
    progress::{EventKind, Reason},
    quantity::Rate,
    storage::verify::identity::ProofLevel,
};
use qferry_bed::{DiskSpec, Machine, Pair, Spec};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// A disk whose comparison takes a minute at the pace of [`slowly`].
fn large() -> DiskSpec {
    DiskSpec { size: 64 * MIB, backing: 64 * MIB, backing_data: 64 * MIB, ..DiskSpec::small() }
}

fn slowly(settings: &mut Settings) {
    (settings.verify_backing, settings.bandwidth) = (ProofLevel::Full, Some(Rate(2 * MIB)));
}

/// Plans, and acts in the middle of a comparison.
fn disturbed(pair: &Pair, how: fn(&mut Settings), act: impl FnOnce(&Control)) -> Result<Plan, Reason> {
    block_on(async {
        let mut check = engine(pair, how).check_here().unwrap();
        let mut events = check.events();
        let control = check.control();
        while let Some(event) = events.next().await {
            if let EventKind::Image { done, total, .. } = event.kind {
                assert!(done < total, "it is over");
                break;
            }
        }
        act(&control);
        let acted = Instant::now();
        let looked = check.wait().await;
        assert!(acted.elapsed() < Duration::from_secs(40), "it read on: {:?}", acted.elapsed());
        looked
    })
}

#[test]
fn a_look_that_is_cancelled_leaves_nothing() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let pair = start(&Spec { version: version.to_owned(), ..quick([large(), large()]) });
        let before = State::of(&pair);
        let looked = disturbed(&pair, slowly, Control::cancel);
        assert!(looked.as_ref().is_err_and(|reason| reason.code == "cancelled"), "{looked:?}");
        before.is_still(&pair);
        // A plan whose handle is dropped soon after its start.
        block_on(async {
            let check = engine(&pair, slowly).check_here().unwrap();
            let mut events = check.events();
            while !matches!(events.next().await.unwrap().kind, EventKind::Image { .. }) {}
            drop(check);
            while events.next().await.is_some() {}
        });
        before.is_still(&pair);
        moves(&pair, |_| ());
    }
}

#[test]
fn a_destination_that_dies_while_it_is_looked_at() {
    let mut pair = start(&quick([large()]));
    let before = side(&pair.source);
    let looked = disturbed(&pair, slowly, |_| pair.destination.kill().unwrap());
    match looked {
        Ok(plan) => found(&plan, [blocker("backing-unproved", "disk0", []), blocker("overlay-unproved", "disk0", [])]),
        Err(failure) => panic!("{failure:?}"),
    }
    assert_eq!(side(&pair.source), before);
    assert_eq!(std::fs::read_dir(pair.run_dir()).unwrap().count(), 0, "a socket is left");
    pair.restart_destination(false).unwrap();
    found(&look(&pair, |_| ()), []);
}

/// A block job writes into the backing file while it is compared, so nothing is proved.
#[test]
fn a_backing_file_that_is_written_to_while_it_is_read() {
    let pair = start(&quick([DiskSpec { overlay_data: 64 << 10, ..DiskSpec::small() }]));
    let a_little = |settings: &mut Settings| {
        (settings.verify_backing, settings.bandwidth) = (ProofLevel::Full, Some(Rate(8 * MIB)));
    };
    let commit = serde_json::json!({"device": "disk0", "job-id": "commit", "auto-dismiss": true});
    let plan = disturbed(&pair, a_little, |_| drop(pair.source.qmp("block-commit", &commit).unwrap())).unwrap();
    assert!(plan.blockers().any(|finding| finding.code == "chain-changed" && finding.subject == "disk0"), "{plan:#?}");
}

fn check(pair: &Pair, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    command.arg("check").arg("--source").arg(pair.source.qmp_path());
    command.arg("--destination").arg(pair.destination.qmp_path()).args(more);
    command.env("XDG_RUNTIME_DIR", pair.run_dir()).env("XDG_STATE_HOME", pair.run_dir()).stdin(Stdio::null());
    command
}

fn json(output: &Output) -> Value {
    // the plan is the last of the objects
    let last = output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap();
    serde_json::from_slice(last).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn the_command_says_what_it_found_and_changes_nothing() {
    let mut pair = start(&quick([DiskSpec::small()]));
    std::fs::create_dir(pair.run_dir().join("qferry")).unwrap();
    let before = State::of(&pair);
    let ready = check(&pair, &["--json", "--no-measure"]).output().unwrap();
    assert_eq!(ready.status.code(), Some(0), "{ready:?}");
    assert_eq!(json(&ready)["findings"], serde_json::json!([]));
    // The command measures as well, but QEMU does not sample RAM as small as this guest's.
    let measured = check(&pair, &["--json"]).output().unwrap();
    assert_eq!(measured.status.code(), Some(0), "{measured:?}");
    let findings = json(&measured)["findings"].as_array().unwrap().clone();
    let codes: Vec<_> = findings.iter().map(|finding| (&finding["code"], &finding["subject"])).collect();
    assert_eq!(codes, [(&"not-measured".into(), &"dirty-rate".into())]);
    let text = check(&pair, &[]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("ready ") && text.contains("disk0.qcow2") && text.contains("backing0.raw"), "{text}");
    before.is_still(&pair);

    pair.deviate([qferry_bed::Deviation::FlipByte { disk: 0, layer: 0, offset: 5 }]).unwrap();
    let before = State::of(&pair);
    let refused = check(&pair, &["--json"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    let plan = json(&refused);
    let finding = &plan["findings"][0];
    assert_eq!((&finding["code"], &finding["severity"]), (&"backing-differs".into(), &"blocker".into()), "{plan}");
    assert_eq!((&plan["verified"][0]["verdict"], &plan["verified"][0]["offset"]), (&"differ".into(), &5.into()));
    let text = String::from_utf8(check(&pair, &[]).output().unwrap().stdout).unwrap();
    assert!(text.contains("blocker  backing-differs: disk0: ") && text.contains("refused "), "{text}");
    before.is_still(&pair);
}

/// Starts a slow `qferry check`, and waits until both sides are read.
fn reading(pair: &Pair) -> Child {
    let slow = ["--verify-backing", "full", "--bandwidth", "2MiB/s"];
    let child = check(pair, &slow).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + WAIT;
    let is_read = |side: &Machine| {
        let left = side.leftovers().unwrap();
        left.iter().any(|left| left.starts_with("export qferry-") && left.contains("-view-"))
    };
    while ![&pair.source, &pair.destination].into_iter().all(is_read) {
        assert!(Instant::now() < deadline, "it never reads");
        sleep(Duration::from_millis(10));
    }
    child
}

#[test]
fn a_command_that_is_interrupted_leaves_nothing_and_one_that_is_killed_is_cleaned_up() {
    let pair = start(&quick([DiskSpec::small()]));
    std::fs::create_dir(pair.run_dir().join("qferry")).unwrap();
    let before = State::of(&pair);
    let mut child = reading(&pair);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    before.is_still(&pair);

    let mut child = reading(&pair);
    child.kill().unwrap();
    child.wait().unwrap();
    // The next check names the leftovers, reads all the same, and leaves nothing.
    let again = check(&pair, &["--json", "--no-measure"]).output().unwrap();
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    let codes: Vec<Value> = json(&again)["findings"].as_array().unwrap().iter().map(|f| f["code"].clone()).collect();
    assert_eq!(codes, ["leftover-view", "leftover-view"]);
    before.is_still(&pair);

    let mut child = reading(&pair);
    child.kill().unwrap();
    child.wait().unwrap();
    let outcome = super::migrate(engine(&pair, |settings| settings.clean = true));
    assert_eq!(outcome.outcome, qferry::internals::progress::Ending::Moved, "{outcome:#?}");
    assert_eq!(pair.destination.leftovers().unwrap(), Vec::<String>::new());
    pair.destination.finish().unwrap();
    pair.guest_visible_equal(0).unwrap();
}
