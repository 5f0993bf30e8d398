//! Migration capabilities and parameters: those that a run sets on each side, and those that it changes on its way.
//!
//! Pure. [`super::apply`] reads the previous settings of a side and puts them back. Nothing in this module knows a
//! version: a capability that a build lacks is not turned off there, and the preflight refuses a build that lacks a
//! needed one.

use crate::{
    codes::Setting,
    progress::Side,
    qemu::{Features, reply::MigrationCapabilityStatus},
    quantity::{Bytes, Rate},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{fmt, str::FromStr, time::Duration};

/// The rate that stands for "no limit", far above any link: not every version has a value for it, and QEMU's default is
/// 128 MiB/s.
const UNLIMITED: Rate = Rate(1 << 40);
/// The rate of RAM while it must not end: one byte in each of QEMU's windows of 100 ms. QEMU sends a page or a buffer
/// of pages before it looks at the rate, and reads 0 as no limit.
const TRICKLE: Rate = Rate(10);
/// The bandwidth with which no more than a byte fits into a downtime limit of 1 ms, since QEMU multiplies bytes per
/// millisecond: a QEMU that assumes this bandwidth does not stop the guest.
const NO_SWITCHOVER: Rate = Rate(1000);
/// The largest `downtime-limit` that QEMU takes.
pub const DOWNTIME_MAX: Duration = Duration::from_secs(2000);
/// The most that QEMU throttles vCPUs by, per cent.
pub const THROTTLE_MAX: u8 = 99;
/// The most channels that QEMU takes.
pub const CHANNELS_MAX: u8 = 255;
/// The MB/s per vCPU that stand for "no limit", since `vcpu-dirty-limit` has no value for it: no guest reaches them.
const NO_DIRTY_LIMIT: u64 = 1 << 20;

/// Capabilities that a former user may have left on and that change what a migration does. A run turns off those that
/// it does not need, and puts them back afterwards.
///
/// With `block` QEMU copies disks by itself, with `background-snapshot` it takes a snapshot in place of a migration,
/// with `release-ram` it gives up the pages that the way back needs, `dirty-bitmaps` fails a migration in which one
/// bitmap cannot move, and with `switchover-ack` on the source alone it waits for ever for the destination's word.
/// Capabilities that only prove or count something (`validate-uuid`, `postcopy-blocktime`) stay as they are where a run
/// has no use for them, and so does `x-ignore-shared`: only its user knows whether both sides hold the same memory.
const STRAY: [&str; 16] = [
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
    "switchover-ack",
    "x-colo",
    "xbzrle",
    "zero-copy-send",
];

/// Parameters that a former user may have left and that change what a migration does, each with the value that a run
/// needs. A run sets them where they have another value, and puts them back afterwards.
///
/// With TLS credentials QEMU would speak TLS on the RAM channel, and a `mode` other than `normal` hands the guest over
/// in another way: QEMU 11.1 aborts where `migrate` meets a left `cpr-transfer`. A small `avail-switchover-bandwidth`
/// keeps QEMU from ever stopping the guest, and without a `zero-page-detection` each page of zeros is sent whole.
const STRAY_PARAMETERS: [(&str, NeededValue); 6] = [
    ("avail-switchover-bandwidth", NeededValue::Zero),
    ("mode", NeededValue::Word("normal")),
    ("tls-authz", NeededValue::Word("")),
    ("tls-creds", NeededValue::Word("")),
    ("tls-hostname", NeededValue::Word("")),
    ("zero-page-detection", NeededValue::Word("multifd")),
];

/// The value that a run needs of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NeededValue {
    Word(&'static str),
    Zero,
}

impl NeededValue {
    fn json(self) -> Value {
        match self {
            Self::Word(word) => json!(word),
            Self::Zero => json!(0),
        }
    }
}

/// The method by which multifd channels compress pages.
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
    /// QEMU's name for the method.
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

/// The party that may throttle the guest so that its memory can be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ThrottleMode {
    /// Nobody.
    #[default]
    Never,
    /// QEMU, by auto-converge with its own steps: 20 per cent, then 10 more each time, up to this many per cent.
    OwnSteps(u8),
    /// The engine: nothing is throttled until [`throttle`] or [`dirty_limit`] is set. The method is `dirty-limit` where
    /// QEMU accepts it, which slows only vCPUs that write, and else `auto-converge`.
    OnDemand,
}

