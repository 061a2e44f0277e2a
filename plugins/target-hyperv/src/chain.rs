//! Disk files with the digests of their blocks beside them, one over the other.
//!
//! `<image>.digests` has the BLAKE3 of block *n* at byte 32 *n*, or zeroes where it is not known: of what the block has of the
//! disk, which is less than a block at the disk's end.

use crate::image::{Format, Image};
use crate::left::{is_as_left, used};
use crate::place::{DiskFile, Place, of_io};
use crate::state::{KeptImage, State, digests_of};
use std::ops::Range;
use vmferry_plugin_api::Error;
use vmferry_plugin_api::stream::Input;
use vmferry_vhdx::{Block, Storage};

/// Blocks that are looked at together.
pub(crate) const WINDOW: u64 = 4096;
const DIGEST: u64 = 32;

/// The BLAKE3 of a block's bytes.
pub(crate) type Digest = [u8; DIGEST as usize];
/// Stands where a digest is not known.
const UNKNOWN: Digest = [0; DIGEST as usize];

/// A disk file and its digests.
pub(crate) struct Layer<F> {
    pub(crate) image: Image<F>,
    digests: Option<F>,
}

/// What a block of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Zero,
    Data {
        /// Number of the layer that has it.
        layer: usize,
        /// Where in that layer's file.
        at: u64,
        digest: Option<Digest>,
    },
}

impl<F: DiskFile> Layer<F> {
    /// Opens a disk file, and says whether it is as we left it.
    pub(crate) fn open<P: Place<File = F>>(
        place: &P,
        folder: &str,
        name: &str,
        kept: &KeptImage,
    ) -> Result<Self, Error> {
        let path = format!("{folder}/{name}");
        let image = Image::open(&path, place.open(&path, false)?)?;
        if !is_as_left(place, folder, name, kept, image.file(), image.ids())? {
            return Err(used(&path));
        }
        if image.block_size() != Format::of(name).block_size() {
            return Err(Error::damaged(format!("{path} has blocks of {} bytes", image.block_size())));
        }
        let digests = format!("{folder}/{}", digests_of(name));
        let digests = place.size(&digests)?.map(|_| place.open(&digests, false)).transpose()?;
        Ok(Self { image, digests })
    }

    /// Digests of blocks; fewer where the table ends, as that of a file being renamed may.
    pub(crate) fn digests(&self, range: Range<u64>) -> Result<Vec<Digest>, Error> {
        let Some(file) = &self.digests else { return Ok(Vec::new()) };
        read_digests(file, range).map_err(|error| of_io(self.image.path(), error))
    }

    /// A stream of the file's bytes.
    pub(crate) fn input(&self, at: u64) -> Result<Input, Error> {
        self.image.file().input(at)
    }
}

pub(crate) fn read_digests(file: &impl Storage, range: Range<u64>) -> std::io::Result<Vec<Digest>> {
    let end = range.end.min(file.length()? / DIGEST);
    if end <= range.start {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; ((end - range.start) * DIGEST) as usize];
    file.read_at(range.start * DIGEST, &mut bytes)?;
    let digest = |bytes: &[u8]| {
        let mut digest = UNKNOWN;
        digest.copy_from_slice(bytes);
        digest
    };
    Ok(bytes.chunks_exact(DIGEST as usize).map(digest).collect())
}

/// Writes digests of ascending blocks, those that lie together at once. Not synced.
pub(crate) fn write_digests(file: &impl Storage, digests: &[(u64, Digest)]) -> std::io::Result<()> {
    for run in digests.chunk_by(|(block, _), (next, _)| block + 1 == *next) {
        let bytes: Vec<u8> = run.iter().flat_map(|(_, digest)| *digest).collect();
        file.write_at(run[0].0 * DIGEST, &bytes)?;
    }
    Ok(())
}

/// A disk as a point shows it.
pub(crate) struct Chain<F> {
    /// From the one that is shown down to the one that has the rest. They are of one format.
    pub(crate) layers: Vec<Layer<F>>,
}

impl<F: DiskFile> Chain<F> {
    pub(crate) fn open<P: Place<File = F>>(place: &P, folder: &str, state: &State, image: &str) -> Result<Self, Error> {
        let open = |name: &str| match state.images.get(name) {
            Some(kept) => Layer::open(place, folder, name, kept),
            None => Err(Error::damaged(format!("{folder}/{name} belongs to no point"))),
        };
        let layers = state.chain(image).into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        if layers.is_empty() {
            return Err(Error::damaged(format!("{folder}/{image} belongs to no point")));
        }
        Ok(Self { layers })
    }

    pub(crate) fn size(&self) -> u64 {
        self.layers[0].image.size()
    }

    pub(crate) fn block_size(&self) -> u32 {
        self.layers[0].image.block_size()
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.layers[0].image.blocks()
    }

    /// What is wrong with the places of blocks in its files.
    pub(crate) fn faults(&self) -> Result<Vec<String>, Error> {
        let mut faults = Vec::new();
        for layer in &self.layers {
            faults.extend(layer.image.faults()?);
        }
        Ok(faults)
    }

    /// What these blocks are, those beyond the end of the disk left out.
    pub(crate) fn contents(&self, range: Range<u64>) -> Result<Vec<Content>, Error> {
        let range = range.start..range.end.min(self.blocks());
        let mut contents: Vec<Option<Content>> = vec![None; range.end.saturating_sub(range.start) as usize];
        for (layer, of) in self.layers.iter().enumerate() {
            if contents.iter().all(Option::is_some) {
                break;
            }
            let digests = of.digests(range.clone())?;
            for (index, block) in of.image.places(range.clone())?.into_iter().enumerate() {
                let content = match block {
                    Block::Absent => continue,
                    Block::Zero => Content::Zero,
                    Block::Present(at) => {
                        let digest = digests.get(index).copied().filter(|digest| *digest != UNKNOWN);
                        Content::Data { layer, at, digest }
                    }
                    Block::Partial(_) => return Err(used(of.image.path())),
                };
                contents[index].get_or_insert(content);
            }
        }
        Ok(contents.into_iter().map(|content| content.unwrap_or(Content::Zero)).collect())
    }

    /// Runs through the data in a range of bytes, block by block: the part of it that is in the range, its layer, where it is in that file,
    /// and its digest if the part is the whole block.
    pub(crate) fn each_block(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(Range<u64>, usize, u64, Option<Digest>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let size = u64::from(self.block_size());
        let blocks = range.start / size..range.end.div_ceil(size);
        for start in blocks.clone().step_by(WINDOW as usize) {
            let window = start..blocks.end.min(start + WINDOW);
            for (block, content) in window.clone().zip(self.contents(window)?) {
                let Content::Data { layer, at, digest } = content else { continue };
                let whole = block * size..self.size().min((block + 1) * size);
                let part = whole.start.max(range.start)..whole.end.min(range.end);
                let digest = digest.filter(|_| part == whole);
                each(part.clone(), layer, at + part.start - whole.start, digest)?;
            }
        }
        Ok(())
    }
}

/// Bytes that a block has of a disk of this size.
pub(crate) fn length_of(block: u64, block_size: u32, size: u64) -> u64 {
    size.saturating_sub(block * u64::from(block_size)).min(u64::from(block_size))
}
