//! Migrations that stay in one state, and channels that carry nothing.
//!
//! Pure.

use super::super::{
    cause::{Cause, Confidence},
    look::{MonitorLook, YankLook},
    pair::{PairLooks, SideLooks},
    process::ConnectionState,
    remedy::RemedyCommand,
};
use crate::{
    codes::DiagnosisCode,
    progress::Side,
    qemu::reply::{MigrationStatus, RunState},
};
use serde_json::Value;

/// The most that a connection takes without an acknowledgement: the default size of a socket's buffer.
const BUFFER: u64 = 4 << 20;
/// The bytes that can leave at once, between which a low limit holds RAM back.
const BURST: f64 = 1048576.0;

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    let Some(source) = &looks.source else {
        causes.extend(looks.destination.as_ref().and_then(postcopy_paused));
        return;
    };
    causes.extend(setup(source));
    causes.extend(device(source));
    causes.extend(cancelling(source));
    causes.extend(unplug(source));
    causes.extend(postcopy_paused(source).or_else(|| looks.destination.as_ref().and_then(postcopy_paused)));
    causes.extend(silent(source));
}

fn seconds(seen: &SideLooks) -> String {
    format!("{:.1} s", seen.span().as_secs_f64())
}

fn cut() -> RemedyCommand {
    RemedyCommand::yank(Side::Source, YankLook::Migration.instance().as_slice())
}

/// A channel that is not connected.
fn setup(source: &SideLooks) -> Option<Cause> {
    if !source.kept(&MigrationStatus::Setup) {
        return None;
    }
    let mut evidence = vec![format!("the source's migration was in setup for {}", seconds(source))];
    let tls = source.parameters.get("tls-creds").and_then(Value::as_str).filter(|creds| !creds.is_empty());
    let connecting: Vec<&str> =
        source.connections(false, ConnectionState::SynSent).map(|connection| connection.remote.as_str()).collect();
    if !connecting.is_empty() {
        evidence.push(format!("no answer to the first segment from {}", connecting.join(", ")));
    }
    let risk = "none: the guest runs on the source";
    Some(match tls {
        Some(creds) if connecting.is_empty() => {
            evidence.push(format!("the channel is to use the TLS credentials {creds}"));
            Cause::new(DiagnosisCode::Tls, Confidence::Likely, evidence)
                .remedy("cancel, and see that both sides have credentials and the destination listens with them", risk)
                .command(RemedyCommand::cancel())
                .fixable()
        }
        _ => {
            let confidence = if connecting.is_empty() { Confidence::Likely } else { Confidence::Certain };
            Cause::new(DiagnosisCode::SetupBlocked, confidence, evidence)
                .remedy("cancel, and see that the destination listens and that the way to its port is open", risk)
                .command(RemedyCommand::cancel())
                .fixable()
        }
    })
}

/// The state of the devices is not taken.
fn device(source: &SideLooks) -> Option<Cause> {
    if !source.kept(&MigrationStatus::Device) {
        return None;
    }
    let evidence = vec![
        format!("the source's migration was in device for {}", seconds(source)),
        "the guest stands still meanwhile".to_owned(),
    ];
    Some(Cause::new(DiagnosisCode::DeviceBlocked, Confidence::Likely, evidence).remedy(
        "look at the destination: a process that is stopped or waits for storage does not take the state; where it is dead, \
         the channel can be cut (yank), and the source goes on where QEMU proves that the destination has not all",
        "after a cut both sides have to be looked at before either is started (qferry recover does)",
    ))
}

/// A cancellation that does not come to an end; or one that has by QEMU's own word, while QEMU goes on connecting: 10.0
/// says so where the channel was not connected yet.
fn cancelling(source: &SideLooks) -> Option<Cause> {
    let cancelling = [MigrationStatus::Cancelling, MigrationStatus::Failing].into_iter().find(|s| source.kept(s));
    let connects_on = source.kept(&MigrationStatus::Cancelled) && source.yanks.contains(&YankLook::Migration);
    let connecting = source.connections(false, ConnectionState::SynSent).next();
    let unanswered = connecting.map(|row| format!("no answer to the first segment from {}", row.remote));
    let (mut evidence, risk) = match &cancelling {
        Some(status) => {
            let evidence = vec![
                format!("the source's migration was {status} for {}", seconds(source)),
                "QEMU waits for a thread that connects, or writes to a channel which takes nothing".to_owned(),
            ];
            (evidence, "none: the migration is being given up already")
        }
        None if connects_on => {
            let evidence = vec![
                format!("the source's migration was cancelled for {}, and query-yank still has it", seconds(source)),
                "a new migrate is refused until then (duplicate yank instance)".to_owned(),
            ];
            let risk = "a migrate that is refused meanwhile takes the cancellation back: the guest leaves over the old \
                        connection once that is made, unless it is cancelled again";
            (evidence, risk)
        }
        None => return None,
    };
    // QEMU cuts no connection that is not made yet
    let waits = unanswered.is_some() || cancelling.is_none();
    let confidence =
        if cancelling.is_some() || unanswered.is_some() { Confidence::Certain } else { Confidence::Likely };
    evidence.extend(unanswered);
    let cause = Cause::new(DiagnosisCode::CancellingStuck, confidence, evidence);
    Some(match waits {
        true => cause.remedy(
            "wait until the kernel gives the connection up, some two minutes after it was begun, or, as root, end it with \
             ss -K and that address",
            risk,
        ),
        false => {
            cause.remedy("cut the channel: the cancellation then ends", risk).command(cut()).fixable()
        }
    })
}

