//! The commands of a trial: how a QEMU is started, and what `qferry migrate` is given.
//!
//! Pure.

use super::{
    limits,
    link::LinkEnd,
    migrator::{MigrationEnds, migrator_words},
    placeholder,
    spec::SweepSpec,
    spec_error::{SpecError, wrong},
};
use crate::quantity::Bytes;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The guest's network card.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0x71, 0x66, 1];
/// The placeholders of a command of one's own.
const PLACEHOLDERS: &str = "{qemu} {qmp} {events} {debug} {guest} {append} {disk0} to {disk7} {net} {net-peer} {memory-mib} {cpus} {accelerator}";

/// The option that lets data cross a network unencrypted.
const PLAINTEXT: &str = "allow-plaintext";

/// The files of one QEMU.
#[derive(Debug, Clone, Default)]
pub(crate) struct QemuFiles {
    /// Sockets: of the monitor and a further one, of the debug port, of the network card, and of who probes it.
    pub(crate) qmp: PathBuf,
    pub(crate) events: PathBuf,
    pub(crate) debug: PathBuf,
    pub(crate) net: PathBuf,
    pub(crate) net_peer: PathBuf,
    pub(crate) disks: Vec<PathBuf>,
    /// The guest's program.
    pub(crate) guest: PathBuf,
}

/// The words that start a QEMU.
///
/// # Errors
/// A placeholder of a command of one's own is unknown.
pub(crate) fn qemu_words(
    setup: &SweepSpec,
    files: &QemuFiles,
    qemu: &str,
    accelerator: &str,
    waits: bool,
) -> Result<Vec<String>, SpecError> {
    let machine = &setup.machine;
    let values = Placeholders { setup, files, qemu, accelerator };
    if let Some(command) = &machine.command {
        let incoming = if waits { machine.incoming.as_slice() } else { &[] };
        return command.iter().chain(incoming).chain(&machine.arguments).map(|word| values.fill(word)).collect();
    }
    let mut words: Vec<String> = Vec::new();
    let mut say = |template: &str| -> Result<(), SpecError> {
        for word in template.split_whitespace() {
            words.push(values.fill(word)?);
        }
        Ok(())
    };
    say("{qemu} -display none -nodefaults -no-user-config -m {memory-mib} -smp {cpus} -accel {accelerator}")?;
    say(&format!("-machine {} -kernel {{guest}}", machine.kind))?;
    say("-append {append} -chardev socket,id=debug,path={debug} -device isa-debugcon,iobase=0xe9,chardev=debug")?;
    say("-qmp unix:{qmp},server=on,wait=off -qmp unix:{events},server=on,wait=off")?;
    for disk in 0..files.disks.len() {
        say(&format!("-blockdev driver=qcow2,node-name=disk{disk},file.driver=file,file.filename={{disk{disk}}}"))?;
        say(&format!("-device virtio-blk-pci,id=disk{disk},drive=disk{disk},disable-legacy=off"))?;
    }
    if machine.network {
        say("-netdev dgram,id=net,local.type=unix,local.path={net},remote.type=unix,remote.path={net-peer}")?;
        let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
        say(&format!("-device virtio-net-pci,id=net,netdev=net,mac={mac},romfile=,disable-legacy=off"))?;
    }
    if waits {
        say("-incoming defer -S")?;
    }
    words.extend(machine.arguments.iter().cloned());
    Ok(words)
}

/// What the guest is told to do, on its kernel's command line.
pub(crate) fn guest_words(setup: &SweepSpec) -> String {
    let workload = &setup.workload;
    let mebibytes = |bytes: Bytes| bytes.0 >> 20;
    // `limits` has seen that it is a rate
    let dirty = limits::pages_per_second(&workload.dirty).unwrap_or_default();
    format!(
        "mem={} dirty={dirty} pattern={} write={} block={} span={} fill={} sync={}",
        mebibytes(workload.memory),
        workload.pattern,
        workload.writes,
        workload.block.0,
        mebibytes(workload.span),
        mebibytes(setup.disks.filled),
        u8::from(workload.sync),
    )
}

struct Placeholders<'a> {
    setup: &'a SweepSpec,
    files: &'a QemuFiles,
    qemu: &'a str,
    accelerator: &'a str,
}

