//! Where a recovery point that is to be restored is: on a pool or in a store, and what it takes to make its VM again.

use crate::description::{self, Described};
use crate::engine::Engine;
use crate::error::{EngineError, RunError, chain};
use crate::inventory::AttachedDisk;
use crate::job::{Job, StoreTarget};
use crate::keys;
use crate::points::{Survivor, Wanted, assert_undamaged};
use crate::restore::{RestoreReport, RestoreRequest};
use crate::retrieving::StoredSource;
use crate::run::Networks;
use crate::store_lane;
use crate::view;
use jiff::Timestamp;
use vmferry_model::target::StoredPoint;
use vmferry_xapi::records::{Vdi, Vm};
use vmferry_xapi::{Ref, Session};

impl Engine {
    /// Looks the recovery point up among all targets.
    pub(crate) async fn find_origin(&self, job: &Job, request: &RestoreRequest) -> Result<Origin, EngineError> {
        let named = |name: &str| request.target.as_deref().is_none_or(|target| target == name);
        let pools = job.targets.iter().any(|target| named(&target.name));
        let (vm, point, target) = (request.vm.as_str(), request.point.as_deref(), request.target.as_deref());
        let on_pool = match pools {
            true => Some(self.find_point(job, Wanted { vm, point, target, undamaged: true }).await),
            false => None,
        };
        let mut warnings = Vec::new();
        let mut stored: Option<(&StoreTarget, StoredPoint)> = None;
        for target in job.stores.iter().filter(|target| named(&target.name)) {
            let points = match store_lane::points(target, &job.ids, Some(vm)).await {
                Ok(points) => points,
                Err(error) => {
                    warnings.push(format!("target {} was not asked: {}", target.name, chain(&error)));
                    continue;
                }
            };
            let meant = |found: &StoredPoint| match point {
                Some(id) => found.id == id,
                None => found.damaged.is_none(),
            };
            // A point has the same name on every store: one that is sound goes before one that is not.
            let rank = |found: &StoredPoint| (found.taken_at, found.damaged.is_none());
            let newest = points.into_iter().filter(meant).max_by_key(rank);
            if let Some(found) = newest
                && stored.as_ref().is_none_or(|(_, best)| rank(best) < rank(&found))
            {
                stored = Some((target, found));
            }
        }
        let mut origin = match (on_pool, stored) {
            (Some(Ok(found)), stored)
                if stored.as_ref().is_none_or(|(_, best)| best.taken_at <= found.point.taken_at) =>
            {
                warnings.extend(found.warnings);
                assert_undamaged(&found.point, found.survivor.view(job, vm).points())?;
                Origin::on_pool(&found.survivor, &found.point.reference, found.point.taken_at).await?
            }
            (on_pool, Some((target, found))) => {
                match on_pool {
                    // It has no such point, and the store does.
                    None | Some(Err(EngineError::Usage(_))) => {}
                    Some(Err(error)) => warnings.push(format!("not every pool was asked: {}", chain(&error))),
                    Some(Ok(found)) => warnings.extend(found.warnings),
                }
                if let Some(why) = &found.damaged {
                    let id = &found.id;
                    return Err(EngineError::Refused(format!(
                        "recovery point {id} is damaged ({why}) and is not restored"
                    )));
                }
                Origin::in_store(target, found).await?
            }
            (Some(Err(error)), None) => return Err(error),
            (Some(Ok(_)) | None, None) => {
                let why = warnings.first().map(|why| format!("; {why}")).unwrap_or_default();
                return Err(EngineError::Usage(format!(
                    "job {} has no such recovery point of VM {vm}; `points list {}` names those it has{why}",
                    job.name, job.name
                )));
            }
        };
        origin.warnings = warnings;
        Ok(origin)
    }
}

/// A recovery point that was found: what it was, and where its disks are.
pub(crate) struct Origin {
    pub(crate) target: String,
    pub(crate) point: String,
    pub(crate) taken_at: Timestamp,
    /// Whether an operator holds it.
    pub(crate) held: bool,
    /// The live VM of the source, as the point remembers it.
    pub(crate) vm: Vm,
    pub(crate) snapshot: Vm,
    pub(crate) networks: Networks,
    pub(crate) disks: Vec<OriginDisk>,
    pub(crate) warnings: Vec<String>,
}

