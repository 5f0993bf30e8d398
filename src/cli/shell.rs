//! How a command is written down, so that a person can paste it into a shell.
//!
//! Pure. What qferry itself runs never goes through a shell.

use std::borrow::Cow;

/// A command line that a POSIX shell reads as exactly these words.
pub(super) fn line(words: &[String]) -> String {
    let quoted: Vec<Cow<'_, str>> = words.iter().map(|word| quote(word)).collect();
    quoted.join(" ")
}

/// One word for a shell.
pub(super) fn quote(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => Cow::Borrowed(word),
        // nothing is special between single quotes but the quote itself
        false => Cow::Owned(format!("'{}'", word.replace('\'', r"'\''"))),
    }
}

/// A comment of one line, whatever is in the text.
pub(super) fn comment(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("# {clean}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    #[test]
    fn plain_words_stay_as_they_are() {
        for word in ["qemu-img", "-o", "cluster_size=65536,compat=1.1", "/a/b_c-d.qcow2", "unix:/x@y+z%1"] {
            assert_eq!(quote(word), word);
        }
    }

    #[test]
    fn everything_else_is_quoted() {
        for (word, quoted) in
            [("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("~", "'~'"), ("a\nb", "'a\nb'"), ("$x", "'$x'")]
        {
            assert_eq!(quote(word), quoted);
        }
    }

    #[test]
    fn a_comment_ends_nowhere_but_at_its_end() {
        assert_eq!(comment("a\nrm -rf /\r"), "# a?rm -rf /?");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_shell_reads_the_same_words(words in prop::collection::vec("[^\0]{0,12}", 1..5)) {
            let script = format!("printf '%s\\0' {}", line(&words));
            let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
            let read: Vec<&[u8]> = output.stdout.split(|&byte| byte == 0).collect();
            let mut expected: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            expected.push(b"");
            prop_assert_eq!(read, expected);
        }
    }
}
