//! VBDs, VIFs and VTPMs.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::Args;
use super::vdi::{Mode, assert_attachable};
use crate::db::{Fields, Row};
use crate::error::{ApiError, ApiResult};
use crate::state::{State, fields};
use crate::value::{NULL_REF, Value};

/// What a guest can address.
const MAX_VBDS: u32 = 255;
const MAX_VIFS: u32 = 7;

pub(super) fn run(state: &mut State, class: &str, message: &str, args: &Args) -> Option<ApiResult<Value>> {
    let this = args.text(0);
    let void = |outcome: ApiResult<()>| Some(outcome.map(|()| Value::void()));
    match (class, message) {
        ("VBD", "create") => {
            let fields = State::record_fields("VBD", args.record(0));
            Some(fields.and_then(|fields| create_vbd(state, fields)).map(Value::String))
        }
        ("VIF", "create") => {
            let fields = State::record_fields("VIF", args.record(0));
            Some(fields.and_then(|fields| create_vif(state, fields)).map(Value::String))
        }
        ("VTPM", "create") => Some(create_vtpm(state, this, args.value(1)).map(Value::String)),
        ("VBD" | "VIF", "destroy") => void(destroy(state, class, this)),
        ("VTPM", "destroy") => void(destroy_vtpm(state, this)),
        ("VTPM", "get_contents") => {
            let found = state.db.get("VTPM", this).map(|_| state.vtpm_contents.get(this).cloned().unwrap_or_default());
            Some(found.map(Value::String))
        }
        ("VTPM", "set_contents") => {
            let known = state.db.get("VTPM", this).map(|_| ());
            void(known.map(|()| drop(state.vtpm_contents.insert(this.to_owned(), args.text(1).to_owned()))))
        }
        ("VBD" | "VIF", "plug") => void(plug(state, class, this)),
        ("VBD" | "VIF", "unplug" | "unplug_force") => void(unplug(state, class, this)),
        ("VBD", "set_mode") => void(set_mode(state, this, args.text(1))),
        ("VBD", "eject") => void(eject(state, this)),
        ("VBD", "insert") => void(insert(state, this, args.text(1))),
        ("VIF", "move") => void(move_vif(state, this, args.text(1))),
        _ => None,
    }
}

fn mode_of(text: &str) -> Mode {
    match text {
        "RW" => Mode::Rw,
        _ => Mode::Ro,
    }
}

/// `xvda` for 0, as a Linux guest with paravirtual drivers calls it.
fn device_name(number: u32) -> String {
    let letter = |number: u32| char::from(b'a' + (number % 26) as u8);
    match number {
        0..26 => format!("xvd{}", letter(number)),
        _ => format!("xvd{}{}", letter(number / 26 - 1), letter(number)),
    }
}

/// The user devices of a VM that no VBD has taken.
pub(super) fn free_vbd_devices(state: &State, vm: &str) -> ApiResult<Vec<u32>> {
    let vbds = state.db.get("VM", vm)?.list("VBDs");
    let taken: Vec<&str> =
        vbds.iter().filter_map(|vbd| state.db.find("VBD", vbd)).map(|vbd| vbd.str("userdevice")).collect();
    Ok((0..MAX_VBDS).filter(|number| !taken.contains(&number.to_string().as_str())).collect())
}

/// The first free (user device, device name).
pub(super) fn free_device(state: &State, vm: &str) -> ApiResult<(String, String)> {
    let free = free_vbd_devices(state, vm)?;
    let number = free.first().ok_or_else(|| ApiError::new("INVALID_DEVICE", ["autodetect"]))?;
    Ok((number.to_string(), device_name(*number)))
}

