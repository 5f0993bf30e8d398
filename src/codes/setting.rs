//! The settings of a migration and of a preparation, as texts name them.
//!
//! Pure. The library knows its settings by their fields, the command by its flags: so a text of the library holds a
//! mark for each setting, the field's name in backticks (`` `nbd_address` ``, with a value `` `storage: none` ``). A
//! program that shows the text puts its own words in the place of the marks with [`worded`].

use std::fmt;

macro_rules! settings {
    ($($variant:ident = $field:literal, $about:literal;)+) => {
        /// A setting of a migration or a preparation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Setting {
            $(#[doc = $about] $variant,)+
        }

        impl Setting {
            /// Every setting.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name of the setting's field.
            pub fn field(self) -> &'static str {
                match self {
                    $(Self::$variant => $field,)+
                }
            }
        }
    };
}

settings! {
    Again = "again", "Whether images that a migration which was called off has written are made anew.";
    AllowPlaintext = "allow_plaintext", "Whether data may cross a network unencrypted.";
    Bandwidth = "bandwidth", "The ceiling of the whole job on the wire.";
    Clean = "clean", "Whether leftovers of an earlier try are removed first.";
    Compress = "compress", "How multifd channels compress.";
    Destination = "destination", "The destination's QMP monitor.";
    DiskBandwidth = "disk_bandwidth", "The ceiling of all mirrors together.";
    Disks = "disks", "The disks that move, and what each is paired with.";
    Downtime = "downtime", "The budget of the blackout.";
    FenceCommand = "fence_command", "The executable that fences a side.";
    FenceTimeout = "fence_timeout", "How long the fence command may take.";
    Force = "force", "The blockers that are passed over.";
    Journal = "journal", "Where the journal is kept.";
    KeepDigests = "keep_digests", "Whether digests are kept beside the images.";
    KeepSource = "keep_source", "Whether the source's QEMU is left running, with the guest stopped.";
    Map = "map", "The path of a source's file on the destination.";
    MigrateAddress = "migrate_address", "Where the destination listens for RAM.";
    Multifd = "multifd", "How many channels RAM is sent over.";
    NbdAddress = "nbd_address", "Where the destination listens for NBD.";
    Overcommit = "overcommit", "Whether only what is copied now needs room.";
    Policy = "policy", "The measures that may be taken so that disks and RAM converge.";
    Populate = "populate", "Which backing files are copied to the destination.";
    Predict = "predict", "Whether the guest is measured first.";
    QemuImg = "qemu_img", "The qemu-img program.";
    RuntimeDir = "runtime_dir", "The directory of the sockets of a run.";
    SampleSeed = "sample_seed", "The seed that the sampled ranges are chosen by.";
    Samples = "samples", "How many ranges of a backing file are sampled.";
    Skip = "skip", "The disks that are left out.";
    Source = "source", "The source's QMP monitor.";
    SourceNbdAddress = "source_nbd_address", "Where the source listens for NBD.";
    Storage = "storage", "How storage gets to the destination.";
    StrictBudget = "strict_budget", "Whether the budget is held without slack.";
    SwitchoverTimeout = "switchover_timeout", "The longest time that the guest may be paused.";
    Timeout = "timeout", "When a migration is given up.";
    To = "to", "The folder of the images that the guest writes.";
    VerifyBacking = "verify_backing", "How well backing files are proved to be the same.";
}

impl Setting {
    /// The setting of a field; `None` where there is none.
    pub fn of_field(field: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|setting| setting.field() == field)
    }

    /// The setting with a value, for a text: `` `storage: none` ``.
    pub fn set_to(self, value: impl fmt::Display) -> String {
        format!("`{}: {value}`", self.field())
    }
}

/// The mark of the setting in a text.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.field())
    }
}

/// A text with other words for the settings that it names: `word` is given each setting, and its value where the text
/// has one. Backticks around anything else stay.
pub fn worded(text: &str, word: impl Fn(Setting, Option<&str>) -> String) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('`') {
        told.push_str(before);
        let mark = after.split_once('`').and_then(|(inner, behind)| {
            let (field, value) = match inner.split_once(": ") {
                Some((field, value)) => (field, Some(value)),
                None => (inner, None),
            };
            Some((word(Setting::of_field(field)?, value), behind))
        });
        match mark {
            Some((words, behind)) => {
                told.push_str(&words);
                rest = behind;
            }
            None => {
                told.push('`');
                rest = after;
            }
        }
    }
    told + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_worded_and_all_else_stays() {
        let word = |setting: Setting, value: Option<&str>| format!("<{setting:?} {}>", value.unwrap_or("-"));
        for (text, told) in [
            ("", ""),
            ("see `nbd_address`", "see <NbdAddress ->"),
            ("`verify_backing: off` goes on", "<VerifyBacking off> goes on"),
            ("a file ` and `clean`", "a file ` and <Clean ->"),
            ("`no_such` and `storage: none`, ", "`no_such` and <Storage none>, "),
            ("`clean", "`clean"),
        ] {
            assert_eq!(worded(text, word), told);
        }
    }

    #[test]
    fn every_setting_is_found_by_its_mark() {
        for setting in Setting::ALL {
            assert_eq!(worded(&setting.to_string(), |found, _| found.field().to_owned()), setting.field());
            assert_eq!(
                worded(&setting.set_to("x"), |found, value| format!("{found:?}{value:?}")),
                format!("{setting:?}Some(\"x\")")
            );
        }
    }
}
