//! The way back: what a store puts together again, as a stream like that of any other source.
//!
//! ```text
//! store, on whichever runtime ─ pieces ─> RestoredSink ─> Restored: frames, zeroes for what nobody put ─ stream ─> transfer
//! ```
//!
//! The store names ranges beforehand, and pieces have to lie in them, in the order of the disk. Their bytes are not copied before the
//! reader takes them; beyond a number of bytes that were put and not taken, the store waits. The stream ends only when the store says
//! that it has put everything.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use crate::chunked::Plan;
use crate::chunks::{BrokenOff, Chunk};
use crate::extent::{Extent, Extents};
use crate::framing::{Framing, Payload};
use crate::transfer::SocketReader;
use crate::vhd::Writer;

/// A store put what nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// It does not lie in a range that was named.
    #[error("{length} bytes were put at disk byte {offset}, which are not in the ranges that were to come")]
    OutOfPlace {
        /// Where it was put.
        offset: u64,
        /// How much it is.
        length: u64,
    },
    /// It does not lie behind what was put before.
    #[error("something was put at disk byte {offset}, but what lies before disk byte {next} was put already")]
    NotAscending {
        /// Where it was put.
        offset: u64,
        /// The first byte that may be put.
        next: u64,
    },
    /// Nobody reads the stream any more.
    #[error(transparent)]
    BrokenOff(#[from] BrokenOff),
}

/// A stream of what is put into its [`RestoredSink`]: `chunked` frames of a plan, or the VHD that a writer laid out. What the layout
/// names and nobody puts is zero.
#[derive(Debug)]
pub struct Restored {
    framing: Framing,
    pieces: Pieces,
}

/// The reading end of what was put.
#[derive(Debug)]
struct Pieces {
    shared: Arc<Shared>,
    /// What was taken and is not used up.
    piece: Option<Chunk>,
}

impl Restored {
    /// All of a plan as `chunked` frames. The sink takes up to `ahead` bytes that were not read, or one piece that is larger.
    pub fn chunked(plan: &Plan, ahead: usize) -> (Self, RestoredSink) {
        Self::new(Framing::chunked(plan), ahead)
    }

    /// The VHD that `writer` laid out, its head included. It has whole blocks, all of which may be put and, where the blocks of a
    /// difference are not zero, have to be.
    pub fn vhd(writer: &Writer, ahead: usize) -> (Self, RestoredSink) {
        Self::new(Framing::vhd(writer), ahead)
    }

    fn new(framing: Framing, ahead: usize) -> (Self, RestoredSink) {
        let shared = Arc::new(Shared { ahead, state: Mutex::default() });
        let sink =
            RestoredSink { extents: Arc::clone(framing.extents()), shared: Arc::clone(&shared), next: 0, range: 0 };
        (Self { framing, pieces: Pieces { shared, piece: None } }, sink)
    }

    /// Has the store fail for this reason.
    pub fn abort(self, why: impl Into<String>) {
        self.pieces.shared.refuse(BrokenOff(why.into()));
    }
}

impl AsyncRead for Restored {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { framing, pieces } = self.get_mut();
        framing.poll_read(cx, buffer, pieces)
    }
}

impl Payload for Pieces {
    fn poll_fill(&mut self, cx: &mut Context<'_>, wanted: Extent, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        ready!(self.shared.poll_take(cx, &mut self.piece)).map_err(broken)?;
        Poll::Ready(Ok(fill(wanted, &mut self.piece, buffer)))
    }

    /// Every piece lies in front of the end, so what is waited for is the store's word.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.poll_take(cx, &mut self.piece).map_err(broken)
    }
}

impl SocketReader for Restored {}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.shared.refuse(BrokenOff("nobody reads what is restored any more".to_owned()));
    }
}

/// Puts the start of a wanted range into `buffer`: of the piece that comes next, if it is there, else zeroes up to that. How many
/// bytes; `buffer` is no longer than the range.
fn fill(wanted: Extent, piece: &mut Option<Chunk>, buffer: &mut [u8]) -> usize {
    match piece {
        Some(Chunk { offset, bytes }) if *offset <= wanted.offset => {
            let given = buffer.len().min(bytes.len());
            bytes.copy_to_slice(&mut buffer[..given]);
            *offset += given as u64;
            if bytes.is_empty() {
                *piece = None;
            }
            given
        }
        next => {
            let gap = next.as_ref().map_or(u64::MAX, |next| next.offset - wanted.offset);
            let given = usize::try_from(gap).map_or(buffer.len(), |gap| gap.min(buffer.len()));
            buffer[..given].fill(0);
            given
        }
    }
}

