//! May the migration start? Facts are gathered once, and judged by pure checks.
//!
//! Nothing may be changed on either side, but for exports that are opened to read or to measure, and closed again.

pub mod checks;
pub mod comparison_plan;
pub mod contents;
mod covered;
pub mod facts;
pub mod machine_change;
pub mod measure;
pub mod measurements;
