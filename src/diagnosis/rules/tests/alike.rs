//! The causes that look alike, by table.

use super::*;

/// For each pair of a group that looks alike: what tells them apart, in both directions.
#[test]
fn causes_that_look_alike_are_told_apart() {
    use DiagnosisCode as Code;
    let first = |looks: &PairLooks| causes(looks).first().map(|cause| (cause.code, cause.confidence));

    // a channel that carries nothing: a queue that is full, and one that is not seen
    let mut dead = steady("running", ram(100, 300, 0, 2, 300));
    dead.process = Some(connection(65_536, ConnectionState::Established));
    assert_eq!(first(&only_source(dead.clone())), Some((Code::LinkDead, Confidence::Certain)));
    dead.process = None;
    assert_eq!(first(&only_source(dead.clone())), Some((Code::LinkDead, Confidence::Likely)));
    // a channel that takes nothing is no question of the switchover, which libvirt asks about in every migration
    let mut asked = steady("running", ram(100, 0, 0, 2, 300));
    asked.capabilities.insert("switchover-ack".to_owned());
    asked.process = Some(connection(65_536, ConnectionState::Established));
    assert_eq!(first(&only_source(asked.clone())), Some((Code::LinkDead, Confidence::Certain)));
    asked.process = Some(connection(0, ConnectionState::Established));
    assert_eq!(codes(&only_source(asked.clone())), [Code::SwitchoverNotAcked]);
    // and where the connection is not seen, it may be either
    asked.process = None;
    assert_eq!(codes(&only_source(asked)), [Code::LinkDead, Code::SwitchoverNotAcked]);
    // a way that passes small segments alone is possible only while next to nothing has been sent
    let mut begun = steady("running", ram(2, 300, 0, 1, 300));
    begun.process = dead.process.clone().or_else(|| Some(connection(65_536, ConnectionState::Established)));
    assert_eq!(codes(&only_source(begun)), [Code::LinkDead, Code::Mtu]);
    assert_eq!(codes(&only_source(dead.clone())), [Code::LinkDead]);
    // a destination that is stopped explains the same silence
    let mut stopped = waiting();
    stopped.process = Some(ProcessLook { pid: 7, state: 'T', ..ProcessLook::default() });
    let both = pair(dead, stopped);
    assert_eq!(first(&both), Some((Code::ProcessStopped, Confidence::Certain)));
    let follows =
        causes(&both).into_iter().find(|cause| cause.code == Code::LinkDead).expect("the silence is told, too");
    assert_eq!(follows.confidence, Confidence::Possible);

    // a mirror that copies nothing: its queue is full, or empty
    let mut stalled = side("running", vec![json!({}); 7], |_| job(10, 100, &json!({})));
    stalled.nodes = vec![NodeLook {
        node_name: "nbd0".to_owned(),
        drv: "nbd".to_owned(),
        file: "nbd://10.0.0.2:4444/disk".to_owned(),
        active: None,
    }];
    stalled.process = Some(connection(0, ConnectionState::Established));
    assert_eq!(first(&only_source(stalled.clone())), Some((Code::MirrorStalledIdle, Confidence::Likely)));
    stalled.process = Some(connection(4096, ConnectionState::Established));
    assert_eq!(first(&only_source(stalled)), Some((Code::LinkDead, Confidence::Certain)));

    // a mirror of a small disk whose guest writes all of it again and again: looks differ by a granule
    let granules = |n: usize, copied: u64, left: [u64; 7]| {
        let (offset, left) = (copied * n as u64, left[n]);
        json!([{ "device": "m", "type": "mirror", "len": (offset + left) << 16, "offset": offset << 16, "status": "running" }])
    };
    let told = |copied, left| codes(&only_source(side("running", vec![json!({}); 7], |n| granules(n, copied, left))));
    assert_eq!(told(2, [14, 14, 14, 13, 14, 13, 14]), [Code::MirrorStarved]);
    assert_eq!(told(2, [14, 13, 14, 14, 14, 14, 14]), [Code::MirrorStarved]);
    // and one that gets on, however slowly
    assert_eq!(told(1, [20, 19, 18, 17, 16, 15, 14]), []);
    assert_eq!(told(4, [40, 38, 36, 34, 32, 30, 28]), []);

    // pre-switchover: the destination waits, or is gone
    let stands = || steady("finish-migrate", json!({ "status": "pre-switchover" }));
    assert_eq!(first(&pair(stands(), waiting())), Some((Code::WaitingForContinue, Confidence::Certain)));
    let gone = SideLooks::new("d".to_owned(), MonitorReach::Gone { words: "nobody listens".to_owned() });
    assert_eq!(first(&pair(stands(), gone)), Some((Code::DestinationGone, Confidence::Certain)));

    // RAM without an end: what would get it to its end is a little more downtime, or something else
    let endless = |limit: u64, expected: u64| {
        let ram = move |n: u64| ram(1000 + 50 * n, 200, 30_000, 4 + n, expected);
        let mut source = side("running", (0..7).map(ram), |_| json!([]));
        source.parameters.insert("downtime-limit".to_owned(), limit.into());
        codes(&only_source(source))
    };
    assert_eq!(endless(300, 2000), [Code::NotConverging, Code::DowntimeTooSmall]);
    assert_eq!(endless(20, 160), [Code::DowntimeTooSmall, Code::NotConverging]);
    assert_eq!(endless(1000, 1800), [Code::DowntimeTooSmall, Code::NotConverging]);
    assert_eq!(endless(3000, 2000), [Code::NotConverging]);

    // a guest that stands: its virtual CPUs have not stopped, or they have and QEMU waits for the manager
    assert_eq!(codes(&only_source(steady("finish-migrate", ram(100, 1, 0, 4, 10))))[0], Code::VcpuNotStopping);
    assert_eq!(codes(&only_source(stands())), [Code::WaitingForContinue]);

    // a guest that has moved: the length of its blackout
    for (downtime, found) in [(300, None), (4000, Some((Code::ClockJump, Confidence::Possible)))] {
        let source = steady("postmigrate", json!({ "status": "completed", "downtime": downtime }));
        assert_eq!(first(&pair(source, steady("running", json!({ "status": "completed" })))), found);
    }

    // setup: nobody answers the first segment, or a handshake waits
    let mut setup = steady("running", json!({ "status": "setup" }));
    setup.parameters.insert("tls-creds".to_owned(), "tls0".into());
    assert_eq!(codes(&only_source(setup.clone())), [Code::Tls]);
    setup.process = Some(connection(0, ConnectionState::SynSent));
    assert_eq!(codes(&only_source(setup)), [Code::SetupBlocked]);

    // a mirror that is paused by an error, or by a client
    for (io_status, words) in [("nospace", "room"), ("failed", "storage"), ("ok", "client of QEMU")] {
        let paused = |_| job(10, 100, &json!({ "paused": true, "status": "paused", "io-status": io_status }));
        let found = causes(&only_source(side("running", vec![json!({}); 7], paused)));
        let told = format!("{:?}", found.first());
        assert!(found.len() == 1 && told.contains(words), "{told}");
    }

    // a source that waits: somebody else has a monitor, wants this one, or may be behind another program
    let stands = || unattended(steady("finish-migrate", json!({ "status": "pre-switchover" })));
    assert_eq!(codes(&stands()), [Code::WaitingForContinue, Code::Ownerless]);
    let other = |change: &dyn Fn(&mut SideLooks)| {
        let mut looks = stands();
        change(looks.source.as_mut().expect("a side"));
        codes(&looks)
    };
    let connected = |side: &mut SideLooks| side.looks[3].chardevs[1].filename = "unix:/watch,server=on".to_owned();
    assert_eq!(other(&connected), [Code::WaitingForContinue]);
    assert_eq!(other(&|side| side.is_wanted = true), [Code::WaitingForContinue]);
    assert_eq!(other(&|side| side.is_direct = false), [Code::WaitingForContinue]);
    // a program that is connected with the destination alone
    let mut looks = stands();
    let mut destination = waiting();
    destination.looks.iter_mut().for_each(|look| {
        look.chardevs =
            list(&json!([{ "label": "a", "filename": "unix:/a" }, { "label": "b", "filename": "unix:/b" }]));
    });
    looks.destination = Some(destination);
    assert_eq!(codes(&looks), [Code::WaitingForContinue]);
    // and a guest that simply runs waits for nobody
    assert_eq!(codes(&unattended(steady("running", json!({})))), []);

    // a guest that has arrived: QEMU says nothing, or something has been heard of it
    for (taps, rounds, found) in [
        (&[("tap0", 0), ("tap1", 3)][..], 5, Some(Confidence::Likely)),
        (&[("tap0", 0)], 0, Some(Confidence::Certain)),
        (&[("tap0", 5)], 5, None),
        (&[("tap0", 1)], 0, None),
        (&[], 5, None),
        (&[], 0, None),
    ] {
        let found = found.map(|confidence| (Code::NetworkUnannounced, confidence));
        assert_eq!(first(&arrived(taps, rounds)), found, "{taps:?} {rounds}");
    }
    let mut card = arrived(&[], 0);
    card.source.as_mut().expect("a side").take(
        "query-pci",
        &json!([{ "devices": [{ "class_info": { "class": 1536 } },
            { "class_info": { "class": 1540 }, "pci_bridge": { "devices": [{ "class_info": { "class": 512 } }] } }] }]),
    );
    assert_eq!(first(&card), Some((Code::NetworkUnannounced, Confidence::Possible)));

    // a disk: requests that stay under way, and those that come and go
    assert_eq!(codes(&stalled_queue(&[1, 2], &[7, 7])), [Code::GuestIoStalled]);
    for (in_flight, answered) in [([1, 1], [7, 8]), ([1, 0], [7, 8]), ([0, 0], [7, 7]), ([0, 1], [7, 7])] {
        assert_eq!(codes(&stalled_queue(&in_flight, &answered)), [], "{in_flight:?} {answered:?}");
    }
    assert_eq!(codes(&stalled_queue(&[1], &[7])), []);
    let mut paused = stalled_queue(&[1, 1], &[7, 7]);
    paused.source.iter_mut().flat_map(|side| &mut side.looks).for_each(|look| look.run = Some("paused".into()));
    assert_eq!(codes(&paused), []);

    // both sides stand: an export is to be closed first, and in postcopy neither is to be started
    let stands = |status: &str| steady("postmigrate", json!({ "status": status }));
    let arrived = || steady("paused", json!({ "status": "completed" }));
    assert_eq!(codes(&pair(stands("completed"), arrived())), [Code::BothPaused]);
    let mut exporting = arrived();
    exporting.looks.iter_mut().for_each(|look| look.exports = list(&json!([{ "id": "e" }])));
    assert_eq!(codes(&pair(stands("completed"), exporting)), [Code::ExportLeftOpen, Code::BothPaused]);
    // an image that somebody else writes to keeps the guest from being started
    for (active, is_locked, found) in [
        (Some(false), true, vec![Code::ImageLocked, Code::BothPaused]),
        (Some(false), false, vec![Code::BothPaused]),
        (Some(true), true, vec![Code::BothPaused]),
        (None, true, vec![Code::BothPaused]),
    ] {
        let (mut side, path) = (arrived(), "/srv/a.qcow2".to_owned());
        side.nodes = vec![NodeLook { drv: "qcow2".to_owned(), file: path.clone(), active, ..NodeLook::default() }];
        let files = vec![OpenFileLook { path, writable: true, is_locked }];
        side.process = Some(ProcessLook { pid: 7, state: 'S', files, ..ProcessLook::default() });
        assert_eq!(codes(&pair(stands("completed"), side)), found, "{active:?} {is_locked}");
    }
    let broken = || steady("paused", json!({ "status": "postcopy-paused" }));
    assert_eq!(codes(&pair(stands("postcopy-paused"), broken())), [Code::PostcopyPaused]);

    // pre-switchover: the mirrors are not ready, or are
    for (offset, expected) in
        [(50, [Code::MirrorNotReady, Code::WaitingForContinue].as_slice()), (100, &[Code::WaitingForContinue])]
    {
        let mirrors = |n: usize| job(offset + n as u64 * (100 - offset) / 10, 100, &json!({ "ready": offset == 100 }));
        let source = side("finish-migrate", vec![json!({ "status": "pre-switchover" }); 7], mirrors);
        assert_eq!(codes(&only_source(source)), expected, "{offset}");
    }

    // two guests that are not the same
    let mut pair_of_guests = pair(steady("running", json!({})), steady("running", json!({})));
    let mut name = |side: Side, uuid: &str| {
        let seen = if side == Side::Source { &mut pair_of_guests.source } else { &mut pair_of_guests.destination };
        seen.as_mut().expect("a side").uuid = Some(uuid.to_owned());
        first(&pair_of_guests)
    };
    name(Side::Source, "a");
    assert_eq!(name(Side::Destination, "a"), Some((Code::BothRunning, Confidence::Certain)));
    assert_eq!(name(Side::Destination, "b"), None);
}
