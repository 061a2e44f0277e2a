//! Makes a copy that somebody brought the replica of a VM, with a first recovery point, so that no full copy has to travel.
//!
//! The copy may come from `VM.copy`, from an XVA on a disk drive, or from another tool; it is believed in nothing. Both
//! sides are read whole, each over its own line, and compared in 64 KiB. A disk that differs becomes one that is known to be
//! damaged: the next run mends it with what differs alone.
//!
//! ```text
//! snapshot of the source ── read, hashed ──┐
//!                                          ├── compared ── keys on the copy's snapshot: the recovery point
//! snapshot of the copy ──── read, hashed ──┘                keys on the source's snapshot: the base
//! ```
//!
//! The copy's snapshot is a recovery point from its last key on, which is one write. A process that dies before leaves the
//! copy with its start blocked and a snapshot more; asking again removes that one first.

use crate::commit::{Committing, live_disk_keys, live_keys, point_keys};
use crate::digests::{Digests, table_size};
use crate::engine::Engine;
use crate::error::{EngineError, RunError};
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::{Integrity, Job, JobIds, Reading, Selection, SnapshotMode, Target, Tuning};
use crate::keys::{self, Keys, State};
use crate::lane::bytes;
use crate::lease::{Lease, LeaseTerms};
use crate::objects::replace_keys;
use crate::plan::replica_size;
use crate::points::Survivor;
use crate::progress::Progress;
use crate::readback::ReadBack;
use crate::replica::{self, StartBlock};
use crate::select::select;
use crate::snapshot::{self, Taken, TakenDisk};
use crate::transfer::blocking;
use crate::verify::{Difference, first_differences};
use crate::view::{Identity, SourceVm};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use vmferry_disk::digest::{DraftTable, Root, Table};
use vmferry_disk::extent::Extents;
use vmferry_xapi::records::{PowerState, Sr, Vm};
use vmferry_xapi::{Ref, Session, params};

/// Name of the copy's snapshot until it is a recovery point.
const UNFINISHED: &str = "vmferry-seed";

/// Which copy to adopt.
#[derive(Clone, Debug)]
pub struct SeedRequest {
    /// uuid of the snapshot VM of the source that the copy was made from, or comes near to.
    pub snapshot: String,
    /// uuid of the copy: a halted VM whose disks are on the target's storage repository.
    pub copy: String,
    /// The target that it is on; the job's only one when absent.
    pub target: Option<String>,
    /// Whether another program is to go on with it: a copy that differs is refused then, since only we know of a disk that it
    /// is damaged.
    pub for_others: bool,
}

/// A copy and its source by uuids alone, for the job that is to go on with them: nobody has configured one here.
#[derive(Clone, Debug)]
pub struct SeedPair {
    /// Name of the pool of the source.
    pub source: String,
    /// uuid of the snapshot VM of the source that the copy was made from.
    pub snapshot: String,
    /// Name of the pool of the copy.
    pub target: String,
    /// uuid of the copy: a halted VM.
    pub copy: String,
    /// The job that goes on with them.
    pub ids: JobIds,
    /// Whose job it is.
    pub tenant: String,
}

/// A copy that is a replica now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeedReport {
    /// uuid of the source VM.
    pub vm: String,
    /// The target's name in the job.
    pub target: String,
    /// uuid of the copy, which is the replica from now on.
    pub replica: String,
    /// uuid of its first recovery point.
    pub point: String,
    /// The moment of the source that the point shows; where disks differ, what the next run starts from.
    pub taken_at: Timestamp,
    /// Its disks, compared.
    pub disks: Vec<SeededDisk>,
}

/// A disk of the copy beside the source's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SeededDisk {
    /// uuid of the live source disk.
    pub disk: String,
    /// uuid of the copy's disk.
    pub copy: String,
    /// Bytes that differ, in whole 64 KiB; the next run sends them.
    pub different_bytes: u64,
    /// The first ranges that differ.
    pub differences: Vec<Difference>,
}

