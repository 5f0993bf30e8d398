//! The journals of a folder: what each says, whether its engine lives, and what a recovery would do.
//!
//! Nothing is changed here, and no journal is locked for longer than a look.

use super::{
    Effect, Settings,
    record::{GuestClaim, JournalStatus, MigrationBegin, Party, Record},
    settings::state_dir,
};
use crate::{
    endpoint::Address,
    journal::{self, JournalEntry, LockHolder},
    preflight::checks::KnownRun,
    progress::{Ending, Phase, describe},
    run_id::RunId,
};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsStr,
    fmt, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// What a recovery from a journal would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RecoveryOutlook {
    /// Nothing: the engine that writes the journal lives.
    EngineLives,
    /// Nothing: the migration has ended, or had begun nothing. A recovery removes the journal.
    NothingLeft,
    /// The engine's changes are undone, and the guest stays on the source.
    GoBack,
    /// The side that has the guest is found out, and the migration is finished or undone.
    FindGuest,
    /// The guest is resumed on the source: the destination was proved unable to run it.
    ResumeSource,
    /// Nothing: the file cannot be read as a journal.
    Unreadable,
}

impl fmt::Display for RecoveryOutlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::EngineLives => "nothing while its engine lives",
            Self::NothingLeft => "nothing is left to be done; the journal would be removed",
            Self::GoBack => "undo what the engine did; the guest stays on the source",
            Self::FindGuest => "find out which side has the guest, then finish or go back",
            Self::ResumeSource => "resume the guest on the source",
            Self::Unreadable => "nothing: the file cannot be read as a journal",
        })
    }
}

/// A journal as it was found in a folder. More fields may be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JournalInfo {
    /// The file. A journal that the user named has a link in the state directory; the path is that of the file itself.
    pub path: PathBuf,
    /// The id of the run, which is in the name of all that the run made. `None` for a journal of an earlier version.
    pub run: Option<String>,
    /// The time of the first record, in milliseconds since the Unix epoch.
    pub begun_ms: Option<u64>,
    /// The address of the source's monitor.
    pub source: Option<String>,
    /// The address of the destination's monitor.
    pub destination: Option<String>,
    /// The phase that the migration had come to. `handover` from the instant at which the guest may have been passed
    /// on.
    pub phase: Option<Phase>,
    /// The outcome, if the migration has ended.
    pub ended: Option<Ending>,
    /// Whether the engine that writes the journal lives.
    pub engine_lives: bool,
    /// The process of that engine, where the kernel tells it.
    pub engine_pid: Option<u32>,
    /// What a recovery would do.
    pub recovery: RecoveryOutlook,
    /// The reason why the file cannot be read as a journal.
    pub error: Option<String>,
}

/// A journal with the part that only the engine needs.
#[derive(Debug, Clone)]
pub(crate) struct FoundJournal {
    pub(crate) info: JournalInfo,
    begun: Option<MigrationBegin>,
}

/// The directory of journals whose place nobody chose: `$XDG_STATE_HOME/qferry`, else `~/.local/state/qferry`. Journals
/// that were given a place of their own have a link there.
pub fn journal_directory() -> PathBuf {
    state_dir()
}

/// Lists the journals of a directory, the oldest first; see [`journal_directory`]. A file that cannot be read as a
/// journal is listed with the reason. A directory that is missing has none.
///
/// # Errors
/// The directory cannot be read.
pub fn journals(dir: &Path) -> io::Result<Vec<JournalInfo>> {
    Ok(find(dir, |_| true)?.into_iter().map(|found| found.info).collect())
}

/// The journals of a directory, of which only those that are wanted are read.
fn find(dir: &Path, is_wanted: impl Fn(&Path) -> bool) -> io::Result<Vec<FoundJournal>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension() != Some(OsStr::new("journal")) {
            continue;
        }
        match fs::canonicalize(&path) {
            Ok(path) if is_wanted(&path) => found.push(read(path)),
            Ok(_) => {}
            // A journal may end while the directory is read, and a link may outlive the file of its journal.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => found.push(FoundJournal { info: unreadable(path, &error), begun: None }),
        }
    }
    sort(&mut found);
    Ok(found)
}

