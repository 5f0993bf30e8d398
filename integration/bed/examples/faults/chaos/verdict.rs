//! A migration under attack from its plan to its verdict: what was seen is put together, judged, and the guest and its
//! disks are looked at.

use std::path::Path;
use std::time::{Duration, Instant};

use qferry_bed::{Act, Pair, Result, Side};

use super::attack::Attack;
use super::client::{DISK, limits};
use super::figures::absurd;
use super::judge::{Facts, Place, Seen, Wish, judge, rivals_told};
use super::plan::Plan;
use super::rules::Allows;
use super::sampler::{beats_twice, order, stood};
use super::trial::{Done, Trial, WAIT, carry_out, guest_acted};

/// The most time between an engine's last look at a guest and its end.
const LOOKS: Duration = Duration::from_secs(5);

/// The result of one migration.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) plan: Plan,
    /// The attacks that took place.
    pub(crate) struck: Vec<Attack>,
    /// The outcome's word.
    pub(crate) ending: String,
    /// The code of the engine's reason.
    pub(crate) code: String,
    /// Whether a recovery told it.
    pub(crate) recovered: bool,
    pub(crate) wrong: Vec<String>,
    /// Lines that help to find out why.
    pub(crate) story: Vec<String>,
    pub(crate) took: Duration,
}

/// Carries out a plan and judges it.
pub(crate) fn try_plan(plan: &Plan, qferry: &Path, version: &str) -> Verdict {
    let began = Instant::now();
    let mut verdict = Verdict {
        plan: plan.clone(),
        struck: Vec::new(),
        ending: "?".to_owned(),
        code: String::new(),
        recovered: false,
        wrong: Vec::new(),
        story: Vec::new(),
        took: Duration::ZERO,
    };
    match carry_out(plan, qferry, version) {
        Ok(trial) => {
            if let Err(error) = weigh(&trial, plan, &mut verdict) {
                verdict.wrong.push(error.to_string());
            }
        }
        Err(error) => verdict.wrong.push(error.to_string()),
    }
    verdict.took = began.elapsed();
    verdict
}

