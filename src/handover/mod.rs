//! Who may run the guest.
//!
//! The one place that passes it on or takes it back: `cont` and `migrate-continue` are sent from [`exchange`] alone, and
//! each needs a proof from [`ownership`] that no other side can run. What is done when the exchange itself fails is
//! decided by [`verdict`].

pub mod exchange;
pub mod ownership;
pub mod verdict;
pub mod watchdog;
