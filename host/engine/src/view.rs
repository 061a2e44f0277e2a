//! What a run decides on: the source VM and what its targets hold, read out of inventories by pure functions.
//!
//! Here stand the rules for which keys count where. A recovery point is a snapshot whose keys say `committed` for the
//! very VM it is a snapshot of, with the real date and a content key on every disk; what Xen Orchestra made counts on the
//! terms of [`crate::xen_orchestra`]. Everything else that carries our keys is a user's copy or a leftover.

use crate::inventory::{AttachedDisk, Inventory};
use crate::job::JobIds;
use crate::keys::{self, Keys, State};
use crate::memory;
use crate::xen_orchestra::{self, Unproven};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;
use vmferry_xapi::Ref;
use vmferry_xapi::records::{PowerState, Vdi, VdiType, Vm};

/// Disks whose name contains this are not replicated: Xen Orchestra's convention.
const NO_BACKUP_MARK: &str = "[NOBAK]";

/// Name of a source snapshot until it carries its keys; one that keeps it was made by a run that died.
pub(crate) const TEMPORARY_SNAPSHOT: &str = "vmferry-temporary-snapshot";

/// Which replication the objects belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) ids: JobIds,
    /// uuid of the source VM.
    pub(crate) vm: String,
}

impl Identity {
    pub(crate) fn owns(&self, keys: &Keys) -> bool {
        keys.get(keys::JOB) == Some(&self.ids.job.to_string()) && keys.get(keys::VM) == Some(&self.vm)
    }

    /// The same by Xen Orchestra's keys, which both programs write.
    pub(crate) fn is_named_by(&self, keys: &Keys) -> bool {
        keys.get(keys::XO_JOB) == Some(&self.ids.job.to_string()) && keys.get(keys::XO_VM) == Some(&self.vm)
    }
}

/// The VM to protect.
#[derive(Clone, Debug)]
pub(crate) struct SourceVm {
    pub(crate) reference: Ref<Vm>,
    pub(crate) record: Vm,
    /// Disks that are replicated, by device number.
    pub(crate) disks: Vec<AttachedDisk>,
    /// Disks that are not: their names say `[NOBAK]`.
    pub(crate) ignored: Vec<AttachedDisk>,
    /// Snapshots that this job made, oldest first.
    pub(crate) snapshots: Vec<SourceSnapshot>,
    /// The newest date of a snapshot that carries the job's ids, whoever made it.
    pub(crate) newest_date: Option<Timestamp>,
    /// SRs that an old Xen Orchestra replicated it to: see [`xen_orchestra`].
    pub(crate) legacy_srs: BTreeSet<String>,
    /// Snapshots of a run that died before it could tag them.
    pub(crate) untagged: Vec<Ref<Vm>>,
    /// Snapshots whose destruction was interrupted.
    pub(crate) pruning: Pruning,
    /// Every snapshot disk that a delta could start from, by uuid.
    pub(crate) bases: BTreeMap<String, BaseDisk>,
    /// Snapshot disks without data, by uuid: only their change log is left.
    pub(crate) purged: BTreeSet<String>,
}

/// A snapshot of the source made by this job.
#[derive(Clone, Debug)]
pub(crate) struct SourceSnapshot {
    pub(crate) reference: Ref<Vm>,
    pub(crate) uuid: String,
    pub(crate) taken_at: Timestamp,
    /// uuids of the target SRs that hold a recovery point of it.
    pub(crate) exported_to: Vec<String>,
    /// uuids of those on which one was about to be made.
    pub(crate) offered_to: Vec<String>,
    /// Id of the media that it was exported to.
    pub(crate) seed: Option<String>,
}

/// A snapshot disk of the source.
#[derive(Clone, Debug)]
pub(crate) struct BaseDisk {
    pub(crate) vdi: Ref<Vdi>,
    /// The live disk it is a snapshot of.
    pub(crate) of: Ref<Vdi>,
    pub(crate) taken_at: Timestamp,
}

