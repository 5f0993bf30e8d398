//! The command line of a process without its secrets.

use crate::qmp::redact;
use serde_json::Value;
use std::{fs::File, io::Read, path::Path};

/// The most bytes that are read of a command line, and the most words that are told.
const BYTES: u64 = 64 << 10;
const WORDS: usize = 1024;
/// Text that stands for a secret.
const WITHHELD: &str = "[redacted]";
/// Options whose values carry data for the guest behind one of these keys, which may be anything.
const FOR_THE_GUEST: [(&str, &str); 3] = [("-fw_cfg", "string="), ("-smbios", "value="), ("-prom-env", "=")];

/// The command line of the process whose folder this is.
pub(super) fn command_line(root: &Path) -> std::io::Result<Vec<String>> {
    let mut bytes = Vec::new();
    File::open(root.join("cmdline"))?.take(BYTES).read_to_end(&mut bytes)?;
    let words = bytes.strip_suffix(&[0]).unwrap_or(&bytes).split(|byte| *byte == 0).take(WORDS);
    Ok(without_secrets(words.map(|word| String::from_utf8_lossy(word).into_owned())))
}

fn without_secrets(words: impl Iterator<Item = String>) -> Vec<String> {
    let (mut clean, mut option) = (Vec::new(), String::new());
    for word in words {
        let key = FOR_THE_GUEST.iter().find(|(of, _)| option == *of || option.strip_prefix('-') == Some(of));
        let kept = key.and_then(|(_, key)| Some(&word[..word.find(key)? + key.len()]));
        clean.push(match kept {
            Some(kept) => format!("{kept}{WITHHELD}"),
            None => match redact(&Value::from(word.as_str())) {
                Value::String(clean) => clean,
                _ => WITHHELD.to_owned(),
            },
        });
        option = word;
    }
    for word in &mut clean {
        word.retain(|c| !c.is_control());
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_a_command_line_are_withheld_and_the_rest_stays() {
        let words = [
            ("qemu-system-x86_64", true),
            ("-name", true),
            ("guest=vm1,debug-threads=on", true),
            ("-object", true),
            ("secret,id=sec0,data=hunter2", false),
            ("-object", true),
            ("{\"qom-type\":\"secret\",\"id\":\"s\",\"data\":\"hunter2\"}", false),
            ("-spice", true),
            ("port=1,password=hunter2", false),
            ("-drive", true),
            ("file=https://user:hunter2@host/x", false),
            ("-fw_cfg", true),
            ("name=opt/x,string=hunter2", false),
            ("-smbios", true),
            ("type=11,value=hunter2", false),
            ("-blockdev", true),
            ("{\"driver\":\"file\",\"filename\":\"/srv/a.qcow2\",\"node-name\":\"n\"}", true),
        ];
        let clean = without_secrets(words.iter().map(|(word, _)| (*word).to_owned()));
        for ((word, stays), clean) in words.into_iter().zip(&clean) {
            assert!(!clean.contains("hunter2"), "{clean}");
            assert_eq!(clean == word, stays, "{clean}");
        }
        assert!(command_line(Path::new("/proc/self")).expect("words")[0].contains("qferry"));
    }
}
