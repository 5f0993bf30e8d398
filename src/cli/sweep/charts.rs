//! The pictures of a report, made of the figures of its trials.
//!
//! Pure but for the samples over time, which are read from the sweep's folder.

use super::picture::{BLOCKS, Picture, PictureAxis, PictureMark, known, number};
use crate::{
    cli::plot::ink::TextSide,
    experiment::{KnownValue, SweepAnalysis, SweepPlan, SweepResults, TrialSample, definition, in_order},
};

/// Most configurations in one picture: more cannot be told apart.
const MOST: usize = 8;
/// The height of one row of a picture of rows.
const ROW: f64 = 40.0;
/// The time around the stop of the guest that is drawn.
const AROUND: (f64, f64) = (-1500.0, 2500.0);

/// The figures of which the effect of each factor is shown.
pub(super) fn shown(analysis: &SweepAnalysis<'_>) -> [&'static str; 4] {
    let (blackout, total) = analysis.compared();
    [blackout, "outside.beats", total, "guest.pages.during"]
}

/// A line over time, with its name.
type NamedLine = (&'static str, Vec<(f64, f64)>);

/// All pictures: the name of its file, the section that it is in, and itself.
pub(super) fn pictures(
    plan: &SweepPlan,
    results: &SweepResults,
    analysis: &SweepAnalysis<'_>,
) -> Vec<(String, &'static str, Picture)> {
    let mut pictures = Vec::new();
    for (at, factor) in plan.factors.iter().enumerate() {
        for figure in shown(analysis) {
            if let Some(picture) = effect(analysis, at, factor, figure) {
                pictures.push((format!("effect-{}-{figure}", at + 1), "Effects", picture));
            }
        }
    }
    let named = [
        ("ecdf-blackout", "Blackout", distribution(analysis, analysis.compared().0)),
        ("ecdf-outside", "Blackout", distribution(analysis, "outside.beats")),
        ("ledger", "Blackout", ledger(results, analysis)),
        ("trade-off", "Blackout against total time", trade_off(analysis)),
    ];
    pictures.extend(named.into_iter().filter_map(|(name, under, picture)| Some((name.to_owned(), under, picture?))));
    for (name, picture) in timelines(results, analysis) {
        pictures.push((name, "Over time", picture));
    }
    for figure in ["blackout", "total", "ram.bytes", "disk.bytes"] {
        if let Some(picture) = predictions(analysis, figure) {
            pictures.push((format!("predicted-{}", figure.replace('.', "-")), "Predicted against real", picture));
        }
    }
    pictures
}

fn axis_name(figure: &str) -> String {
    format!("{figure}, {}", definition(figure).map_or("", |metric| metric.unit))
}

/// An axis without numbers for so many rows, the first of which is at the top.
fn rows(count: usize) -> PictureAxis {
    PictureAxis { name: String::new(), range: (0.0, count as f64), is_log: false, is_bare: true }
}

/// What each level of a factor does to a figure: all values, quartiles, median and its interval.
fn effect(analysis: &SweepAnalysis<'_>, factor: usize, name: &str, figure: &str) -> Option<Picture> {
    let levels = analysis.effect(factor, figure);
    if levels.is_empty() {
        return None;
    }
    let count = levels.len();
    let values = levels.iter().flat_map(|level| level.values.iter().chain(&level.at_least).copied());
    let is_censored = levels.iter().any(|level| !level.at_least.is_empty());
    let mut marks = Vec::new();
    for (row, level) in levels.iter().enumerate() {
        let y = (count - row) as f64 - 0.68;
        marks.push(PictureMark::Block {
            corners: [(level.quartiles[0].value, y - 0.14), (level.quartiles[1].value, y + 0.14)],
            colour: BLOCKS[4],
        });
        marks.push(PictureMark::Points {
            points: level.values.iter().map(|value| (*value, y)).collect(),
            style: 0,
            radius: 2,
        });
        marks.push(PictureMark::Points {
            points: level.at_least.iter().map(|value| (*value, y)).collect(),
            style: 1,
            radius: 2,
        });
        if let Some((low, high)) = level.median.interval {
            marks.push(PictureMark::Stroke { ends: [(low, y), (high, y)], width: 2 });
        }
        let median = level.median.value;
        marks.push(PictureMark::Stroke { ends: [(median, y - 0.2), (median, y + 0.2)], width: 3 });
        let difference = level.difference.map_or(String::new(), |difference| {
            let sign = if difference.value > 0.0 { "+" } else { "" };
            format!(", {sign}{} from the first", number(difference.value))
        });
        let trials = level.values.len() + level.at_least.len();
        let (level, median) = (&level.level, known(level.median.known()));
        let words = format!("{level}: median {median}{difference} ({trials} trials)");
        marks.push(PictureMark::Words { at: (0.0, y + 0.3), up: 2.0, side: TextSide::After, words });
    }
    Some(Picture {
        title: format!(
            "{figure} by {name}: trials, quartiles, median with its 95 % interval{}",
            if is_censored { "; the others would have taken longer" } else { "" }
        ),
        x: PictureAxis::around(&axis_name(figure), values, false),
        y: rows(count),
        legend: Vec::new(),
        has_blocks: false,
        marks,
        ground: ROW * count as f64,
    })
}

/// The share of trials that were at most as long.
fn distribution(analysis: &SweepAnalysis<'_>, figure: &str) -> Option<Picture> {
    let lines: Vec<(&str, Vec<f64>)> = analysis
        .configurations
        .iter()
        .map(|trials| (trials.label.as_str(), in_order(&trials.values(figure))))
        .filter(|(_, values)| !values.is_empty())
        .take(MOST)
        .collect();
    let all: Vec<f64> = lines.iter().flat_map(|(_, values)| values.iter().copied()).collect();
    let x = PictureAxis::around(&axis_name(figure), all.iter().copied(), true);
    let mut marks = Vec::new();
    for share in [0.5, 0.95, 0.99] {
        marks.push(PictureMark::Stroke { ends: [(x.range.0, share), (x.range.1, share)], width: 1 });
        let words = format!("p{:.0}", share * 100.0);
        // The three are so close to each other that two stand at the left, and one at the right.
        let at = if share == 0.95 { (x.range.1, TextSide::Before) } else { (x.range.0, TextSide::After) };
        marks.push(PictureMark::Words { at: (at.0, share), up: 2.0, side: at.1, words });
    }
    for (style, (_, values)) in lines.iter().enumerate() {
        let mut points = vec![(values[0], 0.0)];
        for (at, value) in values.iter().enumerate() {
            points.push((*value, at as f64 / values.len() as f64));
            points.push((*value, (at + 1) as f64 / values.len() as f64));
        }
        points.push((x.range.1, 1.0));
        marks.push(PictureMark::Line { points, style });
    }
    (!all.is_empty()).then(|| Picture {
        title: format!("{figure}: the share of trials up to each length"),
        x,
        y: PictureAxis { name: "share of trials".into(), range: (0.0, 1.04), is_log: false, is_bare: false },
        legend: lines.iter().map(|(label, values)| format!("{label} ({})", values.len())).collect(),
        has_blocks: false,
        marks,
        ground: 240.0,
    })
}

/// Where the blackout goes, setting by setting.
fn ledger(results: &SweepResults, analysis: &SweepAnalysis<'_>) -> Option<Picture> {
    let names = results.figure_names();
    let spans: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("ledger.")).collect();
    let settings: Vec<_> = analysis.configurations.iter().filter(|trials| trials.counted > 0).take(3 * MOST).collect();
    if spans.is_empty() || settings.is_empty() {
        return None;
    }
    let mut marks = Vec::new();
    let mut sums = Vec::new();
    for (row, trials) in settings.iter().enumerate() {
        let y = (settings.len() - row) as f64 - 0.75;
        let mut sum = 0.0;
        for (at, span) in spans.iter().enumerate() {
            // Means add up to the mean of the blackout, as medians would not.
            let values = trials.values(&format!("ledger.{span}"));
            let mean = values.iter().sum::<f64>() / trials.counted as f64;
            if mean > 0.0 {
                let corners = [(sum, y - 0.2), (sum + mean, y + 0.2)];
                marks.push(PictureMark::Block { corners, colour: BLOCKS[at % BLOCKS.len()] });
                sum += mean;
            }
        }
        sums.push(sum);
        let words = format!("{}: {} ms", trials.label, number(sum));
        marks.push(PictureMark::Words { at: (0.0, y + 0.25), up: 3.0, side: TextSide::After, words });
    }
    Some(Picture {
        title: "Where the blackout goes: mean of each span of the ledger".into(),
        x: PictureAxis::around("ms", sums.into_iter(), false),
        y: rows(settings.len()),
        legend: spans.iter().map(|span| (*span).to_owned()).collect(),
        has_blocks: true,
        marks,
        ground: ROW * settings.len() as f64,
    })
}

