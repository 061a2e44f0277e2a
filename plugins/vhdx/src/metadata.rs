//! The metadata region: what disk it is. A table of 64 KiB, then the items that it points to.
//!
//! ```text
//!  0  signature "metadata"   32 entries of 32 bytes:  0 id   16 offset in the region   20 length
//! 10  number of entries                              24 bit 0: a user's, bit 1: of the disk, bit 2: has to be known
//! ```

use crate::wire::{bytes_at, put, u16_at, u32_at};
use crate::{Guid, Storage, VhdxError};

const SIGNATURE: &[u8; 8] = b"metadata";
const PART: &str = "metadata table";
const TABLE_SIZE: usize = 64 << 10;
const ENTRY_SIZE: usize = 32;
const MAX_ENTRIES: usize = 2047;
/// What the specification allows one item to have.
const MAX_ITEM: u32 = 1 << 20;

const FILE_PARAMETERS: Guid = Guid::new(0xcaa16737_fa36_4d43_b3b6_33f0aa44e76b);
const VIRTUAL_DISK_SIZE: Guid = Guid::new(0x2fa54224_cd1b_4876_b211_5dbed83bf4b8);
const VIRTUAL_DISK_ID: Guid = Guid::new(0xbeca12ab_b2e6_4523_93ef_c309e000c746);
const LOGICAL_SECTOR_SIZE: Guid = Guid::new(0x8141bf1d_a96f_4709_ba47_f233a8faab5f);
const PHYSICAL_SECTOR_SIZE: Guid = Guid::new(0xcda348c7_445d_4471_9cc9_e9885251c556);
const PARENT_LOCATOR: Guid = Guid::new(0xa8d35f2d_b30b_454d_abf7_d3d84834ab0c);

/// Locators of this type have the keys below; there is no other.
const LOCATOR_TYPE: Guid = Guid::new(0xb04aefb7_d19e_4a81_b789_25b8e9445913);
const LOCATOR_HEADER_SIZE: usize = 20;
const LOCATOR_ENTRY_SIZE: usize = 12;
const LINKAGE: &str = "parent_linkage";
const RELATIVE_PATH: &str = "relative_path";

/// A VHDX has at most 64 TiB.
const MAX_SIZE: u64 = 64 << 40;

/// What disk it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Size in bytes: whole sectors, 64 TiB at most.
    pub size: u64,
    /// Bytes of a block: a power of two from 1 MiB to 256 MiB.
    pub block_size: u32,
    /// What a guest sees as the disk's identity (page 83).
    pub id: Guid,
    /// What a guest may address, in bytes: 512 or 4096.
    pub logical_sector: u32,
    /// What a guest should write at once, in bytes: 512 or 4096.
    pub physical_sector: u32,
    /// The disk that blocks absent here are read from.
    pub parent: Option<Parent>,
}

/// Where a differencing disk gets what it has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The parent's `DataWriteGuid`: another one means that it was written to, and does not fit any more.
    pub linkage: Guid,
    /// Its path, from the folder of this file on, as Windows writes it: `.\parent.vhdx`. One that only other keys locate is empty.
    pub relative_path: String,
}

