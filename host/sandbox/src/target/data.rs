//! Disk data as a guest has it: handles, behind which the bytes stay with the host.

use super::held::{Held, Room};
use super::progress::Progress;
use super::streams::{Body, Filling, Traffic};
use crate::bindings::host::vmferry::plugin::types::{Error, ErrorCode};
use crate::bindings::target::vmferry::plugin::delta as wit;
use crate::state::{State, error};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use vmferry_disk::encoding::{self, EncodingError};
use vmferry_model::target::{BrokenOff, Chunks, Restored, StoredExtent};
use wasmtime::component::Resource;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};

/// The most that goes back in one piece, encoded and decoded.
const MAX_PUT: u64 = 8 << 20;

/// Length of a BLAKE3 digest.
const DIGEST: usize = 32;

/// What one call has of disk data, beside its handles.
pub(crate) struct Data {
    pub(crate) progress: Arc<Progress>,
    pub(crate) traffic: Arc<Traffic>,
    room: Arc<Room>,
    /// Streams of `restore.put`, by their place in the table. A place is used again once its stream is gone.
    filling: HashMap<u32, Weak<Mutex<Filling>>>,
}

impl Data {
    pub(crate) fn new(progress: Arc<Progress>, traffic: Arc<Traffic>, room: u64) -> Self {
        Self { progress, traffic, room: Room::of(room), filling: HashMap::new() }
    }
}

/// The data of one disk, not yet taken.
#[allow(unreachable_pub, reason = "generated code exports it again")]
pub struct Delta {
    info: wit::Info,
    chunk_size: u32,
    chunks: Box<dyn Chunks>,
    pub(crate) end: End,
}

/// How far a source has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// There may be more.
    Open,
    /// All of it was taken.
    Reached,
    /// The source failed.
    BrokenOff(BrokenOff),
}

impl Delta {
    pub(crate) fn new(info: wit::Info, chunk_size: u32, chunks: Box<dyn Chunks>) -> Self {
        Self { info, chunk_size, chunks, end: End::Open }
    }
}

/// A chunk that a guest has taken.
#[allow(unreachable_pub, reason = "generated code exports it again")]
pub struct Chunk {
    offset: u64,
    bytes: Bytes,
    held: Arc<Held>,
    digest: Option<blake3::Hash>,
}

/// Bytes as a guest wants them written down.
#[allow(unreachable_pub, reason = "generated code exports it again")]
pub struct Payload {
    bytes: Bytes,
    held: Arc<Held>,
    digest: Option<blake3::Hash>,
}

/// Where what a guest puts goes.
#[allow(unreachable_pub, reason = "generated code exports it again")]
pub struct Restore {
    into: Into,
    /// Set when whoever waited for the data is gone.
    pub(crate) broken_off: Option<BrokenOff>,
}

enum Into {
    /// What was asked for, in ascending order.
    Disk { wanted: Vec<StoredExtent>, restored: Box<dyn Restored>, from: u64 },
    /// Nobody: it is only checked.
    Check,
}

impl Restore {
    /// Takes these ranges, which ascend.
    pub(crate) fn of(wanted: Vec<StoredExtent>, restored: Box<dyn Restored>) -> Self {
        Self { into: Into::Disk { wanted, restored, from: 0 }, broken_off: None }
    }

    /// Checks whatever comes.
    pub(crate) fn check() -> Self {
        Self { into: Into::Check, broken_off: None }
    }
}

impl wit::Host for State {}

impl wit::HostDelta for State {
    fn info(&mut self, delta: Resource<Delta>) -> wasmtime::Result<wit::Info> {
        Ok(self.table.get(&delta)?.info.clone())
    }

