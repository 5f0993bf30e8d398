//! How long each device takes: QEMU's trace events are switched on before RAM is sent, put back as they were on every
//! way out, and cost the blackout nothing.

use super::*;
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

const GET: &str = "trace-event-get-state";
const SET: &str = "trace-event-set-state";
/// The events as they are before the migration: somebody has switched one on.
const BEFORE: [(&str, bool); 3] =
    [("vmstate_downtime_checkpoint", true), ("vmstate_downtime_load", false), ("vmstate_downtime_save", false)];

/// The events of a QEMU, and whether each is on.
type Events = Arc<Mutex<BTreeMap<String, bool>>>;

/// A pair whose QEMUs have these events and log to files.
struct TracedPair {
    model: ModelPair,
    source: Events,
    destination: Events,
}

fn log(model: &ModelPair, name: &str) -> File {
    OpenOptions::new().create(true).append(true).open(model.directory.path().join(name)).unwrap()
}

/// Has the process of a side write its stderr, which has QEMU's log, elsewhere.
fn log_to(model: &ModelPair, side: Side, stderr: Stdio) {
    model.replace_process(side, Command::new("sleep").arg("3600").stderr(stderr));
}

/// A line of a device, as QEMU writes it with `-msg timestamp=on` or without.
fn line(before: &str, phase: &str, device: &str, us: u64) -> String {
    format!("{before}vmstate_downtime_{phase} type=non-iterable idstr={device} instance_id=0 downtime={us}\n")
}

fn traced(known: &[(&str, bool)]) -> TracedPair {
    let model = processes();
    let events = |side: Side, name: &str| -> Events {
        {
            let mut state = model.state();
            let qemu = if side == Source { &mut state.source } else { &mut state.destination };
            model::add_command(&mut qemu.schema, GET);
            model::add_command(&mut qemu.schema, SET);
        }
        log(&model, name).write_all(line("", "save", "before", 9).as_bytes()).unwrap();
        log_to(&model, side, log(&model, name).into());
        let events: Events = Arc::new(Mutex::new(known.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect()));
        let asked = events.clone();
        model.on(side, GET, move |seen| {
            assert_eq!(seen.arguments["name"], "vmstate_downtime_*");
            let state = |on: &bool| if *on { "enabled" } else { "disabled" };
            let known = asked.lock().unwrap();
            let told: Vec<Value> = known.iter().map(|(name, on)| json!({"name": name, "state": state(on)})).collect();
            vec![AnswerStep::Return(json!(told))]
        });
        let set = events.clone();
        model.on(side, SET, move |seen| {
            let name = seen.arguments["name"].as_str().unwrap().to_owned();
            let known = set.lock().unwrap().insert(name, seen.arguments["enable"].as_bool().unwrap());
            assert!(known.is_some(), "{seen:?}");
            vec![AnswerStep::Return(json!({}))]
        });
        events
    };
    let (source, destination) = (events(Source, "source.log"), events(Destination, "destination.log"));
    TracedPair { model, source, destination }
}

impl TracedPair {
    /// Has both QEMUs write to their logs once the guest is passed on, if their events are on by then.
    fn writes(&mut self) {
        let (source, destination) = (self.source.clone(), self.destination.clone());
        let (mut to_source, mut to_destination) = (log(&self.model, "source.log"), log(&self.model, "destination.log"));
        let other = self.model.state().destination.pid().unwrap();
        self.model.when(Source, "migrate-continue", move || {
            assert!(
                source.lock().unwrap()["vmstate_downtime_save"] && destination.lock().unwrap()["vmstate_downtime_load"]
            );
            let saved = [
                line("", "save", "cpu", 7),
                "qemu: a complaint\n".to_owned(),
                line(&format!("{other}@1796048677.694501:"), "save", "foreign", 99),
                line("4194305@1796048677.694502:", "save", "virtio", 8),
            ];
            to_source.write_all(saved.concat().as_bytes()).unwrap();
            to_destination.write_all(line("2026-11-30T14:24:43.014458Z ", "load", "cpu", 5).as_bytes()).unwrap();
        });
    }

    #[track_caller]
    fn assert_put_back(&self, run: &MigrationRun) {
        for events in [&self.source, &self.destination] {
            let now = events.lock().unwrap();
            let now: Vec<(&str, bool)> = now.iter().map(|(name, on)| (name.as_str(), *on)).collect();
            assert_eq!(now, BEFORE, "{run:?}");
        }
    }
}

fn told(run: &MigrationRun) -> Vec<(Side, &str, &str, u64)> {
    let devices = run.outcome.devices.iter();
    devices.map(|one| (one.side, one.phase.as_str(), one.device.as_str(), one.us)).collect()
}

