//! The command's words for the library's settings: its flags.
//!
//! The library's texts name settings by their fields; all that the command shows goes through here.

use crate::{
    codes::{self, Setting},
    migration::{Invalid, InvalidSetting},
    progress::{Event, EventKind},
};
use serde_json::Value;

/// What is wrong with the arguments, one line for each.
pub(super) fn worded(invalid: &Invalid) -> String {
    let line = |InvalidSetting { field, value, expected, .. }: &InvalidSetting| {
        format!("{} is {value}: {}", flag_of(field), flags_in(expected))
    };
    invalid.problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The flag of a field, which can be inside of a policy.
fn flag_of(field: &str) -> String {
    match (field.split_once('.'), Setting::of_field(field)) {
        (Some(("policy", inner)), _) => format!("--policy: {inner}"),
        (_, Some(setting)) => flag(setting, None),
        (_, None) => format!("--{}", field.replace('_', "-")),
    }
}

/// The flag of a setting, with its value where there is one.
fn flag(setting: Setting, value: Option<&str>) -> String {
    let name = match (setting, value) {
        (Setting::Journal, Some("nowhere")) => return "--no-journal".to_owned(),
        (Setting::Disks, _) => "--disk".to_owned(),
        (Setting::Skip, _) => "--skip-disk".to_owned(),
        // no option, but the environment decides
        (Setting::RuntimeDir, _) => {
            return "the directory of sockets (XDG_RUNTIME_DIR, else XDG_STATE_HOME)".to_owned();
        }
        (other, _) => format!("--{}", other.field().replace('_', "-")),
    };
    value.map_or_else(|| name.clone(), |value| format!("{name} {value}"))
}

/// A text of the library with flags for the settings that it names.
pub(super) fn flags_in(text: &str) -> String {
    codes::worded(text, flag)
}

/// The same for what an event says.
pub(super) fn worded_event(mut event: Event) -> Event {
    match &mut event.kind {
        EventKind::Action { because: text, .. } | EventKind::Warning { message: text, .. } => *text = flags_in(text),
        EventKind::Outcome(outcome) => {
            if let Some(reason) = &mut outcome.reason {
                reason.message = flags_in(&reason.message);
            }
            for finding in &mut outcome.findings {
                for text in [&mut finding.subject, &mut finding.message, &mut finding.remedy] {
                    *text = flags_in(text);
                }
            }
        }
        _ => {}
    }
    event
}

/// The same for the texts of findings and reasons in a JSON object.
pub(super) fn word_json(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if ["subject", "message", "remedy"].contains(&name.as_str()) => {
                        *text = flags_in(text);
                    }
                    Value::String(_) => {}
                    other => word_json(other),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(word_json),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Arguments;
    use crate::migration::Settings;
    use clap::CommandFactory;

    #[test]
    fn texts_have_flags() {
        for (text, told) in [
            ("give `nbd_address`", "give --nbd-address"),
            ("`verify_backing: off` goes on", "--verify-backing off goes on"),
            ("`journal` or `journal: nowhere`", "--journal or --no-journal"),
            ("`disks: SOURCE=DESTINATION` or `skip`", "--disk SOURCE=DESTINATION or --skip-disk"),
            ("with `populate: missing`", "with --populate missing"),
        ] {
            assert_eq!(flags_in(text), told);
        }
        let mut plan =
            serde_json::json!({ "findings": [{ "message": "`clean`", "code": "`clean`" }], "disk": "`clean`" });
        word_json(&mut plan);
        assert_eq!(
            plan,
            serde_json::json!({ "findings": [{ "message": "--clean", "code": "`clean`" }], "disk": "`clean`" })
        );
    }

    /// Every setting but the directory of sockets is a flag of some verb.
    #[test]
    fn every_flag_is_there() {
        let command = Arguments::command();
        let known: Vec<String> = command
            .get_subcommands()
            .flat_map(|verb| {
                verb.get_arguments().filter_map(|argument| argument.get_long()).map(|long| format!("--{long}"))
            })
            .collect();
        for setting in Setting::ALL.iter().filter(|setting| **setting != Setting::RuntimeDir) {
            let flag = flag(*setting, None);
            assert!(known.contains(&flag), "{flag} is no flag of {known:?}");
        }
    }

    #[test]
    fn settings_are_worded_as_flags() {
        let settings = Settings { samples: 0, compress: Some("zstd".parse().expect("one")), ..Settings::default() };
        let told = worded(&settings.validate().expect_err("refused"));
        for words in
            ["--compress is zstd: only the channels of --multifd compress", "--samples is 0", "--verify-backing off"]
        {
            assert!(told.contains(words), "no '{words}' in {told}");
        }
        assert_eq!(
            (flag_of("policy.slack"), flag_of("skip")),
            ("--policy: slack".to_owned(), "--skip-disk".to_owned())
        );
    }
}
