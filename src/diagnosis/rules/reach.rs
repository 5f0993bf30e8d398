//! Processes that do not run and monitors that do not answer.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    look::YankLook,
    pair::{MonitorReach, PairLooks, SideLooks},
    remedy::RemedyCommand,
};
use crate::{codes::DiagnosisCode, progress::Side};
use serde_json::Value;

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    for (side, seen) in looks.sides() {
        causes.extend(held(side, seen));
        causes.extend(unreached(side, seen, looks));
    }
}

/// A process that something holds.
fn held(side: Side, seen: &SideLooks) -> Option<Cause> {
    let process = seen.process.as_ref()?;
    let held = process.held()?;
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
                None => Cause::new(DiagnosisCode::NoOutOfBand, Confidence::Certain, evidence).remedy(
                    "cut the connection that QEMU waits for from outside: end or thaw its peer, or, as root and for TCP, \
                     ss -K with the peer's address",
                    "the mirror or the migration over that connection fails, and has to be begun again",
                ),
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
        MonitorReach::NoGreeting { words } => {
            let mut evidence = vec![format!("the {side}: {words}")];
            lives(&mut evidence);
            let cause = Cause::new(DiagnosisCode::MonitorUnresponsive, Confidence::Likely, evidence);
            Some(cause.remedy(
                "end the client that holds this monitor, or give QEMU a further -qmp; where no client does, the main loop \
                 hangs: look at the process by its pid",
                "a manager that loses its monitor may take the guest for dead",
            ))
        }
        MonitorReach::Gone { words } => {
            let code = match side {
                Side::Source => DiagnosisCode::SourceGone,
                Side::Destination => DiagnosisCode::DestinationGone,
            };
            let cause = Cause::new(code, Confidence::Certain, vec![words.clone()]);
            let other = match side {
                Side::Source => looks.destination.as_ref(),
                Side::Destination => looks.source.as_ref(),
            };
            let has_guest = other.is_some_and(SideLooks::runs);
            Some(match (side, has_guest) {
                (_, true) => cause.remedy("nothing for the guest: it runs on the other side", "none"),
                (Side::Destination, false) => {
                    let cause = cause.remedy(
                        "let the source cancel; the guest goes on there",
                        "none while the destination has not been told to run the guest",
                    );
                    match looks.source.as_ref().and_then(SideLooks::status) {
                        Some(status) if !status.is_over() && !status.is_postcopy() => {
                            cause.command(RemedyCommand::cancel()).fixable()
                        }
                        _ => cause,
                    }
                }
                (Side::Source, false) => cause.remedy(
                    "find out whether the destination has all of the guest (its query-migrate says completed) before \
                     anything is started",
                    "a destination that is started without the whole state loses what the guest did",
                ),
            })
        }
    }
}

/// The remedy for a main loop that waits for a connection: that connection is cut. Only a client that negotiated
/// out-of-band execution before the main loop hung can send this, and the connection of the diagnosis closes.
fn yank(side: Side, seen: &SideLooks, cause: Cause) -> Cause {
    let instances: Vec<Value> = seen.yanks.iter().filter_map(YankLook::instance).collect();
    let risk =
        "the mirrors and the migration over these connections fail, and have to be begun again; the guest goes on";
    if instances.is_empty() {
        return cause.remedy("QEMU has no connection that could be cut: look at the process by its pid", "none");
    }
    cause
        .remedy("have a program that is still connected with out-of-band execution cut the connections that the main loop waits for", risk)
        .command(RemedyCommand::yank(side, &instances))
}

/// What the threads of the process wait for.
fn waits(seen: &SideLooks) -> Option<String> {
    let main = seen.process.as_ref()?.threads.first()?;
    let function = main.waits_in.as_ref()?;
    Some(format!("its main thread waits in {function}"))
}
