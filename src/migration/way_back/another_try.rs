//! What a person is to do after the way back, before another try.

use crate::{
    codes::Setting,
    journal::make_folder,
    migration::{context::Context, journals::journal_directory},
    progress::AnotherTry,
    storage::files::spent_images::{self, HeldImage},
};

/// What is said in place of [`before_another_try`] where the destination has a disk that the guest uses.
pub(super) const HAS_DISK: &str = "; the guest runs on the source and writes a disk to the destination's image alone: keep the \
     destination and its image, and bring the disk back first, as the leftovers say";

/// What is said in place of [`before_another_try`] where both QEMUs have ended, and nothing proves on which side the
/// guest ran last.
pub(super) const BOTH_GONE: &str = "; both QEMUs are gone, and nothing tells whether somebody else had handed the guest over: if \
     the destination's log says that the guest ran there, start it anew from the destination's disks; otherwise from the \
     source's, for the destination's may hold a part";

/// The images of the destination that hold a part of the disks.
#[derive(Debug, Default)]
pub(super) struct SpentPaths {
    /// The paths by which the destination's QEMU has opened them.
    pub(super) paths: Vec<String>,
    /// Whether a record tells of them.
    pub(super) recorded: bool,
}

/// The destination after a way back, for another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DestinationAfterwards {
    /// The destination was ended: it had listened for RAM, and no QEMU takes a second `migrate-incoming` (7.2, 10.0.13
    /// and 11.1 were tried). So RAM that was called off is not begun again beside mirrors that could go on, and the
    /// disks are given up with it.
    Ended,
    /// The destination waits as it did before, and its images are on record: the mirrors of another try write over
    /// what these hold, which the preflight then proves.
    Usable,
    /// The destination has ended by itself, or by somebody else's hand.
    Gone,
    /// The destination waits, or its end is not known.
    Used,
}

impl DestinationAfterwards {
    /// `may_stay` says that the destination waits as it did before, and that its images are on record.
    pub(super) fn of(was_ended: bool, is_gone: bool, may_stay: bool) -> Self {
        match (was_ended, is_gone, may_stay) {
            (true, ..) => Self::Ended,
            (false, true, _) => Self::Gone,
            (false, false, true) => Self::Usable,
            (false, false, false) => Self::Used,
        }
    }

    /// What another try needs, if anything.
    pub(super) fn needs(self, holds_a_part: bool, images: Vec<String>) -> Option<AnotherTry> {
        let start_destination = match self {
            Self::Ended | Self::Gone => true,
            Self::Used => holds_a_part,
            Self::Usable => false,
        };
        (start_destination || holds_a_part).then_some(AnotherTry { images, start_destination })
    }
}

/// Records which images of the destination hold a part of the disks, so that a preparation can make them anew, and
/// another try can copy over them.
pub(super) fn spend(context: &Context, images: &[HeldImage]) -> SpentPaths {
    if images.is_empty() {
        return SpentPaths::default();
    }
    let folder = journal_directory();
    let kept = images.iter().map(HeldImage::spend).collect::<Result<Vec<_>, _>>().and_then(|spent| {
        make_folder(&folder)?;
        spent_images::keep(&folder, &context.run.name("images"), &spent)
    });
    let recorded = kept.is_ok();
    if let Err(error) = kept {
        let message = format!(
            "qferry prepare cannot make the destination's images anew: no record in {}: {error}",
            folder.display()
        );
        context.report.warn("not-recorded", message);
    }
    SpentPaths { paths: images.iter().map(|image| image.path().to_owned()).collect(), recorded }
}

/// What a person is to do before another try. `images` are those of the destination that hold a part of the disks, as
/// far as their paths are known.
pub(super) fn before_another_try(holds_a_part: bool, destination: DestinationAfterwards, images: &[String]) -> String {
    let anew = match images {
        [] => "make its images anew before another try, for they hold a part of the disks".to_owned(),
        images => format!(
            "make its images anew before another try (qferry prepare does, with {}), for they hold a part of the disks: {}",
            Setting::Again,
            images.join(", ")
        ),
    };
    match (holds_a_part, destination) {
        (false, DestinationAfterwards::Usable | DestinationAfterwards::Used) => String::new(),
        (true, DestinationAfterwards::Usable) => format!(
            "; another try can use the same destination, and copies over what its images hold: {}. To begin with empty \
             ones, end the destination and make them anew (qferry prepare does, with {})",
            images.join(", "),
            Setting::Again
        ),
        (false, DestinationAfterwards::Gone) => "; the destination has ended: start it anew".to_owned(),
        (true, DestinationAfterwards::Gone) => format!("; the destination has ended: start it anew, and {anew}"),
        (true, DestinationAfterwards::Used) => format!("; end the destination and {anew}"),
        (false, DestinationAfterwards::Ended) => {
            "; a QEMU takes one incoming migration, so the destination has been ended: start it anew".to_owned()
        }
        (true, DestinationAfterwards::Ended) => format!(
            "; a QEMU takes one incoming migration, so RAM cannot be sent again to go with the disks that were copied, \
             and the destination has been ended: start it anew, and {anew}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_says_what_cannot_be_begun_again_and_what_to_do() {
        use DestinationAfterwards::{Ended, Gone, Usable, Used};
        for (holds_a_part, destination, words) in [
            (false, Used, &[][..]),
            (false, Usable, &[]),
            (true, Used, &["end the destination", "make its images anew", "`again`", "a part of the disks: /d/one"]),
            (true, Usable, &["can use the same destination", "images hold: /d/one.", "end the destination", "`again`"]),
            (false, Gone, &["has ended: start it anew"]),
            (true, Gone, &["has ended: start it anew", "make its images anew", "a part of the disks: /d/one"]),
            (false, Ended, &["takes one incoming migration", "start it anew"]),
            (
                true,
                Ended,
                &["RAM cannot be sent again", "start it anew", "make its images anew", "a part of the disks"],
            ),
        ] {
            let said = before_another_try(holds_a_part, destination, &["/d/one".to_owned()]);
            assert_eq!(said.is_empty(), words.is_empty(), "{said}");
            words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
            let needed = destination.needs(holds_a_part, Vec::new()).map(|needed| needed.start_destination);
            let expected = match (holds_a_part, destination) {
                (false, Used | Usable) => None,
                (true, Usable) => Some(false),
                _ => Some(true),
            };
            assert_eq!(needed, expected, "{destination:?}");
        }
    }
}
