//! `qferry migrate`.

use super::{args, failed, misused, render, signals::Signals};
use crate::{
    migration::{Migration, Plan},
    qmp::Recorder,
};
use std::{process::ExitCode, thread};

pub(super) async fn run(options: Box<args::Migrate>) -> ExitCode {
    let mut builder =
        Migration::builder(options.source.clone(), options.destination.clone()).settings(options.settings());
    let recorder = match options.transcript.as_ref().map(Recorder::create).transpose() {
        Ok(recorder) => recorder,
        Err(error) => return misused(&crate::migration::describe(&error)),
    };
    if let Some(recorder) = &recorder {
        builder = builder.transcript(recorder.clone());
    }
    let code = if options.plan { plan(builder, options.json).await } else { migrate(builder, options.json).await };
    match recorder.map(|recorder| recorder.finish()) {
        Some(Err(error)) => {
            render::say(&format!("qferry: {}", crate::migration::describe(&error)));
            code
        }
        _ => code,
    }
}

async fn plan(builder: crate::migration::Builder, json: bool) -> ExitCode {
    match builder.plan().await {
        Ok(plan) => {
            render::plan(&plan, json);
            ExitCode::from(if refused(&plan) { 3 } else { 0 })
        }
        Err(failure) => {
            render::unplanned(&failure.reason(), json);
            ExitCode::from(3)
        }
    }
}

fn refused(plan: &Plan) -> bool {
    plan.blockers().next().is_some()
}

async fn migrate(builder: crate::migration::Builder, json: bool) -> ExitCode {
    let Some(mut signals) = Signals::watch() else { return failed("cannot watch for signals") };
    let mut migration = builder.start();
    let events = migration.events();
    // a thread of its own: a terminal or pipe that blocks must not hold the engine up
    let screen = thread::spawn(move || render::follow(events, json));
    let canceller = migration.canceller();
    let ended = migration.wait();
    tokio::pin!(ended);
    let outcome = loop {
        tokio::select! {
            outcome = &mut ended => break outcome,
            () = signals.any() => canceller.cancel(),
        }
    };
    if screen.join().is_err() {
        render::say("qferry: the display failed; the migration did not");
    }
    ExitCode::from(outcome.outcome.exit_code())
}
