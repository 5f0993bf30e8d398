//! What the disks consist of: chains, files that both sides use, media that stand still, room, and the right to write.

use super::{Finding, Severity, Subject, blocker, finding, note};
use crate::{
    preflight::facts::Facts,
    quantity::Bytes,
    storage::{
        chain::Layer,
        layout::{Disk, Mode, Pair, Storage},
    },
};
use std::collections::BTreeMap;

/// Every check of this file.
pub(super) fn run(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for pair in subject.pairs {
        findings.extend(chain_unknown(pair));
        findings.extend(job_filter(pair));
        findings.extend(backing_missing(pair));
        findings.extend(backing_unused(pair));
        findings.extend(overlay_version(pair));
        findings.extend(unencrypted(pair));
        findings.extend(header(pair));
        findings.extend(crossed(pair, subject));
        findings.extend(not_writable(pair, subject.destination));
        findings.extend(not_sparse(pair, subject.destination));
    }
    findings.extend(subject.standing.iter().filter_map(|(disk, other)| medium(disk, *other)));
    findings.extend(subject.spare.iter().map(|disk| extra(disk)));
    findings.extend(room(subject));
    findings.extend(subject.unshared.iter().filter_map(|(disk, other)| not_shared(disk, *other, subject)));
    findings
}

fn chain_unknown(pair: &Pair) -> Option<Finding> {
    let side = [("source", &pair.source), ("destination", &pair.destination)];
    let (side, _) = side.into_iter().find(|(_, disk)| disk.chain.layers.is_empty())?;
    let message = format!("the {side}'s QEMU does not tell what its image is over");
    Some(blocker("chain-unknown", pair.source.name(), message, "name a disk whose root is an image, or --skip-disk it"))
}

fn job_filter(pair: &Pair) -> Option<Finding> {
    let filters = pair.source.chain.filters.iter().chain(&pair.destination.chain.filters);
    let filter = filters.into_iter().find(|filter| filter.is_of_a_job())?;
    let message = format!("a block job holds it: node {} is a {}", filter.node, filter.driver);
    Some(blocker(
        "disk-has-job",
        pair.source.name(),
        message,
        "wait for the job or cancel it; query-block-jobs shows it",
    ))
}

fn backing_missing(pair: &Pair) -> Option<Finding> {
    let below = pair.source.chain.backing()?;
    let top = pair.destination.chain.top()?;
    if pair.mode == Mode::Full || pair.destination.chain.backing().is_some() {
        return None;
    }
    let message = format!(
        "the destination's {} has no backing file, and the source's image is over {} ({} of it in use)",
        top.file,
        below.file,
        below.actual_size.map_or_else(|| Bytes(below.virtual_size).to_string(), |bytes| Bytes(bytes).to_string())
    );
    let remedy = "qferry prepare makes the overlay, and with --populate missing brings the backing file; --storage full needs none";
    Some(blocker("backing-missing", pair.source.name(), message, remedy))
}

fn backing_unused(pair: &Pair) -> Option<Finding> {
    let below = pair.destination.chain.backing().filter(|_| pair.mode == Mode::Full)?;
    let message = format!("all is copied: the destination's image will not need {} below it", below.file);
    Some(note("backing-unused", pair.source.name(), message))
}

fn overlay_version(pair: &Pair) -> Option<Finding> {
    let top = pair.destination.chain.top()?;
    let old = top.qcow2.as_ref().is_some_and(|qcow2| qcow2.compat == "0.10");
    let message =
        format!("{} is of qcow2's old version, which stores every zero over a backing file in full", top.file);
    (old && pair.destination.chain.backing().is_some())
        .then(|| finding(Severity::Warning, "overlay-version", pair.source.name(), message, "make it with compat=1.1"))
}

