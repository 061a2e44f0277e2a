//! The data of one disk on its way into a file. Nothing that a point shows is touched: payload goes to room that is free, or into a
//! file that is new.

use crate::image::{BLOCK, Chain, Content, Digest, USED, WINDOW, length_of, was_used, write_digests};
use crate::place::{DiskFile, Place, of_io, of_vhdx};
use crate::state::{Id, KeptImage, State, digests_of, image_of, updates_of};
use crate::{CREATOR, Keeper, Points, guid};
use serde::{Deserialize, Serialize};
use vmferry_plugin_api::target::{Chunk, Delta, Draft, Encoding, Info, Kind};
use vmferry_plugin_api::{Error, ErrorCode};
use vmferry_vhdx::{Block, Disk, Image, Parent, Space, Storage, WriteIds, written_by};

/// What `commit` has to know of a disk.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) content: String,
    pub(crate) size: u64,
    pub(crate) stored: u64,
    /// The file that will show the disk.
    pub(crate) image: String,
    pub(crate) made: Made,
}

/// How it comes to show it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Made {
    /// It is new.
    New(KeptImage),
    /// By updates of where its blocks are.
    InPlace {
        /// BLAKE3 of the file that has them, in hex.
        updates: String,
        /// The `FileWriteGuid` that it had: with another one the room that was sought in it may be taken.
        file: Id,
        /// The `DataWriteGuid` that it had.
        before: Id,
        /// The one that it gets.
        data: Id,
    },
}

/// Where the data goes.
enum Way {
    /// A file with all of the disk, what the delta does not say taken from this base.
    Whole(Option<String>),
    /// A file over the base's.
    Child(String),
    /// The base's file.
    InPlace(String),
}

/// One block that is somewhere else from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Update {
    pub(crate) block: u64,
    /// Where its data is in the file, or none if it is zero.
    pub(crate) at: Option<u64>,
    pub(crate) digest: Digest,
}

impl Update {
    /// Block, place, digest. The headers are at place 0, so no block is.
    pub(crate) const SIZE: usize = 48;

    fn encode(&self) -> [u8; Self::SIZE] {
        let mut raw = [0; Self::SIZE];
        raw[..8].copy_from_slice(&self.block.to_le_bytes());
        raw[8..16].copy_from_slice(&self.at.unwrap_or(0).to_le_bytes());
        raw[16..].copy_from_slice(&self.digest);
        raw
    }

    pub(crate) fn decode(raw: &[u8; Self::SIZE]) -> Self {
        let number = |at: usize| raw[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let mut digest = Digest::default();
        digest.copy_from_slice(&raw[16..]);
        Self { block: number(0), at: Some(number(8)).filter(|at| *at != 0), digest }
    }

    pub(crate) fn place(&self) -> Block {
        self.at.map_or(Block::Zero, Block::Present)
    }
}

impl<P: Place> Keeper<P> {
    pub(crate) fn write(&self, draft: &Draft, delta: &dyn Delta) -> Result<Receipt, Error> {
        let info = delta.info();
        let folder = self.make_folders(&draft.job, &draft.vm)?;
        let state = self.settled(&folder)?.unwrap_or_else(|| State::new(&draft.job, &draft.vm));
        if state.point(&draft.id).is_some() {
            return Err(Error::with_code(
                ErrorCode::Other("committed".to_owned()),
                format!("the point {} is committed, and nothing can be added to it", draft.id),
            ));
        }
        match self.way(&state, &info)? {
            Way::Whole(base) => self.write_new(draft, &folder, &state, &info, delta, base, None),
            Way::Child(base) => self.write_new(draft, &folder, &state, &info, delta, None, Some(base)),
            Way::InPlace(base) => self.write_in_place(draft, &folder, &state, &info, delta, base),
        }
    }

    /// Which way the data goes.
    fn way(&self, state: &State, info: &Info) -> Result<Way, Error> {
        let base = match &info.kind {
            Kind::Full => return Ok(Way::Whole(None)),
            Kind::Delta(base) => base,
            Kind::Other(kind) => {
                return Err(Error::with_code(
                    ErrorCode::Unsupported,
                    format!("a delta of the kind `{kind}` is not known here; use a newer plugin"),
                ));
            }
        };
        let none = || Error::not_found(format!("the point {base} is not kept here, or without the disk {}", info.disk));
        let point = state.point(base).ok_or_else(none)?;
        let disk = point.disk(&info.disk).ok_or_else(none)?;
        if let Some(damage) = &point.damaged {
            return Err(Error::damaged(format!("the point {base} is no base, for it is damaged: {damage}")));
        }
        let image = disk.image.clone();
        // What somebody else needs is not changed, nor is a disk given another size: that is a file of its own.
        let alone = state.children(&image).is_empty() && state.shown_by(&image) == 1 && state.chain(&image).len() == 1;
        Ok(match self.points {
            _ if disk.size != info.size => Way::Whole(Some(image)),
            Points::Newest if alone && !point.held => Way::InPlace(image),
            Points::Differencing if state.children(&image).is_empty() => Way::Child(image),
            Points::Newest | Points::Differencing | Points::Copies => Way::Whole(Some(image)),
        })
    }

