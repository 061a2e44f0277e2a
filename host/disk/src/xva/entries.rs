//! What may follow what in an XVA. No I/O.

use super::checksum::Checksum;
use super::error::XvaError;
use super::tar::{self, Header};
use super::{BLOCK, CHECKSUM_TABLE, MAX_CHUNK, MAX_METADATA, METADATA};

/// Longest name of a disk: a header has 100 bytes, of which number and suffix take some.
const MAX_ID: usize = 64;
/// Most digits of a chunk's number.
const MAX_DIGITS: usize = 12;

/// A member of the archive that begins. Its bytes follow, padded to whole blocks.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// `ova.xml`.
    Metadata {
        /// Its bytes.
        length: u64,
    },
    /// A chunk of a disk.
    Chunk(ChunkEntry),
    /// The checksum of the chunk before.
    Checksum(Checksum),
    /// Something that says nothing new.
    Other {
        /// Its bytes.
        length: u64,
    },
    /// No member: the archive is over.
    End,
}

/// A chunk of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Its name in the archive.
    pub name: String,
    /// The disk's, which `ova.xml` explains.
    pub disk: String,
    /// Where it lies on the disk in bytes.
    pub offset: u64,
    /// How long it is. A chunk without bytes kept a connection alive.
    pub length: u64,
}

/// Reads one header after the other.
#[derive(Debug, Default)]
pub struct Entries {
    begun: bool,
    /// The disk that is under way.
    disk: Option<Disk>,
    /// The chunk whose checksum comes next.
    unsummed: Option<String>,
    /// Only the end may follow.
    over: bool,
}

#[derive(Debug)]
struct Disk {
    id: String,
    /// Of its first chunk, which is what a gap counts.
    first_length: u64,
    number: u64,
    /// First byte that no chunk has said anything of.
    end: u64,
}

impl Entries {
    /// Takes the header at byte `at` of the file, and says what begins with it.
    pub fn header(&mut self, at: u64, block: &[u8; BLOCK]) -> Result<Entry, XvaError> {
        if block.iter().all(|byte| *byte == 0) {
            return self.end(at);
        }
        if !self.begun {
            refuse_compressed(block)?;
        }
        let header = tar::decode(block).ok_or(XvaError::NoHeader { at })?;
        if !header.is_file {
            return Err(XvaError::NoFile { at, length: header.length });
        }
        if !self.begun {
            self.begun = true;
            return metadata(at, header);
        }
        if let Some(chunk) = self.unsummed.take() {
            return checksum(at, header, &chunk);
        }
        if self.over {
            return Err(XvaError::Unexpected { at, found: header.name, expected: "the end".to_owned() });
        }
        if header.name == CHECKSUM_TABLE {
            self.over = true;
            return Ok(Entry::Other { length: header.length });
        }
        let chunk = self.chunk(at, header)?;
        self.unsummed = Some(chunk.name.clone());
        Ok(Entry::Chunk(chunk))
    }

    fn end(&self, at: u64) -> Result<Entry, XvaError> {
        let expected = match &self.unsummed {
            _ if !self.begun => METADATA.to_owned(),
            Some(chunk) => format!("the checksum of chunk {chunk}"),
            None => return Ok(Entry::End),
        };
        Err(XvaError::EndsEarly { at, expected })
    }

    fn chunk(&mut self, at: u64, header: Header) -> Result<ChunkEntry, XvaError> {
        let unexpected = |found: &Header, expected: &str| XvaError::Unexpected {
            at,
            found: found.name.clone(),
            expected: expected.to_owned(),
        };
        let Some((id, number)) = name_of_chunk(&header.name) else {
            return Err(unexpected(&header, "a chunk of a disk"));
        };
        if header.length > MAX_CHUNK {
            return Err(XvaError::ChunkTooLong { at, length: header.length });
        }
        let (skipped, end, first_length) = match &self.disk {
            Some(disk) if disk.id == id => {
                let skipped = number.checked_sub(disk.number + 1);
                let skipped = skipped.ok_or_else(|| unexpected(&header, "a chunk with a larger number"))?;
                (skipped, disk.end, disk.first_length)
            }
            Some(disk) if *disk.id > *id => {
                return Err(unexpected(&header, "a disk whose name comes later as text"));
            }
            _ => (number, 0, header.length),
        };
        let offset = skipped.checked_mul(first_length).and_then(|gap| gap.checked_add(end));
        // XAPI counts in signed numbers.
        let fits = |offset: &u64| offset.checked_add(header.length).is_some_and(|end| i64::try_from(end).is_ok());
        let beyond = || XvaError::BeyondDisk { at, name: header.name.clone() };
        let offset = offset.filter(fits).ok_or_else(beyond)?;
        let id = id.to_owned();
        self.disk = Some(Disk { id: id.clone(), first_length, number, end: offset + header.length });
        Ok(ChunkEntry { name: header.name, disk: id, offset, length: header.length })
    }
}

fn metadata(at: u64, Header { name, length, .. }: Header) -> Result<Entry, XvaError> {
    match name == METADATA {
        true if length <= MAX_METADATA => Ok(Entry::Metadata { length }),
        true => Err(XvaError::MetadataTooLong { at, length }),
        false => Err(XvaError::Unexpected { at, found: name, expected: METADATA.to_owned() }),
    }
}

fn checksum(at: u64, header: Header, chunk: &str) -> Result<Entry, XvaError> {
    let of_chunk = header.name.strip_prefix(chunk);
    let kind = Checksum::ALL.into_iter().find(|kind| of_chunk == Some(kind.suffix()) && header.length == kind.length());
    let unexpected = || XvaError::Unexpected { at, found: header.name, expected: format!("the checksum of {chunk}") };
    Ok(Entry::Checksum(kind.ok_or_else(unexpected)?))
}

/// Disk and number of `Ref:4/00000007`.
fn name_of_chunk(name: &str) -> Option<(&str, u64)> {
    let (id, digits) = name.split_once('/')?;
    let named = (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    let numbered = digits.len() <= MAX_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    (named && numbered).then_some((id, digits.parse().ok()?))
}

/// Hosts compress exports when asked to, and tell by the first bytes of an import.
fn refuse_compressed(block: &[u8; BLOCK]) -> Result<(), XvaError> {
    match block {
        [0x1f, 0x8b, ..] => Err(XvaError::Compressed { with: "gzip", command: "gunzip" }),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Err(XvaError::Compressed { with: "zstd", command: "unzstd" }),
        _ => Ok(()),
    }
}
