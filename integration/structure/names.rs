//! The name of a type is its own: no other type of the crate has it.

use std::collections::BTreeMap;

use crate::{
    not_yet::only_what_is_listed,
    reader::{Token, product, read},
    sources,
};

/// The types that a text defines: structures, enumerations, traits and aliases, but no associated types.
fn types(text: &str) -> Vec<String> {
    let tokens = product(&read(text).tokens);
    // of each open brace: whether associated types stand in it; and the keyword that began what stands before the next
    // one
    let (mut blocks, mut opening): (Vec<bool>, Option<&str>) = (Vec::new(), None);
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Mark(mark) if mark == "{" => {
                blocks.push(matches!(opening, Some("impl" | "trait")));
                opening = None;
            }
            Token::Mark(mark) if mark == "}" => {
                blocks.pop();
                opening = None;
            }
            Token::Mark(mark) if mark == ";" => opening = None,
            Token::Word(word) => {
                let word = word.as_str();
                let associated = word == "type" && blocks.last() == Some(&true);
                if ["struct", "enum", "trait", "type"].contains(&word) && !associated {
                    found.extend(tokens.get(at + 1).and_then(Token::word).map(str::to_owned));
                }
                if ["impl", "trait", "fn", "struct", "enum", "mod", "match"].contains(&word) {
                    opening = opening.or(Some(word));
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn no_two_types_have_the_same_name() {
    let sources = sources();
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for source in &sources {
        for name in types(&source.text) {
            places.entry(name).or_default().push(&source.path);
        }
    }
    places.retain(|_, files| files.len() > 1);
    println!("{places:#?}");
    only_what_is_listed("type", places.into_keys());
}

#[test]
fn the_reader_of_types_knows_associated_ones() {
    let text = "struct A<T: I>(T); pub(crate) enum B { C } trait D { type E; fn f(x: impl G) { struct H; } }
        impl D for A { type E = B; } unsafe impl<'a> D for B { fn f() -> impl D { type J = u8; } type E = A; }
        type K = A; #[cfg(test)] mod tests { struct L; } let r#type = 1;";
    assert_eq!(types(text), ["A", "B", "D", "H", "J", "K"]);
}
