//! A domain of libvirt's, and the words in which `virsh` is asked about it.
//!
//! Pure.

use std::fmt;

/// The longest name of a domain, in bytes. libvirt makes files of names, which have no more.
const LONGEST: usize = 255;
/// What stands between two answers of one call of `virsh`: a character that JSON text cannot hold.
pub(super) const MARK: char = '\u{1e}';

/// A domain of libvirt's: its name, id or UUID, and the URI of the daemon that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirshDomain {
    text: String,
    uri: Option<String>,
    name: String,
}

impl VirshDomain {
    /// Reads `[URI/]DOMAIN`. The domain is what follows the last slash that is not in the URI's query.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.chars().any(char::is_control) {
            return None;
        }
        let (uri, name) = match text.split_once("://") {
            None => (None, text),
            Some((scheme, _)) if !is_scheme(scheme) => return None,
            Some((scheme, rest)) => {
                let (way, query) = rest.split_once('?').map_or((rest, None), |(way, query)| (way, Some(query)));
                let (daemon, name) = way.rsplit_once('/')?;
                // the daemon's own path, such as /system
                daemon.split_once('/').filter(|(_, path)| !path.is_empty())?;
                let query = query.map(|query| format!("?{query}")).unwrap_or_default();
                (Some(format!("{scheme}://{daemon}{query}")), name)
            }
        };
        let is_name = !name.is_empty() && name.len() <= LONGEST && !name.contains('/') && name != "." && name != "..";
        is_name.then(|| Self { text: text.to_owned(), uri, name: name.to_owned() })
    }

    /// The name, id or UUID.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URI of the daemon; `None` is `virsh`'s own choice.
    pub fn uri(&self) -> Option<&str> {
        self.uri.as_deref()
    }

    /// Whether the daemon can only be one of this host, by its URI.
    pub(super) fn is_local(&self) -> bool {
        self.uri.as_deref().is_none_or(|uri| uri.split_once("://").is_some_and(|(_, rest)| rest.starts_with('/')))
    }

    /// A parameter of the URI's query.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let (_, query) = self.uri.as_deref()?.split_once('?')?;
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The text that `virsh` reads commands from: each in JSON, and a mark after each answer.
    pub(super) fn commands(&self, commands: &[String]) -> String {
        let name = quoted(&self.name);
        let one = |json: &String| {
            format!("qemu-monitor-command --domain {name} {}; echo {}", quoted(json), quoted(&MARK.to_string()))
        };
        commands.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// The text with which `virsh` does one thing with the domain.
    pub(super) fn verb(&self, verb: &str, options: &str) -> String {
        format!("{verb} --domain {} {options}", quoted(&self.name)).trim_end().to_owned()
    }

    /// A call of `virsh` for the daemon, as a person would type it.
    pub(super) fn typed(&self, verb: &str) -> String {
        let uri = self.uri.as_ref().map(|uri| format!(" -c {}", typed_word(uri))).unwrap_or_default();
        format!("virsh{uri} {verb}")
    }

    /// The same for the domain.
    pub(crate) fn typed_about(&self, verb: &str) -> String {
        format!("{} --domain {}", self.typed(verb), typed_word(&self.name))
    }

    /// The daemon, for people.
    pub(super) fn daemon(&self) -> String {
        self.uri.as_ref().map_or_else(|| "libvirt".to_owned(), |uri| format!("libvirt at {uri}"))
    }
}

impl fmt::Display for VirshDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virsh:{}", self.text)
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// A word for the reader of `virsh`, which takes quotes as a shell does.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A word as it would be typed in a shell: as it is where a shell reads it so.
fn typed_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+-.:/@=,".contains(c);
    if word.chars().all(plain) && !word.starts_with('-') { word.to_owned() } else { quoted(word) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_domain_follows_the_last_slash_outside_of_a_query() {
        for (text, uri, name) in [
            ("vm1", None, "vm1"),
            ("a name?with=marks", None, "a name?with=marks"),
            ("--help", None, "--help"),
            ("qemu:///system/vm1", Some("qemu:///system"), "vm1"),
            ("qemu+ssh://root@host:22/system/vm1", Some("qemu+ssh://root@host:22/system"), "vm1"),
            ("qemu:///session/vm1?socket=/run/a/b", Some("qemu:///session?socket=/run/a/b"), "vm1"),
            ("qemu:///embed/vm1?root=/srv/x", Some("qemu:///embed?root=/srv/x"), "vm1"),
        ] {
            let domain = VirshDomain::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((domain.uri(), domain.name()), (uri, name), "{text}");
            assert_eq!(domain.to_string(), format!("virsh:{text}"));
        }
        let wrong = ["", "qemu:///system", "qemu:///system?socket=/a/vm1", "qemu:///system/", "qemu://host/vm1", "a/b"];
        for text in wrong.into_iter().chain(["-x://h/system/vm", "vm\n1", "..", &"x".repeat(256)]) {
            assert_eq!(VirshDomain::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_a_uri_without_a_host_is_of_this_host() {
        for (text, local) in [
            ("vm", true),
            ("qemu:///system/vm", true),
            ("qemu+unix:///session/vm?socket=/a/b", true),
            ("qemu+ssh://host/system/vm", false),
            ("qemu+tcp://127.0.0.1/session/vm", false),
        ] {
            assert_eq!(VirshDomain::parse(text).map(|domain| domain.is_local()), Some(local), "{text}");
        }
        let domain = VirshDomain::parse("qemu:///session/vm?a=b&socket=/a/b").expect("a domain");
        assert_eq!((domain.parameter("socket"), domain.parameter("root")), (Some("/a/b"), None));
    }

    /// The reader of `virsh` (`vshCommandStringGetArg`), as far as words go.
    fn read(text: &str) -> Vec<String> {
        let (mut words, mut word, mut inside) = (Vec::new(), None::<String>, false);
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\'' => {
                    inside = !inside;
                    word.get_or_insert_default();
                }
                '\\' if !inside => word.get_or_insert_default().extend(chars.next()),
                ' ' | ';' if !inside => {
                    words.extend(word.take());
                    words.extend((c == ';').then(|| ";".to_owned()));
                }
                c => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        words
    }

    proptest! {
        #[test]
        fn a_name_is_one_word_and_no_option(name in "[^/\\p{Cc}]{1,20}", json in "[^\\p{Cc}]{0,20}") {
            prop_assume!(name != "." && name != ".." && !name.contains("://"));
            let domain = VirshDomain::parse(&name).unwrap();
            let mark = MARK.to_string();
            let expected = ["qemu-monitor-command", "--domain", &*name, &*json, ";", "echo", &*mark];
            prop_assert_eq!(read(&domain.commands(std::slice::from_ref(&json))), expected);
        }
    }
}