    #[expect(clippy::too_many_arguments, reason = "a step of `write`")]
    fn write_new(
        &self,
        draft: &Draft,
        folder: &str,
        state: &State,
        info: &Info,
        delta: &dyn Delta,
        base: Option<String>,
        parent: Option<String>,
    ) -> Result<Receipt, Error> {
        let name = image_of(&info.disk, &draft.id);
        let kept = KeptImage { parent: parent.clone(), data: Id(guid(&["data", &draft.id, &info.disk])) };
        let linkage = parent.as_ref().and_then(|parent| Some((parent, state.images.get(parent)?)));
        let disk = Disk {
            size: info.size,
            block_size: BLOCK,
            // The same for all files of the disk: a guest sees no other disk after a failover.
            id: guid(&["disk", &draft.vm, &info.disk]),
            logical_sector: 512,
            physical_sector: 4096,
            parent: linkage
                .map(|(name, parent)| Parent { linkage: parent.data.0, relative_path: format!(".\\{name}") }),
        };
        let open = |image: &String| Chain::open(&self.place, folder, state, image);
        let base = base.as_ref().map(open).transpose()?;
        // Proves that nobody else wrote to what the new file will lie on.
        parent.as_ref().map(open).transpose()?;
        let path = format!("{folder}/{name}");
        let digests_path = format!("{folder}/{}", digests_of(&name));
        let ids = WriteIds { file: guid(&["file", &draft.id, &info.disk]), data: kept.data.0 };
        let image =
            Image::create(self.place.create(&path)?, disk, ids, CREATOR).map_err(|error| of_vhdx(&path, error))?;
        let digests = self.place.create(&digests_path)?;
        let mut file =
            NewFile { image: &image, digests: &digests, path: &path, next: 0, placed: Vec::new(), stored: 0 };
        file.next = image.file().length().map_err(|error| of_io(&path, error))?;

        let mut copied = 0;
        while let Some(chunk) = delta.next()? {
            let block = block_of(info, chunk.as_ref())?;
            if let Some(base) = &base {
                file.copy(base, copied..block)?;
                copied = block + 1;
            }
            match chunk.is_zero() {
                // Under a child there is a disk to be hidden.
                true if parent.is_some() => file.place(block, Block::Zero, Digest::default())?,
                true => {}
                false => file.put(block, chunk.as_ref())?,
            }
        }
        if let Some(base) = &base {
            file.copy(base, copied..base.blocks().min(image.disk().blocks()))?;
        }
        let stored = file.finish()?;
        Ok(Receipt { content: info.content.clone(), size: info.size, stored, image: name, made: Made::New(kept) })
    }

    fn write_in_place(
        &self,
        draft: &Draft,
        folder: &str,
        state: &State,
        info: &Info,
        delta: &dyn Delta,
        name: String,
    ) -> Result<Receipt, Error> {
        let path = format!("{folder}/{name}");
        // Refuses a file that somebody else wrote to.
        Chain::open(&self.place, folder, state, &name)?;
        let vhdx = |error| of_vhdx(&path, error);
        let mut image = Image::open(self.place.open(&path, true)?).map_err(vhdx)?;
        let mut space = image.space().map_err(vhdx)?;
        let before = image.ids().data;
        // A writer of an earlier draft that is still there would fill the same room. It finds another stamp than its own, and stops.
        let stamp = guid(&["file", &draft.id, &info.disk, &image.ids().file.to_string()]);
        image.stamp(stamp).map_err(vhdx)?;
        let file = image.into_file();
        let is_ours = || match written_by(&file) {
            Ok(ids) if ids == (WriteIds { file: stamp, data: before }) => Ok(()),
            Ok(_) => Err(Error::with_code(ErrorCode::Other(USED.to_owned()), was_used(&path))),
            Err(error) => Err(of_vhdx(&path, error)),
        };
        let updates_path = format!("{folder}/{}", updates_of(&info.disk, &draft.id));
        let mut updates = Updates::new(self.place.create(&updates_path)?, &updates_path);
        let mut stored = 0;
        while let Some(chunk) = delta.next()? {
            is_ours()?;
            let block = block_of(info, chunk.as_ref())?;
            let at = match chunk.is_zero() {
                true => None,
                false => Some(put_at(&file, &mut space, chunk.as_ref())?),
            };
            stored += if at.is_some() { u64::from(chunk.length()) } else { 0 };
            let digest = at.map_or(Ok(Digest::default()), |_| digest_of(chunk.as_ref()))?;
            updates.push(Update { block, at, digest })?;
        }
        let io = |error| of_io(&path, error);
        if file.length().map_err(io)? < space.end() {
            file.set_length(space.end()).map_err(io)?;
        }
        file.sync().map_err(io)?;
        is_ours()?;
        let made = Made::InPlace {
            updates: updates.finish()?,
            file: Id(stamp),
            before: Id(before),
            data: Id(guid(&["data", &draft.id, &info.disk])),
        };
        Ok(Receipt { content: info.content.clone(), size: info.size, stored, image: name, made })
    }
}

/// Where a chunk goes, by its number.
fn block_of(info: &Info, chunk: &dyn Chunk) -> Result<u64, Error> {
    let (offset, length) = (chunk.offset(), u64::from(chunk.length()));
    let block = offset / u64::from(BLOCK);
    if !offset.is_multiple_of(BLOCK.into()) || length != length_of(block, info.size) {
        let message = format!("a chunk of {length} bytes at {offset} is none of the disk {}", info.disk);
        return Err(Error::with_code(ErrorCode::Unsupported, message));
    }
    Ok(block)
}

fn digest_of(chunk: &dyn Chunk) -> Result<Digest, Error> {
    let digest = chunk.digest();
    digest.try_into().map_err(|_| Error::with_code(ErrorCode::Unsupported, "the host's digests have not 32 bytes"))
}

fn put_at(file: &impl DiskFile, space: &mut Space, chunk: &dyn Chunk) -> Result<u64, Error> {
    let payload = chunk.encode(&Encoding::Identity)?;
    let at = space.allocate(BLOCK.into());
    file.splice_at(at, &payload.body()?, payload.length())?;
    Ok(at)
}

/// A disk file that nobody knows yet, filled from its beginning to its end.
struct NewFile<'a, F> {
    image: &'a Image<F>,
    digests: &'a F,
    path: &'a str,
    /// Where the next block's data goes.
    next: u64,
    /// Blocks that the BAT does not name yet.
    placed: Vec<(u64, Block, Digest)>,
    stored: u64,
}

