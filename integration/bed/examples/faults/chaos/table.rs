//! The results, as lines while it runs and as a table of attacks and outcomes.

use std::collections::BTreeMap;

use super::verdict::Verdict;

const ENDINGS: [&str; 8] = ["moved", "rolled-back", "cancelled", "refused", "stuck", "ended", "undetermined", "wrong"];

/// One line on a migration, and more where something is wrong.
pub(crate) fn tell(seed: u64, verdict: &Verdict, whole: bool) {
    let Verdict { plan, struck, ending, code, recovered, wrong, story, took } = verdict;
    let how = if *recovered { " (recovered)" } else { "" };
    let mark = if wrong.is_empty() { "" } else { "WRONG " };
    println!(
        "{:>4} {mark}{ending} {code}{how}, {} of {} struck, {:.1} s: {plan}",
        plan.number,
        struck.len(),
        plan.attacks().len(),
        took.as_secs_f64()
    );
    for text in wrong {
        println!("     WRONG (--chaos {seed} --only {}): {text}", plan.number);
    }
    if whole || !wrong.is_empty() {
        story.iter().for_each(|line| println!("       {line}"));
    }
}

/// The table in Markdown: how many migrations with each attack ended in each way.
pub(crate) fn table(verdicts: &[Verdict]) -> String {
    let mut rows: BTreeMap<String, BTreeMap<&str, usize>> = BTreeMap::new();
    for verdict in verdicts {
        let mut kinds: Vec<String> = verdict.struck.iter().map(|attack| attack.kind()).collect();
        if kinds.is_empty() {
            kinds.push("none".to_owned());
        }
        kinds.sort();
        kinds.dedup();
        let ending = match verdict.wrong.is_empty() {
            true => ENDINGS.into_iter().find(|ending| *ending == verdict.ending).unwrap_or("wrong"),
            false => "wrong",
        };
        for kind in kinds {
            *rows.entry(kind).or_default().entry(ending).or_default() += 1;
        }
    }
    let mut text = format!("| attack | {} |\n|---|{}\n", ENDINGS.join(" | "), "---|".repeat(ENDINGS.len()));
    for (kind, counts) in rows {
        let cells = ENDINGS.map(|ending| counts.get(ending).map_or(String::new(), ToString::to_string));
        text += &format!("| {kind} | {} |\n", cells.join(" | "));
    }
    text
}

/// The section that is kept in docs/faults.md.
pub(crate) fn section(command: &str, version: &str, seconds: u64, verdicts: &[Verdict]) -> String {
    let wrong = verdicts.iter().filter(|verdict| !verdict.wrong.is_empty()).count();
    format!(
        "{HEADING}\n\n`{command}` made this table with QEMU {version}: {} migrations in {} s, {wrong} of them wrong.\n\n\
         {EXPLAINED}\n\n{}",
        verdicts.len(),
        seconds,
        table(verdicts)
    )
}

/// The heading by which the section is found.
pub(crate) const HEADING: &str = "## Under attack";

const EXPLAINED: &str = "\
A second client sends random legal QMP to both QEMUs, the guest acts on its own machine, and signals and cuts strike \
engine, QEMUs and channels, at random moments; a row counts the migrations in which that attack took place, most of \
them together with others. Judged from outside: by the guest's own record of beats and acknowledged writes, by a \
monitor of its own that asks both QEMUs all the time who runs, by both images offline, and by what the engine said. \
`integration/bed/examples/faults/chaos/rules.rs` says what each attack allows. The tests of \
`integration/live/failures/attacks.rs` carry out twenty-nine fixed ones with every change.\n\n\
Left out: a `cont` to a source that passes the guest on or has completed (docs/handover.md, \"Not guaranteed\"), which \
is kept back in that window and nowhere else; `migrate-continue`, `job-complete` and `blockdev-mirror` by somebody \
else. Wall clocks are those of the programs alone: a library that is preloaded sets them, and the host's stays.";

/// The section that is on a page.
pub(crate) fn kept(page: &str) -> Option<&str> {
    let section = page.get(page.find(HEADING)?..)?;
    let end = section.get(HEADING.len()..)?.find("\n## ").map_or(section.len(), |next| HEADING.len() + next);
    section.get(..end)
}

/// Puts a section into a page, in place of the one that is there.
pub(crate) fn put(page: &str, section: &str) -> String {
    let (before, after) = match (page.find(HEADING), kept(page)) {
        (Some(at), Some(old)) => (&page[..at], &page[at + old.len()..]),
        _ => (page, ""),
    };
    format!("{}\n\n{}\n{after}", before.trim_end(), section.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_put_in_place_of_the_last_one() {
        let page = put("# Page\n\ntext\n", "## Under attack\n\none");
        assert_eq!(page, "# Page\n\ntext\n\n## Under attack\n\none\n");
        assert_eq!(put(&page, "## Under attack\n\ntwo"), "# Page\n\ntext\n\n## Under attack\n\ntwo\n");
        let between = format!("{page}\n## After\n\nmore\n");
        assert_eq!(
            put(&between, "## Under attack\n\ntwo"),
            "# Page\n\ntext\n\n## Under attack\n\ntwo\n\n## After\n\nmore\n"
        );
    }
}