#[tokio::test(start_paused = true)]
async fn devices_of_both_sides_are_told_and_the_events_put_back() {
    for keep in [false, true] {
        let mut pair = traced(&BEFORE);
        pair.writes();
        let builder = pair.model.builder();
        let builder = if keep { builder.keep_source() } else { builder };
        let run = pair.model.follow(builder.start_here().unwrap()).await;
        moved(&pair.model, &run);
        let expected = [(Source, "save", "cpu", 7), (Source, "save", "virtio", 8), (Destination, "load", "cpu", 5)];
        assert_eq!((told(&run), &run.outcome.devices_unknown), (expected.to_vec(), &None), "{run:?}");
        assert_eq!(run.actions("no-device-times"), 0, "{run:?}");
        if keep {
            pair.assert_put_back(&run);
        } else {
            // a source that quits takes its events with it
            assert_eq!(run.count(&format!("source: {SET}")), 2, "{run:?}");
        }
        assert_eq!(run.count(&format!("destination: {SET}")), 4, "{run:?}");
        for side in ["source", "destination"] {
            assert!(run.position(&format!("{side}: {SET}")) < run.position("destination: migrate-incoming"), "{run:?}");
        }
        let trace = |line: &&(String, tokio::time::Instant)| line.0.contains("trace-event");
        assert_eq!(run.blackout().iter().filter(trace).count(), 0, "{run:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_way_back_leaves_the_events_as_they_were() {
    for (side, when) in [
        (Destination, "migrate-incoming"),
        (Source, "migrate"),
        (Source, "migrate-continue"),
        (Destination, "nbd-server-stop"),
    ] {
        let mut pair = traced(&BEFORE);
        pair.model.refused(side, when);
        let run = pair.model.migrate().await;
        assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::RolledBack, RunsOn::Source), "{when}: {run:?}");
        assert_eq!(run.outcome.leftovers, Vec::<String>::new(), "{when}: {run:?}");
        let on_source = pair.source.lock().unwrap().clone();
        assert!(!on_source["vmstate_downtime_save"] && on_source["vmstate_downtime_checkpoint"], "{when}: {run:?}");
        if pair.model.state().destination.run != "gone" {
            pair.assert_put_back(&run);
        }
        assert_eq!((told(&run), &run.outcome.devices_unknown), (Vec::new(), &None), "{when}: {run:?}");
    }
    let mut pair = traced(&BEFORE);
    let cancelled = cancel_at(&mut pair.model, Source, "migrate");
    let run = pair.model.follow(cancelled).await;
    assert_eq!(run.outcome.outcome, Ending::Cancelled, "{run:?}");
    assert!(!pair.source.lock().unwrap()["vmstate_downtime_save"], "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_is_said_once() {
    // a log that is no file, and a QEMU without the events
    let mut pair = traced(&BEFORE);
    log_to(&pair.model, Source, Stdio::null());
    pair.destination.lock().unwrap().clear();
    let run = pair.model.migrate().await;
    moved(&pair.model, &run);
    let said = run.outcome.devices_unknown.clone().unwrap_or_default();
    assert!(said.contains("source (a) writes its log to /dev/null, and destination (b) has no trace events"), "{said}");
    assert!(said.contains("before 8.2; start QEMU with -D"), "{said}");
    assert_eq!((run.actions("no-device-times"), run.warned("no-device-times")), (1, false), "{run:?}");
    for side in ["source", "destination"] {
        assert_eq!(run.count(&format!("{side}: {SET}")), 0, "{run:?}");
    }
    // QEMUs of another host, and QEMUs without the commands
    for mut model in [model(), processes()] {
        let run = model.migrate().await;
        moved(&model, &run);
        assert_eq!((run.actions("no-device-times"), run.outcome.devices_unknown.is_some()), (1, true), "{run:?}");
        assert!(run.log.iter().all(|(_, seen)| !seen.name.starts_with("trace-event")), "{run:?}");
    }
    // a log that stays empty: only afterwards is it known
    let mut pair = traced(&BEFORE);
    let run = pair.model.migrate().await;
    moved(&pair.model, &run);
    let said = run.outcome.devices_unknown.clone().unwrap_or_default();
    assert!(said.contains("source (a) wrote no times of devices") && said.contains("destination (b) wrote"), "{said}");
    assert_eq!(run.actions("no-device-times"), 0, "{run:?}");
}

#[tokio::test(start_paused = true)]
async fn no_trouble_with_the_events_ends_a_migration() {
    for command in [GET, SET] {
        for answers in [false, true] {
            let mut pair = traced(&BEFORE);
            for side in [Source, Destination] {
                if answers {
                    pair.model.refused(side, command);
                } else {
                    pair.model.silent(side, command);
                }
            }
            let run = pair.model.migrate().await;
            moved(&pair.model, &run);
            assert_eq!((told(&run), run.actions("no-device-times")), (Vec::new(), 1), "{command} {answers}: {run:?}");
            assert!(run.outcome.devices_unknown.is_some(), "{command} {answers}: {run:?}");
            pair.assert_put_back(&run);
            let is_unsure = command == SET && !answers;
            assert_eq!(run.outcome.leftovers.is_empty(), !is_unsure, "{command} {answers}: {run:?}");
        }
    }
    // QEMU may have carried out what it did not answer: it is named where it cannot be put back
    let mut pair = traced(&BEFORE);
    pair.model.silent(Destination, SET);
    let run = pair.model.migrate().await;
    moved(&pair.model, &run);
    assert!(run.outcome.leftovers.iter().any(|left| left.contains("vmstate_downtime_")), "{run:?}");
}

/// A monitor that closes at one of the commands is a lost monitor, as at any other.
#[tokio::test(start_paused = true)]
async fn a_monitor_that_closes_at_the_events_ends_soundly() {
    for side in [Source, Destination] {
        for command in [GET, SET] {
            let mut pair = traced(&BEFORE);
            pair.model.on(side, command, |_| vec![AnswerStep::Close]);
            let run = pair.model.migrate().await;
            sound(&pair.model, &run, command);
            assert_ne!(run.outcome.outcome, Ending::Moved, "{side} {command}: {run:?}");
            assert_eq!(run.count("source: migrate"), 0, "{side} {command}: {run:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn events_are_left_alone_where_nobody_wants_the_times() {
    let mut pair = traced(&BEFORE);
    let builder = pair.model.builder().without_device_times();
    let run = pair.model.follow(builder.start_here().unwrap()).await;
    moved(&pair.model, &run);
    assert!(run.log.iter().all(|(_, seen)| !seen.name.starts_with("trace-event")), "{run:?}");
    assert_eq!((told(&run), &run.outcome.devices_unknown), (Vec::new(), &None), "{run:?}");
}
