//! Whether an image of the source and one of the destination are equal, read through exports that are closed again.

pub mod comparison;
pub mod digest_cache;
pub mod identity;
pub mod read_export;
