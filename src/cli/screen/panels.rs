//! The parts of the view as lines.
//!
//! Pure.

use super::{
    super::plain_text::sparkline,
    keys::{FocusedList, ViewMode, ViewState},
    live_view::{LiveView, LoggedEvent, TransferRow, ValueCurve},
    palette::Palette,
};
use crate::quantity::{Bytes, Rate};
use ratatui::{
    style::Style,
    text::{Line, Span},
};

/// The columns of a bar, at the least and at the most.
const BAR: (usize, usize) = (6, 60);

fn columns(text: &str) -> usize {
    Span::raw(text).width()
}

/// A text of exactly this width: cut where it is longer, with a sign that it is, and filled up where it is shorter.
fn fit(text: &str, width: usize) -> String {
    let mut fitted = cut(text, width);
    fitted.extend(std::iter::repeat_n(' ', width.saturating_sub(columns(&fitted))));
    fitted
}

/// A text of at most this width.
fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let (mut kept, mut used) = (String::new(), 0);
    for c in text.chars() {
        let wide = columns(c.encode_utf8(&mut [0; 4]));
        if used + wide >= width {
            break;
        }
        kept.push(c);
        used += wide;
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

/// A text in lines of at most this width, broken between words where that can be.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word;
        loop {
            let line = lines.last().map(String::as_str).unwrap_or_default();
            let space = usize::from(!line.is_empty());
            if columns(line) + space + columns(word) <= width {
                if let Some(line) = lines.last_mut() {
                    line.push_str(if space == 1 { " " } else { "" });
                    line.push_str(word);
                }
                break;
            }
            if !line.is_empty() {
                lines.push(String::new());
                continue;
            }
            // a word that is longer than a line
            let mut used = 0;
            let fits = |(_, c): &(usize, char)| {
                used += columns(c.encode_utf8(&mut [0; 4]));
                used <= width
            };
            let at = word.char_indices().take_while(fits).last().map_or(word.len(), |(at, c)| at + c.len_utf8());
            lines.pop();
            lines.push(word[..at].to_owned());
            lines.push(String::new());
            word = &word[at..];
            if word.is_empty() || width == 0 {
                break;
            }
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

/// The first line: whose view, since when, and the keys.
pub(super) fn title(view: &LiveView, state: &ViewState, palette: &Palette, width: u16) -> Line<'static> {
    let width = usize::from(width);
    let name = match state.mode {
        ViewMode::Watch => "qferry watch",
        ViewMode::Migrate => "qferry migrate",
    };
    let seconds = view.elapsed.as_secs();
    let paused = if state.paused { "  PAUSED" } else { "" };
    let left = format!(" {name}  {}:{:02}{paused}", seconds / 60, seconds % 60);
    let keys = match state.mode {
        ViewMode::Watch => "? help  p pause  q quit ",
        ViewMode::Migrate => "? help  p pause  q leave view  Ctrl-C cancel ",
    };
    let text = match width.checked_sub(columns(&left)) {
        Some(room) if room > columns(keys) => format!("{left}{}{keys}", " ".repeat(room - columns(keys))),
        _ => fit(&left, width),
    };
    Line::styled(text, palette.title)
}

/// What goes on, or what is wrong.
pub(super) fn verdict(view: &LiveView, palette: &Palette, width: u16, most: u16) -> Vec<Line<'static>> {
    let (sign, style) = if view.causes.is_empty() { ("", palette.good) } else { ("! ", palette.bad) };
    let more = match view.causes.len() {
        0 | 1 => String::new(),
        count => format!(" ({count} causes are possible.)"),
    };
    let text = format!("{sign}{}{more}", view.verdict);
    let lines = wrapped(&text, usize::from(width).saturating_sub(2));
    lines.into_iter().take(usize::from(most)).map(|line| Line::styled(format!(" {line}"), style)).collect()
}

/// The heading of a part, with a rule to the end of the line.
pub(super) fn heading(name: &str, palette: &Palette, width: u16) -> Line<'static> {
    let name = cut(&format!("─ {name} "), usize::from(width));
    let rule = "─".repeat(usize::from(width).saturating_sub(columns(&name)));
    Line::styled(format!("{name}{rule}"), palette.heading)
}

