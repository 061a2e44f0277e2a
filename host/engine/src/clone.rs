//! Failover, the part that changes nothing: a recovery point is cloned, and the clone is started. Looked at and removed
//! again, it is the boot test of a recovery point.

use crate::engine::Engine;
use crate::error::{EngineError, RunError, chain};
use crate::guest::{self, GuestReport, GuestWait};
use crate::interfaces::{NetworkChoice, Wiring};
use crate::inventory::AttachedDisk;
use crate::job::Job;
use crate::keys::{self, Keys};
use crate::memory;
use crate::objects::{destroy_disk, replace_keys};
use crate::points::{Wanted, assert_undamaged};
use crate::replica::{self, MappedInterface, put_autostart_aside};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;
use vmferry_xapi::records::{PowerState, Vbd, VbdType, Vdi, Vm};
use vmferry_xapi::{Ref, Session, params};

/// The seed of the hardware addresses that XAPI makes up for a VM.
const MAC_SEED: &str = "mac_seed";

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
    pub network: NetworkChoice,
    /// Whether the pool makes up hardware addresses for the clone, instead of those of the source.
    pub new_macs: bool,
    /// Whether it starts by itself from now on, as its source does: with its host, and by high availability.
    pub auto_start: bool,
    /// Whether the clone is started.
    pub start: bool,
    /// Whether a clone that is started goes on from the memory that the recovery point holds, instead of booting.
    pub resume: bool,
    /// Whether its guest is waited for, if it is started.
    pub guest: Option<GuestWait>,
    /// Whether the clone is removed at the end, whatever became of its guest.
    pub remove_after: bool,
    /// The clone's name; made of the VM's name and the point's time when absent.
    pub name: Option<String>,
}

impl CloneRequest {
    /// A started clone of a VM's newest recovery point, connected as its replica.
    pub fn newest(vm: impl Into<String>) -> Self {
        Self {
            vm: vm.into(),
            point: None,
            target: None,
            network: NetworkChoice::AsReplica,
            new_macs: false,
            auto_start: false,
            start: true,
            resume: false,
            guest: None,
            remove_after: false,
            name: None,
        }
    }
}

/// A clone of a recovery point.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// What became of its guest, if that was asked.
    pub guest: Option<GuestReport>,
    /// Whether it was removed again.
    pub removed: bool,
    /// uuids of its disks.
    pub disks: Vec<String>,
    /// What an operator should know besides.
    pub warnings: Vec<String>,
}

impl Engine {
    /// Clones a recovery point into an ordinary VM, and starts it if asked. Needs the target only. The replica and
    /// its recovery points are as before.
    pub async fn clone_point(&self, job: &Job, request: &CloneRequest) -> Result<CloneReport, EngineError> {
        let (vm, point, target) = (request.vm.as_str(), request.point.as_deref(), request.target.as_deref());
        let found = self.find_point(job, Wanted { vm, point, target, undamaged: true }).await?;
        let (survivor, point, mut warnings) = (found.survivor, found.point, found.warnings);
        if request.start {
            assert_undamaged(&point, survivor.view(job, vm).points())?;
        }
        if request.resume && !point.has_memory() {
            return Err(EngineError::Refused(format!(
                "recovery point {} does not hold the memory of its VM, so there is nothing to resume; `points list {}` tells which do, and \
                 without --resume the clone boots",
                point.uuid, job.name
            )));
        }
        let (session, inventory) = (&survivor.session, &survivor.inventory);
        let origin = &inventory.vms[&point.reference];
        let wiring = Wiring { choice: &request.network, new_macs: request.new_macs, starts: request.start };
        let interfaces = wiring.of(session, &survivor.target.pool, inventory, origin).await?;
        let name = request.name.clone().unwrap_or_else(|| format!("{} (clone)", origin.name_label));
        let clone: Ref<Vm> =
            session.call_async("VM.clone", params![&point.reference, name.as_str()]).await.map_err(RunError::from)?;
        let made = Clone { session, vm: &clone, request };
        let (vm, disks, started) = match made.make_ordinary(&interfaces, &mut warnings).await {
            Ok(made) => made,
            Err(error) => {
                if let Err(left) = made.remove().await {
                    tracing::warn!(%clone, error = %left, "a clone that could not be finished is left; remove it by hand");
                }
                return Err(error.into());
            }
        };
        let made = Clone { session, vm: &vm, request };
        let vm: String = session.call("VM.get_uuid", params![&vm]).await.map_err(RunError::from)?;
        let guest = match &request.guest {
            Some(wait) if started => Some(guest::wait(session, made.vm, wait).await),
            _ => None,
        };
        let mut removed = false;
        if request.remove_after {
            match made.remove().await {
                Ok(()) => removed = true,
                Err(error) => warnings.push(format!("clone {vm} is left, remove it by hand: {}", chain(&error))),
            }
        }
        Ok(CloneReport {
            vm,
            name,
            target: survivor.target.name.clone(),
            point: point.uuid,
            taken_at: point.taken_at,
            started,
            guest,
            removed,
            disks,
            warnings,
        })
    }
}