/// Sorts journals, the oldest first. A journal that was found twice, by a link, too, stays once.
fn sort(found: &mut Vec<FoundJournal>) {
    found.sort_by_cached_key(|found| (found.info.begun_ms.unwrap_or(u64::MAX), found.info.path.clone()));
    found.dedup_by(|one, other| one.info.path == other.info.path);
}

/// Reads one journal. The lock is looked at first: an engine that ends meanwhile is then taken for one that lives.
fn read(path: PathBuf) -> FoundJournal {
    let holder = journal::find_lock_holder(&path);
    let entries = match journal::read::<Record>(&path) {
        Ok(entries) => entries,
        Err(error) => {
            let mut info = unreadable(path, &error);
            (info.engine_lives, info.engine_pid) = life(&holder);
            return FoundJournal { info, begun: None };
        }
    };
    match journal::fold::<JournalStatus>(&entries) {
        Ok(status) => FoundJournal {
            info: describe_journal(path, entries.first().map(|entry| entry.at), &status, life(&holder)),
            begun: status.begun,
        },
        Err(error) => FoundJournal { info: unreadable(path, &error), begun: None },
    }
}

fn life(holder: &io::Result<Option<LockHolder>>) -> (bool, Option<u32>) {
    match holder {
        Ok(holder) => (holder.is_some(), holder.as_ref().and_then(|holder| holder.pid)),
        Err(_) => (false, None),
    }
}

