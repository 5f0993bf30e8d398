//! Processes that do not run and monitors that do not answer.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    look::YankLook,
    pair::{Met, MonitorReach, PairLooks, SideLooks},
    process::MonitorHolders,
    remedy::RemedyCommand,
};
use crate::{codes::DiagnosisCode, progress::Side, qemu::reply::MigrationStatus};
use serde_json::Value;

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    for (side, seen) in looks.sides() {
        causes.extend(held(side, seen, looks));
        causes.extend(unreached(side, seen, looks));
    }
}

/// A process that something holds.
fn held(side: Side, seen: &SideLooks, looks: &PairLooks) -> Option<Cause> {
    let process = seen.process.as_ref()?;
    let held = process.held()?;
    // a source that is done has ended, and its parent has not waited for it yet
    if process.state == 'Z' && side == Side::Source && looks.has_moved() {
        return None;
    }
    let evidence = vec![format!("the {side}'s process {} is {held}", process.pid)];
    let cause = Cause::new(DiagnosisCode::ProcessStopped, Confidence::Certain, evidence);
    Some(match process.state {
        'Z' => cause.remedy("have the parent of the process wait for it; the QEMU is dead", "none"),
        _ if process.frozen => cause.remedy(
            "write 0 to cgroup.freeze of the process's control group",
            "whoever froze the group may count on its standstill",
        ),
        _ => cause.remedy(
            format!("kill -CONT {}", process.pid),
            "whoever stopped the process, a debugger or an administrator, may count on its standstill",
        ),
    })
}

/// A monitor that does not answer.
fn unreached(side: Side, seen: &SideLooks, looks: &PairLooks) -> Option<Cause> {
    let pid = seen.process.as_ref().map(|process| process.pid);
    let lives = |evidence: &mut Vec<String>| {
        if let Some(pid) = pid {
            evidence.push(format!("its process {pid} lives"));
        }
    };
    match &seen.reach {
        MonitorReach::Answers | MonitorReach::NotAsked | MonitorReach::NoWay { .. } => None,
        MonitorReach::Withheld { words } => {
            let mut evidence = vec![format!("the {side}: {words}")];
            lives(&mut evidence);
            evidence.extend(waits(seen));
            let cause = Cause::new(DiagnosisCode::MonitorUnresponsive, Confidence::Likely, evidence);
            Some(cause.remedy(
                "look at the process by its pid, whether it is stopped and what its threads wait for; where QEMU is well, end \
                 libvirt's call that holds the domain, or wait for it",
                "a call of libvirt's that is ended may leave its work half done",
            ))
        }
        MonitorReach::Hangs { waited, oob } => {
            let mut evidence = vec![format!("the {side} left query-status unanswered for {waited:?}")];
            lives(&mut evidence);
            evidence.extend(waits(seen));
            Some(match oob {
                Some(true) => {
                    evidence.push("the monitor answers out of band".to_owned());
                    yank(side, seen, Cause::new(DiagnosisCode::MonitorBlocked, Confidence::Certain, evidence))
                }
                None => {
                    evidence.push(match seen.lacks_oob {
                        true => "its greeting offers no out-of-band execution: this build has none".to_owned(),
                        false => "nothing is passed on out of band".to_owned(),
                    });
                    Cause::new(DiagnosisCode::NoOutOfBand, Confidence::Certain, evidence).remedy(
                    "cut the connection that QEMU waits for from outside: end or thaw its peer, or, as root and for TCP, \
                     ss -K with the peer's address",
                    "the mirror or the migration over that connection fails, and has to be begun again",
                    )
                }
                Some(false) => {
                    evidence.push("the monitor does not answer out of band either".to_owned());
                    Cause::new(DiagnosisCode::MonitorUnresponsive, Confidence::Likely, evidence).remedy(
                        "look at the process by its pid: whether it is stopped, and what its threads wait for",
                        "none",
                    )
                }
            })
        }
        MonitorReach::Greets { words } => {
            let mut evidence = vec![format!("the {side}: {words}")];
            lives(&mut evidence);
            evidence.extend(waits(seen));
            let cause = Cause::new(DiagnosisCode::MonitorBlocked, Confidence::Likely, evidence);
            Some(cause.remedy(
                "have a program that was connected before with out-of-band execution yank the connection that the main \
                 loop waits for; else thaw or end the process at its other end, or, as root and for TCP, cut it with ss -K \
                 and the peer's address",
                "the mirror or the migration over that connection fails, and has to be begun again; the guest goes on",
            ))
        }
        MonitorReach::NoGreeting { words, holders } => {
            let mut evidence = vec![format!("the {side}: {words}")];
            lives(&mut evidence);
            Some(silent(evidence, holders, waits(seen)))
        }
        MonitorReach::Gone { words } => gone(side, seen, words, looks),
    }
}

