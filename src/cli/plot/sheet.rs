//! The whole picture of a transcript: head, phases and decisions, charts over time, the blackout, in one SVG.
//!
//! Pure. The picture is laid out for one width; everything in it says in words what it is.

use super::{
    chart::{GUTTER, PlotArea, SMALL, StandIns, TimeChart, TimeFrame},
    content::PlotContent,
    ink::{PlotColour, SvgOverlay, TextSide, escaped, style_sheet, text_width, wrapped},
};
use plotters::{drawing::IntoDrawingArea, prelude::SVGBackend};
use std::io;

/// The size of letters of the head, and of its first line.
const LETTERS: f64 = 12.0;
const TITLE: f64 = 17.0;
/// The height of a row of the head, of a phase, of the decisions, of a chart's ground, and of a low chart's ground.
const HEAD_ROW: f64 = 17.0;
const PHASE_ROW: f64 = 18.0;
const DECISIONS: f64 = 36.0;
const GROUND: f64 = 130.0;
const LOW_GROUND: f64 = 70.0;
/// The room between the words of two marks of decisions, at least.
const APART: f64 = 14.0;
/// Most decisions in the list below the charts: the first, and the last.
const LISTED: (usize, usize) = (50, 20);
/// Most decisions that a mark tells when it is pointed at.
const TOLD: usize = 6;

/// What a picture is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct PictureShape {
    /// Its width in pixels.
    pub(super) width: u32,
    /// The picture stands alone: the head is above the charts, and the decisions are listed below them.
    pub(super) is_alone: bool,
}

/// Decisions that are so close to each other that they share a mark.
#[derive(Debug, Clone, PartialEq)]
struct DecisionCluster {
    x: f64,
    /// The numbers of the first and the last, from 1.
    numbers: (usize, usize),
    title: String,
}

/// Draws the picture.
///
/// # Errors
/// plotters', which has none for a text in memory.
pub(super) fn draw(content: &PlotContent, shape: PictureShape) -> io::Result<String> {
    let width = f64::from(shape.width);
    let head = if shape.is_alone { head(content, width) } else { Vec::new() };
    let blackout = content.blackout.as_ref();
    let mut below = if shape.is_alone { head.len() as f64 * HEAD_ROW + TITLE + 18.0 } else { 4.0 };
    let strip = below;
    below += (content.phases.len() + 1) as f64 * PHASE_ROW + DECISIONS + 8.0;
    let charts: Vec<(&TimeChart, f64, f64)> = content
        .charts
        .iter()
        .map(|chart| {
            let ground = if chart.top.is_some() { LOW_GROUND } else { GROUND };
            let (top, height) = (below, chart.height(width, ground));
            below += height;
            (chart, top, height)
        })
        .collect();
    let enlarged = below + 6.0;
    below = enlarged + blackout.map_or(24.0, |blackout| blackout.height(width));
    let list = if shape.is_alone { list(content, width) } else { Vec::new() };
    let listed = below;
    below += list.len() as f64 * HEAD_ROW + 8.0;

    let mut svg = String::new();
    let (mut overlay, mut stand_ins) = (SvgOverlay::default(), StandIns::default());
    {
        let area: PlotArea<'_> =
            SVGBackend::with_string(&mut svg, (shape.width, below.ceil() as u32)).into_drawing_area();
        let plotted = |error: plotters::drawing::DrawingAreaErrorKind<io::Error>| io::Error::other(error.to_string());
        area.fill(&PlotColour::Paper.rgb()).map_err(plotted)?;
        let frame = TimeFrame { top: strip, width, height: 0.0, span: content.span };
        if shape.is_alone {
            draw_head(&mut overlay, content, &head);
        }
        let clusters = draw_strip(&mut overlay, content, frame);
        for (chart, top, height) in charts {
            let frame = TimeFrame { top, height, ..frame };
            let (top, bottom) = chart.draw(&area, &mut overlay, frame, &content.bands, &mut stand_ins)?;
            for cluster in clusters.iter().filter(|_| bottom > top) {
                overlay.line((cluster.x, top), (cluster.x, bottom), 1.0, PlotColour::Soft, "1 5");
            }
        }
        match blackout {
            Some(blackout) => blackout.draw(&mut overlay, enlarged, width),
            None => overlay.heading((8.0, enlarged + 12.0), SMALL + 1.0, "No blackout: the guest was never stopped"),
        }
        for (number, line) in list.iter().enumerate() {
            let y = listed + number as f64 * HEAD_ROW + 12.0;
            if number == 0 {
                overlay.heading((8.0, y), SMALL + 1.0, line);
                continue;
            }
            overlay.text((8.0, y), LETTERS, TextSide::After, PlotColour::Ink, line);
        }
        area.present().map_err(plotted)?;
    }
    Ok(joined(&stand_ins.replaced(svg), &overlay.finish(), &content.title))
}

