//! The VHD format: encoding as XAPI exports it, decoding as it imports it. No I/O.
//!
//! An export is strictly sequential, all numbers big-endian:
//!
//! ```text
//!    0  footer copy, 512 bytes
//!  512  dynamic header, 1024 bytes
//! 1536  one sector of zeroes, where a parent locator would be
//! 2048  block allocation table, four bytes an entry, padded with ff to a sector
//!       per block: bitmap, 512 bytes all ones, then 2 MiB of data; no gaps
//!  end  the footer again
//! ```

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{BLOCK_SIZE, SECTOR_SIZE};

pub(crate) const FOOTER_SIZE: usize = 512;
pub(crate) const HEADER_SIZE: usize = 1024;
/// One sector covers the 4096 sectors of a block.
const BITMAP_SIZE: u64 = SECTOR_SIZE;
const TABLE_OFFSET: u64 = 2048;
const LOCATOR_OFFSET: u64 = 1536;
/// A table entry of a block that is not there.
const UNUSED: u32 = u32::MAX;

const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Seconds between the Unix epoch and 2000-01-01, where VHD time starts.
const VHD_EPOCH: i64 = 946_684_800;

/// A VHD file cannot describe more; larger disks are refused.
pub(crate) const MAX_SIZE: u64 = 2040 << 30;

/// What a differencing stream says about the file it was made against. It identifies nothing: the uuid
/// is that of a file on the SR, not of a VDI.
#[derive(Clone, Debug)]
pub(crate) struct Parent {
    pub(crate) uuid: Uuid,
    /// In VHD time.
    pub(crate) timestamp: u32,
    pub(crate) path: String,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum VhdError {
    #[error("the footer has no cookie")]
    NoFooter,
    #[error("the header has no cookie")]
    NoHeader,
    #[error("the checksum of the {0} is wrong")]
    Checksum(&'static str),
    #[error("a block size of {0} bytes is not supported")]
    BlockSize(u32),
    #[error("the stream would have to be read backwards at {0}")]
    Backwards(u64),
    #[error("{0} blocks are more than a disk can have")]
    TooManyBlocks(u32),
}

/// Unix seconds as VHD time.
pub(crate) fn timestamp(unix_seconds: i64) -> u32 {
    u32::try_from(unix_seconds - VHD_EPOCH).unwrap_or(0)
}

/// The stream up to the first block, and the footer that closes it.
pub(crate) struct Head {
    pub(crate) bytes: Vec<u8>,
    pub(crate) footer: Vec<u8>,
}

/// `uuid` is new for every export; `blocks` are those that will follow, in ascending order.
pub(crate) fn encode_head(size: u64, blocks: &BTreeSet<u64>, uuid: Uuid, parent: Option<&Parent>) -> Head {
    // Disks without VHD backing may have any size; the stream rounds up.
    let size = size.next_multiple_of(BLOCK_SIZE);
    let entries = size / BLOCK_SIZE;
    let footer = encode_footer(size, uuid, parent.is_some());
    let mut bytes = footer.clone();
    bytes.extend(encode_header(entries, parent));
    bytes.resize(TABLE_OFFSET as usize, 0);

    let table_size = (4 * entries).next_multiple_of(SECTOR_SIZE);
    let first_block = (TABLE_OFFSET + table_size) / SECTOR_SIZE;
    let mut table = vec![0xff; table_size as usize];
    for (position, block) in blocks.iter().enumerate() {
        let sector = first_block + position as u64 * (BITMAP_SIZE + BLOCK_SIZE) / SECTOR_SIZE;
        put(&mut table, 4 * *block as usize, &(sector as u32).to_be_bytes());
    }
    bytes.extend(table);
    Head { bytes, footer }
}

/// Every sector of an exported block is marked as present.
pub(crate) fn full_bitmap() -> [u8; BITMAP_SIZE as usize] {
    [0xff; BITMAP_SIZE as usize]
}

pub(crate) fn stream_length(size: u64, blocks: usize) -> u64 {
    let table = (4 * size.div_ceil(BLOCK_SIZE)).next_multiple_of(SECTOR_SIZE);
    TABLE_OFFSET + table + blocks as u64 * (BITMAP_SIZE + BLOCK_SIZE) + FOOTER_SIZE as u64
}

fn encode_footer(size: u64, uuid: Uuid, differencing: bool) -> Vec<u8> {
    let mut footer = vec![0; FOOTER_SIZE];
    put(&mut footer, 0, b"conectix");
    put(&mut footer, 8, &2u32.to_be_bytes()); // features
    put(&mut footer, 12, &0x0001_0000u32.to_be_bytes()); // version
    put(&mut footer, 16, &(FOOTER_SIZE as u64).to_be_bytes()); // where the header is
    put(&mut footer, 28, b"caml");
    put(&mut footer, 32, &1u32.to_be_bytes()); // creator version
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 56, &geometry(size));
    put(&mut footer, 60, &(if differencing { DIFFERENCING } else { DYNAMIC }).to_be_bytes());
    put(&mut footer, 68, uuid.as_bytes());
    let sum = checksum(&footer);
    put(&mut footer, 64, &sum.to_be_bytes());
    footer
}

fn encode_header(entries: u64, parent: Option<&Parent>) -> Vec<u8> {
    let mut header = vec![0; HEADER_SIZE];
    put(&mut header, 0, b"cxsparse");
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &TABLE_OFFSET.to_be_bytes());
    put(&mut header, 24, &0x0001_0000u32.to_be_bytes());
    put(&mut header, 28, &(entries as u32).to_be_bytes());
    put(&mut header, 32, &(BLOCK_SIZE as u32).to_be_bytes());
    if let Some(parent) = parent {
        put(&mut header, 40, parent.uuid.as_bytes());
        put(&mut header, 56, &parent.timestamp.to_be_bytes());
        let name: Vec<u8> = parent.path.encode_utf16().take(256).flat_map(u16::to_be_bytes).collect();
        put(&mut header, 64, &name);
        // A locator entry without its data: XAPI announces `file://<path>` and sends zeroes.
        let url_length = "file://".len() + parent.path.len();
        put(&mut header, 576, b"MacX");
        put(&mut header, 580, &1u32.to_be_bytes());
        put(&mut header, 584, &(url_length as u32).to_be_bytes());
        put(&mut header, 592, &LOCATOR_OFFSET.to_be_bytes());
    }
    let sum = checksum(&header);
    put(&mut header, 36, &sum.to_be_bytes());
    header
}