/// The method by which the guest is throttled in this run: the first that QEMU accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum ThrottleMethod {
    /// The guest cannot be throttled.
    #[default]
    None,
    /// `auto-converge`: per cent of all vCPUs' time. See [`throttle`].
    AutoConverge,
    /// `dirty-limit`: MB/s that each vCPU may dirty. See [`dirty_limit`].
    DirtyLimit,
}

/// The settings of QEMU's migration for one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrationTuning {
    /// The number of channels for RAM, where more than one is asked for.
    pub multifd: Option<u8>,
    /// The compression of these channels.
    pub compress: Option<Compression>,
    /// The size of the cache of `xbzrle`, where xbzrle is asked for.
    pub xbzrle: Option<Bytes>,
    /// The party that may throttle the guest.
    pub throttle: ThrottleMode,
    /// Whether postcopy may be started.
    pub postcopy: bool,
    /// Whether both builds can send the pages that the guest waits for over a channel of their own.
    pub preempt: bool,
    /// Whether named dirty bitmaps move with the guest.
    pub bitmaps: bool,
    /// The first `downtime-limit`.
    pub downtime: Duration,
    /// The first ceiling of RAM.
    pub bandwidth: Option<Rate>,
}

/// The capabilities and parameters to set on one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SideTuning {
    /// Capabilities, on and off.
    pub capabilities: Vec<(&'static str, bool)>,
    /// Capabilities of which the first that QEMU takes is turned on, after the others.
    pub one_of: Vec<&'static str>,
    /// Parameters.
    pub parameters: Map<String, Value>,
    /// Parameters that may change while the migration runs, and are put back with the others.
    pub later: Vec<&'static str>,
}

impl SideTuning {
    /// Adds the parameters that a former user left at a value that a run cannot use. `found` is the side's answer to
    /// `query-migrate-parameters`.
    pub(super) fn clear_stray(&mut self, found: &Map<String, Value>) {
        for (name, needed) in STRAY_PARAMETERS {
            let is_stray = found.get(name).is_some_and(|value| !value.is_null() && *value != needed.json());
            // a parameter that the run sets itself stays
            if is_stray && !self.parameters.contains_key(name) {
                self.parameters.insert(name.to_owned(), needed.json());
            }
        }
    }

    /// Notes which capability QEMU took of those of which it was to take one.
    pub(super) fn take_one(&mut self, name: &'static str) {
        self.capabilities.retain(|(set, _)| *set != name);
        self.capabilities.push((name, true));
    }

    /// Whether the guest can be throttled: QEMU takes at least the last of the capabilities of which it is to take one.
    pub fn throttles(&self) -> bool {
        !self.one_of.is_empty() || self.capabilities.contains(&("auto-converge", true))
    }

    /// The first capability that is not as it was set, in words. A capability of which the side says nothing counts as
    /// set.
    pub(super) fn changed_capability(&self, found: &[MigrationCapabilityStatus]) -> Option<String> {
        let on_or_off = |on: bool| if on { "on" } else { "off" };
        self.capabilities.iter().find_map(|(name, set)| {
            let is = found.iter().find(|found| found.capability == *name)?.state;
            (is != *set).then(|| format!("{name} was set {} and is {}", on_or_off(*set), on_or_off(is)))
        })
    }

    /// The same for parameters.
    pub(super) fn changed_parameter(&self, found: &Map<String, Value>) -> Option<String> {
        self.parameters.iter().find_map(|(name, set)| {
            let is = found.get(name)?;
            (is != set).then(|| format!("{name} was set to {set} and is {is}"))
        })
    }
}

/// The settings of one side from before the migration, so that they can be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousTuning {
    /// Capabilities by name.
    pub capabilities: Vec<(String, bool)>,
    /// Parameters by name.
    pub parameters: Map<String, Value>,
}

