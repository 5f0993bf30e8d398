//! Which settings cannot be used. Everything that starts asks here, so that the library refuses what the command
//! refuses.
//!
//! Pure. What a file is, the caller has looked up.

use super::settings::{JournalPlace, Settings};
use crate::{codes::FindingCode, convergence::PolicyError, memory::tuning::CHANNELS_MAX, quantity::Rate};
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path, time::Duration};

/// QEMU's own limit of `downtime-limit`.
const DOWNTIME_MAX: Duration = Duration::from_secs(2000);
/// The shortest switchover that leaves a hanging QEMU time to be found out, and the guest time to go back.
const SWITCHOVER_MIN: Duration = Duration::from_secs(1);
/// The least time for a fence command.
const FENCE_MIN: Duration = Duration::from_secs(1);
/// How much of the blackout budget a switchover takes at least: the guest may use the budget up, and must then go back.
const SWITCHOVER_BUDGETS: u32 = 3;
/// Longer times are a mistake, and a clock that is asked for them overflows.
pub(super) const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// The most ranges of a sample; whoever wants more compares everything.
const SAMPLES_MAX: usize = 1 << 16;
/// QEMU reads JSON's integers as signed.
const RATE_MAX: u64 = i64::MAX.unsigned_abs();

/// Settings that cannot be used: every one of them, and never none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub struct Invalid {
    /// What is wrong.
    pub problems: Vec<InvalidSetting>,
}

/// A setting that cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InvalidSetting {
    /// The setting's name, such as `downtime` or `policy.slack`.
    pub field: String,
    /// Its value, for people.
    pub value: String,
    /// What would be right, and why.
    pub expected: String,
}

impl Invalid {
    /// A single problem.
    pub(crate) fn one(field: &str, value: impl fmt::Display, expected: &str) -> Self {
        let problem = InvalidSetting { field: field.into(), value: value.to_string(), expected: expected.into() };
        Self { problems: vec![problem] }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl fmt::Display for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.field, self.value, self.expected)
    }
}

/// What is at a path that is to be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CommandFile {
    Executable,
    NotExecutable,
    Missing,
    /// Another user may have written the command; the reason.
    Distrusted(String),
}

/// The problems that are found, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<InvalidSetting>);

impl Problems {
    /// Notes the field, unless the condition holds.
    pub(crate) fn require(
        &mut self,
        holds: bool,
        field: impl Into<String>,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) {
        if !holds {
            self.0.push(InvalidSetting { field: field.into(), value: value.to_string(), expected: expected.into() });
        }
    }

    /// A time from `least` to `most`.
    fn require_within(&mut self, field: &str, value: Duration, least: Duration, most: Duration, why: &str) {
        let expected = format!("give {} to {}{why}", words(least), words(most));
        self.require((least..=most).contains(&value), field, words(value), expected);
    }

    /// A time in which a host can be made to end a process.
    pub(crate) fn require_fence_timeout(&mut self, limit: Duration) {
        self.require_within("fence_timeout", limit, FENCE_MIN, LONGEST, "");
    }

    /// A ceiling that lets something through.
    pub(crate) fn require_rate(&mut self, field: &str, ceiling: Option<Rate>) {
        if let Some(Rate(bytes)) = ceiling {
            self.require(bytes > 0, field, "0 B/s", "nothing would ever arrive: leave it out for no ceiling");
            self.require(
                bytes <= RATE_MAX,
                field,
                format!("{bytes} B/s"),
                "QEMU takes no such number: leave it out for no ceiling",
            );
        }
    }

    /// Disks that have names.
    pub(crate) fn require_names<'a>(&mut self, field: &str, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            self.require(!name.is_empty(), field, "an empty name", "give a disk's qdev id, device or node name");
        }
    }

    /// A path that means the same to everybody.
    pub(crate) fn require_absolute(&mut self, field: &str, path: &Path) {
        let expected = "give an absolute path: a relative one would mean different things to QEMU and to the engine";
        self.require(path.is_absolute(), field, format!("`{}`", path.display()), expected);
    }

    /// A command that can be run from anywhere.
    pub(crate) fn require_command(&mut self, field: &str, command: &Path, found: CommandFile) {
        let shown = format!("`{}`", command.display());
        match found {
            _ if !command.is_absolute() => self.require_absolute(field, command),
            CommandFile::Executable => {}
            CommandFile::Distrusted(why) => self.require(false, field, shown, &why),
            CommandFile::NotExecutable => self.require(false, field, shown, "give an executable file"),
            CommandFile::Missing => {
                self.require(false, field, shown, "no such file can be reached: give an executable file")
            }
        }
    }

    /// Nothing, or all that was found.
    pub(crate) fn into_result(self) -> Result<(), Invalid> {
        if self.0.is_empty() { Ok(()) } else { Err(Invalid { problems: self.0 }) }
    }
}

