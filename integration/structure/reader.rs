//! Reads Rust source as tokens, as far as the rules of the house need it: comments apart, literals without their text.

use std::collections::BTreeSet;

/// A piece of code.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// An identifier or a keyword.
    Word(String),
    /// `::` is one mark, everything else is marked character by character.
    Mark(String),
    /// A string, character or number.
    Literal,
}

impl Token {
    pub(crate) fn is(&self, text: &str) -> bool {
        match self {
            Token::Word(word) => word == text,
            Token::Mark(mark) => mark == text,
            Token::Literal => false,
        }
    }

    pub(crate) fn word(&self) -> Option<&str> {
        match self {
            Token::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// A source file, read.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub(crate) tokens: Vec<Token>,
    /// The numbers of the lines that hold a comment or a part of one, from 0.
    pub(crate) comments: BTreeSet<usize>,
}

pub(crate) fn read(text: &str) -> Text {
    let chars: Vec<char> = text.chars().collect();
    let (mut read, mut at, mut line) = (Text::default(), 0, 0);
    while at < chars.len() {
        let begin = at;
        match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => at = find(&chars, at, |c| c == '\n'),
            '/' if chars.get(at + 1) == Some(&'*') => at = end_of_block_comment(&chars, at),
            '"' => at = end_of_string(&chars, at + 1),
            'r' | 'b' if raw_hashes(&chars, at).is_some() => at = end_of_raw_string(&chars, at),
            'b' if chars.get(at + 1) == Some(&'"') => at = end_of_string(&chars, at + 2),
            '\'' => at = end_of_quote(&chars, at),
            c if c.is_alphabetic() || c == '_' => at = find(&chars, at, |c| !c.is_alphanumeric() && c != '_'),
            c if c.is_numeric() => at = find(&chars, at, |c| !c.is_alphanumeric() && c != '_'),
            ':' if chars.get(at + 1) == Some(&':') => at += 2,
            _ => at += 1,
        }
        let piece: String = chars[begin..at].iter().collect();
        let lines = piece.matches('\n').count();
        match chars[begin] {
            '/' if piece.len() > 1 => read.comments.extend(line..=line + lines),
            c if c.is_whitespace() => {}
            _ if piece.contains(['"', '\'']) => read.tokens.push(Token::Literal),
            c if c.is_numeric() => read.tokens.push(Token::Literal),
            c if c.is_alphabetic() || c == '_' => read.tokens.push(Token::Word(piece)),
            _ => read.tokens.push(Token::Mark(piece)),
        }
        line += lines;
    }
    read
}

fn find(chars: &[char], from: usize, end: impl Fn(char) -> bool) -> usize {
    (from..chars.len()).find(|at| end(chars[*at])).unwrap_or(chars.len())
}

fn end_of_block_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn end_of_string(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The number of `#` of the raw string that begins at this place, if one does: `r"`, `br#"`.
fn raw_hashes(chars: &[char], at: usize) -> Option<usize> {
    let begin = if chars[at] == 'b' { at + 1 } else { at };
    if chars.get(begin) != Some(&'r') {
        return None;
    }
    let quote = find(chars, begin + 1, |c| c != '#');
    (chars.get(quote) == Some(&'"')).then_some(quote - begin - 1)
}

fn end_of_raw_string(chars: &[char], at: usize) -> usize {
    let hashes = raw_hashes(chars, at).unwrap_or_default();
    let mut end = find(chars, at, |c| c == '"') + 1;
    while end < chars.len() {
        let closes = chars[end] == '"' && chars[end + 1..].iter().take_while(|c| **c == '#').count() >= hashes;
        end += 1;
        if closes {
            return end + hashes;
        }
    }
    chars.len()
}

/// The end of a character literal, or of the quote before a lifetime.
fn end_of_quote(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => find(chars, at + 3, |c| c == '\'') + 1,
        (Some(_), Some('\'')) => at + 3,
        _ => at + 1,
    }
}

/// The tokens without each item that is marked `#[cfg(test)]`; none at all for a file that is marked as a whole.
pub(crate) fn product(tokens: &[Token]) -> Vec<Token> {
    const TEST: [&str; 6] = ["[", "cfg", "(", "test", ")", "]"];
    let matches = |at: usize| TEST.iter().enumerate().all(|(n, text)| tokens.get(at + n).is_some_and(|t| t.is(text)));
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if tokens[at].is("#") && matches(at + 1) {
            at = end_of_item(tokens, at + 1 + TEST.len());
        } else if tokens[at].is("#") && tokens.get(at + 1).is_some_and(|token| token.is("!")) && matches(at + 2) {
            return Vec::new();
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Where an item ends: with its `;`, or with the brace that closes its first block.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0;
    while at < tokens.len() {
        match &tokens[at] {
            Token::Mark(mark) if ["{", "(", "["].contains(&mark.as_str()) => depth += 1,
            Token::Mark(mark) if ["}", ")", "]"].contains(&mark.as_str()) => {
                depth -= 1;
                if depth == 0 && mark == "}" {
                    return at + 1;
                }
            }
            Token::Mark(mark) if mark == ";" && depth == 0 => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

#[test]
fn comments_and_literals_are_told_from_code() {
    let text = "a // b \"c\n\"d // e\" r#\"f \"g\"# 'h' '\\'' &'i j /* k /* l */\n m */ n::o b\"p\" 1.5";
    let Text { tokens, comments } = read(text);
    let words: Vec<&str> = tokens.iter().filter_map(Token::word).collect();
    assert_eq!(words, ["a", "i", "j", "n", "o"]);
    assert_eq!(comments.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn the_product_is_what_is_not_marked_as_test() {
    let words = |text: &str| -> Vec<String> {
        product(&read(text).tokens).iter().filter_map(|token| token.word().map(str::to_owned)).collect()
    };
    assert_eq!(words("a; #[cfg(test)] mod b; c {} #[cfg(test)] mod d { e {} f } g"), ["a", "c", "g"]);
    assert_eq!(words("#![cfg(test)] a"), Vec::<String>::new());
}
