//! The causes that a diagnosis can name, each with its meaning.
//!
//! Pure.

use serde::Serialize;
use std::{fmt, str::FromStr};

/// Declares the codes, each with its stable word and its meaning.
macro_rules! diagnosis_codes {
    ($($variant:ident = $word:literal: $meaning:literal,)*) => {
        /// The code of a cause: a stable word, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum DiagnosisCode {
            $(#[doc = $meaning] $variant,)*
        }

        impl DiagnosisCode {
            /// All codes.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// What the code means, as one line.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)*
                }
            }
        }
    };
}

diagnosis_codes! {
    ProcessStopped = "process-stopped": "QEMU's process does not run: a signal, a debugger, the freezer or its storage holds it.",
    MonitorBlocked = "monitor-blocked": "QEMU's main loop hangs: commands are answered only out of band.",
    NoOutOfBand = "no-out-of-band": "QEMU's main loop hangs, and this monitor has no out-of-band execution to free it with.",
    MonitorUnresponsive = "monitor-unresponsive": "QEMU's process lives, and its monitor does not answer at all.",
    SourceGone = "source-gone": "The source's QEMU is gone: nobody answers for it.",
    DestinationGone = "destination-gone": "The destination's QEMU is gone: nobody answers for it.",
    BothRunning = "both-running": "Both sides run the same guest.",
    BothPaused = "both-paused": "The guest stands still on both sides.",
    GuestEnded = "guest-ended": "The guest has ended by itself.",
    PostcopyPaused = "postcopy-paused": "The channel broke in postcopy, and the guest waits for pages.",
    StateRefused = "state-refused": "The destination has refused the state of the machine.",
    ImageLocked = "image-locked": "An image could not be opened for writing, because another process has it locked.",
    Tls = "tls": "The TLS handshake of a channel does not come to an end, or failed.",
    TlsRekey = "tls-rekey": "A TLS channel broke after much data, as it does where GnuTLS changes its keys.",
    MultifdIncompatible = "multifd-incompatible": "The streams of multifd broke.",
    Userfaultfd = "userfaultfd": "The destination's host does not let QEMU fetch pages on demand.",
    Memlock = "memlock": "QEMU may not lock as much memory as the migration needs.",
    MigrationBlocked = "migration-blocked": "QEMU says that this guest cannot be migrated as it is.",
    SetupBlocked = "setup-blocked": "The RAM channel has not been connected.",
    Mtu = "mtu": "Full segments do not pass to the destination, and small ones do.",
    VcpuNotStopping = "vcpu-not-stopping": "QEMU is stopping the guest, and a virtual CPU does not stop.",
    ClockJump = "clock-jump": "The guest stood still for so long that its clock may be behind, or jump.",
    WaitingForContinue = "waiting-for-continue": "The source has stopped the guest and waits for migrate-continue.",
    DeviceBlocked = "device-blocked": "The state of the devices is not taken or not sent.",
    CancellingStuck = "cancelling-stuck": "The migration is being cancelled, and that does not come to an end.",
    GuestWillNotUnplug = "guest-will-not-unplug": "The guest does not give up its network device that cannot migrate.",
    SwitchoverNotAcked = "switchover-not-acked": "A device of the destination does not acknowledge the switchover.",
    LinkDead = "link-dead": "A channel of the migration is dead: what is sent over it does not arrive.",
    MirrorPaused = "mirror-paused": "A mirror is paused.",
    MirrorFailed = "mirror-failed": "A mirror has ended with an error, or reports one error after the other.",
    MirrorStalledIdle = "mirror-stalled-idle": "A mirror copies nothing, though it is not paused and not done.",
    MirrorStarved = "mirror-starved": "A mirror does not gain on its guest's writes.",
    MirrorNotReady = "mirror-not-ready": "RAM is done and waits for a mirror that still copies.",
    Ownerless = "ownerless": "The migration waits for a decision, and no program that could take it is connected.",
    ControllerWaits = "controller-waits": "The migration is over and the guest runs on the source, while mirrors are kept for it.",
    LeftoverJob = "leftover-job": "A job, a node or a bitmap of an earlier try is left.",
    ExportLeftOpen = "export-left-open": "A writable NBD export is left on the destination.",
    DowntimeTooSmall = "downtime-too-small": "QEMU would have to stop the guest for longer than its downtime limit lets it.",
    BandwidthCapped = "bandwidth-capped": "RAM does not converge, because a limit holds its bandwidth down.",
    NotConverging = "not-converging": "The guest dirties RAM faster than the channel carries it.",
    NetworkUnannounced = "network-unannounced": "The guest has arrived, and its network has not been told where it is now.",
    GuestIoStalled = "guest-io-stalled": "The guest waits for its disk: requests that QEMU has taken do not complete.",
}

impl fmt::Display for DiagnosisCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DiagnosisCode {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|code| code.as_str() == word);
        found.copied().ok_or_else(|| format!("no cause has the code '{word}'"))
    }
}

impl Serialize for DiagnosisCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_word_of_its_own_that_is_read_again() {
        for code in DiagnosisCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
        assert!("no-such-code".parse::<DiagnosisCode>().is_err());
    }
}
