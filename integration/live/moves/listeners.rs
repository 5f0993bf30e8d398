//! The sockets on which QEMU listens for a migration: who can connect to them, and until when.
//!
//! Promise: trusted-files.

use crate::support::{block_on, builder, busy, judge_running, spec, start};
use qferry::internals::progress::{EventKind, Phase, PhaseState};
use qferry_bed::Pair;
use std::{
    collections::BTreeMap,
    fs::{read_dir, set_permissions},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

/// The sockets in the runtime directory by purpose: the mode, and whether a connection succeeds.
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

/// The NBD listener goes before the guest is handed over. QEMU keeps the listener of RAM until the destination has all
/// of it, and turns every further connection away. Other users can never connect.
#[test]
fn what_listens_is_private_and_goes_when_it_has_served() {
    for version in ["7.2", "10.0.13", "11.1"] {
        let pair = start(&spec(version, busy()));
        std::fs::create_dir_all(pair.run_dir()).unwrap();
        // The runtime directory may exist already, with another mode.
        set_permissions(pair.run_dir(), PermissionsExt::from_mode(0o755)).unwrap();
        let (outcome, seen) = block_on(async {
            let mut migration = builder(&pair).start_here().unwrap();
            let (mut events, mut seen) = (migration.events(), Vec::new());
            while let Some(event) = events.next().await {
                // The engine runs on this thread, too, so it stands still meanwhile.
                match event.kind {
                    // QEMU takes the first connection for the source's, so look only after that.
                    EventKind::Phase { phase, state: PhaseState::Begin, .. } if phase >= Phase::Switchover => {
                        let sockets = sockets(&pair);
                        seen.push((phase, sockets, has_arrived(&pair)));
                    }
                    EventKind::Outcome(_) => break,
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
            // The source goes on meanwhile, and may have sent everything already.
            let is_through = at == Phase::Handover && *has_arrived && listening.is_empty();
            assert!(listening == left || is_through, "{version}, {at:?}: {sockets:?}, {has_arrived}");
        }
        let modes = seen.iter().flat_map(|(_, sockets, _)| sockets.values()).map(|(mode, _)| *mode);
        assert!(modes.into_iter().all(|mode| mode == 0o600), "{version}: {seen:?}");
        // The connections of this test have done no harm.
        judge_running(&pair, &outcome);
    }
}
