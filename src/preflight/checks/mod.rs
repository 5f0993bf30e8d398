//! The checks: one function each, over facts that were gathered once, in one file for each subject.
//!
//! Pure. A finding names its subject, the reason why it matters and a remedy. Some blockers may be forced by the
//! guest's owner.

mod capabilities;
pub mod contents;
mod counterparts;
mod cpu;
mod device_properties;
mod devices;
mod disk_jobs;
mod disk_places;
mod disk_settings;
mod disks;
mod finding;
mod images;
mod machine;
mod media;
mod network;
mod out_of_band;
mod reopening;
mod sides;
mod subject;
mod virtqueues;

pub(crate) use network::listen;

use crate::codes::Setting;
use std::collections::BTreeSet;

pub use crate::codes::{FindingCode, Severity};
pub use finding::Finding;
pub use subject::{CheckSubject, KnownRun, ListeningAddress};

/// Runs every check over the facts of both sides. [`weigh`] then applies the choices of the guest's owner.
pub fn run(subject: &CheckSubject<'_>) -> Vec<Finding> {
    let CheckSubject { source, destination, .. } = *subject;
    let mut findings = sides::run(source, destination, subject.clean, subject.known_runs);
    findings.extend(out_of_band::run(source, destination));
    findings.extend(machine::run(source, destination));
    findings.extend(cpu::run(source, destination));
    findings.extend(devices::run(source, destination));
    findings.extend(device_properties::run(source, destination));
    findings.extend(virtqueues::run(source, destination));
    findings.extend(disks::run(subject));
    findings.extend(disk_places::run(subject));
    findings.extend(disk_jobs::run(subject));
    findings.extend(disk_settings::run(subject));
    findings.extend(media::run(subject));
    findings.extend(images::run(subject));
    findings.extend(reopening::run(subject));
    findings.extend(network::run(subject));
    findings.extend(capabilities::run(subject));
    findings
}

/// Forces the blockers that the guest's owner chose to force, and puts the remaining blockers first.
pub fn weigh(findings: Vec<Finding>, force: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = findings.into_iter().map(|finding| forced(finding, force)).collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// Turns a blocker that is forced into a warning. The remedy of a blocker that could be forced says how.
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
