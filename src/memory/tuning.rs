//! Migration capabilities and parameters: what a run wants of them, side by side, and what it changes on its way.
//!
//! Pure. What one side had before is read and put back by [`super::apply`]. Nothing here knows a version: a capability that
//! a build has not is not turned off there, and one that is needed and missing was refused by the preflight.

use super::postcopy;
use crate::{
    codes::Setting,
    progress::Side,
    qemu::Features,
    quantity::{Bytes, Rate},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{fmt, str::FromStr, time::Duration};

/// QEMU has no word for "no limit" that all versions know, and defaults to 128 MiB/s: this is far above any link.
const UNLIMITED: Rate = Rate(1 << 40);
/// The rate of RAM that must not end yet: a page in each of QEMU's windows of 100 ms. 0 would mean no limit.
const TRICKLE: Rate = Rate(4096);
/// The bandwidth with which no more than a byte fits into a downtime limit of 1 ms, since QEMU multiplies bytes per
/// millisecond: QEMU that is told this one does not stop the guest.
const NO_SWITCHOVER: Rate = Rate(1000);
/// QEMU's own limit of `downtime-limit`.
pub const DOWNTIME_MAX: Duration = Duration::from_secs(2000);
/// The most that QEMU throttles vCPUs by, per cent.
pub const THROTTLE_MAX: u8 = 99;
/// The most channels that QEMU takes.
pub const CHANNELS_MAX: u8 = 255;
/// MB/s for each vCPU that no guest reaches: `vcpu-dirty-limit` has no word for "no limit".
const NO_DIRTY_LIMIT: u64 = 1 << 20;

/// Capabilities that a former user may have left on and that change what a migration does. They are turned off where this
/// run does not want them, and put back afterwards.
///
/// With `block` QEMU copies disks by itself, with `background-snapshot` it takes a snapshot in place of a migration, with
/// `release-ram` it gives up the pages to which the way back leads, and `dirty-bitmaps` fails a migration in which one
/// bitmap cannot move. What only proves or counts something (`validate-uuid`, `postcopy-blocktime`) stays as it is, and so
/// does `x-ignore-shared`: only its user knows whether both sides hold the same memory.
const STRAY: [&str; 15] = [
    "auto-converge",
    "background-snapshot",
    "block",
    "compress",
    "dirty-bitmaps",
    "dirty-limit",
    "mapped-ram",
    "multifd",
    "postcopy-preempt",
    "postcopy-ram",
    "rdma-pin-all",
    "release-ram",
    "x-colo",
    "xbzrle",
    "zero-copy-send",
];

/// How multifd channels compress what they send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Compression {
    /// zstd: much faster.
    Zstd,
    /// zlib.
    Zlib,
}

impl Compression {
    /// QEMU's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Zlib => "zlib",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "zstd" => Ok(Self::Zstd),
            "zlib" => Ok(Self::Zlib),
            _ => Err("write zstd (much faster) or zlib".to_owned()),
        }
    }
}

/// Who may slow the guest down so that its memory can be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Throttle {
    /// Nobody.
    #[default]
    Never,
    /// QEMU by auto-converge with its own steps: 20 per cent, then 10 more each time, up to this many.
    OwnSteps(u8),
    /// The engine: set up so that nothing is slowed down until [`throttle`] or [`dirty_limit`] says so. By `dirty-limit`
    /// where QEMU accepts it, which slows only vCPUs that write, and else by `auto-converge`.
    OnDemand,
}

/// With what a guest is slowed down in this run: what QEMU took of what was wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Throttling {
    /// It is not.
    #[default]
    None,
    /// `auto-converge`: per cent of all vCPUs' time. See [`throttle`].
    AutoConverge,
    /// `dirty-limit`: MB/s that each vCPU may dirty. See [`dirty_limit`].
    DirtyLimit,
}

