//! Where a file has room for blocks.

use crate::{SECTOR, VhdError};

/// What the data of blocks made here is aligned to, so that no sector of 4 KiB of a medium is written for two of them.
const ALIGNMENT: u64 = 4096;

/// The places of all blocks, and where the search for room goes on: what is allocated in a row lies in a row, as far as it can.
#[derive(Clone, Debug)]
pub struct Space {
    /// First sectors, ascending.
    taken: Vec<u32>,
    /// Those of them that the search has passed.
    passed: usize,
    /// Where the last thing ends that it has passed.
    behind: u64,
    bitmap: u64,
    block: u64,
}

impl Space {
    /// Blocks at these sectors, which ascend, behind the structures that end at byte `behind`; the bytes of a bitmap and of a block.
    pub(crate) fn new(taken: Vec<u32>, behind: u64, bitmap: u64, block: u64) -> Self {
        Self { taken, passed: 0, behind, bitmap, block }
    }

    /// Takes room for a block, behind the end of the file if need be; where its data begins. Room is left for a footer before its bitmap,
    /// so that the one at the end of the file is not written over before there is another.
    pub fn allocate(&mut self) -> Result<u64, VhdError> {
        loop {
            let at = (self.behind + SECTOR + self.bitmap).next_multiple_of(ALIGNMENT);
            match self.taken.get(self.passed).map(|sector| u64::from(*sector) * SECTOR) {
                Some(taken) if taken < at + self.block => {
                    self.behind = taken + self.bitmap + self.block;
                    self.passed += 1;
                }
                // The last sector number means that there is no block.
                _ if (at - self.bitmap) / SECTOR >= u64::from(u32::MAX) => return Err(VhdError::Full),
                _ => {
                    self.behind = at + self.block;
                    return Ok(at);
                }
            }
        }
    }

    /// The end of what is taken.
    pub fn end(&self) -> u64 {
        let last = self.taken.last().map_or(0, |sector| u64::from(*sector) * SECTOR + self.bitmap + self.block);
        self.behind.max(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 2 << 20;

    #[test]
    fn gaps_are_filled_in_order_and_then_the_end_grows() {
        let mut empty = Space::new(Vec::new(), 2560, SECTOR, BLOCK);
        let places: Vec<u64> = (0..5).map(|_| empty.allocate().expect("room")).collect();
        assert_eq!(places[0], 4096);
        assert!(places.windows(2).all(|pair| pair[1] == pair[0] + BLOCK + ALIGNMENT), "{places:?}");
        assert_eq!(empty.end(), places[4] + BLOCK);
        let taken = [places[0], places[2], places[3]].map(|at| (at / SECTOR) as u32 - 1);
        let mut space = Space::new(taken.to_vec(), 2560, SECTOR, BLOCK);
        assert_eq!(space.end(), places[3] + BLOCK);
        assert_eq!(space.allocate().expect("room"), places[1]);
        assert_eq!(space.allocate().expect("room"), places[4]);
        assert_eq!(space.end(), places[4] + BLOCK);
    }

    #[test]
    fn no_block_lies_where_the_table_cannot_say_it() {
        let end = u64::from(u32::MAX) * SECTOR;
        let mut space = Space::new(Vec::new(), end - BLOCK - ALIGNMENT, SECTOR, BLOCK);
        assert!(space.allocate().is_ok());
        assert!(matches!(space.allocate(), Err(VhdError::Full)));
    }
}
