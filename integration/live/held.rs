//! What held under attack, and is to hold: disks of odd graphs, odd paths, filters and I/O threads under constant
//! writes, and a destination that cannot lock its images. `kinds` and `others` have a row for each
//! kind of disk, device and memory, and for what guests and other clients do meanwhile.

mod kinds;
mod others;

use super::{
    proxied::before_monitors,
    support::{MIB, builder, busy, judge_back, judge_running, migrate, settings, spec, start},
};
use qferry::internals::{
    endpoint::Address, migration::Migration, progress::Ending, storage::model::layout::StorageMode,
};
use qferry_bed::{Deed, Deviation, DiskSpec, Filter, Machine, MonitorProxy, Side, Spec, Workload, nth};
use rustix::fs::{FlockOperation, fcntl_lock};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    fs::{self, File},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// A node named `odd` above files of a machine's own, and the number of devices upon it.
type Odd = fn(&dyn Fn(&str) -> Value) -> (Value, usize);

/// Odd graphs, and whether a mirror can stand for them.
const ODD: [(&str, Odd, bool); 3] = [
    (
        "quorum",
        |file| {
            let raw = |name| json!({"driver": "raw", "file": file(name)});
            (json!({"driver": "quorum", "vote-threshold": 2, "children": [raw("one"), raw("two")]}), 1)
        },
        true,
    ),
    ("offset", |file| (json!({"driver": "raw", "offset": MIB, "size": MIB, "file": file("one")}), 1), true),
    ("shared", |file| (json!({"driver": "raw", "file": file("one")}), 2), false),
];

/// The content of the source's files: what lies before an `offset` is no part of the disk.
fn content() -> Vec<u8> {
    vec![7; 2 << 20]
}

/// Plugs in the devices of an odd node, and gives the files below.
fn furnish(machine: &Machine, odd: Odd) -> Vec<PathBuf> {
    let files = RefCell::new(Vec::new());
    let file = |name: &str| {
        let path = machine.folder().join(name);
        match machine.side() {
            Side::Source => fs::write(&path, content()).unwrap(),
            Side::Destination => File::create(&path).unwrap().set_len(2 * MIB).unwrap(),
        }
        files.borrow_mut().push(path.clone());
        json!({"driver": "file", "filename": path})
    };
    let (mut node, devices) = odd(&file);
    node["node-name"] = json!("odd");
    machine.qmp("blockdev-add", &node).unwrap();
    for number in 0..devices {
        let device = json!({"driver": "scsi-hd", "bus": "scsi0.0", "lun": number, "drive": "odd",
                            "id": format!("odd{number}"), "share-rw": devices > 1});
        machine.qmp("device_add", &device).unwrap();
    }
    files.into_inner()
}

/// A disk of an odd graph arrives whole, or is refused by name before anything is changed.
#[test]
fn a_disk_of_an_odd_graph_arrives_or_is_refused() {
    for (what, odd, moves) in ODD {
        let extra = ["-device", "virtio-scsi-pci,id=scsi0"].map(str::to_owned).into();
        let pair = start(&Spec { extra, ..Spec::quick() });
        furnish(&pair.source, odd);
        let files = furnish(&pair.destination, odd);
        let outcome = migrate(builder(&pair));
        if moves {
            assert_eq!((outcome.outcome, &outcome.leftovers[..]), (Ending::Moved, &[][..]), "{what}: {outcome:#?}");
            pair.destination.finish().unwrap();
            for file in files {
                let mut right = content();
                if what == "offset" {
                    right[..1 << 20].fill(0);
                }
                assert!(fs::read(&file).unwrap() == right, "{what}: {}", file.display());
            }
        } else {
            assert_eq!(outcome.outcome, Ending::Refused, "{what}: {outcome:#?}");
            assert!(outcome.reason.unwrap().message.contains("odd"), "{what}");
            assert_eq!(pair.source.status().unwrap(), "running");
            assert_eq!(pair.source.qmp("query-jobs", &json!({})).unwrap(), json!([]));
        }
    }
}

/// Writes through throttles, copy-on-read and I/O threads arrive, all of them. QEMU may stop without the interrupt for
/// the last request of a disk with an I/O thread, in any migration, and the guest waits for that request for ever: so
/// such disks are moved with a QEMU that does so least, and with few requests.
#[test]
fn filters_and_io_threads_lose_no_write() {
    let gentle = Workload { write: 5, read: 20, ..busy() };
    for (version, iothread, workload) in [("10.0.13", false, busy()), ("11.1", true, gentle)] {
        let disk = |filter| DiskSpec {
            filter_above: filter,
            iothread,
            size: 32 * MIB,
            backing: 32 * MIB,
            backing_data: 4 * MIB,
            overlay_data: 2 * MIB,
            ..DiskSpec::default()
        };
        let disks = vec![disk(Some(Filter::Throttle)), disk(Some(Filter::CopyOnRead)), disk(None)];
        let pair = start(&Spec { disks, ..spec(version, workload) });
        let outcome = migrate(builder(&pair));
        judge_running(&pair, &outcome);
    }
}

