//! Who can connect to what QEMU listens on for a migration, and until when.

use crate::support::{block_on, builder, busy, judge_running, spec, start};
use qferry::internals::progress::{Kind, Phase, PhaseState};
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

/// Whether the destination has all of the RAM.
fn has_arrived(pair: &Pair) -> bool {
    let events = pair.destination.events().unwrap();
    events.iter().any(|event| event.name == "MIGRATION" && event.data["status"] == "completed")
}

/// The disks' listener goes before the guest is handed over. RAM's stays until the destination has all of it, which is
/// QEMU's doing: it turns away whoever else connects meanwhile. And as long as they are there, no other user can.
#[test]
fn what_listens_is_private_and_goes_when_it_has_served() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let pair = start(&spec(version, busy()));
        std::fs::create_dir_all(pair.run_dir()).unwrap();
        // as one that was there before may be
        set_permissions(pair.run_dir(), PermissionsExt::from_mode(0o755)).unwrap();
        let (outcome, seen) = block_on(async {
            let mut migration = builder(&pair).start();
            let (mut events, mut seen) = (migration.events(), Vec::new());
            while let Some(event) = events.next().await {
                // the engine shares this thread, and does nothing meanwhile
                match event.kind {
                    // before the source has connected, whoever comes first is taken for it
                    Kind::Phase { phase, state: PhaseState::Begin } if phase >= Phase::Switchover => {
                        let sockets = sockets(&pair);
                        seen.push((phase, sockets, has_arrived(&pair)));
                    }
                    Kind::Outcome(_) => break,
                    _ => {}
                }
            }
            (migration.wait().await, seen)
        });
        for (at, left) in
            [(Phase::Switchover, &["nbd", "ram"][..]), (Phase::Handover, &["ram"][..]), (Phase::Cleanup, &[][..])]
        {
            let found = seen.iter().find(|(phase, ..)| *phase == at);
            let (_, sockets, has_arrived) = found.unwrap_or_else(|| panic!("{outcome:#?}"));
            let listening: Vec<&String> = sockets.iter().filter(|(_, (_, listens))| *listens).map(|at| at.0).collect();
            // the source goes on meanwhile, and may be through by the time that is looked
            let is_through = at == Phase::Handover && *has_arrived && listening.is_empty();
            assert!(listening == left || is_through, "{version}, {at:?}: {sockets:?}, {has_arrived}");
        }
        let modes = seen.iter().flat_map(|(_, sockets, _)| sockets.values()).map(|(mode, _)| *mode);
        assert!(modes.into_iter().all(|mode| mode == 0o600), "{version}: {seen:?}");
        // a stranger who connected has done no harm
        judge_running(&pair, &outcome);
    }
}
