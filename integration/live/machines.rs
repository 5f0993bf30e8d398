//! The preflight's comparison of two machines, as QEMU itself describes them. The machines have no guest.

mod disk_places;
mod left_behind;
mod out_of_band;
mod properties;
mod reopening;
mod virtqueues;

pub(crate) use left_behind::{Folder, ask, paused, waiting};

use super::support::WAIT;
use qferry::internals::{
    endpoint::Address,
    migration::Migration,
    preflight::checks::{Finding, FindingCode, Severity},
};
pub(crate) use qferry_bed::Bare;
use qferry_bed::Qmp;
use serde_json::{Value, json};
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

const VERSIONS: [&str; 4] = ["7.2", "10.0.2", "10.0.13", "11.1"];
/// A machine with a device of each kind. Firmware numbers the buses of those behind bridges.
const RICH: &str = "-smp 2 -device pcie-root-port,id=rp0,chassis=1 -device virtio-rng-pci,bus=rp0,id=deep \
    -device pcie-pci-bridge,id=bridge -device virtio-rng-pci,bus=bridge,addr=3,id=deeper -device qemu-xhci,id=usb \
    -device usb-tablet,bus=usb.0,id=tablet -device virtio-rng-pci -device VGA -device virtio-net-pci,id=net \
    -object memory-backend-ram,id=more,size=16M";

