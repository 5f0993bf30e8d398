//! The terminal while the view is shown: raw, and on its other screen.
//!
//! Owns the way there and the way back, which is taken once, by whoever comes first: the end of the view, or a panic.
//! What the command has to say on stderr meanwhile is kept for the view.

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use std::{
    collections::VecDeque,
    env,
    io::{self, IsTerminal, Stdout, Write},
    panic,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// The lines that wait to be shown.
const NOTES: usize = 64;

static UP: AtomicBool = AtomicBool::new(false);
static WAITING: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
static HOOK: Once = Once::new();

/// Why there is no terminal that the view could be drawn on, in words.
pub(crate) fn refusal() -> Option<String> {
    if !io::stdout().is_terminal() {
        return Some("stdout is no terminal".to_owned());
    }
    (env::var_os("TERM").is_some_and(|name| name == "dumb"))
        .then(|| "nothing can be drawn on this terminal (TERM is dumb)".to_owned())
}

/// Keeps a line for the view, where the view is shown and stderr would write over it; `false` where it is not.
pub(crate) fn take_note(line: &str) -> bool {
    let taken = UP.load(Ordering::Acquire) && io::stderr().is_terminal();
    if taken {
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() == NOTES {
            waiting.pop_front();
        }
        waiting.push_back(line.to_owned());
    }
    taken
}

/// The terminal, as long as the view is shown.
pub(crate) struct TerminalScreen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl TerminalScreen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// The terminal does not let itself be taken over; it is then as it was.
    pub(crate) fn enter() -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |panic| {
                leave();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        UP.store(true, Ordering::Release);
        let entered = execute!(io::stdout(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())))
            .and_then(|mut terminal| terminal.clear().map(|()| terminal));
        match entered {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                leave();
                Err(error)
            }
        }
    }

    /// Whether the view still has the terminal.
    pub(super) fn is_up(&self) -> bool {
        UP.load(Ordering::Acquire)
    }

    /// The terminal, to draw on.
    pub(super) fn terminal(&mut self) -> &mut Terminal<CrosstermBackend<Stdout>> {
        &mut self.terminal
    }

    /// The lines that came since the call before.
    pub(super) fn notes(&self) -> Vec<String> {
        WAITING.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

impl Drop for TerminalScreen {
    fn drop(&mut self) {
        leave();
    }
}

/// Gives the terminal back as it was, if that is not done yet, with the lines that nobody has seen.
fn leave() {
    if !UP.swap(false, Ordering::AcqRel) {
        return;
    }
    disable_raw_mode().ok();
    execute!(io::stdout(), LeaveAlternateScreen, Show).ok();
    // a panic in the lines' own place must not hang here
    if let Ok(mut waiting) = WAITING.try_lock() {
        for line in waiting.drain(..) {
            writeln!(io::stderr(), "{line}").ok();
        }
    }
}
