//! `vmferry restore`: a recovery point of any target becomes a VM on any pool, the content of a VM that is there, or files.
//!
//! A new VM is a template called `[Restoring]` until everything is in place; what a crash leaves of it is found by `gc` (see
//! `restoring`). A VM that is there gets what differs alone, and a snapshot of what it was first.

use crate::digests::table_size;
use crate::engine::{Engine, RunOptions};
use crate::error::{EngineError, RunError, chain};
use crate::framing::Framing;
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::{Integrity, Job, JobIds, Policies, Reading, Selection, SnapshotMode, StoreTarget, Target, Tuning};
use crate::keys::{self, Keys};
use crate::lane::LaneId;
use crate::lease::Lease;
use crate::memory;
use crate::objects::destroy_disk;
use crate::origin::{DiskOrigin, Origin, OriginDisk};
use crate::ova::{self, Exported};
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
use crate::xva::{self, XvaFile, XvaStore};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vmferry_disk::digest::{DraftTable, Root, Table};
use vmferry_disk::extent::Extents;
use vmferry_xapi::records::{Pool, PowerState, Sr, Vdi, Vm};
use vmferry_xapi::{Ref, Session, params};

/// What a VM's start is refused with while it is restored, before the uuid of the snapshot of what it was.
const HALF_RESTORED: &str = "half restored by vmferry; restore again, or revert to snapshot ";

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
        match &request.to {
            RestoreTo::NewVm { pool, sr, networks, name } => {
                let target = self.place_on(pool, sr.as_deref(), networks).await?;
                restore.to_new_vm(&target, name.as_deref(), &mut report).await?;
            }
            RestoreTo::Onto { pool, vm } => {
                let session = self.pools.session(pool).await?;
                restore.onto(&session, pool, vm, &mut report).await?;
            }
            RestoreTo::Files { folder, format } => restore.to_files(folder, *format, &mut report).await?,
            RestoreTo::Xva { file } => restore.to_xva(file, &mut report).await?,
        }
        Ok(report)
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
        let found = match sr {
            Some(uuid) => session.by_uuid::<Sr>(uuid).await.ok(),
            None => {
                let pools = session.get_all_records::<Pool>().await.map_err(RunError::from)?;
                pools.into_iter().next().map(|(_, pool)| pool.default_sr).filter(|sr| !sr.is_null())
            }
        };
        let missing = || match sr {
            Some(uuid) => format!("pool {pool} has no SR {uuid}; `xe sr-list` names those it has"),
            None => format!("pool {pool} has no default SR; name one with --sr"),
        };
        let found = found.ok_or_else(|| EngineError::Usage(missing()))?;
        let uuid = session.call("SR.get_uuid", params![&found]).await.map_err(|_| EngineError::Usage(missing()))?;
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

    async fn to_files(
        &self,
        folder: &Path,
        format: ImageFormat,
        report: &mut RestoreReport,
    ) -> Result<(), EngineError> {
        let failed = |error: std::io::Error| RunError::Media(format!("{}: {error}", folder.display()));
        std::fs::create_dir_all(folder).map_err(failed)?;
        for disk in self.disks() {
            let path = folder.join(image_name(&self.origin.vm.name_label, disk, format));
            let size = replica_size(disk.attached.record.virtual_size);
            let place = Place::Image { path: path.clone(), format, size };
            let to = path.display().to_string();
            match self.whole(disk, place, &to).await {
                Ok(restored) => report.disks.push(restored),
                Err(error) => {
                    let _ = std::fs::remove_file(&path);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// The VM and its disks as one file. What is there of it when something fails is removed.
    async fn to_xva(&self, path: &Path, report: &mut RestoreReport) -> Result<(), EngineError> {
        let disks: Vec<&OriginDisk> = self.disks().collect();
        let keys = self.keys();
        let exported = Exported {
            uuid: &report.vm,
            name: &self.origin.vm.name_label,
            record: &self.origin.snapshot,
            other_config: &keys,
            disks: disks.iter().map(|disk| &disk.attached).collect(),
            networks: &self.origin.networks,
        };
        let document = ova::write(&exported).map_err(|why| {
            let object = self.origin.point.clone();
            RunError::Inconsistent { what: "recovery point", object, why }
        })?;
        let xva = XvaFile::create(path, &document.xml).map_err(|error| xva::write_failed(path, &error))?;
        let written = self.write_disks(&xva, disks.into_iter().zip(&document.disks), report).await;
        if written.is_err() {
            let _ = std::fs::remove_file(path);
        }
        Ok(written?)
    }

    async fn write_disks<'o>(
        &self,
        xva: &XvaFile,
        disks: impl Iterator<Item = (&'o OriginDisk, &'o String)>,
        report: &mut RestoreReport,
    ) -> Result<(), RunError> {
        for (disk, id) in disks {
            let size = replica_size(disk.attached.record.virtual_size);
            let place = Place::Xva { xva: xva.clone(), id: id.clone(), size };
            let to = format!("{}: {id}", xva.path().display());
            report.disks.push(self.whole(disk, place, &to).await?);
        }
        let (file, path) = (xva.clone(), xva.path());
        blocking(move || file.finish()).await.map_err(|error| xva::write_failed(path, &error))
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
            Ok(lease) => self.hand_over(lease, report).await,
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
        lease.check().await?;
        let () = session.call("VM.set_name_label", params![vm, name]).await?;
        let () = session.call("VM.set_is_a_template", params![vm, false]).await?;
        report.restored = Some(uuid);
        Ok(lease)
    }

    /// Takes off what tells the VM from its owner's others.
    async fn hand_over(&self, lease: Lease, report: &mut RestoreReport) {
        if let Err(error) = lease.change_keys(|keys| drop(keys.remove(keys::RESTORING))).await {
            let what = "the VM is whole and keeps the key `vmferry:restoring`, which does no harm";
            report.warnings.push(format!("{what}: {}", chain(&error)));
        }
        lease_back(lease, report).await;
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
            let place = Place::Disk { session: session.clone(), vdi };
            report.disks.push(self.whole(disk, place, &to).await?);
        }
        let record: Vm = session.get_record(vm).await?;
        replica::copy_bios_strings(session, vm, &record, &self.origin.snapshot).await?;
        Ok(replica::sync_interfaces(session, vm, &record, interfaces).await?)
    }

    /// Reads a disk whole into a new place.
    async fn whole(&self, disk: &OriginDisk, place: Place, to: &str) -> Result<RestoredDisk, RunError> {
        let size = table_size(disk.attached.record.virtual_size);
        let table = Table::create(self.scratch_table(disk, to), size).map_err(RunError::Digests)?;
        let moved = match &disk.from {
            DiskOrigin::Pool(session, vdi) => {
                let taken = taken(disk, vdi);
                let label = self.label(disk);
                let framing = Chunked::Unusable("a new disk takes VHD");
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

    async fn pour(
        &self,
        disk: &OriginDisk,
        stored: &StoredSource,
        extents: &Extents,
        place: Place,
        table: DraftTable,
    ) -> Result<Moved, SourceFailed> {
        let vhd = stored.size() <= crate::allocation::MAX_VHD_DISK;
        let (retrieving, shape) = stored.open(extents, vhd).await?;
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

    async fn onto(
        &self,
        session: &Session,
        pool: &str,
        uuid: &str,
        report: &mut RestoreReport,
    ) -> Result<(), EngineError> {
        let inventory = Inventory::load(session).await.map_err(RunError::from)?;
        let found = inventory.vm_by_uuid(uuid).filter(|(_, vm)| !vm.is_a_snapshot);
        let (vm, record) = found.ok_or_else(|| {
            EngineError::Usage(format!("pool {pool} has no VM {uuid}; `xe vm-list` names those it has"))
        })?;
        if record.power_state != PowerState::Halted {
            let state = format!("{:?}", record.power_state).to_lowercase();
            return Err(EngineError::Refused(format!("VM {uuid} is {state}; shut it down first")));
        }
        let pairs = self.pairs(&inventory.disks_of(record), uuid)?;
        let on_pool = pairs.iter().any(|(disk, _)| matches!(disk.from, DiskOrigin::Pool(..)));
        let framing = Framing::of(session, self.run.runs, &self.run.job.tenant).await.map_err(RunError::from)?;
        if let (true, Chunked::Unusable(why)) = (on_pool, framing.chunked) {
            return Err(EngineError::Refused(format!(
                "what differs cannot be sent to pool {pool} alone: {why}; restore to a new VM instead"
            )));
        }
        let lease = self.run.lease(session, vm, uuid).await?;
        let done = self.onto_leased(session, vm, record, &pairs, &framing, report).await;
        lease_back(lease, report).await;
        report.restored = Some(uuid.to_owned());
        Ok(done?)
    }

    /// The disks of the point and those of the VM that take their content: the same disk, else the one at the same place.
    fn pairs<'o>(
        &'o self,
        existing: &[AttachedDisk],
        uuid: &str,
    ) -> Result<Vec<(&'o OriginDisk, AttachedDisk)>, EngineError> {
        let mut pairs = Vec::new();
        for disk in self.disks() {
            let place = &disk.attached.vbd_record.userdevice;
            let same = existing.iter().find(|there| there.record.uuid == disk.disk);
            let there = same.or(existing.iter().find(|there| there.vbd_record.userdevice == *place));
            let wanted = replica_size(disk.attached.record.virtual_size);
            match there {
                Some(there) if replica_size(there.record.virtual_size) == wanted => pairs.push((disk, there.clone())),
                _ => {
                    return Err(EngineError::Refused(format!(
                        "VM {uuid} has no disk of {wanted} bytes for {} at device {place}; restore to a new VM instead",
                        disk.attached.record.name_label
                    )));
                }
            }
        }
        Ok(pairs)
    }

    async fn onto_leased(
        &self,
        session: &Session,
        vm: &Ref<Vm>,
        record: &Vm,
        pairs: &[(&OriginDisk, AttachedDisk)],
        framing: &Framing,
        report: &mut RestoreReport,
    ) -> Result<(), RunError> {
        let mut blocked: Keys = session.call("VM.get_blocked_operations", params![vm]).await?;
        // A restore that broke off kept what the VM had been before, and left the block that names it.
        let kept = blocked.get("start").and_then(|text| text.strip_prefix(HALF_RESTORED)).map(str::to_owned);
        blocked.retain(|_, text| !text.starts_with(HALF_RESTORED));
        let before = blocked.clone();
        let snapshot = match kept {
            Some(snapshot) => snapshot,
            None => {
                let taken_at = keys::compact_datetime(self.origin.taken_at);
                let name = format!("{} before restore of {taken_at}", record.name_label);
                let snapshot: Ref<Vm> = session.call_async("VM.snapshot", params![vm, name]).await?;
                session.call("VM.get_uuid", params![&snapshot]).await?
            }
        };
        report.safety_snapshot = Some(snapshot.clone());
        let text = format!("{HALF_RESTORED}{snapshot}");
        blocked.extend(["start", "start_on"].map(|start| (start.to_owned(), text.clone())));
        let () = session.call("VM.set_blocked_operations", params![vm, blocked]).await?;
        for (disk, there) in pairs {
            report.disks.push(self.difference(session, disk, there, framing).await?);
        }
        Ok(session.call("VM.set_blocked_operations", params![vm, before]).await?)
    }

    /// Writes what differs between a disk of the point and one that is there.
    async fn difference(
        &self,
        session: &Session,
        disk: &OriginDisk,
        there: &AttachedDisk,
        framing: &Framing,
    ) -> Result<RestoredDisk, RunError> {
        let to = there.record.uuid.clone();
        let size = table_size(disk.attached.record.virtual_size);
        let found = self.digests_of(session, there, size, "found").await?;
        let place = Place::Disk { session: session.clone(), vdi: there.vdi.clone() };
        let table = {
            let (found, path) = (found.clone(), self.scratch_table(disk, &to));
            blocking(move || Table::derive_from(&found, path, size)).await.map_err(RunError::Digests)?
        };
        let moved = match &disk.from {
            DiskOrigin::Pool(origin, vdi) => {
                let taken = taken(disk, vdi);
                let label = self.label(disk);
                let from = From::Copy(found.clone());
                let want = Want::of_one(from, destination(place), table, framing.chunked, &label);
                let stream = Stream { source: origin, disk: &taken, wants: vec![want], label };
                transfer::carry_one(self.run, stream).await
            }
            DiskOrigin::Store(stored) => {
                let wanted = self.digests_of_stored(disk, stored, size).await?;
                let differences = {
                    let (found, wanted) = (found.clone(), wanted.clone());
                    let compare = move || Table::open(found)?.differences(&Table::open(wanted)?);
                    blocking(compare).await.map_err(RunError::Digests)?
                };
                self.pour(disk, stored, &differences, place, table).await
            }
        };
        let restored = self.restored(disk, &to, moved);
        let _ = std::fs::remove_file(&found);
        let mut restored = restored?;
        if matches!(disk.from, DiskOrigin::Pool(..)) && framing.chunked == Chunked::Untried {
            // No host of this version has shown yet that it writes what it is sent in this framing.
            let after = self.digests_of(session, there, size, "after").await?;
            let root = blocking({
                let after = after.clone();
                move || Table::open(after)?.root()
            });
            let root = root.await.map_err(RunError::Digests)?.to_string();
            let _ = std::fs::remove_file(&after);
            let good = restored.digest.as_ref() == Some(&root);
            framing.learn(self.run.runs, good, restored.bytes_written > 0).await;
            if !good {
                return Err(RunError::Transfer {
                    disk: disk.disk.clone(),
                    message: "the host did not write what it was sent; restore to a new VM instead".to_owned(),
                });
            }
            restored.proven = true;
        }
        Ok(restored)
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

    /// The digests of what a store holds: remembered, else read.
    async fn digests_of_stored(
        &self,
        disk: &OriginDisk,
        stored: &StoredSource,
        size: u64,
    ) -> Result<PathBuf, RunError> {
        if let Some(root) = &disk.digest
            && let Some(known) = self.run.digests.of_content_with(&disk.content, root).await
        {
            return Ok(known);
        }
        let path = self.run.digests.of_content(&disk.content);
        let table = Table::create(&path, size).map_err(RunError::Digests)?;
        let layout = stored.layout().await?;
        let failed = |SourceFailed(message)| RunError::Transfer { disk: disk.disk.clone(), message };
        let read = self.read_only(disk, stored, &layout, table).await.map_err(failed)?;
        match &disk.digest {
            Some(wanted) if *wanted != read.to_string() => Err(RunError::Transfer {
                disk: disk.disk.clone(),
                message: format!("it has the digest {read}, and the recovery point says {wanted}: it is damaged"),
            }),
            _ => Ok(path),
        }
    }

    /// Reads a stored disk for its digests alone.
    async fn read_only(
        &self,
        disk: &OriginDisk,
        stored: &StoredSource,
        layout: &Extents,
        mut table: DraftTable,
    ) -> Result<Root, SourceFailed> {
        let vhd = stored.size() <= crate::allocation::MAX_VHD_DISK;
        let (mut retrieving, shape) = stored.open(layout, vhd).await?;
        let label = self.label(disk);
        self.run.progress.disk_started(&label, layout.total_bytes());
        let mut set = |leaf, digest| table.set(leaf, digest);
        let options = vmferry_disk::transfer::Options {
            leaves: Some(&mut set),
            progress: &(),
            throttles: &[],
            stall: self.run.job.tuning.stall,
            first_byte: self.run.job.tuning.first_byte,
        };
        let no_sink: &mut [vmferry_xapi::Import] = &mut [];
        let read = vmferry_disk::transfer::lockstep(&mut retrieving, shape.layout(), no_sink, options).await;
        self.run.progress.disk_finished(&label, read.is_ok());
        match read {
            Ok(_) => retrieving.finish().await?,
            Err(error) => return Err(retrieving.explain(chain(&error)).await),
        }
        Ok(blocking(move || table.commit()).await?)
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

/// `erp-db-0-system.raw`, with nothing in it that could leave its folder.
fn image_name(vm: &str, disk: &OriginDisk, format: ImageFormat) -> String {
    let plain = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' })
            .take(64)
            .collect()
    };
    let extension = match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
    };
    let (vm, name) = (plain(vm), plain(&disk.attached.record.name_label));
    format!("vm-{vm}-{}-{name}.{extension}", plain(&disk.attached.vbd_record.userdevice))
}

async fn lease_back(lease: Lease, report: &mut RestoreReport) {
    if let Err(error) = lease.release().await {
        report.warnings.push(format!("the VM's lease could not be given back and will expire: {}", chain(&error)));
    }
}