fn trade_off(analysis: &SweepAnalysis<'_>) -> Option<Picture> {
    let (of_blackout, of_total) = analysis.compared();
    let medians: Vec<(usize, KnownValue, f64)> = (0..)
        .zip(&analysis.configurations)
        .filter_map(|(at, trials)| Some((at, trials.median(of_total)?, trials.median(of_blackout)?.value)))
        .collect();
    if medians.len() < 2 {
        return None;
    }
    let efficient = analysis.efficient(of_blackout, of_total);
    let mut front: Vec<(f64, f64)> = medians
        .iter()
        .filter(|(at, ..)| efficient.contains(at))
        .map(|(_, total, blackout)| (total.value, *blackout))
        .collect();
    front.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut marks = vec![PictureMark::Line { points: front.clone(), style: 1 }];
    for (at, total, blackout) in &medians {
        let is_efficient = efficient.contains(at);
        let points = vec![(total.value, *blackout)];
        marks.push(PictureMark::Points {
            points,
            style: usize::from(is_efficient),
            radius: if is_efficient { 5 } else { 3 },
        });
        let mark = match (is_efficient, total.is_at_least) {
            (true, _) => " *",
            (false, true) => ", total at least",
            (false, false) => "",
        };
        let words = format!("{}{mark}", analysis.configurations[*at].label);
        marks.push(PictureMark::Words { at: (total.value, *blackout), up: 7.0, side: TextSide::After, words });
    }
    Some(Picture {
        title: "Medians of each setting; * none is shorter in both".into(),
        x: PictureAxis::around(&axis_name(of_total), medians.iter().map(|one| one.1.value), true),
        y: PictureAxis::around(&axis_name(of_blackout), medians.iter().map(|one| one.2), true),
        legend: Vec::new(),
        has_blocks: false,
        marks,
        ground: 300.0,
    })
}

