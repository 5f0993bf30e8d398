//! The hazards that other QMP clients fall for, by number.

use qapi::qmp;
use qferry::internals::qmp::{CloseCause, ErrorClass, ExecuteError, QmpOptions, QmpRequest, StreamItem};
use serde_json::{Value, json};

use super::fake::{AnswerStep, MonitorScript, greeting};
use super::{LONG, SHORT, connect, connect_with, hold_stop, next_event, query_status, sent_without_reply, wait_until};

#[tokio::test]
async fn h1_oob_is_detected_and_enabled() {
    let (fake, client) = connect(MonitorScript::new()).await;
    assert!(client.oob());
    assert_eq!(fake.seen()[0].arguments, json!({"enable": ["oob"]}));
    let greeting = client.greeting().unwrap();
    assert_eq!(greeting.capabilities, ["oob"]);
    assert_eq!(greeting.version.unwrap().to_string(), "10.0.2");

    let (fake, client) = connect(MonitorScript::new().greeting(&greeting_without_oob())).await;
    assert!(!client.oob());
    assert_eq!(fake.seen()[0].arguments, Value::Null);

    let (fake, client) = connect_with(MonitorScript::new(), QmpOptions { oob: false, ..QmpOptions::default() }).await;
    assert!(!client.oob());
    assert_eq!(fake.seen()[0].arguments, Value::Null);
}

fn greeting_without_oob() -> Value {
    greeting(&["something-new"])
}