/// What a run wants of QEMU's migration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// How many channels RAM is sent over, where it is to be more than one.
    pub multifd: Option<u8>,
    /// How these compress.
    pub compress: Option<Compression>,
    /// The cache of `xbzrle`, where it is wanted.
    pub xbzrle: Option<Bytes>,
    /// Who may slow the guest down.
    pub throttle: Throttle,
    /// Postcopy may be started.
    pub postcopy: bool,
    /// Named dirty bitmaps move with the guest.
    pub bitmaps: bool,
    /// The first `downtime-limit`.
    pub downtime: Duration,
    /// The first ceiling of RAM.
    pub bandwidth: Option<Rate>,
}

/// What one side is to be set to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Setup {
    /// Capabilities, on and off.
    pub capabilities: Vec<(&'static str, bool)>,
    /// Capabilities of which the first that QEMU takes is turned on, after the others.
    pub one_of: Vec<&'static str>,
    /// Parameters.
    pub parameters: Map<String, Value>,
    /// Parameters that may be changed on the way besides, and are to be put back too.
    pub later: Vec<&'static str>,
}

/// Settings of one side as they were, so that they can be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Capabilities by name.
    pub capabilities: Vec<(String, bool)>,
    /// Parameters by name.
    pub parameters: Map<String, Value>,
}

impl Wanted {
    /// What one side is to be set to, given what its build has.
    pub fn setup(&self, side: Side, features: &Features) -> Setup {
        let on = self.capabilities(side);
        let one_of = match (side, self.throttle) {
            (Side::Source, Throttle::OnDemand) => {
                ["dirty-limit", "auto-converge"].into_iter().filter(|name| has(features, name)).collect()
            }
            _ => Vec::new(),
        };
        let off = STRAY.into_iter().filter(|name| !on.contains(name) && has(features, name));
        let mut capabilities: Vec<(&str, bool)> = off.map(|name| (name, false)).collect();
        capabilities.extend(on.iter().map(|&name| (name, true)));

        let mut parameters = Map::new();
        let mut later = Vec::new();
        if side == Side::Source {
            parameters.extend(downtime(self.downtime));
            parameters.extend(bandwidth(self.bandwidth));
            if self.postcopy {
                // none until the guest has resumed: see `super::postcopy::limit`
                parameters.insert(postcopy::BANDWIDTH.to_owned(), json!(0));
            }
            match self.throttle {
                Throttle::Never => {}
                Throttle::OwnSteps(most) => parameters.extend(own_steps(most)),
                Throttle::OnDemand if one_of.is_empty() => {}
                Throttle::OnDemand => parameters.extend(disarmed()),
            }
            if one_of.contains(&"dirty-limit") {
                later.push("vcpu-dirty-limit");
            }
            if features.avail_switchover_bandwidth {
                later.push("avail-switchover-bandwidth");
            }
        }
        if let Some(channels) = self.multifd {
            // a former user's compression would not be the destination's
            let how = self.compress.map_or("none", Compression::as_str);
            parameters.extend(map([("multifd-channels", json!(channels)), ("multifd-compression", json!(how))]));
        }
        if let Some(cache) = self.xbzrle {
            parameters.insert("xbzrle-cache-size".to_owned(), json!(cache.0));
        }
        Setup { capabilities, one_of, parameters, later }
    }

    /// The capabilities that one side needs on.
    fn capabilities(&self, side: Side) -> Vec<&'static str> {
        let mut on = match side {
            Side::Source => vec!["events", "return-path", "pause-before-switchover"],
            // without return-path here too, 7.2 would not report that the load failed
            Side::Destination => vec!["events", "return-path", "late-block-activate"],
        };
        on.extend(self.asked_for().into_iter().map(|(name, _)| name));
        if self.bitmaps {
            on.push("dirty-bitmaps");
        }
        if side == Side::Source && matches!(self.throttle, Throttle::OwnSteps(_)) {
            on.push("auto-converge");
        }
        on
    }

    /// The capabilities that the settings ask for on both sides, each with the setting that does.
    pub fn asked_for(&self) -> Vec<(&'static str, String)> {
        let asked = [
            (self.multifd.is_some(), "multifd", Setting::Multifd.to_string()),
            (self.xbzrle.is_some(), "xbzrle", format!("xbzrle of the {}", Setting::Policy)),
            (self.postcopy, postcopy::CAPABILITY, format!("postcopy in the {}", Setting::Policy)),
        ];
        asked.into_iter().filter(|(is_asked, ..)| *is_asked).map(|(_, name, by)| (name, by)).collect()
    }
}

