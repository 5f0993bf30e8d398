//! One read, put together from the chunks of its reply. Pure.
//!
//! The module owns the buffer of a read and the list of the pieces that have come. Every byte of the read must come
//! exactly once, and no other byte may come. Memory is taken when the first chunk comes, and never more than the length
//! of the read.

use bytes::buf::Limit;
use bytes::{BufMut, Bytes, BytesMut};

use super::buffers::ReadBuffers;
use super::error::NbdError;

/// Most separate pieces of a read. A server that sends in order has one piece.
const MAX_PIECES: usize = 1024;

/// A read under way.
#[derive(Debug)]
pub(super) struct ReadAssembly {
    offset: u64,
    length: u32,
    /// Content up to the end of the last piece; gaps are zero.
    buffer: BytesMut,
    /// Start and end of each piece that has come, counted from the start of the read; in order, and not adjacent.
    pieces: Vec<(u32, u32)>,
}

/// Memory for the bytes of a chunk.
#[derive(Debug)]
pub(super) enum ChunkRoom<'a> {
    /// Uninitialised memory behind all pieces, which costs no clearing. Servers usually send in order.
    Append(Limit<&'a mut BytesMut>),
    /// Zeroed memory before a piece that has come.
    Fill(&'a mut [u8]),
}

impl ReadAssembly {
    pub(super) fn new(offset: u64, length: u32) -> Self {
        Self { offset, length, buffer: BytesMut::new(), pieces: Vec::new() }
    }

    /// First byte and length of the read.
    pub(super) fn range(&self) -> (u64, u32) {
        (self.offset, self.length)
    }

    /// Makes room for a chunk of data. The caller must fill all of it.
    pub(super) fn make_room(
        &mut self,
        offset: u64,
        length: u32,
        buffers: &mut ReadBuffers,
    ) -> Result<ChunkRoom<'_>, NbdError> {
        let start = self.cover(offset, length, buffers)? as usize;
        if start < self.buffer.len() {
            return Ok(ChunkRoom::Fill(&mut self.buffer[start..start + length as usize]));
        }
        self.buffer.resize(start, 0);
        Ok(ChunkRoom::Append((&mut self.buffer).limit(length as usize)))
    }

    /// Adds a hole, which reads as zeros.
    pub(super) fn add_hole(&mut self, offset: u64, length: u32, buffers: &mut ReadBuffers) -> Result<(), NbdError> {
        let end = self.cover(offset, length, buffers)? as usize + length as usize;
        if end > self.buffer.len() {
            self.buffer.resize(end, 0);
        }
        Ok(())
    }

    /// Returns the bytes of the whole read.
    pub(super) fn finish(mut self, buffers: &mut ReadBuffers) -> Result<Bytes, NbdError> {
        match self.pieces[..] {
            [(0, end)] if end == self.length => {
                let whole = self.buffer.split().freeze();
                buffers.keep(self.length, self.buffer);
                Ok(whole)
            }
            _ => Err(NbdError::Missing { offset: self.offset, length: self.length }),
        }
    }

    /// Notes that a chunk has come and returns its start in the read.
    fn cover(&mut self, offset: u64, length: u32, buffers: &mut ReadBuffers) -> Result<u32, NbdError> {
        let outside = NbdError::Outside { offset, length: length.into() };
        let start = offset.checked_sub(self.offset).and_then(|start| u32::try_from(start).ok());
        let Some(start) = start.filter(|start| start.checked_add(length).is_some_and(|end| end <= self.length)) else {
            return Err(outside);
        };
        let end = start + length;
        let at = self.pieces.partition_point(|piece| piece.0 < start);
        let before = at.checked_sub(1).map(|before| self.pieces[before]);
        let after = self.pieces.get(at).copied();
        if before.is_some_and(|piece| piece.1 > start) || after.is_some_and(|piece| piece.0 < end) {
            return Err(NbdError::Overlap { offset });
        }
        let joins_before = before.is_some_and(|piece| piece.1 == start);
        let joins_after = after.is_some_and(|piece| piece.0 == end);
        match (joins_before, joins_after) {
            (true, true) => self.pieces[at - 1].1 = self.pieces.remove(at).1,
            (true, false) => self.pieces[at - 1].1 = end,
            (false, true) => self.pieces[at].0 = start,
            (false, false) if self.pieces.len() == MAX_PIECES => {
                return Err(NbdError::Scattered { limit: MAX_PIECES });
            }
            (false, false) => self.pieces.insert(at, (start, end)),
        }
        if self.buffer.capacity() == 0 {
            self.buffer = buffers.take(self.length);
        }
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(assembly: &mut ReadAssembly, offset: u64, bytes: &[u8]) -> Result<(), NbdError> {
        match assembly.make_room(offset, bytes.len() as u32, &mut ReadBuffers::default())? {
            ChunkRoom::Append(mut room) => room.put_slice(bytes),
            ChunkRoom::Fill(room) => room.copy_from_slice(bytes),
        }
        Ok(())
    }

    #[test]
    fn chunks_in_any_order_make_the_read() {
        let mut assembly = ReadAssembly::new(100, 10);
        put(&mut assembly, 106, b"gh").unwrap();
        assembly.add_hole(102, 2, &mut ReadBuffers::default()).unwrap();
        put(&mut assembly, 100, b"ab").unwrap();
        assembly.add_hole(108, 2, &mut ReadBuffers::default()).unwrap();
        put(&mut assembly, 104, b"ef").unwrap();
        assert_eq!(assembly.finish(&mut ReadBuffers::default()).unwrap(), &b"ab\0\0efgh\0\0"[..]);
    }

    #[test]
    fn chunks_that_do_not_fit_are_refused() {
        let mut assembly = ReadAssembly::new(100, 10);
        for (offset, length) in [(99, 1), (0, 10), (100, 11), (109, 2), (110, 1), (u64::MAX, 1), (101, u32::MAX)] {
            assert!(
                matches!(assembly.add_hole(offset, length, &mut ReadBuffers::default()), Err(NbdError::Outside { .. })),
                "{offset} {length}"
            );
        }
        put(&mut assembly, 103, b"def").unwrap();
        for (offset, length) in [(103, 3), (100, 4), (105, 1), (104, 1), (100, 10)] {
            assert!(
                matches!(assembly.add_hole(offset, length, &mut ReadBuffers::default()), Err(NbdError::Overlap { .. })),
                "{offset} {length}"
            );
        }
        assert!(matches!(
            assembly.finish(&mut ReadBuffers::default()),
            Err(NbdError::Missing { offset: 100, length: 10 })
        ));
        assert!(matches!(ReadAssembly::new(0, 1).finish(&mut ReadBuffers::default()), Err(NbdError::Missing { .. })));
    }

    #[test]
    fn nothing_is_taken_before_the_first_chunk_and_pieces_are_bounded() {
        let mut assembly = ReadAssembly::new(0, 1 << 20);
        assert_eq!(assembly.buffer.capacity(), 0);
        let refused = (0..1 << 19)
            .map(|at| assembly.add_hole(at * 2, 1, &mut ReadBuffers::default()))
            .find_map(Result::err)
            .unwrap();
        assert!(matches!(refused, NbdError::Scattered { .. }), "{refused}");
        assert_eq!(assembly.pieces.len(), MAX_PIECES);
    }

    proptest! {
        #[test]
        fn every_cut_and_order_gives_the_same_bytes(
            bytes in prop::collection::vec(any::<u8>(), 1..200),
            cuts in prop::collection::btree_set(1_usize..200, 0..12),
            seed in any::<u64>(),
        ) {
            let mut ends: Vec<usize> = cuts.into_iter().filter(|cut| *cut < bytes.len()).collect();
            ends.push(bytes.len());
            let mut start = 0;
            let mut chunks = Vec::new();
            for end in ends {
                chunks.push((start, end));
                start = end;
            }
            chunks.sort_by_key(|chunk| (chunk.0 as u64 + 1).wrapping_mul(seed | 1));
            let mut assembly = ReadAssembly::new(7, bytes.len() as u32);
            for (start, end) in chunks {
                put(&mut assembly, 7 + start as u64, &bytes[start..end]).unwrap();
            }
            prop_assert_eq!(assembly.finish(&mut ReadBuffers::default()).unwrap(), bytes);
        }
    }
}
