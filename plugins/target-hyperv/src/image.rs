//! Disk files with the digests of their blocks beside them, one over the other.
//!
//! `<image>.digests` has the BLAKE3 of block *n* at byte 32 *n*, or zeroes where it is not known: of what the block has of the
//! disk, which is less than a block at the disk's end.

use crate::place::{DiskFile, Place, of_io, of_vhdx};
use crate::state::{Id, State, digests_of};
use std::ops::Range;
use vmferry_plugin_api::stream::Input;
use vmferry_plugin_api::{Error, ErrorCode};
use vmferry_vhdx::{Block, Image, Storage};

/// Bytes of a block, and of a chunk.
pub(crate) const BLOCK: u32 = 1 << 20;
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
    path: String,
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
    pub(crate) fn open<P: Place<File = F>>(place: &P, folder: &str, name: &str, left: Id) -> Result<Self, Error> {
        let path = format!("{folder}/{name}");
        let image = Image::open(place.open(&path, false)?).map_err(|error| of_vhdx(&path, error))?;
        if image.ids().data != left.0 {
            return Err(used(&path));
        }
        if image.disk().block_size != BLOCK {
            return Err(Error::damaged(format!("{path} has blocks of {} bytes", image.disk().block_size)));
        }
        let digests = format!("{folder}/{}", digests_of(name));
        let digests = place.size(&digests)?.map(|_| place.open(&digests, false)).transpose()?;
        Ok(Self { image, digests, path })
    }

    /// Where blocks are in this file alone.
    pub(crate) fn blocks(&self, range: Range<u64>) -> Result<Vec<Block>, Error> {
        self.image.blocks(range).map_err(|error| of_vhdx(&self.path, error))
    }

    /// Digests of blocks; fewer where the table ends, as that of a file being renamed may.
    pub(crate) fn digests(&self, range: Range<u64>) -> Result<Vec<Digest>, Error> {
        let Some(file) = &self.digests else { return Ok(Vec::new()) };
        read_digests(file, range).map_err(|error| of_io(&self.path, error))
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
    /// From the one that is shown down to the one that has the rest.
    pub(crate) layers: Vec<Layer<F>>,
}

impl<F: DiskFile> Chain<F> {
    pub(crate) fn open<P: Place<File = F>>(place: &P, folder: &str, state: &State, image: &str) -> Result<Self, Error> {
        let open = |name: &str| match state.images.get(name) {
            Some(kept) => Layer::open(place, folder, name, kept.data),
            None => Err(Error::damaged(format!("{folder}/{name} belongs to no point"))),
        };
        let layers = state.chain(image).into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        if layers.is_empty() {
            return Err(Error::damaged(format!("{folder}/{image} belongs to no point")));
        }
        Ok(Self { layers })
    }

    pub(crate) fn size(&self) -> u64 {
        self.layers[0].image.disk().size
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.layers[0].image.disk().blocks()
    }

    /// What is wrong with the places of blocks in its files.
    pub(crate) fn faults(&self) -> Result<Vec<String>, Error> {
        let mut faults = Vec::new();
        for layer in &self.layers {
            let found = layer.image.check().map_err(|error| of_vhdx(&layer.path, error))?;
            faults.extend(found.iter().map(|fault| format!("{}: {fault}", layer.path)));
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
            for (index, block) in of.blocks(range.clone())?.into_iter().enumerate() {
                let content = match block {
                    Block::Absent => continue,
                    Block::Zero => Content::Zero,
                    Block::Present(at) => {
                        let digest = digests.get(index).copied().filter(|digest| *digest != UNKNOWN);
                        Content::Data { layer, at, digest }
                    }
                    Block::Partial(_) => return Err(used(&of.path)),
                };
                contents[index].get_or_insert(content);
            }
        }
        Ok(contents.into_iter().map(|content| content.unwrap_or(Content::Zero)).collect())
    }
}

/// A disk file is not as it was left.
fn used(path: &str) -> Error {
    Error::with_code(ErrorCode::Other(USED.to_owned()), was_used(path))
}

/// The code of such an error.
pub(crate) const USED: &str = "used";

/// What is said of a disk file that a hypervisor wrote to.
pub(crate) fn was_used(path: &str) -> String {
    format!(
        "{path} was written by something else, as a hypervisor does that starts a VM on it; nothing can be added to it"
    )
}

/// Bytes that a block has of a disk of this size.
pub(crate) fn length_of(block: u64, size: u64) -> u64 {
    size.saturating_sub(block * u64::from(BLOCK)).min(u64::from(BLOCK))
}
