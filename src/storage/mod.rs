//! Disks: which of the source's go onto which of the destination's, the exports that receive them and the mirrors that
//! carry them; the images that the destination needs before, and the layers below them.
//!
//! It must never start or stop the guest, and never touch a node, job, bitmap or export that is not named as ours.

pub mod bitmaps;
pub mod ceiling;
pub mod chain;
pub mod clean;
pub mod compare;
pub mod export;
pub mod filesystem;
pub mod guard;
pub mod identity;
pub mod image;
pub mod kept;
pub mod layout;
pub mod leftover;
pub mod mirror;
pub mod partial;
pub mod place;
pub mod populate;
pub mod probe;
pub mod qemu_img;
pub mod shell;
pub mod view;
