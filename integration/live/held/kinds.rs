//! Kinds of disks, devices and memory that move, and those that are refused in words: a row for each. No guest is
//! needed, for the images show what arrived; the guests are paused, and have run nothing but firmware.

use super::super::machines::{Bare, Folder, ask, paused, waiting};
use crate::support::migrate;
use qferry::internals::{
    endpoint::Address,
    migration::{JournalPlace, Migration},
    progress::{Ending, Outcome},
};
use serde_json::json;
use std::process::Command;

/// A secret for images that are encrypted.
const SECRET: &str = "secret,id=key,data=abc";

/// A kind of disk. `@` stands for the image of a side.
struct DiskKind {
    what: &'static str,
    versions: [&'static str; 2],
    /// The arguments of `qemu-img create`, with `key` for the secret.
    create: &'static str,
    /// The image as `--image-opts` names it.
    image: &'static str,
    /// The arguments of both machines.
    machine: &'static str,
    /// The code of a refusal, if the kind does not move.
    refused: Option<&'static str>,
}

const DISKS: [DiskKind; 10] = [
    DiskKind {
        what: "IDE",
        versions: ["7.2", "10.0.13"],
        create: "-f qcow2 @ 4M",
        image: "driver=qcow2,file.filename=@",
        machine: "-machine pc-i440fx-7.2 -cpu qemu64 -blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=@ -device ide-hd,drive=n,id=disk0",
        refused: None,
    },
    DiskKind {
        what: "AHCI",
        versions: ["7.2", "11.1"],
        create: "-f qcow2 @ 4M",
        image: "driver=qcow2,file.filename=@",
        machine: "-machine pc-q35-7.2 -cpu qemu64 -blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=@ -device ide-hd,bus=ide.1,drive=n,id=disk0",
        refused: None,
    },
    DiskKind {
        what: "sectors of 4096 bytes",
        versions: ["10.0.13", "10.0.13"],
        create: "-f qcow2 @ 4M",
        image: "driver=qcow2,file.filename=@",
        machine: "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=@ -device virtio-blk-pci,drive=n,id=disk0,logical_block_size=4096,physical_block_size=4096",
        refused: None,
    },
    DiskKind {
        what: "a size that is a multiple of nothing",
        versions: ["7.2", "7.2"],
        create: "-f qcow2 @ 4195840",
        image: "driver=qcow2,file.filename=@",
        machine: "-device virtio-scsi-pci -blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=@ -device scsi-hd,drive=n,id=disk0",
        refused: None,
    },
    DiskKind {
        what: "subclusters",
        versions: ["11.1", "11.1"],
        create: "-f qcow2 -o extended_l2=on,cluster_size=128k @ 4M",
        image: "driver=qcow2,file.filename=@",
        machine: "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=@ -device virtio-blk-pci,drive=n,id=disk0",
        refused: None,
    },
    DiskKind {
        what: "qcow2 of version 2",
        versions: ["10.0.13", "10.0.13"],
        create: "-f qcow2 -o compat=0.10 @ 4M",
        image: "driver=qcow2,file.filename=@",
        machine: "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=@ -device virtio-blk-pci,drive=n,id=disk0",
        refused: None,
    },
    DiskKind {
        what: "LUKS",
        versions: ["7.2", "7.2"],
        create: "-f qcow2 -o encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10 @ 4M",
        image: "driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,file.filename=@",
        machine: "-object secret,id=key,data=abc -blockdev driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,node-name=n,file.driver=file,file.filename=@ -device virtio-blk-pci,drive=n,id=disk0",
        refused: None,
    },
    DiskKind {
        what: "-drive without an id",
        versions: ["11.1", "11.1"],
        create: "-f qcow2 @ 4M",
        image: "driver=qcow2,file.filename=@",
        machine: "-drive if=virtio,format=qcow2,file=@",
        refused: None,
    },
    DiskKind {
        what: "I/O threads by queue",
        versions: ["11.1", "11.1"],
        create: "-f qcow2 @ 4M",
        image: "driver=qcow2,file.filename=@",
        machine: r#"-object iothread,id=t0 -object iothread,id=t1 -blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=@ -device {"driver":"virtio-blk-pci","id":"disk0","drive":"n","num-queues":2,"iothread-vq-mapping":[{"iothread":"t0"},{"iothread":"t1"}]}"#,
        refused: None,
    },
    DiskKind {
        what: "NVMe",
        versions: ["10.0.13", "10.0.13"],
        create: "-f qcow2 @ 4M",
        image: "driver=qcow2,file.filename=@",
        machine: "-blockdev driver=qcow2,node-name=n,file.driver=file,file.filename=@ -device nvme,serial=1,drive=n,id=disk0",
        refused: Some("migration-blocked"),
    },
];

fn tool(at: &Folder, name: &str, words: &[&str]) {
    // qemu-img measures the CPU to choose the rounds of a key, and gives up on a host that is too busy for that.
    const GIVES_UP: &str = "Unable to get accurate CPU usage";
    for _ in 0..20 {
        let output = Command::new(at.build.program(name)).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return;
        }
        assert!(said.contains(GIVES_UP), "{name} {words:?}: {said}");
    }
    panic!("{name} {words:?}: {GIVES_UP}, again and again");
}

