//! One migration, top to bottom.

use super::{
    Effect, Failure, Settings,
    intents::IntentLog,
    interrupt::{Bounds, unless_interrupted},
    phases::cleanup::{End, is_postcopy, undetermined},
    phases::convergence::Converge,
    record::Record,
    way_back::judge::Judge,
    way_back::reconnect::Redial,
    way_back::rollback::{LOOK, QemuPair},
    work_order::{Route, WorkOrder},
};
use crate::{
    convergence::{History, PendingRest, keep_budget},
    endpoint::Address,
    handover::{
        exchange,
        ownership::{BeforeContinue, DisksDisengaged, NotDisengaged, count_sent_pages},
        verdict::{ContKnowledge, HandoverVerdict},
    },
    memory::tuning::Throttling,
    progress::{Clock, Estimate, Ledger, Mark, Moment, Outcome, Phase, RamOutcome, Reporter, describe},
    qemu::reply::Migration,
    quantity::Bytes,
    storage::{export, mirror},
};
use qapi::qmp;
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    sync::watch,
    time::{self, Instant},
    try_join,
};

/// How much later than the user's timeout a run is given up that could not give up by itself.
const GRACE: Duration = Duration::from_secs(1);

/// How long the source may leave something unanswered while its guest is to run: it hangs as the guest's disks do then.
const STALLS: Duration = Duration::from_secs(10);

/// The parts of the switchover's time that may have passed when the source is taken to hang, when the mirrors must have ended
/// and the guest been passed on, and when it must have started on the destination. What is left after each is for the way back.
const HANGS: f64 = 0.25;
const SETTLED: f64 = 0.35;
const DISENGAGED: f64 = 0.4;
const ARRIVED: f64 = 0.45;
const STARTED: f64 = 0.55;

/// What a run works with.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) report: Reporter,
    /// Turns true, or closes, when the user cancels.
    pub(crate) cancel: watch::Receiver<bool>,
    /// When the whole began, for the timeout.
    pub(crate) began: Instant,
    /// Where a monitor that closed may be dialled again: not where the embedder made the connection.
    pub(crate) redial: Redial,
}

/// What has come of a run so far.
pub(crate) struct Attempt {
    pub(crate) log: IntentLog,
    pub(crate) ledger: Ledger,
    pub(crate) ram: RamOutcome,
    /// The journal says that the guest may have been passed on.
    pub(crate) given: bool,
    /// What allows the source to be resumed; gone once `migrate-continue` was sent.
    pub(crate) before_continue: Option<BeforeContinue>,
    /// The stop by which its owner has paused the guest while RAM was sent.
    pub(crate) paused: Option<Moment>,
    /// The guest's last RESUME before it was asked, for the last time before RAM was sent, whether it runs.
    pub(crate) resumed_before: Option<Moment>,
    /// Whether it stood still when it was asked, and its owner is known to have resumed it since.
    pub(crate) resumed: bool,
    /// The source's events were not followed all the time since the guest was stopped.
    pub(crate) unfollowed: bool,
    pub(crate) copied: BTreeMap<String, u64>,
    pub(crate) downtime: Option<u64>,
    pub(crate) leftovers: Vec<String>,
    /// What the controller knew when the guest was stopped.
    pub(crate) history: Option<History>,
    /// What was foretold before it began, where that was asked for.
    pub(crate) predicted: Option<Estimate>,
    /// With what the guest can be slowed down.
    pub(crate) throttling: Throttling,
}

impl Attempt {
    pub(crate) fn new(log: IntentLog, clock: Clock) -> Self {
        Self {
            log,
            ledger: Ledger::new(clock),
            ram: RamOutcome::default(),
            given: false,
            before_continue: None,
            paused: None,
            resumed_before: None,
            resumed: false,
            unfollowed: false,
            copied: BTreeMap::new(),
            downtime: None,
            leftovers: Vec::new(),
            history: None,
            predicted: None,
            throttling: Throttling::None,
        }
    }

    /// Notes by which stop its owner has paused the guest, or that he has resumed it.
    pub(crate) async fn note_pause(&mut self, paused: Option<Moment>) -> Result<(), Failure> {
        self.paused = paused;
        self.log.guest(paused.is_none()).await
    }

    /// Whether its owner has resumed a guest that stood still before RAM was sent. QEMU itself resumes none of those.
    pub(crate) fn has_resumed(&self, sides: &QemuPair) -> bool {
        !sides.was_running && (self.resumed || sides.source.observed().resumed != self.resumed_before)
    }

