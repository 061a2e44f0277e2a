//! A disk file of either format.

use crate::place::{of_io, of_vhd, of_vhdx};
use serde::Deserialize;
use std::ops::Range;
use vmferry_plugin_api::Error;
use vmferry_vhdx::{Block, Guid, MIB, Parent, Storage, WriteIds, recover};

/// What a file says of who made it.
const CREATOR: &str = "vmferry";

/// What a disk file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// What Hyper-V makes today.
    #[default]
    Vhdx,
    /// A dynamic VHD.
    Vhd,
}

impl Format {
    /// Bytes of a block, and of a chunk.
    pub const fn block_size(self) -> u32 {
        match self {
            Self::Vhdx => MIB as u32,
            Self::Vhd => vmferry_vhd::BLOCK_SIZE,
        }
    }

    /// What names of its files have behind their last dot.
    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            Self::Vhdx => "vhdx",
            Self::Vhd => "vhd",
        }
    }

    /// That of a file with this name.
    pub(crate) fn of(name: &str) -> Self {
        if name.ends_with(".vhd") { Self::Vhd } else { Self::Vhdx }
    }
}

/// A disk file that is to be made.
pub(crate) struct NewImage {
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// The same for all files of the disk: a guest sees no other disk after a failover. VHD has no such thing.
    pub(crate) id: Guid,
    /// When the point was taken, in seconds since 1970.
    pub(crate) taken_at: u64,
    /// The file that it lies on, which VHD does not have here.
    pub(crate) parent: Option<Parent>,
}

/// A disk file.
pub(crate) struct Image<F> {
    path: String,
    of: Of<F>,
}

enum Of<F> {
    Vhdx(vmferry_vhdx::Image<F>),
    Vhd(vmferry_vhd::Image<F>),
}

/// Where a disk file has room.
pub(crate) enum Space {
    Vhdx(vmferry_vhdx::Space),
    Vhd(vmferry_vhd::Space),
}

impl<F: Storage> Image<F> {
    /// Makes an empty file a disk without any block, and says where its blocks can be. Not synced.
    pub(crate) fn create(path: &str, file: F, new: NewImage, ids: WriteIds) -> Result<(Self, Space), Error> {
        let format = Format::of(path);
        let of = match format {
            Format::Vhdx => {
                let disk = vmferry_vhdx::Disk {
                    size: new.size,
                    block_size: format.block_size(),
                    id: new.id,
                    logical_sector: 512,
                    physical_sector: 4096,
                    parent: new.parent,
                };
                Of::Vhdx(vmferry_vhdx::Image::create(file, disk, ids, CREATOR).map_err(|error| of_vhdx(path, error))?)
            }
            Format::Vhd => {
                let created = new.taken_at.saturating_sub(YEAR_2000).min(u32::MAX.into()) as u32;
                let image = vmferry_vhd::Image::create(file, new.size, created, ids);
                Of::Vhd(image.map_err(|error| of_vhd(path, error))?)
            }
        };
        let image = Self { path: path.to_owned(), of };
        let space = match &image.of {
            Of::Vhdx(of) => {
                let mut space = vmferry_vhdx::Space::default();
                space.take(0, of.file().length().map_err(|error| of_io(path, error))?);
                Space::Vhdx(space)
            }
            Of::Vhd(_) => image.space()?,
        };
        Ok((image, space))
    }

    /// Opens a file that was closed.
    pub(crate) fn open(path: &str, file: F) -> Result<Self, Error> {
        let of = match Format::of(path) {
            Format::Vhdx => Of::Vhdx(vmferry_vhdx::Image::open(file).map_err(|error| of_vhdx(path, error))?),
            Format::Vhd => Of::Vhd(vmferry_vhd::Image::open(file).map_err(|error| of_vhd(path, error))?),
        };
        Ok(Self { path: path.to_owned(), of })
    }

