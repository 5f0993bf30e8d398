//! Mirrors that do not get on, what they leave behind, and disks that do not answer their guest.

use super::{
    codes, diagnosed_for, expect, guest, mirror, mirror_to, path, send, short, slow_link, wait_for_migration, writer,
};
use crate::{
    machines::ask,
    support::{MIB, WAIT, start, until, writes},
};
use qferry_bed::{Bare, BootSector, ChannelProxy, MonitorProxy, Side, Spec, Tape};
use serde_json::json;
use std::{thread::sleep, time::Duration};

/// A guest that writes more than a slow link carries: fourteen places of 32 KiB, again and again.
fn busy_writer() -> BootSector {
    BootSector::new().repeat(|steps| (0..14).fold(steps, |steps, number| steps.write(1024 + 1024 * number, 64)))
}

/// A mirror that is starved, and the same one when somebody has paused it, or its target is lost.
#[test]
fn a_mirror_that_is_starved_is_told_from_one_that_is_paused_or_has_failed() {
    let pair = start(&Spec { boot: Some(busy_writer()), ..Spec::quick() });
    // The link is slower than what a guest writes even with a tenth of its time. The mirror has little on its way at
    // once, for QEMU counts what was copied in bursts of that.
    let (front, behind) = slow_link(&pair, 2 << 20, 96 << 10);
    mirror_to(&pair, &json!({ "granularity": 4096, "buf-size": 64 << 10 }), (&front, &behind));
    // the mirror has copied what the guest does not write again
    until(&pair, "query-block-jobs", |jobs| jobs[0]["offset"].as_u64() > Some(2 * MIB));
    let told = short(&pair);
    expect("mirror-starved", &told);
    assert!(!codes(&told.1).contains(&"mirror-stalled-idle"), "{:#}", told.1);
    drop(pair);

    // a mirror in step with its guest, whose target is silent: the guest waits for its disk as well
    let pair = guest("10.0.13", Some(busy_writer()));
    let [front, behind] = ["front", "behind"].map(|name| pair.run_dir().join(name));
    let link = ChannelProxy::start(front.clone(), behind.clone()).unwrap();
    mirror_to(&pair, &json!({ "auto-dismiss": false, "copy-mode": "write-blocking" }), (&front, &behind));
    pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_READY").unwrap();
    link.black_hole();
    sleep(Duration::from_millis(500));
    let told = short(&pair);
    expect("mirror-stalled-idle", &told);
    assert!(codes(&told.1).contains(&"guest-io-stalled"), "{:#}", told.1);
    link.cut();
    pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_COMPLETED").unwrap();
    let told = short(&pair);
    expect("mirror-failed", &told);
    assert!(told.1["causes"][0]["evidence"].to_string().contains("error"), "{:#}", told.1);
}

/// The same error by the mirror's other policies: one pauses it, and one has it try without end.
#[test]
fn a_mirror_with_a_dead_target_pauses_or_floods() {
    for (policy, code, words) in [("stop", "mirror-paused", "storage"), ("ignore", "mirror-failed", "by force")] {
        let pair = guest("10.0.13", Some(writer()));
        let [front, behind] = ["front", "behind"].map(|name| pair.run_dir().join(name));
        let link = ChannelProxy::start(front.clone(), behind.clone()).unwrap();
        mirror_to(&pair, &json!({ "on-target-error": policy }), (&front, &behind));
        pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_READY").unwrap();
        link.cut();
        pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_ERROR").unwrap();
        let told = short(&pair);
        expect(code, &told);
        assert!(told.1["causes"][0]["remedy"].as_str().unwrap().contains(words), "{:#}", told.1);
    }
}

