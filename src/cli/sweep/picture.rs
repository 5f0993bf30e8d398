//! One picture of a report: marks over two axes, drawn by plotters, with names and numbers laid over it.
//!
//! Pure. A picture is drawn for a width; what tells one mark from another is also a word, a dash or a place.

use crate::cli::plot::{
    chart::{LINE_STYLES, StandIns},
    ink::{PlotColour, SvgOverlay, TextSide, escaped, fitted, style_sheet, text_width, wrapped},
};
use crate::experiment::{IntervalEstimate, KnownValue};
use plotters::{
    chart::ChartBuilder,
    drawing::IntoDrawingArea,
    element::{Circle, PathElement, Rectangle},
    prelude::SVGBackend,
    series::LineSeries,
    style::Color,
};
use std::io;

/// The sizes of letters, of the heading and of everything else.
const HEADING: f64 = 13.0;
const LETTERS: f64 = 11.0;
/// The height of a line of letters.
const LINE: f64 = 15.0;
/// The room for the numbers of the two axes, and at the right.
const BELOW: f64 = 34.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
/// The length of a line in the legend.
const SAMPLE: f64 = 24.0;

/// An axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PictureAxis {
    /// The name with the unit.
    pub(super) name: String,
    pub(super) range: (f64, f64),
    /// Equal steps are equal ratios.
    pub(super) is_log: bool,
    /// The axis has no numbers: the marks have their names beside them.
    pub(super) is_bare: bool,
}

impl PictureAxis {
    /// An axis around all values, which begins at nought unless it shows ratios.
    pub(super) fn around(name: &str, values: impl Iterator<Item = f64>, is_log: bool) -> Self {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite() && (!is_log || *value > 0.0)) {
            (least, most) = (least.min(value), most.max(value));
        }
        let range = match (least <= most, is_log) {
            (false, _) => (1.0, 2.0),
            (true, true) => (least / 1.15, most * 1.15),
            (true, false) => (least.min(0.0) * 1.06, (most * 1.06).max(least.min(0.0) + 1e-9)),
        };
        Self { name: name.to_owned(), range, is_log, is_bare: false }
    }

    fn place(&self, value: f64) -> f64 {
        // plotters' arithmetic overflows for what is far outside
        let value = value.clamp(self.range.0, self.range.1);
        if self.is_log { value.log10() } else { value }
    }

    /// At most about `most` round numbers in its range.
    fn ticks(&self, most: usize) -> Vec<f64> {
        let (low, high) = self.range;
        if self.is_log {
            let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
            let of = |factors: &[f64]| -> Vec<f64> {
                let all =
                    (first..=last).flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
                all.filter(|tick| (low..=high).contains(tick)).collect()
            };
            let candidates = [
                of(&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]),
                of(&[1.0, 2.0, 3.0, 5.0, 7.0]),
                of(&[1.0, 2.0, 5.0]),
                of(&[1.0]),
            ];
            return candidates.into_iter().find(|ticks| ticks.len() <= most).unwrap_or_default();
        }
        let rough = (high - low) / most.max(1) as f64;
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough);
        let Some(step) = step.filter(|step| *step > 0.0) else { return Vec::new() };
        let first = (low / step).ceil() as i64;
        (first..).map(|number| number as f64 * step).take_while(|tick| *tick <= high).take(most + 2).collect()
    }
}

/// A number as an axis or a table has it: three digits that count.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let (value, unit) = match size {
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let size = value.abs();
    let text = match size {
        size if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    };
    let text = if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    };
    text + unit
}

/// An estimate with its interval, as tables and answers have it.
pub(super) fn with_interval(estimate: IntervalEstimate) -> String {
    let value = known(estimate.known());
    match estimate.interval {
        Some((low, high)) if high.is_finite() => format!("{value} ({} to {})", number(low), number(high)),
        Some((low, _)) => format!("{value} (at least {})", number(low)),
        None => value,
    }
}