impl Engine {
    /// Makes a copy the replica of its source for a job of Xen Orchestra or one of ours, which is known by its uuids alone. The
    /// copy has to be equal.
    pub async fn adopt_pair(&self, pair: &SeedPair, progress: &dyn Progress) -> Result<SeedReport, EngineError> {
        let source = self.pools.session(&pair.source).await?;
        let vm = source_of(&Inventory::load(&source).await?, pair)?;
        let target = self.pools.session(&pair.target).await?;
        let sr = sr_of_copy(&Inventory::load(&target).await?, pair)?;
        let job = Job {
            name: pair.ids.job.to_string(),
            tenant: pair.tenant.clone(),
            select: Selection { pool: pair.source.clone(), vms: vec![vm], ..Selection::default() },
            stores: Vec::new(),
            targets: vec![Target {
                name: pair.target.clone(),
                pool: pair.target.clone(),
                srs: vec![sr],
                networks: BTreeMap::new(),
                required: true,
                throttles: Vec::new(),
            }],
            ids: pair.ids,
            integrity: Integrity::Digest,
            reading: Reading::default(),
            snapshot: SnapshotMode::default(),
            throttles: Vec::new(),
            tuning: Tuning::default(),
        };
        let (snapshot, copy) = (pair.snapshot.clone(), pair.copy.clone());
        let request = SeedRequest { snapshot, copy, target: None, for_others: true };
        self.adopt_seed(&job, &request, progress).await
    }

    /// Compares a copy with a snapshot of its source and makes it the replica of that VM on a target that has none. The next
    /// run is a delta and sends what differs. The source's snapshot is the job's from then on, which removes it when it
    /// has a newer one.
    pub async fn adopt_seed(
        &self,
        job: &Job,
        request: &SeedRequest,
        progress: &dyn Progress,
    ) -> Result<SeedReport, EngineError> {
        let target = find_target(job, request.target.as_deref())?;
        let session = self.pools.session(&job.select.pool).await?;
        let inventory = Inventory::load(&session).await?;
        let source = find_source(&inventory, job, &request.snapshot)?;
        let (snapshot, _) =
            inventory.vm_by_uuid(&request.snapshot).ok_or_else(|| no_snapshot(job, &request.snapshot))?;
        let taken = snapshot::read(&session, &source, snapshot).await?;
        let survivor = Survivor::reach(self, target).await?;
        let (copy, record) = find_copy(&survivor, job, &source, &request.copy)?;
        let copies = survivor.inventory.disks_of(record);
        let (sr, uuid) = sr_of(&survivor.inventory, target, &copies).map_err(EngineError::Usage)?;
        pair(&taken, &copies, &sr).map_err(EngineError::Usage)?;

        let terms = LeaseTerms::of(&job.tuning);
        let of_source = Lease::acquire(&session, &source.reference, &source.record.uuid, &self.holder, terms, false);
        let of_source = of_source.await?;
        let adopted = match Lease::acquire(&survivor.session, copy, &record.uuid, &self.holder, terms, false).await {
            Err(held) => Err(held),
            Ok(of_copy) => {
                let adoption = Adoption {
                    job,
                    target,
                    sr: (&sr, &uuid),
                    source: &source,
                    taken: &taken,
                    source_session: &session,
                    session: &survivor.session,
                    copy,
                    record,
                    for_others: request.for_others,
                    digests: Digests::open(&self.digest_dir, &job.tenant),
                    progress,
                };
                let adopted = adoption.adopt().await;
                of_copy.release().await.and(adopted)
            }
        };
        Ok(of_source.release().await.and(adopted)?)
    }
}

/// uuid of the VM that a snapshot was taken of.
fn source_of(inventory: &Inventory, pair: &SeedPair) -> Result<String, EngineError> {
    let uuid = &pair.snapshot;
    let remedy = "give the source's pool and snapshot first, then the target's pool and VM (`xe snapshot-list`)";
    let missing = || RunError::NotFound { class: "snapshot", name: uuid.clone(), pool: pair.source.clone(), remedy };
    let (_, record) = inventory.vm_by_uuid(uuid).ok_or_else(missing)?;
    if !record.is_a_snapshot {
        let name = &record.name_label;
        return Err(EngineError::Usage(format!(
            "VM {name} ({uuid}) is no snapshot; give the uuid of the snapshot of it that the copy was made from (`xe snapshot-list`)"
        )));
    }
    let of = inventory.vms.get(&record.snapshot_of).filter(|vm| !vm.is_a_template);
    let gone = || {
        EngineError::Usage(format!("the VM that snapshot {uuid} was taken of is gone; there is nothing to replicate"))
    };
    Ok(of.ok_or_else(gone)?.uuid.clone())
}

