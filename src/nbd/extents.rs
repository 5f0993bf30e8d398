//! What block status says of a range, in pieces. Pure.
//!
//! Owns the check of descriptors against their request, and their merging. It never guesses: what a server has not
//! described is not in a result.

use super::error::NbdError;

/// Descriptors that one call takes from the server, at most. It bounds memory and time: a range of 64 GiB has as many
/// if every second cluster of 64 KiB differs.
pub const MAX_DESCRIPTORS: usize = 1 << 20;

/// A piece of the export, by how it is stored (`base:allocation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationExtent {
    /// First byte.
    pub start: u64,
    /// Bytes, at least 1.
    pub length: u64,
    /// It reads as zeros. Where this is false it may still consist of zeros.
    pub zero: bool,
    /// No space is allocated for it.
    pub hole: bool,
}

/// A piece of the export, by which layer of the chain it comes from (`qemu:allocation-depth`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthExtent {
    /// First byte.
    pub start: u64,
    /// Bytes, at least 1.
    pub length: u64,
    /// 0: allocated nowhere; 1: in the exported node itself; 2: in its backing file; and so on. What lies behind the
    /// end of a shorter backing file counts as allocated there.
    pub depth: u32,
}

/// The extents of a range that begins at `start`.
pub(super) fn extents(start: u64, runs: &StatusRuns) -> Vec<AllocationExtent> {
    let pieces = runs.pieces(start);
    pieces
        .map(|(start, length, flags)| AllocationExtent { start, length, zero: flags & 2 != 0, hole: flags & 1 != 0 })
        .collect()
}

/// The depths of a range that begins at `start`.
pub(super) fn depths(start: u64, runs: &StatusRuns) -> Vec<DepthExtent> {
    runs.pieces(start).map(|(start, length, depth)| DepthExtent { start, length, depth }).collect()
}

/// Neighbours with the same value are one; nothing is left out between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StatusRuns {
    runs: Vec<(u64, u32)>,
    /// How many were pushed, merged or not.
    pushed: usize,
    covered: u64,
}

impl StatusRuns {
    /// Bytes described so far.
    pub(super) fn covered(&self) -> u64 {
        self.covered
    }

    /// Adds the descriptors of one reply, of whose flags only those in `mask` count.
    pub(super) fn extend(&mut self, descriptors: &[(u32, u32)], mask: u32) -> Result<(), NbdError> {
        self.pushed += descriptors.len();
        if self.pushed > MAX_DESCRIPTORS {
            return Err(NbdError::TooManyExtents { limit: MAX_DESCRIPTORS });
        }
        for (length, flags) in descriptors {
            let (length, value) = (u64::from(*length), flags & mask);
            self.covered += length;
            match self.runs.last_mut() {
                Some(last) if last.1 == value => last.0 += length,
                _ => self.runs.push((length, value)),
            }
        }
        Ok(())
    }

    fn pieces(&self, start: u64) -> impl Iterator<Item = (u64, u64, u32)> + '_ {
        self.runs.iter().scan(start, |at, (length, value)| {
            let start = *at;
            *at += length;
            Some((start, *length, *value))
        })
    }
}

/// Holds descriptors against the request of `length` bytes that they answer. They may cover less of it, and the last
/// one more, which is cut off.
pub(super) fn fit(mut descriptors: Vec<(u32, u32)>, length: u32) -> Result<Vec<(u32, u32)>, NbdError> {
    let mut left = length;
    for descriptor in &mut descriptors {
        if descriptor.0 == 0 {
            return Err(NbdError::EmptyExtent);
        }
        if left == 0 {
            return Err(NbdError::TooLong { what: "extents beyond the range", length: descriptor.0.into() });
        }
        descriptor.0 = descriptor.0.min(left);
        left -= descriptor.0;
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_of_a_kind_are_one() {
        let mut runs = StatusRuns::default();
        runs.extend(&[(10, 3), (5, 3 | 4)], 3).unwrap();
        runs.extend(&[(1, 3), (4, 0), (2, 2)], 3).unwrap();
        let piece = |start, length, zero, hole| AllocationExtent { start, length, zero, hole };
        let wanted = [piece(100, 16, true, true), piece(116, 4, false, false), piece(120, 2, true, false)];
        assert_eq!(extents(100, &runs), wanted);
        assert_eq!(runs.covered(), 22);
        assert_eq!(depths(0, &runs)[1], DepthExtent { start: 16, length: 4, depth: 0 });
        assert_eq!(extents(7, &StatusRuns::default()), []);
    }

    #[test]
    fn descriptors_are_held_against_their_request() {
        assert_eq!(fit(vec![(4, 0), (u32::MAX, 1)], 10).unwrap(), [(4, 0), (6, 1)]);
        assert_eq!(fit(vec![(4, 0)], 10).unwrap(), [(4, 0)]);
        assert!(matches!(fit(vec![(4, 0), (0, 0)], 10), Err(NbdError::EmptyExtent)));
        assert!(matches!(fit(vec![(10, 0), (1, 0)], 10), Err(NbdError::TooLong { .. })));
    }

    #[test]
    fn descriptors_are_bounded_even_where_they_merge() {
        let mut runs = StatusRuns::default();
        let many = vec![(1, 0); MAX_DESCRIPTORS];
        runs.extend(&many, 3).unwrap();
        assert!(matches!(runs.extend(&[(1, 0)], 3), Err(NbdError::TooManyExtents { .. })));
    }

    proptest! {
        #[test]
        fn pieces_cover_what_was_described(descriptors in prop::collection::vec((1_u32..9, 0_u32..4), 1..50)) {
            let mut runs = StatusRuns::default();
            runs.extend(&descriptors, 3).unwrap();
            let pieces = depths(5, &runs);
            let mut at = 5;
            for (index, piece) in pieces.iter().enumerate() {
                prop_assert_eq!(piece.start, at);
                prop_assert!(piece.length > 0);
                prop_assert!(index == 0 || pieces[index - 1].depth != piece.depth);
                at += piece.length;
            }
            prop_assert_eq!(at - 5, descriptors.iter().map(|descriptor| u64::from(descriptor.0)).sum::<u64>());
        }
    }
}
