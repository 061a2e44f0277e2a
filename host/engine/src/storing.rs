//! A disk on its way into a store: the sink that the transfer writes to, and the call of the store that takes it from there.

use crate::error::{RunError, chain};
use crate::source::Shape;
use crate::transfer::joined;
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::task::JoinSet;
use vmferry_disk::chunks::{self, ChunkReceiver, ChunkSink, Cut, Gaps};
use vmferry_model::plugin::PluginError;
use vmferry_model::target::{BrokenOff, Chunk, Chunks, DeltaInfo, Draft, PointStore};

/// Chunks that are filled while the store is at work with one: enough that neither waits for the other's every step.
const AHEAD: usize = 4;

/// A disk that is being stored.
pub(crate) struct Storing {
    pub(crate) sink: ChunkSink,
    /// The store's call; it ends where this is dropped.
    writing: JoinSet<Result<Vec<u8>, PluginError>>,
    /// Whether the store has seen the end of the stream.
    took_all: Arc<AtomicBool>,
    disk: String,
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
        let failed = |error| RunError::Transfer { disk: info.disk.clone(), message: chain(&error) };
        let (sink, receiver) = chunks::handover(shape.layout(), cut, AHEAD).map_err(failed)?;
        let (store, draft, info) = (store.clone(), draft.clone(), info.clone());
        let (took_all, disk) = (Arc::new(AtomicBool::new(false)), info.disk.clone());
        let received = Received { receiver, took_all: took_all.clone() };
        let mut writing = JoinSet::new();
        writing.spawn(async move { store.write(&draft, info, Box::new(received)).await });
        Ok(Self { sink, writing, took_all, disk })
    }

    /// Waits for the receipt of a store that was given everything, or for what it has to say if it was not.
    pub(crate) async fn finish(self) -> Result<Vec<u8>, RunError> {
        let Self { sink, mut writing, took_all, disk } = self;
        drop(sink);
        let receipt = joined(&mut writing).await.map_err(RunError::Store)?;
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
