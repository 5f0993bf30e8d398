//! The CPU that the guest sees, which is the destination's as soon as it runs there.
//!
//! Pure.

use super::finding::Finding;
use crate::{
    codes::FindingCode,
    preflight::facts::{
        SideFacts,
        cpu::{self, CpuFacts, IDENTITY},
    },
};

pub(super) fn run(source: &SideFacts, destination: &SideFacts) -> Vec<Finding> {
    match (&source.machine.cpu, &destination.machine.cpu) {
        (Some(cpu), Some(other)) => compare(cpu, other, &destination.name),
        // machines of which one has no CPU differ in the number of CPUs, which has a check of its own
        _ => Vec::new(),
    }
}

fn compare(source: &CpuFacts, destination: &CpuFacts, name: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    match (&source.features, &destination.features) {
        (Some(_), Some(_)) => {
            findings.extend(model(source, destination, name));
            findings.extend(missing(source, destination, name));
            findings.extend(extra(source, destination, name));
        }
        _ => {
            findings.extend(kind(source, destination, name));
            let message = "the CPU's features are not known on both sides";
            findings.push(Finding::new(FindingCode::NotCompared, name, message));
        }
    }
    findings
}

/// Compares the types of the CPUs where their features are not known. Where features are known the types do not
/// count: two types can be the same CPU to the guest.
fn kind(source: &CpuFacts, destination: &CpuFacts, name: &str) -> Option<Finding> {
    let (source, destination) = (source.kind.as_ref()?, destination.kind.as_ref()?);
    let message = format!("its CPU is a {destination}, the source's a {source}");
    (source != destination).then(|| {
        Finding::new(FindingCode::CpuModel, name, message).with_remedy("start the destination with the source's -cpu")
    })
}

fn model(source: &CpuFacts, destination: &CpuFacts, name: &str) -> Option<Finding> {
    let told = |cpu: &CpuFacts, property| cpu.identity.get(property).cloned().unwrap_or_else(|| "not known".to_owned());
    let differences: Vec<(&str, String)> = IDENTITY
        .into_iter()
        .filter(|property| source.identity.get(property) != destination.identity.get(property))
        .map(|property| {
            (property, format!("{property} {}, not {}", told(destination, property), told(source, property)))
        })
        .collect();
    let list: Vec<&str> = differences.iter().map(|(_, text)| text.as_str()).collect();
    let message = format!("its CPU is not the source's: {}", list.join("; "));
    let code = match differences.as_slice() {
        [] => return None,
        [("model-id", _)] => FindingCode::CpuName,
        _ => FindingCode::CpuModel,
    };
    Some(Finding::new(code, name, message))
}

fn missing(source: &CpuFacts, destination: &CpuFacts, name: &str) -> Option<Finding> {
    let bits = cpu::lacking(source, destination);
    let lacks = if destination.lacks.is_empty() { &bits } else { &destination.lacks };
    let message = format!("its CPU lacks features of the source's: {}", lacks.join(", "));
    (!bits.is_empty()).then(|| Finding::new(FindingCode::CpuFeatures, name, message))
}

fn extra(source: &CpuFacts, destination: &CpuFacts, name: &str) -> Option<Finding> {
    let bits = cpu::lacking(destination, source);
    let message = format!("its CPU has features that the source's lacks: {}", bits.join(", "));
    (!bits.is_empty()).then(|| Finding::new(FindingCode::CpuFeaturesExtra, name, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::{checks::Severity, facts::cpu::CpuidRegister};

    fn sample() -> CpuFacts {
        let word = |leaf, subleaf, register: &str| CpuidRegister { leaf, subleaf, register: register.to_owned() };
        CpuFacts {
            path: "/machine/unattached/device[0]".to_owned(),
            kind: Some("max-x86_64-cpu".to_owned()),
            identity: IDENTITY.map(|property| (property, "1".to_owned())).into(),
            features: Some([(word(7, Some(0), "EBX"), 0x21), (word(1, None, "EDX"), 0xff)].into()),
            lacks: Vec::new(),
        }
    }

    fn with(change: impl Fn(&mut CpuFacts)) -> Vec<Finding> {
        let mut destination = sample();
        change(&mut destination);
        compare(&sample(), &destination, "b")
    }

    fn codes(findings: &[Finding]) -> Vec<(&str, Severity)> {
        findings.iter().map(|finding| (finding.code.as_str(), finding.severity)).collect()
    }

    fn bits(cpu: &mut CpuFacts) -> &mut u64 {
        cpu.features.as_mut().expect("words").values_mut().last().expect("a word")
    }

    #[test]
    fn equal_cpus_and_two_names_of_one_are_passed_over() {
        assert_eq!(with(|_| ()), []);
        assert_eq!(with(|destination| destination.kind = Some("max-v1-x86_64-cpu".to_owned())), []);
    }

    #[test]
    fn what_the_destination_lacks_is_refused_by_name() {
        let found = with(|destination| *bits(destination) = 0x1);
        assert_eq!(codes(&found), [("cpu-features", Severity::Blocker)]);
        assert!(found[0].message.ends_with(": CPUID 7.0 EBX bit 5"), "{}", found[0]);
        let found = with(|destination| {
            *bits(destination) = 0x1;
            destination.lacks = vec!["avx2".to_owned()];
        });
        assert!(found[0].message.ends_with(": avx2"), "{}", found[0]);
    }

    #[test]
    fn what_it_has_more_is_told() {
        let found = with(|destination| *bits(destination) = 0x61);
        assert_eq!(codes(&found), [("cpu-features-extra", Severity::Warning)]);
        assert!(found[0].message.ends_with(": CPUID 7.0 EBX bit 6"), "{}", found[0]);
    }

    #[test]
    fn another_model_is_refused_and_another_name_told() {
        for property in ["vendor", "family", "model", "stepping"] {
            let found = with(|destination| drop(destination.identity.insert(property, "2".to_owned())));
            assert_eq!(codes(&found), [("cpu-model", Severity::Blocker)], "{property}");
            assert!(found[0].message.contains(&format!("{property} 2, not 1")), "{}", found[0]);
        }
        let found = with(|destination| drop(destination.identity.insert("model-id", "2".to_owned())));
        assert_eq!(codes(&found), [("cpu-name", Severity::Note)]);
    }

    #[test]
    fn without_feature_words_the_type_is_compared() {
        let (mut source, mut destination) = (sample(), sample());
        (source.features, destination.features) = (None, None);
        assert_eq!(codes(&compare(&source, &destination, "b")), [("not-compared", Severity::Note)]);
        destination.kind = Some("cortex-a57-arm-cpu".to_owned());
        let found = compare(&source, &destination, "b");
        assert_eq!(codes(&found), [("cpu-model", Severity::Blocker), ("not-compared", Severity::Note)]);
        assert!(found[0].message.contains("a cortex-a57-arm-cpu, the source's a max-x86_64-cpu"), "{}", found[0]);
    }
}
