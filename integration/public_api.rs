//! The public face, item by item, against the checked-in list `docs/public-api.txt`. `QFERRY_WRITE_API=1` writes the
//! list anew; the commit then shows what has changed for embedders.
//!
//! The list is read from the source, since rustdoc's own needs a nightly compiler: what `src/lib.rs` re-exports, with
//! public fields, variants, methods and implemented traits. Items that are `#[doc(hidden)]` are left out.

#![cfg(test)] // tells clippy that this is all test, helpers too

use quote::ToTokens;
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};
use syn::{
    Attribute, Fields, File, ImplItem, Item, ItemUse, ReturnType, Signature, Type, UseTree, Visibility,
    punctuated::Punctuated,
};

/// Types of std, tokio, bytes, serde and tracing, and names of lifetimes and generics, that a signature may hold.
const KNOWN: &[&str] = &[
    "Arc",
    "AsFd",
    "AsRef",
    "AsyncRead",
    "AsyncWrite",
    "BTreeMap",
    "BTreeSet",
    "Box",
    "C",
    "Clone",
    "Copy",
    "D",
    "Debug",
    "Default",
    "Deserialize",
    "Deserializer",
    "Display",
    "Drop",
    "Duration",
    "E",
    "Eq",
    "Err",
    "Error",
    "F",
    "Fn",
    "FnMut",
    "FnOnce",
    "From",
    "FromStr",
    "Future",
    "Hash",
    "Into",
    "IntoIterator",
    "Item",
    "Iterator",
    "None",
    "Ok",
    "Option",
    "Ord",
    "Output",
    "OwnedFd",
    "PartialEq",
    "PartialOrd",
    "Path",
    "PathBuf",
    "Pin",
    "Result",
    "S",
    "Self",
    "Send",
    "Serialize",
    "Serializer",
    "Some",
    "String",
    "Sync",
    "T",
    "Unpin",
    "Vec",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn parsed(path: &Path) -> File {
    let text = fs::read_to_string(path).unwrap();
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file of a folder, parsed, with the name of its room.
fn files(folder: &Path, found: &mut Vec<(String, File)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let inside = path.strip_prefix(root().join("src")).unwrap().to_string_lossy().into_owned();
            let room = inside.split(['/', '.']).next().unwrap_or_default().to_owned();
            found.push((room, parsed(&path)));
        }
    }
}

/// What the crate root re-exports: the public name of each item, the room it is defined in, and its name there.
fn exports() -> BTreeMap<String, (String, String)> {
    fn walk(tree: &UseTree, room: &str, found: &mut BTreeMap<String, (String, String)>) {
        let mut add = |public: &syn::Ident, name: &syn::Ident| {
            found.insert(public.to_string(), (room.to_owned(), name.to_string()));
        };
        match tree {
            UseTree::Path(path) if room.is_empty() => walk(&path.tree, &path.ident.to_string(), found),
            UseTree::Path(path) => walk(&path.tree, room, found),
            UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, room, found)),
            UseTree::Name(name) => add(&name.ident, &name.ident),
            UseTree::Rename(rename) => add(&rename.rename, &rename.ident),
            UseTree::Glob(_) => panic!("a glob hides what is public"),
        }
    }
    let mut found = BTreeMap::new();
    for item in parsed(&root().join("src/lib.rs")).items {
        match item {
            Item::Use(ItemUse { vis: Visibility::Public(_), tree, .. }) => walk(&tree, "", &mut found),
            Item::Mod(module) if is_public(&module.vis) => {
                assert!(is_hidden(&module.attrs), "the module {} is public", module.ident);
            }
            _ => {}
        }
    }
    found
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn has(attributes: &[Attribute], name: &str, argument: Option<&str>) -> bool {
    attributes.iter().any(|attribute| {
        let tokens = attribute.meta.to_token_stream().to_string();
        attribute.path().is_ident(name) && argument.is_none_or(|argument| tokens.contains(argument))
    })
}

fn is_hidden(attributes: &[Attribute]) -> bool {
    has(attributes, "doc", Some("hidden"))
}

