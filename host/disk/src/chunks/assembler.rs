//! Whole chunks, made of pieces.

use bytes::BytesMut;

use super::{ChunkError, Cut, MAX_CHUNK, MIN_CHUNK};
use crate::vhd::Piece;

/// What it means if a stream sets a part of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gaps {
    /// The rest is zero: the stream is the whole disk.
    Zero,
    /// The rest is unknown, as in a delta: that is an error.
    Refused,
}

/// Where an assembler's buffers come from, and where they go.
pub trait Buffers {
    /// An empty buffer with room for a chunk.
    fn empty(&mut self) -> BytesMut;
    /// Takes a whole chunk, which lies at `offset`.
    fn full(&mut self, offset: u64, chunk: BytesMut);
}

/// Makes chunks of pieces, which have to ascend. It does no I/O and makes no memory.
#[derive(Debug)]
pub struct Assembler {
    chunk_size: u64,
    disk_size: u64,
    /// Size of the stream's disk. What is behind it is zero.
    stream_size: u64,
    gaps: Gaps,
    /// First byte of the disk that may still come.
    next: u64,
    open: Option<Open>,
}

/// A chunk that was begun.
#[derive(Debug)]
struct Open {
    offset: u64,
    bytes: BytesMut,
}

impl Assembler {
    /// An assembler for the pieces of a stream whose disk has `stream_size` bytes.
    pub fn new(cut: Cut, stream_size: u64) -> Result<Self, ChunkError> {
        let Cut { chunk_size, disk_size, gaps } = cut;
        if !chunk_size.is_power_of_two() || !(MIN_CHUNK..=MAX_CHUNK).contains(&chunk_size) {
            return Err(ChunkError::BadSize { size: chunk_size });
        }
        if stream_size > disk_size {
            return Err(ChunkError::BeyondDisk { stream: stream_size, disk: disk_size });
        }
        Ok(Self { chunk_size: chunk_size.into(), disk_size, stream_size, gaps, next: 0, open: None })
    }

    /// Bytes of the largest chunk.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size as usize
    }

    /// How many bytes from disk byte `offset` on are in one chunk, and whether that chunk was begun.
    pub(super) fn room(&self, offset: u64) -> (u64, bool) {
        let start = self.start(offset);
        (start + self.chunk_size - offset, self.open.as_ref().is_some_and(|open| open.offset == start))
    }

    /// Takes a piece, and gives the chunks that are whole then.
    pub fn take(
        &mut self,
        Piece { mut offset, mut bytes }: Piece<'_>,
        buffers: &mut impl Buffers,
    ) -> Result<(), ChunkError> {
        if offset < self.next {
            return Err(ChunkError::NotAscending { disk_offset: offset });
        }
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.stream_size {
            return Err(ChunkError::BeyondDisk { stream: end, disk: self.stream_size });
        }
        self.next = end;
        while !bytes.is_empty() {
            let (start, (room, begun)) = (self.start(offset), self.room(offset));
            if !begun {
                self.close(buffers)?;
            }
            let open = self.open.get_or_insert_with(|| Open { offset: start, bytes: buffers.empty() });
            let (taken, rest) = bytes.split_at(usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len())));
            let within = (offset - start) as usize;
            if open.bytes.len() < within {
                if self.gaps == Gaps::Refused {
                    return Err(ChunkError::Partial { disk_offset: start, chunk_size: self.chunk_size });
                }
                open.bytes.resize(within, 0);
            }
            open.bytes.extend_from_slice(taken);
            offset += taken.len() as u64;
            bytes = rest;
            if taken.len() as u64 == room || offset == self.stream_size {
                self.close(buffers)?;
            }
        }
        Ok(())
    }

    /// Nothing follows.
    pub fn finish(&mut self, buffers: &mut impl Buffers) -> Result<(), ChunkError> {
        self.close(buffers)
    }

    /// Gives the chunk that was begun, if there is one.
    fn close(&mut self, buffers: &mut impl Buffers) -> Result<(), ChunkError> {
        let Some(Open { offset, mut bytes }) = self.open.take() else { return Ok(()) };
        let length = |size: u64| self.chunk_size.min(size - offset);
        if self.gaps == Gaps::Refused && (bytes.len() as u64) < length(self.stream_size) {
            return Err(ChunkError::Partial { disk_offset: offset, chunk_size: self.chunk_size });
        }
        bytes.resize(length(self.disk_size) as usize, 0);
        buffers.full(offset, bytes);
        Ok(())
    }

    /// Where the chunk starts that holds disk byte `offset`.
    fn start(&self, offset: u64) -> u64 {
        offset - offset % self.chunk_size
    }
}
