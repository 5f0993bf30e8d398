//! qferry moves a running guest, its memory and its local disks, from one QEMU process to another by speaking QMP to
//! both of them.
//!
//! # The life of one migration
//!
//! The destination waits with `-incoming defer -S`, each disk an empty overlay of the same size over the same backing
//! file; [`Preparation`] makes these. Then [`Migration`] goes through these phases, in this order
//! (`migration/engine.rs` is their page):
//!
//! - **connect, preflight**: both monitors are negotiated, facts are gathered and checked, backing files are compared.
//!   Nothing is changed; a failure is a refusal.
//! - **prepare**: the destination's NBD server gets a writable export for each disk. From here up to the switchover a
//!   failure rolls back.
//! - **storage**: a `drive-mirror` for each disk, `sync=top` over a backing file, until all are ready. The start of
//!   each mirror is proved free of lost writes.
//! - **memory**: both machines are looked at again, capabilities and parameters are set and checked, and in the same
//!   burst `migrate` is sent (`phases/memory_start.rs`); until the source stops the guest and waits in
//!   `pre-switchover`. RAM may begin beside the mirrors, and never ends before they are ready.
//! - **switchover**: every mirror is settled and seen to conclude without an error; every export is seen gone.
//! - **handover**: `migrate-continue`, `completed` on both sides, `cont` on the destination. A failure is judged by
//!   what is proved of both sides.
//! - **postcopy**, only where the policy came to it: the guest runs on the destination and its pages follow. A channel
//!   that breaks is made anew.
//! - **cleanup**: what the engine made is removed, and the source quits.
//!
//! # Convergence
//!
//! From the first mirror to STOP one loop samples disks and RAM and asks one pure function what to do:
//! `convergence::decide`. The controller divides one ceiling between mirrors and RAM, raises the downtime limit only
//! as far as it must and the budget allows, throttles the guest where the policy lets it, and gives up with what
//! would have been needed. The same function, driven by a model of guest and link (`convergence::simulate`),
//! estimates a migration. The budget is a promise: a handover is not begun if its estimate exceeds the budget by more
//! than the policy's slack.
//!
//! # Never two runners, never a lost write
//!
//! The guest may be started on one side only with a proof that the other side cannot run it. The proofs are types of
//! `handover::ownership`, made only from the answers of QEMU, the kernel or a fence, and `handover::exchange` is the
//! only place that sends `migrate-continue` and `cont`. Up to `migrate-continue` the way back is always open; after
//! it, `handover::judgement` finds out which side has the guest, and where nothing is proved nothing is done. In
//! postcopy neither side has the whole guest: the source may then never resume and must not end before both say
//! `completed`.
//!
//! # When something dies
//!
//! Each effect is in the `journal` before it is brought about (`migration::record`), so that after the engine's death
//! another engine finishes the migration, goes back, or says what a person must find out ([`Recovery`]). A source
//! whose main loop hangs is freed out of band (`handover::watchdog`). The guest never stands still for longer than
//! the limit of the switchover: a side that stays silent is fenced where that is safe, and where nothing is proved
//! the outcome says so. `docs/handover.md` has the protocol; the tests explore a model of it that drives the shipped
//! judgement, and `scripts/faults` injects real faults.
//!
//! # What is left to look at
//!
//! The command has every migration recorded: the lines of both monitors without secrets, and between them every event
//! with its reason, by one thread that the engine never waits for (`qmp::transcript`). `recording` keeps the last of
//! these transcripts in a bounded folder, and reads them, and files that somebody else made, in bounded memory. A
//! transcript also has each sample that the controller was given, so that `convergence::replay` has the shipped
//! `decide` decide again, by the same policy or another.
//!
//! # The right backing file
//!
//! `sync=top` sends what the overlay holds; the guest reads everything else from the destination's own backing file.
//! That file is proved to be the source's (`storage::verify::identity`): both are read through exports that are
//! closed again (`preflight::contents`), and the image that is written to is proved to be empty.
//!
//! # Layers
//!
//! ```text
//!  cli ──> migration ──> preflight ──> storage ──┐
//!              │                       memory ───┼──> qemu ──> qmp, endpoint
//!              ├─────────────────────> handover ─┘
//!              ├──> convergence: over disks and RAM, so in neither's room; pure, above the leaves alone
//!              └──> journal: what is intended is on the disk before it is begun; a leaf, and migration's alone
//!          diagnosis: why a migration is stuck, whoever started it; above qemu, and used by the command alone
//!          nbd: the wire to exports, below storage and above as qmp is
//!          recording: the transcripts that runs leave, above qmp and qemu; the command's
//!          experiment: sweeps of migrations and their figures, each migration a process of its own; the command's
//!          quantity, run_id, progress, codes, trust: leaves that all may use
//! ```
//!
//! Storage, memory and handover never use each other; the engine composes them. Decisions are pure functions (all of
//! `convergence`, `chain`, `layout`, `identity`, `start_race`, `sample`, `checks`, `verdict`, `plan`); what acts on
//! them is thin. A test holds all of this.
//!
//! # Embedding
//!
//! ```no_run
//! use qferry::{Address, Ending, Migration};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source: Address = "unix:/run/vm/source.qmp".parse()?;
//! let destination: Address = "unix:/run/vm/destination.qmp".parse()?;
//! let outcome = Migration::builder(source, destination)
//!     .downtime(Duration::from_millis(50))
//!     .run_blocking(|event| println!("{:?}", event.kind))?;
//! assert_eq!(outcome.outcome, Ending::Moved, "{:?}", outcome.reason);
//! # Ok(())
//! # }
//! ```
//!
//! [`Builder::start`] gives a [`Running`] instead, to be awaited from any runtime or none, followed and cancelled.
//! The engine has a thread and a runtime of its own, so that a task that blocks the embedder's runtime holds nothing
//! up. An embedder that makes its connections itself says how with [`Endpoint::Connector`]. One engine per guest:
//! nothing in QEMU keeps a second one from doing the same. `docs/embedding.md` has the rest.
//!
//! The crate root is the whole public face: it re-exports what an embedder needs from the rooms, which are private.

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;

