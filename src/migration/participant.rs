//! Whether the QEMU that answers at an address is the one that took part in the migration.
//!
//! An address outlives a QEMU: a supervisor may have started the same guest anew there, or somebody another guest. A
//! QEMU that is not proved to be the one that took part must be touched with nothing: no command that changes
//! something, no kill, no fence.

use super::{Effect, record::Party};
use crate::{
    endpoint::PeerPid,
    progress::Side,
    qemu::{Process, ProcessError, reply::MigrationStatus},
    storage::{
        mirror::leftover::{self, Leftover},
        model::layout::DiskPair,
    },
};
use qapi::qmp;
use tokio::try_join;

/// What a QEMU tells by which a run finds out whether it took part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParticipantTraits {
    /// The ids of the vCPUs' threads on QEMU's host.
    pub threads: Vec<i64>,
    /// The status of the last migration; `none` where the process has seen no migration.
    pub migration: MigrationStatus,
    /// Whether there is a job, a node, a bitmap or an export that the run made.
    pub has_leftovers: bool,
    /// Whether a migration capability or parameter has another value than before the run.
    pub is_tuned: bool,
}

/// Why a QEMU is not taken for the one that took part, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotProved(pub String);

/// Proves that the QEMU of `process` took part: by the kernel where `known`, the process that the journal names, lives
/// on this host; else by what the QEMU itself tells.
pub(crate) async fn prove(
    process: &Process,
    party: &Party,
    known: Option<&PeerPid>,
    pairs: &[DiskPair],
    effects: &[Effect],
) -> Result<(), NotProved> {
    let side = process.name().side;
    let same_process = known.zip(process.peer()).map(|(known, peer)| known.pid() == peer.pid());
    if let (Some(false), Some(known), Some(peer)) = (same_process, known, process.peer()) {
        let (now, then) = (peer.pid(), known.pid());
        return Err(NotProved(format!("it is process {now}, and the one that took part is process {then}")));
    }
    let is_same_process = same_process == Some(true);
    match ask(process, pairs, effects).await {
        Ok(found) => judge(side, party, is_same_process, effects, &found),
        // The kernel's word is enough for a QEMU that hangs.
        Err(_) if is_same_process => Ok(()),
        Err(error) => Err(NotProved(format!("it did not tell what it is ({error})"))),
    }
}

async fn ask(process: &Process, pairs: &[DiskPair], effects: &[Effect]) -> Result<ParticipantTraits, ProcessError> {
    let (migration, capabilities, parameters, jobs, nodes, exports, _) = try_join!(
        known(process.ask(&qmp::query_migrate {})),
        known(process.ask(&qmp::query_migrate_capabilities {})),
        known(process.ask(&qmp::query_migrate_parameters {})),
        known(process.ask(&qmp::query_jobs {})),
        known(process.ask(&qmp::query_named_block_nodes { flat: Some(true) })),
        known(process.ask(&qmp::query_block_exports {})),
        async { Ok(process.vcpu_threads().await) },
    )?;
    let is_tuned = effects.iter().any(|effect| match effect {
        Effect::Tuned { side, before } if *side == process.name().side => {
            let differs = |name: &str, was: bool| capabilities.0.iter().any(|c| c.capability == name && c.state != was);
            before.capabilities.iter().any(|(name, was)| differs(name, *was))
                || before.parameters.iter().any(|(name, was)| parameters.get(name).is_some_and(|now| now != was))
        }
        _ => false,
    });
    let leftovers = leftover::list(&jobs.0, &nodes.0, &exports.0);
    Ok(ParticipantTraits {
        threads: process.vcpu_threads().await.to_vec(),
        migration: migration.status.unwrap_or(MigrationStatus::None),
        has_leftovers: leftovers.iter().any(|leftover| pairs.iter().any(|pair| is_of(pair, leftover))),
        is_tuned,
    })
}

/// An answer that QEMU refuses to give tells nothing.
async fn known<T: Default>(asked: impl Future<Output = Result<T, ProcessError>>) -> Result<T, ProcessError> {
    match asked.await {
        Err(error) if error.is_refusal() => Ok(T::default()),
        answer => answer,
    }
}

fn is_of(pair: &DiskPair, leftover: &Leftover) -> bool {
    let names = &pair.names;
    match leftover {
        Leftover::Job(name) => *name == names.job,
        Leftover::Node(name) => [&names.target, &names.nbd].contains(&name),
        Leftover::Bitmap { name, .. } => *name == names.bitmap,
        Leftover::Export(name) => *name == names.export,
        Leftover::ReadExport(_) => false,
    }
}

