//! The course of a sweep: its spec is read, and its trials are run one after the other, each told and kept.

use super::{
    super::{
        exit::{failed, misused},
        render,
        signals::Signals,
    },
    report,
};
use crate::experiment::{
    LinkEnd, SpecError, SweepPlan, SweepResults, TrialBed, TrialRecord, TrialResult, migrate_words, own_program,
};
use serde_json::json;
use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

/// A report takes longer the more trials it is of, and is written so seldom that it takes at most this part of the
/// time.
const REPORT_SHARE: u32 = 20;

/// When the report was written last, and how long that took.
#[derive(Debug, Clone, Copy)]
struct WrittenReport {
    ended: Instant,
    took: Duration,
}

impl WrittenReport {
    fn write(plan: &SweepPlan, results: &SweepResults) -> Result<Self, String> {
        let begin = Instant::now();
        report::write(plan, results)?;
        let ended = Instant::now();
        Ok(Self { ended, took: ended - begin })
    }

    /// Whether the next one is due.
    fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.ended) >= self.took * REPORT_SHARE
    }
}

/// Looks whether the words of a command line would be understood.
pub(super) type WordsCheck = fn(&[String]) -> Result<(), String>;

/// Reads a spec, and has the options of `migrate` looked at by the command line that will get them.
pub(super) fn read(text: &str, check: WordsCheck) -> Result<SweepPlan, String> {
    let plan = SweepPlan::read(text).map_err(|error: SpecError| error.to_string())?;
    for configuration in &plan.configurations {
        let own = ["qferry", "migrate", "--json", "--no-transcript", "--source", "/s", "--destination", "/d"]
            .map(str::to_owned);
        let words = own.into_iter().chain(migrate_words(&configuration.setup, None, LinkEnd::Second));
        if let Err(said) = check(&words.collect::<Vec<_>>()) {
            return Err(format!(
                "with {configuration}, qferry migrate would say of the options under [migrate]: {said}"
            ));
        }
    }
    Ok(plan)
}

/// Runs a sweep in its folder, and tells how many of its trials count.
pub(super) async fn to_the_end(
    plan: &SweepPlan,
    text: &str,
    folder: &Path,
    resumes: bool,
    json: bool,
) -> Result<SweepResults, ExitCode> {
    let mut results = SweepResults::open(folder, text, resumes).map_err(|error| {
        misused(
            &match resumes {
                true => error.to_string(),
                false => format!("{error} (--resume goes on with a sweep)"),
            },
            json,
        )
    })?;
    let bed = own_program().and_then(|engine| TrialBed::make(engine, &folder.join("images")));
    let mut bed = bed.map_err(|error| failed(&error.to_string(), json))?;
    let mut signals = Signals::watch().ok_or_else(|| failed("the system lets no signal be caught", json))?;
    let ran = tokio::select! {
        ran = trials(plan, &mut results, &mut bed, json) => ran,
        () = signals.asked() => Err("interrupted".to_owned()),
    };
    let (kept, all) = (results.records.len(), plan.trials.len());
    if let Err(why) = ran {
        // why the sweep ended is what is told; a report of these trials may be missing
        if kept > 0 {
            report::write(plan, &results).ok();
        }
        let text =
            format!("{why}; {kept} of {all} trials are kept in {}: --resume goes on with the rest", folder.display());
        return Err(failed(&text, json));
    }
    let moved = results.records.iter().filter(|record| record.counts()).count();
    render::say(&format!("{all} trials, of which {moved} count: {}", results.folder().display()));
    if json {
        let object = json!({ "v": 1, "type": "sweep", "t_ms": 0, "trials": all, "count": moved,
            "folder": results.folder().display().to_string() });
        render::object(&object).ok();
    }
    Ok(results)
}

/// Runs the trials that are not there yet.
async fn trials(plan: &SweepPlan, results: &mut SweepResults, bed: &mut TrialBed, json: bool) -> Result<(), String> {
    let begin = Instant::now();
    // a kill may have torn a row of the tables, or have come before the last one
    results.make_tables(plan).map_err(|error| error.to_string())?;
    let done: Vec<usize> = results.records.iter().map(|record| record.trial).collect();
    let rest: Vec<_> = plan.trials.iter().filter(|trial| !done.contains(&trial.number)).collect();
    if rest.is_empty() {
        // a later version may draw the same results otherwise
        return report::write(plan, results);
    }
    let mut report: Option<WrittenReport> = None;
    bed.join(&plan.links()).await.map_err(|error| error.to_string())?;
    for (ran, trial) in rest.iter().enumerate() {
        let configuration = &plan.configurations[trial.configuration];
        let result = match bed.run(&configuration.setup).await {
            Ok(result) => result,
            // A sweep whose first trial cannot be run would have none.
            Err(error) if results.records.is_empty() => return Err(error.to_string()),
            Err(error) => {
                TrialResult { outcome: "not-run".into(), reason: Some(error.to_string()), ..TrialResult::default() }
            }
        };
        results.add(plan, trial.number, result).map_err(|error| error.to_string())?;
        let is_last = ran + 1 == rest.len();
        if is_last || report.is_none_or(|report| report.is_old(Instant::now())) {
            report = Some(WrittenReport::write(plan, results)?);
        }
        let Some(record) = results.records.last() else { continue };
        let left = begin.elapsed() / u32::try_from(ran + 1).unwrap_or(u32::MAX)
            * u32::try_from(rest.len() - ran - 1).unwrap_or(0);
        tell(plan, record, left, begin, json);
    }
    Ok(())
}

fn tell(plan: &SweepPlan, record: &TrialRecord, left: Duration, begin: Instant, json: bool) {
    let number = |name: &str| record.figures.get(name).copied();
    let mut text = format!(
        "trial {} of {} ({}): {}",
        record.trial + 1,
        plan.trials.len(),
        plan.configurations[record.configuration],
        record.outcome
    );
    let (blackout, total) = plan.compared();
    for (name, words) in [(blackout, "blackout"), ("outside.beats", "heard from outside"), (total, "in all")] {
        if let Some(ms) = number(name) {
            text += &format!(", {words} {ms:.1} ms");
        }
    }
    for why in record.reason.iter().chain(&record.invalid).chain(&record.notes) {
        text += &format!("; {why}");
    }
    if !left.is_zero() {
        text += &format!("; about {} left", humantime::format_duration(Duration::from_secs(left.as_secs())));
    }
    render::say(&text);
    if json {
        let mut object =
            json!({ "v": 1, "type": "trial", "t_ms": u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX) });
        if let (Some(object), Ok(serde_json::Value::Object(record))) =
            (object.as_object_mut(), serde_json::to_value(record))
        {
            object.extend(record);
        }
        render::object(&object).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_takes_a_small_part_of_the_time() {
        let ended = Instant::now();
        let cases = [(0, 0, true), (100, 1999, false), (100, 2000, true), (60_000, 1_000_000, false)];
        for (took, later, expected) in cases {
            let written = WrittenReport { ended, took: Duration::from_millis(took) };
            assert_eq!(written.is_old(ended + Duration::from_millis(later)), expected, "{took} ms, {later} ms later");
        }
    }
}