/// uuid of the SR that a copy is on: that of its first disk. Whether all of them are there is checked with everything else.
fn sr_of_copy(inventory: &Inventory, pair: &SeedPair) -> Result<String, EngineError> {
    let uuid = &pair.copy;
    let remedy = "give the source's pool and snapshot first, then the target's pool and VM (`xe vm-list`)";
    let missing = || RunError::NotFound { class: "VM", name: uuid.clone(), pool: pair.target.clone(), remedy };
    let (_, record) = inventory.vm_by_uuid(uuid).ok_or_else(missing)?;
    let disks = inventory.disks_of(record);
    let sr = disks.first().and_then(|disk| inventory.srs.get(&disk.record.sr));
    let diskless =
        || EngineError::Usage(format!("VM {} ({uuid}) has no disk; give the uuid of the copy", record.name_label));
    Ok(sr.ok_or_else(diskless)?.uuid.clone())
}

pub(crate) fn find_target<'j>(job: &'j Job, name: Option<&str>) -> Result<&'j Target, EngineError> {
    let names = || job.targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, job.targets.as_slice()) {
        (None, [only]) => Ok(only),
        (None, _) => Err(EngineError::Usage(format!("job {} has several targets ({}); name one", job.name, names()))),
        (Some(name), targets) => targets
            .iter()
            .find(|target| target.name == name)
            .ok_or_else(|| EngineError::Usage(format!("job {} has no target {name}; it has {}", job.name, names()))),
    }
}

fn no_snapshot(job: &Job, uuid: &str) -> EngineError {
    let remedy = "give the uuid of a snapshot VM of a VM that the job replicates (`xe snapshot-list`)";
    RunError::NotFound { class: "snapshot", name: uuid.to_owned(), pool: job.select.pool.clone(), remedy }.into()
}

/// The VM that the snapshot was taken of, if the job replicates it.
fn find_source(inventory: &Inventory, job: &Job, snapshot: &str) -> Result<SourceVm, EngineError> {
    let missing = || no_snapshot(job, snapshot);
    let (_, record) = inventory.vm_by_uuid(snapshot).filter(|(_, vm)| vm.is_a_snapshot).ok_or_else(missing)?;
    let of = inventory.vms.get(&record.snapshot_of).ok_or_else(missing)?;
    let (_, selected) = select(inventory, job, Some(&of.uuid)).pop().ok_or_else(missing)?;
    let (reference, vm) = selected?;
    Ok(SourceVm::new(inventory, reference, vm, &job.ids))
}

/// The copy, if it may become the first replica of that VM on its target.
fn find_copy<'s>(
    survivor: &'s Survivor<'_>,
    job: &Job,
    source: &SourceVm,
    uuid: &str,
) -> Result<(&'s Ref<Vm>, &'s Vm), EngineError> {
    let (target, pool) = (survivor.target, &survivor.target.pool);
    let usable = |vm: &Vm| !vm.is_a_snapshot && !vm.is_a_template && !vm.is_control_domain;
    let found = survivor.inventory.vm_by_uuid(uuid).filter(|(_, vm)| usable(vm));
    let remedy = "give the uuid of the VM that holds the copy, neither a snapshot nor a template";
    let missing = || RunError::NotFound { class: "VM", name: uuid.to_owned(), pool: pool.clone(), remedy };
    let (copy, record) = found.ok_or_else(missing)?;
    if record.uuid == source.record.uuid {
        return Err(EngineError::Usage(format!("VM {uuid} is the source itself; give the uuid of the copy")));
    }
    if let Some(replica) = survivor.view(job, &source.record.uuid).current() {
        return Err(EngineError::Usage(format!(
            "job {} has recovery points of VM {} on target {} already, on replica {}; a copy is adopted where there are none",
            job.name, source.record.uuid, target.name, replica.record.uuid
        )));
    }
    if record.other_config.contains_key(keys::JOB) && record.other_config.get(keys::SELF) == Some(&record.uuid) {
        return Err(EngineError::Usage(format!("VM {uuid} is a replica of a job already; adopt a clone of it")));
    }
    if record.power_state != PowerState::Halted {
        let state = format!("{:?}", record.power_state).to_lowercase();
        return Err(EngineError::Usage(format!(
            "VM {uuid} is {state}; a copy that is to be a replica has to be halted"
        )));
    }
    Ok((copy, record))
}