/// A value that may only be the least one.
pub(super) fn known(known: KnownValue) -> String {
    format!("{}{}", if known.is_at_least { "at least " } else { "" }, number(known.value))
}

/// What is drawn, in the units of the axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum PictureMark {
    /// A line; its style is that of the legend's entry of this number.
    Line { points: Vec<(f64, f64)>, style: usize },
    /// Discs.
    Points { points: Vec<(f64, f64)>, style: usize, radius: u32 },
    /// A filled rectangle between two corners.
    Block { corners: [(f64, f64); 2], colour: PlotColour },
    /// A line from one point to another in the ink's colour.
    Stroke { ends: [(f64, f64); 2], width: u32 },
    /// Words at a point, moved up by so many pixels.
    Words { at: (f64, f64), up: f64, side: TextSide, words: String },
}

/// A picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Picture {
    pub(super) title: String,
    pub(super) x: PictureAxis,
    pub(super) y: PictureAxis,
    /// What the styles mean.
    pub(super) legend: Vec<String>,
    /// Whether the legend's samples are blocks.
    pub(super) has_blocks: bool,
    pub(super) marks: Vec<PictureMark>,
    /// The height of the ground in pixels.
    pub(super) ground: f64,
}

/// The colours of blocks in their order.
pub(super) const BLOCKS: [PlotColour; 8] = [
    PlotColour::Blue,
    PlotColour::Orange,
    PlotColour::Green,
    PlotColour::Purple,
    PlotColour::Phase,
    PlotColour::Missing,
    PlotColour::Stopped,
    PlotColour::Soft,
];

impl Picture {
    /// Draws the picture as SVG of this width.
    ///
    /// # Errors
    /// plotters', which has none for a text in memory.
    pub(super) fn draw(&self, width: u32) -> io::Result<String> {
        let wide = f64::from(width);
        let heading = wrapped(&self.title, HEADING * 1.15, wide - 8.0);
        let (places, rows) = self.legend_places(wide);
        let top = heading.len() as f64 * (LINE + 2.0) + rows * LINE + 10.0;
        let height = top + self.ground + BELOW;
        let left = if self.y.is_bare { 8.0 } else { LEFT };
        let mut svg = String::new();
        let (mut overlay, mut stand_ins) = (SvgOverlay::default(), StandIns::default());
        {
            let area = SVGBackend::with_string(&mut svg, (width, height.ceil() as u32)).into_drawing_area();
            self.ground(&area, (left, top, wide), &mut overlay, &mut stand_ins)
                .map_err(|error| io::Error::other(error.to_string()))?;
        }
        for (row, line) in heading.iter().enumerate() {
            overlay.heading((4.0, 13.0 + row as f64 * (LINE + 2.0)), HEADING, line);
        }
        let below = heading.len() as f64 * (LINE + 2.0);
        for (number, (words, (x, row))) in self.legend.iter().zip(places).enumerate() {
            let y = below + row * LINE + 11.0;
            if self.has_blocks {
                overlay.block((x, y - 9.0), (SAMPLE / 2.0, 10.0), BLOCKS[number % BLOCKS.len()]);
            } else {
                let (colour, dashes) = LINE_STYLES[number % LINE_STYLES.len()];
                overlay.line((x, y - 4.0), (x + SAMPLE, y - 4.0), 2.0, colour, dashes);
            }
            let at = x + if self.has_blocks { SAMPLE / 2.0 } else { SAMPLE } + 5.0;
            overlay.text((at, y), LETTERS, TextSide::After, PlotColour::Ink, &fitted(words, LETTERS, wide - at - 4.0));
        }
        let title = escaped(&self.title);
        let open = format!("<svg class=\"qferry-plot\" role=\"img\" aria-label=\"{title}\" ");
        let svg = stand_ins.replaced(svg);
        let svg = svg.replacen("<svg ", &open, 1).replacen(
            ">\n",
            &format!(">\n<title>{title}</title>{}\n", style_sheet()),
            1,
        );
        let end = svg.rfind("</svg>").unwrap_or(svg.len());
        Ok(format!("{}{}</svg>\n", &svg[..end], overlay.finish()))
    }