#[tokio::test]
async fn h2_commands_do_not_wait_for_each_other() {
    for capabilities in [&["oob"][..], &[]] {
        let (fake, client) = connect(hold_stop().greeting(&greeting(capabilities))).await;
        let first = client.execute(&qmp::stop {}, LONG);
        let second = client.start(query_status(), LONG);
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
    let (fake, client) = connect(MonitorScript::new()).await;
    fake.freeze();
    let stuck: Vec<_> = (0..20).map(|_| client.start(query_status(), LONG)).collect();
    assert_eq!(client.execute_oob(&qmp::query_yank {}, LONG).await.unwrap(), json!([]));
    assert!(fake.saw("query-yank").await.oob);
    fake.thaw();
    for pending in stuck {
        pending.await.unwrap();
    }
}

#[tokio::test]
async fn h3_out_of_band_is_refused_where_it_was_not_negotiated() {
    let (fake, client) = connect(MonitorScript::new().greeting(&greeting_without_oob())).await;
    let error = client.execute_oob(&qmp::query_yank {}, LONG).await.unwrap_err();
    assert!(matches!(error, ExecuteError::OobNotNegotiated { .. }), "{error:?}");
    assert!(fake.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn h4_a_missed_deadline_leaves_the_client_usable() {
    let (fake, client) = connect(hold_stop()).await;
    for _ in 0..3 {
        assert!(sent_without_reply(client.execute(&qmp::stop {}, SHORT).await));
    }
    fake.on("stop", |_| vec![AnswerStep::Return(json!({}))]);
    fake.release("stop");
    client.execute(&qmp::stop {}, LONG).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn h5_a_late_reply_is_counted_and_nothing_more() {
    let (fake, client) = connect(hold_stop()).await;
    let mut events = client.subscribe();
    assert!(sent_without_reply(client.execute(&qmp::stop {}, SHORT).await));
    fake.saw("stop").await;
    let dropped = client.execute(&qmp::stop {}, LONG);
    fake.saw_many(3).await;
    drop(dropped);
    fake.release("stop");
    client.start(query_status(), LONG).await.unwrap();
    wait_until(&client, |counters| counters.late_replies == 2).await;
    fake.event("STOP", json!({}));
    assert_eq!(next_event(&mut events).await.name, "STOP");
    assert!(!client.is_closed());
}

#[tokio::test]
async fn h6_unknown_event_is_passed_on() {
    let (fake, client) = connect(MonitorScript::new()).await;
    let mut events = client.subscribe();
    fake.event("FROM_THE_FUTURE", json!({"a": [1]}));
    fake.raw("{\"event\": \"BARE\"}\r\n");
    let first = next_event(&mut events).await;
    assert_eq!((first.name.as_str(), first.data), ("FROM_THE_FUTURE", json!({"a": [1]})));
    let second = next_event(&mut events).await;
    assert_eq!((second.name.as_str(), second.data, second.emitted), ("BARE", Value::Null, None));
    assert_eq!((first.sequence, second.sequence), (0, 1));
    assert!(first.received <= second.received);
    client.start(query_status(), LONG).await.unwrap();
}

#[tokio::test]
async fn h7_unknown_values_missing_members_and_a_failed_clock_pass() {
    let script = MonitorScript::new()
        .on("stop", |_| vec![AnswerStep::Error { class: "BrandNew".into(), desc: "not now".into() }]);
    let (fake, client) = connect(script).await;
    let mut events = client.subscribe();
    fake.raw(concat!(
        r#"{"event": "BLOCK_JOB_ERROR", "data": {"action": "dance"}, "timestamp": {"seconds": -1, "microseconds": -1}}"#,
        "\n"
    ));
    let event = next_event(&mut events).await;
    assert_eq!((event.data, event.emitted), (json!({"action": "dance"}), None));
    match client.execute(&qmp::stop {}, LONG).await.unwrap_err() {
        ExecuteError::Refused { class, desc, .. } => {
            assert_eq!((class, desc.as_str()), (ErrorClass::Other("BrandNew".into()), "not now"));
        }
        other => panic!("{other:?}"),
    }
    client.start(query_status(), LONG).await.unwrap();
}

#[tokio::test]
async fn h8_a_failing_migration_is_seen_to_its_end() {
    let (fake, client) = connect(MonitorScript::new()).await;
    let mut events = client.subscribe();
    for status in ["setup", "active", "failing", "failed"] {
        fake.event("MIGRATION", json!({"status": status}));
    }
    for status in ["setup", "active", "failing", "failed"] {
        assert_eq!(next_event(&mut events).await.data["status"], status);
    }
    client.start(query_status(), LONG).await.unwrap();
}

#[tokio::test]
async fn h9_the_end_of_the_stream_fails_every_waiter_at_once() {
    let (fake, client) = connect(hold_stop()).await;
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
    let later = client.start(query_status(), LONG).await.unwrap_err();
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
    let (fake, client) = connect_with(MonitorScript::new(), options).await;
    let (mut slow, mut other) = (client.subscribe(), client.subscribe());
    for number in 0..100 {
        fake.event("RESET", json!({ "number": number }));
    }
    client.start(query_status(), LONG).await.unwrap();
    assert!(matches!(slow.next().await, StreamItem::Lagged(84)));
    for events in [&mut slow, &mut other] {
        let first = match events.next().await {
            StreamItem::Lagged(_) => next_event(events).await,
            StreamItem::Event(event) => (*event).clone(),
            StreamItem::Closed(_) => panic!("closed"),
        };
        assert_eq!((first.sequence, &first.data["number"]), (84, &json!(84)));
        for number in 85..100 {
            assert_eq!(next_event(events).await.sequence, number);
        }
    }
}

#[tokio::test]
async fn h11_events_around_the_negotiation_are_kept() {
    let mut opening = b"{\"event\": \"BEFORE\"}\r\n".to_vec();
    opening.extend(format!("{}\r\n{{\"event\": \"BETWEEN\"}}\r\n", greeting(&["oob"])).into_bytes());
    let script = MonitorScript::new().opening(opening).on("qmp_capabilities", |_| {
        vec![
            AnswerStep::event("DURING", json!({})),
            AnswerStep::Return(json!({})),
            AnswerStep::event("AFTER", json!({})),
        ]
    });
    let (_fake, client) = connect(script).await;
    client.start(query_status(), LONG).await.unwrap();
    let mut events = client.subscribe();
    for name in ["BEFORE", "BETWEEN", "DURING", "AFTER"] {
        assert_eq!(next_event(&mut events).await.name, name);
    }
}

#[tokio::test]
async fn h12_odd_ids_are_counted_and_survived() {
    let (fake, client) = connect(hold_stop()).await;
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
    wait_until(&client, |counters| counters.repeated_greetings == 1).await;
    assert_eq!(client.counters().unknown_ids, 4);
    assert_eq!(client.counters().unidentified_errors, 1);
    fake.release("stop");
    assert_eq!(pending.await.unwrap(), json!({}));
}

#[tokio::test]
async fn h13_a_reply_of_an_older_qemu_is_passed_as_it_is() {
    let reply = json!([{"capability": "compress", "state": false}, {"capability": "block", "state": false}]);
    let script = MonitorScript::new().answer("query-migrate-capabilities", reply.clone());
    let (_fake, client) = connect(script).await;
    assert_eq!(client.execute(&qmp::query_migrate_capabilities {}, LONG).await.unwrap(), reply);
}

#[tokio::test]
async fn h14_a_reply_of_a_newer_qemu_is_passed_as_it_is() {
    let reply = json!([{"cpu-index": 0, "qom-type": "x", "target": "z80", "thread-id": u64::MAX}]);
    let (_fake, client) = connect(MonitorScript::new().answer("query-cpus-fast", reply.clone())).await;
    assert_eq!(client.execute(&qmp::query_cpus_fast {}, LONG).await.unwrap(), reply);
}

#[tokio::test]
async fn h15_arguments_and_commands_newer_than_the_crate_can_be_sent() {
    let (fake, client) = connect(MonitorScript::new().answer("blockdev-set-active", json!({}))).await;
    client.start(query_status().with("target-is-zero", true), LONG).await.unwrap();
    assert_eq!(fake.saw("query-status").await.arguments, json!({"target-is-zero": true}));
    client.start(QmpRequest::named("blockdev-set-active").with("active", false), LONG).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn h16_what_was_withdrawn_is_never_sent() {
    let (fake, client) = connect(hold_stop()).await;
    let stuck: Vec<_> = (0..7).map(|_| client.execute(&qmp::stop {}, LONG)).collect();
    fake.saw_many(8).await;
    assert!(!sent_without_reply(client.execute(&qmp::cont {}, SHORT).await));
    drop(client.execute(&qmp::cont {}, LONG));
    fake.release("stop");
    for pending in stuck {
        pending.await.unwrap();
    }
    client.start(query_status(), LONG).await.unwrap();
    assert!(!fake.names().contains(&"cont".to_owned()), "{:?}", fake.names());
    assert_eq!(client.counters().withdrawn, 2);
}

#[tokio::test]
async fn h17_lines_are_bounded_and_junk_is_survived() {
    let mut opening = b"\r\n(qemu) \xff\r\n[1]\r\n{\"return\": {}, \"id\": \"old\"}\r\n".to_vec();
    opening.extend(format!("{}\n", greeting(&["oob"])).into_bytes());
    let options = QmpOptions { max_line: 4096, max_event: 1024, ..QmpOptions::default() };
    let (fake, client) = connect_with(MonitorScript::new().opening(opening), options).await;
    assert_eq!((client.counters().unparsable, client.counters().unknown_ids), (2, 1));
    let mut events = client.subscribe();

    fake.event("TOO_LONG", json!("x".repeat(100_000)));
    fake.event("LONG", json!("x".repeat(2000)));
    fake.raw("[".repeat(4000) + "\n");
    fake.event("SHORT", json!({}));
    let long = next_event(&mut events).await;
    assert_eq!((long.name.as_str(), long.data), ("LONG", Value::Null));
    assert_eq!(next_event(&mut events).await.name, "SHORT");
    client.start(query_status(), LONG).await.unwrap();
    let counters = client.counters();
    assert_eq!((counters.oversized, counters.stripped_events, counters.unparsable), (1, 1, 3));

    fake.raw("{\"event\": \"TORN");
    fake.close();
    assert!(matches!(client.wait_closed().await, CloseCause::EndOfStream));
    assert_eq!(client.counters().torn_bytes, 15);
}

#[tokio::test(start_paused = true)]
async fn h16_a_command_past_its_deadline_is_not_sent_though_nobody_looked() {
    let (fake, client) = connect(hold_stop()).await;
    let stuck: Vec<_> = (0..7).map(|_| client.execute(&qmp::stop {}, LONG)).collect();
    let stale = client.execute(&qmp::cont {}, SHORT);
    fake.saw_many(8).await;
    tokio::time::sleep(SHORT * 2).await;
    fake.release("stop");
    for pending in stuck {
        pending.await.unwrap();
    }
    client.start(query_status(), LONG).await.unwrap();
    assert!(!sent_without_reply(stale.await));
    assert!(!fake.names().contains(&"cont".to_owned()), "{:?}", fake.names());
}