impl Placeholders<'_> {
    fn fill(&self, word: &str) -> Result<String, SpecError> {
        placeholder::fill(word, |name| self.value(name)).map_err(|name| unknown(word, &name))
    }

    fn value(&self, name: &str) -> Option<String> {
        let files = self.files;
        let path = |path: &PathBuf| path.display().to_string();
        Some(match name {
            "qemu" => self.qemu.to_owned(),
            "qmp" => path(&files.qmp),
            "events" => path(&files.events),
            "debug" => path(&files.debug),
            "guest" => path(&files.guest),
            "append" => guest_words(self.setup),
            "net" => path(&files.net),
            "net-peer" => path(&files.net_peer),
            "memory-mib" => (self.setup.machine.memory.0 >> 20).to_string(),
            "cpus" => self.setup.machine.cpus.to_string(),
            "accelerator" => self.accelerator.to_owned(),
            disk => path(files.disks.get(disk.strip_prefix("disk")?.parse::<usize>().ok()?)?),
        })
    }
}

fn unknown(word: &str, name: &str) -> SpecError {
    let expected = format!("there is no {{{name}}}; write one of {PLACEHOLDERS}, or {{{{ for a brace");
    wrong("machine.command", word, &expected)
}

/// The words that move the guest: of the spec's own program, or of `qferry migrate`.
///
/// # Errors
/// A placeholder of the program is unknown.
pub(crate) fn moving_words(
    setup: &SweepSpec,
    engine: &Path,
    policy: Option<&PathBuf>,
    ends: &MigrationEnds,
) -> Result<Vec<OsString>, SpecError> {
    if let Some(migrator) = &setup.migrator {
        return Ok(migrator_words(migrator, ends)?.into_iter().map(Into::into).collect());
    }
    let own = ["migrate", "--json", "--no-transcript", "--source"].map(OsString::from);
    let mut words: Vec<OsString> = [engine.as_os_str().to_owned()].into_iter().chain(own).collect();
    words.extend(
        [ends.source_qmp.as_os_str(), "--destination".as_ref(), ends.destination_qmp.as_os_str()].map(Into::into),
    );
    // without a link, nothing is made of the end
    let end = ends.destination.unwrap_or(LinkEnd::Second);
    words.extend(migrate_words(setup, policy, end).into_iter().map(OsString::from));
    Ok(words)
}

