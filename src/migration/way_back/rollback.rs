//! The way back: undoes the effects in reverse, the guest first.
//!
//! The way back is open before `migrate-continue`, or once it is decided that the guest stays on the source. Every
//! step is idempotent, for an effect that was noted may not have come about. Nothing is touched that the engine did
//! not make, and what cannot be undone is named.

use super::{
    another_try::{self, BOTH_GONE, DestinationAfterwards, HAS_DISK, SpentPaths, before_another_try},
    destination::{self, DestinationEnd, DestinationPast, LOOK},
    fence::{free, yank},
    guest_end::end_with_source,
    leftovers::{hidden_leftover, left_behind, migration_under_way, remove_socket, unproved_migration},
    reconnect::reach_again,
    settings::restore_settings,
    source::{LastLook, ResumePermit, came_by_it, ends_on_source, settle_source},
    undo::{allow_refusal, free_mirror, remove_mirror},
};
use crate::{
    handover::{
        ownership::{BeforeContinue, DestinationCannotRun},
        way_back::{DestinationFate, LeaveReason, MigrationCourse, WayBackGround},
    },
    memory::precopy,
    migration::{
        Effect, Failure,
        attempt::Attempt,
        context::Context,
        deadlines,
        ending::{End, Whereabouts},
        guest::GuestIntent,
        intents::IntentLog,
        pair::QemuPair,
        record::Record,
        work_order::Route,
    },
    progress::{Ending, LedgerMark, Phase, Reporter, RunsOn, Side, describe},
    qemu::{Process, ProcessError, reply::MigrationStatus, trace_events},
    storage::{
        mirror::{export, pivot, write_histogram},
        model::layout::DiskPair,
    },
};
use qapi::qmp;
use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};
use tokio::time::timeout;

/// How often a step is tried that failed without having been refused: each is idempotent.
const TRIES: u32 = 2;

/// What the undoing came to.
#[derive(Debug, Default)]
struct RolledBack {
    /// Whether the guest was seen on the source, as it is to be.
    as_before: bool,
    /// What the engine made and is still there, and why.
    leftovers: Vec<String>,
    /// The destination, which never ran the guest, was put out of the way.
    ended_destination: bool,
    /// The destination has a disk that the guest on the source uses.
    has_disk: bool,
}

/// Prepares the way back from before the handover: reaches a side again whose monitor closed, and asks once more how
/// the guest stands. What the guest's owner has done with it since must not be undone by the way back.
pub(crate) async fn look_back(
    context: &Context,
    pair: &mut QemuPair,
    failure: Failure,
    attempt: &mut Attempt,
) -> Whereabouts {
    reach_again(context, pair).await;
    if !attempt.given {
        take_last_look(context, &pair.source, &failure, attempt).await;
    }
    Whereabouts::OnSource(failure)
}

/// Asks how the guest stands, unless it stands by the engine's own command or its source does not answer.
pub(crate) async fn take_last_look(context: &Context, source: &Process, failure: &Failure, attempt: &mut Attempt) {
    let stands_by_command = attempt.log.effects().contains(&Effect::Stopped);
    if !stands_by_command && !failure.is_silence() && !source.is_silent() {
        // a question without an answer is ignored: the commands of the way back show whether the source answers
        if let Ok(Ok(answer)) = timeout(LOOK, source.ask(&qmp::query_status {})).await {
            attempt.guest.look(&answer.status);
        }
    }
    attempt.journal_guest_on_the_way_back(&context.report).await;
}

