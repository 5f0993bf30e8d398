//! Puts capabilities and parameters back that QEMU takes no change of while somebody else's migration is under way.

use super::destination::LOOK;
use crate::{
    memory::{apply, tuning::PreviousTuning},
    qemu::{Process, ProcessError, reply::MigrationStatus},
};
use qapi::qmp;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long the end of somebody else's migration is waited for, and how often QEMU is tried.
const PATIENCE: Duration = Duration::from_secs(10);
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// What comes next of settings that QEMU refused to take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextTry {
    /// Wait for the end of the migration that holds the settings, and try again.
    Later,
    /// Name the settings with the migration that holds them: nothing but that migration's owner can end it in time.
    Held,
    /// The refusal has another cause.
    Refused,
}

/// Decides about settings that QEMU refused to take back, by the status of the migration. A migration that meets this
/// run's `pause-before-switchover` stands in `pre-switchover` until somebody acts: no wait helps.
fn next_try(migration: &MigrationStatus, is_own: bool, patience_left: bool) -> NextTry {
    match migration {
        status if status.is_over() || is_own => NextTry::Refused,
        MigrationStatus::PreSwitchover => NextTry::Held,
        _ if patience_left => NextTry::Later,
        _ => NextTry::Held,
    }
}

/// Puts the settings of one side back. `is_own` says that this run's own migration could not be ended. Returns the
/// words for settings that somebody else's migration holds.
///
/// # Errors
/// QEMU refuses for another reason, or does not answer.
pub(super) async fn restore_settings(
    process: &Process,
    before: &PreviousTuning,
    is_own: bool,
) -> Result<Option<String>, ProcessError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let Err(error) = apply::restore(process, before).await else { return Ok(None) };
        if !error.is_refusal() {
            return Err(error);
        }
        let asked = timeout(LOOK, process.ask(&qmp::query_migrate {})).await;
        let Some(status) = asked.ok().and_then(Result::ok).and_then(|answer| answer.status) else {
            return Err(error);
        };
        match next_try(&status, is_own, Instant::now() < until) {
            NextTry::Refused => return Err(error),
            NextTry::Held => return Ok(Some(describe_held(process, &status))),
            NextTry::Later => sleep(TRY_AGAIN).await,
        }
    }
}

fn describe_held(process: &Process, status: &MigrationStatus) -> String {
    let name = process.name();
    let settings = "this run's migration capabilities and parameters are set yet";
    match status {
        MigrationStatus::PreSwitchover => format!(
            "{name}: {settings}, and somebody else's migration waits in pre-switchover by this run's \
             pause-before-switchover, with the guest stopped: whoever began it sends migrate-continue or migrate_cancel; \
             then recover again"
        ),
        _ => format!(
            "{name}: {settings}, for QEMU takes no change of them while somebody else's migration is under way \
             ({status}): that migration will stop the guest and wait in pre-switchover for a migrate-continue or \
             migrate_cancel of whoever began it; then recover again"
        ),
    }
}

#[cfg(test)]
mod tests {
    //! Promise: foreign-migration.

    use super::*;

    #[test]
    fn settings_are_tried_again_while_somebody_elses_migration_may_end() {
        use NextTry::{Held, Later, Refused};
        for (status, is_own, left, expected) in [
            ("active", false, true, Later),
            ("setup", false, true, Later),
            ("of-tomorrow", false, true, Later),
            ("active", false, false, Held),
            ("pre-switchover", false, true, Held),
            ("pre-switchover", false, false, Held),
            ("active", true, true, Refused),
            ("pre-switchover", true, true, Refused),
            ("completed", false, true, Refused),
            ("failed", false, true, Refused),
            ("cancelled", false, true, Refused),
            ("none", false, true, Refused),
        ] {
            let found = next_try(&MigrationStatus::from(status), is_own, left);
            assert_eq!(found, expected, "{status} {is_own} {left}");
        }
    }
}
