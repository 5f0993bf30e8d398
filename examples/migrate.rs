//! Embeds qferry: moves a guest between two QEMUs with the library, and prints what happens.
//!
//! ```text
//! cargo run --example migrate -- unix:/run/vm/source.qmp unix:/run/vm/destination.qmp
//! ```
//!
//! The addresses are those of the two QMP monitors. The destination must wait with `-incoming defer -S`, on an overlay
//! of the same size as the source's. Exit code 0: the guest runs on the destination.

use qferry::{Address, Bytes, Ending, Kind, Migration};
use std::{error::Error, process::ExitCode, time::Duration};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(source), Some(destination)) = (arguments.next(), arguments.next()) else {
        return Err("usage: migrate SOURCE DESTINATION".into());
    };
    let (source, destination): (Address, Address) = (source.parse()?, destination.parse()?);

    // What is asked for; everything has a default. `plan()` in place of `start()` would look and change nothing.
    let mut migration = Migration::builder(source, destination)
        .downtime(Duration::from_millis(100))
        .timeout(Duration::from_secs(600))
        .start();

    // The migration runs whether or not anybody listens, and never waits for a listener. `Kind` may get new variants.
    let mut events = migration.events();
    let printer = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            let at = event.t_ms;
            match event.kind {
                Kind::Phase { phase, state } => println!("{at:>6} ms  {phase}: {state:?}"),
                Kind::Disk { disk, copied, total, ready, .. } => {
                    println!("{at:>6} ms  disk {disk}: {} of {}, ready: {ready}", Bytes(copied), Bytes(total));
                }
                Kind::Memory { transferred, remaining, .. } => {
                    println!("{at:>6} ms  memory: {} sent, {} to go", Bytes(transferred), Bytes(remaining));
                }
                Kind::Warning { message, .. } => println!("{at:>6} ms  warning: {message}"),
                Kind::Action { action, because } => println!("{at:>6} ms  {action}: {because}"),
                _ => {}
            }
        }
    });

    // Whoever wants to give up calls `migration.canceller().cancel()` meanwhile: the guest then stays on the source.
    let outcome = migration.wait().await;
    printer.await?;
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
