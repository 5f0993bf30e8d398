//! Read-only exports, which change nothing and are all closed again.

use crate::{
    bare::{Bare, disk, incoming},
    support::block_on,
};
use qferry::internals::{
    endpoint::Address, progress::Side, qemu::ProcessError, run_id::RunId, storage::verify::read_export::ReadExports,
};
use qferry_bed::Build;
use serde_json::json;
use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, path::Path};

const VERSIONS: [&str; 3] = ["7.2", "10.0.13", "11.1"];

fn chain(build: &Build, folder: &Path) {
    let path = |name: &str| folder.join(name).into_os_string();
    build.img(["create".into(), "-f".into(), "qcow2".into(), path("base.qcow2"), "64M".into()]).unwrap();
    let over = ["create", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2"].map(Into::into);
    build.img(over.into_iter().chain([path("top.qcow2")])).unwrap();
}

/// Whether each node is active, if QEMU tells.
fn active(qemu: &Bare) -> BTreeMap<String, Option<bool>> {
    let nodes = qemu.ask("query-named-block-nodes", &json!({ "flat": true }));
    let nodes = nodes.as_array().unwrap().iter();
    nodes.map(|node| (node["node-name"].as_str().unwrap().to_owned(), node["active"].as_bool())).collect()
}

#[test]
fn a_view_of_either_side_leaves_nothing_changed() {
    for version in VERSIONS {
        let (build, folder) = (Build::locate(version).unwrap(), tempfile::tempdir().unwrap());
        chain(&build, folder.path());
        for waits in [false, true] {
            let mut more = disk("disk0", "qcow2", &folder.path().join("top.qcow2"));
            more.extend(if waits { incoming() } else { Vec::new() });
            let qemu = Bare::start(&build, folder.path(), "qemu", &more);
            let before = active(&qemu);
            let address = Address::unix(folder.path().join("nbd")).unwrap();
            block_on(async {
                let process = qemu.process(Side::Source).await;
                let nodes = [("one".to_owned(), "disk0".to_owned()), ("two".to_owned(), "disk0".to_owned())];
                let view = ReadExports::open(&process, &RunId::new(), &address, &nodes).await.unwrap();
                assert_eq!(qemu.exports().len(), 2);
                let mode = std::fs::metadata(folder.path().join("nbd")).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600);
                let uri = format!("nbd+unix:///one?socket={}", folder.path().join("nbd").display());
                let seen = build.img(["info", "--output=json", &uri]).unwrap();
                assert!(seen.contains("67108864"), "{seen}");
                view.close(&process).await.unwrap();
            });
            assert_eq!(qemu.exports(), Vec::<String>::new());
            assert!(!qemu.has_server(folder.path()), "{version}");
            assert_eq!(active(&qemu), before, "{version}, waits for a guest: {waits}");
            assert!(!folder.path().join("nbd").exists());
            assert_eq!(qemu.status(), if waits { "inmigrate" } else { "running" });
        }
    }
}

#[test]
fn what_fails_to_open_is_closed() {
    let (build, folder) = (Build::locate("10.0.13").unwrap(), tempfile::tempdir().unwrap());
    chain(&build, folder.path());
    let qemu = Bare::start(&build, folder.path(), "qemu", &disk("disk0", "qcow2", &folder.path().join("top.qcow2")));
    let address = Address::unix(folder.path().join("nbd")).unwrap();
    let good = ("one".to_owned(), "disk0".to_owned());
    block_on(async {
        let process = qemu.process(Side::Source).await;
        let nodes = [good, ("two".to_owned(), "nowhere".to_owned())];
        let good = &nodes[..1];
        let error = ReadExports::open(&process, &RunId::new(), &address, &nodes).await.unwrap_err();
        assert!(error.refusal().is_some_and(|words| words.contains("nowhere")), "{error:?}");
        assert_eq!(qemu.exports(), Vec::<String>::new());
        assert!(!qemu.has_server(folder.path()));

        // The export of a dead engine is removed, one with a reader is not.
        let left = ReadExports::open(&process, &RunId::new(), &address, good).await.unwrap();
        let other = Address::unix(folder.path().join("other")).unwrap();
        let view = ReadExports::open(&process, &RunId::new(), &other, good).await.unwrap();
        drop(left);
        assert_eq!(qemu.exports().len(), 1);
        let mut reader = std::os::unix::net::UnixStream::connect(folder.path().join("other")).unwrap();
        negotiate(&mut reader, "one");
        let error = ReadExports::open(&process, &RunId::new(), &address, good).await.unwrap_err();
        assert!(matches!(&error, ProcessError::InUse { what, .. } if what.contains("another qferry")), "{error:?}");
        view.close(&process).await.unwrap();
        drop(reader);

        // A server of somebody else is left alone.
        let addr = json!({ "addr": { "type": "unix", "data": { "path": folder.path().join("theirs") } } });
        qemu.ask("nbd-server-start", &addr);
        let error = ReadExports::open(&process, &RunId::new(), &address, good).await.unwrap_err();
        assert!(matches!(&error, ProcessError::InUse { what, .. } if what.contains("nbd-server-stop")), "{error:?}");
        assert!(qemu.has_server(folder.path()));
    });
}

/// Negotiates as an NBD client that reads from an export.
fn negotiate(stream: &mut std::os::unix::net::UnixStream, export: &str) {
    use std::io::{Read, Write};
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    let mut words = 3u32.to_be_bytes().to_vec();
    words.extend(b"IHAVEOPT");
    words.extend(1u32.to_be_bytes()); // by name, and on to transmission
    words.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
    words.extend(export.as_bytes());
    stream.write_all(&words).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
}
