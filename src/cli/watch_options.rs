//! The options of `qferry watch`.

use crate::diagnosis::ObservedMonitor;

const WATCH_EXAMPLES: &str = "\
Examples:
  How far is this migration, and is anything wrong? The order of the two does not matter:
    qferry watch /run/vm/source.qmp /run/vm/destination.qmp

  The same for a program, for ten minutes:
    qferry watch /run/vm/source.qmp --json --for 10m

Keys: ? help, p pause, Tab and arrows to choose, q quit.
Exit codes: 0 the user has quit, or the reader of --json has gone; 1 no terminal could be used, 2 usage";

/// Watch a migration live: any migration of QEMU, whoever started it
///
/// Shows the progress of each mirror and of RAM, rates, limits, the expected blackout, QEMU's events, and what is wrong
/// by the rules of qferry diagnose over the last seconds. Changes nothing. A monitor serves one client at a time:
/// beside qferry migrate, or a manager, each QEMU needs a further -qmp. A side that dies, or whose monitor closes, is
/// dialled anew until the view is left.
#[derive(Debug, clap::Args)]
#[command(after_help = WATCH_EXAMPLES)]
pub(super) struct WatchArguments {
    /// The monitor of one side, or of both: unix:PATH, /PATH, tcp:HOST:PORT, virsh:[URI/]DOMAIN or pve:ID
    #[arg(value_name = "ADDR", num_args = 1..=2, required = true)]
    pub(super) sides: Vec<ObservedMonitor>,
    /// How long to watch [default: until the view is left, or the reader of --json goes away]
    #[arg(long = "for", value_name = "DUR")]
    pub(super) lasting: Option<humantime::Duration>,
    /// One JSON object a line on stdout, in place of the view: sample, event, and diagnosis whenever the causes change
    #[arg(long)]
    pub(super) json: bool,
}