/// Judges what a QEMU has told. Two processes never have the same threads at one time on one host, but a guest that is
/// started anew in a container often gets the numbers that it had; so the QEMU must also remember what the run has
/// done to it, unless that is nothing.
///
/// # Errors
/// Why the QEMU is not proved to have taken part.
pub fn judge(
    side: Side,
    party: &Party,
    is_same_process: bool,
    effects: &[Effect],
    found: &ParticipantTraits,
) -> Result<(), NotProved> {
    let ParticipantTraits { threads, migration, has_leftovers, is_tuned } = found;
    let are_known = !threads.is_empty() && !party.threads.is_empty();
    if are_known && !threads.iter().any(|thread| party.threads.contains(thread)) {
        return Err(NotProved(format!(
            "its vCPUs are the threads {threads:?} of its host, and those of the QEMU that took part are {:?}",
            party.threads
        )));
    }
    let remembers = *migration != MigrationStatus::None || *has_leftovers || (*is_tuned && are_known);
    // Settings that a QEMU has not are put back where they are already: nothing needs to be remembered of them.
    let was_changed = effects.iter().any(|effect| {
        let only_settings = matches!(
            effect,
            Effect::Tuned { .. } | Effect::SocketFile(_) | Effect::WriteTimes(_) | Effect::Traced { .. }
        );
        effect.traits().side == side && !only_settings
    });
    match is_same_process || remembers || (are_known && !was_changed) {
        true => Ok(()),
        false => Err(NotProved("it remembers nothing of the migration, as a QEMU that was started since".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    //! Promise: only-who-took-part.

    use super::*;
    use crate::memory::tuning::PreviousTuning;

    fn party(threads: &[i64]) -> Party {
        Party { address: "tcp:h:1".to_owned(), process: None, threads: threads.to_vec() }
    }

    fn traits(threads: &[i64], migration: &str, has_leftovers: bool, is_tuned: bool) -> ParticipantTraits {
        ParticipantTraits {
            threads: threads.to_vec(),
            migration: MigrationStatus::from(migration),
            has_leftovers,
            is_tuned,
        }
    }

    fn tuned(side: Side) -> Effect {
        Effect::Tuned { side, before: PreviousTuning { capabilities: Vec::new(), parameters: Default::default() } }
    }

    #[test]
    fn other_threads_are_another_qemu_whatever_it_remembers() {
        for effects in [vec![], vec![tuned(Side::Source), Effect::Migrate]] {
            for is_same_process in [false, true] {
                let found = traits(&[9, 10], "completed", true, true);
                let NotProved(why) =
                    judge(Side::Source, &party(&[7, 8]), is_same_process, &effects, &found).expect_err("another");
                assert!(why.contains("[9, 10]") && why.contains("[7, 8]"), "{why}");
            }
        }
        // A vCPU was plugged in or out since.
        let found = traits(&[7, 11], "active", false, true);
        assert_eq!(judge(Side::Source, &party(&[7, 8]), false, &[Effect::Migrate], &found), Ok(()));
    }

    #[test]
    fn a_qemu_that_was_started_anew_remembers_nothing() {
        let judge = |threads: &[i64], effects: &[Effect], is_same_process: bool, found: &ParticipantTraits| {
            judge(Side::Destination, &party(threads), is_same_process, effects, found).is_ok()
        };
        let incoming = [tuned(Side::Destination), Effect::NbdServer, Effect::Incoming];
        let fresh = traits(&[7], "none", false, false);
        // The same numbers, as in a container.
        assert!(!judge(&[7], &incoming, false, &fresh));
        // The kernel tells them apart.
        assert!(judge(&[7], &incoming, true, &fresh));
        for remembers in
            [traits(&[7], "active", false, false), traits(&[7], "none", true, false), traits(&[7], "none", false, true)]
        {
            assert!(judge(&[7], &incoming, false, &remembers), "{remembers:?}");
        }
        // Nothing but settings was changed, or nothing at all, on this side.
        assert!(judge(&[7], &[tuned(Side::Destination), Effect::Mirror("m".to_owned())], false, &fresh));
        assert!(judge(&[7], &[], false, &fresh));
    }

    #[test]
    fn without_threads_only_memory_is_a_proof() {
        let judge = |threads: &[i64], found: &ParticipantTraits| {
            judge(Side::Source, &party(threads), false, &[tuned(Side::Source)], found).is_ok()
        };
        // A journal of an earlier version, or a QEMU that does not tell.
        for (before, now) in [(&[][..], &[7][..]), (&[7], &[]), (&[], &[])] {
            assert!(!judge(before, &traits(now, "none", false, false)));
            assert!(!judge(before, &traits(now, "none", false, true)), "settings alone may be somebody else's");
            assert!(judge(before, &traits(now, "failed", false, false)));
            assert!(judge(before, &traits(now, "none", true, false)));
        }
    }
}