    /// Notes that he has, the first time that it is seen.
    pub(crate) async fn note_resume(&mut self) -> Result<(), Failure> {
        if std::mem::replace(&mut self.resumed, true) { Ok(()) } else { self.log.guest(true).await }
    }

    /// Whether the guest is to run, by its owner's last word. It is not where it stands still by his pause, and not by a later
    /// stop of QEMU's.
    pub(crate) fn is_to_run(&self, sides: &QemuPair) -> bool {
        let is_paused = self.paused.is_some() && self.paused == sides.source.observed().stands_since();
        (sides.was_running || self.has_resumed(sides)) && !is_paused
    }
}

impl Context {
    /// Moves the guest, or tells why not. Every phase in its order.
    pub(crate) async fn migrate(&self, mut sides: QemuPair, order: &WorkOrder, log: IntentLog) -> Outcome {
        let route = &order.route;
        let clock = match (sides.source.peer(), sides.destination.peer()) {
            (Some(_), Some(_)) => Clock::Qemu,
            _ => Clock::Engine,
        };
        let mut course = Attempt::new(log, clock);
        course.before_continue = Some(BeforeContinue::begin());
        course.predicted.clone_from(&order.predicted);
        let end = match self.carry_over(&mut sides, order, &mut course).await {
            Ok(disengaged) => {
                let handed = self.hand_over(&sides, disengaged, &mut course).await;
                if handed.is_err() {
                    course.unfollowed = self.reach_again(&mut sides).await;
                }
                self.finish(&sides, route, handed, &mut course).await
            }
            Err(failure) => {
                self.reach_again(&mut sides).await;
                if !course.given {
                    self.look_back(&mut sides, &failure, &mut course).await;
                }
                self.retreat(&sides, route, &failure, &mut course).await
            }
        };
        if let Some(stopped) = sides.source.observed().stopped {
            course.ledger.mark(Mark::Stop, stopped);
        }
        self.conclude(route, end, course).await
    }

    /// Everything up to the last point from which the way back is cheap.
    async fn carry_over(
        &self,
        sides: &mut QemuPair,
        order: &WorkOrder,
        course: &mut Attempt,
    ) -> Result<DisksDisengaged, Failure> {
        // the controller gives up in time, and says what was missing; this is for a QEMU that does not answer it
        let limit = |timeout: Duration| Some((timeout, self.began.checked_add(timeout + GRACE)?));
        let timeout = self.settings.timeout.and_then(limit);
        let bounds = Bounds { timeout, hang: Some(STALLS), ..Bounds::default() };
        let prepared = self.report.during(Phase::Prepare, self.prepare(sides, order, course));
        unless_interrupted(sides, &self.cancel, bounds, prepared).await?;
        let mut converge = Converge::new(self, order, sides, course);
        unless_interrupted(sides, &self.cancel, bounds, converge.until_memory(sides, course)).await?;
        // disks can take hours, and its owner may have paused or resumed the guest meanwhile
        (course.resumed_before, course.resumed) = (sides.source.observed().resumed, false);
        sides.look_again().await;
        course.log.guest(sides.was_running).await?;
        // from here on QEMU may stop the guest at any time, and hang before it can tell
        let hang = Some(self.settings.switchover_limit().mul_f64(HANGS).min(STALLS));
        let bounds = Bounds { hang, ..bounds };
        let stopped = unless_interrupted(sides, &self.cancel, bounds, converge.until_stopped(sides, course)).await;
        // his last word, before anything is waited for; it is noted with the guest's being given
        sides.was_running = course.is_to_run(sides);
        let (stopped, sides) = (stopped?, &*sides);
        course.history = Some(converge.history);
        let left = self.left(sides, DISENGAGED);
        let switchover = Some((left, Instant::now() + left));
        let bounds = Bounds { timeout: None, switchover, hang };
        let switchover = self.report.during(Phase::Switchover, self.disengage(sides, &order.route, stopped, course));
        unless_interrupted(sides, &self.cancel, bounds, switchover).await
    }

    /// Asks once more before the way back: what its owner has done with the guest since must not be undone by it.
    pub(crate) async fn look_back(&self, sides: &mut QemuPair, failure: &Failure, course: &mut Attempt) {
        if course.log.effects().contains(&Effect::Stopped) {
            // it stands still by our command
            sides.was_running |= course.resumed;
        } else if !failure.is_silence() && !sides.source.is_silent() {
            // whether it answers is for the way back to find
            drop(time::timeout(LOOK, sides.look_again()).await);
        }
        course.log.tell_guest(sides.was_running, &self.report).await;
    }

