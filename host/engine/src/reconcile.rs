//! What unfinished runs left behind, and how it is put right: at the end of a run that failed, and before anything else
//! happens in the one after a run that died.
//!
//! Only called with the lease held, so nobody else is at work on these objects. Never by `VM.revert`: it destroys
//! before it clones, differs by release, and brings old keys back.

use crate::commit;
use crate::error::RunError;
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::Job;
use crate::keys::{self, Keys};
use crate::lane::Lane;
use crate::memory;
use crate::objects::{destroy_disk, make_from, replace_keys, set_keys};
use crate::replica::{StartBlock, attach_disks, block_start};
use crate::snapshot;
use crate::view::{
    Condition, Identity, Point, PointDisk, Pruning, Replica, SourceSnapshot, SourceVm, TargetView, Unborn, is_unused,
};
use crate::vtpm;
use std::collections::BTreeSet;
use uuid::Uuid;
use vmferry_xapi::records::{Vdi, Vm};
use vmferry_xapi::{ApiError, Error, Record, Ref, Session, params};

/// Puts a target right. Says what it did; nothing when there was nothing to do.
pub(crate) async fn target(lane: &Lane<'_>, job: &Job, identity: &Identity) -> Result<Vec<String>, RunError> {
    let session = &lane.session;
    let mut done = finish_pruning(session, &lane.inventory, &lane.view.pruning).await?;
    let mut removed = Vec::new();
    // Of an SR that is out of reach nothing can be destroyed, and a replica on another one need not wait for that.
    let out_of_reach =
        |disk: &Ref<Vdi>| lane.inventory.vdis.get(disk).is_some_and(|vdi| lane.srs.is_out_of_reach(&vdi.sr));
    for orphan in lane.view.orphans.iter().filter(|orphan| !out_of_reach(orphan)) {
        if destroy_leftover(session, &lane.inventory, orphan).await? {
            removed.push(orphan.clone());
        }
    }
    if !removed.is_empty() {
        done.push(format!("removed what a run that did not finish left: {}", named(lane, &removed)));
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
        if unborn.disks.iter().any(|disk| out_of_reach(&disk.vdi))
            || !is_as_seen(session, &unborn.reference, Some(&unborn.record.other_config)).await?
            || is_unused(&unborn.record) && !is_still_unused(session, &unborn.reference).await?
        {
            continue;
        }
        remove_unborn(session, unborn).await?;
        done.push(format!("removed {}, which a first run that did not finish left", unborn.record.name_label));
    }
    for replica in &lane.view.replicas {
        match replica.condition {
            Condition::HalfWritten => {
                if !is_still_unused(session, &replica.reference).await? {
                    continue;
                }
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

/// A recovery point that some target holds, as far as it matters to the source.
pub(crate) struct Holding {
    /// uuid of the source's snapshot that it was made of.
    pub(crate) source_snapshot: String,
    /// uuid of the SR that it is on, or the place of its store.
    pub(crate) place: String,
    /// Whether deltas can be made from it: it is not damaged.
    pub(crate) is_base: bool,
}

impl TargetView {
    /// What a pool holds, newest first.
    pub(crate) fn holdings(&self) -> Vec<Holding> {
        let holding = |point: &Point| Holding {
            source_snapshot: point.source_snapshot.clone(),
            place: point.sr.clone(),
            is_base: !point.is_damaged(),
        };
        self.points().map(holding).collect()
    }
}

/// Puts the source right: snapshots of runs that died. `targets` is what those hold that could be asked; where
/// that is not `everybody`, nothing is touched that might be a base.
pub(crate) async fn source(
    session: &Session,
    inventory: &Inventory,
    source: &SourceVm,
    targets: &[Vec<Holding>],
    everybody: bool,
) -> Result<Vec<String>, RunError> {
    let mut done = finish_pruning(session, inventory, &source.pruning).await?;
    for (snapshot, holders) in unmarked(source, targets) {
        let disks = inventory.vms.get(&snapshot.reference).map(|record| inventory.disks_of(record)).unwrap_or_default();
        let disks: Vec<Ref<Vdi>> = disks.into_iter().map(|disk| disk.vdi).collect();
        snapshot::mark_exported(session, &snapshot.reference, &disks, &holders, None).await?;
        done.push(format!("marked source snapshot {} as the base that it is", snapshot.uuid));
    }
    let unconfirmed = if everybody { unconfirmed(source, targets) } else { Vec::new() };
    for snapshot in source.untagged.iter().chain(unconfirmed.iter().map(|snapshot| &snapshot.reference)) {
        if destroy_leftover_snapshot(session, inventory, snapshot).await? {
            done.push("removed a source snapshot of a run that did not finish".to_owned());
        }
    }
    Ok(done)
}

/// The source snapshots that a target made a recovery point of without being marked for it, because the run died or did not hear
/// of it; with the SRs that they are to be marked for.
pub(crate) fn unmarked<'a>(source: &'a SourceVm, targets: &[Vec<Holding>]) -> Vec<(&'a SourceSnapshot, Vec<String>)> {
    let marks = source.snapshots.iter().map(|snapshot| (snapshot, marks_of(snapshot, targets)));
    marks.filter(|(snapshot, marks)| marks.len() > snapshot.exported_to.len()).collect()
}

/// The SRs that a snapshot is marked for, and those that hold a recovery point of it.
fn marks_of(snapshot: &SourceSnapshot, targets: &[Vec<Holding>]) -> Vec<String> {
    let mut marks = snapshot.exported_to.clone();
    marks.extend(holders(&snapshot.uuid, targets).into_iter().filter(|sr| !snapshot.exported_to.contains(sr)));
    marks
}

/// The source snapshots that no target confirmed, nor holds a recovery point of. What media carry is not awaited by anybody yet.
pub(crate) fn unconfirmed<'a>(source: &'a SourceVm, targets: &[Vec<Holding>]) -> Vec<&'a SourceSnapshot> {
    let unmarked =
        source.snapshots.iter().filter(|snapshot| snapshot.exported_to.is_empty() && snapshot.seed.is_none());
    unmarked.filter(|snapshot| holders(&snapshot.uuid, targets).is_empty()).collect()
}

/// The source snapshots that were bases and are none any more, by their marks and by what the targets (all of the job's)
/// hold: a point that is damaged is no base, so the one before it keeps its snapshot.
pub(crate) fn superseded(source: &SourceVm, targets: &[Vec<Holding>], places: &[&[String]]) -> Vec<SourceSnapshot> {
    let mut snapshots = source.snapshots.clone();
    for snapshot in &mut snapshots {
        snapshot.exported_to = marks_of(snapshot, targets);
    }
    snapshots.retain(|snapshot| !snapshot.exported_to.is_empty() || snapshot.seed.is_some());
    let exists = |held: &&Holding| snapshots.iter().any(|snapshot| snapshot.uuid == held.source_snapshot);
    let base_of = |held: &Vec<Holding>| {
        let base = held.iter().filter(|held| held.is_base).find(exists);
        base.map(|held| held.source_snapshot.clone())
    };
    let bases: Vec<String> = targets.iter().filter_map(base_of).collect();
    let superfluous = snapshot::superfluous(&snapshots, places, &[]).into_iter();
    superfluous.filter(|snapshot| !bases.contains(&snapshot.uuid)).cloned().collect()
}

/// The places that hold a recovery point of a source snapshot.
fn holders(snapshot: &str, targets: &[Vec<Holding>]) -> Vec<String> {
    let points = targets.iter().flatten().filter(|held| held.source_snapshot == snapshot);
    points.map(|held| held.place.clone()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Whether the keys of an object are still those that it was found with: somebody may have taken it for himself since.
pub(crate) async fn is_as_seen<T: Record>(
    session: &Session,
    object: &Ref<T>,
    seen: Option<&Keys>,
) -> Result<bool, RunError> {
    match session.call::<Keys>(&format!("{}.get_other_config", T::CLASS), params![object]).await {
        Err(Error::Api(ApiError::HandleInvalid { .. })) => Ok(false),
        keys => Ok(Some(&keys?) == seen),
    }
}

async fn is_still_unused(session: &Session, vm: &Ref<Vm>) -> Result<bool, RunError> {
    Ok(is_unused(&session.get_record(vm).await?))
}

/// Destroys a snapshot if it is still as it was found. Says whether it did.
pub(crate) async fn destroy_leftover_snapshot(
    session: &Session,
    inventory: &Inventory,
    snapshot: &Ref<Vm>,
) -> Result<bool, RunError> {
    let seen = inventory.vms.get(snapshot).map(|seen| &seen.other_config);
    if !is_as_seen(session, snapshot, seen).await? {
        return Ok(false);
    }
    match snapshot::destroy(session, snapshot).await {
        // Somebody has taken it for himself.
        Err(RunError::DestroyBlocked { .. }) => Ok(false),
        destroyed => destroyed.map(|()| true),
    }
}

/// Destroys a disk if it is still as it was found, and on no VM: to XAPI, one on a VM that is halted is free. Says whether it
/// did.
async fn destroy_leftover(session: &Session, inventory: &Inventory, disk: &Ref<Vdi>) -> Result<bool, RunError> {
    let record: Vdi = match session.get_record(disk).await {
        Err(Error::Api(ApiError::HandleInvalid { .. })) => return Ok(false),
        record => record?,
    };
    let seen = inventory.vdis.get(disk).map(|seen| &seen.other_config);
    if seen != Some(&record.other_config) || snapshot::hangs_elsewhere(session, &record, &Ref::null()).await? {
        return Ok(false);
    }
    destroy_disk(session, disk).await?;
    Ok(true)
}

/// Disks by name and uuid, for people.
fn named(lane: &Lane<'_>, disks: &[Ref<Vdi>]) -> String {
    let records = disks.iter().filter_map(|disk| lane.inventory.vdis.get(disk));
    let names: Vec<String> = records.map(|disk| format!("{} ({})", disk.name_label, disk.uuid)).collect();
    format!("{} {}", if names.len() == 1 { "disk" } else { "disks" }, names.join(", "))
}

/// Finishes removals that were begun.
pub(crate) async fn finish_pruning(
    session: &Session,
    inventory: &Inventory,
    pruning: &Pruning,
) -> Result<Vec<String>, RunError> {
    let mut finished = false;
    for snapshot in &pruning.snapshots {
        finished |= destroy_leftover_snapshot(session, inventory, snapshot).await?;
    }
    for disk in &pruning.disks {
        finished |= destroy_leftover(session, inventory, disk).await?;
    }
    Ok(finished.then(|| "finished removing a snapshot".to_owned()).into_iter().collect())
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
    let detached = attach_disks(&lane.session, &replica.reference, &replica.disks, &wanted).await?;
    if let Err(error) = give_back_secrets(&lane.session, replica, point).await {
        tracing::warn!(replica = replica.record.uuid, %error, "its virtual TPM or NVRAM is not that of the recovery point");
    }
    Ok(detached)
}

/// What a guest's disks may be sealed with goes with them: a commit that failed may have brought newer ones. Where the point has no
/// virtual TPM of its own, because its host does not copy them to snapshots, the replica's stays.
async fn give_back_secrets(session: &Session, replica: &Replica, point: &Point) -> Result<(), Error> {
    let record: Vm = session.get_record(&point.reference).await?;
    if let Some(nvram) = record.raw.get("NVRAM").filter(|nvram| replica.record.raw.get("NVRAM") != Some(nvram)) {
        let () = session.call("VM.set_NVRAM", params![&replica.reference, nvram.clone()]).await?;
    }
    let vtpms = vtpm::read(session, &record, &replica.record).await?;
    vtpm::sync(session, &replica.reference, &replica.record, &vtpms).await
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
    let clone: Ref<Vdi> = make_from(session, original, "clone", params![original]).await?;
    let uuid: String = session.call("VDI.get_uuid", params![&clone]).await?;
    let mut own: Keys = keys::inheritable(&held.attached.record.other_config);
    let sr = lane.inventory.srs.get(&held.attached.record.sr).unwrap_or(&lane.sr_record);
    own.extend(importing_keys(job, identity, &sr.uuid));
    own.insert(keys::SELF.to_owned(), uuid);
    own.insert(keys::CONTENT.to_owned(), held.content_key.clone());
    if let Some(disk) = &held.source_disk {
        own.insert(keys::DISK.to_owned(), disk.clone());
    }
    own.extend(memory::key_of(&held.attached.record));
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