fn unreadable(path: PathBuf, error: &(dyn std::error::Error + 'static)) -> JournalInfo {
    JournalInfo {
        path,
        run: None,
        begun_ms: None,
        source: None,
        destination: None,
        phase: None,
        ended: None,
        engine_lives: false,
        engine_pid: None,
        recovery: RecoveryOutlook::Unreadable,
        error: Some(describe(error)),
    }
}

fn describe_journal(
    path: PathBuf,
    at: Option<u64>,
    status: &JournalStatus,
    (engine_lives, engine_pid): (bool, Option<u32>),
) -> JournalInfo {
    let begun = status.begun.as_ref();
    let run = begun.map(|begun| &begun.run).filter(|run| !run.is_of_earlier_version());
    JournalInfo {
        path,
        run: run.map(RunId::to_string),
        begun_ms: at,
        source: begun.map(|begun| begun.source.address.clone()),
        destination: begun.map(|begun| begun.destination.address.clone()),
        phase: begun.map(|_| phase(status)),
        ended: status.ended.as_ref().map(|ended| ended.outcome),
        engine_lives,
        engine_pid,
        recovery: if engine_lives { RecoveryOutlook::EngineLives } else { outlook(status) },
        error: None,
    }
}

/// The phase that a migration had come to.
fn phase(status: &JournalStatus) -> Phase {
    let has = |fits: fn(&Effect) -> bool| status.effects.iter().any(fits);
    match status.claim {
        GuestClaim::Given | GuestClaim::Resuming => Phase::Handover,
        GuestClaim::Source if has(|effect| matches!(effect, Effect::Migrate | Effect::Incoming)) => Phase::Memory,
        GuestClaim::Source if has(|effect| matches!(effect, Effect::Mirror(_))) => Phase::Storage,
        GuestClaim::Source if !status.effects.is_empty() => Phase::Prepare,
        GuestClaim::Source => Phase::Preflight,
    }
}

fn outlook(status: &JournalStatus) -> RecoveryOutlook {
    if status.begun.is_none() || status.ended.as_ref().is_some_and(|ended| ended.is_settled()) {
        return RecoveryOutlook::NothingLeft;
    }
    match status.claim {
        GuestClaim::Source => RecoveryOutlook::GoBack,
        GuestClaim::Given => RecoveryOutlook::FindGuest,
        GuestClaim::Resuming => RecoveryOutlook::ResumeSource,
    }
}

/// The two QEMUs of a run, as its journal would have them.
#[derive(Debug, Clone)]
pub(crate) struct Parties {
    pub(crate) source: Party,
    pub(crate) destination: Party,
}

impl Parties {
    fn has_one_of(&self, begun: &MigrationBegin) -> bool {
        is_party_of(&self.source, begun) || is_party_of(&self.destination, begun)
    }
}

/// The runs that the journals tell of and that have to do with one of these two QEMUs, but for the run itself. A
/// directory that cannot be read tells of none.
pub(crate) fn runs_of(settings: &Settings, run: &RunId, parties: &Parties) -> Vec<(KnownRun, FoundJournal)> {
    // A host may have a thousand migrations, each of which looks here: what a journal begins with tells whether it is
    // of another pair.
    let is_wanted = |path: &Path| match journal::read_first::<Record>(path) {
        Ok(Some(JournalEntry { record: Record::Begun(begun), .. })) => parties.has_one_of(&begun),
        _ => false,
    };
    let found = folders(settings).into_iter().flat_map(|dir| find(&dir, is_wanted).unwrap_or_default());
    let mut journals: Vec<FoundJournal> = found.collect();
    sort(&mut journals);
    journals.into_iter().filter_map(|found| known_run(found, run, parties)).collect()
}

/// Whether there is a journal of an engine that died with something left to be done, of whatever pair.
pub(crate) fn has_unfinished(settings: &Settings) -> bool {
    use RecoveryOutlook::{EngineLives, NothingLeft, Unreadable};
    let mut journals = folders(settings).into_iter().flat_map(|dir| find(&dir, |_| true).unwrap_or_default());
    journals.any(|found| !matches!(found.info.recovery, EngineLives | NothingLeft | Unreadable))
}

/// The folders in which the journals of other runs are looked for.
fn folders(settings: &Settings) -> Vec<PathBuf> {
    let mut folders = vec![state_dir()];
    folders.extend(settings.journal_folder().filter(|folder| *folder != folders[0]));
    folders
}

fn known_run(found: FoundJournal, run: &RunId, parties: &Parties) -> Option<(KnownRun, FoundJournal)> {
    let (info, begun) = (&found.info, found.begun.as_ref()?);
    if begun.run == *run || info.recovery == RecoveryOutlook::NothingLeft {
        return None;
    }
    let known = KnownRun {
        run: begun.run.clone(),
        journal: info.path.display().to_string(),
        engine_lives: info.engine_lives,
        engine_pid: info.engine_pid,
        has_source: is_party_of(&parties.source, begun),
        has_destination: is_party_of(&parties.destination, begun),
        is_this_pair: is_same_qemu(&parties.source, &begun.source)
            && is_same_qemu(&parties.destination, &begun.destination),
    };
    (known.has_source || known.has_destination).then_some((known, found))
}

/// Whether a QEMU is either side of a migration.
fn is_party_of(party: &Party, begun: &MigrationBegin) -> bool {
    is_same_qemu(party, &begun.source) || is_same_qemu(party, &begun.destination)
}

/// Whether two records tell of one QEMU: by its process, where both know that, else by the address of its monitor. The
/// name of a connector is no address.
fn is_same_qemu(one: &Party, other: &Party) -> bool {
    if let (Some(one), Some(other)) = (&one.process, &other.process) {
        return one == other;
    }
    let address = |party: &Party| match party.address.parse::<Address>().ok()? {
        Address::Unix(path) => Some(fs::canonicalize(&path).unwrap_or(path).display().to_string()),
        other => Some(other.to_string()),
    };
    address(one).is_some_and(|one| address(other) == Some(one))
}

/// The link in the state directory to a journal that the user named: other engines look for journals there. A link that
/// cannot be made is done without.
pub(crate) fn link(run: &RunId, journal: &Path) {
    let made = fs::canonicalize(journal).and_then(|journal| {
        journal::make_folder(&state_dir())?;
        remove_dead_links();
        symlink(journal, link_of(run))
    });
    if let Err(error) = made {
        tracing::debug!(%error, "other engines cannot find the journal in the state directory");
    }
}

/// Removes the links whose journals are gone: their user has removed them.
fn remove_dead_links() {
    for entry in fs::read_dir(state_dir()).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
        let is_gone = fs::metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if is_link && is_gone && path.extension() == Some(OsStr::new("journal")) {
            drop(fs::remove_file(path));
        }
    }
}

