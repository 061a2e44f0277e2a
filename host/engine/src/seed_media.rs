//! Carries the first copy of a VM to its target on media, where the line is too thin for it.
//!
//! ```text
//! source ── snapshot ── read, checked, hashed ──> folder: a VHD per disk, then the manifest
//! folder ── read, checked, hashed ──> new disks ── commit ──> the recovery point that the first run goes on from
//! ```
//!
//! Both halves are halves of a run: the same snapshot, streams, landing and commit. Between them the source's snapshot says that
//! media carry it, and stays until every target of the job holds something as new.

use crate::allocation::MAX_VHD_DISK;
use crate::commit::{self, Committing};
use crate::digests::{content_table, table_size};
use crate::engine::{Engine, RunOptions};
use crate::error::{EngineError, RunError, chain};
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::{Integrity, Job, Policies, SnapshotMode, Target};
use crate::keys;
use crate::landing;
use crate::lane::{Lane, LaneId};
use crate::lease::Lease;
use crate::media::{self, Folder, Media, MediaFile, Written};
use crate::migration;
use crate::moving::disk_report;
use crate::objects::set_keys;
use crate::preflight;
use crate::progress::{DiskLabel, Progress};
use crate::replica;
use crate::run::{Networks, Run};
use crate::seed::find_target;
use crate::select::select;
use crate::shares::Want;
use crate::snapshot::{self, Taken, TakenDisk};
use crate::source::{self, Chunked};
use crate::transfer::{self, Destination, From, Moved, Place, Sent, SourceFailed, Stream};
use crate::view::{Identity, SourceVm};
use crate::vtpm;
use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;
use vmferry_disk::digest::Table;
use vmferry_model::plan::{DiskPlan, ExpectedFrom, FullReason, Transfer};
use vmferry_model::report::DiskReport;
use vmferry_xapi::records::{Vif, Vm};
use vmferry_xapi::{Ref, Session};

/// What to put on media.
#[derive(Clone, Debug)]
pub struct SeedExportRequest {
    /// uuid of a VM that the job replicates.
    pub vm: String,
    /// uuid of the snapshot of it to export; one is taken when absent. The job owns it afterwards.
    pub snapshot: Option<String>,
    /// The folder to write to.
    pub to: PathBuf,
}

/// A first copy on media.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SeedExport {
    /// uuid of the source VM.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// uuid of its snapshot, which is kept until every target holds something as new.
    pub snapshot: String,
    /// Id of the media; the snapshot carries it.
    pub media: Uuid,
    /// The moment that the copy shows.
    pub taken_at: Timestamp,
    /// The folder.
    pub folder: PathBuf,
    /// Its disks.
    pub disks: Vec<ExportedDisk>,
}

/// A disk on media.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportedDisk {
    /// uuid of the live source disk.
    pub disk: String,
    /// Its name.
    pub name: String,
    /// Bytes of its file.
    pub bytes: u64,
    /// Root of the digests of what it holds.
    pub digest: String,
}

/// What to make a first recovery point of.
#[derive(Clone, Debug)]
pub struct SeedImportRequest {
    /// The folder that an export wrote.
    pub from: PathBuf,
    /// The target; the job's only one when absent.
    pub target: Option<String>,
}

/// A first copy that arrived.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SeedImport {
    /// uuid of the source VM.
    pub vm: String,
    /// The target's name in the job.
    pub target: String,
    /// uuid of the replica.
    pub replica: String,
    /// uuid of its first recovery point.
    pub point: String,
    /// Id of the media.
    pub media: Uuid,
    /// The moment of the source that the point shows.
    pub taken_at: Timestamp,
    /// Its disks.
    pub disks: Vec<DiskReport>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

impl Engine {
    /// Writes a snapshot of a VM to a folder, to be carried to the site of a target. The snapshot is kept for the first run after
    /// [`Engine::import_seed`]. Where it fails, snapshot and files are gone again.
    pub async fn export_seed(
        &self,
        job: &Job,
        request: &SeedExportRequest,
        progress: &Arc<dyn Progress>,
    ) -> Result<SeedExport, EngineError> {
        let job = with_digests(job);
        let (policies, options) = (Policies::default(), RunOptions::default());
        let run = self.context(&job, &policies, &options, progress, Timestamp::now());
        let session = self.pools.session(&job.select.pool).await?;
        let inventory = Inventory::load(&session).await?;
        let (vm, record) = selected(&inventory, &job, &request.vm)?;
        let folder = Folder::prepare(&request.to).map_err(|error| EngineError::Usage(error.to_string()))?;
        let lease = run.lease(&session, vm, &record.uuid).await?;
        let export = Export { run: &run, session: &session, vm, request, folder };
        let done = match migration::block(&session, vm, &job.name).await {
            Ok(_) => export.under_lease(&lease).await,
            Err(error) => Err(error),
        };
        let allowed = migration::allow(&lease, &session, vm).await;
        let released = lease.release().await;
        Ok(done.and_then(|report| allowed.and(released).map(|()| report))?)
    }