fn unencrypted(pair: &Pair) -> Option<Finding> {
    let (ours, theirs) = (pair.source.chain.top()?, pair.destination.chain.top()?);
    let message = format!("{} is encrypted, and {} is not: what is copied is stored in clear", ours.file, theirs.file);
    (ours.encrypted && !theirs.encrypted)
        .then(|| finding(Severity::Warning, "disk-unencrypted", pair.source.name(), message, "encrypt it too"))
}

/// A QEMU that is started later reads the header, and not what the command line said today.
fn header(pair: &Pair) -> Option<Finding> {
    let layers = &pair.destination.chain.layers;
    let wrong = layers.windows(2).find_map(|two| {
        let named = two[0].backing.as_ref()?;
        (named.full.starts_with('/') && two[1].file.starts_with('/') && named.full != two[1].file)
            .then(|| format!("{} says that it is over {}, and QEMU opened {}", two[0].file, named.full, two[1].file))
    });
    let nothing = || {
        let top = layers.first()?;
        let named = top.backing.as_ref().filter(|_| layers.len() == 1)?;
        Some(format!("{} says that it is over {}, and QEMU opened nothing", top.file, named.full))
    };
    let message = wrong.or_else(nothing)?;
    let remedy = "qemu-img rebase -u -b writes another name into the header, once nothing has it open";
    Some(finding(Severity::Warning, "backing-header", pair.source.name(), message, remedy))
}

/// A file that one side writes and the other reads, or would.
fn crossed(pair: &Pair, subject: &Subject<'_>) -> Option<Finding> {
    let id = |facts: &Facts, layer: &Layer| facts.file(layer).map(|file| file.id);
    let written = pair.destination.chain.top()?;
    let target = id(subject.destination, written);
    let read = |facts: &Facts| {
        let disks = facts.disks();
        let below = disks.iter().flat_map(|disk| disk.chain.layers.get(1..).unwrap_or_default());
        let standing = disks.iter().filter(|disk| disk.read_only).filter_map(|disk| disk.chain.top());
        below
            .chain(standing)
            .find(|layer| target.is_some() && id(facts, layer) == target)
            .map(|layer| layer.file.clone())
    };
    if let Some(file) = read(subject.source).or_else(|| read(subject.destination)) {
        let message = format!("the destination would write to {file}, which other images are over");
        let remedy = "give it an overlay of its own: qferry prepare makes one";
        return Some(blocker("overlay-is-backing", pair.source.name(), message, remedy));
    }
    let live = id(subject.source, pair.source.chain.top()?);
    let below = pair.destination.chain.layers.get(1..).unwrap_or_default();
    let found = below.iter().find(|layer| live.is_some() && id(subject.destination, layer) == live)?;
    let message = format!("the destination's image is over {}, which the guest writes to", found.file);
    let remedy = "put it over the backing file of that image: qferry prepare makes one";
    Some(blocker("backing-is-live", pair.source.name(), message, remedy))
}

fn not_writable(pair: &Pair, destination: &Facts) -> Option<Finding> {
    let top = pair.destination.chain.top()?;
    let file = destination.file(top)?;
    let message = match (file.file_system.read_only, file.writable) {
        (true, _) => format!("{} is on a file system that is mounted read-only", top.file),
        (_, false) => format!("the destination's QEMU may not write to {}", top.file),
        _ => return None,
    };
    Some(blocker("disk-not-writable", pair.source.name(), message, "give its user the right to write to it"))
}

/// Measured: on 10.0, zeros that are written to a raw image without `discard=unmap` take their space; not on 7.2, and
/// not from 10.1 on. No answer of QEMU's shows the option.
fn not_sparse(pair: &Pair, destination: &Facts) -> Option<Finding> {
    let top = pair.destination.chain.top()?;
    let device = destination.file(top).is_some_and(|file| file.is_device);
    let spared = destination.features.mirror_target_is_zero || pair.destination.is_flash() || device;
    let message = "a raw image stays sparse on QEMU before 10.1 only where it is opened with discard=unmap";
    (top.format == "raw" && !spared).then(|| note("disk-not-sparse", pair.source.name(), message))
}

