//! A target that keeps recovery points and is no pool: what it holds of one VM in one run, what it will get, and how it ends.
//!
//! Its points describe themselves, as replicas do: the identity of a point is the uuid of the source's snapshot, that of a disk's content
//! the uuid of the snapshot's disk. So what a run needs to know is one call away, and a target that was lost costs a full copy
//! and nothing else.

use crate::description;
use crate::error::{RunError, chain};
use crate::forecast;
use crate::inventory::{AttachedDisk, Inventory};
use crate::job::{JobIds, StoreTarget};
use crate::plan::{replica_size, without_differences};
use crate::reconcile::Holding;
use crate::retain;
use crate::run::{Networks, Run};
use crate::snapshot::Taken;
use crate::tried;
use crate::view::{Identity, SourceVm};
use jiff::Timestamp;
use std::collections::BTreeMap;
use vmferry_model::plan::{Base, DiskPlan, FullReason, Kind, TargetPlan, Transfer};
use vmferry_model::plugin::{PointView, Retention};
use vmferry_model::report::{DiskReport, Outcome, TargetReport};
use vmferry_model::target::{DiskReceipt, Draft, StoredPoint};
use vmferry_xapi::records::Vm;

/// A store that was reached.
pub(crate) struct StoreLane<'j> {
    pub(crate) target: &'j StoreTarget,
    /// The job's points of the VM, oldest first.
    pub(crate) points: Vec<StoredPoint>,
    /// One per source disk.
    pub(crate) transfers: Vec<Transfer>,
    /// The same with what they will probably take.
    pub(crate) plans: Vec<DiskPlan>,
    /// The point in the making.
    pub(crate) draft: Option<Draft>,
    /// What the store said of the disks that it has, by their number.
    pub(crate) receipts: BTreeMap<usize, Vec<u8>>,
    pub(crate) disks: Vec<DiskReport>,
    pub(crate) pruned: Vec<String>,
    pub(crate) warnings: Vec<String>,
    /// Whether the store was asked to commit: the point may exist even if this run does not get to know.
    pub(crate) commit_begun: bool,
    /// The new point, once committed.
    pub(crate) committed: Option<String>,
    pub(crate) failed: Option<RunError>,
}

impl<'j> StoreLane<'j> {
    /// Asks the store what it holds of the VM; changes nothing.
    pub(crate) async fn look(identity: &Identity, target: &'j StoreTarget) -> Result<Self, RunError> {
        let points = points(target, &identity.ids, Some(&identity.vm)).await?;
        Ok(Self {
            target,
            points,
            transfers: Vec::new(),
            plans: Vec::new(),
            draft: None,
            receipts: BTreeMap::new(),
            disks: Vec::new(),
            pruned: Vec::new(),
            warnings: Vec::new(),
            commit_begun: false,
            committed: None,
            failed: None,
        })
    }

    /// What it holds, for the question which of the source's snapshots are bases.
    pub(crate) fn holdings(&self) -> Vec<Holding> {
        holdings(&self.points, &self.target.place)
    }

    /// The newest date that it knows.
    pub(crate) fn newest(&self) -> Option<Timestamp> {
        self.points.last().map(|point| point.taken_at)
    }

    /// Decides how each disk of the source travels here, and forecasts it.
    pub(crate) async fn plan_transfers(&mut self, run: &Run<'_>, inventory: &Inventory, source: &SourceVm) {
        self.transfers.clear();
        self.plans.clear();
        let base = base(source, &self.points, self.target.store.shape().only_newest);
        for disk in &source.disks {
            let mut transfer = transfer(source, disk, &self.points, base, &self.target.place);
            if tried::has_no_differences(run, disk).await {
                transfer = without_differences(transfer, |_| false);
            }
            let plan = forecast::disk_plan(run.runs, run.job, &self.target.name, inventory, disk, &transfer).await;
            self.plans.push(plan);
            self.transfers.push(transfer);
        }
    }

    /// Describes the point that is to be made. From here on something of it may be in the store.
    pub(crate) fn begin(
        &mut self,
        run: &Run<'_>,
        identity: &Identity,
        source: &Vm,
        taken: &Taken,
        networks: &Networks,
    ) -> Result<(), RunError> {
        let metadata = description::metadata(source, taken, networks).map_err(|why| RunError::Inconsistent {
            what: "VM",
            object: identity.vm.clone(),
            why,
        })?;
        let base = self.transfers.iter().find_map(Transfer::lands_on).map(str::to_owned);
        self.draft = Some(Draft {
            id: taken.record.uuid.clone(),
            job: run.job.ids.job.to_string(),
            vm: identity.vm.clone(),
            name: source.name_label.clone(),
            taken_at: taken.taken_at,
            base,
            metadata,
        });
        Ok(())
    }

