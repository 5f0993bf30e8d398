//! What the kernel tells of a process, where QEMU itself says nothing, and of the processes that it is connected with.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    pair::{MonitorReach, PairLooks, SideLooks},
    process::{ConnectionLook, ConnectionState, ProcessLook, ProgramLook, SocketPeer, TcpTimer, ThreadLook},
};
use crate::{codes::DiagnosisCode, progress::Side};

/// The kernel's functions, and the calls to it, in which a thread waits for bytes of a connection.
const READS: [&str; 5] = ["unix_stream_read_generic", "wait_woken", "sk_wait_data", "recvmsg", "recvfrom"];

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    let pids: Vec<u32> = looks.sides().filter_map(|(_, seen)| Some(seen.process.as_ref()?.pid)).collect();
    for (side, seen) in looks.sides() {
        let Some(process) = &seen.process else { continue };
        causes.extend(held_peer(side, process, &pids));
        causes.extend(waits_for_storage(side, seen, process));
        let stuck = stuck_connection(side, seen, process).filter(|_| seen.reach != MonitorReach::Answers);
        if stuck.is_some() {
            follow(side, DiagnosisCode::LinkDead, causes);
        }
        causes.extend(stuck);
        let shakes = handshake(side, seen, process);
        if shakes.is_some() {
            follow(side, DiagnosisCode::Tls, causes);
        }
        causes.extend(shakes);
    }
}

/// Takes down the confidence of a monitor of this side that does not answer: QEMU's main loop waits for a connection,
/// or for the thread that writes to it.
fn follow(side: Side, from: DiagnosisCode, causes: &mut [Cause]) {
    let monitors = [DiagnosisCode::MonitorBlocked, DiagnosisCode::MonitorUnresponsive, DiagnosisCode::NoOutOfBand];
    let of_side = |cause: &Cause| cause.evidence.iter().any(|words| words.starts_with(&format!("the {side}")));
    for cause in causes.iter_mut().filter(|cause| monitors.contains(&cause.code) && of_side(cause)) {
        cause.confidence = Confidence::Possible;
        cause.evidence.push(format!("follows from {from}"));
    }
}

/// A process at the other end of a connection that does not run. A side that was looked at has a cause of its own.
fn held_peer(side: Side, process: &ProcessLook, pids: &[u32]) -> Option<Cause> {
    let tcp = process.connections.iter().map(|row| (&row.peer, row.unsent, row.remote.clone()));
    let unix = process.unix_connections.iter().map(|row| (&row.peer, row.unsent, row.path.clone().unwrap_or_default()));
    let held = tcp.chain(unix).find_map(|(peer, unsent, to)| match peer {
        SocketPeer::Process { program, held: Some(held) }
            if is_wanted(program, unsent) && !pids.contains(&program.pid) =>
        {
            Some((program, *held, unsent, to))
        }
        _ => None,
    });
    let (program, held, unsent, to) = held?;
    // a console or another client may stand still as well, without any harm to a migration
    let confidence = match (is_emulator(program), unsent > 0) {
        (true, true) => Confidence::Certain,
        (true, false) => Confidence::Likely,
        (false, _) => Confidence::Possible,
    };
    let evidence = vec![
        format!("the process at the other end of the {side}'s connection to {to}, {program}, is {held}"),
        format!("{unsent} bytes wait in that connection to be read"),
    ];
    Some(Cause::new(DiagnosisCode::ProcessStopped, confidence, evidence).remedy(
        format!("have it run again: kill -CONT {}, where a signal has stopped it", program.pid),
        "whoever stopped the process may count on its standstill",
    ))
}

/// A peer that a migration can wait for: one that does not read what was sent to it, or another QEMU.
fn is_wanted(program: &ProgramLook, unsent: u64) -> bool {
    unsent > 0 || is_emulator(program)
}

/// Whether a program is a QEMU, or one of its servers of images.
fn is_emulator(program: &ProgramLook) -> bool {
    program.program.starts_with("qemu")
}

/// A main thread that storage holds: in uninterruptible sleep at both looks, and not on a CPU in between.
fn waits_for_storage(side: Side, seen: &SideLooks, process: &ProcessLook) -> Option<Cause> {
    let (before, _) = seen.earlier.as_ref()?;
    let (first, last) = before.threads.first().zip(process.threads.first())?;
    if first.id != last.id || (first.state, last.state) != ('D', 'D') || first.ticks != last.ticks {
        return None;
    }
    let place = last.waits_in.as_ref().map(|place| format!(", in {place}")).unwrap_or_default();
    let evidence = vec![format!(
        "the main thread of the {side}'s process {} slept uninterruptibly (state D) at both looks{place}, without any CPU time",
        process.pid
    )];
    Some(Cause::new(DiagnosisCode::ProcessStopped, Confidence::Likely, evidence).remedy(
        "mend the storage that the process waits for, such as an NFS server that does not answer; the kernel's log names it",
        "none",
    ))
}

