//! The header: where the BAT is, and how large blocks are.
//!
//! ```text
//!  0  cookie "cxsparse"     24 version 0x00010000     36 checksum
//!  8  all ff                28 entries of the BAT     40 parent: zeroes for a dynamic disk
//! 16  offset of the BAT     32 block size
//! ```

use crate::footer::VERSION;
use crate::wire::{checksum, put, seal, u32_at, u64_at};
use crate::{SECTOR, Storage, VhdError};

const COOKIE: &[u8; 8] = b"cxsparse";
const PART: &str = "header";
const CHECKSUM: usize = 36;
/// Its length in bytes.
pub(crate) const SIZE: usize = 1024;
/// Longer BATs are not read: the places of all blocks have to fit in memory. One of 2040 GiB in blocks of 512 KiB, the smallest that
/// anybody makes, is as long.
const MAX_ENTRIES: u32 = 4 << 20;
/// The smallest block whose bitmap has whole bytes, and the largest whose bitmap is read at once.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4096..=256 << 20;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Where the BAT begins.
    pub(crate) table: u64,
    /// Entries that it has, which may be more than the disk has blocks.
    pub(crate) entries: u32,
    /// Bytes of a block.
    pub(crate) block_size: u32,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; SIZE] {
        let mut raw = [0; SIZE];
        put(&mut raw, 0, COOKIE);
        put(&mut raw, 8, &[0xff; 8]);
        put(&mut raw, 16, &self.table.to_be_bytes());
        put(&mut raw, 24, &VERSION.to_be_bytes());
        put(&mut raw, 28, &self.entries.to_be_bytes());
        put(&mut raw, 32, &self.block_size.to_be_bytes());
        seal(&mut raw, CHECKSUM);
        raw
    }

    /// Reads the one at byte `at` of a file.
    pub(crate) fn read(file: &impl Storage, at: u64) -> Result<Self, VhdError> {
        let wrong = |problem: String| VhdError::wrong(PART, at, problem);
        let length = file.length()?;
        let cut = |end: Option<u64>| end.is_none_or(|end| end > length);
        if at < SECTOR || cut(at.checked_add(SIZE as u64)) {
            return Err(wrong(format!("the file has {length} bytes, and a footer before it")));
        }
        let mut raw = [0; SIZE];
        file.read_at(at, &mut raw)?;
        if raw[..8] != *COOKIE || u32_at(&raw, CHECKSUM) != checksum(&raw, CHECKSUM) {
            return Err(wrong("its cookie or its checksum".to_owned()));
        }
        let version = u32_at(&raw, 24);
        if version >> 16 != VERSION >> 16 {
            return Err(wrong(format!("version {version:#x}")));
        }
        let header = Self { table: u64_at(&raw, 16), entries: u32_at(&raw, 28), block_size: u32_at(&raw, 32) };
        if !header.block_size.is_power_of_two() || !BLOCK_SIZES.contains(&header.block_size) {
            return Err(wrong(format!("blocks of {} bytes", header.block_size)));
        }
        let apart = header.table.is_multiple_of(SECTOR) && header.table >= at + SIZE as u64;
        if header.entries > MAX_ENTRIES || !apart {
            return Err(wrong(format!("a BAT of {} entries at byte {}", header.entries, header.table)));
        }
        if cut(header.table.checked_add(header.table_length())) {
            return Err(wrong(format!("the file ends at byte {length}, within the BAT: it was cut off")));
        }
        Ok(header)
    }

    /// Bytes that the BAT takes: whole sectors.
    pub(crate) fn table_length(&self) -> u64 {
        (u64::from(self.entries) * 4).next_multiple_of(SECTOR)
    }

    /// Bytes of the sector bitmap before a block's data: whole sectors.
    pub(crate) fn bitmap_length(&self) -> u64 {
        (u64::from(self.block_size) / SECTOR / 8).next_multiple_of(SECTOR)
    }
}