/// The copy's disk for each disk of the source, by device number; or why they do not fit together.
fn pair(taken: &Taken, copies: &[AttachedDisk], sr: &Ref<Sr>) -> Result<Vec<AttachedDisk>, String> {
    let device = |disk: &AttachedDisk| disk.vbd_record.userdevice.clone();
    let wanted: Vec<String> = taken.disks.iter().map(|disk| device(&disk.of)).collect();
    if let Some(extra) = copies.iter().find(|copy| !wanted.contains(&device(copy))) {
        let (uuid, device) = (&extra.record.uuid, device(extra));
        return Err(format!("the copy has a disk {uuid} at device {device}, and the source none; detach it first"));
    }
    let pairs = taken.disks.iter().zip(wanted).map(|(disk, wanted)| {
        let (uuid, size) = (&disk.of.record.uuid, disk.of.record.virtual_size);
        let Some(copy) = copies.iter().find(|copy| device(copy) == wanted) else {
            return Err(format!(
                "the copy has no disk at device {wanted}, where the source has {uuid}; attach its copy"
            ));
        };
        let (copied, found) = (&copy.record.uuid, copy.record.virtual_size);
        if found < size || found > replica_size(size) {
            return Err(format!("disk {copied} of the copy has {found} bytes, disk {uuid} of the source {size}"));
        }
        if copy.record.sr != *sr {
            return Err(format!("disk {copied} of the copy is not on the target's SR; copy it there (`xe vdi-copy`)"));
        }
        Ok(copy.clone())
    });
    pairs.collect()
}

/// Reference and uuid of the target's SR that the copy is on.
fn sr_of(inventory: &Inventory, target: &Target, copies: &[AttachedDisk]) -> Result<(Ref<Sr>, String), String> {
    let on = copies.first().and_then(|copy| Some((&copy.record.sr, inventory.srs.get(&copy.record.sr)?)));
    let found = on.filter(|(_, sr)| target.srs.contains(&sr.uuid));
    let found = found.or_else(|| inventory.sr_by_uuid(target.srs.first()?));
    let none = || format!("pool {} has no SR {}; correct target {}", target.pool, target.srs.join(", "), target.name);
    found.map(|(reference, sr)| (reference.clone(), sr.uuid.clone())).ok_or_else(none)
}

/// A copy that fits, both leases held.
struct Adoption<'a> {
    job: &'a Job,
    target: &'a Target,
    /// Reference and uuid of the SR that the copy is on.
    sr: (&'a Ref<Sr>, &'a str),
    source: &'a SourceVm,
    taken: &'a Taken,
    source_session: &'a Session,
    session: &'a Session,
    copy: &'a Ref<Vm>,
    record: &'a Vm,
    for_others: bool,
    digests: Digests,
    progress: &'a dyn Progress,
}

/// A disk of the copy's snapshot, compared with the source's.
struct Compared {
    held: AttachedDisk,
    different: Extents,
    /// Root of what it should be.
    wanted: Root,
    /// Root of what it is, where that is something else.
    found: Option<Root>,
}