    async fn next(&mut self, delta: Resource<Delta>) -> wasmtime::Result<Result<Option<Resource<Chunk>>, Error>> {
        let delta = self.table.get_mut(&delta)?;
        match &delta.end {
            End::Open => {}
            End::Reached => return Ok(Ok(None)),
            End::BrokenOff(broken) => return Ok(Err(broken_off(broken))),
        }
        // Before it is asked for, so that nothing of the source is lost by a refusal.
        let Some(mut held) = self.data.room.take(delta.chunk_size.into()) else {
            return Ok(Err(full(&self.data.room)));
        };
        let chunk = match self.data.progress.waiting(delta.chunks.next()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => {
                delta.end = End::Reached;
                return Ok(Ok(None));
            }
            Err(broken) => {
                delta.end = End::BrokenOff(broken.clone());
                return Ok(Err(broken_off(&broken)));
            }
        };
        held.shrink_to(chunk.bytes.len() as u64);
        let chunk = Chunk { offset: chunk.offset, bytes: chunk.bytes, held: Arc::new(held), digest: None };
        Ok(Ok(Some(self.table.push(chunk)?)))
    }

    fn drop(&mut self, _: Resource<Delta>) -> wasmtime::Result<()> {
        // The guest has it borrowed.
        Ok(())
    }
}

impl wit::HostChunk for State {
    fn offset(&mut self, chunk: Resource<Chunk>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&chunk)?.offset)
    }

    fn length(&mut self, chunk: Resource<Chunk>) -> wasmtime::Result<u32> {
        Ok(self.table.get(&chunk)?.bytes.len() as u32)
    }

    fn is_zero(&mut self, chunk: Resource<Chunk>) -> wasmtime::Result<bool> {
        Ok(is_zero(&self.table.get(&chunk)?.bytes))
    }

    fn digest(&mut self, chunk: Resource<Chunk>) -> wasmtime::Result<Vec<u8>> {
        let Chunk { bytes, digest, .. } = self.table.get_mut(&chunk)?;
        Ok(digest_once(bytes, digest))
    }

    fn encode(
        &mut self,
        chunk: Resource<Chunk>,
        encoding: wit::Encoding,
    ) -> wasmtime::Result<Result<Resource<Payload>, Error>> {
        let (encoding, key) = match self.encoding(encoding) {
            Ok(known) => known,
            Err(error) => return Ok(Err(error)),
        };
        let chunk = self.table.get(&chunk)?;
        let payload = if encoding == encoding::Encoding::Identity {
            // The same bytes, so they take no more room.
            Payload { bytes: chunk.bytes.clone(), held: chunk.held.clone(), digest: chunk.digest }
        } else {
            let bytes = match encoding::encode(encoding, &chunk.bytes, key.as_ref()) {
                Ok(bytes) => bytes,
                Err(problem) => return Ok(Err(error(ErrorCode::Unavailable, format!("a chunk's bytes: {problem}")))),
            };
            let Some(held) = self.data.room.take(bytes.len() as u64) else {
                return Ok(Err(full(&self.data.room)));
            };
            Payload { bytes, held: Arc::new(held), digest: None }
        };
        Ok(Ok(self.table.push(payload)?))
    }

    fn drop(&mut self, chunk: Resource<Chunk>) -> wasmtime::Result<()> {
        self.table.delete(chunk)?;
        Ok(())
    }
}

