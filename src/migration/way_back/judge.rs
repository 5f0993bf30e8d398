//! Finds out who has the guest after a handover that failed, and brings about what is proved to be safe.
//!
//! The decisions are [`verdict`]'s. It must never act on one side while the other is not proved to be out of the way.

use crate::migration::{
    engine::Context, intents::IntentLog, record::Record, way_back::rollback::QemuPair, work_order::Route,
};
use crate::{
    handover::{
        exchange,
        ownership::DestinationCannotRun,
        verdict::{self, Facts, Fences, Seen, Start, Verdict},
    },
    memory::precopy,
    progress::describe,
    qemu::{
        Observed, Process, ProcessError,
        reply::{MigrationStatus, RunState},
    },
};
use qapi::qmp;
use std::{future::pending, time::Duration};
use tokio::{
    time::{Instant, sleep, timeout},
    try_join,
};

/// How long a source whose migration failed may take to say so and to resume.
const AFTERMATH: Duration = Duration::from_secs(1);
/// The least time that a judgement gets: as much as one that comes late needs to look at both sides and do one thing.
const LEAST: Duration = Duration::from_secs(4);
/// How often the verdict is looked for again: each round does one thing, and five are the most that any case needs (the
/// destination is told to quit, then fenced, the source freed, its migration cancelled, its guest resumed).
const ROUNDS: u32 = 8;
/// What a person must find out where the time was over.
const LATE: &str = "the time for the switchover was over before it was proved who has the guest: ask both with query-status \
     before you send cont to one, or run qferry recover";

/// What a verdict is found with.
pub(crate) struct Judge<'a> {
    engine: &'a Context,
    sides: &'a QemuPair,
    route: &'a Route,
    start: Start,
    /// The source's events have been followed since the guest was stopped, or since it was seen not to run.
    followed: bool,
    /// It was told to quit and did, or was fenced: whatever is at its address runs nothing of this guest.
    ended: Ended,
    /// The journal says that the source is about to go on.
    resuming: bool,
    /// What took the destination out of the way, where it was this.
    by: Option<DestinationCannotRun>,
    /// What can still be fenced.
    fences: Fences,
}

/// The sides that are proved to run nothing any more.
#[derive(Default)]
struct Ended {
    source: bool,
    destination: bool,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(engine: &'a Context, sides: &'a QemuPair, route: &'a Route, start: Start) -> Self {
        let can = |process: &Process| process.peer().is_some() || engine.settings.fence_command.is_some();
        let fences = Fences { source: can(&sides.source), destination: can(&sides.destination) };
        Self { engine, sides, route, start, followed: true, ended: Ended::default(), resuming: false, by: None, fences }
    }

    /// For an engine that takes up what another one began: nobody has followed the events.
    pub(crate) fn unfollowed(mut self) -> Self {
        self.followed = false;
        self
    }

    /// The journal says that the destination was proved unable to run the guest.
    pub(crate) fn destination_ended(mut self) -> Self {
        (self.ended.destination, self.resuming) = (true, true);
        self
    }

