//! The replica VM: what it takes over from its source, how its start is prevented, and its disks and interfaces.

use crate::allocation::MAX_VHD_DISK;
use crate::error::{RunError, chain};
use crate::inventory::AttachedDisk;
use crate::job::{Job, Target};
use crate::keys::{self, Keys};
use crate::objects::set_keys;
use crate::plan::replica_size;
use std::collections::BTreeMap;
use vmferry_xapi::records::{Network, Vbd, Vdi, Vif, Vm};
use vmferry_xapi::{Error, IntoValue, Ref, Session, Value, params};

/// Fields of a VM that its replica takes over when it is made.
///
/// Left out are references into the source's pool (affinity, suspend SR and disk, appliance, schedules), what XAPI keeps
/// by itself, and what would let the replica start without being asked: high availability and auto power-on.
pub(crate) const TAKEN_OVER: &[&str] = &[
    "HVM_boot_params",
    "HVM_boot_policy",
    "HVM_shadow_multiplier",
    "NVRAM",
    "PV_args",
    "PV_bootloader",
    "PV_bootloader_args",
    "PV_kernel",
    "PV_legacy_args",
    "PV_ramdisk",
    "VCPUs_at_startup",
    "VCPUs_max",
    "VCPUs_params",
    "actions_after_crash",
    "actions_after_reboot",
    "actions_after_shutdown",
    "actions_after_softreboot",
    "domain_type",
    "generation_id",
    "hardware_platform_version",
    "has_vendor_device",
    "memory_dynamic_max",
    "memory_dynamic_min",
    "memory_static_max",
    "memory_static_min",
    "name_description",
    "order",
    "platform",
    "recommendations",
    "reference_label",
    "shutdown_delay",
    "start_delay",
    "user_version",
    "version",
    "xenstore_data",
];

/// Of those, the ones that a setter of the same name refreshes. Memory and VCPU counts have an order of their own;
/// the rest is fixed at creation.
const REFRESHED: &[&str] = &[
    "HVM_boot_params",
    "HVM_shadow_multiplier",
    "NVRAM",
    "PV_args",
    "PV_bootloader",
    "PV_bootloader_args",
    "PV_kernel",
    "PV_legacy_args",
    "PV_ramdisk",
    "VCPUs_params",
    "actions_after_crash",
    "actions_after_reboot",
    "actions_after_shutdown",
    "actions_after_softreboot",
    "domain_type",
    "hardware_platform_version",
    "name_description",
    "order",
    "platform",
    "recommendations",
    "shutdown_delay",
    "start_delay",
    "user_version",
    "xenstore_data",
];

/// Tag by which people and Xen Orchestra's smart mode tell a replica from a VM that needs protection.
const REPLICA_TAG: &str = "Continuous Replication";
/// Tag that tells that the source is highly available and its replica is not.
const HA_TAG: &str = "HA disabled";

/// The record of a new replica, for `VM.create`.
///
/// It is a template at first: `VM.create` ignores blocked operations, and XAPI starts no template.
pub(crate) fn creation_record(source: &Vm, name: &str, other_config: &Keys) -> Value {
    let mut record: BTreeMap<String, Value> =
        TAKEN_OVER.iter().filter_map(|field| Some(((*field).to_owned(), source.raw.get(*field)?.clone()))).collect();
    let mut set = |field: &str, value: Value| record.insert(field.to_owned(), value);
    set("PCI_bus", "".into_value());
    set("affinity", Ref::<()>::null().into_value());
    set("ha_always_run", false.into_value());
    set("ha_restart_priority", "".into_value());
    set("is_a_template", true.into_value());
    set("name_label", name.into_value());
    set("other_config", other_config.clone().into_value());
    set("tags", tags(source).into_value());
    Value::Struct(record)
}

/// The record of a VM that is restored, for `VM.create`: as a replica's, but as its source was tagged.
pub(crate) fn restored_record(source: &Vm, name: &str, other_config: &Keys) -> Value {
    match creation_record(source, name, other_config) {
        Value::Struct(mut record) => {
            let of_a_replica = |tag: &&String| *tag != REPLICA_TAG && *tag != HA_TAG;
            let tags: Vec<String> = source.tags.iter().filter(of_a_replica).cloned().collect();
            record.insert("tags".to_owned(), tags.into_value());
            Value::Struct(record)
        }
        other => other,
    }
}

