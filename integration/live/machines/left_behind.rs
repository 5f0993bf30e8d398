//! What the source has beside its guest's data, and a mirror does not carry: a finding tells of each before anything is
//! copied. The guests are paused, and have run nothing but firmware.
//!
//! Promise: nothing-lost.

use super::{Bare, Finding, Severity, found, start};
use crate::support::migrate;
use qferry::internals::{
    endpoint::Address,
    migration::{Builder, JournalPlace, Migration},
    progress::{Ending, Outcome},
};
use qferry_bed::{Build, Qmp};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::PathBuf,
};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// The images of two machines, and the folder for a migration between them.
pub(crate) struct Folder {
    pub(crate) build: Build,
    folder: TempDir,
}

impl Folder {
    pub(crate) fn new(version: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("qferry-").tempdir().unwrap();
        Self { build: Build::locate(version).unwrap(), folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn img(&self, words: &[&str]) {
        let is_path = |word: &&&str| word.starts_with('@');
        let word = |word: &&str| match Some(word).filter(is_path) {
            Some(path) => self.path(&path[1..]).display().to_string(),
            None => (*word).to_owned(),
        };
        self.build.img(words.iter().map(word)).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The argument for a node on one of the images.
    pub(crate) fn node(&self, node: &str, format: &str, image: &str, more: &Value) -> String {
        let file = json!({ "driver": "file", "filename": self.path(image) });
        let mut described = json!({ "driver": format, "node-name": node, "file": file });
        for (key, value) in more.as_object().into_iter().flatten() {
            described[key] = value.clone();
        }
        format!(" -blockdev {described}")
    }

    pub(crate) fn migrate(&self, source: &Bare, destination: &Bare) -> Outcome {
        migrate(self.builder(source, destination))
    }

    pub(crate) fn builder(&self, source: &Bare, destination: &Bare) -> Builder {
        let builder = Migration::builder(address(source), address(destination));
        builder.runtime_dir(self.folder.path()).journal(JournalPlace::Nowhere)
    }
}

fn address(machine: &Bare) -> Address {
    Address::unix(machine.qmp_path()).unwrap()
}

/// The arguments of a machine with one disk on a node.
pub(crate) fn disk(nodes: &str, node: &str) -> String {
    format!("{nodes} -device virtio-blk-pci,id=disk0,drive={node}")
}

pub(crate) fn paused(version: &str, arguments: &str) -> Bare {
    let machine = start(version, arguments);
    ask(&machine, "stop", &json!({}));
    machine
}

pub(crate) fn waiting(version: &str, arguments: &str) -> Bare {
    start(version, &format!("{arguments} -S -incoming defer"))
}

pub(crate) fn ask(machine: &Bare, command: &str, arguments: &Value) -> Value {
    Qmp::connect(&machine.qmp_path()).unwrap().execute(command, arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// The arguments of a command that a remedy names.
fn arguments(finding: &Finding) -> Value {
    let (_, arguments) = finding.remedy.split_once("arguments ").unwrap_or_else(|| panic!("{finding}"));
    serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {finding}"))
}

pub(crate) fn of<'a>(findings: &'a [Finding], code: &str) -> Vec<&'a Finding> {
    findings.iter().filter(|finding| finding.code == *code).collect()
}

/// Snapshots inside an overlay and inside a store of EFI variables.
#[test]
fn snapshots_inside_an_image_are_named() {
    for version in ["7.2", "11.1"] {
        let at = Folder::new(version);
        for side in ["source", "destination"] {
            at.img(&["create", "-q", "-f", "qcow2", &format!("@{side}.qcow2"), "4M"]);
            at.img(&["create", "-q", "-f", "qcow2", &format!("@{side}.vars"), "256K"]);
        }
        at.img(&["snapshot", "-c", "keepme", "@source.qcow2"]);
        at.img(&["snapshot", "-c", "before the update", "@source.qcow2"]);
        at.img(&["snapshot", "-c", "factory", "@source.vars"]);
        let machine = |side: &str| {
            let nodes = at.node("top", "qcow2", &format!("{side}.qcow2"), &json!({}));
            let vars = at.node("vars", "qcow2", &format!("{side}.vars"), &json!({}));
            disk(&format!("-machine pc,pflash0=vars{nodes}{vars}"), "top")
        };
        let (source, destination) = (paused(version, &machine("source")), waiting(version, &machine("destination")));
        let findings = found(&source, &destination, &[]);
        let lost = of(&findings, "snapshots-lost");
        let told: Vec<String> = lost.iter().map(|finding| finding.message.clone()).collect();
        assert_eq!(told.len(), 2, "{findings:#?}");
        assert!(told.iter().any(|told| told.contains("source.qcow2") && told.contains("keepme, before the update")));
        assert!(told.iter().any(|told| told.contains("source.vars") && told.contains("factory")), "{told:?}");
        assert!(lost.iter().all(|finding| finding.severity == Severity::Warning && !finding.remedy.is_empty()));
        let outcome = at.migrate(&source, &destination);
        assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
    }
}

/// The images of a chain of three, each with data, and the arguments for the source.
fn chain(at: &Folder) -> String {
    fs::write(at.path("base"), vec![7; 8 << 20]).unwrap();
    at.img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "@base", "@mid"]);
    at.img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "@mid", "@top"]);
    at.build.io(&at.path("mid"), ["write -P 1 4M 4M"]).unwrap();
    at.build.io(&at.path("top"), ["write -P 1 0 4M"]).unwrap();
    let base = at.node("base", "raw", "base", &json!({}));
    let mid = at.node("mid", "qcow2", "mid", &json!({ "backing": "base" }));
    disk(&format!("{base}{mid}{}", at.node("top", "qcow2", "top", &json!({ "backing": "mid" }))), "top")
}

