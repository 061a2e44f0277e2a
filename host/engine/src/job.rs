//! What to replicate where, and by whose rules.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;
use vmferry_disk::nbd::Pace;
use vmferry_disk::transfer::Throttle;
use vmferry_model::plugin::{Notifier, Retention, Scheduler};
use vmferry_model::target::PointStore;
use vmferry_xapi::records::Vm;

/// Xen Orchestra's tag for a VM that is to be off for its snapshot, whatever its job says.
const OFFLINE_TAG: &str = "xo-offline-backup";

/// Xen Orchestra's tag for a VM whose memory is to be kept as well.
const MEMORY_TAG: &str = "xo-memory-backup";

/// A configured intent: these VMs, to those targets.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name, unique within the tenant.
    pub name: String,
    /// Whose job it is.
    pub tenant: String,
    /// Which VMs.
    pub select: Selection,
    /// The pools that it is replicated to.
    pub targets: Vec<Target>,
    /// The stores that keep recovery points of it. There is at least one target of either kind.
    pub stores: Vec<StoreTarget>,
    /// The identities under which Xen Orchestra's keys name this job.
    pub ids: JobIds,
    /// How far the bytes are proven.
    pub integrity: Integrity,
    /// How the source's disks are read.
    pub reading: Reading,
    /// What a VM's snapshot holds.
    pub snapshot: SnapshotMode,
    /// Limits on what all of the job's transfers together read from the source pool, sent or not.
    pub throttles: Vec<Arc<Throttle>>,
    /// Limits and patience.
    pub tuning: Tuning,
}

/// Which VMs of a pool a job replicates: those named, and those that carry one of the tags.
///
/// Replicas are never picked by tag (they inherit their source's tags); a replica named by uuid is replicated on,
/// unless it is this job's own.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Name of the source pool.
    pub pool: String,
    /// VMs by uuid.
    pub vms: Vec<String>,
    /// VMs by tag; one of these is enough.
    pub tags: Vec<String>,
    /// Only VMs in one of these power states (`Running`, `Halted`, `Suspended`, `Paused`); empty for any.
    pub power_states: Vec<String>,
    /// Never these VMs, by uuid.
    pub exclude_vms: Vec<String>,
    /// Never VMs that carry one of these tags.
    pub exclude_tags: Vec<String>,
}

/// One place that holds replicas.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name within the job.
    pub name: String,
    /// Name of the pool.
    pub pool: String,
    /// uuids of the storage repositories, at least one. A replica is whole on one of them: a new one where the most space is left.
    pub srs: Vec<String>,
    /// Source network (uuid or name) to target network (uuid or name, or `none` for no interface).
    /// A network that is not listed maps to the one with the same uuid, else to the only one with the same name;
    /// anything else is an error, not a guess.
    pub networks: BTreeMap<String, String>,
    /// Whether the VM counts as replicated only if it is replicated here. The outcome of a best-effort target (`false`)
    /// is told, and does not count.
    pub required: bool,
    /// Limits of the link to it, which targets behind the same link share: on what is sent.
    pub throttles: Vec<Arc<Throttle>>,
}

/// One place that keeps recovery points and is no pool.
#[derive(Clone)]
pub struct StoreTarget {
    /// Name within the job, which no pool has either.
    pub name: String,
    /// What keeps them.
    pub store: Arc<dyn PointStore>,
    /// By this the source's snapshots say that it holds a point of them, as they name a pool's SRs: see [`StoreTarget::place`].
    pub place: String,
    /// As of a [`Target`].
    pub required: bool,
    /// As of a [`Target`].
    pub throttles: Vec<Arc<Throttle>>,
}

impl StoreTarget {
    /// The identity of a job's target that is a store: UUIDv5 of tenant, job and name.
    pub fn place(tenant: &str, job: &str, name: &str) -> String {
        let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:vmferry:store");
        Uuid::new_v5(&namespace, format!("{tenant}\0{job}\0{name}").as_bytes()).to_string()
    }
}

impl std::fmt::Debug for StoreTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreTarget").field("name", &self.name).field("place", &self.place).finish_non_exhaustive()
    }
}

impl Job {
    /// For each target, what the source's snapshots call it: the uuids of a pool's SRs, the place of a store.
    pub(crate) fn places(&self) -> Vec<&[String]> {
        let pools = self.targets.iter().map(|target| target.srs.as_slice());
        pools.chain(self.stores.iter().map(|store| std::slice::from_ref(&store.place))).collect()
    }

    /// The names of its targets, in the order of their configuration within each kind.
    pub(crate) fn target_names(&self) -> impl Iterator<Item = &str> {
        let pools = self.targets.iter().map(|target| target.name.as_str());
        pools.chain(self.stores.iter().map(|store| store.name.as_str()))
    }
}