pub(super) fn sides(view: &LiveView, palette: &Palette, width: u16) -> Vec<Line<'static>> {
    let width = usize::from(width);
    let most = |text: fn(&super::live_view::SideRow) -> &str| view.sides.iter().map(|row| columns(text(row))).max();
    let state = most(|row| &row.state).unwrap_or_default().min(width / 2);
    let process = most(|row| &row.process).unwrap_or_default().min(width / 3);
    let line = |row: &super::live_view::SideRow| {
        let style = if row.lost { palette.bad } else { Style::new() };
        let gap = |width: usize| if width == 0 { 0 } else { 2 };
        let used = 13 + state + gap(state) + process + gap(process);
        let spans = vec![
            Span::raw(format!(" {:<12}", row.name)),
            Span::styled(fit(&row.state, state), style),
            Span::raw(format!("{}{}{}", " ".repeat(gap(state)), fit(&row.process, process), " ".repeat(gap(process)))),
            Span::styled(cut_front(&row.address, width.saturating_sub(used)), palette.faint),
        ];
        Line::from(spans)
    };
    view.sides.iter().map(line).collect()
}

/// The end of a text: of a path, the end tells most.
fn cut_front(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let (mut kept, mut used) = (Vec::new(), 1);
    for c in text.chars().rev() {
        used += columns(c.encode_utf8(&mut [0; 4]));
        if used > width {
            break;
        }
        kept.push(c);
    }
    // less than this names nothing
    if width < 6 { String::new() } else { std::iter::once('…').chain(kept.into_iter().rev()).collect() }
}

/// Bars, the last of which say how many more there are where the room does not do.
pub(super) fn transfers(view: &LiveView, palette: &Palette, width: u16, most: usize) -> Vec<Line<'static>> {
    let rows = &view.transfers;
    let name = rows.iter().map(|row| columns(&row.name)).max().unwrap_or_default().clamp(4, 20);
    // RAM, the last one, is always shown
    let note = rows.iter().map(|row| columns(&row.note)).max().unwrap_or_default().min(24);
    let hidden = rows.len().saturating_sub(most);
    let (head, last) = match (hidden, rows.split_last()) {
        (0, _) | (_, None) => (rows.as_slice(), None),
        (_, Some((last, head))) => (&head[..most.saturating_sub(2).min(head.len())], Some(last)),
    };
    let mut lines: Vec<Line<'static>> = head.iter().map(|row| transfer(row, (name, note), palette, width)).collect();
    if let Some(last) = last {
        if most > 1 {
            lines.push(Line::raw(format!(" and {} more", rows.len() - head.len() - 1)));
        }
        lines.push(transfer(last, (name, note), palette, width));
    }
    lines
}

fn transfer(row: &TransferRow, (name, note): (usize, usize), palette: &Palette, width: u16) -> Line<'static> {
    let part = row.done().clamp(0.0, 1.0);
    // work that is not done is never 100 %
    let percent = if row.left > 0 { ((part * 100.0) as u64).min(99) } else { 100 };
    let numbers = format!("{percent:>4} %  {:>10} left of {:<10}", Bytes(row.left), Bytes(row.total));
    let rate = if row.rate > 0 { Rate(row.rate).to_string() } else { String::new() };
    let tail = format!("  {rate:>11}  {}", row.note);
    let used = 2 + name + columns(&numbers) + 15 + note;
    let bar = usize::from(width).saturating_sub(used + 1).clamp(BAR.0, BAR.1);
    let full = ((part * bar as f64) as usize).min(bar);
    let spans = vec![
        Span::raw(format!(" {} ", fit(&row.name, name))),
        Span::styled("█".repeat(full), palette.bar),
        Span::styled("░".repeat(bar - full), palette.faint),
        Span::raw(numbers),
        Span::raw(tail),
    ];
    Line::from(spans)
}

pub(super) fn facts(view: &LiveView, palette: &Palette, width: u16) -> Vec<Line<'static>> {
    let fact = |(name, text): &(&'static str, String)| {
        let text = cut(text, usize::from(width).saturating_sub(14));
        Line::from(vec![Span::styled(format!(" {name:<12}"), palette.faint), Span::raw(text)])
    };
    view.facts.iter().map(fact).collect()
}

/// The largest value of a curve: the drawing multiplies.
const LARGEST: u64 = 1 << 50;

/// The last values of a curve.
pub(super) fn last(curve: &ValueCurve, columns: usize) -> impl Iterator<Item = u64> {
    curve.values.iter().skip(curve.values.len().saturating_sub(columns)).map(|value| (*value).min(LARGEST))
}

fn amount(curve: &ValueCurve, number: u64) -> String {
    if curve.is_rate { Rate(number).to_string() } else { Bytes(number).to_string() }
}

/// Three curves in one line.
pub(super) fn curves(view: &LiveView, palette: &Palette, width: u16) -> Line<'static> {
    let shown: Vec<&ValueCurve> = view.curves.iter().rev().take(3).rev().collect();
    let each = usize::from(width).saturating_sub(1) / shown.len().max(1);
    let mut spans = vec![Span::raw(" ")];
    for curve in shown {
        let name = cut(&curve.name, 16);
        let room = each.saturating_sub(columns(&name) + 3);
        let values: Vec<u64> = last(curve, room).collect();
        spans.push(Span::styled(format!("{name} "), palette.faint));
        spans.push(Span::styled(fit(&sparkline(&values, room), room), palette.bar));
        spans.push(Span::raw("  "));
    }
    Line::from(spans)
}