/// The arguments for a destination of such a chain, on files of its own.
fn other_chain(at: &Folder) -> String {
    for name in ["base", "mid"] {
        fs::copy(at.path(name), at.path(&format!("{name}2"))).unwrap();
    }
    at.img(&["rebase", "-q", "-u", "-F", "raw", "-b", "@base2", "@mid2"]);
    at.img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "@mid2", "@top2"]);
    disk(&at.node("top", "qcow2", "top2", &json!({})), "top")
}

/// Every kind of block job at every place of a chain is refused before anything: QEMU would not mirror beside it, or
/// not give up its images, or the job would write to an image that was proved.
#[test]
fn jobs_on_a_chain_are_refused() {
    let slow = |command: &'static str, mut arguments: Value| {
        arguments["job-id"] = json!("theirs");
        arguments["speed"] = json!(4096);
        (command, arguments)
    };
    let onto = |device: &str| json!({ "device": device, "target": "void", "sync": "full" });
    let jobs = [
        slow("block-stream", json!({ "device": "top" })),
        slow("block-stream", json!({ "device": "top", "base-node": "base" })),
        slow("block-stream", json!({ "device": "mid" })),
        slow("block-commit", json!({ "device": "top", "top-node": "mid", "base-node": "base" })),
        slow("block-commit", json!({ "device": "top" })),
        slow("blockdev-backup", onto("top")),
        slow("blockdev-backup", onto("mid")),
        slow("blockdev-mirror", onto("top")),
    ];
    for (index, (command, arguments)) in jobs.into_iter().enumerate() {
        let version = ["10.0.13", "7.2", "11.1"][index % 3];
        let what = format!("{version}: {command} {arguments}");
        let at = Folder::new(version);
        let (source, destination) = (paused(version, &chain(&at)), waiting(version, &other_chain(&at)));
        let has_job = || {
            let findings = found(&source, &destination, &[]);
            let told = of(&findings, "disk-has-job").into_iter().map(|finding| (finding.severity, finding.to_string()));
            told.collect::<Vec<_>>()
        };
        assert_eq!(has_job(), [], "{what}");
        ask(&source, "blockdev-add", &json!({ "driver": "null-co", "node-name": "void", "size": 8 * MIB }));
        ask(&source, command, &arguments);
        let told = has_job();
        assert!(told.iter().map(|(severity, _)| *severity).eq([Severity::Blocker]), "{what}: {told:?}");
        let outcome = at.migrate(&source, &destination);
        let reason = outcome.reason.as_ref().map(|reason| reason.code.as_str().to_owned());
        assert_eq!((outcome.outcome, reason.as_deref()), (Ending::Refused, Some("disk-has-job")), "{what}");
    }
}

