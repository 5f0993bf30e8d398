//! One chart over time: axes, lines and bands by plotters, and above it the legend.
//!
//! Lines are told apart by their dashes and by the legend's words, never by colour alone. plotters draws each line in a
//! stand-in colour, which [`dashes_for_stand_ins`] replaces: the library cannot dash.

use super::ink::{PlotColour, SvgOverlay, TextSide, fitted, heading_width, text_width};
use plotters::{
    chart::ChartBuilder,
    coord::Shift,
    drawing::DrawingArea,
    element::{PathElement, Rectangle},
    prelude::SVGBackend,
    series::LineSeries,
    style::{Color, IntoTextStyle, RGBColor},
};
use std::io;

pub(super) type PlotArea<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Pixels left of the charts for the numbers of their axes, right of them, and below them.
pub(super) const GUTTER: f64 = 80.0;
pub(super) const RIGHT: f64 = 24.0;
const BELOW: f64 = 22.0;
/// The size of the letters in a chart, the height of a row of the legend, and the length of its sample of a line.
pub(super) const SMALL: f64 = 11.0;
const ROW: f64 = 16.0;
const SAMPLE: f64 = 26.0;
/// plotters takes the size of a font for that of its line.
const LINE_OF_FONT: f64 = 1.24;
/// Lines of the whole plot that have stand-ins, and the first two parts of a stand-in's colour.
const STAND_INS: usize = 256;
const STAND_IN: (u8, u8) = (1, 2);
/// The dashes of the lines of a chart, in their order.
pub(crate) const LINE_STYLES: [(PlotColour, &str); 8] = [
    (PlotColour::Blue, ""),
    (PlotColour::Orange, "7 3"),
    (PlotColour::Green, "2 3"),
    (PlotColour::Purple, "10 3 2 3"),
    (PlotColour::Ink, "1 4"),
    (PlotColour::Blue, "14 4"),
    (PlotColour::Orange, "4 2 1 2"),
    (PlotColour::Green, "8 2 2 2 2 2"),
];

/// One line of a chart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ChartLine {
    pub(super) name: String,
    pub(super) style: (PlotColour, &'static str),
    /// The line's points, in parts where it is interrupted.
    pub(super) parts: Vec<Vec<(f64, f64)>>,
}

/// One chart over time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct TimeChart {
    /// The chart's name with its unit.
    pub(super) title: String,
    pub(super) lines: Vec<ChartLine>,
    /// Words beside the legend: what no line shows.
    pub(super) remarks: Vec<String>,
    /// Why there is nothing to see, where there is nothing.
    pub(super) missing: String,
    /// The greatest value of the axis, where it is given.
    pub(super) top: Option<f64>,
    /// The axis is one of powers of ten, from one on: values of very different sizes are told apart.
    pub(super) has_powers: bool,
    /// What is said of a time when it is pointed at.
    pub(super) hints: Vec<(f64, String)>,
}

/// A time of all charts with a ground of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TimeBand {
    pub(super) began: f64,
    pub(super) ended: f64,
    pub(super) colour: PlotColour,
}

/// The place of a chart, and the time that it shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TimeFrame {
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
    /// The first and the last second.
    pub(super) span: (f64, f64),
}

impl TimeFrame {
    /// The left and the right edge of the chart's ground.
    pub(super) fn edges(&self) -> (f64, f64) {
        (GUTTER, self.width - RIGHT)
    }

    /// The pixel of a second.
    pub(super) fn x(&self, at: f64) -> f64 {
        let (left, right) = self.edges();
        let part = (at - self.span.0) / (self.span.1 - self.span.0);
        left + part.clamp(0.0, 1.0) * (right - left)
    }
}

