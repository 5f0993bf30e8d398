//! A sample of the RAM migration, from one reply to `query-migrate`.
//!
//! Pure.

use crate::{
    progress::{EventKind, PostcopyBlocktime, RamOutcome},
    qemu::reply::{MigrationInfo, MigrationStatus},
};

/// The event for one reply; none before RAM is being sent. Fields that take more than one reply are left empty.
pub fn event(migration: &MigrationInfo) -> Option<EventKind> {
    let ram = migration.ram.as_ref()?;
    Some(EventKind::Memory {
        status: migration.status.as_ref().map_or("none", MigrationStatus::as_str).to_owned(),
        transferred: ram.transferred,
        remaining: migration.left(),
        total: ram.total,
        dirty_rate: ram.dirty_pages_rate.saturating_mul(ram.page_size),
        // QEMU reports -1 before its first measurement.
        bandwidth: (ram.mbps.max(0.0) * 1e6 / 8.0) as u64,
        working_set: 0,
        throttle_pct: migration.cpu_throttle_percentage.unwrap_or(0),
        predicted_blackout_ms: None,
        eta_ms: None,
    })
}

/// What the destination's reply tells of the guest's waits in postcopy; `None` where the destination did not count.
pub fn blocktime(migration: &MigrationInfo) -> Option<PostcopyBlocktime> {
    Some(PostcopyBlocktime {
        all_vcpus_ms: migration.postcopy_blocktime?,
        vcpu_ms: migration.postcopy_vcpu_blocktime.clone(),
        mean_fault_us: migration.postcopy_latency.map(|nanoseconds| nanoseconds.div_ceil(1000)),
        p99_fault_at_most_us: slowest_but_one_per_cent(&migration.postcopy_latency_dist),
    })
}

/// The time below which 99 of 100 faults were, microseconds, by counts of faults of 2^N microseconds and more. The last
/// count is that of all longer ones.
fn slowest_but_one_per_cent(counts: &[u64]) -> Option<u64> {
    let all: u128 = counts.iter().map(|count| u128::from(*count)).sum();
    let mut sum = 0;
    let found = counts.iter().position(|count| {
        sum += u128::from(*count);
        all > 0 && sum >= (all * 99).div_ceil(100)
    });
    let bucket = found.filter(|bucket| bucket + 1 < counts.len())?;
    1u64.checked_shl(u32::try_from(bucket + 1).ok()?)
}

/// Folds a sample into the totals.
pub fn fold(totals: &mut RamOutcome, migration: &MigrationInfo) {
    if let Some(ram) = &migration.ram {
        totals.bytes = totals.bytes.max(ram.transferred);
        totals.iterations = totals.iterations.max(ram.dirty_sync_count);
    }
    totals.throttle_max_pct = totals.throttle_max_pct.max(migration.cpu_throttle_percentage.unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn migration(ram: &serde_json::Value) -> MigrationInfo {
        serde_json::from_value(json!({"status": "active", "ram": ram, "expected-downtime": 300})).expect("a migration")
    }

    #[test]
    fn units_are_bytes() {
        let sample = migration(
            &json!({"transferred": 10, "remaining": 20, "total": 30, "mbps": 8.0, "dirty-pages-rate": 2, "page-size": 4096}),
        );
        let expected = EventKind::Memory {
            status: "active".to_owned(),
            transferred: 10,
            remaining: 20,
            total: 30,
            dirty_rate: 8192,
            bandwidth: 1_000_000,
            working_set: 0,
            throttle_pct: 0,
            predicted_blackout_ms: None,
            eta_ms: None,
        };
        assert_eq!(event(&sample), Some(expected));
    }

    #[test]
    fn what_devices_have_to_send_is_told_where_qemu_tells() {
        let mut sample = migration(&json!({"transferred": 1, "remaining": 2, "total": 3}));
        for (counted, left) in [(None, 2), (Some(7), 7), (Some(1), 2), (Some(0), 2)] {
            sample.remaining = counted;
            let Some(EventKind::Memory { remaining, .. }) = event(&sample) else { panic!("{counted:?}") };
            assert_eq!(remaining, left, "{counted:?}: QEMU's older count may lack what a sync has found since");
        }
    }

    #[test]
    fn the_waits_of_postcopy_are_told_where_they_were_counted() {
        let told = |more: serde_json::Value| {
            let info: MigrationInfo = serde_json::from_value(more).expect("a migration");
            blocktime(&info)
                .map(|told| (told.all_vcpus_ms, told.vcpu_ms, told.mean_fault_us, told.p99_fault_at_most_us))
        };
        assert_eq!(told(json!({"status": "completed"})), None);
        let older = json!({"postcopy-blocktime": 7, "postcopy-vcpu-blocktime": [7, 9]});
        assert_eq!(told(older), Some((7, vec![7, 9], None, None)));
        let newer = |dist: &[u64]| {
            let told = told(json!({"postcopy-blocktime": 7, "postcopy-latency": 1001, "postcopy-latency-dist": dist}));
            told.map(|(.., mean, slowest)| (mean, slowest))
        };
        assert_eq!(newer(&[0, 0, 0]), Some((Some(2), None)));
        assert_eq!(newer(&[99, 0, 1, 0]), Some((Some(2), Some(2))));
        assert_eq!(newer(&[98, 0, 2, 0]), Some((Some(2), Some(8))));
        assert_eq!(newer(&[0, 1]), Some((Some(2), None)), "the last bucket has no end");
    }

    #[test]
    fn totals_never_shrink() {
        let mut totals = RamOutcome::default();
        fold(&mut totals, &migration(&json!({"transferred": 10, "remaining": 0, "total": 30, "dirty-sync-count": 3})));
        fold(&mut totals, &migration(&json!({"transferred": 7, "remaining": 0, "total": 30, "dirty-sync-count": 2})));
        assert_eq!(totals, RamOutcome { bytes: 10, iterations: 3, ..RamOutcome::default() });
    }

    #[test]
    fn a_bandwidth_not_yet_measured_is_zero() {
        let sample = migration(&json!({"transferred": 1, "remaining": 2, "total": 3, "mbps": -1.0}));
        assert!(matches!(event(&sample), Some(EventKind::Memory { bandwidth: 0, .. })));
    }
}
