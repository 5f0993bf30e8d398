//! The begin of another engine's run, as its journal has it.

use qferry::internals::{
    endpoint::{Address, ProcessIdentity},
    migration::{
        FENCE,
        record::{MigrationBegin, Party},
    },
    run_id::RunId,
};
use std::{path::Path, time::Duration};

/// One of the two QEMUs, of which only its address and perhaps its process are known.
pub(crate) fn party(address: &str, process: Option<ProcessIdentity>) -> Party {
    Party { address: address.to_owned(), process, threads: Vec::new() }
}

/// The begin of a run between these two, with its sockets in this folder.
pub(crate) fn begun(folder: &Path, source: Party, destination: Party) -> MigrationBegin {
    let address = |name: &str| Address::unix(folder.join(name)).unwrap();
    MigrationBegin {
        run: RunId::new(),
        source,
        destination,
        was_running: true,
        pairs: Vec::new(),
        addresses: (address("nbd"), address("ram")),
        postcopy: false,
        keep_source: false,
        runtime_dir: folder.to_owned(),
        fence_command: None,
        fence_timeout: FENCE,
        switchover_timeout: Duration::from_secs(10),
        tells_start: true,
    }
}
