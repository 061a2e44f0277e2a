//! What it takes to make a VM again, as JSON: those fields of XAPI's records that a copy takes over.
//!
//! It travels with media and with the recovery points of stores, and what is read of it was in other hands meanwhile: uuids have
//! to be uuids, and numbers have bounds.

use crate::inventory::AttachedDisk;
use crate::replica::TAKEN_OVER;
use crate::run::Networks;
use crate::snapshot::{Taken, TakenDisk};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;
use vmferry_model::target::{DiskMetadata, Firmware, InterfaceMetadata, MachineMetadata, VmMetadata};
use vmferry_xapi::records::{Network, Vbd, VbdMode, Vdi, Vif, Vm};
use vmferry_xapi::{IntoValue, Record, Ref, Value};

/// Most disks that XAPI hangs on a VM, and one for its memory.
const MAX_DISKS: usize = 256;
/// Most interfaces that are read; XAPI has seven.
const MAX_INTERFACES: usize = 64;

/// What a replica takes over of its source's VM record beside [`TAKEN_OVER`].
const OF_A_VM: &[&str] = &["bios_strings", "ha_restart_priority", "name_label", "other_config", "tags", "uuid"];
const OF_A_DISK: &[&str] = &["name_description", "name_label", "other_config", "tags", "type", "uuid"];
const OF_A_DRIVE: &[&str] = &[
    "bootable",
    "mode",
    "other_config",
    "qos_algorithm_params",
    "qos_algorithm_type",
    "type",
    "unpluggable",
    "userdevice",
    "uuid",
];
const OF_AN_INTERFACE: &[&str] = &[
    "MAC",
    "MTU",
    "device",
    "ipv4_allowed",
    "ipv6_allowed",
    "locking_mode",
    "other_config",
    "qos_algorithm_params",
    "qos_algorithm_type",
    "uuid",
];

/// Fields of a record, as XAPI sends them.
pub(crate) type Fields = BTreeMap<String, serde_json::Value>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InterfaceEntry {
    interface: Fields,
    /// uuid of the source's network.
    network: Uuid,
    network_name: String,
}

/// The fields of a VM, or of its snapshot.
pub(crate) fn vm(vm: &Vm) -> Fields {
    let names: Vec<&str> = TAKEN_OVER.iter().chain(OF_A_VM).copied().collect();
    fields(&vm.raw, &names)
}

/// The fields of a disk.
pub(crate) fn disk(disk: &Vdi) -> Fields {
    fields(&disk.raw, OF_A_DISK)
}

/// The fields of a disk's attachment.
pub(crate) fn drive(drive: &Vbd) -> Fields {
    fields(&drive.raw, OF_A_DRIVE)
}

/// Those of the interfaces, or why that cannot be told.
pub(crate) fn interfaces(networks: &Networks) -> Result<Vec<InterfaceEntry>, String> {
    let entry = |interface: &Vif| {
        let network = networks.networks.iter().find(|(reference, _)| *reference == interface.network);
        let (_, network) = network
            .ok_or_else(|| format!("interface {} is on a network that its pool does not list", interface.device))?;
        Ok(InterfaceEntry {
            interface: fields(&interface.raw, OF_AN_INTERFACE),
            network: Uuid::parse_str(&network.uuid).map_err(|_| format!("{:?} is no uuid", network.uuid))?,
            network_name: network.name_label.clone(),
        })
    };
    networks.interfaces.iter().map(entry).collect()
}

/// The interfaces again, and the networks that they were on.
pub(crate) fn networks(entries: Vec<InterfaceEntry>) -> Result<Networks, String> {
    let mut networks = Networks { interfaces: Vec::new(), networks: Vec::new() };
    for InterfaceEntry { interface, network, network_name } in entries {
        let mut interface: Vif = record("interface", interface)?;
        interface.network = Ref::new(network.to_string());
        let network = Network { uuid: network.to_string(), name_label: network_name, ..Network::default() };
        if !networks.networks.iter().any(|(known, _)| *known == interface.network) {
            networks.networks.push((interface.network.clone(), network));
        }
        networks.interfaces.push(interface);
    }
    Ok(networks)
}

/// What a store keeps with a recovery point that is XAPI's alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OfXapi {
    vm: Fields,
    snapshot: Fields,
    /// In the order of [`VmMetadata::disks`].
    disks: Vec<OfXapiDisk>,
    interfaces: Vec<InterfaceEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OfXapiDisk {
    disk: Fields,
    drive: Fields,
}

/// What a store keeps with a recovery point.
pub(crate) fn metadata(source: &Vm, taken: &Taken, networks: &Networks) -> Result<VmMetadata, String> {
    let interfaces = interfaces(networks)?;
    let of_disk = |disk: &TakenDisk| {
        let AttachedDisk { vbd_record, record, .. } = &disk.of;
        DiskMetadata {
            disk: record.uuid.clone(),
            name: record.name_label.clone(),
            size: record.virtual_size,
            position: vbd_record.userdevice.parse().unwrap_or_default(),
            bootable: vbd_record.bootable,
            read_only: vbd_record.mode == VbdMode::ReadOnly,
        }
    };
    let of_interface = |(interface, entry): (&Vif, &InterfaceEntry)| InterfaceMetadata {
        position: interface.device.parse().unwrap_or_default(),
        mac: interface.mac.clone(),
        network: entry.network_name.clone(),
    };
    let of_xapi = OfXapi {
        vm: vm(source),
        snapshot: vm(&taken.record),
        disks: taken
            .disks
            .iter()
            .map(|taken| OfXapiDisk { disk: disk(&taken.of.record), drive: drive(&taken.of.vbd_record) })
            .collect(),
        interfaces: interfaces.clone(),
    };
    Ok(VmMetadata {
        format: 1,
        vm: machine(&taken.record, &source.name_label),
        disks: taken.disks.iter().map(of_disk).collect(),
        interfaces: networks.interfaces.iter().zip(&interfaces).map(of_interface).collect(),
        xapi: serde_json::to_value(of_xapi).map_err(|error| error.to_string())?,
    })
}

