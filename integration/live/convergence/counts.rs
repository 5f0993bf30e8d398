//! What QEMU counts of RAM, and when: the estimates rely on it.

use crate::bare::{Bare, incoming};
use qferry_bed::Build;
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;
/// Bytes per second that QEMU may send.
const RATE: u64 = 8 * MIB;
/// Bytes of RAM that are no zeros.
const FILLED: u64 = 16 * MIB;

#[test]
fn qemu_counts_dirty_pages_at_the_end_of_a_pass() {
    for version in ["11.1", "10.0.13"] {
        let (build, folder) = (Build::locate(version).unwrap(), tempfile::tempdir().unwrap());
        let filling = folder.path().join("filling");
        let noise = (0..FILLED / 8).flat_map(|word| (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes());
        fs::write(&filling, noise.collect::<Vec<u8>>()).unwrap();
        let loader = format!("loader,file={},addr=0x2000000,force-raw=on", filling.display());
        let source = Bare::start(&build, folder.path(), "source", &["-device".into(), OsString::from(loader)]);
        let destination = Bare::start(&build, folder.path(), "destination", &incoming());
        let on = |name: &str| json!({"capability": name, "state": true});
        let capabilities = json!({"capabilities": [on("events"), on("return-path"), on("pause-before-switchover")]});
        for side in [&source, &destination] {
            side.ask("migrate-set-capabilities", &capabilities);
        }
        source.ask("migrate-set-parameters", &json!({"max-bandwidth": RATE, "downtime-limit": 1}));
        let uri = json!({"uri": format!("unix:{}", folder.path().join("ram").display())});
        destination.ask("migrate-incoming", &uri);
        source.ask("migrate", &uri);

        let (began, mut pass) = (Instant::now(), Vec::new());
        let last = loop {
            let told = source.ask("query-migrate", &json!({}));
            assert!(began.elapsed() < Duration::from_secs(60), "{version}: {told:#}");
            if told["status"] == "pre-switchover" {
                break told;
            }
            if told["status"] == "active" && told["ram"]["remaining"].as_u64() > Some(2 * MIB) {
                pass.push(told);
            }
            sleep(Duration::from_millis(20));
        };
        let of_ram = |told: &Value| told["ram"]["remaining"].as_u64().unwrap();
        // QEMU's own ceiling stretches the pass to more than a second, in which ten syncs would be seen.
        let sent = of_ram(&pass[0]) - of_ram(pass.last().unwrap());
        assert!(sent > RATE, "{version}: {sent} bytes in {} looks", pass.len());
        let syncs: Vec<u64> = pass.iter().map(|told| told["ram"]["dirty-sync-count"].as_u64().unwrap()).collect();
        assert!(syncs.iter().all(|count| *count <= 1), "{version}: {syncs:?}");

        // The count of RAM and devices together.
        let counts = pass.iter().filter(|told| told["remaining"].is_u64()).count();
        match version {
            "11.1" => {
                assert_eq!(counts, pass.len(), "{version}");
                let late = pass.iter().filter(|told| told["remaining"].as_u64() > Some(of_ram(told))).count();
                assert!(late > 0, "{version}: the older count was never above RAM's");
                assert_eq!(last["remaining"], last["ram"]["remaining"], "no device has anything to send: {last:#}");
            }
            _ => assert_eq!((counts, &last["remaining"]), (0, &Value::Null), "{version}"),
        }
    }
}
