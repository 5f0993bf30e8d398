//! The colours of a plot, and the marks and texts that are laid over its charts.
//!
//! Every text of a transcript goes through [`escaped`]: a name can hold anything. No mark tells anything by its colour
//! alone, and every colour has a twin for a dark screen.

use plotters::style::RGBColor;
use std::fmt::Write as _;

/// The part of its size that a character of a text is wide, at most: the width of a font that nobody knows.
const WIDTH: f64 = 0.6;
/// The same for a character that is not ASCII.
const WIDE: f64 = 1.1;
/// The factor by which bold letters are wider.
pub(crate) const BOLD: f64 = 1.15;

/// A colour by its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlotColour {
    Paper,
    Ink,
    Soft,
    Grid,
    Blue,
    Orange,
    Green,
    Purple,
    Phase,
    Stopped,
    Missing,
}

impl PlotColour {
    const ALL: [Self; 11] = [
        Self::Paper,
        Self::Ink,
        Self::Soft,
        Self::Grid,
        Self::Blue,
        Self::Orange,
        Self::Green,
        Self::Purple,
        Self::Phase,
        Self::Stopped,
        Self::Missing,
    ];

    /// The colour on paper, and that on a dark screen.
    fn pair(self) -> (&'static str, &'static str) {
        match self {
            Self::Paper => ("#FFFFFF", "#14181D"),
            Self::Ink => ("#1B2026", "#E7EAEE"),
            Self::Soft => ("#56606B", "#A7B1BC"),
            Self::Grid => ("#E2E6EA", "#2B323A"),
            Self::Blue => ("#0B5CAD", "#74B6FF"),
            Self::Orange => ("#B04A00", "#FFAE66"),
            Self::Green => ("#19763A", "#6BD58C"),
            Self::Purple => ("#74359A", "#CE9FEC"),
            Self::Phase => ("#CFDFF0", "#2A4058"),
            Self::Stopped => ("#F3CFC9", "#5A2A25"),
            Self::Missing => ("#EDE3C4", "#4A4122"),
        }
    }

    /// The colour on paper, as it is written in SVG.
    pub(crate) fn hex(self) -> &'static str {
        self.pair().0
    }

    pub(crate) fn rgb(self) -> RGBColor {
        let part = |at: usize| u8::from_str_radix(&self.hex()[at..at + 2], 16).unwrap_or_default();
        RGBColor(part(1), part(3), part(5))
    }
}

/// The style sheet that gives each colour its twin on a dark screen. Paper stays light.
pub(crate) fn style_sheet() -> String {
    let mut sheet = "<style>@media screen and (prefers-color-scheme: dark){".to_owned();
    for colour in PlotColour::ALL {
        let (light, dark) = colour.pair();
        for property in ["fill", "stroke"] {
            // a String takes everything
            write!(sheet, ".qferry-plot [{property}=\"{light}\"]{{{property}:{dark}}}").ok();
        }
    }
    sheet + "}</style>"
}

/// A text fit for XML and HTML: markup is escaped, and what neither may hold is shown as a question mark.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(' '),
            // characters that turn the direction of what follows could make a text read as another
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => safe.push('?'),
            c if c.is_control() => safe.push('?'),
            c => safe.push(c),
        }
    }
    safe
}

/// The width of a text of this size in pixels, rather too much than too little.
pub(crate) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().map(|c| if c.is_ascii() { WIDTH } else { WIDE }).sum::<f64>() * size
}

/// The same for a text in bold letters.
pub(crate) fn heading_width(text: &str, size: f64) -> f64 {
    text_width(text, size) * BOLD
}

/// The text, or as much of the text as fits.
pub(crate) fn fitted(text: &str, size: f64, width: f64) -> String {
    if text_width(text, size) <= width {
        return text.to_owned();
    }
    let mut room = width - text_width("...", size);
    let fits = |c: &char| {
        room -= text_width(c.encode_utf8(&mut [0; 4]), size);
        room >= 0.0
    };
    text.chars().take_while(fits).collect::<String>() + "..."
}

/// The text in lines that fit; a word that is too long is cut.
pub(crate) fn wrapped(text: &str, size: f64, width: f64) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or("", String::as_str);
        let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
        match lines.last_mut() {
            Some(line) if text_width(&longer, size) <= width || line.is_empty() => *line = longer,
            _ => lines.push(word.to_owned()),
        }
    }
    lines.into_iter().map(|line| fitted(&line, size, width)).collect()
}

/// Where a text is, seen from its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextSide {
    After,
    Before,
    Around,
}

/// Marks and texts in SVG, one after the other.
#[derive(Debug, Default)]
pub(crate) struct SvgOverlay {
    svg: String,
}

impl SvgOverlay {
    pub(crate) fn finish(self) -> String {
        self.svg
    }

    /// A text on one line, whose base line is at `y`.
    pub(crate) fn text(&mut self, (x, y): (f64, f64), size: f64, side: TextSide, colour: PlotColour, text: &str) {
        self.styled_text((x, y), size, side, colour, "", text);
    }