/// Finds every setting that cannot be used. `fence` is what the path of the fence command leads to.
pub(crate) fn check(settings: &Settings, fence: CommandFile) -> Result<(), Invalid> {
    let mut problems = Problems::default();
    let millisecond = Duration::from_millis(1);
    problems.require_within("downtime", settings.downtime, millisecond, DOWNTIME_MAX, ", QEMU's own range");
    if let Some(timeout) = settings.timeout {
        problems.require_within("timeout", timeout, millisecond, LONGEST, ", or leave it out to wait for ever");
    }
    if let Some(limit) = settings.switchover_timeout {
        problems.require_within("switchover_timeout", limit, SWITCHOVER_MIN, LONGEST, "");
        let least = settings.downtime.saturating_mul(SWITCHOVER_BUDGETS);
        // a budget that is wrong itself is told already
        let leaves_time = limit >= least || settings.downtime > DOWNTIME_MAX || limit < SWITCHOVER_MIN;
        let expected = format!(
            "a guest that may stand still for {} would have no time to go back: give at least {}",
            words(settings.downtime),
            words(least)
        );
        problems.require(leaves_time, "switchover_timeout", words(limit), expected);
    }
    problems.require_rate("bandwidth", settings.bandwidth);
    problems.require_rate("disk_bandwidth", settings.disk_bandwidth);
    check_channels(settings, &mut problems);
    let samples = settings.samples;
    problems.require(
        (1..=SAMPLES_MAX).contains(&samples),
        "samples",
        samples,
        format!("give 1 to {SAMPLES_MAX}, or in place of a sample `verify_backing: off` or `verify_backing: full`"),
    );
    problems.require_fence_timeout(settings.fence_timeout);
    if let Some(command) = &settings.fence_command {
        problems.require_command("fence_command", command, fence);
    }
    if let JournalPlace::File(path) = &settings.journal {
        problems.require(
            path.file_name().is_some(),
            "journal",
            format!("`{}`", path.display()),
            "give the path of a file",
        );
    }
    problems.require_absolute("runtime_dir", &settings.runtime_dir);
    let selection = &settings.selection;
    let named = selection.disks.iter().flat_map(|(source, destination)| [Some(source), destination.as_ref()]);
    problems.require_names("disks", named.flatten().map(String::as_str));
    problems.require_names("skip", selection.skip.iter().map(String::as_str));
    for code in &settings.force {
        let forcible: Vec<&str> = FindingCode::forcible().collect();
        let known = forcible.contains(&code.as_str());
        problems.require(known, "force", format!("`{code}`"), format!("give {}", forcible.join(", ")));
    }
    match settings.policy.check() {
        Ok(()) => {}
        Err(PolicyError::Value { field, value, expected }) => {
            problems.require(false, format!("policy.{field}"), value, expected);
        }
        Err(error) => problems.require(false, "policy", format!("`{}`", settings.policy.name), error.to_string()),
    }
    problems.into_result()
}

fn check_channels(settings: &Settings, problems: &mut Problems) {
    if let Some(channels) = settings.multifd {
        let expected =
            format!("nothing would be sent: give 1 to {CHANNELS_MAX}, or leave it out for a single connection");
        problems.require(channels > 0, "multifd", channels, expected);
    }
    if let Some(how) = settings.compress {
        let expected = "only the channels of `multifd` compress: give their number, too";
        problems.require(settings.multifd.is_some(), "compress", how, expected);
    }
}

