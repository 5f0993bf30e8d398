//! A program that makes the migrations of a sweep in place of `qferry migrate`: its command, and what came of it.
//!
//! Pure.

use super::{
    link::LinkEnd,
    placeholder::fill,
    spec::SweepMigrator,
    spec_error::{SpecError, wrong},
};
use crate::progress::RunsOn;
use std::path::{Path, PathBuf};

/// The placeholders of the command.
const PLACEHOLDERS: &str = "{source-qmp} {destination-qmp} {destination-host} {migrate-address} {nbd-address}";

/// Between what a migrator moves the guest.
#[derive(Debug, Clone, Default)]
pub(crate) struct MigrationEnds {
    pub(crate) source_qmp: PathBuf,
    pub(crate) destination_qmp: PathBuf,
    /// The end of the link at which the destination is, if there is a link.
    pub(crate) destination: Option<LinkEnd>,
}

impl MigrationEnds {
    /// The socket of a channel between two QEMUs without a link.
    pub(crate) fn channel(destination_qmp: &Path, channel: &str) -> PathBuf {
        destination_qmp.with_extension(channel)
    }

    fn value(&self, name: &str) -> Option<String> {
        let path = |path: &Path| path.display().to_string();
        let channel = |option: &str, channel: &str| match self.destination {
            Some(end) => end.listens().into_iter().find(|(of, _)| *of == option).map(|(_, address)| address),
            None => Some(format!("unix:{}", path(&Self::channel(&self.destination_qmp, channel)))),
        };
        match name {
            "source-qmp" => Some(path(&self.source_qmp)),
            "destination-qmp" => Some(path(&self.destination_qmp)),
            "destination-host" => Some(self.destination.map_or("127.0.0.1", LinkEnd::address).to_owned()),
            "migrate-address" => channel("migrate-address", "ram"),
            "nbd-address" => channel("nbd-address", "nbd"),
            _ => None,
        }
    }
}

/// The words that move the guest.
///
/// # Errors
/// A placeholder is unknown.
pub(crate) fn migrator_words(migrator: &SweepMigrator, ends: &MigrationEnds) -> Result<Vec<String>, SpecError> {
    let filled = |word: &String| {
        fill(word, |name| ends.value(name)).map_err(|name| {
            let expected = format!("there is no {{{name}}}; write one of {PLACEHOLDERS}, or {{{{ for a brace");
            wrong("migrator.command", word, &expected)
        })
    };
    migrator.command.iter().map(filled).collect()
}

/// How a migrator has ended, and what the two QEMUs say afterwards.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MigratorEnd<'a> {
    /// Whether its exit status was 0.
    pub(crate) succeeded: bool,
    pub(crate) is_over_limit: bool,
    pub(crate) last_words: &'a str,
    /// Whether the guest runs on the source, and on the destination; none where its QEMU does not answer.
    pub(crate) runs: [Option<bool>; 2],
}

impl MigratorEnd<'_> {
    /// Where the guest runs.
    pub(crate) fn runs_on(&self) -> RunsOn {
        match self.runs.map(|runs| runs == Some(true)) {
            [true, false] => RunsOn::Source,
            [false, true] => RunsOn::Destination,
            [true, true] => RunsOn::Unknown,
            [false, false] => RunsOn::None,
        }
    }

    /// The outcome's word, and the reason where the guest has not moved. A program is not believed that says so alone.
    pub(crate) fn outcome(&self) -> (&'static str, Option<String>) {
        let runs_on = self.runs_on();
        let found = match runs_on {
            RunsOn::Source => "runs on the source",
            RunsOn::Destination => "runs on the destination",
            RunsOn::None => "runs on neither side",
            _ => "runs on both sides",
        };
        match self {
            Self { succeeded: true, .. } if runs_on == RunsOn::Destination => ("moved", None),
            Self { is_over_limit: true, .. } => ("cancelled", Some("the limit of the sweep was reached".into())),
            Self { succeeded: true, .. } => {
                ("undetermined", Some(format!("the command has succeeded, and by its QEMUs the guest {found}")))
            }
            Self { last_words, .. } => ("failed", Some(format!("{last_words} (the guest {found})"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &[&str], destination: Option<LinkEnd>) -> Result<Vec<String>, SpecError> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let ends = MigrationEnds { source_qmp: "/r/1.qmp".into(), destination_qmp: "/r/2.qmp".into(), destination };
        migrator_words(&SweepMigrator { command, starts_destination: false }, &ends)
    }

    #[test]
    fn the_command_knows_both_ends_and_the_way_between_them() {
        let command =
            ["x", "{source-qmp}", "{destination-qmp}", "h={destination-host}", "{migrate-address}", "{nbd-address}"];
        let filled = |destination| words(&command, destination).expect("all are known").join(" ");
        assert_eq!(filled(None), "x /r/1.qmp /r/2.qmp h=127.0.0.1 unix:/r/2.ram unix:/r/2.nbd");
        assert_eq!(
            filled(Some(LinkEnd::Second)),
            "x /r/1.qmp /r/2.qmp h=10.0.0.2 tcp:10.0.0.2:4445 tcp:10.0.0.2:10809"
        );
        let error = words(&["x", "{qmp}"], None).expect_err("{qmp} is of the machine").to_string();
        assert!(
            error.starts_with("migrator.command is {qmp}: there is no {qmp}; write one of {source-qmp}"),
            "{error}"
        );
    }

    #[test]
    fn a_migrator_is_believed_only_with_its_qemus() {
        let cases = [
            (true, false, [None, Some(true)], "moved", ""),
            (true, false, [Some(false), Some(true)], "moved", ""),
            (true, true, [None, Some(true)], "moved", ""),
            (false, true, [Some(true), None], "cancelled", "limit"),
            (true, false, [Some(true), Some(false)], "undetermined", "runs on the source"),
            (true, false, [None, None], "undetermined", "runs on neither side"),
            (true, false, [Some(true), Some(true)], "undetermined", "runs on both sides"),
            (false, false, [Some(true), None], "failed", "no route (the guest runs on the source)"),
            (false, false, [None, Some(true)], "failed", "no route (the guest runs on the destination)"),
        ];
        for (succeeded, is_over_limit, runs, outcome, reason) in cases {
            let end = MigratorEnd { succeeded, is_over_limit, last_words: "no route", runs };
            let (word, why) = end.outcome();
            assert_eq!(word, outcome, "{end:?}");
            assert!(why.unwrap_or_default().contains(reason), "{end:?}");
        }
    }
}
