//! The command: a thin user of the library.
//!
//! Owns arguments, what people see and exit codes. It must never decide anything about a migration.

mod args;
mod diagnose;
mod diagnose_options;
mod exit;
mod fix;
mod flags;
mod history;
mod journals;
mod live_migration;
mod log;
mod migrate;
mod plain_text;
mod plot;
mod prepare;
mod process_screen;
mod recorded;
mod render;
mod replay;
mod screen;
mod shell;
mod signals;
mod sweep;
mod transcript;
mod tree;
mod values;
mod watch;
mod watch_options;

use std::process::ExitCode;

pub use args::Arguments;
pub use log::CommandLog;

/// Runs the verb and gives the exit code of the contract.
pub fn run(arguments: Arguments) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(&format!("cannot start: {error}"), arguments.verb.is_json()),
    };
    let code = match arguments.verb {
        args::Verb::Migrate(options) => runtime.block_on(migrate::run(options)),
        args::Verb::Prepare(options) => runtime.block_on(prepare::run(options)),
        args::Verb::Check(options) => runtime.block_on(migrate::check(options)),
        args::Verb::Recover(options) => runtime.block_on(migrate::recover(&options)),
        args::Verb::History(options) => history::list(options.json),
        args::Verb::Transcript(options) => transcript::run(&options),
        args::Verb::Replay(options) => replay::run(&options),
        args::Verb::Diagnose(options) => runtime.block_on(diagnose::run(&options)),
        args::Verb::Watch(options) => runtime.block_on(watch::run(&options)),
        args::Verb::Sweep(options) => runtime.block_on(sweep::run(&options, Arguments::check)),
    };
    // a journal whose disk hangs is waited for no longer than it was
    runtime.shutdown_background();
    code
}
