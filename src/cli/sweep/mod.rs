//! `qferry sweep`: runs the trials of a spec, and keeps what they measure.

mod answers;
mod charts;
mod course;
mod picture;
mod report;
mod tune;

use super::{
    exit::{failed, misused},
    render,
};
use crate::experiment::{
    EXAMPLE, FigureBound, FigureCondition, SweepAnalysis, SweepPlan, SweepResults, TRIALS, TRIALS_LEAST,
};
use answers::ReadSweep;
use course::{WordsCheck, read, to_the_end};
use serde_json::json;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tune::TuneArguments;

const EXAMPLES: &str = "\
Examples:
  A spec with every field, to begin with:
    qferry sweep --example >sweep.toml

  What would be tried, and how long would it take at least?
    qferry sweep sweep.toml --plan

  Run it, and go on with it after an interruption:
    qferry sweep sweep.toml --out results
    qferry sweep sweep.toml --out results --resume

The folder then has results.csv (a row for each figure of each trial), trials.csv (a row for each trial),
  samples.jsonl, data_quality.csv (which trial does not count, and why), metrics.csv (what each figure is), the spec
  and the environment, report.html, and its pictures in plots/.

  Which setting is the fastest of those with a blackout of less than 50 ms?
    qferry sweep --goal 'blackout<50ms' --out results

  Which settings of a policy are the best for this guest and link?
    qferry sweep sweep.toml --tune --goal 'blackout<50ms' --out tuned
    qferry migrate --policy tuned/policy.toml ...

  Has a new version made it worse?
    qferry sweep --compare results new-results --fail-if 'blackout.p99>1.1x'

Exit codes: 0 all trials ran, whatever came of them; 1 the sweep could not go on or was interrupted, no setting meets
  --goal, or --fail-if holds; 2 usage";

/// Try migrations with all combinations of some settings, and measure what the guest feels
///
/// Starts QEMUs of its own with a small guest that dirties memory and writes to disks, migrates it again and again,
/// and listens to it from outside. Trials that fail or take too long are kept as such.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SweepArguments {
    /// The TOML file that says what is started, varied and measured; without it, --goal and --fail-if look at what
    /// --out has
    #[arg(required_unless_present_any = ["example", "compare", "goal", "fail_if"])]
    spec: Option<PathBuf>,
    /// The folder for the results, which must be new or empty
    #[arg(long, value_name = "DIR", required_unless_present_any = ["example", "plan", "compare"])]
    out: Option<PathBuf>,
    /// Print the trials and the least time that they will take; start nothing
    #[arg(long)]
    plan: bool,
    /// Go on with the sweep of the same spec in that folder
    #[arg(long, conflicts_with = "plan")]
    resume: bool,
    /// Print a spec with every field and what it means
    #[arg(long, exclusive = true)]
    example: bool,
    /// Name the setting with the least total time that meets this, such as "blackout<50ms" or "blackout.p99<100ms";
    /// of the figures of metrics.csv, by their median unless it says mean, min, max, or p95 and the like
    #[arg(long, value_name = "CONDITION")]
    goal: Option<FigureCondition>,
    /// Set the results of two folders side by side
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"], conflicts_with_all = ["spec", "out", "plan", "resume", "goal"])]
    compare: Vec<PathBuf>,
    /// Exit with 1 if this holds for any setting: "blackout.p99>100ms", or, with --compare, "blackout.p99>1.1x";
    /// repeatable
    #[arg(long, value_name = "CONDITION")]
    fail_if: Vec<FigureCondition>,
    /// Search the settings of the spec's policy for its guest and link: hundreds in a model of the migration, then the
    /// best in rounds of real trials, each of which keeps half. Writes policy.toml for `qferry migrate --policy`. The
    /// goal is --goal, or a blackout within the budget
    #[arg(long, requires = "spec", requires = "out", conflicts_with_all = ["plan", "fail_if"])]
    tune: bool,
    /// The most real trials of a search: with more of them, more candidates are tried. With --resume give the same
    /// number
    #[arg(long, value_name = "N", requires = "tune", default_value_t = TRIALS,
          value_parser = clap::value_parser!(u32).range(i64::from(TRIALS_LEAST)..=100_000))]
    trials: u32,
    /// One JSON object a line on stdout; text for people goes to stderr
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs the verb. `check` is for the options that migrations will be given.
pub(super) async fn run(arguments: &SweepArguments, check: WordsCheck) -> ExitCode {
    let json = arguments.json;
    if arguments.example {
        return match io::stdout().write_all(EXAMPLE.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&format!("the example cannot be written: {error}"), json),
        };
    }
    if let Some(goal) = arguments.goal.as_ref().filter(|goal| matches!(goal.bound, FigureBound::Times(_))) {
        return misused(&format!("--goal {goal}: a multiple needs two sweeps, with --compare and --fail-if"), json);
    }
    if let [before, after] = &arguments.compare[..] {
        let both = ReadSweep::of(before).and_then(|before| Ok((before, ReadSweep::of(after)?)));
        let compared = both.and_then(|(before, after)| answers::compare(&before, &after, &arguments.fail_if, json));
        return match compared {
            Ok(failed) => judged(&failed),
            Err(error) => misused(&error, json),
        };
    }
    let Some(spec) = &arguments.spec else {
        let Some(folder) = &arguments.out else { return misused("--out DIR is needed", json) };
        return match ReadSweep::of(folder) {
            Ok(read) => answer(arguments, &read.plan, &read.results),
            Err(error) => misused(&error, json),
        };
    };
    let text = match std::fs::read_to_string(spec) {
        Ok(text) => text,
        Err(error) => return misused(&format!("{}: {error}", spec.display()), json),
    };
    let plan = match read(&text, check) {
        Ok(plan) => plan,
        Err(error) => return misused(&format!("{}: {error}", spec.display()), json),
    };
    match &arguments.out {
        Some(folder) if arguments.tune => {
            let tuned = TuneArguments {
                goal: arguments.goal.as_ref(),
                trials: arguments.trials,
                resumes: arguments.resume,
                json,
                check,
            };
            tuned.run(&text, folder).await
        }
        _ if arguments.plan => {
            print_plan(&plan, json);
            ExitCode::SUCCESS
        }
        Some(folder) => sweep(arguments, &plan, &text, folder).await,
        None => misused("--out DIR is needed", json),
    }
}

