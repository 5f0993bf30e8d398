//! Which part of an image a mirror is going to write over.
//!
//! Pure.

use crate::nbd::DepthExtent;

/// The first byte of the image's own clusters that a mirror does not write. `held` and `written` tell of the same range
/// of the image and of the source's top: what has depth 1 is an image's own. A mirror writes each piece of
/// `granularity` bytes whole that has such a cluster of the source in it.
pub(super) fn first_uncovered(held: &[DepthExtent], written: &[DepthExtent], granularity: u64) -> Option<u64> {
    let own = |extents: &[DepthExtent]| -> Vec<(u64, u64)> {
        extents.iter().filter(|extent| extent.depth == 1).map(|own| (own.start, own.start + own.length)).collect()
    };
    let pieces = own(written).into_iter();
    let mut pieces = pieces.map(|(start, end)| (start - start % granularity, end.next_multiple_of(granularity)));
    let mut piece = pieces.next();
    for (mut at, end) in own(held) {
        while at < end {
            match piece {
                Some((_, until)) if until <= at => piece = pieces.next(),
                Some((from, until)) if from <= at => at = until,
                _ => return Some(at),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Extents from the depths of sectors.
    fn extents(depths: &[u32], sector: u64) -> Vec<DepthExtent> {
        (0..).zip(depths).map(|(at, depth)| DepthExtent { start: at * sector, length: sector, depth: *depth }).collect()
    }

    #[test]
    fn what_no_mirror_writes_is_found() {
        for (held, written, granularity, first) in [
            (&[0, 2, 0, 2][..], &[0, 0, 0, 0][..], 10, None),
            (&[1, 1, 0, 2], &[1, 1, 0, 0], 10, None),
            (&[1, 1, 1, 2], &[1, 1, 0, 0], 10, Some(20)),
            (&[0, 1, 0, 2], &[0, 0, 1, 1], 10, Some(10)),
            (&[1, 1, 0, 2], &[0, 1, 0, 0], 20, None),
            (&[1, 1, 1, 2], &[0, 1, 0, 0], 20, Some(20)),
            (&[0, 1, 1, 2], &[0, 1, 2, 0], 10, Some(20)),
        ] {
            assert_eq!(first_uncovered(&extents(held, 10), &extents(written, 10), granularity), first, "{held:?}");
        }
    }

    proptest! {
        #[test]
        fn each_sector_counts_for_itself(
            held in prop::collection::vec(0..3_u32, 0..40),
            written in prop::collection::vec(0..3_u32, 40),
            granularity in 1..5_u64,
        ) {
            let is_written = |at: u64| {
                let piece = at - at % granularity;
                (piece..piece + granularity).any(|one| written.get(one as usize) == Some(&1))
            };
            let first = (0..).zip(&held).find(|(at, depth)| **depth == 1 && !is_written(*at)).map(|(at, _)| at);
            prop_assert_eq!(first_uncovered(&extents(&held, 1), &extents(&written, 1), granularity), first);
        }
    }
}
