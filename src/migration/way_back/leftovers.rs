//! What a run made in a QEMU and could not remove.

use super::destination::LOOK;
use crate::{
    migration::{Effect, intents::IntentLog, pair::QemuPair},
    progress::{Side, describe},
    qemu::{Process, ProcessError, reply::MigrationStatus},
    run_id::RunId,
    storage::mirror::{cleanup, leftover::Leftover},
};
use qapi::qmp;
use std::{fmt, fs, io, path::Path};
use tokio::time::timeout;

/// Asks one side what is there that the run made. What another run made is that run's to remove.
pub(super) async fn own_leftovers(process: &Process, run: &RunId) -> Result<Vec<Leftover>, ProcessError> {
    let mut found = cleanup::find(process).await?;
    found.retain(|leftover| leftover.run() == *run);
    Ok(found)
}

/// The same in words.
pub(crate) async fn left_behind(process: &Process, run: &RunId) -> Vec<String> {
    // Whatever was made in a QEMU has ended with it.
    if process.has_ended().await {
        return Vec::new();
    }
    match own_leftovers(process, run).await {
        Ok(leftovers) => in_words(process, &leftovers),
        Err(error) => vec![format!("{}: cannot look ({})", process.name(), describe(&error))],
    }
}

fn in_words(process: &Process, leftovers: &[impl fmt::Display]) -> Vec<String> {
    leftovers.iter().map(|leftover| format!("{}: {leftover}", process.name())).collect()
}

/// What the run made on both sides and leaves, where nothing proves which of them has the guest. A side that does not
/// answer is not waited for.
pub(crate) async fn left_as_it_is(pair: &QemuPair, log: &IntentLog) -> Vec<String> {
    let mut left = Vec::new();
    for side in [Side::Source, Side::Destination] {
        let process = pair.side(side);
        if process.is_gone() || process.is_silent() || process.has_ended().await {
            continue;
        }
        let of_side = log.effects().iter().map(Effect::traits).filter(|traits| traits.side == side);
        let hidden: Vec<&str> = of_side.filter_map(|traits| traits.hidden_leftover).collect();
        left.extend(in_words(process, &hidden));
        if let Ok(Ok(found)) = timeout(LOOK, own_leftovers(process, log.run())).await {
            left.extend(in_words(process, &found));
        }
    }
    left
}

/// A migration that could not be cancelled: QEMU would stop the guest yet.
pub(super) async fn migration_under_way(source: &Process) -> Option<String> {
    // a source that does not answer is named by `left_behind`
    let status = source.ask(&qmp::query_migrate {}).await.ok()?.status.filter(|status| !status.is_over())?;
    Some(format!("{}: the migration is under way ({status})", source.name()))
}

/// A migration that nothing proves to be this run's, and what a person can do about it.
pub(super) fn unproved_migration(source: &Process, now: &MigrationStatus) -> String {
    format!(
        "{}: a migration is under way ({now}) that nothing proves to be this run's, for the destination takes nothing \
         in: if nobody else began it, send migrate_cancel; then recover again",
        source.name()
    )
}

/// What an effect that could not be undone leaves, where [`left_behind`] cannot see it, and why.
pub(crate) fn hidden_leftover(pair: &QemuPair, effect: &Effect, why: &ProcessError) -> Option<String> {
    let traits = effect.traits();
    let process = pair.side(traits.side);
    // the journal alone can tell what is left behind a monitor that is closed
    let unseen = match effect {
        Effect::NbdServer => Some("an NBD server with a writable export for each disk".to_owned()),
        Effect::Mirror(job) => Some(format!("block job {job}")),
        _ => None,
    };
    let what = traits.hidden_leftover.map(str::to_owned).or(unseen.filter(|_| process.is_gone()))?;
    Some(format!("{}: {what} ({})", process.name(), describe(why)))
}

/// Removes a socket's file, and names it where that cannot be done; that there is none is fine.
pub(crate) fn remove_socket(path: &Path) -> Option<String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Some(format!("{}: {error}", path.display())),
        _ => None,
    }
}