impl Disk {
    /// Number of its blocks.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(u64::from(self.block_size))
    }

    pub(crate) fn is_possible(&self) -> bool {
        let sectors = [self.logical_sector, self.physical_sector].iter().all(|size| [512, 4096].contains(size));
        let block = self.block_size.is_power_of_two() && (1 << 20..=256 << 20).contains(&self.block_size);
        sectors && block && (1..=MAX_SIZE).contains(&self.size) && self.size.is_multiple_of(self.logical_sector.into())
    }

    /// The table and the items behind it.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, VhdxError> {
        const OF_FILE: u32 = 4;
        const OF_DISK: u32 = 6;
        let parameters =
            [self.block_size.to_le_bytes(), u32::from(self.parent.is_some()).wrapping_shl(1).to_le_bytes()];
        let mut items = vec![
            (FILE_PARAMETERS, OF_FILE, parameters.concat()),
            (VIRTUAL_DISK_SIZE, OF_DISK, self.size.to_le_bytes().to_vec()),
            (VIRTUAL_DISK_ID, OF_DISK, self.id.to_wire().to_vec()),
            (LOGICAL_SECTOR_SIZE, OF_DISK, self.logical_sector.to_le_bytes().to_vec()),
            (PHYSICAL_SECTOR_SIZE, OF_DISK, self.physical_sector.to_le_bytes().to_vec()),
        ];
        if let Some(parent) = &self.parent {
            items.push((PARENT_LOCATOR, OF_FILE, parent.encode()?));
        }
        let mut raw = vec![0; TABLE_SIZE];
        put(&mut raw, 0, SIGNATURE);
        put(&mut raw, 10, &(items.len() as u16).to_le_bytes());
        for (index, (id, flags, item)) in items.into_iter().enumerate() {
            let entry = 32 + ENTRY_SIZE * index;
            let offset = raw.len() as u32;
            put(&mut raw, entry, &id.to_wire());
            put(&mut raw, entry + 16, &offset.to_le_bytes());
            put(&mut raw, entry + 20, &(item.len() as u32).to_le_bytes());
            put(&mut raw, entry + 24, &flags.to_le_bytes());
            raw.extend_from_slice(&item);
        }
        Ok(raw)
    }

    /// Reads it from the region of `length` bytes at `region`.
    pub(crate) fn read(file: &impl Storage, region: u64, length: u32) -> Result<Self, VhdxError> {
        let wrong = |problem: String| VhdxError::wrong(PART, region, problem);
        let mut raw = vec![0; TABLE_SIZE];
        file.read_at(region, &mut raw)?;
        if raw[..8] != *SIGNATURE {
            return Err(wrong("its signature".to_owned()));
        }
        let count = usize::from(u16_at(&raw, 10));
        if count > MAX_ENTRIES {
            return Err(wrong(format!("{count} entries")));
        }
        let mut items: [Option<Vec<u8>>; 6] = Default::default();
        for index in 0..count {
            let entry = 32 + ENTRY_SIZE * index;
            let id = Guid::from_wire(bytes_at(&raw, entry));
            let (offset, size, flags) = (u32_at(&raw, entry + 16), u32_at(&raw, entry + 20), u32_at(&raw, entry + 24));
            const KNOWN: [Guid; 6] = [
                FILE_PARAMETERS,
                VIRTUAL_DISK_SIZE,
                VIRTUAL_DISK_ID,
                LOGICAL_SECTOR_SIZE,
                PHYSICAL_SECTOR_SIZE,
                PARENT_LOCATOR,
            ];
            let Some(place) = KNOWN.iter().position(|known| *known == id).filter(|_| flags & 1 == 0) else {
                if flags & 5 == 4 {
                    return Err(VhdxError::Unknown { what: "the metadata", id });
                }
                continue;
            };
            let inside = (TABLE_SIZE as u32..=length).contains(&offset) && size <= MAX_ITEM && size <= length - offset;
            if !inside {
                return Err(wrong(format!("item {id} has {size} bytes at {offset}")));
            }
            let mut item = vec![0; size as usize];
            file.read_at(region + u64::from(offset), &mut item)?;
            if items[place].replace(item).is_some() {
                return Err(wrong(format!("item {id} is there twice")));
            }
        }
        Self::of_items(items).map_err(wrong)
    }

    fn of_items([parameters, size, id, logical, physical, locator]: [Option<Vec<u8>>; 6]) -> Result<Self, String> {
        fn fixed<const N: usize>(item: Option<Vec<u8>>, name: &str) -> Result<[u8; N], String> {
            let item = item.ok_or_else(|| format!("there is no {name}"))?;
            item.try_into().map_err(|item: Vec<u8>| format!("the {name} has {} bytes", item.len()))
        }
        let parameters: [u8; 8] = fixed(parameters, "block size")?;
        let parent = match (u32_at(&parameters, 4) & 2 != 0, locator) {
            (false, _) => None,
            (true, None) => return Err("it has a parent, and nothing says where".to_owned()),
            (true, Some(locator)) => Some(Parent::decode(&locator)?),
        };
        let disk = Self {
            size: u64::from_le_bytes(fixed(size, "size of the disk")?),
            block_size: u32_at(&parameters, 0),
            id: Guid::from_wire(fixed(id, "identity of the disk")?),
            logical_sector: u32::from_le_bytes(fixed(logical, "logical sector size")?),
            physical_sector: u32::from_le_bytes(fixed(physical, "physical sector size")?),
            parent,
        };
        if disk.is_possible() {
            Ok(disk)
        } else {
            Err(format!(
                "no disk has {} bytes in blocks of {} and sectors of {} and {}",
                disk.size, disk.block_size, disk.logical_sector, disk.physical_sector
            ))
        }
    }
}

impl Parent {
    fn encode(&self) -> Result<Vec<u8>, VhdxError> {
        let entries = [(LINKAGE, format!("{{{}}}", self.linkage)), (RELATIVE_PATH, self.relative_path.clone())];
        let mut raw = LOCATOR_TYPE.to_wire().to_vec();
        raw.extend_from_slice(&[0; 2]);
        raw.extend_from_slice(&(entries.len() as u16).to_le_bytes());
        let mut texts = Vec::new();
        let texts_at = LOCATOR_HEADER_SIZE + LOCATOR_ENTRY_SIZE * entries.len();
        for (key, value) in &entries {
            let mut text = |text: &str| {
                let at = texts_at + texts.len();
                texts.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
                (at as u32, texts_at + texts.len() - at)
            };
            let ((key_at, key_length), (value_at, value_length)) = (text(key), text(value));
            let too_long = |_| VhdxError::PathTooLong { path: self.relative_path.clone() };
            raw.extend_from_slice(&key_at.to_le_bytes());
            raw.extend_from_slice(&value_at.to_le_bytes());
            raw.extend_from_slice(&u16::try_from(key_length).map_err(too_long)?.to_le_bytes());
            raw.extend_from_slice(&u16::try_from(value_length).map_err(too_long)?.to_le_bytes());
        }
        raw.extend_from_slice(&texts);
        Ok(raw)
    }

