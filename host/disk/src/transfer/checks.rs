//! What every byte of a stream has to pass, whatever its encoding and whichever engine moves it.

use super::TransferError;
use crate::chunked::{self, ChunkedError, Plan};
use crate::digest::{LEAF_SIZE, Leaf, LeafError, LeafHasher};
use crate::vhd::{self, Head, Piece, VhdError};

/// The encoding of a stream, and what it has to hold.
#[derive(Debug, Clone, Copy)]
pub enum Layout<'a> {
    /// VHD. The head was read from the source before, and the sinks get it first.
    Vhd(&'a Head),
    /// The `chunked` framing, of which nothing was read before.
    Chunked(&'a Plan),
}

impl<'a> From<&'a Head> for Layout<'a> {
    fn from(head: &'a Head) -> Self {
        Self::Vhd(head)
    }
}

impl<'a> From<&'a Plan> for Layout<'a> {
    fn from(plan: &'a Plan) -> Self {
        Self::Chunked(plan)
    }
}

impl<'a> Layout<'a> {
    /// Size of the disk in bytes.
    pub fn disk_size(&self) -> u64 {
        match self {
            Self::Vhd(head) => head.virtual_size(),
            Self::Chunked(plan) => plan.disk_size(),
        }
    }

    /// The bytes of the stream that were read before.
    pub(super) fn head(&self) -> &'a [u8] {
        match *self {
            Self::Vhd(head) => head.raw(),
            Self::Chunked(_) => &[],
        }
    }
}

/// What a complete stream held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A VHD stream.
    Vhd(vhd::ScanReport),
    /// A `chunked` stream.
    Chunked(chunked::ScanReport),
}

impl Content {
    /// Bytes of the disk that the stream set.
    pub fn data_bytes(&self) -> u64 {
        match self {
            Self::Vhd(report) => report.data_bytes,
            Self::Chunked(report) => report.data_bytes,
        }
    }
}

/// Follows a stream from the end of its head to its own end.
pub(super) struct Checks<'a> {
    scan: Scan,
    hashing: Option<Hashing<'a>>,
}

enum Scan {
    Vhd(vhd::Scan),
    Chunked(chunked::Scan),
}

struct Hashing<'a> {
    hasher: LeafHasher,
    leaves: &'a mut (dyn FnMut(u64, Leaf) + Send),
}

impl<'a> Checks<'a> {
    pub(super) fn new(layout: Layout<'_>, leaves: Option<&'a mut (dyn FnMut(u64, Leaf) + Send)>) -> Self {
        let scan = match layout {
            Layout::Vhd(head) => Scan::Vhd(vhd::Scan::new(head)),
            Layout::Chunked(plan) => Scan::Chunked(chunked::Scan::new(plan)),
        };
        let hasher = LeafHasher::new(layout.disk_size());
        Self { scan, hashing: leaves.map(|leaves| Hashing { hasher, leaves }) }
    }

    /// How many of `most` bytes to read before looking at them: nothing from behind the end, where that
    /// is known. A leaf is hashed fastest in one piece, so a read ends where a leaf does, unless metadata
    /// comes in between.
    pub(super) fn next_read(&self, most: usize) -> usize {
        let most = match &self.scan {
            Scan::Vhd(scan) => usize::try_from(scan.remaining()).map_or(most, |left| left.min(most)),
            Scan::Chunked(_) => most,
        };
        let Some(Hashing { hasher, .. }) = &self.hashing else { return most };
        let begun = hasher.missing() as usize;
        let whole = most.saturating_sub(begun) / LEAF_SIZE as usize * LEAF_SIZE as usize;
        if begun + whole == 0 { most } else { most.min(begun + whole) }
    }

    /// Takes the next bytes of the stream.
    pub(super) fn look_at(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        let Some(Hashing { hasher, leaves }) = &mut self.hashing else {
            return self.scan.feed(bytes, &mut |_| {});
        };
        let mut hashed = Ok(());
        self.scan.feed(bytes, &mut |piece: Piece<'_>| {
            if hashed.is_ok() {
                hashed = hasher.feed(piece, *leaves);
            }
        })?;
        hashed.map_err(no_digest)
    }

    /// The stream is complete.
    pub(super) fn seen_all(&self) -> bool {
        match &self.scan {
            Scan::Vhd(scan) => scan.remaining() == 0,
            Scan::Chunked(scan) => scan.is_complete(),
        }
    }

    /// Nothing follows.
    pub(super) fn finish(&self) -> Result<Content, TransferError> {
        if let Some(Hashing { hasher, .. }) = &self.hashing {
            hasher.finish().map_err(no_digest)?;
        }
        Ok(match &self.scan {
            Scan::Vhd(scan) => Content::Vhd(scan.finish()?),
            Scan::Chunked(scan) => Content::Chunked(scan.finish()?),
        })
    }

    /// The stream ended at byte `at`, before it was complete.
    pub(super) fn truncated(&self, at: u64) -> TransferError {
        let missing = match &self.scan {
            Scan::Vhd(scan) => Some(scan.remaining()),
            Scan::Chunked(_) => None,
        };
        TransferError::Truncated { at, expected: missing.map(|missing| at + missing) }
    }

    /// The stream went on behind its end, which was at byte `at`.
    pub(super) fn trailing_bytes(&self, at: u64) -> TransferError {
        match &self.scan {
            Scan::Vhd(_) => VhdError::TrailingBytes { at }.into(),
            Scan::Chunked(_) => ChunkedError::TrailingBytes { at }.into(),
        }
    }

    /// Bytes from here on that nobody has to look at.
    pub(super) fn opaque(&self) -> u64 {
        match &self.scan {
            Scan::Vhd(scan) if self.hashing.is_none() => scan.opaque(),
            _ => 0,
        }
    }

    /// Bytes from here on that have to be looked at before some need not be.
    pub(super) fn metadata(&self) -> u64 {
        match &self.scan {
            Scan::Vhd(scan) => scan.metadata(),
            Scan::Chunked(_) => 0,
        }
    }

    /// Passes over `bytes`, at most [`Self::opaque`].
    pub(super) fn skip(&mut self, bytes: u64) -> Result<(), TransferError> {
        match &mut self.scan {
            Scan::Vhd(scan) => Ok(scan.skip(bytes)?),
            Scan::Chunked(_) => Ok(()),
        }
    }
}

impl Scan {
    fn feed(&mut self, bytes: &[u8], sink: &mut impl FnMut(Piece<'_>)) -> Result<(), TransferError> {
        match self {
            Self::Vhd(scan) => {
                scan.feed(bytes, sink)?;
                scan.hole().map_or(Ok(()), |disk_offset| Err(TransferError::PartialBitmap { disk_offset }))
            }
            Self::Chunked(scan) => Ok(scan.feed(bytes, sink)?),
        }
    }
}

/// A scan gives no piece beyond the disk, so what is left is an incomplete leaf.
fn no_digest(error: LeafError) -> TransferError {
    let disk_offset = match error {
        LeafError::Partial { leaf, .. } => leaf * LEAF_SIZE,
        LeafError::BeyondDisk { offset, .. } => offset,
    };
    TransferError::PartialLeaf { disk_offset }
}