    /// Where the words of the legend are, and how many rows they take.
    fn legend_places(&self, width: f64) -> (Vec<(f64, f64)>, f64) {
        let (mut x, mut row) = (4.0, 0.0);
        let mut places = Vec::new();
        for words in &self.legend {
            let needed = SAMPLE + text_width(words, LETTERS) + 20.0;
            if x > 4.0 && x + needed > width {
                (x, row) = (4.0, row + 1.0);
            }
            places.push((x, row));
            x += needed;
        }
        (places, if self.legend.is_empty() { 0.0 } else { row + 1.0 })
    }

    fn ground(
        &self,
        area: &plotters::drawing::DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
        (left, top, wide): (f64, f64, f64),
        overlay: &mut SvgOverlay,
        stand_ins: &mut StandIns,
    ) -> Result<(), plotters::drawing::DrawingAreaErrorKind<io::Error>> {
        area.fill(&PlotColour::Paper.rgb())?;
        let shape = ((wide - left - RIGHT).max(40.0) as u32, self.ground as u32);
        let ground = area.clone().shrink((left as u32, top as u32), shape);
        let (x, y) = (&self.x, &self.y);
        let (x_ends, y_ends) = ((x.place(x.range.0), x.place(x.range.1)), (y.place(y.range.0), y.place(y.range.1)));
        let mut chart = ChartBuilder::on(&ground).build_cartesian_2d(x_ends.0..x_ends.1, y_ends.0..y_ends.1)?;
        let grid = PlotColour::Grid.rgb();
        let bottom = top + self.ground;
        for tick in x.ticks(((wide - left) / 70.0).max(2.0) as usize) {
            let at = x.place(tick);
            chart.draw_series([PathElement::new(vec![(at, y_ends.0), (at, y_ends.1)], grid.stroke_width(1))])?;
            let pixel = f64::from(chart.backend_coord(&(at, y_ends.0)).0);
            let words = number(tick);
            let room = text_width(&words, LETTERS) / 2.0;
            let pixel = pixel.clamp(room, wide - room);
            overlay.text((pixel, bottom + 14.0), LETTERS, TextSide::Around, PlotColour::Soft, &words);
        }
        overlay.text((wide - RIGHT, bottom + 29.0), LETTERS, TextSide::Before, PlotColour::Ink, &x.name);
        if !y.is_bare {
            for tick in y.ticks((self.ground / 34.0).max(2.0) as usize) {
                let at = y.place(tick);
                chart.draw_series([PathElement::new(vec![(x_ends.0, at), (x_ends.1, at)], grid.stroke_width(1))])?;
                let pixel = f64::from(chart.backend_coord(&(x_ends.0, at)).1);
                overlay.text((left - 6.0, pixel + 4.0), LETTERS, TextSide::Before, PlotColour::Soft, &number(tick));
            }
            overlay.text((4.0, bottom + 29.0), LETTERS, TextSide::After, PlotColour::Ink, &format!("up: {}", y.name));
        }
        let place = |(a, b): (f64, f64)| (x.place(a), y.place(b));
        for mark in &self.marks {
            match mark {
                PictureMark::Line { points, style } => {
                    let colour = stand_ins.stand_in(LINE_STYLES[style % LINE_STYLES.len()]);
                    let points: Vec<(f64, f64)> = points.iter().copied().map(place).collect();
                    chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
                }
                PictureMark::Points { points, style, radius } => {
                    let colour = LINE_STYLES[style % LINE_STYLES.len()].0.rgb();
                    chart.draw_series(
                        points.iter().copied().map(place).map(|point| Circle::new(point, *radius, colour.filled())),
                    )?;
                }
                PictureMark::Block { corners, colour } => {
                    chart.draw_series([Rectangle::new(corners.map(place), colour.rgb().filled())])?;
                }
                PictureMark::Stroke { ends, width } => {
                    let ends: Vec<(f64, f64)> = ends.iter().copied().map(place).collect();
                    chart.draw_series([PathElement::new(ends, PlotColour::Ink.rgb().stroke_width(*width))])?;
                }
                PictureMark::Words { at, up, side, words } => {
                    let (pixel_x, pixel_y) = chart.backend_coord(&place(*at));
                    let pixel_x = f64::from(pixel_x).max(left);
                    let words = fitted(words, LETTERS, wide - 8.0);
                    let over = pixel_x + text_width(&words, LETTERS) - wide + 4.0;
                    let pixel_x = if *side == TextSide::After { (pixel_x - over.max(0.0)).max(4.0) } else { pixel_x };
                    overlay.text((pixel_x, f64::from(pixel_y) - up), LETTERS, *side, PlotColour::Ink, &words);
                }
            }
        }
        area.present()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let axis = |range, is_log| PictureAxis { name: "ms".into(), range, is_log, is_bare: false };
        assert_eq!(axis((0.0, 103.0), false).ticks(5), [0.0, 50.0, 100.0]);
        assert_eq!(axis((8.0, 130.0), true).ticks(6), [10.0, 20.0, 30.0, 50.0, 70.0, 100.0]);
        assert_eq!(axis((8.0, 130.0), true).ticks(4), [10.0, 20.0, 50.0, 100.0]);
        for range in [(0.0, 1e-12), (-5.0, 7.0), (0.0, 9e15)] {
            assert!(axis(range, false).ticks(6).len() <= 8, "{range:?}");
        }
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (value, expected) in [
            (0.0, "0"),
            (13.25, "13.2"),
            (13.0, "13"),
            (1234.0, "1234"),
            (45678.0, "45.7k"),
            (2.5e9, "2.5G"),
            (0.004, "4.0e-3"),
            (-20.04, "-20"),
        ] {
            assert_eq!(number(value), expected);
        }
    }

