//! Policies as they are written in TOML: reading, checking, and the built-in ones.
//!
//! Pure. The caller reads a policy's file; this module gets its text.

use super::{
    policy::{Policy, PublishedSchedule, RamRung},
    schedule_step::{ScheduleStep, StepAction},
};
use serde::Serialize;
use std::{fmt, str::FromStr, time::Duration};
use thiserror::Error;

/// The policies that are built in, by name.
pub const BUILT_IN: [(&str, &str); 7] = [
    ("converge", include_str!("../../docs/policies/converge.toml")),
    ("postcopy", include_str!("../../docs/policies/postcopy.toml")),
    ("patient", include_str!("../../docs/policies/patient.toml")),
    ("observe", include_str!("../../docs/policies/observe.toml")),
    ("nova", include_str!("../../docs/policies/nova.toml")),
    ("vdsm", include_str!("../../docs/policies/vdsm.toml")),
    ("kubevirt", include_str!("../../docs/policies/kubevirt.toml")),
];

const MILLISECOND: Duration = Duration::from_millis(1);
/// Longer times are a mistake, and a clock that is asked for them overflows.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// QEMU's own limit of `downtime-limit`.
const DOWNTIME_MAX: Duration = Duration::from_secs(2000);

/// Why a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The text is not TOML, or a field or value is unknown; the message shows the line.
    #[error("{0}")]
    Unreadable(String),
    /// A value is out of its range.
    #[error("{field} is {value}: {expected}")]
    Value {
        /// The field, as it is written in a file.
        field: &'static str,
        /// The field's value, for people.
        value: String,
        /// A value that would be right, and why.
        expected: String,
    },
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_toml(text)
    }
}

impl Policy {
    /// Reads a policy. A field that the text leaves out is as in `converge`.
    ///
    /// # Errors
    /// The text is not TOML, a field is unknown, or a value is not of its type or is out of its range.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let policy: Self =
            toml::from_str(text).map_err(|error| PolicyError::Unreadable(error.to_string().trim_end().to_owned()))?;
        policy.check()?;
        Ok(policy)
    }

    /// The text of the built-in policy of this name.
    pub fn built_in(name: &str) -> Option<&'static str> {
        BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// Checks the range of every value.
    ///
    /// # Errors
    /// The first value that is out of its range.
    pub fn check(&self) -> Result<(), PolicyError> {
        let Self { first, busy, slack, device_state, patience, patience_share, worth, give_up, .. } = self;
        let Self { throttle_max, stop_and_copy, xbzrle, .. } = self;
        require(!self.name.trim().is_empty(), "name", "empty", "write a name, or leave the field out")?;
        require_within("first", *first, MILLISECOND, DOWNTIME_MAX)?;
        require_within("busy", *busy, Duration::ZERO, DOWNTIME_MAX)?;
        require((0.0..=1.0).contains(slack), "slack", slack, "it is a share: write one from 0.0 to 1.0")?;
        require_within("device-state", *device_state, Duration::ZERO, DOWNTIME_MAX)?;
        // without any patience the whole ladder would be climbed at once
        require_within("patience", *patience, MILLISECOND, LONGEST)?;
        let is_share = (0.0..=1.0).contains(patience_share);
        require(is_share, "patience-share", patience_share, "it is a share: write one from 0.0 to 1.0")?;
        let pays = *worth >= 1.0 && worth.is_finite();
        require(pays, "worth", worth, "a blackout would be paid for with less than itself: write 1.0 or more")?;
        require_within("give-up", *give_up, Duration::ZERO, LONGEST)?;
        let is_throttle = (1..=99).contains(throttle_max);
        require(is_throttle, "throttle-max", throttle_max, "write 1 to 99 per cent, or leave \"throttle\" out of ram")?;
        let listed = |rung: RamRung| self.ram.contains(&rung);
        require_once("ram", &self.ram)?;
        require_once("disks", &self.disks)?;
        let length = words(*stop_and_copy);
        require(
            !listed(RamRung::StopAndCopy) || !stop_and_copy.is_zero(),
            "stop-and-copy",
            &length,
            "the rung of this name needs the longest blackout that it may cost: write \"5s\" or the like",
        )?;
        require(
            listed(RamRung::StopAndCopy) || stop_and_copy.is_zero(),
            "stop-and-copy",
            &length,
            "it means nothing unless ram has the rung \"stop-and-copy\": add it, or leave this out",
        )?;
        require_within("stop-and-copy", *stop_and_copy, Duration::ZERO, DOWNTIME_MAX)?;
        let after = self.ram.iter().position(|rung| *rung == RamRung::Postcopy).map(|at| self.ram.len() - at - 1);
        let expected = "nothing can come after \"postcopy\": the guest runs at the destination by then";
        require(matches!(after, None | Some(0)), "ram", listing(&self.ram), expected)?;
        if let Some(cache) = xbzrle {
            require(
                cache.0.is_power_of_two(),
                "xbzrle",
                cache,
                "QEMU wants a power of two: write \"64MiB\" or \"128MiB\"",
            )?;
        }
        self.schedule.as_ref().map_or(Ok(()), check_schedule)
    }
}

