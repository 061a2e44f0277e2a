//! Which VMs a job replicates: a pure function of the source pool's records.

use crate::error::RunError;
use crate::inventory::Inventory;
use crate::job::{Job, Selection};
use crate::keys;
use vmferry_xapi::Ref;
use vmferry_xapi::records::Vm;

/// uuid of a selected VM, and the VM or why it cannot be replicated.
pub(crate) type Selected<'a> = (String, Result<(&'a Ref<Vm>, &'a Vm), RunError>);

/// The selected VMs, in order of name and uuid; each may be an error of its own.
pub(crate) fn select<'a>(inventory: &'a Inventory, job: &Job, only: Option<&str>) -> Vec<Selected<'a>> {
    let named = job.select.vms.iter().filter(|uuid| !job.select.exclude_vms.contains(uuid));
    let mut chosen: Vec<Selected<'_>> = named.map(|uuid| (uuid.clone(), by_uuid(inventory, job, uuid))).collect();
    for (reference, vm) in inventory.vms.iter().filter(|(_, vm)| matches(&job.select, vm)) {
        if !job.select.vms.contains(&vm.uuid) {
            chosen.push((vm.uuid.clone(), Ok((reference, vm))));
        }
    }
    if let Some(only) = only {
        chosen.retain(|(uuid, _)| uuid == only);
        if chosen.is_empty() {
            chosen.push((only.to_owned(), Err(not_found(job, only, "check the uuid, or add the VM to the job"))));
        }
    }
    chosen
        .sort_by_key(|(uuid, vm)| (vm.as_ref().map(|(_, vm)| vm.name_label.clone()).unwrap_or_default(), uuid.clone()));
    chosen
}

fn by_uuid<'a>(inventory: &'a Inventory, job: &Job, uuid: &str) -> Result<(&'a Ref<Vm>, &'a Vm), RunError> {
    let found = inventory.vm_by_uuid(uuid).filter(|(_, vm)| is_user_vm(vm));
    let (reference, vm) = found.ok_or_else(|| not_found(job, uuid, "check the uuid in the job's `select`"))?;
    if is_our_replica(vm) && vm.other_config.get(keys::JOB) == Some(&job.ids.job.to_string()) {
        return Err(RunError::OwnReplica { vm: uuid.to_owned() });
    }
    Ok((reference, vm))
}

fn not_found(job: &Job, uuid: &str, remedy: &'static str) -> RunError {
    RunError::NotFound { class: "VM", name: uuid.to_owned(), pool: job.select.pool.clone(), remedy }
}

fn is_user_vm(vm: &Vm) -> bool {
    !vm.is_a_template && !vm.is_a_snapshot && !vm.is_control_domain
}

/// Whether the rules (not the list of uuids) pick this VM.
fn matches(rules: &Selection, vm: &Vm) -> bool {
    let carries = |tags: &[String]| tags.iter().any(|tag| vm.tags.contains(tag));
    is_user_vm(vm)
        && carries(&rules.tags)
        && !carries(&rules.exclude_tags)
        && !rules.exclude_vms.contains(&vm.uuid)
        && !is_replica(vm)
        && (rules.power_states.is_empty() || rules.power_states.contains(&format!("{:?}", vm.power_state)))
}

/// Whether some replication made this VM: ours, or Xen Orchestra's, which leaves the target's SR on the live replica.
fn is_replica(vm: &Vm) -> bool {
    is_our_replica(vm) || vm.other_config.contains_key(keys::XO_SR)
}

/// Whether this is a replica that we keep. A source that was reverted to one of our snapshots carries our keys as well.
fn is_our_replica(vm: &Vm) -> bool {
    vm.other_config.contains_key(keys::JOB) && vm.other_config.get(keys::SELF) == Some(&vm.uuid)
}
