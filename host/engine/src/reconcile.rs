//! What unfinished runs left behind, and how it is put right: at the end of a run that failed, and before anything else
//! happens in the one after a run that died.
//!
//! Only called with the lease held, so nobody else is at work on these objects. Never by `VM.revert`: it destroys
//! before it clones, differs by release, and brings old keys back.

use crate::commit;
use crate::error::RunError;
use crate::inventory::AttachedDisk;
use crate::job::Job;
use crate::keys::{self, Keys};
use crate::lane::Lane;
use crate::objects::{destroy_disk, replace_keys, set_keys};
use crate::replica::{StartBlock, attach_disks, block_start};
use crate::snapshot;
use crate::view::{Condition, Identity, Point, PointDisk, Pruning, Replica, SourceVm, Unborn, is_unused};
use uuid::Uuid;
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Ref, Session, params};

/// Puts a target right. Says what it did; nothing when there was nothing to do.
pub(crate) async fn target(lane: &Lane<'_>, job: &Job, identity: &Identity) -> Result<Vec<String>, RunError> {
    let session = &lane.session;
    let mut done = finish_pruning(session, &lane.view.pruning).await?;
    for orphan in &lane.view.orphans {
        destroy_disk(session, orphan).await?;
    }
    if !lane.view.orphans.is_empty() {
        done.push(format!("removed what a run that did not finish left: {}", named(lane, &lane.view.orphans)));
    }
    // Only now: the mark on the original is what told the clone.
    let marked = &lane.view.marked_for_cloning;
    for original in marked {
        set_keys(session, original, &[], &[keys::CLONING]).await?;
    }
    if !marked.is_empty() {
        done.push(format!("took the mark of an interrupted clone off a recovery point's {}", named(lane, marked)));
    }
    for unborn in lane.view.unborn.iter().filter(|unborn| is_unused(&unborn.record) || unborn.disks.is_empty()) {
        remove_unborn(session, unborn).await?;
        done.push(format!("removed {}, which a first run that did not finish left", unborn.record.name_label));
    }
    for replica in &lane.view.replicas {
        match replica.condition {
            Condition::HalfWritten => {
                roll_back(lane, job, identity, replica).await?;
                done.push(format!(
                    "rolled replica {} back to recovery point {} after a run that did not finish",
                    replica.record.uuid,
                    replica.newest().uuid
                ));
            }
            Condition::Untidy => {
                commit::tidy(lane, job, identity, &replica.reference).await?;
                done.push(format!("finished the commit of recovery point {}", replica.newest().uuid));
            }
            Condition::Tidy | Condition::Used | Condition::FailedOver | Condition::Foreign => {}
        }
    }
    Ok(done)
}

/// Puts the source right: snapshots of runs that died. `points` are the source snapshots that some target holds a recovery
/// point of; `None` when not every target could be asked, and then nothing that might be a base is touched.
pub(crate) async fn source(
    session: &Session,
    source: &SourceVm,
    points: Option<&[String]>,
) -> Result<Vec<String>, RunError> {
    let mut done = finish_pruning(session, &source.pruning).await?;
    let untagged = source.untagged.iter();
    let unconfirmed = source
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.exported_to.is_empty())
        .filter(|snapshot| points.is_some_and(|points| !points.contains(&snapshot.uuid)))
        .map(|snapshot| &snapshot.reference);
    for snapshot in untagged.chain(unconfirmed) {
        snapshot::destroy(session, snapshot).await?;
        done.push("removed a source snapshot of a run that did not finish".to_owned());
    }
    Ok(done)
}

/// Disks by name and uuid, for people.
fn named(lane: &Lane<'_>, disks: &[Ref<Vdi>]) -> String {
    let records = disks.iter().filter_map(|disk| lane.inventory.vdis.get(disk));
    let names: Vec<String> = records.map(|disk| format!("{} ({})", disk.name_label, disk.uuid)).collect();
    format!("{} {}", if names.len() == 1 { "disk" } else { "disks" }, names.join(", "))
}

async fn finish_pruning(session: &Session, pruning: &Pruning) -> Result<Vec<String>, RunError> {
    for snapshot in &pruning.snapshots {
        snapshot::destroy(session, snapshot).await?;
    }
    for disk in &pruning.disks {
        destroy_disk(session, disk).await?;
    }
    let found = !pruning.snapshots.is_empty() || !pruning.disks.is_empty();
    Ok(found.then(|| "finished removing a snapshot".to_owned()).into_iter().collect())
}

/// A first import that never reached its commit: the VM and the disks that were made for it.
async fn remove_unborn(session: &Session, unborn: &Unborn) -> Result<(), RunError> {
    let () = session.call_async("VM.destroy", params![&unborn.reference]).await?;
    for disk in unborn.disks.iter().filter(|disk| disk.record.other_config.contains_key(keys::JOB)) {
        destroy_disk(session, &disk.vdi).await?;
    }
    Ok(())
}

