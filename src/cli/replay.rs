//! `qferry replay`: lets a policy decide on the samples that a transcript has, beside what was decided.
//!
//! The decisions are the library's own. Rows are written as they come, so that a transcript costs no memory.

use super::{
    exit::{failed, misused},
    recorded, render,
    values::{duration, policy},
};
use crate::{
    convergence::{
        Action, BudgetQuestion, ControllerBegin, ControllerLook, ControllerNote, ControllerReplay, Decision,
        OverBudget, Policy,
    },
    progress::describe,
    recording::{RecordedContent, RecordedLine, RecordingReader, open_plain},
};
use serde_json::{Value, json};
use std::{
    io::{self, Read},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

const EXAMPLES: &str = "\
Examples:
  Where would the policy postcopy have decided otherwise than the last migration did?
    qferry replay last --policy postcopy

  Is a decision what the recorded policy leads to?
    qferry replay last

Exit codes: 0 replayed, 1 the file cannot be read or has nothing to replay, 2 usage, or no transcript";

/// Let another policy decide on the samples of a recorded migration, and show where it would have done otherwise
///
/// The code that decides is the one that migrates. Up to the first difference the samples are what the other policy
/// would have met; behind it they show what the recorded decisions led to, and not what others would have led to.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct ReplayArguments {
    /// The file, or the word last for the newest that is kept
    file: PathBuf,
    /// The policy that decides, as qferry migrate takes it [default: the recorded one]
    #[arg(long, value_name = "NAME|FILE", value_parser = policy)]
    policy: Option<Policy>,
    /// The blackout budget of that policy [default: the recorded one, or the longest downtime of a policy with a
    /// schedule]
    #[arg(long, value_name = "DUR", value_parser = duration, requires = "policy")]
    downtime: Option<Duration>,
    /// One JSON object a line on stdout
    #[arg(long)]
    pub(super) json: bool,
}

/// What a replay has come to.
#[derive(Debug, Clone, Default, PartialEq)]
struct ReplayTotals {
    looks: u64,
    recorded: u64,
    replayed: u64,
    differences: u64,
    /// The first difference: its time, and what was and would have been decided.
    first: Option<(f64, String, String)>,
    /// Why the replay ends before the recording does.
    ends_early: Option<String>,
}

/// One decision beside another.
#[derive(Debug, Clone, PartialEq)]
struct ComparedDecision {
    at: Option<f64>,
    recorded: Decision,
    replayed: Decision,
}

impl ComparedDecision {
    fn differs(&self) -> bool {
        self.recorded.actions != self.replayed.actions
    }

    fn is_worth_a_row(&self) -> bool {
        !self.recorded.actions.is_empty() || !self.replayed.actions.is_empty()
    }
}

