//! What the values of a sweep's spec must be like.
//!
//! Pure.

use super::{
    link::{self, LinkEnd},
    migrator::{MigrationEnds, migrator_words},
    spec::{SweepDisks, SweepLink, SweepMachine, SweepMigrator, SweepSpec, SweepWorkload},
    spec_error::{SpecError, wrong},
};
use crate::{
    convergence::Policy,
    quantity::{Bytes, Rate},
};
use std::time::Duration;

/// The size of a page, by which memory is dirtied.
pub(super) const PAGE: u64 = 4096;
/// What a machine has beside the memory that the guest dirties: the guest itself, its counts, and the firmware's.
const GUEST_ITSELF: u64 = 32 << 20;
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// The rates of a link, in bytes: a tenth of the slowest Ethernet, and a fast one.
const SLOWEST: u64 = 1_000_000 / 8;
const FASTEST: u64 = 100_000_000_000 / 8;
/// Options that the sweep itself gives to `qferry migrate`.
const OWN_OPTIONS: [&str; 7] = ["source", "destination", "json", "plan", "tui", "transcript", "no-transcript"];

/// Checks the values of a spec.
///
/// # Errors
/// The first that cannot be used.
pub(super) fn check(spec: &SweepSpec) -> Result<(), SpecError> {
    require(spec.repeats >= 1, "repeats", spec.repeats, "write at least 1")?;
    let times = [("warm-up", spec.warm_up), ("before", spec.before), ("after", spec.after), ("limit", spec.limit)];
    for (field, time) in times {
        require(time <= LONGEST, field, humantime::format_duration(time), "write at most 7 days")?;
    }
    require(!spec.limit.is_zero(), "limit", "0", "write the longest that a migration may take, such as \"2m\"")?;
    check_machine(&spec.machine)?;
    check_disks(&spec.disks, &spec.machine)?;
    check_workload(&spec.workload, &spec.machine, &spec.disks)?;
    check_link(&spec.link)?;
    if let Some(migrator) = &spec.migrator {
        check_migrator(migrator, &spec.machine)?;
    }
    for (option, value) in &spec.migrate {
        let field = format!("migrate.{option}");
        let own = OWN_OPTIONS.contains(&option.as_str());
        require(!own, &field, value, "the sweep itself gives this option: leave it out")?;
        let is_address = LinkEnd::First.listens().iter().any(|(address, _)| address == option);
        let of_link = is_address && spec.link.is_asked_for();
        require(!of_link, &field, value, "the table `link` gives the addresses: leave this out, or that table")?;
        let plain = value.is_str() || value.is_integer() || value.is_float() || value.is_bool();
        require(plain, &field, value, "write the option's value, or true for one that has none")?;
    }
    policy(spec).map(|_| ())
}

/// The policy of a spec: that which `migrate.policy` names, with the fields of the table `policy` in place of its own.
///
/// # Errors
/// There is no such policy, or a field is not right.
pub(super) fn policy(spec: &SweepSpec) -> Result<Option<toml::Table>, SpecError> {
    if spec.policy.is_empty() {
        return Ok(None);
    }
    let name = spec.migrate.get("policy").and_then(toml::Value::as_str).unwrap_or("converge");
    let base = Policy::built_in(name).ok_or_else(|| {
        wrong("migrate.policy", name, "with the table `policy`, write the name of a policy that is built in")
    })?;
    let mut table: toml::Table = base.parse().unwrap_or_default();
    table.extend(spec.policy.clone());
    let text = toml::to_string(&table).map_err(|error| wrong("policy", "not right", &error.to_string()))?;
    Policy::from_toml(&text).map_err(|error| wrong("policy", "not right", &error.to_string()))?;
    Ok(Some(table))
}

fn require(holds: bool, field: &str, value: impl std::fmt::Display, expected: &str) -> Result<(), SpecError> {
    if holds { Ok(()) } else { Err(wrong(field, value, expected)) }
}

fn check_machine(machine: &SweepMachine) -> Result<(), SpecError> {
    let SweepMachine { accelerator, cpus, command, incoming, .. } = machine;
    let known = ["auto", "kvm", "tcg"].contains(&accelerator.as_str());
    require(known, "machine.accelerator", accelerator, "write kvm, tcg or auto")?;
    require((1..=288).contains(cpus), "machine.cpus", cpus, "write 1 to 288; the sweep's own guest uses one")?;
    let mebibytes = machine.memory.0 % (1 << 20) == 0 && machine.memory.0 > 0;
    require(mebibytes, "machine.memory", machine.memory, "write whole MiB, such as \"512MiB\"")?;
    let alone = command.is_some() || incoming.is_empty();
    require(
        alone,
        "machine.incoming",
        incoming.join(" "),
        "it means nothing without machine.command: add that, or leave this out",
    )?;
    require(
        command.as_ref().is_none_or(|words| !words.is_empty()),
        "machine.command",
        "empty",
        "write a program and its arguments",
    )
}

