//! Takes up a migration whose engine died at whatever instant: finishes it, goes back, or says what a person must
//! find out.
//!
//! A recovery decides nothing of its own. The journal says what was begun, [`crate::handover::judgement`] which side
//! has the guest, and the rest is the engine's own way back or forth. Every step of both can be taken twice, so a
//! recovery that dies can be recovered from.

use super::{
    Effect, Failure, JournalPlace, Settings,
    attempt::Attempt,
    check::in_use,
    connection::open,
    context::{Context, Monitors},
    ending::{End, Whereabouts, after_panic, came_to, conclude, lost, outcome, panicked, undetermined, untouched},
    engine::bring_to_end,
    fence_command::command_file,
    guest::GuestIntent,
    images,
    intents::{IntentLog, Records},
    journals::{self, Parties},
    pair::QemuPair,
    participant::{self, NotProved},
    record::{GuestClaim, JournalStatus, MigrationBegin, Party, Record},
    running::{AfterPanic, Cancelled, EngineJob, Running, Work},
    validate::{Invalid, Problems},
    way_back::{judge::judge_recorded_handover, leftovers::left_behind, rollback::take_last_look},
    work_order::Route,
};
use crate::{
    codes::{FailureCode, FindingCode},
    endpoint::{Address, DialError, Endpoint, PeerPid, ProcessFate},
    handover::{
        judgement::RecordedHandover,
        ownership::{BeforeContinue, DestinationCannotRun},
    },
    journal::{self, Fold, Journal},
    progress::{Ending, Event, EventKind, LedgerClock, Outcome, Phase, Reporter, Side, describe},
    qemu::{Process, QemuName},
    qmp::Recorder,
    run_id::RunId,
    storage::mirror::{cleanup, leftover::Leftover},
};
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};

/// How long a side may take to say which runs have left something there.
const ASK: Duration = Duration::from_secs(2);

/// A migration that is to be taken up, and how. [`Self::start`] begins it.
#[derive(Debug, Clone)]
pub struct Recovery {
    journal: PathBuf,
    source: Option<Endpoint>,
    destination: Option<Endpoint>,
    fence_command: Option<PathBuf>,
    /// A user asks for this recovery, and not a migration that recovers on its way.
    is_asked_for: bool,
    fence_timeout: Option<Duration>,
    recorder: Option<Recorder>,
}

impl Recovery {
    pub(super) fn new(journal: PathBuf) -> Self {
        let (source, destination, fence_command, fence_timeout, recorder) = (None, None, None, None, None);
        Self { journal, source, destination, fence_command, is_asked_for: true, fence_timeout, recorder }
    }

    /// Reaches the source at another place than the journal says.
    #[must_use]
    pub fn source(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.source = Some(endpoint.into());
        self
    }

    /// Reaches the destination at another place than the journal says.
    #[must_use]
    pub fn destination(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.destination = Some(endpoint.into());
        self
    }

    /// Fences with another executable than the journal says. With a fence command a destination that does not answer
    /// is fenced also where all that is known is that no engine has started the guest there: recover so only if nobody
    /// else has.
    #[must_use]
    pub fn fence_command(mut self, command: impl Into<PathBuf>) -> Self {
        self.fence_command = Some(command.into());
        self
    }

    /// The recovery by a migration on its way: nobody vouches for the old destination.
    pub(super) fn on_the_way(self) -> Self {
        Self { is_asked_for: false, ..self }
    }

    /// Gives the fence command another time than the journal says.
    #[must_use]
    pub fn fence_timeout(mut self, limit: Duration) -> Self {
        self.fence_timeout = Some(limit);
        self
    }

    /// Records every line of both connections, and every event.
    #[must_use]
    pub fn transcript(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Whether every setting can be used.
    ///
    /// # Errors
    /// Every setting that cannot, with what would be right.
    pub fn validate(&self) -> Result<(), Invalid> {
        let mut problems = Problems::default();
        if let Some(command) = &self.fence_command {
            problems.require_command("fence_command", command, command_file(command));
        }
        if let Some(limit) = self.fence_timeout {
            problems.require_fence_timeout(limit);
        }
        problems.into_result()
    }

    /// Starts the recovery, on a thread and a runtime of its own. It ends as a migration does; a recovery that is
    /// refused has changed nothing, as where the engine that writes the journal still lives.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn start(self) -> Result<Running<Outcome>, Invalid> {
        self.validate()?;
        Ok(Running::on_a_thread(self))
    }

