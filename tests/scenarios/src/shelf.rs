//! A store in memory: the simplest thing that keeps recovery points, native, with failures on demand.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;
use vmferry_engine::StoreTarget;
use vmferry_model::plugin::{PluginError, PluginFailure, PluginId};
use vmferry_model::target::{
    Chunks, Damage, DeltaInfo, DiskReceipt, Draft, PointStore, Restored, Shape, StoredDisk, StoredExtent,
    StoredGarbage, StoredPoint, VmMetadata,
};

/// Recovery points in memory.
#[derive(Clone)]
pub struct Shelf {
    shape: Shape,
    inner: Arc<Mutex<Inner>>,
    stalled: Arc<Notify>,
    resumed: Arc<Notify>,
}

/// The chunks of a disk that are not zero, by offset.
type Content = BTreeMap<u64, Bytes>;

#[derive(Default)]
struct Inner {
    points: Vec<(StoredPoint, VmMetadata)>,
    /// By point, or draft, and disk.
    disks: BTreeMap<(String, String), Content>,
    calls: Vec<&'static str>,
    /// The call that something happens to next.
    next: Option<(&'static str, Fate)>,
}

/// What happens to a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It fails.
    Fails,
    /// It is done and says that it failed.
    LosesAnswer,
    /// It waits, and nothing is done before it is resumed.
    StallsBefore,
    /// It is done and waits.
    StallsAfter,
    /// It fails, and keeps what it was given.
    FailsAndKeeps,
}

impl Shelf {
    /// An empty one that takes chunks of so many bytes.
    pub fn new(chunk_size: u32) -> Self {
        Self {
            shape: Shape { chunk_size, only_newest: false },
            inner: Arc::default(),
            stalled: Arc::default(),
            resumed: Arc::default(),
        }
    }

    /// The same, to whose newest point alone a delta can add.
    pub fn only_newest(mut self) -> Self {
        self.shape.only_newest = true;
        self
    }

    /// As the target `name` of the job `erp`.
    pub fn target(&self, name: &str) -> StoreTarget {
        StoreTarget {
            name: name.to_owned(),
            store: Arc::new(self.clone()),
            place: StoreTarget::place("default", "erp", name),
            required: true,
            throttles: Vec::new(),
        }
    }

    /// Has the next call of this name fail.
    pub fn fail(&self, call: &'static str) {
        self.lock().next = Some((call, Fate::Fails));
    }

    /// Has the next call of this name do its work and say that it failed.
    pub fn lose_answer(&self, call: &'static str) {
        self.lock().next = Some((call, Fate::LosesAnswer));
    }

    /// Has the next call of this name not end before it is resumed; its work is done before, if `after` says so.
    pub fn stall(&self, call: &'static str, after: bool) {
        self.lock().next = Some((call, if after { Fate::StallsAfter } else { Fate::StallsBefore }));
    }

    /// Waits until that call has come so far.
    pub async fn wait_until_stalled(&self) {
        self.stalled.notified().await;
    }

    /// Has the next `write` fail without letting go of the chunks, as a thread does that hangs.
    pub fn hang(&self) {
        self.lock().next = Some(("write", Fate::FailsAndKeeps));
    }

    /// Lets that call go on.
    pub fn resume(&self) {
        self.resumed.notify_one();
    }

    /// Has nothing happen to any call any more.
    pub fn calm(&self) {
        self.lock().next = None;
    }

    /// The points as they are told.
    pub fn stored(&self) -> Vec<StoredPoint> {
        self.lock().points.iter().map(|(point, _)| point.clone()).collect()
    }

    /// The points, oldest first.
    pub fn ids(&self) -> Vec<String> {
        self.lock().points.iter().map(|(point, _)| point.id.clone()).collect()
    }

    /// The bytes of a disk of a point.
    pub fn read_disk(&self, point: &str, disk: &str) -> Vec<u8> {
        let inner = self.lock();
        let (point, _) = inner.points.iter().find(|(found, _)| found.id == point).expect("the point");
        let size = point.disks.iter().find(|found| found.disk == disk).expect("the disk").size;
        let mut bytes = vec![0; usize::try_from(size).expect("a small disk")];
        for (offset, chunk) in &inner.disks[&(point.id.clone(), disk.to_owned())] {
            let at = usize::try_from(*offset).expect("a small disk");
            bytes[at..at + chunk.len()].copy_from_slice(chunk);
        }
        bytes
    }

    /// How many disks are kept, those of drafts among them.
    pub fn kept_disks(&self) -> usize {
        self.lock().disks.len()
    }

    /// How often a call was made.
    pub fn calls(&self, call: &str) -> usize {
        self.lock().calls.iter().filter(|made| **made == call).count()
    }

    /// Marks a point as its `verify` does when it finds something wrong.
    pub fn damage(&self, point: &str) {
        self.edit(point, |point| point.damaged = Some("a chunk is gone".to_owned()));
    }

