//! A file as a whole.

use crate::footer::Footer;
use crate::header::{self, Header};
use crate::wire::{bytes_at, checksum, put, seal, u32_at};
use crate::{BLOCK_SIZE, Block, Guid, MAX_SIZE, SECTOR, Space, Storage, VhdError, WriteIds};
use std::ops::Range;

/// Where the header is in files made here.
const HEADER: u64 = SECTOR;
/// Where who wrote last is told, if a file has it.
const STAMP: u64 = HEADER + header::SIZE as u64;
const STAMP_COOKIE: &[u8; 8] = b"vmferry\0";
const STAMP_CHECKSUM: usize = 24;
/// Where the BAT is in files made here.
const TABLE: u64 = STAMP + SECTOR;
/// The BAT says this of a block that is not there.
const UNUSED: u32 = u32::MAX;
/// Bytes of the BAT that are read and written together.
const PIECE: u64 = 4096;
/// Blocks that are looked at together.
const WINDOW: u64 = 8192;
/// Faults after which a check stops.
const MAX_FAULTS: usize = 100;

/// What disk it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Size in bytes: whole sectors, [`MAX_SIZE`] at most.
    pub size: u64,
    /// Bytes of a block; [`BLOCK_SIZE`] in files made here.
    pub block_size: u32,
    /// When it was made, in seconds since 2000.
    pub created: u32,
}

impl Disk {
    /// Number of its blocks.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(u64::from(self.block_size))
    }
}

/// A dynamic VHD.
#[derive(Debug)]
pub struct Image<F> {
    file: F,
    footer: Footer,
    header: Header,
    disk: Disk,
    stamp: Option<Guid>,
}

