//! A migration that waits for a program that is not there.
//!
//! Pure. A monitor that is silent proves nothing, so the evidence is that QEMU itself says of each of its monitors
//! whether a client is connected. A program that connects for each of its commands leaves no connection in between:
//! one that tries while this program has the monitor is seen to wait for it, and one that does not try is not known.

use super::super::{
    cause::{Cause, Confidence},
    look::{CharDeviceLook, MonitorLook},
    pair::{PairLooks, SideLooks},
    remedy::RemedyCommand,
};
use crate::{
    codes::DiagnosisCode,
    qemu::reply::{MigrationStatus, RunState},
};

/// What QEMU writes before the name of a socket that has no client.
const DISCONNECTED: &str = "disconnected:";
/// The options of QEMU that make a monitor of their own, whose labels are numbered.
const MONITORS: [&str; 3] = ["monitor", "qmp", "qmp-pretty"];

pub(super) fn rule(looks: &PairLooks, causes: &mut Vec<Cause>) {
    causes.extend(looks.source.as_ref().and_then(|source| ownerless(looks, source)));
}

fn ownerless(looks: &PairLooks, source: &SideLooks) -> Option<Cause> {
    let (waits, confidence, is_cancelled) = decision(looks, source)?;
    let monitors = unattended(source)?;
    let mut evidence = vec![waits, format!("the source's query-chardev: {monitors}, and that client is this program")];
    if let Some(destination) = &looks.destination {
        match unattended(destination) {
            Some(monitors) => evidence.push(format!("the destination's query-chardev: {monitors}")),
            None if clients(destination).is_some_and(|(clients, _)| clients > 1) || destination.is_wanted => {
                return None;
            }
            None => {}
        }
    }
    evidence.push(
        "a program that connects for each of its commands, and sends one less often than this was looked at, would look \
         the same"
            .to_owned(),
    );
    let cause = Cause::new(DiagnosisCode::Ownerless, confidence, evidence).remedy(
        "find the program that began the migration; where it is gone, adopt what it left: cancel (migrate_cancel, and \
         block-job-cancel for its mirrors), or qferry recover where qferry began it",
        "a program that comes back finds its migration cancelled; the guest goes on running on the source",
    );
    Some(if is_cancelled { cause.command(RemedyCommand::cancel()).fixable() } else { cause })
}

/// What the migration waits for a program to decide, how sure the cause is then, and whether a cancellation of RAM ends
/// it with the guest on the source.
fn decision(looks: &PairLooks, source: &SideLooks) -> Option<(String, Confidence, bool)> {
    let over = |words: &str| format!("{words} over {:.1} s", source.span().as_secs_f64());
    if source.kept(&MigrationStatus::PreSwitchover) {
        return Some((over("the source waits for migrate-continue"), Confidence::Likely, true));
    }
    if source.kept(&MigrationStatus::PostcopyPaused) {
        return Some((over("the source waits for a new channel in postcopy"), Confidence::Likely, false));
    }
    let arrived = looks.destination.as_ref().is_some_and(|destination| {
        destination.stood() && destination.run() != Some(&RunState::InMigrate) && destination.lasted()
    });
    if source.kept(&MigrationStatus::Completed) && source.stood() && arrived {
        return Some((over("the destination has the guest and waits for cont"), Confidence::Likely, false));
    }
    // mirrors that are kept in step with the guest on purpose look the same
    let idle = |look: &MonitorLook| match &look.migration.status {
        None | Some(MigrationStatus::None | MigrationStatus::Cancelled | MigrationStatus::Failed) => true,
        Some(_) => false,
    };
    let ready = |look: &MonitorLook| !look.mirrors.is_empty() && look.mirrors.iter().all(|job| job.ready);
    let waits = source.lasted() && source.looks.iter().all(|look| idle(look) && ready(look));
    waits.then(|| (over("every mirror is ready, and RAM is not sent,"), Confidence::Possible, false))
}

/// That nobody but this program is connected to the monitors of a side; `None` where somebody is, or where that is not
/// known.
fn unattended(side: &SideLooks) -> Option<String> {
    let (clients, monitors) = clients(side).filter(|_| side.is_direct && !side.is_wanted)?;
    // the connection over which this was asked is one of them
    (clients == 1).then(|| match monitors {
        1 => "its only monitor has one client".to_owned(),
        monitors => format!("its {monitors} monitors have one client in all"),
    })
}

/// The most clients that the monitors of a side had at any look, and the number of monitors.
fn clients(side: &SideLooks) -> Option<(usize, usize)> {
    let words = side.process.as_ref().map(|process| process.command.as_slice()).unwrap_or_default();
    let labels = monitors(words);
    let counted: Option<Vec<(usize, usize)>> = side.looks.iter().map(|look| count(&look.chardevs, &labels)).collect();
    counted?.into_iter().max()
}

