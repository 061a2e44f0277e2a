//! What tests do to a pool beside XAPI: build VMs, write as a guest would, look at everything. Shared by the library calls
//! and the control port.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::calls::vdi::{node_of, refresh_sr, size_of};
use crate::calls::{cbt, device, vdi, vm};
use crate::config::{DiskSpec, SrSpec, VmSpec};
use crate::db::Fields;
use crate::schema::SCHEMA;
use crate::state::{State, fields};
use crate::storage::BLOCK_SIZE;
use crate::tls::hex;
use crate::value::Value;

/// The key under which a looked-at record carries its reference.
const REF_KEY: &str = "$ref";

pub(crate) fn uuid_of(state: &State, class: &str, reference: &str) -> String {
    state.db.find(class, reference).map(|row| row.string("uuid")).unwrap_or_default()
}

pub(crate) fn add_sr(state: &mut State, spec: &SrSpec) -> anyhow::Result<String> {
    let sr = state.add_sr(spec)?;
    Ok(uuid_of(state, "SR", &sr))
}

pub(crate) fn add_vm(state: &mut State, spec: &VmSpec) -> anyhow::Result<String> {
    let other_config = spec.other_config.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let mut fields = vm_defaults();
    fields.extend(fields! {
        "name_label" => spec.name.as_str(),
        "other_config" => Value::map(other_config),
        "tags" => Value::strings(spec.tags.iter().map(String::as_str)),
        "affinity" => state.master.as_str(),
    });
    let vm = vm::create(state, fields)?;
    for (number, disk) in spec.disks.iter().enumerate() {
        let vdi = add_disk(state, disk)?;
        let vbd = fields! {
            "VM" => vm.as_str(), "VDI" => vdi, "userdevice" => number.to_string(), "bootable" => number == 0,
            "mode" => "RW", "type" => "Disk", "unpluggable" => true, "empty" => false,
        };
        device::create_vbd(state, vbd)?;
    }
    for number in 0..spec.vifs {
        let vif = fields! {
            "VM" => vm.as_str(), "network" => state.network.as_str(), "device" => number.to_string(), "MAC" => "", "MTU" => 1500,
        };
        device::create_vif(state, vif)?;
    }
    if spec.running {
        vm::start(state, &vm, "start", None)?;
    }
    Ok(uuid_of(state, "VM", &vm))
}

/// VMs to an SR of a crowd.
const CROWD_TO_AN_SR: usize = 50;

/// VMs with two disks each that are nothing but their records: a large pool in little time.
pub(crate) fn add_crowd(state: &mut State, vms: usize) -> anyhow::Result<()> {
    let mut sr = String::new();
    for number in 0..vms {
        if number % CROWD_TO_AN_SR == 0 {
            sr = state.add_sr(&SrSpec { name: format!("crowd {number}"), size: 1 << 50, ..SrSpec::default() })?;
        }
        let mut fields = vm_defaults();
        fields.extend(fields! {
            "name_label" => format!("crowd {number}"),
            "other_config" => Value::map([("mac_seed", uuid::Uuid::new_v4().to_string().as_str())]),
        });
        let vm = vm::create(state, fields)?;
        for userdevice in ["0", "1"] {
            let disk = fields! {
                "name_label" => format!("disk {userdevice} of crowd {number}"), "SR" => sr.as_str(), "managed" => true,
                "virtual_size" => 32i64 << 30, "type" => "user", "location" => uuid::Uuid::new_v4().to_string(),
            };
            let vdi = state.db.insert("VDI", disk)?;
            let vbd = fields! {
                "VM" => vm.as_str(), "VDI" => vdi, "userdevice" => userdevice, "mode" => "RW", "type" => "Disk",
            };
            state.db.insert("VBD", vbd)?;
        }
    }
    Ok(())
}

/// A guest of one gigabyte that boots from its first disk.
fn vm_defaults() -> Fields {
    let memory = 1i64 << 30;
    fields! {
        "memory_static_max" => memory,
        "memory_dynamic_max" => memory,
        "memory_dynamic_min" => memory,
        "memory_static_min" => memory,
        "VCPUs_max" => 1,
        "VCPUs_at_startup" => 1,
        "actions_after_shutdown" => "destroy",
        "actions_after_reboot" => "restart",
        "actions_after_crash" => "restart",
        "HVM_boot_policy" => "BIOS order",
        "HVM_boot_params" => Value::map([("order", "cd"), ("firmware", "bios")]),
        "platform" => Value::map([("acpi", "1"), ("apic", "true"), ("pae", "true"), ("nx", "true")]),
    }
}

fn add_disk(state: &mut State, spec: &DiskSpec) -> anyhow::Result<String> {
    let image_size = match &spec.image {
        Some(path) => std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len(),
        None => 0,
    };
    let sr = match &spec.sr {
        Some(uuid) => state.db.by_uuid("SR", uuid)?,
        None => state.default_sr.clone(),
    };
    let vdi = vdi::create(
        state,
        fields! {
            "name_label" => spec.name.as_str(),
            "SR" => sr.as_str(),
            "virtual_size" => i64::try_from(spec.size.max(image_size))?,
            "type" => "user",
            "sm_config" => Value::map(spec.image_format.iter().map(|format| ("image-format", format.as_str()))),
        },
    )?;
    if let Some(path) = &spec.image {
        load(state, &vdi, path)?;
        refresh_sr(state, &sr)?;
    }
    Ok(vdi)
}