/// How the disks of a source are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When NBD is used.
    pub nbd: Nbd,
    /// Connections to one disk, 1 to 16: a host serves 16 in all.
    pub connections: usize,
    /// How far ahead each of them asks.
    pub pace: Pace,
    /// Whether changed-block tracking is switched on for disks that lack it.
    pub enable_cbt: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Self { nbd: Nbd::Auto, connections: 2, pace: Pace::default(), enable_cbt: false }
    }
}

/// What the snapshot of a VM holds. A VM may ask for more than its job by Xen Orchestra's tags: for `Offline` by
/// `xo-offline-backup`, for `Memory` by `xo-memory-backup`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Its disks at one moment, as after a power failure.
    #[default]
    Disks,
    /// Its disks after a clean shutdown: a VM that runs is shut down for its snapshot, and started again at once.
    Offline,
    /// Its disks and, where it runs, its memory at one moment: XAPI suspends it for that and resumes it.
    Memory,
}

impl SnapshotMode {
    /// What the snapshot of this VM is to hold.
    pub(crate) fn of(job: &Job, vm: &Vm) -> Self {
        let tagged = |tag: &str| vm.tags.iter().any(|found| found == tag);
        match job.snapshot {
            _ if tagged(OFFLINE_TAG) => Self::Offline,
            _ if tagged(MEMORY_TAG) => Self::Memory,
            asked => asked,
        }
    }
}

/// When disks are read by NBD. Disks beyond VHD's 2 TiB always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nbd {
    /// Where the pool knows what changed in 64 KiB, instead of 2 MiB.
    Auto,
    /// Wherever it can be.
    Always,
    /// Not at all.
    Never,
}

/// The uuids under which Xen Orchestra's keys name a job and its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobIds {
    /// Value of `xo:backup:job`.
    pub job: Uuid,
    /// Value of `xo:backup:schedule`.
    pub schedule: Uuid,
}

impl JobIds {
    /// Stable identities of a job that Xen Orchestra never had: UUIDv5 of tenant and job name.
    pub fn derived(tenant: &str, job: &str) -> Self {
        let namespace = Uuid::new_v5(&Uuid::NAMESPACE_URL, b"urn:vmferry:job");
        let of = |part: &str| Uuid::new_v5(&namespace, format!("{tenant}\0{job}\0{part}").as_bytes());
        Self { job: of("job"), schedule: of("schedule") }
    }
}

/// How far a transfer is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// Byte counts, stream structure, XAPI's tasks, and a digest of every 64 KiB kept with the recovery point.
    Digest,
    /// The same without digests.
    Structure,
}

/// Limits and patience of a run.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// VMs replicated at the same time.
    pub vms_in_parallel: usize,
    /// Disks of one VM moved at the same time.
    pub disks_in_parallel: usize,
    /// How long a lease holds without being renewed; a crashed holder on another machine blocks its VMs this long.
    pub lease_ttl: Duration,
    /// How long a lease taken over from somebody else must stand before it counts.
    pub lease_settle: Duration,
    /// How long one side of a transfer may make the other wait for a byte.
    pub stall: Duration,
    /// How long the source may take to its first byte: XAPI attaches the disk first.
    pub first_byte: Duration,
    /// How long chains may be before a run makes them longer.
    pub chains: ChainLimits,
}

/// How many links the chain under a disk may have, on either side, before a run adds one. The storage manager takes no
/// snapshot at 30.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainLimits {
    /// Beyond this a run is put off as long as the storage has something to coalesce in it.
    pub wait_above: usize,
    /// Beyond this it is refused.
    pub max: usize,
}

impl Default for ChainLimits {
    fn default() -> Self {
        Self { wait_above: 20, max: 27 }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            vms_in_parallel: 2,
            disks_in_parallel: 4,
            lease_ttl: Duration::from_secs(15 * 60),
            lease_settle: Duration::from_secs(2),
            stall: Duration::from_secs(120),
            first_byte: Duration::from_secs(600),
            chains: ChainLimits::default(),
        }
    }
}

/// The plugins that decide for a job. What is absent decides nothing: no scheduler approves everything,
/// no retention drops nothing, no notifier hears nothing.
#[derive(Clone, Default)]
pub struct Policies {
    /// Asked before a byte moves.
    pub scheduler: Option<Arc<dyn Scheduler>>,
    /// Asked which recovery points to keep.
    pub retention: Option<Arc<dyn Retention>>,
    /// Told what happened.
    pub notifiers: Vec<Subscription>,
}

/// A notifier and the events it asked for.
#[derive(Clone)]
pub struct Subscription {
    /// The plugin's name, for warnings.
    pub name: String,
    /// Kinds of events; empty for all.
    pub on: Vec<String>,
    /// Who hears them.
    pub notifier: Arc<dyn Notifier>,
}
