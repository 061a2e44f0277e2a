//! An image as the host gives it to a target, and takes it back.

use anyhow::Context as _;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{Cursor, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use target_repository::FolderStore;
use vmferry_disk::encoding::{self, decode, encode};
use vmferry_plugin_api::delta::{self, Checksum, Encoding, Info, Kind};
use vmferry_plugin_api::stream::{Input, Output};
use vmferry_plugin_api::target::{DiskReceipt, Draft};
use vmferry_plugin_api::{Error, ErrorCode};
use vmferry_repository::{Repository, Settings};

fn failed(error: impl std::fmt::Display) -> Error {
    Error::with_code(ErrorCode::Other("bench".to_owned()), error.to_string())
}

fn said(error: Error) -> anyhow::Error {
    anyhow::anyhow!(error.message)
}

fn native(encoding: &Encoding) -> Result<encoding::Encoding, Error> {
    match encoding {
        Encoding::Identity => Ok(encoding::Encoding::Identity),
        Encoding::Zstd => Ok(encoding::Encoding::Zstd),
        _ => Err(failed("no key here")),
    }
}

struct Chunk {
    offset: u64,
    bytes: Bytes,
}

struct Payload(Bytes);

impl delta::Chunk for Chunk {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn is_zero(&self) -> bool {
        let (words, rest) = self.bytes.as_chunks::<8>();
        words.iter().all(|word| *word == [0; 8]) && rest.iter().all(|byte| *byte == 0)
    }

    fn digest(&self) -> Vec<u8> {
        blake3::hash(&self.bytes).as_bytes().to_vec()
    }

    fn encode(&self, encoding: &Encoding) -> Result<Box<dyn delta::Payload>, Error> {
        Ok(Box::new(Payload(encode(native(encoding)?, &self.bytes, None).map_err(failed)?)))
    }
}

impl delta::Payload for Payload {
    fn length(&self) -> u64 {
        self.0.len() as u64
    }

    fn digest(&self) -> Vec<u8> {
        blake3::hash(&self.0).as_bytes().to_vec()
    }

    fn checksum(&self, _: &Checksum) -> Result<Vec<u8>, Error> {
        Err(failed("no check sums here"))
    }

    fn body(&self) -> Result<Input, Error> {
        Ok(Input::double(Cursor::new(self.0.clone()), "a chunk"))
    }
}

/// What differs between two images, or a whole one.
struct Delta {
    info: Info,
    image: File,
    base: Option<File>,
    chunk: usize,
    at: Cell<u64>,
}

impl Delta {
    fn piece(&self, file: &File, at: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.chunk.min((self.info.size - at) as usize)];
        file.read_exact_at(&mut bytes, at).map_err(failed)?;
        Ok(bytes)
    }
}

impl delta::Delta for Delta {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn next(&self) -> Result<Option<Box<dyn delta::Chunk>>, Error> {
        while self.at.get() < self.info.size {
            let offset = self.at.get();
            self.at.set(offset + self.chunk as u64);
            let bytes = self.piece(&self.image, offset)?;
            if let Some(base) = &self.base
                && self.piece(base, offset)? == bytes
            {
                continue;
            }
            return Ok(Some(Box::new(Chunk { offset, bytes: bytes.into() })));
        }
        Ok(None)
    }
}

/// Writes what comes back into an image.
struct Restore {
    image: File,
    open: RefCell<Option<(u64, Encoding, Vec<u8>, Rc<RefCell<Vec<u8>>>)>>,
}

/// Takes the bytes of one piece.
struct Taking(Rc<RefCell<Vec<u8>>>);

impl Write for Taking {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl delta::Restore for Restore {
    fn put(&self, offset: u64, length: u64, encoding: &Encoding, digest: Option<&[u8]>) -> Result<Output, Error> {
        let taken = Rc::new(RefCell::new(Vec::with_capacity(length as usize)));
        self.open.replace(Some((offset, encoding.clone(), digest.unwrap_or_default().to_vec(), Rc::clone(&taken))));
        Ok(Output::double(Taking(taken), "the image"))
    }

    fn finish(&self, _: Output) -> Result<(), Error> {
        let (offset, encoding, digest, taken) = self.open.take().ok_or_else(|| failed("nothing is open"))?;
        let plain = decode(native(&encoding)?, &[taken.take().into()], 8 << 20, None).map_err(failed)?;
        if *blake3::hash(&plain).as_bytes() != *digest {
            return Err(Error::damaged("another digest"));
        }
        self.image.write_all_at(&plain, offset).map_err(failed)
    }
}

fn settings(chunk_kib: u64) -> Settings {
    Settings { chunk_size: Some((chunk_kib << 10) as u32), ..Settings::default() }
}

/// Keeps an image as a point.
pub(crate) fn write(
    folder: &Path,
    image: &Path,
    id: &str,
    chunk_kib: u64,
    base: Option<(&str, &Path)>,
) -> anyhow::Result<()> {
    let store = FolderStore::open(folder.to_str().context("UTF-8")?).map_err(said)?;
    let clock = || 1_700_000_000;
    let repository = Repository::make(&store, settings(chunk_kib), &clock, [7; 32]).map_err(said)?;
    let file = File::open(image)?;
    let size = file.metadata()?.len();
    let (id, base_id) = (id.to_owned(), base.map(|(id, _)| id.to_owned()));
    let info = Info {
        disk: "disk".to_owned(),
        content: id.clone(),
        size,
        kind: base_id.clone().map_or(Kind::Full, Kind::Delta),
        expected_bytes: if base.is_some() { size / 50 } else { size },
        extensions: Vec::new(),
    };
    let base = base.map(|(_, image)| File::open(image)).transpose()?;
    let delta = Delta { info, image: file, base, chunk: (chunk_kib << 10) as usize, at: Cell::new(0) };
    let draft = Draft {
        id,
        job: "bench".to_owned(),
        vm: "vm".to_owned(),
        name: "vm".to_owned(),
        taken_at: 1,
        base: base_id,
        metadata: "{}".to_owned(),
        extensions: Vec::new(),
    };
    let receipt = repository.write(&draft, &delta).map_err(said)?;
    let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: None };
    repository.commit(&draft, &[receipt]).map_err(said)?;
    Ok(())
}

/// Brings a point back as an image.
pub(crate) fn read(folder: &Path, image: &Path, id: &str, chunk_kib: u64) -> anyhow::Result<()> {
    let store = FolderStore::open(folder.to_str().context("UTF-8")?).map_err(said)?;
    let clock = || 1_700_000_000;
    let repository = Repository::make(&store, settings(chunk_kib), &clock, [7; 32]).map_err(said)?;
    let points = repository.points(None).map_err(said)?;
    let point = points.iter().find(|point| point.id == id).context("the point")?;
    let file = File::create(image)?;
    file.set_len(point.disks[0].size)?;
    let restore = Restore { image: file, open: RefCell::default() };
    let extents = repository.layout(id, "disk", None).map_err(said)?;
    repository.read(id, "disk", &extents, &restore).map_err(said)
}