fn check_schedule(schedule: &PublishedSchedule) -> Result<(), PolicyError> {
    require_within("schedule.poll", schedule.poll, MILLISECOND, LONGEST)?;
    require_within("schedule.downtime", schedule.downtime, MILLISECOND, DOWNTIME_MAX)?;
    require_within("schedule.cooldown", schedule.cooldown, Duration::ZERO, LONGEST)?;
    require_within("schedule.give-up-per-gib", schedule.give_up_per_gib, Duration::ZERO, LONGEST)?;
    let most = u64::from(u16::MAX);
    require(schedule.least_gib <= most, "schedule.least-gib", schedule.least_gib, &format!("write up to {most}"))?;
    let mut limit = schedule.downtime;
    for (at, step) in schedule.steps.iter().enumerate() {
        let number = at + 1;
        let last = number == schedule.steps.len();
        let require = |holds: bool, value: String, expected: &str| {
            require(holds, "schedule.steps", format!("{value} in step {number}"), expected)
        };
        match step.then {
            StepAction::Downtime(next) => {
                let is_limit = (MILLISECOND..=DOWNTIME_MAX).contains(&next);
                require(is_limit, words(next), "write a downtime of 1ms to 2000s")?;
                let expected = format!("a downtime must be above that before it: write more than {}", words(limit));
                require(next > limit, words(next), &expected)?;
                limit = next;
            }
            StepAction::Postcopy | StepAction::GiveUp => {
                require(last, "postcopy or give-up".to_owned(), "nothing can come after it: write it last")?;
            }
        }
        for due in [step.after, step.after_per_gib] {
            require(due <= LONGEST, words(due), "write at most 366 days")?;
        }
        let before = at.checked_sub(1).and_then(|before| schedule.steps.get(before));
        let is_earlier = |other: &ScheduleStep| step.after < other.after || step.after_per_gib < other.after_per_gib;
        require(
            !before.is_some_and(is_earlier),
            "a time before that of the step before".to_owned(),
            "write the steps in the order of their times",
        )?;
    }
    Ok(())
}

fn require(holds: bool, field: &'static str, value: impl fmt::Display, expected: &str) -> Result<(), PolicyError> {
    match holds {
        true => Ok(()),
        false => Err(PolicyError::Value { field, value: value.to_string(), expected: expected.to_owned() }),
    }
}

fn require_within(field: &'static str, value: Duration, least: Duration, most: Duration) -> Result<(), PolicyError> {
    let expected = format!("write {} to {}s", words(least), most.as_secs());
    require((least..=most).contains(&value), field, words(value), &expected)
}

fn require_once<T: PartialEq + Serialize>(field: &'static str, rungs: &[T]) -> Result<(), PolicyError> {
    let repeats = rungs.iter().enumerate().any(|(at, rung)| rungs[..at].contains(rung));
    let expected = "a rung is there twice: each is climbed once, and again by itself";
    require(!repeats, field, listing(rungs), expected)
}

