//! Disks as data: the layers of a chain, the pairs of source and destination, bitmaps, and where files are.

pub mod bitmaps;
pub mod chain;
pub mod layout;
pub mod path_map;
