//! Buffers of reads that are over, for those to come. Pure.
//!
//! Owns a few allocations that callers may still hold, and gives one out again only when they do not. Without it every
//! large read has its memory from the kernel, page by page, which takes as much time as the reading itself.

use std::collections::VecDeque;

use bytes::BytesMut;

/// Kept at once, at most: as many as a server works on.
const MAX_KEPT: usize = 16;

/// Lengths that are worth it. With [`MAX_KEPT`] this bounds what an idle connection holds to 32 MiB.
const WORTH: std::ops::RangeInclusive<u32> = (64 << 10)..=(2 << 20);

/// The buffers, by their length, oldest first.
#[derive(Debug, Default)]
pub(super) struct ReadBuffers {
    kept: VecDeque<(u32, BytesMut)>,
}

impl ReadBuffers {
    /// An empty buffer of exactly this capacity, so that no small read holds on to much.
    pub(super) fn take(&mut self, length: u32) -> BytesMut {
        let fits = |(of, buffer): &mut (u32, BytesMut)| *of == length && buffer.try_reclaim(length as usize);
        let found = self.kept.iter_mut().position(fits).and_then(|at| self.kept.remove(at));
        found.map_or_else(|| BytesMut::with_capacity(length as usize), |(_, buffer)| buffer)
    }

    /// Keeps the empty rest of a buffer whose content was split off.
    pub(super) fn keep(&mut self, length: u32, rest: BytesMut) {
        if WORTH.contains(&length) {
            self.kept.push_back((length, rest));
        }
        if self.kept.len() > MAX_KEPT {
            self.kept.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn read(buffers: &mut ReadBuffers, length: u32, byte: u8) -> Bytes {
        let mut buffer = buffers.take(length);
        assert!(buffer.is_empty() && buffer.capacity() == length as usize);
        buffer.resize(length as usize, byte);
        let content = buffer.split();
        buffers.keep(length, buffer);
        content.freeze()
    }

    #[test]
    fn memory_is_used_again_only_when_nobody_holds_it() {
        let mut buffers = ReadBuffers::default();
        let first = read(&mut buffers, 1 << 20, 1);
        let slice = first.slice(5..6);
        let place = first.as_ptr();
        drop(first);
        let second = read(&mut buffers, 1 << 20, 2);
        assert_ne!(second.as_ptr(), place);
        assert_eq!(slice[0], 1);
        drop(slice);
        assert_eq!(read(&mut buffers, 1 << 20, 3).as_ptr(), place);
        assert_ne!(read(&mut buffers, 1 << 19, 4).as_ptr(), place);
        assert!(second.iter().all(|byte| *byte == 2));
    }

    #[test]
    fn few_are_kept_and_none_that_is_small_or_huge() {
        let mut buffers = ReadBuffers::default();
        for length in [1, 4096, (2 << 20) + 1] {
            drop(read(&mut buffers, length, 0));
        }
        assert!(buffers.kept.is_empty());
        for extra in 0..100 {
            drop(read(&mut buffers, (64 << 10) + extra, 0));
        }
        assert_eq!(buffers.kept.len(), MAX_KEPT);
    }
}
