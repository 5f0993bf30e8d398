//! The QMP client against a scripted QEMU: the hazards of other clients by number, deadlines, order, loss, bounds.
//!
//! Time is paused wherever a deadline is involved, so nothing here depends on how fast the machine is.

#![allow(clippy::unwrap_used, reason = "a test says all it has to say by panicking")]

mod fake;

use std::time::Duration;

use fake::{Action, Fake, Script, greeting};
use proptest::prelude::*;
use qapi::qmp;
use qferry::internals::qmp::transcript::{EntryBody, LineDirection, Recorder, Transcript};
use qferry::internals::qmp::{
    CloseCause, ConnectError, ConnectionCounters, ErrorClass, EventStream, ExecuteError, QmpClient, QmpEvent,
    QmpOptions, QmpRequest, StreamItem,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A deadline that no test misses unless it means to.
const LONG: Duration = Duration::from_secs(3600);
/// A deadline that is missed on purpose, in paused time.
const SHORT: Duration = Duration::from_secs(1);

async fn connect(script: Script) -> (Fake, QmpClient) {
    connect_with(script, QmpOptions::default()).await
}

async fn connect_with(script: Script, options: QmpOptions) -> (Fake, QmpClient) {
    let (fake, stream) = script.duplex();
    (fake, QmpClient::connect(stream, options).await.unwrap())
}

fn status() -> QmpRequest {
    QmpRequest::new(&qmp::query_status {}).unwrap()
}

fn held() -> Script {
    Script::new().on("stop", |_| vec![Action::Hold("stop"), Action::Return(json!({}))])
}

async fn event(events: &mut EventStream) -> QmpEvent {
    match events.next().await {
        StreamItem::Event(event) => (*event).clone(),
        other => panic!("expected an event, got {other:?}"),
    }
}

/// Waits until the counters are as wanted. A hang here is the failure.
async fn until(client: &QmpClient, wanted: impl Fn(ConnectionCounters) -> bool) {
    while !wanted(client.counters()) {
        tokio::task::yield_now().await;
    }
}

fn no_reply(result: Result<Value, ExecuteError>) -> bool {
    match result.unwrap_err() {
        ExecuteError::NoReply { sent, .. } => sent,
        other => panic!("expected no reply, got {other:?}"),
    }
}

// The hazards.

#[tokio::test]
async fn h1_oob_is_detected_and_enabled() {
    let (fake, client) = connect(Script::new()).await;
    assert!(client.oob());
    assert_eq!(fake.seen()[0].arguments, json!({"enable": ["oob"]}));
    let greeting = client.greeting().unwrap();
    assert_eq!(greeting.capabilities, ["oob"]);
    assert_eq!(greeting.version.unwrap().to_string(), "10.0.13");

    let (fake, client) = connect(Script::new().greeting(&greeting_without_oob())).await;
    assert!(!client.oob());
    assert_eq!(fake.seen()[0].arguments, Value::Null);

    let (fake, client) = connect_with(Script::new(), QmpOptions { oob: false, ..QmpOptions::default() }).await;
    assert!(!client.oob());
    assert_eq!(fake.seen()[0].arguments, Value::Null);
}

fn greeting_without_oob() -> Value {
    greeting(&["something-new"])
}

#[tokio::test]
async fn h2_commands_do_not_wait_for_each_other() {
    for capabilities in [&["oob"][..], &[]] {
        let (fake, client) = connect(held().greeting(&greeting(capabilities))).await;
        let first = client.execute(&qmp::stop {}, LONG);
        let second = client.start(status(), LONG);
        fake.saw("query-status").await;
        fake.release("stop");
        assert_eq!(second.await.unwrap()["status"], "running");
        first.await.unwrap();
        let ids: Vec<Value> = fake.seen().into_iter().filter_map(|seen| seen.id).collect();
        assert_eq!(ids, ["qmp_capabilities#1", "stop#2", "query-status#3"]);
    }
}

#[tokio::test]
async fn h3_out_of_band_overtakes_a_stuck_monitor() {
    let (fake, client) = connect(Script::new()).await;
    fake.freeze();
    let stuck: Vec<_> = (0..20).map(|_| client.start(status(), LONG)).collect();
    assert_eq!(client.execute_oob(&qmp::query_yank {}, LONG).await.unwrap(), json!([]));
    assert!(fake.saw("query-yank").await.oob);
    fake.thaw();
    for pending in stuck {
        pending.await.unwrap();
    }
}

#[tokio::test]
async fn h3_out_of_band_is_refused_where_it_was_not_negotiated() {
    let (fake, client) = connect(Script::new().greeting(&greeting_without_oob())).await;
    let error = client.execute_oob(&qmp::query_yank {}, LONG).await.unwrap_err();
    assert!(matches!(error, ExecuteError::OobNotNegotiated { .. }), "{error:?}");
    assert!(fake.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn h4_a_missed_deadline_leaves_the_client_usable() {
    let (fake, client) = connect(held()).await;
    for _ in 0..3 {
        assert!(no_reply(client.execute(&qmp::stop {}, SHORT).await));
    }
    fake.on("stop", |_| vec![Action::Return(json!({}))]);
    fake.release("stop");
    client.execute(&qmp::stop {}, LONG).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn h5_a_late_reply_is_counted_and_nothing_more() {
    let (fake, client) = connect(held()).await;
    let mut events = client.subscribe();
    assert!(no_reply(client.execute(&qmp::stop {}, SHORT).await));
    fake.saw("stop").await;
    let dropped = client.execute(&qmp::stop {}, LONG);
    fake.saw_many(3).await;
    drop(dropped);
    fake.release("stop");
    client.start(status(), LONG).await.unwrap();
    until(&client, |counters| counters.late_replies == 2).await;
    fake.event("STOP", json!({}));
    assert_eq!(event(&mut events).await.name, "STOP");
    assert!(!client.is_closed());
}

#[tokio::test]
async fn h6_unknown_event_is_passed_on() {
    let (fake, client) = connect(Script::new()).await;
    let mut events = client.subscribe();
    fake.event("FROM_THE_FUTURE", json!({"a": [1]}));
    fake.raw("{\"event\": \"BARE\"}\r\n");
    let first = event(&mut events).await;
    assert_eq!((first.name.as_str(), first.data), ("FROM_THE_FUTURE", json!({"a": [1]})));
    let second = event(&mut events).await;
    assert_eq!((second.name.as_str(), second.data, second.emitted), ("BARE", Value::Null, None));
    assert_eq!((first.sequence, second.sequence), (0, 1));
    assert!(first.received <= second.received);
    client.start(status(), LONG).await.unwrap();
}

#[tokio::test]
async fn h7_unknown_values_missing_members_and_a_failed_clock_pass() {
    let script = Script::new().on("stop", |_| vec![Action::Error { class: "BrandNew".into(), desc: "not now".into() }]);
    let (fake, client) = connect(script).await;
    let mut events = client.subscribe();
    fake.raw(concat!(
        r#"{"event": "BLOCK_JOB_ERROR", "data": {"action": "dance"}, "timestamp": {"seconds": -1, "microseconds": -1}}"#,
        "\n"
    ));
    let event = event(&mut events).await;
    assert_eq!((event.data, event.emitted), (json!({"action": "dance"}), None));
    match client.execute(&qmp::stop {}, LONG).await.unwrap_err() {
        ExecuteError::Refused { class, desc, .. } => {
            assert_eq!((class, desc.as_str()), (ErrorClass::Other("BrandNew".into()), "not now"));
        }
        other => panic!("{other:?}"),
    }
    client.start(status(), LONG).await.unwrap();
}

#[tokio::test]
async fn h8_a_failing_migration_is_seen_to_its_end() {
    let (fake, client) = connect(Script::new()).await;
    let mut events = client.subscribe();
    for status in ["setup", "active", "failing", "failed"] {
        fake.event("MIGRATION", json!({"status": status}));
    }
    for status in ["setup", "active", "failing", "failed"] {
        assert_eq!(event(&mut events).await.data["status"], status);
    }
    client.start(status(), LONG).await.unwrap();
}

#[tokio::test]
async fn h9_the_end_of_the_stream_fails_every_waiter_at_once() {
    let (fake, client) = connect(held()).await;
    let events = client.subscribe();
    let waiting: Vec<_> = (0..30).map(|_| client.execute(&qmp::stop {}, LONG)).collect();
    let urgent = client.execute_oob(&qmp::query_yank {}, LONG);
    urgent.await.unwrap();
    fake.saw_many(9).await;
    fake.close();
    let mut sent_ones = 0;
    for pending in waiting {
        match pending.await.unwrap_err() {
            ExecuteError::Closed { sent, cause: CloseCause::EndOfStream, .. } => sent_ones += usize::from(sent),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent_ones, 7);
    assert!(client.is_closed());
    assert!(matches!(client.wait_closed().await, CloseCause::EndOfStream));
    let later = client.start(status(), LONG).await.unwrap_err();
    assert!(matches!(later, ExecuteError::Closed { sent: false, .. }), "{later:?}");
    for mut events in [events, client.subscribe()] {
        for _ in 0..3 {
            assert!(matches!(events.next().await, StreamItem::Closed(CloseCause::EndOfStream)));
        }
    }
}

#[tokio::test]
async fn h10_replies_need_nobody_to_consume_events() {
    let options = QmpOptions { event_capacity: 16, ..QmpOptions::default() };
    let (fake, client) = connect_with(Script::new(), options).await;
    let (mut slow, mut other) = (client.subscribe(), client.subscribe());
    for number in 0..100 {
        fake.event("RESET", json!({ "number": number }));
    }
    client.start(status(), LONG).await.unwrap();
    assert!(matches!(slow.next().await, StreamItem::Lagged(84)));
    for events in [&mut slow, &mut other] {
        let first = match events.next().await {
            StreamItem::Lagged(_) => event(events).await,
            StreamItem::Event(event) => (*event).clone(),
            StreamItem::Closed(_) => panic!("closed"),
        };
        assert_eq!((first.sequence, &first.data["number"]), (84, &json!(84)));
        for number in 85..100 {
            assert_eq!(event(events).await.sequence, number);
        }
    }
}

#[tokio::test]
async fn h11_events_around_the_negotiation_are_kept() {
    let mut opening = b"{\"event\": \"BEFORE\"}\r\n".to_vec();
    opening.extend(format!("{}\r\n{{\"event\": \"BETWEEN\"}}\r\n", greeting(&["oob"])).into_bytes());
    let script = Script::new().opening(opening).on("qmp_capabilities", |_| {
        vec![Action::event("DURING", json!({})), Action::Return(json!({})), Action::event("AFTER", json!({}))]
    });
    let (_fake, client) = connect(script).await;
    client.start(status(), LONG).await.unwrap();
    let mut events = client.subscribe();
    for name in ["BEFORE", "BETWEEN", "DURING", "AFTER"] {
        assert_eq!(event(&mut events).await.name, name);
    }
}

#[tokio::test]
async fn h12_odd_ids_are_counted_and_survived() {
    let (fake, client) = connect(held()).await;
    let pending = client.execute(&qmp::stop {}, LONG);
    fake.saw("stop").await;
    fake.raw(concat!(
        "{\"return\": 1}\n",
        "{\"return\": 1, \"id\": 7}\n",
        "{\"return\": 1, \"id\": \"stop#77\"}\n",
        "{\"return\": 1, \"id\": \"cont#2\"}\n",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n",
        "{\"QMP\": {}}\n",
    ));
    until(&client, |counters| counters.repeated_greetings == 1).await;
    assert_eq!(client.counters().unknown_ids, 4);
    assert_eq!(client.counters().unidentified_errors, 1);
    fake.release("stop");
    assert_eq!(pending.await.unwrap(), json!({}));
}

#[tokio::test]
async fn h13_a_reply_of_an_older_qemu_is_passed_as_it_is() {
    let reply = json!([{"capability": "compress", "state": false}, {"capability": "block", "state": false}]);
    let script = Script::new().answer("query-migrate-capabilities", reply.clone());
    let (_fake, client) = connect(script).await;
    assert_eq!(client.execute(&qmp::query_migrate_capabilities {}, LONG).await.unwrap(), reply);
}

#[tokio::test]
async fn h14_a_reply_of_a_newer_qemu_is_passed_as_it_is() {
    let reply = json!([{"cpu-index": 0, "qom-type": "x", "target": "z80", "thread-id": u64::MAX}]);
    let (_fake, client) = connect(Script::new().answer("query-cpus-fast", reply.clone())).await;
    assert_eq!(client.execute(&qmp::query_cpus_fast {}, LONG).await.unwrap(), reply);
}

#[tokio::test]
async fn h15_arguments_and_commands_newer_than_the_crate_can_be_sent() {
    let (fake, client) = connect(Script::new().answer("blockdev-set-active", json!({}))).await;
    client.start(status().with("target-is-zero", true), LONG).await.unwrap();
    assert_eq!(fake.saw("query-status").await.arguments, json!({"target-is-zero": true}));
    client.start(QmpRequest::named("blockdev-set-active").with("active", false), LONG).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn h16_what_was_withdrawn_is_never_sent() {
    let (fake, client) = connect(held()).await;
    let stuck: Vec<_> = (0..7).map(|_| client.execute(&qmp::stop {}, LONG)).collect();
    fake.saw_many(8).await;
    assert!(!no_reply(client.execute(&qmp::cont {}, SHORT).await));
    drop(client.execute(&qmp::cont {}, LONG));
    fake.release("stop");
    for pending in stuck {
        pending.await.unwrap();
    }
    client.start(status(), LONG).await.unwrap();
    assert!(!fake.names().contains(&"cont".to_owned()), "{:?}", fake.names());
    assert_eq!(client.counters().withdrawn, 2);
}

#[tokio::test]
async fn h17_lines_are_bounded_and_junk_is_survived() {
    let mut opening = b"\r\n(qemu) \xff\r\n[1]\r\n{\"return\": {}, \"id\": \"old\"}\r\n".to_vec();
    opening.extend(format!("{}\n", greeting(&["oob"])).into_bytes());
    let options = QmpOptions { max_line: 4096, max_event: 1024, ..QmpOptions::default() };
    let (fake, client) = connect_with(Script::new().opening(opening), options).await;
    assert_eq!((client.counters().unparsable, client.counters().unknown_ids), (2, 1));
    let mut events = client.subscribe();

    fake.event("TOO_LONG", json!("x".repeat(100_000)));
    fake.event("LONG", json!("x".repeat(2000)));
    fake.raw("[".repeat(4000) + "\n");
    fake.event("SHORT", json!({}));
    let long = event(&mut events).await;
    assert_eq!((long.name.as_str(), long.data), ("LONG", Value::Null));
    assert_eq!(event(&mut events).await.name, "SHORT");
    client.start(status(), LONG).await.unwrap();
    let counters = client.counters();
    assert_eq!((counters.oversized, counters.stripped_events, counters.unparsable), (1, 1, 3));

    fake.raw("{\"event\": \"TORN");
    fake.close();
    assert!(matches!(client.wait_closed().await, CloseCause::EndOfStream));
    assert_eq!(client.counters().torn_bytes, 15);
}

#[tokio::test(start_paused = true)]
async fn h16_a_command_past_its_deadline_is_not_sent_though_nobody_looked() {
    let (fake, client) = connect(held()).await;
    let stuck: Vec<_> = (0..7).map(|_| client.execute(&qmp::stop {}, LONG)).collect();
    let stale = client.execute(&qmp::cont {}, SHORT);
    fake.saw_many(8).await;
    tokio::time::sleep(SHORT * 2).await;
    fake.release("stop");
    for pending in stuck {
        pending.await.unwrap();
    }
    client.start(status(), LONG).await.unwrap();
    assert!(!no_reply(stale.await));
    assert!(!fake.names().contains(&"cont".to_owned()), "{:?}", fake.names());
}

// Greeting and negotiation.

#[tokio::test(start_paused = true)]
async fn silence_tells_that_the_monitor_is_probably_taken() {
    let (_fake, stream) = Script::new().opening("\r\n").duplex();
    let error = QmpClient::connect(stream, QmpOptions::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Silent { .. }), "{error:?}");
    assert!(error.to_string().contains("another client probably holds this monitor"));
    assert!(error.to_string().contains("-qmp"));
}

#[tokio::test(start_paused = true)]
async fn a_human_monitor_is_told_apart_from_a_taken_one() {
    let (_fake, stream) = Script::new().opening("QEMU 10.0.13 monitor - type 'help'\r\n(qemu) ").duplex();
    let error = QmpClient::connect(stream, QmpOptions::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotQmp { .. }), "{error:?}");
}

#[tokio::test]
async fn an_end_before_the_greeting_is_an_error() {
    let (fake, stream) = Script::new().opening("{\"QMP\":").duplex();
    fake.close();
    let error = QmpClient::connect(stream, QmpOptions::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Ended(CloseCause::EndOfStream)), "{error:?}");
}

#[tokio::test]
async fn a_refused_negotiation_is_an_error() {
    let (_fake, stream) = Script::new().on("qmp_capabilities", |_| vec![Action::error("no")]).duplex();
    let error = QmpClient::connect(stream, QmpOptions::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Negotiation(ExecuteError::Refused { .. })), "{error:?}");
}

#[tokio::test]
async fn an_embedders_connection_is_adopted() {
    let (fake, stream) = Script::new().opening("{\"return\": {}, \"id\": \"theirs\"}\n").duplex();
    let client = QmpClient::adopt(stream, true, QmpOptions::labelled("theirs"));
    client.start(status(), LONG).await.unwrap();
    client.execute_oob(&qmp::query_yank {}, LONG).await.unwrap();
    assert_eq!(fake.names(), ["query-status", "query-yank"]);
    assert_eq!(client.counters().unknown_ids, 1);
    assert!(client.greeting().is_none());
}

#[tokio::test]
async fn unix_and_tcp_monitors_are_reached_by_address() {
    use qferry::internals::endpoint::{Address, dial};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let unix = Script::new().listen_unix(&path);
    let (tcp, port) = Script::new().listen_tcp().await;
    let addresses = [Address::unix(&path).unwrap(), format!("tcp:127.0.0.1:{port}").parse().unwrap()];
    for (address, mut fake) in addresses.into_iter().zip([unix, tcp]) {
        let dialed = dial(&address, LONG).await.unwrap();
        assert_eq!(dialed.peer.is_some(), matches!(address, Address::Unix(_)));
        let client = QmpClient::connect(dialed.stream, QmpOptions::default()).await.unwrap();
        client.execute(&qmp::quit {}, LONG).await.unwrap();
        assert!(matches!(client.wait_closed().await, CloseCause::EndOfStream));
        fake.ended().await;
    }
}

// Order, lanes, back-pressure.

#[tokio::test]
async fn commands_arrive_in_the_order_of_their_start() {
    let (fake, client) = connect(Script::new()).await;
    let commands: Vec<String> = (0..50).map(|number| format!("command-{number}")).collect();
    let pending: Vec<_> = commands.iter().map(|name| client.start(QmpRequest::named(name.clone()), LONG)).collect();
    for pending in pending {
        let error = pending.await.unwrap_err();
        assert!(matches!(error, ExecuteError::Refused { class: ErrorClass::CommandNotFound, .. }), "{error:?}");
    }
    assert_eq!(fake.names(), commands);
}

#[tokio::test]
async fn at_most_seven_in_band_commands_are_unanswered() {
    let (fake, client) = connect(Script::new()).await;
    fake.freeze();
    let pending: Vec<_> = (0..20).map(|_| client.start(status(), LONG)).collect();
    // The last out-of-band answer proves that the task had every chance to send an eighth.
    for _ in 0..3 {
        client.execute_oob(&qmp::query_yank {}, LONG).await.unwrap();
    }
    let in_band = fake.names().iter().filter(|name| *name == "query-status").count();
    assert_eq!(in_band, 7);
    fake.thaw();
    for pending in pending {
        pending.await.unwrap();
    }
    assert_eq!(fake.names().len(), 23);
}

#[tokio::test(start_paused = true)]
async fn lost_replies_do_not_stop_later_commands() {
    let options = QmpOptions { max_line: 4096, ..QmpOptions::default() };
    let junk = |_: &fake::Seen| vec![Action::Raw(b"{\"return\": garbled\n".to_vec())];
    let huge = |_: &fake::Seen| vec![Action::Raw([b"x".repeat(5000), b"\n".to_vec()].concat())];
    let silent = |_: &fake::Seen| Vec::new();
    let script = Script::new().on("junk", junk).on("huge", huge).on("silent", silent);
    let (fake, client) = connect_with(script, options).await;
    for name in ["junk", "huge"] {
        let pending: Vec<_> = (0..10).map(|_| client.start(QmpRequest::named(name), SHORT)).collect();
        for pending in pending {
            assert!(no_reply(pending.await));
        }
    }
    // An answered command shows that everything before it is off QEMU's hands.
    for _ in 0..5 {
        let pending: Vec<_> = (0..6).map(|_| client.start(QmpRequest::named("silent"), SHORT)).collect();
        client.start(status(), LONG).await.unwrap();
        drop(pending);
    }
    assert_eq!(fake.names().len(), 20 + 35);
}

#[tokio::test(start_paused = true)]
async fn a_blocked_write_stops_neither_reading_nor_deadlines() {
    let (ours, theirs) = tokio::io::duplex(256);
    let fake = Script::new().opening("").not_reading().serve(ours);
    let client = QmpClient::adopt(theirs, true, QmpOptions::default());
    let mut events = client.subscribe();
    let first = client.start(QmpRequest::named("big").with("filler", "x".repeat(64 * 1024)), SHORT);
    // Once an event has come back, the task has begun to write and is blocked in it.
    fake.event("STOP", json!({}));
    assert_eq!(event(&mut events).await.name, "STOP");
    let second = client.start(status(), SHORT);
    let urgent = client.execute_oob(&qmp::query_yank {}, SHORT);
    for _ in 0..20 {
        fake.event("STOP", json!({}));
        assert_eq!(event(&mut events).await.name, "STOP");
    }
    assert!(no_reply(first.await), "begun to be written, so indeterminate");
    assert!(!no_reply(second.await));
    assert!(!no_reply(urgent.await));
    fake.read_on();
    client.execute(&qmp::stop {}, LONG).await.unwrap();
    assert_eq!(fake.names(), ["big", "stop"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsent_is_exact_however_callers_give_up() {
    let (fake, client) = connect(Script::new()).await;
    let mut callers = Vec::new();
    for caller in 0..8 {
        let client = client.clone();
        callers.push(tokio::spawn(async move {
            let mut unsent = Vec::new();
            for number in 0..100_u64 {
                let name = format!("c{caller}-{number}");
                let deadline = Duration::from_micros((number * 7919) % 400);
                match client.start(QmpRequest::named(name.clone()), deadline).await {
                    Err(ExecuteError::NoReply { sent: false, .. }) => unsent.push(name),
                    Err(ExecuteError::NoReply { sent: true, .. } | ExecuteError::Refused { .. }) => {}
                    other => panic!("{other:?}"),
                }
            }
            unsent
        }));
    }
    let mut unsent = Vec::new();
    for caller in callers {
        unsent.extend(caller.await.unwrap());
    }
    client.start(status(), LONG).await.unwrap();
    let names = fake.names();
    assert!(unsent.iter().all(|name| !names.contains(name)));
    assert_eq!(unsent.len() + names.len(), 801);
}

#[tokio::test]
async fn the_last_words_of_a_dying_qemu_are_heard() {
    let (ours, mut theirs) = tokio::io::duplex(4096);
    theirs.write_all(b"{\"event\": \"SHUTDOWN\"}\n").await.unwrap();
    drop(theirs);
    let client = QmpClient::adopt(ours, false, QmpOptions::default());
    let mut events = client.subscribe();
    let pending = client.start(status(), LONG);
    assert_eq!(event(&mut events).await.name, "SHUTDOWN");
    assert!(matches!(events.next().await, StreamItem::Closed(_)));
    assert!(matches!(pending.await, Err(ExecuteError::Closed { .. })));
}

#[tokio::test]
async fn the_connection_closes_with_its_last_handle() {
    let (mut fake, client) = connect(held()).await;
    let pending = client.execute(&qmp::stop {}, LONG);
    let events = client.subscribe();
    fake.saw("stop").await;
    drop(client);
    drop(events);
    fake.release("stop");
    pending.await.unwrap();
    fake.ended().await;
}

#[test]
fn a_runtime_that_shuts_down_ends_everything() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (ours, _theirs) = tokio::io::duplex(64);
    let first = runtime();
    let client = first.block_on(async { QmpClient::adopt(ours, false, QmpOptions::default()) });
    let mut events = client.subscribe();
    drop(first);
    runtime().block_on(async {
        assert!(client.is_closed());
        assert!(matches!(client.wait_closed().await, CloseCause::Runtime));
        assert!(matches!(events.next().await, StreamItem::Closed(CloseCause::Runtime)));
        let error = client.start(status(), LONG).await.unwrap_err();
        assert!(matches!(error, ExecuteError::Closed { sent: false, cause: CloseCause::Runtime, .. }), "{error:?}");
    });
}

#[tokio::test]
async fn next_can_be_cancelled_without_loss() {
    let (fake, client) = connect(Script::new()).await;
    let mut events = client.subscribe();
    for number in 0..50 {
        fake.event("RESET", json!({ "number": number }));
    }
    let mut expected = 0;
    while expected < 50 {
        tokio::select! {
            item = events.next() => match item {
                StreamItem::Event(event) => {
                    assert_eq!(event.sequence, expected);
                    expected += 1;
                }
                other => panic!("{other:?}"),
            },
            () = tokio::task::yield_now() => {}
        }
    }
}

// Transcript.

#[tokio::test]
async fn a_transcript_has_both_sides_and_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("transcript.jsonl");
    let recorder = Recorder::create(&path).unwrap();
    let options = |label: &str| QmpOptions { recorder: Some(recorder.clone()), ..QmpOptions::labelled(label) };
    let (source, source_client) = connect_with(Script::new(), options("source")).await;
    let (_destination, destination_client) = connect_with(Script::new(), options("destination")).await;

    let secret = QmpRequest::named("object-add").with("qom-type", "secret").with("data", "hunter2");
    source_client.start(secret, LONG).await.unwrap_err();
    source.raw("{\"password\": hunter2\n(qemu)\n");
    destination_client.start(status(), LONG).await.unwrap();
    source_client.start(status(), LONG).await.unwrap();
    source.close();
    source_client.wait_closed().await;
    let totals = tokio::task::spawn_blocking(move || recorder.finish()).await.unwrap().unwrap();
    assert_eq!(totals.dropped, 0);

    assert!(!std::fs::read_to_string(&path).unwrap().contains("hunter2"));
    assert_eq!(source.saw("object-add").await.arguments["data"], "hunter2", "what is sent is not redacted");
    let mut transcript = Transcript::open(&path).unwrap();
    let entries: Vec<_> = transcript.by_ref().map(Result::unwrap).collect();
    assert_eq!((transcript.skipped(), entries.len() as u64), (0, totals.written));
    let of = |side: &str, direction: LineDirection| -> Vec<EntryBody> {
        let entries = entries.iter().filter(|entry| entry.side == side && entry.direction == direction);
        entries.map(|entry| entry.body.clone()).collect()
    };
    let enable = json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": "qmp_capabilities#1"});
    let query = json!({"execute": "query-status", "id": "query-status#2"});
    assert_eq!(of("destination", LineDirection::Send), [EntryBody::Line(enable), EntryBody::Line(query)]);
    assert_eq!(of("source", LineDirection::Send).len(), 3);
    let received = of("source", LineDirection::Receive);
    assert_eq!(received[0], EntryBody::Line(greeting(&["oob"])));
    assert!(received.contains(&EntryBody::Raw("[withheld: 20 bytes]".into())), "{received:?}");
    assert!(received.contains(&EntryBody::Raw("(qemu)".into())), "{received:?}");
    let closed = json!({"closed": "QEMU closed the connection", "torn_bytes": 0});
    assert_eq!(of("source", LineDirection::Note), [EntryBody::Line(closed)]);
}

// Whatever a peer sends.

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
            let (fake, client) = connect(Script::new()).await;
            for mut bytes in junk {
                bytes.push(b'\n');
                fake.raw(bytes);
            }
            let reply = client.start(status(), LONG).await.unwrap();
            assert_eq!(reply["status"], "running");
        });
    }
}

