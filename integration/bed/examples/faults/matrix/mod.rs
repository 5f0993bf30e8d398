//! Faults against points: the fault, the time at which it strikes, and the judgement of the guest.
//!
//! `scripts/faults` and the live tests use this matrix. Both QEMUs and the guest are asked over the bed's own monitors
//! after the engine has ended, and only then the engine's outcome is compared.

mod attempt;
mod cell;
mod engine;
mod fault;
mod judge;
mod look;
mod point;
mod program;
mod soak;
mod stage;

pub(crate) use cell::{Cell, clean, run};
pub(crate) use fault::Fault;
pub(crate) use point::{PHASES, Point, switchover};
pub(crate) use soak::{Soak, soak};
pub(crate) use stage::Stage;

/// The cells that matter most, by name, which run on every version and in the tests.
pub(crate) const CORE: [(Fault, &str); 12] = {
    use qferry_bed::Side::{Destination, Source};
    [
        (Fault::Killed(Destination), "source: migrate-continue"),
        (Fault::Killed(Destination), "destination: cont"),
        (Fault::Killed(Source), "destination: cont"),
        (Fault::Frozen, "destination: cont"),
        (Fault::Thawed, "source: migrate-continue"),
        (Fault::EngineKilled, "destination: cont"),
        (Fault::MigrationCut, "source: migrate-continue"),
        (Fault::NbdCut, "source: block-job-cancel"),
        (Fault::NbdHole, "source: block-job-cancel"),
        (Fault::StateRefused, "handover"),
        (Fault::ReplyLost, "source: migrate-continue"),
        (Fault::Full, "storage"),
    ]
};