fn weigh(trial: &Trial, plan: &Plan, verdict: &mut Verdict) -> Result<()> {
    let Trial { pair, report, .. } = trial;
    let accepted = trial.done.iter().filter(|done| done.refused.is_none()).map(|done| done.attack);
    // A guest that was told to act has done so only if its QEMU says that.
    let acted = plan.guest().is_none_or(|(act, _)| guest_acted(pair, act));
    verdict.struck = accepted.filter(|attack| acted || !matches!(attack, Attack::Guest { .. })).collect();
    verdict.ending = report.ending().to_owned();
    verdict.code = report.outcome["reason"]["code"].as_str().unwrap_or_default().to_owned();
    verdict.recovered = trial.again.is_some();
    verdict.story = story(trial);
    // A guest whose file system is small may fill it by itself, before anybody else does.
    let by_itself = plan.attacks().into_iter().filter(|attack| *attack == Attack::Fill);
    let struck: Vec<Attack> = verdict.struck.iter().copied().chain(by_itself).collect();
    let mut allows = Allows::together(&struck, !plan.recorded);
    // A guest system that came from a 7.2 may end its QEMU at any moment: see `Pair::errors`.
    allows.destination_ends |= plan.recorded && !plan_version_counts(pair);
    let order = order(&trial.samples);
    let beats = [Side::Source, Side::Destination].map(|side| pair.beats(side)).concat();
    let resumed = |event: &qferry_bed::Event| event.name == "RESUME";
    let has_resumed = pair.destination.events().unwrap_or_default().iter().any(resumed);
    let destination_ran =
        has_resumed || order.contains(&Side::Destination) || beats.iter().any(|beat| beat.side == Side::Destination);
    if let Some(number) = beats_twice(&beats).filter(|_| plan_version_counts(pair)) {
        verdict.wrong.push(format!("TWO RUNNERS: both sides made beat {number}"));
    }
    if order.iter().position(|side| *side == Side::Destination).is_some_and(|at| at + 1 < order.len()) {
        verdict.wrong.push(format!("TWO RUNNERS, or work undone: {order:?} ran in this order"));
    }
    if let Some(again) = &trial.again {
        if (again.ending(), again.runs_on()) != (report.ending(), report.runs_on()) {
            verdict.wrong.push(format!("recovered twice: {}, and then {}", report.told(), again.told()));
        }
    }
    let facts = Facts {
        allows: &allows,
        wish: wish(&trial.done),
        source: trial.source.clone(),
        destination: trial.destination.clone(),
        destination_ran,
        sent_away: verdict.struck.contains(&Attack::MigrateAway),
        remote: plan.proxied,
        // An engine that was dead heard nothing.
        heard_shutdown: !verdict.recovered
            && pair.source.events().unwrap_or_default().iter().any(|event| event.name == "SHUTDOWN"),
        given: trial.phases.iter().any(|phase| phase == "handover"),
        report,
    };
    // Of two engines one has done what was done, and the other only has to tell the truth.
    let rival = trial.second.as_ref().map(|(report, _)| report);
    let first_moved = report.ending() == "moved";
    let facts =
        Facts { report: rival.filter(|rival| !first_moved && rival.ending() == "moved").unwrap_or(report), ..facts };
    let (place, wrong) = judge(&facts);
    verdict.wrong.extend(wrong);
    if let (Some((second, when)), Some(place)) = (&trial.second, place) {
        let (other, ended) = if std::ptr::eq(facts.report, report) { (second, *when) } else { (report, trial.ended) };
        let ran_before = |sample: &super::sampler::Sample| {
            sample.side == Side::Destination && sample.runs && sample.answered + LOOKS < ended
        };
        verdict.wrong.extend(rivals_told(other, place, trial.samples.iter().any(ran_before)));
    }
    let undisturbed = facts.wish == Wish::Runs && allows.stands.is_empty();
    let bounds = (order == [Side::Source, Side::Destination]).then(|| stood(&trial.samples)).flatten();
    if !verdict.recovered {
        verdict.wrong.extend(absurd(facts.report, &allows, bounds, undisturbed));
    }
    verdict.wrong.extend(left(trial, &allows, place)?);
    if let Some(place) = place {
        verdict.wrong.extend(machines_differ(trial, place));
        verdict.wrong.extend(ended_before(trial, place));
        is_whole(trial, place, &mut verdict.wrong);
    }
    Ok(())
}

/// Guests that came from a 7.2 repeat work under TCG: see `Pair::errors`.
fn plan_version_counts(pair: &Pair) -> bool {
    pair.spec().version != "7.2"
}

/// The wish of the guest's owner, by what the attacker saw of its `stop` and `cont`.
fn wish(done: &[Done]) -> Wish {
    let mut wish = Wish::Runs;
    for one in done {
        let run =
            |state: &Option<super::client::State>| state.as_ref().map_or(String::new(), |state| state.run.clone());
        let (before, after) = (run(&one.before), run(&one.after));
        match one.attack {
            Attack::Stop(_) if one.refused.is_none() => {
                wish = match (before.as_str(), after.as_str()) {
                    ("running", "paused") => Wish::Stands,
                    ("inmigrate", "inmigrate") => wish,
                    // The guest was loaded, or started, between the look and the `stop`.
                    _ => Wish::Either,
                };
            }
            Attack::Cont(_) | Attack::Pause(_) if one.refused.is_none() => {
                wish = match after.as_str() {
                    "running" if one.attack != Attack::Cont(Side::Destination) => Wish::Runs,
                    _ => Wish::Either,
                };
            }
            // A migration to a file stops the guest where it completes.
            Attack::MigrateAway if one.refused.is_none() => wish = Wish::Either,
            _ => {}
        }
    }
    wish
}

