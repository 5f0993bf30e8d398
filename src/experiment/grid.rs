//! The trials of a sweep: every combination of the factors' values, as often as it is to be repeated, in an order
//! that spreads what changes with time over all of them.
//!
//! Pure. Owns the reading of a spec's text, and the errors that name the line, the field and the remedy.

use super::{
    limits,
    spec::{SweepFactor, SweepLink, SweepSpec, TrialOrder},
    spec_error::{SpecError, wrong},
};
use serde::Deserialize;
use std::fmt;

/// More would be a mistake: nobody waits for them.
const TRIALS_MAX: usize = 100_000;
/// The same of combinations, each of which holds the spec anew: so many, and so many bytes of specs in all.
const COMBINATIONS_MAX: usize = 4096;
const SPECS_MAX: usize = 16 << 20;
const FACTORS_MAX: usize = 16;
/// No field is deeper.
const DEPTH_MAX: usize = 8;

/// One combination of values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Configuration {
    /// The value of each factor, in the order of the factors, as people read it.
    pub(crate) levels: Vec<String>,
    /// The spec with these values in place.
    pub(crate) setup: SweepSpec,
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.levels.is_empty() { f.write_str("as it stands") } else { f.write_str(&self.levels.join(", ")) }
    }
}

/// One trial: which combination, in which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedTrial {
    /// Counted from 0 in the order of the sweep.
    pub(crate) number: usize,
    /// The repeat that it belongs to, counted from 0.
    pub(crate) block: u32,
    /// Its place among the configurations.
    pub(crate) configuration: usize,
}

/// All trials of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SweepPlan {
    pub(crate) spec: SweepSpec,
    /// The factors' names.
    pub(crate) factors: Vec<String>,
    pub(crate) configurations: Vec<Configuration>,
    pub(crate) trials: Vec<PlannedTrial>,
}

impl SweepPlan {
    /// Reads a spec.
    ///
    /// # Errors
    /// What is wrong with it, in one sentence with the line, the field and the remedy.
    pub(crate) fn read(text: &str) -> Result<Self, SpecError> {
        let spec: SweepSpec = toml::from_str(text).map_err(|error| unreadable(&error))?;
        let mut table: toml::Table = text.parse().map_err(|error| unreadable(&error))?;
        table.remove("factor");
        limits::check(&spec).map_err(|wrong| wrong.in_line_of(text))?;
        if spec.factors.len() > FACTORS_MAX {
            return Err(wrong("factor", format!("there {} times", spec.factors.len()), "write at most 16 factors"));
        }
        let factors: Vec<String> = spec.factors.iter().map(SweepFactor::title).collect();
        if let Some(twice) =
            factors.iter().enumerate().find_map(|(at, name)| factors[..at].contains(name).then_some(name))
        {
            return Err(wrong("factor", twice, "two factors have this name: write another `name` for one of them"));
        }
        let configurations = combinations(&table, &spec.factors, text.len())?;
        let count = configurations.len().saturating_mul(spec.repeats as usize);
        if count > TRIALS_MAX {
            let expected = format!("that makes {count} trials, of at most {TRIALS_MAX}: leave out values or repeats");
            return Err(wrong("factor", configurations.len(), &expected));
        }
        let trials = order(configurations.len(), &spec);
        Ok(Self { spec, factors, configurations, trials })
    }

    /// The figures by which its combinations are compared: of the blackout, and of the time in all. Where other
    /// programs move the guest as well, these are measured the same way for all of them.
    pub(crate) fn compared(&self) -> (&'static str, &'static str) {
        match self.configurations.iter().any(|configuration| configuration.setup.migrator.is_some()) {
            true => ("blackout.events", "total.with-start"),
            false => ("blackout", "total"),
        }
    }

    /// The links of its trials, each once.
    pub(crate) fn links(&self) -> Vec<&SweepLink> {
        let mut links = Vec::new();
        for Configuration { setup, .. } in &self.configurations {
            if !links.contains(&&setup.link) {
                links.push(&setup.link);
            }
        }
        links
    }
}

