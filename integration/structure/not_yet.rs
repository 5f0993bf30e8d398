//! The exceptions from the rules: the parts of the tree that do not fulfil them yet. Each line goes with the change
//! that makes it unnecessary: a line that is no longer needed fails its test, too.

use std::collections::BTreeSet;

/// A rule, and the place that still breaks it.
const NOT_YET: &[(&str, &str)] = &[];

/// Holds that a rule is broken by what is listed above, and by nothing else.
#[track_caller]
pub(crate) fn only_what_is_listed(rule: &str, broken: impl IntoIterator<Item = String>) {
    let (new, mended) = compare(NOT_YET, rule, &broken.into_iter().collect());
    assert!(new.is_empty() && mended.is_empty(), "{rule}: new: {new:#?}\n{rule}: take out of NOT_YET {mended:#?}");
}

/// What breaks a rule and is not listed, and what is listed and no longer breaks it.
fn compare(list: &[(&str, &str)], rule: &str, broken: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
    let listed: BTreeSet<String> =
        list.iter().filter(|(of, _)| *of == rule).map(|(_, what)| (*what).to_owned()).collect();
    (broken.difference(&listed).cloned().collect(), listed.difference(broken).cloned().collect())
}

#[test]
fn both_what_is_new_and_what_is_mended_is_found() {
    let list = [("a", "listed"), ("a", "mended"), ("b", "new")];
    let broken = ["listed", "new"].map(str::to_owned).into();
    assert_eq!(compare(&list, "a", &broken), (vec!["new".to_owned()], vec!["mended".to_owned()]));
}