    /// Opens a file, after it was put right if it was left in the middle of a change.
    pub(crate) fn recover(path: &str, file: F) -> Result<Self, Error> {
        if Format::of(path) == Format::Vhdx {
            recover(&file).map_err(|error| of_vhdx(path, error))?;
        }
        Self::open(path, file)
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn file(&self) -> &F {
        match &self.of {
            Of::Vhdx(of) => of.file(),
            Of::Vhd(of) => of.file(),
        }
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        match &self.of {
            Of::Vhdx(of) => of.disk().size,
            Of::Vhd(of) => of.disk().size,
        }
    }

    pub(crate) fn block_size(&self) -> u32 {
        match &self.of {
            Of::Vhdx(of) => of.disk().block_size,
            Of::Vhd(of) => of.disk().block_size,
        }
    }

    /// How many blocks the disk has.
    pub(crate) fn blocks(&self) -> u64 {
        self.size().div_ceil(self.block_size().into())
    }

    pub(crate) fn ids(&self) -> WriteIds {
        match &self.of {
            Of::Vhdx(of) => of.ids(),
            Of::Vhd(of) => of.ids(),
        }
    }

    /// Where blocks are in this file alone.
    pub(crate) fn places(&self, range: Range<u64>) -> Result<Vec<Block>, Error> {
        match &self.of {
            Of::Vhdx(of) => of.blocks(range).map_err(|error| of_vhdx(&self.path, error)),
            Of::Vhd(of) => of.blocks(range).map_err(|error| of_vhd(&self.path, error)),
        }
    }

    /// What is wrong with the places of blocks.
    pub(crate) fn faults(&self) -> Result<Vec<String>, Error> {
        let told = match &self.of {
            Of::Vhdx(of) => of.check().map(texts).map_err(|error| of_vhdx(&self.path, error)),
            Of::Vhd(of) => of.check().map(texts).map_err(|error| of_vhd(&self.path, error)),
        };
        Ok(told?.into_iter().map(|fault| format!("{}: {fault}", self.path)).collect())
    }

    pub(crate) fn space(&self) -> Result<Space, Error> {
        match &self.of {
            Of::Vhdx(of) => of.space().map(Space::Vhdx).map_err(|error| of_vhdx(&self.path, error)),
            Of::Vhd(of) => of.space().map(Space::Vhd).map_err(|error| of_vhd(&self.path, error)),
        }
    }

    /// Takes room for a block and readies it to be written to; where it is.
    pub(crate) fn make_room(&self, space: &mut Space) -> Result<u64, Error> {
        let at = space.allocate(&self.path)?;
        if let Of::Vhd(of) = &self.of {
            of.make_room(at).map_err(|error| of_vhd(&self.path, error))?;
        }
        Ok(at)
    }

    /// Has the file go as far as the blocks that it has and that room was taken for. Not synced.
    pub(crate) fn close(&self, space: &Space) -> Result<(), Error> {
        match &self.of {
            Of::Vhdx(of) => {
                let longer = of.file().length().and_then(|length| of.file().set_length(space.end().max(length)));
                longer.map_err(|error| of_io(&self.path, error))
            }
            Of::Vhd(_) => self.cut(space),
        }
    }

    /// Cuts off what is behind those blocks. Not synced.
    pub(crate) fn cut(&self, space: &Space) -> Result<(), Error> {
        match &self.of {
            Of::Vhdx(of) => of.file().set_length(space.end()).map_err(|error| of_io(&self.path, error)),
            Of::Vhd(of) => of.close(space.end()).map_err(|error| of_vhd(&self.path, error)),
        }
    }

    /// Has the table say where these blocks are, in a file that nobody reads yet. Not synced.
    pub(crate) fn place_blocks(&self, changes: &[(u64, Block)]) -> Result<(), Error> {
        match &self.of {
            Of::Vhdx(of) => of.place_blocks(changes).map_err(|error| of_vhdx(&self.path, error)),
            Of::Vhd(of) => of.place_blocks(changes).map_err(|error| of_vhd(&self.path, error)),
        }
    }

    /// Says that room for a draft is sought in the file: who sought some before is told by it that it is no longer theirs.
    pub(crate) fn stamp(&mut self, file: Guid) -> Result<(), Error> {
        match &mut self.of {
            Of::Vhdx(of) => of.stamp(file).map_err(|error| of_vhdx(&self.path, error)),
            Of::Vhd(of) => of.stamp(file).map_err(|error| of_vhd(&self.path, error)),
        }
    }

    /// Has the table say where these blocks are, synced. Of VHDX it is one change or none; of VHD it has to be done again if it was
    /// interrupted.
    pub(crate) fn commit(&mut self, changes: &[(u64, Block)], data: Guid) -> Result<(), Error> {
        let file = crate::guid(&["file", &self.ids().file.to_string(), &data.to_string()]);
        let ids = WriteIds { file, data };
        match &mut self.of {
            Of::Vhdx(of) => of.commit(changes, ids).map_err(|error| of_vhdx(&self.path, error)),
            Of::Vhd(of) => of.commit(changes, ids).map_err(|error| of_vhd(&self.path, error)),
        }
    }
}

/// 2000-01-01 in seconds since 1970.
const YEAR_2000: u64 = 946_684_800;

fn texts<E: ToString>(faults: Vec<E>) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

impl Space {
    fn allocate(&mut self, path: &str) -> Result<u64, Error> {
        match self {
            Self::Vhdx(space) => Ok(space.allocate(Format::Vhdx.block_size().into())),
            Self::Vhd(space) => space.allocate().map_err(|error| of_vhd(path, error)),
        }
    }

    /// The end of what is taken.
    fn end(&self) -> u64 {
        match self {
            Self::Vhdx(space) => space.end(),
            Self::Vhd(space) => space.end(),
        }
    }

    /// How long a file is that has nothing behind that.
    pub(crate) fn closed_length(&self) -> u64 {
        match self {
            Self::Vhdx(space) => space.end(),
            Self::Vhd(space) => space.end() + vmferry_vhd::SECTOR,
        }
    }
}

/// Who wrote a file last.
pub(crate) fn written_by(path: &str, file: &impl Storage) -> Result<WriteIds, Error> {
    match Format::of(path) {
        Format::Vhdx => vmferry_vhdx::written_by(file).map_err(|error| of_vhdx(path, error)),
        Format::Vhd => vmferry_vhd::written_by(file).map_err(|error| of_vhd(path, error)),
    }
}