/// RAM that is done before its mirror, mirrors that are kept after RAM was cancelled, and an export that nobody closed.
#[test]
fn mirrors_and_exports_that_outlive_their_part_are_named() {
    let pair = guest("10.0.13", Some(BootSector::new().repeat(|steps| steps.wait(18))));
    mirror(&pair, &json!({ "speed": 256 << 10, "auto-dismiss": true }));
    send(&pair, &["pause-before-switchover"], &json!({ "downtime-limit": 2000, "max-bandwidth": 1u64 << 33 }));
    wait_for_migration("pre-switchover", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    expect("mirror-not-ready", &short(&pair));
    pair.source.qmp("block-job-set-speed", &json!({ "device": "mirror", "speed": 0 })).unwrap();
    pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_READY").unwrap();
    expect("waiting-for-continue", &short(&pair));
    pair.source.qmp("block-job-cancel", &json!({ "device": "mirror" })).unwrap();
    pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_COMPLETED").unwrap();
    pair.source.qmp("migrate-continue", &json!({ "state": "pre-switchover" })).unwrap();
    wait_for_migration("completed", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    pair.destination.wait_for_status("paused", WAIT).unwrap();
    expect("export-left-open", &short(&pair));
    drop(pair);

    let pair = guest("10.0.13", None);
    mirror(&pair, &json!({}));
    pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_READY").unwrap();
    send(&pair, &["pause-before-switchover"], &json!({ "downtime-limit": 2000 }));
    wait_for_migration("pre-switchover", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    pair.source.qmp("migrate_cancel", &json!({})).unwrap();
    wait_for_migration("cancelled", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    // the destination's QEMU has ended, as it does
    expect("controller-waits", &diagnosed_for("2500ms", &[&path(&pair.source)]));
}

/// A guest whose disk does not answer, while nothing else is wrong.
#[test]
fn a_disk_that_does_not_answer_its_guest_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let [front, behind, image] = ["front", "behind", "image"].map(|name| folder.path().join(name));
    writer().write_raw(&image, 4 * MIB).unwrap();
    let file = format!("driver=file,node-name=image,filename={}", image.display());
    let server = Bare::start("10.0.13", &["-blockdev", &file]).unwrap();
    let listen = json!({ "addr": { "type": "unix", "data": { "path": behind } } });
    ask(&server, "nbd-server-start", &listen);
    ask(
        &server,
        "block-export-add",
        &json!({ "id": "e", "type": "nbd", "node-name": "image", "name": "d", "writable": true }),
    );
    let link = ChannelProxy::start(front.clone(), behind).unwrap();
    for (kind, thread) in [("virtio-blk-pci,drive=n,iothread=io0", true), ("virtio-scsi-pci", false)] {
        let disk = format!("driver=nbd,node-name=n,export=d,server.type=unix,server.path={}", front.display());
        let mut arguments = vec!["-object", "iothread,id=io0", "-blockdev", &disk, "-device", kind];
        arguments.extend(if thread { &[][..] } else { &["-device", "scsi-hd,drive=n"] });
        let source = Bare::start("10.0.13", &arguments).unwrap();
        let begun = std::time::Instant::now();
        while writes(&ask(&source, "query-blockstats", &json!({}))) == 0 {
            assert!(begun.elapsed() < WAIT, "the guest does not write");
            sleep(Duration::from_millis(20));
        }
        let look = || diagnosed_for("2500ms", &[source.qmp_path().to_str().unwrap()]);
        if thread {
            super::healthy(&look());
        }
        link.black_hole();
        sleep(Duration::from_millis(200));
        expect("guest-io-stalled", &look());
        link.resume();
    }
}

/// A main loop that hangs while it is looked at: freed out of band, or not.
#[test]
fn a_main_loop_that_hangs_is_told_by_what_its_monitor_offers() {
    let pair = guest("10.0.13", Some(writer()));
    let [front, behind, monitor] = ["front", "behind", "monitor"].map(|name| pair.run_dir().join(name));
    let link = ChannelProxy::start(front.clone(), behind.clone()).unwrap();
    mirror_to(&pair, &json!({ "copy-mode": "write-blocking" }), (&front, &behind));
    pair.source.wait_for_event(WAIT, |event| event.name == "BLOCK_JOB_READY").unwrap();
    until(&pair, "query-blockstats", |blocks| writes(blocks) > 0);
    let proxy = MonitorProxy::start(Side::Source, monitor, pair.source.qmp_path(), &Tape::default()).unwrap();
    proxy.offer_nothing();
    for (address, code) in [(pair.source.qmp_path(), "monitor-blocked"), (proxy.path().to_owned(), "no-out-of-band")] {
        link.black_hole();
        let told = std::thread::scope(|scope| {
            let look = scope.spawn(|| diagnosed_for("4s", &[address.to_str().unwrap()]));
            sleep(Duration::from_millis(1500));
            let stop = scope.spawn(|| pair.source.qmp("stop", &json!({})).map(drop));
            let told = look.join().unwrap();
            link.resume();
            drop(stop.join());
            told
        });
        expect(code, &told);
        pair.source.wait_for_status("paused", WAIT).unwrap();
        pair.source.qmp("cont", &json!({})).unwrap();
    }
}
