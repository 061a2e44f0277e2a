//! Disks as files that any hypervisor reads: the bytes themselves, with holes for zeroes. qcow2 is in [`qcow2`](crate::qcow2).

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use crate::digest::is_zero;

/// Zeroes are left out in pieces of this size, which is more than any file system's block.
const GRAIN: u64 = 64 << 10;

/// A file that holds the disk byte by byte. What nobody puts, and zeroes, are holes.
#[derive(Debug)]
pub struct Raw {
    file: File,
    size: u64,
}

impl Raw {
    /// Makes a disk of `size` bytes of an empty file.
    pub fn new(file: File, size: u64) -> io::Result<Self> {
        check_empty(&file)?;
        file.set_len(size)?;
        Ok(Self { file, size })
    }

    /// Writes a piece, in any order, each byte at most once.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        check_place(offset, bytes.len(), self.size)?;
        for (offset, run) in runs_of_data(offset, bytes, GRAIN) {
            self.file.seek(SeekFrom::Start(offset))?;
            self.file.write_all(run)?;
        }
        Ok(())
    }

    /// Waits until everything is on the storage, and gives the file back.
    pub fn finish(self) -> io::Result<File> {
        self.file.sync_all()?;
        Ok(self.file)
    }
}

/// Refuses a file that somebody has written to: what is left out of a new disk would be theirs.
pub(crate) fn check_empty(file: &File) -> io::Result<()> {
    if file.metadata()?.len() > 0 {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the file is not empty, and a new disk needs a new file",
        ));
    }
    Ok(())
}

/// Refuses a piece that is not inside of a disk of `size` bytes.
pub(crate) fn check_place(offset: u64, length: usize, size: u64) -> io::Result<()> {
    if offset.checked_add(length as u64).is_none_or(|end| end > size) {
        let why = format!("{length} bytes at disk byte {offset} are beyond the end of the disk, which is at {size}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(())
}

/// The runs of `bytes`, which lie at `offset`, without those multiples of `grain` in which all of them are zero.
pub(crate) fn runs_of_data(offset: u64, bytes: &[u8], grain: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let mut at = 0;
    // Bytes up to the end of the grain that holds the byte at `at`.
    let step = move |at: usize| ((grain - (offset + at as u64) % grain) as usize).min(bytes.len() - at);
    std::iter::from_fn(move || {
        while at < bytes.len() && is_zero(&bytes[at..at + step(at)]) {
            at += step(at);
        }
        let from = at;
        while at < bytes.len() && !is_zero(&bytes[at..at + step(at)]) {
            at += step(at);
        }
        (from < at).then(|| (offset + from as u64, &bytes[from..at]))
    })
}
