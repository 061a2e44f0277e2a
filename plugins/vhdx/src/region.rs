//! The region table, of which a file has two: where BAT and metadata are.
//!
//! ```text
//!  0  signature "regi"    16 entries of 32 bytes:  0 id   16 offset in the file   24 length   28 bit 0: has to be known
//!  4  checksum
//!  8  number of entries
//! ```

use crate::wire::{bytes_at, checksum, put, seal, u32_at, u64_at};
use crate::{Guid, MIB, Storage, VhdxError};

const SIGNATURE: &[u8; 4] = b"regi";
const PART: &str = "region table";
const SIZE: usize = 64 << 10;
const PLACES: [u64; 2] = [192 << 10, 256 << 10];
const ENTRY_SIZE: usize = 32;
const MAX_ENTRIES: usize = 2047;

const BAT: Guid = Guid::new(0x2dc27766_f623_4200_9d64_115e9bfd4a08);
const METADATA: Guid = Guid::new(0x8b7ca206_4790_4b9a_b8fe_575f050f886e);

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Where it begins: a whole MiB.
    pub(crate) offset: u64,
    /// How long it is: whole MiB.
    pub(crate) length: u32,
}

impl Region {
    pub(crate) fn end(self) -> u64 {
        self.offset.saturating_add(self.length.into())
    }
}

/// The regions that a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Regions {
    pub(crate) bat: Region,
    pub(crate) metadata: Region,
}

impl Regions {
    fn decode(raw: &[u8], at: u64) -> Result<Self, VhdxError> {
        let count = u32_at(raw, 8) as usize;
        if count > MAX_ENTRIES {
            return Err(VhdxError::wrong(PART, at, format!("{count} entries")));
        }
        let (mut bat, mut metadata) = (None, None);
        for index in 0..count {
            let entry = 16 + ENTRY_SIZE * index;
            let id = Guid::from_wire(bytes_at(raw, entry));
            let region = Region { offset: u64_at(raw, entry + 16), length: u32_at(raw, entry + 24) };
            let place = match id {
                BAT => &mut bat,
                METADATA => &mut metadata,
                id if u32_at(raw, entry + 28) & 1 == 1 => return Err(VhdxError::Unknown { what: "the region", id }),
                _ => continue,
            };
            let aligned = region.offset.is_multiple_of(MIB) && u64::from(region.length).is_multiple_of(MIB);
            // An end beyond 2^63 is no file's; the sums below cannot overflow then.
            if !aligned || !(MIB..1 << 63).contains(&region.offset) || region.length == 0 {
                return Err(VhdxError::wrong(PART, at, format!("region {id} at byte {}", region.offset)));
            }
            if place.replace(region).is_some() {
                return Err(VhdxError::wrong(PART, at, format!("region {id} is there twice")));
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) if bat.end() <= metadata.offset || metadata.end() <= bat.offset => {
                Ok(Self { bat, metadata })
            }
            (Some(_), Some(_)) => Err(VhdxError::wrong(PART, at, "its regions overlap")),
            _ => Err(VhdxError::wrong(PART, at, "it lacks the BAT or the metadata")),
        }
    }

    pub(crate) fn read(file: &impl Storage) -> Result<Self, VhdxError> {
        for at in PLACES {
            let mut raw = vec![0; SIZE];
            file.read_at(at, &mut raw)?;
            if raw[..4] == *SIGNATURE && u32_at(&raw, 4) == checksum(&raw) {
                return Self::decode(&raw, at);
            }
        }
        Err(VhdxError::BothDamaged { part: PART })
    }

    pub(crate) fn write(&self, file: &impl Storage) -> Result<(), VhdxError> {
        let mut raw = vec![0; SIZE];
        put(&mut raw, 0, SIGNATURE);
        put(&mut raw, 8, &2u32.to_le_bytes());
        for (index, (id, region)) in [(BAT, self.bat), (METADATA, self.metadata)].into_iter().enumerate() {
            let entry = 16 + ENTRY_SIZE * index;
            put(&mut raw, entry, &id.to_wire());
            put(&mut raw, entry + 16, &region.offset.to_le_bytes());
            put(&mut raw, entry + 24, &region.length.to_le_bytes());
            put(&mut raw, entry + 28, &1u32.to_le_bytes());
        }
        seal(&mut raw);
        for at in PLACES {
            file.write_at(at, &raw)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryFile;

    fn regions() -> Regions {
        Regions {
            bat: Region { offset: 3 << 20, length: 1 << 20 },
            metadata: Region { offset: 2 << 20, length: 1 << 20 },
        }
    }

    #[test]
    fn regions_survive_and_one_copy_is_enough() {
        let file = MemoryFile::default();
        regions().write(&file).expect("written");
        file.write_at(PLACES[0] + 9, b"!").expect("written");
        assert_eq!(Regions::read(&file).expect("regions"), regions());
        file.write_at(PLACES[1] + 9, b"!").expect("written");
        assert!(matches!(Regions::read(&file), Err(VhdxError::BothDamaged { .. })));
    }

    #[test]
    fn each_contradiction_is_refused() {
        let refused = |at: u64, bytes: &[u8]| {
            let file = MemoryFile::default();
            regions().write(&file).expect("written");
            let mut raw = vec![0; SIZE];
            file.read_at(PLACES[0], &mut raw).expect("read");
            put(&mut raw, at as usize, bytes);
            seal(&mut raw);
            file.write_at(PLACES[0], &raw).expect("written");
            Regions::read(&file).expect_err("a table that is wrong").to_string()
        };
        let wrong = "the region table at byte 196608 is wrong: ";
        assert_eq!(refused(8, &2048u32.to_le_bytes()), format!("{wrong}2048 entries"));
        assert_eq!(refused(8, &[1]), format!("{wrong}it lacks the BAT or the metadata"));
        assert_eq!(refused(32, &[1]), format!("{wrong}region {BAT} at byte 3145729"));
        assert_eq!(refused(39, &[0xff]), format!("{wrong}region {BAT} at byte {}", 0xff00_0000_0030_0000u64));
        assert_eq!(refused(32, &(2u64 << 20).to_le_bytes()), format!("{wrong}its regions overlap"));
        assert_eq!(refused(48, &BAT.to_wire()), format!("{wrong}region {BAT} is there twice"));
        let other = Guid::new(7);
        let unknown = format!("the file needs the region {other}, which is not known here");
        assert_eq!(refused(16, &other.to_wire()), unknown);
    }
}
