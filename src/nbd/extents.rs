//! The pieces that block status divides a range into. Pure.
//!
//! The module owns the check of descriptors against their request, and the merging of descriptors. A result never
//! covers bytes that the server has not described.

use super::error::NbdError;

/// Most descriptors that one call takes from the server, which bounds memory and time. A range of 64 GiB has as many
/// if every cluster of 64 KiB differs from the next.
pub const MAX_DESCRIPTORS: usize = 1 << 20;

/// Flags of `base:allocation`.
const FLAG_HOLE: u32 = 1;
const FLAG_ZERO: u32 = 1 << 1;
/// Flags of `base:allocation` that this client knows.
pub(super) const KNOWN_FLAGS: u32 = FLAG_HOLE | FLAG_ZERO;

/// A piece of the export, by how it is stored (`base:allocation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationExtent {
    /// First byte of the piece.
    pub start: u64,
    /// Length in bytes, at least 1.
    pub length: u64,
    /// Whether the server reports that the piece reads as zeros. Other pieces may consist of zeros, too.
    pub zero: bool,
    /// Whether no space is allocated for the piece.
    pub hole: bool,
}

/// A piece of the export, by which layer of the chain it comes from (`qemu:allocation-depth`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthExtent {
    /// First byte of the piece.
    pub start: u64,
    /// Length in bytes, at least 1.
    pub length: u64,
    /// Layer that the piece is allocated in. 0: none; 1: the exported node itself; 2: its backing file; and so on.
    /// Bytes behind the end of a shorter backing file count as allocated in that file.
    pub depth: u32,
}

/// Makes the extents of a range that begins at `start`.
pub(super) fn to_extents(start: u64, runs: &StatusRuns) -> Vec<AllocationExtent> {
    let pieces = runs.pieces(start);
    pieces
        .map(|(start, length, flags)| AllocationExtent {
            start,
            length,
            zero: flags & FLAG_ZERO != 0,
            hole: flags & FLAG_HOLE != 0,
        })
        .collect()
}

/// Makes the depths of a range that begins at `start`.
pub(super) fn to_depths(start: u64, runs: &StatusRuns) -> Vec<DepthExtent> {
    runs.pieces(start).map(|(start, length, depth)| DepthExtent { start, length, depth }).collect()
}

/// Block status of a range from its first byte on. Neighbours with the same value are merged, and no byte is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StatusRuns {
    /// Length and value of each run.
    runs: Vec<(u64, u32)>,
    /// Number of descriptors added, merged or not.
    pushed: usize,
    covered: u64,
}

impl StatusRuns {
    /// Number of bytes described so far.
    pub(super) fn covered(&self) -> u64 {
        self.covered
    }

    /// Adds the descriptors of one reply. Flags outside of `mask` are ignored.
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

/// Checks descriptors against their request of `length` bytes. Descriptors may cover less than the request. The last
/// descriptor may reach beyond the request, and is shortened then.
pub(super) fn fit_to_request(mut descriptors: Vec<(u32, u32)>, length: u32) -> Result<Vec<(u32, u32)>, NbdError> {
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
    fn neighbours_of_a_kind_are_merged() {
        let mut runs = StatusRuns::default();
        runs.extend(&[(10, 3), (5, 3 | 4)], 3).unwrap();
        runs.extend(&[(1, 3), (4, 0), (2, 2)], 3).unwrap();
        let piece = |start, length, zero, hole| AllocationExtent { start, length, zero, hole };
        let wanted = [piece(100, 16, true, true), piece(116, 4, false, false), piece(120, 2, true, false)];
        assert_eq!(to_extents(100, &runs), wanted);
        assert_eq!(runs.covered(), 22);
        assert_eq!(to_depths(0, &runs)[1], DepthExtent { start: 16, length: 4, depth: 0 });
        assert_eq!(to_extents(7, &StatusRuns::default()), []);
    }

    #[test]
    fn descriptors_are_checked_against_their_request() {
        assert_eq!(fit_to_request(vec![(4, 0), (u32::MAX, 1)], 10).unwrap(), [(4, 0), (6, 1)]);
        assert_eq!(fit_to_request(vec![(4, 0)], 10).unwrap(), [(4, 0)]);
        assert!(matches!(fit_to_request(vec![(4, 0), (0, 0)], 10), Err(NbdError::EmptyExtent)));
        assert!(matches!(fit_to_request(vec![(10, 0), (1, 0)], 10), Err(NbdError::TooLong { .. })));
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
        fn pieces_cover_exactly_the_descriptors(descriptors in prop::collection::vec((1_u32..9, 0_u32..4), 1..50)) {
            let mut runs = StatusRuns::default();
            runs.extend(&descriptors, 3).unwrap();
            let pieces = to_depths(5, &runs);
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
