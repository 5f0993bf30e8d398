//! The records of a migration's journal, and the status that they come to.
//!
//! Pure. A record is written before the effect that it names, so an effect in the journal may not have come about,
//! and an effect that is not in the journal never did. The protocol fixes the order of records: a journal in another
//! order is refused.

use super::{Effect, Settings, settings::FENCE, validate::LONGEST};
use crate::{
    endpoint::{Address, ProcessIdentity},
    handover::verdict::ContKnowledge,
    journal::Fold,
    progress::{AnotherTry, Ending, Reason, RunsOn},
    run_id::RunId,
    storage::model::layout::DiskPair,
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};
use thiserror::Error;

/// One of the two QEMUs, as a recovery finds it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// The address of the monitor, as the user gave it.
    pub address: String,
    /// The process, where it is one of the engine's host.
    pub process: Option<ProcessIdentity>,
    /// The threads of its vCPUs on its host; empty in a journal of an earlier version.
    #[serde(default)]
    pub threads: Vec<i64>,
}

/// The migration that was begun, as far as a recovery needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationBegin {
    /// The run. A journal of an earlier version has none, and the names in it have no id.
    #[serde(default)]
    pub run: RunId,
    /// The QEMU that has the guest.
    pub source: Party,
    /// The QEMU that waits for the guest.
    pub destination: Party,
    /// Whether the guest is to run where the migration ends.
    pub was_running: bool,
    /// The disks that move.
    pub pairs: Vec<DiskPair>,
    /// Where the destination listens, for NBD and for RAM.
    pub addresses: (Address, Address),
    /// Whether the policy may come to postcopy.
    pub postcopy: bool,
    /// Whether the source is left stopped in place of being quit.
    pub keep_source: bool,
    /// The directory with the sockets of the run.
    pub runtime_dir: PathBuf,
    /// The executable that makes sure that a side cannot run the guest.
    pub fence_command: Option<PathBuf>,
    /// How long that executable may take.
    #[serde(default = "fence_timeout")]
    pub fence_timeout: Duration,
    /// The longest from the guest's STOP until it runs somewhere.
    pub switchover_timeout: Duration,
    /// Whether the journal has [`Record::Starting`] before any `cont` to the destination; false in a journal of an
    /// earlier version, which cannot tell whether one was sent.
    #[serde(default)]
    pub tells_start: bool,
}

fn fence_timeout() -> Duration {
    FENCE
}

impl MigrationBegin {
    /// The settings of the engine that died, as far as they matter from here on.
    pub(super) fn settings(&self, fence_command: Option<PathBuf>, fence_timeout: Option<Duration>) -> Settings {
        Settings {
            keep_source: self.keep_source,
            runtime_dir: self.runtime_dir.clone(),
            fence_command: fence_command.or_else(|| self.fence_command.clone()),
            fence_timeout: fence_timeout.unwrap_or(self.fence_timeout).min(LONGEST),
            // a journal may hold a time that no clock can add
            switchover_timeout: Some(self.switchover_timeout.min(LONGEST)),
            ..Settings::default()
        }
    }
}

/// The end of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationEnd {
    /// How the migration ended.
    pub outcome: Ending,
    /// The side that has the guest.
    pub runs_on: RunsOn,
    /// The reason why the guest did not move.
    pub reason: Option<Reason>,
    /// What the engine made and could not remove.
    pub leftovers: Vec<String>,
    /// What another try needs; `None` in a journal of an earlier version.
    #[serde(default)]
    pub another_try: Option<AnotherTry>,
}

impl MigrationEnd {
    /// Whether nothing is left for a recovery to do.
    pub fn is_settled(&self) -> bool {
        // a destination may be left that waits for a guest that has ended
        let is_left = self.outcome == Ending::Ended && !self.leftovers.is_empty();
        !matches!(self.outcome, Ending::Stuck | Ending::Undetermined) && !is_left
    }
}

/// One record of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// Both sides were looked at; nothing has been changed.
    Begun(Box<MigrationBegin>),
    /// These effects are about to be brought about.
    Effects(Vec<Effect>),
    /// This effect was refused, or has been undone.
    Undone(Effect),
    /// The guest's owner has paused or resumed it meanwhile.
    Guest {
        /// Whether the guest is to run where the migration ends.
        runs: bool,
    },
    /// `migrate-continue` is about to be sent. From here on the source is resumed only on proof that the destination
    /// cannot run the guest.
    Given,
    /// `cont` is about to be sent to the destination, once it has everything.
    Starting,
    /// No `cont` was sent to the destination, or the destination has refused each.
    NotStarted,
    /// The guest was not handed over: the switchover was stopped before `migrate-continue`.
    Kept,
    /// The destination is proved unable to run the guest, and the source is about to be resumed.
    Resuming,
    /// Another engine takes the migration up.
    Recovering,
    /// The migration has ended.
    Ended(MigrationEnd),
}

