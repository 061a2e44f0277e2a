//! New streams of the shape that XAPI exports.

use uuid::Uuid;

use super::head::UNUSED;
use super::header::PARENT_NAME_UNITS;
use super::wire::{put, round_to_sector};
use super::{
    BLOCK_SIZE, DiskType, FOOTER_SIZE, Footer, Geometry, HEADER_SIZE, Head, HeadParser, Header, ParentLocator, Parsed,
    SECTOR_SIZE, WriteError,
};

const LOCATOR_OFFSET: u64 = (FOOTER_SIZE + HEADER_SIZE) as u64;
const TABLE_OFFSET: u64 = LOCATOR_OFFSET + SECTOR_SIZE as u64;

/// One bitmap sector covers the 4096 sectors of a block; every block is sent whole.
const FULL_BITMAP: [u8; SECTOR_SIZE] = [0xff; SECTOR_SIZE];

/// The disk that a new stream describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// Size in bytes, a multiple of a sector.
    pub virtual_size: u64,
    /// Identity of the stream; XAPI takes a random one each time.
    pub unique_id: Uuid,
    /// Four letters that name the program. qemu-img trusts the size only of makers that it knows,
    /// `tap\0` among them, and otherwise computes it from the geometry.
    pub creator: [u8; 4],
    /// With a parent the disk is differencing, without one dynamic.
    pub parent: Option<Parent>,
}

/// What a differencing stream says of the disk below. Importers do not look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Unique id of its footer.
    pub unique_id: Uuid,
    /// Its change time, seconds since 2000-01-01.
    pub timestamp: u32,
    /// Its path.
    pub path: String,
}

/// A piece of a stream to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamPart<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// The disk's content from byte `offset` on. Where the disk ends earlier, zeroes follow.
    Disk {
        /// First byte on the disk.
        offset: u64,
        /// Bytes, always one block.
        length: u32,
    },
}

/// A stream laid out before a byte of data is read: footer, header, an empty locator sector, BAT,
/// ascending blocks of 2 MiB with full bitmaps, footer.
#[derive(Debug, Clone)]
pub struct Writer {
    head: Head,
}

impl Writer {
    /// Lays out a stream of `disk` that holds `used` blocks, which have to ascend.
    pub fn new(disk: &NewDisk, used: &[u32]) -> Result<Self, WriteError> {
        let blocks = disk.virtual_size.div_ceil(u64::from(BLOCK_SIZE));
        let too_large = || WriteError::TooLarge { size: disk.virtual_size, blocks: used.len() };
        let ascending = used.windows(2).find(|pair| pair[0] >= pair[1]).map(|pair| pair[1]);
        let inside = used.last().copied().filter(|block| u64::from(*block) >= blocks);
        if let Some(block) = ascending.or(inside) {
            return Err(WriteError::BadBlock { block, blocks });
        }
        let header = header(disk, u32::try_from(blocks).map_err(|_| too_large())?)?;

        let mut raw = footer(disk).encode().to_vec();
        raw.extend_from_slice(&header.encode());
        raw.resize(TABLE_OFFSET as usize, 0);
        // The decoder repeats this check; here it keeps the allocation small.
        if header.table_entries > super::MAX_TABLE_ENTRIES {
            return Err(too_large());
        }
        raw.resize(header.table_end() as usize, 0xff);
        let mut next = header.table_end() / SECTOR_SIZE as u64;
        for block in used {
            let entry = u32::try_from(next).ok().filter(|entry| *entry != UNUSED);
            let at = TABLE_OFFSET as usize + 4 * *block as usize;
            put(&mut raw, at, &entry.ok_or_else(too_large)?.to_be_bytes());
            next += header.block_length() / SECTOR_SIZE as u64;
        }
        match HeadParser::new().feed(&mut raw.as_slice())? {
            Parsed::Head(head) => Ok(Self { head }),
            Parsed::More(_) => unreachable!("the bytes go up to the end of the BAT"),
        }
    }

    /// The head of the stream, as its reader will see it; it knows the stream's length.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The whole stream in order.
    pub fn parts(&self) -> impl Iterator<Item = StreamPart<'_>> {
        let blocks = self.head.block_numbers().flat_map(|block| {
            let offset = u64::from(block) * u64::from(BLOCK_SIZE);
            [StreamPart::Bytes(&FULL_BITMAP), StreamPart::Disk { offset, length: BLOCK_SIZE }]
        });
        let footer = StreamPart::Bytes(self.head.raw_footer());
        [StreamPart::Bytes(self.head.raw())].into_iter().chain(blocks).chain([footer])
    }
}

fn footer(disk: &NewDisk) -> Footer {
    Footer {
        features: 2,
        header_offset: FOOTER_SIZE as u64,
        timestamp: 0,
        creator: disk.creator,
        creator_version: 1,
        creator_host_os: 0,
        original_size: disk.virtual_size,
        virtual_size: disk.virtual_size,
        geometry: Geometry::of_size(disk.virtual_size),
        disk_type: match disk.parent {
            None => DiskType::Dynamic,
            Some(_) => DiskType::Differencing,
        },
        unique_id: disk.unique_id,
        saved_state: false,
    }
}

fn header(disk: &NewDisk, table_entries: u32) -> Result<Header, WriteError> {
    let mut header = Header {
        table_offset: TABLE_OFFSET,
        table_entries,
        block_size: BLOCK_SIZE,
        parent_id: Uuid::nil(),
        parent_timestamp: 0,
        parent_name: Vec::new(),
        parent_locators: [ParentLocator::default(); 8],
    };
    let Some(parent) = &disk.parent else {
        return Ok(header);
    };
    header.parent_id = parent.unique_id;
    header.parent_timestamp = parent.timestamp;
    header.parent_name = parent.path.encode_utf16().collect();
    let url_length = "file://".len() + parent.path.len();
    // The locator's sector stays empty, as in XAPI's streams, but the path has to fit into it.
    if header.parent_name.len() > PARENT_NAME_UNITS || round_to_sector(url_length as u64) > SECTOR_SIZE as u64 {
        return Err(WriteError::ParentPathTooLong { path: parent.path.clone() });
    }
    header.parent_locators[0] =
        ParentLocator { platform: *b"MacX", space: 1, length: url_length as u32, offset: LOCATOR_OFFSET };
    Ok(header)
}