/// A main loop that reads from a connection, where otherwise it polls all of them: so QEMU shakes hands for TLS, on
/// 7.2, 10.0 and 11.1 and at both ends, and waits in it for as long as the other side says nothing.
fn handshake(side: Side, seen: &SideLooks, process: &ProcessLook) -> Option<Cause> {
    let (before, span) = seen.earlier.as_ref()?;
    let (first, last) = before.threads.first().zip(process.threads.first())?;
    let reads = |thread: &ThreadLook| thread.waits_in.as_deref().is_some_and(|place| READS.contains(&place));
    let has_credentials = process.command.iter().any(|word| word.contains("tls-creds"));
    if !reads(first) || !reads(last) || first.ticks != last.ticks || !has_credentials {
        return None;
    }
    let evidence = vec![
        format!(
            "the {side}'s main loop has read from a connection for {:.1} s, in {}, and has served nothing else",
            span.as_secs_f64(),
            last.waits_in.as_deref().unwrap_or_default()
        ),
        "its command line has TLS credentials, and a handshake is read like that".to_owned(),
    ];
    Some(Cause::new(DiagnosisCode::Tls, Confidence::Likely, evidence).remedy(
        "end the connection at its other end, or, as root and for TCP, cut it with ss -K and the peer's address; then see \
         that both sides have credentials, and that what listens there speaks TLS",
        "the migration or the mirror over that connection fails, and has to be begun again",
    ))
}

/// A connection in which the same bytes wait at both looks.
fn stuck_connection(side: Side, seen: &SideLooks, process: &ProcessLook) -> Option<Cause> {
    let (before, span) = seen.earlier.as_ref()?;
    let same = |now: &&ConnectionLook| {
        let then = before.connections.iter().find(|then| then.inode == now.inode && now.inode != 0);
        now.state == ConnectionState::Established
            && now.unsent > 0
            && then.is_some_and(|then| then.unsent == now.unsent && then.timer == now.timer)
    };
    let seconds = span.as_secs_f64();
    let stuck: Vec<&ConnectionLook> = process.connections.iter().filter(same).collect();
    let row = stuck.iter().find(|row| match row.timer {
        TcpTimer::Acknowledgement => row.retransmits > 0,
        TcpTimer::Room => true,
        _ => false,
    })?;
    let mut evidence = vec![format!(
        "{} bytes have waited for {seconds:.1} s in the {side}'s connection to {}",
        row.unsent, row.remote
    )];
    let (why, remedy) = match row.timer {
        TcpTimer::Room => (
            "the peer has no room for them: its process does not read".to_owned(),
            "look at the process there: whether it is stopped, or waits for its storage",
        ),
        _ => (
            format!("nothing was acknowledged; they were sent again {} times", row.retransmits),
            "look at the link and at the host there; a connection that does not come back can be cut by ss -K, as root",
        ),
    };
    evidence.push(why);
    Some(Cause::new(DiagnosisCode::LinkDead, Confidence::Likely, evidence).remedy(
        remedy,
        "after a cut the migration or the mirror over that connection fails, and has to be begun again",
    ))
}

#[cfg(test)]
mod tests {
    use super::{super::causes, *};
    use crate::diagnosis::process::UnixConnectionLook;
    use std::time::Duration;

    fn row(unsent: u64, timer: TcpTimer, retransmits: u64, peer: SocketPeer) -> ConnectionLook {
        let remote = "10.0.0.2:4444".to_owned();
        let state = ConnectionState::Established;
        ConnectionLook { remote, state, unsent, timer, retransmits, inode: 7, peer, ..ConnectionLook::default() }
    }

    fn codes(before: ProcessLook, now: ProcessLook) -> Vec<(DiagnosisCode, Confidence)> {
        let mut side = SideLooks::new("process 7".to_owned(), MonitorReach::NotAsked);
        (side.earlier, side.process) = (Some((before, Duration::from_secs(3))), Some(now));
        let found = causes(&PairLooks { source: Some(side), destination: None });
        found.iter().map(|cause| (cause.code, cause.confidence)).collect()
    }

    fn process(state: char, ticks: u64, rows: Vec<ConnectionLook>) -> ProcessLook {
        let main = ThreadLook { id: 7, name: "qemu".to_owned(), state, ticks, waits_in: None };
        ProcessLook { pid: 7, state, threads: vec![main], connections: rows, ..ProcessLook::default() }
    }

    fn qemu(held: Option<&'static str>) -> SocketPeer {
        SocketPeer::Process { program: ProgramLook { pid: 8, program: "qemu-system-x86".to_owned() }, held }
    }