fn medium(disk: &Disk, other: Option<&Disk>) -> Option<Finding> {
    let remedy = "it is not copied: give the destination the same medium, or leave it out with --skip-disk";
    let Some(other) = other else {
        let message = format!("the source reads {}, and the destination has nothing in its place", disk.file);
        return Some(blocker("medium-missing", disk.name(), message, remedy));
    };
    let (here, there) = (disk.virtual_size, other.virtual_size);
    let message = format!("{} has {here} bytes, the destination's {} has {there}", disk.file, other.file);
    (here != there).then(|| blocker("medium-size", disk.name(), message, remedy))
}

fn extra(disk: &Disk) -> Finding {
    let message = format!("no disk of the source goes to the destination's {}", disk.file);
    let remedy = "the guest would find it there: name its pair with --disk SOURCE=DESTINATION, or start without it";
    finding(Severity::Warning, "disk-extra", disk.name(), message, remedy)
}

/// Each file system of the destination against all that may land on it: the virtual sizes, or with `--overcommit` what is
/// to be copied now.
fn room(subject: &Subject<'_>) -> Vec<Finding> {
    let mut wanted: BTreeMap<u64, (u64, u64, Vec<&str>)> = BTreeMap::new();
    for pair in subject.pairs {
        let Some(top) = pair.destination.chain.top() else { continue };
        let Some(file) = subject.destination.file(top).filter(|file| !file.is_device) else { continue };
        let needs = needed(pair, subject.overcommit).saturating_sub(file.allocated);
        let system = file.file_system;
        let entry = wanted.entry(system.device).or_insert((system.available, 0, Vec::new()));
        entry.1 += needs;
        entry.2.push(&top.file);
    }
    let short = wanted.into_values().filter(|(available, needs, _)| needs > available);
    short
        .map(|(available, needs, files)| {
            let message = format!(
                "{} may need {} more on its file system, which has {} left",
                files.join(" and "),
                Bytes(needs),
                Bytes(available)
            );
            let remedy = match subject.overcommit {
                true => "make room",
                false => "make room, or say --overcommit to count only what is to be copied now",
            };
            blocker("no-space", &subject.destination.name, message, remedy)
        })
        .collect()
}

fn needed(pair: &Pair, overcommit: bool) -> u64 {
    let layers = match pair.mode {
        Mode::Incremental => pair.source.chain.layers.get(..1).unwrap_or_default(),
        Mode::Full => &pair.source.chain.layers[..],
    };
    let actual = layers.iter().map(|layer| layer.actual_size.unwrap_or(layer.virtual_size)).sum::<u64>();
    if overcommit { actual } else { pair.source.virtual_size.max(pair.destination.virtual_size) }
}

/// Of a disk that is said to be shared.
fn not_shared(disk: &Disk, other: Option<&Disk>, subject: &Subject<'_>) -> Option<Finding> {
    debug_assert_eq!(subject.storage, Storage::None);
    let Some(other) = other else {
        let message = "the destination has no disk like it";
        return Some(blocker("disk-missing", disk.name(), message, "give the destination a device of the same id"));
    };
    let (ours, theirs) = (disk.chain.top()?, other.chain.top()?);
    let ids = subject.source.file(ours).zip(subject.destination.file(theirs));
    if let Some((here, there)) = ids {
        let message = format!("{} and {} are two files, and nothing is to be copied", ours.file, theirs.file);
        let remedy = "with --storage none both sides must have the same file open; leave it out to copy what differs";
        return (here.id != there.id).then(|| blocker("disk-not-shared", disk.name(), message, remedy));
    }
    let message = format!("it cannot be seen from here whether {} is the destination's {}", ours.file, theirs.file);
    let remedy = match ours.direct || disk.read_only {
        true => "make sure of it",
        false => "make sure of it, and that both use cache=none: the source's page cache is not the destination's",
    };
    Some(finding(Severity::Warning, "disk-shared-unproved", disk.name(), message, remedy))
}
