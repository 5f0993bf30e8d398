//! What people do wrong with the command, and what the command says then: the thing, the cause, and the remedy. Every
//! mistake is made with the command itself, and refused before anything is changed.

use super::{lines, text};
use qferry_bed::Bare;
use serde_json::Value;
use std::{
    fs::{self, File},
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::{Command, Output, Stdio},
};

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
    command.args(arguments).env("XDG_RUNTIME_DIR", folder).env("XDG_STATE_HOME", folder).stdin(Stdio::null());
    command.output().unwrap()
}

/// All that a command says to people.
fn said(output: &Output) -> String {
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// A mistake: arguments in which `@` stands for a folder, the exit code, and words of the answer.
type Mistake = (&'static str, i32, &'static [&'static str]);

/// Mistakes that need no QEMU. The folder has the sockets `listens` and `closed`, which is also `link`, and the file
/// `file`.
const WITHOUT_QEMU: [Mistake; 15] = [
    (
        "check --source @/closed --destination @/closed",
        3,
        &[
            "blocker  same-process: source and destination are one QMP socket, unix:@/closed: ",
            "give the socket of the QEMU that waits with -incoming defer -S as the --destination",
        ],
    ),
    (
        "migrate --source @/closed --destination unix:@/link",
        3,
        &["blocker  same-process: source and destination are one QMP socket, unix:@/closed and unix:@/link: "],
    ),
    (
        "check --source @/file --destination @/none",
        3,
        &[
            "blocker  unreachable: cannot reach the source: unix:@/file is a plain file and no socket: ",
            "give the path of the socket in QEMU's -qmp unix:PATH,server=on,wait=off",
        ],
    ),
    ("check --source @ --destination @/none", 3, &["unix:@ is a folder and no socket"]),
    ("check --source @/file/qmp --destination @/none", 3, &["there is no socket at unix:@/file/qmp"]),
    ("check --source @/closed --destination @/none", 3, &["QEMU has exited and left its socket behind"]),
    (
        "check --source @/none --destination @/closed",
        3,
        &[
            "blocker  unreachable: cannot reach the source: there is no socket at unix:@/none: is QEMU running",
            "refused  nothing would be changed",
        ],
    ),
    (
        "migrate --source @/none --destination @/closed",
        3,
        &[
            "blocker  unreachable: cannot reach the source: there is no socket at unix:@/none: is QEMU running",
            "refused: nothing was changed",
        ],
    ),
    ("check --source @/listens --destination @/listens --bandwidth 100", 2, &["'100' has no unit: use MiB/s"]),
    ("check --source @/a --destination @/b --bandwidth 100M", 2, &["unknown unit 'M'", "use MiB/s"]),
    ("check --source @/a --destination @/b --downtime 50", 2, &["write 50ms, 2s or 1m"]),
    (
        "check --source @/a --destination @/b --policy @/patience.toml",
        2,
        &["patience = 5", "expected a duration as text, with its unit: \"50ms\", \"2s\" or \"1m\""],
    ),
    ("check --source @/a --destination @/b --policy @/none.toml", 2, &["it cannot be read: No such file"]),
    ("check --source qmp --destination @/b", 2, &["`qmp` is no address: write /path/to/qmp.sock"]),
    ("check --source @/a --destination @/b --samples 0", 2, &["--samples is 0: give 1 to 65536"]),
];

#[test]
fn each_mistake_is_told_with_its_cause_and_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let _listens = UnixListener::bind(at("listens")).unwrap();
    drop(UnixListener::bind(at("closed")).unwrap());
    symlink(at("closed"), at("link")).unwrap();
    fs::write(at("file"), "").unwrap();
    fs::write(at("patience.toml"), "patience = 5\n").unwrap();
    let here = folder.path().to_str().unwrap();
    for (arguments, code, words) in WITHOUT_QEMU {
        let arguments = arguments.replace('@', here);
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = run(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        for words in words {
            let words = words.replace('@', here);
            assert!(said(&output).contains(&words), "no '{words}' for {arguments:?} in {}", said(&output));
        }
        // a program gets the same as the last object on stdout
        let output = run(folder.path(), &[&arguments[..], &["--json"]].concat());
        let last = lines(&output).pop().unwrap_or_else(|| panic!("{arguments:?}: {}", said(&output)));
        let (kind, told) = match (code, arguments[0]) {
            (2, _) => ("error", &last["code"] == "usage"),
            (_, "migrate") => ("outcome", last["outcome"] == "refused" && last["reason"]["code"].is_string()),
            _ => ("plan", last["findings"][0]["severity"] == "blocker"),
        };
        assert!(last["type"] == kind && told, "{arguments:?}: {last}");
        let words = words[0].trim_start_matches(|c: char| c != ':').trim_start_matches(": ").replace('@', here);
        let message = [&last["message"], &last["reason"]["message"], &last["findings"][0]["message"]];
        let message = message.into_iter().find_map(Value::as_str).unwrap_or_default();
        assert!(message.contains(words.trim()) || code == 2, "no '{words}' for {arguments:?} in {message}");
    }
}

/// Two QEMUs without a guest, the second of which waits for one.
fn pair(source: &str, destination: &str) -> (Bare, Bare) {
    let start = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        Bare::start("10.0.13", &arguments).unwrap_or_else(|error| panic!("{error}"))
    };
    (start(source), start(&format!("{destination} -incoming defer")))
}

#[test]
fn each_mistake_with_two_qemus_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("d".repeat(80));
    fs::create_dir(&long).unwrap();
    fs::write(folder.path().join("journal"), "").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (source, destination) =
        (format!("-smp 1 -qmp tcp:127.0.0.1:{port},server=on,wait=off"), "-smp 2 -m 1025M".to_owned());
    let (source, destination) = pair(&source, &destination);
    let at = |bare: &Bare| bare.qmp_path().display().to_string();
    let (source, destination) = (at(&source), at(&destination));
    let check = |source: &str, more: &[&str], runtime: &Path| {
        let output = run(runtime, &[&["check", "--source", source, "--destination", &destination], more].concat());
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        text(&output.stdout)
    };
    let journal = folder.path().join("journal").display().to_string();
    let tcp = format!("tcp:127.0.0.1:{port}");
    let far = format!("source ({tcp}) is reached over TCP, so that its host may be another one");
    let socket = folder.path().join("none/nbd").display().to_string();
    for (source, more, runtime, code, words) in [
        (
            &source,
            vec![],
            folder.path(),
            "ram-size",
            "with 64 MiB of RAM, the destination with 1.0 GiB (1074790400 bytes)",
        ),
        (&source, vec![], folder.path(), "cpu-count", "the source has 1 virtual CPU, the destination 2"),
        (&source, vec![], folder.path(), "destination-autostart", "this QEMU was started without -S"),
        (&source, vec!["--journal", &*journal], folder.path(), "journal", "give another place with --journal"),
        (&tcp, vec![], folder.path(), "address-missing", &*far),
        (&source, vec![], &*long, "address-missing", "would have more than the 107 bytes that are possible"),
        (&source, vec!["--nbd-address", &*socket], folder.path(), "socket-forbidden", "there is no folder"),
    ] {
        let told = check(source, &more, runtime);
        let found: Vec<&str> = told.lines().filter(|line| line.contains(&format!(" {code}: "))).collect();
        assert_eq!(found.len(), 1, "{code}: {told}");
        assert!(found[0].contains(words), "no '{words}' in {told}");
    }
    let listens = Bare::start("10.0.13", &["-S", "-incoming", "tcp:127.0.0.1:0"]).unwrap();
    let output = run(folder.path(), &["check", "--source", &source, "--destination", &at(&listens)]);
    let told = text(&output.stdout);
    for words in ["destination-used: ", "started with an address for -incoming in place of defer", "-incoming defer -S"]
    {
        assert!(told.contains(words), "no '{words}' in {told}");
    }
    // two addresses that are missing for one reason are told in one finding
    let told = check(&tcp, &[], folder.path());
    assert!(told.contains("give --nbd-address and --migrate-address, at which the destination can listen"), "{told}");
}

/// A check that nobody can read has not succeeded; and a program sees how a check goes on, and when it ended.
#[test]
fn a_check_is_written_or_has_failed() {
    let folder = tempfile::tempdir().unwrap();
    let (source, destination) = pair("", "-S");
    let at = |bare: &Bare| bare.qmp_path().display().to_string();
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qferry"));
        command.env("XDG_RUNTIME_DIR", folder.path()).env("XDG_STATE_HOME", folder.path());
        command.args(["check", "--no-measure", "--source", &at(&source), "--destination", &at(&destination)]);
        command
    };
    let output = check().arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let told = lines(&output);
    let begun: Vec<&Value> = told.iter().filter(|line| line["state"] == "begin").map(|line| &line["phase"]).collect();
    assert_eq!(begun, ["connect", "preflight"]);
    let plan = told.last().unwrap();
    assert!(plan["type"] == "plan" && plan["t_ms"].as_u64() >= told[told.len() - 2]["t_ms"].as_u64(), "{told:#?}");
    assert!(plan["t_ms"].as_u64() > Some(0), "{plan}");
    for json in [&["--json"][..], &[]] {
        let full = check().args(json).stdout(File::options().write(true).open("/dev/full").unwrap()).output().unwrap();
        assert_eq!(full.status.code(), Some(1), "{}", said(&full));
        assert!(said(&full).contains("what was found cannot be written: No space left on device"), "{}", said(&full));
    }
}
