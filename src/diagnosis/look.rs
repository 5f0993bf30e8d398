//! What one side has answered at one moment.
//!
//! Pure.

use crate::qemu::reply::{MigrationInfo, RunState, TolerantList};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// The bytes that QEMU lets a mirror copy at once, and only then holds the mirror to its limit.
const BURST: f64 = 16.0 * 1048576.0;

/// The answers of one side at one moment. A question that was not answered leaves its default.
#[derive(Debug, Clone, Default)]
pub(super) struct MonitorLook {
    /// The time since the first look.
    pub(super) at: Duration,
    /// The run state.
    pub(super) run: Option<RunState>,
    /// `query-migrate`.
    pub(super) migration: MigrationInfo,
    /// Whether the migration is all that QEMU answers of it, and not its status alone by an event.
    pub(super) is_whole: bool,
    /// `query-block-jobs`.
    pub(super) mirrors: Vec<JobLook>,
    /// The jobs of `query-jobs` that are over and have not been dismissed.
    pub(super) concluded: Vec<ConcludedJob>,
    /// The ids of the exports of `query-block-exports`.
    pub(super) exports: Vec<ExportLook>,
    /// `query-chardev`, which tells of each monitor whether a client is connected.
    pub(super) chardevs: Vec<CharDeviceLook>,
}

/// An element of `query-block-jobs`. Sizes in bytes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct JobLook {
    pub(super) device: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) len: u64,
    pub(super) offset: u64,
    /// Bytes per second; 0 is no limit.
    pub(super) speed: u64,
    pub(super) ready: bool,
    pub(super) paused: bool,
    pub(super) status: String,
    /// `ok`, `failed` or `nospace`.
    pub(super) io_status: String,
    pub(super) error: Option<String>,
}

impl MonitorLook {
    /// Takes the answer to a command in; `false` where a look has no place for that command.
    pub(super) fn take(&mut self, command: &str, answer: &Value) -> bool {
        match command {
            "query-status" => self.run = answer.get("status").and_then(Value::as_str).map(Into::into),
            "query-migrate" => {
                (self.migration, self.is_whole) = (Deserialize::deserialize(answer).unwrap_or_default(), true);
            }
            "query-block-jobs" => self.mirrors = list(answer),
            "query-jobs" => {
                let jobs: Vec<ConcludedJob> = list(answer);
                self.concluded = jobs.into_iter().filter(|job| job.status == "concluded").collect();
            }
            "query-block-exports" => self.exports = list(answer),
            "query-chardev" => self.chardevs = list(answer),
            _ => return false,
        }
        true
    }
}

impl JobLook {
    /// The bytes yet to copy.
    pub(super) fn remaining(&self) -> u64 {
        self.len.saturating_sub(self.offset)
    }

    /// The time between two bursts in which a mirror that is limited copies, where that is so long that a look of this
    /// length tells nothing.
    pub(super) fn untold(&self, looked: Duration) -> Option<Duration> {
        let between = Duration::try_from_secs_f64(BURST / self.speed as f64).ok()?;
        (self.speed > 0 && between >= looked).then_some(between)
    }

    /// Whether somebody has paused the job, or its own error has.
    pub(super) fn is_paused(&self) -> bool {
        self.paused && matches!(self.status.as_str(), "paused" | "standby")
    }
}

/// An element of `query-jobs`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct ConcludedJob {
    pub(super) id: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) error: Option<String>,
}

/// An element of `query-block-exports`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct ExportLook {
    pub(super) id: String,
    pub(super) node_name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
}

/// An element of `query-chardev`: a character device, such as the socket of a monitor.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct CharDeviceLook {
    pub(super) label: String,
    /// What it is connected with; begins with `disconnected:` where it is a socket without a client.
    pub(super) filename: String,
}

/// A node of the block graph, as far as a remedy names it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct NodeLook {
    pub(super) node_name: String,
    pub(super) drv: String,
    pub(super) file: String,
    /// Whether QEMU may use it; not told before 10.0.
    pub(super) active: Option<bool>,
}

