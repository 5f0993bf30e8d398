//! `docs/compatibility.md`, made from the recordings.

use super::{
    courses::told,
    recording::{COURSES, Version, golden, root, versions},
};
use qferry::internals::qemu::Features;
use std::collections::BTreeSet;

const HEAD: &str = "\
# QEMU versions

<!-- Made from qmp-fixtures/ by the test `versions`; do not edit. QFERRY_BLESS=1 cargo test -p qferry --test versions -->

These versions are recorded in `qmp-fixtures/` and tested. The engine reads what a build can do from the build's schema
(`query-qmp-schema`), never from its version. Other versions, between these and after them, therefore work as far as their schema
allows. A build that lacks something necessary is refused before anything is changed, and the refusal names what is missing.
";

const UNSEEN: &str = "
## Differences that no schema shows

- **A mirror's start can lose writes** on QEMU 8.0 to 10.2.1 (fixed upstream by 167ef239fb, and in 10.0.13 as a backport).
  Distributions backport the fix without a trace in the schema. The engine therefore proves on every version that a mirror's
  start was free of writes, and starts the mirror again where the proof fails.
- **7.2 under TCG** can lose what a guest wrote to its RAM while RAM is sent, with or without qferry: in 12 of 48 moves by
  plain QMP at 32 MiB/s on a busy host, in none of 24 without a ceiling, and in none of 12 on 10.0.13. With a `downtime-limit` of
  10 ms, so that QEMU sends RAM in more passes, in 3 of 3 moves from 7.2 to 7.2, without any device but a disk. The guest then
  resumes with old pages, loses a timer and hangs in idle, or panics, which ends a QEMU that was started with `-no-reboot` or
  `-action reboot=shutdown`. The destination's version does not matter, and a guest that is paused for the move loses nothing.
  KVM was not tried.
- **The same CPU** is reported differently: `ht` and `cmp-legacy` are in `feature-words` from 10.0 on, so the comparison
  ignores both. `-cpu max` is truly another CPU on 7.2 than on 10.0 (family, model and features), and has more features on 11.1
  than on 10.0. Named models with a versioned machine type lose nothing on a newer QEMU.
- **Rings of virtio devices**: 10.0.13 makes every ring with 1024 entries, whatever `queue-size` says, and 11.1 refuses a ring that
  is larger than its own device has room for, also one that no driver uses (`VQ 0 vring.num 1024 exceeds allocated max 256`).
  The preflight compares what both builds tell (`virtqueue-size`). virtio-blk moves with `queue-size=1024` at the destination and
  virtio-scsi with `virtqueue_size=1024`; no property helps virtio-net, -balloon, -rng and -serial
  (`live/machines/virtqueues.rs`). A guest that was booted on 7.2 or 10.0.2 and was not reset on 10.0.13 has its old, smaller rings.
- **`x-query-virtio-status`** aborts 11.1.3 (`qapi-visit-core.c:52`, for every kind of virtio device), so the engine never sends it.
- **`query-pci`** shows a device behind a bridge only after the guest's firmware has numbered the buses. A destination that waits
  therefore never shows one, on any version. The engine reads the place of such a device from the device's properties.
- **RAM blocks** of one machine type are the same from 7.2 to 11.1. A memory backend that no device uses is a block without
  a name.
- **A read-only export on a destination that waits** for an incoming migration makes the exported node and all nodes below it
  active. From 10.0 on QEMU reports that (`active`), and the engine makes them inactive again (`blockdev-set-active`); 7.2 has
  neither. 7.2 also takes no lock for such an export: there, only the writable export of the migration itself fails on an image
  that another process has open.
- **Zeros in a raw image** without `discard=unmap` take up space on 10.0, and on 7.2 where the guest discarded blocks: the image
  arrives at its full size. On 11.1 zeros take up none. No answer of QEMU shows that option, so the preflight reports every raw
  image before 10.1.
- **A flash device** (EFI variables) moves with the guest's memory, and the destination writes it to its image at its first
  `cont`. The device is `/machine/NAME.flashN` on all versions.
- **Dirty bitmaps** move by the name of the drive or node. A bitmap that cannot move fails the migration, so the engine moves
  all of them or none.
- **Two capabilities together**: `multifd` with `xbzrle` is refused by 10.0 and 11.1, and `multifd` with `postcopy-ram` by 10.0;
  7.2 takes both. qferry refuses both everywhere.
- **`dirty-limit`** is refused where the accelerator has no dirty ring. `auto-converge` takes its place.
- **A throttle** by `auto-converge` can be tightened and loosened with `cpu-throttle-*` and `max-cpu-throttle` on all versions,
  but cannot be removed while the migration lasts. The end of the migration, whatever the outcome, removes the throttle.
- **`dirty-sync-count`** goes up at the end of each pass on all versions, and more often where the rest seems to fit into the
  downtime limit: there QEMU syncs each time before it decides. `ram.iterations` of an outcome is that count. The `remaining`
  beside `ram` (11.1) has the bytes of devices, too; while RAM is sent it is up to a tenth of a second old, and in
  `pre-switchover` it is right (`live/convergence/counts.rs`).
";

const MOVES_HEAD: &str = "
## Upgrades by moving the guest