/// The name of a curve, its last value and the largest one.
pub(super) fn curve_heading(curve: &ValueCurve, palette: &Palette, width: u16) -> Line<'static> {
    let now = curve.values.back().copied().unwrap_or_default();
    let most = last(curve, usize::from(width)).max().unwrap_or_default();
    let (now, most) = (amount(curve, now), amount(curve, most));
    let whole = format!("{}: {now}, at most {most}", curve.name);
    // the rule at the end has a column at the least
    let fits = columns(&whole) + 4 <= usize::from(width);
    heading(&if fits { whole } else { format!("{} {now} ≤ {most}", curve.name) }, palette, width)
}

/// The causes: each with its title, and the chosen one in full.
pub(super) fn causes(view: &LiveView, state: &ViewState, palette: &Palette, width: u16) -> Vec<Line<'static>> {
    let chosen = state.cause.min(view.causes.len().saturating_sub(1));
    let room = usize::from(width).saturating_sub(15);
    let mut lines = Vec::new();
    // the chosen one comes first, so that it is seen in full before the others
    let others = view.causes.iter().enumerate().filter(|(number, _)| *number != chosen);
    for (number, cause) in view.causes.iter().enumerate().skip(chosen).take(1).chain(others) {
        let is_chosen = number == chosen;
        let sign = if is_chosen { '>' } else { ' ' };
        let is_focused = is_chosen && state.focus == FocusedList::Causes && view.causes.len() > 1;
        let style = if is_focused { palette.chosen } else { palette.bad };
        let title = cut(&format!("{sign}{}. {}", number + 1, cause.title), usize::from(width));
        lines.push(Line::styled(title, style));
        if is_chosen {
            for (name, text) in &cause.lines {
                for (at, line) in wrapped(text, room).into_iter().enumerate() {
                    let name = if at == 0 { name } else { "" };
                    lines.push(Line::from(vec![
                        Span::styled(format!("   {name:<10} "), palette.faint),
                        Span::raw(line),
                    ]));
                }
            }
        }
    }
    lines
}

pub(super) fn events_heading(view: &LiveView, state: &ViewState) -> String {
    match state.scrolled.min(view.events.len()) {
        0 => "Events".to_owned(),
        below => format!("Events ({below} newer ones below)"),
    }
}

/// The last events that there is room for, the newest one last.
pub(super) fn events(
    view: &LiveView,
    state: &ViewState,
    palette: &Palette,
    width: u16,
    most: usize,
) -> Vec<Line<'static>> {
    let end = view.events.len() - state.scrolled.min(view.events.len().saturating_sub(most));
    let shown = view.events.range(end.saturating_sub(most)..end);
    let line = |LoggedEvent { time, whose, text, count }: &LoggedEvent| {
        let times = if *count > 1 { format!(" ({count} times)") } else { String::new() };
        let room = usize::from(width).saturating_sub(29 + columns(&times));
        let begin = format!(" {time:>13} {whose:<12} ");
        Line::from(vec![Span::styled(begin, palette.faint), Span::raw(cut(text, room)), Span::raw(times)])
    };
    shown.map(line).collect()
}

/// The keys.
pub(super) fn help(mode: ViewMode) -> Vec<Line<'static>> {
    let ends: &[&str] = match mode {
        ViewMode::Watch => &["q, Esc, Ctrl-C  quit; the migration goes on", "Nothing is changed in either QEMU."],
        ViewMode::Migrate => &[
            "q, Esc          leave the view; the migration goes on, with bars",
            "Ctrl-C          cancel the migration; the guest stays on the source",
        ],
    };
    let lines = [
        "?               this help; any key closes it",
        "p, space        pause the view; what is watched goes on",
        "Tab             go between what is wrong and the events",
        "up, down, j, k  choose a cause, or scroll the events",
        "PgUp, PgDn      the same by ten; Home, End: to the end",
        "Ctrl-L          draw anew",
    ];
    lines.iter().chain(ends).map(|line| Line::raw(format!(" {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_their_room() {
        assert_eq!((fit("abc", 5).as_str(), fit("abcdef", 4).as_str(), cut("abc", 0).as_str()), ("abc  ", "abc…", ""));
        // characters of two columns
        assert_eq!((cut("日本語", 4).as_str(), columns(&fit("日本語", 4))), ("日…", 4));
        assert_eq!(cut_front("/run/vm/source.qmp", 11), "…source.qmp");
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
        for width in 0..6 {
            assert!(wrapped("日本 abc", width).len() < 20);
        }
    }
}