impl MigrationTuning {
    /// The capabilities and parameters to set on one side, given the features of its build.
    pub fn for_side(&self, side: Side, features: &Features) -> SideTuning {
        let mut on = self.capabilities(side);
        // The destination counts for how long vCPUs wait for pages.
        if self.postcopy && side == Side::Destination && has(features, "postcopy-blocktime") {
            on.push("postcopy-blocktime");
        }
        let one_of = match (side, self.throttle) {
            (Side::Source, ThrottleMode::OnDemand) => {
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
                // A limit would lengthen the guest's pause, see `super::postcopy::limit`, which sets it later.
                parameters.extend(postcopy_bandwidth(None));
            }
            match self.throttle {
                ThrottleMode::Never => {}
                ThrottleMode::OwnSteps(most) => parameters.extend(own_steps(most)),
                ThrottleMode::OnDemand if one_of.is_empty() => {}
                ThrottleMode::OnDemand => parameters.extend(disarmed()),
            }
            if one_of.contains(&"dirty-limit") {
                later.push("vcpu-dirty-limit");
            }
            if features.avail_switchover_bandwidth {
                later.push("avail-switchover-bandwidth");
            }
            if features.zero_page_detection {
                later.push("zero-page-detection");
            }
        }
        if let Some(channels) = self.multifd {
            // Both sides must compress alike, so a compression that a former user left must not stay.
            let how = self.compress.map_or("none", Compression::as_str);
            parameters.extend(map([("multifd-channels", json!(channels)), ("multifd-compression", json!(how))]));
        }
        if let Some(cache) = self.xbzrle {
            parameters.insert("xbzrle-cache-size".to_owned(), json!(cache.0));
        }
        SideTuning { capabilities, one_of, parameters, later }
    }

    /// The capabilities that one side needs on.
    fn capabilities(&self, side: Side) -> Vec<&'static str> {
        let mut on = match side {
            Side::Source => vec!["events", "return-path", "pause-before-switchover"],
            // Without return-path on the destination, too, QEMU 7.2 would not report that the load failed.
            Side::Destination => vec!["events", "return-path", "late-block-activate"],
        };
        on.extend(self.asked_for().into_iter().map(|(name, _)| name));
        if self.bitmaps {
            on.push("dirty-bitmaps");
        }
        if self.postcopy && self.preempt {
            on.push("postcopy-preempt");
        }
        if side == Side::Source && matches!(self.throttle, ThrottleMode::OwnSteps(_)) {
            on.push("auto-converge");
        }
        on
    }

    /// The capabilities that the settings ask for on both sides, each with the setting that does.
    pub fn asked_for(&self) -> Vec<(&'static str, String)> {
        let asked = [
            (self.multifd.is_some(), "multifd", Setting::Multifd.to_string()),
            (self.xbzrle.is_some(), "xbzrle", format!("xbzrle of the {}", Setting::Policy)),
            (self.postcopy, "postcopy-ram", format!("postcopy in the {}", Setting::Policy)),
        ];
        asked.into_iter().filter(|(is_asked, ..)| *is_asked).map(|(_, name, by)| (name, by)).collect()
    }
}

/// A new `downtime-limit`, at least 1 ms and at most [`DOWNTIME_MAX`]. With 0 QEMU would not count the dirty pages
/// again before it stops the guest.
pub fn downtime(limit: Duration) -> Map<String, Value> {
    let millis = limit.clamp(Duration::from_millis(1), DOWNTIME_MAX).as_millis();
    map([("downtime-limit", json!(u64::try_from(millis).unwrap_or(u64::MAX)))])
}

/// A new ceiling of RAM before postcopy.
pub fn bandwidth(ceiling: Option<Rate>) -> Map<String, Value> {
    // QEMU reads 0 as no limit, the opposite of a very low ceiling.
    let rate = ceiling.unwrap_or(UNLIMITED).0.clamp(1, UNLIMITED.0);
    map([("max-bandwidth", json!(rate))])
}

/// A ceiling of RAM at which hardly anything is sent.
///
/// QEMU looks at the rate once a buffer of 32 KiB is full, and a page of zeros takes 9 bytes of it: below any ceiling
/// 146 MiB of zeros pass in a second (10.0.13 and 11.1), and RAM of a guest that stands still comes to its end. Where
/// the build can be told to, QEMU sends them whole meanwhile, which makes 1.3 MiB of RAM in a second.
pub fn trickle(features: &Features) -> Map<String, Value> {
    bandwidth(Some(TRICKLE)).into_iter().chain(zero_page_detection(features, "none")).collect()
}

/// Takes back what [`trickle`] sets beside the ceiling.
pub fn no_trickle(features: &Features) -> Map<String, Value> {
    zero_page_detection(features, "legacy")
}

/// Has QEMU send pages of zeros whole (`none`), or look for them before it sends them (`legacy`).
fn zero_page_detection(features: &Features, method: &str) -> Map<String, Value> {
    match features.zero_page_detection {
        true => map([("zero-page-detection", json!(method))]),
        false => Map::new(),
    }
}

