//! The data of one disk on its way into a file. Nothing that a point shows is touched: payload goes to room that is free, or into a
//! file that is new.

use crate::chain::{Chain, Digest, WINDOW, length_of, write_digests};
use crate::image::{Format, Image, NewImage, Space, written_by};
use crate::left::used;
use crate::place::{DiskFile, Place, of_io};
use crate::state::{Id, KeptImage, State, digests_of, image_of, updates_of};
use crate::{Keeper, Points, guid};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use vmferry_plugin_api::target::{Chunk, Delta, Draft, Encoding, Info, Kind};
use vmferry_plugin_api::{Error, ErrorCode};
use vmferry_vhdx::{Block, Parent, Storage, WriteIds};

/// Files of a chain at most; what comes after them is a whole one again. Reading opens two for each, comparing two points twice as many, and
/// a host lets a call have 512.
const LONGEST_CHAIN: usize = 100;

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
        // What somebody else needs is not changed, nor is a disk given another size or format: that is a file of its own.
        let alone = state.children(&image).is_empty() && state.shown_by(&image) == 1 && state.chain(&image).len() == 1;
        Ok(match self.points {
            _ if disk.size != info.size || Format::of(&image) != self.format => Way::Whole(Some(image)),
            Points::Newest if alone && !point.held => Way::InPlace(image),
            Points::Differencing if state.children(&image).is_empty() && state.chain(&image).len() < LONGEST_CHAIN => {
                Way::Child(image)
            }
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
        let name = image_of(&info.disk, &draft.id, self.format);
        let data = guid(&["data", &draft.id, &info.disk]);
        let modified = (self.format == Format::Vhd).then_some(taken_at(draft));
        let kept = KeptImage { parent: parent.clone(), data: Id(data), modified };
        let linkage = parent.as_ref().and_then(|parent| Some((parent, state.images.get(parent)?)));
        let new = NewImage {
            size: info.size,
            id: guid(&["disk", &draft.vm, &info.disk]),
            taken_at: taken_at(draft),
            parent: linkage
                .map(|(name, parent)| Parent { linkage: parent.data.0, relative_path: format!(".\\{name}") }),
        };
        let open = |image: &String| Chain::open(&self.place, folder, state, image);
        let base = base.as_ref().map(open).transpose()?;
        // Proves that nobody else wrote to what the new file will lie on.
        parent.as_ref().map(open).transpose()?;
        let path = format!("{folder}/{name}");
        let digests_path = format!("{folder}/{}", digests_of(&name));
        let ids = WriteIds { file: guid(&["file", &draft.id, &info.disk]), data };
        let (image, space) = Image::create(&path, self.place.create(&path)?, new, ids)?;
        // Where a time cannot be set it is better to know before the data comes.
        let timed = kept.modified.map_or(Ok(()), |modified| image.file().set_modified(modified));
        timed.map_err(|error| of_io(&path, error))?;
        let digests = self.place.create(&digests_path)?;
        let mut file =
            NewFile { image: &image, digests: &digests, kept: &kept, space, last: None, placed: Vec::new(), stored: 0 };

        let mut copied = 0;
        while let Some(chunk) = delta.next()? {
            let block = block_of(self.format, info, chunk.as_ref())?;
            if let Some(base) = &base {
                file.copy(base, copied..chunk.offset())?;
                copied = chunk.offset() + u64::from(chunk.length());
            }
            match chunk.is_zero() {
                // Under a child there is a disk to be hidden.
                true if parent.is_some() => file.place(block, Block::Zero, Digest::default())?,
                true => {}
                false => file.put(block, chunk.as_ref())?,
            }
        }
        if let Some(base) = &base {
            file.copy(base, copied..info.size)?;
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
        let kept = state.images.get(&name).ok_or_else(|| used(&path))?;
        let mut image = Image::open(&path, self.place.open(&path, true)?)?;
        let mut space = image.space()?;
        let before = image.ids().data;
        let updates_name = updates_of(&info.disk, &draft.id);
        let updates_path = format!("{folder}/{updates_name}");
        let mut updates = Updates::new(self.begin_updates(folder, &updates_name, kept)?, &updates_path);
        // A writer of an earlier draft that is still there would fill the same room. It finds another stamp than its own, and stops.
        let stamp = guid(&["file", &draft.id, &info.disk, &image.ids().file.to_string()]);
        image.stamp(stamp)?;
        let is_ours = || match written_by(&path, image.file())? {
            ids if ids == (WriteIds { file: stamp, data: before }) => Ok(()),
            _ => Err(used(&path)),
        };
        let mut stored = 0;
        while let Some(chunk) = delta.next()? {
            is_ours()?;
            let block = block_of(self.format, info, chunk.as_ref())?;
            if kept.modified.is_some() {
                updates.touch()?;
            }
            let at = match chunk.is_zero() {
                true => None,
                false => Some(put_at(&image, &mut space, chunk.as_ref())?),
            };
            stored += if at.is_some() { u64::from(chunk.length()) } else { 0 };
            let digest = at.map_or(Ok(Digest::default()), |_| digest_of(chunk.as_ref()))?;
            updates.push(Update { block, at, digest })?;
        }
        let updates = updates.finish()?;
        image.close(&space)?;
        kept.leave(&path, image.file())?;
        is_ours()?;
        let made = Made::InPlace {
            updates,
            file: Id(stamp),
            before: Id(before),
            data: Id(guid(&["data", &draft.id, &info.disk])),
        };
        Ok(Receipt { content: info.content.clone(), size: info.size, stored, image: name, made })
    }
}

/// When a draft was taken, in seconds since 1970.
pub(crate) fn taken_at(draft: &Draft) -> u64 {
    u64::try_from(draft.taken_at).unwrap_or(0)
}

/// Where a chunk goes, by its number.
fn block_of(format: Format, info: &Info, chunk: &dyn Chunk) -> Result<u64, Error> {
    let (offset, length) = (chunk.offset(), u64::from(chunk.length()));
    let size = format.block_size();
    let block = offset / u64::from(size);
    if !offset.is_multiple_of(size.into()) || length != length_of(block, size, info.size) {
        let message = format!("a chunk of {length} bytes at {offset} is none of the disk {}", info.disk);
        return Err(Error::with_code(ErrorCode::Unsupported, message));
    }
    Ok(block)
}

fn digest_of(chunk: &dyn Chunk) -> Result<Digest, Error> {
    let digest = chunk.digest();
    digest.try_into().map_err(|_| Error::with_code(ErrorCode::Unsupported, "the host's digests have not 32 bytes"))
}

fn put_at<F: DiskFile>(image: &Image<F>, space: &mut Space, chunk: &dyn Chunk) -> Result<u64, Error> {
    let payload = chunk.encode(&Encoding::Identity)?;
    let at = image.make_room(space)?;
    image.file().splice_at(at, &payload.body()?, payload.length())?;
    Ok(at)
}

/// A disk file that nobody knows yet, filled from its beginning to its end.
struct NewFile<'a, F> {
    image: &'a Image<F>,
    digests: &'a F,
    kept: &'a KeptImage,
    space: Space,
    /// The block that was copied to last, and where it is.
    last: Option<(u64, u64)>,
    /// Blocks that the BAT does not name yet.
    placed: Vec<(u64, Block, Digest)>,
    stored: u64,
}