/// Code as it would be written, near enough.
fn shown(tokens: impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" :: ", "::"),
        (" < ", "<"),
        (" > ", "> "),
        (" >", ">"),
        (" , ", ", "),
        (" ,", ","),
        ("& ", "&"),
        (" ( ", "("),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" : ", ": "),
        ("< ", "<"),
        (" ;", ";"),
        ("[ ", "["),
        (" ]", "]"),
    ] {
        text = text.replace(from, to);
    }
    text.trim().to_owned()
}

fn signature(signature: &Signature) -> String {
    let mut signature = signature.clone();
    for input in &mut signature.inputs {
        if let syn::FnArg::Typed(typed) = input {
            if let syn::Pat::Ident(name) = &mut *typed.pat {
                name.mutability = None;
            }
        } else if let syn::FnArg::Receiver(receiver) = input {
            if receiver.reference.is_none() {
                receiver.mutability = None;
            }
        }
    }
    if let ReturnType::Type(_, returned) = &signature.output {
        // async functions are shown as they are written
        assert!(!matches!(**returned, Type::Never(_)));
    }
    shown(signature)
}

fn fields(fields: &Fields, line: &str, of_variant: bool, found: &mut BTreeSet<String>) {
    for (number, field) in fields.iter().enumerate() {
        if (of_variant || is_public(&field.vis)) && !is_hidden(&field.attrs) {
            let name = field.ident.as_ref().map_or_else(|| number.to_string(), ToString::to_string);
            found.insert(format!("{line}.{name}: {}", shown(&field.ty)));
        }
    }
}

