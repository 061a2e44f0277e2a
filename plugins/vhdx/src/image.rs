//! A file as a whole.

use crate::bat::{self, Block, ENTRY_SIZE};
use crate::header::Header;
use crate::log::{self, Patch, SECTOR, Write};
use crate::region::{Region, Regions};
use crate::wire::{put, u64_at};
use crate::{Disk, Guid, MIB, Space, Storage, VhdxError};
use std::ops::Range;

const SIGNATURE: &[u8; 8] = b"vhdxfile";
/// Letters that the creator's name may have.
const CREATOR_UNITS: usize = 256;
/// Where everything begins whose place is not fixed.
const FIRST_REGION: u64 = MIB;
/// Sectors of the BAT that one entry of the log changes at most: those of 2 TiB in blocks of 1 MiB. What is more comes in several.
const MAX_PATCHES: usize = 4096;
/// A log longer than this is not read: it has to fit in memory. Hyper-V makes 1 MiB.
const MAX_LOG: u32 = 64 << 20;
/// Blocks that are looked at together.
const WINDOW: u64 = 8192;
/// Faults after which a check stops.
const MAX_FAULTS: usize = 100;

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteIds {
    /// The `FileWriteGuid`: another one for each time that a file is opened and changed.
    pub file: Guid,
    /// The `DataWriteGuid`: another one for each content that a guest can see. Children remember it of their parent.
    pub data: Guid,
}

/// A VHDX file whose log is empty.
#[derive(Debug)]
pub struct Image<F> {
    file: F,
    header: Header,
    regions: Regions,
    disk: Disk,
}

impl<F: Storage> Image<F> {
    /// Makes an empty file a disk without any block. Not synced.
    pub fn create(file: F, disk: Disk, ids: WriteIds, creator: &str) -> Result<Self, VhdxError> {
        if !disk.is_possible() {
            return Err(VhdxError::NoSuchDisk { size: disk.size, block_size: disk.block_size });
        }
        let table = bat::entries(&disk) * ENTRY_SIZE;
        let patches = table.div_ceil(SECTOR as u64).min(MAX_PATCHES as u64) as usize;
        let whole = |length: u64| length.next_multiple_of(MIB) as u32;
        let log_length = whole(log::entry_length(patches) as u64);
        let metadata = Region { offset: FIRST_REGION + u64::from(log_length), length: MIB as u32 };
        let regions = Regions { bat: Region { offset: metadata.end(), length: whole(table) }, metadata };
        let mut header = Header {
            sequence: 0,
            file_write: ids.file,
            data_write: ids.data,
            log: Guid::NIL,
            log_length,
            log_offset: FIRST_REGION,
        };
        file.set_length(regions.bat.end())?;
        let mut identifier = SIGNATURE.to_vec();
        identifier.extend(creator.encode_utf16().take(CREATOR_UNITS).flat_map(u16::to_le_bytes));
        file.write_at(0, &identifier)?;
        header.write_both(&file)?;
        regions.write(&file)?;
        file.write_at(metadata.offset, &disk.encode()?)?;
        Ok(Self { file, header, regions, disk })
    }