impl NodeLook {
    /// Whether the node is the client of an NBD server over TCP.
    pub(super) fn is_tcp_client(&self) -> bool {
        let has = |part: &str| self.file.contains(part);
        self.drv == "nbd" && (self.file.starts_with("nbd://") || has("\"port\"") && has("\"host\""))
    }

    /// Whether the node is the client of an NBD server at this port.
    pub(super) fn leads_to(&self, port: u16) -> bool {
        // QEMU writes an address as nbd://HOST:PORT/EXPORT, or, with options, as JSON
        let (written, quoted) = (format!(":{port}"), format!("\"{port}\""));
        let is_written = || self.file.split('/').any(|part| part.ends_with(&written));
        self.drv == "nbd" && (self.file.contains(&quoted) || is_written())
    }
}

/// An element of `query-yank`: a connection that can be cut.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(super) enum YankLook {
    /// The connection of an NBD client.
    #[serde(rename_all = "kebab-case")]
    BlockNode {
        /// The node.
        node_name: String,
    },
    /// The migration's channel.
    Migration,
    /// A character device's connection, and what a later QEMU adds.
    #[serde(other)]
    Other,
}

impl YankLook {
    /// The connection as an argument of `yank`; `None` for those that no remedy cuts.
    pub(super) fn instance(&self) -> Option<Value> {
        match self {
            Self::BlockNode { node_name } => Some(json!({ "type": "block-node", "node-name": node_name })),
            Self::Migration => Some(json!({ "type": "migration" })),
            Self::Other => None,
        }
    }
}

/// The most elements of a list, and characters of a text, that are kept of an answer.
pub(super) const KEPT_OF_LIST: usize = 1024;
const KEPT: (usize, usize) = (KEPT_OF_LIST, 1024);

/// Cuts what is endless in an answer.
pub(super) fn bound(answer: &mut Value) {
    match answer {
        Value::String(text) => {
            if let Some((at, _)) = text.char_indices().nth(KEPT.1) {
                text.truncate(at);
            }
        }
        Value::Array(elements) => {
            elements.truncate(KEPT.0);
            elements.iter_mut().for_each(bound);
        }
        Value::Object(members) => {
            while members.len() > KEPT.0 {
                let Some(last) = members.keys().next_back().cloned() else { break };
                members.remove(&last);
            }
            members.values_mut().for_each(bound);
        }
        _ => {}
    }
}

/// A list of which the strange elements are left out.
pub(super) fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    TolerantList::deserialize(value).unwrap_or_default().0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strange_answers_cost_nothing_but_themselves() {
        let jobs: Vec<JobLook> = list(&json!([{"device": "a", "len": 3, "offset": 5}, 7, {"device": 1}]));
        assert_eq!(jobs.len(), 1);
        assert_eq!(jobs[0].remaining(), 0);
        assert_eq!(list::<JobLook>(&json!({"not": "a list"})), []);
        let yanks: Vec<YankLook> = list(&json!([{"type": "migration"}, {"type": "block-node", "node-name": "n"},
            {"type": "chardev", "id": "c"}]));
        assert_eq!(yanks, [YankLook::Migration, YankLook::BlockNode { node_name: "n".to_owned() }, YankLook::Other]);
    }

    #[test]
    fn an_endless_answer_is_cut() {
        let mut answer =
            json!({ "name": "ä".repeat(5000), "list": vec!["x".repeat(2000); 5000], "short": "y", "n": 1 });
        bound(&mut answer);
        assert_eq!(answer["name"].as_str().map(|name| name.chars().count()), Some(1024));
        assert_eq!(answer["list"].as_array().map(Vec::len), Some(1024));
        assert_eq!(answer["list"][7].as_str().map(str::len), Some(1024));
        assert_eq!((&answer["short"], &answer["n"]), (&json!("y"), &json!(1)));
        let mut many: Value = (0..3000).map(|number| (number.to_string(), json!(number))).collect();
        bound(&mut many);
        assert_eq!(many.as_object().map(serde_json::Map::len), Some(1024));
    }
}
