//! Policies as they are written in TOML: reading, checking, and the built-in ones.
//!
//! Pure. The caller reads a policy's file; this module gets its text.

use super::policy::{DiskRung, Policy, PublishedSchedule, RamRung, ScheduleStep, StepAction};
use crate::quantity::Bytes;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{str::FromStr, time::Duration};
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

/// QEMU's own limit of `downtime-limit`.
const DOWNTIME_MAX: Duration = Duration::from_secs(2000);

/// Why a policy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// The text is not TOML, or a field or value is unknown; the message shows the line.
    #[error("{0}")]
    Unreadable(String),
    /// A value is out of its range.
    #[error("{field}: {problem}")]
    Value {
        /// The field.
        field: &'static str,
        /// What is wrong with the value, and which value would be right.
        problem: String,
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
        let Self { first, busy, slack, patience, patience_share, worth, throttle_max, stop_and_copy, xbzrle, .. } =
            self;
        require(!self.name.trim().is_empty(), "name", || "write a name, or leave the field out".to_owned())?;
        require(!first.is_zero() && *first <= DOWNTIME_MAX, "first", || {
            format!("{first:?} is not a downtime limit: write 1ms to 2000s, such as \"20ms\"")
        })?;
        require(*busy <= DOWNTIME_MAX, "busy", || {
            format!("{busy:?} is not a downtime limit: write up to 2000s, or \"0s\" for the limit of first")
        })?;
        require((0.0..=1.0).contains(slack), "slack", || format!("{slack} is not a share: write 0.0 to 1.0"))?;
        require(!patience.is_zero(), "patience", || {
            "without patience every rung is climbed at once: write a duration such as \"2s\"".to_owned()
        })?;
        require((0.0..=1.0).contains(patience_share), "patience-share", || {
            format!("{patience_share} is not a share: write 0.0 to 1.0")
        })?;
        require(*worth >= 1.0 && worth.is_finite(), "worth", || {
            format!("at {worth} a second of blackout would save less than a second: write 1.0 or more")
        })?;
        require((1..=99).contains(throttle_max), "throttle-max", || {
            format!("{throttle_max} is not a throttle: write 1 to 99 per cent, or leave \"throttle\" out of ram")
        })?;
        let listed = |rung: RamRung| self.ram.contains(&rung);
        no_repeats("ram", &self.ram)?;
        no_repeats::<DiskRung>("disks", &self.disks)?;
        require(!listed(RamRung::StopAndCopy) || !stop_and_copy.is_zero(), "stop-and-copy", || {
            "the rung \"stop-and-copy\" needs its longest blackout: write a duration such as \"5s\"".to_owned()
        })?;
        require(listed(RamRung::StopAndCopy) || stop_and_copy.is_zero(), "stop-and-copy", || {
            "ram lacks the rung \"stop-and-copy\": add it, or leave this field out".to_owned()
        })?;
        let after = self.ram.iter().position(|rung| *rung == RamRung::Postcopy).map(|at| self.ram.len() - at - 1);
        require(matches!(after, None | Some(0)), "ram", || {
            "no rung can come after \"postcopy\": the guest runs on the destination by then".to_owned()
        })?;
        require(xbzrle.is_none_or(|cache| cache.0.is_power_of_two()), "xbzrle", || {
            "QEMU takes powers of two only: write a size such as \"64MiB\" or \"128MiB\"".to_owned()
        })?;
        self.schedule.as_ref().map_or(Ok(()), check_schedule)
    }
}

fn check_schedule(schedule: &PublishedSchedule) -> Result<(), PolicyError> {
    let is_limit = |limit: &Duration| (Duration::from_millis(1)..=DOWNTIME_MAX).contains(limit);
    require(!schedule.poll.is_zero(), "schedule.poll", || {
        "write the time between two looks, such as \"500ms\"".to_owned()
    })?;
    require(is_limit(&schedule.downtime), "schedule.downtime", || "write a downtime limit of 1ms to 2000s".to_owned())?;
    let mut limit = schedule.downtime;
    for (at, step) in schedule.steps.iter().enumerate() {
        let number = at + 1;
        let last = number == schedule.steps.len();
        match step.then {
            StepAction::Downtime(next) => {
                require(is_limit(&next), "schedule.steps", || {
                    format!("step {number}: write a downtime limit of 1ms to 2000s")
                })?;
                require(next > limit, "schedule.steps", || {
                    format!("step {number}: the downtime limit {next:?} is not above the {limit:?} before it")
                })?;
                limit = next;
            }
            StepAction::Postcopy | StepAction::GiveUp => require(last, "schedule.steps", || {
                format!("step {number}: no step can come after postcopy or give-up")
            })?,
        }
        let before = at.checked_sub(1).and_then(|before| schedule.steps.get(before));
        let is_earlier = |other: &ScheduleStep| step.after < other.after || step.after_per_gib < other.after_per_gib;
        require(!before.is_some_and(is_earlier), "schedule.steps", || {
            format!("step {number} would be due before step {at}")
        })?;
    }
    Ok(())
}

