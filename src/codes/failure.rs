//! The codes of why a migration, a preparation or a recovery did not do what it was asked.
//!
//! Pure.

use super::{FindingCode, word};

macro_rules! failure_codes {
    ($($variant:ident $code:literal $meaning:literal $remedy:literal;)+) => {
        /// Why something was not done, as a stable word. A migration that the checks refuse has the code of the
        /// gravest finding.
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        pub enum FailureCode {
            $(#[doc = $meaning] $variant,)+
            /// The checks refuse it, by this finding.
            Finding(FindingCode),
            /// A code of another version of qferry.
            Other(String),
        }

        impl FailureCode {
            /// Every code of this version that is no finding's.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable word.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $code,)+
                    Self::Finding(code) => code.as_str(),
                    Self::Other(code) => code,
                }
            }

            /// What happened.
            pub fn meaning(&self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)+
                    Self::Finding(code) => code.meaning(),
                    Self::Other(_) => "",
                }
            }

            /// What to do about it in general. A failure's own text can say more.
            pub fn remedy(&self) -> &'static str {
                match self {
                    $(Self::$variant => $remedy,)+
                    Self::Finding(code) => code.remedy(),
                    Self::Other(_) => "",
                }
            }
        }
    };
}

failure_codes! {
    Cancelled "cancelled"
        "The migration was cancelled, or its handle was dropped."
        "nothing: the guest is on the source, as before";
    CommandFailed "command-failed"
        "A QMP command failed in a way that is no refusal, such as an answer that cannot be understood."
        "report it, with a transcript";
    CommandRefused "command-refused"
        "QEMU refused a command. The message has QEMU's own words."
        "mend what QEMU names";
    CopyDiffers "copy-differs"
        "A backing file that was copied is not the same as the source's when it is read again."
        "look after the disk that it was copied to, and prepare again";
    CopyFailed "copy-failed"
        "A backing file could not be copied."
        "mend what the message names, and prepare again: files that are whole are kept";
    DestinationGone "destination-gone"
        "The destination's QEMU ended."
        "its stderr may say why; start it anew";
    DiskNotConverging "disk-not-converging"
        "The guest writes to a disk faster than its mirror copies."
        "allow more `bandwidth` or `disk_bandwidth`, or migrate when the guest writes less";
    EngineDied "engine-died"
        "The engine that had begun the migration died, and a recovery ended it."
        "migrate again, if the guest is on the source";
    ExportUnreachable "export-unreachable"
        "The source's NBD server could not be reached while backing files were copied."
        "the source must be reached from here: see `source_nbd_address`";
    FileFailed "file-failed"
        "A file of a preparation could not be made."
        "mend what the message names, and prepare again";
    Gone "gone"
        "The connection to a QEMU was closed while a command was under way."
        "look whether that QEMU is still there";
    HandoverFailed "handover-failed"
        "The migration ended in the handover: a side says that it failed or was cancelled."
        "the destination's stderr may say why; start it anew";
    ImageExists "image-exists"
        "Another process made a file in the place of an image while that was being prepared."
        "move it away, and prepare again";
    InUse "in-use"
        "Another preparation is making the same image."
        "wait for it";
    Internal "internal"
        "The engine itself failed. The way back was taken where the journal proves it."
        "report it, with the message and a transcript";
    Journal "journal"
        "The journal could not be written or read, so nothing may be changed."
        "give another place with `journal`";
    JournalLocked "journal-locked"
        "Another engine is at work with this journal."
        "wait for it";
    LayerChanged "layer-changed"
        "A backing file was written to while it was copied."
        "wait for the block job that does it";
    MigrationFailed "migration-failed"
        "QEMU reports that the migration of RAM failed. The message has QEMU's own words."
        "mend what QEMU names; the destination's stderr may say more";
    MirrorFailed "mirror-failed"
        "A mirror reports an error. The message has QEMU's own words."
        "mend what QEMU names, such as a full disk";
    MonitorBlocked "monitor-blocked"
        "A QEMU answered nothing for a time: its main loop hangs, or its process is stopped."
        "see what it waits for, the destination's NBD server as a rule";
    NoAnswer "no-answer"
        "A QEMU did not answer a command in time."
        "look whether that QEMU hangs";
    NoSpace "no-space"
        "The destination's file system was full while a backing file was copied."
        "make room there, and prepare again";
    NotDisengaged "not-disengaged"
        "The mirrors or exports were not proved to have ended, so the guest was not passed on."
        "look for what holds a mirror or an export, and migrate again";
    NothingBegun "nothing-begun"
        "The journal that is to be recovered says that its engine died before it had changed anything."
        "nothing: the guest is untouched";
    OverBudget "over-budget"
        "The blackout would have been longer than its budget."
        "allow a longer `downtime`, or more `bandwidth`";
    PostcopyPaused "postcopy-paused"
        "The channel of a postcopy migration broke and could not be taken up again: the guest waits on the destination for pages that only the source has."
        "leave both QEMUs running, and recover the migration: never send cont to the source";
    QemuImg "qemu-img"
        "qemu-img could not be run or did not do what was asked."
        "mend what the message names; another program can be given with `qemu_img`";
    RamNotConverging "ram-not-converging"
        "The guest dirties RAM faster than it is sent, and the policy allows nothing more."
        "allow more `bandwidth` or a longer `downtime`, or another `policy`";
    RamStalled "ram-stalled"
        "Nothing of RAM was sent any more."
        "look at the network between the two hosts";
    RuntimeDir "runtime-dir"
        "The directory for the sockets of the run could not be made."
        "make it, or give another place with `runtime_dir`";
    SourceGone "source-gone"
        "The source's QEMU ended, or its side of a postcopy migration did."
        "its stderr may say why";
    SwitchoverTimeout "switchover-timeout"
        "The guest stood still for so long that it had to go on where it was."
        "allow more time with `switchover_timeout`";
    Timeout "timeout"
        "The migration was not ready to switch over in time."
        "allow more time with `timeout`, more `bandwidth` or more `downtime`";
    Unreachable "unreachable"
        "The monitor of a QEMU could not be reached, or speaks no QMP."
        "see that the QEMU runs, that its socket is the one that was given, and that no other client holds it";
}

