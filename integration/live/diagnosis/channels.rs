//! RAM that does not get through: channels that are slow, dead or not connected, and limits.

use super::{
    both, codes, diagnosed, diagnosed_for, dirtying, expect, guest, path, send_to, short, slow_link, wait_for_migration,
};
use crate::{
    machines::ask,
    support::{MIB, WAIT, until},
};
use qferry_bed::{Bare, ChannelProxy, Pair};
use serde_json::{Value, json};
use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixListener,
    thread::sleep,
    time::Duration,
};

fn passes(pair: &Pair, count: u64) {
    until(pair, "query-migrate", |info| info["ram"]["dirty-sync-count"].as_u64().unwrap_or_default() >= count);
}

/// Two of the three reasons for which RAM is sent without an end; `ram_that_a_limit_holds_down_is_named` has the third.
#[test]
fn a_guest_that_is_too_fast_is_told_from_a_limit_of_the_downtime() {
    let pair = dirtying("10.0.13");
    // passes of half a second, of which a look of five seconds sees enough on a busy host too
    let (front, behind) = slow_link(&pair, 0, 1 << 20);
    let unlimited = json!({ "max-bandwidth": 1u64 << 33, "downtime-limit": 1 });
    send_to(&pair, &[], &unlimited, (&front, &behind));
    // QEMU knows how fast the guest dirties after a second or two
    passes(&pair, 8);
    expect("not-converging", &diagnosed_for("5s", &[&path(&pair.source), &path(&pair.destination)]));
    drop(pair);

    // three times the link, and what the guest rewrites all the time goes over it in less than QEMU's usual downtime
    let pair = dirtying("10.0.13");
    let (front, behind) = slow_link(&pair, 0, 3 << 20);
    send_to(&pair, &[], &unlimited, (&front, &behind));
    passes(&pair, 20);
    expect("downtime-too-small", &short(&pair));
    let (exit, fixed) = diagnosed(&[&path(&pair.source), "--fix", "downtime-too-small", "--yes"]);
    assert_eq!(exit, 0, "{fixed:#}");
    wait_for_migration("completed", || pair.source.qmp("query-migrate", &json!({})).unwrap());
}

/// A channel that carries nothing, before and after the guest was stopped; and a destination that is told from it.
#[test]
fn a_channel_that_takes_nothing_is_dead_or_blocks_the_state() {
    // little is left when the guest is stopped: a main loop that sends more than the channel takes hangs instead
    let pair = guest("10.0.13", None);
    let [front, behind] = ["front", "behind"].map(|name| pair.run_dir().join(name));
    let link = ChannelProxy::start(front.clone(), behind.clone()).unwrap();
    let capabilities = ["pause-before-switchover", "return-path"];
    let slow = json!({ "max-bandwidth": MIB / 2, "downtime-limit": 1, "avail-switchover-bandwidth": 1000 });
    send_to(&pair, &capabilities, &slow, (&front, &behind));
    wait_for_migration("active", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    link.black_hole();
    sleep(Duration::from_secs(1));
    expect("link-dead", &short(&pair));
    link.resume();
    pair.source
        .qmp(
            "migrate-set-parameters",
            &json!({ "max-bandwidth": 1u64 << 33, "downtime-limit": 2000, "avail-switchover-bandwidth": 0 }),
        )
        .unwrap();
    wait_for_migration("pre-switchover", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    link.black_hole();
    pair.source.qmp("migrate-continue", &json!({ "state": "pre-switchover" })).unwrap();
    sleep(Duration::from_millis(500));
    expect("device-blocked", &short(&pair));
    link.resume();
    wait_for_migration("completed", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    pair.destination.qmp("cont", &json!({})).unwrap();
    pair.destination.wait_for_status("running", WAIT).unwrap();
    // the guest stood for longer than its own timers like
    expect("clock-jump", &short(&pair));
}

/// Channels that are not connected: nobody answers the first segment, or nobody shakes hands.
#[test]
fn a_handshake_that_waits_is_told_from_a_port_that_does_not_answer() {
    let source = Bare::start("10.0.13", &["-object", "tls-creds-anon,id=tls0,endpoint=client"]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let silent = folder.path().join("silent");
    let listener = UnixListener::bind(&silent).unwrap();
    let look = || diagnosed_of(&source);
    ask(&source, "migrate-set-parameters", &json!({ "tls-creds": "tls0" }));
    ask(&source, "migrate", &json!({ "uri": format!("unix:{}", silent.display()) }));
    sleep(Duration::from_millis(500));
    let told = look();
    expect("tls", &told);
    assert!(codes(&told.1).contains(&"monitor-blocked"), "{:#}", told.1);
    // QEMU reads until the other side closes
    drop((listener.accept().unwrap(), listener));
    wait_for_migration("failed", || ask(&source, "query-migrate", &json!({})));

    // a queue of clients that is full takes no first segment
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = full.local_addr().unwrap();
    let _held = fill(address);
    ask(&source, "migrate", &json!({ "uri": format!("tcp:{address}") }));
    wait_for_migration("setup", || ask(&source, "query-migrate", &json!({})));
    let told = look();
    expect("setup-blocked", &told);
    assert!(!codes(&told.1).contains(&"tls"), "{:#}", told.1);
}

pub(super) fn fill(address: SocketAddr) -> Vec<TcpStream> {
    std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()).collect()
}

fn diagnosed_of(machine: &Bare) -> (i32, Value) {
    diagnosed_for("2500ms", &[machine.qmp_path().to_str().unwrap()])
}

/// Postcopy that waits for a new channel, and for whom nothing may be stopped.
#[test]
fn postcopy_without_a_channel_is_paused() {
    let pair = dirtying("10.0.13");
    let [front, behind] = ["front", "behind"].map(|name| pair.run_dir().join(name));
    let link = ChannelProxy::start(front.clone(), behind.clone()).unwrap();
    let slow = json!({ "max-bandwidth": MIB, "max-postcopy-bandwidth": MIB, "downtime-limit": 1 });
    send_to(&pair, &["postcopy-ram", "return-path"], &slow, (&front, &behind));
    wait_for_migration("active", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    pair.source.qmp("migrate-start-postcopy", &json!({})).unwrap();
    wait_for_migration("postcopy-active", || pair.destination.qmp("query-migrate", &json!({})).unwrap());
    link.cut();
    wait_for_migration("postcopy-paused", || pair.source.qmp("query-migrate", &json!({})).unwrap());
    let told = both(&pair);
    expect("postcopy-paused", &told);
    // no side may be started there
    assert!(!codes(&told.1).contains(&"both-paused") && !codes(&told.1).contains(&"both-running"), "{:#}", told.1);
}