    /// Finds out who has the guest, and brings about what is proved to be safe, for as long as the switchover may take.
    pub(crate) async fn judge(mut self, log: &IntentLog) -> Verdict {
        let over = Instant::now() + self.engine.left(self.sides, 1.0).max(LEAST);
        settle_down(&self.sides.source, self.sides.was_running).await;
        for _ in 0..ROUNDS {
            let left = over.saturating_duration_since(Instant::now());
            match timeout(left, self.round(log)).await {
                Ok(verdict @ (Verdict::OnDestination | Verdict::OnSource | Verdict::Undetermined(_))) => {
                    return verdict;
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Verdict::Undetermined(LATE)
    }

    /// Looks at both sides once, and does what follows.
    async fn round(&mut self, log: &IntentLog) -> Verdict {
        let QemuPair { source, destination, was_running } = self.sides;
        let report = &self.engine.report;
        let (here, there) = tokio::join!(look(source, self.ended.source), look(destination, self.ended.destination));
        self.followed |= matches!(&here, Seen::Answers { run, .. } if *run != RunState::Running);
        // what it does behind a monitor that is closed, no event tells
        self.followed &= here != Seen::Silent || !source.is_gone();
        let facts = Facts {
            source: here,
            destination: there,
            start: self.start,
            was_running: *was_running,
            source_resumed: !self.followed || gave_up(&source.observed()),
            fences: self.fences,
        };
        let verdict = verdict::decide(&facts);
        self.start = facts.start();
        report.action("judge-handover", format!("{facts:?}: {verdict:?}"));
        if let Err(error) = self.bring_about(verdict, &facts.source, log).await {
            report.warn("handover-failed", describe(&error));
        }
        verdict
    }

    async fn bring_about(&mut self, verdict: Verdict, source_seen: &Seen, log: &IntentLog) -> Result<(), ProcessError> {
        let QemuPair { source, destination, .. } = self.sides;
        match verdict {
            Verdict::OnDestination | Verdict::OnSource | Verdict::Undetermined(_) => {}
            Verdict::QuitDestination => {
                // one that freezes now is fenced in the next round
                match timeout(AFTERMATH, destination.act(&qmp::quit {})).await {
                    // it runs no guest any more, even before it is gone
                    Ok(Ok(())) => (self.ended.destination, self.by) = (true, Some(DestinationCannotRun::Quit)),
                    _ => self.ended.destination = destination.proved_dead(AFTERMATH).await,
                }
            }
            Verdict::ResumeSource => {
                self.note_resuming(log).await;
                exchange::resume_source(source, self.by.unwrap_or(DestinationCannotRun::Dead)).await?;
            }
            Verdict::CancelMigration => {
                self.note_resuming(log).await;
                precopy::cancel(source).await?;
            }
            Verdict::StartDestination => {
                let arrived = match source_seen {
                    Seen::Dead => exchange::outlived(source, self.ended.source, AFTERMATH).await,
                    _ => exchange::settled(source, destination).await?,
                };
                if let Some(arrived) = arrived {
                    let deadline = self.engine.left(self.sides, 1.0).max(LEAST);
                    let done = exchange::start_guest(destination, arrived, Instant::now() + deadline).await;
                    self.start = self.start.told(done.as_ref().is_err_and(ProcessError::is_refusal));
                    done?;
                }
            }
            Verdict::FenceDestination => {
                self.fences.destination = false;
                self.ended.destination = self
                    .engine
                    .fence(destination, "it does not answer, and must not run the guest that the source takes back")
                    .await;
                if self.ended.destination {
                    self.by = Some(DestinationCannotRun::Fenced);
                    // at once: should the time be over now, another engine goes on from here
                    self.note_resuming(log).await;
                }
            }
            Verdict::FenceSource => {
                self.fences.source = false;
                self.ended.source = self
                    .engine
                    .fence(source, "it does not answer, and must not run the guest that the destination has")
                    .await;
            }
            Verdict::FreeSource => {
                self.note_resuming(log).await;
                self.engine.yank(source, self.route).await;
            }
        }
        Ok(())
    }

    /// Notes, once, that the destination is out of the way for good and the source is about to go on: another engine would
    /// not know of the proof otherwise.
    async fn note_resuming(&mut self, log: &IntentLog) {
        if !std::mem::replace(&mut self.resuming, true) {
            log.tell(Record::Resuming, &self.engine.report).await;
        }
    }
}

/// Gives a source whose migration fails the time to say so, and to resume the guest by itself.
async fn settle_down(source: &Process, was_running: bool) {
    let told = source.until("end of the migration", AFTERMATH, |seen| {
        let over = seen.migration.keys().find(|status| status.is_over())?;
        (*over == MigrationStatus::Completed || seen.runs_again() || !was_running).then_some(())
    });
    if let Err(error) = told.await {
        tracing::debug!(%error, "judging all the same");
    }
}

/// Whether a source has given its migration up after it stopped the guest: QEMU then resumes it by itself.
fn gave_up(seen: &Observed) -> bool {
    seen.runs_again() || [MigrationStatus::Failed, MigrationStatus::Cancelled].iter().any(|s| seen.entered(s).is_some())
}

/// What one side is seen to be.
async fn look(process: &Process, ended: bool) -> Seen {
    if ended {
        return Seen::Dead;
    }
    let asked = async {
        match try_join!(process.ask(&qmp::query_status {}), process.ask(&qmp::query_migrate {})) {
            Ok(answers) => answers,
            Err(_) => pending().await,
        }
    };
    let died = async {
        if !process.proved_dead(AFTERMATH).await {
            pending().await
        }
    };
    let hangs = async { tokio::join!(process.answers_out_of_band(), sleep(AFTERMATH)).0 };
    // all at once, for a guest may stand still
    tokio::select! {
        biased;
        (status, migration) = asked => {
            Seen::Answers { run: status.status, migration: migration.status.unwrap_or(MigrationStatus::None) }
        }
        () = died => Seen::Dead,
        hangs = hangs => if hangs { Seen::Hung } else { Seen::Silent },
    }
}
