//! Placeholders in the words of commands that a spec has: `{name}`, and `{{` for a brace.
//!
//! Pure.

/// Fills in the placeholders of a word.
///
/// # Errors
/// The name of the first that `value` does not know.
pub(super) fn fill(word: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = word;
    while let Some((before, behind)) = rest.split_once('{') {
        filled += before;
        if let Some(behind) = behind.strip_prefix('{') {
            filled.push('{');
            rest = behind;
            continue;
        }
        let (name, behind) = behind.split_once('}').ok_or_else(|| behind.to_owned())?;
        filled += &value(name).ok_or_else(|| name.to_owned())?;
        rest = behind;
    }
    Ok(filled + &rest.replace("}}", "}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_filled_in_and_an_unknown_name_is_told() {
        let value = |name: &str| (name == "x").then(|| "1".to_owned());
        let cases = [
            ("", Ok("")),
            ("a", Ok("a")),
            ("{x}", Ok("1")),
            ("a{x}b{x}", Ok("a1b1")),
            ("{{x}}", Ok("{x}")),
            ("{{{x}", Ok("{1")),
            ("}}", Ok("}")),
            ("{y}", Err("y")),
            ("{x", Err("x")),
            ("{}", Err("")),
        ];
        for (word, expected) in cases {
            let filled = fill(word, value);
            assert_eq!(filled.as_deref().map_err(String::as_str), expected, "{word}");
        }
    }
}