/// What is left in either QEMU, and neither named nor the attacker's.
fn left(trial: &Trial, allows: &Allows, place: Option<Place>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for machine in [&trial.pair.source, &trial.pair.destination] {
        let side = machine.side();
        let seen = if side == Side::Source { &trial.source } else { &trial.destination };
        // A source that has passed the guest on is gone, or is told of.
        let passed_on = side == Side::Source && matches!(place, Some(Place::On { side: Side::Destination, .. }));
        if !matches!(seen, Seen::Answers(_)) || passed_on || place == Some(Place::Waits) {
            continue;
        }
        let leftovers = machine.leftovers()?;
        found.extend(
            leftovers.into_iter().filter(|left| !allows.explains(side, left)).map(|left| format!("{side}: {left}")),
        );
    }
    let named = trial.report.leftovers();
    if found.is_empty() || (!named.is_empty() && matches!(trial.report.ending(), "stuck" | "undetermined" | "moved")) {
        return Ok(Vec::new());
    }
    Ok(vec![format!("left behind: {found:?}; named: {named:?}")])
}

/// Where the guest moved: whether the machine is the one that the source was.
fn machines_differ(trial: &Trial, place: Place) -> Option<String> {
    let Place::On { side: Side::Destination, .. } = place else { return None };
    let touched = |done: &Done| {
        let devices =
            matches!(done.attack, Attack::Unplug(_) | Attack::Exchange | Attack::PlugDisk(_) | Attack::PlugUsb(_));
        devices || matches!(done.attack, Attack::Eject(_) | Attack::ChangeMedium(_))
    };
    let accepted = trial.done.iter().filter(|done| done.refused.is_none() && touched(done));
    let (mut on_source, mut on_destination) = (Vec::new(), Vec::new());
    for done in accepted {
        match super::client::side_of(&done.attack) {
            Some(Side::Destination) => on_destination.push(done.attack),
            _ => on_source.push(done.attack),
        }
    }
    // Once the source has completed, nobody looks at its devices any more.
    let before_the_end = |attack: &Attack| {
        trial.done.iter().any(|done| {
            done.attack == *attack
                && done.after.as_ref().is_some_and(|state| state.run == "running" && state.migration != "completed")
        })
    };
    on_source.retain(before_the_end);
    match (on_source.is_empty(), on_destination.is_empty()) {
        (false, _) => Some(format!("MOVED with another machine: the source's owner did {on_source:?} before")),
        (true, _) => None,
    }
}

/// Where the guest moved: whether the guest had come to its end while only disks were copied.
fn ended_before(trial: &Trial, place: Place) -> Option<String> {
    let Place::On { side: Side::Destination, runs: false } = place else { return None };
    let is_early = |done: &&Done| {
        let ends = matches!(done.attack, Attack::Guest { act, .. } if act != Act::Suspend);
        ends && !["memory", "switchover", "handover", "cleanup"].contains(&done.phase.as_str())
    };
    let early = trial.done.iter().find(is_early)?;
    Some(format!("MOVED after its end: {} in phase {}", early.attack, early.phase))
}

/// Whether the guest is well, and its disks hold every write that it was told of. Both QEMUs have ended after that.
fn is_whole(trial: &Trial, place: Place, wrong: &mut Vec<String>) {
    let pair = &trial.pair;
    let (side, runs) = match place {
        Place::On { side, runs } => (side, runs),
        Place::Ended(side) => (side, false),
        Place::Waits => (Side::Destination, false),
    };
    let mut check = |what: &str, result: Result<()>| wrong.extend(result.err().map(|error| format!("{what}: {error}")));
    if runs && plan_version_counts(pair) && !pair.spec().quick {
        if trial.done.iter().any(|done| matches!(done.attack, Attack::Throttle(_))) {
            drop(pair.machine(side).ask("block_set_io_throttle", &limits(0)));
        }
        let looked = [
            ("the guest does not go on", pair.wait_for_beats(side, 10, WAIT)),
            ("the guest cannot look at its memory and disks", pair.wait_until_verified(WAIT)),
        ];
        // A guest whose file system is small goes on to write, and may have filled it by now.
        if !pair.machine(side).status().is_ok_and(|status| status == "io-error") {
            looked.into_iter().for_each(|(what, result)| check(what, result));
        }
    }
    let errors = pair.errors();
    if !errors.is_empty() {
        wrong.push(format!("the guest found: {errors:?}"));
    }
    let mut check = |what: &str, result: Result<()>| wrong.extend(result.err().map(|error| format!("{what}: {error}")));
    match pair.spec().quick {
        true => check("ending the guest", pair.machine(side).finish()),
        false => check("LOST: the disks", pair.check_disks(side).map(drop)),
    }
    if side == Side::Destination {
        check("the source", pair.source.kill());
        if pair.spec().quick {
            check("LOST: the disk", pair.guest_visible_equal(0));
        }
        check("LOST: the second disk", compare(trial));
    }
}

