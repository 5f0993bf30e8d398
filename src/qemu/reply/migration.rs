//! Replies about a migration and about the guest's RAM.

use super::open_enum::open_enum;
use serde::Deserialize;

open_enum! {
    /// The status of a migration. An unknown one means "keep waiting".
    MigrationStatus {
        /// No migration was started.
        None = "none",
        /// The RAM channel is being connected.
        Setup = "setup",
        /// RAM is being copied.
        Active = "active",
        /// The guest is stopped and the source waits for `migrate-continue`.
        PreSwitchover = "pre-switchover",
        /// Device state is being sent.
        Device = "device",
        /// Device state is being sent for postcopy: where the destination cannot load it, the source resumes (11.1).
        PostcopyDevice = "postcopy-device",
        /// The guest belongs to the destination, which fetches its pages from the source.
        PostcopyActive = "postcopy-active",
        /// The channel broke in postcopy, and waits to be made anew.
        PostcopyPaused = "postcopy-paused",
        /// The channel is being made anew: the source connects (9.1).
        PostcopyRecoverSetup = "postcopy-recover-setup",
        /// The channel is being made anew: both sides compare which pages have arrived.
        PostcopyRecover = "postcopy-recover",
        /// The migration ended well.
        Completed = "completed",
        /// The migration failed: the cause is in `error-desc`.
        Failed = "failed",
        /// QEMU cleans up after a failure (11.1).
        Failing = "failing",
        /// A cancellation is under way.
        Cancelling = "cancelling",
        /// The migration was cancelled.
        Cancelled = "cancelled",
    }
}

impl MigrationStatus {
    /// Whether the migration is over: no other status follows.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::None | Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether the guest belongs to the destination while the source still has pages of it. With one of these, no
    /// command lets the guest go on at the source.
    pub fn is_postcopy(&self) -> bool {
        matches!(self, Self::PostcopyActive | Self::PostcopyPaused | Self::PostcopyRecoverSetup | Self::PostcopyRecover)
    }
}

/// `query-migrate`: empty where no migration was ever started.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// The migration's status.
    pub status: Option<MigrationStatus>,
    /// RAM, once it is being copied.
    pub ram: Option<MigrationRamStats>,
    /// Bytes still to send of RAM and devices together (11.1), as QEMU counted before it last decided whether to switch
    /// over: while RAM is sent up to a tenth of a second old, and right in `pre-switchover`.
    pub remaining: Option<u64>,
    /// Milliseconds since the migration began, or that it took once completed; told while RAM is sent and after that.
    pub total_time: Option<u64>,
    /// Milliseconds for which the guest was stopped, by QEMU's reckoning; once completed.
    pub downtime: Option<u64>,
    /// Milliseconds for which QEMU expects to stop the guest if it switched over now.
    pub expected_downtime: Option<u64>,
    /// The pages that were sent as their differences, with `xbzrle`.
    #[serde(default)]
    pub xbzrle_cache: XbzrleCacheStats,
    /// Per cent by which the vCPUs are throttled.
    pub cpu_throttle_percentage: Option<u64>,
    /// Milliseconds for which all vCPUs waited for pages at once, in postcopy; on the destination.
    pub postcopy_blocktime: Option<u64>,
    /// Milliseconds for which each vCPU waited for pages.
    #[serde(default)]
    pub postcopy_vcpu_blocktime: Vec<u64>,
    /// The mean time from a page fault to its page, nanoseconds (10.1).
    pub postcopy_latency: Option<u64>,
    /// The faults by their times (10.1): element N counts those of 2^N microseconds and more, below the next element.
    #[serde(default)]
    pub postcopy_latency_dist: Vec<u64>,
    /// QEMU's words for why the migration failed.
    pub error_desc: Option<String>,
    /// QEMU's words for why the guest cannot be migrated at all.
    #[serde(default)]
    pub blocked_reasons: Vec<String>,
}