fn require(holds: bool, field: &'static str, problem: impl FnOnce() -> String) -> Result<(), PolicyError> {
    if holds { Ok(()) } else { Err(PolicyError::Value { field, problem: problem() }) }
}

fn no_repeats<T: PartialEq>(field: &'static str, rungs: &[T]) -> Result<(), PolicyError> {
    let repeats = rungs.iter().enumerate().any(|(at, rung)| rungs[..at].contains(rung));
    require(!repeats, field, || "a rung is listed twice: list it once, it is climbed again where that helps".to_owned())
}

/// The name of a policy whose file gives none.
pub(super) fn unnamed() -> String {
    "unnamed".to_owned()
}

/// Reads a duration as on the command line.
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        D::Error::custom(format!(
            "\"{text}\" is not a duration ({error}): write a time such as \"50ms\", \"2s\" or \"1m\""
        ))
    })
}

/// Reads a size as on the command line.
pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// A step as it is written: with a downtime limit, or with a word for its end of the schedule.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct WrittenStep {
    #[serde(default)]
    passes: u64,
    #[serde(default, deserialize_with = "duration")]
    after: Duration,
    #[serde(default, deserialize_with = "duration")]
    after_per_gib: Duration,
    #[serde(default, deserialize_with = "some_duration")]
    downtime: Option<Duration>,
    then: Option<WrittenEnd>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WrittenEnd {
    Postcopy,
    GiveUp,
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

impl TryFrom<WrittenStep> for ScheduleStep {
    type Error = &'static str;

    fn try_from(step: WrittenStep) -> Result<Self, Self::Error> {
        let WrittenStep { passes, after, after_per_gib, downtime, then } = step;
        let then = match (downtime, then) {
            (Some(limit), None) => StepAction::Downtime(limit),
            (None, Some(WrittenEnd::Postcopy)) => StepAction::Postcopy,
            (None, Some(WrittenEnd::GiveUp)) => StepAction::GiveUp,
            _ => return Err("a step has either a downtime, or then = \"postcopy\" or \"give-up\""),
        };
        Ok(Self { passes, after, after_per_gib, then })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(Policy::from_toml(""), Ok(Policy { name: unnamed(), ..Policy::default() }));
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
            ("first = 20", &["first", "string"]),
            ("first = 'soon'", &["soon", "50ms"]),
            ("first = '0s'", &["first", "1ms to 2000s"]),
            ("busy = '1h'", &["busy", "2000s"]),
            ("slack = 1.5", &["slack", "0.0 to 1.0"]),
            ("slack = nan", &["slack", "0.0 to 1.0"]),
            ("patience = '0s'", &["patience", "2s"]),
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
            ("[schedule]\npoll = '0s'\ndowntime = '1s'", &["schedule.poll", "500ms"]),
            ("[schedule]\npoll = '1s'\ndowntime = '1h'", &["schedule.downtime", "2000s"]),
            ("steps = [{ downtime = '40ms' }]", &["step 1", "not above the 50ms"]),
            ("steps = [{ downtime = '60ms', then = 'give-up' }]", &["either a downtime"]),
            ("steps = [{ passes = 2 }]", &["either a downtime"]),
            ("steps = [{ then = 'pray' }]", &["pray", "give-up"]),
            ("steps = [{ pass = 2, downtime = '60ms' }]", &["pass", "passes"]),
            ("steps = [{ then = 'give-up' }, { downtime = '60ms' }]", &["step 1", "no step can come after"]),
            (
                "steps = [{ after = '9s', downtime = '60ms' }, { after = '8s', downtime = '70ms' }]",
                &["step 2", "before step 1"],
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