impl<F: DiskFile> NewFile<'_, F> {
    fn put(&mut self, block: u64, chunk: &dyn Chunk) -> Result<(), Error> {
        let payload = chunk.encode(&Encoding::Identity)?;
        self.image.file().splice_at(self.next, &payload.body()?, payload.length())?;
        self.stored += payload.length();
        self.took(block, digest_of(chunk)?)
    }

    /// Copies what the base has of these blocks.
    fn copy(&mut self, base: &Chain<F>, blocks: std::ops::Range<u64>) -> Result<(), Error> {
        for start in blocks.clone().step_by(WINDOW as usize) {
            let window = start..blocks.end.min(start + WINDOW);
            for (block, content) in window.clone().zip(base.contents(window)?) {
                if let Content::Data { layer, at, digest } = content {
                    // A disk that became smaller in the middle of a block has less of it; the digest is that of what it had.
                    let (had, has) = (length_of(block, base.size()), length_of(block, self.image.disk().size));
                    self.image.file().splice_at(self.next, &base.layers[layer].input(at)?, had.min(has))?;
                    self.stored += had.min(has);
                    self.took(block, digest.filter(|_| had == has).unwrap_or_default())?;
                }
            }
        }
        Ok(())
    }

    fn took(&mut self, block: u64, digest: Digest) -> Result<(), Error> {
        let at = self.next;
        self.next += u64::from(BLOCK);
        self.place(block, Block::Present(at), digest)
    }

    fn place(&mut self, block: u64, place: Block, digest: Digest) -> Result<(), Error> {
        self.placed.push((block, place, digest));
        if self.placed.len() as u64 == WINDOW { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let places: Vec<(u64, Block)> = self.placed.iter().map(|(block, place, _)| (*block, *place)).collect();
        self.image.place_blocks(&places).map_err(|error| of_vhdx(self.path, error))?;
        let digests: Vec<(u64, Digest)> = self.placed.iter().map(|(block, _, digest)| (*block, *digest)).collect();
        write_digests(self.digests, &digests).map_err(|error| of_io(self.path, error))?;
        self.placed.clear();
        Ok(())
    }

    /// Bytes that were stored, which are on the medium then.
    fn finish(mut self) -> Result<u64, Error> {
        self.flush()?;
        let file = self.image.file();
        let synced = file.set_length(self.next).and_then(|()| file.sync()).and_then(|()| self.digests.sync());
        synced.map_err(|error| of_io(self.path, error))?;
        Ok(self.stored)
    }
}

/// The file of updates that a commit will apply.
struct Updates<'a, F> {
    file: F,
    path: &'a str,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    written: u64,
}

impl<'a, F: Storage> Updates<'a, F> {
    fn new(file: F, path: &'a str) -> Self {
        Self { file, path, hasher: blake3::Hasher::new(), buffer: Vec::new(), written: 0 }
    }

    fn push(&mut self, update: Update) -> Result<(), Error> {
        self.buffer.extend_from_slice(&update.encode());
        if self.buffer.len() >= WINDOW as usize * Update::SIZE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.hasher.update(&self.buffer);
        self.file.write_at(self.written, &self.buffer).map_err(|error| of_io(self.path, error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<String, Error> {
        self.flush()?;
        self.file.sync().map_err(|error| of_io(self.path, error))?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}