/// Replaces the half-written live disks by clones of the newest recovery point's, and only then destroys what was half
/// written.
async fn roll_back(lane: &Lane<'_>, job: &Job, identity: &Identity, replica: &Replica) -> Result<(), RunError> {
    let session = &lane.session;
    let detached = swap_in(lane, job, identity, replica, replica.newest()).await?;
    commit::tidy(lane, job, identity, &replica.reference).await?;
    for disk in replica.disks.iter().filter(|disk| detached.contains(&disk.vdi)) {
        if disk.record.other_config.get(keys::JOB) == Some(&job.ids.job.to_string()) {
            destroy_disk(session, &disk.vdi).await?;
        }
    }
    Ok(())
}

/// Puts clones of a recovery point's disks in the place of a replica's live disks: clone, then attach. The replica says
/// that it is half written until its keys are put right. Returns the disks that came off, each marked as a leftover.
pub(crate) async fn swap_in(
    lane: &Lane<'_>,
    job: &Job,
    identity: &Identity,
    replica: &Replica,
    point: &Point,
) -> Result<Vec<Ref<Vdi>>, RunError> {
    mark_half_written(lane, job, identity, replica, point).await?;
    let mut clones: Vec<Ref<Vdi>> = Vec::with_capacity(point.disks.len());
    for held in &point.disks {
        clones.push(clone_disk(lane, job, identity, held).await?);
    }
    let wanted: Vec<(&AttachedDisk, &Ref<Vdi>)> = point.disks.iter().map(|held| &held.attached).zip(&clones).collect();
    Ok(attach_disks(&lane.session, &replica.reference, &replica.disks, &wanted).await?)
}

/// From here on the replica refuses to start and names the recovery point to clone instead, and whoever finds it rolls it
/// back.
pub(crate) async fn mark_half_written(
    lane: &Lane<'_>,
    job: &Job,
    identity: &Identity,
    replica: &Replica,
    point: &Point,
) -> Result<(), RunError> {
    let block = StartBlock::HalfWritten { job: &job.name, last_point: Some(&point.uuid) };
    block_start(&lane.session, &replica.reference, block).await?;
    let state = [
        (keys::STATE, keys::State::Importing.to_string()),
        (keys::JOB, job.ids.job.to_string()),
        (keys::VM, identity.vm.clone()),
        (keys::SELF, replica.record.uuid.clone()),
    ];
    let set = |keys: &mut Keys| keys.extend(state.map(|(key, value)| (key.to_owned(), value)));
    lane.change_live_keys(&replica.reference, set).await
}

/// Clones a disk of a recovery point. The clone inherits the point's keys, so the point is marked first: a clone
/// whose maker dies before it could be given its own keys carries the mark.
pub(crate) async fn clone_disk(
    lane: &Lane<'_>,
    job: &Job,
    identity: &Identity,
    held: &PointDisk,
) -> Result<Ref<Vdi>, RunError> {
    let session = &lane.session;
    let original = &held.attached.vdi;
    set_keys(
        session,
        original,
        &[
            (keys::CLONING, Uuid::new_v4().to_string()),
            (keys::JOB, job.ids.job.to_string()),
            (keys::VM, identity.vm.clone()),
        ],
        &[],
    )
    .await?;
    let clone: Ref<Vdi> = session.call_async("VDI.clone", params![original]).await?;
    let uuid: String = session.call("VDI.get_uuid", params![&clone]).await?;
    let mut own: Keys = keys::inheritable(&held.attached.record.other_config);
    own.extend(importing_keys(job, identity, &lane.target.sr));
    own.insert(keys::SELF.to_owned(), uuid);
    own.insert(keys::CONTENT.to_owned(), held.content_key.clone());
    if let Some(disk) = &held.source_disk {
        own.insert(keys::DISK.to_owned(), disk.clone());
    }
    replace_keys(session, &clone, &own).await?;
    set_keys(session, original, &[], &[keys::CLONING]).await?;
    Ok(clone)
}

/// The keys of an object that is being imported.
pub(crate) fn importing_keys(job: &Job, identity: &Identity, sr: &str) -> Keys {
    Keys::from([
        (keys::STATE.to_owned(), keys::State::Importing.to_string()),
        (keys::JOB.to_owned(), job.ids.job.to_string()),
        (keys::TENANT.to_owned(), job.tenant.clone()),
        (keys::VM.to_owned(), identity.vm.clone()),
        (keys::XO_SR.to_owned(), sr.to_owned()),
    ])
}
