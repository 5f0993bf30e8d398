//! The blocks the guest writes: every 512-byte sector says where it belongs and which write it is, so a block that is
//! stale, misplaced, torn or damaged is told apart from the right one.

use crate::{STEP, scatter};

/// The unit that is written as a whole or not at all.
pub const SECTOR: usize = 512;

const MAGIC: u64 = u64::from_le_bytes(*b"qf-block");

/// The stamp in a sector's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The disk it was written to.
    pub disk: usize,
    /// The slot on that disk.
    pub slot: u32,
    /// Which sector of the block this is.
    pub sector: u16,
    /// The number of the write.
    pub generation: u64,
}

impl Stamp {
    fn place(self) -> u64 {
        ((self.disk as u64) << 48) | (u64::from(self.sector) << 32) | u64::from(self.slot)
    }

    fn seed(self) -> u64 {
        scatter(self.place() ^ scatter(self.generation))
    }
}

/// Why a sector is not one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The guest never wrote this sector: backing data, zeroes, or something foreign.
    Foreign,
    /// The header is the guest's, but the content is not what that header promises.
    Corrupt(Stamp),
}

/// Fills a block, whose length is a multiple of [`SECTOR`], for one write.
pub fn fill(block: &mut [u8], disk: usize, slot: u32, generation: u64) {
    for (sector, bytes) in (0..).zip(block.chunks_exact_mut(SECTOR)) {
        let stamp = Stamp { disk, slot, sector, generation };
        let seed = stamp.seed();
        for (index, word) in (0..).zip(bytes.chunks_exact_mut(8)) {
            word.copy_from_slice(&expected(stamp, seed, index).to_le_bytes());
        }
    }
}

/// Reads one sector's stamp and checks all of its content against it.
///
/// # Errors
/// The damage of the sector.
pub fn read(sector: &[u8]) -> Result<Stamp, Damage> {
    let mut words =
        sector.chunks_exact(8).map(|word| word.iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)));
    let (Some(MAGIC), Some(place), Some(generation)) = (words.next(), words.next(), words.next()) else {
        return Err(Damage::Foreign);
    };
    let stamp = Stamp {
        disk: (place >> 48) as usize,
        slot: place as u32, // the low half, by construction
        sector: (place >> 32) as u16,
        generation,
    };
    let seed = stamp.seed();
    let whole = sector.len() == SECTOR && (3..).zip(words).all(|(index, word)| word == expected(stamp, seed, index));
    if whole { Ok(stamp) } else { Err(Damage::Corrupt(stamp)) }
}

/// One word of a sector. All words behind the header depend on it, so a damaged header shows as well.
fn expected(stamp: Stamp, seed: u64, index: u64) -> u64 {
    match index {
        0 => MAGIC,
        1 => stamp.place(),
        2 => stamp.generation,
        _ => seed.wrapping_add(index.wrapping_mul(STEP)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> Vec<u8> {
        let mut block = vec![0; 4096];
        fill(&mut block, 2, 77, 1234);
        block
    }

    #[test]
    fn a_block_knows_itself() {
        for (sector, bytes) in (0..).zip(block().chunks(SECTOR)) {
            assert_eq!(read(bytes), Ok(Stamp { disk: 2, slot: 77, sector, generation: 1234 }));
        }
    }

    #[test]
    fn any_changed_byte_shows() {
        let good = block();
        for at in 0..SECTOR {
            let mut bad = good[..SECTOR].to_vec();
            bad[at] ^= 0x10;
            assert!(read(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn zeroes_and_short_sectors_are_foreign() {
        assert_eq!(read(&[0; SECTOR]), Err(Damage::Foreign));
        assert!(read(&block()[..SECTOR - 8]).is_err());
    }
}