    /// What is left of a part of the switchover's time, counted from the guest's STOP. One that its owner paused has no time
    /// that runs out, and may have stood for hours.
    pub(crate) fn left(&self, sides: &QemuPair, part: f64) -> Duration {
        let stopped = sides.source.observed().stands_since().filter(|_| sides.was_running);
        let stood = stopped.map_or(Duration::ZERO, |stopped| stopped.elapsed());
        self.settings.switchover_limit().mul_f64(part).saturating_sub(stood)
    }

    /// When that will be over.
    fn by(&self, sides: &QemuPair, part: f64) -> Instant {
        Instant::now() + self.left(sides, part)
    }

    /// With the guest stopped: settles the mirrors and closes the exports.
    ///
    /// Nothing is asked first. That a mirror is ready and the destination alive would only foretell what the answers
    /// here prove: a mirror that was not ready does not conclude well, and a dead destination closes no export.
    async fn disengage(
        &self,
        sides: &QemuPair,
        route: &Route,
        stopped: Moment,
        course: &mut Attempt,
    ) -> Result<DisksDisengaged, Failure> {
        let QemuPair { source, destination, .. } = sides;
        // on its way from here: it takes the disk a while to keep it, and the mirrors a while to settle
        course.given = true;
        let guest = course.log.guest(sides.was_running);
        let given = course.log.write(Record::Given);
        let given = async { try_join!(guest, given) };
        if route.pairs.is_empty() {
            course.ledger.mark(Mark::PreSwitchover, stopped);
            let rest = source.ask(&qmp::query_migrate {}).await?;
            self.keep_budget(sides, stopped, rest, course)?;
            given.await?;
            return Ok(DisksDisengaged::prove(std::iter::empty(), &[], &[])?);
        }
        let settled = mirror::settle(source, &route.pairs, self.left(sides, SETTLED));
        let rest = source.ask(&qmp::query_migrate {});
        course.ledger.mark(Mark::PreSwitchover, stopped);
        course.ledger.mark(Mark::SettleSent, Moment::now());
        if let Some(last) = settled.await? {
            course.ledger.mark(Mark::MirrorsSettled, last);
        }
        let (jobs, exports) = try_join!(source.ask(&qmp::query_jobs {}), export::stop_server(destination))?;
        course.ledger.mark(Mark::ExportsGone, Moment::now());
        course.copied = jobs.0.iter().map(|job| (job.id.clone(), job.current_progress)).collect();
        let mirrors = route.pairs.iter().map(|pair| pair.names.job.as_str());
        let disengaged = DisksDisengaged::prove(mirrors, &jobs.0, &exports)?;
        given.await?;
        self.keep_budget(sides, stopped, rest.await?, course)?;
        Ok(disengaged)
    }

    /// Whether the blackout will stay within the budget. The last chance to ask: what is measured by now is the mirrors' end
    /// and how much of RAM is left.
    fn keep_budget(&self, sides: &QemuPair, stopped: Moment, rest: Migration, course: &Attempt) -> Result<(), Failure> {
        let Some(history) = course.history.as_ref().filter(|_| sides.was_running) else { return Ok(()) };
        let stood = sides.stood(stopped);
        // with postcopy the rest follows when the guest runs again
        let remaining = rest.ram.filter(|_| !course.ram.postcopy).map_or(0, |ram| ram.remaining);
        let rest = PendingRest::Memory(Bytes(remaining));
        Ok(keep_budget(&self.settings.policy, history, stood, rest).map(drop)?)
    }

