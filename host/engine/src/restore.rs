//! `vmferry restore`: a recovery point of any target becomes a VM on any pool, the content of a VM that is there, or files.
//!
//! A new VM is a template called `[Restoring]` until everything is in place; what a crash leaves of it is found by `gc` (see
//! `restoring`). A VM that is there gets what differs alone, and a snapshot of what it was first.

mod files;
mod onto;

use crate::allocation::MAX_VHD_DISK;
use crate::digests::table_size;
use crate::engine::{Engine, RunOptions};
use crate::error::{EngineError, RunError, chain};
use crate::framing::Framing;
use crate::inventory::AttachedDisk;
use crate::job::{Integrity, Job, JobIds, Policies, Reading, Selection, SnapshotMode, StoreTarget, Target, Tuning};
use crate::keys::{self, Keys};
use crate::lane::LaneId;
use crate::lease::Lease;
use crate::memory;
use crate::objects::destroy_disk;
use crate::origin::{DiskOrigin, Origin, OriginDisk};
use crate::plan::replica_size;
use crate::progress::{DiskLabel, Progress};
use crate::readback::ReadBack;
use crate::replica::{self, MappedInterface};
use crate::restoring;
use crate::retrieving::StoredSource;
use crate::run::{Networks, Run};
use crate::shares::Want;
use crate::snapshot::TakenDisk;
use crate::source::{Chunked, Plain, Reader, Source};
use crate::storing::ImageFormat;
use crate::transfer::{self, Destination, From, Moved, Place, SourceFailed, Stream, blocking};
use crate::xva::XvaStore;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use vmferry_disk::digest::{DraftTable, Table};
use vmferry_disk::extent::Extents;
use vmferry_xapi::records::{Pool, Sr, Vdi, Vm};
use vmferry_xapi::{ApiError, Error, Ref, Session, params};

/// What to restore, and to where.
#[derive(Clone, Debug)]
pub struct RestoreRequest {
    /// uuid of the source VM.
    pub vm: String,
    /// The recovery point, as `points list` names it; the newest undamaged one when absent.
    pub point: Option<String>,
    /// Name of the target; the one with the newest point when absent.
    pub target: Option<String>,
    /// To where.
    pub to: RestoreTo,
}

/// Where a recovery point is restored to.
#[derive(Clone, Debug)]
pub enum RestoreTo {
    /// A new VM.
    NewVm {
        /// Name of the pool.
        pool: String,
        /// uuid of the SR; the pool's default one when absent.
        sr: Option<String>,
        /// As of a [`Target`].
        networks: BTreeMap<String, String>,
        /// Its name; the source VM's when absent.
        name: Option<String>,
    },
    /// A VM that is there and halted, with the same disks: the original, or a copy of it. Only what differs is written.
    Onto {
        /// Name of the pool.
        pool: String,
        /// Its uuid.
        vm: String,
    },
    /// A file for each disk.
    Files {
        /// A folder; it is made where it is not there.
        folder: PathBuf,
        /// How a disk lies in its file.
        format: ImageFormat,
    },
    /// One file, which any pool imports by `xe vm-import`.
    Xva {
        /// It must not be there yet.
        file: PathBuf,
    },
}

/// What to make of an XVA, whoever wrote it.
#[derive(Clone, Debug)]
pub struct XvaRequest {
    /// The file.
    pub file: PathBuf,
    /// Who asks.
    pub tenant: String,
    /// Name of the pool.
    pub pool: String,
    /// uuid of the SR; the pool's default one when absent.
    pub sr: Option<String>,
    /// As of a [`Target`].
    pub networks: BTreeMap<String, String>,
    /// Name of the new VM; as in the XVA when absent.
    pub name: Option<String>,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RestoreReport {
    /// uuid of the source VM.
    pub vm: String,
    /// The target that the recovery point is on.
    pub target: String,
    /// The recovery point.
    pub point: String,
    /// The moment of the source that it shows.
    pub taken_at: Timestamp,
    /// uuid of the VM that it was restored to; none for files.
    pub restored: Option<String>,
    /// uuid of the snapshot of what a VM that was there had been.
    pub safety_snapshot: Option<String>,
    /// The disks.
    pub disks: Vec<RestoredDisk>,
    /// What an operator should know besides.
    pub warnings: Vec<String>,
}

/// A disk that was restored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RestoredDisk {
    /// uuid of the source's disk.
    pub disk: String,
    /// Its name.
    pub name: String,
    /// uuid of the disk that it was restored to, or its file.
    pub to: String,
    /// Bytes of the stream that was written.
    pub bytes_written: u64,
    /// Root of the digests of what was written; `None` where they are not kept.
    pub digest: Option<String>,
    /// Whether that root is the one of what the source had.
    pub proven: bool,
}

