//! Golden screens, and what holds of every screen.

use super::{
    draw::draw,
    engine_feed::{EngineFeed, EngineLimits},
    keys::{FocusedList, ViewMode, ViewState},
    live_view::LiveView,
    palette::Palette,
    watch_feed::WatchFeed,
};
use crate::{
    codes::DiagnosisCode,
    diagnosis::{Cause, Confidence, Diagnosis, MirrorReport, SideReport, WatchSnapshot, WatchedEvent},
    progress::{Event, Side},
    quantity::Rate,
};
use insta::assert_snapshot;
use ratatui::{Terminal, backend::TestBackend};
use serde_json::{Value, json};
use std::time::Duration;

const MIB: u64 = 1 << 20;

fn mirror(id: &str, copied: u64, status: &str) -> MirrorReport {
    MirrorReport {
        id: id.to_owned(),
        status: status.to_owned(),
        copied,
        total: 200 * MIB,
        rate: if status == "running" { 40 * MIB } else { 0 },
        limit: (status == "running").then_some(50 * MIB),
        remaining: vec![200 * MIB - copied],
        ready: status == "ready",
    }
}

fn source() -> SideReport {
    SideReport {
        address: "unix:/run/vm/source.qmp".to_owned(),
        monitor: "answers".to_owned(),
        version: Some("10.0.13".to_owned()),
        run_state: Some("running".to_owned()),
        migration: Some("active".to_owned()),
        ram_total: Some(4096 * MIB),
        passes: Some(3),
        transferred: Some(5000 * MIB),
        remaining: vec![900 * MIB, 800 * MIB],
        bandwidth: Some(120 * MIB),
        dirty_rate: Some(20 * MIB),
        bandwidth_limit: Some(128 * MIB),
        expected_downtime_ms: Some(420),
        downtime_limit_ms: Some(300),
        throttle_pct: Some(20),
        mirrors: vec![mirror("disk0", 150 * MIB, "running"), mirror("disk1", 200 * MIB, "ready")],
        pid: Some(4711),
        process_state: Some("S".to_owned()),
        ..SideReport::default()
    }
}

fn destination() -> SideReport {
    SideReport {
        address: "tcp:10.0.0.2:4444".to_owned(),
        monitor: "answers".to_owned(),
        version: Some("10.0.13".to_owned()),
        run_state: Some("inmigrate".to_owned()),
        migration: Some("active".to_owned()),
        exports: vec!["qferry-disk0".to_owned(), "qferry-disk1".to_owned()],
        ..SideReport::default()
    }
}

fn snapshot(seconds: u64, verdict: &str) -> WatchSnapshot {
    let diagnosis = Diagnosis {
        verdict: verdict.to_owned(),
        causes: Vec::new(),
        source: Some(source()),
        destination: Some(destination()),
        moved: None,
        unseen: vec!["tcp:10.0.0.2:4444: its process is not known, so threads and queues are not seen".to_owned()],
        notes: Vec::new(),
    };
    let at = Duration::from_secs(seconds);
    WatchSnapshot { at, diagnosis, events: Vec::new(), lost_events: 0, blackout: None, moved: false }
}

fn event(side: Side, name: &str, ms: u64, data: Value) -> WatchedEvent {
    let qemu_us = Some((1_700_000_000_000 + ms) * 1000);
    WatchedEvent { side, event: name.to_owned(), qemu_us, data, at: Duration::from_millis(ms) }
}

/// A migration whose mirrors and RAM go on, over some looks.
fn healthy() -> WatchFeed {
    let mut feed = WatchFeed::default();
    for look in 0..30 {
        let verdict = "Nothing wrong found: 50.0 MiB of disks are left to copy at 40.0 MiB/s, about 1 s left.";
        let mut seen = snapshot(30 + look, verdict);
        if let Some(source) = &mut seen.diagnosis.source {
            source.remaining.push((1000 - look * 10) * MIB);
            source.mirrors[0].copied -= (29 - look) * 5 * MIB;
        }
        seen.events = match look {
            0 => vec![event(Side::Source, "MIGRATION", 10, json!({ "status": "active" }))],
            1 => vec![event(Side::Source, "BLOCK_JOB_READY", 400, json!({ "device": "disk1", "len": 209_715_200 }))],
            2..5 => vec![event(Side::Source, "MIGRATION_PASS", 800 + look, json!({ "pass": 3 }))],
            _ => vec![],
        };
        feed.take(&seen);
    }
    feed
}