/// A guest that keeps its network device.
fn unplug(source: &SideLooks) -> Option<Cause> {
    if !source.kept(&MigrationStatus::Other("wait-unplug".to_owned())) {
        return None;
    }
    let evidence = vec![format!("the source's migration was in wait-unplug for {}", seconds(source))];
    let cause = Cause::new(DiagnosisCode::GuestWillNotUnplug, Confidence::Likely, evidence);
    Some(
        cause
            .remedy(
                "look into the guest: its driver has to give up the failover device; cancel where it cannot",
                "none: the guest runs on the source",
            )
            .command(RemedyCommand::cancel())
            .fixable(),
    )
}

fn postcopy_paused(seen: &SideLooks) -> Option<Cause> {
    if seen.status() != Some(&MigrationStatus::PostcopyPaused) {
        return None;
    }
    let mut evidence = vec!["query-migrate says postcopy-paused".to_owned()];
    evidence.extend(seen.migration().and_then(|migration| migration.error_desc.clone()));
    let cause = Cause::new(DiagnosisCode::PostcopyPaused, Confidence::Certain, evidence);
    Some(cause.remedy(
        "make the channel anew: migrate-recover with a new address on the destination, then migrate with that address and \
         resume on the source; never stop or end either side, each has pages that the other lacks",
        "none, where both sides live; the guest waits for pages until then",
    ))
}

/// A channel that carries nothing, or a device that does not acknowledge the switchover.
fn silent(source: &SideLooks) -> Vec<Cause> {
    if !source.kept(&MigrationStatus::Active) {
        return Vec::new();
    }
    // a guest that is being stopped sends nothing until it stands
    if source.looks.iter().all(|look| look.run == Some(RunState::FinishMigrate)) {
        return Vec::new();
    }
    let ram = |look: &'_ MonitorLook| look.migration.ram.clone();
    let Some((first, last)) = source.first().and_then(ram).zip(source.last().and_then(ram)) else { return Vec::new() };
    let moved = last.transferred != first.transferred
        || last.dirty_sync_count != first.dirty_sync_count
        || last.normal != first.normal
        || last.duplicate != first.duplicate;
    if moved {
        return Vec::new();
    }
    let mut evidence = vec![format!(
        "the source has sent nothing for {}: {} bytes sent, {} to send, the migration is active",
        seconds(source),
        last.transferred,
        last.remaining
    )];
    let waiting = source.unacknowledged();
    // libvirt turns the capability on for every migration: a channel that takes nothing is no question of it
    let asks = source.capabilities.contains("switchover-ack") && last.remaining < 1 << 20;
    let unacked = (asks && waiting.is_empty()).then(|| {
        let on = "the capability switchover-ack is on".to_owned();
        Cause::new(DiagnosisCode::SwitchoverNotAcked, Confidence::Possible, [evidence.clone(), vec![on]].concat())
            .remedy("cancel, and begin again with switchover-ack off on both sides", "the copied data is lost")
    });
    match (unacked, &source.process) {
        (Some(unacked), Some(_)) => return vec![unacked],
        (Some(unacked), None) => {
            let apart = "the connection is not seen: bytes that wait in its queue would tell this from a device that \
                does not acknowledge the switchover";
            evidence.push(apart.to_owned());
            return vec![dead(Confidence::Possible, evidence), unacked];
        }
        (None, _) => {}
    }
    // at a low limit QEMU's buffer leaves in bursts
    let limit = source.parameter("max-bandwidth").filter(|&limit| limit > 0);
    let explained = limit.is_some_and(|limit| BURST / limit as f64 >= source.span().as_secs_f64());
    if waiting.is_empty() && explained {
        return Vec::new();
    }
    let mtu = (last.transferred <= BUFFER && !waiting.is_empty()).then(|| full_segments(evidence.clone(), &waiting));
    let confidence = if waiting.is_empty() { Confidence::Likely } else { Confidence::Certain };
    evidence.extend(waiting);
    std::iter::once(dead(confidence, evidence)).chain(mtu).collect()
}

/// A channel that takes nothing.
fn dead(confidence: Confidence, evidence: Vec<String>) -> Cause {
    Cause::new(DiagnosisCode::LinkDead, confidence, evidence)
        .remedy(
            "cut the channel: the migration fails and the guest goes on running on the source; where the link may come \
             back, wait",
            "the copied RAM has to be sent again",
        )
        .command(cut())
        .fixable()
}

/// A way on which the connection was made, and nothing that fills a segment has passed.
fn full_segments(mut evidence: Vec<String>, waiting: &[String]) -> Cause {
    evidence.extend(waiting.iter().cloned());
    evidence.push("no more has left than the socket takes before the first acknowledgement".to_owned());
    evidence.push(
        "ping -M do -s 1472 to the destination fails where it is this, and passes where the link is dead only \
        for this connection"
            .to_owned(),
    );
    Cause::new(DiagnosisCode::Mtu, Confidence::Possible, evidence).remedy(
        "make the MTU the same on the whole way, or have a router on it clamp the segments' size; then cancel and begin again",
        "none: the guest runs on the source",
    )
}
