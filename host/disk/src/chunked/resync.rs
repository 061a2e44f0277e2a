//! A full stream, reduced to what the target does not hold yet.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::{ChunkedError, Coverage, END_MARKER, FRAME_HEADER, MAX_FRAME, Plan, PlanError, Scan, frame_header};
use crate::digest::{LEAF_SIZE, Leaf, is_zero, leaf_count};
use crate::extent::{Extent, Extents};
use crate::transfer::{Gate, Throttle};
use crate::vhd::{self, DiskType, Head, Piece, VhdError};

/// Bytes of the source compared at a time: larger ones fall out of the cache, smaller ones make for
/// short frames.
const BUFFER_SIZE: usize = 256 << 10;

/// Leaves that a gap of the source is compared by before others get their turn.
const GAP_STEP: u64 = 16 << 10;

/// Leaves of zeroes in one frame.
const ZERO_LEAVES: u64 = 16;

/// A `chunked` stream of those digest leaves of another stream that differ from what a target holds.
///
/// `held` tells the leaf that the target holds at an index of the digest table, or `None` where that is
/// not known, and then the leaf is sent. A new disk holds [`Leaf::ZERO`] everywhere: zeroes are told
/// without hashing, so a full copy onto it that leaves them out is a resync with `|_| Some(Leaf::ZERO)`.
///
/// The source's structure is checked on the way, and the end marker comes only if the source was complete
/// and good. What is sent is copied twice within memory, and in [grains](Resync::in_grains) thrice, since whether it is sent, and in
/// which frame, is known only after it was read.
#[derive(Debug)]
pub struct Resync<R, F> {
    source: R,
    scan: SourceScan,
    buffer: Box<[u8]>,
    /// What came behind bytes that were compared first.
    ended: Option<io::Result<()>>,
    sieve: Sieve<F>,
    /// Bytes of the frames that were given.
    given: usize,
    state: State,
    work: Arc<AtomicU64>,
    plan: Plan,
    gate: Gate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Comparing,
    /// The end marker is among the frames.
    Complete,
    Failed,
}

/// What became of the source's data so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResyncCounts {
    /// Bytes of disk that were compared.
    pub compared_bytes: u64,
    /// Bytes of disk that differed and were sent.
    pub sent_bytes: u64,
}

