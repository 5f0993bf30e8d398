//! A sample of the RAM migration, from one reply to `query-migrate`.
//!
//! Pure.

use crate::{
    progress::{EventKind, RamOutcome},
    qemu::reply::{MigrationInfo, MigrationStatus},
};

/// The event for one reply; none before RAM is being sent. Fields that take more than one reply are left empty.
pub fn event(migration: &MigrationInfo) -> Option<EventKind> {
    let ram = migration.ram.as_ref()?;
    Some(EventKind::Memory {
        status: migration.status.as_ref().map_or("none", MigrationStatus::as_str).to_owned(),
        transferred: ram.transferred,
        remaining: migration.remaining.unwrap_or(ram.remaining),
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
        assert!(matches!(event(&sample), Some(EventKind::Memory { remaining: 2, .. })));
        sample.remaining = Some(7);
        assert!(matches!(event(&sample), Some(EventKind::Memory { remaining: 7, .. })));
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