    /// Starts the recovery on the current tokio runtime; see [`Builder::start_here`](super::Builder::start_here).
    ///
    /// # Errors
    /// Settings that cannot be used, or no runtime that can.
    pub fn start_here(self) -> Result<Running<Outcome>, Invalid> {
        self.validate()?;
        Running::on_the_current_runtime(self)
    }

    /// Starts the recovery, calls `each` with every event, and blocks the thread to the end.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn run_blocking(self, each: impl FnMut(&Event)) -> Result<Outcome, Invalid> {
        Ok(self.start()?.follow_blocking(each))
    }

    pub(super) async fn recover(self, report: &Reporter, cancel: Cancelled) -> Result<Outcome, Failure> {
        let (mut journal, entries) = Journal::<Record>::open(&self.journal)?;
        let status: JournalStatus = journal::fold(&entries).map_err(|error| {
            refused(FailureCode::Journal, format!("{}: {}", self.journal.display(), describe(&error)))
        })?;
        let Some(begun) = status.begun.clone() else {
            remove_settled(&RunId::default(), &self.journal);
            return Err(refused(FailureCode::NothingBegun, "its engine died before it had begun anything".to_owned()));
        };
        let context = Context {
            run: begun.run.clone(),
            settings: begun.settings(self.fence_command.clone(), self.fence_timeout),
            report: report.clone(),
            cancel,
            began: Instant::now(),
            monitors: self.monitors(&begun),
            records: Records::of_journal(entries.into_iter().map(|entry| entry.record)),
        };
        let failure = Failure::EngineDied;
        if let Some(outcome) = settled(&context, &begun, &status) {
            remove_settled(&begun.run, &self.journal);
            return Ok(outcome);
        }
        refuse_beside_another(&begun, &self.journal).await?;
        let known = [self.source.as_ref(), self.destination.as_ref()];
        let reached = reach_both(&context, &begun, status.certain_effects(), known).await?;
        journal.append(&Record::Recovering)?;
        let log = IntentLog::take_up(begun.run.clone(), journal, status.effects.clone());
        Ok(go_on(&context, reached, &begun, &status, log, failure, self.is_asked_for).await)
    }

    /// Where the monitors can be dialled again, should one close during the recovery.
    fn monitors(&self, begun: &MigrationBegin) -> Monitors {
        let endpoint = |given: &Option<Endpoint>, party: &Party| {
            given.clone().or_else(|| party.address.parse().ok().map(Endpoint::Address))
        };
        Monitors {
            source: endpoint(&self.source, &begun.source),
            destination: endpoint(&self.destination, &begun.destination),
            recorder: self.recorder.clone(),
        }
    }
}

impl EngineJob for Recovery {
    type Ended = Outcome;

    fn recorder(&self) -> Option<Recorder> {
        self.recorder.clone()
    }

    fn work(self, report: Reporter, cancel: Cancelled) -> Work<Outcome> {
        Box::pin(async move {
            let outcome = match self.recover(&report, cancel).await {
                Ok(outcome) => outcome,
                Err(failure) => untouched(&failure, &report),
            };
            report.emit(EventKind::Outcome(Box::new(outcome.clone())));
            outcome
        })
    }

    fn after_panic(&self) -> AfterPanic<Outcome> {
        Box::new(|words, report, _| {
            Box::pin(async move {
                let message = format!("{}; recover from the journal once more", panicked(&words));
                let outcome = after_panic(message, &report);
                report.emit(EventKind::Outcome(Box::new(outcome.clone())));
                outcome
            })
        })
    }

    fn lost(begun: bool, report: &Reporter) -> Outcome {
        lost(begun, report)
    }
}

/// Removes a journal with nothing left to be done, unless the user chose its place.
fn remove_settled(run: &RunId, journal: &Path) {
    journals::remove(run, journal, !journals::is_in_state_directory(journal));
}