impl SourceVm {
    pub(crate) fn new(inventory: &Inventory, reference: &Ref<Vm>, record: &Vm, ids: &JobIds) -> Self {
        let (ignored, disks) =
            inventory.disks_of(record).into_iter().partition(|disk| disk.record.name_label.contains(NO_BACKUP_MARK));
        let identity = Identity { ids: *ids, vm: record.uuid.clone() };
        let taken: Vec<(&Ref<Vm>, &Vm)> =
            inventory.vms.iter().filter(|(_, vm)| vm.is_a_snapshot && vm.snapshot_of == *reference).collect();
        let mut snapshots: Vec<SourceSnapshot> = taken
            .iter()
            .filter(|(_, vm)| identity.owns(&vm.other_config) && !vm.other_config.contains_key(keys::XO_COPY_OF))
            .filter(|(_, vm)| vm.other_config.get(keys::SELF) == Some(&vm.uuid))
            .filter(|(_, vm)| !matches!(State::of(&vm.other_config), Some(State::Pruning { .. })))
            .map(|(snapshot, vm)| SourceSnapshot {
                reference: (*snapshot).clone(),
                uuid: vm.uuid.clone(),
                taken_at: vm
                    .other_config
                    .get(keys::XO_DATETIME)
                    .and_then(|text| keys::parse_datetime(text))
                    .unwrap_or(vm.snapshot_time),
                exported_to: keys::srs_under(&vm.other_config, keys::EXPORTED_TO).map(str::to_owned).collect(),
                offered_to: keys::srs_under(&vm.other_config, keys::OFFERED_TO).map(str::to_owned).collect(),
                seed: vm.other_config.get(keys::SEED).cloned(),
            })
            .collect();
        snapshots.sort_by_key(|snapshot| snapshot.taken_at);
        let untagged = taken
            .iter()
            .filter(|(_, vm)| vm.name_label == TEMPORARY_SNAPSHOT)
            .map(|(snapshot, _)| (*snapshot).clone())
            .collect();
        let newest_date = taken
            .iter()
            .filter(|(_, vm)| identity.is_named_by(&vm.other_config))
            .filter_map(|(_, vm)| keys::parse_datetime(vm.other_config.get(keys::XO_DATETIME)?))
            .max();
        let (purged, kept): (Vec<_>, Vec<_>) = inventory
            .vdis
            .iter()
            .filter(|(_, vdi)| vdi.is_a_snapshot && vdi.managed && !vdi.missing)
            .partition(|(_, vdi)| vdi.kind == VdiType::CbtMetadata);
        let bases = kept
            .into_iter()
            .map(|(vdi, record)| {
                let of = record.snapshot_of.clone();
                (record.uuid.clone(), BaseDisk { vdi: vdi.clone(), of, taken_at: record.snapshot_time })
            })
            .collect();
        Self {
            reference: reference.clone(),
            record: record.clone(),
            disks,
            ignored,
            snapshots,
            newest_date,
            legacy_srs: xen_orchestra::legacy_srs(record),
            untagged,
            pruning: Pruning::new(inventory, &identity),
            bases,
            purged: purged.into_iter().map(|(_, record)| record.uuid.clone()).collect(),
        }
    }

    /// Whether a snapshot made for this target still exists.
    pub(crate) fn keeps_snapshot_for(&self, srs: &[String]) -> bool {
        self.snapshots.iter().any(|snapshot| snapshot.exported_to.iter().any(|to| srs.contains(to)))
    }
}

/// What one target holds of one source VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct TargetView {
    /// Replicas with at least one recovery point; the one with the newest point first.
    pub(crate) replicas: Vec<Replica>,
    /// VMs whose first import never reached its commit.
    pub(crate) unborn: Vec<Unborn>,
    /// Disks of interrupted runs that hang on no VM.
    pub(crate) orphans: Vec<Ref<Vdi>>,
    /// Disks of recovery points that were being cloned when a run died.
    pub(crate) marked_for_cloning: Vec<Ref<Vdi>>,
    /// Recovery points whose destruction was interrupted.
    pub(crate) pruning: Pruning,
    /// Copies made by Xen Orchestra that are no recovery points.
    pub(crate) unproven: Vec<Unproven>,
}

/// Snapshots marked for destruction, and such disks whose snapshot is gone already.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pruning {
    pub(crate) snapshots: Vec<Ref<Vm>>,
    pub(crate) disks: Vec<Ref<Vdi>>,
}

impl Pruning {
    pub(crate) fn new(inventory: &Inventory, identity: &Identity) -> Self {
        let marked = |keys: &Keys, uuid: &str| {
            (identity.owns(keys) || identity.is_named_by(keys))
                && State::of(keys) == Some(State::Pruning { object: uuid.to_owned() })
        };
        let snapshots = inventory.vms.iter().filter(|(_, vm)| vm.is_a_snapshot && marked(&vm.other_config, &vm.uuid));
        let disks = inventory
            .vdis
            .iter()
            .filter(|(_, vdi)| vdi.is_a_snapshot || vdi.kind == VdiType::Suspend)
            .filter(|(_, vdi)| vdi.managed && marked(&vdi.other_config, &vdi.uuid))
            .filter(|(reference, vdi)| !inventory.is_used(vdi) && !inventory.is_suspend_image(reference));
        Self {
            snapshots: snapshots.map(|(reference, _)| reference.clone()).collect(),
            disks: disks.map(|(reference, _)| reference.clone()).collect(),
        }
    }
}

