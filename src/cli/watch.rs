//! `qferry watch`: the live view of a migration that anybody runs, or its samples for a program.

use super::{
    exit::{failed, misused},
    render,
    screen::{SessionEnd, ViewMode, ViewSession, WatchFeed, refusal},
    signals::Signals,
    watch_options::WatchArguments,
};
use crate::{
    diagnosis::{Diagnosis, SideReport, WatchSettings, WatchSnapshot, Watching},
    progress::describe,
};
use serde_json::json;
use std::{
    io,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{sync::oneshot, time::timeout};

/// The time within which a view or a writer that a signal ends must end; a terminal or a pipe may take nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// The part of a pause between two looks at the clock while lines are written.
const TICK: Duration = Duration::from_millis(50);

/// How a watch ended.
enum WatchEnd {
    /// As its user wanted; with the last sentence.
    Over(Option<String>),
    /// The terminal cannot be used.
    NoTerminal(io::Error),
}

/// Watches.
pub(super) async fn run(options: &WatchArguments) -> ExitCode {
    if let Some(why) = refusal().filter(|_| !options.json) {
        return misused(&format!("{why}: say --json for samples as lines, or qferry diagnose for one look"), false);
    }
    // Ctrl-Z is caught as well: a view that is suspended would leave the terminal as no shell wants it
    let Some(mut signals) = Signals::watch() else { return failed("cannot watch for signals", options.json) };
    let watching = match Watching::start(&WatchSettings::new(options.sides.iter().cloned())) {
        Ok(watching) => watching,
        Err(error) if error.is_misuse() => return misused(&describe(&error), options.json),
        Err(error) => return failed(&describe(&error), options.json),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, mut finished) = oneshot::channel();
    // a thread of its own: a terminal or a pipe that takes nothing must not keep QEMU's lines from being read
    let (json, lasting, stopped) = (options.json, options.lasting.map(Duration::from), stop.clone());
    thread::spawn(move || {
        let until = lasting.and_then(|lasting| Instant::now().checked_add(lasting));
        let is_over = || stopped.load(Ordering::Acquire) || until.is_some_and(|until| Instant::now() >= until);
        let end = if json { stream(watching, is_over) } else { show(watching, is_over) };
        drop(ended.send(end));
    });
    let end = tokio::select! {
        end = &mut finished => Some(end),
        () = signals.asked() => None,
    };
    let end = match end {
        Some(end) => end.ok(),
        None => {
            stop.store(true, Ordering::Release);
            timeout(PATIENCE, finished).await.ok().and_then(Result::ok)
        }
    };
    match end {
        Some(WatchEnd::Over(Some(verdict))) => render::print(&format!("{verdict}\n")),
        Some(WatchEnd::NoTerminal(error)) => {
            return failed(&format!("the terminal cannot be used: {error}; --json needs none"), false);
        }
        Some(WatchEnd::Over(None)) | None => {}
    }
    ExitCode::SUCCESS
}

/// Shows the view until its user leaves, or it is over.
fn show(mut watching: Watching, is_over: impl Fn() -> bool) -> WatchEnd {
    let mut session = match ViewSession::begin(ViewMode::Watch) {
        Ok(session) => session,
        Err(error) => return WatchEnd::NoTerminal(error),
    };
    let mut feed = WatchFeed::default();
    let mut due = Instant::now();
    while !is_over() {
        if Instant::now() >= due {
            feed.take(&watching.snapshot());
            // soon after the first looks there is something to see
            due = Instant::now() + if feed.has_seen() { Watching::PAUSE } else { TICK };
        }
        session.notes().iter().for_each(|note| feed.note(note));
        match session.step(feed.view()) {
            SessionEnd::None => {}
            SessionEnd::Lost(Some(error)) => return WatchEnd::NoTerminal(error),
            SessionEnd::Left | SessionEnd::Interrupted | SessionEnd::Lost(None) => break,
        }
    }
    WatchEnd::Over(Some(feed.verdict().to_owned()))
}

/// Writes lines until their reader goes away, or it is over.
fn stream(mut watching: Watching, is_over: impl Fn() -> bool) -> WatchEnd {
    let mut told: Option<Vec<String>> = None;
    let mut due = Instant::now() + Watching::PAUSE;
    while !is_over() {
        thread::sleep(TICK.min(due.saturating_duration_since(Instant::now())));
        if Instant::now() >= due {
            due = Instant::now() + Watching::PAUSE;
            if write(&watching.snapshot(), &mut told).is_err() {
                break;
            }
        }
    }
    WatchEnd::Over(None)
}

/// Writes what was seen: the events, then a sample, then the diagnosis where its causes have changed.
fn write(snapshot: &WatchSnapshot, told: &mut Option<Vec<String>>) -> io::Result<()> {
    let t_ms = u64::try_from(snapshot.at.as_millis()).unwrap_or(u64::MAX);
    for event in &snapshot.events {
        render::result("event", u64::try_from(event.at.as_millis()).unwrap_or(u64::MAX), event)?;
    }
    if snapshot.lost_events > 0 {
        render::result("events-lost", t_ms, &json!({ "events": snapshot.lost_events }))?;
    }
    let Diagnosis { verdict, causes, source, destination, .. } = &snapshot.diagnosis;
    // each sample has its own moment alone
    let now = |side: &Option<SideReport>| {
        let mut side = side.clone()?;
        let last = |remaining: &mut Vec<u64>| drop(remaining.drain(..remaining.len().saturating_sub(1)));
        last(&mut side.remaining);
        side.mirrors.iter_mut().for_each(|mirror| last(&mut mirror.remaining));
        Some(side)
    };
    let blackout_ms = snapshot.blackout.map(|pause| pause.as_secs_f64() * 1000.0);
    let codes: Vec<String> = causes.iter().map(|cause| cause.code.to_string()).collect();
    let sample = json!({
        "verdict": verdict, "causes": codes, "source": now(source), "destination": now(destination),
        "moved": snapshot.moved, "blackout_ms": blackout_ms,
    });
    render::result("sample", t_ms, &sample)?;
    if told.as_ref() != Some(&codes) {
        render::result("diagnosis", t_ms, &snapshot.diagnosis)?;
        *told = Some(codes);
    }
    Ok(())
}
