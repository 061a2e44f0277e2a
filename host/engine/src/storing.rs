//! A disk on its way into a store or an image file: the sink that the transfer writes to, and what takes its chunks from there.

use crate::error::{RunError, chain};
use crate::source::Shape;
use crate::transfer::{blocking, joined};
use crate::xva::XvaFile;
use async_trait::async_trait;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::task::JoinSet;
use vmferry_disk::chunks::{self, ChunkReceiver, ChunkSink, Cut, Gaps};
use vmferry_disk::{image, qcow2};
use vmferry_model::target::{BrokenOff, Chunk, Chunks, DeltaInfo, Draft, PointStore};

/// Chunks that are filled while the store is at work with one: enough that neither waits for the other's every step.
const AHEAD: usize = 4;

/// Chunks of an image file.
const IMAGE_CHUNK: u32 = 1 << 20;

/// A disk that is being stored.
pub(crate) struct Storing {
    pub(crate) sink: ChunkSink,
    /// The store's call, which gives a receipt; it ends where this is dropped.
    writing: JoinSet<Result<Vec<u8>, RunError>>,
    /// Whether the store has seen the end of the stream.
    took_all: Arc<AtomicBool>,
    /// Whether it is a store, which ends by itself when it does not get on.
    pub(crate) is_store: bool,
    disk: String,
}

/// How a disk lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// Byte by byte, zeroes as holes.
    Raw,
    /// qcow2.
    Qcow2,
}

impl Storing {
    /// Begins to store a disk whose stream has this shape.
    pub(crate) fn begin(
        store: &Arc<dyn PointStore>,
        draft: &Draft,
        info: &DeltaInfo,
        shape: &Shape,
    ) -> Result<Self, RunError> {
        let cut = Cut {
            chunk_size: store.shape().chunk_size,
            disk_size: info.size,
            gaps: if info.base.is_some() { Gaps::Refused } else { Gaps::Zero },
        };
        let (store, draft, info) = (store.clone(), draft.clone(), info.clone());
        let storing = Self::new(&info.disk.clone(), shape, cut, |received| async move {
            store.write(&draft, info, Box::new(received)).await.map_err(RunError::Store)
        })?;
        Ok(Self { is_store: true, ..storing })
    }

    /// Begins to write a disk of `size` bytes to an empty file.
    pub(crate) fn into_file(
        file: File,
        path: &Path,
        format: ImageFormat,
        size: u64,
        shape: &Shape,
    ) -> Result<Self, RunError> {
        Self::into_image(path, move || Image::new(file, format, size), &path.display().to_string(), size, shape)
    }

    /// Begins to write a disk of `size` bytes to an XVA, behind the disks that are in it. `id` is its name there.
    pub(crate) fn into_xva(xva: &XvaFile, id: &str, disk: &str, size: u64, shape: &Shape) -> Result<Self, RunError> {
        let (file, id) = (xva.clone(), id.to_owned());
        let open = move || file.begin(&id, size).map(|()| Image::Xva(file));
        Self::into_image(xva.path(), open, disk, size, shape)
    }

    fn into_image(
        path: &Path,
        open: impl FnOnce() -> io::Result<Image> + Send + 'static,
        disk: &str,
        size: u64,
        shape: &Shape,
    ) -> Result<Self, RunError> {
        let cut = Cut { chunk_size: IMAGE_CHUNK, disk_size: size, gaps: Gaps::Zero };
        let path = path.to_owned();
        Self::new(disk, shape, cut, |mut received| async move {
            let failed = |error: io::Error| RunError::Media(format!("{}: {error}", path.display()));
            let mut image = blocking(open).await.map_err(failed)?;
            while let Some(chunk) = received.next().await.map_err(|error| failed(io::Error::other(error)))? {
                image = blocking(move || image.put(chunk)).await.map_err(failed)?;
            }
            blocking(move || image.finish()).await.map_err(failed)?;
            Ok(Vec::new())
        })
    }

    fn new<F>(disk: &str, shape: &Shape, cut: Cut, take: impl FnOnce(Received) -> F) -> Result<Self, RunError>
    where
        F: Future<Output = Result<Vec<u8>, RunError>> + Send + 'static,
    {
        let failed = |error| RunError::Transfer { disk: disk.to_owned(), message: chain(&error) };
        let (sink, receiver) = chunks::handover(shape.layout(), cut, AHEAD).map_err(failed)?;
        let took_all = Arc::new(AtomicBool::new(false));
        let mut writing = JoinSet::new();
        writing.spawn(take(Received { receiver, took_all: took_all.clone() }));
        Ok(Self { sink, writing, took_all, is_store: false, disk: disk.to_owned() })
    }

    /// Waits for the receipt of a store that was given everything, or for what it has to say if it was not.
    pub(crate) async fn finish(self) -> Result<Vec<u8>, RunError> {
        let Self { sink, mut writing, took_all, disk, .. } = self;
        drop(sink);
        let receipt = joined(&mut writing).await?;
        match took_all.load(Ordering::Acquire) {
            true => Ok(receipt),
            false => {
                let message = "the store gave its receipt before it had taken the whole disk".to_owned();
                Err(RunError::Transfer { disk, message })
            }
        }
    }

    /// Tells the store that nothing more will come, and waits until it has given up.
    pub(crate) async fn abort(self) {
        let Self { sink, mut writing, .. } = self;
        sink.abort("the transfer ended before the whole disk had come");
        let _ = joined(&mut writing).await;
    }
}

/// An image file that is being written.
enum Image {
    Raw(image::Raw),
    Qcow2(qcow2::Writer),
    /// One of several disks.
    Xva(XvaFile),
}

impl Image {
    fn new(file: File, format: ImageFormat, size: u64) -> io::Result<Self> {
        Ok(match format {
            ImageFormat::Raw => Self::Raw(image::Raw::new(file, size)?),
            ImageFormat::Qcow2 => Self::Qcow2(qcow2::Writer::new(file, size)?),
        })
    }

    fn put(mut self, chunk: Chunk) -> io::Result<Self> {
        match &mut self {
            Self::Raw(raw) => raw.put(chunk.offset, &chunk.bytes)?,
            Self::Qcow2(writer) => writer.put(chunk.offset, &chunk.bytes)?,
            Self::Xva(xva) => xva.put(chunk.offset, &chunk.bytes)?,
        }
        Ok(self)
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Raw(raw) => raw.finish().map(drop),
            Self::Qcow2(writer) => writer.finish().map(drop),
            // Further disks follow.
            Self::Xva(_) => Ok(()),
        }
    }
}

/// What a transfer wrote, as a store takes it.
struct Received {
    receiver: ChunkReceiver,
    took_all: Arc<AtomicBool>,
}

#[async_trait]
impl Chunks for Received {
    async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff> {
        let chunk = self.receiver.next().await.map_err(|error| BrokenOff(error.0))?;
        if chunk.is_none() {
            self.took_all.store(true, Ordering::Release);
        }
        Ok(chunk.map(|chunk| Chunk { offset: chunk.offset, bytes: chunk.bytes }))
    }
}