impl<F: Storage> Image<F> {
    /// Makes an empty file a disk of this size without any block. Not synced.
    pub fn create(file: F, size: u64, created: u32, ids: WriteIds) -> Result<Self, VhdError> {
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
            return Err(VhdError::NoSuchDisk { size });
        }
        let disk = Disk { size, block_size: BLOCK_SIZE, created };
        let footer = Footer::new(HEADER, size, created, ids.data);
        let header = Header { table: TABLE, entries: disk.blocks() as u32, block_size: BLOCK_SIZE };
        let image = Self { file, footer, header, disk, stamp: Some(ids.file) };
        image.footer.write(&image.file, 0)?;
        image.file.write_at(HEADER, &image.header.encode())?;
        write_stamp(&image.file, ids.file)?;
        image.file.write_at(TABLE, &vec![0xff; image.header.table_length() as usize])?;
        image.close(image.structures_end())?;
        Ok(image)
    }

    /// Opens a file. What its end looks like does not matter: the footer at its beginning is enough.
    pub fn open(file: F) -> Result<Self, VhdError> {
        let footer = Footer::read(&file)?;
        let header = Header::read(&file, footer.header())?;
        let disk = Disk { size: footer.size(), block_size: header.block_size, created: footer.created() };
        if disk.blocks() > header.entries.into() {
            let problem = format!("a BAT of {} entries is too short for a disk of {} bytes", header.entries, disk.size);
            return Err(VhdError::wrong("header", footer.header(), problem));
        }
        let has_place = footer.header() == HEADER && header.table >= TABLE;
        let stamp = if has_place { read_stamp(&file)? } else { None };
        Ok(Self { file, footer, header, disk, stamp })
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Who wrote last, as far as it says so: see [`written_by`].
    pub fn ids(&self) -> WriteIds {
        WriteIds { file: self.stamp.unwrap_or_default(), data: self.footer.id() }
    }

    /// The file.
    pub fn file(&self) -> &F {
        &self.file
    }

    /// Gives the file back.
    pub fn into_file(self) -> F {
        self.file
    }

    /// Where these blocks are; those behind the end of the disk are left out. Bitmaps are not looked at.
    pub fn blocks(&self, range: Range<u64>) -> Result<Vec<Block>, VhdError> {
        let bitmap = self.header.bitmap_length();
        let place = |entry| match entry {
            UNUSED => Block::Absent,
            sector => Block::Present(u64::from(sector) * SECTOR + bitmap),
        };
        Ok(self.entries(range)?.into_iter().map(place).collect())
    }

    /// What is taken in the file. Blocks that overlap, or are not in the file, are errors.
    pub fn space(&self) -> Result<Space, VhdError> {
        let placed = self.placed()?;
        if let Some(fault) = self.faults(&placed)?.into_iter().next() {
            return Err(fault);
        }
        let taken = placed.into_iter().map(|(sector, _)| sector).collect();
        Ok(Space::new(taken, self.structures_end(), self.header.bitmap_length(), self.disk.block_size.into()))
    }

    /// All that is wrong with the places of blocks, up to a hundred faults. Blocks of which some sectors are said not to be there are among
    /// them: those made here never are.
    pub fn check(&self) -> Result<Vec<VhdError>, VhdError> {
        let placed = self.placed()?;
        let mut faults = self.faults(&placed)?;
        let length = self.file.length()?;
        let mut bitmap = vec![0; self.header.bitmap_length() as usize];
        for (sector, block) in placed {
            if faults.len() >= MAX_FAULTS {
                break;
            }
            let at = u64::from(sector) * SECTOR;
            if at + self.header.bitmap_length() <= length {
                self.file.read_at(at, &mut bitmap)?;
                let whole = bitmap.iter().all(|byte| *byte == 0xff);
                faults.extend((!whole).then_some(VhdError::PartialBlock { block: block.into() }));
            }
        }
        faults.truncate(MAX_FAULTS);
        Ok(faults)
    }

    /// Readies the room for a block's data at `at`, as [`Space`] gave it: its bitmap says that all of it is there, and where the file ends before it does, a
    /// footer comes behind it first, so that a writer that dies leaves a file that ends with one. Not synced.
    pub fn make_room(&self, at: u64) -> Result<(), VhdError> {
        let end = at + u64::from(self.disk.block_size);
        if self.file.length()? < end + SECTOR {
            self.footer.write(&self.file, end)?;
        }
        let bitmap = self.header.bitmap_length();
        Ok(self.file.write_at(at.saturating_sub(bitmap), &vec![0xff; bitmap as usize])?)
    }

    /// Ends the file with a footer at `end`. Not synced.
    pub fn close(&self, end: u64) -> Result<(), VhdError> {
        self.footer.write(&self.file, end)?;
        if self.file.length()? > end + SECTOR {
            self.file.set_length(end + SECTOR)?;
        }
        Ok(())
    }

    /// Changes the BAT. Blocks have to ascend; one that is zero is not there afterwards. Not synced.
    pub fn place_blocks(&self, changes: &[(u64, Block)]) -> Result<(), VhdError> {
        let blocks = self.disk.blocks();
        let ascending = changes.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let piece_of = |block: u64| block * 4 / PIECE;
        for changes in changes.chunk_by(|(one, _), (next, _)| piece_of(*one) == piece_of(*next)) {
            let start = piece_of(changes[0].0) * PIECE;
            let mut raw = vec![0; PIECE.min(self.header.table_length().saturating_sub(start)) as usize];
            self.file.read_at(self.header.table + start, &mut raw)?;
            for (block, place) in changes {
                let entry = self.entry(*place).filter(|_| *block < blocks && ascending);
                let entry = entry.ok_or(VhdError::NoSuchBlock { block: *block, blocks })?;
                put(&mut raw, (block * 4 - start) as usize, &entry.to_be_bytes());
            }
            self.file.write_at(self.header.table + start, &raw)?;
        }
        Ok(())
    }

    /// Changes the BAT and then says by whom, each synced before the next. Interrupted anywhere it may be done again.
    ///
    /// What the blocks have to hold is expected to be synced.
    pub fn commit(&mut self, changes: &[(u64, Block)], ids: WriteIds) -> Result<(), VhdError> {
        self.place_blocks(changes)?;
        self.file.sync()?;
        self.footer.set_id(ids.data);
        // Over the one that is there, and behind all blocks of a file that has lost it.
        let end = self.space()?.end().max(self.file.length()?.saturating_sub(SECTOR));
        self.footer.write(&self.file, end)?;
        self.footer.write(&self.file, 0)?;
        self.file.sync()?;
        if self.stamp.is_some() { self.stamp(ids.file) } else { Ok(()) }
    }

    /// Says who may seek room in the file, synced: who sought some before is told by it that it is no longer theirs. A file that
    /// another program made has no place for that.
    pub fn stamp(&mut self, file: Guid) -> Result<(), VhdError> {
        if self.stamp.is_none() {
            return Err(VhdError::wrong("stamp", STAMP, "another program made the file, and it has none"));
        }
        write_stamp(&self.file, file)?;
        self.stamp = Some(file);
        Ok(self.file.sync()?)
    }

    fn structures_end(&self) -> u64 {
        self.header.table + self.header.table_length()
    }

    /// What the BAT says of a block that is there; `None` where it cannot say so.
    fn entry(&self, place: Block) -> Option<u32> {
        match place {
            Block::Absent | Block::Zero => Some(UNUSED),
            Block::Present(at) => {
                let bitmap = at.checked_sub(self.header.bitmap_length()).filter(|at| at.is_multiple_of(SECTOR))?;
                u32::try_from(bitmap / SECTOR).ok().filter(|sector| *sector != UNUSED)
            }
            Block::Partial(_) => None,
        }
    }

    /// The entries of these blocks, as far as the disk has them.
    fn entries(&self, range: Range<u64>) -> Result<Vec<u32>, VhdError> {
        let range = range.start..range.end.min(self.disk.blocks());
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut raw = vec![0; ((range.end - range.start) * 4) as usize];
        self.file.read_at(self.header.table + range.start * 4, &mut raw)?;
        Ok(raw.as_chunks().0.iter().map(|entry| u32::from_be_bytes(*entry)).collect())
    }

    /// Sectors and numbers of the blocks that are there, in the order of the file.
    fn placed(&self) -> Result<Vec<(u32, u32)>, VhdError> {
        let mut placed = Vec::new();
        for start in (0..self.disk.blocks()).step_by(WINDOW as usize) {
            let entries = (start as u32..).zip(self.entries(start..start + WINDOW)?);
            placed.extend(entries.filter(|(_, entry)| *entry != UNUSED).map(|(block, sector)| (sector, block)));
        }
        placed.sort_unstable();
        Ok(placed)
    }

    /// Blocks that overlap with what is before them, or are not in the file; a hundred at most.
    fn faults(&self, placed: &[(u32, u32)]) -> Result<Vec<VhdError>, VhdError> {
        let length = self.file.length()?;
        let (bitmap, size) = (self.header.bitmap_length(), u64::from(self.disk.block_size));
        let mut behind = self.structures_end();
        let mut faults = Vec::new();
        for (sector, block) in placed {
            let start = u64::from(*sector) * SECTOR;
            let (block, at, end) = (u64::from(*block), start + bitmap, start + bitmap + size);
            if end > length {
                faults.push(VhdError::OutOfFile { block, at, length });
            } else if start < behind {
                faults.push(VhdError::Overlap { at, block });
            }
            behind = behind.max(end);
            if faults.len() >= MAX_FAULTS {
                break;
            }
        }
        Ok(faults)
    }
}