/// The words with the path of a side's image in place of `@`.
fn of_side(at: &Folder, side: &str, words: &str) -> String {
    words.replace('@', &at.path(side).display().to_string())
}

fn reason(outcome: &Outcome) -> Option<&str> {
    outcome.reason.as_ref().map(|reason| reason.code.as_str())
}

#[test]
fn disks_of_every_kind_arrive_or_are_refused_in_words() {
    for DiskKind { what, versions, create, image, machine, refused } in DISKS {
        let at = Folder::new(versions[0]);
        for side in ["source", "destination"] {
            let create = of_side(&at, side, create);
            let words: Vec<&str> = ["create", "-q", "--object", SECRET].into_iter().chain(create.split(' ')).collect();
            tool(&at, "qemu-img", &words);
        }
        let on_source = of_side(&at, "source", image);
        let write = ["-c", "write -q -P 7 512k 1M", "-c", "write -q -P 9 4190208 4096"];
        tool(&at, "qemu-io", &[&["--object", SECRET, "--image-opts", &on_source][..], &write].concat());
        let source = paused(versions[0], &of_side(&at, "source", machine));
        let destination = waiting(versions[1], &of_side(&at, "destination", machine));
        let outcome = at.migrate(&source, &destination);
        if let Some(code) = refused {
            assert_eq!((outcome.outcome, reason(&outcome)), (Ending::Refused, Some(code)), "{what}: {outcome:#?}");
            assert_eq!(ask(&source, "query-status", &json!({}))["status"], "paused", "{what}");
            continue;
        }
        assert_eq!((outcome.outcome, &outcome.leftovers[..]), (Ending::Moved, &[][..]), "{what}: {outcome:#?}");
        assert_eq!(ask(&destination, "query-status", &json!({}))["status"], "paused", "{what}");
        drop((source, destination));
        let images = [on_source.as_str(), &of_side(&at, "destination", image)];
        tool(&at, "qemu-img", &[&["compare", "-q", "--object", SECRET, "--image-opts"][..], &images].concat());
    }
}