/// Keeps QEMU from stopping the guest, together with a downtime limit of 1 ms.
pub fn no_switchover(features: &Features) -> Map<String, Value> {
    switchover_bandwidth(Some(NO_SWITCHOVER), features)
}

/// A new ceiling of RAM in postcopy, where `max-bandwidth` does not apply.
pub fn postcopy_bandwidth(ceiling: Option<Rate>) -> Map<String, Value> {
    // QEMU reads 0 as no limit.
    map([("max-postcopy-bandwidth", json!(ceiling.map_or(0, |rate| rate.0)))])
}

/// The bandwidth that QEMU assumes when it decides whether to switch over, in place of the measured one; `None` has
/// QEMU use the measured one again.
///
/// Under a low ceiling the measured bandwidth never fits the downtime limit, though the ceiling does not apply once the
/// guest is stopped. Empty where the build has no such parameter.
pub fn switchover_bandwidth(rate: Option<Rate>, features: &Features) -> Map<String, Value> {
    match features.avail_switchover_bandwidth {
        // QEMU uses the measured bandwidth where this is 0.
        true => map([("avail-switchover-bandwidth", json!(rate.map_or(0, |rate| rate.0.max(1))))]),
        false => Map::new(),
    }
}

/// Throttles all vCPUs by exactly this many per cent, with [`ThrottleMethod::AutoConverge`]; a smaller figure than
/// before loosens the throttle.
///
/// QEMU acts at a bitmap sync that found memory dirtied, the first time at the second in a row. QEMU's first step is
/// `cpu-throttle-initial`, and each further step adds the increment up to the maximum; with all three the same, the
/// first step is also the last. Only a smaller figure loosens the throttle, and every end of the migration ends it.
pub fn throttle(percent: u8) -> Map<String, Value> {
    let percent = percent.clamp(1, THROTTLE_MAX);
    steps(1, percent, percent, percent)
}

/// Limits the rate at which a guest with `cpus` vCPUs dirties memory, with [`ThrottleMethod::DirtyLimit`]. QEMU limits
/// each vCPU by itself, in MB (2^20 bytes) per second: each gets an equal part.
pub fn dirty_limit(rate: Rate, cpus: usize) -> Map<String, Value> {
    let part = rate.0 / u64::try_from(cpus).unwrap_or(u64::MAX).max(1);
    let megabytes = (part >> 20).clamp(1, NO_DIRTY_LIMIT);
    [steps(1, 1, 1, 1), map([("vcpu-dirty-limit", json!(megabytes))])].into_iter().flatten().collect()
}

/// A throttle of one per cent, which the guest does not notice: `auto-converge` must be on from the start, because a
/// capability cannot be turned on later.
///
/// The low threshold makes QEMU take its first step early. QEMU first throttles at the second sync that found memory
/// dirtied, so a throttle that is set after that step takes effect at the next sync and not seconds later.
fn disarmed() -> Map<String, Value> {
    steps(25, 1, 1, 1)
}

/// The steps of auto-converge by QEMU's defaults, whatever a former user left.
fn own_steps(most: u8) -> Map<String, Value> {
    let most = most.clamp(1, THROTTLE_MAX);
    steps(50, 20.min(most), 10.min(most), most)
}

/// The parameters of auto-converge, to be set in one command: QEMU refuses an initial step above the maximum, and
/// checks the parameters of one command together.
fn steps(trigger: u8, initial: u8, increment: u8, most: u8) -> Map<String, Value> {
    map([
        ("throttle-trigger-threshold", json!(trigger)),
        ("cpu-throttle-initial", json!(initial)),
        ("cpu-throttle-increment", json!(increment)),
        ("max-cpu-throttle", json!(most)),
        // With tailslow the last steps would be smaller than the increment.
        ("cpu-throttle-tailslow", json!(false)),
    ])
}

