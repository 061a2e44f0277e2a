//! A pool's objects, read once, so that everything that decides can be a function of values.

use std::collections::BTreeMap;
use vmferry_xapi::records::{Sr, Vbd, VbdType, Vdi, Vm};
use vmferry_xapi::{Error, Ref, Session};

/// VMs, disks, their attachments and storage repositories of one pool at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) vms: BTreeMap<Ref<Vm>, Vm>,
    pub(crate) vdis: BTreeMap<Ref<Vdi>, Vdi>,
    pub(crate) vbds: BTreeMap<Ref<Vbd>, Vbd>,
    pub(crate) srs: BTreeMap<Ref<Sr>, Sr>,
}

/// A disk as it hangs on a VM.
#[derive(Clone, Debug)]
pub(crate) struct AttachedDisk {
    pub(crate) vbd: Ref<Vbd>,
    pub(crate) vbd_record: Vbd,
    pub(crate) vdi: Ref<Vdi>,
    pub(crate) record: Vdi,
}

impl Inventory {
    pub(crate) async fn load(session: &Session) -> Result<Self, Error> {
        let (vms, vdis, vbds, srs) = tokio::try_join!(
            session.get_all_records::<Vm>(),
            session.get_all_records::<Vdi>(),
            session.get_all_records::<Vbd>(),
            session.get_all_records::<Sr>(),
        )?;
        Ok(Self {
            vms: vms.into_iter().collect(),
            vdis: vdis.into_iter().collect(),
            vbds: vbds.into_iter().collect(),
            srs: srs.into_iter().collect(),
        })
    }

    pub(crate) fn vm_by_uuid(&self, uuid: &str) -> Option<(&Ref<Vm>, &Vm)> {
        self.vms.iter().find(|(_, vm)| vm.uuid == uuid)
    }

    pub(crate) fn sr_by_uuid(&self, uuid: &str) -> Option<(&Ref<Sr>, &Sr)> {
        self.srs.iter().find(|(_, sr)| sr.uuid == uuid)
    }

    /// The disks of a VM in the order of their device numbers; CDs, floppies and empty drives are left out.
    pub(crate) fn disks_of(&self, vm: &Vm) -> Vec<AttachedDisk> {
        let mut disks: Vec<AttachedDisk> = vm
            .vbds
            .iter()
            .filter_map(|vbd| {
                let record = self.vbds.get(vbd)?;
                let disk = self.vdis.get(&record.vdi)?;
                (record.kind == VbdType::Disk && !record.empty).then(|| AttachedDisk {
                    vbd: vbd.clone(),
                    vbd_record: record.clone(),
                    vdi: record.vdi.clone(),
                    record: disk.clone(),
                })
            })
            .collect();
        disks.sort_by_key(|disk| disk.vbd_record.userdevice.parse::<u32>().unwrap_or(u32::MAX));
        disks
    }

    /// The disks of a VM, and its memory where that is on a disk as well.
    pub(crate) fn content_of<'a>(&'a self, vm: &Vm) -> impl Iterator<Item = &'a Vdi> {
        let disks = self.disks_of(vm).into_iter().map(|disk| disk.vdi).chain([vm.suspend_vdi.clone()]);
        disks.filter_map(|disk| self.vdis.get(&disk))
    }

    /// Whether a disk hangs on a VM, the control domain left out: XAPI attaches disks there while it streams them. An
    /// attachment that was made after the attachments were read counts.
    pub(crate) fn is_used(&self, vdi: &Vdi) -> bool {
        let is_control_domain = |vbd| Some(self.vms.get(&self.vbds.get(vbd)?.vm)?.is_control_domain);
        vdi.vbds.iter().any(|vbd| is_control_domain(vbd) != Some(true))
    }

    /// Whether a disk hangs on something else than this VM, the control domain left out. An attachment of which nothing is known counts.
    pub(crate) fn hangs_elsewhere(&self, vdi: &Vdi, than: &Ref<Vm>) -> bool {
        vdi.vbds.iter().any(|vbd| {
            let user = self.vbds.get(vbd).map(|vbd| &vbd.vm);
            user != Some(than) && user.and_then(|vm| self.vms.get(vm)).is_none_or(|vm| !vm.is_control_domain)
        })
    }

    /// Whether a disk holds the memory of a suspended VM, or of a snapshot of a running one.
    pub(crate) fn is_suspend_image(&self, vdi: &Ref<Vdi>) -> bool {
        self.vms.values().any(|vm| vm.suspend_vdi == *vdi)
    }

    /// Links of the chain that ends in this disk, itself first: `sm_config:vhd-parent` names the next one.
    pub(crate) fn chain<'a>(&'a self, vdi: &'a Vdi) -> Vec<&'a Vdi> {
        let by_uuid = |uuid: &str| self.vdis.values().find(|candidate| candidate.uuid == uuid);
        std::iter::successors(Some(vdi), |link| by_uuid(link.sm_config.get("vhd-parent")?))
            .take(self.vdis.len())
            .collect()
    }
}
