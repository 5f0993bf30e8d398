//! The properties of devices and machines, as the guest sees them. The machines have no guest, and their disks no
//! images.

use super::codes;
use qferry::internals::preflight::checks::{Finding, Severity};
use qferry_bed::Qmp;
use serde_json::json;

/// Two machines that differ in one property.
struct Other {
    /// The arguments of both, in which `A` stands for what differs.
    machine: &'static str,
    values: [&'static str; 2],
    /// The code and severity of each finding.
    found: &'static [(&'static str, Severity)],
    /// Words of the first finding.
    told: &'static [&'static str],
}

const NODE: &str = "-blockdev null-co,node-name=n0,size=1048576,read-zeroes=on";
const SEEN: &[(&str, Severity)] = &[("device-property", Severity::Blocker)];
const OF_STATE: &[(&str, Severity)] = &[("device-state", Severity::Blocker)];
const OF_MACHINE: &[(&str, Severity)] = &[("machine-property", Severity::Blocker)];

const OTHERS: [Other; 16] = [
    Other {
        machine: "-device virtio-blk-pci,drive=n0,id=disk0,logical_block_size=A,physical_block_size=4096",
        values: ["512", "4096"],
        found: SEEN,
        told: &["disk0", "logical_block_size is 512 on the source and 4096 on the destination", "`force: "],
    },
    Other {
        machine: "-device virtio-blk-pci,drive=n0,id=disk0,serial=A",
        values: ["one", "two"],
        found: SEEN,
        told: &["disk0", "serial is \"one\"", "serial=one"],
    },
    Other {
        machine: "-device virtio-blk-pci,drive=n0,id=disk0A",
        values: [",discard=on", ",discard=off"],
        found: SEEN,
        told: &["discard is true"],
    },
    Other {
        machine: "-device virtio-scsi-pci -device scsi-hd,drive=n0,wwn=A",
        values: ["0x5000c50015ea71aa", "0x5000c50015ea71ab"],
        found: SEEN,
        told: &["scsi-hd at ", "lun=0", "wwn is"],
    },
    Other { machine: "-device ide-hd,drive=n0,model=A", values: ["one", "two"], found: SEEN, told: &["model is"] },
    Other {
        machine: "-device virtio-net-pci,id=net0,mac=A",
        values: ["52:54:00:00:00:01", "52:54:00:00:00:02"],
        found: SEEN,
        told: &["net0", "mac is \"52:54:00:00:00:01\""],
    },
    Other {
        machine: "-device e1000,mac=A,romfile=",
        values: ["52:54:00:00:00:01", "52:54:00:00:00:02"],
        found: SEEN,
        told: &["e1000 at addr=", "mac is"],
    },
    Other {
        machine: "-smp 4 -device virtio-blk-pci,drive=n0,id=disk0,vectors=5,num-queues=A",
        values: ["4", "1"],
        found: OF_STATE,
        told: &["disk0", "num-queues is 4 on the source and 1 on the destination", "num-queues=4"],
    },
    Other {
        machine: "-device virtio-scsi-pci,id=s,vectors=A",
        values: ["3", "4"],
        found: OF_STATE,
        told: &["s: ", "vectors is 3"],
    },
    Other {
        machine: "-device virtio-rng-pci,id=r,disable-legacy=A",
        values: ["on", "off"],
        found: OF_STATE,
        told: &["disable-legacy"],
    },
    Other {
        machine: "-chardev null,id=c -device virtio-serial-pci -device virtserialport,chardev=c,name=p,nr=A",
        values: ["2", "3"],
        found: OF_STATE,
        told: &["nr is 2 on the source and 3 on the destination"],
    },
    Other {
        machine: "-device virtio-blk-pci,drive=n0,id=disk0,werror=A",
        values: ["stop", "report"],
        found: &[("device-setting", Severity::Note)],
        told: &["werror is \"stop\""],
    },
    Other {
        machine: "-machine pc,hpet=A",
        values: ["on", "off"],
        found: &[("machine-property", Severity::Blocker), ("device-missing", Severity::Blocker)],
        told: &["hpet is false, not true", "`force: machine-property`"],
    },
    Other {
        machine: "-machine q35,max-ram-below-4g=A",
        values: ["1073741824", "2147483648"],
        found: OF_MACHINE,
        told: &["max-ram-below-4g is 2147483648, not 1073741824"],
    },
    Other {
        machine: "-smp 2,maxcpus=A",
        values: ["2", "4"],
        found: &[("cpu-topology", Severity::Blocker)],
        told: &["can have 2 virtual CPUs, the destination's 4", "`force: cpu-topology`"],
    },
    Other {
        machine: "-smp A",
        values: ["4,sockets=2,cores=2", "4,sockets=1,cores=4"],
        found: &[("cpu-topology", Severity::Blocker)],
        told: &["socket-id=1"],
    },
];

/// The findings about anything but the images, which these disks do not have.
fn compare(source: (&str, &str), destination: (&str, &str)) -> Vec<Finding> {
    let findings = super::compare(source, destination, &[]);
    findings.into_iter().filter(|finding| finding.code.as_str() != "disk-not-sparse").collect()
}

#[test]
fn a_property_that_differs_is_found_with_both_values() {
    for (other, version) in OTHERS.into_iter().zip(["7.2", "11.1"].into_iter().cycle()) {
        let Other { machine, values, found, told } = other;
        let [source, destination] = values.map(|value| format!("{NODE} {}", machine.replace('A', value)));
        let findings = compare((version, &source), (version, &destination));
        assert_eq!(codes(&findings), found, "{version} {machine}: {findings:#?}");
        let text = findings[0].to_string();
        assert!(told.iter().all(|word| text.contains(word)), "{version} {machine}: {text}");
    }
}

