//! The id of one run of the engine, and the names that the run gives to what it makes in a QEMU.
//!
//! Every job, node, bitmap, export and socket has the id of its run in its name, so that a run proves by the name alone
//! what is its own: nothing of another run is removed or waited for.

use serde::{Deserialize, Deserializer, Serialize};
use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

/// The prefix of the name of every job, node, bitmap and export that the engine makes in a QEMU, so that the engine can
/// tell them from the user's own.
pub const PREFIX: &str = "qferry-";

/// The number of characters of an id. QEMU takes node names of at most 31 characters: the prefix and the id leave 11
/// for the rest.
pub const LENGTH: usize = 12;

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The id of one run: [`LENGTH`] digits and small letters, the time in the first of them, so that later ids sort behind
/// earlier ones. The default is the id of the runs of earlier versions, whose names had none.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RunId(String);

impl RunId {
    /// A new id. The seconds take 31 bits, up to the year 2088; the other 31 bits are random, by a key of the operating
    /// system, so that neither an engine on another host nor one of the same second has the same id.
    pub fn new() -> Self {
        /// 2020-01-01, in seconds since the Unix epoch.
        const SINCE: u64 = 1_577_836_800;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut random = RandomState::new().build_hasher();
        random.write_u32(process::id());
        random.write_u128(now.as_nanos());
        let seconds = now.as_secs().saturating_sub(SINCE) & 0x7fff_ffff;
        Self::of(seconds << 31 | random.finish() & 0x7fff_ffff)
    }

    fn of(mut number: u64) -> Self {
        let mut digits = [b'0'; LENGTH];
        for digit in digits.iter_mut().rev() {
            *digit = DIGITS[(number % 36) as usize];
            number /= 36;
        }
        Self(digits.map(char::from).iter().collect())
    }

    /// Whether the id is that of an earlier version's runs, whose names had none.
    pub fn is_of_earlier_version(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of a thing that the run makes in a QEMU.
    pub fn name(&self, what: impl fmt::Display) -> String {
        match self.0.as_str() {
            "" => format!("{PREFIX}{what}"),
            id => format!("{PREFIX}{id}-{what}"),
        }
    }

    /// The run that made the thing of this name, and the rest of the name; `None` where no engine made the thing.
    pub fn of_name(name: &str) -> Option<(Self, &str)> {
        let rest = name.strip_prefix(PREFIX)?;
        Some(match rest.split_once('-') {
            Some((id, what)) if is_id(id) => (Self(id.to_owned()), what),
            _ => (Self::default(), rest),
        })
    }

    /// Whether the run made the thing of this name.
    pub fn has_made(&self, name: &str) -> bool {
        Self::of_name(name).is_some_and(|(run, _)| run == *self)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.is_of_earlier_version() { "of an earlier version" } else { &self.0 })
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = String::deserialize(deserializer)?;
        match id.is_empty() || is_id(&id) {
            true => Ok(Self(id)),
            false => Err(serde::de::Error::custom("the id of a run has 12 digits and small letters")),
        }
    }
}

fn is_id(text: &str) -> bool {
    text.len() == LENGTH && text.bytes().all(|byte| DIGITS.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_runs_have_one_id_and_later_ids_sort_behind() {
        let ids: BTreeSet<RunId> = (0..1000).map(|_| RunId::new()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| is_id(&id.to_string())), "{ids:?}");
        assert!(RunId::of(1 << 31) > RunId::of((1 << 31) - 1) && RunId::of((1 << 62) - 1) > RunId::of(36));
    }

    #[test]
    fn a_name_tells_its_run() {
        let run = RunId::of(0x3fff_ffff_ffff_ffff);
        let name = run.name("probe-zeros");
        // QEMU's limit for the name of a node
        assert!(name.len() <= 31, "{name}");
        assert_eq!(RunId::of_name(&name), Some((run.clone(), "probe-zeros")));
        assert!(run.has_made(&name) && !RunId::new().has_made(&name) && !RunId::default().has_made(&name));
        for old in ["mirror-0", "view-12", "probe-sink", "guard-0", "below"] {
            let name = RunId::default().name(old);
            assert_eq!(RunId::of_name(&name), Some((RunId::default(), old)), "{name}");
            assert!(RunId::default().has_made(&name) && !run.has_made(&name));
        }
        for foreign in ["", "mirror-0", "qferry", "their-qferry-mirror-0"] {
            assert_eq!(RunId::of_name(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn an_id_is_read_as_it_was_written_and_no_other_text_is_one() {
        for run in [RunId::new(), RunId::default()] {
            let text = serde_json::to_string(&run).unwrap();
            assert_eq!(serde_json::from_str::<RunId>(&text).unwrap(), run, "{text}");
        }
        for text in ["\"a\"", "\"../../../etc\"", "\"0123456789AB\"", "7"] {
            assert!(serde_json::from_str::<RunId>(text).is_err(), "{text}");
        }
    }
}
