//! Changed-block tracking: the bitmap that XAPI's `VDI.list_changed_blocks` answers.
//!
//! One bit stands for 64 KiB of disk, the highest bit of the first byte for the first 64 KiB. The
//! bitmap ends with a whole byte; bits behind the end of the disk mean nothing.

use crate::digest::{LEAF_SIZE, leaf_count};
use crate::extent::{Extent, Extents};

/// Bytes of disk that one bit stands for. A digest leaf is the same range.
pub const CBT_BLOCK_SIZE: u64 = LEAF_SIZE;

/// A bitmap does not describe the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CbtError {
    /// It is too short or too long, so it belongs to another disk or was cut.
    #[error(
        "the bitmap of changed blocks has {found} bytes, a disk of {disk_size} bytes has {expected}: \
         copy it by another way"
    )]
    WrongLength {
        /// Bytes that the disk's bitmap has.
        expected: u64,
        /// Bytes that it has.
        found: u64,
        /// Size of the disk in bytes.
        disk_size: u64,
    },
}

/// Bytes of the bitmap of a disk of `disk_size` bytes.
pub const fn bitmap_length(disk_size: u64) -> u64 {
    leaf_count(disk_size).div_ceil(8)
}

/// What changed on a disk of `disk_size` bytes, by a `bitmap` that base64 was taken off. Ranges are
/// whole blocks of 64 KiB, the last one up to the end of the disk.
pub fn changed_extents(bitmap: &[u8], disk_size: u64) -> Result<Extents, CbtError> {
    let (expected, found) = (bitmap_length(disk_size), bitmap.len() as u64);
    if found != expected {
        return Err(CbtError::WrongLength { expected, found, disk_size });
    }
    let changed = (0..).zip(bitmap).filter(|(_, bits)| **bits != 0).flat_map(|(byte, bits)| {
        let is_set = move |bit: &u64| bits & (0x80 >> bit) != 0;
        let block = move |bit| Extent { offset: (8 * byte + bit) * CBT_BLOCK_SIZE, length: CBT_BLOCK_SIZE };
        (0..8).filter(is_set).map(block)
    });
    Ok(changed.collect::<Extents>().clipped(disk_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_is_the_highest_bit_of_the_first_byte() {
        let disk_size = 16 * CBT_BLOCK_SIZE;
        let changed = changed_extents(&[0b1000_0001, 0b1000_0000], disk_size).unwrap();
        let expected = [(0, CBT_BLOCK_SIZE), (7 * CBT_BLOCK_SIZE, 2 * CBT_BLOCK_SIZE)];
        assert_eq!(changed.iter().map(|e| (e.offset, e.length)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn bits_behind_the_end_of_the_disk_mean_nothing() {
        let disk_size = 2 * CBT_BLOCK_SIZE + 512;
        let changed = changed_extents(&[0b0011_1111], disk_size).unwrap();
        assert_eq!(changed.iter().collect::<Vec<_>>(), [Extent { offset: 2 * CBT_BLOCK_SIZE, length: 512 }]);
        assert_eq!(changed_extents(&[], 0), Ok(Extents::new()));
    }

    #[test]
    fn a_bitmap_of_another_length_is_refused() {
        let refused = |bitmap: &[u8], disk_size| changed_extents(bitmap, disk_size).unwrap_err();
        let disk_size = 8 * CBT_BLOCK_SIZE;
        assert_eq!(refused(&[], disk_size), CbtError::WrongLength { expected: 1, found: 0, disk_size });
        let disk_size = disk_size + 1;
        assert_eq!(refused(&[0], disk_size), CbtError::WrongLength { expected: 2, found: 1, disk_size });
        assert_eq!(
            refused(&[0; 3], disk_size).to_string(),
            "the bitmap of changed blocks has 3 bytes, a disk of 524289 bytes has 2: copy it by another way"
        );
    }
}