impl MigrationInfo {
    /// Bytes still to send, with those of devices where QEMU counts them, but never fewer than RAM's own. The count of
    /// both is older: it is above RAM's while RAM is sent, and below where a pass has just ended.
    pub fn left(&self) -> u64 {
        let ram = self.ram.as_ref().map_or(0, |ram| ram.remaining);
        self.remaining.map_or(ram, |all| all.max(ram))
    }

    /// Bytes of memory that QEMU has dealt with so far, however it sent them; a page that was sent twice counts twice.
    pub fn processed(&self) -> u64 {
        let differences = self.xbzrle_cache.pages.saturating_sub(self.xbzrle_cache.overflow);
        let pages = |ram: &MigrationRamStats| ram.normal.saturating_add(ram.duplicate).saturating_add(differences);
        self.ram.as_ref().map_or(0, |ram| pages(ram).saturating_mul(ram.page_size))
    }
}

/// The part of `query-migrate` on pages that were sent as their differences.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct XbzrleCacheStats {
    /// Pages for which a difference was tried so far.
    #[serde(default)]
    pub pages: u64,
    /// Pages among them that differed too much and were sent whole: QEMU counts these among the normal pages, too.
    #[serde(default)]
    pub overflow: u64,
}

/// The RAM part of `query-migrate`. Sizes in bytes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationRamStats {
    /// Sent so far.
    pub transferred: u64,
    /// Still to send, as last counted.
    pub remaining: u64,
    /// The guest's RAM.
    pub total: u64,
    /// Megabits (10^6) per second; -1 before the first measurement.
    #[serde(default)]
    pub mbps: f64,
    /// Pages per second that the guest dirties.
    #[serde(default)]
    pub dirty_pages_rate: u64,
    /// Bitmap syncs: one at the end of each pass, and more where the rest seems to fit into the downtime limit.
    #[serde(default)]
    pub dirty_sync_count: u64,
    /// Pages sent so far with their content.
    #[serde(default)]
    pub normal: u64,
    /// Pages sent so far as one byte, because all their bytes are the same.
    #[serde(default)]
    pub duplicate: u64,
    /// Bytes in a page.
    #[serde(default = "page_size")]
    pub page_size: u64,
}

fn page_size() -> u64 {
    4096
}

/// An element of `query-migrate-capabilities`.
#[derive(Debug, Clone, Deserialize)]
pub struct MigrationCapabilityStatus {
    /// The capability's name.
    pub capability: String,
    /// Whether the capability is on.
    pub state: bool,
}

/// `query-dirty-rate`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirtyRate {
    /// The status of the measurement: `measured` once it is over.
    pub status: String,
    /// MiB of different pages per second, rounded down; once measured.
    pub dirty_rate: Option<u64>,
}

impl DirtyRate {
    /// MiB per second, once the measurement is over.
    pub fn measured(&self) -> Option<u64> {
        self.dirty_rate.filter(|_| self.status == "measured")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_nobody_knows_is_kept() {
        let info: MigrationInfo = serde_json::from_str(r#"{"status":"of-tomorrow","new":{"a":1}}"#).expect("decodes");
        assert_eq!(info.status, Some(MigrationStatus::Other("of-tomorrow".to_owned())));
        assert!(!info.status.is_some_and(|s| s.is_over()));
    }

    #[test]
    fn what_was_taken_care_of_is_counted_however_it_was_sent() {
        let plain = r#"{"ram":{"transferred":9,"remaining":0,"total":0,"normal":3,"duplicate":4,"page-size":4096}"#;
        for (more, pages) in [("}", 7), (r#","xbzrle-cache":{"pages":5,"overflow":2}}"#, 10)] {
            let info: MigrationInfo = serde_json::from_str(&format!("{plain}{more}")).expect("decodes");
            assert_eq!(info.processed(), pages * 4096);
        }
        assert_eq!(serde_json::from_str::<MigrationInfo>("{}").expect("decodes").processed(), 0);
    }
}
