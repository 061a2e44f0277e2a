//! Recovery points that are kept somewhere else than on a pool: what the host asks of the plugin that keeps them, and how
//! disk data gets there and back.

use crate::plugin::PluginError;
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Keeps recovery points: a plugin of the `target` world, or native code.
///
/// A point comes into being by one [`write`](Self::write) per disk and a [`commit`](Self::commit). Until that has returned there
/// is none, and [`abort`](Self::abort) may come instead at any time. Nothing is kept in memory between calls.
#[async_trait]
pub trait PointStore: Send + Sync {
    /// How it wants its data. Asked once, when the store was set up.
    fn shape(&self) -> Shape;

    /// Committed points of one VM, of whichever job, oldest first; of all VMs when none is named.
    async fn points(&self, vm: Option<&str>) -> Result<Vec<StoredPoint>, PluginError>;

    /// What the draft of a point said of its VM.
    async fn metadata(&self, point: &str) -> Result<VmMetadata, PluginError>;

    /// The ranges of a disk that may hold something else than zeroes; with `since`, another point, those that may differ
    /// from it. Ascending and apart from each other.
    async fn layout(&self, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<StoredExtent>, PluginError>;

    /// Stores one disk's data, and answers the receipt that `commit` has to be given. It may take as long as it gets on, which
    /// nobody else knows: what does not any more has to end by itself.
    async fn write(&self, draft: &Draft, delta: DeltaInfo, chunks: Box<dyn Chunks>) -> Result<Vec<u8>, PluginError>;

    /// Makes the draft a point, which then survives a power failure. The same arguments again give the same point.
    async fn commit(&self, draft: &Draft, receipts: &[DiskReceipt]) -> Result<StoredPoint, PluginError>;

    /// Forgets a draft and what was stored for it alone.
    async fn abort(&self, draft: &Draft) -> Result<(), PluginError>;

    /// Reads ranges of a disk, ascending and apart from each other, into `restored`.
    async fn read(
        &self,
        point: &str,
        disk: &str,
        extents: &[StoredExtent],
        restored: Box<dyn Restored>,
    ) -> Result<(), PluginError>;

    /// Checks that everything stored for a point is there and unchanged: reads it all, and remembers what it found.
    async fn verify(&self, point: &str) -> Result<Vec<Damage>, PluginError>;

    /// Keeps an operator's word that a point must stay, or need not any more.
    async fn hold(&self, point: &str, held: bool) -> Result<(), PluginError>;

    /// Removes a point, held or not. Points based on it stay whole.
    async fn delete(&self, point: &str) -> Result<(), PluginError>;

    /// Finds what belongs to no point nor to one of these drafts, and with `apply` removes it.
    async fn collect(&self, drafts: &[String], apply: bool) -> Result<Vec<StoredGarbage>, PluginError>;
}

/// How a store wants its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Size of a chunk in bytes: a power of two from 64 KiB to 2 MiB.
    pub chunk_size: u32,
    /// Whether a delta can add to the newest point alone.
    pub only_newest: bool,
}

/// The data of one disk on its way to a store.
#[async_trait]
pub trait Chunks: Send {
    /// The next chunk in ascending order, none at the end. The source waits until it is asked.
    async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff>;
}

/// One piece of a disk, as large as the store's chunks, or less at the end of the disk.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Where it lies on the disk in bytes: a multiple of the chunk size.
    pub offset: u64,
    /// What is there.
    pub bytes: Bytes,
}

/// The source of a disk's data failed, and what came is not a whole. The reason is told by the source's side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the source broke off: {0}")]
pub struct BrokenOff(pub String);

/// Takes the data of one disk that comes back from a store.
#[async_trait]
pub trait Restored: Send {
    /// The next piece. Those of one read ascend; nobody waits for what is not put: it is zero, or as it was in `since`.
    async fn put(&mut self, offset: u64, bytes: Bytes) -> Result<(), BrokenOff>;
}

