//! One function per check, each over facts gathered once: a file for what each is about.
//!
//! Pure. A finding names what it is about, why it matters and what to do. Some may be forced, on the user's word.

mod capabilities;
pub mod contents;
mod cpu;
mod devices;
mod disks;
mod images;
mod machine;
mod network;
mod sides;

pub(crate) use network::listen;

use super::facts::{Facts, ports::Port};
use crate::{
    codes::Setting,
    endpoint::Address,
    memory::tuning::MigrationTuning,
    storage::model::{
        bitmaps::BitmapPlan,
        layout::{Disk, DiskPair, PairingProblem, StorageMode},
    },
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

pub use crate::codes::{FindingCode, Severity};

/// Something a check found. Its texts name settings by their marks: see [`crate::codes::worded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A stable word for programs.
    pub code: FindingCode,
    /// How grave it is.
    pub severity: Severity,
    /// What it is about: a side, a disk, an address, a setting.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl Finding {
    /// A finding as grave as its code is, with the code's remedy.
    pub(crate) fn new(code: FindingCode, subject: &str, message: impl Into<String>) -> Self {
        let (severity, remedy) = (code.severity(), code.remedy().to_owned());
        Self { code, severity, subject: subject.to_owned(), message: message.into(), remedy }
    }

    /// The finding with a remedy that says more than its code's.
    pub(crate) fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..self }
    }

    /// The finding where it forbids nothing.
    pub(crate) fn into_warning(self) -> Self {
        debug_assert!(self.code.severities().contains(&Severity::Warning), "{}", self.code);
        Self { severity: Severity::Warning, ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)?;
        match self.remedy.as_str() {
            "" => Ok(()),
            remedy => write!(f, " ({remedy})"),
        }
    }
}

/// Everything the checks look at.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The source.
    pub source: &'a Facts,
    /// The destination.
    pub destination: &'a Facts,
    /// The disks that would move.
    pub pairs: &'a [DiskPair],
    /// What pairing them met.
    pub problems: &'a [PairingProblem],
    /// Disks that both sides have open, which are left alone.
    pub shared: &'a [String],
    /// Writable disks that the user's choice leaves behind without saying so.
    pub left_out: &'a [String],
    /// Disks that are only read, each with what the destination has in its place.
    pub standing: &'a [(&'a Disk, Option<&'a Disk>)],
    /// Disks that are said to be shared, likewise.
    pub unshared: &'a [(&'a Disk, Option<&'a Disk>)],
    /// The destination's disks that nothing goes to.
    pub spare: &'a [&'a Disk],
    /// Bitmaps that do not arrive.
    pub bitmaps: &'a BitmapPlan,
    /// What is wanted of QEMU's migration.
    pub tuning: &'a MigrationTuning,
    /// How storage gets there.
    pub storage: StorageMode,
    /// Room is needed only for what is copied now.
    pub overcommit: bool,
    /// What an earlier try left is removed first.
    pub clean: bool,
    /// The listening addresses, with the setting of each; `None` where none could be chosen.
    pub addresses: &'a [(Setting, Option<Address>)],
    /// The ports among them, and what a connection to each came to.
    pub ports: &'a [(Setting, Address, Port)],
    /// The user allows plain text on the network.
    pub allow_plaintext: bool,
}

/// Runs every check over what both sides said. See [`weigh`].
pub fn run(subject: &Subject<'_>) -> Vec<Finding> {
    let Subject { source, destination, .. } = *subject;
    let mut findings = sides::run(source, destination, subject.clean);
    findings.extend(machine::run(source, destination));
    findings.extend(cpu::run(source, destination));
    findings.extend(devices::run(source, destination));
    findings.extend(disks::run(subject));
    findings.extend(images::run(subject));
    findings.extend(network::run(subject));
    findings.extend(capabilities::run(subject));
    findings
}

/// Applies the user's word on what may be forced, and puts blockers first.
pub fn weigh(findings: Vec<Finding>, force: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = findings.into_iter().map(|finding| forced(finding, force)).collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// A blocker that is forced becomes a warning; one that could be forced says how.
fn forced(mut finding: Finding, force: &BTreeSet<String>) -> Finding {
    let code = finding.code.as_str();
    if finding.severity == Severity::Blocker && finding.code.is_forcible() {
        if force.contains(code) {
            finding.severity = Severity::Warning;
            finding.message = format!("forced although {}", finding.message);
            finding.remedy.clear();
        } else {
            finding.remedy = format!("{}; or go on all the same with {}", finding.remedy, Setting::Force.set_to(code));
        }
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_forced_is() {
        let force: BTreeSet<String> = ["machine-type", "ram-size"].map(str::to_owned).into();
        let forcible = forced(Finding::new(FindingCode::MachineType, "b", "it differs"), &force);
        assert_eq!((forcible.severity, forcible.message.as_str()), (Severity::Warning, "forced although it differs"));
        assert_eq!(forcible.remedy, "");
        let never = Finding::new(FindingCode::RamSize, "b", "it differs");
        assert_eq!(forced(never.clone(), &force), never);
    }

    #[test]
    fn what_could_be_forced_says_how() {
        let finding = forced(Finding::new(FindingCode::QemuOlder, "b", "it is"), &BTreeSet::new());
        assert_eq!(finding.severity, Severity::Blocker);
        assert!(finding.remedy.contains("`force: qemu-older`"), "{finding}");
        let note = Finding { severity: Severity::Note, ..Finding::new(FindingCode::QemuOlder, "b", "so it is") };
        assert_eq!(forced(note.clone(), &BTreeSet::new()), note);
    }
}