impl wit::HostPayload for State {
    fn length(&mut self, payload: Resource<Payload>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&payload)?.bytes.len() as u64)
    }

    fn digest(&mut self, payload: Resource<Payload>) -> wasmtime::Result<Vec<u8>> {
        let Payload { bytes, digest, .. } = self.table.get_mut(&payload)?;
        Ok(digest_once(bytes, digest))
    }

    fn checksum(
        &mut self,
        payload: Resource<Payload>,
        algorithm: wit::Checksum,
    ) -> wasmtime::Result<Result<Vec<u8>, Error>> {
        let bytes = &self.table.get(&payload)?.bytes;
        Ok(match algorithm {
            wit::Checksum::Crc32c => Ok(crc32c::crc32c(bytes).to_be_bytes().to_vec()),
            wit::Checksum::Sha256 => Ok(Sha256::digest(bytes).to_vec()),
            wit::Checksum::Other(_) => {
                Err(error(ErrorCode::Unsupported, "this host computes the check sums crc32c and sha256".to_owned()))
            }
        })
    }

    fn body(&mut self, payload: Resource<Payload>) -> wasmtime::Result<Result<Resource<DynInputStream>, Error>> {
        let Payload { bytes, held, .. } = self.table.get(&payload)?;
        let (traffic, progress) = (self.data.traffic.clone(), self.data.progress.clone());
        let body: DynInputStream = Box::new(Body::new(bytes.clone(), held.clone(), traffic, progress));
        Ok(Ok(self.table.push(body)?))
    }

    fn drop(&mut self, payload: Resource<Payload>) -> wasmtime::Result<()> {
        self.table.delete(payload)?;
        Ok(())
    }
}

impl wit::HostRestore for State {
    fn put(
        &mut self,
        _: Resource<Restore>,
        offset: u64,
        length: u64,
        encoding: wit::Encoding,
        digest: Option<Vec<u8>>,
    ) -> wasmtime::Result<Result<Resource<DynOutputStream>, Error>> {
        let (encoding, key) = match self.encoding(encoding) {
            Ok(known) => known,
            Err(error) => return Ok(Err(error)),
        };
        if length == 0 || length > MAX_PUT {
            let said = format!("a piece of {length} bytes; at least one and at most 8 MiB are put at a time");
            return Ok(Err(error(ErrorCode::Limit, said)));
        }
        let digest = match digest.map(<[u8; DIGEST]>::try_from).transpose() {
            Ok(digest) => digest.map(blake3::Hash::from_bytes),
            Err(_) => return Ok(Err(error(ErrorCode::Unsupported, "a BLAKE3 digest has 32 bytes".to_owned()))),
        };
        let Some(held) = self.data.room.take(length) else { return Ok(Err(full(&self.data.room))) };
        let filling = Arc::new(Mutex::new(Filling::new(offset, length, encoding, key, digest, held)));
        let weak = Arc::downgrade(&filling);
        let stream = Filling::stream(filling, self.data.traffic.clone(), self.data.progress.clone());
        let stream: Resource<DynOutputStream> = self.table.push(stream)?;
        self.data.filling.insert(stream.rep(), weak);
        Ok(Ok(stream))
    }

    async fn finish(
        &mut self,
        restore: Resource<Restore>,
        filled: Resource<DynOutputStream>,
    ) -> wasmtime::Result<Result<(), Error>> {
        let filling = self.data.filling.remove(&filled.rep()).and_then(|weak| weak.upgrade());
        self.table.delete(filled)?;
        // With its stream gone nobody else has it.
        let Some(filling) = filling.and_then(Arc::into_inner).and_then(|filling| filling.into_inner().ok()) else {
            return Ok(Err(error(ErrorCode::Unsupported, "the stream is none of `restore.put`".to_owned())));
        };
        let restore = self.table.get_mut(&restore)?;
        if let Some(broken) = &restore.broken_off {
            return Ok(Err(broken_off(broken)));
        }
        let (offset, bytes, _held) = match filling.decoded(MAX_PUT as usize) {
            Ok(decoded) => decoded,
            Err(damage) => return Ok(Err(damaged(&damage))),
        };
        let Into::Disk { wanted, restored, from } = &mut restore.into else { return Ok(Ok(())) };
        if offset < *from {
            let said = format!("what is read back is put in ascending order, and {offset} came after {from}");
            return Ok(Err(error(ErrorCode::Unsupported, said)));
        }
        *from = offset;
        for (offset, bytes) in wanted_of(wanted, offset, &bytes) {
            if let Err(broken) = self.data.progress.waiting(restored.put(offset, bytes)).await {
                restore.broken_off = Some(broken.clone());
                return Ok(Err(broken_off(&broken)));
            }
        }
        Ok(Ok(()))
    }