/// Cylinders, heads, sectors by the usual algorithm of the format.
fn geometry(size: u64) -> [u8; 4] {
    let sectors = (size / SECTOR_SIZE).min(65535 * 16 * 255);
    let (per_track, heads, tracks);
    if sectors >= 65535 * 16 * 63 {
        (per_track, heads, tracks) = (255, 16, sectors / 255);
    } else {
        let at_17 = sectors / 17;
        let heads_at_17 = at_17.div_ceil(1024).max(4);
        if at_17 < heads_at_17 * 1024 && heads_at_17 <= 16 {
            (per_track, heads, tracks) = (17, heads_at_17, at_17);
        } else if sectors / 31 < 16 * 1024 {
            (per_track, heads, tracks) = (31, 16, sectors / 31);
        } else {
            (per_track, heads, tracks) = (63, 16, sectors / 63);
        }
    }
    let cylinders = (tracks / heads).min(65535) as u16;
    let [high, low] = cylinders.to_be_bytes();
    [high, low, heads as u8, per_track]
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// One's complement of the sum of all bytes, the checksum's own field not counted.
fn checksum(structure: &[u8]) -> u32 {
    !structure.iter().map(|byte| u32::from(*byte)).sum::<u32>()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

fn verify_checksum(structure: &[u8], at: usize, what: &'static str) -> Result<(), VhdError> {
    let mut without = structure.to_vec();
    put(&mut without, at, &[0; 4]);
    match checksum(&without) == u32_at(structure, at) {
        true => Ok(()),
        false => Err(VhdError::Checksum(what)),
    }
}

/// Where the header is. Disk type and parent are not looked at, as in XAPI.
pub(crate) fn decode_footer(footer: &[u8; FOOTER_SIZE]) -> Result<u64, VhdError> {
    if &footer[..8] != b"conectix" {
        return Err(VhdError::NoFooter);
    }
    verify_checksum(footer, 64, "footer")?;
    Ok(u64_at(footer, 16))
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) table_offset: u64,
    pub(crate) entries: u32,
    pub(crate) block_size: u64,
}

pub(crate) fn decode_header(header: &[u8; HEADER_SIZE]) -> Result<Header, VhdError> {
    if &header[..8] != b"cxsparse" {
        return Err(VhdError::NoHeader);
    }
    verify_checksum(header, 36, "header")?;
    let block_size = u32_at(header, 32);
    // From one bitmap byte up to what fits into memory on import.
    if !block_size.is_power_of_two() || !(4096..=64 << 20).contains(&block_size) {
        return Err(VhdError::BlockSize(block_size));
    }
    let entries = u32_at(header, 28);
    // 64 TiB in blocks of 2 MiB; a larger number is damage, not a disk.
    if entries > 32 << 20 {
        return Err(VhdError::TooManyBlocks(entries));
    }
    Ok(Header { table_offset: u64_at(header, 16), entries, block_size: block_size.into() })
}

impl Header {
    pub(crate) fn table_size(&self) -> usize {
        4 * self.entries as usize
    }

    pub(crate) fn bitmap_size(&self) -> usize {
        (self.block_size / SECTOR_SIZE).div_ceil(8).next_multiple_of(SECTOR_SIZE) as usize
    }

    /// The blocks of a stream in the order in which they come: (offset in the stream, block number).
    pub(crate) fn blocks_in_order(&self, table: &[u8]) -> Vec<(u64, u64)> {
        let entries = table.chunks_exact(4).map(|entry| u32_at(entry, 0)).enumerate();
        let mut blocks: Vec<(u64, u64)> = entries
            .filter(|(_, sector)| *sector != UNUSED)
            .map(|(block, sector)| (u64::from(sector) * SECTOR_SIZE, block as u64))
            .collect();
        blocks.sort_unstable();
        blocks
    }
}

/// Runs of set bits as (first sector, sectors). The highest bit of the first byte is sector 0.
pub(crate) fn runs(bitmap: &[u8], sectors: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for sector in 0..sectors {
        let byte = bitmap.get((sector / 8) as usize).copied().unwrap_or(0);
        if byte & (0x80 >> (sector % 8)) == 0 {
            continue;
        }
        match runs.last_mut() {
            Some((first, length)) if *first + *length == sector => *length += 1,
            _ => runs.push((sector, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn golden(name: &str) -> Vec<u8> {
        let path = format!("{}/tests/golden/{name}.gz", env!("CARGO_MANIFEST_DIR"));
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&path).unwrap();
        flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// What a stream written by the real library says of its parent.
    fn parent_of(stream: &[u8]) -> Option<Parent> {
        let header = &stream[FOOTER_SIZE..FOOTER_SIZE + HEADER_SIZE];
        let name: Vec<u16> =
            header[64..576].chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]])).collect();
        let path = String::from_utf16(&name).unwrap().trim_end_matches('\0').to_owned();
        let uuid = Uuid::from_slice(&header[40..56]).unwrap();
        (!uuid.is_nil()).then(|| Parent { uuid, timestamp: u32_at(header, 56), path })
    }

    /// With uuid and parent taken from the vector, every byte must be the same, checksums included.
    fn check(name: &str, disk: &str, present: &[u64]) {
        let stream = golden(name);
        let disk = golden(disk);
        let blocks = BTreeSet::from_iter(present.iter().copied());
        let uuid = Uuid::from_slice(&stream[68..84]).unwrap();
        let head = encode_head(disk.len() as u64, &blocks, uuid, parent_of(&stream).as_ref());
        let mut ours = head.bytes;
        for block in blocks {
            let start = (block * BLOCK_SIZE) as usize;
            ours.extend(full_bitmap());
            ours.extend(&disk[start..start + BLOCK_SIZE as usize]);
        }
        ours.extend(head.footer);
        assert_eq!(ours.len() as u64, stream_length(disk.len() as u64, present.len()), "{name}: length");
        let difference = ours.iter().zip(&stream).position(|(ours, theirs)| ours != theirs);
        assert_eq!((difference, ours.len()), (None, stream.len()), "{name}");
    }

    #[test]
    fn streams_equal_those_of_the_real_library_byte_for_byte() {
        check("full.out", "child.raw", &[0, 2, 4]);
        check("rv.out", "child.raw", &[0, 2, 4]);
        check("delta.out", "child.raw", &[0, 4]);
        check("hyb.out", "child.raw", &[0, 4]);
        check("sd.out", "child.raw", &[0, 3, 4]);
        check("back.out", "base.raw", &[0, 4]);
        check("same.out", "child.raw", &[]);
    }

    #[test]
    fn a_changed_byte_is_a_wrong_checksum() {
        let stream = golden("full.out");
        let footer: [u8; FOOTER_SIZE] = stream[..FOOTER_SIZE].try_into().unwrap();
        let header: [u8; HEADER_SIZE] = stream[FOOTER_SIZE..][..HEADER_SIZE].try_into().unwrap();
        assert_eq!(decode_footer(&footer), Ok(512));
        assert_eq!(decode_header(&header).map(|header| header.entries), Ok(8));
        let mut broken = footer;
        broken[300] ^= 1;
        assert_eq!(decode_footer(&broken), Err(VhdError::Checksum("footer")));
        let mut broken = header;
        broken[900] ^= 1;
        assert_eq!(decode_header(&broken), Err(VhdError::Checksum("header")));
        assert_eq!(decode_footer(&[0; FOOTER_SIZE]), Err(VhdError::NoFooter));
    }

    #[test]
    fn runs_follow_the_highest_bit_first() {
        assert_eq!(runs(&[0b1110_0001, 0b1000_0000], 16), [(0, 3), (7, 2)]);
        assert_eq!(runs(&[0xff; 512], 4096), [(0, 4096)]);
        assert_eq!(runs(&[0; 512], 4096), []);
    }
}
