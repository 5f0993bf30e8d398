//! The size of a file, and the width of a comment. (The width of code is the formatter's.)

use std::collections::BTreeMap;

use crate::{files, not_yet::only_what_is_listed, reader::read};

const LINES: usize = 500;
const COLUMNS: usize = 120;

/// The lines of a text before its tests.
fn lines_before_tests(text: &str) -> usize {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().lines().count()
}

/// The numbers of the lines that are too wide and hold a comment, from 1.
fn wide_comments(text: &str) -> Vec<usize> {
    let comments = read(text).comments;
    let wide = text.lines().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS);
    wide.map(|(number, _)| number).filter(|number| comments.contains(number)).map(|number| number + 1).collect()
}

#[test]
fn no_file_of_the_product_is_long_before_its_tests() {
    let long = files("src").into_iter().filter(|(_, text)| lines_before_tests(text) > LINES);
    only_what_is_listed("size", long.map(|(path, _)| format!("src/{path}")));
}

#[test]
fn no_file_of_the_tests_is_long() {
    let long = files("integration").into_iter().filter(|(_, text)| text.lines().count() > LINES);
    only_what_is_listed("size of tests", long.map(|(path, _)| format!("integration/{path}")));
}

/// The first two names of a path: a room, or a folder of the tests.
fn begin(path: &str) -> String {
    path.split('/').take(2).collect::<Vec<_>>().join("/")
}

#[test]
fn no_comment_is_wider_than_a_line() {
    let mut wide = BTreeMap::new();
    for folder in ["src", "integration"] {
        for (path, text) in files(folder) {
            let lines = wide_comments(&text);
            if !lines.is_empty() {
                wide.insert(format!("{folder}/{path}"), lines);
            }
        }
    }
    println!("{wide:#?}");
    only_what_is_listed("width", wide.keys().map(|path| begin(path)));
}

#[test]
fn the_readers_of_lines_count_what_they_should() {
    assert_eq!(lines_before_tests("a\n#[cfg(test)]\nmod b;\nc\n\n#[cfg(test)]\nmod tests {\n}\n"), 5 - 1);
    let long = "x".repeat(COLUMNS);
    let text = format!("// {long}\n\"{long}\"\nlet a = 1; // {long}\n//{}\n/* a\n{long}x */", "ä".repeat(COLUMNS - 2));
    assert_eq!(wide_comments(&text), [1, 3, 6]);
}