/// Removes a journal that has nothing left to be done, unless the user named its file: then only the link to it goes.
pub(crate) fn remove(run: &RunId, journal: &Path, keep: bool) {
    let link = link_of(run);
    if fs::symlink_metadata(&link).is_ok_and(|found| found.is_symlink()) {
        drop(fs::remove_file(link));
    }
    if !keep {
        // a journal that stays says that nothing is left to be done
        if let Err(error) = fs::remove_file(journal) {
            tracing::warn!(path = %journal.display(), %error, "the journal stays");
        }
    }
}

/// Whether a journal is one whose place nobody chose. A link in the state directory leads to one with a place of its
/// own.
pub(crate) fn is_in_state_directory(journal: &Path) -> bool {
    let folder = fs::canonicalize(journal).ok().and_then(|path| Some(path.parent()?.to_owned()));
    folder.is_some_and(|folder| fs::canonicalize(state_dir()).is_ok_and(|state| state == folder))
}

fn link_of(run: &RunId) -> PathBuf {
    state_dir().join(format!("{run}.journal"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;

    fn party(address: &str) -> Party {
        Party { address: address.to_owned(), process: None, threads: Vec::new() }
    }

    fn begun(source: &str, destination: &str) -> MigrationBegin {
        MigrationBegin { run: RunId::new(), ..MigrationBegin::between(source, destination) }
    }

    fn journal(path: &Path, begun: MigrationBegin, records: Vec<Record>) -> Journal<Record> {
        let mut journal = Journal::create(path).unwrap();
        for record in std::iter::once(Record::Begun(Box::new(begun))).chain(records) {
            journal.append(&record).unwrap();
        }
        journal
    }

    #[test]
    fn each_journal_is_listed_with_what_a_recovery_would_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let sent = || Record::Effects(vec![Effect::Incoming, Effect::Migrate]);
        let mirrored = || Record::Effects(vec![Effect::Mirror("m".to_owned())]);
        let cases = [
            (vec![], Phase::Preflight, RecoveryOutlook::GoBack),
            (vec![Record::Effects(vec![Effect::NbdServer])], Phase::Prepare, RecoveryOutlook::GoBack),
            (vec![mirrored()], Phase::Storage, RecoveryOutlook::GoBack),
            (vec![mirrored(), sent()], Phase::Memory, RecoveryOutlook::GoBack),
            (vec![sent(), Record::Given], Phase::Handover, RecoveryOutlook::FindGuest),
            (vec![sent(), Record::Given, Record::Resuming], Phase::Handover, RecoveryOutlook::ResumeSource),
            (vec![mirrored(), Record::ended(Ending::Stuck)], Phase::Storage, RecoveryOutlook::GoBack),
            (vec![Record::ended(Ending::RolledBack)], Phase::Preflight, RecoveryOutlook::NothingLeft),
        ];
        for (n, (records, ..)) in cases.iter().enumerate() {
            drop(journal(&path(&format!("{n}.journal")), begun("unix:/a", "unix:/b"), records.clone()));
        }
        let live = journal(&path("8.journal"), begun("unix:/a", "unix:/b"), Vec::new());
        fs::write(path("9.journal"), "no journal").unwrap();
        fs::write(path("other"), "not looked at").unwrap();
        symlink(path("gone"), path("dangling.journal")).unwrap();
        symlink(path("0.journal"), path("link.journal")).unwrap();
        let mut found = journals(folder.path()).unwrap();
        found.sort_by_key(|info| info.path.clone());
        assert_eq!(found.len(), 10, "{found:#?}");
        for (info, (_, phase, recovery)) in found.iter().zip(&cases) {
            assert_eq!((info.phase, info.recovery), (Some(*phase), *recovery), "{info:#?}");
            assert!(!info.engine_lives && info.run.is_some() && info.begun_ms.is_some(), "{info:#?}");
        }
        let pid = Some(std::process::id());
        let alive = (found[8].engine_lives, found[8].engine_pid, found[8].recovery);
        assert_eq!(alive, (true, pid, RecoveryOutlook::EngineLives));
        assert!(found[9].error.is_some() && found[9].recovery == RecoveryOutlook::Unreadable, "{:#?}", found[9]);
        drop(live);
        assert_eq!(journals(&path("missing")).unwrap(), Vec::new());
        let text = serde_json::to_string(&found[8]).unwrap();
        assert_eq!(serde_json::from_str::<JournalInfo>(&text).unwrap(), found[8]);
    }

    #[test]
    fn a_qemu_is_known_by_its_process_and_else_by_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        fs::write(&socket, "").unwrap();
        symlink(&socket, folder.path().join("link")).unwrap();
        let at = |name: &str| party(&format!("unix:{}", folder.path().join(name).display()));
        assert!(is_same_qemu(&at("qmp"), &at("link")) && !is_same_qemu(&at("qmp"), &at("another")));
        assert!(is_same_qemu(&party("tcp:[::1]:4"), &party("tcp:[::1]:4")));
        assert!(!is_same_qemu(&party("a connector"), &party("a connector")), "a connector's name is no address");
        let process = |began| crate::endpoint::ProcessIdentity { pid: 7, began, boot: "b".to_owned(), namespace: 1 };
        let with = |mut party: Party, began| {
            party.process = Some(process(began));
            party
        };
        assert!(is_same_qemu(&with(at("qmp"), 1), &with(at("another"), 1)), "one process with two monitors");
        assert!(!is_same_qemu(&with(at("qmp"), 1), &with(at("qmp"), 2)), "another process at the address");
        assert!(is_same_qemu(&with(at("qmp"), 1), &at("qmp")));
    }

    #[test]
    fn runs_that_have_to_do_with_either_side_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let settings =
            Settings { journal: crate::migration::JournalPlace::File(path("own.journal")), ..Settings::default() };
        let own = begun("unix:/x/a", "unix:/x/b");
        let run = own.run.clone();
        let _own = journal(&path("own.journal"), own, Vec::new());
        let mut live = Vec::new();
        for (name, source, destination) in
            [("1", "unix:/x/a", "unix:/x/b"), ("2", "unix:/x/b", "unix:/x/c"), ("3", "unix:/x/c", "unix:/x/d")]
        {
            live.push(journal(&path(&format!("{name}.journal")), begun(source, destination), Vec::new()));
        }
        drop(journal(&path("4.journal"), begun("unix:/x/a", "unix:/x/b"), vec![Record::ended(Ending::Moved)]));
        let parties = Parties { source: party("unix:/x/a"), destination: party("unix:/x/b") };
        let known = || {
            let mut known = runs_of(&settings, &run, &parties);
            known.sort_by_key(|(known, _)| known.journal.clone());
            known
                .into_iter()
                .map(|(known, _)| (known.engine_lives, known.has_source, known.has_destination, known.is_this_pair))
                .collect::<Vec<_>>()
        };
        assert_eq!(known(), [(true, true, true, true), (true, false, true, false)]);
        live.clear();
        assert_eq!(known(), [(false, true, true, true), (false, false, true, false)]);
    }
}
