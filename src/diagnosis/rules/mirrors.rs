//! Mirrors that do not get done, and what earlier tries have left.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    look::JobLook,
    pair::{AT_LIMIT, PairLooks, SideLooks},
    process::ConnectionState,
    remedy::RemedyCommand,
};
use crate::{
    codes::DiagnosisCode,
    progress::Side,
    qemu::reply::{MigrationStatus, RunState},
    quantity::{Bytes, Rate},
};
use serde_json::json;

/// So many errors a second are a mirror that tries without end.
const FLOOD: f64 = 20.0;
/// QEMU's error of a job that was cancelled.
const CANCELLED: &str = "Operation canceled";
/// The part of what a mirror was behind, and of what it copies, from which on it counts as not gaining.
const GAIN: f64 = 0.98;
/// The bytes of the few granules that two looks differ by, with a granule of 64 KiB as QEMU chooses it.
const GRANULES: f64 = 3.0 * 65536.0;
/// The part of what a mirror copies that its guest dirties, below which the mirror gains, however slow it is.
const NOT_BY_CHANCE: f64 = 0.5;

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    if let Some(source) = &looks.source {
        causes.extend(source.mirrors().filter_map(|job| mirror(source, job)));
        causes.extend(source.mirrors().filter_map(|job| flood(source, job)));
        causes.extend(not_ready(source));
    }
    for (side, seen) in looks.sides() {
        causes.extend(concluded(side, seen));
    }
    causes.extend(exports(looks));
}

/// What is wrong with one mirror.
fn mirror(source: &SideLooks, job: &JobLook) -> Option<Cause> {
    let first = source.at_first(&job.device)?;
    let seconds = source.span().as_secs_f64();
    if job.is_paused() && first.is_paused() {
        return Some(paused(source, job));
    }
    if !source.lasted() || job.status != "running" && job.status != "ready" {
        return None;
    }
    let rate = job.offset.saturating_sub(first.offset) as f64 / seconds;
    let behind = source.remaining(&job.device);
    if job.offset == first.offset && behind.iter().all(|&left| left > 0) {
        return stalled(source, job);
    }
    // Between two looks a mirror that follows its guest can be behind; one that never comes near is starved. A mirror
    // that is ready is starved by the same, for RAM cannot end then.
    let (before, after) = behind.split_at(behind.len() / 2);
    let (before, after) = (before.iter().min().copied()?, after.iter().min().copied()?);
    let growth = job.len.saturating_sub(first.len) as f64 / seconds;
    // a mirror that copies few granules in all seems to gain one by the moment of the look
    let is_less = |now: f64, then: f64| now + GRANULES < then * GAIN;
    let gains = is_less(after as f64, before as f64)
        || is_less(growth * seconds, rate * seconds)
        || growth < rate * NOT_BY_CHANCE;
    if gains || after as f64 <= rate {
        return None;
    }
    let mut evidence = vec![format!(
        "the mirror {} copies {} while its guest dirties {}: {} were left {seconds:.1} s ago and {} are left now",
        job.device,
        Rate(rate as u64),
        Rate(growth as u64),
        Bytes(first.remaining()),
        Bytes(job.remaining())
    )];
    let limited = job.speed > 0 && rate >= job.speed as f64 * AT_LIMIT;
    if limited {
        evidence.push(format!("the mirror's speed is limited to {}", Rate(job.speed)));
    }
    let cause = Cause::new(DiagnosisCode::MirrorStarved, Confidence::Likely, evidence);
    let risk = "the guest's own traffic gets less of the link";
    Some(match limited {
        true => cause
            .remedy("take the limit of the mirror's speed away", risk)
            .command(RemedyCommand::new(
                Side::Source,
                "block-job-set-speed",
                json!({ "device": job.device, "speed": 0 }),
            ))
            .fixable(),
        false => cause.remedy(
            "let the guest's writes wait for the mirror (copy-mode write-blocking, block-job-change from 8.2 on), give the \
             link more, or have the guest write less",
            "the guest's writes take longer while they wait",
        ),
    })
}

