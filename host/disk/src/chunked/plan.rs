//! What a stream is to hold, and how long it gets.

use std::sync::Arc;

use super::{FRAME_HEADER, MAX_FRAME, PlanError};
use crate::extent::{Extent, Extents};
use crate::vhd::{BLOCK_SIZE, FOOTER_SIZE, HEADER_SIZE, MAX_TABLE_ENTRIES, SECTOR_SIZE};

/// How much of a plan has to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Every byte.
    Whole,
    /// What is left out, the target holds already: zeroes on a new disk, equal data in a resync. It is
    /// left out in whole digest leaves of 64 KiB, of which a leaf at the edge of a range may be less.
    Part,
}

/// What a stream is to hold: ranges of a disk, in ascending order. A clone shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    disk_size: u64,
    extents: Arc<Extents>,
    coverage: Coverage,
}

impl Plan {
    /// A plan to send `extents` of a disk of `disk_size` bytes.
    pub fn new(disk_size: u64, extents: Extents, coverage: Coverage) -> Result<Self, PlanError> {
        let end = extents.end();
        if end > disk_size {
            return Err(PlanError::BeyondDisk { end, disk_size });
        }
        let sector = SECTOR_SIZE as u64;
        let odd = |e: &Extent| !e.offset.is_multiple_of(sector) || !e.length.is_multiple_of(sector);
        if let Some(Extent { offset, length }) = extents.iter().find(odd) {
            return Err(PlanError::NotSectors { offset, length });
        }
        Ok(Self { disk_size, extents: Arc::new(extents), coverage })
    }

    /// Size of the disk in bytes.
    pub fn disk_size(&self) -> u64 {
        self.disk_size
    }

    /// The ranges that come.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// The ranges, for who keeps them.
    pub(crate) fn shared_extents(&self) -> Arc<Extents> {
        Arc::clone(&self.extents)
    }

    /// How much of them has to come.
    pub fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// The same ranges, of which the target may hold some already.
    #[must_use]
    pub fn in_part(&self) -> Self {
        Self { coverage: Coverage::Part, ..self.clone() }
    }

    /// Bytes of the whole stream if it is cut into the longest frames; `None` if it depends on what is
    /// left out.
    pub fn stream_length(&self) -> Option<u64> {
        match self.coverage {
            Coverage::Whole => Some(chunked_bytes(&self.extents)),
            Coverage::Part => None,
        }
    }
}

/// Bytes of a `chunked` stream that holds `extents`.
pub fn chunked_bytes(extents: &Extents) -> u64 {
    let frames: u64 = extents.iter().map(|extent| extent.length.div_ceil(MAX_FRAME.into())).sum();
    extents.total_bytes() + (frames + 1) * FRAME_HEADER as u64
}

/// Bytes of a VHD stream as [`vhd::Writer`](crate::vhd::Writer) lays it out, with every block of 2 MiB
/// that `extents` touch; `None` if VHD cannot express the disk or the stream.
pub fn vhd_bytes(disk_size: u64, extents: &Extents) -> Option<u64> {
    let (block, sector) = (u64::from(BLOCK_SIZE), SECTOR_SIZE as u64);
    let entries = disk_size.div_ceil(block);
    if entries > MAX_TABLE_ENTRIES.into() {
        return None;
    }
    // Blocks that a range shares with the one before it count once.
    let mut next = 0;
    let mut blocks = 0;
    for extent in extents.iter() {
        let last = (extent.end() - 1) / block;
        blocks += (last + 1).saturating_sub(next.max(extent.offset / block));
        next = last + 1;
    }
    let table_end = (FOOTER_SIZE + HEADER_SIZE) as u64 + sector + (4 * entries).next_multiple_of(sector);
    let last_block = table_end + blocks.saturating_sub(1) * (sector + block);
    // The BAT counts sectors in 32 bits and means "unused" by the highest of them.
    let expressible = blocks == 0 || last_block / sector < u64::from(u32::MAX);
    expressible.then(|| table_end + blocks * (sector + block) + FOOTER_SIZE as u64)
}