    /// Makes a folder that [`Engine::export_seed`] wrote the first recovery point of its VM on a target. Needs that target alone:
    /// the source is asked for its lease if it can be reached. Nothing is left of an import that fails.
    pub async fn import_seed(
        &self,
        job: &Job,
        request: &SeedImportRequest,
        progress: &Arc<dyn Progress>,
    ) -> Result<SeedImport, EngineError> {
        let job = with_digests(job);
        let target = find_target(&job, request.target.as_deref())?;
        let media = Media::open(&request.from, &job).map_err(|error| RunError::Media(error.to_string()))?;
        let (policies, options) = (Policies::default(), RunOptions::default());
        let run = self.context(&job, &policies, &options, progress, Timestamp::now());
        let (lease, warning) = lease_of_source(&run, &media.vm.uuid).await?;
        let identity = Identity { ids: job.ids, vm: media.vm.uuid.clone() };
        let import = Import { run: &run, target, identity, media: &media, lease: lease.as_ref() };
        let done = import.import().await;
        let released = match lease {
            Some(lease) => lease.release().await,
            None => Ok(()),
        };
        let mut report = done?;
        released?;
        report.warnings.extend(warning);
        Ok(report)
    }

    /// Gives up the media of a VM that are on their way: the snapshots kept for them are destroyed, or go on as bases where a target
    /// has made a recovery point of them. Answers with the uuids of those that were kept for media. Needs all targets.
    pub async fn forget_seed(&self, job: &Job, vm: &str) -> Result<Vec<String>, EngineError> {
        let (policies, options) = (Policies::default(), RunOptions::default());
        let silent: Arc<dyn Progress> = Arc::new(crate::Silent);
        let run = self.context(job, &policies, &options, &silent, Timestamp::now());
        let session = self.pools.session(&job.select.pool).await?;
        let inventory = Inventory::load(&session).await?;
        let (vm, record) = selected(&inventory, job, vm)?;
        let lease = run.lease(&session, vm, &record.uuid).await?;
        let done = forget(&run, &session, vm).await;
        let released = lease.release().await;
        Ok(done.and_then(|forgotten| released.map(|()| forgotten))?)
    }
}

/// The job, with digests: what media hold is proven by them, whatever its runs do.
fn with_digests(job: &Job) -> Job {
    Job { integrity: Integrity::Digest, ..job.clone() }
}

fn selected<'i>(inventory: &'i Inventory, job: &Job, uuid: &str) -> Result<(&'i Ref<Vm>, &'i Vm), RunError> {
    match select(inventory, job, Some(uuid)).pop() {
        Some((_, vm)) => vm,
        None => Err(not_there(job, uuid)),
    }
}

fn not_there(job: &Job, uuid: &str) -> RunError {
    let remedy = "check the uuid; it may have been destroyed just now";
    RunError::NotFound { class: "VM", name: uuid.to_owned(), pool: job.select.pool.clone(), remedy }
}