/// Goes back to the source. Before `migrate-continue` the guest is resumed there; after it, a verdict has found the
/// guest on the source as it is to be.
pub(crate) async fn go_back(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    failure: &Failure,
    attempt: &mut Attempt,
) -> End {
    let report = &context.report;
    let before_continue = attempt.before_continue.take();
    let may_resume = before_continue.as_ref().map(BeforeContinue::destination_cannot_run);
    let ground = if may_resume.is_some() { WayBackGround::NotGiven } else { WayBackGround::OnSource };
    let listened = attempt.log.effects().contains(&Effect::Incoming);
    let past = DestinationPast { ground, followed: attempt.destination_followed, listened };
    if pair.source.is_gone() {
        if let Some(end) = end_with_source(pair, past, attempt, report).await {
            return end;
        }
    }
    // postcopy that was asked for need not have come about
    attempt.ram.postcopy = pair.has_been_in_postcopy();
    let mut reason = failure.reason();
    report.action("roll-back", reason.message.clone());
    if attempt.given && may_resume.is_some() {
        attempt.log.tell(Record::Kept, report).await;
    }
    // a source that does not answer now would hold up the way back, too: the guest's own return waits for its disks
    if may_resume.is_some()
        && (failure.is_silence()
            || pair.source.is_silent()
            || pair.source.has_left_unanswered(deadlines::patience(context)).await)
    {
        match attempt.destination_followed {
            true => free(context, pair, route).await,
            // a destination that nobody has followed is not ended for its silence
            false => yank(context, &pair.source, route).await,
        }
    }
    let effects = attempt.log.effects();
    let listened = effects.contains(&Effect::Incoming) && !pair.destination.has_ended().await;
    let mirrored = attempt.mirrored_before || effects.iter().any(|effect| matches!(effect, Effect::Mirror(_)));
    let way_back = WayBack {
        pair,
        mirrored: &route.pairs,
        past,
        may_resume,
        stopped_by_engine: effects.contains(&Effect::Stopped),
        ended_destination: AtomicBool::new(false),
        pivoted: OnceLock::new(),
        report,
    };
    let RolledBack { as_before, leftovers, ended_destination, has_disk } =
        report.during(Phase::Cleanup, way_back.roll_back(attempt)).await;
    if !as_before && pair.source.is_gone() {
        // The source has ended on the way back, and has taken the guest with it.
        let past = DestinationPast { listened: past.listened && !ended_destination, ..past };
        if let Some(end) = end_with_source(pair, past, attempt, report).await {
            return end;
        }
    }
    attempt.leftovers.extend(leftovers);
    let seen = pair.source.observed();
    if let Some(resumed) = seen.resumed.filter(|_| seen.runs_again()) {
        // the guest stopped and resumed on the source: that pause is a blackout, too
        attempt.ledger.mark(LedgerMark::Resume, resumed);
    }
    let ending = match (as_before, failure) {
        (true, Failure::RuntimeDir { .. }) => Ending::Refused,
        (false, _) => Ending::Undetermined,
        (true, _) if !attempt.leftovers.is_empty() => Ending::Stuck,
        (true, Failure::Cancelled) => Ending::Cancelled,
        (true, _) => Ending::RolledBack,
    };
    let holds_a_part = mirrored && ending != Ending::Undetermined;
    let is_gone = pair.destination.has_ended().await;
    let was_ended = listened && is_gone;
    let both_gone = ending == Ending::Undetermined && is_gone && pair.source.has_ended().await;
    match has_disk {
        true => reason.message.push_str(HAS_DISK),
        false if both_gone => reason.message.push_str(BOTH_GONE),
        false => {
            let spent = if holds_a_part { another_try::spend(context, &attempt.images) } else { SpentPaths::default() };
            let is_whole = spent.recorded && spent.paths.len() == route.pairs.len() && attempt.leftovers.is_empty();
            let destination = DestinationAfterwards::of(was_ended, is_gone, is_whole && !past.listened);
            reason.message.push_str(&before_another_try(holds_a_part, destination, &spent.paths));
            attempt.another_try = destination.needs(holds_a_part, spent.paths).filter(|_| as_before);
        }
    }
    let runs_on = if as_before { RunsOn::Source } else { RunsOn::Unknown };
    End { ending, runs_on, reason: Some(reason) }
}

/// What the undoing of the effects rests on.
struct WayBack<'a> {
    pair: &'a QemuPair,
    mirrored: &'a [DiskPair],
    past: DestinationPast,
    /// What allows the source to be resumed; `None` where a verdict has found the guest on the source as it is to be.
    may_resume: Option<&'a DestinationCannotRun>,
    stopped_by_engine: bool,
    /// The destination was put out of the way.
    ended_destination: AtomicBool,
    /// The disks that the guest has on the destination by now, in words, once there are any.
    pivoted: OnceLock<Vec<String>>,
    report: &'a Reporter,
}

/// What became of one step of the way back.
enum Undone {
    Done,
    Failed(ProcessError),
    /// What the engine made is left alone.
    Left(LeaveReason),
    /// What is left, and what a person can do about it.
    Kept(String),
    /// Every further step would take a disk from the guest: everything is left as it is.
    Halted(String),
    /// The migration went on without this engine's `migrate-continue`: somebody else hands the guest over, and may
    /// run it.
    TakenOver(&'static str),
}

impl From<Result<(), ProcessError>> for Undone {
    fn from(result: Result<(), ProcessError>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Done)
    }
}

