//! What the journal of a migration says, and what it comes to.
//!
//! Pure. A record is written before the effect that it names, so an effect may not have come about; what is not in the
//! journal was never done. The order of records is the protocol's: a journal that says anything else is refused.

use super::Effect;
use crate::{
    endpoint::{Address, Identity},
    journal::Fold,
    progress::{Ending, Reason, RunsOn},
    storage::model::layout::DiskPair,
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};
use thiserror::Error;

/// One of the two QEMUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Its monitor, as the user gave it.
    pub address: String,
    /// Its process, where it is one of the engine's host.
    pub process: Option<Identity>,
}

/// What was set out to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Where the guest comes from.
    pub source: Party,
    /// Where it goes.
    pub destination: Party,
    /// Whether it is to run where the migration ends.
    pub was_running: bool,
    /// The disks that move.
    pub pairs: Vec<DiskPair>,
    /// Where the destination listens, for NBD and for RAM.
    pub addresses: (Address, Address),
    /// Whether it may come to postcopy.
    pub postcopy: bool,
    /// Whether the source is left there, stopped.
    pub keep_source: bool,
    /// The directory with the sockets of the run.
    pub runtime_dir: PathBuf,
    /// What makes sure that a side cannot run the guest.
    pub fence_command: Option<PathBuf>,
    /// The longest from STOP to a guest that runs.
    pub switchover_timeout: Duration,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The outcome's word.
    pub outcome: Ending,
    /// Which side has the guest.
    pub runs_on: RunsOn,
    /// Why it did not move.
    pub reason: Option<Reason>,
    /// What of ours could not be removed.
    pub leftovers: Vec<String>,
}

impl Ended {
    /// Whether there is nothing left to look after.
    pub fn is_settled(&self) -> bool {
        !matches!(self.outcome, Ending::Stuck | Ending::Undetermined)
    }
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    /// Both sides were looked at; nothing has been changed.
    Begun(Box<Begun>),
    /// These are about to be brought about.
    Effects(Vec<Effect>),
    /// This is not there: it was refused, or has been undone.
    Undone(Effect),
    /// Its owner has paused or resumed the guest meanwhile: how it is to be where the migration ends.
    Guest {
        /// Whether it runs.
        runs: bool,
    },
    /// `migrate-continue` is about to be sent, and `cont` to the destination once it has everything. From here on the source
    /// is resumed only on proof that the destination cannot run the guest.
    Given,
    /// The guest was not passed on: the switchover was stopped before `migrate-continue`.
    Kept,
    /// The destination is proved unable to run the guest, and the source is about to be resumed.
    Resuming,
    /// Another engine takes up what this journal's began.
    Recovering,
    /// The end.
    Ended(Ended),
}

/// Whose the guest is, as far as the journal tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Claim {
    /// The source's: the destination was given nothing that it could run.
    #[default]
    Source,
    /// Either's: the destination may have been given all, and told to run.
    Given,
    /// The source's again: the destination was proved unable to run it.
    Resuming,
}

/// What a journal comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// What was set out to do.
    pub begun: Option<Begun>,
    /// What may have been changed and is not undone, in order.
    pub effects: Vec<Effect>,
    /// Whose the guest is.
    pub claim: Claim,
    /// How it ended, if it did.
    pub ended: Option<Ended>,
}

/// A record that cannot follow what came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Illegal {
    /// The journal does not begin with what was set out to do, or does so twice.
    #[error("a journal begins once, with what was set out to do")]
    Begin,
    /// Something follows the end that is not a recovery.
    #[error("it has ended before")]
    AfterEnd,
    /// The guest was given, and something is changed that only makes sense before.
    #[error("the guest had been passed on before")]
    AfterGiven,
    /// The guest is passed on that no migration sends, or twice.
    #[error("there was nothing to pass on")]
    Given,
    /// The guest is kept or taken back that was never passed on.
    #[error("the guest had not been passed on")]
    NotGiven,
    /// Something is undone that was not there.
    #[error("it undoes what was not there")]
    Undone,
}

impl Fold for Status {
    type Record = Record;
    type Illegal = Illegal;

