//! What can be restored: the recovery points of a job's replicas, read from the targets alone.

use crate::engine::Engine;
use crate::error::{EngineError, RunError, chain};
use crate::inventory::Inventory;
use crate::job::{Job, StoreTarget, Target};
use crate::keys;
use crate::objects::set_keys;
use crate::view::{Condition, Identity, Origin, Point, Replica, TargetView};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use vmferry_xapi::Session;
use vmferry_xapi::records::PowerState;

/// The recovery points of one VM on one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaPoints {
    /// uuid of the source VM.
    pub vm: String,
    /// Name of the replica.
    pub name: String,
    /// The target's name in the job.
    pub target: String,
    /// uuid of the replica VM; none where a store keeps the points.
    pub replica: Option<String>,
    /// What became of the replica.
    pub state: ReplicaState,
    /// Newest first.
    pub points: Vec<PointSummary>,
}

/// What became of a live replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaState {
    /// The next run goes on with it.
    Standby,
    /// A run is writing to it, or was when it died: the next one rolls it back.
    HalfWritten,
    /// Somebody used it, or Xen Orchestra did not finish with it: it stays as it is.
    Used,
    /// It was failed over to: it stays as it is.
    FailedOver,
    /// There is none: a store keeps the points, and `vmferry restore` makes VMs of them.
    Stored,
}

impl std::fmt::Display for ReplicaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Standby => "standby",
            Self::HalfWritten => "half written",
            Self::Used => "used",
            Self::FailedOver => "failed over",
            Self::Stored => "stored",
        })
    }
}

impl ReplicaState {
    /// As far as its record tells; what was written to it only the storage knows.
    fn of(replica: &Replica) -> Self {
        match replica.condition {
            Condition::FailedOver => Self::FailedOver,
            Condition::HalfWritten => Self::HalfWritten,
            Condition::Used | Condition::Foreign => Self::Used,
            Condition::Tidy | Condition::Untidy if replica.record.power_state != PowerState::Halted => Self::Used,
            Condition::Tidy | Condition::Untidy => Self::Standby,
        }
    }
}

/// One recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PointSummary {
    /// uuid of the snapshot VM, of a store's point that of the source's snapshot.
    pub id: String,
    /// The moment of the source that it shows.
    pub taken_at: Timestamp,
    /// uuid of the source snapshot it was made from.
    pub source_snapshot: String,
    /// Whether the operator holds it.
    pub held: bool,
    /// Whether `verify` found it damaged. It is not offered for failover.
    pub damaged: bool,
    /// Who made it: `vmferry` or `xen-orchestra`.
    pub origin: String,
    /// Its disks, the image of the VM's memory left out.
    pub disks: usize,
    /// Whether the VM's memory is kept in it.
    pub memory: bool,
}

/// A target as a disaster leaves it: reached without asking the source anything.
pub(crate) struct Survivor<'j> {
    pub(crate) target: &'j Target,
    pub(crate) session: Session,
    pub(crate) inventory: Inventory,
}

impl<'j> Survivor<'j> {
    pub(crate) async fn reach(engine: &Engine, target: &'j Target) -> Result<Self, RunError> {
        let session = engine.pools.session(&target.pool).await?;
        let inventory = Inventory::load(&session).await?;
        Ok(Self { target, session, inventory })
    }

    /// uuids of the source VMs that this job has replicas of here.
    pub(crate) fn source_vms(&self, job: &Job) -> BTreeSet<String> {
        let id = job.ids.job.to_string();
        let ours =
            self.inventory.vms.values().filter(|vm| vm.is_a_snapshot && vm.other_config.get(keys::XO_JOB) == Some(&id));
        ours.filter_map(|vm| vm.other_config.get(keys::XO_VM).cloned()).collect()
    }

    pub(crate) fn view(&self, job: &Job, vm: &str) -> TargetView {
        TargetView::new(&self.inventory, &Identity { ids: job.ids, vm: vm.to_owned() }, &self.target.srs)
    }
}

