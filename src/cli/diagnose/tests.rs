//! Golden screens of `qferry diagnose`, by diagnoses made by hand, in 80 columns.

use super::*;
use crate::{
    codes::DiagnosisCode,
    diagnosis::{MirrorReport, OpenFileReport, ProcessReport, RemedyCommand, SocketReport, ThreadReport},
    progress::Side,
};
use insta::assert_snapshot;

const MIB: u64 = 1 << 20;

fn source() -> SideReport {
    SideReport {
        address: "unix:/run/vm/source.qmp".to_owned(),
        monitor: "answers".to_owned(),
        version: Some("10.0.13".to_owned()),
        run_state: Some("running".to_owned()),
        migration: Some("active".to_owned()),
        ram_total: Some(4096 * MIB),
        passes: Some(3),
        transferred: Some(5000 * MIB),
        remaining: (0..13).map(|look| (900 - 40 * look) * MIB).collect(),
        bandwidth: Some(120 * MIB),
        dirty_rate: Some(20 * MIB),
        bandwidth_limit: Some(128 * MIB),
        expected_downtime_ms: Some(420),
        downtime_limit_ms: Some(300),
        throttle_pct: Some(20),
        pid: Some(4711),
        process_state: Some("S".to_owned()),
        ..SideReport::default()
    }
}

fn destination() -> SideReport {
    SideReport {
        address: "tcp:10.0.0.2:4444".to_owned(),
        monitor: "answers".to_owned(),
        version: Some("10.0.13".to_owned()),
        run_state: Some("inmigrate".to_owned()),
        migration: Some("active".to_owned()),
        exports: vec!["disk0".to_owned()],
        ..SideReport::default()
    }
}

fn mirror(status: &str) -> MirrorReport {
    MirrorReport {
        id: "disk0".to_owned(),
        status: status.to_owned(),
        copied: 150 * MIB,
        total: 200 * MIB,
        rate: 0,
        limit: None,
        remaining: vec![50 * MIB; 13],
        ready: false,
    }
}

fn cause(code: DiagnosisCode, confidence: Confidence, evidence: &[&str], words: (&str, &str)) -> Cause {
    Cause {
        code,
        confidence,
        evidence: evidence.iter().map(|fact| (*fact).to_owned()).collect(),
        remedy: words.0.to_owned(),
        risk: words.1.to_owned(),
        commands: Vec::new(),
        fixable: false,
    }
}

fn diagnosis(causes: Vec<Cause>, source: Option<SideReport>, destination: Option<SideReport>) -> Diagnosis {
    let verdict = match causes.first() {
        Some(cause) => cause.code.meaning().to_owned(),
        None => "Nothing wrong found: 420.0 MiB of RAM are left to send at 120.0 MiB/s, about 4 s left.".to_owned(),
    };
    Diagnosis { verdict, causes, source, destination, unseen: Vec::new(), moved: None, notes: Vec::new() }
}

/// The screen, none of whose lines but commands is wider than 80 columns.
fn shown(diagnosis: &Diagnosis) -> String {
    let text = screen(diagnosis, Some(80));
    assert_eq!(
        screen(diagnosis, None).split_whitespace().collect::<Vec<_>>(),
        text.split_whitespace().collect::<Vec<_>>()
    );
    for line in text.lines().filter(|line| !line.starts_with("               source: {")) {
        assert!(line.chars().count() <= 80 || line.starts_with("  command "), "{line:?}");
    }
    text
}

#[test]
fn a_healthy_migration_says_the_time_left() {
    assert_snapshot!(shown(&diagnosis(Vec::new(), Some(source()), Some(destination()))));
}

#[test]
fn one_cause_has_its_evidence_its_remedy_and_its_command() {
    let evidence =
        ["the mirror disk0 was paused over 2.9 s: 150.0 MiB of 200.0 MiB copied", "its io-status is nospace"];
    let words = (
        "make room where the destination's image is, and resume the job",
        "a job that meets the same error pauses again",
    );
    let resume = RemedyCommand::qmp(Side::Source, "block-job-resume", &[("device", "disk0")]);
    let cause = Cause {
        commands: vec![resume],
        fixable: true,
        ..cause(DiagnosisCode::MirrorPaused, Confidence::Certain, &evidence, words)
    };
    let source = SideReport { mirrors: vec![mirror("paused")], migration: None, transferred: None, ..source() };
    assert_snapshot!(shown(&diagnosis(vec![cause], Some(source), Some(destination()))));
}

