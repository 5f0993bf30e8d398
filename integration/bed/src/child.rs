//! Children that must end in time.

use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Between two looks at a child.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Runs a command to its end.
///
/// # Errors
/// The command cannot be started, or its child has not ended in time, which kills it.
pub fn run_within(command: &mut Command, name: &str, patience: Duration) -> Result<ExitStatus> {
    let mut child = command.spawn().map_err(|error| Error::new(format!("starting {name}: {error}")))?;
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait().map_err(|error| Error::new(error.to_string()))? {
            Some(status) => return Ok(status),
            None if Instant::now() > deadline => {
                drop((child.kill(), child.wait()));
                return Err(Error::new(format!("{name} did not end in {patience:?}")));
            }
            None => thread::sleep(LOOK_AGAIN),
        }
    }
}