/// Whether the attacker's disk is the same on both sides. No guest writes to it.
fn compare(trial: &Trial) -> Result<()> {
    let plugged = |done: &Done| matches!(done.attack, Attack::Unplug(_) | Attack::Exchange) && done.refused.is_none();
    if trial.done.iter().any(plugged) {
        return Ok(());
    }
    let images = trial.clients.each_ref().map(|client| client.image("disk.qcow2"));
    let words = ["compare", "-f", "qcow2", "-F", "qcow2"].map(AsRef::as_ref);
    let paths = images.iter().map(|path| path.as_os_str());
    trial.pair.build(Side::Destination).img(words.into_iter().chain(paths)).map(drop)
}

fn story(trial: &Trial) -> Vec<String> {
    let mut story: Vec<String> = Vec::new();
    for done in &trial.done {
        let told = |state: &Option<super::client::State>| {
            state.as_ref().map_or("-".to_owned(), |state| format!("{}/{}", state.run, state.migration))
        };
        let answer = done.refused.as_deref().unwrap_or("accepted");
        let (before, after) = (told(&done.before), told(&done.after));
        story.push(format!("in {}: {}: {before} -> {after}: {answer}", done.phase, done.attack));
    }
    story.extend(trial.first.iter().map(|first| format!("the engine, before the recovery: {}", first.told())));
    story.push(format!("the engine: {}", trial.report.told()));
    story.extend(trial.second.iter().map(|(second, _)| format!("the second engine: {}", second.told())));
    let bounds = stood(&trial.samples).map(|(least, most)| format!("{} to {} ms", least.as_millis(), most.as_millis()));
    let told = ["blackout_ms", "paused_ms", "qemu_downtime_ms"].map(|name| (name, trial.report.figure(name)));
    story.push(format!("the guest stood for {bounds:?} as seen from outside; the engine told {told:?}"));
    story.push(format!("warnings: {:?}; leftovers: {:?}", trial.report.warnings, trial.report.leftovers()));
    story.push(format!(
        "the source: {:?}; the destination: {:?}; both have the disk {DISK}",
        trial.source, trial.destination
    ));
    for machine in [&trial.pair.source, &trial.pair.destination] {
        let stderr = machine.stderr();
        let last: Vec<&str> = stderr.lines().rev().take(3).collect();
        let events = machine.events().unwrap_or_default();
        let names: Vec<String> = events
            .iter()
            .filter(|event| {
                ["STOP", "RESUME", "SHUTDOWN", "MIGRATION", "SUSPEND", "GUEST_PANICKED", "BLOCK_IO_ERROR", "RESET"]
                    .contains(&event.name.as_str())
            })
            .map(|event| format!("{} {}", event.name, event.data["status"].as_str().unwrap_or_default()))
            .collect();
        story.push(format!("the {}: events {names:?}; stderr {last:?}", machine.side()));
    }
    let tail: Vec<&String> = trial.commands.iter().rev().take(25).collect();
    story.push(format!("the last commands, the latest first: {tail:?}"));
    story
}
