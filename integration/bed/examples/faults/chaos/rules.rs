//! What each attack allows to happen, as a table. No query is made from here.
//!
//! Whatever is not allowed by one of the attacks that took place is wrong.

use qferry_bed::{Act, Side};

use super::attack::Attack;

/// The consequences that may be seen at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allows {
    /// The source's process may have ended without having passed the guest on.
    pub(crate) source_ends: bool,
    /// The destination's process may have ended although it had the guest.
    pub(crate) destination_ends: bool,
    /// The guest need not move, although nothing is wrong with either side.
    pub(crate) stays: bool,
    /// The run states in which the guest may stand on the side that has it.
    pub(crate) stands: Vec<&'static str>,
    /// The settings that may be other than before, by the word of QEMU.
    pub(crate) settings: Vec<(Side, &'static str)>,
    /// The engine cannot see or reach one side for a while, and may name leftovers.
    pub(crate) blinds: bool,
    /// The engine ends without an outcome, and a recovery tells.
    pub(crate) kills_engine: bool,
    /// Flushes may take longer than the engine's budget or patience allow.
    pub(crate) slow: bool,
    /// A wall clock was set.
    pub(crate) stepped: bool,
}

/// The table. `resets` tells that a machine that is reset goes on, and does not end.
pub(crate) fn allows(attack: &Attack, resets: bool) -> Allows {
    let none = Allows::default();
    let stays = || Allows { stays: true, ..Allows::default() };
    let stands = |states: &[&'static str]| Allows { stays: true, stands: states.to_vec(), ..Allows::default() };
    let ends = |side: Side| Allows {
        source_ends: side == Side::Source,
        destination_ends: side == Side::Destination,
        stays: true,
        ..Allows::default()
    };
    match *attack {
        // Its owner's stop is kept, on either side. A pause while RAM is sent may end a try, and the guest stands then.
        Attack::Stop(_) => stands(&["paused"]),
        // The guest may be out of the attacker's reach when its `cont` is due.
        Attack::Pause(_) => stands(&["paused"]),
        // Whether its owner has resumed a guest is told by what the attacker saw: see `judge`.
        Attack::Cont(_) => stays(),
        Attack::Reset(_) | Attack::Guest { act: Act::Reset, .. } if resets => stays(),
        // The bed's QEMUs otherwise end where the machine is reset: `-action reboot=shutdown`.
        Attack::Reset(side) | Attack::Quit(side) | Attack::Kill(side) => ends(side),
        // The bed's guest does not listen to its power button.
        Attack::PowerButton => none,
        Attack::Unplug(_) | Attack::Exchange | Attack::PlugDisk(_) | Attack::PlugUsb(_) => stays(),
        Attack::Eject(_) | Attack::ChangeMedium(_) | Attack::Resize => stays(),
        Attack::JobPause(_) | Attack::JobCancel { .. } => stays(),
        Attack::JobSpeed(_) | Attack::Throttle(_) | Attack::Balloon(_) => none,
        // Somebody else's migration that completes leaves the guest in `postmigrate`: that is where its owner put it. A
        // mirror that writes then aborts QEMU 10.0.13 (`BDRV_O_INACTIVE` in bdrv_co_write_req_prepare).
        Attack::MigrateAway => Allows { source_ends: true, ..stands(&["postmigrate"]) },
        Attack::MigrateCancel | Attack::NbdServerStop | Attack::ExportDel => stays(),
        Attack::Capability(side, name, _) => Allows { settings: vec![(side, name)], ..stays() },
        Attack::Parameter(side, name, _) => Allows { settings: vec![(side, name)], ..stays() },
        Attack::EngineStop(_) => Allows { blinds: true, ..stays() },
        Attack::EngineKill => Allows { kills_engine: true, ..stays() },
        Attack::EngineInterrupt => stays(),
        Attack::MonitorCut(_) | Attack::MonitorLate(..) | Attack::Freeze(..) => Allows { blinds: true, ..stays() },
        Attack::RamCut | Attack::NbdCut => stays(),
        Attack::Fill => stands(&["io-error"]),
        Attack::SlowFlush(..) => Allows { slow: true, ..none },
        Attack::Clock(..) => Allows { stepped: true, ..none },
        Attack::SecondEngine => stays(),
        Attack::Guest { act, pauses } => match (act, pauses) {
            (Act::PowerOff | Act::Reset, true) => stands(&["shutdown"]),
            (Act::PowerOff | Act::Reset | Act::Panic, false) => Allows { destination_ends: true, ..ends(Side::Source) },
            (Act::Panic, true) => stands(&["guest-panicked"]),
            (Act::Suspend, _) => stands(&["suspended"]),
        },
    }
}

impl Allows {
    /// What several attacks allow together.
    pub(crate) fn together<'a>(attacks: impl IntoIterator<Item = &'a Attack>, resets: bool) -> Self {
        let mut all = Self::default();
        let mut is_reset = false;
        for attack in attacks {
            let one = allows(attack, resets);
            is_reset |= matches!(attack, Attack::Reset(_));
            all.source_ends |= one.source_ends;
            all.destination_ends |= one.destination_ends;
            all.stays |= one.stays;
            all.blinds |= one.blinds;
            all.kills_engine |= one.kills_engine;
            all.slow |= one.slow;
            all.stepped |= one.stepped;
            all.stands.extend(one.stands);
            all.settings.extend(one.settings);
        }
        // A reset makes this of any state in which a guest stands.
        if is_reset && !all.stands.is_empty() {
            all.stands.push("prelaunch");
        }
        all
    }

    /// Whether a leftover found on a side, in the words of the bed, is the attacker's doing.
    pub(crate) fn explains(&self, side: Side, left: &str) -> bool {
        left.contains("chaos") || self.settings.iter().any(|(of, name)| *of == side && left.contains(name))
    }
}

