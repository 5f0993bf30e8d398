//! How the view is laid out in the room that there is: the verdict first, and what matters less is left out first.
//!
//! Nothing is told by colour alone.
//!
//! Pure.

use super::{
    keys::{ViewMode, ViewState},
    live_view::LiveView,
    palette::Palette,
    panels,
};
use ratatui::{
    Frame,
    layout::Rect,
    text::Line,
    widgets::{Block, Clear, Paragraph, Sparkline},
};

/// From this size on the curves have a column of their own.
const WIDE: (u16, u16) = (120, 24);
/// The least columns beside the curves: with fewer, what fits an ordinary terminal is cut.
const BESIDE: u16 = 79;
/// The rows of the largest curve.
const CURVE: u16 = 6;

/// The rows of a part: as many as it would like, and the least with which it says anything.
struct RowWish {
    rows: u16,
    least: u16,
}

/// Draws the view.
pub(super) fn draw(frame: &mut Frame, view: &LiveView, state: &ViewState, palette: &Palette) {
    let area = frame.area();
    if area.width == 0 || area.height == 0 {
        return;
    }
    let is_wide = area.width >= WIDE.0 && area.height >= WIDE.1 && !view.curves.is_empty();
    let left = if is_wide { (area.width * 3 / 5).max(BESIDE) } else { area.width };
    let mut rows = ColumnRoom { area: Rect { width: left, ..area }, used: 0 };
    let title = Rect { height: 1, ..area };
    frame.render_widget(Paragraph::new(panels::title(view, state, palette, area.width)), title);
    rows.used = 1;
    column(frame, &mut rows, view, state, palette, is_wide);
    if is_wide {
        let right = Rect { x: area.x + left + 1, y: area.y + 1, width: area.width - left - 1, height: area.height - 1 };
        curves(frame, right, view, palette);
    }
    if state.help {
        help(frame, area, state.mode, palette);
    }
}

/// The rows of a column that are not used yet.
struct ColumnRoom {
    area: Rect,
    used: u16,
}

impl ColumnRoom {
    fn left(&self) -> u16 {
        self.area.height.saturating_sub(self.used)
    }

    fn put(&mut self, frame: &mut Frame, lines: Vec<Line<'static>>) {
        let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).min(self.left());
        let place = Rect { y: self.area.y + self.used, height, ..self.area };
        frame.render_widget(Paragraph::new(lines), place);
        self.used += height;
    }
}

/// Everything but the title and the large curves.
fn column(
    frame: &mut Frame,
    rows: &mut ColumnRoom,
    view: &LiveView,
    state: &ViewState,
    palette: &Palette,
    is_wide: bool,
) {
    let width = rows.area.width;
    let height = rows.area.height;
    let most = if height >= 12 { 3 } else { rows.left() };
    rows.put(frame, panels::verdict(view, palette, width, most));
    let count = |rows: usize| u16::try_from(rows).unwrap_or(u16::MAX);
    let causes = panels::causes(view, state, palette, width);
    let inline = !is_wide && height >= 20 && !view.curves.is_empty();
    // in the order of what is given room first
    let mut wishes = [
        RowWish { rows: 1 + count(view.sides.len()), least: 2 },
        RowWish { rows: 1 + count(view.transfers.len()).min(height / 3), least: 2 },
        RowWish { rows: 1 + count(causes.len()), least: 3 },
        RowWish { rows: count(view.facts.len()).min(if height >= 30 { 8 } else { 3 }), least: 1 },
        RowWish { rows: 4, least: 2 },
        RowWish { rows: u16::from(inline), least: 1 },
    ];
    for (wish, is_there) in wishes.iter_mut().zip([
        !view.sides.is_empty(),
        !view.transfers.is_empty(),
        !causes.is_empty(),
        !view.facts.is_empty(),
        true,
        inline,
    ]) {
        if !is_there {
            wish.rows = 0;
        }
    }
    let mut left = rows.left();
    // the causes leave room for a few events
    wishes[2].rows = wishes[2].rows.min((height / 2).max(4));
    for wish in &mut wishes {
        wish.rows = if left >= wish.least { wish.rows.min(left) } else { 0 };
        left -= wish.rows;
    }
    wishes[4].rows += if wishes[4].rows > 0 { left } else { 0 };
    let [sides, transfers, blamed, facts, events, inline] = wishes.map(|wish| wish.rows);
    let below = |rows: u16| usize::from(rows.saturating_sub(1));
    let part = |name: &str, lines: Vec<Line<'static>>, rows: u16| -> Vec<Line<'static>> {
        let heading = panels::heading(name, palette, width);
        if rows == 0 { Vec::new() } else { std::iter::once(heading).chain(lines).take(usize::from(rows)).collect() }
    };
    rows.put(frame, part("Sides", panels::sides(view, palette, width), sides));
    rows.put(frame, part("Progress", panels::transfers(view, palette, width, below(transfers)), transfers));
    rows.put(frame, panels::facts(view, palette, width).into_iter().take(usize::from(facts)).collect());
    if inline > 0 {
        rows.put(frame, vec![panels::curves(view, palette, width)]);
    }
    rows.put(frame, part("What is wrong", causes, blamed));
    let shown = panels::events(view, state, palette, width, below(events));
    rows.put(frame, part(&panels::events_heading(view, state), shown, events));
}

/// The curves, one below the other.
fn curves(frame: &mut Frame, area: Rect, view: &LiveView, palette: &Palette) {
    let count = u16::try_from(view.curves.len()).unwrap_or(u16::MAX).min(area.height / 3).max(1);
    let height = (area.height / count).saturating_sub(1).clamp(1, CURVE);
    // RAM's come last, and are the ones that decide
    let hidden = view.curves.len().saturating_sub(usize::from(count));
    for (number, curve) in view.curves.iter().skip(hidden).enumerate() {
        let y = area.y + u16::try_from(number).unwrap_or(u16::MAX).saturating_mul(height + 1);
        if y + height > area.y + area.height {
            return;
        }
        let heading = panels::curve_heading(curve, palette, area.width);
        frame.render_widget(Paragraph::new(heading), Rect { y, height: 1, ..area });
        let values: Vec<u64> = panels::last(curve, usize::from(area.width)).collect();
        let below = Rect { y: y + 1, height: height.min((area.y + area.height).saturating_sub(y + 1)), ..area };
        frame.render_widget(Sparkline::default().data(&values).style(palette.bar), below);
    }
}

/// The help, over everything else.
fn help(frame: &mut Frame, area: Rect, mode: ViewMode, palette: &Palette) {
    let lines = panels::help(mode);
    let width = lines.iter().map(Line::width).max().unwrap_or_default();
    let width = u16::try_from(width + 4).unwrap_or(u16::MAX).min(area.width);
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(" Help ").border_style(palette.heading);
    frame.render_widget(Paragraph::new(lines).block(block), place);
}
