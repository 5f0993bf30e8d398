//! The codes of the reasons why a migration, a preparation or a recovery did not succeed.
//!
//! Pure.

use super::{FindingCode, word};

macro_rules! failure_codes {
    ($($variant:ident $code:literal $meaning:literal $remedy:literal;)+) => {
        /// The reason why a job did not succeed, as a stable word for programs. A migration that the checks refuse has
        /// the code of the gravest finding.
        #[derive(Debug, Clone)]
        #[non_exhaustive]
        pub enum FailureCode {
            $(#[doc = $meaning] $variant,)+
            /// The checks refuse the job because of this finding.
            Finding(FindingCode),
            /// A code of another version of qferry.
            Other(String),
        }

        impl FailureCode {
            /// Every code of this version but those of findings.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable word.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $code,)+
                    Self::Finding(code) => code.as_str(),
                    Self::Other(code) => code,
                }
            }

            /// The meaning of this code, one sentence or two for people.
            pub fn meaning(&self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)+
                    Self::Finding(code) => code.meaning(),
                    Self::Other(_) => "",
                }
            }

            /// The general remedy, without a full stop. A failure's own text can say more.
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
        "report the failure, with a transcript";
    CommandRefused "command-refused"
        "QEMU refused a command. The message has QEMU's own words."
        "mend the cause that QEMU names";
    CopyDiffers "copy-differs"
        "A backing file that was copied is not the same as the source's when it is read again."
        "check the disk that the file was copied to, and prepare again";
    CopyFailed "copy-failed"
        "A backing file could not be copied."
        "mend the cause that the message names, and prepare again: files that are complete are kept";
    DestinationGone "destination-gone"
        "The destination's QEMU ended."
        "look at its stderr, which may say why, and start it anew";
    DiskNotConverging "disk-not-converging"
        "The guest writes to a disk faster than its mirror copies."
        "allow more `bandwidth` or `disk_bandwidth`, or migrate when the guest writes less";
    EngineDied "engine-died"
        "The engine that had begun the migration died, and a recovery ended it."
        "migrate again, if the guest is on the source";
    ExportUnreachable "export-unreachable"
        "The source's NBD server could not be reached while backing files were copied."
        "qferry must reach the NBD server of the source: see `source_nbd_address`";
    FileFailed "file-failed"
        "A file of a preparation could not be made."
        "mend the cause that the message names, and prepare again";
    Gone "gone"
        "The connection to a QEMU was closed while a command was under way."
        "check whether that QEMU still runs";
    GuestHalted "guest-halted"
        "The guest stopped by itself while it was being moved: it has powered off, panicked, met a disk error or been stopped by its watchdog. The message has QEMU's run state."
        "look at the guest on the source, where it stands as it stopped";
    GuestPanic "guest-panic"
        "The guest panicked and its QEMU ended, before the guest was passed on."
        "start the guest anew, from the source's disks";
    GuestReset "guest-reset"
        "The guest reset itself and its QEMU ended for that, before the guest was passed on."
        "start the guest anew, from the source's disks";
    GuestShutdown "guest-shutdown"
        "The guest powered itself off before it was passed on."
        "nothing: the guest has ended, and its disks on the source are whole";
    HandoverFailed "handover-failed"
        "The migration ended in the handover: a side says that it failed or was cancelled."
        "look at the destination's stderr, which may say why, and start it anew";
    HostError "host-error"
        "The source's QEMU ended because of an error of its own, before the guest was passed on."
        "look at its stderr, which may say why, and start the guest anew, from the source's disks";
    HostQmpQuit "host-qmp-quit"
        "Somebody told the source's QEMU to quit, before the guest was passed on."
        "nothing: the guest has ended, and its disks on the source are whole";
    HostSignal "host-signal"
        "A signal ended the source's QEMU, before the guest was passed on."
        "start the guest anew, from the source's disks";
    HostUi "host-ui"
        "Somebody closed the window of the source's QEMU, before the guest was passed on."
        "start the guest anew, from the source's disks";
    ImageExists "image-exists"
        "Another process made a file in the place of an image while the image was being prepared."
        "move that file away, and prepare again";
    InUse "in-use"
        "Another preparation is making the same image."
        "wait until that preparation has ended";
    Internal "internal"
        "The engine itself failed. The way back was taken where the journal proves that it is safe."
        "report the failure, with the message and a transcript";
    Journal "journal"
        "The journal could not be written or read, so nothing may be changed."
        "give another place with `journal`";
    JournalLocked "journal-locked"
        "Another engine uses this journal."
        "wait until that engine has ended";
    LayerChanged "layer-changed"
        "A backing file was written to while it was copied."
        "wait until the block job that writes to it has ended";
    MachineChanged "machine-changed"
        "A device, a medium or an image of one of the two machines was changed while the guest migrated. What was proved of both machines must hold until RAM is sent."
        "migrate again, and leave the devices of both machines alone meanwhile";
    MigrationFailed "migration-failed"
        "QEMU reports that the migration of RAM failed. The message has QEMU's own words."
        "mend the cause that QEMU names; the destination's stderr may say more";
    MirrorFailed "mirror-failed"
        "A mirror reports an error. The message has QEMU's own words."
        "mend the cause that QEMU names, such as a full disk";
    MonitorBlocked "monitor-blocked"
        "A QEMU did not answer for a time: its main loop hangs, or its process is stopped."
        "find out what that QEMU waits for: as a rule, the destination's NBD server";
    NoAnswer "no-answer"
        "A QEMU did not answer a command in time."
        "check whether that QEMU hangs";
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
        "qemu-img could not be run, or failed."
        "mend the cause that the message names, or give another program with `qemu_img`";
    RamNotConverging "ram-not-converging"
        "The guest dirties RAM faster than it is sent, and the policy allows nothing more."
        "allow more `bandwidth` or a longer `downtime`, or another `policy`";
    RamStalled "ram-stalled"
        "The migration of RAM made no progress any more."
        "look at the network between the two hosts";
    RuntimeDir "runtime-dir"
        "The directory for the sockets of the run could not be made, or other users may write to it."
        "give a directory of the engine's own user, which no other user can write to, with `runtime_dir`, or give addresses for NBD and RAM";
    SettingsChanged "settings-changed"
        "Another client changed the migration capabilities or parameters of a QEMU in the moment in which the migration of RAM began."
        "find out which other program migrates this guest, and migrate again";
    SourceGone "source-gone"
        "The source's QEMU ended, or its side of a postcopy migration did."
        "look at its stderr, which may say why";
    SwitchoverTimeout "switchover-timeout"
        "The guest was paused for too long, so it was resumed where it was."
        "allow more time with `switchover_timeout`";
    Timeout "timeout"
        "The migration was not ready to switch over in time."
        "allow more time with `timeout`, more `bandwidth` or more `downtime`";
    Unreachable "unreachable"
        "The monitor of a QEMU could not be reached, or speaks no QMP."
        "check that the QEMU runs, that its socket is the one that was given, and that no other client holds it";
}

word!(FailureCode);

/// A code of a failure comes before a code of a finding that has the same word.
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

    /// Every word in backticks in the tables is a setting: `worded` finds it.
    #[test]
    fn remedies_name_settings_that_there_are() {
        let findings = FindingCode::ALL.iter().map(|code| code.remedy());
        for remedy in findings.chain(FailureCode::ALL.iter().map(|code| code.remedy())) {
            let without = super::super::worded(remedy, |_, _| String::new());
            assert!(!without.contains('`'), "{remedy}");
        }
    }
}
