//! Takes up a migration whose engine died at whatever instant: finishes it, goes back, or says what a person must find out.
//!
//! A recovery decides nothing of its own. The journal says what was begun, [`crate::handover::judgement`] which side has the
//! guest, and the rest is the engine's own way back or forth. Every step of both can be taken twice, so a recovery that dies
//! can be recovered from.

use super::{
    Endpoint, Failure, Migration, Settings,
    attempt::Attempt,
    background_task::BackgroundTask,
    connection::open,
    context::{Context, Monitors},
    ending::{End, conclude, outcome, untouched},
    engine::follow_verdict,
    guest::GuestIntent,
    intents::{IntentLog, Records},
    pair::QemuPair,
    record::{GuestClaim, JournalStatus, MigrationBegin, Party, Record},
    way_back::{
        judge::Judge,
        rollback::{go_back, look_back},
    },
    work_order::Route,
};
use crate::{
    endpoint::{Address, Found, PeerPid},
    handover::{
        judgement::RecordedHandover,
        ownership::{BeforeContinue, DestinationCannotRun},
    },
    journal::{self, Journal},
    progress::{Clock, Kind, Outcome, Phase, Reporter, Side, describe},
    qemu::{Name, Process},
    qmp::Recorder,
};
use std::path::PathBuf;
use tokio::{sync::watch, time::Instant};

/// A migration that is to be taken up, and how.
#[derive(Debug)]
pub struct Recovery {
    journal: PathBuf,
    source: Option<Endpoint>,
    destination: Option<Endpoint>,
    fence_command: Option<PathBuf>,
    recorder: Option<Recorder>,
}

impl Migration {
    /// Begins to describe how the migration is taken up whose engine died; `journal` is the file that this engine wrote.
    pub fn recovery(journal: impl Into<PathBuf>) -> Recovery {
        Recovery { journal: journal.into(), source: None, destination: None, fence_command: None, recorder: None }
    }
}

impl Recovery {
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

    /// Starts the recovery on the current tokio runtime. It ends as a migration does; one that is refused has changed
    /// nothing, as where the engine that writes the journal still lives.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Migration {
        Migration(BackgroundTask::start(|report, cancel| self.run(report, cancel)))
    }

    async fn run(self, report: Reporter, cancel: watch::Receiver<bool>) -> Outcome {
        let outcome = match self.recover(&report, cancel).await {
            Ok(outcome) => outcome,
            Err(failure) => untouched(&failure, &report),
        };
        report.emit(Kind::Outcome(Box::new(outcome.clone())));
        outcome
    }

    async fn recover(self, report: &Reporter, cancel: watch::Receiver<bool>) -> Result<Outcome, Failure> {
        let (mut journal, entries) = Journal::<Record>::open(&self.journal)?;
        let status: JournalStatus = journal::fold(&entries)
            .map_err(|error| refused("journal", format!("{}: {}", self.journal.display(), describe(&error))))?;
        let Some(begun) = status.begun.clone() else {
            return Err(refused("nothing-begun", "its engine died before it had begun anything".to_owned()));
        };
        let context = Context {
            settings: settings(&begun, self.fence_command.clone()),
            report: report.clone(),
            cancel,
            began: Instant::now(),
            monitors: self.monitors(&begun),
            records: Records::default(),
        };
        let route = Route { pairs: begun.pairs.clone(), addresses: begun.addresses.clone() };
        let guest = GuestIntent::from_journal(begun.was_running);
        if let Some(ended) = status.ended.as_ref().filter(|ended| ended.is_settled()) {
            let end = End { ending: ended.outcome, runs_on: ended.runs_on, reason: ended.reason.clone() };
            let mut attempt = Attempt::new(IntentLog::default(), guest, Clock::Engine);
            attempt.leftovers.clone_from(&ended.leftovers);
            return Ok(outcome(&context, &route, end, &attempt));
        }
        let recorder = self.recorder.as_ref();
        let connected = async {
            tokio::try_join!(
                reach(Side::Source, &begun.source, self.source, recorder),
                reach(Side::Destination, &begun.destination, self.destination, recorder)
            )
        };
        let (source, destination) = report.during(Phase::Connect, connected).await?;
        journal.append(&Record::Recovering)?;
        let mut pair = QemuPair { source, destination };
        let log = IntentLog::take_up(journal, status.effects.clone());
        let mut attempt = Attempt::new(log, guest, Clock::Engine);
        let end = take_up(&context, &mut pair, &route, &begun, status.claim, &mut attempt).await;
        Ok(conclude(&context, &route, end, attempt).await)
    }

    /// Where the monitors can be dialled again, should one close during the recovery.
    fn monitors(&self, begun: &MigrationBegin) -> Monitors {
        let address = |given: &Option<Endpoint>, party: &Party| match given {
            Some(Endpoint::Address(address)) => Some(address.clone()),
            Some(Endpoint::Stream { .. }) => None,
            None => party.address.parse().ok(),
        };
        Monitors {
            source: address(&self.source, &begun.source),
            destination: address(&self.destination, &begun.destination),
            recorder: self.recorder.clone(),
        }
    }
}

/// Goes on where the journal ends.
async fn take_up(
    context: &Context,
    pair: &mut QemuPair,
    route: &Route,
    begun: &MigrationBegin,
    claim: GuestClaim,
    attempt: &mut Attempt,
) -> End {
    attempt.given = claim != GuestClaim::Source;
    let failure = Failure::EngineDied;
    let recorded = match claim {
        GuestClaim::Source => {
            attempt.before_continue = Some(BeforeContinue::begin());
            look_back(context, pair, &failure, attempt).await;
            return go_back(context, pair, route, &failure, attempt).await;
        }
        GuestClaim::Resuming => RecordedHandover::Resuming(DestinationCannotRun::of_journal()),
        GuestClaim::Given => RecordedHandover::Given { may_postcopy: begun.postcopy },
    };
    let judge = Judge::take_up(context, pair, route, attempt.guest.clone(), recorded);
    let verdict = judge.judge(&attempt.log).await;
    follow_verdict(context, pair, route, failure, verdict, attempt).await
}

/// The settings of the engine that died, as far as they matter from here on.
fn settings(begun: &MigrationBegin, fence_command: Option<PathBuf>) -> Settings {
    Settings {
        keep_source: begun.keep_source,
        runtime_dir: begun.runtime_dir.clone(),
        fence_command: fence_command.or_else(|| begun.fence_command.clone()),
        switchover_timeout: Some(begun.switchover_timeout),
        ..Settings::default()
    }
}

/// Reaches a side; a side that cannot be reached may yet be proved to have ended.
async fn reach(
    side: Side,
    party: &Party,
    endpoint: Option<Endpoint>,
    recorder: Option<&Recorder>,
) -> Result<Process, Failure> {
    let name = || Name { side, address: party.address.clone() };
    let known = match party.process.as_ref().map(crate::endpoint::Identity::find) {
        // whatever listens at the address now is another process
        Some(Found::Ended) => return Ok(Process::absent(name(), None, true).await),
        Some(Found::Alive(peer)) => Some(peer),
        Some(Found::Unknown) | None => None,
    };
    let endpoint = match endpoint {
        Some(endpoint) => endpoint,
        None => party.address.parse::<Address>().map_err(|error| unreachable_at(side, error))?.into(),
    };
    match open(side, endpoint, recorder).await {
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

fn unreachable_at(side: Side, error: crate::endpoint::AddressError) -> Failure {
    Failure::Connect { side, source: Box::new(error) }
}

fn refused(code: &'static str, message: String) -> Failure {
    Failure::Refused { code, message, on_source: false }
}
