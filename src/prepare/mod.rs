//! Prepares the destination: the images that a migration will write into, and the backing files below them.
//!
//! From the source's chains it makes a list of [`PreparationStep`]s and the destination QEMU's command line; applied, each file comes
//! to be under a temporary name and is given its own only when it is whole. It must never overwrite a file, and never
//! change anything in the source but for exports that it closes again.

mod command_line;
mod execution;
mod handle;
mod observation;
mod requirements;
mod settings;
mod steps;

pub use handle::{Preparation, PreparationBuilder, PreparationOutcome, Prepared};
pub use settings::{PopulateMode, PrepareSettings};
pub use steps::{PreparationAction, PreparationStep, StepState};
