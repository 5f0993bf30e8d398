//! A migration that libvirt itself makes, between two hosts, and that is made to stall in three ways.

use super::diagnosed;
use crate::support::{MIB, WAIT};
use qferry_bed::{BootSector, Build, Libvirtd, LibvirtdSpec, Link, Side, Wire, give_to_nobody};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A libvirtd on one of two hosts.
struct Daemon {
    at: PathBuf,
    libvirtd: Libvirtd,
}

impl Daemon {
    fn start(wire: &Wire, side: Side, at: PathBuf, build: &Build) -> Self {
        let address = wire.nbd(side).split(':').nth(1).unwrap().to_owned();
        let qemu = build.program("qemu-system-x86_64");
        let host = side as u32 + 1;
        let spec =
            LibvirtdSpec { at: &at, host, address: &address, qemu: &qemu, logs_monitors: true, shown: Vec::new() };
        let libvirtd = wire.on(side, || Libvirtd::start(&spec)).unwrap().unwrap();
        Self { at, libvirtd }
    }

    fn socket(&self) -> PathBuf {
        self.libvirtd.socket()
    }

    /// The domain, as an address of a diagnosis.
    fn domain(&self) -> String {
        format!("virsh:qemu:///session/vm1?socket={}", self.socket().display())
    }

    fn virsh(&self) -> Command {
        Libvirtd::virsh_at(&self.socket()).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.libvirtd.run(arguments).unwrap()
    }

    /// A command to QEMU.
    fn qmp(&self, command: &Value) -> Value {
        let said = self.run(&["qemu-monitor-command", "vm1", &command.to_string()]);
        serde_json::from_str::<Value>(&said).unwrap()["return"].clone()
    }

    fn until(&self, command: &str, done: impl Fn(&Value) -> bool) {
        let begun = Instant::now();
        loop {
            let answer = self.qmp(&json!({ "execute": command }));
            if done(&answer) {
                return;
            }
            assert!(begun.elapsed() < WAIT, "{command}: {answer:#}");
            sleep(Duration::from_millis(50));
        }
    }

    /// The pid of the domain's QEMU.
    fn pid(&self) -> Option<String> {
        self.libvirtd.pid_of("vm1")
    }
}

fn signal(signal: &str, pid: &str) {
    drop(Command::new("kill").args([signal, pid]).status());
}

/// The description of the domain, on one of the hosts.
fn description(overlay: &Path, backing: &Path) -> String {
    format!(
        "<domain type='qemu'><name>vm1</name><uuid>6d6f0a6c-7f2b-4d3b-8f4e-1c2d3e4f5a6b</uuid>\
         <memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc-i440fx-10.0'>hvm</type></os>\
         <devices><emulator>{}</emulator><disk type='file' device='disk'>\
         <driver name='qemu' type='qcow2'/><source file='{}'/><backingStore type='file'><format type='raw'/>\
         <source file='{}'/><backingStore/></backingStore><target dev='vda' bus='virtio'/></disk>\
         <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>",
        Libvirtd::EMULATOR,
        overlay.display(),
        backing.display()
    )
}

/// Two hosts, a domain on the first of them, and its migration to the second.
struct Stage {
    source: Daemon,
    destination: Daemon,
    migration: Child,
    folder: TempDir,
    _wire: Wire,
}

impl Stage {
    fn set() -> Self {
        let wire = Wire::start(Link::gigabit()).unwrap();
        let build = Build::locate("10.0.13").unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let start = |side, name| Daemon::start(&wire, side, folder.path().join(name), &build);
        let (source, destination) = (start(Side::Source, "s"), start(Side::Destination, "d"));
        let backing = folder.path().join("base.raw");
        BootSector::new().repeat(|steps| steps.dirty(128)).write_raw(&backing, 64 * MIB).unwrap();
        for daemon in [&source, &destination] {
            let overlay = daemon.at.join("disk.qcow2");
            let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(str::to_owned);
            let files = [&backing, &overlay].map(|file| file.display().to_string());
            build.img(words.into_iter().chain(files)).unwrap();
            fs::write(daemon.at.join("vm1.xml"), description(&overlay, &backing)).unwrap();
        }
        build.io(&source.at.join("disk.qcow2"), ["write -P 7 32M 24M"]).unwrap();
        for daemon in [&source, &destination] {
            give_to_nobody(&daemon.at.join("disk.qcow2")).unwrap();
        }
        source.run(&["create", source.at.join("vm1.xml").to_str().unwrap()]);
        let address = wire.nbd(Side::Destination).split(':').nth(1).unwrap().to_owned();
        let (to, ram) = (format!("qemu+tcp://{address}:{}/session", Libvirtd::PORT), format!("tcp://{address}:49152"));
        let description = destination.at.join("vm1.xml").display().to_string();
        let migrate =
            ["migrate", "--live", "--p2p", "--copy-storage-inc", "vm1", &to, "--migrateuri", &ram, "--bandwidth", "1"];
        let log = fs::File::create(folder.path().join("migrate")).unwrap();
        let mut command = source.virsh();
        command.args(migrate).args(["--listen-address", &address, "--disks-port", "10809", "--xml", &description]);
        let migration = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { source, destination, migration, folder, _wire: wire }
    }

