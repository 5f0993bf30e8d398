//! What a person is to do after the way back, before another try.

use crate::{
    codes::Setting,
    journal::make_folder,
    migration::{context::Context, journals::journal_directory},
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

/// Records which images of the destination hold a part of the disks, so that a preparation can make them anew. Gives
/// their paths.
pub(super) fn spend(context: &Context, images: &[HeldImage]) -> Vec<String> {
    if images.is_empty() {
        return Vec::new();
    }
    let folder = journal_directory();
    let kept = images.iter().map(HeldImage::spend).collect::<Result<Vec<_>, _>>().and_then(|spent| {
        make_folder(&folder)?;
        spent_images::keep(&folder, &context.run.name("images"), &spent)
    });
    if let Err(error) = kept {
        let message = format!(
            "qferry prepare cannot make the destination's images anew: no record in {}: {error}",
            folder.display()
        );
        context.report.warn("not-recorded", message);
    }
    images.iter().map(|image| image.path().to_owned()).collect()
}

/// What a person is to do before another try. `images` are those of the destination that hold a part of the disks, as
/// far as their paths are known. `was_ended` is a destination that listened for RAM: no QEMU takes a second
/// `migrate-incoming` (7.2, 10.0.13 and 11.1 were tried), so RAM that was called off is not begun again beside mirrors
/// that could go on, and the disks are given up with it.
pub(super) fn before_another_try(holds_a_part: bool, was_ended: bool, images: &[String]) -> String {
    let anew = match images {
        [] => "make its images anew before another try, for they hold a part of the disks".to_owned(),
        images => format!(
            "make its images anew before another try (qferry prepare does, with {}), for they hold a part of the disks: {}",
            Setting::Again,
            images.join(", ")
        ),
    };
    match (holds_a_part, was_ended) {
        (false, false) => String::new(),
        (true, false) => format!("; end the destination and {anew}"),
        (false, true) => {
            "; a QEMU takes one incoming migration, so the destination has been ended: start it anew".to_owned()
        }
        (true, true) => format!(
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
        for (holds_a_part, was_ended, words) in [
            (false, false, &[][..]),
            (true, false, &["end the destination", "make its images anew", "`again`", "a part of the disks: /d/one"]),
            (false, true, &["takes one incoming migration", "start it anew"]),
            (true, true, &["RAM cannot be sent again", "start it anew", "make its images anew", "a part of the disks"]),
        ] {
            let said = before_another_try(holds_a_part, was_ended, &["/d/one".to_owned()]);
            assert_eq!(said.is_empty(), words.is_empty(), "{said}");
            words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
        }
    }
}