    fn drop(&mut self, _: Resource<Restore>) -> wasmtime::Result<()> {
        // The guest has it borrowed.
        Ok(())
    }
}

impl State {
    /// An encoding with its key, if the guest may have it.
    fn encoding(&self, encoding: wit::Encoding) -> Result<(encoding::Encoding, Option<encoding::SealKey>), Error> {
        use encoding::Encoding;
        Ok(match encoding {
            wit::Encoding::Identity => (Encoding::Identity, None),
            wit::Encoding::Zstd => (Encoding::Zstd, None),
            wit::Encoding::Sealed(key) => (Encoding::Sealed, Some(self.seal_key(&key)?)),
            wit::Encoding::ZstdSealed(key) => (Encoding::ZstdSealed, Some(self.seal_key(&key)?)),
            wit::Encoding::Other(_) => {
                let said = "this host knows the encodings identity, zstd, sealed and zstd-sealed".to_owned();
                return Err(error(ErrorCode::Unsupported, said));
            }
        })
    }
}

/// The parts of a piece that lie in the ranges that were asked for, not copied. Ranges that lie behind it are not needed any more.
fn wanted_of(wanted: &mut Vec<StoredExtent>, offset: u64, bytes: &Bytes) -> Vec<(u64, Bytes)> {
    let end = offset.saturating_add(bytes.len() as u64);
    let passed = wanted.partition_point(|extent| extent.offset + extent.length <= offset);
    wanted.drain(..passed);
    let parts = wanted.iter().take_while(|extent| extent.offset < end).map(|extent| {
        let (from, to) = (extent.offset.max(offset), (extent.offset + extent.length).min(end));
        (from, bytes.slice((from - offset) as usize..(to - offset) as usize))
    });
    parts.collect()
}

/// Whether all bytes are zero, as fast as memory is compared.
fn is_zero(bytes: &[u8]) -> bool {
    static ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|piece| *piece == ZEROES[..piece.len()])
}

fn digest_once(bytes: &Bytes, digest: &mut Option<blake3::Hash>) -> Vec<u8> {
    digest.get_or_insert_with(|| blake3::hash(bytes)).as_bytes().to_vec()
}

fn full(room: &Room) -> Error {
    let said = format!(
        "chunks, payloads and open pieces that are held would be more than {} together; let go of some before you go on",
        crate::limits::bytes(room.all())
    );
    error(ErrorCode::Limit, said)
}

fn broken_off(broken: &BrokenOff) -> Error {
    error(ErrorCode::Unavailable, broken.to_string())
}

/// What a piece that is not good is to the guest.
fn damaged(damage: &str) -> Error {
    error(ErrorCode::Other("damaged".to_owned()), damage.to_owned())
}

/// What is wrong with encoded bytes, as [`damaged`] tells it.
pub(super) fn undecodable(problem: EncodingError) -> String {
    format!("the bytes cannot be decoded: {problem}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_gives_what_was_asked_for_and_no_more() {
        let extent = |offset, length| StoredExtent { offset, length };
        let mut wanted = vec![extent(0, 4), extent(10, 2), extent(13, 4), extent(30, 1)];
        let bytes = Bytes::from_static(b"abcdef");
        let parts = wanted_of(&mut wanted, 9, &bytes);
        assert_eq!(parts, [(10, Bytes::from_static(b"bc")), (13, Bytes::from_static(b"ef"))]);
        assert_eq!(wanted.first(), Some(&extent(10, 2)), "what has passed is forgotten");
        assert_eq!(wanted_of(&mut wanted, 17, &bytes), []);
    }

    #[test]
    fn zeroes_are_told_from_what_only_begins_with_them() {
        let mut bytes = vec![0; 10_000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        bytes[9_999] = 1;
        assert!(!is_zero(&bytes));
    }
}
