//! The QMP client against a scripted QEMU: the hazards of other clients by number, deadlines, order, loss, bounds.
//!
//! Time is paused wherever a deadline is involved, so no test depends on how fast the machine is.

#![allow(clippy::unwrap_used, reason = "a test says all it has to say by panicking")]

#[path = "../fake/mod.rs"]
mod fake;

mod floods;
mod hazards;
mod lanes;
mod negotiation;
mod transcript;

use std::time::Duration;

use fake::{AnswerStep, FakeMonitor, MonitorScript};
use qapi::qmp;
use qferry::internals::qmp::{
    ConnectionCounters, EventStream, ExecuteError, QmpClient, QmpEvent, QmpOptions, QmpRequest, StreamItem,
};
use serde_json::{Value, json};

/// A deadline that no test misses unless the test is about deadlines.
const LONG: Duration = Duration::from_secs(3600);
/// A deadline that is missed on purpose, in paused time.
const SHORT: Duration = Duration::from_secs(1);

async fn connect(script: MonitorScript) -> (FakeMonitor, QmpClient) {
    connect_with(script, QmpOptions::default()).await
}

async fn connect_with(script: MonitorScript, options: QmpOptions) -> (FakeMonitor, QmpClient) {
    let (fake, stream) = script.duplex();
    (fake, QmpClient::connect(stream, options).await.unwrap())
}

fn query_status() -> QmpRequest {
    QmpRequest::new(&qmp::query_status {}).unwrap()
}

/// A QEMU that answers `stop` only once the fake releases it.
fn hold_stop() -> MonitorScript {
    MonitorScript::new().on("stop", |_| vec![AnswerStep::Hold("stop"), AnswerStep::Return(json!({}))])
}

async fn next_event(events: &mut EventStream) -> QmpEvent {
    match events.next().await {
        StreamItem::Event(event) => (*event).clone(),
        other => panic!("expected an event, got {other:?}"),
    }
}

/// Waits until the counters meet the condition. A failing test hangs here.
async fn wait_until(client: &QmpClient, condition: impl Fn(ConnectionCounters) -> bool) {
    while !condition(client.counters()) {
        tokio::task::yield_now().await;
    }
}

/// Whether a command that got no reply had been sent.
fn sent_without_reply(result: Result<Value, ExecuteError>) -> bool {
    match result.unwrap_err() {
        ExecuteError::NoReply { sent, .. } => sent,
        other => panic!("expected no reply, got {other:?}"),
    }
}
