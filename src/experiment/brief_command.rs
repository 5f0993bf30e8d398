//! Commands beside a trial that end by themselves: those of `prepare` and `cleanup`, and the making of an image.

use super::started_qemu::{TrialError, last_line};
use std::{path::PathBuf, time::Duration};
use tokio::{process::Command, time::timeout};

/// The time that such a command has.
const SHELL: Duration = Duration::from_secs(600);

/// Runs a command of `prepare` or `cleanup`, where there is one.
///
/// # Errors
/// It does not start, fails, or does not end.
pub(super) async fn hook(command: Option<&String>, name: &str, places: &[(&str, &PathBuf)]) -> Result<(), TrialError> {
    let Some(command) = command else { return Ok(()) };
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).envs(places.iter().map(|(name, path)| (*name, path.as_os_str())));
    run_briefly(shell, name).await
}

/// Runs a command to its end.
///
/// # Errors
/// It does not start, fails, or does not end.
pub(super) async fn run_briefly(mut command: Command, name: &str) -> Result<(), TrialError> {
    let ended = timeout(SHELL, command.kill_on_drop(true).output()).await;
    let output = match ended {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => return Err(TrialError::Start { program: name.to_owned(), source }),
        Err(_) => return Err(TrialError::Other(format!("{name} has not ended within {} s", SHELL.as_secs()))),
    };
    if output.status.success() {
        return Ok(());
    }
    Err(TrialError::Other(format!("{name} failed ({}): {}", output.status, last_line(&output.stderr))))
}