impl Adoption<'_> {
    /// On failure the copy is as it was.
    async fn adopt(&self) -> Result<SeedReport, RunError> {
        self.remove_unfinished().await?;
        let blocked = self.record.blocked_operations.clone();
        let block = match self.for_others {
            true => StartBlock::Seeded { job: &self.job.name },
            false => StartBlock::Standby { job: &self.job.name },
        };
        replica::block_start(self.session, self.copy, block).await?;
        let point: Ref<Vm> = self.session.call_async("VM.snapshot", params![self.copy, UNFINISHED]).await?;
        match self.commit(&point).await {
            Ok(report) => Ok(report),
            Err(error) => {
                let undo = async {
                    snapshot::destroy(self.session, &point).await?;
                    let () = self.session.call("VM.set_blocked_operations", params![self.copy, blocked]).await?;
                    Ok::<(), RunError>(())
                };
                if let Err(left) = undo.await {
                    tracing::warn!(copy = self.record.uuid, error = %left, "the copy is left with its start blocked and a snapshot named {UNFINISHED}");
                }
                Err(error)
            }
        }
    }

    /// Snapshots of an adoption that did not get to its end.
    async fn remove_unfinished(&self) -> Result<(), RunError> {
        let inventory = Inventory::load(self.session).await?;
        let unfinished = |vm: &Vm| vm.is_a_snapshot && vm.snapshot_of == *self.copy && vm.name_label == UNFINISHED;
        for (snapshot, _) in inventory.vms.iter().filter(|(_, vm)| unfinished(vm)) {
            snapshot::destroy(self.session, snapshot).await?;
        }
        Ok(())
    }

    async fn commit(&self, point: &Ref<Vm>) -> Result<SeedReport, RunError> {
        let inventory = Inventory::load(self.session).await?;
        let record: Vm = self.session.get_record(point).await?;
        let held = pair(self.taken, &inventory.disks_of(&record), self.sr.0).map_err(|why| RunError::Inconsistent {
            what: "snapshot of the copy",
            object: record.uuid.clone(),
            why,
        })?;
        let mut compared = Vec::with_capacity(held.len());
        for (disk, held) in self.taken.disks.iter().zip(held) {
            compared.push(self.compare(disk, held).await?);
        }
        if self.for_others {
            assert_equal(self.taken, &compared)?;
        }

        let identity = Identity { ids: self.job.ids, vm: self.source.record.uuid.clone() };
        let this = Committing { job: self.job, identity: &identity, source: self.source, taken: self.taken };
        for (disk, compared) in self.taken.disks.iter().zip(&compared) {
            self.mark_disk(&this, disk, compared, &inventory).await?;
        }
        let mut live = keys::inheritable(&self.record.other_config);
        replica::put_autostart_aside(&mut live);
        live.extend(live_keys(self.job, &identity, self.sr.1, &self.record.uuid));
        let mut keys = live.clone();
        keys.remove(keys::SELF);
        keys.extend(point_keys(&this, self.sr.1));
        let state =
            State::Committed { live: self.record.uuid.clone(), source_snapshot: self.taken.record.uuid.clone() };
        keys.insert(keys::STATE.to_owned(), state.to_string());
        keys.insert(keys::XO_COPY_OF.to_owned(), self.taken.record.uuid.clone());
        keys.insert(keys::DISKS.to_owned(), compared.len().to_string());
        let date = keys::compact_datetime(self.taken.taken_at);
        let name = format!("{} - {} {date}", self.source.record.name_label, self.job.name);
        let () = self.session.call("VM.set_name_label", params![point, name]).await?;
        // Xen Orchestra neither lists nor prunes replicas that are templates, which XAPI makes snapshots.
        if let Err(error) = self.session.call::<()>("VM.set_is_a_template", params![point, false]).await {
            tracing::warn!(point = record.uuid, %error, "the recovery point is still a template: Xen Orchestra will not list it");
        }
        replace_keys(self.session, point, &keys).await?;

        // From here on it is a replica. Its source's snapshot is a base by what it is; by its keys the job owns it.
        self.mark_live(live).await?;
        snapshot::put_keys(self.source_session, self.source, self.job, self.taken, None).await?;
        let disks: Vec<_> = self.taken.disks.iter().map(|disk| disk.vdi.clone()).collect();
        let srs = [self.sr.1.to_owned()];
        snapshot::mark_exported(self.source_session, &self.taken.reference, &disks, &srs, Some(0)).await?;
        Ok(SeedReport {
            vm: identity.vm.clone(),
            target: self.target.name.clone(),
            replica: self.record.uuid.clone(),
            point: record.uuid,
            taken_at: self.taken.taken_at,
            disks: self.taken.disks.iter().zip(&compared).map(|(disk, compared)| seeded(disk, compared)).collect(),
        })
    }

    /// Reads both sides of a disk. The table of what it should be is kept, and that of what it is if they differ.
    async fn compare(&self, disk: &TakenDisk, held: AttachedDisk) -> Result<Compared, RunError> {
        let original = AttachedDisk { vdi: disk.vdi.clone(), ..disk.of.clone() };
        let (wanted, found) = tokio::try_join!(
            self.hash(self.source_session, &original, self.digests.of_content(&disk.uuid)),
            self.hash(self.session, &held, self.digests.as_read(&held.record.uuid)),
        )?;
        let path = self.digests.of_content(&disk.uuid);
        let compared = blocking(move || compare(wanted, found, &path)).await;
        let (different, wanted, found) = compared.map_err(RunError::Digests)?;
        Ok(Compared { held, different, wanted, found })
    }

    async fn hash(&self, session: &Session, disk: &AttachedDisk, path: PathBuf) -> Result<DraftTable, RunError> {
        let mut table = Table::create(path, table_size(disk.record.virtual_size)).map_err(RunError::Digests)?;
        let back = ReadBack { job: self.job, progress: self.progress, vm: &self.source.record.name_label };
        back.read(session, disk, None, &mut |leaf, digest| table.set(leaf, digest)).await?;
        Ok(table)
    }

    /// Puts the keys on a disk of the point, and on the live one.
    async fn mark_disk(
        &self,
        this: &Committing<'_>,
        disk: &TakenDisk,
        compared: &Compared,
        inventory: &Inventory,
    ) -> Result<(), RunError> {
        let live = &compared.held.record.snapshot_of;
        let uuid = inventory.vdis.get(live).map_or("", |live| live.uuid.as_str());
        let mut keys = live_disk_keys(self.job, this.identity, self.sr.1, disk, uuid);
        if compared.found.is_some() {
            // It equals nothing that anybody knows.
            keys.remove(keys::CONTENT);
        }
        replace_keys(self.session, live, &keys).await?;
        keys.extend(point_keys(this, self.sr.1));
        keys.insert(keys::XO_COPY_OF.to_owned(), disk.uuid.clone());
        keys.insert(keys::XO_CONTENT_KEY.to_owned(), disk.uuid.clone());
        keys.insert(keys::DIGEST.to_owned(), keys::digest_value(&disk.uuid, &compared.wanted.to_string()));
        if let Some(found) = &compared.found {
            keys.insert(keys::DAMAGED.to_owned(), keys::digest_value(&disk.uuid, &found.to_string()));
        }
        Ok(replace_keys(self.session, &compared.held.vdi, &keys).await?)
    }

    /// Makes the live copy a replica, its lease kept.
    async fn mark_live(&self, keys: Keys) -> Result<(), RunError> {
        let found: Keys = self.session.call("VM.get_other_config", params![self.copy]).await?;
        let lease = found.get(keys::LEASE).map(|lease| (keys::LEASE.to_owned(), lease.clone()));
        let keys: Keys = keys.into_iter().chain(lease).collect();
        replace_keys(self.session, self.copy, &keys).await?;
        if !self.record.ha_restart_priority.is_empty() {
            let () = self.session.call("VM.set_ha_restart_priority", params![self.copy, ""]).await?;
        }
        Ok(())
    }
}