pub(crate) fn create_vbd(state: &mut State, mut fields: Fields) -> ApiResult<String> {
    let text = |fields: &Fields, name: &str| fields.get(name).map_or("", Value::as_str).to_owned();
    let (vm, vdi, device) = (text(&fields, "VM"), text(&fields, "VDI"), text(&fields, "userdevice"));
    let suspended = state.db.get("VM", &vm)?.str("power_state") == "Suspended";
    let empty = fields.get("empty") == Some(&Value::Bool(true));
    if text(&fields, "type") == "CD" && text(&fields, "mode") == "RW" {
        return Err(ApiError::bare("VBD_CDS_MUST_BE_READONLY"));
    }
    if empty {
        fields.insert("VDI".to_owned(), Value::null_ref());
    } else {
        let row = state.db.get("VDI", &vdi)?;
        if ["cbt_metadata", "ha_statefile", "redo_log"].contains(&row.str("type")) {
            return Err(ApiError::new("VDI_INCOMPATIBLE_TYPE", [vdi.as_str(), row.str("type")]));
        }
        if row.bool("read_only") && text(&fields, "mode") == "RW" {
            return Err(ApiError::new("VDI_READONLY", [vdi]));
        }
    }
    let free = free_vbd_devices(state, &vm)?;
    let number = match device.as_str() {
        "autodetect" => free.first().copied(),
        number => Some(number.parse().map_err(|_| ApiError::new("INVALID_DEVICE", [number]))?),
    };
    let number =
        number.filter(|number| *number < MAX_VBDS).ok_or_else(|| ApiError::new("INVALID_DEVICE", [&device]))?;
    if !free.contains(&number) {
        return Err(ApiError::new("DEVICE_ALREADY_EXISTS", [device]));
    }
    fields.insert("userdevice".to_owned(), number.to_string().into());
    if !suspended {
        fields.insert("currently_attached".to_owned(), Value::Bool(false));
        fields.insert("device".to_owned(), Value::void());
    }
    let metrics = state.db.insert("VBD_metrics", Fields::new())?;
    fields.insert("metrics".to_owned(), metrics.into());
    state.db.insert("VBD", fields)
}

pub(crate) fn create_vif(state: &mut State, mut fields: Fields) -> ApiResult<String> {
    let text = |fields: &Fields, name: &str| fields.get(name).map_or("", Value::as_str).to_owned();
    let (vm, device) = (text(&fields, "VM"), text(&fields, "device"));
    state.db.get("network", &text(&fields, "network"))?;
    let row = state.db.get("VM", &vm)?;
    let seed = row.entry("other_config", "mac_seed").unwrap_or_default().to_owned();
    let suspended = row.str("power_state") == "Suspended";
    let free = free_vif_devices(state, &vm)?;
    let number = match device.as_str() {
        "autodetect" => free.first().copied(),
        number => number.parse().ok(),
    };
    let number =
        number.filter(|number| *number < MAX_VIFS).ok_or_else(|| ApiError::new("INVALID_DEVICE", [&device]))?;
    if !free.contains(&number) {
        return Err(ApiError::new("DEVICE_ALREADY_EXISTS", [device]));
    }
    let mac = text(&fields, "MAC").to_lowercase();
    let generated = mac.is_empty();
    if !generated && !is_unicast_mac(&mac) {
        return Err(ApiError::new("MAC_INVALID", [mac]));
    }
    fields.insert("device".to_owned(), number.to_string().into());
    fields.insert("MAC".to_owned(), if generated { derived_mac(&seed, number) } else { mac }.into());
    fields.insert("MAC_autogenerated".to_owned(), Value::Bool(generated));
    if !suspended {
        fields.insert("currently_attached".to_owned(), Value::Bool(false));
    }
    state.db.insert("VIF", fields)
}

fn free_vif_devices(state: &State, vm: &str) -> ApiResult<Vec<u32>> {
    let vifs = state.db.get("VM", vm)?.list("VIFs");
    let taken: Vec<&str> =
        vifs.iter().filter_map(|vif| state.db.find("VIF", vif)).map(|vif| vif.str("device")).collect();
    Ok((0..MAX_VIFS).filter(|number| !taken.contains(&number.to_string().as_str())).collect())
}

/// The same seed and device give the same address, locally administered and unicast.
fn derived_mac(seed: &str, device: u32) -> String {
    let digest = Sha256::digest(format!("{seed}/{device}"));
    let mut bytes: Vec<u8> = digest.iter().copied().take(6).collect();
    bytes[0] = (bytes[0] & !1) | 2;
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn is_unicast_mac(mac: &str) -> bool {
    let bytes: Vec<Option<u8>> =
        mac.split(':').map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2)).collect();
    bytes.len() == 6
        && bytes.iter().all(Option::is_some)
        && bytes.first().copied().flatten().is_some_and(|first| first & 1 == 0)
}

