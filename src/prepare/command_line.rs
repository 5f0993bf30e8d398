//! The destination QEMU's command line, made from the source's.
//!
//! Pure. The derived command line differs only in the paths of images that move and in the options for the incoming
//! guest. Options that would collide between two QEMUs on one host are reported, not changed.

use crate::storage::model::path_map;
use serde_json::Value;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The options whose value is the name of an image.
const IMAGES: [&str; 10] = ["hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "pflash", "mtdblock", "sd"];
/// The options without a value: a word after one of them is an image.
const LONE: [&str; 17] = [
    "S",
    "s",
    "nodefaults",
    "no-user-config",
    "nographic",
    "snapshot",
    "enable-kvm",
    "daemonize",
    "no-reboot",
    "no-shutdown",
    "usb",
    "no-acpi",
    "no-hpet",
    "full-screen",
    "win2k-hack",
    "preconfig",
    "only-migratable",
];

/// The destination QEMU's command line, derived from the source's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DestinationCommandLine {
    /// The program and its arguments, not quoted.
    pub(super) words: Vec<String>,
    /// The paths of the source that were replaced.
    pub(super) replaced: Vec<PathBuf>,
    /// The options that two QEMUs on one host cannot both have.
    pub(super) collisions: Vec<String>,
    /// Whether a secret was left out.
    pub(super) secrets: bool,
    /// The options that refer to inherited file descriptors.
    pub(super) inherited: Vec<String>,
}

/// The paths to replace: paths on the source, with their paths on the destination.
pub(super) type MovedFiles = BTreeMap<PathBuf, PathBuf>;

/// Derives the destination's command line. `directory` is the source's working directory, which resolves relative
/// names.
pub(super) fn derive(source: &[String], moves: &MovedFiles, directory: Option<&Path>) -> DestinationCommandLine {
    let mut made = DestinationCommandLine::default();
    let mut rewrite = ImageRewriter { moves, directory, replaced: Vec::new() };
    let mut words = source.iter().peekable();
    made.words.extend(words.next().cloned());
    let mut lone_before = true;
    while let Some(word) = words.next() {
        let Some(option) = option(word) else {
            // A word after an option without a value is the image of the first disk; after any other option, its value.
            made.words.push(if lone_before { rewrite.name(word).into_owned() } else { word.clone() });
            lone_before = true;
            continue;
        };
        lone_before = LONE.contains(&option);
        match option {
            "S" => continue,
            // The source has left its snapshot behind, and QEMU accepts only one of `-loadvm` and `-incoming`.
            "incoming" | "loadvm" => {
                words.next();
                lone_before = true;
                continue;
            }
            _ => made.words.push(word.clone()),
        }
        if lone_before {
            continue;
        }
        // Only the kernel's command line (`-append`) may begin with a dash; no value of the other options does.
        let takes_all = option == "append";
        let Some(value) = words.next_if(|next| takes_all || self::option(next).is_none()) else { continue };
        lone_before = true;
        let new = match option {
            "drive" => rewrite.properties(value),
            "blockdev" if value.trim_start().starts_with('{') => rewrite.json(value),
            "blockdev" => rewrite.properties(value),
            "object" => {
                let hidden = without_secret(value);
                made.secrets |= matches!(hidden, Cow::Owned(_));
                hidden
            }
            _ if IMAGES.contains(&option) => rewrite.name(value),
            _ => Cow::Borrowed(value.as_str()),
        };
        made.words.push(new.into_owned());
        if collides(option, value) {
            made.collisions.push(format!("{word} {value}"));
        }
        if inherits(value) {
            made.inherited.push(format!("{word} {value}"));
        }
    }
    made.words.extend(["-incoming", "defer", "-S"].map(str::to_owned));
    rewrite.replaced.sort();
    rewrite.replaced.dedup();
    made.replaced = rewrite.replaced;
    made
}

/// The replacement for a secret.
const HIDDEN: &str = "HIDDEN";

/// A `secret` object without its data: printed command lines end up in logs.
fn without_secret(value: &str) -> Cow<'_, str> {
    let is_secret = value == "secret" || value.starts_with("secret,") || value.starts_with("secret_keyring,");
    let (Some(at), true) = (value.find(",data="), is_secret) else {
        let json = serde_json::from_str::<Value>(value).ok();
        return match json {
            Some(Value::Object(mut object)) if object.get("data").is_some() && value.contains("secret") => {
                object.insert("data".to_owned(), Value::from(HIDDEN));
                Cow::Owned(Value::Object(object).to_string())
            }
            _ => Cow::Borrowed(value),
        };
    };
    let begin = at + ",data=".len();
    // QEMU doubles a comma inside a value.
    let rest = &value[begin..];
    let mut end = 0;
    while let Some(comma) = rest[end..].find(',') {
        end += comma;
        if !rest[end + 1..].starts_with(',') {
            return Cow::Owned(format!("{}{HIDDEN}{}", &value[..begin], &rest[end..]));
        }
        end += 2;
    }
    Cow::Owned(format!("{}{HIDDEN}", &value[..begin]))
}

