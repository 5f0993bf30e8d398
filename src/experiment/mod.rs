//! Experiments with migrations: sweeps over their settings, measured from the guest's side.
//!
//! Owns the spec of a sweep, its trials, what they measure, and its folder of results. It must never decide anything
//! about a migration: every trial is a `qferry migrate` like anybody's, in a process of its own.

mod analysis;
mod brief_command;
mod censored;
mod command;
mod condition;
mod debug_lines;
mod engine_run;
mod event_monitor;
mod grid;
mod host;
mod joined_hosts;
mod limits;
mod link;
mod listening;
mod measures;
mod metrics;
mod migrator;
mod placeholder;
mod results;
mod run_changes;
mod sealed_disks;
mod spec;
mod spec_error;
mod started_qemu;
mod statistics;
mod tables;
mod trial;
mod trial_record;
mod tune;

pub(crate) use analysis::{ConfigurationTrials, FarTrial, SweepAnalysis};
pub(crate) use censored::{IntervalEstimate, KnownValue};
pub(crate) use command::migrate_words;
pub(crate) use condition::{
    ComparedFigure, FigureBound, FigureCondition, FigureStatistic, GoalCertainty, MetGoal, compared, meeting,
};
pub(crate) use grid::SweepPlan;
pub(crate) use link::LinkEnd;
pub(crate) use metrics::definition;
pub(crate) use results::{SweepResults, TrialSample, write_whole};
pub(crate) use spec_error::SpecError;
pub(crate) use statistics::sorted as in_order;
pub(crate) use trial::{TrialBed, TrialResult, own_program};
pub(crate) use trial_record::TrialRecord;
pub(crate) use tune::{AS_IT_STANDS, PolicyCandidate, PolicySearch, SearchRound, TRIALS, TRIALS_LEAST, bandwidth_seen};

/// Reads a sweep's spec and makes the commands of each of its combinations; their number.
///
/// # Errors
/// What is wrong with the spec, in one sentence.
pub fn read_spec(text: &str) -> Result<usize, String> {
    let plan = SweepPlan::read(text).map_err(|error| error.to_string())?;
    for configuration in &plan.configurations {
        let setup = &configuration.setup;
        // a placeholder of a command of one's own is looked at where the command is used
        command::qemu_words(setup, &command::QemuFiles::default(), "", "", true).ok();
        migrate_words(setup, None, LinkEnd::Second);
        link::shaping(&setup.link);
    }
    Ok(plan.configurations.len())
}

/// A spec with every field, its default and what it means.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");