/// A side that nobody answers for. What was never seen may be somewhere else.
fn gone(side: Side, seen: &SideLooks, words: &str, looks: &PairLooks) -> Option<Cause> {
    let (code, other) = match side {
        Side::Source => (DiagnosisCode::SourceGone, looks.destination.as_ref()),
        Side::Destination => (DiagnosisCode::DestinationGone, looks.source.as_ref()),
    };
    let is_elsewhere = seen.met != Met::Seen && other.is_some_and(SideLooks::flows);
    if is_elsewhere || side == Side::Source && looks.has_moved() {
        return None;
    }
    let mut evidence = vec![words.to_owned()];
    let confidence = match seen.met {
        Met::Seen => Confidence::Certain,
        Met::LeftSocket => Confidence::Likely,
        Met::Never => {
            evidence.push("nothing was seen of it: a wrong address looks the same".to_owned());
            Confidence::Possible
        }
    };
    let cause = Cause::new(code, confidence, evidence);
    let has_guest = other.is_some_and(SideLooks::runs);
    let is_begun = other.is_some_and(|other| {
        other.mirrors().next().is_some() || other.status().is_some_and(|status| *status != MigrationStatus::None)
    });
    Some(match (side, has_guest) {
        (Side::Destination, true) if is_begun => cause.remedy(
            "the guest runs on the source: end there what is left of the migration (migrate_cancel, and \
             block-job-cancel for its mirrors), and begin again with a new destination",
            "what was copied has to be sent again",
        ),
        (_, true) => cause.remedy("nothing for the guest: it runs on the other side", "none"),
        (Side::Destination, false) => {
            let cause = cause.remedy(
                "let the source cancel; the guest goes on there",
                "none while the destination has not been told to run the guest",
            );
            match looks.source.as_ref().and_then(SideLooks::status) {
                Some(status) if !status.is_over() && !status.is_postcopy() && seen.met != Met::Never => {
                    cause.command(RemedyCommand::cancel()).fixable()
                }
                _ => cause,
            }
        }
        (Side::Source, false) => cause.remedy(
            "find out whether the destination has all of the guest (its query-migrate says completed) before anything is \
             started",
            "a destination that is started without the whole state loses what the guest did",
        ),
    })
}

/// A monitor that does not greet: whoever holds it is named, and where nobody does, the main loop hangs.
fn silent(mut evidence: Vec<String>, holders: &MonitorHolders, waits: Option<String>) -> Cause {
    const MANAGER: &str = "a manager that loses its monitor may take the guest for dead";
    let code = DiagnosisCode::MonitorUnresponsive;
    let names: Vec<String> = holders.programs.iter().map(ToString::to_string).collect();
    if !names.is_empty() {
        let names = names.join(" and ");
        evidence.push(format!("its monitor is held by {names}, and serves one client at a time"));
        let way = holders.programs.iter().find_map(|holder| way_through(&holder.program));
        let remedy = way.map_or_else(
            || format!("have {names} let go of the monitor, or give QEMU a further -qmp; meanwhile look at the process by its pid"),
            |way| format!("{names} holds the monitor: {way}"),
        );
        return Cause::new(code, Confidence::Certain, evidence).remedy(remedy, MANAGER);
    }
    if !holders.elsewhere.is_empty() {
        let names = holders.elsewhere.join(" and ");
        evidence.push(format!("its monitor is held by a client at {names}"));
        let remedy = format!("have the client at {names} let go of the monitor, or give QEMU a further -qmp");
        return Cause::new(code, Confidence::Certain, evidence).remedy(remedy, MANAGER);
    }
    match holders.accepted {
        // whoever has accepted a connection and says nothing may be no monitor at all
        Some(0) if holders.own => {
            evidence.push("the connection was accepted, and a QMP monitor greets at once".to_owned());
            evidence.push(
                "it is no QMP monitor, or this program has it already by another connection, or the main loop hangs \
                 since: the process tells which"
                    .to_owned(),
            );
            evidence.extend(waits);
            Cause::new(code, Confidence::Possible, evidence).remedy(
                "see that the address is that of a -qmp, and not that of another socket; then look at the process by its pid",
                "none",
            )
        }
        Some(0) => {
            evidence.push("QEMU has accepted no client at this monitor: its main loop hangs".to_owned());
            evidence.extend(waits);
            Cause::new(code, Confidence::Certain, evidence).remedy(
                "look at the process by its pid, whether it is stopped, what its threads wait in, and which connections stand still",
                "none",
            )
        }
        accepted => {
            evidence.extend(accepted.filter(|_| holders.hidden).map(|_| {
                "the client that holds this monitor is another user's process: root is told which".to_owned()
            }));
            Cause::new(code, Confidence::Likely, evidence).remedy(
                "end the client that holds this monitor, or give QEMU a further -qmp; where no client does, the main loop \
                 hangs: look at the process by its pid",
                MANAGER,
            )
        }
    }
}

