//! `qferry migrate` and `qferry check`.

use super::{args, failed, misused, render, signals::Signals};
use crate::{
    migration::{Builder, Failure, Migration},
    progress::describe,
    qmp::Recorder,
};
use std::{process::ExitCode, thread};

pub(super) async fn run(options: Box<args::Options>) -> ExitCode {
    let (plan, json) = (options.plan, options.json);
    let work = async |builder| if plan { look(builder, json).await } else { migrate(builder, json).await };
    recorded(&options, plan, work).await
}

pub(super) async fn check(options: Box<args::Options>) -> ExitCode {
    recorded(&options, true, async |builder| look(builder, options.json).await).await
}

/// Does it with the transcript that was asked for.
async fn recorded(options: &args::Options, predict: bool, work: impl AsyncFnOnce(Builder) -> ExitCode) -> ExitCode {
    let mut builder =
        Migration::builder(options.source.clone(), options.destination.clone()).settings(options.settings(predict));
    let recorder = match options.transcript.as_ref().map(Recorder::create).transpose() {
        Ok(recorder) => recorder,
        Err(error) => return misused(&describe(&error)),
    };
    if let Some(recorder) = &recorder {
        builder = builder.transcript(recorder.clone());
    }
    let code = work(builder).await;
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

async fn migrate(builder: Builder, json: bool) -> ExitCode {
    let Some(signals) = Signals::watch() else { return failed("cannot watch for signals") };
    let mut migration = builder.start();
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