/// plotters' charts with the overlay in them, named for those who hear a picture.
fn joined(charts: &str, overlay: &str, title: &str) -> String {
    let title = escaped(title);
    let open = format!("<svg class=\"qferry-plot\" role=\"img\" aria-label=\"{title}\" ");
    let charts =
        charts.replacen("<svg ", &open, 1).replacen(">\n", &format!(">\n<title>{title}</title>{}\n", style_sheet()), 1);
    let end = charts.rfind("</svg>").unwrap_or(charts.len());
    format!("{}{overlay}</svg>\n", &charts[..end])
}

/// The lines of the head behind its first: what the run was, and what is missing.
fn head(content: &PlotContent, width: f64) -> Vec<String> {
    let room = width - 16.0;
    let facts = content.facts.iter().flat_map(|fact| wrapped(fact, LETTERS, room));
    let missing = content.missing.iter().flat_map(|missing| wrapped(&format!("! {missing}"), LETTERS, room));
    facts.chain(missing).collect()
}

fn draw_head(overlay: &mut SvgOverlay, content: &PlotContent, lines: &[String]) {
    overlay.heading((8.0, TITLE + 4.0), TITLE, &content.title);
    for (number, line) in lines.iter().enumerate() {
        let y = TITLE + 10.0 + (number + 1) as f64 * HEAD_ROW - 3.0;
        overlay.text((8.0, y), LETTERS, TextSide::After, PlotColour::Ink, line);
    }
}

/// Draws phases, pauses and decisions; returns the marks of the decisions.
fn draw_strip(overlay: &mut SvgOverlay, content: &PlotContent, frame: TimeFrame) -> Vec<DecisionCluster> {
    let mut y = frame.top;
    for row in content.phases.iter().chain([&content.pauses]) {
        overlay.text((GUTTER - 6.0, y + 12.0), SMALL, TextSide::Before, PlotColour::Ink, &row.name);
        let mut free = frame.edges().0;
        for span in &row.spans {
            let (from, to) = (frame.x(span.began), frame.x(span.ended));
            overlay.titled("span", &format!("{}: {}", row.name, span.words), |overlay| {
                overlay.block((from, y + 2.0), (to - from, PHASE_ROW - 5.0), row.colour);
                overlay.outline((from, y + 2.0), (to - from, PHASE_ROW - 5.0), PlotColour::Soft, span.edge);
            });
            let room = text_width(&span.length, SMALL) + 8.0;
            let after = frame.edges().1 - to >= room && row.spans.len() == 1;
            let (x, side, fits) = match after {
                true => (to + 5.0, TextSide::After, true),
                false => (from - 5.0, TextSide::Before, row.spans.len() == 1 && from - free >= room),
            };
            if fits {
                overlay.text((x, y + 12.0), SMALL, side, PlotColour::Soft, &span.length);
            }
            free = to;
        }
        y += PHASE_ROW;
    }
    let clusters = clusters(content, frame);
    overlay.text((GUTTER - 6.0, y + 12.0), SMALL, TextSide::Before, PlotColour::Ink, "decisions");
    for cluster in &clusters {
        let words = match cluster.numbers {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        overlay.titled("decision", &cluster.title, |overlay| {
            overlay.rhombus((cluster.x, y + 8.0), 5.0, PlotColour::Ink);
            let middle = cluster.x.min(frame.width - text_width(&words, SMALL) / 2.0 - 2.0);
            overlay.text((middle, y + 26.0), SMALL, TextSide::Around, PlotColour::Ink, &words);
        });
    }
    clusters
}

fn clusters(content: &PlotContent, frame: TimeFrame) -> Vec<DecisionCluster> {
    let mut clusters: Vec<DecisionCluster> = Vec::new();
    let most = content.decisions.last().map_or(0, |last| last.number);
    let apart = text_width(&format!("{most}-{most}"), SMALL) + APART;
    for decision in &content.decisions {
        let x = frame.x(decision.at);
        let words = format!("{}: {:.3} s, {}", decision.number, decision.at, decision.words);
        match clusters.last_mut().filter(|last| x - last.x < apart) {
            Some(last) => {
                last.numbers.1 = decision.number;
                match last.numbers.1 - last.numbers.0 {
                    more if more < TOLD => last.title.push_str(&format!(" | {words}")),
                    TOLD => last.title.push_str(" | ..."),
                    _ => {}
                }
            }
            None => clusters.push(DecisionCluster { x, numbers: (decision.number, decision.number), title: words }),
        }
    }
    clusters
}

/// The decisions in lines.
fn list(content: &PlotContent, width: f64) -> Vec<String> {
    let decisions = &content.decisions;
    if decisions.is_empty() {
        return Vec::new();
    }
    let mut lines = vec!["Decisions and warnings".to_owned()];
    let last = decisions.len().saturating_sub(LISTED.1).max(LISTED.0);
    for (at, decision) in decisions.iter().enumerate() {
        if at >= LISTED.0 && at < last {
            if at == LISTED.0 {
                lines.push(format!("... {} more ...", last - LISTED.0));
            }
            continue;
        }
        let words = format!("{}  {:.3} s  {}", decision.number, decision.at, decision.words);
        lines.extend(wrapped(&words, LETTERS, width - 16.0));
    }
    lines
}