/// Refuses a recovery while another engine is at work with one of the two QEMUs: each step back would be one of the
/// other's migration.
async fn refuse_beside_another(begun: &MigrationBegin, journal: &Path) -> Result<(), Failure> {
    let parties = Parties { source: begun.source.clone(), destination: begun.destination.clone() };
    let (run, place) = (begun.run.clone(), JournalPlace::File(journal.to_owned()));
    let settings = Settings { journal: place, ..Settings::default() };
    let runs = spawn_blocking(move || journals::runs_of(&settings, &run, &parties)).await;
    match runs.unwrap_or_default().into_iter().find(|(known, _)| known.engine_lives) {
        Some((other, _)) => Err(in_use(&other)),
        None => Ok(()),
    }
}

/// Refuses a recovery after another run has begun with this QEMU, as the names of what is there prove: the
/// capabilities, the migration and the NBD server may be that run's by now.
async fn refuse_after_another(process: &Process, run: &RunId) -> Result<(), Failure> {
    // A side that does not answer cannot be asked, and is judged later.
    let Ok(Ok(leftovers)) = timeout(ASK, cleanup::find(process)).await else { return Ok(()) };
    match leftovers.iter().find(|left| left.run() != *run && !matches!(left, Leftover::ReadExport(_))) {
        Some(left) => {
            let message = format!(
                "{} has a {left}, of another run than the journal's, which may be at work: recover that run first, or \
                 wait for it",
                process.name()
            );
            Err(refused(FindingCode::QemuInUse.into(), message))
        }
        None => Ok(()),
    }
}

/// After a panic of the engine: judges who has the guest from the run's own records, and goes the way back where that
/// is proved to be safe. The outcome is `undetermined` all the same, since the engine is not to be trusted.
pub(super) async fn judge_after_panic(context: &Context, words: &str) -> Outcome {
    let panicked = panicked(words);
    let records = context.records.all();
    let mut status = JournalStatus::default();
    if let Some(illegal) = records.iter().find_map(|record| status.apply(record).err()) {
        return after_panic(format!("{panicked}; {illegal}: look at both sides"), &context.report);
    }
    let Some(begun) = status.begun.clone() else {
        return after_panic(
            format!(
                "{panicked}; the migration had not begun: at most an export for reading is left, which the next check names"
            ),
            &context.report,
        );
    };
    let recovered = match settled(context, &begun, &status) {
        Some(outcome) => Ok(outcome),
        None => recover_after_panic(context, &begun, &status, &panicked).await,
    };
    match recovered {
        Ok(mut outcome) => {
            let came_to = came_to(outcome.outcome, outcome.runs_on, outcome.reason.as_ref());
            let came_to = came_to.strip_prefix(&format!("{panicked}; ")).unwrap_or(&came_to);
            outcome.reason = Some(Failure::Internal(format!("{panicked}; {came_to}")).reason());
            outcome.outcome = Ending::Undetermined;
            outcome
        }
        Err(failure) => after_panic(format!("{panicked}; {}", failure.reason().message), &context.report),
    }
}

async fn recover_after_panic(
    context: &Context,
    begun: &MigrationBegin,
    status: &JournalStatus,
    panicked: &str,
) -> Result<Outcome, Failure> {
    let Monitors { source, destination, .. } = &context.monitors;
    let reached = reach_both(context, begun, status.certain_effects(), [source.as_ref(), destination.as_ref()]).await?;
    let log = IntentLog::go_on(begun.run.clone(), &context.records, status.effects.clone(), &context.report).await;
    log.tell(Record::Recovering, &context.report).await;
    Ok(go_on(context, reached, begun, status, log, Failure::Internal(panicked.to_owned()), false).await)
}

/// The outcome of a run that had come to an end, and left nothing to be done.
fn settled(context: &Context, begun: &MigrationBegin, status: &JournalStatus) -> Option<Outcome> {
    let ended = status.ended.as_ref().filter(|ended| ended.is_settled())?;
    let end = End { ending: ended.outcome, runs_on: ended.runs_on, reason: ended.reason.clone() };
    let mut attempt =
        Attempt::new(IntentLog::default(), GuestIntent::from_journal(begun.was_running), LedgerClock::Engine);
    attempt.leftovers.clone_from(&ended.leftovers);
    attempt.another_try.clone_from(&ended.another_try);
    Some(outcome(context, &route(begun), end, &attempt))
}

