//! The preparation of a destination: the images that a migration will write to, and the backing files below them.
//!
//! From the source's backing chains the preparation makes a list of [`PreparationStep`]s and the destination QEMU's
//! command line. When the steps are carried out, each file is written under a temporary name and gets its final name
//! only when it is complete. A preparation must never overwrite a file, and never change anything in the source but for
//! exports that it closes again.
//!
//! `requirements` tells the files that the destination needs, `observation` what is at their paths, `steps` decides,
//! and `execution` carries the decision out.

mod command_line;
mod execution;
#[cfg(test)]
mod finding_cases;
mod handle;
mod observation;
mod plugged_in;
mod requirements;
mod settings;
mod steps;

pub use handle::{Preparation, PreparationOutcome, Prepared};
pub use settings::{PopulateMode, PrepareSettings};
pub use steps::{PreparationAction, PreparationStep, StepState};