/// A virtual CPU that was plugged in is the same to the guest as one that was there at the start.
#[test]
fn a_cpu_that_was_plugged_in_is_compared_by_its_place() {
    for version in ["7.2", "11.1"] {
        let source = super::start(version, "-smp 2,maxcpus=4");
        let cpu = json!({"driver": "qemu64-x86_64-cpu", "id": "cpu2", "socket-id": 0, "core-id": 2, "thread-id": 0});
        Qmp::connect(&source.qmp_path()).unwrap().execute("device_add", &cpu).unwrap();
        for (destination, wanted) in [
            ("-smp 3,maxcpus=4", None),
            ("-smp 2,maxcpus=4", Some("the source has 3 virtual CPUs, the destination 2")),
            (
                "-smp 2,maxcpus=4 -device qemu64-x86_64-cpu,socket-id=0,core-id=3,thread-id=0",
                Some("only the source has a virtual CPU at core-id=2"),
            ),
        ] {
            let destination = super::start(version, &format!("{destination} -incoming defer -S"));
            let findings = super::found(&source, &destination, &[]);
            assert_eq!(
                codes(&findings),
                wanted.map_or(vec![], |_| vec![("cpu-count", Severity::Blocker)]),
                "{findings:#?}"
            );
            assert!(wanted.is_none_or(|words| findings[0].message.contains(words)), "{version}: {findings:#?}");
        }
    }
}

/// Memory that was plugged in is the same as memory that was there at the start, and no other size of RAM.
#[test]
fn memory_that_was_plugged_in_is_compared_with_that_of_the_command_line() {
    for version in ["7.2", "11.1"] {
        let machine = "-m 64M,slots=2,maxmem=1G";
        let source = super::start(version, machine);
        let ask = |command: &str, arguments: &serde_json::Value| {
            Qmp::connect(&source.qmp_path()).unwrap().execute(command, arguments).unwrap();
        };
        ask("object-add", &json!({"qom-type": "memory-backend-ram", "id": "more", "size": 128 << 20}));
        ask("device_add", &json!({"driver": "pc-dimm", "id": "dimm0", "memdev": "more"}));
        let backend = "-object memory-backend-ram,id=more,size=128M";
        for (dimm, wanted) in [
            (format!("{backend} -device pc-dimm,id=dimm0,memdev=more"), &[][..]),
            (String::new(), &["device-missing", "ram-blocks"]),
        ] {
            let destination = super::start(version, &format!("{machine} {dimm} -incoming defer -S"));
            let findings = super::found(&source, &destination, &[]);
            let mut told: Vec<&str> = codes(&findings).into_iter().map(|(code, _)| code).collect();
            told.sort_unstable();
            assert_eq!(told, wanted, "{version} {dimm}: {findings:#?}");
        }
    }
}

/// Names of backends, of paths and of other devices are no property that a guest sees.
#[test]
fn a_backend_of_another_name_is_no_difference() {
    let machine = |name: &str| {
        format!(
            "-blockdev null-co,node-name={name}n,size=1048576,read-zeroes=on -chardev null,id={name}c \
            -object iothread,id={name}i -device virtio-blk-pci,drive={name}n,id=disk0,iothread={name}i \
            -object rng-random,id={name}r,filename=/dev/urandom -device virtio-rng-pci,id=rng0,rng={name}r \
            -device isa-serial,chardev={name}c"
        )
    };
    assert_eq!(compare(("10.0.13", &machine("a")), ("10.0.13", &machine("b"))), []);
}

/// Every version of QEMU gives the devices of a versioned machine type the same properties.
#[test]
fn versions_differ_in_no_property_of_a_versioned_machine() {
    let devices = "-smp 2 -device virtio-scsi-pci,id=scsi0 -device scsi-cd,bus=scsi0.0 -device virtio-serial-pci \
        -device virtio-net-pci,id=net0 -device virtio-balloon-pci -device virtio-keyboard-pci -device VGA \
        -device qemu-xhci,id=usb -device usb-tablet,bus=usb.0 -device isa-debugcon,iobase=0x402,chardev=c \
        -chardev null,id=c -device ich9-usb-ehci1 -device lsi53c895a -device megasas -device sdhci-pci \
        -device i6300esb -device vmcoreinfo -device pvpanic -device ide-cd,bus=ide.1 -device pci-bridge,chassis_nr=1";
    for (board, older, newer) in [
        ("pc-i440fx-7.2", "7.2", "10.0.13"),
        ("pc-q35-7.2", "7.2", "11.1"),
        ("pc-i440fx-10.0", "10.0.13", "11.1"),
        ("pc-q35-9.2", "10.0.2", "11.1"),
    ] {
        let machine = format!("-machine {board} {NODE} -device virtio-blk-pci,drive=n0,id=disk0 {devices}");
        let findings = compare((older, &machine), (newer, &machine));
        // pvpanic of a newer QEMU can report more events, and `virtqueues` has the rings that 11.1 does not take
        let passed_over = |code: &str| code == "device-setting" || older == "10.0.13" && code == "virtqueue-size";
        let told: Vec<_> = codes(&findings).into_iter().filter(|(code, _)| !passed_over(code)).collect();
        assert_eq!(told, [], "{board}, {older} to {newer}: {findings:#?}");
    }
}