/// No answer of QEMU tells whether somebody has written to a LUKS volume without qcow2 above, so a user must say so.
#[test]
fn a_luks_volume_is_written_over_on_the_users_word_alone() {
    let at = Folder::new("10.0.13");
    let opened = |side| of_side(&at, side, "driver=luks,key-secret=key,file.filename=@");
    // QEMU takes seconds to choose the parameters of a key.
    let path = at.path("source").display().to_string();
    let create = ["create", "-q", "--object", SECRET, "-f", "luks", "-o", "key-secret=key,iter-time=10"];
    tool(&at, "qemu-img", &[&create[..], &[&path, "4M"]].concat());
    std::fs::copy(path, at.path("destination")).unwrap();
    tool(&at, "qemu-io", &["--object", SECRET, "--image-opts", &opened("source"), "-c", "write -q -P 7 512k 1M"]);
    let machine = "-object secret,id=key,data=abc -blockdev driver=luks,key-secret=key,node-name=n,file.driver=file,file.filename=@ -device virtio-blk-pci,drive=n,id=disk0";
    let source = paused("10.0.13", &of_side(&at, "source", machine));
    let destination = waiting("10.0.13", &of_side(&at, "destination", machine));
    let outcome = at.migrate(&source, &destination);
    assert_eq!((outcome.outcome, reason(&outcome)), (Ending::Refused, Some("destination-holds-data")), "{outcome:#?}");
    let told = outcome.findings.iter().find(|finding| finding.code.as_str() == "destination-holds-data").unwrap();
    assert!(told.message.contains("is a LUKS volume") && told.remedy.contains("encrypt.format=luks"), "{told:?}");
    let outcome = migrate(at.builder(&source, &destination).force("destination-holds-data"));
    assert_eq!((outcome.outcome, &outcome.leftovers[..]), (Ending::Moved, &[][..]), "{outcome:#?}");
    drop((source, destination));
    let both = [&opened("source")[..], &opened("destination")];
    tool(&at, "qemu-img", &[&["compare", "-q", "--object", SECRET, "--image-opts"][..], &both].concat());
}

/// What a guest writes to a disk with `snapshot=on` arrives in the destination's own temporary image.
#[test]
fn a_disk_with_snapshot_on_arrives() {
    for version in ["7.2", "11.1"] {
        let at = Folder::new(version);
        for side in ["source", "destination"] {
            at.img(&["create", "-q", "-f", "qcow2", &format!("@{side}"), "4M"]);
        }
        let machine = "-drive if=virtio,format=qcow2,file=@,snapshot=on";
        let source = paused(version, &of_side(&at, "source", machine));
        let destination = waiting(version, &of_side(&at, "destination", machine));
        let io = |machine: &Bare, command: &str| {
            ask(machine, "human-monitor-command", &json!({ "command-line": format!("qemu-io virtio0 \"{command}\"") }))
        };
        io(&source, "write -P 7 1M 64k");
        let outcome = at.migrate(&source, &destination);
        assert_eq!(outcome.outcome, Ending::Moved, "{version}: {outcome:#?}");
        let read = io(&destination, "read -P 7 1M 64k");
        assert_eq!(read, "", "{version}: a pattern that differs is told");
        ask(&destination, "cont", &json!({}));
    }
}

/// Devices and memory, each on two versions of QEMU, and whether RAM goes over two channels.
const MACHINES: [(&str, [&str; 2], &str, bool); 8] = [
    ("a balloon", ["7.2", "11.1"], "-device virtio-balloon-pci,id=b", false),
    ("a memfd", ["10.0.13", "10.0.13"], "-object memory-backend-memfd,id=m,size=64M -machine memory-backend=m", false),
    (
        "NUMA",
        ["7.2", "10.0.13"],
        "-smp 2 -object memory-backend-ram,id=m0,size=32M -object memory-backend-ram,id=m1,size=32M -numa node,memdev=m0 -numa node,memdev=m1",
        false,
    ),
    (
        "two network cards",
        ["7.2", "11.1"],
        "-device virtio-net-pci,id=n0,mac=52:54:00:00:00:01 -device e1000,id=n1,mac=52:54:00:00:00:02",
        false,
    ),
    (
        "9p that is not mounted",
        ["11.1", "11.1"],
        "-fsdev local,id=f,path=@,security_model=none -device virtio-9p-pci,fsdev=f,mount_tag=t,id=p",
        false,
    ),
    ("two channels from 7.2 to 10.0", ["7.2", "10.0.13"], "-device VGA,id=v", true),
    ("two channels from 7.2 to 11.1", ["7.2", "11.1"], "-device VGA,id=v", true),
    ("two channels of one version", ["10.0.13", "10.0.13"], "-device VGA,id=v", true),
];