/// A number of an axis whose greatest is `top`.
pub(super) fn axis_number(value: f64, top: f64) -> String {
    match top {
        top if top >= 1e7 => format!("{value:.1e}"),
        top if top >= 20.0 => format!("{value:.0}"),
        top if top >= 2.0 => format!("{value:.1}"),
        top if top >= 0.2 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

impl TimeChart {
    /// The words of the legend in the order in which they stand: title, lines, remarks.
    fn legend(&self) -> impl Iterator<Item = (&str, Option<(PlotColour, &'static str)>)> {
        let lines = self.lines.iter().map(|line| (line.name.as_str(), Some(line.style)));
        let missing = self.lines.is_empty().then_some((self.missing.as_str(), None));
        lines.chain(self.remarks.iter().map(|remark| (remark.as_str(), None))).chain(missing)
    }

    /// The places of the legend's words: offset and row of each, and the number of rows.
    fn legend_places(&self, width: f64) -> (Vec<(f64, f64)>, f64) {
        let (mut x, mut row) = (8.0 + heading_width(&self.title, SMALL + 1.0) + 16.0, 0.0);
        let mut places = Vec::new();
        for (words, style) in self.legend() {
            let needed = style.map_or(0.0, |_| SAMPLE + 6.0) + text_width(words, SMALL) + 18.0;
            if x + needed > width {
                (x, row) = (8.0, row + 1.0);
            }
            places.push((x, row));
            x += needed;
        }
        (places, row + 1.0)
    }

    /// The height of the whole with a ground of this height.
    pub(super) fn height(&self, width: f64, ground: f64) -> f64 {
        let ground = if self.lines.is_empty() { 0.0 } else { ground + BELOW };
        self.legend_places(width).1 * ROW + 6.0 + ground + 8.0
    }

    /// Draws the chart; returns the top and the bottom of its ground.
    ///
    /// # Errors
    /// plotters', which has none for a text in memory.
    pub(super) fn draw(
        &self,
        area: &PlotArea<'_>,
        overlay: &mut SvgOverlay,
        frame: TimeFrame,
        bands: &[TimeBand],
        stand_ins: &mut StandIns,
    ) -> io::Result<(f64, f64)> {
        let (places, rows) = self.legend_places(frame.width);
        let top = frame.top + rows * ROW + 6.0;
        self.draw_legend(overlay, frame, &places);
        if self.lines.is_empty() {
            return Ok((top, top));
        }
        let shape = ((frame.width - RIGHT) as u32, (frame.height - (top - frame.top) - 8.0).max(1.0) as u32);
        let area = area.clone().shrink((0, top as u32), shape);
        let greatest = self.top.unwrap_or_else(|| {
            let values = self.lines.iter().flat_map(|line| line.parts.iter().flatten()).map(|point| point.1);
            let most = values.fold(0.0, f64::max);
            if self.has_powers { most.max(10.0) } else { most * 1.06 }
        });
        let greatest = if greatest > 0.0 { greatest } else { 1.0 };
        self.draw_ground(&area, frame, greatest, bands, stand_ins)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let bottom = top + f64::from(shape.1) - BELOW;
        for pair in self.hints.windows(2) {
            let (from, to) = (frame.x(pair[0].0), frame.x(pair[1].0));
            overlay.titled("hint", &pair[0].1, |overlay| overlay.hit_area((from, top), (to - from, bottom - top)));
        }
        Ok((top, bottom))
    }

    fn draw_legend(&self, overlay: &mut SvgOverlay, frame: TimeFrame, places: &[(f64, f64)]) {
        overlay.heading((8.0, frame.top + 11.0), SMALL + 1.0, &self.title);
        for ((words, style), (x, row)) in self.legend().zip(places) {
            let y = frame.top + row * ROW + 11.0;
            let mut x = *x;
            if let Some((colour, dashes)) = style {
                overlay.line((x, y - 4.0), (x + SAMPLE, y - 4.0), 2.0, colour, dashes);
                x += SAMPLE + 6.0;
            }
            let words = fitted(words, SMALL, frame.width - x - 8.0);
            overlay.text((x, y), SMALL, TextSide::After, PlotColour::Ink, &words);
        }
    }

    fn draw_ground(
        &self,
        area: &PlotArea<'_>,
        frame: TimeFrame,
        greatest: f64,
        bands: &[TimeBand],
        stand_ins: &mut StandIns,
    ) -> Result<(), plotters::drawing::DrawingAreaErrorKind<io::Error>> {
        let (began, ended) = frame.span;
        let height = |value: f64| if self.has_powers { value.max(1.0).log10() } else { value };
        let most = greatest;
        let greatest = height(greatest);
        let mut chart = ChartBuilder::on(area)
            .x_label_area_size(BELOW as u32)
            .y_label_area_size(GUTTER as u32)
            .build_cartesian_2d(began..ended, 0.0..greatest)?;
        for band in bands {
            let corners = [(band.began, 0.0), (band.ended, greatest)];
            chart.draw_series([Rectangle::new(corners, band.colour.rgb().filled())])?;
            // a band that is narrower than a pixel is seen, too
            let edge = vec![(band.began, 0.0), (band.began, greatest)];
            chart.draw_series([PathElement::new(edge, band.colour.rgb().stroke_width(2))])?;
        }
        let soft = PlotColour::Soft.rgb();
        let letters = ("sans-serif", SMALL * LINE_OF_FONT).into_text_style(area).color(&soft);
        let seconds = |value: &f64| format!("{} s", axis_number(*value, ended - began));
        let numbers = |value: &f64| match self.has_powers {
            true => axis_number(10f64.powf(*value), 10f64.powf(*value) * 2.0),
            false => axis_number(*value, most),
        };
        let labels = ((frame.width - GUTTER - RIGHT) / 75.0).max(2.0) as usize;
        chart
            .configure_mesh()
            .light_line_style(PlotColour::Paper.rgb().mix(0.0))
            .bold_line_style(PlotColour::Grid.rgb())
            .axis_style(PlotColour::Soft.rgb())
            .x_labels(labels)
            .y_labels(5)
            .x_label_formatter(&seconds)
            .y_label_formatter(&numbers)
            .label_style(letters)
            .draw()?;
        for line in &self.lines {
            let style = stand_ins.stand_in(line.style).stroke_width(2);
            for part in &line.parts {
                // plotters' arithmetic overflows for points far outside
                let part: Vec<(f64, f64)> = part
                    .iter()
                    .map(|(at, value)| (at.clamp(began, ended), height(*value).clamp(0.0, greatest)))
                    .collect();
                chart.draw_series(LineSeries::new(part.clone(), style))?;
                // a sample alone makes no line
                if let [(at, value)] = part[..] {
                    let dash = vec![(at, value), (at + (ended - began) / 200.0, value)];
                    chart.draw_series([PathElement::new(dash, style)])?;
                }
            }
        }
        Ok(())
    }
}

/// The colours that stand in for lines with their dashes.
#[derive(Debug, Default)]
pub(crate) struct StandIns(Vec<(PlotColour, &'static str)>);

impl StandIns {
    pub(crate) fn stand_in(&mut self, style: (PlotColour, &'static str)) -> RGBColor {
        let known = self.0.iter().position(|known| *known == style);
        let at = known.unwrap_or_else(|| {
            self.0.push(style);
            self.0.len() - 1
        });
        RGBColor(STAND_IN.0, STAND_IN.1, (at % STAND_INS) as u8)
    }

    /// The SVG with the lines' own colours and dashes.
    pub(crate) fn replaced(&self, mut svg: String) -> String {
        for (at, (colour, dashes)) in self.0.iter().enumerate() {
            let stand_in = format!("stroke=\"#{:02X}{:02X}{at:02X}\"", STAND_IN.0, STAND_IN.1);
            let dashes = if dashes.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dashes}\"") };
            svg = svg.replace(&stand_in, &format!("class=\"line\" stroke=\"{}\"{dashes}", colour.hex()));
        }
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_an_axis_can_be_told_apart() {
        for (value, top, expected) in [
            (1500.0, 2000.0, "1500"),
            (7.5, 10.0, "7.5"),
            (0.25, 0.9, "0.25"),
            (0.0125, 0.05, "0.0125"),
            (3e9, 9e9, "3.0e9"),
        ] {
            assert_eq!(axis_number(value, top), expected);
        }
    }

    #[test]
    fn the_words_of_a_legend_do_not_overlap() {
        let named = |name: &str| ChartLine { name: name.to_owned(), style: LINE_STYLES[0], parts: vec![] };
        for width in [360.0, 700.0, 1100.0] {
            let chart = TimeChart {
                title: "Rates, MiB/s".to_owned(),
                lines: ["dirty rate", "bandwidth", "max-bandwidth, a long name that tells much"].map(named).into(),
                remarks: vec!["max-bandwidth: no limit".to_owned()],
                ..TimeChart::default()
            };
            let (places, rows) = chart.legend_places(width);
            let mut ends = vec![8.0 + heading_width(&chart.title, SMALL + 1.0); rows as usize];
            ends[1..].fill(0.0);
            for ((words, style), (x, row)) in chart.legend().zip(&places) {
                assert!(*x >= ends[*row as usize] && *x + 8.0 < width, "{words} at {x} in {places:?}");
                ends[*row as usize] = x + style.map_or(0.0, |_| SAMPLE + 6.0) + text_width(words, SMALL);
            }
        }
    }
}
