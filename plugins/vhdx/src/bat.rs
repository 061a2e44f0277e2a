//! The block allocation table: for each block where it is. After the entries of as many blocks as one sector bitmap covers (the
//! *chunk ratio*), one of that bitmap follows.

use crate::{Disk, MIB, VhdxError};

pub(crate) const ENTRY_SIZE: u64 = 8;
const OFFSET_MASK: u64 = !(MIB - 1);
/// Sectors that one sector bitmap covers.
const SECTORS_OF_BITMAP: u64 = 1 << 23;

/// Where the data of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Not in this file: in the parent, or zeroes where there is none.
    Absent,
    /// All zeroes.
    Zero,
    /// From this byte of the file on.
    Present(u64),
    /// Some of its sectors are here from this byte on, the others in the parent. Never written here.
    Partial(u64),
}

impl Block {
    pub(crate) fn decode(entry: u64, block: u64) -> Result<Self, VhdxError> {
        let offset = entry & OFFSET_MASK;
        match entry & 7 {
            0 => Ok(Self::Absent),
            // Undefined and unmapped: whatever was there nobody wants any more.
            1..=3 => Ok(Self::Zero),
            6 => Ok(Self::Present(offset)),
            7 => Ok(Self::Partial(offset)),
            state => Err(VhdxError::wrong("BAT", 0, format!("block {block} has the unknown state {state}"))),
        }
    }

    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Zero => 2,
            Self::Present(offset) => offset | 6,
            Self::Partial(offset) => offset | 7,
        }
    }

    /// Where it is, if anything of it is here.
    pub fn offset(self) -> Option<u64> {
        match self {
            Self::Absent | Self::Zero => None,
            Self::Present(offset) | Self::Partial(offset) => Some(offset),
        }
    }
}

/// Blocks between two entries of sector bitmaps.
pub(crate) fn chunk_ratio(disk: &Disk) -> u64 {
    SECTORS_OF_BITMAP * u64::from(disk.logical_sector) / u64::from(disk.block_size)
}

/// Number of the entry of `block`.
pub(crate) fn entry_of(disk: &Disk, block: u64) -> u64 {
    block + block / chunk_ratio(disk)
}

/// Number of entries that the disk needs.
pub(crate) fn entries(disk: &Disk) -> u64 {
    let (blocks, ratio) = (disk.blocks(), chunk_ratio(disk));
    match disk.parent {
        None => blocks + (blocks - 1) / ratio,
        Some(_) => blocks.div_ceil(ratio) * (ratio + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Guid, Parent};

    fn disk(size: u64) -> Disk {
        Disk { size, block_size: 1 << 20, id: Guid::NIL, logical_sector: 512, physical_sector: 4096, parent: None }
    }

    #[test]
    fn a_bitmap_s_entry_stands_behind_each_4_gib() {
        let small = disk(4 << 30);
        assert_eq!((chunk_ratio(&small), entries(&small)), (4096, 4096));
        let more = disk((4 << 30) + 512);
        assert_eq!((entries(&more), entry_of(&more, 4095), entry_of(&more, 4096)), (4098, 4095, 4097));
        let parent = Some(Parent { linkage: Guid::NIL, relative_path: String::new() });
        assert_eq!(entries(&Disk { parent, ..more }), 2 * 4097);
    }

    #[test]
    fn entries_say_what_blocks_are() {
        for block in [Block::Absent, Block::Zero, Block::Present(5 << 20), Block::Partial(63 << 40)] {
            assert_eq!(Block::decode(block.encode(), 0).expect("an entry"), block);
        }
        for state in [1, 3] {
            assert_eq!(Block::decode(state, 0).expect("an entry"), Block::Zero);
        }
        for state in [4, 5] {
            assert!(Block::decode(state, 0).is_err());
        }
    }
}
