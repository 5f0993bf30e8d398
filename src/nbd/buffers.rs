//! Buffers of finished reads, kept for later reads. Pure.
//!
//! The module owns a few allocations that callers may still hold, and gives out an allocation again only when no caller
//! holds it. Without these buffers every large read would get its memory from the kernel, page by page, which takes as
//! much time as the reading itself.

use std::collections::VecDeque;

use bytes::BytesMut;

/// Most buffers kept: as many as the requests that a server works on at the same time.
const MAX_KEPT: usize = 16;

/// Lengths of buffers worth keeping. With [`MAX_KEPT`] the range bounds the memory of an idle connection to 32 MiB.
const KEPT_LENGTHS: std::ops::RangeInclusive<u32> = (64 << 10)..=(2 << 20);

/// The kept buffers with their lengths, oldest first.
#[derive(Debug, Default)]
pub(super) struct ReadBuffers {
    kept: VecDeque<(u32, BytesMut)>,
}

impl ReadBuffers {
    /// Takes an empty buffer of exactly this capacity, so that a small read does not hold much memory.
    pub(super) fn take(&mut self, length: u32) -> BytesMut {
        let fits = |(of, buffer): &mut (u32, BytesMut)| *of == length && buffer.try_reclaim(length as usize);
        let found = self.kept.iter_mut().position(fits).and_then(|at| self.kept.remove(at));
        found.map_or_else(|| BytesMut::with_capacity(length as usize), |(_, buffer)| buffer)
    }

    /// Keeps the empty rest of a buffer whose content was split off.
    pub(super) fn keep(&mut self, length: u32, rest: BytesMut) {
        if KEPT_LENGTHS.contains(&length) {
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
        let address = first.as_ptr();
        drop(first);
        let second = read(&mut buffers, 1 << 20, 2);
        assert_ne!(second.as_ptr(), address);
        assert_eq!(slice[0], 1);
        drop(slice);
        assert_eq!(read(&mut buffers, 1 << 20, 3).as_ptr(), address);
        assert_ne!(read(&mut buffers, 1 << 19, 4).as_ptr(), address);
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
