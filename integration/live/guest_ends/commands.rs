//! Guests that power off or panic at one exact command of the engine: in the burst of `migrate`, in the blackout, and
//! at the clean-up.
//!
//! A guest that stands still can do nothing. An NMI that is injected meanwhile waits in the state of the guest's
//! processor: the guest powers off, or panics, as the first thing that it does on the side that runs it next.

use super::{judge_ended, never_resumed};
use crate::{
    proxied::Proxied,
    support::{WAIT, judge_back, start, until, writes},
};
use qferry::internals::progress::{Ending, Outcome, RunsOn};
use qferry_bed::{BootSector, Command, Event, Machine, Pair, Side, Spec};
use serde_json::json;
use std::{thread::sleep, time::Duration};

/// What a guest does at an NMI, and the run state that comes of it where QEMU does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// The guest powers off, and QEMU ends.
    Ends,
    /// The guest powers off, and QEMU stays (`-no-shutdown`).
    PowersOff,
    Panics,
}

impl Does {
    fn state(self) -> &'static str {
        match self {
            Self::Ends => "ended",
            Self::PowersOff => "shutdown",
            Self::Panics => "guest-panicked",
        }
    }

    /// A pair whose guest has booted, and waits for an NMI.
    fn start(self, version: &str) -> Pair {
        let (acts, extra): (fn(BootSector) -> BootSector, &[&str]) = match self {
            Self::Ends => (BootSector::power_off, &[]),
            Self::PowersOff => (BootSector::power_off, &["-no-shutdown"]),
            Self::Panics => (BootSector::panic, &["-device", "pvpanic", "-action", "panic=pause"]),
        };
        let boot = Some(BootSector::new().on_nmi(acts).write(64, 8));
        let extra = extra.iter().map(|word| (*word).to_owned()).collect();
        let pair = start(&Spec { version: version.to_owned(), boot, extra, ..Spec::quick() });
        until(&pair, "query-blockstats", |blocks| writes(blocks) > 0);
        pair
    }
}

fn strike(machine: &Machine) {
    machine.qmp("inject-nmi", &json!({})).unwrap();
}

/// The guest ends between the last look at both machines and the start of its migration.
#[test]
fn a_guest_that_ends_as_its_migration_begins_is_left_so() {
    for (version, does) in [("10.0.13", Does::Ends), ("10.0.13", Does::PowersOff), ("11.1", Does::Panics)] {
        let pair = does.start(version);
        let proxied = Proxied::new(&pair);
        let act = || {
            strike(&pair.source);
            match does {
                Does::Ends => drop(pair.source.wait_for_end(WAIT).unwrap()),
                _ => pair.source.wait_for_status(does.state(), WAIT).unwrap(),
            }
        };
        let (outcome, _) = proxied.migrate_and_at(proxied.builder(), (Side::Source, "migrate"), act);
        match does {
            Does::Ends => judge_ended(&pair, &outcome, "guest-shutdown"),
            _ => {
                judge_back(&pair, &outcome, Ending::RolledBack, does.state());
                assert_eq!(outcome.reason.as_ref().unwrap().code, "guest-halted", "{outcome:#?}");
                never_resumed(&pair);
            }
        }
    }
}

/// The guest was moved, whatever it did then: nothing is left of the migration, and nobody has sent a second `cont`.
fn judge_moved_and_halted(pair: &Pair, outcome: &Outcome, does: Does) {
    assert_eq!(outcome.outcome, Ending::Moved, "{outcome:#?}");
    assert_eq!(outcome.leftovers, Vec::<String>::new(), "{outcome:#?}");
    pair.source.wait_for_end(WAIT).unwrap();
    assert_eq!(std::fs::read_dir(pair.run_dir()).unwrap().count(), 0, "left behind in the runtime directory");
    if does == Does::Ends {
        pair.destination.wait_for_end(WAIT).unwrap();
        return;
    }
    assert_eq!(outcome.runs_on, RunsOn::Destination, "{outcome:#?}");
    pair.destination.wait_for_status(does.state(), WAIT).unwrap();
    assert_eq!(pair.destination.leftovers().unwrap(), Vec::<String>::new());
    let events = pair.destination.events().unwrap();
    assert_eq!(events.iter().filter(|event| event.name == "RESUME").count(), 1, "{events:#?}");
}

