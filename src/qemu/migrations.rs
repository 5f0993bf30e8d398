//! Which of the migrations that a source's events tell of is this engine's.
//!
//! A QEMU migrates again and again, and every client may begin a migration once the last one is over. QEMU's answers
//! name no migration: the status `completed` may be that of another one, which has led the guest elsewhere. Each
//! migration enters `setup` once, and that is counted.

use super::Observed;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The number of the engine's own migration, among those that began since the engine connected. A connection that has
/// sent no `migrate` has none, and a recovery finds the migration that it takes up begun already.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnMigration(Arc<AtomicU64>);

impl OwnMigration {
    /// Notes that `migrate` is about to be sent: the next migration that begins is this engine's.
    pub(crate) fn note(&self, seen: &Observed) {
        self.0.store(seen.migrations + 1, Ordering::Relaxed);
    }

    /// Whether this engine has sent `migrate`.
    pub(crate) fn is_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody else has begun a migration since: the engine's own is over, and what QEMU says of a migration
    /// is not of that one.
    pub(crate) fn is_followed(&self, seen: &Observed) -> bool {
        seen.migrations > self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_after_the_own_one_is_somebody_elses() {
        let (own, mut seen) = (OwnMigration::default(), Observed::default());
        assert!(!own.is_followed(&seen), "a recovery takes up what has begun before");
        seen.migrations = 2;
        assert!(own.is_followed(&seen), "no `migrate` was sent");
        assert!(!own.is_begun());
        own.note(&seen);
        assert!(!own.is_followed(&seen) && own.is_begun());
        seen.migrations = 3;
        assert!(!own.clone().is_followed(&seen), "the own one");
        seen.migrations = 4;
        assert!(own.is_followed(&seen) && own.clone().is_followed(&seen));
    }
}
