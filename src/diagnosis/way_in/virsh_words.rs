//! What `virsh` prints: answers, events and refusals.
//!
//! Pure.

use super::virsh_domain::{MARK, VirshDomain};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// The class of an error where libvirt lets no question through, and QEMU may be well.
pub(in crate::diagnosis) const BARRED: &str = "Barred";
/// The most characters of libvirt's words that are told.
const WORDS: usize = 400;
/// The most places of an event's line at which its data is looked for: a domain's name may hold the separator.
const PLACES: usize = 64;

/// Why `virsh` gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum VirshError {
    #[error(
        "there is no command virsh on this machine: install libvirt's clients (libvirt-clients), or look at the process \
         by its pid"
    )]
    Missing,
    #[error("the command virsh could not be started")]
    Start(#[source] std::io::Error),
    #[error("{daemon} has no domain '{name}' that runs: {list} names those that do ({words})")]
    NoDomain { daemon: String, name: String, list: String, words: String },
    #[error("{daemon} cannot be reached: see that its daemon runs and that this user may connect ({words})")]
    NoDaemon { daemon: String, words: String },
    #[error(
        "{daemon} does not pass the question on, because another call holds the domain's job lock: wait for that call, or \
         look at the process by its pid ({words})"
    )]
    Locked { daemon: String, words: String },
    #[error(
        "{daemon} left the question unanswered for {waited:?}{control}: it waits for QEMU, or for another call that holds \
         the domain's job lock; look at the process by its pid"
    )]
    Late { daemon: String, waited: Duration, control: String },
    #[error(
        "{daemon} lets no question through to the domain '{name}', as it does while it takes a domain in (its control \
         interface, domcontrol, is ok): look at the process by its pid"
    )]
    Barred { daemon: String, name: String },
    #[error("{daemon} refuses: {words}")]
    Refused { daemon: String, words: String },
}

impl VirshError {
    /// What libvirt's words on stderr mean.
    pub(super) fn of_words(domain: &VirshDomain, stderr: &str) -> Self {
        let (daemon, words) = (domain.daemon(), told(stderr));
        let lower = words.to_lowercase();
        let says = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
        let (name, list) = (domain.name().to_owned(), domain.typed("list"));
        match () {
            () if says(&["cannot acquire state change lock", "state change lock"]) => Self::Locked { daemon, words },
            () if says(&[
                "failed to get domain",
                "domain not found",
                "no domain with matching",
                "domain is not running",
            ]) =>
            {
                Self::NoDomain { daemon, name, list, words }
            }
            () if says(&["failed to connect", "cannot recv data", "end of file while reading", "authentication"]) => {
                Self::NoDaemon { daemon, words }
            }
            () => Self::Refused { daemon, words },
        }
    }

    /// The error as that of a connection: its kind says what follows from it.
    pub(super) fn into_io(self) -> std::io::Error {
        let kind = match &self {
            Self::NoDomain { .. } => std::io::ErrorKind::NotFound,
            Self::Locked { .. } | Self::Late { .. } => std::io::ErrorKind::ResourceBusy,
            _ => std::io::ErrorKind::NotConnected,
        };
        std::io::Error::new(kind, self)
    }

    /// Why an answer was late, by libvirt's own word on its use of the monitor: where nothing occupies that, it is
    /// libvirt that waits, and QEMU may be well.
    pub(super) fn late(domain: &VirshDomain, waited: Duration, control: Option<String>) -> Self {
        let (daemon, name) = (domain.daemon(), domain.name().to_owned());
        match control {
            Some(state) if state == "ok" => Self::Barred { daemon, name },
            Some(state) => {
                let control = format!(", and says of its own control interface (domcontrol): {state}");
                Self::Late { daemon, waited, control }
            }
            None => Self::Late { daemon, waited, control: String::new() },
        }
    }

    /// The class of the error as an answer of QMP.
    pub(super) fn class(&self) -> &'static str {
        if matches!(self, Self::Barred { .. }) { BARRED } else { "GenericError" }
    }

    /// Whether the domain is over, so that nothing more can come of asking.
    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::NoDomain { .. })
    }
}

/// libvirt's words as one line.
pub(super) fn told(stderr: &str) -> String {
    let lines = stderr.lines().map(|line| line.trim().trim_start_matches("error: ")).filter(|line| !line.is_empty());
    let words = lines.collect::<Vec<_>>().join(": ");
    let words: String = words.chars().filter(|c| !c.is_control()).take(WORDS).collect();
    if words.is_empty() { "libvirt gave no reason".to_owned() } else { words }
}

