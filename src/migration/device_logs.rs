//! What is known of how long devices took, and why not more.
//!
//! Pure.

use crate::{
    progress::{DeviceTime, Side},
    qemu::{QemuName, log_file::LogFile},
};

/// The logs of the QEMUs that write to them how long devices take, and what was read of them.
#[derive(Debug, Default)]
pub(crate) struct DeviceLogs {
    /// The logs that are yet to be read.
    pub(crate) open: Vec<(QemuName, LogFile)>,
    /// What was read.
    pub(crate) told: Vec<DeviceTime>,
    /// Why a side's times are not known.
    pub(crate) unknown: Vec<UnknownTimes>,
}

/// Why the times of one side's devices are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnknownTimes {
    side: Side,
    /// A sentence whose subject is the side.
    words: String,
    /// Whether a log in a file would help.
    wants_file: bool,
}

impl UnknownTimes {
    pub(crate) fn new(name: &QemuName, words: impl AsRef<str>, wants_file: bool) -> Self {
        Self { side: name.side, words: format!("{name} {}", words.as_ref()), wants_file }
    }
}

impl DeviceLogs {
    /// One sentence for everything that is not known; `None` where everything is.
    pub(crate) fn describe_unknown(&self) -> Option<String> {
        let mut unknown: Vec<&UnknownTimes> = self.unknown.iter().collect();
        unknown.sort_by_key(|one| one.side);
        let reasons: Vec<&str> = unknown.iter().map(|one| one.words.as_str()).collect();
        let remedy = match unknown.iter().any(|one| one.wants_file) {
            true => "; start QEMU with -D and a file that qferry may read",
            false => "",
        };
        let what = "how long each device takes is not known";
        (!reasons.is_empty()).then(|| format!("{what}: {}{remedy}", reasons.join(", and ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sentence_tells_what_is_not_known_of_both_sides() {
        let name = |side: Side| QemuName { side, address: "unix:/q".to_owned() };
        let (source, destination) = (name(Side::Source), name(Side::Destination));
        let said = |unknown: &[UnknownTimes]| {
            DeviceLogs { unknown: unknown.to_vec(), ..DeviceLogs::default() }.describe_unknown()
        };
        assert_eq!(said(&[]), None);
        let old = UnknownTimes::new(&destination, "has no such events", false);
        let piped = UnknownTimes::new(&source, "writes its log to a pipe", true);
        let begin = "how long each device takes is not known: ";
        assert_eq!(said(std::slice::from_ref(&old)), Some(format!("{begin}destination (unix:/q) has no such events")));
        let both = "source (unix:/q) writes its log to a pipe, and destination (unix:/q) has no such events; start QEMU \
                    with -D and a file that qferry may read";
        assert_eq!(said(&[old, piped]), Some(format!("{begin}{both}")));
    }
}
