//! The way back to the source, and what it needs to know first: who has the guest, and whether a side can run it.

mod another_try;
mod destination;
pub(super) mod fence;
pub(crate) mod guest_end;
pub(super) mod judge;
pub(super) mod last_events;
pub(super) mod leftovers;
pub(super) mod reconnect;
pub(super) mod rollback;
mod settings;
mod sighting;
mod source;
mod undo;