/// Who wrote a file last. Of VHD's own there is the footer's unique id, which is made another one here whenever what a guest sees
/// changes: disks that others lay over the one before it do not fit any more, and say so. It does not change when a guest writes. Who sought
/// room in the file stands in a sector of ours; nil if it has none.
pub fn written_by(file: &impl Storage) -> Result<WriteIds, VhdError> {
    Ok(Image::open(file)?.ids())
}

/// The one of a file that has room for it.
fn read_stamp(file: &impl Storage) -> Result<Option<Guid>, VhdError> {
    let mut raw = [0; SECTOR as usize];
    file.read_at(STAMP, &mut raw)?;
    let is_one = raw[..8] == *STAMP_COOKIE && u32_at(&raw, STAMP_CHECKSUM) == checksum(&raw, STAMP_CHECKSUM);
    Ok(is_one.then(|| Guid::from_wire(bytes_at(&raw, 8))))
}

fn write_stamp(file: &impl Storage, id: Guid) -> Result<(), VhdError> {
    let mut raw = [0; SECTOR as usize];
    put(&mut raw, 0, STAMP_COOKIE);
    put(&mut raw, 8, &id.to_wire());
    seal(&mut raw, STAMP_CHECKSUM);
    Ok(file.write_at(STAMP, &raw)?)
}
