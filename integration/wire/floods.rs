//! Peers that send anything, without end.

use std::time::Duration;

use proptest::prelude::*;
use qferry::internals::qmp::{
    ConnectError, ConnectionCounters, EventStream, QmpClient, QmpOptions, Recorder, StreamItem,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::MonitorScript;
use super::{LONG, connect, connect_with, next_event, query_status, wait_until};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_break_the_connection(
        junk in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..80),
                "\\{\"(event|return|error|QMP|id)\": ?(1|\"[a-z#0-9]{0,9}\"|\\{\\}|null)\\}".prop_map(String::into_bytes),
            ],
            0..20,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (fake, client) = connect(MonitorScript::new()).await;
            for mut bytes in junk {
                bytes.push(b'\n');
                fake.raw(bytes);
            }
            let reply = client.start(query_status(), LONG).await.unwrap();
            assert_eq!(reply["status"], "running");
        });
    }
}

/// The events kept for a subscriber that never reads are bounded by number and size, whatever the peer sends.
#[tokio::test]
async fn a_flood_of_events_costs_bounded_memory() {
    const CAPACITY: usize = 64;
    const LONGEST: usize = 512;
    const SENT: u64 = 20_000;
    let options = QmpOptions { event_capacity: CAPACITY, max_event: LONGEST, ..QmpOptions::default() };
    let (fake, client) = connect_with(MonitorScript::new(), options).await;
    let subscribers: Vec<EventStream> = (0..4).map(|_| client.subscribe()).collect();
    for number in 0..SENT {
        match number % 3 {
            0 => fake.event("SMALL", json!({ "number": number })),
            1 => fake.event("LONG", json!({ "filler": "x".repeat(LONGEST * 2) })),
            _ => fake.event(&"NAME".repeat(LONGEST), json!({})),
        }
        if number % 100 == 0 {
            // A round trip empties the queue of the fake, whose size is not under test.
            client.start(query_status(), LONG).await.unwrap();
        }
    }
    wait_until(&client, |counters| counters.events == SENT).await;
    assert_eq!(client.counters().stripped_events, SENT - SENT.div_ceil(3));
    for mut events in subscribers {
        assert!(matches!(events.next().await, StreamItem::Lagged(lost) if lost == SENT - CAPACITY as u64));
        for _ in 0..CAPACITY {
            let event = next_event(&mut events).await;
            assert!(event.name.len() + event.data.to_string().len() <= LONGEST, "{event:?}");
        }
        assert!(tokio::time::timeout(Duration::from_millis(1), events.next()).await.is_err(), "no more than that");
    }
}

/// Lines that a peer repeats without end are counted, and are not kept.
#[tokio::test]
async fn floods_of_nonsense_are_counted_and_survived() {
    const SENT: u64 = 2_000;
    let deep = format!("{{\"event\": {}\n", "[".repeat(2000));
    type Counted = fn(ConnectionCounters) -> u64;
    let floods: [(&str, &str, Counted); 7] = [
        ("greetings", "{\"QMP\": {\"capabilities\": [\"oob\"]}}\n", |counters| counters.repeated_greetings),
        ("ids", "{\"return\": {}, \"id\": \"query-status#9999999999999999999999\"}\n", |counters| counters.unknown_ids),
        ("ids of the future", "{\"return\": {}, \"id\": \"query-status#4000000000\"}\n", |counters| {
            counters.unknown_ids
        }),
        ("errors", "{\"error\": {\"class\": \"x\", \"desc\": \"y\"}}\n", |counters| counters.unidentified_errors),
        ("numbers", "{\"event\": \"X\", \"data\": 1e999}\n", |counters| counters.unparsable),
        ("depth", &deep, |counters| counters.unparsable),
        ("length", &format!("{}\n", "x".repeat(5000)), |counters| counters.oversized),
    ];
    for (what, line, counted) in floods {
        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(directory.path().join("t")).unwrap();
        let options = QmpOptions { max_line: 4096, recorder: Some(recorder), ..QmpOptions::default() };
        let (fake, client) = connect_with(MonitorScript::new(), options).await;
        for _ in 0..SENT / 100 {
            fake.raw(line.repeat(100));
            client.start(query_status(), LONG).await.unwrap();
        }
        wait_until(&client, |counters| counted(counters) == SENT).await;
        client.start(query_status(), LONG).await.unwrap();
        assert!(!client.is_closed(), "{what}");
    }
}

/// A peer that talks without end and never greets delays the client no longer than a silent peer.
#[tokio::test]
async fn a_flood_before_the_greeting_ends_at_the_deadline() {
    for line in ["{\"event\": \"RESET\"}\n", "{}\n", "{\"return\": {}}\n", "xxxxxxxxxxxxxxxxxxxxxxxx"] {
        let (client_end, mut server_end) = tokio::io::duplex(1024);
        let flood = tokio::spawn(async move { while server_end.write_all(line.as_bytes()).await.is_ok() {} });
        let options =
            QmpOptions { greeting_deadline: Duration::from_millis(50), max_line: 4096, ..QmpOptions::default() };
        let error = QmpClient::connect(client_end, options).await.unwrap_err();
        assert!(matches!(error, ConnectError::NotQmp { .. }), "{line}: {error:?}");
        flood.await.unwrap();
    }
}

#[tokio::test]
async fn a_peer_that_never_stops_talking_delays_nobody() {
    let (client_end, server_end) = tokio::io::duplex(1024);
    let (mut reader, mut writer) = tokio::io::split(server_end);
    let flood = tokio::spawn(async move { while writer.write_all(b"{\"event\": \"RESET\"}\n").await.is_ok() {} });
    let client = QmpClient::adopt(client_end, false, QmpOptions { event_capacity: 4, ..QmpOptions::default() });
    let pending = client.start(query_status(), LONG);
    let mut sent = vec![0; 10];
    reader.read_exact(&mut sent).await.unwrap();
    assert_eq!(sent, b"{\"execute\"");
    drop(pending);
    drop(client);
    drop(reader);
    flood.await.unwrap();
}
