//! When a guest stopped and resumed, as its QEMU says.
//!
//! Pure.

use std::time::Duration;

/// Further changes of a QEMU that runs and stops without end are not kept.
const CHANGES: usize = 4096;

/// When a guest stopped and resumed, in microseconds since 1970, by QEMU's own stamps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RunChanges {
    pub(crate) stops: Vec<u64>,
    pub(crate) resumes: Vec<u64>,
}

impl RunChanges {
    /// Takes an event with QEMU's stamp of it.
    pub(super) fn take(&mut self, event: &str, emitted: Option<Duration>) {
        let changes = match event {
            "STOP" => &mut self.stops,
            "RESUME" => &mut self.resumes,
            _ => return,
        };
        if changes.len() < CHANGES {
            changes.extend(emitted.and_then(|emitted| u64::try_from(emitted.as_micros()).ok()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_that_stops_without_end_costs_little() {
        let mut changes = RunChanges::default();
        for second in 0..10_000 {
            changes.take("STOP", Some(Duration::from_secs(second)));
            changes.take("RESUME", None);
            changes.take("RTC_CHANGE", Some(Duration::from_secs(second)));
        }
        assert_eq!((changes.stops.len(), changes.resumes.len()), (CHANGES, 0));
        assert_eq!(changes.stops[1], 1_000_000);
    }
}