/// The tags of a replica.
fn tags(source: &Vm) -> Vec<String> {
    let mut tags = source.tags.clone();
    tags.push(REPLICA_TAG.to_owned());
    if !source.ha_restart_priority.is_empty() {
        tags.push(HA_TAG.to_owned());
    }
    tags.sort();
    tags.dedup();
    tags
}

/// The keys that a replica takes over from its source, with what would start it by itself put aside. A snapshot does not
/// have to keep its VM's place in high availability, so that is asked of the VM.
pub(crate) fn inherited_keys(snapshot: &Vm, source: &Vm) -> Keys {
    let mut keys = keys::inheritable(&snapshot.other_config);
    put_autostart_aside(&mut keys);
    if !source.ha_restart_priority.is_empty() {
        keys.insert(keys::SOURCE_HA_RESTART_PRIORITY.to_owned(), source.ha_restart_priority.clone());
    }
    keys
}

/// Turns `auto_poweron` into a record of it.
pub(crate) fn put_autostart_aside(keys: &mut Keys) {
    if let Some(value) = keys.remove(keys::AUTO_POWERON) {
        keys.insert(keys::SOURCE_AUTO_POWERON.to_owned(), value);
    }
}

/// Gives a VM its source's priority in high availability, if it had one. Says why that failed: a pool may have no such
/// thing, or no place for one VM more.
pub(crate) async fn set_ha_priority(session: &Session, vm: &Ref<Vm>, priority: Option<&String>) -> Option<String> {
    let set = session.call::<()>("VM.set_ha_restart_priority", params![vm, priority?]).await;
    set.err().map(|error| format!("high availability could not be switched on: {}", chain(&error)))
}

/// Name of the live replica.
pub(crate) fn replica_name(job: &Job, source: &Vm) -> String {
    format!("{} [replica {}]", source.name_label, job.name)
}

/// What the replica's start is refused with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StartBlock<'a> {
    /// It is whole.
    Standby { job: &'a str },
    /// It is whole, and the job that goes on with it need not be one of ours.
    Seeded { job: &'a str },
    /// Bytes are being written, or were when the writer died.
    HalfWritten { job: &'a str, last_point: Option<&'a str> },
}

impl std::fmt::Display for StartBlock<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Standby { job } => write!(
                f,
                "standby of vmferry job {job}: start a clone of a snapshot of it (vmferry failover clone {job}), or fail over to it (vmferry failover start {job} --force)"
            ),
            Self::Seeded { job } => write!(f, "standby of replication job {job}: start a clone of a snapshot of it"),
            Self::HalfWritten { job, last_point: Some(point) } => write!(
                f,
                "half-written by vmferry; clone snapshot {point}, or let `vmferry failover start {job} --force` put this VM back to it"
            ),
            Self::HalfWritten { job, last_point: None } => {
                write!(f, "being imported by vmferry job {job}; there is no recovery point yet")
            }
        }
    }
}

/// Refuses `start` and `start_on`. `VM.create` ignores blocked operations, so this is always a call of its own.
pub(crate) async fn block_start(session: &Session, vm: &Ref<Vm>, block: StartBlock<'_>) -> Result<(), Error> {
    let text = block.to_string();
    let blocked = Keys::from([("start".to_owned(), text.clone()), ("start_on".to_owned(), text)]);
    session.call("VM.set_blocked_operations", params![vm, blocked]).await
}

/// Brings the fields of an existing replica up to date with the source; only what differs is set.
pub(crate) async fn refresh(session: &Session, vm: &Ref<Vm>, replica: &Vm, source: &Vm) -> Result<(), Error> {
    for field in REFRESHED {
        let (Some(wanted), Some(found)) = (source.raw.get(*field), replica.raw.get(*field)) else { continue };
        if wanted != found {
            let () = session.call(&format!("VM.set_{field}"), params![vm, wanted.clone()]).await?;
        }
    }
    let wanted_tags = tags(source);
    if sorted(&replica.tags) != wanted_tags {
        let () = session.call("VM.set_tags", params![vm, wanted_tags]).await?;
    }
    refresh_memory(session, vm, replica, source).await?;
    refresh_vcpus(session, vm, replica, source).await
}