#[test]
fn devices_and_memory_of_every_kind_arrive() {
    for (what, versions, devices, has_channels) in MACHINES {
        let at = Folder::new(versions[0]);
        std::fs::create_dir(at.path("shared")).unwrap();
        let machine = format!("-machine pc-i440fx-7.2 -cpu qemu64 {}", of_side(&at, "shared", devices));
        let (source, destination) = (paused(versions[0], &machine), waiting(versions[1], &machine));
        let address = |machine: &Bare| Address::unix(machine.qmp_path()).unwrap();
        let builder = Migration::builder(address(&source), address(&destination));
        let builder = builder.runtime_dir(at.path("")).journal(JournalPlace::Nowhere);
        let outcome = migrate(if has_channels { builder.multifd(2) } else { builder });
        assert_eq!((outcome.outcome, &outcome.leftovers[..]), (Ending::Moved, &[][..]), "{what}: {outcome:#?}");
        assert_eq!(ask(&destination, "query-status", &json!({}))["status"], "paused", "{what}");
        ask(&destination, "cont", &json!({}));
        assert_eq!(ask(&destination, "query-status", &json!({}))["status"], "running", "{what}");
    }
}

/// A paused guest is moved from A to B, and on from B to C, which is of a newer version.
#[test]
fn a_paused_guest_is_moved_on_and_stays_paused() {
    let at = Folder::new("7.2");
    let machine = |image: &str| {
        format!(
            "-machine pc-i440fx-7.2 -cpu qemu64 -blockdev driver=qcow2,node-name=n,file.driver=file,file.filename={} -device virtio-blk-pci,drive=n,id=disk0",
            at.path(image).display()
        )
    };
    for image in ["a", "b", "c"] {
        at.img(&["create", "-q", "-f", "qcow2", &format!("@{image}"), "4M"]);
    }
    at.build.io(&at.path("a"), ["write -q -P 7 1M 1M"]).unwrap();
    let (first, second) = (paused("7.2", &machine("a")), waiting("10.0.2", &machine("b")));
    assert_eq!(at.migrate(&first, &second).outcome, Ending::Moved);
    let third = waiting("11.1", &machine("c"));
    let outcome = at.migrate(&second, &third);
    assert_eq!((outcome.outcome, outcome.blackout_ms), (Ending::Moved, None), "{outcome:#?}");
    assert_eq!(ask(&third, "query-status", &json!({}))["status"], "paused");
    drop((first, second, third));
    at.img(&["compare", "-q", "-f", "qcow2", "-F", "qcow2", "@a", "@c"]);
}

/// What was plugged in on both sides moves, and on one side alone is refused by name.
#[test]
fn what_was_plugged_in_moves_where_both_sides_have_it() {
    for (version, on_source, on_destination, refused) in [
        ("7.2", true, true, None),
        ("10.0.13", true, false, Some("device-missing")),
        ("11.1", false, true, Some("device-extra")),
    ] {
        let at = Folder::new(version);
        let (source, destination) = (paused(version, "-machine pc"), waiting(version, "-machine pc"));
        for (machine, side, wanted) in [(&source, "source", on_source), (&destination, "destination", on_destination)] {
            if wanted {
                at.img(&["create", "-q", "-f", "qcow2", &format!("@{side}"), "4M"]);
                let file = json!({ "driver": "file", "filename": at.path(side) });
                ask(machine, "blockdev-add", &json!({ "driver": "qcow2", "node-name": "hot", "file": file }));
                let device = json!({ "driver": "virtio-blk-pci", "id": "hot", "drive": "hot", "addr": "7" });
                ask(machine, "device_add", &device);
            }
        }
        let outcome = at.migrate(&source, &destination);
        match refused {
            None => assert_eq!(outcome.outcome, Ending::Moved, "{version}: {outcome:#?}"),
            Some(_) => assert_eq!(outcome.outcome, Ending::Refused, "{version}: {outcome:#?}"),
        }
        let told = outcome.reason.map(|reason| reason.message).unwrap_or_default();
        assert!(refused.is_none() || told.contains("hot"), "{version}: {told}");
    }
}