fn cause(code: DiagnosisCode, confidence: Confidence, evidence: &[&str], remedy: &str) -> Cause {
    Cause {
        code,
        confidence,
        evidence: evidence.iter().map(|fact| (*fact).to_owned()).collect(),
        remedy: remedy.to_owned(),
        risk: "whoever paused it may count on that".to_owned(),
        commands: Vec::new(),
        fixable: true,
    }
}

/// A migration that waits for a mirror that somebody has paused.
fn stuck() -> WatchFeed {
    let mut feed = healthy();
    let mut seen = snapshot(61, DiagnosisCode::MirrorPaused.meaning());
    if let Some(source) = &mut seen.diagnosis.source {
        source.mirrors[0] = mirror("disk0", 150 * MIB, "paused");
    }
    let paused = ["the mirror disk0 was paused over 3.6 s: 150.0 MiB of 200.0 MiB copied", "its io-status is nospace"];
    let remedy = "make room where the destination's image is, and resume the job";
    seen.diagnosis.causes = vec![
        cause(DiagnosisCode::MirrorPaused, Confidence::Certain, &paused, remedy),
        cause(DiagnosisCode::BandwidthCapped, Confidence::Likely, &["max-bandwidth is 128.0 MiB/s"], "raise it"),
    ];
    feed.take(&seen);
    feed
}

/// A migration whose destination has died.
fn gone() -> WatchFeed {
    let mut feed = healthy();
    let mut seen = snapshot(61, DiagnosisCode::DestinationGone.meaning());
    let refused = ["nobody listens at tcp:10.0.0.2:4444: Connection refused (os error 111)"];
    let remedy = "let the source cancel; the guest goes on there";
    seen.diagnosis.causes = vec![cause(DiagnosisCode::DestinationGone, Confidence::Certain, &refused, remedy)];
    let address = "tcp:10.0.0.2:4444".to_owned();
    seen.diagnosis.destination = Some(SideReport { address, monitor: "gone".to_owned(), ..SideReport::default() });
    feed.take(&seen);
    feed
}

fn drawn(view: &LiveView, state: &ViewState, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a backend in memory");
    terminal.draw(|frame| draw(frame, view, state, &Palette::coloured())).expect("drawn in memory");
    terminal
}

fn screen(view: &LiveView, width: u16, height: u16) -> String {
    drawn(view, &ViewState::new(ViewMode::Watch), width, height).backend().to_string()
}

#[test]
fn a_healthy_migration() {
    let feed = healthy();
    assert_snapshot!("healthy_80x24", screen(feed.view(), 80, 24));
    assert_snapshot!("healthy_200x50", screen(feed.view(), 200, 50));
}

#[test]
fn a_migration_that_is_stuck() {
    assert_snapshot!("stuck_80x24", screen(stuck().view(), 80, 24));
    let mut state = ViewState::new(ViewMode::Watch);
    (state.cause, state.paused) = (1, true);
    assert_snapshot!("stuck_second_cause_120x30", drawn(stuck().view(), &state, 120, 30).backend().to_string());
}

#[test]
fn a_side_that_is_gone() {
    assert_snapshot!("gone_80x24", screen(gone().view(), 80, 24));
}

#[test]
fn a_terminal_with_hardly_any_room() {
    assert_snapshot!("tiny_30x6", screen(stuck().view(), 30, 6));
    assert_snapshot!("small_50x12", screen(healthy().view(), 50, 12));
}

#[test]
fn the_help() {
    let mut state = ViewState::new(ViewMode::Watch);
    state.help = true;
    assert_snapshot!("help_80x24", drawn(healthy().view(), &state, 80, 24).backend().to_string());
}

