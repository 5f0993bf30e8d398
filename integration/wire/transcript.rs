//! The transcript of two connections.

use qferry::internals::qmp::transcript::{EntryBody, LineDirection, Recorder, Transcript};
use qferry::internals::qmp::{QmpOptions, QmpRequest};
use serde_json::json;

use super::fake::{MonitorScript, greeting};
use super::{LONG, connect_with, query_status};

#[tokio::test]
async fn a_transcript_has_both_sides_and_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("transcript.jsonl");
    let recorder = Recorder::create(&path).unwrap();
    let options = |label: &str| QmpOptions { recorder: Some(recorder.clone()), ..QmpOptions::labelled(label) };
    let (source, source_client) = connect_with(MonitorScript::new(), options("source")).await;
    let (_destination, destination_client) = connect_with(MonitorScript::new(), options("destination")).await;

    let secret = QmpRequest::named("object-add").with("qom-type", "secret").with("data", "hunter2");
    source_client.start(secret, LONG).await.unwrap_err();
    source.raw("{\"password\": hunter2\n(qemu)\n");
    destination_client.start(query_status(), LONG).await.unwrap();
    source_client.start(query_status(), LONG).await.unwrap();
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
