//! The settings of a QMP connection.
//!
//! The module owns the defaults and the bounds on memory. It must never read a setting from anywhere but its caller.

use std::sync::Arc;
use std::time::Duration;

use super::transcript::Recorder;

/// Settings of one QMP connection.
#[derive(Clone, Debug)]
pub struct QmpOptions {
    /// Name of the connection in the transcript and the log, such as `source`.
    pub label: Arc<str>,
    /// Deadline for the greeting, and again for the answer to the negotiation.
    pub greeting_deadline: Duration,
    /// Whether to enable out-of-band execution where QEMU offers it.
    pub oob: bool,
    /// Longest line accepted, in bytes. A longer line is thrown away and counted.
    pub max_line: usize,
    /// Longest event kept with its data, in bytes on the line. A longer event is passed on without data and counted.
    /// A flood of events can cost more memory than `max_event` times `event_capacity`, because parsed JSON is larger
    /// than its text: the two bytes `0,` become a value of 32 bytes.
    pub max_event: usize,
    /// Number of events that a subscriber may lag behind before it loses some; at least 1.
    pub event_capacity: usize,
    /// Transcript to record every line in.
    pub recorder: Option<Recorder>,
}

impl Default for QmpOptions {
    fn default() -> Self {
        Self {
            label: "qemu".into(),
            greeting_deadline: Duration::from_secs(5),
            oob: true,
            max_line: 16 * 1024 * 1024,
            max_event: 4 * 1024, // the longest events of a migration have some 200 bytes
            event_capacity: 256,
            recorder: None,
        }
    }
}

impl QmpOptions {
    /// The defaults, under this label.
    pub fn labelled(label: impl Into<Arc<str>>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }
}