impl<F: DiskFile> NewFile<'_, F> {
    fn put(&mut self, block: u64, chunk: &dyn Chunk) -> Result<(), Error> {
        let at = put_at(self.image, &mut self.space, chunk)?;
        self.stored += u64::from(chunk.length());
        self.place(block, Block::Present(at), digest_of(chunk)?)
    }

    /// Copies what the base has of these bytes, as far as it goes.
    fn copy(&mut self, base: &Chain<F>, range: Range<u64>) -> Result<(), Error> {
        let range = range.start..range.end.min(base.size());
        if range.is_empty() {
            return Ok(());
        }
        base.each_block(range, |part, layer, at, digest| self.copy_part(base, part, layer, at, digest))
    }

    /// Copies a part of a block of the base, whose blocks may have another size than these, or be cut elsewhere by the end of the disk. The
    /// digest is that of the part.
    fn copy_part(
        &mut self,
        base: &Chain<F>,
        part: Range<u64>,
        layer: usize,
        at: u64,
        digest: Option<Digest>,
    ) -> Result<(), Error> {
        let size = u64::from(self.image.block_size());
        let mut next = part.start;
        while next < part.end {
            let block = next / size;
            let whole = block * size..self.image.size().min((block + 1) * size);
            let piece = next..part.end.min(whole.end);
            let to = match self.last {
                Some((last, to)) if last == block => to,
                _ => {
                    let to = self.image.make_room(&mut self.space)?;
                    self.last = Some((block, to));
                    let known = digest.filter(|_| piece == part && piece == whole);
                    self.place(block, Block::Present(to), known.unwrap_or_default())?;
                    to
                }
            };
            let (input, length) = (base.layers[layer].input(at + piece.start - part.start)?, piece.end - piece.start);
            self.image.file().splice_at(to + piece.start - whole.start, &input, length)?;
            self.stored += length;
            next = piece.end;
        }
        Ok(())
    }

    fn place(&mut self, block: u64, place: Block, digest: Digest) -> Result<(), Error> {
        self.placed.push((block, place, digest));
        if self.placed.len() as u64 == WINDOW { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let places: Vec<(u64, Block)> = self.placed.iter().map(|(block, place, _)| (*block, *place)).collect();
        self.image.place_blocks(&places)?;
        let digests: Vec<(u64, Digest)> = self.placed.iter().map(|(block, _, digest)| (*block, *digest)).collect();
        write_digests(self.digests, &digests).map_err(|error| of_io(self.image.path(), error))?;
        self.placed.clear();
        Ok(())
    }

    /// Bytes that were stored, which are on the medium then.
    fn finish(mut self) -> Result<u64, Error> {
        self.flush()?;
        self.image.close(&self.space)?;
        self.digests.sync().map_err(|error| of_io(self.image.path(), error))?;
        self.kept.leave(self.image.path(), self.image.file())?;
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

    /// Says that what is written to the disk file next is ours. Where it writes, the next update is going to be.
    fn touch(&self) -> Result<(), Error> {
        let at = self.written + self.buffer.len() as u64;
        self.file.write_at(at, &[0]).map_err(|error| of_io(self.path, error))
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