    fn decode(raw: &[u8]) -> Result<Self, String> {
        let short = || "the parent locator is too short".to_owned();
        if raw.len() < LOCATOR_HEADER_SIZE {
            return Err(short());
        }
        let kind = Guid::from_wire(bytes_at(raw, 0));
        if kind != LOCATOR_TYPE {
            return Err(format!("the parent locator is of the unknown type {kind}"));
        }
        let count = usize::from(u16_at(raw, 18));
        if raw.len() < LOCATOR_HEADER_SIZE + LOCATOR_ENTRY_SIZE * count {
            return Err(short());
        }
        let text = |at: usize, length: usize| {
            let bytes = raw.get(at..).and_then(|rest| rest.get(..length)).ok_or_else(short)?;
            let units: Vec<u16> = bytes.chunks_exact(2).map(|unit| u16_at(unit, 0)).collect();
            Ok::<_, String>(String::from_utf16_lossy(&units))
        };
        let (mut linkage, mut relative_path) = (None, String::new());
        for index in 0..count {
            let entry = LOCATOR_HEADER_SIZE + LOCATOR_ENTRY_SIZE * index;
            let key = text(u32_at(raw, entry) as usize, u16_at(raw, entry + 8).into())?;
            let value = text(u32_at(raw, entry + 4) as usize, u16_at(raw, entry + 10).into())?;
            match key.as_str() {
                LINKAGE => linkage = Some(parse_guid(&value).ok_or_else(|| format!("{value:?} is no identity"))?),
                RELATIVE_PATH => relative_path = value,
                _ => {}
            }
        }
        let linkage = linkage.ok_or_else(|| format!("the parent locator has no {LINKAGE}"))?;
        Ok(Self { linkage, relative_path })
    }
}

/// `{xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx}`
fn parse_guid(text: &str) -> Option<Guid> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let digits: String = inner.split('-').collect();
    let is_hex = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_hex.then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(Guid::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryFile;

    fn disk() -> Disk {
        Disk {
            size: (10 << 30) + 512,
            block_size: 1 << 20,
            id: Guid::new(42),
            logical_sector: 512,
            physical_sector: 4096,
            parent: Some(Parent { linkage: Guid::new(0xabc), relative_path: r".\über.vhdx".to_owned() }),
        }
    }

    fn read(raw: &[u8]) -> Result<Disk, VhdxError> {
        let file = MemoryFile::default();
        file.write_at(5 << 20, raw)?;
        file.set_length(6 << 20)?;
        Disk::read(&file, 5 << 20, 1 << 20)
    }

    #[test]
    fn a_disk_survives_with_and_without_a_parent() {
        assert_eq!(read(&disk().encode().expect("encoded")).expect("read"), disk());
        let alone = Disk { parent: None, ..disk() };
        assert_eq!(read(&alone.encode().expect("encoded")).expect("read"), alone);
        assert_eq!(alone.blocks(), 10 * 1024 + 1);
    }

    #[test]
    fn each_contradiction_is_refused() {
        let raw = disk().encode().expect("encoded");
        let refused = |at: usize, bytes: &[u8]| {
            let mut raw = raw.clone();
            put(&mut raw, at, bytes);
            let text = read(&raw).expect_err("metadata that is wrong").to_string();
            text.replace("the metadata table at byte 5242880 is wrong: ", "")
        };
        assert_eq!(refused(0, b"M"), "its signature");
        assert_eq!(refused(10, &[0, 8]), "2048 entries");
        assert_eq!(refused(10, &[1]), "it has a parent, and nothing says where");
        assert_eq!(refused(48, &[0; 4]), format!("item {FILE_PARAMETERS} has 8 bytes at 0"));
        assert_eq!(refused(48, &(1u32 << 20).to_le_bytes()), format!("item {FILE_PARAMETERS} has 8 bytes at 1048576"));
        assert_eq!(refused(52, &[7]), "the block size has 7 bytes");
        assert_eq!(refused(64, &FILE_PARAMETERS.to_wire()), format!("item {FILE_PARAMETERS} is there twice"));
        let unknown = format!("the file needs the metadata {}, which is not known here", Guid::NIL);
        assert_eq!(refused(64, &[0; 16]), unknown);
        let items = TABLE_SIZE;
        assert!(refused(items, &[1]).starts_with("no disk has 10737418752 bytes in blocks of 1048577"));
        assert_eq!(
            refused(items + 40, &[0]),
            format!("the parent locator is of the unknown type {}", {
                let mut bytes = LOCATOR_TYPE.to_wire();
                bytes[0] = 0;
                Guid::from_wire(bytes)
            })
        );
        assert_eq!(refused(items + 58, &[0xff]), "the parent locator is too short");
        assert_eq!(refused(items + 60, &[0xff; 4]), "the parent locator is too short");
    }
}
