//! A migration that was given up, by QEMU's word, and one that was not in truth.

use super::CheckedWorld;
use crate::{codes::FindingCode, qemu::reply::MigrationStatus};

#[test]
fn a_migration_that_was_cancelled_and_still_connects_is_under_way() {
    for connects_on in [false, true] {
        let mut world = CheckedWorld::healthy();
        world.source.migration.status = Some(MigrationStatus::Cancelled);
        world.source.connects_on = connects_on;
        let found: Vec<_> = world.findings().into_iter().map(|finding| finding.code).collect();
        assert_eq!(found, vec![FindingCode::MigrationUnderWay; usize::from(connects_on)]);
    }
}
