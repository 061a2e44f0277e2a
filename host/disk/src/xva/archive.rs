//! An XVA in a file: its headers are read once, its chunks when they are asked for.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::checksum::Checksum;
use super::entries::{Entries, Entry};
use super::error::XvaError;
use super::reader::verify;
use super::{BLOCK, Piece, padded};
use crate::extent::{Extent, Extents};

const ONE: u64 = BLOCK as u64;
/// Headers that lie together: of a checksum, its bytes, and the header of the next chunk.
const WINDOW: usize = 3 * BLOCK;

/// An XVA file. It keeps 40 bytes for each row of chunks that lie one behind the other.
#[derive(Debug)]
pub struct Archive {
    file: File,
    metadata: Vec<u8>,
    disks: Vec<ArchivedDisk>,
}

/// A disk of an XVA file.
#[derive(Debug)]
pub struct ArchivedDisk {
    /// Its name, which `ova.xml` explains.
    pub id: String,
    /// Where its last chunk ends in bytes: that is the end of the disk, if the archive is whole.
    pub length: u64,
    rows: Vec<Row>,
}

/// Chunks of one length that follow each other, on the disk and in the file.
#[derive(Debug)]
struct Row {
    /// Of the first on the disk.
    offset: u64,
    /// Of the first one's header in the file.
    position: u64,
    /// Bytes of each.
    length: u64,
    count: u64,
    checksum: Checksum,
}

impl Row {
    /// Bytes of the file from one header to the next.
    fn stride(&self) -> u64 {
        ONE + padded(self.length) + ONE + padded(self.checksum.length())
    }

    fn end(&self) -> u64 {
        self.offset + self.length * self.count
    }

    /// Takes another row in that goes on where this one ends.
    fn joins(&mut self, next: &Self) -> bool {
        let joins = (next.length, next.checksum) == (self.length, self.checksum)
            && next.offset == self.end()
            && next.position == self.position + self.stride() * self.count;
        self.count += u64::from(joins);
        joins
    }
}

impl Archive {
    /// Reads all headers, and what the VM is. Chunks and checksums are not looked at.
    pub fn open(file: File) -> Result<Self, XvaError> {
        let size = file.metadata().map_err(|error| XvaError::io(0, error))?.len();
        let mut archive = Self { file, metadata: Vec::new(), disks: Vec::new() };
        let (mut entries, mut window) = (Entries::default(), Window::default());
        let mut at = 0;
        loop {
            let header = window.block(&archive.file, size, at)?;
            let body = at + ONE;
            at = match entries.header(at, &header)? {
                Entry::End => return Ok(archive),
                Entry::Metadata { length } => {
                    archive.metadata = archive.read(body, length)?;
                    body + padded(length)
                }
                Entry::Chunk(chunk) => {
                    let behind = body + padded(chunk.length);
                    let header = window.block(&archive.file, size, behind)?;
                    if let Entry::Checksum(checksum) = entries.header(behind, &header)? {
                        let row = Row { offset: chunk.offset, position: at, length: chunk.length, count: 1, checksum };
                        archive.push(chunk.disk, row);
                    }
                    behind + ONE + ONE
                }
                Entry::Checksum(checksum) => body + padded(checksum.length()),
                Entry::Other { length } => body + padded(length),
            };
        }
    }

    /// `ova.xml`.
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// The disks, in the order of their names.
    pub fn disks(&self) -> &[ArchivedDisk] {
        &self.disks
    }

    /// The disk of this name.
    pub fn disk(&self, id: &str) -> Option<&ArchivedDisk> {
        self.disks.iter().find(|disk| disk.id == id)
    }

    /// Reads the chunk of a disk that holds this byte, and verifies its checksum; `None` where there is none: it is zero.
    pub fn chunk(&self, disk: &ArchivedDisk, byte: u64) -> Result<Option<Piece>, XvaError> {
        let row = disk.rows.partition_point(|row| row.end() <= byte);
        let Some(row) = disk.rows.get(row).filter(|row| row.offset <= byte) else { return Ok(None) };
        let index = (byte - row.offset) / row.length;
        let at = row.position + index * row.stride();
        let chunk = bytes::Bytes::from(self.read(at + ONE, padded(row.length) + ONE + row.checksum.length())?);
        let (bytes, found) = (chunk.slice(..row.length as usize), &chunk[(padded(row.length) + ONE) as usize..]);
        let offset = row.offset + index * row.length;
        verify(at, &format!("at disk byte {offset} of {}", disk.id), row.checksum, found, &bytes)?;
        Ok(Some(Piece { offset, bytes }))
    }

    fn push(&mut self, id: String, row: Row) {
        if self.disks.last().is_none_or(|disk| disk.id != id) {
            self.disks.push(ArchivedDisk { id, length: 0, rows: Vec::new() });
        }
        let Some(disk) = self.disks.last_mut() else { return };
        disk.length = row.end();
        // A chunk without bytes is a sign of life, and nothing of the disk.
        if row.length > 0 && !disk.rows.last_mut().is_some_and(|last| last.joins(&row)) {
            disk.rows.push(row);
        }
    }

    fn read(&self, at: u64, length: u64) -> Result<Vec<u8>, XvaError> {
        let mut bytes = vec![0; length as usize];
        self.file.read_exact_at(&mut bytes, at).map_err(|error| XvaError::io(at, error))?;
        Ok(bytes)
    }
}

impl ArchivedDisk {
    /// The ranges that have chunks. All others are zero.
    pub fn extents(&self) -> Extents {
        let extent = |row: &Row| Extent { offset: row.offset, length: row.length * row.count };
        self.rows.iter().map(extent).collect()
    }
}

/// The headers that were read last.
#[derive(Debug, Default)]
struct Window {
    at: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The block at byte `at` of a file of `length` bytes.
    fn block(&mut self, file: &File, length: u64, at: u64) -> Result<[u8; BLOCK], XvaError> {
        let end = at.checked_add(ONE).filter(|end| *end <= length).ok_or(XvaError::Truncated { at: length })?;
        if at < self.at || end > self.at + self.bytes.len() as u64 {
            self.bytes.resize(WINDOW.min((length - at) as usize), 0);
            file.read_exact_at(&mut self.bytes, at).map_err(|error| XvaError::io(at, error))?;
            self.at = at;
        }
        let from = (at - self.at) as usize;
        let mut block = [0; BLOCK];
        block.copy_from_slice(&self.bytes[from..from + BLOCK]);
        Ok(block)
    }
}