/// What a subscriber who never looks holds is bounded by number and size, whatever is sent and however often.
#[tokio::test]
async fn a_flood_of_events_costs_bounded_memory() {
    const CAPACITY: usize = 64;
    const LONGEST: usize = 512;
    const SENT: u64 = 20_000;
    let options = QmpOptions { event_capacity: CAPACITY, max_event: LONGEST, ..QmpOptions::default() };
    let (fake, client) = connect_with(Script::new(), options).await;
    let subscribers: Vec<EventStream> = (0..4).map(|_| client.subscribe()).collect();
    for number in 0..SENT {
        match number % 3 {
            0 => fake.event("SMALL", json!({ "number": number })),
            1 => fake.event("LONG", json!({ "filler": "x".repeat(LONGEST * 2) })),
            _ => fake.event(&"NAME".repeat(LONGEST), json!({})),
        }
        if number % 100 == 0 {
            // the fake's queue is not what is measured
            client.start(status(), LONG).await.unwrap();
        }
    }
    until(&client, |counters| counters.events == SENT).await;
    assert_eq!(client.counters().stripped_events, SENT - SENT.div_ceil(3));
    for mut events in subscribers {
        assert!(matches!(events.next().await, StreamItem::Lagged(lost) if lost == SENT - CAPACITY as u64));
        for _ in 0..CAPACITY {
            let event = event(&mut events).await;
            assert!(event.name.len() + event.data.to_string().len() <= LONGEST, "{event:?}");
        }
        assert!(tokio::time::timeout(Duration::from_millis(1), events.next()).await.is_err(), "no more than that");
    }
}

/// Whatever is repeated without end is counted, and is not kept.
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
        let (fake, client) = connect_with(Script::new(), options).await;
        for _ in 0..SENT / 100 {
            fake.raw(line.repeat(100));
            client.start(status(), LONG).await.unwrap();
        }
        until(&client, |counters| counted(counters) == SENT).await;
        client.start(status(), LONG).await.unwrap();
        assert!(!client.is_closed(), "{what}");
    }
}

/// One that talks without end and never greets does not keep us for longer than one that is silent.
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
    let pending = client.start(status(), LONG);
    let mut sent = vec![0; 10];
    reader.read_exact(&mut sent).await.unwrap();
    assert_eq!(sent, b"{\"execute\"");
    drop(pending);
    drop(client);
    drop(reader);
    flood.await.unwrap();
}