/// The guest stands for the switchover, and ends as the first thing at the destination; or it ends there before the
/// source has been told to quit. It has moved.
#[test]
fn a_guest_that_ends_once_it_has_moved_has_moved() {
    let rows = [("migrate-continue", Side::Source, Does::Panics), ("quit", Side::Destination, Does::Ends)];
    for (command, struck, does) in rows {
        let pair = does.start("10.0.13");
        let proxied = Proxied::new(&pair);
        let act = || strike(pair.machine(struck));
        let (outcome, _) = proxied.migrate_and_at(proxied.builder(), (Side::Source, command), act);
        judge_moved_and_halted(&pair, &outcome, does);
    }
}

/// The destination's QEMU has ended with the guest before the engine has asked it anything behind `cont`.
#[test]
fn a_guest_that_powers_off_at_the_destination_at_once_has_moved() {
    let pair = Does::Ends.start("10.0.13");
    let proxied = Proxied::new(&pair);
    let asked = |seen: &[Command]| {
        let to_destination = |command: &&Command, name| command.side == Side::Destination && command.name == name;
        let started = seen.iter().any(|command| to_destination(&command, "cont"));
        started && seen.last().as_ref().is_some_and(|last| to_destination(last, "query-status"))
    };
    let act = || {
        strike(&pair.destination);
        pair.destination.wait_for_end(WAIT).unwrap();
    };
    let (outcome, _) = proxied.migrate_and_when(proxied.builder(), Side::Destination, asked, act);
    judge_moved_and_halted(&pair, &outcome, Does::Ends);
    assert_eq!(outcome.runs_on, RunsOn::None, "{outcome:#?}");
}

/// The blackout exceeds its budget, and the guest ends as soon as it runs on the source again.
#[test]
fn a_guest_that_ends_after_a_blackout_beyond_the_budget_is_left_so() {
    for does in [Does::Ends, Does::Panics] {
        let pair = does.start("10.0.13");
        let proxied = Proxied::new(&pair);
        let budget = Duration::from_millis(300);
        let act = || {
            strike(&pair.source);
            sleep(budget * 3);
        };
        let builder = proxied.builder().downtime(budget).strict_budget();
        let (outcome, _) = proxied.migrate_and_at(builder, (Side::Source, "block-job-cancel"), act);
        match does {
            Does::Ends => judge_ended(&pair, &outcome, "guest-shutdown"),
            _ => {
                pair.source.wait_for_status(does.state(), WAIT).unwrap();
                judge_back(&pair, &outcome, Ending::RolledBack, does.state());
                assert_eq!(outcome.reason.as_ref().unwrap().code, "over-budget", "{outcome:#?}");
                // QEMU itself has resumed the guest, once, and nobody has since.
                never_resumed(&pair);
                let events = pair.source.events().unwrap();
                assert_eq!(events.iter().filter(|event| event.name == "RESUME").count(), 1, "{events:#?}");
            }
        }
    }
}

/// The destination has everything, the source fails at the end and resumes by itself, and the guest ends there.
/// What the destination has is older than what the guest has done since.
#[test]
fn a_guest_that_ends_after_a_broken_handover_does_not_run_again() {
    for does in [Does::Ends, Does::Panics] {
        let pair = does.start("10.0.13");
        let proxied = Proxied::new(&pair);
        let channel = &proxied.ram;
        channel.swallow_answers();
        let loaded = |event: &Event| event.name == "MIGRATION" && event.data["status"] == "completed";
        let (outcome, _) = std::thread::scope(|scope| {
            scope.spawn(|| {
                pair.destination.wait_for_event(WAIT, loaded).unwrap();
                channel.cut();
            });
            let act = || strike(&pair.source);
            proxied.migrate_and_at(proxied.builder(), (Side::Source, "migrate-continue"), act)
        });
        if does == Does::Ends {
            pair.source.wait_for_end(WAIT).unwrap();
            assert_ne!(outcome.runs_on, RunsOn::Destination, "{outcome:#?}");
            let events = pair.destination.events().unwrap();
            assert!(events.iter().all(|event| event.name != "RESUME"), "what the guest did is undone: {events:#?}");
        } else {
            pair.source.wait_for_status(does.state(), WAIT).unwrap();
            judge_back(&pair, &outcome, Ending::RolledBack, does.state());
            pair.destination.wait_for_end(WAIT).unwrap();
        }
    }
}