/// Replays a transcript.
pub(super) fn run(arguments: &ReplayArguments) -> ExitCode {
    let json = arguments.json;
    let path = match recorded::find(&arguments.file) {
        Ok(path) => path,
        Err(message) => return failed(&message, json),
    };
    let unreadable = |error: &io::Error| format!("cannot read {}: {}", path.display(), describe(error));
    match open_plain(&path).and_then(|opened| recorded::no_transcript(&path, opened)) {
        Err(error) => return failed(&unreadable(&error), json),
        Ok(Some(why)) => return misused(&why, json),
        Ok(None) => {}
    }
    let opened = match open_plain(&path) {
        Ok(opened) => opened,
        Err(error) => return failed(&unreadable(&error), json),
    };
    let mut write = |text: String| if json { render::object(&parsed(&text)) } else { render::written(&text) };
    match replay(opened, arguments, &mut write) {
        Ok(Some(_)) => ExitCode::SUCCESS,
        Ok(None) => failed(
            &format!(
                "{} has nothing to replay: the run ended before disks or RAM were copied, or an earlier qferry wrote it",
                path.display()
            ),
            json,
        ),
        Err(error) => failed(&unreadable(&error), json),
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Replays what `source` gives; `None` where it has nothing of the controller.
fn replay(
    source: impl Read,
    arguments: &ReplayArguments,
    write: &mut impl FnMut(String) -> io::Result<()>,
) -> io::Result<Option<ReplayTotals>> {
    let mut reader = RecordingReader::new(source).reading_controller();
    let mut under_way: Option<ControllerReplay> = None;
    let mut totals = ReplayTotals::default();
    for line in reader.by_ref() {
        let RecordedLine::Entry(entry) = line? else { continue };
        let at = entry.at.as_secs_f64();
        let note = match entry.content {
            RecordedContent::Note(note) if entry.side == "recorder" && under_way.is_some() => {
                let left_out = note.get("left_out").or(note.get("dropped")).and_then(Value::as_u64);
                let Some(left_out) = left_out.filter(|number| *number > 0) else { continue };
                totals.ends_early = Some(format!("{left_out} entries are left out of the transcript at {at:.3} s"));
                break;
            }
            RecordedContent::Controller(note) => match serde_json::from_value::<ControllerNote>(note) {
                Ok(note) => note,
                Err(error) => {
                    totals.ends_early =
                        Some(format!("what the controller was given at {at:.3} s cannot be read: {error}"));
                    break;
                }
            },
            _ => continue,
        };
        if let ControllerNote::Begin(begin) = note {
            if begin.v != ControllerBegin::VERSION {
                totals.ends_early = Some(format!("a later qferry wrote the samples (version {})", begin.v));
                break;
            }
            let (replay, budget) = begun(&begin, arguments);
            write(head(&begin, arguments, budget))?;
            under_way = Some(replay);
            continue;
        }
        let Some(replay) = &mut under_way else { continue };
        let compared = match note {
            ControllerNote::Look(look) => Some(looked(replay, *look, &mut totals)),
            ControllerNote::BudgetAsked(question) => Some(asked(replay, &question, at)),
            ControllerNote::Waited(sample) => {
                replay.wait(&sample);
                None
            }
            ControllerNote::TakenBack(action) => {
                replay.take_back(&action);
                None
            }
            ControllerNote::StopAnswered { us } => {
                replay.answered_at_stop(us);
                None
            }
            ControllerNote::Begin(_) => None,
        };
        if let Some(compared) = compared.filter(ComparedDecision::is_worth_a_row) {
            totals.count(&compared, at);
            write(if arguments.json { object(&compared) } else { row(&compared) })?;
        }
    }
    if under_way.is_none() && totals.ends_early.is_none() {
        return Ok(None);
    }
    write(if arguments.json { totals.object() } else { totals.words() })?;
    Ok(Some(totals))
}

/// The replay and its budget.
fn begun(begin: &ControllerBegin, arguments: &ReplayArguments) -> (ControllerReplay, Duration) {
    let recorded = begin.job.budget;
    match &arguments.policy {
        None => (ControllerReplay::as_recorded(begin), recorded),
        Some(policy) if *policy == begin.policy && arguments.downtime.is_none() => {
            (ControllerReplay::as_recorded(begin), recorded)
        }
        Some(policy) => {
            let budget = arguments.downtime.or_else(|| policy.budget()).unwrap_or(recorded);
            (ControllerReplay::with_policy(begin, policy.clone(), budget), budget)
        }
    }
}

fn looked(replay: &mut ControllerReplay, look: ControllerLook, totals: &mut ReplayTotals) -> ComparedDecision {
    totals.looks += 1;
    let replayed = replay.look(&look.sample);
    let recorded = look.decision.unwrap_or_default();
    ComparedDecision { at: Some(look.sample.at_ms / 1000.0), recorded, replayed }
}

/// The question for the budget as a decision: to give up, or else to go on.
fn asked(replay: &ControllerReplay, question: &BudgetQuestion, at: f64) -> ComparedDecision {
    let give_up = |needed: String, because: String| Decision {
        actions: vec![Action::GiveUp { code: OverBudget::CODE, needed }],
        because,
    };
    let replayed = match replay.ask(question) {
        Ok(estimate) => Decision { actions: Vec::new(), because: format!("the blackout would take {estimate:.0} ms") },
        Err(over) => give_up(over.needed, over.because),
    };
    // the reason of the recorded answer is that of the replayed one, where both are the same
    let recorded = match (question.kept, replayed.actions.is_empty()) {
        (true, _) => Decision::default(),
        (false, false) => replayed.clone(),
        (false, true) => give_up(String::new(), "the blackout would have exceeded the budget".to_owned()),
    };
    ComparedDecision { at: Some(at), recorded, replayed }
}

fn actions(decision: &Decision) -> String {
    let words: Vec<String> = decision.actions.iter().map(Action::to_string).collect();
    if words.is_empty() { "waits".to_owned() } else { words.join(", ") }
}

fn head(begin: &ControllerBegin, arguments: &ReplayArguments, budget: Duration) -> String {
    let replayed = arguments.policy.as_ref().unwrap_or(&begin.policy);
    let budget_ms = |budget: Duration| budget.as_secs_f64() * 1000.0;
    if arguments.json {
        let line = json!({
            "v": 1, "type": "replay-begin", "t_ms": 0, "recorded_policy": begin.policy.name, "policy": replayed.name,
            "recorded_budget_ms": budget_ms(begin.job.budget), "budget_ms": budget_ms(budget), "disks": begin.disks,
        });
        return line.to_string();
    }
    format!(
        "recorded with the policy {}, a budget of {} ms; replayed with {}, a budget of {} ms\n\n    time s  decision\n",
        begin.policy.name,
        budget_ms(begin.job.budget),
        replayed.name,
        budget_ms(budget)
    )
}

/// A row where both are the same; or two below each other, each with its reason.
fn row(compared: &ComparedDecision) -> String {
    let ComparedDecision { at, recorded, replayed } = compared;
    let at = at.unwrap_or_default();
    let because = |decision: &Decision| match decision.because.as_str() {
        "" => String::new(),
        because => format!(": {because}"),
    };
    match compared.differs() {
        false => format!("{at:>10.3}  both      {}{}\n", actions(recorded), because(replayed)),
        true => format!(
            "{at:>10.3}  recorded  {}{}\n            replayed  {}{}\n",
            actions(recorded),
            because(recorded),
            actions(replayed),
            because(replayed)
        ),
    }
}

fn object(compared: &ComparedDecision) -> String {
    let ComparedDecision { at, recorded, replayed } = compared;
    let t_ms = (at.unwrap_or_default() * 1000.0) as u64;
    let differs = compared.differs();
    json!({
        "v": 1, "type": "replay-decision", "t_ms": t_ms, "differs": differs, "recorded": recorded, "replayed": replayed,
    })
    .to_string()
}

impl ReplayTotals {
    fn count(&mut self, compared: &ComparedDecision, at: f64) {
        self.recorded += u64::from(!compared.recorded.actions.is_empty());
        self.replayed += u64::from(!compared.replayed.actions.is_empty());
        if compared.differs() {
            self.differences += 1;
            let at = compared.at.unwrap_or(at);
            self.first.get_or_insert_with(|| (at, actions(&compared.recorded), actions(&compared.replayed)));
        }
    }

    fn words(&self) -> String {
        let mut text = format!(
            "\n{} looks; {} decisions to act recorded, {} replayed, {} differences\n",
            self.looks, self.recorded, self.replayed, self.differences
        );
        text += &match &self.first {
            None => "no difference: every decision is as recorded\n".to_owned(),
            Some((at, recorded, replayed)) => format!(
                "first difference at {at:.3} s: recorded {recorded}; replayed {replayed}\nfrom there on the samples show \
                 what the recorded decisions led to, not what the replayed ones would have led to\n"
            ),
        };
        text.extend(self.ends_early.iter().map(|why| format!("the replay ends early: {why}\n")));
        text
    }

    fn object(&self) -> String {
        let first = self.first.as_ref().map(|(at, recorded, replayed)| {
            json!({ "t_ms": (at * 1000.0) as u64, "recorded": recorded, "replayed": replayed })
        });
        json!({
            "v": 1, "type": "replay", "t_ms": 0, "looks": self.looks, "recorded": self.recorded,
            "replayed": self.replayed, "differences": self.differences, "first_difference": first,
            "ends_early": self.ends_early,
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convergence::{BuildAbilities, ConvergenceJob, MigrationSample, MirrorSample, RamSample};

    const MIB: u64 = 1 << 20;

    fn note(us: u64, note: &ControllerNote) -> String {
        let note = serde_json::to_string(note).unwrap();
        format!("{{\"v\":1,\"t_us\":{us},\"side\":\"controller\",\"dir\":\"note\",\"line\":{note}}}\n")
    }

    fn begin() -> ControllerBegin {
        let build = BuildAbilities { write_blocking: true, throttle: true, overlap: true, switchover_bandwidth: true };
        let policy = Policy::default();
        let job = ConvergenceJob {
            budget: Duration::from_millis(300),
            memory: 512 * MIB,
            abilities: build.under(&policy),
            ..ConvergenceJob::default()
        };
        ControllerBegin { v: 1, policy, job, build, disks: vec!["disk0".to_owned()] }
    }

    /// A run of the policy converge, whose guest is hard to move, as a transcript has it.
    fn recording() -> String {
        let begin = begin();
        let mut run = ControllerReplay::as_recorded(&begin);
        let mut text = note(1, &ControllerNote::Begin(Box::new(begin)));
        for look in 0..300u64 {
            let mirror = MirrorSample {
                disk: "disk0".to_owned(),
                len: 100 * MIB,
                offset: 100 * MIB,
                ready: true,
                actively_synced: Some(look > 3),
                ..MirrorSample::default()
            };
            let sent = look.saturating_sub(6) * 10 * MIB;
            let ram = RamSample {
                transferred: sent,
                processed: sent,
                remaining: 300 * MIB,
                total: 512 * MIB,
                syncs: look / 3,
                ..RamSample::default()
            };
            let sample = MigrationSample {
                at_ms: look as f64 * 100.0,
                round_trip_ms: 0.5,
                stands: false,
                ram: (look > 6).then_some(ram),
                mirrors: vec![mirror],
            };
            let decision = run.look(&sample);
            text += &note(look * 100_000, &ControllerNote::Look(Box::new(ControllerLook::new(&sample, &decision))));
        }
        text += &note(30_000_000, &ControllerNote::StopAnswered { us: 700 });
        let question = BudgetQuestion { stood_us: 9000, left: Some(0), kept: true };
        text + &note(30_000_100, &ControllerNote::BudgetAsked(question))
    }

    fn arguments(name: Option<&str>, json: bool) -> ReplayArguments {
        let policy = name.map(|name| policy(name).unwrap());
        ReplayArguments { file: "t".into(), policy, downtime: None, json }
    }

    fn replayed(text: &str, arguments: &ReplayArguments) -> (Option<ReplayTotals>, String) {
        let mut told = String::new();
        let totals = replay(text.as_bytes(), arguments, &mut |part| {
            told += &part;
            told += if arguments.json { "\n" } else { "" };
            Ok(())
        });
        (totals.unwrap(), told)
    }

    #[test]
    fn the_recorded_policy_decides_as_recorded() {
        for name in [None, Some("converge")] {
            let (totals, told) = replayed(&recording(), &arguments(name, false));
            let totals = totals.unwrap();
            assert_eq!((totals.looks, totals.differences, &totals.ends_early), (300, 0, &None), "{told}");
            assert!(totals.recorded >= 3 && totals.recorded == totals.replayed, "{told}");
            let head =
                "recorded with the policy converge, a budget of 300 ms; replayed with converge, a budget of 300 ms\n";
            assert!(told.starts_with(head), "{told}");
            assert!(told.contains("     0.000  both      write-blocking disk0: every mirror is ready"), "{told}");
            assert!(told.contains("  both      throttle "), "{told}");
            assert!(told.ends_with("no difference: every decision is as recorded\n"), "{told}");
        }
    }

    #[test]
    fn the_first_difference_is_named_and_what_it_means() {
        let (totals, told) = replayed(&recording(), &arguments(Some("postcopy"), false));
        let (at, recorded, replayed) = totals.unwrap().first.unwrap();
        assert!(recorded.starts_with("throttle") || replayed == "postcopy", "{told}");
        for words in [
            &format!("first difference at {at:.3} s: recorded {recorded}; replayed {replayed}\n")[..],
            "from there on the samples show what the recorded decisions led to, not what the replayed ones would",
            "\n            replayed  postcopy: ",
            "  recorded  throttle ",
        ] {
            assert!(told.contains(words), "{words:?} is not in {told}");
        }
        let (_, told) = self::replayed(&recording(), &arguments(Some("kubevirt"), false));
        assert!(told.contains("replayed with kubevirt, a budget of 900 ms"), "{told}");
    }

    #[test]
    fn a_program_gets_an_object_a_line() {
        let (_, told) = replayed(&recording(), &arguments(Some("patient"), true));
        let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["type"], &lines[0]["policy"]), (&json!("replay-begin"), &json!("patient")));
        let last = &lines[lines.len() - 1];
        assert_eq!((&last["type"], &last["looks"]), (&json!("replay"), &json!(300)));
        let differing = lines.iter().filter(|line| line["differs"] == json!(true)).count();
        assert_eq!(last["differences"], json!(differing));
        assert!(differing > 0 && last["first_difference"]["t_ms"].is_u64(), "{last}");
        assert!(lines.iter().all(|line| line["v"] == 1 && line["t_ms"].is_u64()), "{told}");
    }

    #[test]
    fn what_cannot_be_replayed_is_said() {
        let header = "{\"v\":1,\"type\":\"transcript\",\"began_ms\":1,\"qferry\":\"0.1.0\"}\n";
        assert_eq!(replayed(header, &arguments(None, false)).0, None);
        let whole = recording();
        let gap =
            "{\"v\":1,\"t_us\":5,\"side\":\"recorder\",\"dir\":\"note\",\"line\":{\"left_out\":7,\"bytes\":70}}\n";
        let (first, rest) = whole.split_at(whole.match_indices('\n').nth(100).unwrap().0 + 1);
        let later = whole.replacen("\"begin\":{\"v\":1", "\"begin\":{\"v\":2", 1);
        let foreign = format!("{first}{}", first.lines().nth(3).unwrap().replace("\"look\"", "\"of-tomorrow\""));
        for (text, looks, words) in [
            (format!("{first}{gap}{rest}"), 100, "the replay ends early: 7 entries are left out of the transcript"),
            (later, 0, "the replay ends early: a later qferry wrote the samples (version 2)"),
            (foreign, 100, "the replay ends early: what the controller was given at "),
        ] {
            let (totals, told) = replayed(&text, &arguments(None, false));
            assert_eq!(totals.unwrap().looks, looks, "{told}");
            assert!(told.contains(words), "{words:?} is not in {told}");
        }
        // a torn end is the end
        let (totals, told) = replayed(&whole[..whole.len() - 400], &arguments(None, false));
        assert_eq!((totals.unwrap().differences, told.contains("ends early")), (0, false));
    }

    #[test]
    fn a_budget_that_does_not_suffice_is_a_difference() {
        let mut strict = arguments(Some("converge"), false);
        strict.downtime = Some(Duration::from_millis(5));
        let (_, told) = replayed(&recording(), &strict);
        assert!(told.contains("replayed with converge, a budget of 5 ms"), "{told}");
    }
}
