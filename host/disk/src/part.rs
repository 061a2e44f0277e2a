//! One sink's part of a stream that was read for several.
//!
//! ```text
//!                 ┌─ Part ─ the blocks that differ from its base, as VHD ──> sink
//! stream ─────────┼─ Part ─ the leaves that differ from another, chunked ──> sink
//!                 └─ as it comes ──────────────────────────────────────────> sink
//! ```

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::chunked::Plan;
use crate::chunks::{ChunkError, Follower, Gaps};
use crate::framing::{Framing, Next};
use crate::transfer::{Gate, Layout, SocketWriter, Throttle};
use crate::vhd::Writer;

/// Zeroes are written in pieces of this size.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A stream lacks what a part of it needs. [`Part`] gives it inside of an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// It was not read, and is not known to be zero.
    #[error("disk byte {disk_offset} has to be sent and was not read")]
    Missing {
        /// The first byte that is missing.
        disk_offset: u64,
    },
    /// It goes back on the disk. XAPI's exports ascend.
    #[error("the stream goes back to disk byte {disk_offset}: no part of it can be sent in the order of the disk")]
    NotAscending {
        /// Where it goes back to.
        disk_offset: u64,
    },
    /// Its structure is damaged.
    #[error(transparent)]
    Damaged(#[from] ChunkError),
}

/// Takes a stream, as a sink of [`relay`](crate::transfer::relay()), and passes on what of its disk a layout of its own names. It lends
/// no socket. The last bytes go to the inner sink when it is flushed behind a complete stream.
///
/// What it takes is the common stream: its own bytes are [`written`](Self::written).
#[derive(Debug)]
pub struct Part<W> {
    follower: Follower,
    gaps: Gaps,
    /// First byte of the disk that may come.
    next: u64,
    framing: Framing,
    outlet: Outlet<W>,
}