fn paused(source: &SideLooks, job: &JobLook) -> Cause {
    let mut evidence = vec![format!(
        "the mirror {} was {} over {:.1} s: {} of {} copied",
        job.device,
        job.status,
        source.span().as_secs_f64(),
        Bytes(job.offset),
        Bytes(job.len)
    )];
    let resume = RemedyCommand::new(Side::Source, "block-job-resume", json!({ "device": job.device }));
    let again = "a job that meets the same error pauses again";
    let (why, remedy, risk) = match job.io_status.as_str() {
        "nospace" => {
            ("its io-status is nospace", "make room where the destination's image is, and resume the job", again)
        }
        "failed" => ("its io-status is failed", "mend the storage of the destination, and resume the job", again),
        _ => {
            let why = "no error is named: a client of QEMU has paused it";
            (why, "resume the job", "whoever paused it may count on that")
        }
    };
    evidence.push(why.to_owned());
    let cause = Cause::new(DiagnosisCode::MirrorPaused, Confidence::Certain, evidence);
    cause.remedy(remedy, risk).command(resume).fixable()
}

/// A mirror that copies nothing, though it has work.
fn stalled(source: &SideLooks, job: &JobLook) -> Option<Cause> {
    let seconds = source.span().as_secs_f64();
    let mut evidence = vec![format!(
        "the mirror {} has copied nothing for {seconds:.1} s: {} of {} copied, its status is {}",
        job.device,
        Bytes(job.offset),
        Bytes(job.len),
        job.status
    )];
    let stuck = source.unacknowledged_of_mirror(&job.device);
    // the guest's own disks and the other mirrors have connections of the same kind
    let yanks = source.yanks_of_mirror(&job.device);
    let risk = "the mirror fails, and its disk has to be copied again; the guest goes on";
    let cause = if stuck.is_empty() && is_cut(source, job) {
        evidence.push("its connection to the NBD server is not there any more".to_owned());
        let cause = Cause::new(DiagnosisCode::LinkDead, Confidence::Likely, evidence);
        let remedy = "look at the destination, whether its QEMU lives; the mirror fails by itself once it writes again";
        return Some(cause.remedy(remedy, "the disk has to be copied again"));
    } else if stuck.is_empty() {
        let queues = match source.of_mirror(&job.device, ConnectionState::Established).first() {
            None => "the queues of its connection were not seen",
            Some(_) => "its connection is up, and nothing waits in its queues",
        };
        evidence.push(queues.to_owned());
        // a limit explains a standstill for as long as the last burst takes at that speed
        if job.untold(source.span()).is_some() {
            return None;
        }
        evidence.push("a destination that is slow to write looks the same".to_owned());
        let cause = Cause::new(DiagnosisCode::MirrorStalledIdle, Confidence::Likely, evidence);
        cause.remedy(
            "look at the destination's process and its storage; where both are well, cut the connection and begin again, \
             without TLS for NBD where that is on",
            risk,
        )
    } else {
        evidence.extend(stuck);
        let clients = source.nodes.iter().filter(|node| node.drv == "nbd").count();
        let is_told = clients == 1 || !source.mirror_nodes(&job.device).is_empty();
        if !is_told {
            evidence.push(
                "whether this connection is the mirror's or that of a disk of the guest's was not told".to_owned(),
            );
        }
        let confidence = if is_told { Confidence::Certain } else { Confidence::Likely };
        let cause = Cause::new(DiagnosisCode::LinkDead, confidence, evidence);
        cause.remedy("cut the connection of the mirror, where the link does not come back", risk)
    };
    if yanks.is_empty() {
        return Some(cause);
    }
    Some(cause.command(RemedyCommand::yank(Side::Source, &yanks)).fixable())
}

/// Whether a mirror to an NBD server over TCP has no connection any more. All of a process's connections are seen where
/// its descriptors are.
fn is_cut(source: &SideLooks, job: &JobLook) -> bool {
    let own = source.mirror_nodes(&job.device);
    let over_tcp = source.nodes.iter().any(|node| own.contains(&node.node_name) && node.is_tcp_client());
    let is_seen = source.process.as_ref().is_some_and(|process| process.descriptors.is_some());
    is_seen && over_tcp && source.of_mirror(&job.device, ConnectionState::Established).is_empty()
}

/// A mirror that reports one error after the other.
fn flood(source: &SideLooks, job: &JobLook) -> Option<Cause> {
    let errors = source.job_errors.of(&job.device);
    let seconds = source.span().as_secs_f64().max(0.1);
    if (errors as f64) / seconds < FLOOD {
        return None;
    }
    let evidence = vec![format!("{errors} events BLOCK_JOB_ERROR of the mirror {} came in {seconds:.1} s", job.device)];
    let cause = Cause::new(DiagnosisCode::MirrorFailed, Confidence::Certain, evidence);
    let cause = cause.remedy(
        "cancel the mirror by force: its policy is to ignore errors, and its target is dead",
        "the disk has to be copied again; the guest goes on",
    );
    let arguments = json!({ "device": job.device, "force": true });
    Some(cause.command(RemedyCommand::new(Side::Source, "block-job-cancel", arguments)).fixable())
}