/// A VM that holds recovery points.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) reference: Ref<Vm>,
    pub(crate) record: Vm,
    pub(crate) disks: Vec<AttachedDisk>,
    /// Its recovery points, newest first; never empty.
    pub(crate) points: Vec<Point>,
    pub(crate) condition: Condition,
}

/// What the live objects of a replica say about the last run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It ended as it should.
    Tidy,
    /// It was interrupted while it wrote to the live disks, and nobody has used them since.
    HalfWritten,
    /// It was interrupted after its commit, before it tidied the live objects.
    Untidy,
    /// Somebody reverted the replica to an older recovery point, or unblocked a half-written one to use it.
    Used,
    /// It was started by a failover, or is about to be.
    FailedOver,
    /// Xen Orchestra's keys of a run under way stand on it: that run died, or is still at work.
    Foreign,
}

/// A half-made replica without any recovery point.
#[derive(Clone, Debug)]
pub(crate) struct Unborn {
    pub(crate) reference: Ref<Vm>,
    pub(crate) record: Vm,
    pub(crate) disks: Vec<AttachedDisk>,
}

/// A complete, restorable state.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) reference: Ref<Vm>,
    /// uuid of the snapshot VM.
    pub(crate) uuid: String,
    pub(crate) taken_at: Timestamp,
    /// When the target took the snapshot.
    pub(crate) made_at: Timestamp,
    /// uuid of the source snapshot VM.
    pub(crate) source_snapshot: String,
    /// uuid of the SR it is on.
    pub(crate) sr: String,
    pub(crate) held: bool,
    pub(crate) origin: Origin,
    pub(crate) disks: Vec<PointDisk>,
}

impl Point {
    /// Whether the memory of the source is among its disks.
    pub(crate) fn has_memory(&self) -> bool {
        self.disks.iter().any(|disk| memory::is_image(&disk.attached.record))
    }

    /// Whether `verify` found one of its disks damaged. It is not offered for failover and does not count as kept.
    pub(crate) fn is_damaged(&self) -> bool {
        self.disks.iter().any(|disk| disk.damaged.is_some())
    }
}

/// Who made a recovery point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Vmferry,
    XenOrchestra,
}

/// One disk of a recovery point.
#[derive(Clone, Debug)]
pub(crate) struct PointDisk {
    /// The snapshot disk, as it hangs on the recovery point.
    pub(crate) attached: AttachedDisk,
    /// uuid of the source snapshot disk whose content it equals.
    pub(crate) content_key: String,
    /// uuid of the live source disk, where it is recorded.
    pub(crate) source_disk: Option<String>,
    /// Root of its block digests, where it is recorded for this very content.
    pub(crate) digest: Option<String>,
    /// Root of what was read from it, where that was not what had been sent.
    pub(crate) damaged: Option<String>,
}

impl PointDisk {
    pub(crate) fn uuid(&self) -> &str {
        &self.attached.record.uuid
    }

    pub(crate) fn userdevice(&self) -> &str {
        &self.attached.vbd_record.userdevice
    }
}

impl Replica {
    /// The recovery point that the live disks should equal.
    pub(crate) fn newest(&self) -> &Point {
        &self.points[0]
    }

    /// uuid of the SR it is on.
    pub(crate) fn sr(&self) -> &str {
        &self.newest().sr
    }

    /// The live disk that should equal this disk of the newest recovery point: by what it says of itself, else (made by Xen
    /// Orchestra) by being what the snapshot was taken of. Where Xen Orchestra went on with a disk of ours, the disk still
    /// says what it held before.
    pub(crate) fn live_disk(&self, held: &PointDisk) -> Option<&AttachedDisk> {
        self.disks.iter().find(|live| match live.record.other_config.get(keys::CONTENT) {
            Some(content) if *content == held.content_key => {
                keys::is_original(&live.record.other_config, &live.record.uuid)
            }
            Some(_) if self.newest().origin == Origin::Vmferry => false,
            _ => held.attached.record.snapshot_of == live.vdi,
        })
    }
}