impl Engine {
    /// The recovery points of a job, of all its VMs or of one. Needs the targets only.
    pub async fn points(&self, job: &Job, only: Option<&str>) -> Result<Vec<ReplicaPoints>, EngineError> {
        let mut found = Vec::new();
        for target in &job.targets {
            let survivor = Survivor::reach(self, target).await?;
            for vm in survivor.source_vms(job).iter().filter(|vm| only.is_none_or(|only| only == *vm)) {
                found.extend(survivor.view(job, vm).replicas.into_iter().map(|replica| {
                    ReplicaPoints {
                        state: ReplicaState::of(&replica),
                        vm: vm.clone(),
                        name: replica.record.name_label,
                        target: target.name.clone(),
                        replica: Some(replica.record.uuid),
                        points: replica
                            .points
                            .into_iter()
                            .map(|point| PointSummary {
                                disks: point.disks.len() - usize::from(point.has_memory()),
                                memory: point.has_memory(),
                                damaged: point.is_damaged(),
                                id: point.uuid,
                                taken_at: point.taken_at,
                                source_snapshot: point.source_snapshot,
                                held: point.held,
                                origin: match point.origin {
                                    Origin::Vmferry => "vmferry".to_owned(),
                                    Origin::XenOrchestra => "xen-orchestra".to_owned(),
                                },
                            })
                            .collect(),
                    }
                }));
            }
        }
        for target in &job.stores {
            found.extend(stored(job, target, only).await?);
        }
        if let (Some(vm), true) = (only, found.is_empty()) {
            return Err(EngineError::Usage(format!(
                "job {} has no recovery point of VM {vm} on any of its targets; `points list {}` names those it has",
                job.name, job.name
            )));
        }
        Ok(found)
    }
}

impl Engine {
    /// Has a recovery point kept whatever retention says, or left to it again, on every target that has it or on the one named.
    /// Answers with the names of the targets.
    pub async fn hold_point(
        &self,
        job: &Job,
        point: &str,
        target: Option<&str>,
        held: bool,
    ) -> Result<Vec<String>, EngineError> {
        let named = |name: &str| target.is_none_or(|target| target == name);
        let mut done = Vec::new();
        for target in job.targets.iter().filter(|target| named(&target.name)) {
            let survivor = Survivor::reach(self, target).await?;
            let vms = survivor.source_vms(job);
            let mut points = vms.iter().flat_map(|vm| {
                let view = survivor.view(job, vm);
                view.points().map(|point| (point.uuid.clone(), point.reference.clone())).collect::<Vec<_>>()
            });
            if let Some((uuid, snapshot)) = points.find(|(uuid, _)| uuid == point) {
                let (set, clear): (&[_], &[_]) = if held { (&[(keys::HOLD, uuid)], &[]) } else { (&[], &[keys::HOLD]) };
                set_keys(&survivor.session, &snapshot, set, clear).await.map_err(RunError::from)?;
                done.push(target.name.clone());
            }
        }
        for target in job.stores.iter().filter(|target| named(&target.name)) {
            let points = target.store.points(None).await.map_err(RunError::Store)?;
            if points.iter().any(|found| found.id == point && found.job == job.ids.job.to_string()) {
                target.store.hold(point, held).await.map_err(RunError::Store)?;
                done.push(target.name.clone());
            }
        }
        if done.is_empty() {
            let name = &job.name;
            return Err(EngineError::Usage(format!(
                "job {name} has no recovery point {point}; `points list {name}` names those it has"
            )));
        }
        Ok(done)
    }
}

/// What a store keeps for a job, by VM.
async fn stored(job: &Job, target: &StoreTarget, only: Option<&str>) -> Result<Vec<ReplicaPoints>, RunError> {
    let mut points = target.store.points(only).await.map_err(RunError::Store)?;
    points.retain(|point| point.job == job.ids.job.to_string());
    points.sort_by_key(|point| std::cmp::Reverse(point.taken_at));
    let mut by_vm: BTreeMap<String, ReplicaPoints> = BTreeMap::new();
    for point in points {
        // The newest comes first, so the name is the one that the VM had last.
        let of_vm = by_vm.entry(point.vm.clone()).or_insert_with(|| ReplicaPoints {
            vm: point.vm.clone(),
            name: point.name.clone(),
            target: target.name.clone(),
            replica: None,
            state: ReplicaState::Stored,
            points: Vec::new(),
        });
        of_vm.points.push(PointSummary {
            source_snapshot: point.id.clone(),
            id: point.id,
            taken_at: point.taken_at,
            held: point.held,
            damaged: point.damaged.is_some(),
            origin: "vmferry".to_owned(),
            disks: point.disks.len(),
            memory: false,
        });
    }
    Ok(by_vm.into_values().collect())
}