mod codes;
mod convergence;
mod diagnosis;
mod endpoint;
#[cfg(feature = "cli")]
mod experiment;
mod handover;
mod journal;
mod memory;
mod migration;
mod nbd;
mod preflight;
mod prepare;
mod progress;
mod qemu;
mod qmp;
mod quantity;
mod recording;
mod run_id;
mod storage;
mod trust;

pub use codes::{DiagnosisCode, FailureCode, Finding, FindingCode, Setting, Severity, worded};
pub use convergence::{DiskRung, Policy, PolicyError, PublishedSchedule, RamRung, ScheduleStep, StepAction};
pub use diagnosis::{
    Cause, Confidence, DiagnoseSettings, Diagnosis, DiagnosisError, MirrorReport, ObservedMonitor,
    ObservedMonitorError, OpenFileReport, ProcessReport, RemedyCommand, SideReport, SocketReport, ThreadReport,
    VirshDomain, WatchSettings, WatchSnapshot, WatchedEvent, Watching, carry_out, diagnose,
};
pub use endpoint::{Address, AddressError, Connect, Connecting, Endpoint, ProcessHandle, Socket};
pub use memory::tuning::Compression;
pub use migration::{
    Builder, Control, DiskProgress, Events, Invalid, InvalidSetting, JournalInfo, JournalPlace, MemoryProgress,
    Migration, Plan, PlannedDisk, Progress, Recovery, RecoveryOutlook, Running, Settings, journal_directory, journals,
};
pub use prepare::{
    PopulateMode, Preparation, PreparationAction, PreparationOutcome, PreparationStep, PrepareSettings, Prepared,
    StepState,
};
pub use progress::{
    ActionDetail, ActionDetails, AnotherTry, DevicePhase, DeviceTime, DiskOutcome, Ending, Estimate, EstimatedRung,
    Event, EventKind, GuestPause, GuestWrites, LedgerClock, LedgerSpan, Outcome, PauseCause, Phase, PhaseState,
    PostcopyBlocktime, RamOutcome, Reason, RunsOn, Side, WriteTimes,
};
pub use qmp::transcript::{Recorder, TranscriptError, TranscriptTotals};
pub use quantity::{Bytes, QuantityError, Rate};
pub use storage::{
    model::{
        layout::{DiskSelection, StorageMode},
        path_map::PathMap,
    },
    verify::identity::ProofLevel,
};

/// The rooms behind the public face, for the tests, fuzz targets and tools of this repository alone. Anything in here
/// may change or go in any version.
#[doc(hidden)]
pub mod internals {
    /// A room under its own name: all that is `pub` in the private module.
    macro_rules! rooms {
        ($($room:ident)*) => {
            $(
                #[allow(missing_docs, reason = "the room documents itself")]
                pub mod $room {
                    pub use super::super::$room::*;
                }
            )*
        };
    }
    #[cfg(feature = "cli")]
    rooms! { experiment }
    rooms! { codes convergence endpoint handover journal memory migration nbd preflight prepare progress qemu qmp quantity recording run_id storage trust }
}

/// The code blocks of these documents are doc tests, so that each of them compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/embedding.md")]
pub struct DocumentExamples;