    #[test]
    fn a_picture_is_well_formed_and_its_words_are_within_it() {
        let picture = Picture {
            title: "Blackout <of> all & everything in a title that is long enough for two lines".into(),
            x: PictureAxis::around("ms", [5.0, 300.0].into_iter(), true),
            y: PictureAxis::around("share", [1.0].into_iter(), false),
            legend: (0..9).map(|number| format!("configuration {number} with a long name")).collect(),
            has_blocks: false,
            marks: vec![
                PictureMark::Line { points: vec![(0.0, 0.0), (20.0, 0.5), (1e300, 1e300)], style: 11 },
                PictureMark::Points { points: vec![(f64::MIN_POSITIVE, 3.0)], style: 0, radius: 3 },
                PictureMark::Words {
                    at: (300.0, 1.0),
                    up: 2.0,
                    side: TextSide::After,
                    words: "p99 of a long name".into(),
                },
            ],
            ground: 200.0,
        };
        for width in [340, 1000] {
            let svg = picture.draw(width).expect("a text in memory");
            let document = roxmltree::Document::parse(&svg).expect("it is XML");
            for text in document.descendants().filter(|node| node.has_tag_name("text")) {
                let number = |name| text.attribute(name).and_then(|value| value.parse::<f64>().ok()).expect(name);
                let words = text.text().unwrap_or_default();
                let room = text_width(words, number("font-size"));
                let start = match text.attribute("text-anchor") {
                    Some("end") => number("x") - room,
                    Some("middle") => number("x") - room / 2.0,
                    _ => number("x"),
                };
                // Bold letters are wider than text_width says, and the heading was wrapped for that.
                assert!(start >= -1.0 && start + room <= f64::from(width) + 1.0, "{words} from {start} in {width}");
            }
        }
    }
}