    /// Makes the point, once all disks are there. The store answers the same however often it is asked.
    pub(crate) async fn commit(&mut self, taken: &Taken) -> Result<(), RunError> {
        let Some(draft) = &self.draft else { return Err(RunError::NoTargetLeft) };
        let receipts = taken.disks.iter().enumerate().map(|(index, disk)| {
            let (uuid, receipt) = (disk.of.record.uuid.clone(), self.receipts.get(&index));
            let receipt = receipt.ok_or_else(|| RunError::Inconsistent {
                what: "receipt of disk",
                object: uuid.clone(),
                why: "it is missing; the next run starts from the last recovery point".to_owned(),
            })?;
            let digest = self.disks.get(index).and_then(|report| report.digest.clone());
            Ok(DiskReceipt { disk: uuid, receipt: receipt.clone(), digest })
        });
        let receipts = receipts.collect::<Result<Vec<_>, RunError>>()?;
        self.commit_begun = true;
        let point = self.target.store.commit(draft, &receipts).await.map_err(RunError::Store)?;
        if point.id != draft.id || point.disks.len() != receipts.len() {
            // It must not count as a point, nor as the next run's base.
            self.target.store.delete(&draft.id).await.map_err(RunError::Store)?;
            self.commit_begun = false;
            return Err(RunError::Inconsistent {
                what: "recovery point",
                object: draft.id.clone(),
                why: format!("target {} does not have it whole after its commit", self.target.name),
            });
        }
        self.committed = Some(point.id.clone());
        self.points.push(point);
        Ok(())
    }

    /// Prunes what the plugin drops. What cannot be pruned now is pruned later.
    pub(crate) async fn retain(&mut self, identity: &Identity, retention: &dyn Retention, now: Timestamp) {
        let view = |point: &StoredPoint| PointView { id: point.id.clone(), taken_at: point.taken_at, held: point.held };
        let asked = self.points.iter().map(|point| (view(point), point.damaged.is_some())).collect();
        let going = match retain::going(retention, asked, now).await {
            Ok(going) => going,
            Err(error) => return self.warnings.push(format!("nothing was pruned: {error}")),
        };
        for point in going {
            match self.delete_unless_held(identity, &point).await {
                Ok(true) => {
                    self.points.retain(|known| known.id != point);
                    self.pruned.push(point);
                }
                Ok(false) => {}
                Err(error) => {
                    self.warnings.push(format!("recovery point {point} could not be removed: {}", chain(&error)));
                }
            }
        }
    }

    /// Deletes a point, if nobody held it while the plugin was deciding.
    async fn delete_unless_held(&self, identity: &Identity, id: &str) -> Result<bool, RunError> {
        let points = points(self.target, &identity.ids, Some(&identity.vm)).await?;
        if points.iter().any(|point| point.id == id && point.held) {
            return Ok(false);
        }
        self.target.store.delete(id).await.map_err(RunError::Store)?;
        Ok(true)
    }

    /// Takes back what this run stored without a commit. What cannot be done now stays for `vmferry gc`.
    pub(crate) async fn put_right(&mut self) {
        if self.committed.is_some() {
            return;
        }
        let Some(draft) = &self.draft else { return };
        if self.commit_begun && self.may_have(draft).await {
            return;
        }
        if let Err(error) = self.target.store.abort(draft).await {
            self.warnings.push(format!("what this run left here is removed by `vmferry gc`: {error}"));
        }
    }

    /// Whether a point that the store was asked for is there after all; where it does not say, it may be.
    async fn may_have(&self, draft: &Draft) -> bool {
        let points = self.target.store.points(Some(&draft.vm)).await;
        points.map_or(true, |points| points.iter().any(|point| point.id == draft.id))
    }

    /// What is planned here.
    pub(crate) fn plan(&self) -> TargetPlan {
        TargetPlan {
            target: self.target.name.clone(),
            sr: None,
            replica: None,
            obstacles: Vec::new(),
            warnings: Vec::new(),
            disks: self.plans.clone(),
        }
    }