fn create_vtpm(state: &mut State, vm: &str, is_unique: Value) -> ApiResult<String> {
    let row = state.db.get("VM", vm)?;
    if !row.list("VTPMs").is_empty() {
        return Err(ApiError::new("VTPM_MAX_AMOUNT_REACHED", ["1"]));
    }
    assert_halted(row, vm)?;
    state.db.insert("VTPM", fields! { "VM" => vm, "is_unique" => is_unique, "persistence_backend" => "xapi" })
}

fn destroy_vtpm(state: &mut State, vtpm: &str) -> ApiResult<()> {
    let vm = state.db.get("VTPM", vtpm)?.string("VM");
    assert_halted(state.db.get("VM", &vm)?, &vm)?;
    remove(state, "VTPM", vtpm)
}

fn assert_halted(vm: &Row, reference: &str) -> ApiResult<()> {
    match vm.str("power_state") {
        "Halted" => Ok(()),
        other => Err(ApiError::new("VM_BAD_POWER_STATE", [reference, "halted", &other.to_lowercase()])),
    }
}

fn destroy(state: &mut State, class: &str, device: &str) -> ApiResult<()> {
    let row = state.db.get(class, device)?;
    if row.bool("currently_attached") {
        let text = format!("{class} is attached to a running VM");
        return Err(ApiError::not_allowed(&text));
    }
    remove(state, class, device)
}

/// With its metrics.
pub(super) fn remove(state: &mut State, class: &str, device: &str) -> ApiResult<()> {
    let row = state.db.remove(class, device)?;
    state.vtpm_contents.remove(device);
    let metrics = row.str("metrics");
    if metrics != NULL_REF && class == "VBD" && state.db.find("VBD_metrics", metrics).is_some() {
        state.db.remove("VBD_metrics", metrics)?;
    }
    Ok(())
}

fn plug(state: &mut State, class: &str, device: &str) -> ApiResult<()> {
    let row = state.db.get(class, device)?;
    if row.bool("currently_attached") {
        return Err(ApiError::new("DEVICE_ALREADY_ATTACHED", [device]));
    }
    let vm = row.string("VM");
    let power_state = state.db.get("VM", &vm)?.str("power_state").to_lowercase();
    if power_state != "running" {
        return Err(ApiError::new("VM_BAD_POWER_STATE", [vm.as_str(), "running", &power_state]));
    }
    attach(state, class, device)
}

/// As when the VM starts.
pub(super) fn attach(state: &mut State, class: &str, device: &str) -> ApiResult<()> {
    let row = state.db.get(class, device)?;
    if class == "VBD" {
        let number: u32 = row.str("userdevice").parse().unwrap_or(0);
        if !row.bool("empty") {
            assert_attachable(state, row.str("VDI"), mode_of(row.str("mode")))?;
        }
        state.db.set("VBD", device, "device", device_name(number))?;
    }
    state.db.set(class, device, "currently_attached", true)
}

fn unplug(state: &mut State, class: &str, device: &str) -> ApiResult<()> {
    if !state.db.get(class, device)?.bool("currently_attached") {
        return Err(ApiError::new("DEVICE_ALREADY_DETACHED", [device]));
    }
    state.db.set(class, device, "currently_attached", false)
}

fn set_mode(state: &mut State, vbd: &str, mode: &str) -> ApiResult<()> {
    let row = state.db.get("VBD", vbd)?;
    if row.bool("currently_attached") {
        return Err(ApiError::not_allowed("The mode of an attached VBD cannot be changed"));
    }
    let vdi = row.string("VDI");
    if mode == "RW" && state.db.find("VDI", &vdi).is_some_and(|vdi| vdi.bool("read_only")) {
        return Err(ApiError::new("VDI_READONLY", [vdi]));
    }
    state.db.set("VBD", vbd, "mode", mode)
}

