//! What each phase of a migration does. Their order is the engine's alone.
//!
//! `convergence` is the phases `storage` and `memory`, which may overlap; `guest_watch`, `image_flush`, `memory_start`,
//! `mirrors`, `sampling` and `second_look` are parts of it, `controller_record` is one of it and of `switchover`, and
//! `write_times` is one of it and of `cleanup`; `device_times` is one of `memory_start` and of the engine's end. No
//! other phase knows another.

pub(super) mod announcement;
pub(super) mod cleanup;
mod controller_record;
pub(super) mod convergence;
pub(super) mod device_times;
pub(super) mod guest_watch;
pub(super) mod handover;
mod image_flush;
pub(super) mod memory_start;
mod mirrors;
pub(super) mod postcopy;
mod sampling;
pub(super) mod second_look;
pub(super) mod setup;
pub(super) mod switchover;
mod write_times;
