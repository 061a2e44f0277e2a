//! The header, of which a file has two: the one with the higher sequence number counts, and a change is written over the other.
//!
//! ```text
//!   0  signature "head"    16 FileWriteGuid    64 log version (0)
//!   4  checksum            32 DataWriteGuid    66 version (1)
//!   8  sequence number     48 LogGuid          68 length of the log
//!                                              72 offset of the log
//! ```

use crate::wire::{bytes_at, checksum, put, seal, u16_at, u32_at, u64_at};
use crate::{Guid, MIB, Storage, VhdxError};

const SIGNATURE: &[u8; 4] = b"head";
const PART: &str = "header";
const SIZE: usize = 4096;
/// Where the two are.
const PLACES: [u64; 2] = [64 << 10, 128 << 10];

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Grows with every write of a header.
    pub(crate) sequence: u64,
    /// Changes before anything in the file changes.
    pub(crate) file_write: Guid,
    /// Changes before what a guest sees changes.
    pub(crate) data_write: Guid,
    /// Whose entries in the log count; nil when it is empty.
    pub(crate) log: Guid,
    /// Length of the log in bytes.
    pub(crate) log_length: u32,
    /// Where the log begins.
    pub(crate) log_offset: u64,
}

impl Header {
    fn decode(raw: &[u8; SIZE], at: u64) -> Result<Self, VhdxError> {
        if raw[..4] != *SIGNATURE || u32_at(raw, 4) != checksum(raw) {
            return Err(VhdxError::wrong(PART, at, "its signature or its checksum"));
        }
        let (log_version, version) = (u16_at(raw, 64), u16_at(raw, 66));
        if (log_version, version) != (0, 1) {
            return Err(VhdxError::wrong(PART, at, format!("version {version} with log version {log_version}")));
        }
        let header = Self {
            sequence: u64_at(raw, 8),
            file_write: Guid::from_wire(bytes_at(raw, 16)),
            data_write: Guid::from_wire(bytes_at(raw, 32)),
            log: Guid::from_wire(bytes_at(raw, 48)),
            log_length: u32_at(raw, 68),
            log_offset: u64_at(raw, 72),
        };
        let aligned = header.log_offset.is_multiple_of(MIB) && u64::from(header.log_length).is_multiple_of(MIB);
        if !aligned || header.log_offset < MIB || header.log_length == 0 {
            return Err(VhdxError::wrong(PART, at, format!("a log at byte {}", header.log_offset)));
        }
        Ok(header)
    }

    fn encode(&self) -> [u8; SIZE] {
        let mut raw = [0; SIZE];
        put(&mut raw, 0, SIGNATURE);
        put(&mut raw, 8, &self.sequence.to_le_bytes());
        put(&mut raw, 16, &self.file_write.to_wire());
        put(&mut raw, 32, &self.data_write.to_wire());
        put(&mut raw, 48, &self.log.to_wire());
        put(&mut raw, 66, &1u16.to_le_bytes());
        put(&mut raw, 68, &self.log_length.to_le_bytes());
        put(&mut raw, 72, &self.log_offset.to_le_bytes());
        seal(&mut raw);
        raw
    }

    /// The one that counts.
    pub(crate) fn read(file: &impl Storage) -> Result<Self, VhdxError> {
        let mut whole = Vec::new();
        let mut refused = None;
        for at in PLACES {
            let mut raw = [0; SIZE];
            file.read_at(at, &mut raw)?;
            match Self::decode(&raw, at) {
                Ok(header) => whole.push(header),
                Err(error) if raw[..4] == *SIGNATURE && u32_at(&raw, 4) == checksum(&raw) => refused = Some(error),
                Err(_) => {}
            }
        }
        let newest = whole.into_iter().max_by_key(|header| header.sequence);
        newest.ok_or_else(|| refused.unwrap_or(VhdxError::BothDamaged { part: PART }))
    }

    /// Writes this one over the one that does not count; once it is synced it counts.
    pub(crate) fn write_next(&mut self, file: &impl Storage) -> Result<(), VhdxError> {
        let mut raw = [0; SIZE];
        file.read_at(PLACES[0], &mut raw)?;
        let first = Self::decode(&raw, PLACES[0]).ok();
        let place = usize::from(first.is_some_and(|first| first.sequence == self.sequence));
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or_else(|| VhdxError::wrong(PART, PLACES[place], "its sequence number cannot grow any more"))?;
        Ok(file.write_at(PLACES[place], &self.encode())?)
    }

    /// Both, for a new file.
    pub(crate) fn write_both(&mut self, file: &impl Storage) -> Result<(), VhdxError> {
        for at in PLACES {
            self.sequence += 1;
            file.write_at(at, &self.encode())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryFile;

    fn header() -> Header {
        Header {
            sequence: 0,
            file_write: Guid::new(1),
            data_write: Guid::new(2),
            log: Guid::NIL,
            log_length: 1 << 20,
            log_offset: 1 << 20,
        }
    }

    fn file() -> MemoryFile {
        let file = MemoryFile::default();
        file.set_length(1 << 20).expect("a length");
        header().write_both(&file).expect("written");
        file
    }

    #[test]
    fn the_newer_one_counts_and_the_older_one_is_written_over() {
        let file = file();
        let mut read = Header::read(&file).expect("a header");
        assert_eq!(read, Header { sequence: 2, ..header() });
        for sequence in 3..6 {
            read.file_write = Guid::new(sequence.into());
            read.write_next(&file).expect("written");
            assert_eq!(Header::read(&file).expect("a header"), read);
            assert_eq!(read.sequence, sequence);
        }
    }

    #[test]
    fn a_torn_header_leaves_the_one_before() {
        let file = file();
        let before = Header::read(&file).expect("a header");
        before.clone().write_next(&file).expect("written");
        file.write_at(PLACES[0] + 20, b"torn").expect("written");
        assert_eq!(Header::read(&file).expect("a header"), before);
        file.write_at(PLACES[1] + 20, b"torn").expect("written");
        assert!(matches!(Header::read(&file), Err(VhdxError::BothDamaged { part: "header" })));
    }
}