/// A raw image that is larger than the source's, also as a flash: the way out that the refusal tells works.
#[test]
fn a_larger_image_is_used_as_the_refusal_says() {
    for (version, flash) in [("10.0.13", false), ("7.2", true), ("11.1", false)] {
        let at = Folder::new(version);
        let size = if flash { 256 << 10 } else { 3 * MIB + 512 };
        fs::write(at.path("source"), vec![7; usize::try_from(size).unwrap()]).unwrap();
        File::create(at.path("larger")).unwrap().set_len(size + MIB).unwrap();
        let machine = |nodes: &str| match flash {
            true => format!("-machine pc,pflash0=only{nodes}"),
            false => disk(nodes, "only"),
        };
        let source = paused(version, &machine(&at.node("only", "raw", "source", &json!({}))));
        let destination = waiting(version, &machine(&at.node("only", "raw", "larger", &json!({}))));
        let findings = found(&source, &destination, &[]);
        let refused = of(&findings, "disk-size");
        assert_eq!(refused.len(), 1, "{findings:#?}");
        drop(destination);

        let remedy = &refused[0].remedy;
        let (_, node) = remedy.split_once("-blockdev '").unwrap_or_else(|| panic!("{remedy}"));
        let (node, user) = node.split_once('\'').unwrap_or_else(|| panic!("{remedy}"));
        assert!(user.contains("only as"), "{remedy}");
        let destination = waiting(version, &machine(&format!(" -blockdev {node}")));
        let outcome = at.migrate(&source, &destination);
        assert_eq!(outcome.outcome, Ending::Moved, "{version}: {outcome:#?}");
        drop(destination);
        let copied = fs::read(at.path("larger")).unwrap();
        let (copied, rest) = copied.split_at(usize::try_from(size).unwrap());
        assert!(copied.iter().all(|byte| *byte == 7) && rest.iter().all(|byte| *byte == 0), "{version} {flash}");
    }
}

/// Limits and thresholds that were set while QEMU ran are told, each with the command that sets it at the destination;
/// once that was sent, nothing is told, and the limits hold after the migration.
#[test]
fn what_was_set_while_qemu_ran_is_told() {
    for version in ["7.2", "11.1"] {
        let at = Folder::new(version);
        for name in ["source", "destination"] {
            at.img(&["create", "-q", "-f", "qcow2", &format!("@{name}"), "4M"]);
            at.img(&["create", "-q", "-f", "qcow2", &format!("@{name}2"), "4M"]);
        }
        let machine = |side: &str| {
            let plain = disk(&at.node("plain", "qcow2", side, &json!({})), "plain");
            let inner = at.node("inner", "qcow2", &format!("{side}2"), &json!({}));
            let throttle = r#"-blockdev {"driver":"throttle","node-name":"slow","throttle-group":"tg","file":"inner"}"#;
            format!(
                "{plain} -object throttle-group,id=tg,x-iops-total=100{inner} {throttle} -device virtio-blk-pci,id=disk1,drive=slow"
            )
        };
        let (source, destination) = (paused(version, &machine("source")), waiting(version, &machine("destination")));
        let told = || found(&source, &destination, &[]);
        assert_eq!(told(), [], "{version}");
        let limits = json!({ "id": "/machine/peripheral/disk0/virtio-backend", "bps": 1 << 20, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 40, "iops_wr": 0,
            "iops_rd_max": 80, "iops_rd_max_length": 2 });
        ask(&source, "block_set_io_throttle", &limits);
        let limits =
            json!({ "path": "/objects/tg", "property": "limits", "value": { "iops-total": 0, "bps-write": 5000 } });
        ask(&source, "qom-set", &limits);
        ask(&source, "block-set-write-threshold", &json!({ "node-name": "inner", "write-threshold": 65536 }));

        let findings = told();
        let of_disk = |disk: &str, words: &[&str]| {
            let is_it = |finding: &&Finding| words.iter().all(|word| finding.message.contains(word));
            let found = findings.iter().filter(|finding| finding.subject == disk).find(is_it);
            found.unwrap_or_else(|| panic!("{disk} {words:?}: {findings:#?}"))
        };
        let set = of_disk("disk0", &["bps=1048576", "iops_rd=40", "iops_rd_max=80", "none there"]);
        let group = of_disk("disk1", &["tg: bps-write=5000 on the source", "tg: iops-total=100 there"]);
        let threshold = of_disk("disk1", &["above 65536"]);
        assert_eq!(findings.len(), 3, "{findings:#?}");
        assert!(findings.iter().all(|one| one.code == "disk-settings-differ" && one.severity == Severity::Warning));
        assert!(threshold.remedy.contains("block-set-write-threshold"), "{threshold}");
        ask(&destination, "block_set_io_throttle", &arguments(set));
        ask(&destination, "qom-set", &arguments(group));
        let threshold = json!({ "node-name": "inner", "write-threshold": 65536 });
        ask(&destination, "block-set-write-threshold", &threshold);
        assert_eq!(told(), [], "{version}");

        let outcome = at.migrate(&source, &destination);
        assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
        let drives = ask(&destination, "query-block", &json!({}));
        let limited =
            drives.as_array().unwrap().iter().find(|drive| drive["inserted"]["node-name"] == "plain").unwrap();
        assert_eq!(limited["inserted"]["iops_rd_max"], 80, "{limited}");
    }
}