/// Replaces the content of a disk by that of a file, as the guest would: only where they differ.
fn load(state: &mut State, vdi: &str, path: &Path) -> anyhow::Result<()> {
    let mut file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    let size = size_of(state.db.get("VDI", vdi)?);
    let length = file.metadata()?.len();
    if length > size {
        bail!("{} has {length} bytes, the disk {size}", path.display());
    }
    let node = node_of(state, vdi)?;
    let (mut wanted, mut present) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(wanted.len() as u64) as usize;
        let read = (&mut file).take(length as u64).read(&mut wanted)?;
        // Behind the end of the file the disk is zero.
        let step = if read == 0 { length } else { read };
        wanted[read..step].fill(0);
        state.nodes.read(node, offset, &mut present[..step]);
        if wanted[..step] != present[..step] {
            vdi::put(state, vdi, offset, &wanted[..step])?;
        }
        offset += step as u64;
    }
    Ok(())
}

pub(crate) fn load_image(state: &mut State, vdi: &str, path: &Path) -> anyhow::Result<()> {
    let vdi = state.db.by_uuid("VDI", vdi)?;
    load(state, &vdi, path)
}

/// A raw image file; ranges never written stay holes in it.
pub(crate) fn dump(state: &State, vdi: &str, path: &Path) -> anyhow::Result<()> {
    use std::io::{Seek as _, SeekFrom};
    let vdi = state.db.by_uuid("VDI", vdi)?;
    let mut file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
    let size = size_of(state.db.get("VDI", &vdi)?);
    file.set_len(size)?;
    for (offset, page) in state.nodes.stored_pages(node_of(state, &vdi)?) {
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(vdi::within(size, offset, page))?;
    }
    Ok(())
}

/// A write of the guest: also while the VM runs, and also on a full SR.
pub(crate) fn write(state: &mut State, vdi: &str, offset: u64, data: &[u8]) -> anyhow::Result<()> {
    let vdi = state.db.by_uuid("VDI", vdi)?;
    let size = size_of(state.db.get("VDI", &vdi)?);
    if offset.checked_add(data.len() as u64).is_none_or(|end| end > size) {
        bail!("{} bytes at {offset} do not fit into a disk of {size}", data.len());
    }
    Ok(vdi::put(state, &vdi, offset, data)?)
}

pub(crate) fn bring_up_guest(state: &mut State, vm: &str) -> anyhow::Result<()> {
    let vm = state.db.by_uuid("VM", vm)?;
    Ok(vm::bring_up_guest(state, &vm)?)
}

/// Loses the change log of a disk, as a crash of the host does.
pub(crate) fn break_cbt(state: &mut State, vdi: &str) -> anyhow::Result<()> {
    let vdi = state.db.by_uuid("VDI", vdi)?;
    Ok(cbt::break_log(state, &vdi)?)
}

pub(crate) fn read(state: &State, vdi: &str, offset: u64, length: usize) -> anyhow::Result<Vec<u8>> {
    let vdi = state.db.by_uuid("VDI", vdi)?;
    let size = size_of(state.db.get("VDI", &vdi)?);
    if offset.checked_add(length as u64).is_none_or(|end| end > size) {
        bail!("{length} bytes at {offset} are not in a disk of {size}");
    }
    let mut data = vec![0; length];
    state.nodes.read(node_of(state, &vdi)?, offset, &mut data);
    Ok(data)
}

/// Of the whole content, holes as zeroes.
pub(crate) fn sha256(state: &State, vdi: &str) -> anyhow::Result<String> {
    let vdi = state.db.by_uuid("VDI", vdi)?;
    let size = size_of(state.db.get("VDI", &vdi)?);
    let zeroes = vec![0; BLOCK_SIZE as usize];
    let mut digest = Sha256::new();
    let mut position = 0;
    let pad = |digest: &mut Sha256, from: u64, to: u64| {
        let mut left = to - from;
        while left > 0 {
            let step = left.min(BLOCK_SIZE);
            digest.update(&zeroes[..step as usize]);
            left -= step;
        }
    };
    for (offset, page) in state.nodes.stored_pages(node_of(state, &vdi)?) {
        pad(&mut digest, position, offset);
        let page = vdi::within(size, offset, page);
        digest.update(page);
        position = offset + page.len() as u64;
    }
    pad(&mut digest, position, size);
    Ok(hex(&digest.finalize()))
}

pub(crate) fn vm_disks(state: &State, vm: &str) -> anyhow::Result<Vec<String>> {
    let vm = state.db.by_uuid("VM", vm)?;
    let mut disks = BTreeMap::new();
    for vbd in state.db.get("VM", &vm)?.list("VBDs") {
        let row = state.db.get("VBD", &vbd)?;
        if row.str("type") == "Disk" && !row.bool("empty") {
            let number: u32 = row.str("userdevice").parse().unwrap_or(u32::MAX);
            disks.insert(number, uuid_of(state, "VDI", row.str("VDI")));
        }
    }
    Ok(disks.into_values().collect())
}

/// Records by class; disks are those that users see, base copies have a line of their own.
pub(crate) fn object_counts(state: &State) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<String, usize> = SCHEMA
        .classes()
        .map(|class| (class.name.clone(), state.db.count(&class.name)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let base_copies = state.db.table("VDI").filter(|(_, row)| !row.bool("managed")).count();
    if let Some(vdis) = counts.get_mut("VDI") {
        *vdis -= base_copies;
        counts.insert("VDI base copies".to_owned(), base_copies);
    }
    counts
}

pub(crate) fn records(state: &State, class: &str) -> Vec<serde_json::Value> {
    let records = state.db.table(class).map(|(reference, row)| {
        let mut record = row.record().to_json();
        record[REF_KEY] = serde_json::Value::String(reference.clone());
        record
    });
    records.collect()
}
