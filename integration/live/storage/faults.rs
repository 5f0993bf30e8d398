//! Destinations that fail while disks are copied: the guest is unharmed, the failure has its code, and nothing is left.

use super::{
    super::support::{
        MIB, WAIT, busy, judge_back, judge_disks, judge_running, migrate, migrate_and, settings, spec, start,
    },
    engine, moves, quick,
};
use qferry::internals::{
    endpoint::Address,
    migration::{Migration, Settings},
    progress::{Ending, Phase},
    storage::verify::identity::ProofLevel,
};
use qferry_bed::{Deviation, DiskSpec, Pair, Side, Spec, free_port};
use std::io::Write;

/// Fills the file system of the destination's images.
fn fill(pair: &Pair) {
    let mut file = std::fs::File::create(pair.destination.folder().join("small/filler")).unwrap();
    while file.write_all(&[1; 64 << 10]).is_ok() {}
}

#[test]
fn a_file_system_that_is_full_when_the_mirror_comes() {
    let disks = vec![DiskSpec { overlay_data: 8 * MIB, ..DiskSpec::small() }; 2];
    let destination = vec![Deviation::SmallFileSystem { bytes: 40 * MIB }];
    let mut pair = start(&Spec { destination, ..quick(disks) });
    let (outcome, _) = migrate_and(engine(&pair, |_| ()), Phase::Prepare, |_| fill(&pair));
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    let reason = outcome.reason.as_ref().unwrap();
    assert_eq!(reason.code, "mirror-failed", "{outcome:#?}");
    assert!(reason.message.contains("disk disk") && reason.message.contains("No space left"), "{reason:?}");
    // With enough room the guest moves.
    pair.restart_destination(true).unwrap();
    moves(&pair, |_| ());
}

/// The room suffices for the data at first, which the user says is enough, and then the guest writes more.
#[test]
fn a_guest_that_outgrows_the_room_it_was_given() {
    let disk = DiskSpec { overlay_data: 2 * MIB, ..DiskSpec::small() };
    let destination = vec![Deviation::SmallFileSystem { bytes: 9 * MIB }];
    let workload = qferry_bed::Workload { write: 100, block: 64 << 10, slots: 220, ..busy() };
    let mut pair = start(&Spec { disks: vec![disk], destination, ..spec("10.0.13", workload) });
    // The mirror is so slow that it cannot catch up with the guest, however busy this machine is.
    let overcommit = |settings: &mut Settings| {
        (settings.overcommit, settings.disk_bandwidth) = (true, Some(qferry::internals::quantity::Rate(MIB)));
    };
    let outcome = migrate(engine(&pair, overcommit));
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
    let reason = outcome.reason.as_ref().unwrap();
    assert!(reason.message.contains("disk disk0"), "{reason:?}");
    pair.deviate([]).unwrap();
    pair.wait_for_beats(Side::Source, 5, WAIT).unwrap();
    let outcome = migrate(engine(&pair, |_| ()));
    judge_running(&pair, &outcome);
}

/// The engine cannot see the rights of files on another host, so QEMU itself refuses.
#[test]
fn a_destination_that_may_not_write_says_so_itself() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let destination = vec![Deviation::OtherUser];
        let spec = Spec { tcp: true, version: version.to_owned(), destination, ..quick([DiskSpec::small()]) };
        let pair = start(&spec);
        let tcp = |port: u16| -> Address { format!("tcp:127.0.0.1:{port}").parse().unwrap() };
        let free = || Some(tcp(free_port().unwrap()));
        let [source, destination] = [&pair.source, &pair.destination].map(|side| tcp(side.qmp_port().unwrap()));
        for proof in [ProofLevel::Sample, ProofLevel::Off] {
            let mut settings = settings(&pair);
            (settings.nbd_address, settings.migrate_address, settings.source_nbd_address) = (free(), free(), free());
            settings.verify_backing = proof;
            let outcome = migrate(Migration::builder(source.clone(), destination.clone()).settings(settings));
            let message = &outcome.reason.as_ref().unwrap().message;
            assert!(message.contains("read-only") || message.contains("Permission denied"), "{version}: {message}");
            if outcome.outcome != Ending::Refused {
                judge_back(&pair, &outcome, Ending::RolledBack, "running");
            }
        }
        judge_disks(&pair, Side::Source);
    }
}
