//! Failover, the part that changes nothing: a recovery point is cloned, and the clone is started.

use crate::engine::Engine;
use crate::error::{EngineError, RunError};
use crate::inventory::AttachedDisk;
use crate::job::Job;
use crate::keys::{self, Keys};
use crate::objects::{destroy_disk, replace_keys};
use crate::points::Survivor;
use crate::view::Point;
use jiff::Timestamp;
use serde::Serialize;
use vmferry_xapi::records::{Network, Vbd, VbdType, Vdi, Vif, Vm};
use vmferry_xapi::{Ref, Session, params};

/// What to clone, and how the clone is connected.
#[derive(Clone, Debug)]
pub struct CloneRequest {
    /// uuid of the source VM.
    pub vm: String,
    /// uuid of the recovery point; the newest when absent.
    pub point: Option<String>,
    /// Name of the target; the one with the newest point when absent.
    pub target: Option<String>,
    /// Where the clone's interfaces go.
    pub network: CloneNetwork,
    /// Whether the clone is started.
    pub start: bool,
    /// The clone's name; made of the VM's name and the point's time when absent.
    pub name: Option<String>,
}

/// Where a clone's interfaces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloneNetwork {
    /// The networks that the replica was mapped to.
    AsReplica,
    /// None: the clone has no interfaces.
    None,
    /// All on this network, by uuid or unique name.
    Named(String),
}

/// A clone of a recovery point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CloneReport {
    /// uuid of the clone.
    pub vm: String,
    /// Its name.
    pub name: String,
    /// The target it is on.
    pub target: String,
    /// The recovery point it was made from.
    pub point: String,
    /// The moment of the source that it shows.
    pub taken_at: Timestamp,
    /// Whether it was started.
    pub started: bool,
    /// uuids of its disks.
    pub disks: Vec<String>,
}

impl Engine {
    /// Clones a recovery point into an ordinary VM, and starts it if asked. Needs the target only. The replica and
    /// its recovery points are as before.
    pub async fn clone_point(&self, job: &Job, request: &CloneRequest) -> Result<CloneReport, EngineError> {
        let (survivor, point) = self.find_point(job, request).await?;
        let session = &survivor.session;
        let network = match &request.network {
            CloneNetwork::Named(name) => Some(find_network(session, name, &survivor.target.pool).await?),
            CloneNetwork::AsReplica | CloneNetwork::None => None,
        };
        let name = request.name.clone().unwrap_or_else(|| {
            let origin = survivor.inventory.vms.get(&point.reference).map_or("", |vm| vm.name_label.as_str());
            format!("{origin} (clone)")
        });
        let clone: Ref<Vm> =
            session.call_async("VM.clone", params![&point.reference, name.as_str()]).await.map_err(RunError::from)?;
        match make_ordinary(session, &clone, &request.network, network.as_ref(), request.start).await {
            Ok((vm, disks)) => Ok(CloneReport {
                vm,
                name,
                target: survivor.target.name.clone(),
                point: point.uuid,
                taken_at: point.taken_at,
                started: request.start,
                disks,
            }),
            Err(error) => {
                remove(session, &clone).await;
                Err(error.into())
            }
        }
    }

    async fn find_point<'j>(&self, job: &'j Job, request: &CloneRequest) -> Result<(Survivor<'j>, Point), EngineError> {
        let wanted = |name: &str| request.target.as_ref().is_none_or(|target| target == name);
        let targets: Vec<_> = job.targets.iter().filter(|target| wanted(&target.name)).collect();
        if targets.is_empty() {
            let names: Vec<&str> = job.targets.iter().map(|target| target.name.as_str()).collect();
            return Err(EngineError::Usage(format!(
                "job {} has no target {}; it has {}",
                job.name,
                request.target.as_deref().unwrap_or_default(),
                names.join(", ")
            )));
        }
        let mut best: Option<(Survivor<'j>, Point)> = None;
        let mut unreachable = None;
        for target in targets {
            let survivor = match Survivor::reach(self, target).await {
                Ok(survivor) => survivor,
                Err(error) => {
                    unreachable = Some(error);
                    continue;
                }
            };
            let view = survivor.view(job, &request.vm);
            let wanted = |point: &&Point| match &request.point {
                Some(id) => *id == point.uuid,
                None => !point.is_damaged(),
            };
            let point = view.points().find(wanted).cloned();
            if let Some(point) = point
                && best.as_ref().is_none_or(|(_, best)| best.taken_at < point.taken_at)
            {
                best = Some((survivor, point));
            }
        }
        best.ok_or_else(|| match (unreachable, &request.point) {
            (Some(error), _) => error.into(),
            (None, Some(point)) => EngineError::Usage(format!(
                "VM {} has no recovery point {point} in job {}; `points list {}` names those it has",
                request.vm, job.name, job.name
            )),
            (None, None) => EngineError::Usage(format!(
                "job {} has no recovery point of VM {}; `points list {}` names the VMs it has",
                job.name, request.vm, job.name
            )),
        })
    }
}