/// A dirty limit that limits nothing, for a build that took the capability.
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

    fn plain() -> MigrationTuning {
        MigrationTuning { downtime: Duration::from_millis(300), ..MigrationTuning::default() }
    }

    /// A build with these capabilities, and with the newer parameter or not.
    fn features(capabilities: &[&str], avail_switchover_bandwidth: bool) -> Features {
        let migration_capabilities = capabilities.iter().map(|name| (*name).to_owned()).collect();
        Features { migration_capabilities, avail_switchover_bandwidth, ..Features::read(&Schema::default()) }
    }

    fn all() -> Features {
        features(&STRAY, true)
    }

    fn on(setup: &SideTuning) -> Vec<&'static str> {
        setup.capabilities.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect()
    }

    #[test]
    fn each_wish_turns_on_what_it_needs() {
        type Case = (&'static str, MigrationTuning, &'static [&'static str], &'static [&'static str]);
        let cases: [Case; 7] = [
            ("nothing", plain(), &[], &[]),
            ("multifd", MigrationTuning { multifd: Some(2), ..plain() }, &["multifd"], &["multifd"]),
            ("xbzrle", MigrationTuning { xbzrle: Some(Bytes(1 << 26)), ..plain() }, &["xbzrle"], &["xbzrle"]),
            ("postcopy", MigrationTuning { postcopy: true, ..plain() }, &["postcopy-ram"], &["postcopy-ram"]),
            ("bitmaps", MigrationTuning { bitmaps: true, ..plain() }, &["dirty-bitmaps"], &["dirty-bitmaps"]),
            ("steps", MigrationTuning { throttle: ThrottleMode::OwnSteps(99), ..plain() }, &["auto-converge"], &[]),
            // The capabilities of `one_of` are turned on one by one, up to the first that QEMU takes.
            ("demand", MigrationTuning { throttle: ThrottleMode::OnDemand, ..plain() }, &[], &[]),
        ];
        for (name, wanted, on_source, on_destination) in cases {
            let (source, destination) =
                (wanted.for_side(Side::Source, &all()), wanted.for_side(Side::Destination, &all()));
            let expected = [&["events", "return-path", "pause-before-switchover"], on_source].concat();
            assert_eq!(on(&source), expected, "{name}");
            let expected = [&["events", "return-path", "late-block-activate"], on_destination].concat();
            assert_eq!(on(&destination), expected, "{name}");
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
        let setup = plain().for_side(Side::Source, &features(&["xbzrle"], false));
        let off: Vec<&str> = setup.capabilities.iter().filter(|(_, on)| !on).map(|(name, _)| *name).collect();
        assert_eq!((off, setup.later), (vec!["xbzrle"], vec![]));
    }

    #[test]
    fn a_throttle_on_demand_takes_what_the_build_has() {
        let wanted = MigrationTuning { throttle: ThrottleMode::OnDemand, ..plain() };
        for (capabilities, one_of, later) in [
            (&["auto-converge", "dirty-limit"][..], &["dirty-limit", "auto-converge"][..], &["vcpu-dirty-limit"][..]),
            (&["auto-converge"], &["auto-converge"], &[]),
            (&[], &[], &[]),
        ] {
            let setup = wanted.for_side(Side::Source, &features(capabilities, false));
            assert_eq!((&setup.one_of[..], &setup.later[..]), (one_of, later));
            let armed_for_nothing = setup.parameters.get("throttle-trigger-threshold");
            assert_eq!(armed_for_nothing, (!one_of.is_empty()).then(|| json!(25)).as_ref());
            assert_eq!(wanted.for_side(Side::Destination, &all()).one_of, Vec::<&str>::new());
        }
    }

    #[test]
    fn parameters_are_of_the_side_that_reads_them() {
        let wanted = MigrationTuning {
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
        assert_eq!(wanted.for_side(Side::Destination, &all()).parameters, both);
        let setup = wanted.for_side(Side::Source, &all());
        let source_only = map([("downtime-limit", json!(300)), ("max-bandwidth", json!(1000))]);
        assert_eq!(setup.parameters, source_only.into_iter().chain(both).collect());
        assert_eq!(setup.later, ["avail-switchover-bandwidth"]);
        let uncompressed = MigrationTuning { compress: None, ..wanted }.for_side(Side::Destination, &all()).parameters;
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
        assert_eq!(trickle(&all()), map([("max-bandwidth", json!(10))]));
        let sends_zeros = Features { zero_page_detection: true, ..all() };
        let held = [("max-bandwidth", json!(10)), ("zero-page-detection", json!("none"))];
        assert_eq!(trickle(&sends_zeros), map(held));
        assert_eq!((no_trickle(&sends_zeros).len(), no_trickle(&all()).len()), (1, 0));
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