impl WayBack<'_> {
    /// Undoes every effect that the log has.
    async fn roll_back(&self, attempt: &mut Attempt) -> RolledBack {
        let QemuPair { source, destination } = self.pair;
        let report = self.report;
        let (mut leftovers, mut unproved) = (Vec::new(), None);
        let effects = attempt.log.effects().to_vec();
        for effect in effects.iter().rev() {
            let mut undone = Undone::Done;
            for _ in 0..TRIES {
                undone = self.undo(&mut attempt.guest, &attempt.log, effect, &mut leftovers).await;
                match &undone {
                    Undone::Failed(error) if !error.is_refusal() && !self.pair.side(effect.traits().side).is_gone() => {
                    }
                    _ => break,
                }
            }
            attempt.journal_guest_on_the_way_back(report).await;
            match undone {
                Undone::Done => attempt.log.undone(effect, report).await,
                Undone::Failed(error) => {
                    leftovers.extend(hidden_leftover(self.pair, effect, &error));
                    report.warn("not-undone", describe(&error));
                }
                Undone::Left(reason) => {
                    let (name, why) = (destination.name(), reason.describe());
                    leftovers.push(format!("{name}: an incoming migration ({why})"));
                    report.warn("not-undone", format!("{name} is left alone: {why}"));
                }
                Undone::Kept(words) => {
                    report.warn("not-undone", words.clone());
                    match effect {
                        Effect::Migrate => unproved = Some(words),
                        _ => leftovers.push(words),
                    }
                }
                Undone::Halted(words) => {
                    report.warn("not-undone", words.clone());
                    leftovers.push(words);
                    leftovers.extend(self.pivoted.get().into_iter().flatten().cloned());
                    leftovers.extend(left_behind(source, attempt.log.run()).await);
                    leftovers.extend(left_behind(destination, attempt.log.run()).await);
                    return RolledBack { leftovers, has_disk: true, ..RolledBack::default() };
                }
                Undone::TakenOver(why) => {
                    let message = format!("somebody else handed the guest over: {why}; everything is left as it is");
                    report.warn("taken-over", message);
                    let leftovers = left_behind(source, attempt.log.run()).await;
                    return RolledBack { leftovers, ..RolledBack::default() };
                }
            }
        }
        leftovers.extend(self.pivoted.get().into_iter().flatten().cloned());
        if unproved.is_some() && destination::is_over_soon(source).await {
            // The destination is out of the way, and this run's migration has failed with it.
            attempt.log.undone(&Effect::Migrate, report).await;
        }
        // a migration that the engine has not begun, or that was cancelled, is somebody else's
        if attempt.log.effects().contains(&Effect::Migrate) {
            leftovers.extend(migration_under_way(source).await.map(|words| unproved.unwrap_or(words)));
        }
        leftovers.extend(left_behind(source, attempt.log.run()).await);
        leftovers.extend(left_behind(destination, attempt.log.run()).await);
        let ended_destination = self.ended_destination.load(Ordering::Relaxed);
        // A destination that has ended since it was left alone may have run the guest before.
        let is_gone = destination.has_ended().await
            && destination::decide_fate(self.pair, self.past()).await == DestinationFate::AlreadyGone;
        let look = LastLook {
            stopped_by_engine: attempt.log.effects().contains(&Effect::Stopped),
            is_own: self.may_resume.is_none() || effects.contains(&Effect::Migrate),
            put_aside: ended_destination,
            destination_ended: ended_destination || is_gone,
        };
        let as_before = ends_on_source(self.pair, &mut attempt.guest, look).await;
        RolledBack { as_before, leftovers, ended_destination, has_disk: self.pivoted.get().is_some() }
    }

    /// Whether the guest has a disk on the destination by now. What the source does not answer is not known, and then
    /// the way back goes on.
    async fn has_disk_on_destination(&self) -> bool {
        if self.pivoted.get().is_none() && !self.mirrored.is_empty() && !self.pair.source.is_gone() {
            let found = pivot::find(&self.pair.source, self.mirrored).await.unwrap_or_default();
            if !found.is_empty() {
                let words = found.into_iter().map(|pair| pivot::describe(pair, self.pair.source.name())).collect();
                self.pivoted.get_or_init(|| words);
            }
        }
        self.pivoted.get().is_some()
    }

    async fn undo(
        &self,
        guest: &mut GuestIntent,
        log: &IntentLog,
        effect: &Effect,
        leftovers: &mut Vec<String>,
    ) -> Undone {
        let QemuPair { source, destination } = self.pair;
        let permit = self.may_resume.map(|proof| ResumePermit {
            proof,
            destination_ended: false,
            stopped_by_engine: self.stopped_by_engine,
        });
        let result = match effect {
            Effect::Migrate => return self.end_migration(guest, permit).await,
            Effect::Stopped => match permit {
                Some(permit) => settle_source(self.pair, guest, permit).await,
                None => Ok(()),
            },
            Effect::Mirror(job) => match self.mirrored.iter().find(|pair| pair.names.job == *job) {
                Some(pair) => {
                    let removed = remove_mirror(source, pair).await;
                    if removed.as_ref().is_err_and(|error| !error.is_refusal()) {
                        // the next try removes the mirror
                        free_mirror(source, pair).await;
                    }
                    removed
                }
                // a mirror that the route does not know is found among the leftovers, by its name
                None => Ok(()),
            },
            Effect::NbdServer
            | Effect::Tuned { side: Side::Destination, .. }
            | Effect::Traced { side: Side::Destination, .. }
                if destination.has_ended().await =>
            {
                Ok(())
            }
            Effect::NbdServer if self.has_disk_on_destination().await => {
                let name = destination.name();
                return Undone::Kept(format!("{name}: the NBD server, through which the guest reaches its disk"));
            }
            Effect::NbdServer => allow_refusal(export::stop_own_server(destination, log.run()).await),
            Effect::Tuned { side, before } => {
                let is_own = *side == Side::Destination || log.effects().contains(&Effect::Migrate);
                return match restore_settings(self.pair.side(*side), before, is_own).await {
                    Ok(None) => Undone::Done,
                    Ok(Some(words)) => Undone::Kept(words),
                    Err(error) => Undone::Failed(error),
                };
            }
            Effect::SocketFile(path) if self.has_disk_on_destination().await => {
                return Undone::Kept(format!("{}: a socket of the destination", path.display()));
            }
            Effect::SocketFile(path) => {
                leftovers.extend(remove_socket(path));
                Ok(())
            }
            Effect::Incoming => return self.end_destination().await,
            Effect::Traced { side, events } => {
                allow_refusal(trace_events::switch(self.pair.side(*side), events, false).await)
            }
            Effect::WriteTimes(device) => {
                let removed = write_histogram::remove(source, device).await;
                allow_refusal(removed.map(|left| left.into_iter().for_each(|why| self.report.warn("not-undone", why))))
            }
        };
        result.into()
    }

    /// Ends the source's migration, and sees to it that the guest stands there as before.
    async fn end_migration(&self, guest: &mut GuestIntent, permit: Option<ResumePermit<'_>>) -> Undone {
        let source = &self.pair.source;
        let now = match precopy::status(source).await {
            Ok(now) => now,
            Err(error) => return Undone::Failed(error),
        };
        if permit.is_none() && guest.wants_running() {
            // A verdict has found that the guest runs on the source, which this run's migration had stopped: that
            // migration is over, and what is under way is somebody else's.
            return Undone::Done;
        }
        if permit.is_some() {
            match came_by_it(source, &now).await {
                Ok(true) => return Undone::Done,
                Ok(false) => {}
                Err(error) => return Undone::Failed(error),
            }
        }
        let is_passing = |now: &MigrationStatus| matches!(now, MigrationStatus::Completed | MigrationStatus::Device);
        let mut now = now;
        if permit.is_some() && (is_passing(&now) || !now.is_over()) {
            let course;
            (course, now) = destination::follow_course(self.pair, self.past, now).await;
            match course {
                // A migration of this run's to a destination that is dead has failed by itself meanwhile.
                _ if now.is_over() && !is_passing(&now) => {}
                MigrationCourse::ToDestination if is_passing(&now) => return self.take_back(guest, now).await,
                MigrationCourse::ToDestination => {}
                _ if is_passing(&now) => return Undone::TakenOver("the source passes it on to another QEMU"),
                MigrationCourse::NotKnownYet if !source.own_migration.is_begun() => {
                    return Undone::Kept(unproved_migration(source, &now));
                }
                // This run's migration was not begun, or is over: nothing is to be undone.
                _ => return Undone::Done,
            }
        }
        if !now.is_over() && self.ends_with_its_migration().await {
            return Undone::Halted(format!(
                "{}: RAM is sent on, for this destination's QEMU ends with its incoming migration, and has a disk of the \
                 guest: once the source waits in pre-switchover, end the other mirrors (block-job-cancel), stop the \
                 destination's NBD server, and send migrate-continue to the source and cont to the destination",
                source.name()
            ));
        }
        match (precopy::cancel_from(source, now).await, permit) {
            (Err(error), _) => Undone::Failed(error),
            // the verdict that found the guest on the source has brought about how the guest is to stand
            (Ok(_), None) => Undone::Done,
            (Ok(MigrationStatus::Completed), Some(_)) => self.take_back(guest, MigrationStatus::Completed).await,
            (Ok(status), Some(_)) if !status.is_over() => Undone::TakenOver("the migration can no longer be cancelled"),
            (Ok(_), Some(permit)) => settle_source(self.pair, guest, permit).await.into(),
        }
    }

    /// Whether a cancel of RAM would end a destination that has a disk of the guest: QEMU before 9.1 exits when its
    /// incoming migration fails.
    async fn ends_with_its_migration(&self) -> bool {
        !self.pair.destination.features().incoming_exit_on_error && self.has_disk_on_destination().await
    }

    /// Takes the guest back from a migration that has completed, or is about to, though this engine did not let the
    /// source pass the guest on: another client has switched `pause-before-switchover` off, or sent
    /// `migrate-continue`. A destination that does not run, and never did, is put out of the way, which is the proof
    /// that the source needs.
    ///
    /// The destination comes first: somebody may have sent `cont` to it beforehand, and then a destination that has
    /// everything runs by itself, while a source whose migration is cancelled resumes by itself.
    async fn take_back(&self, guest: &mut GuestIntent, now: MigrationStatus) -> Undone {
        let source = &self.pair.source;
        match self.put_destination_aside().await {
            DestinationEnd::Gone(Some(proof)) => {
                let because = "the migration completed without this engine, and the destination never ran the guest";
                self.report.action("take-back", because);
                let stopped_by_engine = self.stopped_by_engine;
                if let Err(error) = precopy::cancel_from(source, now).await {
                    return Undone::Failed(error);
                }
                let permit = ResumePermit { proof: &proof, destination_ended: true, stopped_by_engine };
                settle_source(self.pair, guest, permit).await.into()
            }
            DestinationEnd::Gone(None) => Undone::TakenOver("the destination is gone, and may have run the guest"),
            DestinationEnd::Left(reason) => Undone::TakenOver(reason.describe()),
            DestinationEnd::Failed(error) => Undone::Failed(error),
        }
    }

    /// Ends a destination that was told to listen: QEMU listens once, so it can take no other migration, and a part of
    /// a guest, or a copy that is older than what the source does, may be in it that nobody must start.
    async fn end_destination(&self) -> Undone {
        match self.put_destination_aside().await {
            DestinationEnd::Gone(_) => destination::await_end(&self.pair.destination, self.report).await.into(),
            DestinationEnd::Left(reason) if reason.is_taken_over() => Undone::TakenOver(reason.describe()),
            DestinationEnd::Left(reason) => Undone::Left(reason),
            DestinationEnd::Failed(error) => Undone::Failed(error),
        }
    }

    /// What is known of the destination by now: one that this engine has put out of the way listens no more.
    fn past(&self) -> DestinationPast {
        let was_ended = self.ended_destination.load(Ordering::Relaxed);
        DestinationPast { listened: self.past.listened && !was_ended, ..self.past }
    }

    /// Ends a destination that never ran the guest and will not be needed.
    async fn put_destination_aside(&self) -> DestinationEnd {
        if self.has_disk_on_destination().await {
            return DestinationEnd::Left(LeaveReason::HasDisk);
        }
        let fate = destination::decide_fate(self.pair, self.past()).await;
        let end = destination::carry_out(&self.pair.destination, fate, self.report).await;
        if matches!((fate, &end), (DestinationFate::Quit | DestinationFate::Fence, DestinationEnd::Gone(_))) {
            self.ended_destination.store(true, Ordering::Relaxed);
        }
        end
    }
}
