//! The options of `qferry diagnose`.

use super::values::duration;
use crate::{
    codes::DiagnosisCode,
    diagnosis::{LOOKED_FOR, ObservedMonitor},
};
use std::time::Duration;

const DIAGNOSE_EXAMPLES: &str = "\
Examples:
  Why does this migration not end? The order of the two does not matter:
    qferry diagnose /run/vm/source.qmp /run/vm/destination.qmp

  A migration of libvirt's, through the command virsh:
    qferry diagnose virsh:qemu:///system/vm1

  A guest of Proxmox VE, whose monitor qm holds for moments alone:
    qferry diagnose pve:100

  The monitor is held by a manager, or hangs: look at the process alone:
    qferry diagnose --pid 4711

  Why did the last migration fail?
    qferry diagnose --transcript last

  What do libvirt's logs of both ends tell? (log_filters=1:qemu.qemu_monitor)
    qferry diagnose --transcript source/libvirtd.log destination/libvirtd.log

  Carry out the remedy of a cause that was named:
    qferry diagnose /run/vm/source.qmp --fix mirror-paused

Exit codes: 0 nothing wrong found (with --transcript: the guest moved), 10 causes found (with --fix: not carried out), 1 nothing could be looked at,
  2 usage";

/// Say why a migration is stuck: any migration of QEMU, whoever started it
///
/// Looks at one side or both for a few seconds, changes nothing, and names what the migration waits for, by what
/// evidence, what gets it out and what that risks. A monitor serves one client at a time: QEMU needs a further -qmp
/// where a manager holds the only one. The time is needed: only rates tell a slow migration from one that is stuck.
#[derive(Debug, clap::Args)]
#[command(after_help = DIAGNOSE_EXAMPLES)]
pub(super) struct Diagnose {
    /// The monitor of one side, or of both: unix:PATH, /PATH, tcp:HOST:PORT, virsh:[URI/]DOMAIN for a domain of
    /// libvirt's, or pve:ID for a guest of Proxmox VE
    #[arg(value_name = "ADDR", num_args = 1..=2, required_unless_present_any = ["pid", "transcript"], conflicts_with_all = ["pid", "transcript"])]
    pub(super) sides: Vec<ObservedMonitor>,
    /// Look at this QEMU process without a monitor: its threads, its connections with queues and the processes at their
    /// other ends, its images, limits and command line; root is told this of every process, others of their own alone
    #[arg(long, value_name = "PID")]
    pub(super) pid: Option<u32>,
    /// Explain a migration afterwards: the file of a transcript, the word last for the newest one kept, or what another
    /// program recorded, from one end or from both: libvirt's debug log, lines of QMP, QEMU's own log
    #[arg(long, value_name = "FILE", num_args = 1..=2, conflicts_with = "pid")]
    pub(super) transcript: Vec<std::path::PathBuf>,
    /// How long to look, from 2s to 5m
    #[arg(long = "for", value_name = "DUR", default_value = "3s", value_parser = lasting)]
    pub(super) lasting: Duration,
    /// Carry out the commands of this cause's remedy, if the cause is found and its remedy can make neither two runners
    /// nor a lost write
    #[arg(long, value_name = "CODE", conflicts_with_all = ["pid", "transcript"])]
    pub(super) fix: Option<DiagnosisCode>,
    /// Do not ask before a remedy is carried out
    #[arg(long, requires = "fix")]
    pub(super) yes: bool,
    /// One JSON object a line on stdout; text for people goes to stderr
    #[arg(long)]
    pub(super) json: bool,
}

/// A time for which a diagnosis can look. With less, slow cannot be told from stuck, and the looks are kept in memory.
fn lasting(text: &str) -> Result<Duration, String> {
    let (lasting, (least, most)) = (duration(text)?, LOOKED_FOR);
    if (least..=most).contains(&lasting) {
        return Ok(lasting);
    }
    let [least, most] = [least, most].map(humantime::format_duration);
    Err(format!("a diagnosis looks for {least} to {most}; qferry watch looks for as long as you like"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_cannot_be_looked_for_is_refused_with_the_range() {
        for (text, lasts) in [("2s", Some(2)), ("1m 30s", Some(90)), ("5m", Some(300)), ("1999ms", None), ("0s", None)]
        {
            assert_eq!(lasting(text).ok(), lasts.map(Duration::from_secs), "{text}");
        }
        for text in ["1s", "301s", "9h", "999999999999h"] {
            let refused = lasting(text).unwrap_err();
            assert!(refused.contains("2s to 5m") || text.len() > 4, "{refused}");
        }
        assert!(lasting("3").unwrap_err().contains("write 50ms, 2s or 1m"));
    }
}
