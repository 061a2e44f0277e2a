//! The footer, of which a copy stands at the file's beginning: how large the disk is, and which.
//!
//! ```text
//!  0  cookie "conectix"       28 creator           48 current size     64 checksum
//!  8  features                32 its version       56 geometry         68 unique id
//! 12  version 0x00010000      36 its system        60 disk type        84 saved state
//! 16  offset of the header    40 original size
//! 24  timestamp
//! ```

use crate::wire::{bytes_at, checksum, put, seal, u32_at, u64_at};
use crate::{Guid, SECTOR, Storage, VhdError};

const COOKIE: &[u8; 8] = b"conectix";
const PART: &str = "footer";
const SIZE: usize = SECTOR as usize;
const CHECKSUM: usize = 64;
const ID: usize = 68;
const DYNAMIC: u32 = 3;
/// What the version of a structure is.
pub(crate) const VERSION: u32 = 0x0001_0000;
/// Hyper-V of Windows 10. Of makers that they do not know qemu and others take the size from the geometry, which is less than the disk has.
const CREATOR: [u8; 12] = *b"win \x00\x0a\x00\x00Wi2k";

/// A footer that was found whole, byte by byte: what others put into it stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer(Box<[u8; SIZE]>);

impl Footer {
    /// That of a new disk; `created` is in seconds since 2000.
    pub(crate) fn new(header: u64, size: u64, created: u32, id: Guid) -> Self {
        let mut raw = Box::new([0; SIZE]);
        put(&mut *raw, 0, COOKIE);
        // A bit that has to be set.
        put(&mut *raw, 8, &2u32.to_be_bytes());
        put(&mut *raw, 12, &VERSION.to_be_bytes());
        put(&mut *raw, 16, &header.to_be_bytes());
        put(&mut *raw, 24, &created.to_be_bytes());
        put(&mut *raw, 28, &CREATOR);
        put(&mut *raw, 40, &size.to_be_bytes());
        put(&mut *raw, 48, &size.to_be_bytes());
        put(&mut *raw, 56, &geometry(size));
        put(&mut *raw, 60, &DYNAMIC.to_be_bytes());
        let mut footer = Self(raw);
        footer.set_id(id);
        footer
    }

    /// The first of the two that is whole.
    pub(crate) fn read(file: &impl Storage) -> Result<Self, VhdError> {
        let last = file.length()?.saturating_sub(SECTOR);
        let mut raws = [[0; SIZE]; 2];
        file.read_at(0, &mut raws[0])?;
        file.read_at(last, &mut raws[1])?;
        let is_one = |raw: &&[u8; SIZE]| raw[..8] == *COOKIE;
        let is_whole = |raw: &&[u8; SIZE]| is_one(raw) && u32_at(*raw, CHECKSUM) == checksum(*raw, CHECKSUM);
        let Some(raw) = raws.iter().find(is_whole) else {
            return Err(match raws.iter().any(|raw| is_one(&raw)) {
                true => VhdError::wrong(PART, 0, "its checksum, and there is no whole one at the end"),
                false => VhdError::NoVhd { found: bytes_at(&raws[0], 0) },
            });
        };
        let version = u32_at(raw, 12);
        if version >> 16 != VERSION >> 16 {
            return Err(VhdError::wrong(PART, 0, format!("version {version:#x}")));
        }
        match u32_at(raw, 60) {
            DYNAMIC => {}
            kind => return Err(VhdError::NotDynamic { kind }),
        }
        let footer = Self(Box::new(*raw));
        if footer.size() == 0 || !footer.size().is_multiple_of(SECTOR) {
            return Err(VhdError::wrong(PART, 0, format!("a disk of {} bytes", footer.size())));
        }
        Ok(footer)
    }

    /// Writes it.
    pub(crate) fn write(&self, file: &impl Storage, at: u64) -> Result<(), VhdError> {
        Ok(file.write_at(at, &*self.0)?)
    }

    /// Where the header is.
    pub(crate) fn header(&self) -> u64 {
        u64_at(&*self.0, 16)
    }

