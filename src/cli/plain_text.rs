//! Texts for people, fit for a terminal: a control character in what QEMU said can do anything there.
//!
//! Pure.

use super::flags;

/// The most characters of one text on a screen.
const LONGEST: usize = 400;

/// A text of the library for people: with flags for settings, and without what can command a terminal or make a text
/// read as another: control characters but line ends, and characters that turn the direction of writing or take no
/// room.
pub(super) fn plain(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => c,
        '\u{ad}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{e0000}'..='\u{e007f}' => '?',
        c if c.is_control() => '?',
        c => c,
    };
    flags::flags_in(text).chars().map(shown).collect()
}

/// The same for a text of somebody else that stands in a line: what it says cannot begin another line.
pub(super) fn in_line(text: &str) -> String {
    plain(text).replace('\n', "?")
}

/// The same for one line of a screen, of bounded length.
pub(super) fn one_line(text: &str) -> String {
    let end = text.char_indices().nth(LONGEST).map_or(text.len(), |(at, _)| at);
    let shown = plain(&text[..end]).replace('\n', " ");
    if end < text.len() { shown + "…" } else { shown }
}

/// The columns in which the words of a named line begin: `  evidence     `.
const WORDS: usize = 15;

/// Lines that are no wider than so many columns. The rest of a named line goes below its words. A command stays whole,
/// so that it can be copied, and so does a word that is wider than that.
pub(super) fn folded(text: &str, columns: usize) -> String {
    let mut folded = String::new();
    for line in text.split_inclusive('\n') {
        let is_command = line.starts_with(&" ".repeat(WORDS)) || line.starts_with("  command ");
        if is_command || line.trim_end().chars().count() <= columns {
            folded.push_str(line);
            continue;
        }
        let (mut rest, mut indent) = (line.trim_end(), 0);
        let margin = if line.starts_with(' ') { WORDS } else { 0 };
        loop {
            let room = columns.saturating_sub(indent);
            let end = rest.char_indices().nth(room).map_or(rest.len(), |(at, _)| at);
            // spaces of the name and the margin are no place to break at
            let from = rest.char_indices().nth(margin.saturating_sub(indent)).map_or(rest.len(), |(at, _)| at);
            let space = |range: std::ops::Range<usize>, last: bool| {
                let part = rest.get(range.clone())?;
                let at = if last { part.rfind(' ') } else { part.find(' ') };
                at.map(|at| range.start + at).filter(|at| *at > 0)
            };
            let broken = match end < rest.len() {
                true => space(from..end + 1, true).or_else(|| space(end..rest.len(), false)),
                false => None,
            };
            folded.push_str(&" ".repeat(indent));
            let Some(at) = broken else {
                folded.push_str(rest);
                folded.push('\n');
                break;
            };
            folded.push_str(rest[..at].trim_end());
            folded.push('\n');
            (rest, indent) = (rest[at..].trim_start(), margin);
        }
    }
    folded
}

/// The levels of a sparkline.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Numbers as bars between 0 and the largest of them, in at most so many columns.
pub(super) fn sparkline(numbers: &[u64], columns: usize) -> String {
    let most = numbers.iter().copied().max().unwrap_or_default().max(1);
    let step = numbers.len().div_ceil(columns.max(1)).max(1);
    let level = |number: u64| {
        let part = number as f64 / most as f64;
        LEVELS[((part * 7.0).round() as usize).min(7)]
    };
    numbers.chunks(step).filter_map(|chunk| chunk.last().copied().map(level)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_folded_between_words() {
        let text = "The verdict is in two lines.\n  evidence     the first fact is long\n  risk         none\n";
        let expected = "The verdict is in two\nlines.\n  evidence     the first\n               fact is\n               long\n  risk         none\n";
        assert_eq!(folded(text, 24), expected);
        assert_eq!(folded(text, 80), text);
        // a command, and a word that is too wide
        let command = "               source: {\"execute\": \"cont\"}\n  command      qemu -S -m 1G -smp 2\n";
        assert_eq!(folded(command, 20), command);
        assert_eq!(
            folded("  evidence     abcdefghijklmnop q\n", 20),
            "  evidence     abcdefghijklmnop\n               q\n"
        );
        for columns in 0..40 {
            assert_eq!(folded("ä ö ü\n", columns).split_whitespace().count(), 3);
            assert!(folded("  ä            öäü xyz ä\n\n", columns).ends_with("ä\n\n"));
        }
    }

    #[test]
    fn nothing_that_qemu_says_can_command_a_terminal() {
        assert_eq!(plain("no \x1b]0;x\x07\u{9b}2J\r\n\tä└"), "no ?]0;x??2J?\n?ä└");
        assert_eq!(plain("a\u{202e}b\u{200b}\n"), "a?b?\n");
        assert_eq!(in_line("a\nb\u{202e}"), "a?b?");
        assert_eq!(one_line("a\nb\u{202e}c\u{200b}\x1b[2J"), "a b?c??[2J");
    }

    #[test]
    fn a_sparkline_has_its_height_from_the_largest_number() {
        assert_eq!(sparkline(&[0, 50, 100], 24), "▁▅█");
        assert_eq!(sparkline(&[], 24), "");
        assert_eq!(sparkline(&[0, 0], 24), "▁▁");
        assert!(sparkline(&[7; 1000], 24).chars().count() <= 24);
    }

    #[test]
    fn a_line_has_a_limit() {
        for text in ["x".repeat(100_000), "ä".repeat(5000), "\u{301}".repeat(5000)] {
            assert!(one_line(&text).chars().count() <= LONGEST + 1, "{}", text.len());
        }
    }
}