/// The least time of a trial, without its migration.
fn least(plan: &SweepPlan) -> Duration {
    plan.trials
        .iter()
        .map(|trial| {
            let setup = &plan.configurations[trial.configuration].setup;
            setup.before + setup.after + if setup.fresh_guest { setup.warm_up } else { Duration::ZERO }
        })
        .sum()
}

fn print_plan(plan: &SweepPlan, json: bool) {
    let least = least(plan);
    let links: Vec<String> = plan.links().iter().map(ToString::to_string).collect();
    if json {
        let trials: Vec<_> = plan
            .trials
            .iter()
            .map(|trial| {
                json!({ "trial": trial.number, "block": trial.block, "configuration": trial.configuration,
                "levels": plan.configurations[trial.configuration].levels })
            })
            .collect();
        let object = json!({ "v": 1, "type": "sweep-plan", "t_ms": 0, "factors": plan.factors, "links": links,
            "trials": trials, "least_ms": u64::try_from(least.as_millis()).unwrap_or(u64::MAX) });
        // the exit code says what the reader of stdout misses
        render::object(&object).ok();
        return;
    }
    let mut text = format!(
        "{}: {} combinations, {} times each: {} trials\n",
        plan.spec.name,
        plan.configurations.len(),
        plan.spec.repeats,
        plan.trials.len()
    );
    text += &format!("factors: {}\n", if plan.factors.is_empty() { "none".into() } else { plan.factors.join(", ") });
    text += &format!("link: {}\n", links.join("; or "));
    for trial in &plan.trials {
        text +=
            &format!("{:>5}  block {:>3}  {}\n", trial.number, trial.block, plan.configurations[trial.configuration]);
    }
    let seconds = Duration::from_secs(least.as_secs());
    text += &format!(
        "at least {} for what is measured before and after, and the boots and migrations\n",
        humantime::format_duration(seconds)
    );
    render::print(&text);
}

/// Tells which conditions hold.
fn judged(failed: &[String]) -> ExitCode {
    failed.iter().for_each(|failed| render::say(&format!("qferry: {failed}")));
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the results answer to --goal and --fail-if.
fn answer(arguments: &SweepArguments, plan: &SweepPlan, results: &SweepResults) -> ExitCode {
    let analysis = SweepAnalysis::new(plan, &results.records);
    let is_met = arguments.goal.as_ref().is_none_or(|goal| answers::goal(plan, &analysis, goal, arguments.json));
    match answers::failing(plan, &analysis, &arguments.fail_if) {
        Ok(failed) if is_met => judged(&failed),
        Ok(failed) => {
            judged(&failed);
            ExitCode::FAILURE
        }
        Err(error) => misused(&error, arguments.json),
    }
}

async fn sweep(arguments: &SweepArguments, plan: &SweepPlan, text: &str, folder: &Path) -> ExitCode {
    let json = arguments.json;
    match to_the_end(plan, text, folder, arguments.resume, json).await {
        Ok(results) => {
            render::say(&format!("the report is {}", report::place(folder).display()));
            answer(arguments, plan, &results)
        }
        Err(exit) => exit,
    }
}