/// The source cannot be compared. `Resync` gives it inside of an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResyncError {
    /// A VHD source is damaged or cut.
    #[error("the stream to be compared is damaged")]
    Vhd(#[from] VhdError),
    /// A `chunked` source is damaged or cut.
    #[error("the stream to be compared is damaged")]
    Chunked(#[from] ChunkedError),
    /// It goes back on the disk. XAPI's exports ascend.
    #[error("the stream goes back to disk byte {disk_offset}: it cannot be sent on in the order of the disk")]
    NotAscending {
        /// Where it goes back to.
        disk_offset: u64,
    },
    /// It sets a part of a leaf, of which then no digest can be made.
    #[error("the stream sets only a part of the 64 KiB of disk from byte {disk_offset} on: they cannot be compared")]
    PartialLeaf {
        /// Where the leaf starts on the disk.
        disk_offset: u64,
    },
}

impl<R, F> Resync<R, F>
where
    R: AsyncRead + Unpin,
    F: FnMut(u64) -> Option<Leaf>,
{
    /// Compares the rest of a VHD stream, whose `head` was read from `source` before.
    ///
    /// What a differencing stream does not hold has not changed. What a whole one does not hold is zeroes, which are
    /// compared and sent like any other data.
    pub fn of_vhd(source: R, head: &Head, held: F) -> Result<Self, PlanError> {
        let disk_size = head.virtual_size();
        let whole = head.disk_type() != DiskType::Differencing;
        let extents = if whole { Extents::whole_disk(disk_size) } else { Extents::of_vhd(head).to_leaves(disk_size) };
        let plan = Plan::new(disk_size, extents, Coverage::Part)?;
        let mut resync = Self::new(source, SourceScan::Vhd(vhd::Scan::new(head)), plan, held);
        resync.sieve.gaps_are_zeroes = whole;
        Ok(resync)
    }

    /// Compares a `chunked` stream that was made by `plan`, from its first byte on.
    pub fn of_chunked(source: R, plan: &Plan, held: F) -> Self {
        Self::new(source, SourceScan::Chunked(Scan::new(plan)), plan.in_part(), held)
    }

    fn new(source: R, scan: SourceScan, plan: Plan, held: F) -> Self {
        let sieve = Sieve::new(plan.disk_size(), held);
        let buffer = vec![0; BUFFER_SIZE].into();
        let work = Arc::new(AtomicU64::new(0));
        let (state, gate) = (State::Comparing, Gate::default());
        Self { source, scan, buffer, ended: None, sieve, given: 0, state, work, plan, gate }
    }

    /// The same under limits on what is read from the source, sent or not. A limit that is to hold for what is sent belongs to the
    /// transfer; one in both places counts what is sent twice.
    pub fn throttled(mut self, throttles: &[Arc<Throttle>]) -> Self {
        self.gate = Gate::new(throttles);
        self
    }

    /// The same with `grain` bytes of disk in one piece: all of it is sent if any of its leaves differs, as who keeps whole chunks
    /// of that size needs it. It counts as at least a leaf and at most a frame. What the source does not have of it is not in the piece.
    pub fn in_grains(mut self, grain: u64) -> Self {
        self.sieve.leaves_in_grain = (grain / LEAF_SIZE).clamp(1, u64::from(MAX_FRAME) / LEAF_SIZE);
        self
    }

    /// What the resulting stream is to be checked against.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What became of the source's data so far.
    pub fn counts(&self) -> ResyncCounts {
        self.sieve.counts
    }

    /// A number that grows with what is read and compared, sent or not: [`Progress::work`](crate::transfer::Progress::work).
    pub fn work(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.work)
    }

    /// The source.
    pub fn source(&self) -> &R {
        &self.source
    }

    /// The source, to be closed.
    pub fn into_source(self) -> R {
        self.source
    }

    /// Compares more of the source, whose frames were all given.
    fn poll_compare(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Poll::Ready(allowed) = self.gate.poll_allowance(cx, self.buffer.len()) else {
            // Who waits for a throttle has not stalled.
            self.work.fetch_add(1, Ordering::Relaxed);
            return Poll::Pending;
        };
        let filled = ready!(self.poll_fill(cx, allowed));
        self.gate.charge(filled as u64);
        self.work.fetch_add(filled as u64, Ordering::Relaxed);
        self.given = 0;
        self.sieve.clear_frames();
        if filled > 0 {
            return Poll::Ready(self.scan.feed(&self.buffer[..filled], &mut self.sieve).map_err(invalid));
        }
        if let Some(Err(error)) = self.ended.take() {
            return Poll::Ready(Err(error));
        }
        self.scan.finish().and_then(|()| self.sieve.finish()).map_err(invalid)?;
        self.state = State::Complete;
        Poll::Ready(Ok(()))
    }

    /// Reads until `most` bytes are in the buffer or the source has nothing ready; 0 at its end. Under TLS a read
    /// gives 16 KiB at most, which is not a leaf.
    fn poll_fill(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<usize> {
        let mut buffer = ReadBuf::new(&mut self.buffer[..most]);
        while self.ended.is_none() && buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut self.source).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() == before => self.ended = Some(Ok(())),
                Poll::Ready(Ok(())) => {}
                // TLS says so of a peer that closes without a farewell; the structure tells whether it
                // came too early.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => self.ended = Some(Ok(())),
                Poll::Ready(Err(error)) => self.ended = Some(Err(error)),
                Poll::Pending if before > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(buffer.filled().len())
    }
}

