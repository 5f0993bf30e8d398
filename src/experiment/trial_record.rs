//! A trial as a sweep's folder keeps it.
//!
//! Pure.

use super::{measures::Figures, metrics::GROWING};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A trial as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrialRecord {
    pub(crate) trial: usize,
    pub(crate) block: u32,
    pub(crate) configuration: usize,
    /// The value of each factor.
    pub(crate) levels: Vec<String>,
    /// When it ended, in milliseconds since 1970.
    pub(crate) ended_ms: u64,
    pub(crate) outcome: String,
    pub(crate) reason: Option<String>,
    /// Whether it was ended by the limit: its times are at least what they are.
    pub(crate) censored: bool,
    /// Which migration of its guest it was, counted from 1.
    pub(crate) leg: u32,
    /// When the guest stopped, in milliseconds since the begin.
    pub(crate) stop_ms: Option<f64>,
    /// Why it does not count.
    pub(crate) invalid: Vec<String>,
    pub(crate) notes: Vec<String>,
    pub(crate) figures: Figures,
}

impl TrialRecord {
    /// Whether the guest moved and the figures count.
    pub(crate) fn counts(&self) -> bool {
        self.outcome == "moved" && self.invalid.is_empty()
    }

    /// What a figure would have been at least, had the migration gone on until the guest had moved. None of one that
    /// moved its guest or never began, and of figures that do not grow with time.
    pub(crate) fn at_least(&self, figure: &str, limit: Duration) -> Option<f64> {
        let is_left = ["rolled-back", "cancelled", "stuck", "failed"].contains(&self.outcome.as_str());
        if !is_left || !self.invalid.is_empty() || !GROWING.contains(&figure) {
            return None;
        }
        let value = self.figures.get(figure).copied()?;
        // the way back began at the limit, and is no part of it
        Some(if self.censored { value.min(limit.as_secs_f64() * 1000.0) } else { value })
    }
}
