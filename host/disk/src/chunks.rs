//! The chunks that a store gets: a stream, cut at the multiples of one size, and handed over to another thread.
//!
//! ```text
//! transfer ─ stream ─> ChunkSink: scan, Assembler ─ whole chunks ─> ChunkReceiver, on whichever runtime
//! ```
//!
//! Each byte is copied once, into a chunk. Chunks are filled ahead of the receiver up to a number; then the sink takes nothing more,
//! which the source feels. Their memory is used again as soon as the receiver has dropped them, so there is as much of it as was
//! filled and held at one time.
//!
//! The receiver learns of an end only if the stream was complete and the transfer has flushed the sink behind it.

mod assembler;
mod error;
mod follow;
mod handover;
mod sink;

use bytes::Bytes;

pub use assembler::{Assembler, Buffers, Gaps};
pub use error::{BrokenOff, ChunkError};
pub(crate) use follow::Follower;
pub use handover::ChunkReceiver;
pub use sink::ChunkSink;

use crate::digest::LEAF_SIZE;
use crate::transfer::Layout;
use crate::vhd::BLOCK_SIZE;

/// Smallest chunk in bytes: the grain of changed-block tracking.
pub const MIN_CHUNK: u32 = LEAF_SIZE as u32;
/// Largest chunk in bytes: a VHD block, which a VHD stream never cuts.
pub const MAX_CHUNK: u32 = BLOCK_SIZE;

/// One piece of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where it lies on the disk in bytes: a multiple of the chunk size.
    pub offset: u64,
    /// What is there: as many bytes as a chunk has, or as the disk has from there on.
    pub bytes: Bytes,
}

/// How a disk is cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of a chunk: a power of two from [`MIN_CHUNK`] to [`MAX_CHUNK`].
    pub chunk_size: u32,
    /// Size of the disk in bytes. It may be more than that of the stream's disk: what is behind that is zero.
    pub disk_size: u64,
    /// What it means if the stream sets a part of a chunk.
    pub gaps: Gaps,
}

/// A sink for the stream of `layout`, and where its chunks come out. The sink fills up to `ahead` chunks that the receiver has not
/// taken, at least one.
pub fn handover<'a>(
    layout: impl Into<Layout<'a>>,
    cut: Cut,
    ahead: usize,
) -> Result<(ChunkSink, ChunkReceiver), ChunkError> {
    let layout = layout.into();
    let assembler = Assembler::new(cut, layout.disk_size())?;
    let (sender, receiver) = handover::new(ahead.max(1));
    Ok((ChunkSink::new(layout, assembler, sender), receiver))
}