/// The same for a disk.
pub(crate) async fn refresh_disk(session: &Session, vdi: &Ref<Vdi>, replica: &Vdi, source: &Vdi) -> Result<(), Error> {
    if replica.name_label != source.name_label {
        let () = session.call("VDI.set_name_label", params![vdi, &source.name_label]).await?;
    }
    if replica.name_description != source.name_description {
        let () = session.call("VDI.set_name_description", params![vdi, &source.name_description]).await?;
    }
    if sorted(&replica.tags) != sorted(&source.tags) {
        let () = session.call("VDI.set_tags", params![vdi, source.tags.clone()]).await?;
    }
    Ok(())
}

fn sorted(tags: &[String]) -> Vec<String> {
    let mut tags = tags.to_vec();
    tags.sort();
    tags
}

/// All four limits at once: set one by one they would pass through states that XAPI refuses.
async fn refresh_memory(session: &Session, vm: &Ref<Vm>, replica: &Vm, source: &Vm) -> Result<(), Error> {
    const LIMITS: [&str; 4] = ["memory_static_min", "memory_static_max", "memory_dynamic_min", "memory_dynamic_max"];
    if LIMITS.iter().all(|field| replica.raw.get(*field) == source.raw.get(*field)) {
        return Ok(());
    }
    let mut arguments = params![vm];
    arguments.extend(LIMITS.iter().filter_map(|field| source.raw.get(*field).cloned()));
    session.call("VM.set_memory_limits", arguments).await
}

/// The number at start may never exceed the maximum, so a growing maximum is set first and a shrinking one last.
async fn refresh_vcpus(session: &Session, vm: &Ref<Vm>, replica: &Vm, source: &Vm) -> Result<(), Error> {
    let number = |vm: &Vm, field: &str| vm.raw.get(field).and_then(as_number);
    let (Some(max), Some(at_startup)) = (number(source, "VCPUs_max"), number(source, "VCPUs_at_startup")) else {
        return Ok(());
    };
    let maximum = ("VM.set_VCPUs_max", max, number(replica, "VCPUs_max") != Some(max));
    let starting = ("VM.set_VCPUs_at_startup", at_startup, number(replica, "VCPUs_at_startup") != Some(at_startup));
    let growing = number(replica, "VCPUs_max").is_none_or(|now| now < max);
    let order = if growing { [maximum, starting] } else { [starting, maximum] };
    for (method, value, differs) in order {
        if differs {
            let () = session.call(method, params![vm, value]).await?;
        }
    }
    Ok(())
}

/// XAPI sends integers as untagged text.
pub(crate) fn as_number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        other => other.as_str()?.parse().ok(),
    }
}

/// The record of a new replica disk, for `VDI.create`.
pub(crate) fn disk_record(source: &Vdi, sr: &str, name: &str, other_config: &Keys) -> Value {
    let text = |field: &str| source.raw.get(field).cloned().unwrap_or_else(|| "".into_value());
    let size = i64::try_from(replica_size(source.virtual_size)).unwrap_or(i64::MAX);
    Value::Struct(BTreeMap::from([
        ("SR".to_owned(), sr.into_value()),
        ("name_description".to_owned(), text("name_description")),
        ("name_label".to_owned(), name.into_value()),
        ("other_config".to_owned(), other_config.clone().into_value()),
        ("read_only".to_owned(), false.into_value()),
        ("sm_config".to_owned(), image_format(source.virtual_size).into_value()),
        ("sharable".to_owned(), false.into_value()),
        ("tags".to_owned(), source.tags.clone().into_value()),
        ("type".to_owned(), text("type")),
        ("virtual_size".to_owned(), size.into_value()),
    ]))
}

/// What a new disk asks the storage for: a format that can hold it, where VHD cannot.
fn image_format(virtual_size: u64) -> Keys {
    let qcow2 = (virtual_size > MAX_VHD_DISK).then(|| ("image-format".to_owned(), "qcow2".to_owned()));
    qcow2.into_iter().collect()
}