/// Goes on with a run that another engine, or this one before its panic, began. `is_asked_for`: see
/// [`judge_recorded_handover`].
async fn go_on(
    context: &Context,
    reached: ReachedPair,
    begun: &MigrationBegin,
    status: &JournalStatus,
    log: IntentLog,
    failure: Failure,
    is_asked_for: bool,
) -> Outcome {
    let ReachedPair { mut pair, others } = reached;
    let (route, guest) = (route(begun), GuestIntent::from_journal(begun.was_running));
    let mut attempt = Attempt::new(log, guest, LedgerClock::Engine);
    attempt.destination_followed = false;
    attempt.mirrored_before = status.has_mirrored;
    attempt.images = images::of_recovery(&pair, &route.pairs).await;
    let mut end = match status.claim {
        // Without the source nothing tells how the guest fares, so the destination keeps what it has of it.
        GuestClaim::Source if pair.source.was_replaced() => {
            if !pair.destination.is_absent() {
                attempt.leftovers.extend(left_behind(&pair.destination, &begun.run).await);
            }
            undetermined(&failure, SOURCE_REPLACED)
        }
        _ => take_up(context, &mut pair, &route, status, is_asked_for, failure, &mut attempt).await,
    };
    if let Some(reason) = &mut end.reason {
        others.iter().for_each(|other| reason.message.push_str(&format!("; {other}")));
    }
    conclude(context, &route, end, attempt).await
}

fn route(begun: &MigrationBegin) -> Route {
    Route { pairs: begun.pairs.clone(), addresses: begun.addresses.clone() }
}

/// What a person must find out where another QEMU answers at the source's address.
const SOURCE_REPLACED: &str = "another QEMU answers at the source's address, so nothing tells what became of the guest, \
     and nothing was done to either side: find the QEMU that had the guest, or make sure that it is gone; if neither it \
     nor the destination runs the guest, end the destination and start the guest anew from the source's disks";

/// Both sides as a recovery finds them.
struct ReachedPair {
    /// A side where another QEMU answers is as good as one that does not answer.
    pair: QemuPair,
    /// The QEMUs that answer in place of those that took part. They are left alone.
    others: Vec<OtherQemu>,
}

/// A QEMU that is not proved to be the one that took part.
struct OtherQemu {
    at: QemuName,
    why: NotProved,
}

impl fmt::Display for OtherQemu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, why: NotProved(why) } = self;
        write!(f, "{at}: the QEMU there is not proved to be the one that took part, and is left alone: {why}")
    }
}

/// Reaches both sides where they are known to be, and else where the journal says they were.
async fn reach_both(
    context: &Context,
    begun: &MigrationBegin,
    effects: &[Effect],
    known: [Option<&Endpoint>; 2],
) -> Result<ReachedPair, Failure> {
    let reach = async |side: Side, party: &Party, endpoint: Option<&Endpoint>| -> Result<_, Failure> {
        let (process, known) = reach(side, party, endpoint, context.monitors.recorder.as_ref()).await?;
        if process.is_absent() {
            return Ok((process, None));
        }
        refuse_after_another(&process, &begun.run).await?;
        let at = process.name().clone();
        match participant::prove(&process, party, known.as_ref(), &begun.pairs, effects).await {
            Ok(()) => Ok((process, None)),
            Err(why) => Ok((Process::replaced(at.clone(), known).await, Some(OtherQemu { at, why }))),
        }
    };
    let [source, destination] = known;
    let connected = async {
        tokio::try_join!(
            reach(Side::Source, &begun.source, source),
            reach(Side::Destination, &begun.destination, destination)
        )
    };
    let ((source, one), (destination, two)) = context.report.during(Phase::Connect, connected).await?;
    let others: Vec<OtherQemu> = one.into_iter().chain(two).collect();
    for other in &others {
        context.report.warn("another-qemu", other.to_string());
    }
    Ok(ReachedPair { pair: QemuPair { source, destination }, others })
}

