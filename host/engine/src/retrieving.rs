//! A disk on its way out of a store: the call of the store that puts it together, and the stream that the transfer reads.

use crate::error::{RunError, chain};
use crate::plan::replica_size;
use crate::source::Shape;
use crate::transfer::{SourceFailed, joined};
use async_trait::async_trait;
use bytes::Bytes;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::task::JoinSet;
use uuid::Uuid;
use vmferry_disk::chunked::{Coverage, Plan};
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::restored::{Restored as Stream, RestoredSink};
use vmferry_disk::vhd::{BLOCK_SIZE, Head, NewDisk, Writer};
use vmferry_model::plugin::PluginError;
use vmferry_model::target::{BrokenOff, PointStore, Restored, StoredDisk, StoredExtent};

/// Bytes that the store may be ahead of the reader.
const AHEAD: usize = 8 << 20;

/// A disk of a store's point.
#[derive(Clone)]
pub(crate) struct StoredSource {
    pub(crate) store: Arc<dyn PointStore>,
    pub(crate) point: String,
    pub(crate) disk: StoredDisk,
}

/// A disk that is being read from a store.
pub(crate) struct Retrieving {
    stream: Stream,
    /// The store's call; it ends where this is dropped.
    reading: JoinSet<Result<(), PluginError>>,
}

impl StoredSource {
    /// The ranges that may hold something else than zeroes.
    pub(crate) async fn layout(&self) -> Result<Extents, RunError> {
        let layout = self.store.layout(&self.point, &self.disk.disk, None).await.map_err(RunError::Store)?;
        let extents = layout.iter().map(|extent| Extent { offset: extent.offset, length: extent.length });
        Ok(extents.collect::<Extents>().clipped(self.size()))
    }

    /// Bytes of the disk as a pool has it.
    pub(crate) fn size(&self) -> u64 {
        replica_size(self.disk.size)
    }

    /// Reads these ranges, whole blocks of them where `vhd` says so, as the stream of a disk of which nothing else is known.
    pub(crate) async fn open(&self, extents: &Extents, vhd: bool) -> Result<(Retrieving, Shape), SourceFailed> {
        let size = self.size();
        let held = self.layout().await?;
        let (stream, sink, wanted, shape) = if vhd {
            let blocks = extents.to_vhd_blocks(size);
            let used: Vec<u32> =
                blocks.split(BLOCK_SIZE).map(|block| (block.offset / u64::from(BLOCK_SIZE)) as u32).collect();
            let disk = NewDisk { virtual_size: size, unique_id: Uuid::new_v4(), creator: *b"tap\0", parent: None };
            let writer = Writer::new(&disk, &used)?;
            let (mut stream, sink) = Stream::vhd(&writer, AHEAD);
            let head = Head::read(&mut stream).await?;
            (stream, sink, blocks, Shape::Vhd(Box::new(head)))
        } else {
            let leaves = extents.to_leaves(size);
            let plan = Plan::new(size, leaves.clone(), Coverage::Whole)?;
            let (stream, sink) = Stream::chunked(&plan, AHEAD);
            (stream, sink, leaves, Shape::Chunked(plan))
        };
        // What the store does not hold is zero, and need not be asked for.
        let wanted = intersection(&wanted, &held);
        let wanted: Vec<StoredExtent> =
            wanted.iter().map(|extent| StoredExtent { offset: extent.offset, length: extent.length }).collect();
        let source = self.clone();
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            let sink = Arc::new(tokio::sync::Mutex::new(Some(sink)));
            let put = Box::new(Putting { sink: sink.clone() });
            let read = source.store.read(&source.point, &source.disk.disk, &wanted, put).await;
            let sink = sink.lock().await.take();
            match (&read, sink) {
                (Ok(()), Some(sink)) => sink.finish(),
                (Err(error), Some(sink)) => sink.abort(chain(error)),
                (_, None) => {}
            }
            read
        });
        Ok((Retrieving { stream, reading }, shape))
    }
}

/// What lies in both.
fn intersection(one: &Extents, other: &Extents) -> Extents {
    one.without(&one.without(other))
}

/// What a store puts goes into the stream.
struct Putting {
    sink: Arc<tokio::sync::Mutex<Option<RestoredSink>>>,
}

#[async_trait]
impl Restored for Putting {
    async fn put(&mut self, offset: u64, bytes: Bytes) -> Result<(), BrokenOff> {
        match self.sink.lock().await.as_mut() {
            Some(sink) => sink.put(offset, bytes).await.map_err(|error| BrokenOff(chain(&error))),
            None => Err(BrokenOff("the read has ended".to_owned())),
        }
    }
}

impl Retrieving {
    /// Confirms what was read to its end.
    pub(crate) async fn finish(self) -> Result<(), SourceFailed> {
        let Self { stream, mut reading } = self;
        let read = joined(&mut reading).await;
        drop(stream);
        Ok(read?)
    }

    /// Ends what is not wanted any more.
    pub(crate) async fn abort(self) {
        let Self { stream, mut reading } = self;
        stream.abort("the transfer ended before the whole disk was read");
        let _ = joined(&mut reading).await;
    }

    /// Why it broke off, in the store's own words where it has some.
    pub(crate) async fn explain(self, message: String) -> SourceFailed {
        let Self { stream, mut reading } = self;
        stream.abort(message.clone());
        match joined(&mut reading).await {
            Err(cause) if !message.contains(&cause.to_string()) => SourceFailed(format!("{message}: {cause}")),
            _ => SourceFailed(message),
        }
    }
}

impl AsyncRead for Retrieving {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}
