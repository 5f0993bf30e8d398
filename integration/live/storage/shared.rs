//! Image files that both sides have open.

use super::{
    super::support::{judge_moved, migrate, settings, start},
    State, anew, blocker, engine, found, img, look, note, overlay, quick, warning,
};
use qferry::internals::{
    endpoint::Address,
    migration::{Builder, Migration, Settings},
    storage::model::layout::StorageMode,
};
use qferry_bed::{Deviation, DiskFiles, DiskSpec, Given, Half, Pair, Side, Spec, free_port};
use serde_json::json;
use std::{fs, path::Path};

fn none(settings: &mut Settings) {
    settings.selection.storage = StorageMode::None;
}

/// Ends both sides, and checks the shared image.
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
    // The same file under another name.
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

/// An image can be replaced under its name while a guest runs on it: the file of that name then is not the source's.
#[test]
fn an_image_that_was_replaced_is_not_the_one_that_has_its_name_now() {
    let mut pair = start(&quick([DiskSpec::small()]));
    let older = |path: &Path| {
        let older = path.with_extension("older");
        fs::rename(path, &older).unwrap();
        older
    };
    // The backing file was replaced: the engine reads the new one, which differs.
    let base = pair.source.disks()[0].layers[0].clone();
    anew(&mut pair, |pair| {
        let mut bytes = fs::read(older(&base)).unwrap();
        bytes[5] = !bytes[5];
        fs::write(&base, bytes).unwrap();
        let top = overlay(pair, Side::Destination, 0).to_string();
        img(pair, &[&"rebase", &"-u", &"-F", &"raw", &"-b", &base.display(), &top]);
    });
    let plan = look(&pair, |_| ());
    found(&plan, [blocker("backing-differs", "disk0", [&base.display(), &"differ at byte 5:"])]);
    assert_eq!(plan.chains[0].source.layers[1].shared, None, "which file it is cannot be told by its name");

    // The image itself was replaced by a fresh one, which is not what the guest wrote.
    anew(&mut pair, |pair| {
        let (on_source, on_destination) = (&pair.source.disks()[0].overlay, &pair.destination.disks()[0].overlay);
        let was = older(on_source);
        fs::rename(on_destination, on_source).unwrap();
        std::os::unix::fs::symlink(on_source, on_destination).unwrap();
        fs::rename(was.with_file_name(base.with_extension("older").file_name().unwrap()), &base).unwrap();
    });
    let plan = look(&pair, |_| ());
    let image = overlay(&pair, Side::Source, 0);
    found(&plan, [warning("image-name-lost", "disk0", [&image, &"another file has its name"])]);
    assert_eq!(plan.disks.len(), 1, "it is copied: {plan:#?}");
}

/// The destination has the source's file for another disk, so the disk of the source's name would stay empty.
#[test]
fn a_file_that_is_shared_in_another_place_is_copied_all_the_same() {
    let half = Half::start(&quick([DiskSpec::small()])).unwrap();
    let files = half.source.disks()[0].clone();
    let image = half.destination_dir().join("theirs.qcow2");
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(str::to_owned);
    let paths = [&files.layers[0], &image].map(|path| path.display().to_string());
    half.build(Side::Destination).img(words.into_iter().chain(paths)).unwrap();
    let disk = |node: &str, image: &Path| {
        let file = json!({"driver": "qcow2", "node-name": node, "file": {"driver": "file", "filename": image}});
        let device = format!("virtio-blk-pci,drive={node},id={node},serial={node}");
        ["-blockdev".to_owned(), file.to_string(), "-device".to_owned(), device]
    };
    let arguments = [disk("disk0", &image), disk("spare", &files.overlay)].concat();
    let disks = vec![DiskFiles { overlay: image, ..files.clone() }];
    let pair = half.join_with(Given { arguments, disks, whole: false }).unwrap();
    let file = files.overlay.display();
    let plan = look(&pair, |_| ());
    found(&plan, [blocker("device-extra", "spare", []), warning("disk-extra", "spare", [&file])]);
    assert_eq!(plan.disks.len(), 1, "{plan:#?}");
    // The engine never writes to that file, even if the user names it.
    let named = look(&pair, |settings| settings.selection.disks = vec![("disk0".into(), Some("spare".into()))]);
    assert!(named.disks.is_empty() && named.findings.iter().any(|finding| finding.code == "disk-shared"), "{named:#?}");
}

