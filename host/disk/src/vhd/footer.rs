//! The footer: what kind of disk, how large, who made it.
//!
//! ```text
//!   0  cookie "conectix"      24 timestamp          60 disk type
//!   8  features               28 creator            64 checksum
//!  12  version 0x00010000     32 creator version    68 unique id
//!  16  offset of the header   36 creator host OS    84 saved state
//!                             40 original size      85 reserved
//!                             48 current size
//!                             56 geometry
//! ```

use uuid::Uuid;

use super::wire::{bytes_at, checksum, put, u16_at, u32_at, u64_at};
use super::{FOOTER_SIZE, HEADER_SIZE, MAX_TABLE_OFFSET, Part, SECTOR_SIZE, VhdError};

const COOKIE: &[u8; 8] = b"conectix";
const CHECKSUM_AT: usize = 64;
pub(super) const VERSION: u32 = 0x0001_0000;

/// The kinds of VHD that can be streamed. A fixed VHD has no metadata in front and is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskType {
    /// Blocks that are absent are zeroes.
    Dynamic,
    /// Blocks that are absent, and sectors whose bit is not set, are those of another disk. Which
    /// one cannot be told from the stream: XAPI writes the identity of a file, not of a VDI.
    Differencing,
}

impl DiskType {
    const fn to_wire(self) -> u32 {
        match self {
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

/// Cylinders, heads and sectors per track, which nobody but ancient BIOSes needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

impl Geometry {
    /// The geometry that the VHD specification computes for a disk of `size` bytes. It ends at
    /// 65535 · 16 · 255 sectors (127 GiB), whatever the size.
    pub fn of_size(size: u64) -> Self {
        const MOST_CYLINDERS: u64 = 65535;
        let total = (size / SECTOR_SIZE as u64).min(MOST_CYLINDERS * 16 * 255);
        if total >= MOST_CYLINDERS * 16 * 63 {
            return Self::new(total, 16, 255);
        }
        let heads = (total / 17).div_ceil(1024).max(4);
        if heads <= 16 && total / 17 < heads * 1024 {
            return Self::new(total, heads, 17);
        }
        if total / 31 < 16 * 1024 {
            return Self::new(total, 16, 31);
        }
        Self::new(total, 16, 63)
    }

    fn new(total: u64, heads: u64, sectors: u64) -> Self {
        let narrow = "bounded by the branch that chose them";
        Self {
            cylinders: u16::try_from(total / sectors / heads).expect(narrow),
            heads: u8::try_from(heads).expect(narrow),
            sectors: u8::try_from(sectors).expect(narrow),
        }
    }
}

/// A footer, and its copy at the start of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Feature bits; bit 1 is always set.
    pub features: u32,
    /// Byte at which the header starts.
    pub header_offset: u64,
    /// Seconds since 2000-01-01. XAPI exports say 0.
    pub timestamp: u32,
    /// Program that made it. XAPI exports say `caml`.
    pub creator: [u8; 4],
    /// Version of that program.
    pub creator_version: u32,
    /// Operating system of that program.
    pub creator_host_os: u32,
    /// Size in bytes when the disk was made.
    pub original_size: u64,
    /// Size of the disk in bytes, a multiple of a sector.
    pub virtual_size: u64,
    /// Geometry. Not to be used for the size.
    pub geometry: Geometry,
    /// Dynamic or differencing.
    pub disk_type: DiskType,
    /// Identity of the file. XAPI makes a new one for every export.
    pub unique_id: Uuid,
    /// Whether a virtual machine was suspended on it.
    pub saved_state: bool,
}

impl Footer {
    /// Decodes and checks a footer that stands at byte `at` of the stream.
    pub fn decode(raw: &[u8; FOOTER_SIZE], at: u64) -> Result<Self, VhdError> {
        let part = Part::Footer;
        let found: [u8; 8] = bytes_at(raw, 0);
        if found != *COOKIE {
            return Err(VhdError::BadCookie { at, part, found });
        }
        let (stored, computed) = (u32_at(raw, CHECKSUM_AT), checksum(raw, CHECKSUM_AT));
        if stored != computed {
            return Err(VhdError::BadChecksum { at: at + CHECKSUM_AT as u64, part, stored, computed });
        }
        let found = u32_at(raw, 12);
        if found >> 16 != VERSION >> 16 {
            return Err(VhdError::UnknownVersion { at: at + 12, part, found });
        }
        let disk_type = match u32_at(raw, 60) {
            2 => return Err(VhdError::FixedDisk { at: at + 60 }),
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            found => return Err(VhdError::UnknownDiskType { at: at + 60, found }),
        };
        let header_offset = u64_at(raw, 16);
        let last = MAX_TABLE_OFFSET - HEADER_SIZE as u64;
        if !(FOOTER_SIZE as u64..=last).contains(&header_offset) {
            return Err(VhdError::HeaderOutOfPlace { at: at + 16, offset: header_offset });
        }
        let virtual_size = u64_at(raw, 48);
        if !virtual_size.is_multiple_of(SECTOR_SIZE as u64) {
            return Err(VhdError::OddSize { at: at + 48, size: virtual_size });
        }
        Ok(Self {
            features: u32_at(raw, 8),
            header_offset,
            timestamp: u32_at(raw, 24),
            creator: bytes_at(raw, 28),
            creator_version: u32_at(raw, 32),
            creator_host_os: u32_at(raw, 36),
            original_size: u64_at(raw, 40),
            virtual_size,
            geometry: Geometry { cylinders: u16_at(raw, 56), heads: raw[58], sectors: raw[59] },
            disk_type,
            unique_id: Uuid::from_bytes(bytes_at(raw, 68)),
            saved_state: raw[84] != 0,
        })
    }

    /// The footer's bytes, checksum included.
    pub fn encode(&self) -> [u8; FOOTER_SIZE] {
        let mut raw = [0; FOOTER_SIZE];
        put(&mut raw, 0, COOKIE);
        put(&mut raw, 8, &self.features.to_be_bytes());
        put(&mut raw, 12, &VERSION.to_be_bytes());
        put(&mut raw, 16, &self.header_offset.to_be_bytes());
        put(&mut raw, 24, &self.timestamp.to_be_bytes());
        put(&mut raw, 28, &self.creator);
        put(&mut raw, 32, &self.creator_version.to_be_bytes());
        put(&mut raw, 36, &self.creator_host_os.to_be_bytes());
        put(&mut raw, 40, &self.original_size.to_be_bytes());
        put(&mut raw, 48, &self.virtual_size.to_be_bytes());
        put(&mut raw, 56, &self.geometry.cylinders.to_be_bytes());
        put(&mut raw, 58, &[self.geometry.heads, self.geometry.sectors]);
        put(&mut raw, 60, &self.disk_type.to_wire().to_be_bytes());
        put(&mut raw, 68, self.unique_id.as_bytes());
        put(&mut raw, 84, &[u8::from(self.saved_state)]);
        let sum = checksum(&raw, CHECKSUM_AT);
        put(&mut raw, CHECKSUM_AT, &sum.to_be_bytes());
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        Footer {
            features: 2,
            header_offset: 512,
            timestamp: 7,
            creator: *b"test",
            creator_version: 1,
            creator_host_os: 3,
            original_size: 8 << 20,
            virtual_size: 16 << 20,
            geometry: Geometry::of_size(16 << 20),
            disk_type: DiskType::Differencing,
            unique_id: Uuid::from_u128(0x1234),
            saved_state: true,
        }
    }

    /// Changes the field at `at` and repairs the checksum.
    fn changed(at: usize, bytes: &[u8]) -> [u8; FOOTER_SIZE] {
        let mut raw = footer().encode();
        put(&mut raw, at, bytes);
        let sum = checksum(&raw, CHECKSUM_AT);
        put(&mut raw, CHECKSUM_AT, &sum.to_be_bytes());
        raw
    }

    #[test]
    fn a_footer_survives_encode_and_decode() {
        assert_eq!(Footer::decode(&footer().encode(), 0), Ok(footer()));
    }

    #[test]
    fn each_damage_has_its_own_error() {
        let at = 1000;
        let decode = |raw: [u8; FOOTER_SIZE]| Footer::decode(&raw, at).unwrap_err();
        assert!(matches!(decode([0; 512]), VhdError::BadCookie { at: 1000, part: Part::Footer, .. }));
        let mut flipped = footer().encode();
        flipped[300] ^= 1;
        assert!(matches!(decode(flipped), VhdError::BadChecksum { at: 1064, .. }));
        let wrong = |field, bytes: &[u8]| decode(changed(field, bytes));
        assert_eq!(wrong(12, &[0, 2, 0, 0]), VhdError::UnknownVersion { at: 1012, part: Part::Footer, found: 0x20000 });
        assert_eq!(wrong(60, &[0, 0, 0, 2]), VhdError::FixedDisk { at: 1060 });
        assert_eq!(wrong(60, &[0, 0, 0, 9]), VhdError::UnknownDiskType { at: 1060, found: 9 });
        assert_eq!(wrong(16, &[0xff; 8]), VhdError::HeaderOutOfPlace { at: 1016, offset: u64::MAX });
        assert_eq!(wrong(16, &[0; 8]), VhdError::HeaderOutOfPlace { at: 1016, offset: 0 });
        assert_eq!(wrong(55, &[1]), VhdError::OddSize { at: 1048, size: (16 << 20) + 1 });
    }

    #[test]
    fn the_geometry_is_the_specification_s() {
        let geometry = |size| {
            let Geometry { cylinders, heads, sectors } = Geometry::of_size(size);
            (cylinders, heads, sectors)
        };
        assert_eq!(geometry(0), (0, 4, 17));
        assert_eq!(geometry(16 << 20), (481, 4, 17));
        assert_eq!(geometry(64 << 20), (963, 8, 17));
        assert_eq!(geometry(200 << 20), (825, 16, 31));
        assert_eq!(geometry(10 << 30), (20805, 16, 63));
        assert_eq!(geometry(2 << 40), (65535, 16, 255));
        for shift in 9..64 {
            geometry(1 << shift);
            geometry((1 << shift) - 512);
        }
    }
}
