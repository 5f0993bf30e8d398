//! A picture of medians as bars, group by group, with their quartiles as lines. Light and dark, in one file of SVG.

use std::fmt::Write as _;

use qferry_bed::xml_text;

/// The style of the page, and of the bars in their order.
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1B2026}.soft{fill:#56606B}.paper{fill:#fff}.line{stroke:#1B2026;\
    stroke-width:1.5}.a{fill:#2F6FDE}.b{fill:#9AA4AF}.c{fill:#D08A3C}@media(prefers-color-scheme:dark){text{fill:#E7EAEE}\
    .soft{fill:#A7B1BC}.paper{fill:#14181D}.line{stroke:#E7EAEE}.a{fill:#6A9CF5}.b{fill:#6B7682}}";
const WIDTH: f64 = 860.0;
/// Where the bars begin, and the room for the number behind the longest.
const LEFT: f64 = 190.0;
const BEHIND: f64 = 90.0;
const BAR: f64 = 16.0;
const TOP: f64 = 40.0;

/// Bars that stand together.
pub(crate) struct Group {
    pub(crate) name: String,
    /// A name and its values, for each bar.
    pub(crate) bars: Vec<(String, Vec<f64>)>,
}

/// Draws the groups; `unit` is behind every number.
pub(crate) fn draw(title: &str, unit: &str, groups: &[Group]) -> String {
    let bars = || groups.iter().flat_map(|group| &group.bars);
    let most = bars().map(|(_, values)| quantile(values, 0.75)).fold(1.0, f64::max);
    let scale = |value: f64| value / most * (WIDTH - LEFT - BEHIND);
    let height = TOP + groups.iter().map(|group| (BAR + 4.0) * group.bars.len() as f64 + 18.0).sum::<f64>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><title>{0}</title>\
         <style>{STYLE}</style><rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\"/><text x=\"12\" y=\"24\">{0}</text>",
        xml_text(title)
    );
    let mut y = TOP;
    for group in groups {
        for (at, (name, values)) in group.bars.iter().enumerate() {
            let [low, median, high] = [0.25, 0.5, 0.75].map(|share| quantile(values, share));
            let (middle, base) = (y + BAR / 2.0, y + BAR - 3.5);
            if at == 0 {
                text(&mut svg, 12.0, base, "", &group.name);
            }
            text(&mut svg, LEFT - 62.0, base, "soft", name);
            let class = ["a", "b", "c"][at % 3];
            let bar = (LEFT, scale(median));
            // a String takes everything
            write!(svg, "<rect class=\"{class}\" x=\"{}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\"/>", bar.0, bar.1)
                .ok();
            let ends = [low, high].map(|end| LEFT + scale(end));
            let [from, to] = ends;
            write!(svg, "<path class=\"line\" d=\"M{from:.1} {middle}H{to:.1}\"/>").ok();
            let number = if median < 100.0 { format!("{median:.1} {unit}") } else { format!("{median:.0} {unit}") };
            text(&mut svg, LEFT + scale(median.max(high)) + 8.0, base, "", &number);
            y += BAR + 4.0;
        }
        y += 18.0;
    }
    svg + "</svg>\n"
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, words: &str) {
    write!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", xml_text(words)).ok();
}

/// The quantile between the two nearest values; 0 of nothing.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let place = values.len().saturating_sub(1) as f64 * share;
    let value = |at: f64| values.get(at as usize).copied().unwrap_or_default();
    value(place.floor()) + (value(place.ceil()) - value(place.floor())) * place.fract()
}