    fn apply(&mut self, record: &Record) -> Result<(), Illegal> {
        if self.begun.is_none() != matches!(record, Record::Begun(_)) {
            return Err(Illegal::Begin);
        }
        if self.ended.is_some() && *record != Record::Recovering {
            return Err(Illegal::AfterEnd);
        }
        match record {
            Record::Begun(begun) => self.begun = Some((**begun).clone()),
            Record::Effects(effects) => {
                // a new channel for postcopy has a socket of its own
                let late = |effect: &Effect| matches!(effect, Effect::SocketFile(_));
                if self.claim != Claim::Source && !effects.iter().all(late) {
                    return Err(Illegal::AfterGiven);
                }
                self.effects.extend(effects.iter().cloned());
            }
            Record::Undone(effect) => {
                let at = self.effects.iter().rposition(|one| one == effect).ok_or(Illegal::Undone)?;
                self.effects.remove(at);
            }
            Record::Guest { runs } => {
                if let Some(begun) = &mut self.begun {
                    begun.was_running = *runs;
                }
            }
            Record::Given => {
                if self.claim != Claim::Source || !self.effects.contains(&Effect::Migrate) {
                    return Err(Illegal::Given);
                }
                self.claim = Claim::Given;
            }
            Record::Kept | Record::Resuming if self.claim != Claim::Given => return Err(Illegal::NotGiven),
            Record::Kept => self.claim = Claim::Source,
            Record::Resuming => self.claim = Claim::Resuming,
            Record::Recovering => self.ended = None,
            Record::Ended(ended) => self.ended = Some(ended.clone()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        journal::{JournalEntry, fold},
        memory::tuning::Before,
        progress::Side,
    };
    use proptest::prelude::*;
    use serde_json::{Map, json};

    fn begun() -> Record {
        let party = |address: &str| Party { address: address.to_owned(), process: None };
        Record::Begun(Box::new(Begun {
            source: party("unix:/a"),
            destination: party("tcp:[::1]:2"),
            was_running: true,
            pairs: Vec::new(),
            addresses: ("unix:/n".parse().expect("one"), "tcp:h:1".parse().expect("one")),
            postcopy: false,
            keep_source: false,
            runtime_dir: PathBuf::from("/r"),
            fence_command: None,
            switchover_timeout: Duration::from_secs(10),
        }))
    }

    fn ended(outcome: Ending) -> Record {
        Record::Ended(Ended { outcome, runs_on: RunsOn::Source, reason: None, leftovers: Vec::new() })
    }

    fn effects(effects: &[Effect]) -> Record {
        Record::Effects(effects.to_vec())
    }

    fn socket() -> Effect {
        Effect::SocketFile(PathBuf::from("/s"))
    }

    fn status(records: &[Record]) -> Result<Status, Illegal> {
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
        assert_eq!((found.claim, found.ended), (Claim::Source, None));
        for (more, claim) in [
            (vec![Record::Given], Claim::Given),
            (vec![Record::Given, Record::Kept], Claim::Source),
            (vec![Record::Given, Record::Kept, Record::Given], Claim::Given),
            (vec![Record::Given, Record::Resuming], Claim::Resuming),
            (vec![Record::Given, effects(&[socket()])], Claim::Given),
            (vec![Record::Recovering, Record::Given], Claim::Given),
            (vec![Record::Guest { runs: false }, Record::Given], Claim::Given),
        ] {
            assert_eq!(with(&more).map(|status| status.claim), Ok(claim), "{more:?}");
        }
        let paused = with(&[Record::Guest { runs: false }]).expect("legal");
        assert!(paused.begun.is_some_and(|begun| !begun.was_running));
        let undone = with(&[Record::Undone(Effect::NbdServer)]).expect("legal");
        assert_eq!(undone.effects, [Effect::Incoming, Effect::Migrate]);
        let stuck = with(&[ended(Ending::Stuck), Record::Recovering]).expect("legal");
        assert_eq!((stuck.ended, stuck.effects.len()), (None, 3));
        assert!(with(&[ended(Ending::RolledBack)]).expect("legal").ended.is_some_and(|ended| ended.is_settled()));
    }

    #[test]
    fn what_no_engine_writes_is_refused() {
        let sent = || vec![begun(), effects(&[Effect::Migrate])];
        let then = |more: &[Record]| [sent(), more.to_vec()].concat();
        for (records, illegal) in [
            (vec![Record::Given], Illegal::Begin),
            (vec![effects(&[socket()])], Illegal::Begin),
            (vec![begun(), begun()], Illegal::Begin),
            (vec![begun(), Record::Given], Illegal::Given),
            (then(&[Record::Given, Record::Given]), Illegal::Given),
            (then(&[Record::Given, effects(&[Effect::NbdServer])]), Illegal::AfterGiven),
            (then(&[Record::Kept]), Illegal::NotGiven),
            (then(&[Record::Resuming]), Illegal::NotGiven),
            (then(&[Record::Undone(Effect::Incoming)]), Illegal::Undone),
            (then(&[ended(Ending::Moved), Record::Given]), Illegal::AfterEnd),
            (then(&[ended(Ending::Moved), ended(Ending::Moved)]), Illegal::AfterEnd),
        ] {
            assert_eq!(status(&records), Err(illegal), "{records:?}");
        }
    }

    fn effect() -> impl Strategy<Value = Effect> {
        let parameters = Map::from_iter([("downtime-limit".to_owned(), json!(300))]);
        let before = Before { capabilities: vec![("events".to_owned(), true)], parameters };
        prop::sample::select(vec![
            Effect::Tuned { side: Side::Destination, before },
            socket(),
            Effect::NbdServer,
            Effect::Mirror("job".to_owned()),
            Effect::Stopped,
            Effect::Incoming,
            Effect::Migrate,
        ])
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            Just(begun()),
            prop::collection::vec(effect(), 1..3).prop_map(Record::Effects),
            effect().prop_map(Record::Undone),
            prop::sample::select(vec![Record::Given, Record::Kept, Record::Resuming, Record::Recovering]),
            prop::sample::select(vec![ended(Ending::Moved), ended(Ending::Undetermined)]),
        ]
    }

    proptest! {
        /// What is read is what was written, and a record that is refused changes nothing.
        #[test]
        fn records_survive_the_file(records in prop::collection::vec(record(), 0..20)) {
            let mut status = Status::default();
            for record in records {
                let text = serde_json::to_string(&record).expect("JSON");
                prop_assert_eq!(&serde_json::from_str::<Record>(&text).expect("read"), &record);
                let before = status.clone();
                if status.apply(&record).is_err() {
                    prop_assert_eq!(&status, &before);
                }
                if status.claim != Claim::Source {
                    prop_assert!(status.begun.is_some());
                }
            }
        }
    }
}