/// Whether a `cont` that arrives now starts a second runner, and nothing in QEMU or in an engine can prevent that:
/// docs/handover.md, "Not guaranteed". The source has completed, or is about to.
pub(crate) fn starts_a_second_runner(side: Side, run: &str, migration: &str) -> bool {
    let passed_on = matches!(migration, "completed" | "device" | "pre-switchover");
    side == Side::Source && (passed_on || matches!(run, "postmigrate" | "finish-migrate"))
}

#[cfg(test)]
mod tests {
    use super::super::attack::Clocks;
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_changes_nothing_must_not_keep_the_guest_from_moving() {
        for attack in [Attack::PowerButton, Attack::JobSpeed(1), Attack::Throttle(9), Attack::Balloon(1)] {
            assert_eq!(allows(&attack, false), Allows::default(), "{attack}");
        }
    }

    #[test]
    fn clocks_and_flushes_allow_no_other_end() {
        let clock = allows(&Attack::Clock(Clocks::All, 3600), false);
        assert_eq!(clock, Allows { stepped: true, ..Allows::default() });
        let flush = allows(&Attack::SlowFlush(Side::Source, Duration::ZERO), false);
        assert_eq!(flush, Allows { slow: true, ..Allows::default() });
    }

    #[test]
    fn only_an_end_allows_an_end() {
        let source = Side::Source;
        for (attack, ends) in [
            (Attack::Quit(source), true),
            (Attack::Reset(source), true),
            (Attack::Kill(source), true),
            (Attack::Quit(Side::Destination), false),
            (Attack::Stop(source), false),
            (Attack::Freeze(source, Duration::ZERO), false),
            (Attack::Guest { act: Act::PowerOff, pauses: false }, true),
            (Attack::Guest { act: Act::PowerOff, pauses: true }, false),
            (Attack::Guest { act: Act::Suspend, pauses: false }, false),
        ] {
            assert!(!allows(&Attack::Reset(source), true).source_ends);
            assert_eq!(allows(&attack, false).source_ends, ends, "{attack}");
        }
    }

    #[test]
    fn a_guest_stands_only_as_somebody_made_it_stand() {
        let together = Allows::together(&[Attack::Guest { act: Act::Panic, pauses: true }, Attack::RamCut], false);
        assert_eq!(together.stands, ["guest-panicked"]);
        assert!(together.stays && !together.source_ends && !together.blinds);
        assert!(Allows::together(&[], false).stands.is_empty());
    }

    #[test]
    fn only_the_attackers_own_settings_may_differ() {
        let attack = Attack::Capability(Side::Source, "events", true);
        let allows = allows(&attack, false);
        assert!(allows.explains(Side::Source, "capability events: false -> true"));
        assert!(!allows.explains(Side::Destination, "capability events: false -> true"));
        assert!(!allows.explains(Side::Source, "capability return-path: false -> true"));
        assert!(allows.explains(Side::Destination, "node chaos-further"));
    }

    #[test]
    fn a_cont_that_cannot_be_prevented() {
        assert!(starts_a_second_runner(Side::Source, "postmigrate", "completed"));
        assert!(starts_a_second_runner(Side::Source, "finish-migrate", "device"));
        assert!(!starts_a_second_runner(Side::Source, "running", "active"));
        assert!(!starts_a_second_runner(Side::Source, "paused", "none"));
        assert!(!starts_a_second_runner(Side::Destination, "inmigrate", "setup"));
    }
}
