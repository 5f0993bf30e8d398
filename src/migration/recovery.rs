//! Takes up a migration whose engine died at whatever instant: finishes it, goes back, or says what a person must
//! find out.
//!
//! A recovery decides nothing of its own. The journal says what was begun, [`crate::handover::judgement`] which side
//! has the guest, and the rest is the engine's own way back or forth. Every step of both can be taken twice, so a
//! recovery that dies can be recovered from.

use super::{
    Failure, Settings,
    attempt::Attempt,
    connection::open,
    context::{Context, Monitors},
    ending::{End, Whereabouts, after_panic, conclude, lost, outcome, panicked, untouched},
    engine::bring_to_end,
    fence_command::command_file,
    guest::GuestIntent,
    intents::{IntentLog, Records},
    pair::QemuPair,
    record::{GuestClaim, JournalStatus, MigrationBegin, Party, Record},
    running::{AfterPanic, Cancelled, EngineJob, Running, Work},
    validate::{Invalid, LONGEST, Problems},
    way_back::{judge::judge_recorded_handover, rollback::take_last_look},
    work_order::Route,
};
use crate::{
    codes::FailureCode,
    endpoint::{Address, DialError, Endpoint, PeerPid, ProcessFate},
    handover::{
        judgement::RecordedHandover,
        ownership::{BeforeContinue, DestinationCannotRun},
    },
    journal::{self, Fold, Journal},
    progress::{Ending, Event, EventKind, LedgerClock, Outcome, Phase, Reporter, Side, describe},
    qemu::{Process, QemuName},
    qmp::Recorder,
};
use std::path::PathBuf;
use tokio::time::Instant;

/// A migration that is to be taken up, and how. [`Self::start`] begins it.
#[derive(Debug, Clone)]
pub struct Recovery {
    journal: PathBuf,
    source: Option<Endpoint>,
    destination: Option<Endpoint>,
    fence_command: Option<PathBuf>,
    recorder: Option<Recorder>,
}

