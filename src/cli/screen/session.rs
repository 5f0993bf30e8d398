//! The view while it is shown: keys in, drawings out.
//!
//! Blocks its thread, on a terminal that takes nothing for as long as the terminal does; nothing that looks at a QEMU,
//! or acts on one, may run on that thread.

use super::{
    draw::draw,
    keys::{KeyMeaning, ViewMode, ViewState},
    live_view::LiveView,
    palette::Palette,
    terminal::TerminalScreen,
};
use ratatui::crossterm::event::{self, Event};
use std::{env, io, thread, time::Duration};

/// The time that is waited for a key.
const TICK: Duration = Duration::from_millis(50);
/// The keys that are taken in before something is drawn.
const KEYS: usize = 64;
/// So many failures to read in a row are the end of a terminal.
const FAILURES: u32 = 40;

/// How the view goes on.
#[derive(Debug)]
pub(crate) enum SessionEnd {
    /// It goes on.
    None,
    /// The user leaves the view.
    Left,
    /// The user asks for the end with Ctrl-C.
    Interrupted,
    /// The terminal is gone, or somebody else has it.
    Lost(Option<io::Error>),
}

/// The view while it is shown. The terminal is given back when this is dropped.
pub(crate) struct ViewSession {
    screen: TerminalScreen,
    state: ViewState,
    palette: Palette,
    /// The view at which the user has paused.
    frozen: Option<LiveView>,
    failures: u32,
}

impl ViewSession {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// As [`TerminalScreen::enter`].
    pub(crate) fn begin(mode: ViewMode) -> io::Result<Self> {
        let no_color = env::var_os("NO_COLOR").is_some_and(|word| !word.is_empty());
        let palette = if no_color { Palette::plain() } else { Palette::coloured() };
        let (screen, state) = (TerminalScreen::enter()?, ViewState::new(mode));
        Ok(Self { screen, state, palette, frozen: None, failures: 0 })
    }

    /// The lines that the command had to say meanwhile.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.screen.notes()
    }

    /// Draws, and takes keys in for a moment.
    pub(crate) fn step(&mut self, view: &LiveView) -> SessionEnd {
        if !self.screen.is_up() {
            return SessionEnd::Lost(None);
        }
        if let Err(error) = self.draw(view) {
            return SessionEnd::Lost(Some(error));
        }
        for waited in 0..KEYS {
            match event::poll(if waited == 0 { TICK } else { Duration::ZERO }) {
                Ok(false) => break,
                Ok(true) => match event::read().map(|event| self.take(&event, view)) {
                    Ok(SessionEnd::None) => self.failures = 0,
                    Ok(end) => return end,
                    Err(error) => return self.failed(error),
                },
                Err(error) => return self.failed(error),
            }
        }
        SessionEnd::None
    }

    /// A terminal whose foreground is another program's cannot be read for a while.
    fn failed(&mut self, error: io::Error) -> SessionEnd {
        self.failures += 1;
        if self.failures > FAILURES {
            return SessionEnd::Lost(Some(error));
        }
        thread::sleep(TICK);
        SessionEnd::None
    }

    fn take(&mut self, event: &Event, view: &LiveView) -> SessionEnd {
        let Event::Key(key) = event else { return SessionEnd::None };
        let shown = self.frozen.as_ref().unwrap_or(view);
        match self.state.press(*key, shown.causes.len(), shown.events.len()) {
            KeyMeaning::Leave => return SessionEnd::Left,
            KeyMeaning::Interrupt => return SessionEnd::Interrupted,
            KeyMeaning::Suspend => {
                super::take_note("not suspended: q leaves the view");
            }
            KeyMeaning::Redraw => {
                if key.modifiers.is_empty() {
                    self.frozen = self.state.paused.then(|| self.frozen.take().unwrap_or_else(|| view.clone()));
                } else {
                    self.screen.terminal().clear().ok();
                }
            }
            KeyMeaning::Nothing => {}
        }
        SessionEnd::None
    }

    fn draw(&mut self, view: &LiveView) -> io::Result<()> {
        let (state, palette) = (&self.state, &self.palette);
        let shown = self.frozen.as_ref().unwrap_or(view);
        self.screen.terminal().draw(|frame| draw(frame, shown, state, palette)).map(drop)
    }
}