/// A recovery point in the making.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// Its identity, never used twice: uuid of the source's snapshot.
    pub id: String,
    /// Identity of the job whose point it will be.
    pub job: String,
    /// uuid of the source VM.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// The moment of the source that it shows.
    pub taken_at: Timestamp,
    /// The point that its deltas add to; `None` for full copies only.
    pub base: Option<String>,
    /// What it takes to build the VM again.
    pub metadata: VmMetadata,
}

/// What the data of a disk is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaInfo {
    /// uuid of the source disk.
    pub disk: String,
    /// Content key: uuid of the source's snapshot disk.
    pub content: String,
    /// Size of the disk in bytes.
    pub size: u64,
    /// The point that the data adds to: what has no chunk is as it was there. `None` for a full copy: it is zero.
    pub base: Option<String>,
    /// Bytes that will probably come.
    pub expected_bytes: u64,
}

/// What `commit` has to know of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskReceipt {
    /// uuid of the source disk.
    pub disk: String,
    /// What `write` answered.
    pub receipt: Vec<u8>,
    /// Root of the disk's block digests in hex, when it is known.
    pub digest: Option<String>,
}

/// A committed recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPoint {
    /// Its identity: the `id` of its draft.
    pub id: String,
    /// Identity of the job whose it is.
    pub job: String,
    /// uuid of the source VM.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// The moment of the source that it shows.
    pub taken_at: Timestamp,
    /// Its disks.
    pub disks: Vec<StoredDisk>,
    /// Whether an operator holds it.
    pub held: bool,
    /// What the last `verify` found wrong with it.
    pub damaged: Option<String>,
}

/// One disk of a recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDisk {
    /// uuid of the source disk.
    pub disk: String,
    /// Content key: uuid of the source's snapshot disk.
    pub content: String,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that were stored for it and for no point before it.
    pub stored: u64,
    /// Root of its block digests in hex, when it is known.
    pub digest: Option<String>,
}

/// A range of a disk in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredExtent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Something found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// uuid of the source disk; `None` when the point itself is damaged.
    pub disk: Option<String>,
    /// Where, if it can be told.
    pub extent: Option<StoredExtent>,
    /// What is wrong: one sentence for an operator.
    pub message: String,
}

/// Something that takes up room and belongs to no point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredGarbage {
    /// What it is, by the name under which an operator would find it.
    pub what: String,
    /// Why nobody needs it.
    pub why: String,
    /// Bytes that it occupies.
    pub bytes: u64,
}

/// What it takes to build a VM again. It travels with the point as JSON; all but [`xapi`](Self::xapi) is documented in `wit/README.md`
/// for plugins that describe VMs to others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmMetadata {
    /// 1. A reader refuses what it does not know.
    pub format: u32,
    /// The VM itself.
    pub vm: MachineMetadata,
    /// Its disks, by position.
    pub disks: Vec<DiskMetadata>,
    /// Its network interfaces, by position.
    pub interfaces: Vec<InterfaceMetadata>,
    /// The rest, as XAPI knows it.
    #[serde(default)]
    pub xapi: serde_json::Value,
}

/// A VM as any hypervisor could have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineMetadata {
    /// Its name.
    pub name: String,
    /// What its owner wrote about it.
    pub description: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// How it boots.
    pub firmware: Firmware,
    /// Whether its firmware checks signatures.
    pub secure_boot: bool,
}

/// How a VM boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// PC BIOS, or a kernel loaded by the hypervisor.
    Bios,
    /// UEFI.
    Uefi,
}

/// A disk as any hypervisor could have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMetadata {
    /// uuid of the source disk.
    pub disk: String,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its number on the VM's bus.
    pub position: u32,
    /// Whether the VM boots from it.
    pub bootable: bool,
    /// Whether the VM may only read it.
    pub read_only: bool,
}

/// A network interface as any hypervisor could have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceMetadata {
    /// Its number on the VM's bus.
    pub position: u32,
    /// Its MAC address.
    pub mac: String,
    /// Name of the network that it is on.
    pub network: String,
}