`scripts/compatibility --write` made this table with real QEMUs under TCG. A booted Linux guest with drivers for a virtio-blk
disk, a virtio-scsi controller with an empty drive and a virtio-net card writes to memory and disk while it is moved. \"Whole\"
means that it ran on the destination, verified all of its memory and all that it had written, answered at its network card,
and that its disk, read offline, holds every write that it was told to be done. A guest of 7.2 is paused for the move, because 7.2
loses pages that a guest dirties meanwhile (below). What is refused is refused before anything is changed, and then tried
again with that code forced. Where all devices together do not move, fewer are tried. QEMU supports the way to an older
version no further than the versioned machine types go, hence `qemu-older`. A part of the table is a test
(`live/moves/upgrades.rs`).

";

/// The table, as `scripts/compatibility` keeps it.
const MOVES: &str = include_str!("moves.md");

/// A feature: its name, whether a build has it, and the engine's behaviour with and without.
type Row = (&'static str, fn(&Features) -> bool, &'static str);

const ROWS: [Row; 3] = [
    (
        "`exit-on-error` of `migrate-incoming`",
        |features| features.incoming_exit_on_error,
        "With this argument a destination that cannot load the guest's state keeps running and is asked for the reason. \
         Without the argument the destination exits, and the reason is only on its stderr.",
    ),
    (
        "`block-job-change`",
        |features| features.block_job_change,
        "With this command mirrors become write-blocking once they are ready, so nothing is left to copy when the guest \
         stops. Without the command mirrors stay in the background, and their last writes are copied within the blackout.",
    ),
    (
        "`avail-switchover-bandwidth`",
        |features| features.avail_switchover_bandwidth,
        "With this parameter the engine tells QEMU which bandwidth to expect when QEMU decides to switch over. Without the \
         parameter QEMU uses the bandwidth that it measured under the ceiling, and under a low ceiling may never switch over \
         within a small budget.",
    ),
];

fn table(head: &[String], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head) + &line(&vec!["---".to_owned(); head.len()]);
    rows.into_iter().for_each(|row| text += &line(&row));
    text
}

fn mark(has: bool) -> String {
    if has { "yes" } else { "no" }.to_owned()
}

/// A row for each name that not all versions have.
fn differences<'a>(versions: &[Version], has: impl Fn(&Version) -> BTreeSet<String> + 'a) -> Vec<Vec<String>> {
    let sets: Vec<BTreeSet<String>> = versions.iter().map(has).collect();
    let all: BTreeSet<&String> = sets.iter().flatten().collect();
    let differ = all.into_iter().filter(|name| !sets.iter().all(|set| set.contains(*name)));
    differ
        .map(|name| {
            let marks = sets.iter().map(|set| mark(set.contains(name)));
            std::iter::once(format!("`{name}`")).chain(marks).collect()
        })
        .collect()
}

fn render(versions: &[Version]) -> String {
    let head = |first: &str| -> Vec<String> {
        std::iter::once(first.to_owned()).chain(versions.iter().map(|version| version.name.clone())).collect()
    };
    let mut text = HEAD.to_owned();

    text += "\n## Builds that were recorded\n\n";
    let builds = versions.iter().map(|version| {
        let package = version.greeting["QMP"]["version"]["package"].as_str().unwrap().to_owned();
        let missing = version.features().missing;
        vec![version.name.clone(), package, if missing.is_empty() { "nothing".to_owned() } else { missing.join(", ") }]
    });
    text += &table(&["QEMU", "build", "necessary features it lacks"].map(str::to_owned), builds);

    text += "\n## How the engine adapts\n\n";
    let features = ROWS.iter().map(|(name, has, _)| {
        std::iter::once((*name).to_owned())
            .chain(versions.iter().map(|version| mark(has(&version.features()))))
            .collect()
    });
    text += &table(&head("feature"), features);
    text += "\n";
    for (name, _, meaning) in ROWS {
        text += &format!("- {name}: {meaning}\n");
    }

    text += "\n## Migration statuses as recorded\n";
    for course in COURSES {
        text += &format!(
            "\nA migration that {}:\n\n",
            if course == "cancelled" { "is cancelled in the switchover" } else { course }
        );
        let rows = versions.iter().map(|version| {
            let told = told(version, course);
            let way = |side: &str| told.statuses.get(side).map_or_else(String::new, |all| all.join(", "));
            vec![version.name.clone(), way("source"), way("destination")]
        });
        text += &table(&["QEMU", "source", "destination"].map(str::to_owned), rows);
    }

    text += "\n## Migration capabilities that some versions lack\n\n";
    text += &table(&head("capability"), differences(versions, |version| version.features().migration_capabilities));
    text += "\n## Migration statuses that some versions lack\n\n";
    let statuses = |version: &Version| {
        version.schema().argument_values("migrate-continue", "state").into_iter().map(str::to_owned).collect()
    };
    text += &table(&head("status"), differences(versions, statuses));
    text + MOVES_HEAD + MOVES + UNSEEN
}

#[test]
fn the_page_is_what_the_recordings_say() {
    golden(&root().join("docs/compatibility.md"), &render(&versions()));
}
