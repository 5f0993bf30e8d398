//! The styles of the view: the terminal's own colours, or none.
//!
//! Pure.

use ratatui::style::{Color, Modifier, Style};

/// The styles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Palette {
    pub(super) title: Style,
    pub(super) heading: Style,
    pub(super) good: Style,
    pub(super) bad: Style,
    pub(super) bar: Style,
    pub(super) faint: Style,
    pub(super) chosen: Style,
}

impl Palette {
    /// Without colours.
    pub(super) fn plain() -> Self {
        let (none, bold) = (Style::new(), Style::new().add_modifier(Modifier::BOLD));
        let chosen = Style::new().add_modifier(Modifier::REVERSED);
        Self { title: chosen, heading: bold, good: bold, bad: bold, bar: none, faint: none, chosen }
    }

    /// With the terminal's own eight colours, which its user has chosen to be readable.
    pub(super) fn coloured() -> Self {
        let plain = Self::plain();
        Self {
            heading: plain.heading.fg(Color::Cyan),
            good: plain.good.fg(Color::Green),
            bad: plain.bad.fg(Color::Red),
            bar: Style::new().fg(Color::Green),
            faint: Style::new().add_modifier(Modifier::DIM),
            ..plain
        }
    }
}