word!(FailureCode);

/// A failure's own code comes before a finding's that has the same word.
impl From<&str> for FailureCode {
    fn from(word: &str) -> Self {
        let own = Self::ALL.iter().find(|code| code.as_str() == word).cloned();
        own.or_else(|| FindingCode::known(word).map(Self::Finding)).unwrap_or_else(|| Self::Other(word.to_owned()))
    }
}

impl From<FindingCode> for FailureCode {
    fn from(code: FindingCode) -> Self {
        Self::Finding(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_words_and_read_back() {
        for (all, known) in [
            (FailureCode::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>(), FailureCode::ALL.len()),
            (FindingCode::ALL.iter().map(|code| code.as_str()).collect(), FindingCode::ALL.len()),
        ] {
            assert!(all.is_sorted(), "{all:?}");
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), known, "no word twice");
            for word in all {
                let json = serde_json::to_string(&FailureCode::from(word)).expect("a word");
                assert_eq!(json, format!("\"{word}\""));
                let back: FailureCode = serde_json::from_str(&json).expect("a code");
                assert_eq!((back.as_str(), matches!(back, FailureCode::Other(_))), (word, false));
            }
        }
        for code in FindingCode::ALL {
            let json = serde_json::to_value(code).expect("a word");
            assert_eq!(serde_json::from_value::<FindingCode>(json).expect("a code"), *code);
        }
        let later: FindingCode = serde_json::from_str("\"of-another-version\"").expect("a code");
        assert!(matches!(&later, FindingCode::Other(_)) && later == "of-another-version");
    }

    #[test]
    fn every_code_is_explained() {
        let findings =
            FindingCode::ALL.iter().map(|code| (code.as_str(), code.meaning(), code.remedy(), code.severity()));
        for (code, meaning, remedy, severity) in findings {
            assert!(meaning.ends_with('.') && !remedy.ends_with('.'), "{code}");
            assert_eq!(remedy.is_empty(), severity == super::super::Severity::Note && remedy.is_empty(), "{code}");
        }
        for code in FailureCode::ALL {
            assert!(code.meaning().ends_with('.') && !code.remedy().is_empty(), "{code}");
        }
    }

    /// All that stands in backticks in the tables is a setting: `worded` finds it.
    #[test]
    fn remedies_name_settings_that_there_are() {
        let findings = FindingCode::ALL.iter().map(|code| code.remedy());
        for remedy in findings.chain(FailureCode::ALL.iter().map(|code| code.remedy())) {
            let without = super::super::worded(remedy, |_, _| String::new());
            assert!(!without.contains('`'), "{remedy}");
        }
    }
}
