//! What can be restored: the recovery points of a job's replicas, read from the targets alone.

use crate::engine::Engine;
use crate::error::{EngineError, RunError, chain};
use crate::inventory::Inventory;
use crate::job::{Job, StoreTarget, Target};
use crate::keys;
use crate::objects::set_keys;
use crate::store_lane;
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

/// What of a job could be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PointsReport {
    /// The recovery points, by VM and target.
    pub replicas: Vec<ReplicaPoints>,
    /// The targets that did not answer: what they hold is not among them.
    pub problems: Vec<TargetProblem>,
}

/// A target that did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetProblem {
    /// The target's name in the job.
    pub target: String,
    /// What happened and what to do, in one line.
    pub error: String,
}

/// The targets that did not answer; when none did, the first one's error is what happened.
#[derive(Default)]
pub(crate) struct Unheard {
    pub(crate) problems: Vec<TargetProblem>,
    first: Option<RunError>,
}

impl Unheard {
    /// What a target said, if it did.
    pub(crate) fn heard<T>(&mut self, target: &str, said: Result<T, RunError>) -> Option<T> {
        said.map_err(|error| {
            self.problems.push(TargetProblem { target: target.to_owned(), error: chain(&error) });
            self.first.get_or_insert(error);
        })
        .ok()
    }

    /// The problems, unless they are all that there is of so many targets.
    pub(crate) fn unless_all(self, targets: usize) -> Result<Vec<TargetProblem>, RunError> {
        match self.first {
            Some(error) if self.problems.len() == targets => Err(error),
            _ => Ok(self.problems),
        }
    }
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
    /// The recovery points of a job, of all its VMs or of one. Needs the targets only, and of these one.
    pub async fn points(&self, job: &Job, only: Option<&str>) -> Result<PointsReport, EngineError> {
        let mut replicas = Vec::new();
        let mut unheard = Unheard::default();
        for target in &job.targets {
            let Some(survivor) = unheard.heard(&target.name, Survivor::reach(self, target).await) else { continue };
            for vm in survivor.source_vms(job).iter().filter(|vm| only.is_none_or(|only| only == *vm)) {
                let found = survivor.view(job, vm).replicas.into_iter();
                replicas.extend(found.map(|replica| points_of(replica, vm, &target.name)));
            }
        }
        for target in &job.stores {
            replicas.extend(unheard.heard(&target.name, stored(job, target, only).await).into_iter().flatten());
        }
        let problems = unheard.unless_all(job.target_names().count())?;
        if let (Some(vm), true, true) = (only, replicas.is_empty(), problems.is_empty()) {
            return Err(EngineError::Usage(format!(
                "job {} has no recovery point of VM {vm} on any of its targets; `points list {}` names those it has",
                job.name, job.name
            )));
        }
        Ok(PointsReport { replicas, problems })
    }

    /// Has a recovery point kept whatever retention says, or left to it again, on every target that has it or on the one named.
    /// Answers with the names of the targets. A target that does not answer is an error, once the others were asked.
    pub async fn hold_point(
        &self,
        job: &Job,
        point: &str,
        target: Option<&str>,
        held: bool,
    ) -> Result<Vec<String>, EngineError> {
        let named = |name: &str| target.is_none_or(|target| target == name);
        let mut done = Vec::new();
        let mut failed = None;
        for target in job.targets.iter().filter(|target| named(&target.name)) {
            match self.hold_on_pool(job, target, point, held).await {
                Ok(true) => done.push(target.name.clone()),
                Ok(false) => {}
                Err(error) => failed = Some((&target.name, error)),
            }
        }
        for target in job.stores.iter().filter(|target| named(&target.name)) {
            match hold_in_store(job, target, point, held).await {
                Ok(true) => done.push(target.name.clone()),
                Ok(false) => {}
                Err(error) => failed = Some((&target.name, error)),
            }
        }
        let name = &job.name;
        match failed {
            Some((silent, error)) if !done.is_empty() => Err(EngineError::Refused(format!(
                "done on {}, and not on {silent}: {}; do it again",
                done.join(", "),
                chain(&error)
            ))),
            Some((_, error)) => Err(error.into()),
            None if done.is_empty() => Err(EngineError::Usage(format!(
                "job {name} has no recovery point {point}; `points list {name}` names those it has"
            ))),
            None => Ok(done),
        }
    }

    /// Whether the target has it.
    async fn hold_on_pool(&self, job: &Job, target: &Target, point: &str, held: bool) -> Result<bool, RunError> {
        let survivor = Survivor::reach(self, target).await?;
        for vm in survivor.source_vms(job) {
            let view = survivor.view(job, &vm);
            let Some(found) = view.points().find(|found| found.uuid == point) else { continue };
            let (set, clear): (&[_], &[_]) =
                if held { (&[(keys::HOLD, found.uuid.clone())], &[]) } else { (&[], &[keys::HOLD]) };
            set_keys(&survivor.session, &found.reference, set, clear).await?;
            return Ok(true);
        }
        Ok(false)
    }
}

/// Whether the store has it.
async fn hold_in_store(job: &Job, target: &StoreTarget, point: &str, held: bool) -> Result<bool, RunError> {
    let has = store_lane::points(target, &job.ids, None).await?.iter().any(|found| found.id == point);
    if has {
        target.store.hold(point, held).await.map_err(RunError::Store)?;
    }
    Ok(has)
}

/// What a replica holds.
fn points_of(replica: Replica, vm: &str, target: &str) -> ReplicaPoints {
    let state = ReplicaState::of(&replica);
    let points = replica.points.into_iter().map(|point| PointSummary {
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
    });
    ReplicaPoints {
        state,
        vm: vm.to_owned(),
        name: replica.record.name_label,
        target: target.to_owned(),
        replica: Some(replica.record.uuid),
        points: points.collect(),
    }
}

/// What a store keeps for a job, of all VMs or of one, by VM.
async fn stored(job: &Job, target: &StoreTarget, only: Option<&str>) -> Result<Vec<ReplicaPoints>, RunError> {
    let mut points = store_lane::points(target, &job.ids, only).await?;
    points.reverse();
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
