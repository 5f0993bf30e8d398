//! Who may run the guest.
//!
//! The one place that passes the guest on or takes it back: `cont` and `migrate-continue` are sent from [`exchange`]
//! alone, and each needs a proof from [`ownership`] that the other side cannot run. The next step after an exchange
//! that failed is named by [`judgement`], which remembers what was seen and rests on the decision of [`verdict`]. What
//! the way back does with each side is decided in [`way_back`].

pub mod exchange;
pub mod judgement;
pub mod ownership;
pub mod verdict;
pub mod watchdog;
pub mod way_back;