/// Makes the replica's disks exactly `wanted` (source attachment, target disk). Returns the disks that were detached.
pub(crate) async fn attach_disks(
    session: &Session,
    vm: &Ref<Vm>,
    found: &[AttachedDisk],
    wanted: &[(&AttachedDisk, &Ref<Vdi>)],
) -> Result<Vec<Ref<Vdi>>, Error> {
    let stays = |disk: &AttachedDisk| {
        wanted.iter().any(|(source, vdi)| {
            **vdi == disk.vdi
                && source.vbd_record.userdevice == disk.vbd_record.userdevice
                && source.vbd_record.bootable == disk.vbd_record.bootable
        })
    };
    let mut detached = Vec::new();
    for disk in found.iter().filter(|disk| !stays(disk)) {
        let goes = !wanted.iter().any(|(_, vdi)| **vdi == disk.vdi);
        if goes && disk.record.other_config.contains_key(keys::JOB) {
            // Once it hangs on nothing, only this tells whose leftover it is.
            let mark = [(keys::STATE, keys::State::Importing.to_string()), (keys::SELF, disk.record.uuid.clone())];
            set_keys(session, &disk.vdi, &mark, &[]).await?;
        }
        let () = session.call("VBD.destroy", params![&disk.vbd]).await?;
        if goes {
            detached.push(disk.vdi.clone());
        }
    }
    for (source, vdi) in wanted {
        let attached = found.iter().any(|disk| disk.vdi == **vdi && stays(disk));
        if !attached {
            let _: Ref<Vbd> = session.call("VBD.create", params![vbd_record(vm, vdi, &source.vbd_record)]).await?;
        }
    }
    Ok(detached)
}

/// Attaches further disks to a VM (source attachment, disk).
pub(crate) async fn attach_more(
    session: &Session,
    vm: &Ref<Vm>,
    disks: &[(&AttachedDisk, &Ref<Vdi>)],
) -> Result<(), Error> {
    for (source, vdi) in disks {
        let _: Ref<Vbd> = session.call("VBD.create", params![vbd_record(vm, vdi, &source.vbd_record)]).await?;
    }
    Ok(())
}

/// What the attachment of a disk takes over from its source.
const OF_AN_ATTACHMENT: [&str; 7] =
    ["userdevice", "bootable", "mode", "other_config", "qos_algorithm_type", "qos_algorithm_params", "unpluggable"];

/// The record of a disk's attachment.
pub(crate) fn vbd_record(vm: &Ref<Vm>, vdi: &Ref<Vdi>, source: &Vbd) -> Value {
    let field = |name: &str| source.raw.get(name).cloned();
    let mut record = BTreeMap::from([
        ("VM".to_owned(), vm.clone().into_value()),
        ("VDI".to_owned(), vdi.clone().into_value()),
        ("empty".to_owned(), false.into_value()),
        ("type".to_owned(), "Disk".into_value()),
    ]);
    for name in OF_AN_ATTACHMENT {
        if let Some(value) = field(name) {
            record.insert(name.to_owned(), value);
        }
    }
    Value::Struct(record)
}

/// The record of a disk's attachment to a suspended VM, plugged as it was; `device` is its name in the guest.
pub(crate) fn plugged_disk(vm: &Ref<Vm>, disk: &AttachedDisk, device: &str) -> Value {
    plugged(vbd_record(vm, &disk.vdi, &disk.vbd_record), [("device", device.into_value())])
}

/// The same for an interface.
pub(crate) fn plugged_interface(vm: &Ref<Vm>, vif: &Vif) -> Value {
    plugged(vif_record(vm, &vif.network, vif), [])
}

fn plugged<const N: usize>(record: Value, more: [(&str, Value); N]) -> Value {
    match record {
        Value::Struct(mut fields) => {
            let attached = [("currently_attached", true.into_value())].into_iter().chain(more);
            fields.extend(attached.map(|(name, value)| (name.to_owned(), value)));
            Value::Struct(fields)
        }
        other => other,
    }
}

/// One interface of the source and the target network it maps to; `None` for an interface that is left out.
pub(crate) type MappedInterface = (Vif, Option<Ref<Network>>);

/// Maps every interface of the source to a network of the target, by the target's table, else by uuid, else by a name that is unique.
pub(crate) fn map_networks(
    interfaces: &[Vif],
    source: &[(Ref<Network>, Network)],
    target_networks: &[(Ref<Network>, Network)],
    target: &Target,
) -> Result<Vec<MappedInterface>, RunError> {
    let mut mapped = Vec::with_capacity(interfaces.len());
    let mut obstacles = Vec::new();
    for interface in interfaces {
        let Some((_, network)) = source.iter().find(|(reference, _)| *reference == interface.network) else {
            obstacles.push(format!("interface {} is on a network that its pool does not list", interface.device));
            continue;
        };
        match map_network(network, target_networks, target) {
            Ok(found) => mapped.push((interface.clone(), found)),
            Err(obstacle) => obstacles.push(obstacle),
        }
    }
    if obstacles.is_empty() { Ok(mapped) } else { Err(RunError::Obstacles(obstacles)) }
}

