//! What a restore to a new VM makes, told from everything else until it is whole.
//!
//! The VM is a template, carries `vmferry:restoring`, and is leased. A disk carries the key until it hangs on that VM. When all is
//! in place the key goes, and what was restored is its owner's. A restore that dies leaves the key and a lease that nobody
//! renews: `gc` removes what carries it, with the disks that hang on nothing else.

use crate::error::RunError;
use crate::inventory::Inventory;
use crate::keys::{self, Keys};
use crate::objects::destroy_disk;
use crate::run::Run;
use std::collections::BTreeMap;
use vmferry_xapi::records::{Vdi, Vm};
use vmferry_xapi::{Ref, Session, params};

/// The value of [`keys::RESTORING`]: the job whose recovery point it is and the uuid of the VM being made, empty while it has none.
pub(crate) fn mark(run: &Run<'_>, vm: &str) -> String {
    format!("{}:{vm}", run.job.ids.job)
}

/// The VM that a marked object of this job belongs to.
fn marked_for<'k>(keys: &'k Keys, job: &str) -> Option<&'k str> {
    keys.get(keys::RESTORING)?.strip_prefix(job)?.strip_prefix(':')
}

/// What restores of a job have made on a pool and not finished, by the uuid of the VM being made.
#[derive(Debug, Default)]
pub(crate) struct Unfinished<'a> {
    /// The VM, unless it is gone already.
    pub(crate) vm: Option<(&'a Ref<Vm>, &'a Vm)>,
    /// Disks that were not attached yet.
    pub(crate) loose: Vec<(&'a Ref<Vdi>, &'a Vdi)>,
}

/// Finds them; copies that somebody made of such a VM are none.
pub(crate) fn unfinished<'a>(inventory: &'a Inventory, job: &str) -> BTreeMap<String, Unfinished<'a>> {
    let mut found: BTreeMap<String, Unfinished<'_>> = BTreeMap::new();
    for (reference, vm) in inventory.vms.iter().filter(|(_, vm)| vm.is_a_template && !vm.is_a_snapshot) {
        let own = match marked_for(&vm.other_config, job) {
            // It gets its uuid by the call after the one that makes it, and disks after that.
            Some("") => inventory.disks_of(vm).is_empty(),
            of => of == Some(vm.uuid.as_str()),
        };
        if own {
            found.entry(vm.uuid.clone()).or_default().vm = Some((reference, vm));
        }
    }
    for (reference, disk) in inventory.vdis.iter().filter(|(_, disk)| !disk.is_a_snapshot && !inventory.is_used(disk)) {
        if let Some(of) = marked_for(&disk.other_config, job) {
            found.entry(of.to_owned()).or_default().loose.push((reference, disk));
        }
    }
    found
}

/// Removes what restores that are gone left on a pool. Those that are under way are not touched.
pub(crate) async fn remove_unfinished(run: &Run<'_>, session: &Session) -> Result<(), RunError> {
    let inventory = Inventory::load(session).await?;
    let job = run.job.ids.job.to_string();
    for (uuid, left) in unfinished(&inventory, &job) {
        if let Some((vm, _)) = left.vm {
            let _lease = match run.lease(session, vm, &uuid).await {
                Err(RunError::Locked { .. }) => continue,
                taken => taken?,
            };
            // It may have been finished while it was waited for.
            let keys: Keys = session.call("VM.get_other_config", params![vm]).await?;
            if marked_for(&keys, &job).is_none() {
                continue;
            }
            remove(session, vm).await?;
        }
        for (disk, _) in left.loose {
            destroy_disk(session, disk).await?;
        }
    }
    Ok(())
}

/// Destroys a VM that was not finished, after the disks that hang on nothing else: when that breaks off, the VM still tells of the rest.
pub(crate) async fn remove(session: &Session, vm: &Ref<Vm>) -> Result<(), RunError> {
    let inventory = Inventory::load(session).await?;
    let Some(record) = inventory.vms.get(vm) else { return Ok(()) };
    for disk in inventory.disks_of(record) {
        if !inventory.hangs_elsewhere(&disk.record, vm) {
            destroy_disk(session, &disk.vdi).await?;
        }
    }
    Ok(session.call_async("VM.destroy", params![vm]).await?)
}
