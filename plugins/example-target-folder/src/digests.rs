//! The table of a disk's chunks: 32 bytes each, BLAKE3 of what is there, or zeroes where there is nothing.
//!
//! It says where a disk has data, where two points differ, and whether what was stored is still what was sent. It is read and
//! written in pieces, so that a disk of any size needs little memory.

use std::cell::RefCell;
use vmferry_plugin_api::Error;
use vmferry_plugin_api::files::File;

/// Bytes of an entry.
const ENTRY: u64 = 32;

/// Entries that are read or written at once.
const WINDOW: u64 = 2048;

/// A table to read.
pub(crate) struct Digests {
    file: File,
    count: u64,
    /// The entries that were read last, and the number of the first of them.
    window: RefCell<(u64, Vec<u8>)>,
}

impl Digests {
    /// A table of so many chunks.
    pub(crate) fn new(file: File, count: u64) -> Result<Self, Error> {
        if file.size()? != count * ENTRY {
            return Err(Error::damaged("its table of digests is not of the disk's size"));
        }
        Ok(Self { file, count, window: RefCell::new((0, Vec::new())) })
    }

    /// The digest of a chunk, `None` where there is nothing.
    pub(crate) fn get(&self, index: u64) -> Result<Option<[u8; 32]>, Error> {
        if index >= self.count {
            return Ok(None);
        }
        let (first, entries) = &mut *self.window.borrow_mut();
        let (window, place) = (index - index % WINDOW, (index % WINDOW * ENTRY) as usize);
        if entries.is_empty() || *first != window {
            (*first, *entries) = (window, self.file.read_at(window * ENTRY, WINDOW * ENTRY)?);
        }
        let entry = checked(entries.get(place..place + ENTRY as usize).unwrap_or_default())?;
        Ok(Some(entry).filter(|entry| *entry != [0; 32]))
    }
}

/// A table being written, from its first chunk to its last.
pub(crate) struct Writer {
    file: File,
    written: u64,
    entries: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(file: File) -> Self {
        Self { file, written: 0, entries: Vec::new() }
    }

    pub(crate) fn push(&mut self, digest: Option<[u8; 32]>) -> Result<(), Error> {
        self.entries.extend(digest.unwrap_or_default());
        if self.entries.len() as u64 >= WINDOW * ENTRY { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.file.write_at(self.written, &self.entries)?;
        self.written += self.entries.len() as u64;
        self.entries.clear();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<(), Error> {
        self.flush()?;
        self.file.sync()
    }
}

/// A digest of the length that it has.
pub(crate) fn checked(digest: &[u8]) -> Result<[u8; 32], Error> {
    digest.try_into().map_err(|_| Error::damaged("a digest has not 32 bytes"))
}