/// The options of `qferry migrate`, without the two monitors' addresses, to a destination at this end of the link.
pub(crate) fn migrate_words(setup: &SweepSpec, policy: Option<&PathBuf>, destination: LinkEnd) -> Vec<String> {
    let mut words = Vec::new();
    for (option, value) in &setup.migrate {
        if option == "policy" && policy.is_some() {
            continue;
        }
        match value {
            toml::Value::Boolean(false) => {}
            toml::Value::Boolean(true) => words.push(format!("--{option}")),
            toml::Value::String(text) => words.extend([format!("--{option}"), text.clone()]),
            other => words.extend([format!("--{option}"), other.to_string()]),
        }
    }
    if let Some(policy) = policy {
        words.extend(["--policy".into(), policy.display().to_string()]);
    }
    if setup.link.is_asked_for() {
        let mut say =
            |option: &str, value: Option<String>| words.extend([format!("--{option}")].into_iter().chain(value));
        destination.listens().into_iter().for_each(|(option, address)| say(option, Some(address)));
        // Nobody else is on the link. A spec may ask for TLS nevertheless, to measure it.
        if !["tls", PLAINTEXT].iter().any(|option| setup.migrate.contains_key(*option)) {
            say(PLAINTEXT, None);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> QemuFiles {
        QemuFiles {
            qmp: "/r/a.qmp".into(),
            events: "/r/a.events".into(),
            disks: vec!["/w/d0".into()],
            guest: "/r/guest".into(),
            ..QemuFiles::default()
        }
    }

    #[test]
    fn the_command_has_every_file_and_waits_only_where_it_is_to() {
        let mut setup = SweepSpec::default();
        setup.machine.arguments = vec!["-D".into(), "/tmp/{log".into()];
        for waits in [false, true] {
            let words = qemu_words(&setup, &files(), "qemu-x", "tcg", waits).expect("the spec is right");
            assert_eq!(words[0], "qemu-x");
            let has = |word: &str| words.iter().any(|one| one == word);
            assert!(has("unix:/r/a.qmp,server=on,wait=off") && has("unix:/r/a.events,server=on,wait=off"));
            assert!(has("/r/guest") && has("512") && has("/tmp/{log"));
            assert!(has("driver=qcow2,node-name=disk0,file.driver=file,file.filename=/w/d0"));
            assert!(has("mem=256 dirty=0 pattern=sequential write=20 block=65536 span=64 fill=64 sync=0"));
            assert_eq!(has("-incoming"), waits);
        }
    }

    #[test]
    fn a_command_of_ones_own_is_filled_in() {
        let mut setup = SweepSpec::default();
        setup.machine.command =
            Some(["{qemu}", "-qmp", "unix:{qmp}", "-x", "{{a}}", "{disk0}"].map(String::from).to_vec());
        setup.machine.incoming = vec!["-incoming".into(), "defer".into()];
        let words = |setup: &SweepSpec, waits| qemu_words(setup, &files(), "q", "tcg", waits);
        assert_eq!(words(&setup, false).expect("right"), ["q", "-qmp", "unix:/r/a.qmp", "-x", "{a}", "/w/d0"]);
        assert_eq!(words(&setup, true).expect("right")[6..], ["-incoming", "defer"]);
        for wrong in ["{qpm}", "{disk1}", "{qmp"] {
            setup.machine.command = Some(vec![wrong.into()]);
            let error = words(&setup, false).expect_err(wrong).to_string();
            assert!(error.contains("{qmp}") && error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn the_engine_moves_the_guest_where_nobody_else_is_named() {
        let ends =
            MigrationEnds { source_qmp: "/r/1.qmp".into(), destination_qmp: "/r/2.qmp".into(), destination: None };
        let words = |text: &str| {
            let setup: SweepSpec = toml::from_str(text).expect("the spec is right");
            let words = moving_words(&setup, Path::new("/b/qferry"), None, &ends).expect("all are known");
            words.join(" ".as_ref()).into_string().expect("all is text")
        };
        let engine = "/b/qferry migrate --json --no-transcript --source /r/1.qmp --destination /r/2.qmp --multifd 4";
        assert_eq!(words("[migrate]\nmultifd = 4\n"), engine);
        assert_eq!(words("[migrate]\nmultifd = 4\n[migrator]\ncommand = [\"x\", \"{source-qmp}\"]\n"), "x /r/1.qmp");
    }

    #[test]
    fn options_are_given_as_they_stand() {
        let text =
            "[migrate]\ndowntime = \"50ms\"\nmultifd = 4\npredict = true\nkeep-source = false\npolicy = \"postcopy\"\n";
        let setup: SweepSpec = toml::from_str(text).expect("the spec is right");
        let migrate_words = |policy| migrate_words(&setup, policy, LinkEnd::Second).join(" ");
        assert_eq!(migrate_words(None), "--downtime 50ms --multifd 4 --policy postcopy --predict");
        let own = PathBuf::from("/w/policy.toml");
        assert_eq!(migrate_words(Some(&own)), "--downtime 50ms --multifd 4 --predict --policy /w/policy.toml");
    }

    #[test]
    fn over_a_link_the_destination_listens_at_its_end() {
        let words = |text: &str, end| {
            let setup: SweepSpec = toml::from_str(text).expect("the spec is right");
            migrate_words(&setup, None, end).join(" ")
        };
        let first = "--migrate-address tcp:10.0.0.1:4445 --nbd-address tcp:10.0.0.1:10809";
        let asked = "[link]\nrate = \"1Gbit/s\"\n";
        assert_eq!(words("[link]\n", LinkEnd::First), "");
        assert_eq!(words(asked, LinkEnd::First), format!("{first} --allow-plaintext"));
        assert_eq!(words(asked, LinkEnd::Second), format!("{first} --allow-plaintext").replace("0.1:", "0.2:"));
        for (options, before) in [("tls = \"/t\"", "--tls /t"), ("allow-plaintext = true", "--allow-plaintext")] {
            let text = format!("{asked}[migrate]\n{options}\n");
            assert_eq!(words(&text, LinkEnd::First), format!("{before} {first}"));
        }
    }
}