/// A new `downtime-limit`, at least 1 ms and at most what QEMU takes. With 0 it would not count anew before it stops the
/// guest.
pub fn downtime(limit: Duration) -> Map<String, Value> {
    let millis = limit.clamp(Duration::from_millis(1), DOWNTIME_MAX).as_millis();
    map([("downtime-limit", json!(u64::try_from(millis).unwrap_or(u64::MAX)))])
}

/// A new ceiling of RAM before postcopy.
pub fn bandwidth(ceiling: Option<Rate>) -> Map<String, Value> {
    // 0 would mean no limit, and nothing could be sent below a byte a second anyway
    let rate = ceiling.unwrap_or(UNLIMITED).0.clamp(1, UNLIMITED.0);
    map([("max-bandwidth", json!(rate))])
}

/// A ceiling of RAM at which hardly anything is sent.
pub fn trickle() -> Map<String, Value> {
    bandwidth(Some(TRICKLE))
}

/// Keeps QEMU from stopping the guest, together with a downtime limit of 1 ms.
pub fn no_switchover(features: &Features) -> Map<String, Value> {
    switchover_bandwidth(Some(NO_SWITCHOVER), features)
}

/// With what bandwidth QEMU is to reckon when it decides to switch over, in place of what it measures: under a low ceiling
/// it would else never do so, for once the guest is stopped the ceiling is off. Empty where the build has no such parameter.
/// `None` has it measure again.
pub fn switchover_bandwidth(rate: Option<Rate>, features: &Features) -> Map<String, Value> {
    match features.avail_switchover_bandwidth {
        // 0 has it measure
        true => map([("avail-switchover-bandwidth", json!(rate.map_or(0, |rate| rate.0.max(1))))]),
        false => Map::new(),
    }
}

/// Throttles all vCPUs to exactly this many per cent, with [`Throttling::AutoConverge`]; fewer than before loosens it.
///
/// QEMU acts at a bitmap sync that found memory dirtied, the first time at the second in a row: its first step is
/// `cpu-throttle-initial`, a further one adds the increment and stops at the maximum, which is why all are the same here.
/// Once throttled, only a smaller figure loosens it; the end of the migration ends it, however it ends.
pub fn throttle(percent: u8) -> Map<String, Value> {
    let percent = percent.clamp(1, THROTTLE_MAX);
    steps(1, percent, percent, percent)
}

/// Lets a guest of so many CPUs dirty no more than this, with [`Throttling::DirtyLimit`]. QEMU counts in MB (2^20 bytes), and
/// for each vCPU alone: each gets its part.
pub fn dirty_limit(rate: Rate, cpus: usize) -> Map<String, Value> {
    let part = rate.0 / u64::try_from(cpus).unwrap_or(u64::MAX).max(1);
    let megabytes = (part >> 20).clamp(1, NO_DIRTY_LIMIT);
    [steps(1, 1, 1, 1), map([("vcpu-dirty-limit", json!(megabytes))])].into_iter().flatten().collect()
}

/// Armed for nothing: a capability cannot be turned on later. What QEMU may still do by itself is one per cent. It does so
/// early, for only from the second sync on that found this much dirtied it throttles at all: what is asked for later then
/// comes at its next step, not seconds after.
fn disarmed() -> Map<String, Value> {
    steps(25, 1, 1, 1)
}

/// Auto-converge with QEMU's defaults, whatever a former user left.
fn own_steps(most: u8) -> Map<String, Value> {
    let most = most.clamp(1, THROTTLE_MAX);
    steps(50, 20.min(most), 10.min(most), most)
}