impl Engine {
    /// Restores a recovery point. Needs the target that holds it and the pool that it is restored to, and nothing else.
    pub async fn restore(
        &self,
        job: &Job,
        request: &RestoreRequest,
        progress: Arc<dyn Progress>,
    ) -> Result<RestoreReport, EngineError> {
        let (policies, options) = (Policies::default(), RunOptions::default());
        let run = self.context(job, &policies, &options, &progress, Timestamp::now());
        let origin = self.find_origin(job, request).await?;
        let mut report = origin.report(&request.vm);
        if origin.disks.iter().any(|disk| memory::is_image(&disk.attached.record)) {
            report
                .warnings
                .push("the memory that the recovery point holds is left out: what is restored boots".to_owned());
        }
        let restore = Restore { run: &run, origin };
        // What is read for hours must not be merged, changed or pruned meanwhile.
        let holds = !restore.origin.held && self.hold_origin(job, &restore.origin, true, &mut report).await;
        let done = self.restore_to(&restore, &request.to, &mut report).await;
        if holds {
            self.hold_origin(job, &restore.origin, false, &mut report).await;
        }
        if done.is_err() {
            // There will be no report to tell them in.
            report.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        }
        done.map(|()| report)
    }

    async fn restore_to(
        &self,
        restore: &Restore<'_>,
        to: &RestoreTo,
        report: &mut RestoreReport,
    ) -> Result<(), EngineError> {
        match to {
            RestoreTo::NewVm { pool, sr, networks, name } => {
                let target = self.place_on(pool, sr.as_deref(), networks).await?;
                restore.to_new_vm(&target, name.as_deref(), report).await
            }
            RestoreTo::Onto { pool, vm } => {
                let session = self.pools.session(pool).await?;
                restore.onto(&session, pool, vm, report).await
            }
            RestoreTo::Files { folder, format } => restore.to_files(folder, *format, report).await,
            RestoreTo::Xva { file } => restore.to_xva(file, report).await,
        }
    }

    /// Holds the point that is restored, or lets it go again; whether that was done. A store that can only be read is no obstacle.
    async fn hold_origin(&self, job: &Job, origin: &Origin, held: bool, report: &mut RestoreReport) -> bool {
        let (point, target) = (&origin.point, Some(origin.target.as_str()));
        let Err(error) = self.hold_point(job, point, target, held).await else { return true };
        if held {
            // It may be, if the answer was lost.
            let _ = self.hold_point(job, point, target, false).await;
        }
        let why = chain(&error);
        report.warnings.push(match held {
            true => format!("recovery point {point} could not be held while it was restored: {why}"),
            false => {
                format!(
                    "recovery point {point} is still held, release it by `vmferry points release {} {point}`: {why}",
                    job.name
                )
            }
        });
        false
    }

    /// Makes a new VM of an XVA, without any job. A chunk whose checksum is wrong is refused, and nothing of the VM is left then.
    pub async fn restore_xva(
        &self,
        request: &XvaRequest,
        progress: Arc<dyn Progress>,
    ) -> Result<RestoreReport, EngineError> {
        let (job, policies, options) = (no_job(&request.tenant), Policies::default(), RunOptions::default());
        let run = self.context(&job, &policies, &options, &progress, Timestamp::now());
        let store = XvaStore::open(&request.file).await?;
        let (point, warnings) = (store.point.clone(), store.warnings.clone());
        let name = request.file.display().to_string();
        let target =
            StoreTarget { name, store: Arc::new(store), place: String::new(), required: true, throttles: Vec::new() };
        let mut origin = Origin::in_store(&target, point).await?;
        origin.warnings = warnings;
        let mut report = origin.report(&origin.vm.uuid);
        let target = self.place_on(&request.pool, request.sr.as_deref(), &request.networks).await?;
        Restore { run: &run, origin }.to_new_vm(&target, request.name.as_deref(), &mut report).await?;
        Ok(report)
    }

