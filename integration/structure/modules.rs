//! The modules of the crate: what each file imports and names, and which other files that comes from.
//!
//! An import through a parent's re-export is followed to the file that defines the item. A re-export is no use of what
//! it hands on: a visible `use` counts only where the file names the item elsewhere, too.

use std::collections::{BTreeMap, BTreeSet};

use crate::reader::{Token, product, read};

/// One name that a file imports.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Import {
    /// As written, from `crate`, `super`, `self` or a name in scope; ends with `*` for a glob.
    path: Vec<String>,
    name: String,
    visible: bool,
}

#[derive(Debug, Default)]
struct Module {
    file: String,
    /// The path of the module, without `crate`.
    path: Vec<String>,
    imports: Vec<Import>,
    /// Paths that stand in the code itself, of two words or more.
    named: BTreeSet<Vec<String>>,
    /// Each word of the code outside of imports and declarations of modules.
    words: BTreeSet<String>,
    /// The names of items that the file defines.
    defined: BTreeSet<String>,
}

/// All modules of the crate, by path.
pub(crate) struct Modules(BTreeMap<Vec<String>, Module>);

const ITEMS: [&str; 9] = ["struct", "enum", "trait", "type", "fn", "const", "static", "union", "macro_rules"];

impl Modules {
    /// Reads files, given as their path below `src/` and their text. What is marked as test is passed over.
    pub(crate) fn read<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let module = |(file, text): (&str, &str)| {
            let tokens = product(&read(text).tokens);
            let (imports, rest) = imports(&tokens);
            let declared = |at: usize| at > 0 && rest[at - 1].is("mod");
            let words = rest.iter().enumerate().filter(|(at, _)| !declared(*at));
            let words = words.filter_map(|(_, token)| token.word()).map(str::to_owned).collect();
            let path = module_path(file);
            let module =
                Module { file: file.to_owned(), imports, named: paths(&rest), words, defined: defined(&rest), path };
            (module.path.clone(), module)
        };
        Self(files.into_iter().filter(|(file, _)| *file != "main.rs").map(module).collect())
    }

    /// Each file with the other files that it uses.
    pub(crate) fn uses(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.0.values().map(|module| (module.file.clone(), self.uses_of(module))).collect()
    }

    fn uses_of(&self, module: &Module) -> BTreeSet<String> {
        let used = |import: &&Import| !import.visible || module.words.contains(&import.name);
        let imported = module.imports.iter().filter(used).map(|import| &import.path);
        let mut files: BTreeSet<String> =
            imported.chain(&module.named).filter_map(|path| self.resolve(module, path, 0)).collect();
        files.remove(&module.file);
        files
    }

    /// The file that a path leads to, as seen from a module. None for what is not of this crate.
    fn resolve(&self, from: &Module, path: &[String], depth: usize) -> Option<String> {
        if depth > 20 {
            return None; // two globs that import each other
        }
        let (first, rest) = path.split_first()?;
        let (start, rest) = match first.as_str() {
            "crate" | "qferry" => (self.0.get(&Vec::new())?, rest),
            "self" => (from, rest),
            "super" => {
                let (_, parent) = from.path.split_last()?;
                let parent = self.0.get(parent)?;
                return match rest {
                    [] => Some(parent.file.clone()),
                    [next, ..] if next == "super" => self.resolve(parent, rest, depth + 1),
                    _ => self.descend(parent, rest, depth + 1),
                };
            }
            _ => return self.find(from, path, depth + 1),
        };
        self.descend(start, rest, depth + 1)
    }

    /// The file that a path leads to, each of whose words stands in the module before.
    fn descend(&self, module: &Module, path: &[String], depth: usize) -> Option<String> {
        match path {
            [] => Some(module.file.clone()),
            [all] if all == "*" => Some(module.file.clone()),
            // an item of the module itself, or a method of a type
            _ => self.find(module, path, depth).or_else(|| Some(module.file.clone())),
        }
    }

    /// The same, where the first word is known to the module as a child, as an import, or as an item of its own.
    fn find(&self, module: &Module, path: &[String], depth: usize) -> Option<String> {
        let (first, rest) = path.split_first()?;
        if let Some(child) = self.child(module, first) {
            return self.descend(child, rest, depth + 1);
        }
        if module.defined.contains(first) {
            return Some(module.file.clone());
        }
        if let Some(import) = module.imports.iter().find(|import| import.name == *first) {
            let path: Vec<String> = import.path.iter().chain(rest).cloned().collect();
            // `use bytes::Bytes` names a crate, not itself
            let alone = import.path.len() == 1 && import.path[0] == *first;
            return if alone { None } else { self.resolve(module, &path, depth + 1) };
        }
        let globs = module.imports.iter().filter(|import| import.name == "*");
        globs.filter_map(|glob| self.through(module, glob, path, depth + 1)).next()
    }

    fn through(&self, module: &Module, glob: &Import, path: &[String], depth: usize) -> Option<String> {
        let (_, base) = glob.path.split_last()?;
        let file = self.resolve(module, base, depth)?;
        let target = self.0.values().find(|module| module.file == file)?;
        if depth > 20 { None } else { self.find(target, path, depth + 1) }
    }

    fn child(&self, module: &Module, name: &str) -> Option<&Module> {
        let path: Vec<String> = module.path.iter().cloned().chain([name.to_owned()]).collect();
        self.0.get(&path)
    }
}

