//! A stream as a sink gets it.

use super::ChunkError;
use crate::transfer::Layout;
use crate::vhd::Piece;
use crate::{chunked, vhd};

/// Follows a stream from its very first byte; the transfer has checked its head.
#[derive(Debug)]
pub(crate) struct Follower {
    /// Bytes of the head that are to come.
    head: u64,
    scan: Scan,
}

#[derive(Debug)]
enum Scan {
    Vhd(vhd::Scan),
    Chunked(chunked::Scan),
}

impl Follower {
    pub(crate) fn new(layout: Layout<'_>) -> Self {
        match layout {
            Layout::Vhd(head) => Self { head: head.raw().len() as u64, scan: Scan::Vhd(vhd::Scan::new(head)) },
            Layout::Chunked(plan) => Self { head: 0, scan: Scan::Chunked(chunked::Scan::new(plan)) },
        }
    }

    /// How many of the next `most` bytes, which are more than none, are of one kind; and where on the disk the first of them belongs,
    /// if that kind is data.
    pub(crate) fn ahead(&self, most: usize) -> (usize, Option<u64>) {
        let (left, place) = match &self.scan {
            _ if self.head > 0 => (self.head, None),
            Scan::Vhd(scan) => scan.ahead(),
            Scan::Chunked(scan) => scan.ahead(),
        };
        // Behind the end of the stream it is the scan that complains.
        let left = if left == 0 { most } else { usize::try_from(left).map_or(most, |left| left.min(most)) };
        (left, place)
    }

    /// Takes the next bytes, as many as [`Self::ahead`] says or less, and hands the disk's bytes in them to `sink`.
    pub(crate) fn feed(&mut self, bytes: &[u8], sink: &mut impl FnMut(Piece<'_>)) -> Result<(), ChunkError> {
        if self.head > 0 {
            self.head = self.head.saturating_sub(bytes.len() as u64);
            return Ok(());
        }
        match &mut self.scan {
            Scan::Vhd(scan) => Ok(scan.feed(bytes, sink)?),
            Scan::Chunked(scan) => Ok(scan.feed(bytes, sink)?),
        }
    }

    /// The stream has come, all of it.
    pub(crate) fn is_complete(&self) -> bool {
        match &self.scan {
            _ if self.head > 0 => false,
            Scan::Vhd(scan) => scan.remaining() == 0,
            Scan::Chunked(scan) => scan.is_complete(),
        }
    }
}
