//! What can be restored: the recovery points of a job's replicas, read from the targets alone.

use crate::engine::Engine;
use crate::error::{EngineError, RunError};
use crate::inventory::Inventory;
use crate::job::{Job, Target};
use crate::keys;
use crate::view::{Identity, Origin, TargetView};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use vmferry_xapi::Session;

/// The recovery points of one VM on one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicaPoints {
    /// uuid of the source VM.
    pub vm: String,
    /// Name of the replica.
    pub name: String,
    /// The target's name in the job.
    pub target: String,
    /// uuid of the replica VM.
    pub replica: String,
    /// Newest first.
    pub points: Vec<PointSummary>,
}

/// One recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PointSummary {
    /// uuid of the snapshot VM.
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
    /// Its disks.
    pub disks: usize,
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
        TargetView::new(&self.inventory, &Identity { ids: job.ids, vm: vm.to_owned() }, &self.target.sr)
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
                        vm: vm.clone(),
                        name: replica.record.name_label,
                        target: target.name.clone(),
                        replica: replica.record.uuid,
                        points: replica
                            .points
                            .into_iter()
                            .map(|point| PointSummary {
                                damaged: point.is_damaged(),
                                id: point.uuid,
                                taken_at: point.taken_at,
                                source_snapshot: point.source_snapshot,
                                held: point.held,
                                origin: match point.origin {
                                    Origin::Vmferry => "vmferry".to_owned(),
                                    Origin::XenOrchestra => "xen-orchestra".to_owned(),
                                },
                                disks: point.disks.len(),
                            })
                            .collect(),
                    }
                }));
            }
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