impl TargetView {
    /// Reads what these SRs, by uuid, hold for `identity`.
    pub(crate) fn new(inventory: &Inventory, identity: &Identity, srs: &[String]) -> Self {
        let mut points: BTreeMap<Ref<Vm>, Vec<Point>> = BTreeMap::new();
        for (reference, vm) in &inventory.vms {
            if let Some((live, point)) = point(inventory, identity, srs, reference, vm) {
                points.entry(live).or_default().push(point);
            }
        }
        let mut view = Self::default();
        for (reference, record) in inventory.vms.iter().filter(|(_, vm)| !vm.is_a_snapshot) {
            let importing = is_importing(identity, record);
            let failed_over = failed_over_to(identity, record).is_some();
            let here = record.other_config.get(keys::XO_SR).is_some_and(|on| srs.contains(on));
            match points.remove(reference) {
                Some(mut points) => {
                    points.sort_by_key(|point| (std::cmp::Reverse(point.taken_at), point.made_at));
                    // A snapshot that somebody took between our commit and our tidying is a copy of the point, or later.
                    points.dedup_by(|later, first| later.source_snapshot == first.source_snapshot);
                    let condition = match (failed_over, importing) {
                        (true, _) => Condition::FailedOver,
                        (false, true) => condition(record, &points),
                        (false, false) if xen_orchestra::is_under_way(identity, record) => Condition::Foreign,
                        (false, false) => Condition::Tidy,
                    };
                    view.replicas.push(Replica {
                        reference: reference.clone(),
                        record: record.clone(),
                        disks: inventory.disks_of(record),
                        points,
                        condition,
                    });
                }
                None if importing && here => view.unborn.push(Unborn {
                    reference: reference.clone(),
                    record: record.clone(),
                    disks: inventory.disks_of(record),
                }),
                None => {}
            }
        }
        view.replicas.sort_by_key(|replica| std::cmp::Reverse(replica.points[0].taken_at));
        view.orphans = orphans(inventory, identity, srs);
        view.marked_for_cloning = marked_for_cloning(inventory, identity);
        view.pruning = Pruning::new(inventory, identity);
        let replicas: Vec<&Ref<Vm>> = view.replicas.iter().map(|replica| &replica.reference).collect();
        view.unproven = xen_orchestra::unproven(inventory, identity, srs, &replicas);
        view
    }

    /// The replica that the next run continues.
    pub(crate) fn current(&self) -> Option<&Replica> {
        self.replicas.first()
    }

    /// Every recovery point of every replica, newest first.
    pub(crate) fn points(&self) -> impl Iterator<Item = &Point> {
        let mut points: Vec<&Point> = self.replicas.iter().flat_map(|replica| &replica.points).collect();
        points.sort_by_key(|point| std::cmp::Reverse(point.taken_at));
        points.into_iter()
    }

    /// The disk of a recovery point by its uuid.
    pub(crate) fn point_disk(&self, uuid: &str) -> Option<&PointDisk> {
        self.replicas
            .iter()
            .flat_map(|replica| &replica.points)
            .flat_map(|point| &point.disks)
            .find(|disk| disk.uuid() == uuid)
    }
}

/// Whether a live VM carries the keys of a run that has not tidied up after itself. A copy of such a VM, or of a
/// recovery point, carries them as well: it belongs to whoever made it.
fn is_importing(identity: &Identity, vm: &Vm) -> bool {
    let keys = &vm.other_config;
    identity.owns(keys)
        && keys::is_original(keys, &vm.uuid)
        && match State::of(keys) {
            Some(State::Importing) => true,
            Some(State::Committed { live, .. }) => live == vm.uuid,
            Some(State::FailedOver { .. } | State::Pruning { .. }) | None => false,
        }
}

/// uuid of the recovery point that a live VM was failed over to.
pub(crate) fn failed_over_to(identity: &Identity, vm: &Vm) -> Option<String> {
    match State::of(&vm.other_config) {
        Some(State::FailedOver { live, point }) if live == vm.uuid && identity.owns(&vm.other_config) => Some(point),
        _ => None,
    }
}

/// What became of a replica whose live VM carries the keys of a run that has not tidied up after itself.
fn condition(live: &Vm, points: &[Point]) -> Condition {
    let committed = match State::of(&live.other_config) {
        Some(State::Committed { source_snapshot, .. }) => {
            points.iter().position(|point| point.source_snapshot == source_snapshot)
        }
        _ => None,
    };
    match committed {
        Some(0) => Condition::Untidy,
        Some(_) => Condition::Used,
        None if is_unused(live) => Condition::HalfWritten,
        None => Condition::Used,
    }
}

/// Whether nobody can have started a half-written VM: it is off, and its start is blocked as we left it.
pub(crate) fn is_unused(vm: &Vm) -> bool {
    vm.power_state == PowerState::Halted && vm.blocked_operations.contains_key("start")
}