fn map_network(
    network: &Network,
    candidates: &[(Ref<Network>, Network)],
    target: &Target,
) -> Result<Option<Ref<Network>>, String> {
    let named = |text: &str| -> Vec<&Ref<Network>> {
        let by_uuid = candidates.iter().filter(|(_, candidate)| candidate.uuid == text);
        let by_name = candidates.iter().filter(|(_, candidate)| candidate.name_label == text);
        let found: Vec<_> = by_uuid.map(|(reference, _)| reference).collect();
        if found.is_empty() { by_name.map(|(reference, _)| reference).collect() } else { found }
    };
    let configured = target.networks.get(&network.uuid).or_else(|| target.networks.get(&network.name_label));
    let (text, found) = match configured {
        Some(text) if text == "none" => return Ok(None),
        Some(text) => (text.as_str(), named(text)),
        None => match named(&network.uuid) {
            found if !found.is_empty() => (network.uuid.as_str(), found),
            _ => (network.name_label.as_str(), named(&network.name_label)),
        },
    };
    match found.as_slice() {
        [one] => Ok(Some((*one).clone())),
        several_or_none => Err(format!(
            "network {:?} of the source: {} network of pool {} is called {text:?}; map it in the target, for example networks = {{ {:?} = \"<name, uuid or none>\" }}",
            network.name_label,
            if several_or_none.is_empty() { "no" } else { "more than one" },
            target.pool,
            network.name_label,
        )),
    }
}

/// Makes the replica's interfaces exactly `wanted`: the source's addresses, and what else it may and may not send.
pub(crate) async fn sync_interfaces(
    session: &Session,
    vm: &Ref<Vm>,
    replica: &Vm,
    wanted: &[MappedInterface],
) -> Result<(), Error> {
    let mut missing: Vec<(&Vif, &Ref<Network>)> =
        wanted.iter().filter_map(|(source, network)| Some((source, network.as_ref()?))).collect();
    for reference in &replica.vifs {
        let found: Vif = session.get_record(reference).await?;
        let same = missing.iter().position(|(source, network)| {
            let is_same = |name: &&str| source.raw.get(*name) == found.raw.get(*name);
            **network == found.network && OF_AN_INTERFACE.iter().all(is_same)
        });
        match same {
            Some(index) => drop(missing.swap_remove(index)),
            None => session.call("VIF.destroy", params![reference]).await?,
        }
    }
    for (source, network) in missing {
        let _: Ref<Vif> = session.call("VIF.create", params![vif_record(vm, network, source)]).await?;
    }
    Ok(())
}

/// What an interface takes over from its source. Most of it is fixed when it is made.
const OF_AN_INTERFACE: [&str; 9] = [
    "device",
    "MAC",
    "MTU",
    "other_config",
    "qos_algorithm_type",
    "qos_algorithm_params",
    "locking_mode",
    "ipv4_allowed",
    "ipv6_allowed",
];

/// The record of an interface.
pub(crate) fn vif_record(vm: &Ref<Vm>, network: &Ref<Network>, source: &Vif) -> Value {
    let mut record = BTreeMap::from([
        ("VM".to_owned(), vm.clone().into_value()),
        ("network".to_owned(), network.clone().into_value()),
    ]);
    for name in OF_AN_INTERFACE {
        if let Some(value) = source.raw.get(name) {
            record.insert(name.to_owned(), value.clone());
        }
    }
    Value::Struct(record)
}

/// Gives a replica its source's BIOS strings, unless it has some: XAPI lets them be set once, and of a source as well. Empty ones
/// are refused.
pub(crate) async fn copy_bios_strings(session: &Session, vm: &Ref<Vm>, replica: &Vm, source: &Vm) -> Result<(), Error> {
    let settable = |(key, value): &(&String, &String)| !key.starts_with("oem-") && !value.is_empty();
    let settable: Keys =
        source.bios_strings.iter().filter(settable).map(|(key, value)| (key.clone(), value.clone())).collect();
    if settable.is_empty() || !replica.bios_strings.is_empty() {
        return Ok(());
    }
    session.call("VM.set_bios_strings", params![vm, settable]).await
}
