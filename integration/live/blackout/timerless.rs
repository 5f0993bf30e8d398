//! The blackout as a guest of QEMU 7.2 feels it.
//!
//! A guest system that comes from a 7.2 may have lost a timer, and then its beat tells nothing. This guest needs no
//! timer: it writes bytes to a debug port all the time, both QEMUs append them to one file, and the file stands for as
//! long as the guest.

use super::{BEAT, SLOW};
use crate::support::{MIB, builder, migrate_and, start};
use qferry::internals::progress::{Ending, Phase};
use qferry_bed::{BootSector, Machine, Side, Spec};
use serde_json::json;
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A port that neither SeaBIOS nor the bed uses.
const PORT: u16 = 0x403;

/// The longest time for which the file did not grow, until `over`.
fn longest_silence(file: &Path, over: &AtomicBool) -> Duration {
    let (mut length, mut grown, mut longest) = (0, Instant::now(), Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        let (now, seen) = (fs::metadata(file).unwrap().len(), Instant::now());
        if now > length {
            longest = longest.max(seen - grown);
            (length, grown) = (now, seen);
        }
        thread::sleep(Duration::from_millis(1));
    }
    longest
}

/// Plugs in a disk with a write cache, as a SCSI disk has. QEMU flushes every write to a virtio-blk disk by itself
/// while no driver has taken its cache on.
fn plug_in(machine: &Machine) {
    let path = machine.folder().join("cached");
    fs::File::create(&path).unwrap().set_len(2 * MIB).unwrap();
    let file = json!({"driver": "file", "filename": path});
    machine.qmp("blockdev-add", &json!({"driver": "raw", "node-name": "cached", "file": file})).unwrap();
    let device = json!({"driver": "scsi-hd", "bus": "scsi0.0", "drive": "cached", "id": "cached"});
    machine.qmp("device_add", &device).unwrap();
}

/// Whether the guest was silent for as long as the ledger says, within two beats. A busy host may make the silence
/// longer, and never shorter.
fn agrees(slow: Side) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bytes");
    let chardev = format!("file,id=bytes,path={},append=on", file.display());
    let device = format!("isa-debugcon,iobase={PORT},chardev=bytes");
    let extra =
        ["-chardev", &chardev, "-device", &device, "-device", "virtio-scsi-pci,id=scsi0"].map(str::to_owned).into();
    let boot = Some(BootSector::new().repeat(|steps| steps.out_byte(PORT, b'.').dirty(128)));
    let pair = start(&Spec { version: "7.2".to_owned(), boot, extra, slow_flush: true, ..Spec::quick() });
    [&pair.source, &pair.destination].into_iter().for_each(plug_in);
    let booted = Instant::now();
    while fs::metadata(&file).unwrap().len() == 0 {
        assert!(booted.elapsed() < crate::support::WAIT, "the guest did not boot");
        thread::sleep(Duration::from_millis(20));
    }
    let over = AtomicBool::new(false);
    let (outcome, silence) = thread::scope(|scope| {
        let watching = scope.spawn(|| longest_silence(&file, &over));
        let slowly = |_: &_| {
            // A disk that nobody has written to since its last flush is not flushed at the stop.
            let write = json!({"command-line": "qemu-io -d /machine/peripheral/cached \"write 1M 4k\""});
            let said = pair.source.qmp("human-monitor-command", &write).unwrap();
            assert!(said.as_str().is_some_and(|said| !said.contains("rror")), "{said}");
            pair.machine(slow).flush_slowly(SLOW).unwrap();
        };
        let (outcome, _) = migrate_and(builder(&pair), Phase::Memory, slowly);
        pair.machine(slow).flush_slowly(Duration::ZERO).ok();
        // Bytes of the destination end the silence.
        thread::sleep(BEAT * 3);
        over.store(true, Ordering::Relaxed);
        (outcome, watching.join().unwrap().as_secs_f64() * 1000.0)
    });
    assert_eq!((outcome.outcome, &outcome.leftovers[..]), (Ending::Moved, &[][..]), "{outcome:#?}");
    let blackout = outcome.blackout_ms.unwrap_or_else(|| panic!("{outcome:#?}"));
    let apart = 2.0 * BEAT.as_secs_f64() * 1000.0;
    println!("{silence:.0} ms without a byte, a blackout of {blackout:.0} ms");
    assert!(silence + apart >= blackout, "{silence} ms without a byte: {outcome:#?}");
    assert!(slow == Side::Destination || blackout >= SLOW.as_secs_f64() * 1000.0, "a flush at the stop: {outcome:#?}");
    silence <= blackout + apart
}

#[test]
fn the_ledger_agrees_with_a_guest_of_7_2() {
    for slow in [Side::Source, Side::Destination] {
        assert!((0..3).any(|_| agrees(slow)), "the guest was silent for longer each time");
    }
}