    /// When it was made, in seconds since 2000.
    pub(crate) fn created(&self) -> u32 {
        u32_at(&*self.0, 24)
    }

    /// Size of the disk in bytes.
    pub(crate) fn size(&self) -> u64 {
        u64_at(&*self.0, 48)
    }

    pub(crate) fn id(&self) -> Guid {
        Guid::from_wire(bytes_at(&*self.0, ID))
    }

    pub(crate) fn set_id(&mut self, id: Guid) {
        put(&mut *self.0, ID, &id.to_wire());
        seal(&mut *self.0, CHECKSUM);
    }
}

/// Cylinders in two bytes, heads, sectors of a track: the specification's for a disk of this size. It ends at 127 GiB, and is none
/// that says the size.
fn geometry(size: u64) -> [u8; 4] {
    const MOST_CYLINDERS: u64 = 65535;
    let sectors = (size / SECTOR).min(MOST_CYLINDERS * 16 * 255);
    let (heads, track) = if sectors >= MOST_CYLINDERS * 16 * 63 {
        (16, 255)
    } else {
        let heads = (sectors / 17).div_ceil(1024).max(4);
        match sectors / 17 {
            tracks if heads <= 16 && tracks < heads * 1024 => (heads, 17),
            _ if sectors / 31 < 16 * 1024 => (16, 31),
            _ => (16, 63),
        }
    };
    let [high, low] = ((sectors / track / heads) as u16).to_be_bytes();
    [high, low, heads as u8, track as u8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryFile;

    #[test]
    fn the_geometry_is_the_specification_s() {
        let of = |size| {
            let [high, low, heads, track] = geometry(size);
            (u16::from_be_bytes([high, low]), heads, track)
        };
        assert_eq!(of(512), (0, 4, 17));
        assert_eq!(of(16 << 20), (481, 4, 17));
        assert_eq!(of(64 << 20), (963, 8, 17));
        assert_eq!(of(200 << 20), (825, 16, 31));
        assert_eq!(of(10 << 30), (20805, 16, 63));
        assert_eq!(of(2040 << 30), (65535, 16, 255));
    }

    #[test]
    fn either_footer_is_enough_and_damage_is_told() {
        let file = MemoryFile::default();
        let footer = Footer::new(512, 1 << 20, 7, Guid::new(5));
        footer.write(&file, 0).expect("written");
        footer.write(&file, 2048).expect("written");
        assert_eq!(Footer::read(&file).expect("a footer"), footer);
        file.write_at(100, b"torn").expect("written");
        assert_eq!(Footer::read(&file).expect("the other one").id(), Guid::new(5));
        file.write_at(2100, b"torn").expect("written");
        let told = Footer::read(&file).expect_err("both are damaged").to_string();
        assert_eq!(told, "the footer at byte 0 is wrong: its checksum, and there is no whole one at the end");
        file.write_at(0, b"vhdxfile").expect("written");
        file.write_at(2048, &[0; 8]).expect("written");
        assert!(matches!(Footer::read(&file), Err(VhdError::NoVhd { found: [b'v', b'h', b'd', ..] })));
    }

    #[test]
    fn what_is_no_dynamic_disk_is_refused() {
        for (at, bytes, told) in [
            (60, [0, 0, 0, 2], "a VHD of the type 2 is not read here, only dynamic ones are"),
            (60, [0, 0, 0, 4], "a VHD of the type 4 is not read here, only dynamic ones are"),
            (12, [0, 2, 0, 0], "the footer at byte 0 is wrong: version 0x20000"),
            (52, [0, 0, 0, 1], "the footer at byte 0 is wrong: a disk of 1 bytes"),
        ] {
            let mut footer = Footer::new(512, 512, 0, Guid::NIL);
            put(&mut *footer.0, at, &bytes);
            seal(&mut *footer.0, CHECKSUM);
            let file = MemoryFile::default();
            footer.write(&file, 0).expect("written");
            assert_eq!(Footer::read(&file).expect_err("refused").to_string(), told);
        }
    }
}