/// RAM that is done, and waits for mirrors.
fn not_ready(source: &SideLooks) -> Option<Cause> {
    if !source.kept(&MigrationStatus::PreSwitchover) {
        return None;
    }
    let open: Vec<String> = source
        .mirrors()
        .filter(|job| !job.ready)
        .map(|job| format!("the mirror {} has {} left", job.device, Bytes(job.remaining())))
        .collect();
    if open.is_empty() {
        return None;
    }
    let cause = Cause::new(DiagnosisCode::MirrorNotReady, Confidence::Certain, open);
    Some(cause.remedy(
        "wait for the mirrors, if the guest may stand still for so long; else migrate_cancel",
        "the guest stands still meanwhile",
    ))
}

/// Jobs that are over and that nobody has dismissed.
fn concluded(side: Side, seen: &SideLooks) -> Vec<Cause> {
    let last = seen.last().into_iter();
    let stays = |id: &str| seen.looks.iter().all(|look| look.concluded.iter().any(|job| job.id == id));
    last.flat_map(|look| &look.concluded)
        .filter(|job| stays(&job.id) && seen.lasted())
        .map(|job| {
            let mut evidence =
                vec![format!("the {side}'s query-jobs: the job {} ({}) has concluded", job.id, job.kind)];
            evidence.extend(job.error.iter().map(|error| format!("with the error: {error}")));
            if job.kind != "mirror" {
                // the owner of another job may yet read its end
                return Cause::new(DiagnosisCode::LeftoverJob, Confidence::Possible, evidence).remedy(
                    format!("have the program that began it dismiss it; where that is gone, job-dismiss of {}", job.id),
                    "a program that is about to read the end of its job does not find it",
                );
            }
            let code = match (&job.error, job.kind.as_str()) {
                (Some(error), "mirror") if error != CANCELLED => DiagnosisCode::MirrorFailed,
                _ => DiagnosisCode::LeftoverJob,
            };
            Cause::new(code, Confidence::Certain, evidence)
                .remedy("dismiss the job, once its error is read", "none: the job is over")
                .command(RemedyCommand::new(side, "job-dismiss", json!({ "id": job.id })))
                .fixable()
        })
        .collect()
}

