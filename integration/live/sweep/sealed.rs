//! `disks.sealed`: there and back copies what the guest has written since its disks were sealed, and nothing else.

use super::{all_end, spec, sweep, text, trials};
use std::{collections::BTreeMap, fs};

const FILLED: f64 = (32 << 20) as f64;

/// Two blocks of [as they are, sealed], the second of which begins with the sealed guest: that one goes there and back.
#[test]
fn a_sealed_disk_is_copied_neither_there_nor_back_and_no_migration_adds_a_layer() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("run")).unwrap();
    // One block a second: however long a busy host takes, less is written than was filled.
    let spec = spec()
        .replace("filled = \"8MiB\"", "count = 2\nfilled = \"16MiB\"")
        .replace("span = \"16MiB\"", "span = \"1MiB\"\nwrites = 1");
    let spec = spec.replace("warm-up", "cleanup = \"echo $(ls out/images) >>images\"\nwarm-up");
    let spec = spec.replace("migrate.downtime", "disks.sealed").replace("[\"5s\", \"8s\"]", "[false, true]");
    fs::write(folder.join("spec.toml"), spec + "[migrate]\ndowntime = \"8s\"\n").unwrap();
    let ran = sweep(folder, &["spec.toml", "--out", "out"]).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    all_end(folder);
    let trials = trials(folder);
    let legs: Vec<(&str, u64)> =
        trials.iter().map(|trial| (trial["levels"][0].as_str().unwrap(), trial["leg"].as_u64().unwrap())).collect();
    assert_eq!(legs, [("false", 1), ("true", 1), ("true", 2), ("false", 1)]);
    for trial in &trials {
        assert_eq!((&trial["outcome"], &trial["invalid"]), (&"moved".into(), &serde_json::json!([])), "{trial}");
        let figure = |name: &str| trial["figures"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {trial}"));
        let copied = figure("disk.bytes");
        if trial["levels"][0] == "true" {
            assert!(copied > 0.0 && copied < FILLED / 2.0, "only what was written since: {trial}");
        } else {
            assert!(copied >= FILLED, "all that was filled: {trial}");
        }
        assert!(figure("verified.blocks") >= FILLED / 65536.0, "all of both layers was read: {trial}");
    }
    // For each trial: the images of both sides, the sealed layers, and the image that both sides have.
    let images = fs::read_to_string(folder.join("images")).unwrap();
    let kinds: Vec<BTreeMap<&str, usize>> = images
        .lines()
        .map(|line| {
            let mut kinds = BTreeMap::new();
            for name in line.split_whitespace() {
                *kinds.entry(name.split_once('-').map_or(name, |(_, kind)| kind)).or_default() += 1;
            }
            kinds
        })
        .collect();
    let plain = BTreeMap::from([("67108864", 1), ("disk0.qcow2", 2), ("disk1.qcow2", 2)]);
    let mut sealed = plain.clone();
    sealed.extend([("disk0.written.qcow2", 1), ("disk1.written.qcow2", 1)]);
    let mut back = plain.clone();
    back.extend([("disk0.qcow2", 3), ("disk1.qcow2", 3)]);
    assert_eq!(kinds, [plain.clone(), sealed, back, plain], "{images}");
}