/// The name of an option, without its one or two dashes.
pub(super) fn option(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    name.starts_with(|c: char| c.is_ascii_alphabetic()).then_some(name)
}

/// Whether an object is memory that every process with the same file shares.
fn shares_memory(value: &str) -> bool {
    let plain: String = value.chars().filter(|letter| !letter.is_whitespace() && *letter != '"').collect();
    value.contains("memory-backend-file")
        && ["share=on", "share=true", "share=yes", "share:true"].iter().any(|shared| plain.contains(shared))
}

/// Whether a second QEMU on the same host would fail with this option, or take a socket, a file or the memory of the
/// guest from the first.
fn collides(option: &str, value: &str) -> bool {
    let listens = value.contains("server=on") || value.contains(",server") && !value.contains("server=off");
    match option {
        "pidfile" | "D" | "vnc" | "gdb" => value != "none",
        "spice" => true,
        "qmp" | "qmp-pretty" | "monitor" | "serial" | "parallel" | "chardev" => {
            listens || value.contains("logfile=") || connects(value)
        }
        "netdev" | "nic" => {
            ["hostfwd=", "ifname=", "listen=", "connect=", "addr.path="].iter().any(|part| value.contains(part))
        }
        "device" | "blockdev" => value.contains("vhost-user") && value.contains("path"),
        "tpmdev" => value.contains("passthrough"),
        // Two QEMUs that share such memory would write to one guest's.
        "object" => shares_memory(value),
        _ => false,
    }
}

/// Whether QEMU connects to a socket whose other end serves one client, such as swtpm's or that of a vhost-user device.
fn connects(value: &str) -> bool {
    let plain = ["unix:", "tcp:", "telnet:", "websocket:"].iter().any(|scheme| value.starts_with(scheme));
    plain || value.starts_with("socket,") && ["path=", "host="].iter().any(|part| value.contains(part))
}

/// Whether the words name a device or another thing of this id.
pub(super) fn names(words: &[String], id: &str) -> bool {
    let is_id = |part: &String| part.strip_prefix("id=") == Some(id);
    let in_json = |word: &str| {
        let value = serde_json::from_str::<Value>(word).ok();
        value.is_some_and(|value| value.get("id").and_then(Value::as_str) == Some(id))
    };
    words.iter().any(|word| split(word).iter().any(is_id) || in_json(word))
}

fn inherits(value: &str) -> bool {
    value.contains("/dev/fdset/") || split(value).iter().any(|part| part.starts_with("fd=") || part.starts_with("fds="))
}

struct ImageRewriter<'a> {
    moves: &'a MovedFiles,
    directory: Option<&'a Path>,
    replaced: Vec<PathBuf>,
}

impl ImageRewriter<'_> {
    /// Replaces the paths in QEMU's name for an image: a path, or a `json:` description.
    fn name<'t>(&mut self, name: &'t str) -> Cow<'t, str> {
        if let Some(description) = name.strip_prefix("json:") {
            return match self.json(description) {
                Cow::Borrowed(_) => Cow::Borrowed(name),
                Cow::Owned(new) => Cow::Owned(format!("json:{new}")),
            };
        }
        let found = path_map::path_of(name, self.directory).filter(|path| self.moves.contains_key(path));
        match found {
            Some(path) => {
                let new = self.moves[&path].to_string_lossy().into_owned();
                self.replaced.push(path);
                Cow::Owned(new)
            }
            None => Cow::Borrowed(name),
        }
    }

    /// Replaces the paths in `key=value,key=value`, where a comma inside a value is doubled.
    fn properties<'t>(&mut self, text: &'t str) -> Cow<'t, str> {
        let mut changed = false;
        let parts: Vec<String> = split(text)
            .into_iter()
            .map(|part| {
                let new = part.split_once('=').filter(|(key, _)| names_a_file(key)).and_then(|(key, value)| match self
                    .name(value)
                {
                    Cow::Owned(new) => Some(format!("{key}={new}")),
                    Cow::Borrowed(_) => None,
                });
                changed |= new.is_some();
                new.unwrap_or(part).replace(',', ",,")
            })
            .collect();
        if changed { Cow::Owned(parts.join(",")) } else { Cow::Borrowed(text) }
    }

    fn json<'t>(&mut self, text: &'t str) -> Cow<'t, str> {
        // Words that cannot be parsed stay as they are; the finding `not-on-command-line` then names the image.
        let Ok(mut value) = serde_json::from_str::<Value>(text) else { return Cow::Borrowed(text) };
        let before = self.replaced.len();
        self.value(&mut value);
        if self.replaced.len() == before { Cow::Borrowed(text) } else { Cow::Owned(value.to_string()) }
    }

    fn value(&mut self, value: &mut Value) {
        match value {
            Value::Object(members) => {
                for (key, member) in members {
                    match member {
                        // Inside JSON a plain `file` is the name of a node.
                        Value::String(name) if key == "filename" || key.ends_with(".filename") => {
                            if let Cow::Owned(new) = self.name(name) {
                                *name = new;
                            }
                        }
                        other => self.value(other),
                    }
                }
            }
            Value::Array(elements) => elements.iter_mut().for_each(|element| self.value(element)),
            _ => {}
        }
    }
}

