//! The disks of a guest: the pairs of source and destination disks, the mirrors and exports that copy the disks, the
//! image files that the destination needs, and the comparison of images.
//!
//! No code in this room may start or stop the guest, or touch a node, job, bitmap or export without the engine's
//! [prefix](model::layout::PREFIX).
//!
//! Each inner room uses only the rooms before it: [`model`] (disks as data), [`mirror`] (block jobs and exports in a
//! QEMU), [`files`] (image files on this host), [`verify`] (whether two images are equal).

pub mod files;
pub mod mirror;
pub mod model;
pub mod verify;
