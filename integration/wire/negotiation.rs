//! The greeting and the negotiation of capabilities.

use qapi::qmp;
use qferry::internals::qmp::{CloseCause, ConnectError, ExecuteError, QmpClient, QmpOptions};

use super::fake::{AnswerStep, MonitorScript};
use super::{LONG, query_status};

#[tokio::test(start_paused = true)]
async fn silence_tells_that_the_monitor_is_probably_taken() {
    let (_fake, stream) = MonitorScript::new().opening("\r\n").duplex();
    let error = QmpClient::connect(stream, QmpOptions::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Silent { .. }), "{error:?}");
    assert!(error.to_string().contains("another client probably holds this monitor"));
    assert!(error.to_string().contains("-qmp"));
}

#[tokio::test(start_paused = true)]
async fn a_human_monitor_is_told_apart_from_a_taken_one() {
    let (_fake, stream) = MonitorScript::new().opening("QEMU 10.0.13 monitor - type 'help'\r\n(qemu) ").duplex();
    let error = QmpClient::connect(stream, QmpOptions::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotQmp { .. }), "{error:?}");
}

#[tokio::test]
async fn an_end_before_the_greeting_is_an_error() {
    let (fake, stream) = MonitorScript::new().opening("{\"QMP\":").duplex();
    fake.close();
    let error = QmpClient::connect(stream, QmpOptions::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Ended(CloseCause::EndOfStream)), "{error:?}");
}

#[tokio::test]
async fn a_refused_negotiation_is_an_error() {
    let (_fake, stream) = MonitorScript::new().on("qmp_capabilities", |_| vec![AnswerStep::error("no")]).duplex();
    let error = QmpClient::connect(stream, QmpOptions::default()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Negotiation(ExecuteError::Refused { .. })), "{error:?}");
}

#[tokio::test]
async fn an_embedders_connection_is_adopted() {
    let (fake, stream) = MonitorScript::new().opening("{\"return\": {}, \"id\": \"embedder\"}\n").duplex();
    let client = QmpClient::adopt(stream, true, QmpOptions::labelled("embedder"));
    client.start(query_status(), LONG).await.unwrap();
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
    let unix = MonitorScript::new().listen_unix(&path);
    let (tcp, port) = MonitorScript::new().listen_tcp().await;
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
