//! What the user has chosen to see, and the keys that change it.
//!
//! Pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// The rows of a page.
const PAGE: usize = 10;

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ViewMode {
    /// Somebody's migration.
    Watch,
    /// The engine's own.
    Migrate,
}

/// The list that the arrow keys move in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum FocusedList {
    #[default]
    Causes,
    Events,
}

/// What the user has chosen to see.
#[derive(Debug, Clone)]
pub(super) struct ViewState {
    pub(super) mode: ViewMode,
    pub(super) help: bool,
    pub(super) paused: bool,
    pub(super) focus: FocusedList,
    /// The number of the cause that is shown in full.
    pub(super) cause: usize,
    /// The number of events below the last one shown.
    pub(super) scrolled: usize,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyMeaning {
    Nothing,
    Redraw,
    /// The end of the view.
    Leave,
    /// The end of what is shown, with Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
}

impl ViewState {
    pub(super) fn new(mode: ViewMode) -> Self {
        Self { mode, help: false, paused: false, focus: FocusedList::Causes, cause: 0, scrolled: 0 }
    }

    /// Takes a key in, with so many causes and events to see.
    pub(super) fn press(&mut self, key: KeyEvent, causes: usize, events: usize) -> KeyMeaning {
        if key.kind == KeyEventKind::Release {
            return KeyMeaning::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => KeyMeaning::Interrupt,
                KeyCode::Char('z') => KeyMeaning::Suspend,
                KeyCode::Char('l') => KeyMeaning::Redraw,
                _ => KeyMeaning::Nothing,
            };
        }
        if self.help && key.code != KeyCode::Char('q') {
            // any key closes the help
            self.help = false;
            return KeyMeaning::Redraw;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return KeyMeaning::Leave,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.help = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Tab | KeyCode::BackTab => {
                self.focus = match self.focused(causes) {
                    FocusedList::Causes => FocusedList::Events,
                    FocusedList::Events => FocusedList::Causes,
                }
            }
            KeyCode::Up | KeyCode::Char('k') => self.step(-1, causes, events),
            KeyCode::Down | KeyCode::Char('j') => self.step(1, causes, events),
            KeyCode::PageUp => self.step(-(PAGE as isize), causes, events),
            KeyCode::PageDown => self.step(PAGE as isize, causes, events),
            KeyCode::Home => self.step(isize::MIN + 1, causes, events),
            KeyCode::End => self.step(isize::MAX, causes, events),
            _ => return KeyMeaning::Nothing,
        }
        KeyMeaning::Redraw
    }

    /// The list that the arrow keys move in: without causes, the events.
    pub(super) fn focused(&self, causes: usize) -> FocusedList {
        if causes == 0 { FocusedList::Events } else { self.focus }
    }

    fn step(&mut self, by: isize, causes: usize, events: usize) {
        match self.focused(causes) {
            FocusedList::Causes => self.cause = self.cause.saturating_add_signed(by).min(causes.saturating_sub(1)),
            // down is towards the newest, which is the last
            FocusedList::Events => {
                self.scrolled = self.scrolled.min(events).saturating_add_signed(-by).min(events.saturating_sub(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    #[test]
    fn keys_do_what_the_help_says() {
        let mut state = ViewState::new(ViewMode::Watch);
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(state.press(key(code), 2, 50), KeyMeaning::Leave);
        }
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(state.press(control('c'), 2, 50), KeyMeaning::Interrupt);
        assert_eq!(state.press(control('z'), 2, 50), KeyMeaning::Suspend);
        assert_eq!(state.press(key(KeyCode::Char('x')), 2, 50), KeyMeaning::Nothing);
        state.press(key(KeyCode::Char('?')), 2, 50);
        assert!(state.help);
        // closes the help, not the view
        assert_eq!(state.press(key(KeyCode::Esc), 2, 50), KeyMeaning::Redraw);
        assert!(!state.help);
        state.press(key(KeyCode::Char('p')), 2, 50);
        assert!(state.paused);
    }

    #[test]
    fn arrows_choose_a_cause_or_scroll_the_events() {
        let mut state = ViewState::new(ViewMode::Watch);
        let mut press = |code| {
            state.press(key(code), 2, 50);
            (state.cause, state.scrolled)
        };
        assert_eq!(press(KeyCode::Down), (1, 0));
        assert_eq!(press(KeyCode::Down), (1, 0));
        assert_eq!(press(KeyCode::Up), (0, 0));
        assert_eq!(press(KeyCode::Tab), (0, 0));
        assert_eq!(press(KeyCode::Up), (0, 1));
        assert_eq!(press(KeyCode::PageUp), (0, 11));
        assert_eq!(press(KeyCode::Home), (0, 49));
        assert_eq!(press(KeyCode::End), (0, 0));
        // without causes there are only events
        let mut state = ViewState::new(ViewMode::Watch);
        state.press(key(KeyCode::Up), 0, 3);
        assert_eq!(state.scrolled, 1);
    }
}
