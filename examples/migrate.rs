//! Embeds qferry: moves a guest between two QEMUs with the library, and prints what happens.
//!
//! ```text
//! cargo run --example migrate -- unix:/run/vm/source.qmp unix:/run/vm/destination.qmp [DOWNTIME_MS]
//! ```
//!
//! The addresses are those of the two QMP monitors. The destination must wait with `-incoming defer -S`, on an overlay
//! of the same size as the source's. Exit code 0: the guest runs on the destination.

use qferry::{Address, Bytes, Ending, Event, EventKind, Migration};
use std::{error::Error, process::ExitCode, time::Duration};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(source), Some(destination)) = (arguments.next(), arguments.next()) else {
        return Err("usage: migrate SOURCE DESTINATION [DOWNTIME_MS]".into());
    };
    let downtime = arguments.next().map_or(Ok(100), |downtime| downtime.parse())?;
    let (source, destination): (Address, Address) = (source.parse()?, destination.parse()?);

    // Everything has a default. `check()` in place of `run_blocking` would look and change nothing, and `start()` gives
    // a handle to await, to follow from other threads, and to cancel: the guest then stays on the source.
    let outcome = Migration::builder(source, destination)
        .downtime(Duration::from_millis(downtime))
        .timeout(Duration::from_secs(600))
        .run_blocking(print)?;

    match (outcome.outcome, outcome.reason) {
        (Ending::Moved, _) => {
            println!("moved, after a blackout of {:.1} ms", outcome.blackout_ms.unwrap_or_default());
            Ok(ExitCode::SUCCESS)
        }
        (ending, reason) => {
            let why = reason.map_or_else(String::new, |reason| reason.message);
            eprintln!("{ending}: the guest is on: {:?}. {why}", outcome.runs_on);
            Ok(ExitCode::from(ending.exit_code()))
        }
    }
}

/// The engine never waits for this. `Kind` may get new variants.
fn print(event: &Event) {
    let at = event.t_ms;
    match &event.kind {
        EventKind::Phase { phase, state, .. } => println!("{at:>6} ms  {phase}: {state:?}"),
        EventKind::Disk { disk, copied, total, ready, .. } => {
            println!("{at:>6} ms  disk {disk}: {} of {}, ready: {ready}", Bytes(*copied), Bytes(*total));
        }
        EventKind::Memory { transferred, remaining, .. } => {
            println!("{at:>6} ms  memory: {} sent, {} to go", Bytes(*transferred), Bytes(*remaining));
        }
        EventKind::Warning { message, .. } => println!("{at:>6} ms  warning: {message}"),
        EventKind::Action { action, because, .. } => println!("{at:>6} ms  {action}: {because}"),
        _ => {}
    }
}
