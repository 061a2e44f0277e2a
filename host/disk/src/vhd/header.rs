//! The dynamic disk header: where the BAT is, how large blocks are, what the parent was.
//!
//! ```text
//!   0  cookie "cxsparse"      32 block size           64 parent name, UTF-16BE, 512 bytes
//!   8  all ff                 36 checksum            576 8 parent locators of 24 bytes
//!  16  offset of the BAT      40 parent id           768 reserved
//!  24  version 0x00010000     56 parent timestamp
//!  28  BAT entries            60 reserved
//! ```

use uuid::Uuid;

use super::footer::VERSION;
use super::wire::{bytes_at, checksum, put, round_to_sector, u32_at, u64_at};
use super::{
    HEADER_SIZE, MAX_BLOCK_SIZE, MAX_TABLE_ENTRIES, MAX_TABLE_OFFSET, MIN_BLOCK_SIZE, Part, SECTOR_SIZE, VhdError,
};

const COOKIE: &[u8; 8] = b"cxsparse";
const CHECKSUM_AT: usize = 36;
const PARENT_NAME_AT: usize = 64;
/// UTF-16 units that the parent's name may have.
pub(super) const PARENT_NAME_UNITS: usize = 256;
const LOCATORS_AT: usize = 576;
const LOCATOR_SIZE: usize = 24;

/// Where one form of the parent's path stands in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ParentLocator {
    /// Which form: `MacX` is a `file://` URL, zero is none.
    pub platform: [u8; 4],
    /// Room kept for it. XAPI counts sectors, others count bytes.
    pub space: u32,
    /// Its length in bytes.
    pub length: u32,
    /// Its byte in the file. An XAPI stream has zeroes there.
    pub offset: u64,
}

/// The dynamic disk header. What it says of the parent identifies nothing in a stream: XAPI
/// writes id and path of a file on the storage repository, never the VDI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Byte at which the BAT starts, a multiple of a sector.
    pub table_offset: u64,
    /// Entries of the BAT.
    pub table_entries: u32,
    /// Bytes of a block, a power of two.
    pub block_size: u32,
    /// Unique id of the parent's footer.
    pub parent_id: Uuid,
    /// Change time of the parent, seconds since 2000-01-01.
    pub parent_timestamp: u32,
    /// Path of the parent, UTF-16 units up to the first zero.
    pub parent_name: Vec<u16>,
    /// Further forms of the parent's path.
    pub parent_locators: [ParentLocator; 8],
}

