//! What a person is to do after the way back, before another try.

/// What is said in place of [`before_another_try`] where the destination has a disk that the guest uses.
pub(super) const HAS_DISK: &str = "; the guest runs on the source and writes a disk to the destination's image alone: keep the \
     destination and its image, and bring the disk back first, as the leftovers say";

/// What is said in place of [`before_another_try`] where both QEMUs have ended, and nothing proves on which side the
/// guest ran last.
pub(super) const BOTH_GONE: &str = "; both QEMUs are gone, and nothing tells whether somebody else had handed the guest over: if \
     the destination's log says that the guest ran there, start it anew from the destination's disks; otherwise from the \
     source's, for the destination's may hold a part";

/// What a person is to do before another try. `was_ended` is a destination that listened for RAM: no QEMU takes a
/// second `migrate-incoming` (7.2, 10.0.13 and 11.1 were tried), so RAM that was called off is not begun again beside
/// mirrors that could go on, and the disks are given up with it.
pub(super) fn before_another_try(holds_a_part: bool, was_ended: bool) -> &'static str {
    match (holds_a_part, was_ended) {
        (false, false) => "",
        (true, false) => "; the destination's images hold a part of the disks: make them anew before another try",
        (false, true) => "; a QEMU takes one incoming migration, so the destination has been ended: start it anew",
        (true, true) => {
            "; a QEMU takes one incoming migration, so RAM cannot be sent again to go with the disks that were copied, and \
             the destination has been ended: start it anew, and make its images anew before another try, for they hold a \
             part of the disks"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_says_what_cannot_be_begun_again_and_what_to_do() {
        for (holds_a_part, was_ended, words) in [
            (false, false, &[][..]),
            (true, false, &["images hold a part of the disks", "make them anew"]),
            (false, true, &["takes one incoming migration", "start it anew"]),
            (true, true, &["RAM cannot be sent again", "start it anew", "make its images anew", "a part of the disks"]),
        ] {
            let said = before_another_try(holds_a_part, was_ended);
            assert_eq!(said.is_empty(), words.is_empty(), "{said}");
            words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
        }
    }
}
