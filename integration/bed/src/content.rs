//! Known content: what an image holds before anybody writes to it, as a rule and not as bytes.

/// Content comes in multiples of this.
pub(crate) const GRAIN: u64 = 64 << 10;
/// The default limit on the number of pieces: above it, pieces are made larger.
pub(crate) const PIECES: u64 = 512;

/// A piece of known content: where, and the byte it consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) byte: u8,
}

/// The content of a chain of images, the bottom first; what no piece covers is zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    images: Vec<Image>,
}

#[derive(Clone, Debug)]
struct Image {
    size: u64,
    pieces: Vec<Piece>,
}

impl Content {
    /// Puts an image of that size on top.
    pub(crate) fn push(&mut self, size: u64, pieces: Vec<Piece>) {
        self.images.push(Image { size, pieces });
    }

    /// The byte at an offset, read through the whole chain.
    pub(crate) fn at(&self, offset: u64) -> u8 {
        for image in self.images.iter().rev() {
            if let Some(piece) = covering(&image.pieces, offset) {
                return piece.byte;
            }
            // Behind the end of an image QEMU reads zeroes, also where a larger image below has data.
            if offset >= image.size {
                return 0;
            }
        }
        0
    }

    /// The offsets at which the content may change.
    pub(crate) fn edges(&self) -> impl Iterator<Item = u64> {
        let of_pieces = |piece: &Piece| [piece.start, piece.start + piece.length];
        self.images.iter().flat_map(move |image| image.pieces.iter().flat_map(of_pieces).chain([image.size]))
    }
}

fn covering(pieces: &[Piece], offset: u64) -> Option<&Piece> {
    let after = pieces.partition_point(|piece| piece.start <= offset);
    pieces.get(after.checked_sub(1)?).filter(|piece| offset < piece.start + piece.length)
}

/// Spreads `data` bytes over `size` in at most so many equal pieces at equal distances, the first at `shift`.
pub(crate) fn spread(size: u64, data: u64, pieces: u64, salt: u64, shift: u64) -> Vec<Piece> {
    if data == 0 {
        return Vec::new();
    }
    let length = data.div_ceil(pieces).next_multiple_of(GRAIN);
    let count = data.div_ceil(length);
    let distance = (size / count / GRAIN * GRAIN).max(GRAIN);
    let piece = |index: u64| {
        let start = index * distance + shift;
        let byte = (start / GRAIN).wrapping_mul(31).wrapping_add(salt * 53) % 255 + 1;
        let length = length.min(size.checked_sub(start).filter(|left| *left > 0)?);
        Some(Piece { start, length, byte: byte as u8 }) // 1 to 255
    };
    (0..count).map_while(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn content_is_spread_without_overlap_and_inside() {
        for (size, data) in
            [(128 * MIB, 32 * MIB), (64 << 30, 8 * MIB), (MIB, MIB), (2048 * MIB, 1536 * MIB), (GRAIN, GRAIN)]
        {
            for shift in [0, GRAIN / 2] {
                let pieces = spread(size, data, PIECES, 1, shift);
                assert!(!pieces.is_empty() && pieces.len() as u64 <= PIECES);
                for pair in pieces.windows(2) {
                    assert!(pair[0].start + pair[0].length <= pair[1].start, "{size} {data}: {pair:?}");
                }
                assert!(pieces.iter().all(|piece| piece.start + piece.length <= size && piece.byte > 0));
                let total: u64 = pieces.iter().map(|piece| piece.length).sum::<u64>() + shift;
                assert!(total >= data * 9 / 10 && total <= data * 11 / 10 + shift, "{size} {data}: {total}");
            }
        }
    }

    #[test]
    fn an_image_hides_what_is_below_and_past_its_end() {
        let piece = |start, byte| Piece { start, length: 100, byte };
        let mut content = Content::default();
        content.push(1000, vec![piece(0, 1), piece(200, 2), piece(800, 3)]);
        content.push(500, vec![piece(50, 4)]);
        content.push(1000, vec![]);
        assert_eq!([0, 50, 149, 150, 250, 800].map(|at| content.at(at)), [1, 4, 4, 0, 2, 0]);
    }
}