async fn forget(run: &Run<'_>, session: &Session, vm: &Ref<Vm>) -> Result<Vec<String>, RunError> {
    let inventory = Inventory::load(session).await?;
    let record = inventory.vms.get(vm).ok_or_else(|| not_there(run.job, vm.as_str()))?;
    let source = SourceVm::new(&inventory, vm, record, &run.job.ids);
    let identity = Identity { ids: run.job.ids, vm: record.uuid.clone() };
    let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for target in &run.job.targets {
        let lane = Lane::look(run, &identity, target).await?;
        if !lane.sees_everything() {
            let why = format!(
                "not every SR of target {} can be seen, and one that cannot may hold the seed; try again when it is back",
                target.name
            );
            return Err(RunError::Obstacles(vec![why]));
        }
        for point in lane.view.points() {
            holders.entry(point.source_snapshot.clone()).or_default().push(point.sr.clone());
        }
    }
    let mut forgotten = Vec::new();
    for seed in source.snapshots.iter().filter(|snapshot| snapshot.seed.is_some()) {
        let disks = inventory.vms.get(&seed.reference).map(|vm| inventory.disks_of(vm)).unwrap_or_default();
        let held_by = holders.remove(&seed.uuid).unwrap_or_default().into_iter().chain(seed.exported_to.clone());
        let srs: Vec<String> = held_by.collect::<BTreeSet<_>>().into_iter().collect();
        if srs.is_empty() {
            drop_tables(run, &disks);
            snapshot::destroy(session, &seed.reference).await?;
        } else {
            let disks: Vec<_> = disks.into_iter().map(|disk| disk.vdi).collect();
            snapshot::mark_exported(session, &seed.reference, &disks, &srs, None).await?;
            set_keys(session, &seed.reference, &[], &[keys::SEED]).await?;
        }
        forgotten.push(seed.uuid.clone());
    }
    Ok(forgotten)
}

/// Nobody holds the content of these snapshot disks, so nobody will ask for its digests.
fn drop_tables(run: &Run<'_>, disks: &[AttachedDisk]) {
    let tables = disks.iter().map(|disk| content_table(&disk.record.uuid)).collect();
    run.digests.drop_unused(&tables, &BTreeSet::new());
}

/// The source's lease keeps a run from starting meanwhile. Where the source is out of reach there is none, and why.
async fn lease_of_source(run: &Run<'_>, vm: &str) -> Result<(Option<Lease>, Option<String>), RunError> {
    let pool = &run.job.select.pool;
    let reach = async {
        let session = run.pools.session(pool).await?;
        let inventory = Inventory::load(&session).await?;
        Ok::<_, RunError>((session, inventory))
    };
    let without = |why: String| format!("{why}, so nothing kept a run of the job from starting meanwhile");
    let (session, inventory) = match reach.await {
        Ok(reached) => reached,
        Err(error) => return Ok((None, Some(without(format!("the source could not be asked ({})", chain(&error)))))),
    };
    match inventory.vm_by_uuid(vm).filter(|(_, record)| !record.is_a_snapshot) {
        Some((reference, _)) => Ok((Some(run.lease(&session, reference, vm).await?), None)),
        None => Ok((None, Some(without(format!("VM {vm} is not in pool {pool}"))))),
    }
}

/// An export under way, its lease held.
struct Export<'a> {
    run: &'a Run<'a>,
    session: &'a Session,
    vm: &'a Ref<Vm>,
    request: &'a SeedExportRequest,
    folder: Folder,
}

/// Whose a snapshot was before it was exported.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This export took it.
    Taken,
    /// The job's.
    Own,
    /// Somebody else's.
    Given,
}