/// All at once: QEMU refuses an initial step above the maximum, and looks at what comes in one command together.
fn steps(trigger: u8, initial: u8, increment: u8, most: u8) -> Map<String, Value> {
    map([
        ("throttle-trigger-threshold", json!(trigger)),
        ("cpu-throttle-initial", json!(initial)),
        ("cpu-throttle-increment", json!(increment)),
        ("max-cpu-throttle", json!(most)),
        // with it the last steps are smaller than they are told to be
        ("cpu-throttle-tailslow", json!(false)),
    ])
}

/// What a dirty limit that limits nothing is, for a build that took the capability.
pub(super) fn no_dirty_limit() -> Map<String, Value> {
    map([("vcpu-dirty-limit", json!(NO_DIRTY_LIMIT))])
}

fn has(features: &Features, capability: &str) -> bool {
    features.migration_capabilities.contains(capability)
}

fn map<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Schema;
    use proptest::prelude::*;

    fn plain() -> Wanted {
        Wanted { downtime: Duration::from_millis(300), ..Wanted::default() }
    }

    /// A build with these capabilities, and with the newer parameter or not.
    fn features(capabilities: &[&str], avail_switchover_bandwidth: bool) -> Features {
        let nothing = json!([]);
        let migration_capabilities = capabilities.iter().map(|name| (*name).to_owned()).collect();
        Features { migration_capabilities, avail_switchover_bandwidth, ..Features::read(&Schema::new(&nothing)) }
    }

    fn all() -> Features {
        features(&STRAY, true)
    }

    fn on(setup: &Setup) -> Vec<&'static str> {
        setup.capabilities.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect()
    }

    #[test]
    fn each_wish_turns_on_what_it_needs() {
        type Case = (&'static str, Wanted, &'static [&'static str], &'static [&'static str]);
        let cases: [Case; 7] = [
            ("nothing", plain(), &[], &[]),
            ("multifd", Wanted { multifd: Some(2), ..plain() }, &["multifd"], &["multifd"]),
            ("xbzrle", Wanted { xbzrle: Some(Bytes(1 << 26)), ..plain() }, &["xbzrle"], &["xbzrle"]),
            ("postcopy", Wanted { postcopy: true, ..plain() }, &["postcopy-ram"], &["postcopy-ram"]),
            ("bitmaps", Wanted { bitmaps: true, ..plain() }, &["dirty-bitmaps"], &["dirty-bitmaps"]),
            ("steps", Wanted { throttle: Throttle::OwnSteps(99), ..plain() }, &["auto-converge"], &[]),
            // turned on apart, for the first that is taken
            ("demand", Wanted { throttle: Throttle::OnDemand, ..plain() }, &[], &[]),
        ];
        for (name, wanted, here, there) in cases {
            let (source, destination) = (wanted.setup(Side::Source, &all()), wanted.setup(Side::Destination, &all()));
            assert_eq!(on(&source), [&["events", "return-path", "pause-before-switchover"], here].concat(), "{name}");
            assert_eq!(on(&destination), [&["events", "return-path", "late-block-activate"], there].concat(), "{name}");
            for setup in [source, destination] {
                for stray in STRAY {
                    let said: Vec<bool> =
                        setup.capabilities.iter().filter(|(name, _)| *name == stray).map(|(_, on)| *on).collect();
                    assert_eq!(said, [on(&setup).contains(&stray)], "{name}: {stray} is said once, on or off");
                }
            }
        }
    }

    #[test]
    fn what_a_build_has_not_is_not_turned_off() {
        let setup = plain().setup(Side::Source, &features(&["xbzrle"], false));
        let off: Vec<&str> = setup.capabilities.iter().filter(|(_, on)| !on).map(|(name, _)| *name).collect();
        assert_eq!((off, setup.later), (vec!["xbzrle"], vec![]));
    }

    #[test]
    fn a_throttle_on_demand_takes_what_the_build_has() {
        let wanted = Wanted { throttle: Throttle::OnDemand, ..plain() };
        for (capabilities, one_of, later) in [
            (&["auto-converge", "dirty-limit"][..], &["dirty-limit", "auto-converge"][..], &["vcpu-dirty-limit"][..]),
            (&["auto-converge"], &["auto-converge"], &[]),
            (&[], &[], &[]),
        ] {
            let setup = wanted.setup(Side::Source, &features(capabilities, false));
            assert_eq!((&setup.one_of[..], &setup.later[..]), (one_of, later));
            let armed_for_nothing = setup.parameters.get("throttle-trigger-threshold");
            assert_eq!(armed_for_nothing, (!one_of.is_empty()).then(|| json!(25)).as_ref());
            assert_eq!(wanted.setup(Side::Destination, &all()).one_of, Vec::<&str>::new());
        }
    }

    #[test]
    fn parameters_are_of_the_side_that_reads_them() {
        let wanted = Wanted {
            multifd: Some(4),
            compress: Some(Compression::Zstd),
            xbzrle: Some(Bytes(1 << 26)),
            bandwidth: Some(Rate(1000)),
            ..plain()
        };
        let both = map([
            ("multifd-channels", json!(4)),
            ("multifd-compression", json!("zstd")),
            ("xbzrle-cache-size", json!(1 << 26)),
        ]);
        assert_eq!(wanted.setup(Side::Destination, &all()).parameters, both);
        let setup = wanted.setup(Side::Source, &all());
        let here = map([("downtime-limit", json!(300)), ("max-bandwidth", json!(1000))]);
        assert_eq!(setup.parameters, here.into_iter().chain(both).collect());
        assert_eq!(setup.later, ["avail-switchover-bandwidth"]);
        let uncompressed = Wanted { compress: None, ..wanted }.setup(Side::Destination, &all()).parameters;
        assert_eq!(uncompressed["multifd-compression"], "none", "whatever a former user left");
    }

    #[test]
    fn changes_stay_within_what_qemu_takes() {
        for (limit, millis) in [(0, 1), (1, 1), (300, 300), (2_000_000, 2_000_000), (2_000_001, 2_000_000)] {
            assert_eq!(downtime(Duration::from_millis(limit))["downtime-limit"], millis);
        }
        assert_eq!(downtime(Duration::from_micros(10))["downtime-limit"], 1);
        for (ceiling, rate) in [(None, 1u64 << 40), (Some(0), 1), (Some(5), 5), (Some(u64::MAX), 1 << 40)] {
            assert_eq!(bandwidth(ceiling.map(Rate)), map([("max-bandwidth", json!(rate))]));
        }
        assert_eq!(switchover_bandwidth(Some(Rate(7)), &all()), map([("avail-switchover-bandwidth", json!(7))]));
        assert_eq!(switchover_bandwidth(Some(Rate(0)), &all())["avail-switchover-bandwidth"], 1);
        assert_eq!(switchover_bandwidth(Some(Rate(7)), &features(&[], false)), Map::new());
        for (rate, cpus, megabytes) in [
            (0, 1, 1),
            (1 << 20, 1, 1),
            (100 << 20, 1, 100),
            (100 << 20, 4, 25),
            (7 << 20, 0, 7),
            (u64::MAX, 1, 1 << 20),
        ] {
            assert_eq!(dirty_limit(Rate(rate), cpus)["vcpu-dirty-limit"], megabytes);
        }
    }

    proptest! {
        #[test]
        fn the_steps_of_a_throttle_are_always_taken(percent: u8, most: u8) {
            for parameters in [throttle(percent), own_steps(most), disarmed(), dirty_limit(Rate(1 << 30), 1)] {
                let of = |name: &str| parameters[name].as_u64().expect("a number");
                let (initial, increment) = (of("cpu-throttle-initial"), of("cpu-throttle-increment"));
                prop_assert!((1..=99).contains(&initial) && (1..=99).contains(&increment));
                prop_assert!((initial..=99).contains(&of("max-cpu-throttle")));
                prop_assert!((1..=100).contains(&of("throttle-trigger-threshold")));
            }
            let exact = throttle(percent);
            prop_assert_eq!(&exact["cpu-throttle-initial"], &exact["max-cpu-throttle"]);
            prop_assert_eq!(&exact["cpu-throttle-increment"], &exact["max-cpu-throttle"]);
        }
    }
}