/// What differs, the root of what is wanted, and of what was found where that is something else.
fn compare(
    wanted: DraftTable,
    mut found: DraftTable,
    path: &std::path::Path,
) -> Result<(Extents, Root, Option<Root>), vmferry_disk::digest::TableError> {
    let root = wanted.commit()?;
    let different = found.differences(&Table::open(path)?)?;
    let found = if different.is_empty() { None } else { Some(found.commit()?) };
    Ok((different, root, found))
}

/// Whether a copy is what its source's snapshot holds.
fn assert_equal(taken: &Taken, compared: &[Compared]) -> Result<(), RunError> {
    let differing = taken.disks.iter().zip(compared).filter(|(_, compared)| !compared.different.is_empty());
    let obstacles: Vec<String> = differing
        .map(|(disk, compared)| {
            let first = first_differences(&compared.different);
            let at = first.first().map_or(0, |difference| difference.offset);
            format!(
                "disk {} of the copy differs from disk {} of the source's snapshot in {} from byte {at} on: a delta would go on from wrong \
                 content, so nothing was marked; was the copy made from this snapshot? Copy it again, or let `vmferry seed adopt` of a job \
                 of vmferry send what differs",
                compared.held.record.name_label,
                disk.of.record.uuid,
                bytes(compared.different.total_bytes())
            )
        })
        .collect();
    if obstacles.is_empty() { Ok(()) } else { Err(RunError::Obstacles(obstacles)) }
}

fn seeded(disk: &TakenDisk, compared: &Compared) -> SeededDisk {
    SeededDisk {
        disk: disk.of.record.uuid.clone(),
        copy: compared.held.record.uuid.clone(),
        different_bytes: compared.different.total_bytes(),
        differences: first_differences(&compared.different),
    }
}
