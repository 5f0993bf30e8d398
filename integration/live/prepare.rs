//! `qferry prepare`: the images of a destination, and the backing files that it lacks.

mod again;
mod plugged;

use super::{
    bare::{Bare, disk},
    support::MIB,
};
use qferry_bed::Build;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// A folder with the images of the source (`s`) and of the destination (`d`).
struct Place {
    build: Build,
    folder: tempfile::TempDir,
}

impl Place {
    fn new(version: &str) -> Self {
        let place = Self { build: Build::locate(version).unwrap(), folder: tempfile::tempdir().unwrap() };
        for name in ["s", "d"] {
            fs::create_dir(place.path(name)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn img(&self, words: &[&str]) -> String {
        self.build.img(words).unwrap()
    }

    /// Creates an image in `s`, perhaps over another one, and writes a megabyte of `byte` at each offset.
    fn image(&self, name: &str, format: &str, over: Option<(&str, &str)>, size: u64, byte: u8, at: &[u64]) -> PathBuf {
        let path = self.path("s").join(name);
        let mut words: Vec<OsString> = ["create", "-q", "-f", format].map(OsString::from).into();
        if let Some((base, format)) = over {
            // The backing file is named without a folder, so that the header of a copy beside it is right as it is.
            words.extend(["-F", format, "-b", base].map(OsString::from));
        }
        words.extend([path.clone().into_os_string(), size.to_string().into()]);
        self.build.img(words).unwrap();
        for offset in at {
            let write = format!("write -P {byte} {offset} 1M");
            let io = Command::new(self.build.program("qemu-io")).args(["-f", format, "-c", &write]).arg(&path).output();
            assert!(io.unwrap().status.success());
        }
        path
    }

    /// Three layers of odd shapes and names, and an overlay larger than they are.
    fn chain_of_four(&self) -> PathBuf {
        self.image("base image.raw", "raw", None, 32 * MIB, 1, &[MIB, 20 * MIB]);
        self.image("one,two.qcow2", "qcow2", Some(("base image.raw", "raw")), 32 * MIB, 2, &[2 * MIB, 20 * MIB]);
        self.image("it's.qcow2", "qcow2", Some(("one,two.qcow2", "qcow2")), 48 * MIB, 3, &[3 * MIB, 40 * MIB]);
        self.image("top.qcow2", "qcow2", Some(("it's.qcow2", "qcow2")), 64 * MIB, 4, &[4 * MIB, 60 * MIB])
    }

    fn source(&self, disks: &[(&str, &str, &Path)]) -> Bare {
        let more: Vec<OsString> = disks.iter().flat_map(|(name, format, image)| disk(name, format, image)).collect();
        Bare::start(&self.build, self.folder.path(), "source", &more)
    }

    /// A destination that waits with this image.
    fn destination(&self, image: &Path) -> Bare {
        let incoming = ["-incoming", "defer", "-S"].map(OsString::from);
        let arguments: Vec<OsString> = disk("disk0", "qcow2", image).into_iter().chain(incoming).collect();
        Bare::start(&self.build, self.folder.path(), "destination", &arguments)
    }

    fn prepare(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
        command.arg("prepare").arg("--source").arg(self.path("source.qmp"));
        command.arg("--qemu-img").arg(self.build.program("qemu-img")).args(more);
        command.env("XDG_RUNTIME_DIR", self.folder.path()).env("XDG_STATE_HOME", self.path("state"));
        command
    }

    /// `qferry prepare` with the source's folder mapped to the destination's.
    fn moved(&self, more: &[&str]) -> Command {
        let map = format!("{}={}", self.path("s").display(), self.path("d").display());
        let mut command = self.prepare(&["--map", &map]);
        command.args(more);
        command
    }

    /// The names of the files in the destination's folder.
    fn made(&self) -> Vec<String> {
        names(&self.path("d"))
    }

    fn sockets_are_gone(&self) {
        let folder = self.path("qferry");
        assert!(!folder.exists() || names(&folder).is_empty(), "{:?}", names(&folder));
    }

    /// Nothing of the engine is left in the source.
    fn is_clean(&self, source: &Bare) {
        assert_eq!(source.exports(), Vec::<String>::new());
        assert!(!source.has_server(self.folder.path()));
        self.sockets_are_gone();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn ran(command: &mut Command, code: i32) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    output
}

/// The last line of output, which has the result.
fn prepared(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().expect("a line")).unwrap()
}

fn codes(prepared: &Value) -> Vec<&str> {
    prepared["findings"].as_array().unwrap().iter().filter_map(|finding| finding["code"].as_str()).collect()
}

#[test]
fn a_chain_of_four_is_brought_and_keeps_its_shape() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let place = Place::new(version);
        let top = place.chain_of_four();
        let source = place.source(&[("disk0", "qcow2", &top)]);

        // Without `--populate`: the command names the missing files, and creates nothing.
        let refused = prepared(&ran(&mut place.moved(&["--json"]), 3));
        assert_eq!(codes(&refused)[..3], ["backing-missing"; 3], "{refused:#}");
        let remedy = refused["findings"][0]["remedy"].as_str().unwrap();
        assert!(remedy.contains("--populate missing copies it from the source: "), "{remedy}");
        assert_eq!(place.made(), Vec::<String>::new());

        // A plan changes nothing.
        let planned = ran(&mut place.moved(&["--populate", "missing"]), 0);
        assert!(String::from_utf8_lossy(&planned.stdout).contains("# the destination's QEMU\n"));
        assert_eq!(place.made(), Vec::<String>::new());

        let output = ran(&mut place.moved(&["--populate", "missing", "--apply", "--json"]), 0);
        let done = prepared(&output);
        assert_eq!(done["outcome"], "done");
        assert_eq!(place.made(), ["base image.raw", "it's.qcow2", "one,two.qcow2", "top.qcow2"]);
        place.is_clean(&source);
        for layer in ["base image.raw", "it's.qcow2", "one,two.qcow2"] {
            let (at_source, at_destination) = (place.path("s").join(layer), place.path("d").join(layer));
            assert!(fs::read(&at_source).unwrap() == fs::read(&at_destination).unwrap(), "{layer}");
            place.img(&["compare", "-U", at_source.to_str().unwrap(), at_destination.to_str().unwrap()]);
            let blocks = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
            assert!(
                blocks(&at_destination) <= blocks(&at_source) + 64 * 1024,
                "{layer}: {} {}",
                blocks(&at_destination),
                blocks(&at_source)
            );
        }
        let made = place.path("d").join("top.qcow2");
        let info = place.img(&["info", "-U", "--output=json", "--backing-chain", made.to_str().unwrap()]);
        let chain: Vec<Value> = serde_json::from_str(&info).unwrap();
        assert_eq!(chain.len(), 4);
        assert_eq!(chain[0]["virtual-size"], 64 * MIB);
        let inside = |layer: &Value| layer["filename"].as_str().unwrap().starts_with(place.path("d").to_str().unwrap());
        assert!(chain.iter().all(inside), "{info}");

        // A second run finds nothing to do.
        let again = prepared(&ran(&mut place.moved(&["--populate", "missing", "--apply", "--json"]), 0));
        assert!(again["steps"].as_array().unwrap().iter().all(|step| step["action"] == "keep"), "{again:#}");
        starts(&place, &again);
    }
}

/// A QEMU starts with the printed arguments, apart from its monitors, and waits for a migration.
fn starts(place: &Place, prepared: &Value) {
    assert!(codes(prepared).contains(&"same-host"));
    let words: Vec<String> = serde_json::from_value(prepared["qemu"].clone()).unwrap();
    let rename = |word: &String| word.replace("/source.", "/destination.");
    let words: Vec<String> = words.iter().map(rename).collect();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    // The QEMU builds of the tests have their modules beside them.
    let modules = place.build.program("qemu-img").ancestors().nth(2).unwrap().join("lib/qemu");
    command.env("QEMU_MODULE_DIR", modules);
    let destination = Bare::spawn(command, place.folder.path(), "destination");
    assert_eq!(destination.status(), "inmigrate");
    let nodes = destination.ask("query-block", &json!({}));
    let file = nodes[0]["inserted"]["image"]["filename"].as_str().unwrap();
    assert!(file.starts_with(place.path("d").to_str().unwrap()), "{file}");
}

#[test]
fn an_image_that_holds_data_is_never_touched() {
    let place = Place::new("10.0.13");
    place.image("base.raw", "raw", None, 8 * MIB, 1, &[0]);
    let top = place.image("top.qcow2", "qcow2", Some(("base.raw", "raw")), 8 * MIB, 2, &[0]);
    let firmware = place.image("vars.raw", "raw", None, 540_672, 0, &[]);
    let source = place.source(&[("disk0", "qcow2", &top), ("vars", "raw", &firmware)]);
    let to = place.path("d").display().to_string();

    // The destination is the source's own folder, by its path and by a link.
    for (folder, code) in [(place.path("s"), "image-same"), (place.path("link"), "image-same")] {
        if !folder.exists() {
            std::os::unix::fs::symlink(place.path("s"), &folder).unwrap();
        }
        let refused = prepared(&ran(&mut place.prepare(&["--to", folder.to_str().unwrap(), "--apply", "--json"]), 3));
        assert_eq!(codes(&refused)[..2], [code, code]);
    }

    ran(&mut place.prepare(&["--to", &to, "--apply"]), 0);
    assert_eq!(fs::metadata(place.path("d").join("vars.raw")).unwrap().len(), 540_672);
    let before = fs::metadata(place.path("d").join("top.qcow2")).unwrap();
    let again = prepared(&ran(&mut place.prepare(&["--to", &to, "--apply", "--json"]), 0));
    assert!(again["steps"].as_array().unwrap().iter().all(|step| step["action"] == "keep"), "{again:#}");

    // Zeros hide the layer below, so they count as data.
    let made = place.path("d").join("top.qcow2");
    place.build.io(&made, ["write -z 0 64k"]).unwrap();
    let refused = prepared(&ran(&mut place.prepare(&["--to", &to, "--apply", "--json"]), 3));
    let message = refused["reason"]["message"].as_str().unwrap();
    assert!(message.contains("holds data") && message.contains(made.to_str().unwrap()), "{message}");
    fs::write(place.path("d").join("vars.raw"), vec![7; 540_672]).unwrap();
    let refused = prepared(&ran(&mut place.prepare(&["--to", &to, "--apply", "--json"]), 3));
    assert_eq!(codes(&refused)[..2], ["image-exists"; 2]);
    assert_eq!(fs::metadata(&made).unwrap().ino(), before.ino());
    assert_eq!(fs::read(place.path("d").join("vars.raw")).unwrap(), vec![7; 540_672]);
    place.is_clean(&source);
}

#[test]
fn two_disks_over_one_base_have_it_copied_once() {
    let place = Place::new("10.0.13");
    place.image("base.qcow2", "qcow2", None, 8 * MIB, 1, &[0]);
    let one = place.image("one.qcow2", "qcow2", Some(("base.qcow2", "qcow2")), 8 * MIB, 2, &[]);
    let two = place.image("two.qcow2", "qcow2", Some(("base.qcow2", "qcow2")), 9 * MIB, 2, &[]);
    let source = place.source(&[("disk0", "qcow2", &one), ("disk1", "qcow2", &two)]);
    let done = prepared(&ran(&mut place.moved(&["--populate", "missing", "--apply", "--json"]), 0));
    let actions: Vec<&str> =
        done["steps"].as_array().unwrap().iter().filter_map(|step| step["action"].as_str()).collect();
    assert_eq!(actions, ["copy", "create", "create"]);
    assert_eq!(place.made(), ["base.qcow2", "one.qcow2", "two.qcow2"]);
    place.is_clean(&source);
}

#[test]
fn another_place_is_written_into_the_header_and_full_stands_alone() {
    let place = Place::new("10.0.13");
    place.image("base.raw", "raw", None, 8 * MIB, 1, &[0]);
    let base = place.path("s").join("base.raw").display().to_string();
    place.image("middle.qcow2", "qcow2", Some((&base, "raw")), 8 * MIB, 2, &[MIB]);
    let top = place.image("top.qcow2", "qcow2", Some(("middle.qcow2", "qcow2")), 8 * MIB, 3, &[]);
    let source = place.source(&[("disk0", "qcow2", &top)]);
    ran(&mut place.moved(&["--populate", "missing", "--apply"]), 0);
    let middle = place.path("d").join("middle.qcow2");
    let info: Value = serde_json::from_str(&place.img(&["info", "--output=json", middle.to_str().unwrap()])).unwrap();
    assert_eq!(info["backing-filename"], place.path("d").join("base.raw").to_str().unwrap());
    let (at_source, at_destination) = (place.path("s").join("middle.qcow2"), middle);
    place.img(&["compare", "-U", at_source.to_str().unwrap(), at_destination.to_str().unwrap()]);
    place.is_clean(&source);

    fs::remove_file(place.path("d").join("top.qcow2")).unwrap();
    ran(&mut place.moved(&["--storage", "full", "--apply"]), 0);
    let top = place.path("d").join("top.qcow2");
    let info: Value = serde_json::from_str(&place.img(&["info", "--output=json", top.to_str().unwrap()])).unwrap();
    assert!(info["backing-filename"].is_null(), "{info:#}");
}

/// Starts a copy of 24 MiB at this rate, and waits until it is under way.
fn slow_copy(place: &Place, rate: &str) -> std::process::Child {
    let mut child = place
        .moved(&["--populate", "missing", "--apply", "--json", "--bandwidth", rate])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let under_way = lines.any(|line| {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        line["type"] == "image" && line["done"].as_u64() >= Some(MIB)
    });
    assert!(under_way);
    drop(lines);
    child
}

fn large_base(place: &Place) -> PathBuf {
    let at: Vec<u64> = (0..24).map(|megabyte| megabyte * MIB).collect();
    place.image("base.raw", "raw", None, 24 * MIB, 1, &at);
    place.image("top.qcow2", "qcow2", Some(("base.raw", "raw")), 24 * MIB, 2, &[])
}

#[test]
fn a_killed_copy_is_begun_anew_and_two_do_not_meet() {
    let place = Place::new("10.0.13");
    let top = large_base(&place);
    let source = place.source(&[("disk0", "qcow2", &top)]);
    let mut first = slow_copy(&place, "1MiB/s");
    assert_eq!(place.made(), [".base.raw.qferry-partial", ".top.qcow2.qferry-partial"]);

    // A monitor serves one client, so the second run uses another monitor.
    let mut second = Command::new(env!("CARGO_BIN_EXE_qferry"));
    second.arg("prepare").arg("--source").arg(place.path("source.watch"));
    let map = format!("{}={}", place.path("s").display(), place.path("d").display());
    second.args(["--map", &map, "--populate", "missing", "--apply", "--json", "--qemu-img"]);
    second
        .arg(place.build.program("qemu-img"))
        .env("XDG_RUNTIME_DIR", place.folder.path())
        .env("XDG_STATE_HOME", place.path("state"));
    let refused = prepared(&ran(&mut second, 3));
    assert_eq!(refused["reason"]["code"], "in-use");
    let message = refused["reason"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("pid {}", first.id())), "{message}");