/// Goes on where the journal ends.
async fn take_up(
    context: &Context,
    pair: &mut QemuPair,
    route: &Route,
    status: &JournalStatus,
    is_asked_for: bool,
    failure: Failure,
    attempt: &mut Attempt,
) -> End {
    attempt.given = status.claim != GuestClaim::Source;
    let recorded = match status.claim {
        GuestClaim::Source => None,
        GuestClaim::Resuming => Some(RecordedHandover::Resuming(DestinationCannotRun::of_journal())),
        GuestClaim::Given => Some(RecordedHandover::Given { cont: status.cont() }),
    };
    if status.claim == GuestClaim::Resuming && pair.destination.is_absent() {
        pair.destination.note_ended();
    }
    let whereabouts = match recorded {
        Some(recorded) => {
            judge_recorded_handover(context, pair, route, failure, (recorded, is_asked_for), attempt).await
        }
        None => {
            attempt.before_continue = Some(BeforeContinue::begin());
            take_last_look(context, &pair.source, &failure, attempt).await;
            Whereabouts::OnSource(failure)
        }
    };
    bring_to_end(context, pair, route, whereabouts, attempt).await
}

/// Reaches a side, with the process that the journal names, where that lives on this host; a side that cannot be
/// reached may yet be proved to have ended.
async fn reach(
    side: Side,
    party: &Party,
    endpoint: Option<&Endpoint>,
    recorder: Option<&Recorder>,
) -> Result<(Process, Option<PeerPid>), Failure> {
    let name = || QemuName { side, address: party.address.clone() };
    let known = match party.process.as_ref().map(crate::endpoint::ProcessIdentity::find) {
        // whatever listens at the address now is another process
        Some(ProcessFate::Ended) => return Ok((Process::absent(name(), None, true).await, None)),
        // Whatever the journal says, no process but a QEMU is ended.
        Some(ProcessFate::Alive(peer)) => Some(peer).filter(PeerPid::is_qemu),
        Some(ProcessFate::Unknown) | None => None,
    };
    let endpoint = match endpoint {
        Some(endpoint) => endpoint.clone(),
        None => match party.address.parse::<Address>() {
            Ok(address) => address.into(),
            Err(_) => {
                let source = Box::new(DialError::OnlyByConnector { name: party.address.clone(), side: side.as_str() });
                return Err(Failure::Connect { side, source });
            }
        },
    };
    match open(side, &endpoint, recorder).await {
        Ok(process) => Ok((process, known)),
        Err(failure) => {
            tracing::warn!(error = describe(&failure), "the side cannot be asked");
            Ok((Process::absent(name(), known, false).await, None))
        }
    }
}

fn refused(code: FailureCode, message: String) -> Failure {
    Failure::Refused { code, message, findings: Vec::new(), on_source: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_clock_can_add_is_cut_when_a_journal_is_read() {
        let long = Duration::MAX;
        let begun = MigrationBegin {
            fence_timeout: long,
            switchover_timeout: long,
            ..MigrationBegin::between("unix:/q", "unix:/q")
        };
        let limit = begun.settings(None, None).switchover_limit();
        assert!(Instant::now().checked_add(limit).is_some() && limit.mul_f64(1.0) == limit, "{limit:?}");
    }

    #[tokio::test]
    async fn a_process_of_a_journal_is_the_engines_to_end_only_if_it_is_a_qemu() {
        let folder = tempfile::tempdir().unwrap();
        for (program, is_qemu) in [("qemu-system-x86_64", true), ("qemu-img", false), ("vi", false)] {
            let program = folder.path().join(program);
            std::fs::copy("/bin/sleep", &program).unwrap();
            let child = tokio::process::Command::new(&program).arg("1000").kill_on_drop(true).spawn().unwrap();
            let peer = PeerPid::open(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
            let address = format!("unix:{}", folder.path().join("no-monitor").display());
            let party = Party { address, process: peer.identity(), threads: Vec::new() };
            let (process, _) = reach(Side::Source, &party, None, None).await.unwrap();
            assert_eq!(process.peer().map(PeerPid::pid), child.id().filter(|_| is_qemu), "{}", program.display());
        }
    }
}