impl Header {
    /// Decodes and checks a header that stands at byte `at` of the stream.
    pub fn decode(raw: &[u8; HEADER_SIZE], at: u64) -> Result<Self, VhdError> {
        let part = Part::Header;
        let found: [u8; 8] = bytes_at(raw, 0);
        if found != *COOKIE {
            return Err(VhdError::BadCookie { at, part, found });
        }
        let (stored, computed) = (u32_at(raw, CHECKSUM_AT), checksum(raw, CHECKSUM_AT));
        if stored != computed {
            return Err(VhdError::BadChecksum { at: at + CHECKSUM_AT as u64, part, stored, computed });
        }
        let found = u32_at(raw, 24);
        if found >> 16 != VERSION >> 16 {
            return Err(VhdError::UnknownVersion { at: at + 24, part, found });
        }
        let table_offset = u64_at(raw, 16);
        let behind_header = at + HEADER_SIZE as u64;
        if !(behind_header..=MAX_TABLE_OFFSET).contains(&table_offset)
            || !table_offset.is_multiple_of(SECTOR_SIZE as u64)
        {
            return Err(VhdError::TableOutOfPlace { at: at + 16, offset: table_offset });
        }
        let table_entries = u32_at(raw, 28);
        if table_entries > MAX_TABLE_ENTRIES {
            return Err(VhdError::TableTooLong { at: at + 28, entries: table_entries });
        }
        let block_size = u32_at(raw, 32);
        if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
            return Err(VhdError::BadBlockSize { at: at + 32, found: block_size });
        }
        Ok(Self {
            table_offset,
            table_entries,
            block_size,
            parent_id: Uuid::from_bytes(bytes_at(raw, 40)),
            parent_timestamp: u32_at(raw, 56),
            parent_name: (0..PARENT_NAME_UNITS)
                .map(|unit| u16::from_be_bytes(bytes_at(raw, PARENT_NAME_AT + 2 * unit)))
                .take_while(|unit| *unit != 0)
                .collect(),
            parent_locators: std::array::from_fn(|index| {
                let at = LOCATORS_AT + LOCATOR_SIZE * index;
                ParentLocator {
                    platform: bytes_at(raw, at),
                    space: u32_at(raw, at + 4),
                    length: u32_at(raw, at + 8),
                    offset: u64_at(raw, at + 16),
                }
            }),
        })
    }

    /// The header's bytes, checksum included. A name longer than its field is cut.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut raw = [0; HEADER_SIZE];
        put(&mut raw, 0, COOKIE);
        put(&mut raw, 8, &[0xff; 8]);
        put(&mut raw, 16, &self.table_offset.to_be_bytes());
        put(&mut raw, 24, &VERSION.to_be_bytes());
        put(&mut raw, 28, &self.table_entries.to_be_bytes());
        put(&mut raw, 32, &self.block_size.to_be_bytes());
        put(&mut raw, 40, self.parent_id.as_bytes());
        put(&mut raw, 56, &self.parent_timestamp.to_be_bytes());
        for (index, unit) in self.parent_name.iter().take(PARENT_NAME_UNITS).enumerate() {
            put(&mut raw, PARENT_NAME_AT + 2 * index, &unit.to_be_bytes());
        }
        for (index, locator) in self.parent_locators.iter().enumerate() {
            let at = LOCATORS_AT + LOCATOR_SIZE * index;
            put(&mut raw, at, &locator.platform);
            put(&mut raw, at + 4, &locator.space.to_be_bytes());
            put(&mut raw, at + 8, &locator.length.to_be_bytes());
            put(&mut raw, at + 16, &locator.offset.to_be_bytes());
        }
        let sum = checksum(&raw, CHECKSUM_AT);
        put(&mut raw, CHECKSUM_AT, &sum.to_be_bytes());
        raw
    }

    /// Bytes of the BAT, padding to a sector included.
    pub(super) fn table_length(&self) -> u64 {
        round_to_sector(4 * u64::from(self.table_entries))
    }

    /// First byte behind the BAT.
    pub(super) fn table_end(&self) -> u64 {
        self.table_offset + self.table_length()
    }

    /// Sectors of one block.
    pub(super) const fn sectors_per_block(&self) -> u32 {
        self.block_size / SECTOR_SIZE as u32
    }

    /// Bytes of the sector bitmap in front of each block: one bit a sector, whole sectors.
    pub(super) fn bitmap_length(&self) -> u64 {
        round_to_sector(u64::from(self.sectors_per_block() / 8))
    }

    /// Bytes that one used block takes in the stream.
    pub(super) fn block_length(&self) -> u64 {
        self.bitmap_length() + u64::from(self.block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let mut parent_locators = [ParentLocator::default(); 8];
        parent_locators[7] = ParentLocator { platform: *b"W2ku", space: 512, length: 24, offset: 1536 };
        Header {
            table_offset: 2048,
            table_entries: 8,
            block_size: 2 << 20,
            parent_id: Uuid::from_u128(0x77),
            parent_timestamp: 5,
            parent_name: "/über/base.vhd".encode_utf16().collect(),
            parent_locators,
        }
    }

    fn changed(at: usize, bytes: &[u8]) -> [u8; HEADER_SIZE] {
        let mut raw = header().encode();
        put(&mut raw, at, bytes);
        let sum = checksum(&raw, CHECKSUM_AT);
        put(&mut raw, CHECKSUM_AT, &sum.to_be_bytes());
        raw
    }

    #[test]
    fn a_header_survives_encode_and_decode() {
        assert_eq!(Header::decode(&header().encode(), 512), Ok(header()));
    }

    #[test]
    fn each_damage_has_its_own_error() {
        let decode = |raw: [u8; HEADER_SIZE]| Header::decode(&raw, 512).unwrap_err();
        assert!(matches!(decode([0; 1024]), VhdError::BadCookie { at: 512, part: Part::Header, .. }));
        let mut flipped = header().encode();
        flipped[1000] ^= 1;
        assert!(matches!(decode(flipped), VhdError::BadChecksum { at: 548, .. }));
        let wrong = |field, bytes: &[u8]| decode(changed(field, bytes));
        assert!(matches!(wrong(24, &[9]), VhdError::UnknownVersion { at: 536, .. }));
        for offset in [0u64, 512, 1535, 1537, 2 << 20, u64::MAX] {
            assert_eq!(wrong(16, &offset.to_be_bytes()), VhdError::TableOutOfPlace { at: 528, offset });
        }
        let entries = MAX_TABLE_ENTRIES + 1;
        assert_eq!(wrong(28, &entries.to_be_bytes()), VhdError::TableTooLong { at: 540, entries });
        for found in [0u32, 512, 2048, 4097, (2 << 20) - 512, 512 << 20, u32::MAX] {
            assert_eq!(wrong(32, &found.to_be_bytes()), VhdError::BadBlockSize { at: 544, found });
        }
    }

    #[test]
    fn the_bitmap_of_a_large_block_has_several_sectors() {
        let bitmap = |block_size| Header { block_size, ..header() }.bitmap_length();
        assert_eq!([bitmap(4096), bitmap(2 << 20), bitmap(4 << 20)], [512, 512, 1024]);
    }
}