/// Writable exports that are left on a destination, after which the guest's disks cannot be activated.
fn exports(looks: &PairLooks) -> Option<Cause> {
    let (source, destination) = looks.source.as_ref().zip(looks.destination.as_ref())?;
    let kept: Vec<&str> = destination.last()?.exports.iter().map(|export| export.id.as_str()).collect();
    let over = source.mirrors().next().is_none()
        && [MigrationStatus::Completed, MigrationStatus::Device].iter().any(|status| source.kept(status));
    if kept.is_empty() || !over || !destination.stood() {
        return None;
    }
    let evidence = vec![
        format!("the destination still has the exports {}", kept.join(", ")),
        format!("the source has no mirror any more, and its migration is {}", source.status()?),
        format!("the destination is {}", destination.run().map_or("silent", RunState::as_str)),
    ];
    let cause = Cause::new(DiagnosisCode::ExportLeftOpen, Confidence::Certain, evidence);
    Some(
        cause
            .remedy(
                "stop the NBD server on the destination; its disks can be activated then",
                "none, where every mirror has concluded",
            )
            .command(RemedyCommand::new(Side::Destination, "nbd-server-stop", json!({})))
            .fixable(),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::causes, *};
    use crate::diagnosis::pair::MonitorReach;
    use crate::diagnosis::{
        Diagnosis,
        look::{MonitorLook, list},
        mirror_nodes,
        process::{ConnectionLook, ProcessLook},
    };
    use serde_json::Value;
    use std::time::Duration;

    /// A guest with a mirror that stands still, and with a disk of its own at another NBD server.
    fn stands_still(unsent: &[(u16, u64)]) -> SideLooks {
        let mut side = SideLooks::new("s".to_owned(), MonitorReach::Answers);
        let job = json!([{ "device": "m", "type": "mirror", "len": 100u64 << 20, "offset": 10u64 << 20, "status": "running" }]);
        side.looks = (0..7u64)
            .map(|number| MonitorLook {
                at: Duration::from_millis(500 * number),
                run: Some(RunState::Running),
                mirrors: list(&job),
                ..MonitorLook::default()
            })
            .collect();
        side.take(
            "query-named-block-nodes",
            &json!([
                { "node-name": "#block466", "drv": "nbd", "file": "nbd://10.0.0.2:4444/disk" },
                { "node-name": "#block209", "drv": "nbd", "file": "nbd://10.0.0.3:5555/own" },
            ]),
        );
        side.take(
            "query-yank",
            &json!([
                { "type": "block-node", "node-name": "#block209" }, { "type": "block-node", "node-name": "#block466" },
            ]),
        );
        side.take("x-debug-query-block-graph", &mirror_nodes::tests::recorded());
        let connections = unsent.iter().map(|&(remote_port, unsent)| ConnectionLook {
            remote: format!("10.0.0.2:{remote_port}"),
            remote_port,
            unsent,
            state: ConnectionState::Established,
            ..ConnectionLook::default()
        });
        side.process =
            Some(ProcessLook { pid: 7, state: 'S', connections: connections.collect(), ..ProcessLook::default() });
        side
    }

    fn found(source: SideLooks) -> Cause {
        causes(&PairLooks { source: Some(source), destination: None }).into_iter().next().expect("a cause")
    }

    #[test]
    fn a_disk_of_the_guests_own_is_never_cut_for_the_sake_of_a_mirror() {
        let cut = |cause: &Cause| serde_json::to_value(&cause.commands).expect("JSON");
        let yank = |name: &str| {
            json!([{ "side": "source", "qmp": { "exec-oob": "yank",
            "arguments": { "instances": [{ "type": "block-node", "node-name": name }] } } }])
        };
        // the connection of the mirror is full, that of the disk is full as well, or both are seen to be well
        for (unsent, code) in [
            (&[(4444, 9), (5555, 0)][..], DiagnosisCode::LinkDead),
            (&[(4444, 9), (5555, 9)], DiagnosisCode::LinkDead),
            (&[(4444, 0), (5555, 9)], DiagnosisCode::MirrorStalledIdle),
            (&[], DiagnosisCode::MirrorStalledIdle),
        ] {
            let cause = found(stands_still(unsent));
            assert_eq!((cause.code, cut(&cause)), (code, yank("#block466")), "{cause:#?}");
            assert!(cause.fixable && !cause.evidence.iter().any(|words| words.contains("5555")), "{cause:#?}");
        }
        // where QEMU does not tell whose the connections are, cutting is left to people
        let mut untold = stands_still(&[(4444, 9), (5555, 0)]);
        untold.take("x-debug-query-block-graph", &Value::Null);
        let cause = found(untold);
        assert_eq!((cause.code, cause.confidence, cause.fixable), (DiagnosisCode::LinkDead, Confidence::Likely, false));
        assert_eq!(cut(&cause), json!([]));
    }

    #[test]
    fn a_standstill_that_a_limit_explains_is_not_called_well() {
        let limited = |speed: u64, unsent: &[(u16, u64)]| {
            let mut side = stands_still(unsent);
            side.looks.iter_mut().for_each(|look| look.mirrors[0].speed = speed);
            side
        };
        let told = |side: SideLooks| Diagnosis::of(&PairLooks { source: Some(side), destination: None }, Vec::new());
        // at 2 MiB/s a burst of 16 MiB leaves each 8 s
        let slow = told(limited(2 << 20, &[(4444, 0)]));
        assert!(slow.causes.is_empty() && slow.verdict.contains("look for 17 s"), "{slow:#?}");
        // a limit that explains nothing, and a connection that is not there
        let quick = told(limited(64 << 20, &[(4444, 0)]));
        assert_eq!(quick.causes[0].code, DiagnosisCode::MirrorStalledIdle);
        let mut cut = limited(2 << 20, &[(5555, 0)]);
        cut.process.as_mut().expect("a process").descriptors = Some(9);
        assert_eq!(told(cut).causes[0].code, DiagnosisCode::LinkDead);
    }

    #[test]
    fn a_disk_of_the_guests_own_is_not_among_what_frees_a_main_loop() {
        let mut hangs = stands_still(&[]);
        hangs.reach = MonitorReach::Hangs { waited: Duration::from_secs(2), oob: Some(true) };
        let cause = found(hangs.clone());
        let told = serde_json::to_value(&cause).expect("JSON");
        assert_eq!(cause.code, DiagnosisCode::MonitorBlocked);
        assert!(told["commands"].to_string().contains("#block466"), "{told:#}");
        assert!(!told["commands"].to_string().contains("#block209"), "{told:#}");
        assert!(told["evidence"].to_string().contains("#block209"), "{told:#}");
        // before any look was answered nothing tells the two apart
        hangs.looks.clear();
        let cause = found(hangs);
        assert!(cause.commands.is_empty() && cause.risk.contains("writes fail"), "{cause:#?}");
    }
}