fn broken(why: BrokenOff) -> io::Error {
    io::Error::other(why)
}

#[derive(Debug)]
struct Shared {
    ahead: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Pieces that were put and not taken, and their bytes.
    pieces: VecDeque<Chunk>,
    bytes: usize,
    /// What the store came to.
    ended: Option<Result<(), BrokenOff>>,
    /// Why nobody reads any more.
    refused: Option<BrokenOff>,
    sink: Option<Waker>,
    reader: Option<Waker>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No statement under the lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `piece` the next one, if it is not there yet; none is when the store has put everything.
    fn poll_take(&self, cx: &mut Context<'_>, piece: &mut Option<Chunk>) -> Poll<Result<(), BrokenOff>> {
        if piece.is_some() {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.state();
        if let Some(Err(why)) = &state.ended {
            return Poll::Ready(Err(why.clone()));
        }
        let Some(next) = state.pieces.pop_front() else {
            if state.ended.is_some() {
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        state.bytes -= next.bytes.len();
        let sink = state.sink.take();
        drop(state);
        *piece = Some(next);
        if let Some(sink) = sink {
            sink.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Keeps `piece` for the reader, which takes it, as soon as there is room.
    fn poll_put(&self, cx: &mut Context<'_>, piece: &mut Option<Chunk>) -> Poll<Result<(), BrokenOff>> {
        let mut state = self.state();
        if let Some(why) = &state.refused {
            return Poll::Ready(Err(why.clone()));
        }
        let length = piece.as_ref().map_or(0, |piece| piece.bytes.len());
        if state.bytes > 0 && state.bytes + length > self.ahead {
            state.sink = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.bytes += length;
        state.pieces.extend(piece.take());
        wake_reader(state);
        Poll::Ready(Ok(()))
    }

    /// Nothing follows: everything was put, or why not. Only the first word counts.
    fn end(&self, how: Result<(), BrokenOff>) {
        let mut state = self.state();
        state.ended.get_or_insert(how);
        wake_reader(state);
    }

    fn refuse(&self, why: BrokenOff) {
        let mut state = self.state();
        state.refused.get_or_insert(why);
        let unwanted = std::mem::take(&mut state.pieces);
        let sink = state.sink.take();
        drop(state);
        drop(unwanted);
        if let Some(sink) = sink {
            sink.wake();
        }
    }
}

fn wake_reader(mut state: MutexGuard<'_, State>) {
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// Where a store puts what it restores. Dropping it before [`finish`](Self::finish) breaks the stream off.
#[derive(Debug)]
pub struct RestoredSink {
    extents: Arc<Extents>,
    shared: Arc<Shared>,
    /// First byte of the disk that may be put.
    next: u64,
    /// The range that holds it, or comes behind it.
    range: usize,
}

impl RestoredSink {
    /// Puts a piece, which lies in one of the ranges and behind everything that was put before; waits until it may. What is no such
    /// piece breaks the stream off. Dropping the future puts nothing.
    pub async fn put(&mut self, offset: u64, bytes: Bytes) -> Result<(), PutError> {
        let length = bytes.len() as u64;
        if let Err(error) = self.check(offset, length) {
            self.shared.end(Err(BrokenOff(error.to_string())));
            return Err(error);
        }
        if length == 0 {
            return Ok(());
        }
        let mut piece = Some(Chunk { offset, bytes });
        poll_fn(|cx| self.shared.poll_put(cx, &mut piece)).await?;
        self.next = offset + length;
        Ok(())
    }

    /// Everything was put: what was not is zero.
    pub fn finish(self) {
        self.shared.end(Ok(()));
    }

    /// Breaks the stream off for this reason.
    pub fn abort(self, why: impl Into<String>) {
        self.shared.end(Err(BrokenOff(why.into())));
    }

    fn check(&mut self, offset: u64, length: u64) -> Result<(), PutError> {
        if offset < self.next {
            return Err(PutError::NotAscending { offset, next: self.next });
        }
        while self.extents.get(self.range).is_some_and(|range| range.end() <= offset) {
            self.range += 1;
        }
        let inside = |range: Extent| range.offset <= offset && offset.saturating_add(length) <= range.end();
        if length > 0 && !self.extents.get(self.range).is_some_and(inside) {
            return Err(PutError::OutOfPlace { offset, length });
        }
        Ok(())
    }
}

impl Drop for RestoredSink {
    fn drop(&mut self) {
        self.shared.end(Err(BrokenOff("the store ended before it had restored everything".to_owned())));
    }
}