fn addresses(monitors: &[MonitorProxy; 2]) -> [Address; 2] {
    monitors.each_ref().map(|monitor| Address::unix(monitor.path()).unwrap())
}

/// A name as an owner may give it, and no shell would like.
const NAME: &str = "it's a \"näme\", id=x;%41$HOME 100%\\";

#[test]
fn odd_paths_are_paths() {
    let extra = ["-device", "virtio-scsi-pci,id=scsi0"].map(str::to_owned).into();
    let pair = start(&Spec { extra, ..Spec::quick() });
    let folder = pair.run_dir().join(NAME);
    fs::create_dir(&folder).unwrap();
    let image = |machine: &Machine| machine.folder().join(NAME);
    for machine in [&pair.source, &pair.destination] {
        match machine.side() {
            Side::Source => fs::write(image(machine), content()).unwrap(),
            Side::Destination => File::create(image(machine)).unwrap().set_len(2 * MIB).unwrap(),
        }
        let file = json!({"driver": "file", "filename": image(machine)});
        machine.qmp("blockdev-add", &json!({"driver": "raw", "node-name": "odd", "file": file})).unwrap();
        machine
            .qmp("device_add", &json!({"driver": "scsi-hd", "bus": "scsi0.0", "drive": "odd", "id": "odd"}))
            .unwrap();
    }
    let monitors = before_monitors(&pair, &folder);
    let address = |name: &str| Address::unix(folder.join(name)).unwrap();
    let mut settings = settings(&pair);
    settings.runtime_dir.clone_from(&folder);
    settings.nbd_address = Some(address("n, b"));
    settings.migrate_address = Some(address("r, m"));
    settings.source_nbd_address = Some(address("s, n"));
    let [source, destination] = addresses(&monitors);
    let outcome = migrate(Migration::builder(source, destination).settings(settings));
    assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
    pair.destination.finish().unwrap();
    assert!(fs::read(image(&pair.destination)).unwrap() == content());
    drop(monitors);
    fs::remove_dir_all(&folder).unwrap();
}

/// Somebody has locked the image that both sides share when the destination is told to run: the guest goes back, and
/// does not run without its disk.
#[test]
fn a_destination_that_cannot_lock_a_shared_image_gives_the_guest_back() {
    let destination = vec![Deviation::SourcesImage { disk: 0 }];
    let pair = start(&Spec { destination, ..Spec::quick() });
    let folder = pair.run_dir().with_file_name("proxies");
    fs::create_dir(&folder).unwrap();
    let monitors = before_monitors(&pair, &folder);
    let held = Arc::new(Mutex::new(None));
    let (image, holds) = (pair.source.disks()[0].overlay.clone(), Arc::clone(&held));
    let lock = move || {
        let file = File::options().read(true).write(true).open(image).unwrap();
        // Of the whole file, so of the bytes too by which a QEMU says that nobody else may write.
        let locked = fcntl_lock(&file, FlockOperation::NonBlockingLockShared);
        *holds.lock().unwrap_or_else(PoisonError::into_inner) = Some((file, locked));
    };
    monitors[1].rule(nth(Side::Destination, "cont", 1), lock, Deed::Pass);
    let mut locked = None;
    let holds = Arc::clone(&held);
    let unlock = move || {
        holds.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map_or((), |(file, _)| {
            fcntl_lock(&*file, FlockOperation::Unlock).unwrap();
        })
    };
    monitors[0].rule(nth(Side::Source, "cont", 1), unlock, Deed::Pass);
    let mut settings = settings(&pair);
    settings.selection.storage = StorageMode::None;
    settings.switchover_timeout = Some(Duration::from_secs(9));
    settings.nbd_address = Some(Address::unix(folder.join("nbd")).unwrap());
    settings.migrate_address = Some(Address::unix(folder.join("ram")).unwrap());
    let [source, destination] = addresses(&monitors);
    let outcome = migrate(Migration::builder(source, destination).settings(settings));
    if let Some((_, result)) = held.lock().unwrap_or_else(PoisonError::into_inner).take() {
        locked = Some(result);
    }
    assert_eq!(locked, Some(Ok(())), "{outcome:#?}");
    judge_back(&pair, &outcome, Ending::RolledBack, "running");
}