    /// RAM that a limit holds down beside a busy guest, once the mirror has no limit any more. False where the guest
    /// has arrived meanwhile.
    fn holds_ram_down(&self) -> bool {
        let source = &self.source;
        let mirror = source.qmp(&json!({ "execute": "query-block-jobs" }))[0]["device"].clone();
        let fast = json!({ "device": mirror, "speed": 0 });
        source.qmp(&json!({ "execute": "block-job-set-speed", "arguments": fast }));
        // QEMU is told that the last RAM would take seconds, so that no burst makes it switch over
        let slow = json!({ "downtime-limit": 1, "avail-switchover-bandwidth": 100_000 });
        source.until("query-migrate", |migration| migration["status"] == "active");
        source.qmp(&json!({ "execute": "migrate-set-parameters", "arguments": slow }));
        source.until("query-migrate", |now| now["ram"]["dirty-sync-count"].as_u64().unwrap_or_default() > 4);
        // a recording is judged by its last seconds, to which no answer about the first passes may belong
        sleep(Duration::from_secs(3));
        let told = self.expect_one_of(&["bandwidth-capped", "source-gone"], &[&source.domain()]);
        told["causes"][0]["code"] == "bandwidth-capped"
    }

    /// All that was said, with this cause first.
    #[track_caller]
    fn expect(&self, code: &str, arguments: &[&str]) -> Value {
        self.expect_one_of(&[code], arguments)
    }

    /// All that was said, with one of these causes first.
    #[track_caller]
    fn expect_one_of(&self, codes: &[&str], arguments: &[&str]) -> Value {
        let (exit, told) = diagnosed(&Libvirtd::programs().unwrap().join("bin"), arguments);
        let said = fs::read_to_string(self.folder.path().join("migrate")).unwrap();
        let is_named = told["causes"][0]["code"].as_str().is_some_and(|first| codes.contains(&first));
        assert!(exit == 10 && is_named, "{codes:?} by {arguments:?} {exit} {told:#}\n{said}");
        told
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop((self.migration.kill(), self.migration.wait()));
    }
}

#[test]
fn a_migration_of_libvirts_that_stalls_is_explained() {
    let mut stage = Stage::set();
    let Stage { source, destination, .. } = &stage;
    let at = source.domain();

    // a mirror that somebody has paused
    source.until("query-block-jobs", |jobs| jobs[0]["status"] == "running");
    let mirror = source.qmp(&json!({ "execute": "query-block-jobs" }))[0]["device"].clone();
    source.qmp(&json!({ "execute": "block-job-pause", "arguments": { "device": mirror } }));
    let told = stage.expect("mirror-paused", &[&at, &destination.domain()]);
    assert_eq!(told["source"]["address"], at.as_str());
    assert_eq!(told["destination"]["pid"].to_string(), destination.pid().unwrap(), "{told:#}");
    // libvirt answers for no domain that it takes in, which is not taken for a QEMU that hangs
    assert!(told["unseen"].to_string().contains("lets no question through"), "{told:#}");
    assert!(told["notes"].to_string().contains("custom-monitor"), "{told:#}");
    let (exit, told) = diagnosed(&Libvirtd::programs().unwrap().join("bin"), &[&at, "--fix", "mirror-paused", "--yes"]);
    assert_eq!(exit, 0, "{told:#}");
    source.until("query-block-jobs", |jobs| jobs[0]["paused"] == false);

    // A guest that gets no time for a whole pass has nothing left to send, and arrives: then once more.
    let mut arrived = 0;
    while !stage.holds_ram_down() {
        arrived += 1;
        assert!(arrived < 4, "the limit holds nothing down");
        drop(stage);
        stage = Stage::set();
        stage.source.until("query-block-jobs", |jobs| jobs[0]["status"] == "running");
    }
    let Stage { source, destination, .. } = &stage;
    let at = source.domain();
    // and afterwards, by what libvirt has written down of the answers
    let logs = [source, destination].map(|daemon| daemon.at.join("log").display().to_string());
    stage.expect("bandwidth-capped", &["--transcript", &logs[0], &logs[1]]);

    // a destination that does not run
    let receives = destination.pid().unwrap();
    signal("-STOP", &receives);
    // This fills the channel in a few seconds. Without a limit a pass would take less than a guest waits for its time
    // on a busy host: nothing would be left, and QEMU would hang in the switchover.
    let more = json!({ "max-bandwidth": 3 * MIB });
    source.qmp(&json!({ "execute": "migrate-set-parameters", "arguments": more }));
    sleep(Duration::from_secs(4));
    let told = stage.expect("process-stopped", &[&at, &destination.domain()]);
    assert!(told["causes"][0]["evidence"].to_string().contains(&receives), "{told:#}");
    stage.expect("process-stopped", &["--pid", &receives]);
    // the source alone: its channel takes nothing, all that is left has left and nobody acknowledges it, or libvirt
    // waits for the other side already and lets nobody ask
    stage.expect_one_of(&["link-dead", "switchover-not-acked", "monitor-unresponsive"], &[&at]);
    // RAM must not be sent at once when the destination runs again: the migration would complete
    source.qmp(&json!({ "execute": "migrate-set-parameters", "arguments": { "max-bandwidth": 65_536 } }));
    signal("-CONT", &receives);

    // and libvirt takes the guest back on its own terms
    source.run(&["domjobabort", "vm1"]);
    source.until("query-status", |status| status["status"] == "running");
}
