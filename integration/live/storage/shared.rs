//! Files that both sides have open.

use super::{
    super::support::{judge_moved, migrate, start},
    State, anew, blocker, engine, found, img, look, note, overlay, quick, warning,
};
use qferry::{
    endpoint::Address,
    migration::{Builder, Migration, Settings},
    storage::layout::Storage,
};
use qferry_bed::{Deviation, DiskSpec, Pair, Side, Spec, free_port};
use std::fs;

fn none(settings: &mut Settings) {
    settings.selection.storage = Storage::None;
}

/// Ends both sides; the one image is whole.
fn whole(pair: &Pair) {
    pair.destination.finish().unwrap();
    img(pair, &[&"check", &"-q", &overlay(pair, Side::Source, 0)]);
    pair.check_disks(Side::Source).unwrap();
}

#[test]
fn the_same_file_is_never_mirrored_onto_itself() {
    let mut pair = start(&quick([DiskSpec::small(), DiskSpec::small()]));
    pair.deviate([Deviation::SourcesImage { disk: 0 }]).unwrap();
    let shared = || note("disk-shared", "disk0", [&"not copied"]);
    let plan = look(&pair, |_| ());
    found(&plan, [shared()]);
    assert_eq!(plan.disks.iter().map(|disk| disk.source.as_str()).collect::<Vec<_>>(), ["disk1"]);
    assert_eq!((plan.chains[0].mode, plan.chains[0].source.layers[0].shared), ("none", Some(true)));
    assert_eq!(plan.chains[1].source.layers[0].shared, Some(false));
    // by another name
    pair.deviate([]).unwrap();
    anew(&mut pair, |pair| {
        let top = &pair.destination.disks()[0].overlay;
        fs::remove_file(top).unwrap();
        fs::hard_link(&pair.source.disks()[0].overlay, top).unwrap();
    });
    found(&look(&pair, |_| ()), [shared()]);

    pair.deviate([Deviation::SourcesImage { disk: 0 }]).unwrap();
    let outcome = migrate(engine(&pair, |_| ()));
    judge_moved(&pair, &outcome);
    assert_eq!(outcome.disks.len(), 1);
    whole(&pair);
    pair.guest_visible_equal(1).unwrap();
}

#[test]
fn storage_that_is_said_to_be_shared_is_not_copied() {
    let mut pair = start(&quick([DiskSpec::small(), DiskSpec::cdrom(4 << 20)]));
    // two files each
    let two = |pair: &Pair, disk: usize, name: &'static str| {
        let (here, there) = (overlay(pair, Side::Source, disk), overlay(pair, Side::Destination, disk));
        blocker("disk-not-shared", name, [&here, &there, &"two files"])
    };
    found(&look(&pair, none), [two(&pair, 0, "disk0"), two(&pair, 1, "disk1")]);
    // each is judged
    pair.deviate([Deviation::SourcesImage { disk: 0 }]).unwrap();
    found(&look(&pair, none), [two(&pair, 1, "disk1")]);

    pair.deviate([0, 1].map(|disk| Deviation::SourcesImage { disk })).unwrap();
    let plan = look(&pair, none);
    found(&plan, []);
    assert!(plan.disks.is_empty() && plan.verified.is_empty(), "{plan:#?}");
    let outcome = migrate(engine(&pair, none));
    judge_moved(&pair, &outcome);
    assert!(outcome.disks.is_empty(), "{outcome:#?}");
    whole(&pair);
}

#[test]
fn storage_that_is_said_to_be_shared_and_is_not_there() {
    let pair = start(&Spec { disks: vec![DiskSpec::small()], ..Spec::quick() });
    let null = serde_json::json!({"driver": "null-co", "node-name": "void", "size": 1 << 20});
    pair.source.qmp("blockdev-add", &null).unwrap();
    let device = serde_json::json!({"driver": "virtio-blk-pci", "drive": "void", "id": "more"});
    pair.source.qmp("device_add", &device).unwrap();
    let plan = look(&pair, none);
    assert!(plan.blockers().any(|finding| finding.code == "disk-missing" && finding.subject == "more"), "{plan:#?}");
}

/// By way of monitors on TCP, so that nothing is known of the sides' files.
fn afar(pair: &Pair, change: impl FnOnce(&mut Settings)) -> Builder {
    let tcp = |port: u16| -> Address { format!("tcp:127.0.0.1:{port}").parse().unwrap() };
    let free = || Some(tcp(free_port().unwrap()));
    let mut settings = Settings {
        nbd_address: free(),
        migrate_address: free(),
        source_nbd_address: free(),
        runtime_dir: pair.run_dir(),
        ..Settings::default()
    };
    change(&mut settings);
    let monitors = [&pair.source, &pair.destination].map(|machine| tcp(machine.qmp_port().unwrap()));
    let [source, destination] = monitors;
    Migration::builder(source, destination).settings(settings)
}

#[test]
fn a_lock_shows_what_device_and_inode_cannot() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let spec = Spec { tcp: true, version: version.to_owned(), ..quick([DiskSpec::small()]) };
        let mut pair = start(&spec);
        let looked = |pair: &Pair, change: fn(&mut Settings)| {
            let before = State::of(pair);
            let plan = super::super::support::block_on(afar(pair, change).plan()).unwrap();
            before.is_still(pair);
            plan
        };
        found(&looked(&pair, |_| ()), []);
        pair.deviate([Deviation::SourcesImage { disk: 0 }]).unwrap();
        let file = overlay(&pair, Side::Source, 0).to_string();
        let locked = match version {
            // before 10.0 it exports for reading what it cannot lock; what the image holds speaks for itself
            "7.2" => blocker("overlay-not-empty", "disk0", [&file]),
            _ => blocker("disk-locked", "disk0", [&file, &"another process", &"lock"]),
        };
        let code = locked.1;
        found(&looked(&pair, |_| ()), [locked]);
        // whether it is the same cannot be seen; the user said so
        let unproved = warning("disk-shared-unproved", "disk0", [&file, &"cannot be seen"]);
        found(&looked(&pair, none), [unproved]);
        let outcome = migrate(afar(&pair, |_| ()));
        assert_eq!(outcome.reason.as_ref().map(|reason| reason.code.as_str()), Some(code), "{outcome:#?}");
        let outcome = migrate(afar(&pair, none));
        judge_moved(&pair, &outcome);
        whole(&pair);
    }
}