    /// Turns over a byte of the chunk that holds this byte of a disk.
    pub fn corrupt(&self, point: &str, disk: &str, offset: u64) {
        let mut inner = self.lock();
        let content = inner.disks.get_mut(&(point.to_owned(), disk.to_owned())).expect("the disk");
        let (_, chunk) = content.range_mut(..=offset).next_back().expect("a chunk");
        let mut bytes = chunk.to_vec();
        bytes[0] ^= 0xff;
        *chunk = bytes.into();
    }

    /// Loses a point and keeps its disks.
    pub fn forget_point(&self, point: &str) {
        self.lock().points.retain(|(known, _)| known.id != point);
    }

    /// Loses everything.
    pub fn clear(&self) {
        *self.lock() = Inner::default();
    }

    fn edit(&self, id: &str, edit: impl FnOnce(&mut StoredPoint)) {
        let mut inner = self.lock();
        if let Some((point, _)) = inner.points.iter_mut().find(|(point, _)| point.id == id) {
            edit(point);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panicked")
    }

    /// Notes a call, and has it fail or stall if that was asked for. What happens to it after its work is told.
    async fn called(&self, call: &'static str) -> Result<Option<(&'static str, Fate)>, PluginError> {
        let next = {
            let mut inner = self.lock();
            inner.calls.push(call);
            inner.next.take_if(|(next, _)| *next == call)
        };
        match next {
            Some((call, Fate::Fails)) => Err(gave_way(call)),
            Some((_, Fate::StallsBefore)) => {
                self.wait().await;
                Ok(None)
            }
            next => Ok(next),
        }
    }

    /// The answer, unless something else was asked for.
    async fn answer<T>(&self, answer: T, next: Option<(&'static str, Fate)>) -> Result<T, PluginError> {
        match next {
            Some((call, Fate::LosesAnswer)) => return Err(gave_way(call)),
            Some((_, Fate::StallsAfter)) => self.wait().await,
            _ => {}
        }
        Ok(answer)
    }

    async fn wait(&self) {
        self.stalled.notify_one();
        self.resumed.notified().await;
    }
}

fn gave_way(call: &str) -> PluginError {
    failure(call, "the shelf gave way")
}

fn failure(call: &str, message: &str) -> PluginError {
    PluginError {
        plugin: PluginId { name: "shelf".to_owned(), version: "1.0.0".to_owned() },
        call: call.to_owned(),
        failure: PluginFailure::Refused { code: "unavailable".to_owned(), message: message.to_owned() },
    }
}

#[async_trait]
impl PointStore for Shelf {
    fn shape(&self) -> Shape {
        self.shape
    }

    async fn points(&self, vm: Option<&str>) -> Result<Vec<StoredPoint>, PluginError> {
        let lost = self.called("points").await?;
        let points: Vec<StoredPoint> = self.lock().points.iter().map(|(point, _)| point.clone()).collect();
        let points = points.into_iter().filter(|point| vm.is_none_or(|vm| point.vm == vm)).collect();
        self.answer(points, lost).await
    }

    async fn metadata(&self, point: &str) -> Result<VmMetadata, PluginError> {
        let inner = self.lock();
        let found = inner.points.iter().find(|(found, _)| found.id == point);
        found.map(|(_, metadata)| metadata.clone()).ok_or_else(|| failure("metadata", "there is no such point"))
    }

    async fn layout(&self, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<StoredExtent>, PluginError> {
        let inner = self.lock();
        let of = |point: &str| inner.disks.get(&(point.to_owned(), disk.to_owned()));
        let content = of(point).ok_or_else(|| failure("layout", "there is no such disk"))?;
        let older = since.and_then(of);
        let mut offsets: Vec<u64> = match older {
            None => content.keys().copied().collect(),
            Some(older) => {
                let all = content.keys().chain(older.keys());
                all.filter(|offset| content.get(offset) != older.get(offset)).copied().collect()
            }
        };
        offsets.sort_unstable();
        offsets.dedup();
        let size = u64::from(self.shape.chunk_size);
        let mut extents: Vec<StoredExtent> = Vec::new();
        for offset in offsets {
            match extents.last_mut() {
                Some(last) if last.offset + last.length == offset => last.length += size,
                _ => extents.push(StoredExtent { offset, length: size }),
            }
        }
        Ok(extents)
    }

    async fn write(
        &self,
        draft: &Draft,
        delta: DeltaInfo,
        mut chunks: Box<dyn Chunks>,
    ) -> Result<Vec<u8>, PluginError> {
        let lost = self.called("write").await?;
        if let Some((call, Fate::FailsAndKeeps)) = lost {
            std::mem::forget(chunks);
            return Err(gave_way(call));
        }
        let key = |point: &str| (point.to_owned(), delta.disk.clone());
        let mut content = match &delta.base {
            Some(base) => self.lock().disks.get(&key(base)).cloned().ok_or_else(|| failure("write", "no base"))?,
            None => Content::new(),
        };
        while let Some(chunk) = chunks.next().await.map_err(|error| failure("write", &error.to_string()))? {
            assert!(chunk.offset.is_multiple_of(self.shape.chunk_size.into()), "chunks lie on multiples of their size");
            let whole = chunk.bytes.len() == self.shape.chunk_size as usize;
            assert!(whole || chunk.offset + chunk.bytes.len() as u64 == delta.size, "only the last chunk is shorter");
            match chunk.bytes.iter().all(|byte| *byte == 0) {
                true => content.remove(&chunk.offset),
                // A copy: the host uses the memory again.
                false => content.insert(chunk.offset, Bytes::copy_from_slice(&chunk.bytes)),
            };
        }
        let receipt = serde_json::json!({ "content": delta.content, "size": delta.size, "chunks": content.len() });
        self.lock().disks.insert(key(&draft.id), content);
        self.answer(receipt.to_string().into_bytes(), lost).await
    }

    async fn commit(&self, draft: &Draft, receipts: &[DiskReceipt]) -> Result<StoredPoint, PluginError> {
        let lost = self.called("commit").await?;
        let disks = receipts.iter().map(|receipt| {
            let said: serde_json::Value = serde_json::from_slice(&receipt.receipt).expect("our own receipt");
            StoredDisk {
                disk: receipt.disk.clone(),
                content: said["content"].as_str().expect("our own receipt").to_owned(),
                size: said["size"].as_u64().expect("our own receipt"),
                stored: said["chunks"].as_u64().expect("our own receipt") * u64::from(self.shape.chunk_size),
                digest: receipt.digest.clone(),
            }
        });
        let point = StoredPoint {
            id: draft.id.clone(),
            job: draft.job.clone(),
            vm: draft.vm.clone(),
            name: draft.name.clone(),
            taken_at: draft.taken_at,
            disks: disks.collect(),
            held: false,
            damaged: None,
        };
        {
            let mut inner = self.lock();
            inner.points.retain(|(known, _)| known.id != point.id);
            inner.points.push((point.clone(), draft.metadata.clone()));
        }
        self.answer(point, lost).await
    }

    async fn abort(&self, draft: &Draft) -> Result<(), PluginError> {
        let lost = self.called("abort").await?;
        self.lock().disks.retain(|(point, _), _| *point != draft.id);
        self.answer((), lost).await
    }

    async fn read(
        &self,
        point: &str,
        disk: &str,
        extents: &[StoredExtent],
        mut restored: Box<dyn Restored>,
    ) -> Result<(), PluginError> {
        let lost = self.called("read").await?;
        let content = self.lock().disks.get(&(point.to_owned(), disk.to_owned())).cloned();
        let content = content.ok_or_else(|| failure("read", "there is no such disk"))?;
        for extent in extents {
            let inside = content.range(..extent.offset + extent.length);
            for (offset, chunk) in inside.filter(|(offset, chunk)| **offset + chunk.len() as u64 > extent.offset) {
                let from = extent.offset.max(*offset);
                let to = (extent.offset + extent.length).min(offset + chunk.len() as u64);
                let slice = chunk.slice((from - offset) as usize..(to - offset) as usize);
                restored.put(from, slice).await.map_err(|error| failure("read", &error.to_string()))?;
            }
        }
        self.answer((), lost).await
    }

    async fn verify(&self, point: &str) -> Result<Vec<Damage>, PluginError> {
        let lost = self.called("verify").await?;
        let damaged = {
            let inner = self.lock();
            let found = inner.points.iter().find(|(found, _)| found.id == point);
            found.and_then(|(point, _)| point.damaged.clone())
        };
        let damage = |message| Damage { disk: None, extent: None, message };
        self.answer(damaged.map(damage).into_iter().collect(), lost).await
    }

    async fn hold(&self, point: &str, held: bool) -> Result<(), PluginError> {
        self.edit(point, |point| point.held = held);
        Ok(())
    }

    async fn delete(&self, point: &str) -> Result<(), PluginError> {
        let lost = self.called("delete").await?;
        {
            let mut inner = self.lock();
            inner.points.retain(|(known, _)| known.id != point);
            inner.disks.retain(|(known, _), _| known != point);
        }
        self.answer((), lost).await
    }

    async fn collect(&self, drafts: &[String], apply: bool) -> Result<Vec<StoredGarbage>, PluginError> {
        let lost = self.called("collect").await?;
        let garbage: Vec<StoredGarbage> = {
            let mut inner = self.lock();
            let known: Vec<String> = inner.points.iter().map(|(point, _)| point.id.clone()).collect();
            let is_garbage = |point: &String| !known.contains(point) && !drafts.contains(point);
            let garbage = inner.disks.iter().filter(|((point, _), _)| is_garbage(point));
            let garbage = garbage.map(|((point, disk), content)| StoredGarbage {
                what: format!("{point}/{disk}"),
                why: "it belongs to no point".to_owned(),
                bytes: content.values().map(|chunk| chunk.len() as u64).sum(),
            });
            let garbage = garbage.collect();
            if apply {
                inner.disks.retain(|(point, _), _| !is_garbage(point));
            }
            garbage
        };
        self.answer(garbage, lost).await
    }
}
