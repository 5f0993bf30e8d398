//! `qferry sweep --tune`: searches the settings of a policy, in sweeps one after the other.

use super::{
    super::{
        exit::{failed, misused},
        render,
    },
    course::{WordsCheck, read, to_the_end},
    picture::{number, with_interval},
};
use crate::experiment::{
    AS_IT_STANDS, FigureCondition, FigureStatistic, PolicyCandidate, PolicySearch, SearchRound, SweepAnalysis,
    SweepPlan, SweepResults, bandwidth_seen, write_whole,
};
use serde_json::json;
use std::{fs, path::Path, process::ExitCode};

/// What is asked of a search.
pub(super) struct TuneArguments<'a> {
    pub(super) goal: Option<&'a FigureCondition>,
    /// The most real trials.
    pub(super) trials: u32,
    pub(super) resumes: bool,
    pub(super) json: bool,
    pub(super) check: WordsCheck,
}

impl TuneArguments<'_> {
    /// Searches, and writes the policy that was found.
    pub(super) async fn run(&self, text: &str, folder: &Path) -> ExitCode {
        match PolicySearch::read(text, self.goal, self.trials) {
            Ok(search) => match self.search(&search, folder).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(exit) => exit,
            },
            Err(error) => misused(&error.to_string(), self.json),
        }
    }

    async fn search(&self, search: &PolicySearch, folder: &Path) -> Result<(), ExitCode> {
        let &Self { resumes, json, .. } = self;
        if !resumes && fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some()) {
            let text =
                format!("{} is not empty: give a new folder, or --resume to go on with a search", folder.display());
            return Err(misused(&text, json));
        }
        let (_, reference) = self.sweep(&search.reference(), &folder.join("reference")).await?;
        let Some(bandwidth) = bandwidth_seen(&reference.records) else {
            let text = "with the policy as it stands no guest moved, so that nothing is known of the link: see the report in \
                    the folder `reference`, and give the migration more budget or time";
            return Err(failed(text, json));
        };
        let candidates = search.candidates(bandwidth);
        write_whole(&folder.join("candidates.csv"), table(&candidates).as_bytes())
            .map_err(|error| failed(&error.to_string(), json))?;
        render::say(&format!(
            "{} policies that differ in the model of the migration, at {} MB/s; the best go on to real trials",
            candidates.len(),
            number(bandwidth / 1e6)
        ));
        let mut best: Vec<String> = candidates.iter().map(|candidate| candidate.label.clone()).collect();
        let mut last = None;
        for (number, &SearchRound { candidates: count, repeats }) in (1..).zip(&search.rounds) {
            best.retain(|label| label != AS_IT_STANDS);
            best.truncate(count);
            let chosen: Vec<PolicyCandidate> =
                best.iter().filter_map(|label| candidates.iter().find(|one| one.label == *label).cloned()).collect();
            let text = search.round(number, &chosen, repeats);
            let round = self.sweep(&text, &folder.join(format!("round-{number}"))).await?;
            best = search.survivors(&round.0, &round.1.records);
            last = Some(round);
        }
        let (Some((plan, results)), Some(label)) = (last, best.first()) else {
            return Err(failed("no guest moved in the last round: its report tells why", json));
        };
        let fields =
            candidates.iter().find(|one| one.label == *label).map(|one| one.fields.clone()).unwrap_or_default();
        let told = words(search, &plan, &results, label);
        let file = folder.join("policy.toml");
        write_whole(&file, search.policy_file(&fields, &told).as_bytes())
            .map_err(|error| failed(&error.to_string(), json))?;
        render::say(&format!("{told}\nthe policy is {}", file.display()));
        if json {
            let object = json!({ "v": 1, "type": "tuned", "t_ms": 0, "goal": search.goal.to_string(), "policy": file.display().to_string(),
            "label": label, "fields": fields, "as_it_stands": label == AS_IT_STANDS });
            render::object(&object).ok();
        }
        Ok(())
    }

    /// Runs one of the sweeps, or goes on with it.
    async fn sweep(&self, text: &str, folder: &Path) -> Result<(SweepPlan, SweepResults), ExitCode> {
        let plan = read(text, self.check).map_err(|error| misused(&error, self.json))?;
        let of_folder = |error| failed(&format!("{}: {error}", folder.display()), self.json);
        fs::create_dir_all(folder).map_err(of_folder)?;
        let resumes = self.resumes && folder.join("spec.toml").exists();
        let results = to_the_end(&plan, text, folder, resumes, self.json).await?;
        Ok((plan, results))
    }
}

/// What was found, against the policy as it stands in the same round.
fn words(search: &PolicySearch, plan: &SweepPlan, results: &SweepResults, best: &str) -> String {
    let analysis = SweepAnalysis::new(plan, &results.records);
    let figures = |label: &str| {
        let trials =
            analysis.configurations.iter().find(|trials| trials.levels.first().is_some_and(|one| one == label))?;
        let median = |figure: &str| FigureStatistic::MEDIAN.estimate(&trials.sample(figure), plan.spec.seed);
        let (blackout, total) = (median("blackout")?, median("total")?);
        Some(format!(
            "blackout {} ms, total {} ms ({} of {} trials moved)",
            with_interval(blackout),
            with_interval(total),
            trials.counted,
            trials.tried
        ))
    };
    let own = figures(AS_IT_STANDS).unwrap_or_else(|| "moved no guest in the last round".into());
    if best == AS_IT_STANDS {
        return format!("{}: nothing better was found than the policy as it stands: {own}", search.goal);
    }
    let found = figures(best).unwrap_or_default();
    format!(
        "{}: {best} is the best that was found: {found}; as it stands: {own}. Medians with 95 % intervals: where those of \
         two overlap, more repeats would tell",
        search.goal
    )
}

/// The candidates as a table: what they set, and what the model says of them.
fn table(candidates: &[PolicyCandidate]) -> String {
    let names: Vec<&String> = candidates.first().map(|one| one.fields.keys().collect()).unwrap_or_default();
    let mut rows = csv::Writer::from_writer(Vec::new());
    let head = ["label", "total_ms", "blackout_ms"].into_iter().chain(names.iter().map(|name| name.as_str()));
    // a row that is written to memory is always written
    rows.write_record(head).ok();
    for candidate in candidates {
        let foreseen = candidate.foreseen.as_ref();
        let time = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
        let times = [foreseen.and_then(|run| run.total_ms), foreseen.and_then(|run| run.blackout_ms)].map(time);
        let row =
            std::iter::once(candidate.label.clone()).chain(times).chain(names.iter().map(|name| candidate.value(name)));
        rows.write_record(row).ok();
    }
    String::from_utf8(rows.into_inner().unwrap_or_default()).unwrap_or_default()
}
