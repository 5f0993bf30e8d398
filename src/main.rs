//! The `qferry` command.

use clap::Parser;
use qferry::cli::{self, Arguments, CommandLog};
use std::process::ExitCode;
use tracing::Level;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let log = CommandLog::start(match arguments.verbose {
        0 => Level::ERROR,
        1 => Level::INFO,
        2 => Level::DEBUG,
        _ => Level::TRACE,
    });
    let code = cli::run(arguments);
    log.finish();
    code
}
