//! The judgement of one migration under attack, from what was seen outside of the engine. No query is made from here.

use qferry_bed::Side;

use super::client::State;
use super::engine::Report;
use super::rules::Allows;

/// One QEMU when all is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The process has ended.
    Dead,
    /// The process is alive and does not answer.
    Silent,
    /// The monitor answers.
    Answers(State),
}

/// The wish of the guest's owner, as far as the attacker saw it come true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Nobody stopped the guest.
    #[default]
    Runs,
    /// The guest was stopped, and that was seen.
    Stands,
    /// A `cont` or a `stop` had an effect that could not be seen.
    Either,
}

/// The facts for a judgement.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) allows: &'a Allows,
    pub(crate) wish: Wish,
    pub(crate) source: Seen,
    pub(crate) destination: Seen,
    /// The destination has run the guest at some time.
    pub(crate) destination_ran: bool,
    /// Somebody else's migration of the source was accepted.
    pub(crate) sent_away: bool,
    /// The engine's handover had begun.
    pub(crate) given: bool,
    /// The engine knows neither process.
    pub(crate) remote: bool,
    /// The source has said SHUTDOWN to an engine that lived.
    pub(crate) heard_shutdown: bool,
    pub(crate) report: &'a Report,
}

/// Where the guest is at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The guest is on this side, and runs there if `runs`.
    On { side: Side, runs: bool },
    /// The guest has ended, on this side.
    Ended(Side),
    /// All of the guest waits at the destination. The source has ended, which nothing proves to an engine that does not
    /// know its process.
    Waits,
}

const BACK: [&str; 4] = ["rolled-back", "cancelled", "refused", "stuck"];
/// The reasons of an engine that gives up because of flushes alone.
const TOO_SLOW: [&str; 2] = ["over-budget", "switchover-timeout"];

impl Seen {
    pub(crate) fn runs(&self) -> bool {
        matches!(self, Self::Answers(state) if state.run == "running")
    }

    fn has_all(&self) -> bool {
        matches!(self, Self::Answers(state) if state.migration == "completed")
    }

    /// The process waits for a guest, or has ended.
    fn is_empty(&self) -> bool {
        match self {
            Self::Dead => true,
            Self::Silent => false,
            Self::Answers(state) => state.run == "inmigrate" && !self.has_all(),
        }
    }
}

/// The place of the guest, and what is wrong.
pub(crate) fn judge(facts: &Facts<'_>) -> (Option<Place>, Vec<String>) {
    let mut wrong = Vec::new();
    let report = facts.report;
    if let Some(text) = exit_code(report) {
        wrong.push(text);
    }
    let place = match place(facts) {
        Ok(place) => place,
        Err(text) => {
            wrong.push(text);
            return (None, wrong);
        }
    };
    wrong.extend(told(facts, place));
    (Some(place), wrong)
}