/// A clone in the making.
struct Clone<'a> {
    session: &'a Session,
    vm: &'a Ref<Vm>,
    request: &'a CloneRequest,
}

impl Clone<'_> {
    /// Turns a clone of a snapshot into a VM like any other: no replication keys, no template, its start not blocked. It stays a
    /// template, which XAPI does not start, until everything else is done.
    async fn make_ordinary(
        &self,
        interfaces: &[MappedInterface],
        warnings: &mut Vec<String>,
    ) -> Result<(Ref<Vm>, Vec<String>, bool), RunError> {
        let (session, vm) = (self.session, self.vm);
        let record: Vm = session.get_record(vm).await?;
        replace_keys(session, vm, &self.keys(&record.other_config)).await?;
        let mut disks = Vec::new();
        for disk in disks_of(session, &record).await? {
            let mut own = keys::inheritable(&disk.record.other_config);
            match memory::key_of(&disk.record) {
                Some(memory) => own.extend([memory]),
                None => disks.push(disk.record.uuid),
            }
            replace_keys(session, &disk.vdi, &own).await?;
        }
        let image = memory::detach(session, vm).await?;
        replica::sync_interfaces(session, vm, &record, interfaces).await?;
        let () = session.call("VM.set_blocked_operations", params![vm, Keys::new()]).await?;
        let () = session.call("VM.set_is_a_template", params![vm, false]).await?;
        let (vm, started) = match image {
            Some(image) => self.start_beside(&image, warnings).await?,
            None => (vm.clone(), self.start().await?),
        };
        if self.request.auto_start {
            let priority = record.other_config.get(keys::SOURCE_HA_RESTART_PRIORITY);
            warnings.extend(replica::set_ha_priority(session, &vm, priority).await);
        }
        Ok((vm, disks, started))
    }

    async fn start(&self) -> Result<bool, RunError> {
        if self.request.start {
            let () = self.session.call_async("VM.start", params![self.vm, false, false]).await?;
        }
        Ok(self.request.start)
    }

    /// Resumes from an image that came off, where that is asked for; else starts without it, and destroys it. Tells the VM, which
    /// is another one once it is resumed, and whether it runs.
    async fn start_beside(
        &self,
        image: &AttachedDisk,
        warnings: &mut Vec<String>,
    ) -> Result<(Ref<Vm>, bool), RunError> {
        let resume = self.request.start && self.request.resume;
        if resume {
            match memory::resume(self.session, self.vm, image, warnings).await {
                // XAPI destroys the image of a VM that goes on.
                Ok(resumed) => return Ok((resumed, true)),
                Err(error) => warnings.push(format!(
                    "the clone was not resumed from the memory of its recovery point: {}; it is left halted, and `xe vm-start` boots it \
                     from its disks",
                    chain(&error)
                )),
            }
        }
        destroy_disk(self.session, &image.vdi).await?;
        let started = !resume && self.start().await?;
        Ok((self.vm.clone(), started))
    }

    /// The clone's keys: those of the source, what starts it by itself only on request.
    fn keys(&self, found: &Keys) -> Keys {
        let mut found = found.clone();
        put_autostart_aside(&mut found);
        let mut own = keys::inheritable(&found);
        if let Some(value) = found.get(keys::SOURCE_AUTO_POWERON).filter(|_| self.request.auto_start) {
            own.insert(keys::AUTO_POWERON.to_owned(), value.clone());
        }
        if self.request.new_macs {
            own.insert(MAC_SEED.to_owned(), Uuid::new_v4().to_string());
        }
        own
    }

    /// Destroys the clone and its disks.
    async fn remove(&self) -> Result<(), RunError> {
        let record: Vm = self.session.get_record(self.vm).await?;
        let disks = disks_of(self.session, &record).await?;
        if record.power_state != PowerState::Halted {
            let () = self.session.call_async("VM.hard_shutdown", params![self.vm]).await?;
        }
        let () = self.session.call_async("VM.destroy", params![self.vm]).await?;
        for disk in disks {
            destroy_disk(self.session, &disk.vdi).await?;
        }
        Ok(())
    }
}

/// The disks of a VM as they are now, in the order of their device numbers.
pub(crate) async fn disks_of(session: &Session, vm: &Vm) -> Result<Vec<AttachedDisk>, RunError> {
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
