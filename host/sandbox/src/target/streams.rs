//! The ends of a transfer as WASI streams, and how many bytes pass by a guest.
//!
//! A guest that splices moves handles: the bytes go from one of the host's streams to another as they are. One that reads a body
//! or writes a piece itself has them copied into its memory or out of it, and this is counted apart.

use super::data::undecodable;
use super::held::Held;
use super::progress::Progress;
use crate::state::State;
use bytes::{Bytes, BytesMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vmferry_disk::encoding::{self, Encoding, SealKey};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::p2::bindings::io::streams::{
    Host, HostInputStream, HostOutputStream, StreamError as GuestStreamError,
};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamError, StreamResult,
};

/// Bytes of disk data that went through one use of a plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Out of payloads, encoded.
    pub stored: u64,
    /// Into pieces that were put, encoded.
    pub restored: u64,
    /// Those of them that were copied into the guest's memory or out of it. A plugin that splices has none.
    pub copied: u64,
}

/// Counts them, for one use of a plugin or for one call of it.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    stored: AtomicU64,
    restored: AtomicU64,
    copied: AtomicU64,
    /// The use that the call is of, which gets what the call has counted when that is over.
    of: Option<Arc<Self>>,
}

impl Traffic {
    pub(crate) fn of_call(of: Arc<Self>) -> Arc<Self> {
        let none = AtomicU64::default;
        Arc::new(Self { stored: none(), restored: none(), copied: none(), of: Some(of) })
    }

    pub(crate) fn passed(&self) -> Passed {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Passed { stored: load(&self.stored), restored: load(&self.restored), copied: load(&self.copied) }
    }

    fn moved(&self) -> u64 {
        let Passed { stored, restored, .. } = self.passed();
        stored + restored
    }

    fn copied_since(&self, before: u64) {
        self.copied.fetch_add(self.moved() - before, Ordering::Relaxed);
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        let Some(of) = &self.of else { return };
        let Passed { stored, restored, copied } = self.passed();
        of.stored.fetch_add(stored, Ordering::Relaxed);
        of.restored.fetch_add(restored, Ordering::Relaxed);
        of.copied.fetch_add(copied, Ordering::Relaxed);
        if stored + restored > 0 {
            tracing::debug!(stored, restored, copied, "disk data passed by a plugin");
        }
    }
}

/// Bytes with the room that they take. As the owner of what is read from it, it is there for as long as any slice, wherever that went.
struct Counted {
    bytes: Bytes,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a payload's bytes from the beginning.
pub(super) struct Body {
    bytes: Bytes,
    traffic: Arc<Traffic>,
    progress: Arc<Progress>,
}

impl Body {
    pub(super) fn new(bytes: Bytes, held: Arc<Held>, traffic: Arc<Traffic>, progress: Arc<Progress>) -> Self {
        Self { bytes: Bytes::from_owner(Counted { bytes, _held: held }), traffic, progress }
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Body {
    async fn ready(&mut self) {}
}

impl InputStream for Body {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.bytes.is_empty() {
            return Err(StreamError::Closed);
        }
        let piece = self.bytes.split_to(size.min(self.bytes.len()));
        self.traffic.stored.fetch_add(piece.len() as u64, Ordering::Relaxed);
        self.progress.moved();
        Ok(piece)
    }
}

/// A piece that is being put.
pub(crate) struct Filling {
    offset: u64,
    encoding: Encoding,
    key: Option<SealKey>,
    digest: Option<blake3::Hash>,
    /// What came, in one buffer: as they came, pieces would keep the larger ones that they were cut from, and each its own header.
    gathered: BytesMut,
    /// Instead of that, what came in one piece that is large enough to be kept as it is.
    whole: Option<Bytes>,
    /// Encoded bytes that are to come.
    missing: u64,
    held: Held,
}

impl Filling {
    pub(super) fn new(
        offset: u64,
        length: u64,
        encoding: Encoding,
        key: Option<SealKey>,
        digest: Option<blake3::Hash>,
        held: Held,
    ) -> Self {
        Self { offset, encoding, key, digest, gathered: BytesMut::new(), whole: None, missing: length, held }
    }

