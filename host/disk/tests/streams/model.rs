//! The oracle: a stream described in plain values, its bytes, and what it does to a plain disk.

use uuid::Uuid;
use vmferry_disk::vhd::{
    DiskType, Footer, Geometry, Head, HeadParser, Header, NewDisk, ParentLocator, Parsed, Piece, SECTOR_SIZE, Scan,
    ScanReport, StreamPart, VhdError, Writer,
};

/// A stream of any shape that the format allows.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) virtual_size: u64,
    pub(crate) block_size: u32,
    pub(crate) header_offset: u64,
    /// Bytes between header and BAT.
    pub(crate) table_gap: u64,
    /// BAT entries beyond the end of the disk.
    pub(crate) spare_entries: u32,
    pub(crate) disk_type: DiskType,
    /// In stream order.
    pub(crate) blocks: Vec<ModelBlock>,
}

#[derive(Debug, Clone)]
pub(crate) struct ModelBlock {
    pub(crate) number: u32,
    /// Sectors in front of it that belong to nobody.
    pub(crate) gap: usize,
    /// One for each sector of the block.
    pub(crate) set: Vec<bool>,
    pub(crate) data: Vec<u8>,
}

impl Model {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let footer = Footer {
            features: 2,
            header_offset: self.header_offset,
            timestamp: 0,
            creator: *b"test",
            creator_version: 1,
            creator_host_os: 0,
            original_size: self.virtual_size,
            virtual_size: self.virtual_size,
            geometry: Geometry::of_size(self.virtual_size),
            disk_type: self.disk_type,
            unique_id: Uuid::from_u128(0x5eed),
            saved_state: false,
        }
        .encode();
        let blocks = self.virtual_size.div_ceil(u64::from(self.block_size)) as u32;
        let header = Header {
            table_offset: self.header_offset + 1024 + self.table_gap,
            table_entries: blocks + self.spare_entries,
            block_size: self.block_size,
            parent_id: Uuid::nil(),
            parent_timestamp: 0,
            parent_name: Vec::new(),
            parent_locators: [ParentLocator::default(); 8],
        };
        let mut stream = footer.to_vec();
        stream.resize(self.header_offset as usize, 0xaa);
        stream.extend(header.encode());
        stream.resize(header.table_offset as usize, 0xbb);
        stream.resize(stream.len() + (4 * header.table_entries as usize).next_multiple_of(512), 0xff);
        for block in &self.blocks {
            stream.resize(stream.len() + block.gap * SECTOR_SIZE, 0xcc);
            let entry = (stream.len() / SECTOR_SIZE) as u32;
            let at = header.table_offset as usize + 4 * block.number as usize;
            stream[at..at + 4].copy_from_slice(&entry.to_be_bytes());
            stream.extend(block.bitmap());
            stream.extend(&block.data);
        }
        stream.extend(footer);
        stream
    }

    /// What an importer makes of `disk`.
    pub(crate) fn apply(&self, disk: &mut [u8]) {
        for block in &self.blocks {
            let start = block.number as usize * self.block_size as usize;
            for (sector, set) in block.set.iter().enumerate() {
                let at = start + sector * SECTOR_SIZE;
                if *set && at < disk.len() {
                    let from = sector * SECTOR_SIZE;
                    disk[at..at + SECTOR_SIZE].copy_from_slice(&block.data[from..from + SECTOR_SIZE]);
                }
            }
        }
    }
}

impl ModelBlock {
    fn bitmap(&self) -> Vec<u8> {
        let mut bitmap = vec![0; self.set.len().div_ceil(8).next_multiple_of(SECTOR_SIZE)];
        for (sector, _) in self.set.iter().enumerate().filter(|(_, set)| **set) {
            bitmap[sector / 8] |= 0x80 >> (sector % 8);
        }
        bitmap
    }
}

/// Reads the head at the front of `stream`.
pub(crate) fn head_of(stream: &[u8]) -> Result<Head, VhdError> {
    let mut input = stream;
    match HeadParser::new().feed(&mut input)? {
        Parsed::Head(head) => {
            assert_eq!(head.raw(), &stream[..stream.len() - input.len()]);
            Ok(head)
        }
        Parsed::More(parser) => {
            let at = parser.fed();
            Err(VhdError::Truncated { at, expected: at + parser.wanted() as u64 })
        }
    }
}

/// Runs a whole stream through head and scan, the part behind the head in pieces of `cut` bytes.
pub(crate) fn scan(stream: &[u8], cut: usize, mut sink: impl FnMut(Piece<'_>)) -> Result<ScanReport, VhdError> {
    let head = head_of(stream)?;
    let mut scan = Scan::new(&head);
    for bytes in stream[head.raw().len()..].chunks(cut) {
        scan.feed(bytes, &mut sink)?;
    }
    scan.finish()
}

/// Applies a whole stream onto `disk`.
pub(crate) fn apply(stream: &[u8], disk: &mut [u8]) -> Result<ScanReport, VhdError> {
    scan(stream, stream.len().max(1), |piece| write_piece(disk, piece))
}

pub(crate) fn write_piece(disk: &mut [u8], piece: Piece<'_>) {
    let at = piece.offset as usize;
    disk[at..at + piece.bytes.len()].copy_from_slice(piece.bytes);
}

/// The stream that `writer` lays out, with the content of `disk`.
pub(crate) fn render(writer: &Writer, disk: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for part in writer.parts() {
        match part {
            StreamPart::Bytes(bytes) => stream.extend(bytes),
            StreamPart::Disk { offset, length } => {
                let end = stream.len() + length as usize;
                let from = offset as usize;
                stream.extend(&disk[from..disk.len().min(from + length as usize)]);
                stream.resize(end, 0);
            }
        }
    }
    stream
}

/// A plain dynamic disk.
pub(crate) fn new_disk(virtual_size: u64) -> NewDisk {
    NewDisk { virtual_size, unique_id: Uuid::from_u128(1), creator: *b"tap\0", parent: None }
}

/// Recognisable content: each sector differs from all others.
pub(crate) fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut disk = vec![0; length];
    for (sector, bytes) in (seed..).zip(disk.chunks_mut(SECTOR_SIZE)) {
        let word = (sector + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        bytes.iter_mut().zip(word.iter().cycle()).for_each(|(byte, word)| *byte = *word);
    }
    disk
}
