//! Plots of transcripts that are whole, failed, torn and hostile, read as XML.

use super::*;
use roxmltree::{Document, Node, ParsingOptions};
use std::fmt::Write as _;

const HEADER: &str = r#"{"v":1,"type":"transcript","began_ms":1700000000123,"qferry":"0.1.0","brief":true,"run":"0abcdefghijk","source":"unix:/s","destination":"tcp:d:1"}"#;

fn entry(us: u64, side: &str, dir: &str, line: &str) -> String {
    format!("{{\"v\":1,\"t_us\":{us},\"side\":\"{side}\",\"dir\":\"{dir}\",\"line\":{line}}}\n")
}

fn event(us: u64, fields: &str) -> String {
    entry(us, "engine", "note", &format!("{{\"v\":1,\"t_ms\":{},{fields}}}", us / 1000))
}

fn phase(us: u64, phase: &str, state: &str) -> String {
    event(us, &format!(r#""type":"phase","phase":"{phase}","state":"{state}""#))
}

fn action(us: u64, action: &str, because: &str) -> String {
    event(us, &format!(r#""type":"action","action":"{action}","because":"{because}""#))
}

fn memory(us: u64, remaining: u64, throttle: u64) -> String {
    event(
        us,
        &format!(
            r#""type":"memory","status":"active","transferred":1,"remaining":{remaining},"total":900000000,"dirty_rate":40000000,"bandwidth":90000000,"working_set":6,"throttle_pct":{throttle},"predicted_blackout_ms":30,"eta_ms":null"#
        ),
    )
}

fn disk(us: u64, name: &str, copied: u64) -> String {
    event(
        us,
        &format!(
            r#""type":"disk","disk":"{name}","status":"running","copied":{copied},"total":100000000,"ready":true,"rate":1,"growth":0,"write_rate":0,"write_latency_us":null,"eta_ms":null"#
        ),
    )
}

fn qmp(us: u64, side: &str, name: &str) -> String {
    entry(us, side, "receive", &format!(r#"{{"event":"{name}"}}"#))
}

fn set(us: u64, id: u64, arguments: &str) -> String {
    let command = format!(r#"{{"execute":"migrate-set-parameters","arguments":{arguments},"id":"m#{id}"}}"#);
    let answer = format!(r#"{{"return":{{}},"id":"m#{id}"}}"#);
    entry(us, "source", "send", &command) + &entry(us + 90, "source", "receive", &answer)
}

fn outcome(us: u64, outcome: &str, runs_on: &str, reason: &str, blackout: &str, ledger: &str) -> String {
    event(
        us,
        &format!(
            r#""type":"outcome","outcome":"{outcome}","runs_on":"{runs_on}","reason":{reason},"total_ms":{},"blackout_ms":{blackout},"qemu_downtime_ms":1,"ledger":{ledger},"disks":[],"ram":{{"bytes":0,"iterations":2,"throttle_max_pct":0,"postcopy":false}},"predicted":null,"leftovers":[]"#,
            us / 1000
        ),
    )
}

/// RAM and a disk for two seconds, with limits and decisions.
fn copying() -> String {
    let mut text = HEADER.to_owned() + "\n" + &phase(1000, "connect", "begin") + &phase(200_000, "connect", "end");
    text +=
        &(phase(200_000, "storage", "begin") + &set(210_000, 1, r#"{"downtime-limit":10,"max-bandwidth":100000000}"#));
    for step in 0..20u64 {
        text += &disk(300_000 + step * 100_000, "disk0", step * 5_000_000);
        text += &memory(300_010 + step * 100_000, 900_000_000 - step * 40_000_000, step);
    }
    text += &(action(900_000, "downtime-limit", "RAM needs 80 ms") + &set(900_100, 2, r#"{"downtime-limit":80}"#));
    text += &(action(1_900_000, "throttle", "RAM is dirtied as fast as it is sent")
        + &event(1_950_000, r#""type":"warning","code":"not-applied","message":"QEMU refused""#));
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1..].sort_by_key(|line| time_of(line));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn time_of(line: &str) -> u64 {
    let digits = line.split("\"t_us\":").nth(1).unwrap().split(',').next().unwrap();
    digits.parse().unwrap()
}

/// A run that moved the guest.
fn moved() -> String {
    let ledger = r#"[{"span":"quiesce","ms":0.5},{"span":"ram-and-devices","ms":1.501}]"#;
    copying()
        + &qmp(2_300_000, "source", "STOP")
        + &entry(2_300_500, "source", "send", r#"{"execute":"block-job-cancel","id":"c#1"}"#)
        + &entry(2_300_750, "source", "receive", r#"{"return":{},"id":"c#1"}"#)
        + &entry(2_300_800, "destination", "send", r#"{"execute":"query-status","id":"q#1"}"#)
        + &qmp(2_302_001, "destination", "RESUME")
        + &phase(2_310_000, "storage", "end")
        + &outcome(2_400_000, "moved", "destination", "null", "2.001", ledger)
}

fn drawn(text: &str, name: &str) -> String {
    let place: PlotPlace = name.parse().unwrap();
    place.draw(Path::new("/t.jsonl"), text.as_bytes()).unwrap()
}

fn parsed(plot: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(plot, options).unwrap_or_else(|error| panic!("{error}: {plot}"))
}

fn texts(plot: &Document<'_>) -> Vec<String> {
    let visible =
        plot.descendants().filter(|node| ["text", "p", "td", "th", "h1", "h2"].contains(&node.tag_name().name()));
    visible.map(|node| node.text().unwrap_or_default().trim().to_owned()).collect()
}

/// The groups of a kind, as what they say when they are pointed at.
fn titles(plot: &Document<'_>, class: &str) -> Vec<String> {
    let groups = plot.descendants().filter(|node| node.attribute("class") == Some(class));
    groups
        .map(|group| group.first_element_child().and_then(|title| title.text()).unwrap_or_default().to_owned())
        .collect()
}

fn has(texts: &[String], words: &str) -> bool {
    texts.iter().any(|text| text.contains(words))
}

fn number(node: &Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap_or_default().parse().unwrap_or_default()
}

/// No two texts of a picture lie over each other, by their widest letters; and none leaves the picture.
fn assert_legible(picture: Node<'_, '_>) {
    let (width, height) = (number(&picture, "width"), number(&picture, "height"));
    let mut boxes: Vec<(f64, f64, f64, f64, String)> = Vec::new();
    for node in picture.descendants().filter(|node| node.has_tag_name("text") || node.tag_name().name() == "text") {
        let words = node.text().unwrap_or_default().trim().to_owned();
        let size = number(&node, "font-size");
        // plotters' own texts are numbers, whose letters are narrower than the widest
        let long = words.chars().count() as f64 * size * 0.54;
        let left = match node.attribute("text-anchor") {
            Some("end") => number(&node, "x") - long,
            Some("middle") => number(&node, "x") - long / 2.0,
            _ => number(&node, "x"),
        };
        let down = match node.attribute("dy") {
            Some("0.76em") => 0.76 * size,
            Some("0.5ex") => 0.25 * size,
            _ => 0.0,
        };
        let base = number(&node, "y") + down;
        let (right, top, bottom) = (left + long, base - size * 0.72, base + size * 0.2);
        assert!(left >= -1.0 && right <= width + 1.0 && top >= 0.0 && bottom <= height, "{words:?} leaves the picture");
        for (other_left, other_right, other_top, other_bottom, other) in &boxes {
            let is_apart = right <= *other_left || left >= *other_right || bottom <= *other_top || top >= *other_bottom;
            assert!(is_apart, "{words:?} lies over {other:?}");
        }
        boxes.push((left, right, top, bottom, words));
    }
    assert!(boxes.len() > 10, "{boxes:?}");
}

fn assert_all_legible(plot: &Document<'_>) {
    let pictures: Vec<_> = plot.descendants().filter(|node| node.attribute("class") == Some("qferry-plot")).collect();
    assert!(!pictures.is_empty());
    pictures.into_iter().for_each(assert_legible);
}

#[test]
fn a_move_is_drawn_with_every_chart_mark_and_unit() {
    let plot = drawn(&moved(), "a.svg");
    let parsed = parsed(&plot);
    let texts = texts(&parsed);
    for words in [
        "qferry run 0abcdefghijk: moved",
        "unix:/s -> tcp:d:1",
        "moved: the guest is on the destination, total 2.400 s, blackout 2.001 ms",
        "Remaining RAM, MiB",
        "RAM sent and dirtied, MiB/s",
        "bandwidth of RAM",
        "dirty rate",
        "max-bandwidth, at last 95",
        "Blackout foreseen, ms in powers of ten",
        "downtime-limit, at last 80",
        "Throttle of the vCPUs, %",
        "Mirrors, % copied",
        "disk0: 90.6 of 95.4 MiB, ready",
        "guest stops",
        "2.0 s",
        "Blackout, enlarged: STOP to RESUME on the destination, 2.001 ms as received",
        "ledger: ram-and-devices, 1.501 ms",
        "+0.500 ms  source  block-job-cancel, 0.250 ms",
        "+0.800 ms  destination  query-status, no answer",
        "+2.001 ms  destination  * RESUME",
        "1 0.900 s downtime-limit: RAM needs 80 ms",
        "3 1.950 s warning not-applied: QEMU refused",
    ] {
        assert!(has(&texts, words), "{words:?} is not in {texts:#?}");
    }
    assert!(!has(&texts, "! "), "{texts:#?}");
    let decisions = titles(&parsed, "decision");
    assert_eq!(decisions[0], "1: 0.900 s, downtime-limit: RAM needs 80 ms");
    assert_eq!(decisions[1].matches(" | ").count(), 1, "{decisions:?}");
    let spans = titles(&parsed, "span");
    assert!(spans.contains(&"storage: 0.200000 s to 2.310000 s, 2110.000 ms".to_owned()), "{spans:?}");
    assert!(spans.contains(&"guest stops: 2.300000 s to 2.302001 s, 2.001 ms".to_owned()), "{spans:?}");
    assert_eq!(titles(&parsed, "blackout-row").len(), 2 + 4);
    assert!(!has(&texts, "device saved"), "{texts:#?}");
    assert!(titles(&parsed, "hint").iter().any(|hint| hint.contains("bandwidth of RAM 85.8 | dirty rate 38.1")));
    // two lines of one chart have different dashes, and no stand-in of a line is left
    let lines: Vec<_> = parsed.descendants().filter(|node| node.attribute("class") == Some("line")).collect();
    let dashes: Vec<_> = lines.iter().map(|line| line.attribute("stroke-dasharray").unwrap_or_default()).collect();
    assert!(dashes.contains(&"") && dashes.contains(&"7 3") && dashes.contains(&"10 3 2 3"), "{dashes:?}");
    assert!(!plot.contains("#0102"), "a stand-in is left");
    assert_all_legible(&parsed);
}

/// A run that moved the guest, whose devices are known.
fn moved_with_devices(count: u64) -> String {
    let device = |(side, phase, name, instance, us): (&str, &str, &str, u64, u64)| {
        format!(
            r#"{{"side":"{side}","phase":"{phase}","device":"{name}","instance":{instance},"iterable":false,"us":{us}}}"#
        )
    };
    let named = [
        ("source", "save", "cpu", 1, 90),
        ("source", "save", "ram", 0, 1200),
        ("destination", "load", "0000:00:03.0/virtio-blk", 0, 300),
    ];
    let others = (0..count).map(|number| device(("source", "save", "pci", number, 1)));
    let devices: Vec<String> = named.into_iter().map(device).chain(others).collect();
    moved().replace("\"ledger\":", &format!("\"devices\":[{}],\"ledger\":", devices.join(",")))
}

#[test]
fn devices_are_drawn_within_the_span_of_the_ledger_that_has_them() {
    for (count, rows) in [(0, 3), (5, 2 + 5 + 1), (3000, 2 + 6)] {
        let plot = drawn(&moved_with_devices(count), "a.svg");
        let parsed = parsed(&plot);
        let texts = texts(&parsed);
        for words in [
            "device saved, 1.200 ms: ram",
            "device saved, 0.090 ms: cpu 1",
            "device loaded, 0.300 ms: 0000:00:03.0/virtio-blk",
            "when each began is not recorded",
        ] {
            assert!(has(&texts, words), "{words:?} is not in {texts:#?}");
        }
        let others = format!("ms: {} others", count.saturating_sub(4));
        assert_eq!(has(&texts, &others), count > 4, "{texts:#?}");
        assert_eq!(titles(&parsed, "blackout-row").len(), 2 + rows + 4, "{count}");
        assert_all_legible(&parsed);
        let page = drawn(&moved_with_devices(count), "a.html");
        let page = self::parsed(&page);
        assert!(has(&self::texts(&page), "cpu 1, saved at the source"));
        assert_all_legible(&page);
    }
    let unknown = moved().replace("\"ledger\":", "\"devices_unknown\":\"its log is no file\",\"ledger\":");
    let plot = drawn(&unknown, "a.svg");
    assert!(has(&texts(&parsed(&plot)), "! devices in the blackout: its log is no file"));
}

#[test]
fn a_page_has_the_picture_for_wide_and_narrow_and_everything_as_text() {
    let plot = drawn(&moved(), "a.html");
    let parsed = parsed(&plot);
    let pictures: Vec<_> = parsed.descendants().filter(|node| node.attribute("class") == Some("qferry-plot")).collect();
    assert_eq!(pictures.iter().map(|node| number(node, "width")).collect::<Vec<_>>(), [1100.0, 390.0]);
    let texts = texts(&parsed);
    for words in ["moved: the guest is on the destination", "throttle: RAM is dirtied", "quiesce", "2.001 ms"] {
        assert!(has(&texts, words), "{words:?} is not in {texts:#?}");
    }
    for elsewhere in ["src=", "href=", "url(", "@import", "<script", "<link"] {
        assert!(!plot.contains(elsewhere), "{elsewhere}");
    }
    assert!(plot.contains("prefers-color-scheme:dark") && plot.contains("max-width:760px"));
    assert_all_legible(&parsed);
}

#[test]
fn what_is_not_there_is_said() {
    let refusal = r#"{"code":"refused","message":"no"}"#;
    let connected = HEADER.to_owned() + "\n" + &phase(1000, "connect", "begin") + &phase(9000, "connect", "end");
    let stopped = copying() + &qmp(2_300_000, "source", "STOP") + &memory(2_300_100, 5, 0);
    let torn = moved();
    let left_out = copying() + &entry(700_000, "recorder", "note", r#"{"left_out":7,"bytes":70}"#);
    let went_back = stopped.clone()
        + &qmp(2_400_000, "source", "RESUME")
        + &outcome(2_500_000, "rolled-back", "source", refusal, "null", "[]");
    for (text, words) in [
        (
            connected.clone() + &outcome(9100, "refused", "source", refusal, "null", "[]"),
            &[
                "refused: the guest is on the source, total 0.009 s; refused: no",
                "RAM was never sampled",
                "no mirror was sampled",
                "No blackout: the guest was never stopped",
            ][..],
        ),
        (connected, &["! no end is recorded", "RAM was never sampled"]),
        (String::new(), &["! the file has no header", "! no end is recorded", "the last of 0 entries is of 0.000 s"]),
        ("not JSON\n[]\n".to_owned(), &["! 2 lines are none of a transcript"]),
        (
            copying() + &entry(3_600_000_000, "source", "receive", "{}") + &memory(700_000, 5, 0),
            &["! 1 entry has a time before that of an earlier one"],
        ),
        (torn[..torn.len() - 40].to_owned(), &["! no end is recorded", "! 1 lines are none"]),
        (stopped, &["! the guest was stopped, and no RESUME is recorded", "Guest stopped, enlarged: no RESUME within"]),
        (left_out, &["! 7 entries were left out of the middle"]),
        (
            went_back,
            &[
                "rolled-back: the guest is on the source",
                "Blackout, enlarged: STOP to RESUME on the source, 100.000 ms",
            ],
        ),
        (copying(), &["No blackout: the guest was never stopped"]),
    ] {
        let plot = drawn(&text, "a.svg");
        let parsed = parsed(&plot);
        let texts = texts(&parsed);
        for words in words {
            assert!(has(&texts, words), "{words:?} is not in {texts:#?}");
        }
        assert_all_legible(&parsed);
        let plot = drawn(&text, "a.html");
        assert_all_legible(&self::parsed(&plot));
    }
}

#[test]
fn a_hostile_transcript_is_shown_as_text() {
    const HOSTILE: &str = r"</text><script>alert(1)</script>&\u0000\u001b[2J\u202e]]>\ufffe'";
    let mut text = HEADER.replace("unix:/s", HOSTILE).replace("0abcdefghijk", HOSTILE) + "\n";
    text += &(disk(1000, HOSTILE, 5) + &action(2000, HOSTILE, HOSTILE) + &memory(2500, u64::MAX, u64::MAX));
    text += &event(2600, &format!(r#""type":"warning","code":"{HOSTILE}","message":"{HOSTILE}""#));
    text += &qmp(3000, "source", "STOP");
    text += &(qmp(3100, HOSTILE, HOSTILE) + &qmp(3200, HOSTILE, "RESUME"));
    text += &set(3300, 1, r#"{"downtime-limit":-1e308,"max-bandwidth":1e308}"#);
    text += &entry(3400, HOSTILE, "send", &format!(r#"{{"execute":"{HOSTILE}","id":"1"}}"#));
    let reason = format!(r#"{{"code":"{HOSTILE}","message":"{HOSTILE}"}}"#);
    let ledger = format!(r#"[{{"span":"{HOSTILE}","ms":1e308}},{{"span":"x","ms":-1e308}}]"#);
    text += &outcome(u64::MAX / 2, "moved", "destination", &reason, "1e308", &ledger);
    text += &memory(u64::MAX, 0, 0);
    for name in ["a.svg", "a.html"] {
        let plot = drawn(&text, name);
        let parsed = parsed(&plot);
        assert!(!parsed.descendants().any(|node| node.tag_name().name() == "script"), "{plot}");
        assert!(texts(&parsed).iter().any(|text| text.contains("<script>alert(1)</script>&")), "{plot}");
        assert!(!plot.contains("<script"), "{plot}");
    }
}

#[test]
fn a_long_run_makes_a_small_plot_whose_marks_do_not_overlap() {
    let mut text = copying();
    for step in 0..20_000u64 {
        let us = 3_000_000 + step * 100_000;
        text += &memory(us, 900_000_000 - (step % 1000) * 500_000, step % 100);
        for disk in 0..20 {
            if step % 50 == 0 {
                text += &self::disk(us + disk, &format!("a-disk-with-a-long-name-{disk}"), step * 1000);
            }
        }
        if step % 7 == 0 {
            text += &action(us + 30, "throttle", "the guest dirties its RAM faster than the link can carry it away");
        }
    }
    text += &qmp(2_100_000_000, "source", "STOP");
    for number in 0..500u64 {
        let command = format!(r#"{{"execute":"query-{number}","id":"x#{number}"}}"#);
        text += &entry(2_100_000_100 + number, "source", "send", &command);
    }
    text += &qmp(2_100_001_000, "destination", "RESUME");
    let plot = drawn(&text, "a.svg");
    assert!(plot.len() < 1 << 20, "{}", plot.len());
    let parsed = parsed(&plot);
    let texts = texts(&parsed);
    for words in ["more disks are not shown", "more lines: the text of the transcript has them", "... 2791 more ..."] {
        assert!(has(&texts, words), "{words:?} is not in {texts:#?}");
    }
    assert_all_legible(&parsed);
    let page = drawn(&text, "a.html");
    assert!(page.len() < 2 << 20, "{}", page.len());
    assert_all_legible(&self::parsed(&page));
}

#[test]
fn the_name_of_the_file_decides() {
    for (name, is_page) in
        [("a.svg", Some(false)), ("/b/c.html", Some(true)), ("d.htm", Some(true)), ("e.png", None), ("f", None)]
    {
        assert_eq!(name.parse::<PlotPlace>().ok().map(|place| place.is_page), is_page, "{name}");
    }
    let mut told = String::new();
    write!(told, "{}", "f".parse::<PlotPlace>().unwrap_err()).unwrap();
    assert_eq!(told, "write a name that ends in .svg or .html");
}