impl Export<'_> {
    async fn under_lease(&self, lease: &Lease) -> Result<SeedExport, RunError> {
        let inventory = Inventory::load(self.session).await?;
        let record = inventory.vms.get(self.vm).ok_or_else(|| not_there(self.run.job, &self.request.vm))?;
        let source = SourceVm::new(&inventory, self.vm, record, &self.run.job.ids);
        assert_vhd(&source)?;
        preflight::source(&inventory, &source, &self.run.job.tuning.chains).passed()?;
        self.remove_unpublished(&source).await?;
        let networks = Networks::load(self.session, record).await?;
        let (taken, origin) = self.snapshot(&inventory, &source).await?;
        let media = Uuid::new_v4();
        let done = async {
            let written = self.write(lease, &source, &taken).await?;
            lease.check().await?;
            let draft = self.folder.write_draft(media, self.run.job, record, &taken, &written, &networks);
            draft.map_err(|error| RunError::Media(error.to_string()))?;
            self.keep(&source, &taken, origin, media).await?;
            self.folder.publish().map_err(|error| RunError::Media(error.to_string()))?;
            Ok(written)
        };
        let written: Vec<Written> = match done.await {
            Ok(written) => written,
            Err(error) => {
                self.undo(&taken, origin).await;
                return Err(error);
            }
        };
        let disks = taken.disks.iter().zip(written).map(|(disk, written)| ExportedDisk {
            disk: disk.of.record.uuid.clone(),
            name: disk.of.record.name_label.clone(),
            bytes: written.length,
            digest: written.digest.to_string(),
        });
        Ok(SeedExport {
            vm: record.uuid.clone(),
            name: record.name_label.clone(),
            snapshot: taken.record.uuid.clone(),
            media,
            taken_at: taken.taken_at,
            folder: self.request.to.clone(),
            disks: disks.collect(),
        })
    }

    /// The snapshot of an export to this folder that died when it had nothing left to do but to say that it was done.
    async fn remove_unpublished(&self, source: &SourceVm) -> Result<(), RunError> {
        let Some(draft) = self.folder.draft().map(|media| media.to_string()) else { return Ok(()) };
        let unpublished = source.snapshots.iter().filter(|snapshot| snapshot.seed.as_ref() == Some(&draft));
        let asked_for = |uuid: &String| self.request.snapshot.as_ref() == Some(uuid);
        for snapshot in unpublished.filter(|snapshot| snapshot.exported_to.is_empty() && !asked_for(&snapshot.uuid)) {
            snapshot::destroy(self.session, &snapshot.reference).await?;
        }
        Ok(())
    }

    async fn snapshot(&self, inventory: &Inventory, source: &SourceVm) -> Result<(Taken, Origin), RunError> {
        let job = self.run.job;
        let Some(uuid) = &self.request.snapshot else {
            self.run.progress.step(&source.record.name_label, "taking a snapshot");
            let newest = source.snapshots.iter().map(|snapshot| snapshot.taken_at).chain(source.newest_date).max();
            return Ok((snapshot::take(self.session, source, job, SnapshotMode::Disks, newest).await?, Origin::Taken));
        };
        let remedy = "give the uuid of a snapshot of this VM (`xe snapshot-list`), or leave it out to have one taken";
        let found = inventory.vm_by_uuid(uuid).filter(|(_, vm)| vm.is_a_snapshot && vm.snapshot_of == source.reference);
        let (reference, _) = found.ok_or_else(|| RunError::NotFound {
            class: "snapshot",
            name: uuid.clone(),
            pool: job.select.pool.clone(),
            remedy,
        })?;
        let mut taken = snapshot::read(self.session, source, reference).await?;
        match source.snapshots.iter().find(|own| own.uuid == *uuid) {
            Some(own) => {
                taken.taken_at = own.taken_at;
                Ok((taken, Origin::Own))
            }
            None => Ok((taken, Origin::Given)),
        }
    }

    /// Writes every disk to its file.
    async fn write(&self, lease: &Lease, source: &SourceVm, taken: &Taken) -> Result<Vec<Written>, RunError> {
        self.run.progress.step(&source.record.name_label, "exporting");
        let writing: Vec<_> = taken.disks.iter().map(|disk| self.write_disk(source, disk).boxed()).collect();
        let writing = stream::iter(writing).buffered(self.run.job.tuning.disks_in_parallel.max(1));
        let written: Vec<_> = tokio::select! {
            written = writing.collect() => written,
            lost = lease.lost() => return Err(lost),
        };
        written.into_iter().collect()
    }

    async fn write_disk(&self, source: &SourceVm, disk: &TakenDisk) -> Result<Written, RunError> {
        let table = self.run.digests.of_content(&disk.uuid);
        let table = Table::create(table, table_size(disk.of.record.virtual_size)).map_err(RunError::Digests)?;
        let label = label(&source.record.name_label, disk, "media");
        let place = Place::File(self.folder.file_of(disk));
        let to = Destination { lane: LaneId::Pool(0), place, throttles: Vec::new() };
        let want = Want::of_one(From::Nothing, to, table, Chunked::Unusable("media hold VHD"), &label);
        let stream = Stream { source: self.session, disk, wants: vec![want], label };
        let (moved, sent) = only_lane(disk, transfer::carry_one(self.run, stream).await)?;
        let digest = moved.facts.digest.ok_or_else(|| no_digest(disk))?;
        Ok(Written { length: sent.bytes, digest })
    }

    /// From here on the snapshot is the job's, and no run takes it for one that nobody needs.
    async fn keep(&self, source: &SourceVm, taken: &Taken, origin: Origin, media: Uuid) -> Result<(), RunError> {
        match origin {
            Origin::Given => snapshot::put_keys(self.session, source, self.run.job, taken, Some(media)).await,
            Origin::Taken | Origin::Own => {
                Ok(set_keys(self.session, &taken.reference, &[(keys::SEED, media.to_string())], &[]).await?)
            }
        }
    }

    async fn undo(&self, taken: &Taken, origin: Origin) {
        self.folder.clear(taken);
        let undone = match origin {
            Origin::Taken => {
                let disks: Vec<_> = taken.disks.iter().map(snapshot_disk).collect();
                drop_tables(self.run, &disks);
                snapshot::destroy(self.session, &taken.reference).await
            }
            Origin::Own | Origin::Given => {
                set_keys(self.session, &taken.reference, &[], &[keys::SEED]).await.map_err(RunError::from)
            }
        };
        if let Err(left) = undone {
            tracing::warn!(snapshot = taken.record.uuid, error = %left, "the snapshot is left for the next run to put right");
        }
    }
}

