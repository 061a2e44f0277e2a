//! Gets a target ready for the streams: the disks they land on exist and say that they are half written.

use crate::error::RunError;
use crate::inventory::AttachedDisk;
use crate::job::Job;
use crate::keys;
use crate::lane::Lane;
use crate::objects::set_keys;
use crate::plan::{self, Landing, replica_size};
use crate::reconcile::{clone_disk, importing_keys, mark_half_written};
use crate::replica::disk_record;
use crate::view::Identity;
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Ref, Session, params};

/// Prepares one disk per planned transfer, in the order of the source's disks. From the first change on, the replica
/// refuses to start and names the recovery point to clone instead.
pub(crate) async fn prepare(
    lane: &mut Lane<'_>,
    job: &Job,
    identity: &Identity,
    disks: &[&AttachedDisk],
) -> Result<(), RunError> {
    // Whoever held the lease before may still write to the live disks.
    let in_place = lane.continued().filter(|_| !lane.lease.as_ref().is_some_and(|lease| lease.taken_over));
    let landings: Vec<Landing> =
        lane.transfers.iter().map(|transfer| plan::landing(transfer, &lane.view, in_place, &lane.untold)).collect();
    if let Some(lease) = &lane.lease {
        lease.check().await?;
    }
    lane.landing_begun = true;
    if let Some(replica) = lane.continued() {
        mark_half_written(lane, job, identity, replica, replica.newest()).await?;
    }
    for (disk, landing) in disks.iter().zip(landings) {
        let vdi = match landing {
            Landing::InPlace(vdi) => {
                // A chain taken over from Xen Orchestra does not say yet whose its disks are.
                let owner = [(keys::JOB, job.ids.job.to_string()), (keys::VM, identity.vm.clone())];
                set_keys(&lane.session, &vdi, &owner, &[]).await?;
                vdi
            }
            Landing::Clone(held) => clone_disk(lane, job, identity, &held).await?,
            Landing::Fresh => create_disk(lane, job, identity, disk).await?,
        };
        grow(&lane.session, &vdi, replica_size(disk.record.virtual_size)).await?;
        let () = lane
            .session
            .call("VDI.set_name_label", params![&vdi, format!("[Importing] {}", disk.record.name_label)])
            .await?;
        lane.landed.push(vdi);
    }
    Ok(())
}

async fn create_disk(
    lane: &Lane<'_>,
    job: &Job,
    identity: &Identity,
    disk: &AttachedDisk,
) -> Result<Ref<Vdi>, RunError> {
    let mut keys = keys::inheritable(&disk.record.other_config);
    keys.extend(importing_keys(job, identity, &lane.sr_record.uuid));
    let name = format!("[Importing] {}", disk.record.name_label);
    let record = disk_record(&disk.record, lane.sr.as_str(), &name, &keys);
    let vdi: Ref<Vdi> = lane.session.call_async("VDI.create", params![record]).await?;
    let uuid: String = lane.session.call("VDI.get_uuid", params![&vdi]).await?;
    set_keys(&lane.session, &vdi, &[(keys::SELF, uuid)], &[]).await?;
    Ok(vdi)
}

/// Grows the replica's disk to this size, if it is smaller.
async fn grow(session: &Session, vdi: &Ref<Vdi>, size: u64) -> Result<(), RunError> {
    let found: u64 = session.call("VDI.get_virtual_size", params![vdi]).await?;
    if found >= size {
        return Ok(());
    }
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    Ok(session.call_async::<()>("VDI.resize", params![vdi, size]).await?)
}
