//! NBD servers of somebody else, and addresses on which no server can listen.

use super::{
    super::support::{MIB, start},
    blocker, found, look, quick, serve,
};
use qferry::internals::{endpoint::Address, storage::verify::identity::ProofLevel};
use qferry_bed::{Deviation, DiskSpec, Format, Layer, Machine, Pair, Sharing};
use serde_json::{Value, json};
use std::{os::unix::net::UnixStream, path::Path};

/// Adds an export of a node to the NBD server.
fn export(machine: &Machine, node: &str) -> Value {
    let export = json!({"type": "nbd", "id": "theirs", "node-name": node, "name": "theirs"});
    machine.qmp("block-export-add", &export).unwrap()
}

fn listens(at: &Path) -> bool {
    UnixStream::connect(at).is_ok()
}

#[test]
fn a_server_of_somebody_elses_on_the_source() {
    let mut pair = start(&quick([DiskSpec::small()]));
    let socket = pair.run_dir().join("theirs");
    serve(&pair.source, &socket);
    let running = "an NBD server runs there already";
    let unproved = || blocker("backing-unproved", "disk0", [&running, &"without exports", &"nbd-server-stop"]);
    found(&look(&pair, |_| ()), [unproved()]);
    assert!(listens(&socket));
    export(&pair.source, "disk0");
    found(&look(&pair, |_| ()), [blocker("backing-unproved", "disk0", [&running, &"with theirs"])]);
    assert!(listens(&socket));
    // Nothing is read from the source where both sides have the same files.
    for sharing in [Sharing::SamePath, Sharing::HardLink, Sharing::Symlink] {
        pair.deviate([Deviation::SourcesBacking { disk: 0, sharing }]).unwrap();
        let plan = look(&pair, |_| ());
        found(&plan, []);
        assert_eq!(
            plan.verified[0].by,
            qferry::internals::storage::verify::identity::ProofMethod::SameFile,
            "{sharing:?}"
        );
    }
    assert!(listens(&socket));
}

#[test]
fn a_server_of_somebody_elses_on_the_destination() {
    let pair = start(&quick([DiskSpec::small(), DiskSpec::alone(Format::Qcow2, 16 * MIB)]));
    let socket = pair.run_dir().join("theirs");
    serve(&pair.destination, &socket);
    let running = "an NBD server runs there already";
    let all = [
        blocker("backing-unproved", "disk0", [&running]),
        blocker("overlay-unproved", "disk0", [&running]),
        blocker("overlay-unproved", "disk1", [&running]),
    ];
    found(&look(&pair, |_| ()), all);
    export(&pair.destination, "disk0-file");
    found(&look(&pair, |_| ()), [blocker("export-open", "destination", [&"theirs"])]);
    assert!(listens(&socket));
}

#[test]
fn addresses_that_cannot_be_used() {
    let pair = start(&quick([DiskSpec::small()]));
    // QEMU can make no socket in place of a folder.
    let folder = pair.run_dir().join("taken");
    std::fs::create_dir(&folder).unwrap();
    let nowhere = Address::unix(&folder).unwrap();
    let plan = look(&pair, |settings| settings.source_nbd_address = Some(nowhere.clone()));
    found(&plan, [blocker("backing-unproved", "disk0", [&"taken"])]);
    let plan = look(&pair, |settings| settings.nbd_address = Some(nowhere.clone()));
    let both = ["backing-unproved", "overlay-unproved"].map(|code| blocker(code, "disk0", [&"taken"]));
    found(&plan, both);
    // The user goes on without a proof.
    let plan = look(&pair, |settings| {
        (settings.nbd_address, settings.verify_backing) = (Some(nowhere.clone()), ProofLevel::Off);
    });
    assert_eq!(plan.blockers().count(), 0, "{plan:#?}");
}

/// A chain counts as shared only if all its files are the same.
#[test]
fn a_chain_of_the_same_files_is_not_read() {
    let chain = DiskSpec::chain([Layer::raw(16 * MIB, MIB), Layer::qcow2(16 * MIB, MIB)]);
    let mut pair: Pair = start(&quick([chain]));
    let socket = pair.run_dir().join("theirs");
    serve(&pair.source, &socket);
    for (sharing, blockers) in [(Sharing::SamePath, 0), (Sharing::HardLink, 0)] {
        pair.deviate([Deviation::SourcesBacking { disk: 0, sharing }]).unwrap();
        let plan = look(&pair, |_| ());
        assert_eq!(plan.blockers().count(), blockers, "{sharing:?}: {plan:#?}");
    }
}