/// Where the guest is.
fn place(facts: &Facts<'_>) -> Result<Place, String> {
    let Facts { allows, source, destination, .. } = facts;
    let on = |side, runs| Ok(Place::On { side, runs });
    match (source.runs(), destination.runs()) {
        (true, true) => return Err("TWO RUNNERS at the end".to_owned()),
        (true, false) => return on(Side::Source, true),
        (false, true) => return on(Side::Destination, true),
        (false, false) => {}
    }
    if *source == Seen::Silent || *destination == Seen::Silent {
        return Err("a QEMU hangs".to_owned());
    }
    let may_stand = |state: &State| {
        let stands = allows.stands.contains(&state.run.as_str());
        // Its owner's pause hides behind QEMU's own words for a guest that was sent.
        stands && (state.run != "paused" || facts.wish != Wish::Runs)
    };
    let may_wait = facts.remote && allows.source_ends && facts.report.ending() == "undetermined";
    if let Seen::Answers(state) = destination {
        if destination.has_all() && *source == Seen::Dead && may_wait {
            return Ok(Place::Waits);
        }
        if destination.has_all() && !matches!(source, Seen::Answers(left) if left.migration != "completed") {
            return match may_stand(state) {
                true => on(Side::Destination, false),
                false => {
                    Err("NO RUNNER: the destination has all of the guest, and nobody wanted it to stand".to_owned())
                }
            };
        }
    }
    match source {
        Seen::Answers(state) if state.run == "postmigrate" && !facts.sent_away => match facts.destination_ran {
            true if allows.destination_ends => Ok(Place::Ended(Side::Destination)),
            _ if facts.wish != Wish::Runs => on(Side::Source, false),
            _ => Err("NO RUNNER: the source has completed, and the destination is out of the way".to_owned()),
        },
        Seen::Answers(state) if may_stand(state) => on(Side::Source, false),
        Seen::Answers(_) => Err("NO RUNNER: the source stands, and nobody wanted that".to_owned()),
        _ if facts.destination_ran && allows.destination_ends => Ok(Place::Ended(Side::Destination)),
        _ if !facts.destination_ran && allows.source_ends => Ok(Place::Ended(Side::Source)),
        _ => Err("NO RUNNER: the guest's QEMU has ended, and nobody ended it".to_owned()),
    }
}

/// Whether the outcome tells what is true.
fn told(facts: &Facts<'_>, place: Place) -> Vec<String> {
    let Facts { allows, report, source, destination, .. } = facts;
    let (ending, runs_on) = (report.ending(), report.runs_on());
    let mut wrong = Vec::new();
    let mut claim = |endings: &[&str], side: &[&str]| {
        if !endings.contains(&ending) || !side.contains(&runs_on) {
            wrong.push(format!("the guest is {place:?}, and the engine said {}", report.told()));
        }
    };
    match place {
        Place::On { side: Side::Source, runs } => {
            match ending {
                // A refusal before the first look does not say where the guest is.
                "refused" | "cancelled" => claim(&BACK, &["source", "unknown"]),
                "ended" if !runs => claim(&["ended"], &["none"]),
                _ => claim(&BACK, &["source"]),
            }
            if runs && facts.wish == Wish::Stands {
                wrong.push("its owner had stopped the guest, and it runs".to_owned());
            }
            if facts.destination_ran {
                wrong.push("UNDONE: the destination has run the guest, and the source has it".to_owned());
            }
            let code = report.outcome["reason"]["code"].as_str().unwrap_or_default();
            if !(allows.stays || allows.slow && TOO_SLOW.contains(&code)) {
                wrong.push(format!("given up, though nothing was in the way: {}", report.told()));
            }
            if !destination.is_empty() && report.leftovers().is_empty() {
                wrong.push(format!("the destination was left with a part of the guest: {destination:?}"));
            }
        }
        Place::On { side: Side::Destination, runs } => {
            claim(&["moved"], &["destination"]);
            if runs && facts.wish == Wish::Stands {
                wrong.push("its owner had stopped the guest, and it runs on the destination".to_owned());
            }
            let told = report.warnings.iter().any(|code| code == "source-not-gone");
            if *source != Seen::Dead && !told && !facts.sent_away {
                wrong.push(format!("the source was left, and no word about it: {source:?}"));
            }
        }
        Place::Ended(Side::Destination) => match ending {
            // The destination's end came after the clean-up had looked, or before.
            "moved" => claim(&["moved"], &["destination", "none"]),
            _ => claim(&["undetermined", "ended"], &["unknown", "none"]),
        },
        Place::Waits => claim(&["undetermined"], &["unknown"]),
        Place::Ended(Side::Source) => match ending {
            "refused" => claim(&["refused"], &["source", "unknown", "none"]),
            // The source died while it passed the guest on.
            "undetermined" if facts.given => claim(&["undetermined"], &["unknown"]),
            // A monitor that closes without a word proves nothing of a process that the engine does not know.
            "undetermined" if facts.remote && !facts.heard_shutdown => claim(&["undetermined"], &["unknown"]),
            _ => claim(&["ended"], &["none"]),
        },
    }
    wrong
}

