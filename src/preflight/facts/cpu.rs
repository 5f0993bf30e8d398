//! The properties of a CPU that its guest can see.
//!
//! Pure.

use crate::qemu::reply::FeatureWord;
use std::{collections::BTreeMap, fmt};

/// A virtual CPU of one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuFacts {
    /// The CPU's path in QOM.
    pub path: String,
    /// The CPU's type, such as `cortex-a57-arm-cpu`; asked for only where the CPU has no feature words.
    pub kind: Option<String>,
    /// The values of those properties of [`IDENTITY`] that the CPU has.
    pub identity: BTreeMap<&'static str, String>,
    /// The bits of the feature words; `None` where the target has no such property.
    pub features: Option<BTreeMap<CpuidRegister, u64>>,
    /// The names of the features that the source has and this CPU lacks; asked for only where bits are missing.
    pub lacks: Vec<String>,
}

/// The properties of an x86 CPU that tell the guest its model.
pub const IDENTITY: [&str; 5] = ["vendor", "family", "model", "stepping", "model-id"];

/// A register of CPUID that holds feature bits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuidRegister {
    /// The leaf: EAX when CPUID is called.
    pub leaf: u64,
    /// The subleaf, ECX, where the leaf has any.
    pub subleaf: Option<u64>,
    /// The register that the answer is in, such as `EBX`.
    pub register: String,
}

impl fmt::Display for CpuidRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPUID {:X}", self.leaf)?;
        if let Some(subleaf) = self.subleaf {
            write!(f, ".{subleaf:X}")?;
        }
        write!(f, " {}", self.register)
    }
}

/// Features that follow from the number of threads: leaf, register, bit and name. QEMU 10.0 and later have the bits in
/// the feature words, earlier versions add them when the guest executes CPUID: the guest sees the same.
const OF_TOPOLOGY: [(u64, &str, u32, &str); 2] = [(1, "EDX", 28, "ht"), (0x8000_0001, "ECX", 1, "cmp-legacy")];

/// The feature words by their registers: every version of QEMU lists them in another order.
pub fn words(list: &[FeatureWord]) -> BTreeMap<CpuidRegister, u64> {
    let word = |word: &FeatureWord| {
        let of_topology = OF_TOPOLOGY
            .iter()
            .filter(|(leaf, register, ..)| *leaf == word.cpuid_input_eax && *register == word.cpuid_register);
        let hidden = of_topology.fold(0, |bits, (_, _, bit, _)| bits | 1 << bit);
        let (leaf, subleaf) = (word.cpuid_input_eax, word.cpuid_input_ecx);
        (CpuidRegister { leaf, subleaf, register: word.cpuid_register.clone() }, word.features & !hidden)
    };
    list.iter().map(word).collect()
}

/// The bits that one CPU has and the other lacks, as `CPUID 7.0 EBX bit 5`; empty where a side has no feature
/// words.
pub fn lacking(one: &CpuFacts, other: &CpuFacts) -> Vec<String> {
    let (Some(one), Some(other)) = (&one.features, &other.features) else { return Vec::new() };
    let bits = one.iter().flat_map(|(word, bits)| {
        let missing = bits & !other.get(word).unwrap_or(&0);
        (0..64).filter(move |bit| missing >> bit & 1 == 1).map(move |bit| format!("{word} bit {bit}"))
    });
    bits.collect()
}

/// Boolean properties of a CPU in QEMU 11.1 that name no bit of CPUID.
const SWITCHES: [&str; 21] = [
    "acpi",
    "check",
    "cpuid-0xb",
    "enforce",
    "fill-mtrr-mask",
    "full-cpuid-auto-level",
    "host-cache-info",
    "host-phys-bits",
    "hotpluggable",
    "hotplugged",
    "kvm",
    "l3-cache",
    "legacy-cache",
    "legacy-multi-node",
    "migratable",
    "pmu",
    "realized",
    "start-powered-off",
    "tcg-cpuid",
    "vmware-cpuid-freq",
    "xen-vapic",
];

/// Whether a boolean property can be the name of a feature; switches, also those for compatibility, are not.
pub fn is_feature(property: &str) -> bool {
    let of_topology = OF_TOPOLOGY.iter().any(|(.., name)| *name == property.replace('_', "-"));
    !(of_topology || SWITCHES.contains(&property) || property.starts_with("x-"))
}

/// Drops all but one spelling of each name: QEMU knows `sse4.1` as `sse4-1` and `sse4_1`, too.
pub fn distinct(mut names: Vec<String>) -> Vec<String> {
    let plain = |name: &String| name.replace(['_', '.'], "-");
    names.sort_by_key(|name| (plain(name), name.contains('_'), !name.contains('.')));
    names.dedup_by_key(|name| plain(name));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(leaf: u64, subleaf: Option<u64>, register: &str, features: u64) -> FeatureWord {
        let cpuid_register = register.to_owned();
        FeatureWord { cpuid_input_eax: leaf, cpuid_input_ecx: subleaf, cpuid_register, features }
    }

    fn cpu(list: &[FeatureWord]) -> CpuFacts {
        CpuFacts { features: Some(words(list)), ..CpuFacts::default() }
    }

    #[test]
    fn bits_are_compared_and_named() {
        let one = cpu(&[word(7, Some(0), "EBX", 0x21), word(0x8000_0001, None, "ECX", 0x100)]);
        let other = cpu(&[word(1, None, "EDX", 0xff), word(7, Some(0), "EBX", 0x101)]);
        assert_eq!(lacking(&one, &other), ["CPUID 7.0 EBX bit 5", "CPUID 80000001 ECX bit 8"]);
        assert_eq!(lacking(&other, &one).len(), 9);
        assert_eq!(lacking(&one, &one), Vec::<String>::new());
        assert_eq!(lacking(&one, &CpuFacts::default()), Vec::<String>::new());
    }

    /// The words of QEMU 7.2 and of QEMU 10.0, with two vCPUs.
    #[test]
    fn what_follows_from_the_threads_is_no_difference() {
        let old = cpu(&[word(1, None, "EDX", 126_614_525), word(0x8000_0001, None, "ECX", 5)]);
        let new = cpu(&[word(0x8000_0001, None, "ECX", 7), word(1, None, "EDX", 395_049_981)]);
        assert_eq!(old, new);
        assert!(!is_feature("ht") && !is_feature("cmp_legacy") && !is_feature("x-hv-max-vps"));
        assert!(is_feature("avx2"));
    }

    #[test]
    fn a_name_is_told_once() {
        let names = ["sse4_1", "avx2", "sse4-1", "sse4.1", "lahf_lm", "lahf-lm"].map(str::to_owned);
        assert_eq!(distinct(names.into()), ["avx2", "lahf-lm", "sse4.1"]);
    }
}
