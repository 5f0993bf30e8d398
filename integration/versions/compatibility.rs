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

These versions are recorded in `qmp-fixtures/` and tested. What a build can do is read from its schema
(`query-qmp-schema`), never from its version, so others between them and after them work as far as their schema goes; one
that lacks something needed is refused with its name before anything is changed.
";

const UNSEEN: &str = "
## What no schema shows

- **A mirror's start can lose writes** on QEMU 8.0 to 10.2.1 (fixed upstream by 167ef239fb, in 10.0.13 as a backport).
  Distributions patch it without a trace, so every mirror's start is proved free of writes on every version, and made
  again where it is not.
- **7.2 under TCG** can lose what a guest wrote to its RAM while RAM is sent, with or without qferry (12 of 48 moves by
  plain QMP at 32 MiB/s on a busy host; none of 24 without a ceiling, none of 12 on 10.0.13): the guest wakes with pages of
  before, loses a timer and hangs in idle, or panics. KVM was not tried.
- **A CPU that is the same** to the guest is told differently: `ht` and `cmp-legacy` are in `feature-words` from 10.0 on,
  and are left out of the comparison. `-cpu max` is truly another CPU on 7.2 than on 10.0 (family, model and features), and
  has more on 11.1 than on 10.0; named models with a versioned machine type lose nothing on a newer QEMU.
- **query-pci** shows what is behind a bridge only once the guest's firmware has numbered the buses, so never on a waiting
  destination, on any version. The place of such a device is read from its properties.
- **RAM blocks** of one machine type are the same from 7.2 to 11.1. A memory backend that no device uses is a block without
  a name.
- **A read-only export of a node that waits** for an incoming migration makes it and what is below it active. From 10.0 on
  QEMU tells (`active`) and it is put back (`blockdev-set-active`); on 7.2 neither. 7.2 takes no lock for such an export either:
  at_destination only the writable export of the migration itself meets an image that another process has open.
- **Zeros in a raw image** without `discard=unmap` take their space on 10.0 (and on 7.2 where the guest gives blocks back), so the
  image arrives in full; not on 11.1. No answer shows the option: the preflight says so for every raw image before 10.1.
- **A flash** (EFI variables) comes over with the guest's memory, and the destination writes it to its image at its first
  `cont`. Its device is `/machine/NAME.flashN` on all versions.
- **Dirty bitmaps** move by the name of the drive or node, and one that cannot fails the migration: all move, or none.
- **Two capabilities together**: `multifd` with `xbzrle` is refused by 10.0 and 11.1, and with `postcopy-ram` by 10.0; 7.2
  takes both. qferry refuses both everywhere.
- **`dirty-limit`** is refused where the accelerator has no dirty ring; `auto-converge` takes its place.
- **A throttle** by `auto-converge` is tightened and loosened by `cpu-throttle-*` and `max-cpu-throttle` on all versions, but
  never set to nothing while the migration lasts; its end, however it ends, ends the throttle.
- **11.1** counts `dirty-sync-count` up about ten times a second whether or not a pass ended, so `ram.iterations` of an
  outcome means less at_destination.
";

/// A feature: its name, whether a build has it, and the engine's behaviour with and without.
type Row = (&'static str, fn(&Features) -> bool, &'static str);

const ROWS: [Row; 3] = [
    (
        "`exit-on-error` of `migrate-incoming`",
        |features| features.incoming_exit_on_error,
        "With it a destination that cannot load the state stays and is asked why; without it, it exits, and the reason \
         is only on its stderr.",
    ),
    (
        "`block-job-change`",
        |features| features.block_job_change,
        "With it mirrors turn write-blocking once they are ready, so nothing is left to copy when the guest stops; \
         without it they stay in the background, and their last writes are copied within the blackout.",
    ),
    (
        "`avail-switchover-bandwidth`",
        |features| features.avail_switchover_bandwidth,
        "With it QEMU is told with what bandwidth to reckon when it decides to switch over; without it it reckons with \
         what it measured under the ceiling, and under a low one may never switch over within a small budget.",
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
    text += &table(&["QEMU", "build", "missing of what is needed"].map(str::to_owned), builds);

    text += "\n## What the engine does differently\n\n";
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

    text += "\n## Migration capabilities that not all have\n\n";
    text += &table(&head("capability"), differences(versions, |version| version.features().migration_capabilities));
    text += "\n## Migration statuses that not all have\n\n";
    let statuses = |version: &Version| {
        version.schema().argument_values("migrate-continue", "state").into_iter().map(str::to_owned).collect()
    };
    text += &table(&head("status"), differences(versions, statuses));
    text + UNSEEN
}

#[test]
fn the_page_is_what_the_recordings_say() {
    golden(&root().join("docs/compatibility.md"), &render(&versions()));
}