/// The guest's throughput around its stop: of the setting with the longest blackout, the trial at the median and the
/// worst.
fn timelines(results: &SweepResults, analysis: &SweepAnalysis<'_>) -> Vec<(String, Picture)> {
    let (figure, _) = analysis.compared();
    let medians = analysis.configurations.iter().map(|trials| trials.median(figure));
    let blackouts = medians.map(|median| median.map_or(f64::NEG_INFINITY, |median| median.value));
    let Some((longest, _)) = blackouts.enumerate().max_by(|one, other| one.1.total_cmp(&other.1)) else {
        return Vec::new();
    };
    let Some((typical, worst)) = analysis.typical_and_worst(longest, figure) else { return Vec::new() };
    let label = &analysis.configurations[longest].label;
    let mut trials = vec![("typical", typical)];
    if worst != typical {
        trials.push(("worst", worst));
    }
    let Ok(samples) = results.samples_of(&trials.iter().map(|(_, trial)| *trial).collect::<Vec<_>>()) else {
        return Vec::new();
    };
    trials
        .into_iter()
        .flat_map(|(word, trial)| {
            let stop = results.records.iter().find(|record| record.trial == trial).and_then(|record| record.stop_ms);
            let of_trial: Vec<&TrialSample> = samples.iter().filter(|sample| sample.trial == trial).collect();
            stop.into_iter().flat_map(move |stop| timeline(word, trial, label, stop, &of_trial)).collect::<Vec<_>>()
        })
        .collect()
}

