//! The CPU that the guest sees, which is the destination's as soon as it runs there.
//!
//! Pure.

use super::{Finding, Severity, blocker, finding, note};
use crate::preflight::facts::{
    Facts,
    cpu::{self, Cpu, IDENTITY},
};

pub(super) fn run(source: &Facts, destination: &Facts) -> Vec<Finding> {
    match (&source.machine.cpu, &destination.machine.cpu) {
        (Some(here), Some(there)) => compare(here, there, &destination.name),
        // then their number differs, or is none
        _ => Vec::new(),
    }
}

fn compare(here: &Cpu, there: &Cpu, name: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    match (&here.features, &there.features) {
        (Some(_), Some(_)) => {
            findings.extend(model(here, there, name));
            findings.extend(missing(here, there, name));
            findings.extend(extra(here, there, name));
        }
        _ => {
            findings.extend(kind(here, there, name));
            findings.push(note("not-compared", name, "the CPU's features are not known on both sides"));
        }
    }
    findings
}

/// Where no features are told, the type is all there is; elsewhere two types can be one CPU to the guest.
fn kind(here: &Cpu, there: &Cpu, name: &str) -> Option<Finding> {
    let (here, there) = (here.kind.as_ref()?, there.kind.as_ref()?);
    let message = format!("its CPU is a {there}, the source's a {here}");
    (here != there).then(|| blocker("cpu-model", name, message, "start it with the source's -cpu"))
}

fn model(here: &Cpu, there: &Cpu, name: &str) -> Option<Finding> {
    let told = |cpu: &Cpu, property| cpu.identity.get(property).cloned().unwrap_or_else(|| "not known".to_owned());
    let differences: Vec<(&str, String)> = IDENTITY
        .into_iter()
        .filter(|property| here.identity.get(property) != there.identity.get(property))
        .map(|property| (property, format!("{property} {}, not {}", told(there, property), told(here, property))))
        .collect();
    let list: Vec<&str> = differences.iter().map(|(_, text)| text.as_str()).collect();
    let message = format!("its CPU is not the source's: {}", list.join("; "));
    match differences.as_slice() {
        [] => None,
        // a name for people
        [("model-id", _)] => Some(note("cpu-name", name, message)),
        _ => {
            let remedy = "start both with one named -cpu model; host and max are what each host and QEMU makes of them";
            Some(blocker("cpu-model", name, message, remedy))
        }
    }
}

fn missing(here: &Cpu, there: &Cpu, name: &str) -> Option<Finding> {
    let bits = cpu::lacking(here, there);
    let lacks = if there.lacks.is_empty() { &bits } else { &there.lacks };
    let message = format!("its CPU lacks what the source's has: {}", lacks.join(", "));
    let remedy =
        "a program that uses them would crash: start it with the source's -cpu, on a host and a QEMU that have them";
    (!bits.is_empty()).then(|| blocker("cpu-features", name, message, remedy))
}

fn extra(here: &Cpu, there: &Cpu, name: &str) -> Option<Finding> {
    let bits = cpu::lacking(there, here);
    let message = format!("its CPU has what the source's lacks: {}", bits.join(", "));
    let remedy = "the guest meets them at the latest when it boots again, and cannot go back then";
    (!bits.is_empty()).then(|| finding(Severity::Warning, "cpu-features-extra", name, message, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::facts::cpu::Word;

    fn sample() -> Cpu {
        let word = |leaf, subleaf, register: &str| Word { leaf, subleaf, register: register.to_owned() };
        Cpu {
            path: "/machine/unattached/device[0]".to_owned(),
            kind: Some("max-x86_64-cpu".to_owned()),
            identity: IDENTITY.map(|property| (property, "1".to_owned())).into(),
            features: Some([(word(7, Some(0), "EBX"), 0x21), (word(1, None, "EDX"), 0xff)].into()),
            lacks: Vec::new(),
        }
    }

    fn with(change: impl Fn(&mut Cpu)) -> Vec<Finding> {
        let mut there = sample();
        change(&mut there);
        compare(&sample(), &there, "b")
    }

    fn codes(findings: &[Finding]) -> Vec<(&'static str, Severity)> {
        findings.iter().map(|finding| (finding.code, finding.severity)).collect()
    }

    fn bits(cpu: &mut Cpu) -> &mut u64 {
        cpu.features.as_mut().expect("words").values_mut().last().expect("a word")
    }

    #[test]
    fn equal_cpus_and_two_names_of_one_are_passed_over() {
        assert_eq!(with(|_| ()), []);
        assert_eq!(with(|there| there.kind = Some("max-v1-x86_64-cpu".to_owned())), []);
    }

    #[test]
    fn what_the_destination_lacks_is_refused_by_name() {
        let found = with(|there| *bits(there) = 0x1);
        assert_eq!(codes(&found), [("cpu-features", Severity::Blocker)]);
        assert!(found[0].message.ends_with(": CPUID 7.0 EBX bit 5"), "{}", found[0]);
        let found = with(|there| {
            *bits(there) = 0x1;
            there.lacks = vec!["avx2".to_owned()];
        });
        assert!(found[0].message.ends_with(": avx2"), "{}", found[0]);
    }

    #[test]
    fn what_it_has_more_is_told() {
        let found = with(|there| *bits(there) = 0x61);
        assert_eq!(codes(&found), [("cpu-features-extra", Severity::Warning)]);
        assert!(found[0].message.ends_with(": CPUID 7.0 EBX bit 6"), "{}", found[0]);
    }

    #[test]
    fn another_model_is_refused_and_another_name_told() {
        for property in ["vendor", "family", "model", "stepping"] {
            let found = with(|there| drop(there.identity.insert(property, "2".to_owned())));
            assert_eq!(codes(&found), [("cpu-model", Severity::Blocker)], "{property}");
            assert!(found[0].message.contains(&format!("{property} 2, not 1")), "{}", found[0]);
        }
        let found = with(|there| drop(there.identity.insert("model-id", "2".to_owned())));
        assert_eq!(codes(&found), [("cpu-name", Severity::Note)]);
    }

    #[test]
    fn without_feature_words_the_type_is_compared() {
        let (mut here, mut there) = (sample(), sample());
        (here.features, there.features) = (None, None);
        assert_eq!(codes(&compare(&here, &there, "b")), [("not-compared", Severity::Note)]);
        there.kind = Some("cortex-a57-arm-cpu".to_owned());
        let found = compare(&here, &there, "b");
        assert_eq!(codes(&found), [("cpu-model", Severity::Blocker), ("not-compared", Severity::Note)]);
        assert!(found[0].message.contains("a cortex-a57-arm-cpu, the source's a max-x86_64-cpu"), "{}", found[0]);
    }
}
