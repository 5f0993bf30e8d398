//! `qferry migrate`.

use super::{args, failed, misused, render};
use crate::{
    migration::{Migration, Plan},
    qmp::Recorder,
};
use std::{process::ExitCode, thread};
use tokio::signal::unix::{SignalKind, signal};

pub(super) async fn run(options: Box<args::Migrate>) -> ExitCode {
    let mut builder =
        Migration::builder(options.source.clone(), options.destination.clone()).settings(options.settings());
    let recorder = match options.transcript.as_ref().map(Recorder::create).transpose() {
        Ok(recorder) => recorder,
        Err(error) => return misused(&crate::progress::describe(&error)),
    };
    if let Some(recorder) = &recorder {
        builder = builder.transcript(recorder.clone());
    }
    let code = if options.plan { plan(builder, options.json).await } else { migrate(builder, options.json).await };
    match recorder.map(|recorder| recorder.finish()) {
        Some(Err(error)) => {
            render::say(&format!("qferry: {}", crate::progress::describe(&error)));
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
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [mut interrupt, mut terminate, mut hangup] = match kinds {
        [Ok(interrupt), Ok(terminate), Ok(hangup)] => [interrupt, terminate, hangup],
        _ => return failed("cannot watch for signals"),
    };
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
            _ = interrupt.recv() => canceller.cancel(),
            _ = terminate.recv() => canceller.cancel(),
            // nobody is there to see how it goes on
            _ = hangup.recv() => canceller.cancel(),
        }
    };
    if screen.join().is_err() {
        render::say("qferry: the display failed; the migration did not");
    }
    ExitCode::from(outcome.outcome.exit_code())
}