fn start(version: &str, arguments: &str) -> Bare {
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    Bare::start(version, &arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// The findings of the preflight for a migration between two machines.
fn compare(source: (&str, &str), destination: (&str, &str), force: &[&str]) -> Vec<Finding> {
    let source = start(source.0, source.1);
    let destination = start(destination.0, &format!("{} -incoming defer -S", destination.1));
    found(&source, &destination, force)
}

fn found(source: &Bare, destination: &Bare, force: &[&str]) -> Vec<Finding> {
    let address = |bare: &Bare| Address::unix(bare.qmp_path()).unwrap();
    let builder = Migration::builder(address(source), address(destination));
    let builder = force.iter().fold(builder, |builder, code| builder.force(*code));
    let plan = builder.check().unwrap().wait_blocking().unwrap_or_else(|error| panic!("{error:?}"));
    plan.findings
}

fn codes(findings: &[Finding]) -> Vec<(&str, Severity)> {
    findings.iter().map(|finding| (finding.code.as_str(), finding.severity)).collect()
}

/// The only finding has this code and severity, and its text has all these words.
#[track_caller]
fn only(findings: &[Finding], code: &str, severity: Severity, words: &[&str]) {
    assert_eq!(codes(findings), [(code, severity)], "{findings:#?}");
    let text = findings[0].to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
}

#[test]
fn equal_machines_have_no_findings() {
    for version in VERSIONS {
        for machine in ["-machine pc", &format!("-machine q35 -cpu max {RICH}")] {
            let findings = compare((version, machine), (version, machine), &[]);
            assert_eq!(findings, [], "{version} {machine}");
        }
    }
}

fn pci(bare: &Bare) -> Value {
    Qmp::connect(&bare.qmp_path()).unwrap().execute("query-pci", &json!({})).unwrap()
}

/// The number of the bus behind each bridge: 0 until firmware has numbered it.
fn bus_numbers(pci: &Value) -> Vec<u64> {
    match pci {
        Value::Array(all) => all.iter().flat_map(bus_numbers).collect(),
        Value::Object(all) => {
            let own = pci["pci_bridge"]["bus"]["secondary"].as_u64();
            own.into_iter().chain(all.values().flat_map(bus_numbers)).collect()
        }
        _ => Vec::new(),
    }
}

/// The source's firmware has numbered the buses. The destination's firmware has not run.
#[test]
fn a_machine_that_has_booted_is_still_equal() {
    let machine = format!("-machine q35 {RICH}");
    let source = start("10.0.13", &machine);
    let began = Instant::now();
    let is_numbered = |numbers: &[u64]| !numbers.is_empty() && !numbers.contains(&0);
    while !is_numbered(&bus_numbers(&pci(&source))) {
        assert!(began.elapsed() < WAIT, "the firmware has not numbered all buses: {}", pci(&source));
        sleep(Duration::from_millis(50));
    }
    let destination = start("10.0.13", &format!("{machine} -incoming defer -S"));
    assert_eq!(found(&source, &destination, &[]), []);
}

#[test]
fn a_newer_qemu_with_the_same_machine_type_has_no_blockers() {
    for machine in ["-machine pc-i440fx-7.2 -smp 2", &format!("-machine pc-q35-7.2 {RICH}")] {
        for (older, newer) in [("7.2", "10.0.2"), ("7.2", "11.1"), ("10.0.2", "10.0.13"), ("10.0.13", "11.1")] {
            let mut findings = compare((older, machine), (newer, machine), &[]);
            if (older, newer) == ("10.0.13", "11.1") {
                // `virtqueues` has this pair, whose virtio devices do not fit.
                findings.retain(|finding| finding.code != FindingCode::VirtqueueSize);
            }
            assert_eq!(findings, [], "{older} to {newer}: {machine}");
        }
    }
}

#[test]
fn an_older_qemu_is_refused_and_can_be_forced() {
    let machine = "-machine pc-i440fx-7.2 -smp 2";
    let findings = compare(("10.0.13", machine), ("7.2", machine), &[]);
    only(&findings, "qemu-older", Severity::Blocker, &["7.2.22", "10.0.13", "`force: qemu-older`"]);
    let findings = compare(("10.0.13", machine), ("7.2", machine), &["qemu-older"]);
    only(&findings, "qemu-older", Severity::Warning, &["forced although", "7.2.22", "10.0.13"]);
    let findings = compare(("10.0.13", machine), ("10.0.2", machine), &[]);
    only(&findings, "qemu-older-micro", Severity::Note, &["10.0.2", "10.0.13"]);
}

#[test]
fn another_machine_type_is_refused() {
    let (at_source, at_destination) = ("-machine pc-i440fx-10.0", "-machine pc-i440fx-9.2");
    let findings = compare(("10.0.13", at_source), ("10.0.13", at_destination), &[]);
    only(&findings, "machine-type", Severity::Blocker, &["pc-i440fx-9.2", "-machine pc-i440fx-10.0", "`force: "]);
    // Another board is another machine type, and nothing else is compared.
    let findings = compare(("10.0.13", "-machine pc"), ("10.0.13", "-machine q35"), &[]);
    assert_eq!(codes(&findings)[0], ("machine-type", Severity::Blocker));
    assert!(codes(&findings).contains(&("device-missing", Severity::Blocker)), "{findings:#?}");
}

#[test]
fn another_number_of_cpus_is_refused() {
    let findings = compare(("10.0.13", "-smp 2"), ("10.0.13", "-smp 3"), &[]);
    only(&findings, "cpu-count", Severity::Blocker, &["2", "3"]);
}

#[test]
fn a_cpu_that_lacks_something_is_refused_by_name() {
    for version in ["7.2", "11.1"] {
        let findings = compare((version, "-cpu max"), (version, "-cpu max,-avx2,-sse4.1"), &[]);
        only(&findings, "cpu-features", Severity::Blocker, &["source's: avx2, sse4.1 (", "`force: cpu-features`"]);
        let findings = compare((version, "-cpu max,-avx2"), (version, "-cpu max"), &[]);
        only(&findings, "cpu-features-extra", Severity::Warning, &["CPUID 7.0 EBX bit 5 ("]);
    }
}

#[test]
fn another_cpu_is_refused() {
    let findings = compare(("10.0.13", "-cpu qemu64"), ("10.0.13", "-cpu qemu64,stepping=2"), &[]);
    only(&findings, "cpu-model", Severity::Blocker, &["stepping 2, not 1"]);
    let findings = compare(("10.0.13", "-cpu qemu64"), ("10.0.13", "-cpu qemu64,model-id=Other"), &[]);
    only(&findings, "cpu-name", Severity::Note, &["model-id Other"]);
    // The CPU `max` differs between versions.
    let machine = "-machine pc-i440fx-7.2 -cpu max";
    let findings = compare(("7.2", machine), ("11.1", machine), &[]);
    let wanted = [
        ("cpu-model", Severity::Blocker),
        ("cpu-features", Severity::Blocker),
        ("cpu-features-extra", Severity::Warning),
    ];
    assert_eq!(codes(&findings), wanted, "{findings:#?}");
    assert!(findings[1].message.ends_with(": pcommit"), "{}", findings[1]);
}

#[test]
fn a_device_that_is_missing_extra_or_different_is_refused() {
    let with =
        |at_source: &str, at_destination: &str| compare(("10.0.13", at_source), ("10.0.13", at_destination), &[]);
    let rng = "-device virtio-rng-pci,id=rng,addr=5";
    only(&with(rng, ""), "device-missing", Severity::Blocker, &["rng: ", "virtio-rng-pci at 00:05.0", "`force: "]);
    only(&with("", rng), "device-extra", Severity::Blocker, &["rng: ", "virtio-rng-pci at 00:05.0", "`force: "]);
    let moved = "-device virtio-rng-pci,id=rng,addr=6";
    only(&with(rng, moved), "device-differs", Severity::Blocker, &["rng: ", "at 00:05.0", "at 00:06.0"]);
    let another = "-device virtio-balloon-pci,id=rng,addr=5";
    only(&with(rng, another), "device-differs", Severity::Blocker, &["virtio-rng-pci", "virtio-balloon-pci"]);
    let renamed = "-device virtio-rng-pci,id=entropy,addr=5";
    only(&with(rng, renamed), "device-renamed", Severity::Note, &["rng: ", "entropy"]);
}

#[test]
fn a_device_behind_a_bridge_is_compared_by_its_place_there() {
    let bridges = "-machine q35 -device pcie-root-port,id=rp0,chassis=1 -device pcie-root-port,id=rp1,chassis=2";
    let rng = |port: &str| format!("{bridges} -device virtio-rng-pci,id=rng,bus={port}");
    let findings = compare(("10.0.13", &rng("rp0")), ("10.0.13", &rng("rp1")), &[]);
    only(&findings, "device-differs", Severity::Blocker, &["rng: ", "at rp0/00.0", "at rp1/00.0"]);
}

#[test]
fn devices_without_an_id_are_compared_too() {
    let subjects = |at_source: &str, at_destination: &str| -> Vec<(String, String)> {
        let findings = compare(("10.0.13", at_source), ("10.0.13", at_destination), &[]);
        findings.into_iter().map(|finding| (finding.code.to_string(), finding.subject)).collect()
    };
    let pair = |code: &str, subject: &str| (code.to_owned(), subject.to_owned());
    let of = |code: &str, all: [&str; 2]| all.map(|subject| pair(code, subject));
    let rng = "-device virtio-rng-pci,addr=5";
    assert_eq!(subjects(rng, ""), of("device-missing", ["virtio-rng-pci", "PCI 00:05.0"]));
    assert_eq!(subjects("", rng), of("device-extra", ["virtio-rng-pci", "PCI 00:05.0"]));
    let moved = [pair("device-missing", "PCI 00:05.0"), pair("device-extra", "PCI 00:06.0")];
    assert_eq!(subjects(rng, "-device virtio-rng-pci,addr=6"), moved);
}

#[test]
fn memory_of_another_size_is_refused() {
    let vga = |size: u32| format!("-device VGA,id=vga,vgamem_mb={size}");
    let findings = compare(("10.0.13", &vga(16)), ("10.0.13", &vga(32)), &[]);
    let wanted = [("ram-blocks", Severity::Blocker), ("device-property", Severity::Blocker)];
    assert_eq!(codes(&findings), wanted, "{findings:#?}");
    let text = findings[0].to_string();
    assert!(["vga.vram", "32 MiB", "16 MiB", "`force: "].iter().all(|word| text.contains(word)), "{text}");
}