impl<R, F> AsyncRead for Resync<R, F>
where
    R: AsyncRead + Unpin,
    F: FnMut(u64) -> Option<Leaf> + Unpin,
{
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let resync = self.get_mut();
        loop {
            // Frames up to where zeroes come in between, then these, then the rest.
            let gap = resync.sieve.gaps.first().map(|gap| gap.at);
            let ready = &resync.sieve.frames[resync.given..gap.unwrap_or(resync.sieve.frames.len())];
            if ready.is_empty() && gap.is_some() {
                resync.work.fetch_add(1, Ordering::Relaxed);
                if ready!(resync.sieve.poll_zeroes(cx, buffer)) {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if !ready.is_empty() {
                let given = ready.len().min(buffer.remaining());
                buffer.put_slice(&ready[..given]);
                resync.given += given;
                return Poll::Ready(Ok(()));
            }
            match resync.state {
                State::Comparing => {
                    ready!(resync.poll_compare(cx)).inspect_err(|_| resync.state = State::Failed)?;
                }
                State::Complete => return Poll::Ready(Ok(())),
                State::Failed => return Poll::Ready(Err(io::Error::other("comparing has failed before"))),
            }
        }
    }
}

fn invalid(error: ResyncError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The check of the source's structure.
#[derive(Debug)]
enum SourceScan {
    Vhd(vhd::Scan),
    Chunked(Scan),
}

impl SourceScan {
    fn feed<F>(&mut self, bytes: &[u8], sieve: &mut Sieve<F>) -> Result<(), ResyncError>
    where
        F: FnMut(u64) -> Option<Leaf>,
    {
        let mut taken = Ok(());
        let mut take = |piece: Piece<'_>| {
            if taken.is_ok() {
                taken = sieve.take(piece);
            }
        };
        match self {
            Self::Vhd(scan) => scan.feed(bytes, &mut take)?,
            Self::Chunked(scan) => scan.feed(bytes, &mut take)?,
        }
        taken
    }

    fn finish(&self) -> Result<(), ResyncError> {
        match self {
            Self::Vhd(scan) => scan.finish().map(|_| ())?,
            Self::Chunked(scan) => scan.finish().map(|_| ())?,
        }
        Ok(())
    }
}

/// Makes leaves of pieces, and frames of the leaves that differ.
#[derive(Debug)]
struct Sieve<F> {
    disk_size: u64,
    held: F,
    leaves_in_grain: u64,
    /// The first leaf of a grain of which some bytes came, and these.
    open: u64,
    opened: Vec<u8>,
    /// The first leaf that may come.
    next: u64,
    /// Frames that are complete.
    frames: Vec<u8>,
    /// The last of them, and where its header stands.
    last: Option<(usize, Extent)>,
    /// Whether leaves that do not come are zeroes.
    gaps_are_zeroes: bool,
    /// Such leaves that were not compared yet, in their order.
    gaps: Vec<Gap>,
    /// A frame of zeroes that was given in part.
    zeroes: Vec<u8>,
    counts: ResyncCounts,
}

/// Leaves of zeroes between the frames.
#[derive(Debug)]
struct Gap {
    /// The frames before it end here.
    at: usize,
    leaves: Range<u64>,
}

impl<F: FnMut(u64) -> Option<Leaf>> Sieve<F> {
    fn new(disk_size: u64, held: F) -> Self {
        let counts = ResyncCounts::default();
        Self {
            disk_size,
            held,
            leaves_in_grain: 1,
            open: 0,
            opened: Vec::new(),
            next: 0,
            frames: Vec::new(),
            last: None,
            gaps_are_zeroes: false,
            gaps: Vec::new(),
            zeroes: Vec::new(),
            counts,
        }
    }

    /// Leaves up to `leaf` do not come.
    fn skip_to(&mut self, leaf: u64) {
        if self.gaps_are_zeroes && self.next < leaf {
            self.gaps.push(Gap { at: self.frames.len(), leaves: self.next..leaf });
            self.last = None;
        }
        self.next = leaf;
    }

    /// Puts zeroes of the first gap into `buffer` where the target holds something else. False when the gap is over.
    fn poll_zeroes(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<bool> {
        let Some(gap) = self.gaps.first_mut() else { return Poll::Ready(false) };
        if self.zeroes.is_empty() {
            let Range { start, end: gap_end } = gap.leaves;
            let grain_end = |leaf: u64| gap_end.min(leaf - leaf % self.leaves_in_grain + self.leaves_in_grain);
            let mut differs = |from| (from..grain_end(from)).any(|leaf| (self.held)(leaf) != Some(Leaf::ZERO));
            let mut first = start;
            while first < gap_end.min(start + GAP_STEP) && !differs(first) {
                first = grain_end(first);
            }
            let mut end = first;
            while end < gap_end.min(start + GAP_STEP)
                && (end == first || grain_end(end) - first <= ZERO_LEAVES)
                && differs(end)
            {
                end = grain_end(end);
            }
            let bytes = |leaves: Range<u64>| (leaves.end * LEAF_SIZE).min(self.disk_size) - leaves.start * LEAF_SIZE;
            if gap.leaves.start < end {
                self.counts.compared_bytes += bytes(gap.leaves.start..end);
            }
            if first < end {
                let extent = Extent { offset: first * LEAF_SIZE, length: bytes(first..end) };
                self.counts.sent_bytes += extent.length;
                self.zeroes.extend_from_slice(&frame_header(extent));
                self.zeroes.resize(FRAME_HEADER + extent.length as usize, 0);
            }
            gap.leaves.start = end;
        }
        let given = self.zeroes.len().min(buffer.remaining());
        if given > 0 {
            buffer.put_slice(&self.zeroes[..given]);
            self.zeroes.drain(..given);
            return Poll::Ready(true);
        }
        if gap.leaves.is_empty() {
            self.gaps.remove(0);
            return Poll::Ready(false);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes a piece. Within a leaf they have to follow each other without a gap; leaves ascend.
    fn take(&mut self, Piece { mut offset, mut bytes }: Piece<'_>) -> Result<(), ResyncError> {
        while !bytes.is_empty() {
            if !self.opened.is_empty() && offset != self.open * LEAF_SIZE + self.opened.len() as u64 {
                self.close()?;
            }
            let leaf = offset / LEAF_SIZE;
            if self.opened.is_empty() {
                if !offset.is_multiple_of(LEAF_SIZE) {
                    return Err(ResyncError::PartialLeaf { disk_offset: leaf * LEAF_SIZE });
                }
                if leaf < self.next {
                    return Err(ResyncError::NotAscending { disk_offset: offset });
                }
                self.open = leaf;
            }
            let grain = self.leaves_in_grain * LEAF_SIZE;
            let missing = (offset - offset % grain + grain).min(self.disk_size) - offset;
            let (taken, rest) = bytes.split_at(usize::try_from(missing).map_or(bytes.len(), |n| n.min(bytes.len())));
            let is_last = taken.len() as u64 == missing;
            if is_last && self.opened.is_empty() {
                self.compare(leaf, taken);
            } else {
                self.opened.extend_from_slice(taken);
                if is_last {
                    self.compare_opened();
                }
            }
            offset += taken.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// The grain that was begun ends here.
    fn close(&mut self) -> Result<(), ResyncError> {
        let length = self.opened.len() as u64;
        if !length.is_multiple_of(LEAF_SIZE) {
            return Err(ResyncError::PartialLeaf {
                disk_offset: self.open * LEAF_SIZE + length / LEAF_SIZE * LEAF_SIZE,
            });
        }
        self.compare_opened();
        Ok(())
    }

    fn compare_opened(&mut self) {
        let mut opened = std::mem::take(&mut self.opened);
        self.compare(self.open, &opened);
        opened.clear();
        self.opened = opened;
    }

    /// Sends the leaves from `leaf` on if one of them differs.
    fn compare(&mut self, leaf: u64, bytes: &[u8]) {
        self.skip_to(leaf);
        self.next = leaf + leaf_count(bytes.len() as u64);
        self.counts.compared_bytes += bytes.len() as u64;
        let mut leaves = (leaf..).zip(bytes.chunks(LEAF_SIZE as usize));
        if leaves.all(|(leaf, bytes)| (self.held)(leaf).is_some_and(|held| is_leaf_of(held, bytes))) {
            return;
        }
        self.counts.sent_bytes += bytes.len() as u64;
        let extent = Extent { offset: leaf * LEAF_SIZE, length: bytes.len() as u64 };
        let (at, frame) = match self.last {
            Some((at, last)) if last.end() == extent.offset && last.length + extent.length <= MAX_FRAME.into() => {
                (at, Extent { offset: last.offset, length: last.length + extent.length })
            }
            _ => {
                let at = self.frames.len();
                self.frames.extend_from_slice(&END_MARKER);
                (at, extent)
            }
        };
        self.frames[at..at + FRAME_HEADER].copy_from_slice(&frame_header(frame));
        self.frames.extend_from_slice(bytes);
        self.last = Some((at, frame));
    }

    fn clear_frames(&mut self) {
        self.frames.clear();
        self.last = None;
    }

    /// Nothing follows: the end marker, unless a leaf is incomplete.
    fn finish(&mut self) -> Result<(), ResyncError> {
        if !self.opened.is_empty() {
            self.close()?;
        }
        self.skip_to(leaf_count(self.disk_size));
        self.frames.extend_from_slice(&END_MARKER);
        Ok(())
    }
}

/// Zeroes are not hashed, and neither is data where zeroes are held.
fn is_leaf_of(leaf: Leaf, bytes: &[u8]) -> bool {
    if leaf == Leaf::ZERO { is_zero(bytes) } else { Leaf::of(bytes) == leaf }
}