fn machine(vm: &Vm, name: &str) -> MachineMetadata {
    let number = |field: &str| vm.raw.get(field).and_then(crate::replica::as_number);
    let text = |map: &str, key: &str| vm.raw.get(map)?.as_struct()?.get(key)?.as_str().map(str::to_owned);
    MachineMetadata {
        name: name.to_owned(),
        description: vm.name_description.clone(),
        vcpus: number("VCPUs_max").and_then(|number| u32::try_from(number).ok()).unwrap_or(1).max(1),
        memory: number("memory_static_max").and_then(|number| u64::try_from(number).ok()).unwrap_or_default(),
        firmware: match text("HVM_boot_params", "firmware").as_deref() {
            Some("uefi") => Firmware::Uefi,
            _ => Firmware::Bios,
        },
        secure_boot: text("platform", "secureboot").is_some_and(|word| word == "true" || word == "auto"),
    }
}

/// A VM as a recovery point describes it.
pub(crate) struct Described {
    /// The live VM of the source.
    pub(crate) vm: Vm,
    pub(crate) snapshot: Vm,
    /// In the order of [`VmMetadata::disks`]; neither disks nor attachments exist.
    pub(crate) disks: Vec<AttachedDisk>,
    pub(crate) networks: Networks,
}

/// Reads what a store keeps with a recovery point, or says what is wrong with it.
pub(crate) fn read(metadata: &VmMetadata) -> Result<Described, String> {
    if metadata.format != 1 {
        return Err(format!(
            "its description is of format {}, this program reads 1; restore with the program that wrote it",
            metadata.format
        ));
    }
    let OfXapi { vm, snapshot, disks, interfaces } =
        OfXapi::deserialize(&metadata.xapi).map_err(|error| format!("its description is damaged: {error}"))?;
    if disks.len() != metadata.disks.len() || disks.len() > MAX_DISKS || interfaces.len() > MAX_INTERFACES {
        return Err("its description has other disks or interfaces than a VM can have".to_owned());
    }
    let attached = disks.into_iter().zip(&metadata.disks).map(|(fields, common)| {
        let what = format!("disk {}", common.disk);
        let mut record_of_disk: Vdi = record(&what, fields.disk)?;
        record_of_disk.virtual_size = common.size;
        let vbd_record: Vbd = record(&what, fields.drive)?;
        Ok(AttachedDisk { vbd: Ref::null(), vbd_record, vdi: Ref::null(), record: record_of_disk })
    });
    Ok(Described {
        vm: record("VM", vm)?,
        snapshot: record("snapshot", snapshot)?,
        disks: attached.collect::<Result<_, String>>()?,
        networks: networks(interfaces)?,
    })
}

/// A record of XAPI's with a uuid that is one.
pub(crate) fn record<T: Record>(what: &str, fields: Fields) -> Result<T, String> {
    let fields = fields.into_iter().map(|(name, value)| (name, from_json(value))).collect();
    let record = T::from_fields(fields).map_err(|error| format!("{what}: {error}"))?;
    match Uuid::parse_str(record.uuid()) {
        Ok(_) => Ok(record),
        Err(_) => Err(format!("{what}: {:?} is no uuid", record.uuid())),
    }
}

/// These fields of a record, as far as it has them.
fn fields(raw: &BTreeMap<String, Value>, names: &[&str]) -> Fields {
    let found = names.iter().filter_map(|name| Some(((*name).to_owned(), to_json(raw.get(*name)?)?)));
    found.collect()
}

/// `None` for a date, which none of the fields is that a replica takes over.
fn to_json(value: &Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::Nil => serde_json::Value::Null,
        Value::Bool(flag) => (*flag).into(),
        Value::Int(number) => (*number).into(),
        Value::Double(number) => (*number).into(),
        Value::String(text) => text.as_str().into(),
        Value::DateTime(_) => return None,
        Value::Array(values) => values.iter().map(to_json).collect::<Option<Vec<_>>>()?.into(),
        Value::Struct(members) => {
            let members = members.iter().map(|(name, value)| Some((name.clone(), to_json(value)?)));
            serde_json::Value::Object(members.collect::<Option<_>>()?)
        }
    })
}

fn from_json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(flag) => Value::Bool(flag),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => number.as_f64().unwrap_or_default().into_value(),
        },
        serde_json::Value::String(text) => Value::String(text),
        serde_json::Value::Array(values) => Value::Array(values.into_iter().map(from_json).collect()),
        serde_json::Value::Object(members) => {
            Value::Struct(members.into_iter().map(|(name, value)| (name, from_json(value))).collect())
        }
    }
}