/// The rungs as a file has them.
fn listing<T: Serialize>(rungs: &[T]) -> String {
    serde_json::to_string(rungs).unwrap_or_default()
}

fn words(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::DiskRung;

    const REFERENCE: &str = include_str!("../../docs/policies.md");

    fn named(name: &str) -> Policy {
        let text = Policy::built_in(name).unwrap_or_else(|| panic!("{name}"));
        text.parse().unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    #[test]
    fn every_built_in_policy_is_read_under_its_name() {
        for (name, _) in BUILT_IN {
            assert_eq!(named(name).name, name);
        }
        assert_eq!(Policy::built_in("unheard-of"), None);
    }

    #[test]
    fn converge_is_the_default_written_out() {
        assert_eq!(named("converge"), Policy::default());
        assert_eq!(Policy::from_toml(""), Ok(Policy { name: "unnamed".to_owned(), ..Policy::default() }));
    }

    #[test]
    fn each_does_what_its_name_says() {
        let rungs = |name: &str| named(name).ram;
        assert_eq!(rungs("postcopy"), [RamRung::Downtime, RamRung::Postcopy]);
        assert_eq!((rungs("patient"), named("patient").disks), (vec![RamRung::Downtime], vec![DiskRung::Bandwidth]));
        assert_eq!(named("observe"), Policy { name: "observe".to_owned(), observe: true, ..Policy::default() });
        let may = |name: &str| (named(name).may_throttle(), named(name).may_postcopy());
        assert_eq!(
            ["converge", "postcopy", "patient", "observe", "nova", "vdsm", "kubevirt"].map(may),
            [
                (true, false),
                (false, true),
                (false, false),
                (false, false),
                (false, false),
                (false, false),
                (false, false)
            ]
        );
    }

    #[test]
    fn the_published_schedules_are_as_published() {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        let schedule = |name: &str| named(name).schedule.expect(name);
        let limits = |schedule: &PublishedSchedule| -> Vec<u64> {
            let of = |step: &ScheduleStep| match step.then {
                StepAction::Downtime(limit) => u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
                _ => 0,
            };
            schedule.steps.iter().map(of).collect()
        };
        let nova = schedule("nova");
        assert_eq!(nova.downtime, ms(50));
        // downtime_steps: base + offset * i at delay * i
        for (step, i) in nova.steps.iter().zip(1u32..) {
            assert_eq!((step.then, step.after_per_gib), (StepAction::Downtime(ms(50) + ms(45) * i), s(75) * i));
        }
        assert_eq!((nova.steps.len(), nova.longest(), nova.give_up_per_gib), (10, ms(500), s(800)));

        let vdsm = schedule("vdsm");
        assert_eq!(limits(&vdsm), [150, 200, 300, 400, 500, 0]);
        assert_eq!(vdsm.steps.iter().map(|step| step.passes).collect::<Vec<_>>(), [2, 3, 4, 5, 7, 0]);
        assert!(vdsm.auto_converge && vdsm.at_new_pass && vdsm.poll == s(10) && vdsm.downtime == ms(100));
        assert_eq!(vdsm.steps.last().map(|step| step.then), Some(StepAction::GiveUp));

        let kubevirt = schedule("kubevirt");
        assert_eq!(limits(&kubevirt), [257, 364, 471, 579, 686, 793, 900]);
        assert!(kubevirt.steps.iter().all(|step| step.passes == 3));
        assert_eq!((kubevirt.downtime, kubevirt.cooldown, kubevirt.give_up_per_gib), (ms(150), s(10), s(150)));
        assert_eq!(named("kubevirt").budget(), Some(ms(900)));
    }

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_right() {
        const SCHEDULE: &str = "[schedule]\npoll = '1s'\ndowntime = '50ms'\n";
        for (text, words) in [
            ("frist = '20ms'", &["frist", "first"][..]),
            ("first = 20", &["first", "50ms"]),
            ("patience = 5", &["patience", "\"2s\""]),
            ("first = 'soon'", &["soon", "50ms"]),
            ("first = '0s'", &["first", "1ms to 2000s"]),
            ("busy = '1h'", &["busy", "2000s"]),
            ("slack = 1.5", &["slack", "0.0 to 1.0"]),
            ("slack = nan", &["slack", "0.0 to 1.0"]),
            ("patience = '0s'", &["patience", "1ms to"]),
            ("give-up = '400days'", &["give-up", "31622400s"]),
            ("throttle-max = 0", &["throttle-max", "1 to 99"]),
            ("throttle-max = 100", &["throttle-max", "1 to 99"]),
            ("throttle-max = 300", &["throttle-max"]),
            ("ram = ['hope']", &["hope", "downtime", "stop-and-copy"]),
            ("ram = ['downtime', 'downtime']", &["ram", "twice"]),
            ("disks = ['bandwidth', 'bandwidth']", &["disks", "twice"]),
            ("ram = ['postcopy', 'throttle']", &["ram", "after \"postcopy\""]),
            ("ram = ['stop-and-copy']", &["stop-and-copy", "5s"]),
            ("stop-and-copy = '5s'", &["stop-and-copy", "add it"]),
            ("xbzrle = '100MiB'", &["xbzrle", "128MiB"]),
            ("xbzrle = '1 furlong'", &["furlong", "MiB"]),
            ("name = ' '", &["name", "leave the field out"]),
            ("schedule = 5", &["schedule"]),
            ("[schedule]\ndowntime = '1s'", &["poll"]),
            ("[schedule]\npoll = '0s'\ndowntime = '1s'", &["schedule.poll", "1ms to"]),
            ("[schedule]\npoll = '1s'\ndowntime = '1h'", &["schedule.downtime", "2000s"]),
            ("steps = [{ downtime = '40ms' }]", &["step 1", "more than 50ms"]),
            ("steps = [{ downtime = '60ms', then = 'give-up' }]", &["either a downtime"]),
            ("steps = [{ passes = 2 }]", &["either a downtime"]),
            ("steps = [{ then = 'pray' }]", &["pray", "give-up"]),
            ("steps = [{ pass = 2, downtime = '60ms' }]", &["pass", "passes"]),
            ("steps = [{ then = 'give-up' }, { downtime = '60ms' }]", &["step 1", "nothing can come after"]),
            (
                "steps = [{ after = '9s', downtime = '60ms' }, { after = '8s', downtime = '70ms' }]",
                &["step 2", "the step before"],
            ),
        ] {
            let whole = if text.starts_with("steps") { format!("{SCHEDULE}{text}") } else { text.to_owned() };
            let error = Policy::from_toml(&whole).expect_err(text).to_string();
            for word in words {
                assert!(error.contains(word), "{text}: '{word}' is not in: {error}");
            }
        }
    }

    /// Every field under `head`, taken from the error that lists them all.
    fn fields(head: &str) -> Vec<String> {
        let error = Policy::from_toml(&format!("{head}nonsense = 1")).expect_err("no such field").to_string();
        let list = error.split("expected one of").nth(1).unwrap_or_else(|| panic!("{error}"));
        list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn every_field_is_documented_in_the_file_and_on_the_page() {
        let file = Policy::built_in("converge").expect("the default");
        let (policy, schedule) = (fields(""), fields("[schedule]\n"));
        assert!(policy.len() > 12 && schedule.len() > 7, "{policy:?} {schedule:?}");
        let error = Policy::from_toml("[schedule]\nsteps = [{ nonsense = 1 }]").expect_err("no such field").to_string();
        let step = error.split("expected one of").nth(1).unwrap_or_else(|| panic!("{error}"));
        let steps: Vec<String> = step.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert_eq!(steps.len(), 5, "{error}");
        for field in policy.iter().chain(&schedule).chain(&steps) {
            assert!(REFERENCE.contains(&format!("| `{field}` |")), "{field} is not in docs/policies.md");
            let is_written = file.contains(&format!("{field} = ")) || file.contains(&format!("[{field}]"));
            assert!(is_written, "{field} is not in converge.toml");
        }
        for (name, _) in BUILT_IN {
            assert!(REFERENCE.contains(&format!("`{name}`")), "{name} is not in docs/policies.md");
        }
    }
}
