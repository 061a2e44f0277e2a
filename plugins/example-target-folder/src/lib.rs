//! A target: recovery points as files in a folder. The README says how the folder looks, and what it costs.
//!
//! A folder that is called like a point is a point. It gets this name in one act, by `commit`, and loses it in one by `delete`;
//! whatever else is there is being made or removed, and `collect` finds it.

mod digests;
mod point;

use digests::{Digests, Writer};
use point::{Held, Kept};
use serde::Deserialize;
use vmferry_plugin_api::files::{File, Folder};
use vmferry_plugin_api::target::*;

/// The plugin.
struct InFolder;

/// `with = { folder = "/mnt/backup" }`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Where the points go.
    folder: String,
}

/// How the data comes: the block of a VHD.
const CHUNK: u64 = 2 << 20;

impl Config {
    fn open(&self) -> Result<Folder, Error> {
        Folder::open(&self.folder)
    }
}

impl Target for InFolder {
    type Config = Config;

    fn describe() -> Description {
        description!("Keeps recovery points as files in a folder.")
    }

    fn check(config: &Config) -> Result<(), Error> {
        if !config.folder.starts_with('/') {
            return Err(Error::config(format!("`folder`: `{}` is no absolute path", config.folder)));
        }
        config.open().map(drop)
    }

    fn data_shape(_: Config) -> Result<Shape, Error> {
        Ok(Shape { chunk_size: CHUNK as u32, only_newest: false, extensions: Vec::new() })
    }

    fn points(config: Config, vm: Option<&str>) -> Result<Vec<Point>, Error> {
        point::all(&config.open()?, vm)
    }

    fn metadata(config: Config, point: &str) -> Result<String, Error> {
        Ok(point::read(&point::open(&config.open()?, point)?)?.metadata.to_string())
    }