    /// The pool and SR that a new VM goes to, as a target of its own.
    async fn place_on(
        &self,
        pool: &str,
        sr: Option<&str>,
        networks: &BTreeMap<String, String>,
    ) -> Result<(Session, Ref<Sr>, Target), EngineError> {
        let session = self.pools.session(pool).await?;
        let missing = || match sr {
            Some(uuid) => format!("pool {pool} has no SR {uuid}; `xe sr-list` names those it has"),
            None => format!("pool {pool} has no default SR; name one with --sr"),
        };
        let known = |error: Error| match error {
            Error::Api(ApiError::UuidInvalid { .. } | ApiError::HandleInvalid { .. }) => EngineError::Usage(missing()),
            error => RunError::from(error).into(),
        };
        let found = match sr {
            Some(uuid) => session.by_uuid::<Sr>(uuid).await.map_err(known)?,
            None => {
                let pools = session.get_all_records::<Pool>().await.map_err(RunError::from)?;
                let default = pools.into_iter().next().map(|(_, pool)| pool.default_sr).filter(|sr| !sr.is_null());
                default.ok_or_else(|| EngineError::Usage(missing()))?
            }
        };
        let uuid = session.call("SR.get_uuid", params![&found]).await.map_err(known)?;
        let target = Target {
            name: "restore".to_owned(),
            pool: pool.to_owned(),
            srs: vec![uuid],
            networks: networks.clone(),
            required: true,
            throttles: Vec::new(),
        };
        Ok((session, found, target))
    }
}

/// A restore under way.
struct Restore<'a> {
    run: &'a Run<'a>,
    origin: Origin,
}

