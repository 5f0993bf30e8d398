//! `docs/findings.md`, made from the codes. `QFERRY_BLESS=1 cargo test -p qferry --lib codes` writes it anew.

use super::{DiagnosisCode, FailureCode, FindingCode, Setting, worded};
use std::{fs, path::Path};

const HEAD: &str = "\
# Findings and failures

<!-- Made from src/codes/ by the tests of `codes`; do not edit. QFERRY_BLESS=1 cargo test -p qferry --lib codes -->

Every finding of a check and every reason for an end has a code: a stable word, for programs. The texts may change.
Settings are named here by the command's flags; an embedder finds each in the settings under the same word with underscores
(`--disk` is `disks`, `--skip-disk` is `skip`, `--no-journal` is a `journal` that is kept nowhere).

## Findings

`qferry check`, `qferry migrate --plan` and `qferry prepare` list them. A **blocker** refuses the migration before
anything is changed; a **warning** and a **note** stop nothing. A blocker that can be forced becomes a warning with
`--force CODE`: such a finding is a judgement that can be wrong for a guest. A migration that would surely fail, lose data or
leave two runners cannot be forced. Where a finding is marked *leaves nothing to be read*, backing files are not compared
until the cause is mended.
";

const FAILURES: &str = "
## Failures

An outcome that is not `moved` has a reason, with one of these codes, or with the code of the gravest finding where the checks
refuse the migration.
";

const CAUSES: &str = "
## Causes

`qferry diagnose` names these, each with its evidence, its remedy and what that risks.

";

/// A setting as the command's flag.
fn flagged(text: &str) -> String {
    worded(text, |setting, value| {
        let flag = match setting {
            Setting::Disks => "--disk".to_owned(),
            Setting::Skip => "--skip-disk".to_owned(),
            other => format!("--{}", other.field().replace('_', "-")),
        };
        value.map_or_else(|| format!("`{flag}`"), |value| format!("`{flag} {value}`"))
    })
}

/// The meaning of a code and its remedy, as Markdown.
fn explained(meaning: &str, remedy: &str) -> String {
    match remedy {
        "" => format!("{meaning}\n"),
        remedy => format!("{meaning}\n\nWhat to do: {}.\n", flagged(remedy)),
    }
}

fn findings() -> String {
    let mut text = HEAD.to_owned();
    for code in FindingCode::ALL {
        let severities: Vec<&str> = code.severities().iter().map(|severity| severity.as_str()).collect();
        let mut marks = severities.join(" or ");
        if code.is_forcible() {
            marks.push_str(", can be forced");
        }
        if !code.is_readable() {
            marks.push_str(", leaves nothing to be read");
        }
        let explained = explained(code.meaning(), code.remedy());
        text.push_str(&format!("\n### `{code}`\n\n*{marks}*\n\n{explained}"));
    }
    text.push_str(FAILURES);
    for code in FailureCode::ALL {
        let explained = explained(code.meaning(), code.remedy());
        text.push_str(&format!("\n### `{code}` (failure)\n\n{explained}"));
    }
    text.push_str(CAUSES);
    for code in DiagnosisCode::ALL {
        text.push_str(&format!("- `{code}`: {}\n", code.meaning()));
    }
    text
}

#[test]
fn the_document_says_what_the_codes_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/findings.md");
    let text = findings();
    if std::env::var_os("QFERRY_BLESS").is_some() {
        return fs::write(path, text).expect("docs/findings.md");
    }
    let help = "docs/findings.md is not what src/codes says: QFERRY_BLESS=1 cargo test -p qferry --lib codes";
    assert!(fs::read_to_string(path).is_ok_and(|written| written == text), "{help}");
}