/// The side that may have the guest, as far as the journal tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GuestClaim {
    /// The source: the destination was given nothing that it could run.
    #[default]
    Source,
    /// Either side: the destination may have been given everything. [`JournalStatus::cont`] says whether the
    /// destination may have been told to run.
    Given,
    /// The source again: the destination was proved unable to run the guest.
    Resuming,
}

/// The status that a journal comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalStatus {
    /// The migration that was begun.
    pub begun: Option<MigrationBegin>,
    /// The effects that may have come about and are not undone, in order.
    pub effects: Vec<Effect>,
    /// How many effects at the end of the list the last record names: those may not have come about.
    pub unconfirmed: usize,
    /// The side that may have the guest.
    pub claim: GuestClaim,
    /// A mirror was begun at some time, whether or not that is undone by now: the destination's images may hold a part
    /// of the disks.
    pub has_mirrored: bool,
    /// `cont` may have been sent to the destination, and not been refused.
    pub may_have_started: bool,
    /// The end, if the migration has ended.
    pub ended: Option<MigrationEnd>,
}

impl JournalStatus {
    /// The effects that certainly came about, since another one was noted behind them.
    pub fn certain_effects(&self) -> &[Effect] {
        &self.effects[..self.effects.len().saturating_sub(self.unconfirmed)]
    }

    /// What the journal of a guest that was given tells of `cont` to the destination.
    pub fn cont(&self) -> ContKnowledge {
        match &self.begun {
            Some(begun) if begun.tells_start && !self.may_have_started => ContKnowledge::NotByEngine,
            // In postcopy the destination is started while the source does not say `completed` yet, so the source's
            // answers do not tell that it was not.
            Some(begun) if begun.postcopy => ContKnowledge::Sent,
            _ => ContKnowledge::Unknown,
        }
    }
}

/// A record that cannot follow what came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The journal does not begin with `begun`, or has it twice.
    #[error("a journal has one `begun`, and begins with it")]
    Begin,
    /// Something follows the end that is not a recovery.
    #[error("the migration had ended before")]
    AfterEnd,
    /// An effect follows the handover that only makes sense before it.
    #[error("the guest had been handed over before")]
    AfterGiven,
    /// The guest is handed over that no migration sends, or handed over twice.
    #[error("there was no guest to hand over")]
    Given,
    /// The guest is kept or taken back that was never handed over.
    #[error("the guest had not been handed over")]
    NotGiven,
    /// An effect is undone that the journal does not have.
    #[error("an effect is undone that had not been begun")]
    Undone,
}

impl Fold for JournalStatus {
    type Record = Record;
    type Illegal = RecordError;

    fn apply(&mut self, record: &Record) -> Result<(), RecordError> {
        if self.begun.is_none() != matches!(record, Record::Begun(_)) {
            return Err(RecordError::Begin);
        }
        if self.ended.is_some() && *record != Record::Recovering {
            return Err(RecordError::AfterEnd);
        }
        match record {
            Record::Begun(begun) => self.begun = Some((**begun).clone()),
            Record::Effects(effects) => {
                // a new channel for postcopy has a socket of its own
                let late = |effect: &Effect| matches!(effect, Effect::SocketFile(_));
                if self.claim != GuestClaim::Source && !effects.iter().all(late) {
                    return Err(RecordError::AfterGiven);
                }
                self.has_mirrored |= effects.iter().any(|effect| matches!(effect, Effect::Mirror(_)));
                self.effects.extend(effects.iter().cloned());
                self.unconfirmed = effects.len();
            }
            Record::Undone(effect) => {
                let at = self.effects.iter().rposition(|one| one == effect).ok_or(RecordError::Undone)?;
                self.effects.remove(at);
                self.unconfirmed = 0;
            }
            Record::Guest { runs } => {
                if let Some(begun) = &mut self.begun {
                    begun.was_running = *runs;
                }
            }
            Record::Given => {
                if self.claim != GuestClaim::Source || !self.effects.contains(&Effect::Migrate) {
                    return Err(RecordError::Given);
                }
                (self.claim, self.may_have_started, self.unconfirmed) = (GuestClaim::Given, false, 0);
            }
            Record::Starting | Record::NotStarted | Record::Kept | Record::Resuming
                if self.claim != GuestClaim::Given =>
            {
                return Err(RecordError::NotGiven);
            }
            Record::Starting => self.may_have_started = true,
            Record::NotStarted => self.may_have_started = false,
            Record::Kept => self.claim = GuestClaim::Source,
            Record::Resuming => self.claim = GuestClaim::Resuming,
            Record::Recovering => self.ended = None,
            Record::Ended(ended) => self.ended = Some(ended.clone()),
        }
        Ok(())
    }
}