async fn find_network(session: &Session, name: &str, pool: &str) -> Result<Ref<Network>, EngineError> {
    let all: Vec<(Ref<Network>, Network)> = session.get_all_records().await?;
    let named: Vec<&Ref<Network>> =
        all.iter().filter(|(_, n)| n.uuid == name || n.name_label == name).map(|(reference, _)| reference).collect();
    match named.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(EngineError::Usage(format!("pool {pool} has no network {name}; give its uuid or name, or `none`"))),
        _ => Err(EngineError::Usage(format!("pool {pool} has more than one network called {name}; give its uuid"))),
    }
}

/// Turns a clone of a snapshot into a VM like any other: no template, no replication keys, its start not blocked.
async fn make_ordinary(
    session: &Session,
    clone: &Ref<Vm>,
    request: &CloneNetwork,
    network: Option<&Ref<Network>>,
    start: bool,
) -> Result<(String, Vec<String>), RunError> {
    let () = session.call("VM.set_is_a_template", params![clone, false]).await?;
    let () = session.call("VM.set_blocked_operations", params![clone, Keys::new()]).await?;
    let record: Vm = session.get_record(clone).await?;
    replace_keys(session, clone, &keys::inheritable(&record.other_config)).await?;
    let mut disks = Vec::new();
    for disk in disks_of(session, &record).await? {
        replace_keys(session, &disk.vdi, &keys::inheritable(&disk.record.other_config)).await?;
        disks.push(disk.record.uuid);
    }
    for vif in &record.vifs {
        match (request, network) {
            (CloneNetwork::AsReplica, _) => {}
            (CloneNetwork::Named(_), Some(network)) => {
                let found: Vif = session.get_record(vif).await?;
                if found.network != *network {
                    let () = session.call("VIF.move", params![vif, network]).await?;
                }
            }
            _ => session.call("VIF.destroy", params![vif]).await?,
        }
    }
    if start {
        let () = session.call_async("VM.start", params![clone, false, false]).await?;
    }
    Ok((record.uuid, disks))
}

async fn disks_of(session: &Session, vm: &Vm) -> Result<Vec<AttachedDisk>, RunError> {
    let mut disks = Vec::new();
    for reference in &vm.vbds {
        let vbd: Vbd = session.get_record(reference).await?;
        if vbd.kind != VbdType::Disk || vbd.empty || vbd.vdi.is_null() {
            continue;
        }
        let record: Vdi = session.get_record(&vbd.vdi).await?;
        disks.push(AttachedDisk { vbd: reference.clone(), vdi: vbd.vdi.clone(), vbd_record: vbd, record });
    }
    disks.sort_by_key(|disk| disk.vbd_record.userdevice.parse::<u32>().unwrap_or(u32::MAX));
    Ok(disks)
}

/// Takes back a clone that could not be finished.
async fn remove(session: &Session, clone: &Ref<Vm>) {
    let removal = async {
        let record: Vm = session.get_record(clone).await?;
        let disks = disks_of(session, &record).await?;
        let () = session.call_async("VM.destroy", params![clone]).await?;
        for disk in disks {
            destroy_disk(session, &disk.vdi).await?;
        }
        Ok::<(), RunError>(())
    };
    if let Err(error) = removal.await {
        tracing::warn!(clone = %clone, %error, "a clone that could not be finished is left; remove it by hand");
    }
}