impl<W: AsyncWrite + Unpin> Part<W> {
    /// All of a plan as `chunked` frames, whatever its coverage, out of a stream of the layout `common`. With [`Gaps::Zero`] what is
    /// not in that stream is zero, else it has to be there.
    pub fn chunked<'a>(inner: W, common: impl Into<Layout<'a>>, gaps: Gaps, plan: &Plan) -> Self {
        Self::new(inner, common.into(), gaps, Framing::chunked(plan))
    }

    /// The same as the VHD that `writer` laid out, its head included.
    pub fn vhd<'a>(inner: W, common: impl Into<Layout<'a>>, gaps: Gaps, writer: &Writer) -> Self {
        Self::new(inner, common.into(), gaps, Framing::vhd(writer))
    }

    fn new(inner: W, common: Layout<'_>, gaps: Gaps, framing: Framing) -> Self {
        let outlet = Outlet { inner, written: 0, gate: Gate::default(), work: Arc::default() };
        Self { follower: Follower::new(common), gaps, next: 0, framing, outlet }
    }

    /// The same under limits on what it writes, which is less than what the transfer reads.
    #[must_use]
    pub fn throttled(mut self, throttles: &[Arc<Throttle>]) -> Self {
        self.outlet.gate = Gate::new(throttles);
        self
    }

    /// Bytes that the inner sink took.
    pub fn written(&self) -> u64 {
        self.outlet.written
    }

    /// A number that grows with what is written, and while a limit makes it wait:
    /// [`Progress::sink_work`](crate::transfer::Progress::sink_work).
    pub fn work(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.outlet.work)
    }

    /// The inner sink.
    pub fn sink(&self) -> &W {
        &self.outlet.inner
    }

    /// The same, given back.
    pub fn into_inner(self) -> W {
        self.outlet.inner
    }

    /// Deals with data that belongs at disk byte `offset`: passes some on, or over some that is not wanted. How much.
    fn poll_data(&mut self, cx: &mut Context<'_>, offset: u64, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if offset < self.next {
            return Poll::Ready(Err(invalid(PartError::NotAscending { disk_offset: offset })));
        }
        ready!(self.poll_advance(cx, offset))?;
        let taken = match self.framing.next() {
            Next::Disk(wanted) if wanted.offset == offset => {
                let length = usize::try_from(wanted.length).map_or(bytes.len(), |length| length.min(bytes.len()));
                let written = ready!(self.outlet.poll_write(cx, &bytes[..length]))?;
                self.framing.advance(written as u64);
                written
            }
            Next::Disk(wanted) => {
                usize::try_from(wanted.offset - offset).map_or(bytes.len(), |gap| gap.min(bytes.len()))
            }
            // Nothing more is wanted.
            Next::Bytes(_) | Next::Zeroes(_) | Next::End => bytes.len(),
        };
        self.next = offset + taken as u64;
        Poll::Ready(Ok(taken))
    }

    /// Writes what lies before the data of disk byte `to`, but not what ends the stream.
    fn poll_advance(&mut self, cx: &mut Context<'_>, to: u64) -> Poll<io::Result<()>> {
        while !self.framing.is_behind_disk() {
            match self.framing.next() {
                Next::Disk(wanted) if wanted.offset >= to => break,
                Next::Disk(wanted) if self.gaps == Gaps::Refused => {
                    return Poll::Ready(Err(invalid(PartError::Missing { disk_offset: wanted.offset })));
                }
                Next::Disk(wanted) => ready!(self.poll_zeroes(cx, wanted.length.min(to - wanted.offset)))?,
                Next::Zeroes(length) => ready!(self.poll_zeroes(cx, length))?,
                Next::Bytes(_) | Next::End => ready!(self.poll_metadata(cx))?,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what ends a stream of which everything has come.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_advance(cx, u64::MAX))?;
        while !matches!(self.framing.next(), Next::End) {
            ready!(self.poll_metadata(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_zeroes(&mut self, cx: &mut Context<'_>, most: u64) -> Poll<io::Result<()>> {
        let length = usize::try_from(most).map_or(ZEROES.len(), |most| most.min(ZEROES.len()));
        let written = ready!(self.outlet.poll_write(cx, &ZEROES[..length]))?;
        self.framing.advance(written as u64);
        Poll::Ready(Ok(()))
    }

    fn poll_metadata(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Next::Bytes(bytes) = self.framing.next() {
            let written = ready!(self.outlet.poll_write(cx, bytes))?;
            self.framing.advance(written as u64);
        }
        Poll::Ready(Ok(()))
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Part<W> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let part = self.get_mut();
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            let (mut length, place) = part.follower.ahead(rest.len());
            if let Some(offset) = place {
                match part.poll_data(cx, offset, &rest[..length]) {
                    Poll::Ready(some) => length = some?,
                    Poll::Pending if taken > 0 => break,
                    Poll::Pending => return Poll::Pending,
                }
            }
            part.follower.feed(&rest[..length], &mut |_| {}).map_err(|error| invalid(error.into()))?;
            taken += length;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let part = self.get_mut();
        if part.follower.is_complete() {
            ready!(part.poll_end(cx))?;
        }
        Pin::new(&mut part.outlet.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.get_mut().outlet.inner).poll_shutdown(cx)
    }
}

impl<W: AsyncWrite + Unpin> SocketWriter for Part<W> {}

fn invalid(error: PartError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The inner sink, counted and under its limits.
#[derive(Debug)]
struct Outlet<W> {
    inner: W,
    written: u64,
    gate: Gate,
    work: Arc<AtomicU64>,
}

impl<W: AsyncWrite + Unpin> Outlet<W> {
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Poll::Ready(allowed) = self.gate.poll_allowance(cx, bytes.len()) else {
            // Who waits for a throttle has not stalled.
            self.work.fetch_add(1, Ordering::Relaxed);
            return Poll::Pending;
        };
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[..allowed]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written += written as u64;
        self.gate.charge(written as u64);
        self.work.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }
}