/// The way to look at a guest through a program that holds its monitor.
fn way_through(program: &str) -> Option<&'static str> {
    const WAYS: [(&[&str], &str); 3] = [
        (&["libvirtd", "virtqemud", "virt-qemu-run"], "look through libvirt, with virsh:DOMAIN as the address"),
        (
            &["qm", "pvedaemon", "pveproxy", "pvestatd", "pvescheduler"],
            "it holds it for the time of a call: look again",
        ),
        (&["incusd", "lxd"], "it keeps it for as long as the guest runs: look at the process by its pid"),
    ];
    let names =
        |of: &&str| program == *of || program.strip_prefix(*of).is_some_and(|rest| rest.starts_with([' ', '-']));
    WAYS.iter().find(|(programs, _)| programs.iter().any(names)).map(|(_, way)| *way)
}

/// The remedy for a main loop that waits for a connection: that connection is cut. Only a client that negotiated
/// out-of-band execution before the main loop hung can send this, and the connection of the diagnosis closes. A disk of
/// the guest's, whose writes fail once its connection is cut, is never among what is named.
fn yank(side: Side, seen: &SideLooks, mut cause: Cause) -> Cause {
    let of_mirrors: Vec<Value> = seen.mirrors().flat_map(|job| seen.yanks_of_mirror(&job.device)).collect();
    let migration = seen.yanks.iter().find(|yank| **yank == YankLook::Migration).and_then(YankLook::instance);
    let cut: Vec<Value> = migration.into_iter().chain(of_mirrors).collect();
    let left = seen.yanks.iter().filter_map(|yank| match yank {
        YankLook::BlockNode { node_name } => {
            Some(node_name.as_str()).filter(|_| yank.instance().is_some_and(|yank| !cut.contains(&yank)))
        }
        YankLook::Migration | YankLook::Other => None,
    });
    let left: Vec<&str> = left.collect();
    if !left.is_empty() {
        cause.evidence.push(format!(
            "query-yank has connections of disks, too, which are a mirror's or the guest's own: {}",
            left.join(", ")
        ));
    }
    match (cut.is_empty(), left.is_empty()) {
        (true, true) => {
            cause.remedy("QEMU has no connection that could be cut: look at the process by its pid", "none")
        }
        (true, false) => cause.remedy(
            "have a program that is still connected with out-of-band execution cut (yank) the connection of the mirror \
             that the main loop waits for, once its node is known for sure",
            "a disk of the guest's whose connection is cut is lost to the guest: its writes fail from then on",
        ),
        (false, _) => cause
            .remedy(
                "have a program that is still connected with out-of-band execution cut the connections that the main loop \
                 waits for",
                "the mirrors and the migration over these connections fail, and have to be begun again; the guest goes on",
            )
            .command(RemedyCommand::yank(side, &cut)),
    }
}

/// What the threads of the process wait for.
fn waits(seen: &SideLooks) -> Option<String> {
    let main = seen.process.as_ref()?.threads.first()?;
    let function = main.waits_in.as_ref()?;
    Some(format!("its main thread waits in {function}"))
}
