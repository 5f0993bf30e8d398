//! The engine against two scripted QEMUs: which commands go to which side in which order, and how a migration ends when
//! something goes wrong that no real QEMU can be made to do at will.
//!
//! Time is paused, so that missed deadlines cost nothing, and nothing depends on the speed of the machine.

#![allow(clippy::unwrap_used, reason = "a test says all it has to say by panicking")]

#[path = "../fake/mod.rs"]
mod fake;
#[path = "../fake/model/mod.rs"]
mod model;

mod announcement;
mod controller;
mod device_times;
mod ended;
mod faults;
mod foreign_jobs;
mod foreign_migrations;
mod golden;
mod interference;
mod journals;
mod keep_alive;
mod lost_destination;
mod lost_events;
mod lost_writes;
mod open_world;
mod other_run;
mod owner;
mod panics;
mod postcopy;
mod recovery;
mod refusals;
mod run_id;
mod start_guard;
mod two_engines;
mod two_runners;
mod watchdog;
mod way_back;
mod write_times;

use std::time::Duration;

use fake::AnswerStep;
use model::{
    AfterContinue, CommandFault, MigrationRun, MirrorEnd, MirrorJob, ModelDisk, ModelPair, PairShape, PairState,
};
use qferry::internals::convergence::Policy;
use qferry::internals::migration::{Builder, Running, Settings};
use qferry::internals::progress::{Ending, EventKind, Outcome, RunsOn, Side};
use serde_json::{Value, json};

use Side::{Destination, Source};

fn model() -> ModelPair {
    ModelPair::new(&PairShape::default())
}

fn disks(disks: usize) -> PairShape {
    PairShape { disks, ..PairShape::default() }
}

/// A pair of processes of this host, whose deaths can be proved.
fn processes() -> ModelPair {
    ModelPair::new(&PairShape { processes: true, ..PairShape::default() })
}

#[track_caller]
fn moved(model: &ModelPair, run: &MigrationRun) {
    assert_eq!(run.outcome.outcome, Ending::Moved, "{run:?}");
    assert_eq!((run.outcome.runs_on, &run.outcome.reason), (RunsOn::Destination, &None), "{run:?}");
    assert_eq!(run.count("source: cont"), 0, "{run:?}");
    let state = model.state();
    assert_eq!(state.destination.run, if state.guest_ran { "running" } else { "paused" }, "{run:?}");
    assert_ne!(state.source.run, "running", "{run:?}");
    assert!(state.destination.exports.is_empty(), "{run:?}");
}

/// The guest is on the source as before, nothing of the engine is left, and settings are as before.
#[track_caller]
fn back(model: &ModelPair, run: &MigrationRun, ending: Ending, code: &str) {
    assert_eq!((run.outcome.outcome, run.code()), (ending, code), "{run:?}");
    assert_eq!(run.outcome.runs_on, RunsOn::Source, "{run:?}");
    assert_eq!(run.outcome.leftovers, Vec::<String>::new(), "{run:?}");
    assert_eq!(run.count("destination: cont"), 0, "{run:?}");
    let fresh = ModelPair::new(&PairShape { disks: 0, ..PairShape::default() });
    let (fresh, state) = (fresh.state(), model.state());
    assert_eq!(state.source.run, if state.guest_ran { "running" } else { "paused" }, "{run:?}");
    assert_ne!(state.destination.run, "running", "{run:?}");
    assert!(state.source.jobs.is_empty() && state.source.bitmaps.is_empty(), "{run:?}");
    assert_eq!(state.source.capabilities, fresh.source.capabilities, "{run:?}");
    assert_eq!(state.source.parameters, fresh.source.parameters, "{run:?}");
    if state.destination.run != "gone" {
        assert!(state.destination.exports.is_empty() && !state.destination.server, "{run:?}");
        assert_eq!(state.destination.capabilities, fresh.destination.capabilities, "{run:?}");
    }
}

#[track_caller]
fn undetermined(run: &MigrationRun) {
    assert_eq!((run.outcome.outcome, run.outcome.runs_on), (Ending::Undetermined, RunsOn::Unknown), "{run:?}");
    assert!(!run.message().is_empty(), "{run:?}");
}

/// The conditions that hold however a migration ended.
#[track_caller]
fn sound(model: &ModelPair, run: &MigrationRun, what: &str) {
    let state = model.state();
    assert_eq!(state.violations, Vec::<&str>::new(), "{what}: {run:?}");
    let (at_source, at_destination) = (state.source.run == "running", state.destination.run == "running");
    assert!(!(at_source && at_destination), "{what}: {run:?}");
    let ending = run.outcome.outcome;
    match ending {
        Ending::Moved => assert_eq!(run.outcome.runs_on, RunsOn::Destination, "{what}: {run:?}"),
        Ending::Undetermined => assert_eq!(run.outcome.runs_on, RunsOn::Unknown, "{what}: {run:?}"),
        Ending::Ended => {
            assert_eq!(run.outcome.runs_on, RunsOn::None, "{what}: {run:?}");
            assert!(!at_source && !at_destination && state.source.run == "gone", "{what}: {run:?}");
        }
        // A refused migration may not even have found out where the guest is.
        Ending::Refused => assert_ne!(run.outcome.runs_on, RunsOn::Destination, "{what}: {run:?}"),
        _ => assert_eq!(run.outcome.runs_on, RunsOn::Source, "{what}: {run:?}"),
    }
    assert_eq!(run.outcome.reason.is_none(), ending == Ending::Moved, "{what}: {run:?}");
    if ending == Ending::Refused {
        assert!(asks_only(&run.log), "{what}: {run:?}");
    }
    if matches!(ending, Ending::RolledBack | Ending::Cancelled) {
        assert!(state.source.jobs.is_empty() && state.source.bitmaps.is_empty(), "{what}: {run:?}");
        assert_eq!(run.outcome.leftovers, Vec::<String>::new(), "{what}: {run:?}");
    }
    // The engine cannot know of a QEMU that dies after its last answer.
    let died = state.faults.iter().any(|(_, _, fault)| matches!(fault, CommandFault::Dies | CommandFault::DiesBefore));
    if state.guest_ran && !died {
        match run.outcome.runs_on {
            RunsOn::Source => assert!(at_source, "{what}: {run:?}"),
            RunsOn::Destination => assert!(at_destination, "{what}: {run:?}"),
            _ => {}
        }
    }
}

fn cancel_at(model: &mut ModelPair, side: Side, command: &'static str) -> Running<Outcome> {
    let migration = model.builder().start_here().unwrap();
    let control = migration.control();
    model.when(side, command, move || control.cancel());
    migration
}

fn asks_only(run: &[(String, fake::ReceivedCommand)]) -> bool {
    run.iter().all(|(_, seen)| model::asks(seen))
}
