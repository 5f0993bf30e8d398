//! May the migration start? Facts are gathered once, and judged by pure checks.
//!
//! It must never change anything on either side.

pub mod checks;
pub mod contents;
pub mod facts;
pub mod wanted;
