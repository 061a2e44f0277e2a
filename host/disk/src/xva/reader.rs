//! Reads an XVA as it comes.

use std::io::Read;

use bytes::Bytes;

use super::checksum::Checksum;
use super::entries::{ChunkEntry, Entries, Entry};
use super::error::XvaError;
use super::{BLOCK, Piece, padded};

/// Gives the pieces of all disks, in the order of the archive. It holds one chunk at a time.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    entries: Entries,
    /// Bytes that were read.
    at: u64,
    metadata: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// Reads what the VM is.
    pub fn open(from: R) -> Result<Self, XvaError> {
        let mut reader = Self { from, entries: Entries::default(), at: 0, metadata: Vec::new() };
        if let Entry::Metadata { length } = reader.header()? {
            reader.metadata = reader.body(length)?;
        }
        Ok(reader)
    }

    /// `ova.xml`.
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// The next piece, and the name of its disk; `None` when the archive is over. What no piece holds is zero.
    pub fn next_piece(&mut self) -> Result<Option<(String, Piece)>, XvaError> {
        loop {
            match self.header()? {
                Entry::Chunk(chunk) => {
                    let bytes = self.chunk(&chunk)?;
                    return Ok(Some((chunk.disk, Piece { offset: chunk.offset, bytes })));
                }
                Entry::Metadata { length } | Entry::Other { length } => self.skip(padded(length))?,
                // Never without its chunk.
                Entry::Checksum(kind) => self.skip(padded(kind.length()))?,
                Entry::End => return Ok(None),
            }
        }
    }

    fn chunk(&mut self, chunk: &ChunkEntry) -> Result<Bytes, XvaError> {
        let at = self.at - BLOCK as u64;
        let bytes = self.body(chunk.length)?;
        let Entry::Checksum(kind) = self.header()? else { return Err(XvaError::NoHeader { at: self.at }) };
        let found = self.body(kind.length())?;
        verify(at, &chunk.name, kind, &found, &bytes)?;
        Ok(bytes.into())
    }

    fn header(&mut self) -> Result<Entry, XvaError> {
        let at = self.at;
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        self.entries.header(at, &block)
    }

    /// The bytes of a member. Only those that come are kept, whatever its header promises.
    fn body(&mut self, length: u64) -> Result<Vec<u8>, XvaError> {
        let mut body = Vec::new();
        let read =
            (&mut self.from).take(length).read_to_end(&mut body).map_err(|error| XvaError::io(self.at, error))?;
        self.at += read as u64;
        if read as u64 != length {
            return Err(XvaError::Truncated { at: self.at });
        }
        self.skip(padded(length) - length)?;
        Ok(body)
    }

    fn skip(&mut self, length: u64) -> Result<(), XvaError> {
        let skipped = std::io::copy(&mut (&mut self.from).take(length), &mut std::io::sink());
        let skipped = skipped.map_err(|error| XvaError::io(self.at, error))?;
        self.at += skipped;
        if skipped == length { Ok(()) } else { Err(XvaError::Truncated { at: self.at }) }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), XvaError> {
        self.from.read_exact(buffer).map_err(|error| XvaError::io(self.at, error))?;
        self.at += buffer.len() as u64;
        Ok(())
    }
}

/// Compares a chunk, whose header is at byte `at`, with its checksum as it was found.
pub(super) fn verify(at: u64, name: &str, kind: Checksum, found: &[u8], chunk: &[u8]) -> Result<(), XvaError> {
    match kind.of(chunk).as_bytes() == found {
        true => Ok(()),
        false => Err(XvaError::BadChecksum { at, chunk: name.to_owned() }),
    }
}
