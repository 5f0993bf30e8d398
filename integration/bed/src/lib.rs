//! The test bed: pairs of real QEMUs, a guest that keeps a record of what it does, and checks of what became of it.
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use qferry_bed::{Pair, Side, Spec, straight_line};
//!
//! # fn main() -> qferry_bed::Result<()> {
//! let pair = Pair::start(&Spec::default())?;
//! let before = Instant::now();
//! straight_line::migrate(&pair)?; // or whatever is under test, on pair.source.qmp_path() and pair.destination.qmp_path()
//! pair.wait_until_verified(Duration::from_secs(60))?;
//! println!("{:?}", pair.longest_gap(before));
//! assert_eq!(pair.errors(), Vec::<String>::new());
//! pair.check_disks(Side::Destination)?;
//! # Ok(())
//! # }
//! ```
//!
//! The guest says on a debug port what it does ([`qferry_guest::line`]); a thread per QEMU reads it and notes the host's
//! time. What the guest was told is thus known outside of it, and the images can be judged by it after everything has
//! been killed. QEMU and the guest's kernel come from `scripts/setup`; a missing part is an error, never a skipped test.
//!
//! Everything here is blocking and shares no code with the engine.

mod bare;
mod check;
mod command_line;
mod cpio;
mod disk;
mod error;
mod guest;
mod image;
mod leftovers;
mod machine;
mod pair;
mod qemu_build;
mod qmp;
mod record;
mod spec;
pub mod straight_line;

pub use bare::Bare;
pub use check::DiskCheck;
pub use disk::{DiskFiles, DiskSpec};
pub use error::{Error, Result};
pub use image::{ImageFacts, image_facts};
pub use machine::Machine;
pub use pair::{Gap, Pair};
pub use qemu_build::{Build, target_dir};
pub use qferry_guest::Workload;
pub use qmp::{Answer, Event, Qmp, Refusal};
pub use record::{Beat, Side, Slot, Verified};
pub use spec::{Guest, Spec, Style};

use error::Context;

/// A TCP port on 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context(|| "looking for a free port")?;
    Ok(listener.local_addr().context(|| "looking for a free port")?.port())
}