    /// Opens a file whose log is empty; see [`recover`].
    pub fn open(file: F) -> Result<Self, VhdxError> {
        let header = read_header(&file)?;
        if header.log != Guid::NIL {
            return Err(VhdxError::LogNotEmpty);
        }
        let regions = Regions::read(&file)?;
        let disk = Disk::read(&file, regions.metadata.offset, regions.metadata.length)?;
        let log = Region { offset: header.log_offset, length: header.log_length };
        if [regions.bat, regions.metadata].iter().any(|region| region.offset < log.end() && log.offset < region.end()) {
            return Err(VhdxError::wrong("header", 0, "the log is where a region is"));
        }
        let length = file.length()?;
        for (part, region) in [("BAT", regions.bat), ("metadata", regions.metadata), ("log", log)] {
            if region.end() > length {
                let problem = format!("it ends at byte {}, and the file at {length}: it was cut off", region.end());
                return Err(VhdxError::wrong(part, region.offset, problem));
            }
        }
        if bat::entries(&disk) * ENTRY_SIZE > regions.bat.length.into() {
            let problem = format!("it is too short for a disk of {} bytes", disk.size);
            return Err(VhdxError::wrong("BAT", regions.bat.offset, problem));
        }
        Ok(Self { file, header, regions, disk })
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Who wrote last.
    pub fn ids(&self) -> WriteIds {
        WriteIds { file: self.header.file_write, data: self.header.data_write }
    }

    /// The file.
    pub fn file(&self) -> &F {
        &self.file
    }

    /// Gives the file back.
    pub fn into_file(self) -> F {
        self.file
    }

    /// Where these blocks are; those behind the end of the disk are left out.
    pub fn blocks(&self, range: Range<u64>) -> Result<Vec<Block>, VhdxError> {
        let range = range.start..range.end.min(self.disk.blocks());
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let entries = self.raw_entries(range.clone())?;
        range.zip(entries).map(|(block, entry)| Block::decode(entry, block)).collect()
    }

    /// What is taken in the file. Blocks that overlap, or are not in the file, are errors.
    pub fn space(&self) -> Result<Space, VhdxError> {
        let mut space = self.structures();
        let length = self.file.length()?;
        for start in (0..self.disk.blocks()).step_by(WINDOW as usize) {
            for (block, place) in (start..).zip(self.blocks(start..start + WINDOW)?) {
                if let Some(at) = place.offset() {
                    self.place(&mut space, block, at, length)?;
                }
            }
        }
        Ok(space)
    }

    /// What the file has beside blocks.
    fn structures(&self) -> Space {
        let mut space = Space::default();
        space.take(0, FIRST_REGION);
        space.take(self.header.log_offset, self.header.log_length.into());
        for region in [self.regions.bat, self.regions.metadata] {
            space.take(region.offset, region.length.into());
        }
        space
    }

    fn place(&self, space: &mut Space, block: u64, at: u64, length: u64) -> Result<(), VhdxError> {
        let size = u64::from(self.disk.block_size);
        if at.checked_add(size).is_none_or(|end| end > length) {
            return Err(VhdxError::OutOfFile { block, at, length });
        }
        if space.take(at, size) { Err(VhdxError::Overlap { at, block }) } else { Ok(()) }
    }

    /// All that is wrong with the places of blocks, up to a hundred faults. Blocks of which only a part is here are among them: nobody
    /// makes such but a hypervisor that the disk was attached to.
    pub fn check(&self) -> Result<Vec<VhdxError>, VhdxError> {
        let mut faults = Vec::new();
        let mut space = self.structures();
        let length = self.file.length()?;
        for start in (0..self.disk.blocks()).step_by(WINDOW as usize) {
            let raw = self.raw_entries(start..(start + WINDOW).min(self.disk.blocks()))?;
            for (block, entry) in (start..).zip(raw) {
                let fault = match Block::decode(entry, block) {
                    Ok(Block::Partial(_)) => Some(VhdxError::PartialBlock { block }),
                    Ok(place) => place.offset().and_then(|at| self.place(&mut space, block, at, length).err()),
                    Err(error) => Some(error),
                };
                faults.extend(fault);
            }
            if faults.len() >= MAX_FAULTS {
                faults.truncate(MAX_FAULTS);
                break;
            }
        }
        Ok(faults)
    }

    /// Changes the BAT without the log: for a file that nobody reads yet. Blocks have to ascend. Not synced.
    pub fn place_blocks(&self, changes: &[(u64, Block)]) -> Result<(), VhdxError> {
        let mut rest = changes;
        while !rest.is_empty() {
            for (offset, sector) in self.patches(&mut rest, MAX_PATCHES)? {
                self.file.write_at(offset, &sector)?;
            }
        }
        Ok(())
    }

    /// Changes the BAT so that a crash leaves all of the change or nothing of it, and the file with the log to be replayed or without.
    /// Blocks have to ascend. The change is atomic as long as it touches no more than 4096 sectors of the BAT or what fits in the log
    /// (2 TiB of disk in blocks of 1 MiB); beyond that it is several.
    ///
    /// What the blocks have to hold is expected to be synced.
    pub fn commit(&mut self, changes: &[(u64, Block)], ids: WriteIds) -> Result<(), VhdxError> {
        let room = (1..=MAX_PATCHES).rev().find(|count| log::entry_length(*count) <= self.header.log_length as usize);
        let room = room.unwrap_or(1);
        let mut rest = changes;
        self.header.file_write = ids.file;
        self.header.data_write = ids.data;
        loop {
            let patches = self.patches(&mut rest, room)?;
            // No two entries have the same: whatever older ones the log still holds belong to nobody.
            let log = Guid::new(ids.file.digits().wrapping_add(u128::from(self.header.sequence)));
            self.file.write_at(self.header.log_offset, &log::encode(log, &patches, self.file.length()?))?;
            self.file.sync()?;
            // From this header on the log counts: this is the moment of the change.
            self.header.log = log;
            self.header.write_next(&self.file)?;
            self.file.sync()?;
            for (offset, sector) in &patches {
                self.file.write_at(*offset, sector)?;
            }
            self.file.sync()?;
            close(&self.file, &mut self.header)?;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Gives the file another `FileWriteGuid`, synced: who sought room in it under the one before is told by it that it is no longer theirs.
    pub fn stamp(&mut self, file: Guid) -> Result<(), VhdxError> {
        self.header.file_write = file;
        close(&self.file, &mut self.header)
    }

    fn raw_entries(&self, range: Range<u64>) -> Result<Vec<u64>, VhdxError> {
        let first = bat::entry_of(&self.disk, range.start);
        let last = bat::entry_of(&self.disk, range.end - 1);
        let mut raw = vec![0; ((last + 1 - first) * ENTRY_SIZE) as usize];
        self.file.read_at(self.regions.bat.offset + first * ENTRY_SIZE, &mut raw)?;
        let at = |block| ((bat::entry_of(&self.disk, block) - first) * ENTRY_SIZE) as usize;
        Ok(range.map(|block| u64_at(&raw, at(block))).collect())
    }

    /// The next sectors of the BAT as they have to be, `most` at most; takes what they hold off the changes.
    fn patches(&self, changes: &mut &[(u64, Block)], most: usize) -> Result<Vec<Patch>, VhdxError> {
        let blocks = self.disk.blocks();
        let mut patches: Vec<Patch> = Vec::new();
        let mut before = None;
        while let Some(((block, place), rest)) = changes.split_first() {
            let aligned = place.offset().is_none_or(|at| at.is_multiple_of(MIB));
            if *block >= blocks || before.is_some_and(|before| before >= *block) || !aligned {
                return Err(VhdxError::NoSuchBlock { block: *block, blocks });
            }
            let at = self.regions.bat.offset + bat::entry_of(&self.disk, *block) * ENTRY_SIZE;
            let sector = at / SECTOR as u64 * SECTOR as u64;
            if patches.last().is_none_or(|(last, _)| *last != sector) {
                if patches.len() == most {
                    break;
                }
                let mut bytes = [0; SECTOR];
                self.file.read_at(sector, &mut bytes)?;
                patches.push((sector, bytes));
            }
            if let Some((_, bytes)) = patches.last_mut() {
                put(bytes, (at - sector) as usize, &place.encode().to_le_bytes());
            }
            before = Some(*block);
            *changes = rest;
        }
        Ok(patches)
    }
}

fn read_header(file: &impl Storage) -> Result<Header, VhdxError> {
    let mut found = [0; 8];
    file.read_at(0, &mut found)?;
    if found != *SIGNATURE {
        return Err(VhdxError::NoVhdx { found });
    }
    Header::read(file)
}

/// Who wrote a file last, whether its log is empty or not.
pub fn written_by(file: &impl Storage) -> Result<WriteIds, VhdxError> {
    let header = read_header(file)?;
    Ok(WriteIds { file: header.file_write, data: header.data_write })
}

/// Says in both headers that the log is empty, one after the other.
fn close(file: &impl Storage, header: &mut Header) -> Result<(), VhdxError> {
    header.log = Guid::NIL;
    for _ in 0..2 {
        header.write_next(file)?;
        file.sync()?;
    }
    Ok(())
}

/// Does again what the log of a file says, as after a crash; whether there was anything in it. Afterwards [`Image::open`] takes it.
pub fn recover(file: &impl Storage) -> Result<bool, VhdxError> {
    let mut header = read_header(file)?;
    if header.log == Guid::NIL {
        return Ok(false);
    }
    if header.log_length > MAX_LOG {
        return Err(VhdxError::wrong("header", 0, format!("a log of {} bytes is not read", header.log_length)));
    }
    let mut raw = vec![0; header.log_length as usize];
    file.read_at(header.log_offset, &mut raw)?;
    if let Some(replay) = log::replay(&raw, header.log)? {
        let length = file.length()?;
        if length < replay.flushed_length {
            let problem = format!("the file has {length} bytes and should have {}", replay.flushed_length);
            return Err(VhdxError::wrong("log", header.log_offset, problem));
        }
        if length < replay.last_length {
            file.set_length(replay.last_length)?;
        }
        for write in &replay.writes {
            match write {
                Write::Data(patch) => file.write_at(patch.0, &patch.1)?,
                // Zeroes behind the old end are there.
                Write::Zero { offset, length: zeroes } => {
                    for at in (*offset..(offset + zeroes).min(length)).step_by(SECTOR) {
                        file.write_at(at, &[0; SECTOR])?;
                    }
                }
            }
        }
        file.sync()?;
    }
    close(file, &mut header)?;
    Ok(true)
}