fn names_a_file(key: &str) -> bool {
    key == "file" || key == "filename" || key.ends_with(".filename")
}

/// An option's value as `key=value,key=value`, also where it is a JSON object.
pub(super) fn flattened(value: &str) -> Cow<'_, str> {
    let Ok(Value::Object(members)) = serde_json::from_str::<Value>(value) else { return Cow::Borrowed(value) };
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), |text| text.replace(',', ",,"));
    // the driver comes first, as it does in words
    let driver = members.get("driver").map(|driver| format!("driver={}", word(driver)));
    let others =
        members.iter().filter(|(key, _)| *key != "driver").map(|(key, value)| format!("{key}={}", word(value)));
    Cow::Owned(driver.into_iter().chain(others).collect::<Vec<_>>().join(","))
}

/// The parts of `a=b,c=d`, with doubled commas made single.
pub(super) fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' if chars.next_if_eq(&',').is_none() => parts.push(String::new()),
            c => {
                if let Some(last) = parts.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derived(words: &[&str]) -> DestinationCommandLine {
        let moves: MovedFiles = [("/s/a.qcow2", "/d/a.qcow2"), ("/s/b,c.raw", "/d/x,y z.raw"), ("/w/r:1", "/d/r")]
            .map(|(from, to)| (from.into(), to.into()))
            .into();
        let words: Vec<String> = ["qemu"].iter().chain(words).map(|&word| word.to_owned()).collect();
        derive(&words, &moves, Some(Path::new("/w")))
    }

    #[test]
    fn each_way_to_name_an_image_is_found() {
        for (given, expected) in [
            (&["-drive", "file=/s/a.qcow2,if=none"][..], &["-drive", "file=/d/a.qcow2,if=none"][..]),
            (&["--drive", "if=none,file=/s/b,,c.raw"], &["--drive", "if=none,file=/d/x,,y z.raw"]),
            (&["-drive", "file.filename=/s/a.qcow2"], &["-drive", "file.filename=/d/a.qcow2"]),
            (&["-drive", "file=file:/s/a.qcow2"], &["-drive", "file=/d/a.qcow2"]),
            (&["-drive", "file=./r:1"], &["-drive", "file=/d/r"]),
            (
                &["-drive", r#"file=json:{"file":{"driver":"file",,"filename":"/s/a.qcow2"}}"#],
                &["-drive", r#"file=json:{"file":{"driver":"file",,"filename":"/d/a.qcow2"}}"#],
            ),
            (
                &["-blockdev", r#"{"driver":"file","filename":"/s/b,c.raw","node-name":"n"}"#],
                &["-blockdev", r#"{"driver":"file","filename":"/d/x,y z.raw","node-name":"n"}"#],
            ),
            (
                &["-blockdev", r#"{"driver":"qcow2","file":{"driver":"file","filename":"/s/a.qcow2"}}"#],
                &["-blockdev", r#"{"driver":"qcow2","file":{"driver":"file","filename":"/d/a.qcow2"}}"#],
            ),
            (
                &["-blockdev", "driver=qcow2,file.driver=file,file.filename=/s/a.qcow2"],
                &["-blockdev", "driver=qcow2,file.driver=file,file.filename=/d/a.qcow2"],
            ),
            (&["-hda", "/s//a.qcow2"], &["-hda", "/d/a.qcow2"]),
            (&["-cdrom", "/s/a.qcow2"], &["-cdrom", "/d/a.qcow2"]),
            (&["-m", "1G", "/s/a.qcow2"], &["-m", "1G", "/d/a.qcow2"]),
            (&["-nodefaults", "/s/a.qcow2"], &["-nodefaults", "/d/a.qcow2"]),
        ] {
            let made = derived(given);
            let expected: Vec<&str> =
                ["qemu"].iter().chain(expected).chain(&["-incoming", "defer", "-S"]).copied().collect();
            assert_eq!(made.words, expected);
            assert_eq!(made.replaced.len(), 1, "{given:?}");
        }
    }

    #[test]
    fn nothing_else_is_touched() {
        for given in [
            &["-drive", "file=/s/other,if=none,id=/s/a.qcow2"][..],
            &["-blockdev", r#"{"driver":"qcow2","file":"/s/a.qcow2","node-name":"n"}"#],
            &["-blockdev", "{'driver':'file','filename':'/s/a.qcow2'}"],
            &["-name", "/s/a.qcow2"],
            &["-drive", "file=nbd://s/a.qcow2"],
            &["-append", "a,b,,c=d"],
        ] {
            let made = derived(given);
            assert_eq!(made.words[1..=given.len()], *given);
            assert_eq!(made.replaced, Vec::<PathBuf>::new(), "{given:?}");
        }
    }

    #[test]
    fn the_guest_comes_in_once() {
        for given in [
            &["-S", "-m", "1G"][..],
            &["-incoming", "tcp:0:4444", "-m", "1G"],
            &["-m", "1G", "-incoming", "defer", "-S"],
            &["-loadvm", "snapshot", "-m", "1G"],
            &["-m", "1G"],
        ] {
            assert_eq!(derived(given).words, ["qemu", "-m", "1G", "-incoming", "defer", "-S"]);
        }
    }

    #[test]
    fn what_two_would_fight_over_is_named() {
        let made = derived(&[
            "-qmp",
            "unix:/r/q,server=on,wait=off",
            "-pidfile",
            "/r/p",
            "-chardev",
            "socket,id=c,path=/r/c,server=on",
            "-serial",
            "stdio",
            "-vnc",
            ":1",
            "-netdev",
            "user,id=n,hostfwd=tcp::2222-:22",
            "-chardev",
            "socket,id=d,path=/r/d",
            "-serial",
            "unix:/r/s",
            "-chardev",
            "pipe,id=e,path=/r/e",
            "-object",
            "memory-backend-file,id=m,mem-path=/dev/shm/m,share=on,size=1G",
            "-object",
            "memory-backend-file,id=h,mem-path=/dev/hugepages,size=1G",
            "-netdev",
            "tap,id=t,fd=5",
            "-object",
            r#"{"qom-type":"memory-backend-file","id":"j","mem-path":"/dev/shm/b","share": true}"#,
            "-object",
            "memory-backend-memfd,id=f,size=1G,share=on",
        ]);
        assert_eq!(made.collisions.len(), 9, "{:?}", made.collisions);
        for client in ["socket,id=d,path=/r/d", "unix:/r/s", "mem-path=/dev/shm/m"] {
            assert!(made.collisions.iter().any(|named| named.contains(client)), "{client}: {:?}", made.collisions);
        }
        assert_eq!(made.inherited, ["-netdev tap,id=t,fd=5"]);
    }

    #[test]
    fn a_device_is_on_the_command_line_by_its_id() {
        let words =
            ["-device", "virtio-net-pci,id=nic0,netdev=n", "-device", r#"{"driver":"e1000","id":"nic1"}"#, "id=x"];
        let words = words.map(str::to_owned);
        for (id, is_named) in [("nic0", true), ("nic1", true), ("nic", false), ("n", false), ("x", true)] {
            assert_eq!(names(&words, id), is_named, "{id}");
        }
    }

    #[test]
    fn a_secret_is_left_out_and_a_kernels_words_are_kept() {
        for (value, hidden) in [
            ("secret,id=a,data=hunter2", "secret,id=a,data=HIDDEN"),
            ("secret,id=a,data=x,,y,format=raw", "secret,id=a,data=HIDDEN,format=raw"),
            ("secret,id=a,data=x,,", "secret,id=a,data=HIDDEN"),
            ("secret,id=a,file=/etc/key", "secret,id=a,file=/etc/key"),
            (r#"{"qom-type":"secret","id":"a","data":"x"}"#, r#"{"data":"HIDDEN","id":"a","qom-type":"secret"}"#),
            ("rng-random,id=r,data=x", "rng-random,id=r,data=x"),
        ] {
            assert_eq!(without_secret(value), hidden);
        }
        let words = |text: &[&str]| text.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let made =
            derive(&words(&["qemu", "-append", "-S quiet", "-object", "secret,id=a,data=x"]), &MovedFiles::new(), None);
        assert_eq!(made.words[..5], words(&["qemu", "-append", "-S quiet", "-object", "secret,id=a,data=HIDDEN"]));
        assert!(made.secrets);
    }
}
