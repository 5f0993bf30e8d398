//! What a build can do, read from its schema and never from its version: distributions patch both ways.
//!
//! Pure. The golden files under `qmp-fixtures` hold what each supported version is seen to have.

use super::Schema;
use serde::Serialize;
use std::collections::BTreeSet;

/// Commands without which nothing works; all are in QEMU 6.0 and later.
const NEEDED_COMMANDS: [&str; 12] = [
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove",
    "block-export-add",
    "block-job-cancel",
    "drive-mirror",
    "job-dismiss",
    "migrate-continue",
    "migrate-incoming",
    "nbd-server-start",
    "nbd-server-stop",
    "query-block-exports",
    "query-named-block-nodes",
];
const NEEDED_CAPABILITIES: [&str; 4] = ["events", "late-block-activate", "pause-before-switchover", "return-path"];

/// The features that the engine's course depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Features {
    /// `migrate-incoming` takes `exit-on-error` (9.1): a failed destination stays to tell why.
    pub incoming_exit_on_error: bool,
    /// `block-job-change` (8.2): a mirror can be switched to write-blocking, and tells `actively-synced`.
    pub block_job_change: bool,
    /// `calc-dirty-rate` takes `calc-time-unit` (8.2): a window may be shorter than a second.
    pub dirty_rate_milliseconds: bool,
    /// `blockdev-mirror` takes `target-is-zero` (10.1): such a build does not write zeros where there are some.
    pub mirror_target_is_zero: bool,
    /// `migrate-set-parameters` takes `avail-switchover-bandwidth` (8.2): QEMU can be told with what bandwidth to reckon
    /// when it decides to switch over.
    pub avail_switchover_bandwidth: bool,
    /// `MigrationStatus` has `failing` (11): such a build counts what is dirty about ten times a second, not at the end of
    /// a pass. The two have nothing to do with each other but came together; it is only used to foretell.
    pub failing_status: bool,
    /// How multifd channels can compress, by QEMU's names.
    pub multifd_compressions: BTreeSet<String>,
    /// Every migration capability by name.
    pub migration_capabilities: BTreeSet<String>,
    /// What of the needed commands, arguments and capabilities is missing; nothing can be done unless it is empty.
    pub missing: Vec<String>,
}

impl Features {
    /// Reads them from the schema.
    pub fn read(schema: &Schema<'_>) -> Self {
        let capabilities: BTreeSet<String> = schema
            .element_values("migrate-set-capabilities", "capabilities", "capability")
            .into_iter()
            .map(str::to_owned)
            .collect();
        let mut missing: Vec<String> = NEEDED_COMMANDS
            .iter()
            .filter(|name| !schema.has_command(name))
            .map(|name| format!("the command {name}"))
            .collect();
        if !schema.has_argument("drive-mirror", "auto-dismiss") {
            missing.push("the argument auto-dismiss of drive-mirror".to_owned());
        }
        let absent = NEEDED_CAPABILITIES.iter().filter(|&&name| !capabilities.contains(name));
        missing.extend(absent.map(|name| format!("the migration capability {name}")));
        Self {
            incoming_exit_on_error: schema.has_argument("migrate-incoming", "exit-on-error"),
            block_job_change: schema.has_command("block-job-change"),
            dirty_rate_milliseconds: schema.has_argument("calc-dirty-rate", "calc-time-unit"),
            mirror_target_is_zero: schema.has_argument("blockdev-mirror", "target-is-zero"),
            avail_switchover_bandwidth: schema.has_argument("migrate-set-parameters", "avail-switchover-bandwidth"),
            failing_status: schema.argument_values("migrate-continue", "state").contains(&"failing"),
            multifd_compressions: schema
                .argument_values("migrate-set-parameters", "multifd-compression")
                .into_iter()
                .map(str::to_owned)
                .collect(),
            migration_capabilities: capabilities,
            missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_named() {
        let answer = json!([]);
        let features = Features::read(&Schema::new(&answer));
        assert_eq!(features.missing.len(), NEEDED_COMMANDS.len() + 1 + NEEDED_CAPABILITIES.len());
        assert!(features.missing.contains(&"the migration capability return-path".to_owned()));
    }
}