/// Whether the other one of two engines told the truth: that one which did not move the guest, if one did. The
/// destination may have run the guest well before that engine's end.
pub(crate) fn rivals_told(report: &Report, place: Place, ran_before: bool) -> Vec<String> {
    let mut wrong: Vec<String> = exit_code(report).into_iter().collect();
    let (ending, runs_on) = (report.ending(), report.runs_on());
    let is_true = match place {
        Place::On { side: Side::Source, .. } => BACK.contains(&ending) && ["source", "unknown"].contains(&runs_on),
        Place::On { side: Side::Destination, .. } => match runs_on {
            "destination" | "unknown" => true,
            // So it was, when that engine looked.
            "source" => BACK.contains(&ending) && !ran_before,
            _ => false,
        },
        Place::Ended(_) | Place::Waits => ending != "moved" && runs_on != "destination" || ran_before,
    };
    if !is_true {
        wrong.push(format!("the guest is {place:?}, and the other engine said {}", report.told()));
    }
    wrong
}

/// Whether the exit code is that of the outcome.
fn exit_code(report: &Report) -> Option<String> {
    let right = match report.ending() {
        "moved" => 0,
        "refused" => 3,
        "rolled-back" => 4,
        "cancelled" => 5,
        "stuck" => 6,
        "undetermined" => 7,
        "ended" => 8,
        _ => return Some(format!("no outcome: {}; {}", report.told(), report.said.trim())),
    };
    (report.code != Some(right)).then(|| format!("exit code {:?} for {}", report.code, report.ending()))
}

#[cfg(test)]
mod tests {
    use super::super::attack::Attack;
    use super::*;
    use qferry_bed::Act;
    use serde_json::json;

    fn answers(run: &str, migration: &str) -> Seen {
        Seen::Answers(State { run: run.to_owned(), migration: migration.to_owned() })
    }

    fn report(code: i32, outcome: &str, runs_on: &str) -> Report {
        Report { code: Some(code), outcome: json!({"outcome": outcome, "runs_on": runs_on}), ..Report::default() }
    }

