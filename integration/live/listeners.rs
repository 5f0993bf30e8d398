//! Who can connect to what QEMU listens on for a migration, and until when.

use super::support::{builder, busy, judge_running, migrate_when, spec, start};
use qferry::progress::{Kind, Phase, PhaseState};
use qferry_bed::Pair;
use std::{
    collections::BTreeMap,
    fs::{read_dir, set_permissions},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

/// The sockets in the runtime directory by what they are for: their modes, and whether one can connect.
fn sockets(pair: &Pair) -> BTreeMap<String, (u32, bool)> {
    let found = read_dir(pair.run_dir()).unwrap().map(Result::unwrap).map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        let what = name.rsplit('-').next().unwrap().to_owned();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        (what, (mode, UnixStream::connect(entry.path()).is_ok()))
    });
    found.collect()
}

fn begins(at: Phase) -> impl Fn(&Kind) -> bool {
    move |kind| matches!(kind, Kind::Phase { phase, state: PhaseState::Begin } if *phase == at)
}

/// Nothing listens any more than it is needed: RAM's listener goes when the source has connected, the disks' before the
/// guest is handed over. And as long as they are there, nobody else's user can connect.
#[test]
fn what_listens_is_private_and_goes_when_it_has_served() {
    for version in ["7.2", "10.0.13", "11.1"] {
        for (at, disks) in [(Phase::Switchover, true), (Phase::Handover, false)] {
            let pair = start(&spec(version, busy()));
            std::fs::create_dir_all(pair.run_dir()).unwrap();
            // as one that was there before may be
            set_permissions(pair.run_dir(), PermissionsExt::from_mode(0o755)).unwrap();
            let mut seen = BTreeMap::new();
            let (outcome, _) = migrate_when(builder(&pair), begins(at), |_| seen = sockets(&pair));
            assert!(seen.values().all(|(mode, _)| *mode == 0o600), "{version}, {at:?}: {seen:?}");
            let listens = |what: &str| seen.get(what).is_some_and(|(_, listens)| *listens);
            assert_eq!((listens("nbd"), listens("ram")), (disks, false), "{version}, {at:?}: {seen:?}");
            judge_running(&pair, &outcome);
        }
    }
}
