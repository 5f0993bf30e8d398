//! The command's words for the library's settings.

use crate::migration::{Invalid, InvalidSetting};

/// What is wrong with the arguments, one line for each.
pub(super) fn worded(invalid: &Invalid) -> String {
    let line = |InvalidSetting { field, value, expected, .. }: &InvalidSetting| {
        format!("{} is {value}: {}", flag(field), flags_in(expected))
    };
    invalid.problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The flag of a setting.
fn flag(field: &str) -> String {
    match field.split_once('.') {
        Some(("policy", inner)) => format!("--policy: {inner}"),
        _ => match field {
            "disks" => "--disk".to_owned(),
            "skip" => "--skip-disk".to_owned(),
            "map" => "--map".to_owned(),
            "runtime_dir" => "the directory of sockets (XDG_RUNTIME_DIR, else XDG_STATE_HOME)".to_owned(),
            _ => format!("--{}", field.replace('_', "-")),
        },
    }
}

/// A text with flags in place of the settings in backticks, such as `verify_backing: off`.
fn flags_in(text: &str) -> String {
    let mut told = String::new();
    for (at, part) in text.split('`').enumerate() {
        match part.split_once(": ") {
            _ if at % 2 == 0 => told.push_str(part),
            Some((field, value)) => told.push_str(&format!("{} {value}", flag(field))),
            None => told.push_str(&flag(part)),
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::Settings;

    #[test]
    fn settings_are_worded_as_flags() {
        let settings = Settings { samples: 0, compress: Some("zstd".parse().unwrap()), ..Settings::default() };
        let told = worded(&settings.validate().unwrap_err());
        for words in
            ["--compress is zstd: only the channels of --multifd compress", "--samples is 0", "--verify-backing off"]
        {
            assert!(told.contains(words), "no '{words}' in {told}");
        }
        assert_eq!((flag("policy.slack"), flag("skip")), ("--policy: slack".to_owned(), "--skip-disk".to_owned()));
    }
}