    #[test]
    fn a_peer_that_does_not_run_is_named_whatever_the_connection() {
        let stopped = || qemu(Some("stopped by a signal (state T)"));
        let tcp = |unsent, peer| process('S', 1, vec![row(unsent, TcpTimer::Off, 0, peer)]);
        let expected = |confidence| vec![(DiagnosisCode::ProcessStopped, confidence)];
        assert_eq!(codes(tcp(9, stopped()), tcp(9, stopped())), expected(Confidence::Certain));
        assert_eq!(codes(tcp(0, stopped()), tcp(0, stopped())), expected(Confidence::Likely));
        assert_eq!(codes(tcp(9, qemu(None)), tcp(9, qemu(None))), []);
        let unix = || ProcessLook {
            unix_connections: vec![UnixConnectionLook { unsent: 9, peer: stopped(), ..UnixConnectionLook::default() }],
            ..process('S', 1, Vec::new())
        };
        assert_eq!(codes(unix(), unix()), expected(Confidence::Certain));
    }

    #[test]
    fn bytes_that_wait_at_both_looks_are_told_from_those_that_move() {
        let with =
            |unsent, timer, retransmits| process('S', 1, vec![row(unsent, timer, retransmits, SocketPeer::Elsewhere)]);
        let dead = [(DiagnosisCode::LinkDead, Confidence::Likely)];
        assert_eq!(codes(with(9, TcpTimer::Room, 0), with(9, TcpTimer::Room, 0)), dead);
        assert_eq!(codes(with(9, TcpTimer::Acknowledgement, 1), with(9, TcpTimer::Acknowledgement, 3)), dead);
        // a queue that is sent, and one that happens to be as long at both looks
        assert_eq!(codes(with(9, TcpTimer::Room, 0), with(8, TcpTimer::Room, 0)), []);
        assert_eq!(codes(with(9, TcpTimer::Acknowledgement, 0), with(9, TcpTimer::Acknowledgement, 0)), []);
    }

    #[test]
    fn a_monitor_that_is_silent_beside_a_dead_link_follows_from_that() {
        let with = || process('S', 1, vec![row(9, TcpTimer::Room, 0, SocketPeer::Elsewhere)]);
        let reach = MonitorReach::Withheld { words: "libvirt waits".to_owned() };
        let mut side = SideLooks::new("virsh:vm".to_owned(), reach);
        (side.earlier, side.process) = (Some((with(), Duration::from_secs(3))), Some(with()));
        let found = causes(&PairLooks { source: Some(side), destination: None });
        let found: Vec<_> = found.iter().map(|cause| (cause.code, cause.confidence)).collect();
        let expected =
            [(DiagnosisCode::LinkDead, Confidence::Likely), (DiagnosisCode::MonitorUnresponsive, Confidence::Possible)];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_handshake_that_holds_the_main_loop_comes_before_its_silence() {
        let with = |place: &str, ticks, words: &[&str]| {
            let mut process = process('S', ticks, Vec::new());
            process.threads[0].waits_in = Some(place.to_owned());
            process.command = words.iter().map(|word| (*word).to_owned()).collect();
            process
        };
        let credentials = ["qemu", "-object", "tls-creds-x509,id=tls0"];
        let found = |before: ProcessLook, now| {
            let mut side = SideLooks::new("s".to_owned(), MonitorReach::Greets { words: "no answer".to_owned() });
            (side.earlier, side.process) = (Some((before, Duration::from_secs(3))), Some(now));
            let found = causes(&PairLooks { source: Some(side), destination: None });
            found.iter().map(|cause| (cause.code, cause.confidence)).collect::<Vec<_>>()
        };
        let reads = || with("wait_woken", 5, &credentials);
        let expected =
            [(DiagnosisCode::Tls, Confidence::Likely), (DiagnosisCode::MonitorBlocked, Confidence::Possible)];
        assert_eq!(found(reads(), reads()), expected);
        let blocked = [(DiagnosisCode::MonitorBlocked, Confidence::Likely)];
        for (before, now) in [
            (reads(), with("wait_woken", 6, &credentials)),
            (with("poll_schedule_timeout", 5, &credentials), reads()),
            (with("wait_woken", 5, &["qemu"]), with("wait_woken", 5, &["qemu"])),
        ] {
            assert_eq!(found(before, now), blocked);
        }
    }

    #[test]
    fn a_main_thread_that_storage_holds_is_told_from_one_that_works() {
        let stopped = [(DiagnosisCode::ProcessStopped, Confidence::Likely)];
        assert_eq!(codes(process('D', 5, Vec::new()), process('D', 5, Vec::new())), stopped);
        assert_eq!(codes(process('D', 5, Vec::new()), process('D', 6, Vec::new())), []);
        assert_eq!(codes(process('S', 5, Vec::new()), process('D', 5, Vec::new())), []);
    }
}