    /// Passes the guest on. From here nothing interrupts but a failure, which [`Self::finish`] judges.
    async fn hand_over(
        &self,
        sides: &QemuPair,
        disengaged: DisksDisengaged,
        course: &mut Attempt,
    ) -> Result<(), HandoverFailure> {
        let QemuPair { source, destination, was_running } = sides;
        let Attempt { before_continue, ram, ledger, .. } = course;
        let handover = async {
            // it is on its way before `migrate-continue`, which does not wait for its answer
            let asked = ram.postcopy.then(|| source.ask(&qmp::query_migrate {}));
            let before = before_continue.take().ok_or(NotDisengaged::Continued);
            let before = before.map_err(|error| HandoverFailure::new(error, Some(ContKnowledge::Sent)))?;
            let (continued, without_effect) = exchange::relinquish(source, disengaged, before);
            let sent = match asked {
                Some(asked) => asked.await.ok().as_ref().and_then(count_sent_pages),
                None => None,
            };
            let arrival = tokio::select! {
                biased;
                (error, before) = without_effect => {
                    *before_continue = Some(before);
                    return Err(HandoverFailure::new(error, None));
                }
                arrival = exchange::await_arrival(source, destination, continued, self.by(sides, ARRIVED), sent) => arrival,
            };
            let arrival = arrival.map_err(|error| HandoverFailure::new(error, Some(ContKnowledge::Never)))?;
            ledger.mark(Mark::SourceCompleted, arrival.sent);
            ledger.mark(Mark::DestinationCompleted, arrival.loaded);
            // what was asked for need not have come about: QEMU completes at once where little is left
            ram.postcopy = arrival.postcopy;
            if *was_running {
                let started = exchange::start_guest(destination, arrival.proof, self.by(sides, STARTED)).await;
                let resumed = started.map_err(|error| {
                    let cont = ContKnowledge::Never.take_answer(error.is_refusal());
                    HandoverFailure::new(error, Some(cont))
                })?;
                ledger.mark(Mark::Resume, resumed);
            }
            Ok(())
        };
        self.report.during(Phase::Handover, handover).await
    }

    /// Cleans up after a guest that moved; or finds out who has it, where the handover failed.
    async fn finish(
        &self,
        sides: &QemuPair,
        route: &Route,
        handed: Result<(), HandoverFailure>,
        course: &mut Attempt,
    ) -> End {
        let Err(HandoverFailure { failure, given }) = handed else {
            return self.complete(sides, route, course).await;
        };
        self.report.warn("handover-failed", describe(&failure));
        let Some(cont) = given else {
            return self.retreat(sides, route, &failure, course).await;
        };
        let judge = Judge::begin(self, sides, route, cont, !course.unfollowed);
        self.settle(sides, route, failure, judge, course).await
    }

    /// Has it found out who has the guest after `migrate-continue`, and does what follows.
    pub(crate) async fn settle(
        &self,
        sides: &QemuPair,
        route: &Route,
        failure: Failure,
        judge: Judge<'_>,
        course: &mut Attempt,
    ) -> End {
        match judge.judge(&course.log).await {
            HandoverVerdict::OnDestination => {
                if let Some(resumed) = sides.destination.observed().resumed {
                    course.ledger.mark(Mark::Resume, resumed);
                }
                course.ram.postcopy |= is_postcopy(sides) || may_lack_pages(sides).await;
                self.complete(sides, route, course).await
            }
            // The guest is as it was already: nothing is left to resume.
            HandoverVerdict::OnSource => self.retreat(sides, route, &failure, course).await,
            HandoverVerdict::Undetermined(why) => {
                course.ram.postcopy = is_postcopy(sides);
                undetermined(&failure, why)
            }
            // what the judge was to act on itself
            verdict => undetermined(&failure, &format!("{verdict:?} did not come to an end")),
        }
    }

    /// The file of a socket in the runtime directory. A socket elsewhere is the user's, and QEMU's to remove.
    pub(crate) fn socket(&self, address: &Address) -> Option<Effect> {
        self.settings.own_socket(address).map(|path| Effect::SocketFile(path.to_owned()))
    }
}

/// A failure of the handover, and what may have been done by then.
struct HandoverFailure {
    failure: Failure,
    /// Whether `migrate-continue` may have had an effect, and what is known of `cont` then. Without, the way back is as
    /// before.
    given: Option<ContKnowledge>,
}

impl HandoverFailure {
    fn new(failure: impl Into<Failure>, given: Option<ContKnowledge>) -> Self {
        Self { failure: failure.into(), given }
    }
}

/// Whether the destination may lack pages yet, whose events another engine may have seen. A source that says nothing may
/// still have them, or have taken them with it: then the destination alone can say that it has all.
async fn may_lack_pages(sides: &QemuPair) -> bool {
    for side in [&sides.source, &sides.destination] {
        let answer = side.ask(&qmp::query_migrate {}).await;
        if let Some(status) = answer.ok().and_then(|answer| answer.status) {
            return status.is_postcopy();
        }
    }
    true
}