#[test]
fn causes_that_fit_are_listed_with_what_tells_them_apart() {
    let sent = "the source has sent nothing for 3.0 s: 2097152 bytes sent, 314572800 to send, the migration is active";
    let waits = "65536 bytes wait to be acknowledged by 10.0.0.2:4444, sent again 4 times";
    let ping = "ping -M do -s 1472 to the destination fails where it is this, and passes where the link is dead only for \
        this connection";
    let dead = (
        "cut the channel: the migration fails and the guest goes on running on the source; where the link may come back, wait",
        "the copied RAM has to be sent again",
    );
    let mtu = (
        "make the MTU the same on the whole way, or have a router on it clamp the segments' size; then cancel and begin again",
        "none: the guest runs on the source",
    );
    let causes = vec![
        cause(DiagnosisCode::LinkDead, Confidence::Certain, &[sent, waits], dead),
        cause(DiagnosisCode::Mtu, Confidence::Possible, &[sent, waits, ping], mtu),
    ];
    let alone = Diagnosis {
        unseen: vec!["only one side was given: the other side's state is not known".to_owned()],
        ..diagnosis(causes, Some(source()), None)
    };
    assert_snapshot!(shown(&alone));
}

#[test]
fn a_side_that_is_dead_is_told_beside_the_one_that_lives() {
    let words = (
        "let the source cancel; the guest goes on there",
        "none while the destination has not been told to run the guest",
    );
    let evidence = ["connecting to tcp:10.0.0.2:4444: nobody listens there (connection refused)"];
    let cause = Cause {
        commands: vec![RemedyCommand::qmp(Side::Source, "migrate_cancel", &[])],
        fixable: true,
        ..cause(DiagnosisCode::DestinationGone, Confidence::Certain, &evidence, words)
    };
    let source = SideReport {
        run_state: Some("finish-migrate".to_owned()),
        migration: Some("pre-switchover".to_owned()),
        ..source()
    };
    let dead =
        SideReport { address: "tcp:10.0.0.2:4444".to_owned(), monitor: "gone".to_owned(), ..SideReport::default() };
    assert_snapshot!(shown(&diagnosis(vec![cause], Some(source), Some(dead))));
}

#[test]
fn a_process_without_a_monitor_is_described() {
    let thread = |name: &str, state, cpu_pct, waits_in: Option<&str>| ThreadReport {
        name: name.to_owned(),
        state,
        cpu_pct: Some(cpu_pct),
        waits_in: waits_in.map(str::to_owned),
    };
    let socket = SocketReport {
        kind: "tcp",
        local: "10.0.0.1:40962".to_owned(),
        remote: "10.0.0.2:4444".to_owned(),
        state: "established".to_owned(),
        unsent: 3 * MIB,
        unread: 0,
        retransmits: 0,
        timer: Some("room at the peer"),
        peer: "qemu-system-x86 (pid 4712)".to_owned(),
        peer_pid: Some(4712),
    };
    let command = "/usr/bin/qemu-system-x86_64 -name vm1,debug-threads=on -m 4096 -object secret,id=s,data=[redacted]";
    let process = ProcessReport {
        pid: 4711,
        command: command.split(' ').map(str::to_owned).collect(),
        threads: vec![
            thread("qemu-system-x86", 'S', 0.3, Some("do_poll")),
            thread("CPU 0/KVM", 'R', 98.7, None),
            thread("mig/src/main", 'S', 0.0, Some("sk_stream_wait_memory")),
            thread("IO iothread0", 'S', 0.0, Some("do_epoll_wait")),
        ],
        sockets: vec![socket],
        images: vec![
            OpenFileReport { path: "/srv/vm1/base.qcow2".to_owned(), writable: false },
            OpenFileReport { path: "/srv/vm1/overlay.qcow2".to_owned(), writable: true },
        ],
        memlock_limit: Some(64 << 10),
        descriptor_limit: Some(1024),
        descriptors: Some(57),
    };
    let side = SideReport {
        address: "process 4711".to_owned(),
        monitor: "not-asked".to_owned(),
        pid: Some(4711),
        process_state: Some("S".to_owned()),
        process: Some(process),
        ..SideReport::default()
    };
    let evidence = [
        "the process at the other end of the source's connection to 10.0.0.2:4444, qemu-system-x86 (pid 4712), is stopped \
         by a signal (state T)",
        "3145728 bytes wait in that connection to be read",
    ];
    let words = (
        "have it run again: kill -CONT 4712, where a signal has stopped it",
        "whoever stopped the process may count on its standstill",
    );
    let cause = cause(DiagnosisCode::ProcessStopped, Confidence::Certain, &evidence, words);
    let alone = Diagnosis {
        unseen: vec!["no monitor was asked: QEMU's own state is not known".to_owned()],
        ..diagnosis(vec![cause], Some(side), None)
    };
    assert_snapshot!(shown(&alone));
}

