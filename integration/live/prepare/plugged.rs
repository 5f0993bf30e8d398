//! What was plugged in while the source ran is on no command line, and the destination needs it all the same.

use super::{Place, codes, prepared, ran};
use crate::{
    bare::{Bare, disk},
    support::MIB,
};
use serde_json::json;
use std::ffi::OsString;

#[test]
fn what_was_plugged_in_is_named_with_its_argument() {
    for version in ["7.2", "11.1"] {
        let place = Place::new(version);
        let top = place.image("top.qcow2", "qcow2", None, 4 * MIB, 2, &[]);
        let cpus = ["-smp", "1,maxcpus=3"].map(OsString::from);
        let arguments: Vec<OsString> = disk("disk0", "qcow2", &top).into_iter().chain(cpus).collect();
        let source = Bare::start(&place.build, place.folder.path(), "source", &arguments);
        let to = place.path("d").display().to_string();
        let told = || prepared(&ran(&mut place.prepare(&["--to", &to, "--json"]), 0));
        assert!(!codes(&told()).contains(&"not-on-command-line"), "{version}");
        let possible = source.ask("query-hotpluggable-cpus", &json!({}));
        let free = possible.as_array().unwrap().iter().filter(|one| one["qom-path"].is_null());
        let mut free = free.map(|one| {
            let mut cpu = one["props"].clone();
            cpu["driver"] = json!("qemu64-x86_64-cpu");
            cpu
        });
        let (mut cpu, unnamed) = (free.next().unwrap(), free.next().unwrap());
        cpu["id"] = json!("cpu1");
        source.ask("device_add", &json!({"driver": "virtio-rng-pci", "id": "rng0", "addr": "7"}));
        source.ask("device_add", &cpu);
        source.ask("device_add", &unnamed);
        let told = told();
        let of_kind = told["findings"].as_array().unwrap().iter().find(|one| one["subject"] == "qemu64-x86_64-cpu");
        let remedy = of_kind.unwrap_or_else(|| panic!("{version}: {told:#}"))["remedy"].as_str().unwrap();
        let names = |name: &str| remedy.contains(&format!("{name}={}", unnamed[name]));
        assert!(["socket-id", "core-id", "thread-id"].into_iter().all(names), "{version}: {remedy}");
        for (id, kind) in [("rng0", "virtio-rng-pci"), ("cpu1", "qemu64-x86_64-cpu")] {
            let named: Vec<_> =
                told["findings"].as_array().unwrap().iter().filter(|one| one["subject"] == id).collect();
            assert_eq!(named.len(), 1, "{version} {id}: {told:#}");
            assert_eq!(named[0]["code"], "not-on-command-line", "{version} {id}");
            let (message, remedy) = (named[0]["message"].as_str().unwrap(), named[0]["remedy"].as_str().unwrap());
            assert!(message.contains(kind) && message.contains("was plugged in"), "{version} {id}: {message}");
            assert!(remedy.contains(&format!("-device {kind},id={id}")), "{version} {id}: {remedy}");
        }
        place.is_clean(&source);
    }
}