#[test]
fn the_engines_own_migration() {
    let mut feed = EngineFeed::new(EngineLimits {
        addresses: ["/run/vm/source.qmp", "/run/vm/destination.qmp"].map(str::to_owned),
        budget: Duration::from_millis(300),
        bandwidth: Some(Rate(125_000_000)),
        policy: "converge".to_owned(),
    });
    let events = [
        json!({ "type": "phase", "phase": "storage", "state": "begin" }),
        json!({ "type": "disk", "disk": "disk0", "status": "ready", "copied": 200 * MIB, "total": 200 * MIB,
            "ready": true, "rate": 0, "growth": 0, "write_rate": 0, "write_latency_us": null, "eta_ms": 0 }),
        json!({ "type": "phase", "phase": "storage", "state": "end" }),
        json!({ "type": "action", "action": "start-memory", "because": "every mirror is ready: RAM is sent" }),
        json!({ "type": "phase", "phase": "memory", "state": "begin" }),
        json!({ "type": "memory", "status": "active", "transferred": 300 * MIB, "remaining": 200 * MIB,
            "total": 512 * MIB, "dirty_rate": MIB, "bandwidth": 100 * MIB, "working_set": MIB, "throttle_pct": 0,
            "predicted_blackout_ms": 40, "eta_ms": 2000 }),
        json!({ "type": "warning", "code": "x", "message": "a word of warning" }),
    ];
    for (number, mut event) in events.into_iter().enumerate() {
        (event["v"], event["t_ms"]) = (1.into(), (number * 1000).into());
        feed.take(&serde_json::from_value::<Event>(event).expect("an event"));
    }
    let state = ViewState::new(ViewMode::Migrate);
    assert_snapshot!("migrate_80x24", drawn(feed.view(), &state, 80, 24).backend().to_string());
}

/// A monitor that sends what could command a terminal, or fill it.
fn hostile() -> WatchFeed {
    let mut feed = WatchFeed::default();
    let evil = "\x1b]0;owned\x07\u{9b}2J\r\n\u{202e}\u{200b}日本語".repeat(3000);
    let mut seen = snapshot(u64::MAX / 4, &evil);
    let side = SideReport {
        address: evil.clone(),
        version: Some(evil.clone()),
        run_state: Some(evil.clone()),
        migration: Some(evil.clone()),
        process_state: Some(evil.clone()),
        exports: vec![evil.clone(); 500],
        ram_total: Some(u64::MAX),
        remaining: vec![u64::MAX],
        bandwidth: Some(u64::MAX),
        dirty_rate: Some(u64::MAX),
        mirrors: vec![MirrorReport { total: u64::MAX, rate: u64::MAX, ..mirror(&evil, 0, &evil) }; 300],
        ..source()
    };
    (seen.diagnosis.source, seen.diagnosis.destination) = (Some(side.clone()), Some(side));
    let nobodys = cause(DiagnosisCode::MirrorFailed, Confidence::Certain, &[evil.as_str(); 20], &evil);
    seen.diagnosis.causes = vec![nobodys; 100];
    for number in 0..3 {
        let one = event(Side::Source, &format!("{number}{evil}"), u64::MAX / 2000, json!({ evil.clone(): evil }));
        seen.events = vec![one; 20];
        feed.take(&seen);
    }
    feed
}

#[test]
fn no_size_and_no_text_breaks_a_screen_or_commands_the_terminal() {
    let mut state = ViewState::new(ViewMode::Watch);
    for view in [hostile(), stuck(), WatchFeed::default()] {
        for (width, height) in
            [(1, 1), (2, 3), (7, 2), (10, 40), (33, 9), (80, 24), (119, 24), (120, 24), (121, 60), (300, 5)]
        {
            for (help, focus, scrolled) in [(false, FocusedList::Causes, 0), (true, FocusedList::Events, 10_000)] {
                (state.help, state.focus, state.scrolled, state.cause) = (help, focus, scrolled, scrolled);
                let terminal = drawn(view.view(), &state, width, height);
                for cell in terminal.backend().buffer().content() {
                    assert!(!cell.symbol().chars().any(char::is_control), "{:?}", cell.symbol());
                    assert!(!cell.symbol().contains('\u{202e}'));
                }
            }
        }
    }
}

#[test]
fn a_view_stays_within_its_bounds() {
    let mut feed = healthy();
    for number in 0..5000 {
        let mut seen = snapshot(number, "x");
        seen.events = vec![event(Side::Source, &format!("E{number}"), number, json!({}))];
        if let Some(source) = &mut seen.diagnosis.source {
            source.mirrors = vec![mirror(&format!("m{number}"), 0, "running")];
        }
        feed.take(&seen);
    }
    let view = feed.view();
    assert!(view.events.len() <= 500 && view.curves.len() <= 64, "{} {}", view.events.len(), view.curves.len());
    assert!(view.curves.iter().all(|curve| curve.values.len() <= 600));
}
