//! A recovery point onto a VM that is there: what differs by digests is written, and nothing else.
//!
//! The VM is snapshotted first, and cannot be started from then until all is written. A second attempt after one that broke off goes on
//! from the first one's snapshot.

use super::{Restore, RestoreReport, RestoredDisk, destination, lease_back, taken};
use crate::digests::table_size;
use crate::error::{EngineError, RunError, chain};
use crate::framing::Framing;
use crate::inventory::{AttachedDisk, Inventory};
use crate::keys::{self, Keys};
use crate::origin::{DiskOrigin, OriginDisk};
use crate::plan::replica_size;
use crate::retrieving::StoredSource;
use crate::shares::Want;
use crate::source::Chunked;
use crate::transfer::{self, From, Place, SourceFailed, Stream, blocking};
use std::path::PathBuf;
use vmferry_disk::digest::{DraftTable, Root, Table};
use vmferry_disk::extent::Extents;
use vmferry_xapi::records::{PowerState, Vm};
use vmferry_xapi::{Ref, Session, params};

/// What a VM's start is refused with while it is restored, before the uuid of the snapshot of what it was.
const HALF_RESTORED: &str = "half restored by vmferry; restore again, or revert to snapshot ";

/// What follows where its owner had blocked it already, before his text.
const BLOCKED_BEFORE: &str = "; blocked before: ";

/// The snapshot and the owner's text of such a refusal.
fn half_restored(text: &str) -> Option<(&str, Option<&str>)> {
    let rest = text.strip_prefix(HALF_RESTORED)?;
    Some(match rest.split_once(BLOCKED_BEFORE) {
        Some((snapshot, before)) => (snapshot, Some(before)),
        None => (rest, None),
    })
}

/// Blocks the start of a VM that is being restored, beside what its owner blocked.
fn block(before: &Keys, snapshot: &str) -> Keys {
    let mut blocked = before.clone();
    for operation in ["start", "start_on"] {
        let owners = before.get(operation).map(|text| format!("{BLOCKED_BEFORE}{text}")).unwrap_or_default();
        blocked.insert(operation.to_owned(), format!("{HALF_RESTORED}{snapshot}{owners}"));
    }
    blocked
}

/// What its owner blocked, and the snapshot that a restore which broke off had taken.
fn blocked_by_owner(found: &Keys) -> (Keys, Option<String>) {
    let mut snapshot = None;
    let owners = found.iter().filter_map(|(operation, text)| match half_restored(text) {
        Some((of, before)) => {
            snapshot = Some(of.to_owned());
            Some((operation.clone(), before?.to_owned()))
        }
        None => Some((operation.clone(), text.clone())),
    });
    (owners.collect(), snapshot)
}

impl Restore<'_> {
    pub(super) async fn onto(
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
        let needs_framing = pairs.iter().any(|(disk, _)| disk.travels_in_chunked_framing());
        let framing = Framing::of(session, self.run.runs, &self.run.job.tenant).await.map_err(RunError::from)?;
        if let (true, Chunked::Unusable(why)) = (needs_framing, framing.chunked) {
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

    /// The disks of the point and those of the VM that take their content: the same disk, else one at the same place that is none of
    /// the point's.
    fn pairs<'o>(
        &'o self,
        existing: &[AttachedDisk],
        uuid: &str,
    ) -> Result<Vec<(&'o OriginDisk, AttachedDisk)>, EngineError> {
        let is_same = |disk: &OriginDisk, there: &AttachedDisk| there.record.uuid == disk.disk;
        let mut pairs = Vec::new();
        for disk in self.disks() {
            let place = &disk.attached.vbd_record.userdevice;
            let is_at_its_place = |there: &&AttachedDisk| {
                there.vbd_record.userdevice == *place && !self.disks().any(|disk| is_same(disk, there))
            };
            let same = existing.iter().find(|there| is_same(disk, there));
            let there = same.or_else(|| existing.iter().find(is_at_its_place));
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
        let found: Keys = session.call("VM.get_blocked_operations", params![vm]).await?;
        let (before, kept) = blocked_by_owner(&found);
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
        let () = session.call("VM.set_blocked_operations", params![vm, block(&before, &snapshot)]).await?;
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
        if disk.travels_in_chunked_framing() {
            self.prove(session, there, framing, &mut restored).await?;
        }
        Ok(restored)
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
        let (mut retrieving, shape) = stored.open(layout, !disk.is_beyond_vhd()).await?;
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
}

impl OriginDisk {
    /// Whether what differs is sent in XAPI's chunked framing: what is read of a pool always is, what comes from a store only where a VHD
    /// could not hold it.
    fn travels_in_chunked_framing(&self) -> bool {
        matches!(self.from, DiskOrigin::Pool(..)) || self.is_beyond_vhd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_owner_blocked_is_his_again_however_often_a_restore_breaks_off() {
        let owners =
            Keys::from([("start", "a standby"), ("destroy", "keep")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        let mut found = owners.clone();
        for _ in 0..2 {
            let (before, _) = blocked_by_owner(&found);
            found = block(&before, "snapshot");
            assert!(found["start"].starts_with(HALF_RESTORED) && found["start_on"].starts_with(HALF_RESTORED));
        }
        assert_eq!(blocked_by_owner(&found), (owners.clone(), Some("snapshot".to_owned())));
        assert_eq!(blocked_by_owner(&owners), (owners, None));
    }
}
