//! The features of a build, read from its schema and never from its version: distributions add and remove features.
//!
//! Pure. The golden files under `qmp-fixtures` hold the features of each supported version.

use super::schema::Schema;
use serde::Serialize;
use std::collections::BTreeSet;

/// Commands that every migration needs; QEMU has all of them since 6.0.
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

/// The features on which the engine's course depends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Features {
    /// `migrate-incoming` takes `exit-on-error` (9.1): a destination that failed stays alive and can tell why.
    pub incoming_exit_on_error: bool,
    /// `block-job-change` (8.2): a mirror can be switched to write-blocking, and reports `actively-synced`.
    pub block_job_change: bool,
    /// `calc-dirty-rate` (5.2): QEMU can measure how fast the guest dirties its RAM.
    pub dirty_rate: bool,
    /// `calc-dirty-rate` takes `calc-time-unit` (8.2): the measurement may be shorter than a second.
    pub dirty_rate_milliseconds: bool,
    /// `blockdev-mirror` takes `target-is-zero` (10.1): such a build does not write zeros over zeros.
    pub mirror_target_is_zero: bool,
    /// `migrate-set-parameters` takes `avail-switchover-bandwidth` (8.2): the bandwidth that QEMU assumes when it
    /// decides whether to switch over can be set.
    pub avail_switchover_bandwidth: bool,
    /// `migrate-set-parameters` takes `zero-page-detection` (9.0): pages of zeros can be sent whole.
    pub zero_page_detection: bool,
    /// `announce-self` (4.0): a QEMU that runs a guest can tell the network again where its cards are.
    pub announce_self: bool,
    /// `block-latency-histogram-set` takes `boundaries-write` (4.0): QEMU can count how long a guest's writes take.
    pub latency_histograms: bool,
    /// `trace-event-get-state` and `trace-event-set-state` (2.1): QEMU can be told to log what it does.
    pub trace_events: bool,
    /// Socket addresses have `keep-alive-idle` and its like (10.1): QEMU can notice in time that a peer's host is gone.
    pub keep_alive_times: bool,
    /// The methods by which multifd channels can compress, by QEMU's names.
    pub multifd_compressions: BTreeSet<String>,
    /// Every migration capability by name.
    pub migration_capabilities: BTreeSet<String>,
    /// The needed commands, arguments and capabilities that the build lacks; a migration takes an empty list.
    pub missing: Vec<String>,
}

impl Features {
    /// Reads the features from the schema.
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
            dirty_rate: schema.has_command("calc-dirty-rate"),
            dirty_rate_milliseconds: schema.has_argument("calc-dirty-rate", "calc-time-unit"),
            mirror_target_is_zero: schema.has_argument("blockdev-mirror", "target-is-zero"),
            avail_switchover_bandwidth: schema.has_argument("migrate-set-parameters", "avail-switchover-bandwidth"),
            zero_page_detection: schema.has_argument("migrate-set-parameters", "zero-page-detection"),
            announce_self: schema.has_command("announce-self"),
            latency_histograms: schema.has_argument("block-latency-histogram-set", "boundaries-write"),
            trace_events: ["trace-event-get-state", "trace-event-set-state"]
                .iter()
                .all(|name| schema.has_command(name)),
            keep_alive_times: schema.has_member("keep-alive-idle"),
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

    #[test]
    fn what_is_missing_is_named() {
        let features = Features::read(&Schema::default());
        assert_eq!(features.missing.len(), NEEDED_COMMANDS.len() + 1 + NEEDED_CAPABILITIES.len());
        assert!(features.missing.contains(&"the migration capability return-path".to_owned()));
    }
}