/// The clients of the monitors among these devices, and the number of monitors. Where the labels of the monitors are
/// not known, each device may be one.
fn count(devices: &[CharDeviceLook], labels: &[String]) -> Option<(usize, usize)> {
    let all_known = labels.iter().all(|label| devices.iter().any(|device| device.label == *label));
    let is_known = !labels.is_empty() && all_known;
    let mut monitors = devices.iter().filter(|device| !is_known || labels.contains(&device.label)).peekable();
    monitors.peek()?;
    let mut sum = (0, 0);
    for monitor in monitors {
        let socket = monitor.filename.strip_prefix(DISCONNECTED);
        let name = socket.unwrap_or(&monitor.filename);
        let is_socket =
            ["unix:", "tcp:", "telnet:", "tn3270:", "websocket:", "fd:"].iter().any(|kind| name.starts_with(kind));
        match (is_socket, socket, name) {
            (true, socket, _) => sum.0 += usize::from(socket.is_none()),
            (false, _, "vc" | "null") => {}
            // who sits at a terminal is not known
            (false, ..) => return None,
        }
        sum.1 += 1;
    }
    Some(sum)
}

/// The labels of the monitors' devices, by the words of QEMU's command line; none where these do not tell all.
fn monitors(words: &[String]) -> Vec<String> {
    let (mut labels, mut compatible) = (Vec::new(), 0);
    for pair in words.windows(2) {
        let [option, value] = pair else { continue };
        let Some(option) = option.strip_prefix('-').map(|option| option.strip_prefix('-').unwrap_or(option)) else {
            continue;
        };
        match option {
            "readconfig" => return Vec::new(),
            "mon" => {
                let first = value.split(',').next().filter(|first| !first.contains('='));
                let named = value.split(',').find_map(|part| part.strip_prefix("chardev="));
                labels.extend(named.or(first).map(str::to_owned));
            }
            _ if MONITORS.contains(&option) && value == "none" => {}
            _ if MONITORS.contains(&option) => match value.strip_prefix("chardev:") {
                Some(id) => labels.push(id.to_owned()),
                None => {
                    labels.push(format!("compat_monitor{compatible}"));
                    compatible += 1;
                }
            },
            _ => {}
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(names: &[(&str, &str)]) -> Vec<CharDeviceLook> {
        let device = |(label, filename): &(&str, &str)| CharDeviceLook {
            label: (*label).to_owned(),
            filename: (*filename).to_owned(),
        };
        names.iter().map(device).collect()
    }

    #[test]
    fn monitors_are_known_by_the_command_line() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (line, expected) in [
            ("qemu -qmp unix:/a,server=on -monitor stdio", vec!["compat_monitor0", "compat_monitor1"]),
            ("qemu -chardev socket,id=c,path=/a -mon chardev=c,mode=control", vec!["c"]),
            ("qemu --mon id=m,mode=control,chardev=c --qmp chardev:d", vec!["c", "d"]),
            ("qemu -mon c,mode=control -monitor none", vec!["c"]),
            ("qemu -qmp unix:/a -readconfig /etc/vm", vec![]),
            ("qemu -S", vec![]),
        ] {
            assert_eq!(monitors(&words(line)), expected, "{line}");
        }
    }

    #[test]
    fn clients_are_counted_where_qemu_tells() {
        let only = |name: &str| count(&devices(&[("compat_monitor0", name)]), &["compat_monitor0".to_owned()]);
        assert_eq!(only("unix:/a,server=on"), Some((1, 1)));
        assert_eq!(only("disconnected:unix:/a,server=on"), Some((0, 1)));
        assert_eq!(only("tcp:127.0.0.1:4,server=on <-> 127.0.0.1:5"), Some((1, 1)));
        assert_eq!(only("disconnected:tcp:127.0.0.1:4,server=on"), Some((0, 1)));
        assert_eq!(only("vc"), Some((0, 1)));
        for unknown in ["stdio", "pty:/dev/pts/3", "mux", ""] {
            assert_eq!(only(unknown), None, "{unknown}");
        }
        let guest =
            devices(&[("m", "unix:/a,server=on"), ("serial0", "pty:/dev/pts/3"), ("n", "disconnected:unix:/b")]);
        assert_eq!(count(&guest, &["m".to_owned(), "n".to_owned()]), Some((1, 2)));
        // without the labels, or with one that is not there, any device may be a monitor
        assert_eq!(count(&guest, &[]), None);
        assert_eq!(count(&guest, &["m".to_owned(), "gone".to_owned()]), None);
        assert_eq!(count(&[], &[]), None);
    }
}