fn unreadable(error: &toml::de::Error) -> SpecError {
    SpecError::Unreadable(quoted(&error.to_string()))
}

/// A text of TOML's reader. Names of fields in backquotes would read as settings of a migration, and be told as flags.
fn quoted(text: &str) -> String {
    text.trim_end().replace('`', "\"")
}

/// Fields and the values that they are to have.
type FieldValues<'a> = Vec<(&'a str, &'a toml::Value)>;

impl SweepFactor {
    fn title(&self) -> String {
        self.name.clone().or_else(|| self.field.clone()).unwrap_or_else(|| "variant".into())
    }

    /// The label and the fields of one of its values.
    fn level<'a>(&'a self, value: &'a toml::Value) -> Result<(String, FieldValues<'a>), SpecError> {
        if let Some(field) = &self.field {
            return Ok((label(value), vec![(field, value)]));
        }
        let table = value.as_table().ok_or_else(|| {
            wrong(
                "factor.values",
                value,
                "a factor without `field` has tables: { label = \"...\", \"migrate.downtime\" = \"50ms\" }",
            )
        })?;
        let named = table.get("label").and_then(toml::Value::as_str);
        let named = named.ok_or_else(|| wrong("factor.values", value, "write a `label` into each of these tables"))?;
        Ok((
            named.to_owned(),
            table.iter().map(|(key, value)| (key.as_str(), value)).filter(|(key, _)| *key != "label").collect(),
        ))
    }
}