    fn layout(config: Config, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<Extent>, Error> {
        let all = config.open()?;
        let kept = Stored::open(&all, point, disk)?;
        let since = since.map(|since| Stored::open(&all, since, disk)).transpose()?;
        let mut extents: Vec<Extent> = Vec::new();
        for (index, length) in chunks_of(kept.size) {
            let was = since.as_ref().map_or(Ok(None), |since| since.digests.get(index))?;
            if kept.digests.get(index)? == was {
                continue;
            }
            match extents.last_mut() {
                Some(last) if last.offset + last.length == index * CHUNK => last.length += length,
                _ => extents.push(Extent { offset: index * CHUNK, length }),
            }
        }
        Ok(extents)
    }

    fn write(config: Config, draft: Draft, delta: &dyn Delta) -> Result<Vec<u8>, Error> {
        let (all, info) = (config.open()?, delta.info());
        let same_chunks = |base: &Stored| base.size == info.size || base.size.is_multiple_of(CHUNK);
        let base = match &info.kind {
            Kind::Full => None,
            Kind::Delta(base) => match Stored::open(&all, base, &info.disk)? {
                // The digest of its last chunk would be of fewer bytes than are there now.
                base if !same_chunks(&base) => {
                    let said = format!("the disk {} has grown from {} bytes; send it as a whole", info.disk, base.size);
                    return Err(Error::with_code(ErrorCode::Unsupported, said));
                }
                base => Some(base),
            },
            Kind::Other(kind) => {
                return Err(Error::with_code(
                    ErrorCode::Unsupported,
                    format!("data of the kind `{kind}` is not known"),
                ));
            }
        };
        let folder = all.create_folder(&point::draft(&draft.id)?)?;
        let file = folder.create(&point::raw(&info.disk)?)?;
        file.set_size(info.size)?;
        let mut digests = Writer::new(folder.create(&point::digests(&info.disk)?)?);
        let mut chunk = delta.next()?;
        let mut stored = 0;
        for (index, length) in chunks_of(info.size) {
            let digest = match chunk.take_if(|chunk| chunk.offset() == index * CHUNK) {
                Some(found) => {
                    let digest = write_chunk(&file, &*found)?;
                    // Let go before the next is asked for: what is held has a limit.
                    drop(found);
                    chunk = delta.next()?;
                    digest
                }
                None => match &base {
                    Some(base) => base.copy_to(&file, index, length)?,
                    None => None,
                },
            };
            stored += digest.map_or(0, |_| length);
            digests.push(digest)?;
        }
        file.sync()?;
        digests.finish()?;
        Kept { disk: info.disk, content: info.content, size: info.size, stored, digest: None }.to_receipt()
    }

    fn commit(config: Config, draft: Draft, receipts: Vec<DiskReceipt>) -> Result<Point, Error> {
        let all = config.open()?;
        // It may have been committed before somebody could be told.
        if all.stat(point::name(&draft.id)?)?.is_none() {
            let name = point::draft(&draft.id)?;
            let folder = all.folder(&name)?;
            point::write(&folder, &draft, receipts)?;
            folder.sync()?;
            all.rename(&name, &draft.id)?;
            all.sync()?;
        }
        point::of(&draft.id, &point::open(&all, &draft.id)?)
    }

    fn abort(config: Config, draft: Draft) -> Result<(), Error> {
        point::remove(&config.open()?, &point::draft(&draft.id)?)
    }

    fn read(config: Config, point: &str, disk: &str, extents: Vec<Extent>, restore: &dyn Restore) -> Result<(), Error> {
        let stored = Stored::open(&config.open()?, point, disk)?;
        let mut from = 0;
        for extent in extents {
            let first = from.max(extent.offset / CHUNK);
            from = (extent.offset + extent.length).div_ceil(CHUNK);
            // Whole chunks, for their digests; the host takes of them what it asked for.
            for (index, length) in chunks_of(stored.size).take(from as usize).skip(first as usize) {
                if let Some(digest) = stored.digests.get(index)? {
                    stored.put(restore, index, length, &digest)?;
                }
            }
        }
        Ok(())
    }

    fn verify(config: Config, point: &str, check: &dyn Restore) -> Result<Vec<Damage>, Error> {
        let all = config.open()?;
        let folder = point::open(&all, point)?;
        let mut found = Vec::new();
        for kept in point::read(&folder)?.disks {
            let damaged =
                |extent, error: Error| Damage { disk: Some(kept.disk.clone()), extent, message: error.message };
            let stored = match Stored::open(&all, point, &kept.disk) {
                Ok(stored) => stored,
                Err(error) if error.code == ErrorCode::NotFound || error.is_damaged() => {
                    found.push(damaged(None, error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (index, length) in chunks_of(stored.size) {
                let Some(digest) = stored.digests.get(index)? else { continue };
                match stored.put(check, index, length, &digest) {
                    Err(error) if error.is_damaged() => {
                        found.push(damaged(Some(Extent { offset: index * CHUNK, length }), error));
                    }
                    checked => checked?,
                }
            }
        }
        point::keep_damage(&folder, &found)?;
        Ok(found)
    }

    fn hold(config: Config, point: &str, held: bool) -> Result<(), Error> {
        let held = if held { Held::Yes } else { Held::No };
        point::keep_held(&point::open(&config.open()?, point)?, held)
    }

    fn delete(config: Config, point: &str) -> Result<(), Error> {
        let (all, name) = (config.open()?, point::name(point)?);
        if all.stat(name)?.is_some() {
            all.rename(name, &point::gone(point)?)?;
            all.sync()?;
        }
        point::remove(&all, &point::gone(point)?)
    }

    fn collect(config: Config, drafts: Vec<String>, apply: bool) -> Result<Vec<Garbage>, Error> {
        point::collect(&config.open()?, &drafts, apply)
    }
}

/// Chunks of a disk of this size: their numbers and lengths.
fn chunks_of(size: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..size.div_ceil(CHUNK)).map(move |index| (index, CHUNK.min(size - index * CHUNK)))
}

/// Moves a chunk into the file, which is a hole so far; none of its bytes come here.
fn write_chunk(file: &File, chunk: &dyn Chunk) -> Result<Option<[u8; 32]>, Error> {
    if chunk.is_zero() {
        return Ok(None);
    }
    let payload = chunk.encode(&Encoding::Identity)?;
    file.splice_at(chunk.offset(), &payload.body()?, payload.length())?;
    Ok(Some(digests::checked(&chunk.digest())?))
}

/// One disk of a point.
struct Stored {
    file: File,
    digests: Digests,
    size: u64,
}

impl Stored {
    fn open(all: &Folder, point: &str, disk: &str) -> Result<Self, Error> {
        let folder = point::open(all, point)?;
        let file = folder.open_file(&point::raw(disk)?)?;
        let size = file.size()?;
        let digests = Digests::new(folder.open_file(&point::digests(disk)?)?, size.div_ceil(CHUNK))?;
        Ok(Self { file, digests, size })
    }

    /// Copies a chunk into another file, which is a hole there.
    fn copy_to(&self, file: &File, index: u64, length: u64) -> Result<Option<[u8; 32]>, Error> {
        let digest = self.digests.get(index)?;
        if digest.is_some() {
            file.splice_at(index * CHUNK, &self.file.input(index * CHUNK)?, length)?;
        }
        Ok(digest)
    }

    fn put(&self, restore: &dyn Restore, index: u64, length: u64, digest: &[u8]) -> Result<(), Error> {
        let input = self.file.input(index * CHUNK)?;
        restore.put_from(index * CHUNK, &Encoding::Identity, Some(digest), &input, length)
    }
}

vmferry_plugin_api::export_target!(InFolder);

#[cfg(test)]
mod tests;