/// A time in the words of every setting.
pub(crate) fn words(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        convergence::{DiskRung, Policy, RamRung},
        memory::tuning::Compression,
    };

    /// The fields that are refused, each with its value and what would be right.
    fn refused(change: impl FnOnce(&mut Settings)) -> Vec<(String, String, String)> {
        let mut settings = Settings { runtime_dir: "/run".into(), ..Settings::default() };
        change(&mut settings);
        let problems = settings.validate().err().map_or_else(Vec::new, |invalid| invalid.problems);
        problems.into_iter().map(|one| (one.field, one.value, one.expected)).collect()
    }

    /// A single problem of this field, whose value and remedy have these words.
    #[track_caller]
    fn refuses(field: &str, value: &str, expected: &str, change: impl FnOnce(&mut Settings)) {
        let found = refused(change);
        let [(of, shown, remedy)] = &found[..] else { panic!("{field}: {found:?}") };
        assert!(of == field && shown.contains(value) && remedy.contains(expected), "{field}: {found:?}");
    }

    #[test]
    fn the_default_and_the_edges_are_good() {
        for change in [
            (|_| ()) as fn(&mut Settings),
            |settings| settings.downtime = Duration::from_millis(1),
            |settings| settings.downtime = DOWNTIME_MAX,
            |settings| settings.switchover_timeout = Some(SWITCHOVER_MIN),
            |settings| settings.timeout = Some(LONGEST),
            |settings| settings.samples = SAMPLES_MAX,
            |settings| (settings.multifd, settings.compress) = (Some(255), Some(Compression::Zlib)),
            |settings| settings.bandwidth = Some(Rate(1)),
            |settings| settings.fence_command = Some("/bin/true".into()),
            |settings| settings.force = ["machine-type".to_owned()].into(),
        ] {
            assert_eq!(refused(change), []);
        }
    }

    #[test]
    fn no_time_is_endless_or_nothing() {
        let forever = Duration::MAX;
        refuses("downtime", "y", "1ms to 33m 20s", |settings| settings.downtime = forever);
        refuses("downtime", "0s", "1ms to", |settings| settings.downtime = Duration::ZERO);
        refuses("timeout", "y", "leave it out", |settings| settings.timeout = Some(forever));
        refuses("timeout", "0s", "leave it out", |settings| settings.timeout = Some(Duration::ZERO));
        refuses("switchover_timeout", "y", "1s to", |settings| settings.switchover_timeout = Some(forever));
        refuses("switchover_timeout", "0s", "1s to", |settings| settings.switchover_timeout = Some(Duration::ZERO));
        refuses("fence_timeout", "y", "1s to", |settings| settings.fence_timeout = forever);
        refuses("fence_timeout", "0s", "1s to", |settings| settings.fence_timeout = Duration::ZERO);
        refuses("switchover_timeout", "1s", "at least 3s", |settings| {
            (settings.downtime, settings.switchover_timeout) = (Duration::from_secs(1), Some(Duration::from_secs(1)));
        });
    }

    #[test]
    fn numbers_that_can_only_be_a_mistake_are_refused() {
        refuses("samples", "0", "verify_backing: off", |settings| settings.samples = 0);
        refuses("samples", "65537", "verify_backing: full", |settings| settings.samples = SAMPLES_MAX + 1);
        refuses("bandwidth", "0 B/s", "leave it out", |settings| settings.bandwidth = Some(Rate(0)));
        refuses("bandwidth", "18446744073709551615", "QEMU", |settings| settings.bandwidth = Some(Rate(u64::MAX)));
        refuses("disk_bandwidth", "0 B/s", "leave it out", |settings| settings.disk_bandwidth = Some(Rate(0)));
        refuses("multifd", "0", "1 to 255", |settings| settings.multifd = Some(0));
        refuses("compress", "zstd", "`multifd`", |settings| settings.compress = Some(Compression::Zstd));
    }

    #[test]
    fn a_policy_made_in_code_is_checked_as_one_from_a_file() {
        let with = |change: fn(&mut Policy)| move |settings: &mut Settings| change(&mut settings.policy);
        refuses("policy.slack", "NaN", "0.0 to 1.0", with(|policy| policy.slack = f64::NAN));
        refuses("policy.throttle-max", "200", "1 to 99", with(|policy| policy.throttle_max = 200));
        refuses(
            "policy.ram",
            "postcopy",
            "after",
            with(|policy| policy.ram = vec![RamRung::Postcopy, RamRung::Throttle]),
        );
        refuses("policy.disks", "bandwidth", "twice", with(|policy| policy.disks = vec![DiskRung::Bandwidth; 2]));
        refuses("policy.first", "0s", "1ms", with(|policy| policy.first = Duration::ZERO));
        for (field, change) in [
            ("first", (|policy| policy.first = Duration::MAX) as fn(&mut Policy)),
            ("busy", |policy| policy.busy = Duration::MAX),
            ("device-state", |policy| policy.device_state = Duration::MAX),
            ("patience", |policy| policy.patience = Duration::MAX),
            ("give-up", |policy| policy.give_up = Duration::MAX),
            ("stop-and-copy", |policy| {
                policy.ram.push(RamRung::StopAndCopy);
                policy.stop_and_copy = Duration::MAX;
            }),
        ] {
            refuses(&format!("policy.{field}"), "y", "", with(change));
        }
    }

    #[test]
    fn files_and_names_are_what_they_are_taken_for() {
        let fence = |path: &'static str| move |settings: &mut Settings| settings.fence_command = Some(path.into());
        refuses("fence_command", "/no/such", "executable", fence("/no/such/fence"));
        refuses("fence_command", "/etc/passwd", "executable", fence("/etc/passwd"));
        refuses("fence_command", "/etc", "executable", fence("/etc"));
        refuses("fence_command", "true", "absolute", fence("true"));
        refuses("runtime_dir", "run", "absolute", |settings| settings.runtime_dir = "run".into());
        refuses("journal", "", "a file", |settings| settings.journal = JournalPlace::File("".into()));
        refuses("force", "everything", "machine-type", |settings| settings.force = ["everything".to_owned()].into());
        refuses("disks", "empty", "qdev id", |settings| {
            settings.selection.disks = vec![("a".into(), Some(String::new()))]
        });
        refuses("skip", "empty", "qdev id", |settings| settings.selection.skip = vec![String::new()]);
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let found = refused(|settings| {
            (settings.samples, settings.multifd, settings.downtime) = (0, Some(0), Duration::MAX);
        });
        let fields: Vec<&str> = found.iter().map(|(field, ..)| field.as_str()).collect();
        assert_eq!(fields, ["downtime", "multifd", "samples"]);
        let settings = Settings { samples: 0, ..Settings::default() };
        let told = settings.validate().unwrap_err().to_string();
        assert!(told.starts_with("samples is 0: give 1 to 65536"), "{told}");
    }
}
