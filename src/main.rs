//! The `qferry` command.

use qferry::cli::{self, Arguments, CommandLog};
use std::process::ExitCode;
use tracing::Level;

fn main() -> ExitCode {
    let arguments = match Arguments::read(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
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