/// A snapshot's disk by its own uuid.
fn snapshot_disk(disk: &TakenDisk) -> AttachedDisk {
    let mut attached = disk.of.clone();
    attached.record.uuid.clone_from(&disk.uuid);
    attached
}

/// Media hold VHD, which ends at 2 TiB.
fn assert_vhd(source: &SourceVm) -> Result<(), RunError> {
    let too_large = source.disks.iter().filter(|disk| disk.record.virtual_size > MAX_VHD_DISK);
    let obstacles: Vec<String> = too_large
        .map(|disk| {
            format!(
                "disk {} ({}) has {} bytes, and a VHD on media holds {MAX_VHD_DISK} at most; replicate this VM by a run, or bring its first \
                 copy by `VM.copy` and `vmferry seed adopt`",
                disk.record.name_label, disk.record.uuid, disk.record.virtual_size
            )
        })
        .collect();
    if obstacles.is_empty() { Ok(()) } else { Err(RunError::Obstacles(obstacles)) }
}

fn label(vm: &str, disk: &TakenDisk, target: &str) -> DiskLabel {
    DiskLabel {
        vm: vm.to_owned(),
        disk: disk.of.record.name_label.clone(),
        disk_uuid: disk.of.record.uuid.clone(),
        targets: vec![target.to_owned()],
    }
}

/// What became of a stream that feeds one place: its facts, and the bytes that were written.
fn only_lane(disk: &TakenDisk, moved: Result<Moved, SourceFailed>) -> Result<(Moved, Sent), RunError> {
    let failed = |message| RunError::Transfer { disk: disk.of.record.uuid.clone(), message };
    let mut moved = moved.map_err(|SourceFailed(message)| failed(message))?;
    match moved.lanes.pop() {
        Some((_, sent)) => Ok((moved, sent?)),
        None => Err(failed("nobody took it".to_owned())),
    }
}

fn no_digest(disk: &TakenDisk) -> RunError {
    let message = "its digest could not be known".to_owned();
    RunError::Transfer { disk: disk.of.record.uuid.clone(), message }
}

/// An import under way, the source's lease held where there is one.
struct Import<'a> {
    run: &'a Run<'a>,
    target: &'a Target,
    identity: Identity,
    media: &'a Media,
    lease: Option<&'a Lease>,
}