fn timeline(word: &str, trial: usize, label: &str, stop: f64, samples: &[&TrialSample]) -> Vec<(String, Picture)> {
    let line = |kind: &str, value: fn(&TrialSample) -> Option<f64>| -> Vec<(f64, f64)> {
        let points = samples.iter().filter(|sample| sample.kind == kind);
        let points = points.filter_map(|sample| Some((sample.t_ms - stop, value(sample)?)));
        points.filter(|(at, _)| (AROUND.0..=AROUND.1).contains(at)).collect()
    };
    let kinds: [(&str, &str, Vec<NamedLine>); 3] = [
        ("guest", "guest's pages a second", vec![("pages written", line("guest", |sample| sample.pages))]),
        ("disk", "guest's writes to disks a second", vec![("writes", line("guest", |sample| sample.writes))]),
        (
            "migration",
            "bytes a second",
            vec![
                ("RAM sent", line("memory", |sample| sample.bandwidth)),
                ("RAM dirtied", line("memory", |sample| sample.dirty_rate)),
            ],
        ),
    ];
    kinds
        .into_iter()
        .filter(|(.., lines)| lines.iter().any(|(_, points)| points.iter().any(|(_, value)| *value > 0.0)))
        .map(|(kind, unit, lines)| {
            let values: Vec<f64> = lines.iter().flat_map(|(_, points)| points.iter().map(|point| point.1)).collect();
            let y = PictureAxis::around(unit, values.into_iter(), false);
            let mut marks = vec![
                PictureMark::Stroke { ends: [(0.0, y.range.0), (0.0, y.range.1)], width: 1 },
                PictureMark::Words { at: (0.0, y.range.1), up: -11.0, side: TextSide::After, words: " stop".into() },
            ];
            let legend = lines.iter().map(|(name, _)| (*name).to_owned()).collect();
            marks.extend(lines.into_iter().enumerate().map(|(style, (_, points))| PictureMark::Line { points, style }));
            let picture = Picture {
                title: format!("{unit} around the stop, {word} trial ({trial}) of {label}"),
                x: PictureAxis { name: "ms from the stop".into(), range: AROUND, is_log: false, is_bare: false },
                y,
                legend,
                has_blocks: false,
                marks,
                ground: 150.0,
            };
            (format!("timeline-{word}-{kind}"), picture)
        })
        .collect()
}

fn predictions(analysis: &SweepAnalysis<'_>, figure: &str) -> Option<Picture> {
    let pairs: Vec<(f64, f64)> =
        analysis.predictions(figure).into_iter().filter(|(one, other)| *one > 0.0 && *other > 0.0).collect();
    if pairs.is_empty() {
        return None;
    }
    let all = || pairs.iter().flat_map(|(one, other)| [*one, *other]);
    let axis = |name: &str| PictureAxis::around(name, all(), true);
    let x = axis(&format!("predicted {}", axis_name(figure)));
    let ends = [(x.range.0, x.range.0), (x.range.1, x.range.1)];
    Some(Picture {
        title: format!("{figure}: predicted against real; on the line both are alike"),
        y: axis(&format!("real {}", axis_name(figure))),
        x,
        legend: Vec::new(),
        has_blocks: false,
        marks: vec![
            PictureMark::Stroke { ends, width: 1 },
            PictureMark::Points { points: pairs.clone(), style: 0, radius: 3 },
        ],
        ground: 300.0,
    })
}