#[cfg(test)]
impl Record {
    /// The end of a run with the guest on the source, for no reason.
    pub(super) fn ended(outcome: Ending) -> Self {
        let (runs_on, reason, leftovers, another_try) = (RunsOn::Source, None, Vec::new(), None);
        Self::Ended(MigrationEnd { outcome, runs_on, reason, leftovers, another_try })
    }
}

#[cfg(test)]
impl MigrationBegin {
    /// The begin of a run without disks between two QEMUs, of which only the addresses are known.
    pub(super) fn between(source: &str, destination: &str) -> Self {
        let party = |address: &str| Party { address: address.to_owned(), process: None, threads: Vec::new() };
        Self {
            run: RunId::default(),
            source: party(source),
            destination: party(destination),
            was_running: true,
            pairs: Vec::new(),
            addresses: ("unix:/n".parse().expect("one"), "tcp:h:1".parse().expect("one")),
            postcopy: false,
            keep_source: false,
            runtime_dir: PathBuf::from("/r"),
            fence_command: None,
            fence_timeout: FENCE,
            switchover_timeout: Duration::from_secs(10),
            tells_start: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{JournalEntry, fold},
        memory::tuning::PreviousTuning,
        progress::Side,
    };
    use proptest::prelude::*;
    use serde_json::{Map, json};

    fn begun() -> Record {
        Record::Begun(Box::new(MigrationBegin::between("unix:/a", "tcp:[::1]:2")))
    }

    fn effects(effects: &[Effect]) -> Record {
        Record::Effects(effects.to_vec())
    }

    fn socket() -> Effect {
        Effect::SocketFile(PathBuf::from("/s"))
    }

    fn status(records: &[Record]) -> Result<JournalStatus, RecordError> {
        let entries: Vec<_> =
            (1..).zip(records).map(|(n, record)| JournalEntry { n, at: 0, record: record.clone() }).collect();
        fold(&entries).map_err(|error| error.illegal)
    }

    #[test]
    fn a_journal_says_what_is_to_be_undone_and_whose_the_guest_is() {
        let sent = [begun(), effects(&[Effect::NbdServer]), effects(&[Effect::Incoming, Effect::Migrate])];
        let with = |more: &[Record]| status(&[&sent, more].concat());
        let found = with(&[]).expect("legal");
        assert_eq!(found.effects, [Effect::NbdServer, Effect::Incoming, Effect::Migrate]);
        assert_eq!((found.claim, &found.ended), (GuestClaim::Source, &None));
        assert_eq!(found.certain_effects(), [Effect::NbdServer], "the engine may have died before the last ones");
        assert_eq!(with(&[Record::Given]).expect("legal").certain_effects().len(), 3);
        for (more, claim) in [
            (vec![Record::Given], GuestClaim::Given),
            (vec![Record::Given, Record::Kept], GuestClaim::Source),
            (vec![Record::Given, Record::Kept, Record::Given], GuestClaim::Given),
            (vec![Record::Given, Record::Resuming], GuestClaim::Resuming),
            (vec![Record::Given, effects(&[socket()])], GuestClaim::Given),
            (vec![Record::Recovering, Record::Given], GuestClaim::Given),
            (vec![Record::Guest { runs: false }, Record::Given], GuestClaim::Given),
        ] {
            assert_eq!(with(&more).map(|status| status.claim), Ok(claim), "{more:?}");
        }
        let paused = with(&[Record::Guest { runs: false }]).expect("legal");
        assert!(paused.begun.is_some_and(|begun| !begun.was_running));
        let undone = with(&[Record::Undone(Effect::NbdServer)]).expect("legal");
        assert_eq!(undone.effects, [Effect::Incoming, Effect::Migrate]);
        let stuck = with(&[Record::ended(Ending::Stuck), Record::Recovering]).expect("legal");
        assert_eq!((stuck.ended, stuck.effects.len()), (None, 3));
        assert!(
            with(&[Record::ended(Ending::RolledBack)]).expect("legal").ended.is_some_and(|ended| ended.is_settled())
        );
    }

    #[test]
    fn a_journal_says_whether_the_destination_may_have_been_started() {
        use ContKnowledge::{NotByEngine, Sent, Unknown};
        let cont = |postcopy: bool, tells_start: bool, more: &[Record]| {
            let Record::Begun(begun) = begun() else { unreachable!() };
            let begun = Record::Begun(Box::new(MigrationBegin { postcopy, tells_start, ..*begun }));
            let records = [&[begun, effects(&[Effect::Migrate]), Record::Given], more].concat();
            status(&records).expect("legal").cont()
        };
        for (more, precopy, postcopy) in [
            (&[][..], NotByEngine, NotByEngine),
            (&[Record::Starting], Unknown, Sent),
            (&[Record::Starting, Record::NotStarted], NotByEngine, NotByEngine),
            (&[Record::NotStarted, Record::Recovering, Record::Starting], Unknown, Sent),
            // Another switchover begins anew.
            (&[Record::Starting, Record::Kept, Record::Given], NotByEngine, NotByEngine),
        ] {
            assert_eq!((cont(false, true, more), cont(true, true, more)), (precopy, postcopy), "{more:?}");
            // An earlier version wrote none of these records.
            assert_eq!((cont(false, false, &[]), cont(true, false, &[])), (Unknown, Sent));
        }
    }

    #[test]
    fn a_journal_of_an_earlier_version_is_read() {
        let Record::Begun(begun) = begun() else { unreachable!() };
        let mut written = serde_json::to_value(&begun).expect("written");
        let fields = written.as_object_mut().expect("an object");
        assert!(["fence_timeout", "tells_start"].iter().all(|name| fields.remove(*name).is_some()));
        for party in ["source", "destination"] {
            assert!(fields[party].as_object_mut().expect("an object").remove("threads").is_some());
        }
        let read: MigrationBegin = serde_json::from_value(written).expect("read");
        assert_eq!(read, MigrationBegin { tells_start: false, ..*begun });
    }

    #[test]
    fn what_no_engine_writes_is_refused() {
        let sent = || vec![begun(), effects(&[Effect::Migrate])];
        let then = |more: &[Record]| [sent(), more.to_vec()].concat();
        for (records, illegal) in [
            (vec![Record::Given], RecordError::Begin),
            (vec![effects(&[socket()])], RecordError::Begin),
            (vec![begun(), begun()], RecordError::Begin),
            (vec![begun(), Record::Given], RecordError::Given),
            (then(&[Record::Given, Record::Given]), RecordError::Given),
            (then(&[Record::Given, effects(&[Effect::NbdServer])]), RecordError::AfterGiven),
            (then(&[Record::Kept]), RecordError::NotGiven),
            (then(&[Record::Resuming]), RecordError::NotGiven),
            (then(&[Record::Starting]), RecordError::NotGiven),
            (then(&[Record::Given, Record::Kept, Record::NotStarted]), RecordError::NotGiven),
            (then(&[Record::Given, Record::Resuming, Record::Starting]), RecordError::NotGiven),
            (then(&[Record::Undone(Effect::Incoming)]), RecordError::Undone),
            (then(&[Record::ended(Ending::Moved), Record::Given]), RecordError::AfterEnd),
            (then(&[Record::ended(Ending::Moved), Record::ended(Ending::Moved)]), RecordError::AfterEnd),
        ] {
            assert_eq!(status(&records), Err(illegal), "{records:?}");
        }
    }

    fn effect() -> impl Strategy<Value = Effect> {
        let parameters = Map::from_iter([("downtime-limit".to_owned(), json!(300))]);
        let before = PreviousTuning { capabilities: vec![("events".to_owned(), true)], parameters };
        prop::sample::select(vec![
            Effect::Tuned { side: Side::Destination, before },
            socket(),
            Effect::NbdServer,
            Effect::Mirror("job".to_owned()),
            Effect::Stopped,
            Effect::Incoming,
            Effect::Migrate,
            Effect::Traced { side: Side::Source, events: vec!["vmstate_downtime_save".to_owned()] },
            Effect::WriteTimes("/machine/peripheral/a/virtio-backend".to_owned()),
        ])
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            Just(begun()),
            prop::collection::vec(effect(), 1..3).prop_map(Record::Effects),
            effect().prop_map(Record::Undone),
            prop::sample::select(vec![
                Record::Given,
                Record::Starting,
                Record::NotStarted,
                Record::Kept,
                Record::Resuming,
                Record::Recovering
            ]),
            prop::sample::select(vec![Record::ended(Ending::Moved), Record::ended(Ending::Undetermined)]),
        ]
    }

    proptest! {
        /// What is read is what was written, and a record that is refused changes nothing.
        #[test]
        fn records_survive_the_file(records in prop::collection::vec(record(), 0..20)) {
            let mut status = JournalStatus::default();
            for record in records {
                let text = serde_json::to_string(&record).expect("JSON");
                prop_assert_eq!(&serde_json::from_str::<Record>(&text).expect("read"), &record);
                let before = status.clone();
                if status.apply(&record).is_err() {
                    prop_assert_eq!(&status, &before);
                }
                if status.claim != GuestClaim::Source {
                    prop_assert!(status.begun.is_some());
                }
            }
        }
    }
}
