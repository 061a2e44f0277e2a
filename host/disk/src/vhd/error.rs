//! What can be wrong with a VHD stream. Every variant says where: `at` is the byte of the stream.

use std::{fmt, io};

use super::{MAX_BLOCK_SIZE, MAX_TABLE_ENTRIES, MAX_TABLE_OFFSET, MIN_BLOCK_SIZE};

/// The two checksummed parts of the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The footer, or its copy at the start of the stream.
    Footer,
    /// The dynamic disk header.
    Header,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Footer => "footer",
            Self::Header => "header",
        })
    }
}

/// The bytes are not a VHD stream that can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what each means, `at` is always the byte of the stream")]
pub enum VhdError {
    #[error("byte {at}: no VHD {part} here, it starts with {:?}", String::from_utf8_lossy(.found))]
    BadCookie { at: u64, part: Part, found: [u8; 8] },
    #[error("byte {at}: the {part}'s checksum is {stored:#010x}, its bytes sum up to {computed:#010x}")]
    BadChecksum { at: u64, part: Part, stored: u32, computed: u32 },
    #[error("byte {at}: the {part} has version {found:#010x}, only 1.x is known")]
    UnknownVersion { at: u64, part: Part, found: u32 },
    #[error("byte {at}: a fixed VHD, which cannot be streamed; convert it to a dynamic one")]
    FixedDisk { at: u64 },
    #[error("byte {at}: unknown disk type {found}")]
    UnknownDiskType { at: u64, found: u32 },
    #[error("byte {at}: a disk of {size} bytes does not end with a sector")]
    OddSize { at: u64, size: u64 },
    #[error("byte {at}: the footer puts the header at byte {offset}, outside of 512..={MAX_TABLE_OFFSET}")]
    HeaderOutOfPlace { at: u64, offset: u64 },
    #[error(
        "byte {at}: the header puts the BAT at byte {offset}: not a sector, not behind the header, or beyond {MAX_TABLE_OFFSET}"
    )]
    TableOutOfPlace { at: u64, offset: u64 },
    #[error(
        "byte {at}: blocks of {found} bytes, only powers of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE} are read"
    )]
    BadBlockSize { at: u64, found: u32 },
    #[error("byte {at}: a BAT of {entries} entries, at most {MAX_TABLE_ENTRIES} are read")]
    TableTooLong { at: u64, entries: u32 },
    #[error("byte {at}: a BAT of {entries} entries is too short, the disk has {needed} blocks")]
    TableTooShort { at: u64, entries: u32, needed: u64 },
    #[error("byte {at}: the BAT places block {block}, which is beyond the end of the disk")]
    BlockBeyondDisk { at: u64, block: u32 },
    #[error("byte {at}: the BAT places block {block} at byte {offset}, inside of the metadata")]
    BlockInHead { at: u64, block: u32, offset: u64 },
    #[error("byte {at}: the BAT places block {block} over block {other}")]
    BlocksOverlap { at: u64, block: u32, other: u32 },
    #[error("byte {at}: the last footer differs from its copy at the start of the stream")]
    FooterMismatch { at: u64 },
    #[error("byte {at}: the stream goes on behind its last footer")]
    TrailingBytes { at: u64 },
    #[error("byte {at}: the stream ends here, {} bytes too early", .expected - .at)]
    Truncated { at: u64, expected: u64 },
    #[error("byte {at}: {asked} bytes cannot be skipped, only {allowed} need no look")]
    SkipTooFar { at: u64, asked: u64, allowed: u64 },
}

/// The head of a stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The reader failed.
    #[error("reading the VHD head failed at byte {at}")]
    Io {
        /// Bytes read before.
        at: u64,
        /// What the reader said.
        source: io::Error,
    },
    /// The reader ended inside of the head.
    #[error("the stream ends at byte {at}, inside of the VHD head")]
    Truncated {
        /// Bytes read before.
        at: u64,
    },
    /// The bytes are not a VHD head.
    #[error(transparent)]
    Vhd(#[from] VhdError),
}

/// A stream that VHD cannot express was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The used blocks have to ascend and to be inside of the disk.
    #[error("block {block} is out of order or beyond the disk's {blocks} blocks")]
    BadBlock {
        /// The offending block.
        block: u32,
        /// Blocks of the disk.
        blocks: u64,
    },
    /// Positions in the BAT are 32 bits of sectors, so the stream ends at 2 TiB.
    #[error("a VHD cannot hold {blocks} blocks of a disk of {size} bytes")]
    TooLarge {
        /// Size of the disk in bytes.
        size: u64,
        /// Used blocks.
        blocks: usize,
    },
    /// The header has room for 256 UTF-16 units.
    #[error("the parent's path {path:?} does not fit into a VHD header")]
    ParentPathTooLong {
        /// The path.
        path: String,
    },
    /// The described head is not valid.
    #[error(transparent)]
    Vhd(#[from] VhdError),
}