    pub(crate) fn heading(&mut self, (x, y): (f64, f64), size: f64, text: &str) {
        self.styled_text((x, y), size, TextSide::After, PlotColour::Ink, " font-weight=\"bold\"", text);
    }

    fn styled_text(
        &mut self,
        (x, y): (f64, f64),
        size: f64,
        side: TextSide,
        colour: PlotColour,
        style: &str,
        text: &str,
    ) {
        let anchor = match side {
            TextSide::After => "start",
            TextSide::Before => "end",
            TextSide::Around => "middle",
        };
        self.put(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" font-family=\"sans-serif\" text-anchor=\"{anchor}\" \
             fill=\"{}\"{style}>{}</text>",
            colour.hex(),
            escaped(text)
        ));
    }

    /// A filled rectangle.
    pub(crate) fn block(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), colour: PlotColour) {
        let (width, colour) = (width.max(1.0), colour.hex());
        self.put(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
        ));
    }

    /// The outline of a rectangle; dashes tell one kind from another.
    pub(crate) fn outline(
        &mut self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        colour: PlotColour,
        dashes: &str,
    ) {
        let (width, colour, dashes) = (width.max(1.0), colour.hex(), dashed(dashes));
        self.put(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" \
             stroke=\"{colour}\"{dashes}/>"
        ));
    }

    /// Nothing to see, but something to point at.
    pub(crate) fn hit_area(&mut self, (x, y): (f64, f64), (width, height): (f64, f64)) {
        self.put(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" \
             pointer-events=\"all\"/>"
        ));
    }

    pub(crate) fn line(
        &mut self,
        (x1, y1): (f64, f64),
        (x2, y2): (f64, f64),
        width: f64,
        colour: PlotColour,
        dashes: &str,
    ) {
        let (colour, dashes) = (colour.hex(), dashed(dashes));
        self.put(&format!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" \
             stroke-width=\"{width}\"{dashes}/>"
        ));
    }

    /// A rhombus: the mark of a moment.
    pub(crate) fn rhombus(&mut self, (x, y): (f64, f64), radius: f64, colour: PlotColour) {
        self.put(&format!(
            "<path d=\"M{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}Z\" fill=\"{}\"/>",
            y - radius,
            x + radius,
            y + radius,
            x - radius,
            colour.hex()
        ));
    }

    /// What `draw` draws, as one group of this kind that says `title` when it is pointed at.
    pub(crate) fn titled(&mut self, class: &str, title: &str, draw: impl FnOnce(&mut Self)) {
        self.put(&format!("<g class=\"{class}\"><title>{}</title>", escaped(title)));
        draw(self);
        self.put("</g>");
    }

    fn put(&mut self, svg: &str) {
        self.svg.push_str(svg);
        self.svg.push('\n');
    }
}

fn dashed(dashes: &str) -> String {
    if dashes.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dashes}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_fit_for_markup() {
        let hostile = "<script>\"&'\u{0}\u{1b}[2J\u{202e}\u{ffff}\n\u{85}";
        let safe = escaped(hostile);
        assert_eq!(safe, "&lt;script&gt;&quot;&amp;&#39;??[2J?? ?");
        let xml = format!("<a b=\"{safe}\">{safe}</a>");
        assert!(roxmltree::Document::parse(&xml).is_ok(), "{xml}");
    }

    #[test]
    fn texts_fit_into_their_room() {
        assert_eq!(fitted("abc", 10.0, 18.0), "abc");
        assert_eq!(fitted("abcdefgh", 10.0, 36.0), "abc...");
        let lines = wrapped("one two three fourfourfourfour", 10.0, 54.0);
        assert_eq!(lines, ["one two", "three", "fourfo..."]);
        for line in lines {
            assert!(text_width(&line, 10.0) <= 54.0, "{line}");
        }
    }

    /// Each text colour can be read on its ground, and so can each line (WCAG: 4.5 and 3).
    #[test]
    fn colours_can_be_told_from_their_ground() {
        let luminance = |hex: &str| {
            let part = |at: usize| {
                let value = f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
                if value <= 0.03928 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
            };
            0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
        };
        let contrast = |one: &str, other: &str| {
            let (one, other) = (luminance(one) + 0.05, luminance(other) + 0.05);
            one.max(other) / one.min(other)
        };
        use PlotColour::{Blue, Green, Ink, Missing, Orange, Paper, Phase, Purple, Soft, Stopped};
        let grounds = [Paper, Phase, Stopped, Missing];
        for side in [|colour: PlotColour| colour.pair().0, |colour: PlotColour| colour.pair().1] {
            for ground in grounds {
                assert!(contrast(side(Ink), side(ground)) >= 4.5, "{ground:?}");
            }
            assert!(contrast(side(Soft), side(Paper)) >= 4.5);
            for line in [Blue, Orange, Green, Purple] {
                assert!(contrast(side(line), side(Paper)) >= 4.5, "{line:?}");
                assert!(contrast(side(line), side(Stopped)) >= 3.0, "{line:?}");
            }
        }
    }
}
