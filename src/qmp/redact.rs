//! Removal of secrets from the lines of a transcript. Pure.
//!
//! The module owns the knowledge of where QMP carries secrets. In doubt a value is withheld, because a transcript is
//! made to be sent to other people. Identifiers of secrets (`key-secret`, `password-secret`) stay readable: they are no
//! secrets.

use serde_json::{Map, Value};
use std::{borrow::Cow, cell::LazyCell};

/// Text that replaces a secret.
pub(super) const REDACTED: &str = "[redacted]";

/// Most levels of JSON text inside JSON text that are parsed. QEMU nests JSON text twice. Without a bound, a peer that
/// nests without end would cause a recursion as deep, and each level may itself nest as deep as JSON allows.
const DEEPEST: usize = 4;

/// The words that name secrets. A `\u` escape can spell any of them, so its presence alone counts.
const OF_SECRETS: [&str; 9] =
    ["pass", "secret", "token", "key", "credential", "cookie", "object-add", "object_add", "\\u"];
/// What a monitor's command and an address with a password in it cannot do without, also with its slashes escaped.
const OF_COMMANDS_AND_ADDRESSES: [&str; 3] = ["change ", "://", ":\\/"];
/// Words that mean a secret only together: a property called `data` has its value beside it, and an answer to `qom-get`
/// or `qom-list-get` has the value alone.
const TOGETHER: [[&str; 2]; 2] = [["data", "value"], ["qom-", "return"]];

/// A line without its secrets, for the transcript: `json` is its text. Most lines have none of the words and are kept
/// as they are, also where JSON text is nested deeper in them than [`redact`] looks.
pub(super) fn redacted_text<'a>(line: &Value, json: Cow<'a, str>) -> Cow<'a, str> {
    let lower = json.to_ascii_lowercase();
    let has = |word: &&str| lower.contains(word);
    let named = OF_SECRETS.iter().chain(&OF_COMMANDS_AND_ADDRESSES).any(has);
    match named || TOGETHER.iter().any(|words| words.iter().all(has)) {
        true => redact(line).to_string().into(),
        false => json,
    }
}

/// Copies a line without its secrets, for the transcript.
pub fn redact(line: &Value) -> Value {
    redact_at(line, 0)
}

/// `depth` is the number of JSON texts around the line.
fn redact_at(line: &Value, depth: usize) -> Value {
    let mut line = line.clone();
    // A command names the property that it sets or asks for. Its reply does not, but the id of the reply, which this
    // client made, starts with the name of the command.
    let id = line.get("id").and_then(Value::as_str).unwrap_or_default();
    let answers_property = ["qom-get#", "qom-list-get#"].iter().any(|command| id.starts_with(command));
    if answers_property {
        if let Some(reply @ Value::String(_)) = line.get_mut("return") {
            *reply = REDACTED.into();
        }
    }
    scrub(&mut line, false, depth);
    line
}

/// Whether bytes that are not JSON could carry a secret.
pub(super) fn mentions_secret(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    OF_SECRETS.iter().any(|word| text.contains(word))
}

