//! What the network hears of a guest that has moved.

use crate::support::{WAIT, block_on};
use qferry::internals::{
    endpoint::Address,
    migration::{JournalPlace, Migration},
    progress::{Ending, Event, EventKind},
};
use qferry_bed::Bare;
use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

/// The rounds in which QEMU announces by itself.
const BY_ITSELF: usize = 5;

/// The announcements (reverse ARP) in a capture, whose records have a header of 16 bytes behind one of 24.
fn announcements(capture: &Path) -> usize {
    let bytes = fs::read(capture).unwrap_or_default();
    let (mut rest, mut found) = (bytes.get(24..).unwrap_or_default(), 0);
    while let Some(header) = rest.get(..16) {
        let length = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        let Some(frame) = rest.get(16..16 + length) else { break };
        found += usize::from(frame.get(12..14) == Some(&[0x80, 0x35]));
        rest = &rest[16 + length..];
    }
    found
}

fn announced(events: &[Event]) -> usize {
    let is_it = |event: &&Event| matches!(&event.kind, EventKind::Action { action, .. } if action == "announce-self");
    events.iter().filter(is_it).count()
}

fn start(version: &str, arguments: &str) -> Bare {
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    Bare::start(version, &arguments).unwrap_or_else(|error| panic!("{error}"))
}

/// More frames leave than QEMU sends by itself, all of which leave in the moment of the resume. A guest without a card
/// is announced to nobody.
#[test]
fn a_guests_cards_are_announced_once_more_where_it_runs() {
    let rows = [
        ("7.2", "e1000,romfile=,"),
        ("10.0.13", "virtio-net-pci,romfile=,"),
        ("11.1", "e1000,romfile=,"),
        ("11.1", ""),
    ];
    for (version, card) in rows {
        let folder = tempfile::Builder::new().prefix("qferry-").tempdir().unwrap();
        let capture = folder.path().join("capture");
        let (mut nic, mut dump) = (String::new(), String::new());
        if !card.is_empty() {
            nic = format!("-netdev hubport,id=n,hubid=0 -device {card}netdev=n,id=nic1");
            dump = format!("-object filter-dump,id=f,netdev=n,file={}", capture.display());
        }
        let source = start(version, &nic);
        let destination = start(version, &format!("{nic} {dump} -incoming defer -S"));
        let [at_source, at_destination] = [&source, &destination].map(|bare| Address::unix(bare.qmp_path()).unwrap());
        let builder = Migration::builder(at_source, at_destination);
        let builder = builder.runtime_dir(folder.path()).journal(JournalPlace::Nowhere).downtime(WAIT);
        let (outcome, events) = block_on(async {
            let mut migration = builder.start_here().unwrap();
            let (mut events, mut all) = (migration.events(), Vec::new());
            while let Some(event) = events.next().await {
                all.push(event);
            }
            (migration.wait().await, all)
        });
        assert_eq!(outcome.outcome, Ending::Moved, "{version} {card}: {outcome:#?}");
        assert_eq!(announced(&events), usize::from(!card.is_empty()), "{version} {card}: {events:#?}");
        let began = Instant::now();
        while !card.is_empty() && announcements(&capture) <= BY_ITSELF {
            assert!(began.elapsed() < WAIT, "{version} {card}: {} frames", announcements(&capture));
            sleep(Duration::from_millis(20));
        }
    }
}
