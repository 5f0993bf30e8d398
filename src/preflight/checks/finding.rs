//! What a check finds. The type is one of the codes' room, for the outcome of a refused migration has findings, too.
//!
//! Pure.

pub use crate::codes::Finding;