/// Which recovery point an operator means.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// uuid of the source VM.
    pub(crate) vm: &'a str,
    /// uuid of the recovery point; the newest when absent.
    pub(crate) point: Option<&'a str>,
    /// Name of the target; the one with the newest point when absent.
    pub(crate) target: Option<&'a str>,
    /// Whether the newest has to be undamaged.
    pub(crate) undamaged: bool,
}

/// Refuses a damaged recovery point, and names the one of `all` that an operator can have instead.
pub(crate) fn assert_undamaged<'a>(point: &Point, all: impl Iterator<Item = &'a Point>) -> Result<(), EngineError> {
    if !point.is_damaged() {
        return Ok(());
    }
    let older = all.filter(|other| other.taken_at < point.taken_at && !other.is_damaged());
    let remedy = match older.max_by_key(|other| other.taken_at) {
        Some(older) => format!("the next older one is of {}: --point {}", older.taken_at, older.uuid),
        None => "there is no older one; the next run mends it".to_owned(),
    };
    Err(EngineError::Refused(format!(
        "recovery point {} of {} is damaged and is not started; {remedy}",
        point.uuid, point.taken_at
    )))
}

/// A recovery point and where it is.
pub(crate) struct Found<'j> {
    pub(crate) survivor: Survivor<'j>,
    pub(crate) point: Point,
    /// What may have been missed.
    pub(crate) warnings: Vec<String>,
}

/// Why there is no pool to start from.
fn no_pool(job: &Job, wanted: Option<&str>) -> EngineError {
    let name = &job.name;
    EngineError::Usage(match wanted {
        Some(target) if !job.target_names().any(|known| known == target) => {
            let names: Vec<&str> = job.target_names().collect();
            format!("job {name} has no target {target}; it has {}", names.join(", "))
        }
        Some(target) => {
            format!("target {target} of job {name} is a store; `vmferry restore {name}` makes a VM of its points")
        }
        None => format!("job {name} has stores alone; `vmferry restore {name}` makes a VM of their points"),
    })
}

impl Engine {
    /// Looks a recovery point up on the targets that can be reached.
    pub(crate) async fn find_point<'j>(&self, job: &'j Job, wanted: Wanted<'_>) -> Result<Found<'j>, EngineError> {
        let named = |name: &str| wanted.target.is_none_or(|target| target == name);
        let targets: Vec<_> = job.targets.iter().filter(|target| named(&target.name)).collect();
        if targets.is_empty() {
            return Err(no_pool(job, wanted.target));
        }
        let mut best: Option<(Survivor<'j>, Point)> = None;
        let mut warnings = Vec::new();
        let mut unreachable = None;
        for target in targets {
            let survivor = match Survivor::reach(self, target).await {
                Ok(survivor) => survivor,
                Err(error) => {
                    warnings.push(format!("target {} was not asked: {}", target.name, chain(&error)));
                    unreachable = Some(error);
                    continue;
                }
            };
            let view = survivor.view(job, wanted.vm);
            let meant = |point: &&Point| match wanted.point {
                Some(id) => id == point.uuid,
                None => !(wanted.undamaged && point.is_damaged()),
            };
            let point = view.points().find(meant).cloned();
            if let Some(point) = point
                && best.as_ref().is_none_or(|(_, best)| best.taken_at < point.taken_at)
            {
                best = Some((survivor, point));
            }
        }
        let (vm, name) = (wanted.vm, &job.name);
        match (best, unreachable, wanted.point) {
            (Some((survivor, point)), ..) => Ok(Found { survivor, point, warnings }),
            (None, Some(error), _) => Err(error.into()),
            (None, None, Some(point)) => Err(EngineError::Usage(format!(
                "VM {vm} has no recovery point {point} in job {name}; `points list {name}` names those it has"
            ))),
            (None, None, None) => Err(EngineError::Usage(format!(
                "job {name} has no recovery point of VM {vm}; `points list {name}` names the VMs it has"
            ))),
        }
    }
}
