//! The live view in a terminal: of `qferry watch`, and of `qferry migrate --tui`.
//!
//! Owns what is shown, how, and the terminal while it is shown. Two feeds fill one model: looks at both sides
//! (`watch_feed`), and the events of the engine (`engine_feed`). Drawing is a pure function of the model, of what the
//! user has chosen to see, and of the room that there is. Nothing here may reach a QEMU.

mod draw;
mod engine_feed;
mod keys;
mod live_view;
mod palette;
mod panels;
mod session;
mod terminal;
#[cfg(test)]
mod tests;
mod watch_feed;

pub(super) use engine_feed::{EngineFeed, EngineLimits};
pub(super) use keys::ViewMode;
pub(super) use session::{SessionEnd, ViewSession};
pub(super) use terminal::{refusal, take_note};
pub(super) use watch_feed::WatchFeed;
