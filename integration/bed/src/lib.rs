//! The test bed: pairs of real QEMUs, a guest that keeps a record of its work, and checks of that work.
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use qferry_bed::{Pair, Side, Spec, straight_line};
//!
//! # fn main() -> qferry_bed::Result<()> {
//! let pair = Pair::start(&Spec::default())?;
//! let before = Instant::now();
//! // or whatever is under test, on pair.source.qmp_path() and pair.destination.qmp_path()
//! straight_line::migrate(&pair)?;
//! pair.wait_until_verified(Duration::from_secs(60))?;
//! println!("{:?}", pair.longest_gap(before));
//! assert_eq!(pair.errors(), Vec::<String>::new());
//! pair.check_disks(Side::Destination)?;
//! # Ok(())
//! # }
//! ```
//!
//! The [`Spec`] has the shapes of the disks and the deviations of the destination. Without a guest a pair starts in
//! less than a second:
//!
//! ```no_run
//! use qferry_bed::{Deviation, DiskSpec, Layer, Pair, Spec};
//!
//! # fn main() -> qferry_bed::Result<()> {
//! let disk = DiskSpec::chain([Layer::raw(16 << 20, 4 << 20), Layer::qcow2(8 << 20, 1 << 20)]);
//! let wrong = Deviation::FlipByte { disk: 0, layer: 1, offset: 4096 };
//! let pair = Pair::start(&Spec { disks: vec![disk], destination: vec![wrong], ..Spec::quick() })?;
//! assert!(pair.guest_visible_equal(0).is_err());
//! # Ok(())
//! # }
//! ```
//!
//! The guest says on a debug port what it does ([`qferry_guest::line`]); a thread per QEMU reads it and notes the
//! host's time. What the guest was told is thus known outside of it, and the images can be judged by it after
//! everything has been killed. QEMU and the guest's kernel come from `scripts/setup`; a missing part is an error, never
//! a skipped test.
//!
//! A [`MonitorProxy`] and a [`ChannelProxy`] disturb the connections between an engine and its QEMUs at an exact
//! command. A pair whose guest moved can be turned round ([`Pair::turn`]), so that one guest serves many migrations.
//!
//! A [`BootSector`] is guest enough for much: it powers its machine off, suspends, resets, panics, writes.
//!
//! A pair with a [`Link`] in its spec is two hosts, with that link between them: see [`Wire`].
//!
//! Everything here is blocking and shares no code with the engine.

mod bare;
mod bitmap;
mod boot_sector;
mod booted;
mod channel_proxy;
mod check;
mod child;
mod command_line;
mod content;
mod cpio;
mod deviation;
mod disk;
mod error;
mod guest;
mod image;
mod leftovers;
mod libvirt;
mod machine;
mod monitor_proxy;
mod network;
mod pair;
mod preload;
mod proxies;
mod qemu_build;
mod qmp;
mod quick;
mod random;
mod record;
mod spec;
pub mod straight_line;
mod wire;

pub use bare::Bare;
pub use bitmap::{Bitmap, StoredBitmap, add_bitmap, dirty_ranges, stored_bitmaps};
pub use boot_sector::BootSector;
pub use channel_proxy::ChannelProxy;
pub use check::DiskCheck;
pub use child::run_within;
pub use deviation::{Deviation, Sharing};
pub use disk::{Below, DetectZeroes, Device, DiskFiles, DiskSpec, Filter, Format, Layer};
pub use error::{Error, Result};
pub use image::{ChainLink, ImageFacts, chain, guest_visible_equal, image_facts};
pub use libvirt::{Libvirtd, LibvirtdSpec, give_to_nobody, xml_text};
pub use machine::Machine;
pub use monitor_proxy::{Command, Deed, Held, MonitorProxy, Tape, nth};
pub use pair::{Gap, Pair};
pub use preload::{OwnClock, flush_slowly};
pub use proxies::Proxies;
pub use qemu_build::{Build, target_dir};
pub use qferry_guest::{Act, Workload};
pub use qmp::{Answer, Event, Qmp, Refusal};
pub use quick::{Given, Half};
pub use random::Random;
pub use record::{Beat, Done, Side, Slot, Verified};
pub use spec::{Guest, Spec, Style};
pub use wire::{Link, Speed, Wire};

use std::time::Duration;

use error::Context;

/// The limit for something that comes by itself or never. A long limit costs nothing where all is well, so this one is
/// enough for the busiest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A TCP port on 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context(|| "looking for a free port")?;
    Ok(listener.local_addr().context(|| "looking for a free port")?.port())
}