/// Replaces the secrets in a value. `in_secret` says that the value is part of a `secret` object, whose `data` is the
/// secret.
fn scrub(value: &mut Value, in_secret: bool, depth: usize) {
    match value {
        Value::Object(members) => scrub_object(members, in_secret, depth),
        Value::Array(items) => items.iter_mut().for_each(|item| scrub(item, in_secret, depth)),
        Value::String(text) => {
            if let Some(clean) = scrub_text(text, depth) {
                *text = clean;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn scrub_object(members: &mut Map<String, Value>, in_secret: bool, depth: usize) {
    let text = |key: &str| members.get(key).and_then(Value::as_str).map(normalise_key).unwrap_or_default();
    let in_secret = in_secret || ["qom-type", "qom_type"].iter().any(|key| text(key).starts_with("secret"));
    // qom-set and qom-list-get put the name of a property beside its value.
    let names_secret = ["property", "name"].iter().any(|key| is_secret_key(&text(key)) || text(key) == "data");
    for (key, value) in members.iter_mut() {
        let key = normalise_key(key);
        let hidden = is_secret_key(&key) || (in_secret && key == "data") || (names_secret && key == "value");
        if hidden && !matches!(value, Value::Null | Value::Bool(_)) {
            *value = REDACTED.into();
        } else {
            scrub(value, in_secret, depth);
        }
    }
    // A key can hold a secret as well, because the peer chooses it.
    if members.keys().any(|key| scrub_text(key, depth).is_some()) {
        let clean = |(key, value): (String, Value)| (scrub_text(&key, depth).unwrap_or(key), value);
        *members = std::mem::take(members).into_iter().map(clean).collect();
    }
}

/// Spells a key in lower case and with hyphens, as most QMP keys are.
fn normalise_key(key: &str) -> Cow<'_, str> {
    let is_normal = !key.bytes().any(|byte| byte == b'_' || byte.is_ascii_uppercase());
    if is_normal { key.into() } else { key.to_ascii_lowercase().replace('_', "-").into() }
}

/// Whether the value of a key is a secret. The key must come from [`normalise_key`].
fn is_secret_key(key: &str) -> bool {
    // QEMU's flat option syntax puts the path in front of the key: `file.password`.
    let key = key.rsplit('.').next().unwrap_or(key);
    let named = ["key", "keys", "secret", "token", "tokens", "cookie", "cookies", "credential", "credentials"];
    let ended = ["-key", "-token", "-cookie", "-credentials"];
    let holds = key.contains("passw") || key.contains("passphrase");
    let is_identifier = key.ends_with("-secret") || key.ends_with("id");
    named.contains(&key) || ended.iter().any(|end| key.ends_with(end)) || (holds && !is_identifier)
}

/// The text without its secrets, or `None` if it carries none.
fn scrub_text(text: &str, depth: usize) -> Option<String> {
    let trimmed = text.trim_start();
    let json = trimmed.strip_prefix("json:").or_else(|| trimmed.starts_with(['{', '[']).then_some(trimmed));
    if let Some(json) = json {
        if depth == DEEPEST {
            return Some(REDACTED.into());
        }
        return match serde_json::from_str::<Value>(json) {
            Ok(value) => {
                let clean = redact_at(&value, depth + 1);
                (clean != value).then(|| format!("{}{clean}", if trimmed == json { "" } else { "json:" }))
            }
            Err(_) => mentions_secret(json.as_bytes()).then(|| REDACTED.into()),
        };
    }
    if assigns_secret(text) || is_monitor_command(text) {
        return Some(REDACTED.into());
    }
    hide_userinfo(text)
}

/// Whether the text assigns a secret in option syntax (`...,password=...`) or as JSON inside other text.
fn assigns_secret(text: &str) -> bool {
    // The search runs once at most: a text made of `data=` alone would otherwise take time by the square of its length.
    let is_of_secret = LazyCell::new(|| normalise_key(text).contains("secret"));
    text.match_indices(['=', ':']).any(|(at, _)| {
        let before = text[..at].trim_end().trim_end_matches(['"', '\'', '\\']);
        let word = before.rsplit(|c: char| !(c.is_alphanumeric() || "-_.".contains(c))).next();
        let word = normalise_key(word.unwrap_or_default());
        is_secret_key(&word) || (word == "data" && *is_of_secret)
    })
}

/// Whether the text is a command of the human monitor that takes a secret.
fn is_monitor_command(text: &str) -> bool {
    let text = normalise_key(text.trim_start());
    ["set-password ", "change ", "sendkey ", "object-add secret"].iter().any(|command| text.starts_with(command))
}

/// Hides the password of `scheme://user:password@host`.
fn hide_userinfo(text: &str) -> Option<String> {
    let mut clean = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (scheme, authority) = rest.split_at(at + 3);
        clean.push_str(scheme);
        let end = authority.find(['/', '?', '#', ' ', '"']).unwrap_or(authority.len());
        let user = authority[..end].rfind('@').and_then(|at| Some((authority[..at].find(':')?, at)));
        rest = match user {
            Some((colon, at)) => {
                clean.push_str(&authority[..=colon]);
                clean.push_str(REDACTED);
                &authority[at..]
            }
            None => authority,
        };
    }
    clean.push_str(rest);
    (clean != text).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn known_carriers_are_redacted() {
        let s = "hunter2";
        let lines = [
            json!({"execute": "set_password", "arguments": {"protocol": "vnc", "password": s}}),
            json!({"execute": "change-vnc-password", "arguments": {"password": s}}),
            json!({"execute": "object-add", "arguments": {"qom-type": "secret", "id": "a", "data": s}}),
            json!({"execute": "object-add", "arguments": {"qom-type": "secret", "props": {"data": s}}}),
            json!({"execute": "blockdev-add", "arguments": {"file": {"driver": "https", "password": s, "cookie": s}}}),
            json!({"arguments": {"encrypt": {"key": s}}}),
            json!({"execute": "send-key", "arguments": {"keys": [{"type": "qcode", "data": s}]}}),
            json!({"execute": "qom-set", "arguments": {"path": "/objects/a", "property": "data", "value": s}}),
            json!({"id": "qom-get#4", "return": s}),
            json!({"id": "qom-list-get#4", "return": [{"properties": [{"name": "data", "value": s}]}]}),
            json!({"execute": "human-monitor-command", "arguments": {"command-line": "set_password vnc hunter2"}}),
            json!({"arguments": {"command-line": "object_add secret,id=a,data=hunter2"}}),
            json!({"return": [{"filename": "json:{\"file\": {\"password\": \"hunter2\"}}"}]}),
            json!({"return": [{"filename": "json:{\"file\": {\"password\": \"hunter2\""}]}),
            json!({"return": [{"filename": "https://user:hunter2@host/path"}]}),
            json!({"return": [{"filename": "rbd:pool/image:key=hunter2:mon_host=x"}]}),
            json!({"error": {"desc": "cannot parse {\"password\": \"hunter2\"}"}}),
            json!({"arguments": {"file.password": s, "auth_token": s, "Passphrase": s, "passwd": 7}}),
        ];
        for line in lines {
            let clean = redact(&line).to_string();
            assert!(!clean.contains(s) && clean.contains("redacted"), "{clean}");
            assert_eq!(redacted_text(&line, line.to_string().into()), clean);
        }
    }

    #[test]
    fn values_that_are_no_secrets_stay() {
        let lines = [
            json!({"execute": "blockdev-add", "arguments": {"key-secret": "sec0", "password-secret": "sec1"}}),
            json!({"return": {"filename": "nbd://host:10809/export", "password": true}}),
            json!({"return": [{"filename": "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\"}}"}]}),
            json!({"event": "JOB_STATUS_CHANGE", "data": {"status": "ready", "id": "mirror:0"}}),
            json!({"return": [{"name": "password", "type": "str"}]}),
            json!({"id": "qom-get#4", "return": 4096}),
            json!({"error": {"class": "GenericError", "desc": "Node 'data' not found: is it key-secret?"}}),
        ];
        for line in lines {
            assert_eq!(redact(&line), line);
        }
    }

    #[test]
    fn raw_text_is_judged_by_its_words() {
        for text in ["{\"passWord\": \"x", "\\u0070ass", "AUTH_KEY"] {
            assert!(mentions_secret(text.as_bytes()));
        }
        assert!(!mentions_secret(b"{\"event\": \"STOP\", "));
    }

    /// JSON inside a text inside JSON, `levels` times, each as deep as serde_json allows.
    fn nested(levels: usize) -> Value {
        let mut text = "x".to_owned();
        for _ in 0..levels {
            text = format!("{}{}{}", "[".repeat(125), Value::from(text), "]".repeat(125));
        }
        Value::from(text)
    }

    #[test]
    fn text_within_text_costs_bounded_stack() {
        assert_eq!(redact(&nested(DEEPEST)), nested(DEEPEST));
        let lines = [nested(DEEPEST + 1), nested(18), json!({(nested(18).as_str().unwrap()): 1})];
        // The stack is a quarter of that of a tokio worker thread.
        let small = std::thread::Builder::new().stack_size(512 << 10);
        let clean = small.spawn(move || lines.map(|line| redact(&line).to_string())).unwrap().join().unwrap();
        assert!(clean.iter().all(|line| line.contains(REDACTED)));
    }

    /// A run time by the square of the length would exceed the limit by far.
    #[test]
    fn a_long_text_costs_time_by_its_length() {
        for piece in ["data=", "data:", "a://u@", "= ", "\"'\\\\=", "[", "{\"", "://", "a.", "json:["] {
            let text = piece.repeat((256 << 10) / piece.len());
            let began = std::time::Instant::now();
            redact(&json!({ "x": text }));
            let took = began.elapsed();
            assert!(took < std::time::Duration::from_secs(5), "{piece}: {took:?}");
        }
    }

    /// Values of the pieces that the rules look for, whole and in part, and as JSON text within text.
    fn suspicious() -> impl Strategy<Value = Value> {
        const PIECES: &[&str] = &[
            "pass",
            "word",
            "secret",
            "sec",
            "token",
            "key",
            "keys",
            "cookie",
            "credential",
            "data",
            "value",
            "name",
            "property",
            "qom-type",
            "object-add",
            "object_add ",
            "change ",
            "sendkey ",
            "set_password ",
            "://",
            "u:p@h",
            "json:",
            "=",
            ":",
            "-",
            "_",
            ".",
            "id",
            "qom-get#1",
            "qom-list-get#1",
            "x",
            "K\u{e9}Y",
            " ",
        ];
        let text = proptest::collection::vec(proptest::sample::select(PIECES), 0..4).prop_map(|some| some.concat());
        let fixed = ["id", "return", "name", "property", "value", "data", "qom-type", "props"].map(str::to_owned);
        let key = prop_oneof![proptest::sample::select(fixed.to_vec()), text.clone()];
        let leaf = prop_oneof![text.prop_map(Value::from), any::<i8>().prop_map(Value::from), Just(Value::Null)];
        leaf.prop_recursive(2, 24, 4, move |inner| {
            let members = proptest::collection::hash_map(key.clone(), inner.clone(), 0..5);
            let object = members.prop_map(|members| Value::Object(members.into_iter().collect()));
            let nested = object.clone().prop_map(|object| Value::from(object.to_string()));
            let named = object.clone().prop_map(|object| Value::from(format!("json:{object}")));
            prop_oneof![object, nested, named, proptest::collection::vec(inner, 0..3).prop_map(Value::from)]
        })
    }

    fn tree(secret: &'static str) -> impl Strategy<Value = Value> {
        let key = "password|key|keys|secret|token|new_password|x-private-key|file[.]cookie|passphrase|PassWord";
        let leaf = prop_oneof![
            any::<i32>().prop_map(Value::from),
            "[a-z =:,{}\"]{0,12}".prop_map(Value::from),
            key.prop_map(move |key| json!({key: secret})),
            key.prop_map(move |key| json!({key: [{"x": secret}]})),
            key.prop_map(move |key| json!(format!("json:{}", json!({"a": {key: secret}})))),
            key.prop_map(move |key| json!(json!([{key: secret}]).to_string())),
            key.prop_map(move |key| json!(format!("driver=x,{key}={secret}"))),
            Just(json!({"qom-type": "secret", "props": {"data": secret}})),
        ];
        leaf.prop_recursive(5, 40, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map("[a-z-]{1,8}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn redaction_leaves_no_secret(line in tree("S3cr3tM4rk3r")) {
            prop_assert!(!redact(&line).to_string().contains("S3cr3tM4rk3r"));
        }

        #[test]
        fn a_line_without_the_words_is_what_redaction_makes_of_it(line in suspicious()) {
            let json = serde_json::to_string_pretty(&line).unwrap().replace('/', "\\/");
            for json in [line.to_string(), json] {
                let clean: Value = serde_json::from_str(&redacted_text(&line, json.into())).unwrap();
                prop_assert_eq!(clean, redact(&line));
            }
        }

        #[test]
        fn redaction_is_stable_and_never_panics(line in ".{0,40}", key in ".{0,12}") {
            let line = json!({ key: line });
            let once = redact(&line);
            prop_assert_eq!(redact(&once), once);
        }
    }
}