    /// Takes the next bytes, unless they are more than are missing.
    fn take(&mut self, bytes: Bytes) -> bool {
        /// What a file or a server gives at once is not much more.
        const LARGE: usize = 64 << 10;
        let length = bytes.len() as u64;
        let Some(missing) = self.missing.checked_sub(length) else { return false };
        if missing == 0 && self.gathered.is_empty() && bytes.len() >= LARGE {
            self.whole = Some(bytes);
        } else {
            if self.gathered.is_empty() {
                // All that it will take, for which there is room.
                self.gathered.reserve(usize::try_from(self.missing).unwrap_or(bytes.len()));
            }
            self.gathered.extend_from_slice(&bytes);
        }
        self.missing = missing;
        true
    }

    pub(super) fn stream(filling: Arc<Mutex<Self>>, traffic: Arc<Traffic>, progress: Arc<Progress>) -> DynOutputStream {
        Box::new(Put { filling, traffic, progress })
    }

    /// Where it belongs and what it says, at most `most` bytes; or what is wrong with it, as a sentence.
    pub(super) fn decoded(self, most: usize) -> Result<(u64, Bytes, Held), String> {
        let Self { offset, encoding, key, digest, gathered, whole, missing, held } = self;
        if missing > 0 {
            return Err(format!("{missing} bytes of the piece at {offset} are missing"));
        }
        let whole = whole.unwrap_or_else(|| gathered.freeze());
        let bytes = encoding::decode(encoding, &[whole], most, key.as_ref()).map_err(undecodable)?;
        if digest.is_some_and(|digest| digest != blake3::hash(&bytes)) {
            return Err(format!("the bytes of the piece at {offset} are not those that its digest is of"));
        }
        Ok((offset, bytes, held))
    }
}

/// The stream that fills it.
struct Put {
    filling: Arc<Mutex<Filling>>,
    traffic: Arc<Traffic>,
    progress: Arc<Progress>,
}

#[wasmtime_wasi::async_trait]
impl Pollable for Put {
    async fn ready(&mut self) {}
}

impl OutputStream for Put {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let length = bytes.len() as u64;
        if !self.filling.lock().unwrap_or_else(PoisonError::into_inner).take(bytes) {
            let said = "more bytes come than were announced to `restore.put`";
            return Err(StreamError::LastOperationFailed(wasmtime::Error::msg(said)));
        }
        self.traffic.restored.fetch_add(length, Ordering::Relaxed);
        self.progress.moved();
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        // Never zero, which would mean that it takes more later: one that is full answers the next byte.
        let missing = self.filling.lock().unwrap_or_else(PoisonError::into_inner).missing;
        Ok(usize::try_from(missing).unwrap_or(usize::MAX).max(1))
    }
}

/// The version of WASI in wasmtime's bindings; guests of other 0.2 versions find the same functions.
const STREAMS: &str = "wasi:io/streams@0.2.12";

/// Watches the streams of a linker: counts what a guest reads of bodies and writes into pieces itself, and what it splices as
/// progress. A call runs one function at a time, so whatever one of
/// these moves through a body or a piece was the guest's.
pub(crate) fn watch(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut streams = linker.instance(STREAMS)?;
    type Read = (Resource<DynInputStream>, u64);
    type Write = (Resource<DynOutputStream>, Vec<u8>);
    type Splice = (Resource<DynOutputStream>, Resource<DynInputStream>, u64);
    streams.func_wrap(
        "[method]input-stream.read",
        |mut store: StoreContextMut<'_, State>, (stream, length): Read| {
            let state = store.data_mut();
            let before = state.data.traffic.moved();
            let read = HostInputStream::read(&mut state.table, stream, length);
            state.data.traffic.copied_since(before);
            Ok((state.answer(read)?,))
        },
    )?;
    streams.func_wrap_async(
        "[method]input-stream.blocking-read",
        |mut store: StoreContextMut<'_, State>, (stream, length): Read| {
            Box::new(async move {
                let state = store.data_mut();
                let before = state.data.traffic.moved();
                let read = HostInputStream::blocking_read(&mut state.table, stream, length).await;
                state.data.traffic.copied_since(before);
                Ok((state.answer(read)?,))
            })
        },
    )?;
    streams.func_wrap(
        "[method]output-stream.write",
        |mut store: StoreContextMut<'_, State>, (stream, bytes): Write| {
            let state = store.data_mut();
            let before = state.data.traffic.moved();
            let written = HostOutputStream::write(&mut state.table, stream, bytes);
            state.data.traffic.copied_since(before);
            Ok((state.answer(written)?,))
        },
    )?;
    streams.func_wrap_async(
        "[method]output-stream.blocking-write-and-flush",
        |mut store: StoreContextMut<'_, State>, (stream, bytes): Write| {
            Box::new(async move {
                let state = store.data_mut();
                let before = state.data.traffic.moved();
                let written = HostOutputStream::blocking_write_and_flush(&mut state.table, stream, bytes).await;
                state.data.traffic.copied_since(before);
                Ok((state.answer(written)?,))
            })
        },
    )?;
    streams.func_wrap(
        "[method]output-stream.splice",
        |mut store: StoreContextMut<'_, State>, (to, from, length): Splice| {
            let state = store.data_mut();
            let spliced = HostOutputStream::splice(&mut state.table, to, from, length);
            Ok((state.spliced(spliced)?,))
        },
    )?;
    streams.func_wrap_async(
        "[method]output-stream.blocking-splice",
        |mut store: StoreContextMut<'_, State>, (to, from, length): Splice| {
            Box::new(async move {
                let state = store.data_mut();
                let spliced = HostOutputStream::blocking_splice(&mut state.table, to, from, length).await;
                Ok((state.spliced(spliced)?,))
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

impl State {
    /// Bytes between any two streams are work: a copy from file to file, too.
    fn spliced(&mut self, moved: StreamResult<u64>) -> wasmtime::Result<Result<u64, GuestStreamError>> {
        if matches!(moved, Ok(1..)) {
            self.data.progress.worked();
        }
        self.answer(moved)
    }

    /// A stream's result as the guest gets it.
    fn answer<T>(&mut self, result: StreamResult<T>) -> wasmtime::Result<Result<T, GuestStreamError>> {
        match result {
            Ok(done) => Ok(Ok(done)),
            Err(error) => Ok(Err(Host::convert_stream_error(&mut self.table, error)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::held::Room;
    use super::*;

    #[test]
    fn a_slice_of_a_body_takes_the_room_of_the_whole_wherever_it_is() {
        let room = Room::of(2 << 20);
        let held = Arc::new(room.take(2 << 20).expect("room"));
        let mut body = Body::new(Bytes::from(vec![1; 2 << 20]), held, Arc::default(), Arc::default());
        let slice = body.read(1).expect("a byte");
        drop(body);
        assert!(room.take(1).is_none());
        drop(slice);
        assert!(room.take(2 << 20).is_some());
    }

    #[test]
    fn a_piece_that_comes_in_small_pieces_keeps_none_of_their_buffers() {
        let (buffer, length) = (Bytes::from(vec![7; 1 << 20]), 256 << 10);
        let filling = |length| {
            let held = Room::of(length).take(length).expect("room");
            Filling::new(0, length, Encoding::Identity, None, None, held)
        };
        let mut small = filling(length);
        for at in 0..length as usize {
            assert!(small.take(buffer.slice(at..=at)));
        }
        assert!(!small.take(buffer.slice(..1)), "it is full");
        assert!(buffer.is_unique() && small.gathered.capacity() < 2 * length as usize);
        assert_eq!(small.decoded(1 << 20).expect("whole").1, buffer.slice(..length as usize));
        let mut large = filling(length);
        assert!(large.take(buffer.slice(..length as usize)));
        let (_, kept, _) = large.decoded(1 << 20).expect("whole");
        assert_eq!(kept.as_ptr(), buffer.as_ptr(), "not copied");
    }
}