    /// Ends the lane's part in the run.
    pub(crate) fn fail(&mut self, error: RunError) {
        tracing::warn!(target = self.target.name, %error, "target dropped from the run");
        self.failed.get_or_insert(error);
    }

    pub(crate) fn is_live(&self) -> bool {
        self.failed.is_none()
    }

    pub(crate) fn into_report(self, stopped: Outcome) -> TargetReport {
        let outcome = match (&self.failed, &self.committed) {
            (Some(error), _) => error.outcome(),
            (None, Some(_)) => Outcome::Succeeded,
            (None, None) => stopped,
        };
        TargetReport {
            target: self.target.name.clone(),
            sr: None,
            replica: None,
            recovery_point: self.committed,
            outcome,
            error: self.failed.as_ref().map(|error| chain(error)),
            pruned: self.pruned,
            warnings: self.warnings,
            disks: self.disks,
        }
    }
}

/// A job's points on a store, of one VM or of all, oldest first. A store may have answered with others' as well.
pub(crate) async fn points(target: &StoreTarget, ids: &JobIds, vm: Option<&str>) -> Result<Vec<StoredPoint>, RunError> {
    let mut points = target.store.points(vm).await.map_err(RunError::Store)?;
    let job = ids.job.to_string();
    points.retain(|point| point.job == job && vm.is_none_or(|vm| point.vm == vm));
    points.sort_by_key(|point| point.taken_at);
    Ok(points)
}

/// What these points of a store say of the source's snapshots, newest first.
pub(crate) fn holdings(points: &[StoredPoint], place: &str) -> Vec<Holding> {
    let holding = |point: &StoredPoint| Holding {
        source_snapshot: point.id.clone(),
        place: place.to_owned(),
        is_base: point.damaged.is_none(),
    };
    points.iter().rev().map(holding).collect()
}

/// The point that a run's deltas add to: the newest sound one that shares content with the source.
fn base<'p>(source: &SourceVm, points: &'p [StoredPoint], only_newest: bool) -> Option<&'p StoredPoint> {
    let candidates = points.iter().rev().take(if only_newest { 1 } else { usize::MAX });
    let mut sound = candidates.filter(|point| point.damaged.is_none());
    sound.find(|point| source.disks.iter().any(|disk| shared_content(source, disk, point).is_some()))
}

/// The content of a disk that the source and a point both hold.
fn shared_content(source: &SourceVm, disk: &AttachedDisk, point: &StoredPoint) -> Option<String> {
    let held = point.disks.iter().find(|held| held.disk == disk.record.uuid)?;
    let base = source.bases.get(&held.content)?;
    let fits = held.size <= replica_size(disk.record.virtual_size);
    (base.of == disk.vdi && fits).then(|| held.content.clone())
}

/// How a disk travels to a store that holds these points (oldest first) in this place; `base` is the one that deltas add to.
fn transfer(
    source: &SourceVm,
    disk: &AttachedDisk,
    points: &[StoredPoint],
    base: Option<&StoredPoint>,
    place: &str,
) -> Transfer {
    let newest = points.last();
    if let Some(point) = base
        && let Some(content) = shared_content(source, disk, point)
    {
        let newest = newest.is_some_and(|newest| newest.id == point.id);
        let base = Base { source_snapshot_disk: content, target_snapshot_disk: point.id.clone(), newest };
        return Transfer::Delta { base };
    }
    let held = newest.and_then(|point| point.disks.iter().find(|held| held.disk == disk.record.uuid));
    let reason = match (newest, held) {
        (None, _) if source.keeps_snapshot_for(&[place.to_owned()]) => FullReason::BaseGoneOnTarget,
        (None, _) => FullReason::FirstRun,
        (Some(point), _) if point.damaged.is_some() => FullReason::ReplicaDamaged,
        (Some(_), None) => FullReason::NewDisk,
        (Some(_), Some(held)) if held.size > replica_size(disk.record.virtual_size) => FullReason::DiskShrunk,
        (Some(_), Some(held)) if source.purged.contains(&held.content) => FullReason::BasePurged,
        (Some(_), Some(_)) => FullReason::BaseGoneOnSource,
    };
    Transfer::Full { reason }
}

/// Whether a transfer is a full copy.
pub(crate) fn is_full(transfer: &Transfer) -> bool {
    transfer.kind() == Kind::Full
}
