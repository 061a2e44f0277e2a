//! Why a stream gives no chunks.

use super::{MAX_CHUNK, MIN_CHUNK};
use crate::chunked::ChunkedError;
use crate::vhd::VhdError;

/// A stream cannot be cut into chunks. The sink gives it inside of an [`io::Error`](std::io::Error).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// No chunk has this size.
    #[error("chunks of {size} bytes: it has to be a power of two from {MIN_CHUNK} to {MAX_CHUNK}")]
    BadSize {
        /// The size that was asked for.
        size: u32,
    },
    /// A stream does not fit onto the disk.
    #[error("the stream is of a disk of {stream} bytes, and the one to be cut has {disk}")]
    BeyondDisk {
        /// Size of the stream's disk, or the end of a piece, in bytes.
        stream: u64,
        /// Size of the disk in bytes.
        disk: u64,
    },
    /// It goes back on the disk. XAPI's exports ascend.
    #[error("the stream goes back to disk byte {disk_offset}: chunks are made in the order of the disk")]
    NotAscending {
        /// Where it goes back to.
        disk_offset: u64,
    },
    /// A chunk is incomplete, and what is missing stands in the base, which nobody has here.
    #[error(
        "the stream sets only a part of the {chunk_size} bytes of disk from byte {disk_offset} on, which is no chunk"
    )]
    Partial {
        /// Where the chunk starts on the disk.
        disk_offset: u64,
        /// Bytes of a chunk.
        chunk_size: u64,
    },
    /// A VHD stream is damaged.
    #[error("the VHD stream is damaged")]
    Vhd(#[from] VhdError),
    /// A `chunked` stream is damaged.
    #[error("the chunked stream is damaged")]
    Chunked(#[from] ChunkedError),
}

/// One side has ended before the disk's data was complete: why, as that side told it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BrokenOff(pub String);
