//! Writes an XVA, forward.

use std::io::{self, Write};

use super::checksum::Checksum;
use super::{BLOCK, CHUNK, METADATA, padded, tar};
use crate::digest::is_zero;

/// Writes what a VM is, then its disks one after the other, each in the order of the disk. Chunks of zeroes are left out.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    disk: Option<Disk>,
    /// Chunk that was begun: its bytes from its start on.
    opened: Vec<u8>,
    /// Hosts count every gap in chunks of the first disk's first length, so there may be gaps only if that is a whole chunk.
    gaps: Option<bool>,
}

#[derive(Debug)]
struct Disk {
    id: String,
    size: u64,
    /// First byte that may be put.
    next: u64,
    /// Number of the first chunk that was not written.
    unwritten: u64,
}

impl Disk {
    fn chunks(&self) -> u64 {
        self.size.div_ceil(CHUNK)
    }

    /// Bytes of a chunk.
    fn length(&self, number: u64) -> u64 {
        CHUNK.min(self.size - number * CHUNK)
    }
}

impl<W: Write> Writer<W> {
    /// Begins with what the VM is: `ova.xml`.
    pub fn new(out: W, metadata: &[u8]) -> io::Result<Self> {
        let mut writer = Self { out, disk: None, opened: Vec::new(), gaps: None };
        writer.member(METADATA, metadata)?;
        Ok(writer)
    }

    /// Begins with a disk of `size` bytes, which are whole sectors of 512 and not none. `id` is its name in `ova.xml`, and comes behind
    /// those of the disks before it as text. What nobody puts of the disk before is zero.
    pub fn begin(&mut self, id: &str, size: u64) -> io::Result<()> {
        let behind = self.disk.as_ref().is_none_or(|disk| *disk.id < *id);
        if size == 0 || !size.is_multiple_of(BLOCK as u64) || !behind {
            let why = format!("disk {id} of {size} bytes: it has to have whole sectors, and a name behind the others'");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.end_disk()?;
        self.gaps.get_or_insert(size >= CHUNK);
        self.disk = Some(Disk { id: id.to_owned(), size, next: 0, unwritten: 0 });
        Ok(())
    }

    /// Takes a piece of the disk, behind all that were taken before.
    pub fn put(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        let Some(disk) = &self.disk else { return Err(io::Error::other("a piece without a disk")) };
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= disk.size);
        let Some(end) = end.filter(|_| offset >= disk.next) else {
            let why = format!(
                "{} bytes at disk byte {offset}: of disk {}, bytes {} to {} are to come",
                bytes.len(),
                disk.id,
                disk.next,
                disk.size
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        while !bytes.is_empty() {
            let (number, within) = (offset / CHUNK, (offset % CHUNK) as usize);
            self.close_before(number)?;
            let whole = self.disk.as_ref().map_or(0, |disk| disk.length(number)) as usize;
            let (taken, rest) = bytes.split_at(bytes.len().min(whole - within));
            if taken.len() == whole {
                self.chunk(number, taken)?;
            } else {
                self.opened.resize(within, 0);
                self.opened.extend_from_slice(taken);
            }
            offset += taken.len() as u64;
            bytes = rest;
        }
        if let Some(disk) = &mut self.disk {
            disk.next = end;
        }
        Ok(())
    }

    /// Writes the end of the archive, and gives back where it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_disk()?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    /// Writes the rest of the disk, zeroes but for what was put.
    fn end_disk(&mut self) -> io::Result<()> {
        match self.disk.as_ref().map(Disk::chunks) {
            Some(chunks) => self.close_before(chunks),
            None => Ok(()),
        }
    }

    /// Writes the chunks in front of this one: what was put of the one that was begun, and zeroes.
    fn close_before(&mut self, number: u64) -> io::Result<()> {
        while let Some(disk) = self.disk.as_ref().filter(|disk| disk.unwritten < number) {
            let (next, last, length) = (disk.unwritten, disk.chunks() - 1, disk.length(disk.unwritten));
            if self.opened.is_empty() && (1..last).contains(&next) && self.gaps == Some(true) {
                self.written_before(number.min(last));
                continue;
            }
            let mut opened = std::mem::take(&mut self.opened);
            opened.resize(length as usize, 0);
            self.chunk(next, &opened)?;
            opened.clear();
            self.opened = opened;
        }
        Ok(())
    }

    /// Writes a chunk and its checksum, if it has to be there.
    fn chunk(&mut self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let at_an_end = number == 0 || number + 1 == disk.chunks();
        if at_an_end || self.gaps == Some(false) || !is_zero(bytes) {
            let name = format!("{}/{number:08}", disk.id);
            self.member(&name, bytes)?;
            let checksum = Checksum::XxHash;
            self.member(&format!("{name}{}", checksum.suffix()), checksum.of(bytes).as_bytes())?;
        }
        self.written_before(number + 1);
        Ok(())
    }

    fn written_before(&mut self, number: u64) {
        if let Some(disk) = &mut self.disk {
            disk.unwritten = number;
        }
    }

    fn member(&mut self, name: &str, body: &[u8]) -> io::Result<()> {
        let length = body.len() as u64;
        self.out.write_all(&tar::encode(name, length))?;
        self.out.write_all(body)?;
        self.out.write_all(&[0; BLOCK][..(padded(length) - length) as usize])
    }
}