impl Import<'_> {
    async fn import(&self) -> Result<SeedImport, EngineError> {
        let mut lane = Lane::look(self.run, &self.identity, self.target).await?;
        if let Some(replica) = lane.view.current() {
            return Err(EngineError::Usage(format!(
                "job {} has recovery points of VM {} on target {} already, on replica {}; media are imported where there are none",
                self.run.job.name, self.identity.vm, self.target.name, replica.record.uuid
            )));
        }
        lane.settle(self.run, &self.identity).await?;
        let done = self.land(&mut lane).await;
        if done.is_err()
            && lane.landing_begun
            && let Err(left) = lane.put_right(self.run.job, &self.identity).await
        {
            tracing::warn!(target = self.target.name, error = %left, "what this import left is removed by the next one, or by a run");
        }
        lane.release().await;
        let (replica, point) = done?;
        Ok(SeedImport {
            vm: self.identity.vm.clone(),
            target: self.target.name.clone(),
            replica,
            point,
            media: self.media.id,
            taken_at: self.media.taken.taken_at,
            disks: lane.disks,
            warnings: lane.warnings,
        })
    }

    /// Everything from the first new disk to the commit. Answers with the uuids of the replica and its recovery point.
    async fn land(&self, lane: &mut Lane<'_>) -> Result<(String, String), RunError> {
        let Media { vm, taken, networks, .. } = self.media;
        let (run, job) = (self.run, self.run.job);
        self.plan(lane);
        let source = SourceVm::new(&Inventory::default(), &Ref::null(), vm, &job.ids);
        lane.settle_on_sr(run, &source)?;
        let there = lane.session.get_all_records().await?;
        lane.interfaces = replica::map_networks(&networks.interfaces, &networks.networks, &there, self.target)?;
        let vifs: Vec<Vif> = lane.session.get_all_records().await?.into_iter().map(|(_, vif)| vif).collect();
        let disks: Vec<AttachedDisk> = taken.disks.iter().map(|disk| disk.of.clone()).collect();
        let survey = preflight::target(lane, &self.identity, &disks, &vifs, &job.tuning.chains);
        lane.warnings.extend(survey.passed()?);

        run.progress.step(&vm.name_label, "importing");
        let disks: Vec<&AttachedDisk> = disks.iter().collect();
        landing::prepare(lane, job, &self.identity, &disks).await?;
        lane.disks = self.read(lane).await?;
        if let Some(lease) = self.lease {
            lease.check().await?;
        }
        run.progress.step(&vm.name_label, "committing");
        if vtpm::has_one(&taken.record) {
            lane.warnings
                .push("the VM's virtual TPM is a secret and not on the media; the next run brings it".to_owned());
        }
        let this = Committing { job, identity: &self.identity, source: &source, taken };
        commit::commit(lane, &this, &Ok(Vec::new())).await?;
        lane.committed.clone().ok_or(RunError::NoTargetLeft)
    }

    fn plan(&self, lane: &mut Lane<'_>) {
        let full = Transfer::Full { reason: FullReason::FirstRun };
        lane.transfers = vec![full; self.media.files.len()];
        let plans = self.media.taken.disks.iter().zip(&self.media.files).zip(&lane.transfers);
        lane.plans = plans
            .map(|((disk, file), transfer)| DiskPlan {
                disk: disk.of.record.uuid.clone(),
                kind: transfer.kind(),
                base: None,
                reason: transfer.reason(),
                full_reason: transfer.full_reason(),
                expected_bytes: file.length,
                expected_from: ExpectedFrom::PhysicalUtilisation,
            })
            .collect();
    }

    /// Reads every file into its disk.
    async fn read(&self, lane: &Lane<'_>) -> Result<Vec<DiskReport>, RunError> {
        let all = self.media.taken.disks.iter().zip(&self.media.files).enumerate();
        let reading: Vec<_> =
            all.map(|(index, (disk, file))| self.read_disk(lane, index, disk, file).boxed()).collect();
        let reading = stream::iter(reading).buffered(self.run.job.tuning.disks_in_parallel.max(1));
        let lost = async {
            match self.lease {
                Some(lease) => lease.lost().await,
                None => std::future::pending().await,
            }
        };
        let read: Vec<_> = tokio::select! {
            read = reading.collect() => read,
            lost = lost => return Err(lost),
        };
        read.into_iter().collect()
    }

    async fn read_disk(
        &self,
        lane: &Lane<'_>,
        index: usize,
        disk: &TakenDisk,
        file: &MediaFile,
    ) -> Result<DiskReport, RunError> {
        let size = disk.of.record.virtual_size;
        let table =
            Table::create(self.run.digests.of_content(&disk.uuid), table_size(size)).map_err(RunError::Digests)?;
        let place = Place::Disk { session: lane.session.clone(), vdi: lane.landed[index].clone() };
        let label = label(&self.media.vm.name_label, disk, &self.target.name);
        let to = Destination { lane: LaneId::Pool(0), place, throttles: self.target.throttles.clone() };
        let want = Want::of_one(From::Nothing, to, table, Chunked::Unusable("media hold VHD"), &label);
        let moved = match source::open_file(&file.path, size).await {
            Ok(source) => {
                let moved = transfer::pour_one(self.run, source, &disk.of, want, Some(file.digest), label).await;
                moved.map_err(|SourceFailed(why)| {
                    SourceFailed(format!("{}: {why}; {}", file.path.display(), media::AGAIN))
                })
            }
            Err(failed) => Err(failed),
        };
        let (moved, sent) = only_lane(disk, moved)?;
        Ok(disk_report(&lane.transfers[index], disk, &moved.facts, &sent))
    }
}