/// A thousand mirrors of which each is paused: what is alike is counted, and what is different is seen.
#[test]
fn a_thousand_mirrors_take_a_screen() {
    let numbered = |number: usize, status: &str| MirrorReport { id: format!("disk{number}"), ..mirror(status) };
    let mut mirrors: Vec<MirrorReport> = (0..1023).map(|number| numbered(number, "running")).collect();
    mirrors.iter_mut().take(1000).for_each(|mirror| mirror.ready = true);
    mirrors.push(numbered(1023, "paused"));
    let words = ("raise the limit", "none");
    let mut causes: Vec<Cause> = (0..1023)
        .map(|number| {
            let fact = format!("disk{number} copies less than its guest writes");
            cause(DiagnosisCode::MirrorStarved, Confidence::Certain, &[&fact], words)
        })
        .collect();
    let facts: Vec<String> = (0..1024).map(|number| format!("the image /srv/{number} is not active")).collect();
    let facts: Vec<&str> = facts.iter().map(String::as_str).collect();
    let locked = Cause {
        commands: (0..9).map(|_| RemedyCommand::qmp(Side::Source, "migrate_cancel", &[])).collect(),
        ..cause(DiagnosisCode::ImageLocked, Confidence::Likely, &facts, words)
    };
    causes.push(locked);
    let exports: Vec<String> = (0..1024).map(|number| format!("disk{number}")).collect();
    let source = SideReport { mirrors, migration: None, transferred: None, ..source() };
    let told = shown(&diagnosis(causes, Some(source), Some(SideReport { exports, ..destination() })));
    assert!(told.lines().count() < 100, "{told}");
    for words in [
        "4. mirror-starved (certain)\n",
        "1024. image-locked (likely)\n",
        "\n1019 more of mirror-starved: --json has them all\n",
        "1016 more facts",
        "1 more command\n",
        "mirror       disk1023 paused",
        "1016 more, 1000 of them ready: 148.8 GiB of 198.4 GiB",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let whole = told.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(whole.contains("disk6, disk7, and 1016 more"), "{told}");
    assert!(!told.contains("5. mirror-starved"), "{told}");
}

#[test]
fn a_transcript_whose_times_go_back_is_explained_and_said_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t");
    let line = |seconds: u64, number: u64| {
        let answer = format!(r#"{{"return":{{"status":"running"}},"id":"query-status#{number}"}}"#);
        format!(r#"{{"v":1,"t_us":{},"side":"source","dir":"receive","line":{answer}}}"#, seconds * 1_000_000)
    };
    for (seconds, said) in [([1, 2, 3], false), ([3600, 1, 2], true), ([1, u64::MAX / 1_000_000, 3], true)] {
        let lines: Vec<String> = seconds.into_iter().zip(0..).map(|(seconds, number)| line(seconds, number)).collect();
        std::fs::write(&file, lines.join("\n")).unwrap();
        let told = afterwards(std::slice::from_ref(&file)).unwrap();
        let has = told.unseen.iter().any(|words| words.contains("before that of an earlier one"));
        assert_eq!(has, said, "{seconds:?}: {told:?}");
    }
}
