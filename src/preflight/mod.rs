//! May the migration start? Facts are gathered once, and judged by pure checks.
//!
//! It must never change anything on either side, but for what is opened to look or to measure, and closed again.

pub mod checks;
pub mod comparison_plan;
pub mod contents;
pub mod facts;
pub mod measure;
pub mod measurements;
