//! Monitors with and without commands out of band, as the preflight finds them.

use super::{Bare, Severity, only};
use qferry::internals::{endpoint::Address, migration::Migration, preflight::checks::Finding};
use qferry_bed::{MonitorProxy, Side, Tape};
use std::path::Path;

/// The findings about the offers of the two monitors. The process behind a proxy's socket is no QEMU, of which others
/// tell.
fn found(source: &Path, destination: &Path) -> Vec<Finding> {
    let [source, destination] = [source, destination].map(|path| Address::unix(path).unwrap());
    let mut plan = Migration::builder(source, destination).check().unwrap();
    let findings = plan.wait_blocking().unwrap_or_else(|error| panic!("{error:?}")).findings;
    findings.into_iter().filter(|finding| finding.code.as_str() == "no-out-of-band").collect()
}

/// Every version offers them to a monitor on a socket, also where the socket is shared (`mux=on`).
#[test]
fn a_monitor_without_an_offer_of_commands_out_of_band_is_warned_of() {
    for (version, kind) in [("7.2", ",mux=on"), ("10.0.13", ""), ("11.1", ",mux=on")] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let chardev = format!("socket,id=m,path={},server=on,wait=off{kind}", path("own").display());
        let source = Bare::start(version, &["-chardev", &chardev, "-mon", "chardev=m,mode=control"]).unwrap();
        let destination = Bare::start(version, &["-incoming", "defer", "-S"]).unwrap();
        let tape = Tape::default();
        let between = |side, name: &str, qemu| {
            let proxy = MonitorProxy::start(side, path(name), qemu, &tape).unwrap();
            proxy.offer_nothing();
            proxy
        };
        assert_eq!(found(&path("own"), &destination.qmp_path()), [], "{version}{kind}");
        let proxy = between(Side::Source, "source", source.qmp_path());
        let findings = found(proxy.path(), &destination.qmp_path());
        only(&findings, "no-out-of-band", Severity::Warning, &["source", "-qmp unix:PATH", "cannot be freed"]);
        let proxy = between(Side::Destination, "destination", destination.qmp_path());
        let findings = found(&path("own"), proxy.path());
        only(&findings, "no-out-of-band", Severity::Warning, &["destination", "cannot be told from"]);
    }
}