impl Restore<'_> {
    /// The disks of the guest: its memory is none.
    fn disks(&self) -> impl Iterator<Item = &OriginDisk> {
        self.origin.disks.iter().filter(|disk| !memory::is_image(&disk.attached.record))
    }

    /// The keys of the source that what is restored has: nothing of replication, and nothing that starts it.
    fn keys(&self) -> Keys {
        let mut keys = keys::inheritable(&self.origin.snapshot.other_config);
        replica::put_autostart_aside(&mut keys);
        keys.remove(keys::SOURCE_AUTO_POWERON);
        keys
    }

    async fn to_new_vm(
        &self,
        (session, sr, target): &(Session, Ref<Sr>, Target),
        name: Option<&str>,
        report: &mut RestoreReport,
    ) -> Result<(), EngineError> {
        let there = session.get_all_records().await.map_err(RunError::from)?;
        let Networks { interfaces, networks } = &self.origin.networks;
        let interfaces = replica::map_networks(interfaces, networks, &there, target)?;
        let name = name.unwrap_or(&self.origin.vm.name_label);
        let vm = self.create(session, name).await?;
        match self.make(session, sr, &vm, name, &interfaces, report).await {
            Ok(lease) => lease_back(lease, report).await,
            Err(error) => {
                if let Err(left) = restoring::remove(session, &vm).await {
                    tracing::warn!(%vm, error = %chain(&left), "what was not restored is left; `vmferry gc` removes it");
                }
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// The VM without disks: a template until it is whole, so that nobody can start it.
    async fn create(&self, session: &Session, name: &str) -> Result<Ref<Vm>, RunError> {
        let name = format!("[Restoring] {name}");
        let mut keys = self.keys();
        keys.insert(keys::RESTORING.to_owned(), restoring::mark(self.run, ""));
        let record = replica::restored_record(&self.origin.snapshot, &name, &keys);
        Ok(session.call("VM.create", params![record]).await?)
    }

    /// Makes it whole, under a lease that says that somebody is at it.
    async fn make(
        &self,
        session: &Session,
        sr: &Ref<Sr>,
        vm: &Ref<Vm>,
        name: &str,
        interfaces: &[MappedInterface],
        report: &mut RestoreReport,
    ) -> Result<Lease, RunError> {
        let uuid: String = session.call("VM.get_uuid", params![vm]).await?;
        let lease = self.run.lease(session, vm, &uuid).await?;
        let mark = restoring::mark(self.run, &uuid);
        lease.change_keys(|keys| drop(keys.insert(keys::RESTORING.to_owned(), mark.clone()))).await?;
        self.fill(session, sr, vm, &mark, interfaces, report).await?;
        let () = session.call("VM.set_name_label", params![vm, name]).await?;
        // Before it can be used: what carries the mark is `gc`'s to remove.
        lease.change_keys(|keys| drop(keys.remove(keys::RESTORING))).await?;
        let () = session.call("VM.set_is_a_template", params![vm, false]).await?;
        report.restored = Some(uuid);
        Ok(lease)
    }

    async fn fill(
        &self,
        session: &Session,
        sr: &Ref<Sr>,
        vm: &Ref<Vm>,
        mark: &str,
        interfaces: &[MappedInterface],
        report: &mut RestoreReport,
    ) -> Result<(), RunError> {
        let framing = Framing::of(session, self.run.runs, &self.run.job.tenant).await?;
        for disk in self.disks() {
            let source = &disk.attached.record;
            let mut keys = keys::inheritable(&source.other_config);
            keys.insert(keys::RESTORING.to_owned(), mark.to_owned());
            let record = replica::disk_record(source, sr.as_str(), &source.name_label, &keys);
            let vdi: Ref<Vdi> = session.call_async("VDI.create", params![record]).await?;
            // Attached at once, so that whoever finds the VM finds its disks.
            let attached = [(&disk.attached, &vdi)];
            if let Err(error) = replica::attach_more(session, vm, &attached).await {
                destroy_disk(session, &vdi).await?;
                return Err(error.into());
            }
            session.remove_from_other_config(&vdi, keys::RESTORING).await?;
            let to: String = session.call("VDI.get_uuid", params![&vdi]).await?;
            let place = Place::Disk { session: session.clone(), vdi: vdi.clone() };
            let mut restored = self.whole(disk, place, &to, framing.chunked).await?;
            if disk.is_beyond_vhd() {
                let there = AttachedDisk { record: session.get_record(&vdi).await?, vdi, ..disk.attached.clone() };
                self.prove(session, &there, &framing, &mut restored).await?;
            }
            report.disks.push(restored);
        }
        let record: Vm = session.get_record(vm).await?;
        replica::copy_bios_strings(session, vm, &record, &self.origin.snapshot).await?;
        Ok(replica::sync_interfaces(session, vm, &record, interfaces).await?)
    }

    /// Reads a disk whole into a new place, which takes a disk that no VHD can hold in this framing.
    async fn whole(
        &self,
        disk: &OriginDisk,
        place: Place,
        to: &str,
        framing: Chunked,
    ) -> Result<RestoredDisk, RunError> {
        let size = table_size(disk.attached.record.virtual_size);
        if let (true, Chunked::Unusable(why)) = (disk.is_beyond_vhd(), framing) {
            let message = format!("its {size} bytes are more than a VHD holds, and it cannot be sent otherwise: {why}");
            return Err(RunError::Transfer { disk: disk.disk.clone(), message });
        }
        let table = Table::create(self.scratch_table(disk, to), size).map_err(RunError::Digests)?;
        let moved = match &disk.from {
            DiskOrigin::Pool(session, vdi) => {
                let taken = taken(disk, vdi);
                let label = self.label(disk);
                let framing = if disk.is_beyond_vhd() { framing } else { Chunked::Unusable("a new disk takes VHD") };
                let want = Want::of_one(From::Nothing, destination(place), table, framing, &label);
                let stream = Stream { source: session, disk: &taken, wants: vec![want], label };
                transfer::carry_one(self.run, stream).await
            }
            DiskOrigin::Store(stored) => {
                let layout = stored.layout().await?;
                self.pour(disk, stored, &layout, place, table).await
            }
        };
        self.restored(disk, to, moved)
    }

    /// Reads back what was written in the chunked framing where no host of this version has shown yet that it writes what it is sent.
    async fn prove(
        &self,
        session: &Session,
        there: &AttachedDisk,
        framing: &Framing,
        restored: &mut RestoredDisk,
    ) -> Result<(), RunError> {
        if framing.chunked != Chunked::Untried {
            return Ok(());
        }
        let after = self.digests_of(session, there, table_size(there.record.virtual_size), "after").await?;
        let table = after.clone();
        let root = blocking(move || Table::open(table)?.root()).await.map_err(RunError::Digests);
        let _ = std::fs::remove_file(&after);
        let good = restored.digest == Some(root?.to_string());
        framing.learn(self.run.runs, good, restored.bytes_written > 0).await;
        if good {
            return Ok(());
        }
        let message = "the host did not write what it was sent; restore to a pool of another version, or to files";
        Err(RunError::Transfer { disk: restored.disk.clone(), message: message.to_owned() })
    }

    /// Reads a disk that is there, and keeps its digests for as long as this takes.
    async fn digests_of(
        &self,
        session: &Session,
        disk: &AttachedDisk,
        size: u64,
        what: &str,
    ) -> Result<PathBuf, RunError> {
        let path = self.run.digests.as_read(&format!("{}.{what}", disk.record.uuid));
        let mut table = Table::create(&path, size).map_err(RunError::Digests)?;
        let back = ReadBack { job: self.run.job, progress: self.run.progress.as_ref(), vm: &self.origin.vm.name_label };
        back.read(session, disk, None, &mut |leaf, digest| table.set(leaf, digest)).await?;
        blocking(move || table.commit()).await.map_err(RunError::Digests)?;
        Ok(path)
    }

    async fn pour(
        &self,
        disk: &OriginDisk,
        stored: &StoredSource,
        extents: &Extents,
        place: Place,
        table: DraftTable,
    ) -> Result<Moved, SourceFailed> {
        let (retrieving, shape) = stored.open(extents, !disk.is_beyond_vhd()).await?;
        let source = Source::new(Reader::Plain(Plain::Store(retrieving)), shape, Vec::new());
        let label = self.label(disk);
        let framing = Chunked::Unusable("the stream comes as it was opened");
        let want = Want::of_one(From::Nothing, destination(place), table, framing, &label);
        transfer::pour_one(self.run, source, &disk.attached, want, None, label).await
    }

    /// Books what became of a disk. What was read has to be what the point says, or the disk is not restored.
    fn restored(
        &self,
        disk: &OriginDisk,
        to: &str,
        moved: Result<Moved, SourceFailed>,
    ) -> Result<RestoredDisk, RunError> {
        let failed = |message: String| RunError::Transfer { disk: disk.disk.clone(), message };
        let _ = std::fs::remove_file(self.scratch_table(disk, to));
        let mut moved = moved.map_err(|SourceFailed(message)| failed(message))?;
        let Some((_, sent)) = moved.lanes.pop() else { return Err(failed("nobody took it".to_owned())) };
        let sent = sent?;
        let digest = moved.facts.digest.map(|root| root.to_string());
        if let (Some(wanted), Some(found)) = (&disk.digest, &digest)
            && wanted != found
        {
            return Err(failed(format!(
                "what was read has the digest {found}, and the recovery point says {wanted}: it is damaged; take an older point"
            )));
        }
        Ok(RestoredDisk {
            disk: disk.disk.clone(),
            name: disk.attached.record.name_label.clone(),
            to: to.to_owned(),
            bytes_written: sent.bytes,
            proven: disk.digest.is_some() && disk.digest == digest,
            digest,
        })
    }

    /// A table that stands for nothing yet: what is restored is not told from what is there before it is.
    fn scratch_table(&self, disk: &OriginDisk, to: &str) -> PathBuf {
        let to = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, to.as_bytes());
        self.run.digests.as_read(&format!("{}.{to}", disk.content))
    }

    fn label(&self, disk: &OriginDisk) -> DiskLabel {
        DiskLabel {
            vm: self.origin.vm.name_label.clone(),
            disk: disk.attached.record.name_label.clone(),
            disk_uuid: disk.disk.clone(),
            targets: vec!["restore".to_owned()],
        }
    }
}

impl OriginDisk {
    fn is_beyond_vhd(&self) -> bool {
        replica_size(self.attached.record.virtual_size) > MAX_VHD_DISK
    }
}

/// Patience, and nothing that is replicated.
fn no_job(tenant: &str) -> Job {
    Job {
        name: "restore".to_owned(),
        tenant: tenant.to_owned(),
        select: Selection::default(),
        targets: Vec::new(),
        stores: Vec::new(),
        ids: JobIds::derived(tenant, "restore"),
        integrity: Integrity::Digest,
        reading: Reading::default(),
        snapshot: SnapshotMode::default(),
        throttles: Vec::new(),
        tuning: Tuning::default(),
    }
}

fn destination(place: Place) -> Destination {
    Destination { lane: LaneId::Pool(0), place, throttles: Vec::new() }
}

/// A recovery point's disk on a pool, as a snapshot's disk is read.
fn taken(disk: &OriginDisk, vdi: &Ref<Vdi>) -> TakenDisk {
    TakenDisk::found(disk.attached.clone(), vdi.clone(), disk.content.clone())
}

async fn lease_back(lease: Lease, report: &mut RestoreReport) {
    if let Err(error) = lease.release().await {
        report.warnings.push(format!("the VM's lease could not be given back and will expire: {}", chain(&error)));
    }
}