pub(crate) struct OriginDisk {
    /// uuid of the source's disk.
    pub(crate) disk: String,
    /// As it was attached to the source.
    pub(crate) attached: AttachedDisk,
    pub(crate) content: String,
    /// Root of its digests, where that is known.
    pub(crate) digest: Option<String>,
    pub(crate) from: DiskOrigin,
}

pub(crate) enum DiskOrigin {
    Pool(Session, Ref<Vdi>),
    Store(StoredSource),
}

impl Origin {
    /// What is told of it before anything was restored.
    pub(crate) fn report(&self, vm: &str) -> RestoreReport {
        RestoreReport {
            vm: vm.to_owned(),
            target: self.target.clone(),
            point: self.point.clone(),
            taken_at: self.taken_at,
            restored: None,
            safety_snapshot: None,
            disks: Vec::new(),
            warnings: self.warnings.clone(),
        }
    }

    /// A replica's recovery point. Its networks are those of its own pool.
    pub(crate) async fn on_pool(
        survivor: &Survivor<'_>,
        point: &Ref<Vm>,
        taken_at: Timestamp,
    ) -> Result<Self, RunError> {
        let (session, inventory) = (&survivor.session, &survivor.inventory);
        let record = inventory.vms.get(point).cloned().unwrap_or_default();
        let networks = Networks::load(session, &record).await?;
        let disks = inventory.disks_of(&record).into_iter().map(|attached| {
            let keys = &attached.record.other_config;
            let key = |key: &str| keys.get(key).cloned();
            let content = key(keys::XO_CONTENT_KEY).unwrap_or_else(|| attached.record.uuid.clone());
            let digest = key(keys::DIGEST);
            OriginDisk {
                disk: key(keys::DISK).unwrap_or_else(|| attached.record.uuid.clone()),
                digest: digest.and_then(|value| value.strip_prefix(&format!("{content}:")).map(str::to_owned)),
                content,
                from: DiskOrigin::Pool(session.clone(), attached.vdi.clone()),
                attached,
            }
        });
        let disks = disks.collect();
        let mut vm = record.clone();
        // The point is called after its source, its job and its date; the replica after its source and its job.
        if let Some((name, _)) = vm.name_label.rsplit_once(" - ") {
            vm.name_label = name.to_owned();
        }
        Ok(Self {
            target: survivor.target.name.clone(),
            point: record.uuid.clone(),
            taken_at,
            held: view::is_held(&record),
            vm,
            snapshot: record,
            networks,
            disks,
            warnings: Vec::new(),
        })
    }

    pub(crate) async fn in_store(target: &StoreTarget, point: StoredPoint) -> Result<Self, RunError> {
        let metadata = target.store.metadata(&point.id).await.map_err(RunError::Store)?;
        let damaged = |why| RunError::Inconsistent { what: "recovery point", object: point.id.clone(), why };
        let Described { vm, snapshot, disks, networks } = description::read(&metadata).map_err(damaged)?;
        let mut found = Vec::with_capacity(disks.len());
        for (attached, common) in disks.into_iter().zip(&metadata.disks) {
            let stored = point.disks.iter().find(|stored| stored.disk == common.disk);
            let stored =
                stored.ok_or_else(|| damaged(format!("its disk {} is described and not stored", common.disk)))?;
            found.push(OriginDisk {
                disk: stored.disk.clone(),
                attached,
                content: stored.content.clone(),
                digest: stored.digest.clone(),
                from: DiskOrigin::Store(StoredSource {
                    store: target.store.clone(),
                    point: point.id.clone(),
                    disk: stored.clone(),
                }),
            });
        }
        Ok(Self {
            target: target.name.clone(),
            point: point.id,
            taken_at: point.taken_at,
            held: point.held,
            vm,
            snapshot,
            networks,
            disks: found,
            warnings: Vec::new(),
        })
    }
}
