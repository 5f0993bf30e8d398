//! `qferry migrate`, `qferry check` and `qferry recover`.

use super::{args, failed, misused, render, signals::Signals};
use crate::{
    migration::{Builder, Failure, Migration},
    progress::describe,
    qmp::Recorder,
};
use std::{path::PathBuf, process::ExitCode, thread};

pub(super) async fn run(options: Box<args::Options>) -> ExitCode {
    let (plan, json) = (options.plan, options.json);
    let work = async |builder: Builder| match plan {
        true => look(builder, json).await,
        false => follow(|| builder.start(), json).await,
    };
    built(&options, plan, work).await
}

pub(super) async fn check(options: Box<args::Options>) -> ExitCode {
    built(&options, true, async |builder| look(builder, options.json).await).await
}

pub(super) async fn recover(options: &args::Recover) -> ExitCode {
    let mut recovery = Migration::recovery(&options.journal);
    if let Some(command) = &options.fence_command {
        recovery = recovery.fence_command(command);
    }
    recorded(options.transcript.as_ref(), async |recorder| {
        if let Some(recorder) = recorder {
            recovery = recovery.transcript(recorder);
        }
        follow(|| recovery.start(), options.json).await
    })
    .await
}

/// Does it with the options, and the transcript that was asked for.
async fn built(options: &args::Options, predict: bool, work: impl AsyncFnOnce(Builder) -> ExitCode) -> ExitCode {
    if let Some(conflict) = options.conflict() {
        return misused(&conflict);
    }
    let mut builder =
        Migration::builder(options.source.clone(), options.destination.clone()).settings(options.settings(predict));
    recorded(options.transcript.as_ref(), async |recorder| {
        if let Some(recorder) = recorder {
            builder = builder.transcript(recorder);
        }
        work(builder).await
    })
    .await
}

/// Does it with a transcript in this file, if there is one.
async fn recorded(file: Option<&PathBuf>, work: impl AsyncFnOnce(Option<Recorder>) -> ExitCode) -> ExitCode {
    let recorder = match file.map(Recorder::create).transpose() {
        Ok(recorder) => recorder,
        Err(error) => return misused(&describe(&error)),
    };
    let code = work(recorder.clone()).await;
    if let Some(Err(error)) = recorder.map(|recorder| recorder.finish()) {
        render::say(&format!("qferry: {}", describe(&error)));
    }
    code
}

async fn look(builder: Builder, json: bool) -> ExitCode {
    let Some(signals) = Signals::watch() else { return failed("cannot watch for signals") };
    let mut check = builder.check();
    let events = check.events();
    // with --json a plan is one object
    let screen = thread::spawn(move || render::follow(events, false));
    let canceller = check.canceller();
    let looked = signals.cancelling(&canceller, check.wait()).await;
    drop(screen.join());
    match looked {
        Ok(plan) => {
            render::plan(&plan, json);
            ExitCode::from(if plan.blockers().next().is_some() { 3 } else { 0 })
        }
        Err(failure) => {
            render::unplanned(&failure.reason(), json);
            ExitCode::from(if matches!(failure, Failure::Cancelled) { 5 } else { 3 })
        }
    }
}

/// Starts it, and shows it to its end.
async fn follow(start: impl FnOnce() -> Migration, json: bool) -> ExitCode {
    let Some(signals) = Signals::watch() else { return failed("cannot watch for signals") };
    let mut migration = start();
    let events = migration.events();
    // a thread of its own: a terminal or pipe that blocks must not hold the engine up
    let screen = thread::spawn(move || render::follow(events, json));
    let canceller = migration.canceller();
    let outcome = signals.cancelling(&canceller, migration.wait()).await;
    if screen.join().is_err() {
        render::say("qferry: the display failed; the migration did not");
    }
    ExitCode::from(outcome.outcome.exit_code())
}
