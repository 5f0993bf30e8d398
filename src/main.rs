//! The `qferry` command.

use clap::Parser;
use qferry::cli::{self, Arguments};
use std::{io, process::ExitCode};
use tracing::Level;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let level = match arguments.verbose {
        0 => Level::ERROR,
        1 => Level::INFO,
        2 => Level::DEBUG,
        _ => Level::TRACE,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).init();
    cli::run(arguments)
}