/// The lines of an item that is defined under `name` and public as `public`.
fn item(item: &Item, name: &str, public: &str, found: &mut BTreeSet<String>) {
    let growing =
        |attributes: &[Attribute]| if has(attributes, "non_exhaustive", None) { " (non-exhaustive)" } else { "" };
    let derives = |attributes: &[Attribute], found: &mut BTreeSet<String>| {
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("derive")) {
            let list = attribute.parse_args_with(Punctuated::<syn::Path, syn::Token![,]>::parse_terminated).unwrap();
            found.extend(list.iter().map(|derived| format!("impl {} for {public}", shown(derived))));
        }
    };
    match item {
        Item::Struct(defined) if defined.ident == name && is_public(&defined.vis) => {
            found.insert(format!("struct {public}{}{}", shown(&defined.generics), growing(&defined.attrs)));
            fields(&defined.fields, public, false, found);
            derives(&defined.attrs, found);
        }
        Item::Enum(defined) if defined.ident == name && is_public(&defined.vis) => {
            found.insert(format!("enum {public}{}", growing(&defined.attrs)));
            for variant in &defined.variants {
                let line = format!("{public}::{}", variant.ident);
                fields(&variant.fields, &line, true, found);
                found.insert(line);
            }
            derives(&defined.attrs, found);
        }
        Item::Trait(defined) if defined.ident == name && is_public(&defined.vis) => {
            found.insert(format!("trait {public}: {}", shown(&defined.supertraits)));
            for member in &defined.items {
                if let syn::TraitItem::Fn(method) = member {
                    found.insert(format!("{public}::{}", signature(&method.sig)));
                }
            }
        }
        Item::Fn(defined) if defined.sig.ident == name && is_public(&defined.vis) => {
            found.insert(signature(&defined.sig));
        }
        Item::Type(defined) if defined.ident == name && is_public(&defined.vis) => {
            found.insert(format!("type {public}{} = {}", shown(&defined.generics), shown(&defined.ty)));
        }
        Item::Impl(block) => {
            let Type::Path(of) = &*block.self_ty else { return };
            if of.path.segments.last().is_none_or(|segment| segment.ident != name) || has(&block.attrs, "cfg", None) {
                return;
            }
            if let Some((_, of_trait, _)) = &block.trait_ {
                found.insert(format!("impl {} for {public}", shown(of_trait)));
                return;
            }
            for member in &block.items {
                match member {
                    ImplItem::Fn(method) if is_public(&method.vis) && !is_hidden(&method.attrs) => {
                        found.insert(format!("{public}::{}", signature(&method.sig)));
                    }
                    ImplItem::Const(constant) if is_public(&constant.vis) && !is_hidden(&constant.attrs) => {
                        found.insert(format!("{public}::{}: {}", constant.ident, shown(&constant.ty)));
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// Types and traits of the crate itself: which of the private ones a public type implements, or is made from, nobody
/// can name.
fn own_names(all: &[(String, File)]) -> BTreeSet<String> {
    let name = |item: &Item| match item {
        Item::Struct(defined) => Some(defined.ident.to_string()),
        Item::Enum(defined) => Some(defined.ident.to_string()),
        Item::Trait(defined) => Some(defined.ident.to_string()),
        _ => None,
    };
    all.iter().flat_map(|(_, file)| &file.items).filter_map(name).collect()
}

fn list() -> BTreeSet<String> {
    let mut all = Vec::new();
    files(&root().join("src"), &mut all);
    let exports = exports();
    let mut found = BTreeSet::new();
    for (public, (room, name)) in &exports {
        let mut lines = BTreeSet::new();
        let of_room = all.iter().filter(|(of, _)| of == room);
        of_room.flat_map(|(_, file)| &file.items).for_each(|one| item(one, name, public, &mut lines));
        let kinds = ["struct ", "enum ", "trait ", "type ", "fn ", "async fn "];
        let defined = lines.iter().filter(|line| kinds.iter().any(|kind| line.starts_with(kind))).count();
        if defined == 0 && room == "codes" {
            // the page docs/findings.md lists the words of these
            lines.insert(format!("enum {public}, which a macro defines"));
        } else {
            assert_eq!(defined, 1, "{public} is not defined exactly once: {lines:#?}");
        }
        found.append(&mut lines);
    }
    let hidden: BTreeSet<String> = own_names(&all).into_iter().filter(|name| !exports.contains_key(name)).collect();
    found.retain(|line| {
        let implemented = line.strip_prefix("impl ").and_then(|line| line.split(" for ").next()).unwrap_or_default();
        !implemented.split(|c: char| !c.is_alphanumeric()).any(|word| hidden.contains(word))
    });
    found
}

#[test]
fn the_public_face_is_as_listed() {
    let path = root().join("docs/public-api.txt");
    let found = list().into_iter().map(|line| line + "\n").collect::<String>();
    if env::var_os("QFERRY_WRITE_API").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let listed = fs::read_to_string(&path).unwrap_or_default();
    let (listed, found): (BTreeSet<&str>, BTreeSet<&str>) = (listed.lines().collect(), found.lines().collect());
    let gone: Vec<_> = listed.difference(&found).collect();
    let new: Vec<_> = found.difference(&listed).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "the public face differs from docs/public-api.txt; QFERRY_WRITE_API=1 writes the list anew\nnew: {new:#?}\ngone: {gone:#?}"
    );
}

#[test]
fn every_type_that_is_named_is_public_too() {
    let (exports, mut unknown) = (exports(), BTreeSet::new());
    for line in list() {
        // what is behind the dot of a field or the colons of a variant are names, not types
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        let types = words.filter(|word| word.starts_with(char::is_uppercase) && word.chars().any(char::is_lowercase));
        for word in types.chain(line.contains(" Value").then_some("Value")) {
            let is_variant = line.contains(&format!("::{word}"));
            let known = exports.contains_key(word) || KNOWN.contains(&word) || is_variant;
            if !known {
                unknown.insert(format!("{word}: {line}"));
            }
        }
        for foreign in ["serde_json", "qapi", "clap", "indicatif", "JoinError", "JoinHandle", "Instant", "watch::"] {
            assert!(!line.contains(foreign), "{foreign} is another crate's, or tokio's own affair: {line}");
        }
    }
    assert!(unknown.is_empty(), "no public types, and of none of the crates that may be: {unknown:#?}");
}
