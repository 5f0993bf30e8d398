//! What holds inside a room: no circle of imports, and in `migration/` an order.

use std::collections::{BTreeMap, BTreeSet};

use crate::{modules::Modules, not_yet::only_what_is_listed, room, sources};

type Uses = BTreeMap<String, BTreeSet<String>>;

fn uses() -> Uses {
    let sources = sources();
    Modules::read(sources.iter().map(|source| (source.path.as_str(), source.text.as_str()))).uses()
}

/// The uses between files of one room.
fn within(uses: &Uses, wanted: &str) -> Uses {
    let inside = |file: &&String| file.starts_with(&format!("{wanted}/"));
    let files = uses.iter().filter(|(file, _)| inside(file));
    files.map(|(file, used)| (file.clone(), used.iter().filter(inside).cloned().collect())).collect()
}

/// Everything that a file comes to use, directly or through others.
fn reached<'a>(uses: &'a Uses, from: &'a str) -> BTreeSet<&'a str> {
    let (mut reached, mut ahead) = (BTreeSet::new(), vec![from]);
    while let Some(file) = ahead.pop() {
        let used = uses.get(file).into_iter().flatten().map(String::as_str);
        ahead.extend(used.filter(|file| reached.insert(*file)));
    }
    reached
}

/// The files that use themselves through others.
fn in_a_circle(uses: &Uses) -> Vec<&str> {
    uses.keys().map(String::as_str).filter(|file| reached(uses, file).contains(file)).collect()
}

/// The place of a file of `migration/` in its order: a file uses none that is higher. None where the order says
/// nothing.
fn floor(file: &str) -> Option<usize> {
    Some(match file.strip_prefix("migration/")? {
        "engine.rs" | "recovery.rs" => 4,
        file if file.starts_with("phases/") => 3,
        file if file.starts_with("way_back/") => 2,
        "context.rs" | "pair.rs" | "attempt.rs" => 1,
        "intents.rs" | "guest.rs" => 0,
        _ => return None,
    })
}

/// The uses that go up.
fn upward(uses: &Uses) -> Vec<String> {
    let pairs = uses.iter().flat_map(|(file, used)| used.iter().map(move |used| (file, used)));
    pairs.filter(|(file, used)| floor(file) < floor(used) && floor(file).is_some()).map(said).collect()
}

fn said((file, used): (&String, &String)) -> String {
    format!("{file} uses {used}")
}

#[test]
fn no_imports_go_round_inside_a_room() {
    let uses = uses();
    let rooms: BTreeSet<&str> = uses.keys().map(|file| room(file)).collect();
    let circles = rooms.into_iter().filter(|room| {
        let inside = within(&uses, room);
        let files = in_a_circle(&inside);
        let edges = inside.iter().flat_map(|(file, used)| used.iter().map(move |used| (file, used)));
        let closing = edges.filter(|(file, used)| files.contains(&file.as_str()) && files.contains(&used.as_str()));
        if !files.is_empty() {
            println!("{room}: {:#?}", closing.map(said).collect::<Vec<_>>());
        }
        !files.is_empty()
    });
    only_what_is_listed("circle", circles.map(str::to_owned));
}

#[test]
fn inside_the_migration_the_upper_use_the_lower() {
    let upward = upward(&within(&uses(), "migration"));
    println!("{upward:#?}");
    let file = |said: &String| said.split(' ').next().unwrap_or_default().to_owned();
    only_what_is_listed("order", upward.iter().map(file));
}

fn some(edges: &[(&str, &str)]) -> Uses {
    let mut uses = Uses::new();
    for (file, used) in edges {
        uses.entry((*file).to_owned()).or_default().insert((*used).to_owned());
    }
    uses
}

#[test]
fn the_finder_of_circles_finds_those_of_several_files() {
    let uses = some(&[("a/1", "a/2"), ("a/2", "a/3"), ("a/3", "a/2"), ("a/3", "b/4"), ("b/4", "a/1")]);
    assert_eq!(in_a_circle(&uses), ["a/1", "a/2", "a/3", "b/4"]);
    assert_eq!(in_a_circle(&within(&uses, "a")), ["a/2", "a/3"]);
}

#[test]
fn the_finder_of_upward_uses_knows_the_order() {
    let down = [
        ("migration/engine.rs", "migration/phases/setup.rs"),
        ("migration/recovery.rs", "migration/way_back/judge.rs"),
        ("migration/phases/setup.rs", "migration/phases/mod.rs"),
        ("migration/way_back/judge.rs", "migration/guest.rs"),
        ("migration/pair.rs", "migration/failure.rs"),
        ("migration/failure.rs", "migration/pair.rs"),
    ];
    assert_eq!(upward(&some(&down)), Vec::<String>::new());
    let up = [("migration/guest.rs", "migration/pair.rs"), ("migration/pair.rs", "migration/way_back/judge.rs")];
    assert_eq!(upward(&some(&up)).len(), 2);
    assert_eq!(upward(&some(&[("migration/way_back/fence.rs", "migration/phases/setup.rs")])).len(), 1);
}
