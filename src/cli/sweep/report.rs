//! The report of a sweep: one HTML file with its pictures, which fetches nothing, and the pictures as files of their
//! own.
//!
//! Pure but for the files at the end. Every picture is drawn for wide pages and paper, and for telephones; the style
//! sheet shows one of the two.

use super::{
    charts::{self, shown},
    picture::{Picture, known, number, with_interval},
};
use crate::{
    cli::plot::ink::escaped,
    experiment::{
        FarTrial, IntervalEstimate, SweepAnalysis, SweepPlan, SweepResults, TrialRecord, definition, write_whole,
    },
};
use std::{ffi::OsStr, fmt::Write as _, fs, io, path::Path};

const WIDE: u32 = 1060;
const NARROW: u32 = 358;

const STYLE: &str = "
:root{color-scheme:light dark;--paper:#FFFFFF;--ink:#1B2026;--soft:#56606B;--grid:#E2E6EA}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14181D;--ink:#E7EAEE;--soft:#A7B1BC;--grid:#2B323A}}
*{box-sizing:border-box}
body{margin:0 auto;padding:16px;max-width:1100px;background:var(--paper);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
h1{font-size:1.35em;margin:0 0 .4em;overflow-wrap:anywhere}h2{font-size:1.1em;margin:1.6em 0 .4em}
p{margin:.3em 0;overflow-wrap:anywhere}.soft{color:var(--soft)}
svg{display:block;width:100%;height:auto}.narrow{display:none}figure{margin:1em 0;break-inside:avoid}
.rows{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:3px 10px 3px 0;border-bottom:1px solid var(--grid)}
td.number,th.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
@media screen and (max-width:700px){body{padding:8px}.wide{display:none}.narrow{display:block}}
@media print{body{padding:0;max-width:none}tr{break-inside:avoid}}
";

/// Writes the report and its pictures into the folder of a sweep.
///
/// # Errors
/// In one sentence.
pub(super) fn write(plan: &SweepPlan, results: &SweepResults) -> Result<(), String> {
    let analysis = SweepAnalysis::new(plan, &results.records);
    let pictures = charts::pictures(plan, results, &analysis);
    let page = page(plan, results, &analysis, &pictures).map_err(|error| error.to_string())?;
    let folder = results.folder();
    write_whole(&folder.join("report.html"), page.as_bytes()).map_err(|error| error.to_string())?;
    let plots = folder.join("plots");
    fs::create_dir_all(&plots).map_err(|error| format!("{}: {error}", plots.display()))?;
    for (name, _, picture) in &pictures {
        let svg = picture.draw(WIDE).map_err(|error| error.to_string())?;
        write_whole(&plots.join(format!("{name}.svg")), svg.as_bytes()).map_err(|error| error.to_string())?;
    }
    let is_drawn = |file: &OsStr| pictures.iter().any(|(name, ..)| *file == *format!("{name}.svg"));
    let old = fs::read_dir(&plots).map_err(|error| format!("{}: {error}", plots.display()))?.flatten();
    for file in old.filter(|file| file.path().extension() == Some(OsStr::new("svg")) && !is_drawn(&file.file_name())) {
        // a picture of fewer trials, which those of all give no cause for
        fs::remove_file(file.path()).map_err(|error| format!("{}: {error}", file.path().display()))?;
    }
    Ok(())
}

struct Page(String);

impl Page {
    fn put(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn paragraph(&mut self, text: &str) {
        // a String takes everything
        writeln!(self.0, "<p>{}</p>", escaped(text)).ok();
    }

    fn figure(&mut self, picture: &Picture) -> io::Result<()> {
        let (wide, narrow) = (picture.draw(WIDE)?, picture.draw(NARROW)?);
        self.put(&format!("<figure class=\"wide\">{wide}</figure><figure class=\"narrow\">{narrow}</figure>"));
        Ok(())
    }

    fn table(&mut self, head: &[&str], numbers_from: usize, rows: &[Vec<String>]) {
        let class = |at: usize| if at >= numbers_from { " class=\"number\"" } else { "" };
        let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
            cells.enumerate().map(|(at, cell)| format!("<{tag}{}>{}</{tag}>", class(at), escaped(cell))).collect()
        };
        let head = cells("th", &mut head.iter().copied());
        self.put(&format!("<div class=\"rows\"><table><thead><tr>{head}</tr></thead><tbody>"));
        for row in rows {
            let row = cells("td", &mut row.iter().map(String::as_str));
            self.put(&format!("<tr>{row}</tr>"));
        }
        self.put("</tbody></table></div>");
    }
}

fn page(
    plan: &SweepPlan,
    results: &SweepResults,
    analysis: &SweepAnalysis<'_>,
    pictures: &[(String, &'static str, Picture)],
) -> io::Result<String> {
    let title = escaped(&plan.spec.name);
    let mut page = Page(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    ));
    let records = &results.records;
    let counted = records.iter().filter(|record| record.counts()).count();
    let censored = records.iter().filter(|record| record.censored).count();
    page.paragraph(&format!(
        "{} of {} trials were run; {counted} count, {} did not move their guest or are not to be trusted, {censored} of them because the \
         limit ended them. Order {}, seed {}.",
        records.len(),
        plan.trials.len(),
        records.len() - counted,
        plan.spec.order,
        plan.spec.seed,
    ));
    page.put(
        "<p class=\"soft\">One trial is one observation. Medians and quartiles are of type 7; intervals are 95 % bootstrap intervals \
         (bias-corrected and accelerated, 2000 resamples), given from 5 trials on. Differences are within blocks. All times \
         are by the clock of one host. A trial that the limit ended, or that failed, counts in total and command as one that would \
         have taken longer than it did: quantiles are then those of Kaplan and Meier, and where the trials do not tell one, it \
         is at least what it says.</p>",
    );
    page.put("<h2>Settings</h2>");
    settings(&mut page, plan, analysis);
    let mut section = "";
    for (_, under, picture) in pictures {
        if *under != section {
            page.put(&format!("<h2>{}</h2>", escaped(under)));
            section = under;
        }
        page.figure(picture)?;
    }
    if !plan.factors.is_empty() {
        page.put("<h2>Effects in numbers</h2>");
        effects(&mut page, plan, analysis);
    }
    page.put("<h2>Noise and outliers</h2>");
    let (blackout, total) = analysis.compared();
    noise(&mut page, records, &analysis.far(&[blackout, total, "outside.beats"]));
    page.put("<h2>What the figures are</h2>");
    let rows: Vec<Vec<String>> = results
        .figure_names()
        .iter()
        .filter_map(|name| {
            Some([name.as_str(), definition(name)?.unit, definition(name)?.definition].map(str::to_owned).to_vec())
        })
        .collect();
    page.table(&["figure", "unit", "definition"], 3, &rows);
    page.put("</body>\n</html>");
    Ok(page.0)
}

/// The words, or a dash where there is nothing to say.
fn or_dash(words: Option<String>) -> String {
    words.unwrap_or_else(|| "–".into())
}

fn cell(estimate: Option<IntervalEstimate>) -> String {
    or_dash(estimate.map(with_interval))
}

/// A row for each combination.
fn settings(page: &mut Page, plan: &SweepPlan, analysis: &SweepAnalysis<'_>) {
    let (blackout, total) = analysis.compared();
    let efficient = analysis.efficient(blackout, total);
    let mut head: Vec<&str> = plan.factors.iter().map(String::as_str).collect();
    let labels = head.len();
    let times = [blackout, total].map(|figure| format!("{figure}, ms"));
    head.extend(["count / tried", &times[0], "p95", "from outside, ms", &times[1], "pages during / before"]);
    let rows: Vec<Vec<String>> = (0..)
        .zip(&analysis.configurations)
        .map(|(at, trials)| {
            let mut row = trials.levels.clone();
            row.push(format!("{} / {}", trials.counted, trials.tried));
            row.push(cell(analysis.median_of(at, blackout)));
            row.push(or_dash(analysis.quantile_of(at, blackout, 0.95).map(known)));
            row.push(cell(analysis.median_of(at, "outside.beats")));
            let mark = if efficient.contains(&at) { " *" } else { "" };
            row.push(cell(analysis.median_of(at, total)) + mark);
            let share = trials.median("guest.pages.during").zip(trials.median("guest.pages.before"));
            row.push(
                share.map_or("–".into(), |(during, before)| format!("{:.0} %", during.value / before.value * 100.0)),
            );
            row
        })
        .collect();
    page.table(&head, labels, &rows);
    page.put("<p class=\"soft\">Medians with their intervals. * No other setting has a shorter blackout and a shorter total.</p>");
    if blackout != "blackout" {
        page.put(
            "<p class=\"soft\">Programs are compared by what the sweep measures the same way for all of them.</p>",
        );
    }
}

fn effects(page: &mut Page, plan: &SweepPlan, analysis: &SweepAnalysis<'_>) {
    let mut rows = Vec::new();
    for (factor, name) in plan.factors.iter().enumerate() {
        for figure in shown(analysis) {
            let unit = definition(figure).map_or("", |metric| metric.unit);
            for level in analysis.effect(factor, figure) {
                let [lower, upper] = level.quartiles.map(known);
                let longer = |count: usize, words: &str| match count {
                    0 => String::new(),
                    count => format!(" {words} {count}"),
                };
                rows.push(vec![
                    format!("{name} = {}", level.level),
                    format!("{figure}, {unit}"),
                    format!("{}{}", level.values.len(), longer(level.at_least.len(), "+")),
                    with_interval(level.median),
                    format!("{lower} to {upper}"),
                    format!("{} ± {}", known(level.mean), or_dash(level.deviation.map(number))),
                    cell(level.difference) + &longer(level.unknown_differences, "without"),
                ]);
            }
        }
    }
    let head =
        ["level", "figure", "trials", "median", "quartiles", "mean ± deviation", "difference from the first level"];
    page.table(&head, 2, &rows);
    page.put(
        "<p class=\"soft\">\u{201c}5 + 1\u{201d} trials: of one more it is known only that it would have taken longer. Differences with \
         such a trial are left out, as often as it says.</p>",
    );
}

fn noise(page: &mut Page, records: &[TrialRecord], far: &[FarTrial]) {
    let mut lines: Vec<Vec<String>> = Vec::new();
    for record in records {
        let mut whys: Vec<String> = record.invalid.iter().chain(&record.notes).cloned().collect();
        if record.outcome != "moved" {
            whys.push(format!("{}: {}", record.outcome, record.reason.as_deref().unwrap_or("no reason is known")));
        }
        lines.extend(whys.into_iter().map(|why| vec![record.trial.to_string(), record.levels.join(", "), why]));
    }
    for far in far {
        let why = format!(
            "{} {} is far from the median of its setting, {}",
            far.figure,
            number(far.value),
            number(far.median)
        );
        lines.push(vec![far.trial.to_string(), far.configuration.clone(), why]);
    }
    if lines.is_empty() {
        page.paragraph("No trial failed, none is far from the others of its setting, and the host was quiet.");
    } else {
        page.table(&["trial", "setting", "what"], 3, &lines);
    }
}

/// Where the report of a folder is.
pub(super) fn place(folder: &Path) -> std::path::PathBuf {
    folder.join("report.html")
}