impl Recovery {
    pub(super) fn new(journal: PathBuf) -> Self {
        Self { journal, source: None, destination: None, fence_command: None, recorder: None }
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

    /// Fences with another executable than the journal says.
    #[must_use]
    pub fn fence_command(mut self, command: impl Into<PathBuf>) -> Self {
        self.fence_command = Some(command.into());
        self
    }

    /// Records every line of both connections.
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

    async fn recover(self, report: &Reporter, cancel: Cancelled) -> Result<Outcome, Failure> {
        let (mut journal, entries) = Journal::<Record>::open(&self.journal)?;
        let status: JournalStatus = journal::fold(&entries).map_err(|error| {
            refused(FailureCode::Journal, format!("{}: {}", self.journal.display(), describe(&error)))
        })?;
        let Some(begun) = status.begun.clone() else {
            return Err(refused(FailureCode::NothingBegun, "its engine died before it had begun anything".to_owned()));
        };
        let context = Context {
            run: begun.run.clone(),
            settings: settings(&begun, self.fence_command.clone()),
            report: report.clone(),
            cancel,
            began: Instant::now(),
            monitors: self.monitors(&begun),
            records: Records::default(),
        };
        let failure = Failure::EngineDied;
        if let Some(outcome) = settled(&context, &begun, &status) {
            return Ok(outcome);
        }
        let pair = reach_both(&context, &begun, [self.source.as_ref(), self.destination.as_ref()]).await?;
        journal.append(&Record::Recovering)?;
        let log = IntentLog::take_up(begun.run.clone(), journal, status.effects.clone());
        Ok(go_on(&context, pair, &begun, status.claim, log, failure).await)
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
            let came_to = match (outcome.outcome, &outcome.reason) {
                (Ending::Undetermined, Some(reason)) => reason.message.clone(),
                (Ending::Moved, _) => "the guest is on the destination, and nothing is left to recover".to_owned(),
                (Ending::Stuck, _) => "the guest is on the source, as before, and leftovers are named".to_owned(),
                _ => "the guest is on the source, as before, and nothing is left to recover".to_owned(),
            };
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
    let pair = reach_both(context, begun, [source.as_ref(), destination.as_ref()]).await?;
    let log = IntentLog::go_on(begun.run.clone(), &context.records, status.effects.clone(), &context.report).await;
    log.tell(Record::Recovering, &context.report).await;
    Ok(go_on(context, pair, begun, status.claim, log, Failure::Internal(panicked.to_owned())).await)
}

/// The outcome of a run that had come to an end, and left nothing to be done.
fn settled(context: &Context, begun: &MigrationBegin, status: &JournalStatus) -> Option<Outcome> {
    let ended = status.ended.as_ref().filter(|ended| ended.is_settled())?;
    let end = End { ending: ended.outcome, runs_on: ended.runs_on, reason: ended.reason.clone() };
    let mut attempt =
        Attempt::new(IntentLog::default(), GuestIntent::from_journal(begun.was_running), LedgerClock::Engine);
    attempt.leftovers.clone_from(&ended.leftovers);
    Some(outcome(context, &route(begun), end, &attempt))
}

/// Goes on with a run that another engine, or this one before its panic, began.
async fn go_on(
    context: &Context,
    pair: QemuPair,
    begun: &MigrationBegin,
    claim: GuestClaim,
    log: IntentLog,
    failure: Failure,
) -> Outcome {
    let (route, guest) = (route(begun), GuestIntent::from_journal(begun.was_running));
    let mut attempt = Attempt::new(log, guest, LedgerClock::Engine);
    attempt.destination_followed = false;
    let end = take_up(context, &pair, &route, begun, claim, failure, &mut attempt).await;
    conclude(context, &route, end, attempt).await
}

fn route(begun: &MigrationBegin) -> Route {
    Route { pairs: begun.pairs.clone(), addresses: begun.addresses.clone() }
}

/// Reaches both sides where they are known to be, and else where the journal says they were.
async fn reach_both(
    context: &Context,
    begun: &MigrationBegin,
    known: [Option<&Endpoint>; 2],
) -> Result<QemuPair, Failure> {
    let recorder = context.monitors.recorder.as_ref();
    let [source, destination] = known;
    let connected = async {
        tokio::try_join!(
            reach(Side::Source, &begun.source, source, recorder),
            reach(Side::Destination, &begun.destination, destination, recorder)
        )
    };
    let (source, destination) = context.report.during(Phase::Connect, connected).await?;
    Ok(QemuPair { source, destination })
}

/// Goes on where the journal ends.
async fn take_up(
    context: &Context,
    pair: &QemuPair,
    route: &Route,
    begun: &MigrationBegin,
    claim: GuestClaim,
    failure: Failure,
    attempt: &mut Attempt,
) -> End {
    attempt.given = claim != GuestClaim::Source;
    let recorded = match claim {
        GuestClaim::Source => None,
        GuestClaim::Resuming => Some(RecordedHandover::Resuming(DestinationCannotRun::of_journal())),
        GuestClaim::Given => Some(RecordedHandover::Given { may_postcopy: begun.postcopy }),
    };
    let whereabouts = match recorded {
        Some(recorded) => judge_recorded_handover(context, pair, route, failure, recorded, attempt).await,
        None => {
            attempt.before_continue = Some(BeforeContinue::begin());
            take_last_look(context, &pair.source, &failure, attempt).await;
            Whereabouts::OnSource(failure)
        }
    };
    bring_to_end(context, pair, route, whereabouts, attempt).await
}

/// The settings of the engine that died, as far as they matter from here on.
fn settings(begun: &MigrationBegin, fence_command: Option<PathBuf>) -> Settings {
    Settings {
        keep_source: begun.keep_source,
        runtime_dir: begun.runtime_dir.clone(),
        fence_command: fence_command.or_else(|| begun.fence_command.clone()),
        // a journal may hold a time that no clock can add
        switchover_timeout: Some(begun.switchover_timeout.min(LONGEST)),
        ..Settings::default()
    }
}

/// Reaches a side; a side that cannot be reached may yet be proved to have ended.
async fn reach(
    side: Side,
    party: &Party,
    endpoint: Option<&Endpoint>,
    recorder: Option<&Recorder>,
) -> Result<Process, Failure> {
    let name = || QemuName { side, address: party.address.clone() };
    let known = match party.process.as_ref().map(crate::endpoint::ProcessIdentity::find) {
        // whatever listens at the address now is another process
        Some(ProcessFate::Ended) => return Ok(Process::absent(name(), None, true).await),
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
        Ok(process) if is_another(&process, known.as_ref()) => Ok(Process::absent(name(), known, false).await),
        Ok(process) => Ok(process),
        Err(failure) => {
            tracing::warn!(error = describe(&failure), "the side cannot be asked");
            Ok(Process::absent(name(), known, false).await)
        }
    }
}

/// Whether the process that listens at the address now is not the process that the journal knows.
fn is_another(process: &Process, known: Option<&PeerPid>) -> bool {
    known.zip(process.peer()).is_some_and(|(known, peer)| known.pid() != peer.pid())
}

fn refused(code: FailureCode, message: String) -> Failure {
    Failure::Refused { code, message, on_source: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_id::RunId;
    use std::time::Duration;

    #[test]
    fn a_time_that_no_clock_can_add_is_cut_when_a_journal_is_read() {
        let party = || Party { address: "unix:/q".to_owned(), process: None };
        let begun = MigrationBegin {
            run: RunId::default(),
            source: party(),
            destination: party(),
            was_running: true,
            pairs: Vec::new(),
            addresses: ("unix:/n".parse().unwrap(), "unix:/r".parse().unwrap()),
            postcopy: false,
            keep_source: false,
            runtime_dir: PathBuf::from("/r"),
            fence_command: None,
            switchover_timeout: Duration::MAX,
        };
        let limit = settings(&begun, None).switchover_limit();
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
            let party = Party { address, process: peer.identity() };
            let process = reach(Side::Source, &party, None, None).await.unwrap();
            assert_eq!(process.peer().map(PeerPid::pid), child.id().filter(|_| is_qemu), "{}", program.display());
        }
    }
}