fn check_disks(disks: &SweepDisks, machine: &SweepMachine) -> Result<(), SpecError> {
    require(disks.count <= 8, "disks.count", disks.count, "write at most 8")?;
    let whole = disks.size.0 % (1 << 20) == 0 && disks.size.0 > 0;
    require(whole, "disks.size", disks.size, "write whole MiB, such as \"1GiB\"")?;
    require(disks.filled <= disks.size, "disks.filled", disks.filled, "write at most disks.size")?;
    let whole = disks.filled.0 % (1 << 20) == 0;
    require(whole, "disks.filled", disks.filled, "write whole MiB, such as \"64MiB\"")?;
    let words = machine.command.iter().flatten().chain(&machine.arguments);
    let opened = |disk: u32| words.clone().any(|word| word.contains(&format!("{{disk{disk}}}")));
    let missing = (0..disks.count).find(|disk| machine.command.is_some() && disks.sealed && !opened(*disk));
    match missing {
        None => Ok(()),
        Some(disk) => {
            let expected = format!("machine.command does not open {{disk{disk}}}: write it there, or leave this out");
            Err(wrong("disks.sealed", true, &expected))
        }
    }
}

fn check_workload(workload: &SweepWorkload, machine: &SweepMachine, disks: &SweepDisks) -> Result<(), SpecError> {
    let SweepWorkload { memory, pattern, block, span, .. } = workload;
    let whole = memory.0 % (1 << 20) == 0;
    require(whole, "workload.memory", memory, "write whole MiB, such as \"256MiB\"")?;
    let most = machine.memory.0.saturating_sub(GUEST_ITSELF + memory.0 / 512);
    let expected = format!(
        "at most {} fit into machine.memory, {}: write less, or give the machine more",
        Bytes(most & !((1 << 20) - 1)),
        machine.memory
    );
    require(memory.0 <= most, "workload.memory", memory, &expected)?;
    require(
        ["sequential", "random"].contains(&pattern.as_str()),
        "workload.pattern",
        pattern,
        "write sequential or random",
    )?;
    pages_per_second(&workload.dirty)?;
    let sectors = (512..=1 << 20).contains(&block.0) && block.0 % 512 == 0;
    require(sectors, "workload.block", block, "write a multiple of 512 bytes, up to 1 MiB")?;
    require(span.0 % (1 << 20) == 0 && span.0 > 0, "workload.span", span, "write whole MiB, such as \"64MiB\"")?;
    require(*span <= disks.size, "workload.span", span, "write at most disks.size")?;
    let blocks = span.max(&disks.filled).0 / block.0.max(1);
    require(
        blocks <= 1 << 18,
        "workload.block",
        block,
        "that makes more than 262144 blocks a disk: write larger blocks, or a smaller span",
    )
}

fn check_migrator(migrator: &SweepMigrator, machine: &SweepMachine) -> Result<(), SpecError> {
    require(!migrator.command.is_empty(), "migrator.command", "empty", "write a program and its arguments")?;
    require(
        machine.command.is_some() || !migrator.starts_destination,
        "migrator.starts-destination",
        "true",
        "the sweep's own command starts a QEMU on both sides: write machine.command, or leave this out",
    )?;
    migrator_words(migrator, &MigrationEnds::default()).map(|_| ())
}

fn check_link(link: &SweepLink) -> Result<(), SpecError> {
    let is_shaped = SweepLink { unshaped: false, ..link.clone() } != SweepLink::default();
    let expected = "a rate, a delay or loss shapes the link: leave them out, or this";
    require(!(link.unshaped && is_shaped), "link.unshaped", "true", expected)?;
    if let Some(rate) = link.rate {
        let fits = (SLOWEST..=FASTEST).contains(&rate.0);
        let expected = "write \"1Mbit/s\" to \"100Gbit/s\", or leave it out for no limit";
        require(fits, "link.rate", rate, expected)?;
    }
    if let Some(delay) = link.delay {
        require(delay <= LONGEST_DELAY, "link.delay", humantime::format_duration(delay), "write at most \"10s\"")?;
    }
    link.loss.as_deref().map_or(Ok(()), |loss| link::lost(loss).map(|_| ()))
}

/// The pages that are dirtied a second, as the guest reads it.
///
/// # Errors
/// The text is neither a rate nor `0` nor `max`.
pub(super) fn pages_per_second(dirty: &str) -> Result<String, SpecError> {
    match dirty {
        "max" | "0" => Ok(dirty.to_owned()),
        rate => match rate.parse::<Rate>() {
            Ok(rate) => Ok((rate.0 / PAGE).to_string()),
            Err(_) => Err(wrong("workload.dirty", dirty, "write a rate such as \"80MiB/s\", or \"0\", or \"max\"")),
        },
    }
}
