//! `qferry migrate`, `qferry check` and `qferry recover`.

use super::{
    args,
    exit::{failed, misused},
    flags, journals, live_migration,
    recorded::{TranscriptPlace, recorded},
    render,
    screen::{self, EngineLimits},
    signals::Signals,
};
use crate::{
    migration::{Builder, Invalid, Migration, Running, run_as},
    progress::Outcome,
    run_id::RunId,
};
use std::{process::ExitCode, thread, time::Instant};

pub(super) async fn run(options: Box<args::Options>) -> ExitCode {
    let (plan, json) = (options.plan, options.json);
    let work = async |builder: Builder| match plan {
        true => look(builder, json).await,
        false => {
            let limits = options.tui.then(|| limits(&options));
            follow(|| builder.start(), json, limits).await
        }
    };
    if let Some(why) = screen::refusal().filter(|_| options.tui) {
        return misused(&format!("{why}, which --tui needs; without it, progress is told in lines"), json);
    }
    built(&options, plan, work).await
}

/// What the live view tells of the user's own limits.
fn limits(options: &args::Options) -> EngineLimits {
    let settings = options.settings(false);
    EngineLimits {
        addresses: [&options.source, &options.destination].map(ToString::to_string),
        budget: settings.downtime,
        bandwidth: settings.bandwidth,
        policy: settings.policy.name,
    }
}

pub(super) async fn check(options: Box<args::Options>) -> ExitCode {
    if options.tui {
        return misused("--tui shows a migration while it runs, and check runs none", options.json);
    }
    built(&options, true, async |builder| look(builder, options.json).await).await
}

pub(super) async fn recover(options: &args::Recover) -> ExitCode {
    let Some(journal) = &options.journal else { return journals::list(options.json) };
    let mut recovery = Migration::recover(journal);
    if let Some(command) = &options.fence_command {
        recovery = recovery.fence_command(command);
    }
    if let Some(limit) = options.fence_timeout {
        recovery = recovery.fence_timeout(limit);
    }
    if let Err(invalid) = recovery.validate() {
        return misused(&flags::worded(&invalid), options.json);
    }
    let place = options.transcript.clone().map_or(TranscriptPlace::Nowhere, TranscriptPlace::File);
    recorded(place, None, options.json, async |recorder| {
        if let Some(recorder) = recorder {
            recovery = recovery.transcript(recorder);
        }
        follow(|| recovery.start(), options.json, None).await
    })
    .await
}

/// Does it with the options, and the transcript that was asked for. Without a word a migration is recorded in the ring.
async fn built(options: &args::Options, look: bool, work: impl AsyncFnOnce(Builder) -> ExitCode) -> ExitCode {
    let run = RunId::new();
    let (source, destination) = (options.source.clone(), options.destination.clone());
    let mut builder = Migration::builder(source, destination).settings(options.settings(look));
    // before a transcript is made
    if let Err(invalid) = builder.validate() {
        return misused(&flags::worded(&invalid), options.json);
    }
    let place = match &options.transcript {
        Some(file) => TranscriptPlace::File(file.clone()),
        None if look || options.no_transcript => TranscriptPlace::Nowhere,
        None => TranscriptPlace::Ring,
    };
    let addresses = [&options.source, &options.destination].map(ToString::to_string);
    recorded(place, Some((run.clone(), addresses)), options.json, async |recorder| {
        if let Some(recorder) = recorder {
            builder = builder.transcript(recorder);
        }
        work(run_as(builder, run)).await
    })
    .await
}

async fn look(builder: Builder, json: bool) -> ExitCode {
    let Some(signals) = Signals::watch() else { return failed("cannot watch for signals", json) };
    // before the engine's own clock, so that the last line is not of an earlier time than those before
    let began = Instant::now();
    let mut check = match builder.check() {
        Ok(check) => check,
        Err(invalid) => return misused(&flags::worded(&invalid), json),
    };
    let events = check.events();
    let screen = thread::spawn(move || render::follow(events, json));
    let control = check.control();
    let looked = signals.cancelling(&control, check.wait()).await;
    drop(screen.join());
    let elapsed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (told, code) = match looked {
        Ok(plan) => {
            let code = if plan.blockers().next().is_some() { 3 } else { 0 };
            (render::plan(&plan, json, elapsed), code)
        }
        Err(reason) => {
            let code = match reason.code.as_str() {
                "cancelled" => 5,
                "internal" => 1,
                _ => 3,
            };
            (render::unplanned(&reason, json, elapsed), code)
        }
    };
    match told {
        Ok(()) => ExitCode::from(code),
        // a check that nobody could read has not said that the guest could move
        Err(error) => failed(&format!("what was found cannot be written: {error}"), false),
    }
}

/// Starts it, and shows it to its end: in the live view, where there are limits for that.
async fn follow(
    start: impl FnOnce() -> Result<Running<Outcome>, Invalid>,
    json: bool,
    live: Option<EngineLimits>,
) -> ExitCode {
    let Some(signals) = Signals::watch() else { return failed("cannot watch for signals", json) };
    let mut running = match start() {
        Ok(running) => running,
        Err(invalid) => return misused(&flags::worded(&invalid), json),
    };
    let events = running.events();
    // a thread of its own: a terminal or pipe that blocks must not hold the command up
    let control = running.control();
    let cancel = control.clone();
    let screen = thread::spawn(move || match live {
        Some(limits) => live_migration::follow(events, limits, &cancel),
        None => render::follow(events, json),
    });
    let outcome = signals.cancelling(&control, running.wait()).await;
    if screen.join().is_err() {
        render::say("qferry: the display failed; the migration did not");
    }
    ExitCode::from(outcome.outcome.exit_code())
}