/// QEMU's locks would refuse this where files can be locked. The engine refuses by the files alone.
#[test]
fn what_one_disk_writes_is_never_another_ones_target() {
    for locking in ["on", "off"] {
        let half = Half::start(&quick([DiskSpec::small(), DiskSpec::small()])).unwrap();
        let disks = half.source.disks().to_vec();
        let image = half.destination_dir().join("one.qcow2");
        let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(str::to_owned);
        let paths = [&disks[0].layers[0], &image].map(|path| path.display().to_string());
        half.build(Side::Destination).img(words.into_iter().chain(paths)).unwrap();
        let disk = |node: &str, image: &Path| {
            let file = json!({"driver": "file", "filename": image, "locking": locking});
            let image = json!({"driver": "qcow2", "node-name": node, "file": file});
            let device = format!("virtio-blk-pci,drive={node},id={node},serial={node}");
            ["-blockdev".to_owned(), image.to_string(), "-device".to_owned(), device]
        };
        let arguments = match locking {
            "on" => [disk("disk0", &disks[1].overlay), disk("disk1", &disks[0].overlay)].concat(),
            _ => [disk("disk0", &image), disk("disk1", &image)].concat(),
        };
        let pair = half.join_with(Given { arguments, disks: disks.clone(), whole: false }).unwrap();
        let plan = look(&pair, |_| ());
        let live = |name, other: usize, disk: &'static str| {
            blocker("overlay-is-live", name, [&disks[other].overlay.display(), &disk])
        };
        let taken = |name, other: &'static str| blocker("overlay-taken", name, [&image.display(), &other]);
        match locking {
            "on" => found(&plan, [live("disk0", 1, "disk1"), live("disk1", 0, "disk0")]),
            _ => found(&plan, [taken("disk0", "disk1"), taken("disk1", "disk0")]),
        }
    }
}

#[test]
fn storage_that_is_said_to_be_shared_is_not_copied() {
    let mut pair = start(&quick([DiskSpec::small(), DiskSpec::cdrom(4 << 20)]));
    // Each disk has two files.
    let two = |pair: &Pair, disk: usize, name: &'static str| {
        let (at_source, at_destination) = (overlay(pair, Side::Source, disk), overlay(pair, Side::Destination, disk));
        blocker("disk-not-shared", name, [&at_source, &at_destination, &"two files"])
    };
    found(&look(&pair, none), [two(&pair, 0, "disk0"), two(&pair, 1, "disk1")]);
    // Each disk is judged by itself.
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
    let null = json!({"driver": "null-co", "node-name": "void", "size": 1 << 20});
    pair.source.qmp("blockdev-add", &null).unwrap();
    let device = json!({"driver": "virtio-blk-pci", "drive": "void", "id": "more"});
    pair.source.qmp("device_add", &device).unwrap();
    let plan = look(&pair, none);
    assert!(plan.blockers().any(|finding| finding.code == "disk-missing" && finding.subject == "more"), "{plan:#?}");
}

/// A migration by monitors on TCP, so that the engine cannot see the sides' files.
fn afar(pair: &Pair, change: impl FnOnce(&mut Settings)) -> Builder {
    let tcp = |port: u16| -> Address { format!("tcp:127.0.0.1:{port}").parse().unwrap() };
    let free = || Some(tcp(free_port().unwrap()));
    let mut settings = settings(pair);
    (settings.nbd_address, settings.migrate_address, settings.source_nbd_address) = (free(), free(), free());
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
            let mut plan = afar(pair, change).check().unwrap().wait_blocking().unwrap();
            before.is_still(pair);
            // each of the ports is open to everyone on this host
            plan.findings.retain(|finding| finding.code != "open-port");
            plan
        };
        found(&looked(&pair, |_| ()), []);
        pair.deviate([Deviation::SourcesImage { disk: 0 }]).unwrap();
        let file = overlay(&pair, Side::Source, 0).to_string();
        let locked = match version {
            // QEMU before 10.0 exports an image for reading that it cannot lock, so the image is found not to be empty.
            "7.2" => blocker("overlay-not-empty", "disk0", [&file]),
            _ => blocker("disk-locked", "disk0", [&file, &"another process", &"lock"]),
        };
        let code = locked.1;
        found(&looked(&pair, |_| ()), [locked]);
        // The engine cannot see whether the files are the same, but the user said so.
        let unproved = warning("disk-shared-unproved", "disk0", [&file, &"cannot be seen"]);
        found(&looked(&pair, none), [unproved]);
        let outcome = migrate(afar(&pair, |_| ()));
        assert_eq!(outcome.reason.as_ref().map(|reason| reason.code.as_str()), Some(code), "{outcome:#?}");
        let outcome = migrate(afar(&pair, none));
        judge_moved(&pair, &outcome);
        whole(&pair);
    }
}
