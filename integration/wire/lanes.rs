//! The order of commands, the out-of-band lane, and back-pressure.

use std::time::Duration;

use qapi::qmp;
use qferry::internals::qmp::{CloseCause, ErrorClass, ExecuteError, QmpClient, QmpOptions, QmpRequest, StreamItem};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::fake::{AnswerStep, MonitorScript, ReceivedCommand};
use super::{LONG, SHORT, connect, connect_with, hold_stop, next_event, query_status, sent_without_reply};

#[tokio::test]
async fn commands_arrive_in_the_order_of_their_start() {
    let (fake, client) = connect(MonitorScript::new()).await;
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
    let (fake, client) = connect(MonitorScript::new()).await;
    fake.freeze();
    let pending: Vec<_> = (0..20).map(|_| client.start(query_status(), LONG)).collect();
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
    let junk = |_: &ReceivedCommand| vec![AnswerStep::Raw(b"{\"return\": garbled\n".to_vec())];
    let huge = |_: &ReceivedCommand| vec![AnswerStep::Raw([b"x".repeat(5000), b"\n".to_vec()].concat())];
    let silent = |_: &ReceivedCommand| Vec::new();
    let script = MonitorScript::new().on("junk", junk).on("huge", huge).on("silent", silent);
    let (fake, client) = connect_with(script, options).await;
    for name in ["junk", "huge"] {
        let pending: Vec<_> = (0..10).map(|_| client.start(QmpRequest::named(name), SHORT)).collect();
        for pending in pending {
            assert!(sent_without_reply(pending.await));
        }
    }
    // An answered command shows that QEMU has finished every command before it.
    for _ in 0..5 {
        let pending: Vec<_> = (0..6).map(|_| client.start(QmpRequest::named("silent"), SHORT)).collect();
        client.start(query_status(), LONG).await.unwrap();
        drop(pending);
    }
    assert_eq!(fake.names().len(), 20 + 35);
}

#[tokio::test(start_paused = true)]
async fn a_blocked_write_stops_neither_reading_nor_deadlines() {
    let (client_end, qemu_end) = tokio::io::duplex(256);
    let fake = MonitorScript::new().opening("").not_reading().serve(client_end);
    let client = QmpClient::adopt(qemu_end, true, QmpOptions::default());
    let mut events = client.subscribe();
    let first = client.start(QmpRequest::named("big").with("filler", "x".repeat(64 * 1024)), SHORT);
    // Once an event has come back, the task has begun to write and is blocked in it.
    fake.event("STOP", json!({}));
    assert_eq!(next_event(&mut events).await.name, "STOP");
    let second = client.start(query_status(), SHORT);
    let urgent = client.execute_oob(&qmp::query_yank {}, SHORT);
    for _ in 0..20 {
        fake.event("STOP", json!({}));
        assert_eq!(next_event(&mut events).await.name, "STOP");
    }
    assert!(sent_without_reply(first.await), "begun to be written, so indeterminate");
    assert!(!sent_without_reply(second.await));
    assert!(!sent_without_reply(urgent.await));
    fake.read_on();
    client.execute(&qmp::stop {}, LONG).await.unwrap();
    assert_eq!(fake.names(), ["big", "stop"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsent_is_exact_however_callers_give_up() {
    let (fake, client) = connect(MonitorScript::new()).await;
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
    client.start(query_status(), LONG).await.unwrap();
    let names = fake.names();
    assert!(unsent.iter().all(|name| !names.contains(name)));
    assert_eq!(unsent.len() + names.len(), 801);
}

#[tokio::test]
async fn the_last_words_of_a_dying_qemu_are_heard() {
    let (client_end, mut qemu_end) = tokio::io::duplex(4096);
    qemu_end.write_all(b"{\"event\": \"SHUTDOWN\"}\n").await.unwrap();
    drop(qemu_end);
    let client = QmpClient::adopt(client_end, false, QmpOptions::default());
    let mut events = client.subscribe();
    let pending = client.start(query_status(), LONG);
    assert_eq!(next_event(&mut events).await.name, "SHUTDOWN");
    assert!(matches!(events.next().await, StreamItem::Closed(_)));
    assert!(matches!(pending.await, Err(ExecuteError::Closed { .. })));
}

#[tokio::test]
async fn the_connection_closes_with_its_last_handle() {
    let (mut fake, client) = connect(hold_stop()).await;
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
    let (client_end, _theirs) = tokio::io::duplex(64);
    let first = runtime();
    let client = first.block_on(async { QmpClient::adopt(client_end, false, QmpOptions::default()) });
    let mut events = client.subscribe();
    drop(first);
    runtime().block_on(async {
        assert!(client.is_closed());
        assert!(matches!(client.wait_closed().await, CloseCause::Runtime));
        assert!(matches!(events.next().await, StreamItem::Closed(CloseCause::Runtime)));
        let error = client.start(query_status(), LONG).await.unwrap_err();
        assert!(matches!(error, ExecuteError::Closed { sent: false, cause: CloseCause::Runtime, .. }), "{error:?}");
    });
}

#[tokio::test]
async fn next_can_be_cancelled_without_loss() {
    let (fake, client) = connect(MonitorScript::new()).await;
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