    struct Case<'a> {
        attacks: &'a [Attack],
        wish: Wish,
        source: Seen,
        destination: Seen,
        ran: bool,
        report: Report,
        right: bool,
    }

    #[test]
    fn of_two_engines_both_tell_the_truth() {
        let on = |side| Place::On { side, runs: true };
        let [moved, back] = [on(Side::Destination), on(Side::Source)];
        let refused = report(3, "refused", "source");
        for (report, place, ran_before, right) in [
            (&refused, back, false, true),
            (&refused, moved, false, true),
            (&report(4, "rolled-back", "source"), moved, true, false),
            (&report(4, "rolled-back", "destination"), moved, true, true),
            (&report(0, "moved", "destination"), back, false, false),
            (&report(4, "refused", "source"), back, false, false),
        ] {
            assert_eq!(rivals_told(report, place, ran_before).is_empty(), right, "{place:?}: {}", report.told());
        }
    }

    #[test]
    fn what_is_right_and_what_is_wrong() {
        let cases = |attacks: &'static [Attack], all: Vec<(Wish, Seen, Seen, bool, Report, bool)>| {
            all.into_iter().map(move |(wish, source, destination, ran, report, right)| Case {
                attacks,
                wish,
                source,
                destination,
                ran,
                report,
                right,
            })
        };
        let (run, away, waits) =
            (answers("running", "none"), answers("running", "completed"), answers("inmigrate", "none"));
        let (done, all) = (answers("postmigrate", "completed"), answers("paused", "completed"));
        let (moved, back) = (report(0, "moved", "destination"), report(4, "rolled-back", "source"));
        let (unknown, ended) = (report(7, "undetermined", "unknown"), report(8, "ended", "none"));
        let runs = Wish::Runs;
        let none = cases(
            &[],
            vec![
                (runs, Seen::Dead, away.clone(), true, moved.clone(), true),
                (runs, Seen::Dead, away.clone(), true, report(4, "moved", "destination"), false),
                (runs, run.clone(), away.clone(), true, moved.clone(), false),
                (runs, done.clone(), away.clone(), true, moved.clone(), false),
                (runs, run.clone(), waits.clone(), false, back.clone(), false),
                (runs, Seen::Dead, Seen::Dead, false, ended.clone(), false),
            ],
        );
        let cut = cases(
            &[Attack::RamCut],
            vec![
                (runs, run.clone(), waits.clone(), false, back.clone(), true),
                (runs, run.clone(), Seen::Dead, false, back.clone(), true),
                (runs, run.clone(), Seen::Dead, false, unknown.clone(), false),
                (runs, run.clone(), all.clone(), false, back.clone(), false),
                (runs, run.clone(), Seen::Dead, true, back.clone(), false),
                (runs, done.clone(), all.clone(), false, unknown.clone(), false),
                (runs, answers("paused", "cancelled"), Seen::Dead, false, back.clone(), false),
                (runs, Seen::Silent, Seen::Dead, false, unknown.clone(), false),
            ],
        );
        let stop = cases(
            &[Attack::Stop(Side::Source)],
            vec![
                (Wish::Stands, answers("paused", "none"), waits.clone(), false, back.clone(), true),
                (Wish::Stands, Seen::Dead, all.clone(), false, moved.clone(), true),
                (Wish::Stands, Seen::Dead, away.clone(), true, moved.clone(), false),
                (Wish::Stands, run.clone(), waits.clone(), false, back.clone(), false),
                (runs, Seen::Dead, all.clone(), false, moved.clone(), false),
            ],
        );
        let quit = cases(
            &[Attack::Quit(Side::Source)],
            vec![
                (runs, Seen::Dead, Seen::Dead, false, ended.clone(), true),
                (runs, Seen::Dead, Seen::Dead, false, unknown.clone(), false),
                (runs, Seen::Dead, Seen::Dead, false, back.clone(), false),
                (runs, Seen::Dead, away, true, moved.clone(), true),
                (runs, Seen::Dead, all.clone(), false, unknown.clone(), true),
                (runs, Seen::Dead, all.clone(), false, ended.clone(), false),
                (runs, Seen::Dead, Seen::Dead, true, moved, false),
            ],
        );
        let kill = cases(
            &[Attack::Kill(Side::Source)],
            vec![
                (runs, Seen::Dead, Seen::Dead, false, ended.clone(), true),
                (runs, Seen::Dead, waits.clone(), false, unknown.clone(), true),
                (runs, Seen::Dead, waits.clone(), false, back.clone(), false),
            ],
        );
        let panics = cases(
            &[Attack::Guest { act: Act::Panic, pauses: true }],
            vec![
                (runs, answers("guest-panicked", "none"), waits.clone(), false, back.clone(), true),
                (runs, answers("shutdown", "none"), waits, false, back, false),
                (runs, done, Seen::Dead, false, unknown, false),
            ],
        );
        for case in none.chain(cut).chain(stop).chain(quit).chain(kill).chain(panics) {
            let allows = Allows::together(case.attacks, false);
            let facts = Facts {
                allows: &allows,
                wish: case.wish,
                source: case.source,
                destination: case.destination,
                destination_ran: case.ran,
                sent_away: false,
                given: false,
                remote: [[Attack::Quit(Side::Source)], [Attack::Kill(Side::Source)]]
                    .iter()
                    .any(|all| case.attacks == all),
                heard_shutdown: case.attacks == [Attack::Quit(Side::Source)],
                report: &case.report,
            };
            let (place, wrong) = judge(&facts);
            assert_eq!(wrong.is_empty(), case.right, "{:?} {facts:?}: {place:?}, {wrong:?}", case.attacks);
        }
    }
}
