//! The plan of one migration under attack. A seed and a number make it, and nothing else does.

use std::fmt;
use std::time::Duration;

use qferry_bed::{Act, Random, Side};

use super::attack::Attack;

/// The phases after whose begin an attack strikes: their weights, and the longest delay in milliseconds.
const PHASES: [(&str, u64, u64); 8] = [
    ("connect", 1, 60),
    ("preflight", 1, 200),
    ("prepare", 1, 60),
    ("storage", 6, 1500),
    ("memory", 5, 700),
    ("switchover", 3, 40),
    ("handover", 3, 40),
    ("cleanup", 1, 40),
];
/// The commands before whose delivery an attack strikes.
const COMMANDS: [(Side, &str); 14] = [
    (Side::Destination, "nbd-server-start"),
    (Side::Destination, "block-export-add"),
    (Side::Source, "drive-mirror"),
    (Side::Source, "blockdev-mirror"),
    (Side::Destination, "migrate-incoming"),
    (Side::Source, "migrate-set-capabilities"),
    (Side::Source, "migrate"),
    (Side::Source, "block-job-cancel"),
    (Side::Destination, "nbd-server-stop"),
    (Side::Destination, "query-block-exports"),
    (Side::Source, "migrate-continue"),
    (Side::Destination, "cont"),
    (Side::Destination, "query-status"),
    (Side::Source, "quit"),
];

/// The moment of an attack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Strikes {
    /// So long after the engine has begun a phase.
    After(&'static str, Duration),
    /// When the engine has sent this command for the first time, which is held meanwhile.
    Before(Side, &'static str),
}

/// An attack and its moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Strike {
    pub(crate) at: Strikes,
    pub(crate) attack: Attack,
}

/// Everything about one migration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) number: u64,
    /// Whether the guest keeps a record of its work. Otherwise the guest is a boot sector, which is there in a moment
    /// and is really reset where it resets.
    pub(crate) recorded: bool,
    /// Whether the engine reaches both QEMUs through proxies, and so knows neither process.
    pub(crate) proxied: bool,
    /// MiB a second for the disks.
    pub(crate) disk_rate: Option<u64>,
    /// MiB a second for all.
    pub(crate) rate: Option<u64>,
    pub(crate) strikes: Vec<Strike>,
}

impl Plan {
    /// The plan of migration `number` of a run with this seed.
    pub(crate) fn draw(seed: u64, number: u64) -> Self {
        let mut random = Random::part_of(seed, number);
        let count = random.weighed(&[(0, 1), (1, 10), (2, 6), (3, 3)]);
        let mut attacks: Vec<Attack> = (0..count).map(|_| Attack::draw(&mut random)).collect();
        // A guest has one deed in it.
        let first = attacks.iter().position(|attack| matches!(attack, Attack::Guest { .. }));
        let mut at = 0;
        attacks.retain(|attack| {
            at += 1;
            !matches!(attack, Attack::Guest { .. }) || Some(at - 1) == first
        });
        let recorded = random.once_in(3) || attacks.contains(&Attack::Fill);
        let proxied = random.once_in(2) || attacks.iter().any(Attack::needs_proxies);
        let disk_rate = random.one_of(&[None, Some(2), Some(4), Some(8)]);
        let rate = random.one_of(&[None, None, Some(16), Some(48)]);
        let mut attack = |attack| Strike { at: moment(&mut random, proxied), attack };
        let mut strikes: Vec<Strike> = attacks.into_iter().map(&mut attack).collect();
        // A second engine that outlives the first would be at work while the recovery looks.
        let recovers = strikes.iter().any(|strike| strike.attack == Attack::EngineKill);
        let further = Attack::draw_further(&mut random, proxied).filter(|it| !recovers || *it != Attack::SecondEngine);
        strikes.extend(further.map(|attack| Strike { at: moment(&mut random, proxied), attack }));
        Self { number, recorded, proxied, disk_rate, rate, strikes }
    }

    /// Whether the plan has such an attack.
    pub(crate) fn has(&self, is_it: impl Fn(&Attack) -> bool) -> bool {
        self.strikes.iter().any(|strike| is_it(&strike.attack))
    }

    /// All attacks of the plan.
    pub(crate) fn attacks(&self) -> Vec<Attack> {
        self.strikes.iter().map(|strike| strike.attack).collect()
    }

    /// The deed of the guest, and whether QEMU pauses then, if the plan has one.
    pub(crate) fn guest(&self) -> Option<(Act, bool)> {
        self.strikes.iter().find_map(|strike| match strike.attack {
            Attack::Guest { act, pauses } => Some((act, pauses)),
            _ => None,
        })
    }
}

fn moment(random: &mut Random, proxied: bool) -> Strikes {
    if proxied && random.once_in(2) {
        let (side, name) = random.one_of(&COMMANDS);
        return Strikes::Before(side, name);
    }
    let weights = PHASES.map(|(phase, weight, most)| ((phase, most), weight));
    let (phase, most) = random.weighed(&weights);
    // A short delay is as likely as a long one.
    let part = random.part() * random.part();
    Strikes::After(phase, Duration::from_millis(most).mul_f64(part))
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Strikes::After(phase, by) => write!(f, "[{phase} + {} ms] {}", by.as_millis(), self.attack),
            Strikes::Before(side, name) => write!(f, "[before {side}: {name}] {}", self.attack),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ", if self.recorded { "record" } else { "boot sector" })?;
        write!(f, "{}", if self.proxied { "proxied" } else { "direct" })?;
        for (rate, what) in [(self.disk_rate, "disks"), (self.rate, "all")] {
            if let Some(rate) = rate {
                write!(f, ", {what} at {rate} MiB/s")?;
            }
        }
        self.strikes.iter().try_for_each(|strike| write!(f, "; {strike}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_depends_on_its_seed_and_number_alone() {
        assert_eq!(Plan::draw(7, 12), Plan::draw(7, 12));
        assert_ne!(Plan::draw(7, 12).to_string(), Plan::draw(7, 13).to_string());
    }

    #[test]
    fn every_kind_of_attack_is_drawn() {
        let kinds: std::collections::BTreeSet<String> =
            (0..3000).flat_map(|number| Plan::draw(1, number).attacks()).map(|attack| attack.kind()).collect();
        assert!(kinds.len() > 60, "{}: {kinds:?}", kinds.len());
        for number in 0..300 {
            let plan = Plan::draw(2, number);
            assert!(plan.proxied || !plan.attacks().iter().any(Attack::needs_proxies), "{plan}");
        }
    }
}