/// A value as people read it.
pub(super) fn label(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The combinations of the factors' values, over a spec of this length.
fn combinations(base: &toml::Table, factors: &[SweepFactor], length: usize) -> Result<Vec<Configuration>, SpecError> {
    let most = (SPECS_MAX / length.max(1)).clamp(1, COMBINATIONS_MAX);
    let mut tables = vec![(Vec::new(), base.clone())];
    for factor in factors {
        let title = factor.title();
        if factor.values.is_empty() {
            return Err(wrong(&format!("factor {title}"), "without values", "write values = [...] with at least one"));
        }
        if tables.len().saturating_mul(factor.values.len()) > most {
            let expected =
                format!("more than {most} combinations are too many for a spec of {length} bytes: leave out values");
            return Err(wrong(&format!("factor {title}"), format!("of {} values", factor.values.len()), &expected));
        }
        let levels = factor.values.iter().map(|value| factor.level(value)).collect::<Result<Vec<_>, _>>()?;
        if let Some((twice, _)) = levels
            .iter()
            .enumerate()
            .find_map(|(at, level)| levels[..at].iter().any(|other| other.0 == level.0).then_some(level))
        {
            return Err(wrong(&format!("factor {title}"), twice, "it has this value twice: raise `repeats` instead"));
        }
        let mut grown = Vec::with_capacity(tables.len() * levels.len());
        for (labels, table) in &tables {
            for (label, fields) in &levels {
                let mut table = table.clone();
                for (field, value) in fields {
                    if field.split('.').count() > DEPTH_MAX {
                        return Err(wrong(&format!("factor {title}"), "too deep", "write the name of a field"));
                    }
                    put(&mut table, field, value)?;
                }
                grown.push((labels.iter().chain([label]).cloned().collect(), table));
            }
        }
        tables = grown;
    }
    tables.into_iter().map(|(levels, table)| configuration(levels, table, factors)).collect()
}

fn configuration(levels: Vec<String>, table: toml::Table, factors: &[SweepFactor]) -> Result<Configuration, SpecError> {
    let titles: Vec<String> =
        factors.iter().zip(&levels).map(|(factor, level)| format!("{} = {level}", factor.title())).collect();
    let at = if titles.is_empty() { "the spec".into() } else { titles.join(", ") };
    let setup = SweepSpec::deserialize(table)
        .map_err(|error| wrong(&format!("with {at}, the spec"), "not right", &quoted(error.message())))?;
    limits::check(&setup).map_err(|error| match error {
        SpecError::Value { field, value, expected, .. } => wrong(&format!("with {at}, {field}"), value, &expected),
        other => other,
    })?;
    Ok(Configuration { levels, setup })
}

/// Puts a value at the place of a field.
fn put(table: &mut toml::Table, field: &str, value: &toml::Value) -> Result<(), SpecError> {
    let Some((first, rest)) = field.split_once('.') else {
        table.insert(field.to_owned(), value.clone());
        return Ok(());
    };
    let inner = table.entry(first.to_owned()).or_insert_with(|| toml::Table::new().into());
    let inner = inner.as_table_mut().ok_or_else(|| wrong("factor.field", field, &format!("{first} is no table")))?;
    put(inner, rest, value)
}

fn order(configurations: usize, spec: &SweepSpec) -> Vec<PlannedTrial> {
    let mut random = fastrand::Rng::with_seed(spec.seed);
    let mut trials = Vec::with_capacity(configurations * spec.repeats as usize);
    for block in 0..spec.repeats {
        let mut places: Vec<usize> = (0..configurations).collect();
        match spec.order {
            TrialOrder::Interleaved => places.rotate_left(block as usize % configurations.max(1)),
            TrialOrder::Random => random.shuffle(&mut places),
        }
        trials.extend(places.into_iter().map(|configuration| PlannedTrial { number: 0, block, configuration }));
    }
    (0..).zip(&mut trials).for_each(|(number, trial)| trial.number = number);
    trials
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::read_spec;
    use proptest::prelude::*;

    const TWO: &str = "repeats = 2\n[workload]\nwrites = 7\n[[factor]]\nfield = \"migrate.downtime\"\nvalues = [\"20ms\", \"300ms\"]\n\
                       [[factor]]\nname = \"load\"\nvalues = [{ label = \"idle\", \"workload.dirty\" = \"0\" }, { label = \"busy\", \
                       \"workload.dirty\" = \"80MiB/s\", \"workload.pattern\" = \"random\" }]\n";

    #[test]
    fn every_combination_is_tried_in_every_block_and_begins_one() {
        let plan = SweepPlan::read(TWO).expect("the spec is right");
        assert_eq!(plan.factors, ["migrate.downtime", "load"]);
        let named: Vec<String> = plan.configurations.iter().map(ToString::to_string).collect();
        assert_eq!(named, ["20ms, idle", "20ms, busy", "300ms, idle", "300ms, busy"]);
        let busy = &plan.configurations[3].setup;
        assert_eq!(
            (busy.workload.dirty.as_str(), busy.workload.pattern.as_str(), busy.workload.writes),
            ("80MiB/s", "random", 7)
        );
        assert_eq!(busy.migrate["downtime"].as_str(), Some("300ms"));
        let order: Vec<_> = plan.trials.iter().map(|trial| (trial.number, trial.block, trial.configuration)).collect();
        assert_eq!(order, [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 1, 1), (5, 1, 2), (6, 1, 3), (7, 1, 0)]);
    }

    #[test]
    fn a_random_order_is_that_of_its_seed() {
        let read = |seed: u64| {
            let plan =
                SweepPlan::read(&format!("order = \"random\"\nseed = {seed}\n{TWO}")).expect("the spec is right");
            plan.trials.iter().map(|trial| trial.configuration).collect::<Vec<_>>()
        };
        assert_eq!(read(7), read(7));
        assert!((1..20).any(|seed| read(seed) != read(7)), "the seed counts");
        for block in read(7).chunks(4) {
            let mut all = block.to_vec();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3], "every block has every combination");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_field_and_remedy() {
        let cases: &[(&str, &[&str])] = &[
            ("name = ", &["line 1"]),
            ("repeets = 3", &["line 1", "unknown field \"repeets\"", "\"repeats\""]),
            ("\n[workload]\nmemory = 5", &["line 3"]),
            ("\nrepeats = 0", &["line 2: repeats is 0", "at least 1"]),
            ("[workload]\n\npattern = \"zigzag\"", &["line 3: workload.pattern is zigzag", "sequential or random"]),
            ("[workload]\ndirty = \"80\"", &["line 2: workload.dirty is 80", "80MiB/s"]),
            ("[workload]\nmemory = \"4GiB\"", &["line 2: workload.memory is 4.0 GiB", "machine.memory"]),
            ("[machine]\naccelerator = \"hax\"", &["line 2: machine.accelerator is hax", "kvm, tcg or auto"]),
            ("[disks]\ncount = 9", &["line 2: disks.count is 9", "at most 8"]),
            (
                "[machine]\ncommand = [\"{qemu}\", \"{disk0}\"]\n[disks]\ncount = 2\nsealed = true",
                &["line 5: disks.sealed is true", "does not open {disk1}", "leave this out"],
            ),
            ("[workload]\nblock = \"1000\"", &["line 2: workload.block", "512"]),
            ("[link]\nrate = \"1kbit/s\"", &["line 2: link.rate is 125 B/s", "1Mbit/s", "100Gbit/s"]),
            ("[link]\nrate = \"fast\"", &["line 2", "fast"]),
            ("[link]\n\ndelay = \"11s\"", &["line 3: link.delay is 11s", "at most \"10s\""]),
            ("[link]\nloss = \"0.1\"", &["line 2: link.loss is 0.1", "\"0.1%\""]),
            ("[link]\nspeed = 1", &["line 2", "unknown field \"speed\"", "\"rate\""]),
            (
                "[migrate]\nnbd-address = \"tcp:h:1\"\n[link]\nrate = \"1Gbit/s\"",
                &["line 2: migrate.nbd-address", "`link`", "leave this out"],
            ),
            (
                "[link]\nunshaped = true\nrate = \"1Gbit/s\"",
                &["line 2: link.unshaped is true", "leave them out, or this"],
            ),
            ("[migrator]\ncommand = []", &["line 2: migrator.command is empty", "write a program"]),
            ("[migrator]\nstarts-destination = true", &["line 1", "missing field \"command\""]),
            ("[migrator]\ncommand = [\"x\", \"{qmp}\"]", &["line 2: migrator.command is {qmp}", "{source-qmp}"]),
            (
                "[migrator]\ncommand = [\"x\"]\nstarts-destination = true",
                &["line 3: migrator.starts-destination is true", "write machine.command"],
            ),
            ("[[factor]]\nfield = \"link.loss\"\nvalues = [\"60%\"]", &["with link.loss = 60%", "50%"]),
            ("[policy]\nthrotle-max = 3", &["policy", "throtle-max"]),
            ("[migrate]\nsource = \"/x\"", &["migrate.source", "the sweep itself"]),
            ("[[factor]]\nfield = \"migrate.downtime\"\nvalues = []", &["migrate.downtime", "at least one"]),
            ("[[factor]]\nfield = \"repeats.x\"\nvalues = [1]\n[x]", &["unknown field"]),
            ("repeats = 3\n[[factor]]\nfield = \"repeats.x\"\nvalues = [1]", &["repeats is no table"]),
            ("[[factor]]\nfield = \"workload.dirt\"\nvalues = [1]", &["workload.dirt = 1", "unknown field \"dirt\""]),
            ("[[factor]]\nfield = \"workload.dirty\"\nvalues = [\"0\", \"0\"]", &["twice", "repeats"]),
            ("[[factor]]\nfield = \"workload.dirty\"\nvalues = [\"0\", \"3\"]", &["workload.dirty = 3", "80MiB/s"]),
            ("[[factor]]\nvalues = [3]", &["without `field`", "label"]),
            ("[[factor]]\nvalues = [{ x = 3 }]", &["`label`"]),
        ];
        for (text, words) in cases {
            let error = SweepPlan::read(text).expect_err(text).to_string();
            for word in *words {
                assert!(error.contains(word), "{text:?} gives {error:?}, without {word:?}");
            }
        }
    }

    /// Lines of specs, some of which are wrong wherever they stand.
    const LINES: [&str; 26] = [
        "repeats = 2",
        "order = \"random\"",
        "limit = \"999999999y\"",
        "[machine]",
        "memory = \"16EiB\"",
        "command = [\"{qemu}\", \"{{\", \"{disk9}\", \"}\"]",
        "[disks]",
        "size = \"8388607TiB\"",
        "filled = \"0\"",
        "[workload]",
        "dirty = \"max\"",
        "memory = \"0\"",
        "[link]",
        "unshaped = true",
        "rate = \"1Gbit/s\"",
        "delay = \"1ns\"",
        "loss = \"1%\"",
        "[migrator]",
        "[migrate]",
        "multifd = 4",
        "[policy]",
        "[[factor]]",
        "field = \"link.rate\"",
        "name = \"a\"",
        "values = [\"1Mbit/s\", \"2Mbit/s\"]",
        "values = [{ label = \"a\", \"disks.count\" = 8 }, { label = \"b\", \"migrate.x\" = [] }]",
    ];

    proptest! {
        #[test]
        fn any_spec_is_read_or_refused_with_words(
            lines in prop::collection::vec(prop::sample::select(&LINES[..]), 0..10),
            noise in "\\PC{0,8}",
        ) {
            for text in [lines.join("\n"), lines.join("\n") + &noise] {
                match read_spec(&text) {
                    Ok(combinations) => prop_assert!(combinations >= 1),
                    Err(error) => prop_assert!(!error.is_empty()),
                }
            }
        }
    }

    #[test]
    fn a_spec_of_any_size_costs_little() {
        let factor = |name: &str, field: &str, count: u32| {
            let values = Vec::from_iter(0..count);
            format!("[[factor]]\nname = \"{name}\"\nfield = \"{field}\"\nvalues = {values:?}\n")
        };
        let wide = factor("a", "seed", 65) + &factor("b", "workload.writes", 65);
        let long = format!("name = \"{}\"\n{}", "x".repeat(6 << 20), factor("a", "seed", 3));
        let cases = [
            (factor("a", &format!("migrate{}", ".a".repeat(100_000)), 1), "factor a is too deep: write the name"),
            (wide, "factor b is of 65 values: more than 4096 combinations"),
            (long, "factor a is of 3 values: more than 2 combinations"),
            ("[[factor]]\nvalues = []\n".repeat(17), "factor is there 17 times: write at most 16"),
        ];
        for (text, words) in cases {
            let error = SweepPlan::read(&text).expect_err(words).to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn programs_that_move_the_guest_are_compared_by_a_factor() {
        let text = "[[factor]]\nname = \"by\"\nvalues = [{ label = \"qferry\" }, { label = \"script\", \
                    \"migrator.command\" = [\"script\", \"{source-qmp}\"] }, { label = \"daemon\", \"machine.command\" = [\"d\"], \
                    \"migrator.command\" = [\"d\"], \"migrator.starts-destination\" = true }]\n";
        let plan = SweepPlan::read(text).expect("the spec is right");
        let migrators: Vec<_> = plan.configurations.iter().map(|one| one.setup.migrator.as_ref()).collect();
        let starts = migrators.iter().map(|one| one.map(|migrator| migrator.starts_destination));
        assert_eq!(starts.collect::<Vec<_>>(), [None, Some(false), Some(true)]);
        assert_eq!(plan.compared(), ("blackout.events", "total.with-start"));
        assert_eq!(SweepPlan::read(TWO).expect("the spec is right").compared(), ("blackout", "total"));
    }

    #[test]
    fn every_link_is_told_once() {
        let text = "[[factor]]\nfield = \"link.rate\"\nvalues = [\"1Gbit/s\", \"100Mbit/s\"]\n[[factor]]\n\
                    field = \"workload.dirty\"\nvalues = [\"0\", \"max\"]\n";
        let links = |text: &str| {
            let plan = SweepPlan::read(text).expect("the spec is right");
            plan.links().into_iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(links(text), ["1 Gbit/s", "100 Mbit/s"]);
        assert_eq!(links(TWO), ["unix sockets"]);
    }

    #[test]
    fn a_spec_without_factors_is_one_combination() {
        let plan = SweepPlan::read("repeats = 3").expect("an almost empty spec is right");
        assert_eq!((plan.configurations.len(), plan.trials.len()), (1, 3));
        assert_eq!(plan.configurations[0].to_string(), "as it stands");
    }
}
