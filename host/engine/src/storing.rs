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
use std::time::{Duration, Instant};
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
    seen: Arc<Seen>,
    /// Whether it is a store, whose call is ended by who runs it when it does not get on.
    is_store: bool,
    disk: String,
}

/// How far a store has come with its call.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// It has asked for the first chunk; until then it may wait for its turn.
    begun: AtomicBool,
    /// It has seen the end of the stream.
    took_all: AtomicBool,
    /// It has answered, whatever became of what it was given.
    over: AtomicBool,
}

/// How long a store may wait for its turn while others wait for it: longer is for ever, as when all who have a turn wait for such.
const LONGEST_TURN: Duration = Duration::from_secs(3600);

impl Seen {
    /// Whether a store that has taken nothing since `begun` may be at work all the same.
    pub(crate) fn may_work(&self, since: Instant) -> bool {
        let is = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        !is(&self.over) && (is(&self.begun) || since.elapsed() < LONGEST_TURN)
    }
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
            let seen = received.seen.clone();
            let receipt = store.write(&draft, info, Box::new(received)).await;
            // The chunks may be kept by a thread that hangs.
            seen.over.store(true, Ordering::Release);
            receipt.map_err(RunError::Store)
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
        let seen = Arc::<Seen>::default();
        let mut writing = JoinSet::new();
        writing.spawn(take(Received { receiver, seen: seen.clone() }));
        Ok(Self { sink, writing, seen, is_store: false, disk: disk.to_owned() })
    }

    /// How far a store has come; of a file nobody tells.
    pub(crate) fn seen(&self) -> Option<Arc<Seen>> {
        self.is_store.then(|| self.seen.clone())
    }

    /// Waits for the receipt of a store that was given everything, or for what it has to say if it was not.
    pub(crate) async fn finish(self) -> Result<Vec<u8>, RunError> {
        let Self { sink, mut writing, seen, disk, .. } = self;
        drop(sink);
        let receipt = joined(&mut writing).await?;
        match seen.took_all.load(Ordering::Acquire) {
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
    seen: Arc<Seen>,
}

#[async_trait]
impl Chunks for Received {
    async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff> {
        self.seen.begun.store(true, Ordering::Release);
        let chunk = self.receiver.next().await.map_err(|error| BrokenOff(error.0))?;
        if chunk.is_none() {
            self.seen.took_all.store(true, Ordering::Release);
        }
        Ok(chunk.map(|chunk| Chunk { offset: chunk.offset, bytes: chunk.bytes }))
    }
}
