//! The answers of both QEMUs over the bed's own monitors, once the engine has ended.

use std::time::Duration;

use qferry_bed::{Machine, Pair, Result};
use serde_json::json;

/// The limit for anything that a QEMU or a guest does on a busy machine.
pub(super) const WAIT: Duration = Duration::from_secs(120);

/// One side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The process has ended.
    Dead,
    /// The process is alive and does not answer.
    Silent,
    /// The monitor answers with these states.
    Answers { run: String, migration: String },
}

/// Both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) source: Seen,
    pub(crate) destination: Seen,
}

impl Seen {
    fn of(machine: &Machine) -> Result<Self> {
        if !machine.alive()? {
            return Ok(Self::Dead);
        }
        let asked =
            machine.status().and_then(|run| Ok((run, machine.qmp("query-migrate", &json!({}))?["status"].clone())));
        match asked {
            Ok((run, migration)) => {
                Ok(Self::Answers { run, migration: migration.as_str().unwrap_or("none").to_owned() })
            }
            Err(_) if machine.wait_for_end(WAIT).is_ok() => Ok(Self::Dead),
            Err(_) => Ok(Self::Silent),
        }
    }

    pub(crate) fn runs(&self) -> bool {
        matches!(self, Self::Answers { run, .. } if run == "running")
    }
}

impl Look {
    pub(crate) fn at(pair: &Pair) -> Result<Self> {
        Ok(Self { source: Seen::of(&pair.source)?, destination: Seen::of(&pair.destination)? })
    }
}