    kill_process(Pid::from_child(&first), Signal::KILL).unwrap();
    first.wait().unwrap();
    let left = source.exports();
    assert!(left.len() == 1 && left[0].starts_with("qferry-") && left[0].ends_with("-view-0"), "{left:?}");
    ran(&mut place.moved(&["--populate", "missing", "--apply"]), 0);
    assert_eq!(place.made(), ["base.raw", "top.qcow2"]);
    let (at_source, at_destination) = (place.path("s").join("base.raw"), place.path("d").join("base.raw"));
    assert!(fs::read(at_source).unwrap() == fs::read(at_destination).unwrap());
    assert_eq!(source.exports(), Vec::<String>::new());
    assert!(!source.has_server(place.folder.path()));
    place.sockets_are_gone();
}

#[test]
fn an_interrupted_copy_leaves_nothing() {
    let place = Place::new("10.0.13");
    let top = large_base(&place);
    let source = place.source(&[("disk0", "qcow2", &top)]);
    let child = slow_copy(&place, "1MiB/s");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(5));
    assert_eq!(place.made(), Vec::<String>::new());
    place.is_clean(&source);
}

/// A small file system at the destination's folder, gone when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf, size: &str) -> Self {
        let option = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &option, "tmpfs"]).arg(&path).status().unwrap();
        assert!(mounted.success(), "the live tests run as root");
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_file_system_that_is_full_is_named() {
    let place = Place::new("10.0.13");
    let top = large_base(&place);
    let source = place.source(&[("disk0", "qcow2", &top)]);
    let small = Small::mount(place.path("d"), "16M");
    // The room is checked beforehand.
    let refused = prepared(&ran(&mut place.moved(&["--populate", "missing", "--apply", "--json"]), 3));
    assert_eq!(refused["reason"]["code"], "no-space");
    assert_eq!(place.made(), Vec::<String>::new());
    drop(small);

    // Somebody else fills the file system during the copy.
    let _small = Small::mount(place.path("d"), "28M");
    let child = slow_copy(&place, "2MiB/s");
    let hog = place.path("d").join("hog");
    drop(fs::write(&hog, vec![1; 26 << 20]));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no-space") && said.contains("tmpfs") && said.contains("base.raw"), "{said}");
    assert_eq!(place.made(), ["hog"]);
    assert_eq!(source.status(), "running");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !source.exports().is_empty() && Instant::now() < deadline {
        sleep(Duration::from_millis(20));
    }
    place.is_clean(&source);
}