/// A medium that the destination alone has is refused; a tray that is open stays open.
#[test]
fn a_medium_that_nobody_inserted_is_refused() {
    for (version, drive) in
        [("10.0.13", "ide-cd,id=drive0"), ("7.2", "floppy,id=drive0,drive-type=144"), ("11.1", "scsi-cd,id=drive0")]
    {
        let at = Folder::new(version);
        fs::write(at.path("medium"), vec![7; 1440 << 10]).unwrap();
        let bus = if drive.starts_with("scsi") { "-device virtio-scsi-pci " } else { "" };
        let empty = format!("{bus}-device {drive}");
        let node = at.node("medium", "raw", "medium", &json!({ "read-only": true }));
        let source = paused(version, &empty);
        let destination = waiting(version, &format!("{node} {bus}-device {drive},drive=medium"));
        let findings = found(&source, &destination, &[]);
        let refused = of(&findings, "medium-extra");
        assert_eq!(refused.len(), 1, "{version}: {findings:#?}");
        assert!(refused[0].message.contains(&at.path("medium").display().to_string()), "{}", refused[0]);
        let forced = found(&source, &destination, &["medium-extra"]);
        assert_eq!(of(&forced, "medium-extra")[0].severity, Severity::Warning, "{forced:#?}");
        let (_, eject) = refused[0].remedy.split_once("arguments ").unwrap();
        let (eject, _) = eject.split_once("; or go on").unwrap();
        ask(&destination, "eject", &serde_json::from_str(eject).unwrap());
        assert_eq!(found(&source, &destination, &[]), [], "{version}");

        let has_tray = !drive.starts_with("floppy");
        if has_tray {
            ask(&source, "blockdev-open-tray", &json!({ "id": "drive0", "force": true }));
            ask(&destination, "blockdev-close-tray", &json!({ "id": "drive0" }));
        }
        let outcome = at.migrate(&source, &destination);
        assert_eq!(outcome.outcome, Ending::Moved, "{version}: {outcome:#?}");
        let drives = ask(&destination, "query-block", &json!({}));
        assert!(!has_tray || drives[0]["tray_open"] == true, "{version}: {drives}");
    }
}

/// Memory in a file that both machines share is refused, and in two files it is not.
#[test]
fn memory_that_both_machines_share_is_refused() {
    for (version, kind) in
        [("10.0.13", "-machine memory-backend=ram"), ("7.2", "-device ivshmem-plain,memdev=ram,master=on")]
    {
        let at = Folder::new(version);
        let machine = |file: &str, share: &str| {
            let path = at.path(file).display().to_string();
            format!("{kind} -object memory-backend-file,id=ram,size=64M,mem-path={path},share={share}")
        };
        let source = paused(version, &machine("one", "on"));
        for (file, share, refused) in [("one", "on", true), ("one", "off", false), ("other", "on", false)] {
            let destination = waiting(version, &machine(file, share));
            let findings = found(&source, &destination, &[]);
            let told = of(&findings, "ram-shared");
            assert_eq!(told.len(), usize::from(refused), "{version} {file} {share}: {findings:#?}");
            assert!(told.iter().all(|one| one.severity == Severity::Blocker && one.message.contains("/one")));
        }
    }
}