/// `a/b/mod.rs` and `a/b.rs` are `a::b`; `lib.rs` is the crate.
fn module_path(file: &str) -> Vec<String> {
    let mut path: Vec<String> = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if path.last().is_some_and(|last| last == "mod" || last == "lib") {
        path.pop();
    }
    path
}

/// The imports among these tokens, and the tokens without them.
fn imports(tokens: &[Token]) -> (Vec<Import>, Vec<Token>) {
    let (mut found, mut rest, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        // `+ use<'a>` is a bound, and no import
        let bound = tokens.get(at + 1).is_some_and(|token| token.is("<"));
        if !tokens[at].is("use") || bound {
            rest.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let visible = at > 0 && (tokens[at - 1].is("pub") || tokens[at - 1].is(")"));
        let end = at + tokens[at..].iter().position(|token| token.is(";")).unwrap_or(tokens.len() - at);
        tree(&tokens[at + 1..end], &[], &mut |path, name| found.push(Import { path, name, visible }));
        at = end + 1;
    }
    (found, rest)
}

/// Calls for each leaf of the tree of a `use`.
fn tree(tokens: &[Token], before: &[String], found: &mut impl FnMut(Vec<String>, String)) {
    let mut path = before.to_vec();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            Token::Word(word) if word == "as" => {
                let name = tokens.get(at + 1).and_then(Token::word).unwrap_or("_");
                return found(path, name.to_owned());
            }
            Token::Word(word) => path.push(word.clone()),
            Token::Mark(mark) if mark == "*" => path.push("*".to_owned()),
            Token::Mark(mark) if mark == "{" => {
                let inner = &tokens[at + 1..tokens.len() - 1];
                return members(inner).into_iter().for_each(|member| tree(member, &path, found));
            }
            _ => {}
        }
        at += 1;
    }
    if path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    if let Some(name) = path.last().cloned() {
        found(path, name);
    }
}

/// What stands between the commas of a `{...}`, without its braces.
fn members(tokens: &[Token]) -> Vec<&[Token]> {
    let mut depth = 0;
    let parts = tokens.split(|token| {
        depth += i32::from(token.is("{")) - i32::from(token.is("}"));
        depth == 0 && token.is(",")
    });
    parts.filter(|part| !part.is_empty()).collect()
}

/// Every `a::b::c` in these tokens.
fn paths(tokens: &[Token]) -> BTreeSet<Vec<String>> {
    let (mut found, mut at) = (BTreeSet::new(), 0);
    while at < tokens.len() {
        let mut path: Vec<String> = tokens[at].word().map(str::to_owned).into_iter().collect();
        at += 1;
        while !path.is_empty() && at + 1 < tokens.len() && tokens[at].is("::") {
            let Some(word) = tokens[at + 1].word() else { break };
            path.push(word.to_owned());
            at += 2;
        }
        if path.len() > 1 {
            found.insert(path);
        }
    }
    found
}

fn defined(tokens: &[Token]) -> BTreeSet<String> {
    let pairs = tokens.windows(2).filter(|pair| ITEMS.iter().any(|item| pair[0].is(item)));
    pairs.filter_map(|pair| pair[1].word().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(files: &[(&str, &str)]) -> Vec<String> {
        let uses = Modules::read(files.iter().copied()).uses();
        uses.into_iter().flat_map(|(file, used)| used.into_iter().map(move |used| format!("{file} {used}"))).collect()
    }

    #[test]
    fn an_import_through_a_re_export_leads_to_the_file_of_the_item() {
        let files = [
            ("lib.rs", "pub mod a;"),
            ("a/mod.rs", "mod b; mod c; pub use b::{B as Renamed, inner::*}; use c::D;"),
            ("a/b/mod.rs", "mod inner; pub struct B;"),
            ("a/b/inner.rs", "pub struct I;"),
            ("a/c.rs", "use crate::a::{Renamed, self}; use super::I; pub struct D;"),
        ];
        assert_eq!(uses(&files), ["a/c.rs a/b/inner.rs", "a/c.rs a/b/mod.rs", "a/c.rs a/mod.rs", "a/mod.rs a/c.rs"]);
    }

    #[test]
    fn paths_in_the_code_are_seen_and_those_of_other_crates_are_not() {
        let files = [
            ("lib.rs", "pub mod a; pub mod b;"),
            ("a.rs", "use crate::b; use bytes::Bytes; fn f() -> Bytes { b::g(super::b::H::new()) }"),
            ("b.rs", "fn g() {} struct H; fn i() { std::mem::take(1); self::g() }"),
        ];
        assert_eq!(uses(&files), ["a.rs b.rs"]);
    }

    #[test]
    fn a_re_export_counts_where_its_file_names_the_item_too() {
        let child = ("a/b.rs", "pub struct B;");
        assert_eq!(uses(&[("a/mod.rs", "mod b; pub use b::B;"), child]), Vec::<String>::new());
        assert_eq!(uses(&[("a/mod.rs", "mod b; pub use b::B; fn f(b: B) {}"), child]), ["a/mod.rs a/b.rs"]);
    }
}
