//! Disks: which of the source's go onto which of the destination's, the exports that receive them and the mirrors that
//! carry them; the images that the destination needs before, and the layers below them.
//!
//! It must never start or stop the guest, and never touch a node, job, bitmap or export that is not named as ours.
//!
//! The inner rooms, each of which uses only those before it: [`model`] (what QEMU says of disks, as data), [`mirror`]
//! (block jobs and exports in a QEMU), [`files`] (image files on this host), [`verify`] (whether two images are equal).

pub mod files;
pub mod mirror;
pub mod model;
pub mod verify;