fn eject(state: &mut State, vbd: &str) -> ApiResult<()> {
    let row = state.db.get("VBD", vbd)?;
    if row.str("type") != "CD" {
        return Err(ApiError::new("VBD_NOT_REMOVABLE_MEDIA", [vbd]));
    }
    if row.bool("empty") {
        return Err(ApiError::new("VBD_IS_EMPTY", [vbd]));
    }
    state.db.set("VBD", vbd, "empty", true)?;
    state.db.set("VBD", vbd, "VDI", NULL_REF)
}

fn insert(state: &mut State, vbd: &str, vdi: &str) -> ApiResult<()> {
    let row = state.db.get("VBD", vbd)?;
    if row.str("type") != "CD" {
        return Err(ApiError::new("VBD_NOT_REMOVABLE_MEDIA", [vbd]));
    }
    if !row.bool("empty") {
        return Err(ApiError::new("VBD_NOT_EMPTY", [vbd]));
    }
    state.db.get("VDI", vdi)?;
    state.db.set("VBD", vbd, "VDI", vdi)?;
    state.db.set("VBD", vbd, "empty", false)
}

fn move_vif(state: &mut State, vif: &str, network: &str) -> ApiResult<()> {
    state.db.get("network", network)?;
    state.db.set("VIF", vif, "network", network)
}

/// The devices of a VM given to its copy: `vdis` maps each disk to the one that takes its place; disks that are not
/// in it are left out, like empty drives.
pub(super) fn copy_devices(
    state: &mut State,
    from: &str,
    to: &str,
    vdis: &BTreeMap<String, String>,
    keep_macs: bool,
) -> ApiResult<()> {
    let row = state.db.get("VM", from)?;
    let (vbds, vifs, vtpms) = (row.list("VBDs"), row.list("VIFs"), row.list("VTPMs"));
    for vbd in vbds {
        let row = state.db.get("VBD", &vbd)?;
        let mut fields = row.fields.clone();
        let vdi = row.string("VDI");
        if row.str("type") == "Disk" && !vdis.contains_key(&vdi) {
            continue;
        }
        if let Some(new) = vdis.get(&vdi) {
            fields.insert("VDI".to_owned(), new.as_str().into());
            let mut other_config = row.map("other_config");
            other_config.insert("owner".to_owned(), Value::void());
            fields.insert("other_config".to_owned(), Value::Struct(other_config));
        }
        fields.insert("VM".to_owned(), to.into());
        for runtime in ["uuid", "device", "currently_attached", "current_operations", "allowed_operations", "metrics"] {
            fields.remove(runtime);
        }
        create_vbd(state, fields)?;
    }
    for vif in vifs {
        let mut fields = state.db.get("VIF", &vif)?.fields.clone();
        fields.insert("VM".to_owned(), to.into());
        for runtime in ["uuid", "currently_attached", "current_operations", "allowed_operations", "metrics"] {
            fields.remove(runtime);
        }
        if !keep_macs {
            fields.insert("MAC".to_owned(), Value::void());
        }
        create_vif(state, fields)?;
    }
    for vtpm in vtpms {
        let is_unique = state.db.get("VTPM", &vtpm)?.bool("is_unique");
        let copy = create_vtpm(state, to, Value::Bool(is_unique))?;
        if let Some(contents) = state.vtpm_contents.get(&vtpm).cloned() {
            state.vtpm_contents.insert(copy, contents);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_derived() {
        assert!(is_unicast_mac("00:16:3e:00:00:01"));
        for bad in ["01:16:3e:00:00:01", "00:16:3e:00:00", "0:16:3e:00:00:01", "xx:16:3e:00:00:01", ""] {
            assert!(!is_unicast_mac(bad), "{bad}");
        }
        let derived = derived_mac("seed", 0);
        assert!(is_unicast_mac(&derived));
        assert_eq!(derived, derived_mac("seed", 0));
        assert_ne!(derived, derived_mac("seed", 1));
    }

    #[test]
    fn devices_are_named_like_those_of_a_guest() {
        assert_eq!((device_name(0), device_name(25), device_name(26)), ("xvda".into(), "xvdz".into(), "xvdaa".into()));
    }
}