/// The answers to some commands; `None` where libvirt has refused one.
pub(super) fn answers(stdout: &str, commands: usize) -> Vec<Option<Map<String, Value>>> {
    let mut parts = stdout.split(MARK);
    let answer = |part: &str| match serde_json::from_str(part.trim()) {
        Ok(Value::Object(mut answer)) => {
            // libvirt's own
            answer.remove("id");
            (answer.contains_key("return") || answer.contains_key("error")).then_some(answer)
        }
        _ => None,
    };
    (0..commands).map(|_| parts.next().and_then(answer)).collect()
}

/// A line of `qemu-monitor-event`, as QEMU's own line: `event NAME at SECONDS.MICROSECONDS for domain 'DOMAIN': DATA`.
pub(super) fn event(line: &str) -> Option<Value> {
    let (name, rest) = line.strip_prefix("event ")?.split_once(" at ")?;
    let (time, rest) = rest.split_once(" for domain ")?;
    let (seconds, microseconds) = time.split_once('.')?;
    let time = json!({ "seconds": seconds.parse::<i64>().ok()?, "microseconds": microseconds.parse::<i64>().ok()? });
    let places = rest.match_indices(": ").take(PLACES);
    let data = places.filter_map(|(at, _)| serde_json::from_str::<Map<String, Value>>(&rest[at + 2..]).ok()).next();
    let mut event = json!({ "event": name, "timestamp": time });
    if let (Some(data), Some(event)) = (data, event.as_object_mut()) {
        event.insert("data".to_owned(), data.into());
    }
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> VirshDomain {
        VirshDomain::parse("qemu:///system/vm1").expect("a domain")
    }

    #[test]
    fn answers_are_told_apart_by_the_mark() {
        let text = "{\"return\":[],\"id\":\"libvirt-1\"}\n\u{1e}\u{1e}{\"id\":\"libvirt-2\",\"error\":{\"desc\":\"no\"}}\n\u{1e}7\u{1e}";
        let found = answers(text, 5);
        assert_eq!(found[0], json!({ "return": [] }).as_object().cloned());
        assert_eq!(found[2], json!({ "error": { "desc": "no" } }).as_object().cloned());
        assert_eq!((&found[1], &found[3], &found[4]), (&None, &None, &None));
    }

    #[test]
    fn events_are_read_whatever_the_domain_is_called() {
        let read = event("event STOP at 1796036130.538974 for domain 'vm1': <null>");
        let time = json!({ "seconds": 1_796_036_130, "microseconds": 538_974 });
        assert_eq!(read, Some(json!({ "event": "STOP", "timestamp": time })));
        let read = event("event A at 1796036130.538974 for domain 'x: {': {\"device\":\"m: {}\"}");
        assert_eq!(read, Some(json!({ "event": "A", "timestamp": time, "data": { "device": "m: {}" } })));
        for line in ["", "event", "event A", "event A at x.y for domain z: {}", "error: something"] {
            assert_eq!(event(line), None, "{line}");
        }
        let strange = format!("event A at 1.2 for domain {}", ": {".repeat(1 << 20));
        assert!(event(&strange).is_some());
    }

    #[test]
    fn each_refusal_is_one_sentence_with_its_remedy() {
        for (words, part, kind) in [
            ("error: failed to get domain 'vm1'\nerror: Domain not found", "virsh -c qemu:///system list", "NotFound"),
            ("error: Requested operation is not valid: domain is not running", "list", "NotFound"),
            (
                "error: Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatch)",
                "held by monitor=remoteDispatch",
                "ResourceBusy",
            ),
            (
                "error: failed to connect to the hypervisor\nerror: Failed to connect socket",
                "daemon runs",
                "NotConnected",
            ),
            ("", "gave no reason", "NotConnected"),
        ] {
            let error = VirshError::of_words(&domain(), words);
            let told = error.to_string();
            assert!(told.contains(part) && !told.contains('\n'), "{told}");
            assert_eq!(format!("{:?}", error.into_io().kind()), kind, "{words}");
        }
        for (control, kind) in
            [(Some("ok"), "NotConnected"), (Some("occupied (3.008s)"), "ResourceBusy"), (None, "ResourceBusy")]
        {
            let error = VirshError::late(&domain(), Duration::from_secs(5), control.map(str::to_owned));
            assert_eq!(format!("{:?}", error.into_io().kind()), kind, "{control:?}");
        }
        let long = VirshError::of_words(&domain(), &"x\u{7}".repeat(1 << 20)).to_string();
        assert!(long.len() < 1000 && !long.contains('\u{7}'));
    }
}