/// Whether a recovery point is to be kept whatever the rule says: held, or its destruction blocked.
pub(crate) fn is_held(point: &Vm) -> bool {
    point.other_config.contains_key(keys::HOLD) || point.blocked_operations.contains_key("destroy")
}

/// The recovery point that a VM record is, with the live VM it belongs to; `None` for everything else.
fn point(
    inventory: &Inventory,
    identity: &Identity,
    srs: &[String],
    reference: &Ref<Vm>,
    vm: &Vm,
) -> Option<(Ref<Vm>, Point)> {
    let keys = &vm.other_config;
    let is = |key: &str, value: &str| keys.get(key).is_some_and(|found| found == value);
    let ours = is(keys::XO_JOB, &identity.ids.job.to_string()) && is(keys::XO_VM, &identity.vm);
    let sr = keys.get(keys::XO_SR).filter(|sr| srs.contains(sr))?;
    if !vm.is_a_snapshot || !ours {
        return None;
    }
    let live = inventory.vms.get(&vm.snapshot_of).filter(|live| !live.is_a_snapshot)?;
    let (origin, source_snapshot) = match State::of(keys) {
        Some(State::Committed { live: named, source_snapshot }) if named == live.uuid => {
            (Origin::Vmferry, source_snapshot)
        }
        Some(_) => return None,
        None => (Origin::XenOrchestra, xen_orchestra::committed(inventory, vm, live)?),
    };
    let disks: Option<Vec<PointDisk>> = inventory.disks_of(vm).iter().map(point_disk).collect();
    let disks = disks?;
    let complete = keys.get(keys::DISKS).is_none_or(|count| *count == disks.len().to_string());
    if !complete {
        return None;
    }
    let point = Point {
        reference: reference.clone(),
        uuid: vm.uuid.clone(),
        taken_at: keys::parse_datetime(keys.get(keys::XO_DATETIME)?)?,
        made_at: vm.snapshot_time,
        source_snapshot,
        held: is_held(vm),
        sr: sr.clone(),
        origin,
        disks,
    };
    Some((vm.snapshot_of.clone(), point))
}

fn point_disk(disk: &AttachedDisk) -> Option<PointDisk> {
    let keys = &disk.record.other_config;
    // It names a file of ours, so it is a uuid or nothing.
    let content_key = keys.get(keys::XO_CONTENT_KEY).or_else(|| keys.get(keys::XO_COPY_OF))?;
    Uuid::parse_str(content_key).ok()?;
    disk.record.is_a_snapshot.then(|| PointDisk {
        attached: disk.clone(),
        content_key: content_key.clone(),
        source_disk: keys.get(keys::DISK).cloned(),
        digest: keys::digest_of(keys, content_key).map(str::to_owned),
        damaged: keys::damaged_root(keys, content_key).map(str::to_owned),
    })
}

/// Disks that an interrupted run left: marked as importing, or as being cloned, and on no VM.
fn orphans(inventory: &Inventory, identity: &Identity, srs: &[String]) -> Vec<Ref<Vdi>> {
    let being_cloned: Vec<&String> = inventory
        .vdis
        .values()
        .filter(|vdi| vdi.is_a_snapshot)
        .filter_map(|vdi| vdi.other_config.get(keys::CLONING))
        .collect();
    let on_sr = |vdi: &Vdi| inventory.srs.get(&vdi.sr).is_some_and(|record| srs.contains(&record.uuid));
    let unfinished = |vdi: &Vdi| {
        let keys = &vdi.other_config;
        keys.get(keys::CLONING).is_some_and(|nonce| being_cloned.contains(&nonce))
            || State::of(keys) == Some(State::Importing) && keys::is_original(keys, &vdi.uuid)
    };
    inventory
        .vdis
        .iter()
        .filter(|(_, vdi)| vdi.managed && !vdi.is_a_snapshot && on_sr(vdi))
        .filter(|(_, vdi)| identity.owns(&vdi.other_config) && unfinished(vdi))
        .filter(|(_, vdi)| !inventory.is_used(vdi))
        .map(|(reference, _)| reference.clone())
        .collect()
}

/// Recovery points' disks that still carry the mark of a clone whose maker died.
fn marked_for_cloning(inventory: &Inventory, identity: &Identity) -> Vec<Ref<Vdi>> {
    let marked = |vdi: &Vdi| vdi.is_a_snapshot && vdi.other_config.contains_key(keys::CLONING);
    let ours = inventory.vdis.iter().filter(|(_, vdi)| marked(vdi) && identity.owns(&vdi.other_config));
    ours.map(|(reference, _)| reference.clone()).collect()
}
