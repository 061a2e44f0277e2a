//! VMs: what may be done when, snapshots and clones, power.

use std::collections::BTreeMap;

use super::Args;
use super::device::{attach, copy_devices, free_vbd_devices, remove as remove_device};
use super::vdi::{self, Fork};
use crate::db::Fields;
use crate::error::{ApiError, ApiResult};
use crate::schema::{SCHEMA, Type};
use crate::state::{State, fields};
use crate::value::{NULL_REF, Value, datetime};

/// Operations that other ones of the same group do not disturb.
const COMPATIBLE: [&[&str]; 2] = [&["clone", "copy", "export"], &["snapshot", "checkpoint"]];

pub(super) fn run(state: &mut State, message: &str, args: &Args) -> Option<ApiResult<Value>> {
    let this = args.text(0);
    let void = |outcome: ApiResult<()>| Some(outcome.map(|()| Value::void()));
    match message {
        "create" => {
            let fields = State::record_fields("VM", args.record(0));
            Some(fields.and_then(|fields| create(state, fields)).map(Value::String))
        }
        "destroy" => void(destroy(state, this)),
        "snapshot" => Some(snapshot(state, this, args.text(1), &args.list(2)).map(Value::String)),
        "checkpoint" => Some(checkpoint(state, this, args.text(1)).map(Value::String)),
        "clone" => Some(clone(state, this, args.text(1)).map(Value::String)),
        "copy" => Some(copy(state, this, args.text(1), args.text(2)).map(Value::String)),
        "revert" => void(revert(state, this)),
        "provision" => void(provision(state, this)),
        "start" => void(start(state, this, "start", None)),
        "start_on" => void(start(state, this, "start_on", Some(args.text(1)))),
        "clean_shutdown" | "hard_shutdown" => void(shutdown(state, this, message)),
        "pool_migrate" => void(pool_migrate(state, this, args.text(1))),
        "assert_operation_valid" => void(assert_operation(state, this, args.text(1))),
        "update_allowed_operations" => void(update_allowed_operations(state, this)),
        "get_allowed_VBD_devices" => {
            let free = free_vbd_devices(state, this);
            Some(free.map(|free| Value::strings(free.iter().map(ToString::to_string))))
        }
        "set_bios_strings" => match state.db.get("VM", this) {
            Ok(row) if !row.map("bios_strings").is_empty() => Some(Err(ApiError::bare("VM_BIOS_STRINGS_ALREADY_SET"))),
            _ => None,
        },
        "suspend" => void(suspend(state, this)),
        "resume" => void(resume(state, this)),
        "set_memory_limits" => void(set_memory(state, this, [args.int(1), args.int(2), args.int(3), args.int(4)])),
        "set_memory" => void(set_memory(state, this, [0, args.int(1), args.int(1), args.int(1)])),
        "set_memory_dynamic_range" => void(set_dynamic_range(state, this, args.int(1), args.int(2))),
        _ => None,
    }
}

/// The power states in which an operation makes sense; empty where none matters.
fn power_states(operation: &str) -> &'static [&'static str] {
    match operation {
        "start" | "start_on" | "make_into_template" | "provision" => &["Halted"],
        "clone" | "copy" | "export" | "destroy" => &["Halted", "Suspended"],
        "migrate_send" => &["Halted", "Suspended", "Running"],
        "clean_shutdown" | "clean_reboot" | "pause" | "suspend" | "checkpoint" | "pool_migrate" => &["Running"],
        "hard_reboot" => &["Running", "Paused"],
        "hard_shutdown" => &["Running", "Paused", "Suspended"],
        "unpause" => &["Paused"],
        "resume" | "resume_on" => &["Suspended"],
        _ => &[],
    }
}

/// The order is XAPI's: what the operator blocked wins over everything, then come power state, other operations, and
/// what templates and the control domain must not do.
pub(crate) fn assert_operation(state: &State, vm: &str, operation: &str) -> ApiResult<()> {
    let row = state.db.get("VM", vm)?;
    if let Some(text) = row.entry("blocked_operations", operation) {
        return Err(ApiError::new("OPERATION_BLOCKED", [vm, text]));
    }
    let (allowed, actual) = (power_states(operation), row.str("power_state"));
    if !allowed.is_empty() && !allowed.contains(&actual) {
        let (expected, actual) = (allowed[0].to_lowercase(), actual.to_lowercase());
        return Err(ApiError::new("VM_BAD_POWER_STATE", [vm, &expected, &actual]));
    }
    let clash = row.map("current_operations").into_iter().find(|(_, running)| {
        !COMPATIBLE.iter().any(|group| group.contains(&operation) && group.contains(&running.as_str()))
    });
    if let Some((task, running)) = clash {
        return Err(ApiError::new("OTHER_OPERATION_IN_PROGRESS", ["VM", vm, running.as_str(), &task]));
    }
    if row.bool("is_a_template") && ["start", "start_on"].contains(&operation) {
        return Err(ApiError::new("VM_IS_TEMPLATE", [vm]));
    }
    if row.bool("is_a_snapshot") && ["start", "start_on", "snapshot", "checkpoint"].contains(&operation) {
        return Err(ApiError::not_allowed("The VM is a snapshot"));
    }
    if row.bool("is_control_domain") && operation != "update_allowed_operations" {
        return Err(ApiError::not_allowed("This is not possible on a control domain"));
    }
    Ok(())
}

pub(crate) fn update_allowed_operations(state: &mut State, vm: &str) -> ApiResult<()> {
    let operations =
        match SCHEMA.class("VM").and_then(|class| class.field("allowed_operations")).map(|field| &field.kind) {
            Some(Type::Set(item)) => match item.as_ref() {
                Type::Enum(operations) => operations.clone(),
                _ => return Ok(()),
            },
            _ => return Ok(()),
        };
    let allowed = operations.iter().filter(|operation| assert_operation(state, vm, operation).is_ok());
    let allowed = Value::strings(allowed.map(String::as_str));
    state.db.set("VM", vm, "allowed_operations", allowed)
}

pub(crate) fn create(state: &mut State, mut fields: Fields) -> ApiResult<String> {
    let text = |fields: &Fields, name: &str| fields.get(name).map_or("", Value::as_str).to_owned();
    let suspended = text(&fields, "power_state") == "Suspended";
    if suspended {
        let cpu_flags = matches!(fields.get("last_boot_CPU_flags"), Some(Value::Struct(flags)) if !flags.is_empty());
        let suspend_vdi = text(&fields, "suspend_VDI");
        let complete = cpu_flags
            && !text(&fields, "last_booted_record").is_empty()
            && state.db.find("VDI", &suspend_vdi).is_some();
        if !complete {
            return Err(ApiError::new("VM_BAD_POWER_STATE", [NULL_REF, "halted", "suspended"]));
        }
    } else {
        fields.insert("power_state".to_owned(), "Halted".into());
    }
    // Given or not, these do not reach the new VM.
    for ignored in ["blocked_operations", "protection_policy", "snapshot_schedule", "is_vmss_snapshot"] {
        fields.remove(ignored);
    }
    if text(&fields, "domain_type") == "unspecified" || !fields.contains_key("domain_type") {
        let domain_type = if text(&fields, "HVM_boot_policy").is_empty() { "pv" } else { "hvm" };
        fields.insert("domain_type".to_owned(), domain_type.into());
    }
    if let Some(Value::Struct(other_config)) = fields.get_mut("other_config") {
        other_config.entry("mac_seed".to_owned()).or_insert_with(|| uuid::Uuid::new_v4().to_string().into());
    }
    insert(state, fields)
}

fn insert(state: &mut State, mut fields: Fields) -> ApiResult<String> {
    let metrics = state.db.insert("VM_metrics", fields! { "install_time" => datetime(state.now()) })?;
    fields.insert("metrics".to_owned(), metrics.into());
    fields.insert("domid".to_owned(), Value::Int(-1));
    let vm = state.db.insert("VM", fields)?;
    update_allowed_operations(state, &vm)?;
    Ok(vm)
}

/// Takes the VM and its devices, never its disks. Its snapshots stay, and hang on its parent from then on.
pub(crate) fn destroy(state: &mut State, vm: &str) -> ApiResult<()> {
    assert_operation(state, vm, "destroy")?;
    let row = state.db.get("VM", vm)?;
    if row.bool("is_default_template") {
        return Err(ApiError::new("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", [vm]));
    }
    let parent = row.string("parent");
    let children = row.list("children");
    let vtpms = row.list("VTPMs").into_iter().map(|vtpm| ("VTPM", vtpm));
    let devices = devices(state, vm)?;
    let records = [
        ("VM_metrics", vec![row.string("metrics")]),
        ("VM_guest_metrics", vec![row.string("guest_metrics")]),
        ("console", row.list("consoles")),
    ];
    for child in children {
        state.db.set("VM", &child, "parent", parent.as_str())?;
    }
    for (class, device) in devices.into_iter().chain(vtpms) {
        remove_device(state, class, &device)?;
    }
    for (class, references) in records {
        for reference in references.iter().filter(|reference| *reference != NULL_REF) {
            state.db.remove(class, reference)?;
        }
    }
    state.db.remove("VM", vm).map(|_| ())
}

/// The disks of a VM in the order of their VBDs, drives and empty ones left out.
fn disks(state: &State, vm: &str) -> ApiResult<Vec<String>> {
    let vbds = state.db.get("VM", vm)?.list("VBDs");
    let rows = vbds.iter().filter_map(|vbd| state.db.find("VBD", vbd));
    let disks = rows.filter(|row| row.str("type") == "Disk" && !row.bool("empty")).map(|row| row.string("VDI"));
    Ok(disks.collect())
}

/// Makes a disk from each one after the other; what was made is undone when one fails.
fn derive_disks(
    state: &mut State,
    disks: Vec<String>,
    derive: impl Fn(&mut State, &str) -> ApiResult<String>,
) -> ApiResult<BTreeMap<String, String>> {
    let mut derived = BTreeMap::new();
    for disk in disks {
        match derive(state, &disk) {
            Ok(new) => {
                derived.insert(disk, new);
            }
            Err(error) => {
                for new in derived.values() {
                    vdi::remove(state, new)?;
                }
                return Err(error);
            }
        }
    }
    Ok(derived)
}

fn fork_disks(state: &mut State, disks: Vec<String>, kind: Fork) -> ApiResult<BTreeMap<String, String>> {
    derive_disks(state, disks, |state, disk| vdi::fork(state, disk, kind))
}

/// What a copy of a VM inherits: the record without what belongs to one life of one VM.
fn inherited(state: &State, vm: &str, name: &str) -> ApiResult<Fields> {
    let mut fields = state.db.get("VM", vm)?.fields.clone();
    for own in [
        "uuid",
        "allowed_operations",
        "current_operations",
        "VBDs",
        "VIFs",
        "VUSBs",
        "VTPMs",
        "VGPUs",
        "consoles",
        "crash_dumps",
        "snapshots",
        "children",
        "attached_PCIs",
        "metrics",
        "guest_metrics",
        "resident_on",
        "scheduled_to_be_resident_on",
        "domid",
        "blobs",
        "blocked_operations",
        "is_default_template",
        "is_control_domain",
        "power_state",
        "parent",
        "is_a_snapshot",
        "snapshot_of",
        "snapshot_time",
        "snapshot_info",
        "snapshot_metadata",
        "transportable_snapshot_id",
        "appliance",
        "start_delay",
        "shutdown_delay",
        "order",
        "ha_always_run",
        "suspend_VDI",
    ] {
        fields.remove(own);
    }
    if let Some(Value::Struct(other_config)) = fields.get_mut("other_config") {
        other_config.remove("default_template");
    }
    fields.insert("name_label".to_owned(), name.into());
    fields.insert("generation_id".to_owned(), generation_id().into());
    Ok(fields)
}

/// Renewed with every copy, so that a guest notices.
fn generation_id() -> String {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    format!("{high}:{low}")
}

pub(crate) fn snapshot(state: &mut State, vm: &str, name: &str, ignored: &[String]) -> ApiResult<String> {
    assert_operation(state, vm, "snapshot")?;
    freeze(state, vm, name, ignored)
}

/// A snapshot of all disks and of the memory, which is on a disk only while the VM is suspended for it. The snapshot is suspended, and
/// its image is no disk of it.
fn checkpoint(state: &mut State, vm: &str, name: &str) -> ApiResult<String> {
    assert_operation(state, vm, "checkpoint")?;
    let image = suspend_image(state, vm)?;
    let kept = vdi::fork(state, &image, Fork::Snapshot)?;
    vdi::remove(state, &image)?;
    state.db.set("VDI", &kept, "snapshot_of", NULL_REF)?;
    let checkpoint = match freeze(state, vm, name, &[]) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            vdi::remove(state, &kept)?;
            return Err(error);
        }
    };
    state.db.set("VM", &checkpoint, "suspend_VDI", kept)?;
    state.db.set("VM", &checkpoint, "power_state", "Suspended")?;
    update_allowed_operations(state, &checkpoint)?;
    Ok(checkpoint)
}

fn freeze(state: &mut State, vm: &str, name: &str, ignored: &[String]) -> ApiResult<String> {
    let mut disks = disks(state, vm)?;
    disks.retain(|disk| !ignored.contains(disk));
    let mut fields = inherited(state, vm, name)?;
    let row = state.db.get("VM", vm)?;
    fields.extend(fields! {
        "is_a_snapshot" => true,
        "is_a_template" => true,
        "snapshot_of" => vm,
        "snapshot_time" => datetime(state.now()),
        "snapshot_info" => Value::map([
            ("power-state-at-snapshot", row.str("power_state")),
            ("disk-snapshot-type", "crash_consistent"),
        ]),
        "parent" => row.str("parent"),
    });
    let disks = fork_disks(state, disks, Fork::Snapshot)?;
    let snapshot = insert(state, fields)?;
    copy_devices(state, vm, &snapshot, &disks, true)?;
    state.db.set("VM", vm, "parent", snapshot.as_str())?;
    Ok(snapshot)
}

fn clone(state: &mut State, vm: &str, name: &str) -> ApiResult<String> {
    assert_operation(state, vm, "clone")?;
    let disks = disks(state, vm)?;
    let disks = fork_disks(state, disks, Fork::Clone)?;
    duplicate(state, vm, name, &disks)
}

/// Like a clone, with disks that have no chain, on any SR.
fn copy(state: &mut State, vm: &str, name: &str, sr: &str) -> ApiResult<String> {
    assert_operation(state, vm, "copy")?;
    let disks = disks(state, vm)?;
    let disks = derive_disks(state, disks, |state, disk| vdi::copy_to(state, disk, sr))?;
    duplicate(state, vm, name, &disks)
}

/// Another VM of the same kind with these disks in place of its own, and addresses of its own.
fn duplicate(state: &mut State, vm: &str, name: &str, disks: &BTreeMap<String, String>) -> ApiResult<String> {
    let mut fields = inherited(state, vm, name)?;
    if let Some(Value::Struct(other_config)) = fields.get_mut("other_config") {
        other_config.insert("mac_seed".to_owned(), uuid::Uuid::new_v4().to_string().into());
    }
    let new = insert(state, fields)?;
    copy_devices(state, vm, &new, disks, false)?;
    Ok(new)
}

/// Puts the VM of a snapshot back to it: its disks are destroyed, and only then clones of the snapshot's are made; its record takes
/// over that of the snapshot, `other_config` included, its name excepted.
fn revert(state: &mut State, snapshot: &str) -> ApiResult<()> {
    let row = state.db.get("VM", snapshot)?;
    if !row.bool("is_a_snapshot") {
        return Err(ApiError::bare("REVERT_ONLY_ALLOWED_ON_SNAPSHOT"));
    }
    let vm = row.string("snapshot_of");
    assert_operation(state, snapshot, "revert")?;
    assert_operation(state, &vm, "reverting")?;
    if state.db.get("VM", &vm)?.str("power_state") == "Running" {
        shutdown(state, &vm, "hard_shutdown")?;
    }
    let name = state.db.get("VM", &vm)?.string("name_label");
    let mut fields = inherited(state, snapshot, &name)?;
    fields.remove("is_a_template");

    let (old, frozen) = (disks(state, &vm)?, disks(state, snapshot)?);
    let vtpms = state.db.get("VM", &vm)?.list("VTPMs").into_iter().map(|vtpm| ("VTPM", vtpm));
    for (class, device) in devices(state, &vm)?.into_iter().chain(vtpms) {
        remove_device(state, class, &device)?;
    }
    for disk in &old {
        vdi::remove(state, disk)?;
    }
    let clones = fork_disks(state, frozen, Fork::Clone)?;
    for (frozen, clone) in &clones {
        follow(state, frozen, clone)?;
    }
    for (field, value) in fields {
        state.db.set("VM", &vm, &field, value)?;
    }
    copy_devices(state, snapshot, &vm, &clones, true)?;
    state.db.set("VM", &vm, "parent", snapshot)?;
    update_allowed_operations(state, &vm)
}

/// All snapshots of the disk that this one was taken of are snapshots of its successor from now on.
fn follow(state: &mut State, frozen: &str, successor: &str) -> ApiResult<()> {
    let gone = state.db.get("VDI", frozen)?.string("snapshot_of");
    let same = state.db.table("VDI").filter(|(_, row)| row.str("snapshot_of") == gone).map(|(vdi, _)| vdi.clone());
    same.collect::<Vec<_>>().iter().try_for_each(|vdi| state.db.set("VDI", vdi, "snapshot_of", successor))
}

fn provision(state: &mut State, vm: &str) -> ApiResult<()> {
    assert_operation(state, vm, "provision")?;
    if !state.db.get("VM", vm)?.bool("is_a_template") {
        return Err(ApiError::bare("PROVISION_ONLY_ALLOWED_ON_TEMPLATE"));
    }
    state.db.set("VM", vm, "is_a_template", false)?;
    update_allowed_operations(state, vm)
}

fn devices(state: &State, vm: &str) -> ApiResult<Vec<(&'static str, String)>> {
    let row = state.db.get("VM", vm)?;
    let vbds = row.list("VBDs").into_iter().map(|vbd| ("VBD", vbd));
    Ok(vbds.chain(row.list("VIFs").into_iter().map(|vif| ("VIF", vif))).collect())
}

pub(crate) fn start(state: &mut State, vm: &str, operation: &str, host: Option<&str>) -> ApiResult<()> {
    assert_operation(state, vm, operation)?;
    let host = host.map_or_else(|| state.master.clone(), str::to_owned);
    state.db.get("host", &host)?;
    let mut attached: Vec<(&str, String)> = Vec::new();
    for (class, device) in devices(state, vm)? {
        if let Err(error) = attach(state, class, &device) {
            for (class, device) in attached {
                state.db.set(class, &device, "currently_attached", false)?;
            }
            return Err(error);
        }
        attached.push((class, device));
    }
    let now = datetime(state.now());
    let domid = 1 + state.db.table("VM").map(|(_, row)| row.int("domid")).max().unwrap_or(0);
    let metrics = state.db.get("VM", vm)?.string("metrics");
    state.db.set("VM_metrics", &metrics, "start_time", now)?;
    state.db.set("VM", vm, "last_booted_record", format!("('struct' ('uuid' '{vm}'))"))?;
    state.db.set(
        "VM",
        vm,
        "last_boot_CPU_flags",
        Value::map([("vendor", "GenuineIntel"), ("features", "1fcbfbff-80bae3ff")]),
    )?;
    state.db.set("VM", vm, "resident_on", host)?;
    state.db.set("VM", vm, "domid", domid)?;
    state.db.set("VM", vm, "power_state", "Running")?;
    if !state.hold_guests {
        bring_up_guest(state, vm)?;
    }
    update_allowed_operations(state, vm)
}

/// The agent in the guest of a running VM tells of itself for the first time.
pub(crate) fn bring_up_guest(state: &mut State, vm: &str) -> ApiResult<()> {
    let row = state.db.get("VM", vm)?;
    if row.str("power_state") != "Running" {
        return Err(ApiError::new("VM_BAD_POWER_STATE", [vm, "running", &row.str("power_state").to_lowercase()]));
    }
    let now = datetime(state.now());
    let addresses: BTreeMap<String, Value> = (0..state.db.get("VM", vm)?.list("VIFs").len())
        .map(|number| (format!("{number}/ip"), format!("192.0.2.{}", 100 + number).into()))
        .collect();
    let guest_metrics = state.db.insert(
        "VM_guest_metrics",
        fields! {
            "PV_drivers_detected" => true,
            "PV_drivers_up_to_date" => true,
            "PV_drivers_version" => Value::map([("major", "8"), ("minor", "0"), ("micro", "0")]),
            "os_version" => Value::map([("name", "Debian GNU/Linux 12"), ("distro", "debian")]),
            "networks" => Value::Struct(addresses),
            "live" => true,
            "last_updated" => now,
        },
    )?;
    state.db.set("VM", vm, "guest_metrics", guest_metrics)
}

fn shutdown(state: &mut State, vm: &str, operation: &str) -> ApiResult<()> {
    assert_operation(state, vm, operation)?;
    for (class, device) in devices(state, vm)? {
        state.db.set(class, &device, "currently_attached", false)?;
    }
    let guest_metrics = state.db.get("VM", vm)?.string("guest_metrics");
    if state.db.find("VM_guest_metrics", &guest_metrics).is_some() {
        state.db.remove("VM_guest_metrics", &guest_metrics)?;
    }
    state.db.set("VM", vm, "guest_metrics", NULL_REF)?;
    state.db.set("VM", vm, "resident_on", NULL_REF)?;
    state.db.set("VM", vm, "domid", -1)?;
    state.db.set("VM", vm, "power_state", "Halted")?;
    update_allowed_operations(state, vm)
}

/// A new disk with the memory of a VM: who it is, and a page that is never the same.
fn suspend_image(state: &mut State, vm: &str) -> ApiResult<String> {
    let row = state.db.get("VM", vm)?;
    let owner = row.string("uuid");
    let fields = fields! {
        "name_label" => "Suspend image", "SR" => state.default_sr.as_str(), "virtual_size" => row.int("memory_static_max"),
        "type" => "suspend",
    };
    let image = vdi::create(state, fields)?;
    vdi::put(state, &image, 0, format!("memory of {owner}").as_bytes())?;
    vdi::put(state, &image, 4096, uuid::Uuid::new_v4().as_bytes())?;
    Ok(image)
}

/// The memory goes to a disk of its own.
fn suspend(state: &mut State, vm: &str) -> ApiResult<()> {
    assert_operation(state, vm, "suspend")?;
    let image = suspend_image(state, vm)?;
    state.db.set("VM", vm, "suspend_VDI", image)?;
    state.db.set("VM", vm, "resident_on", NULL_REF)?;
    state.db.set("VM", vm, "power_state", "Suspended")?;
    update_allowed_operations(state, vm)
}

fn resume(state: &mut State, vm: &str) -> ApiResult<()> {
    assert_operation(state, vm, "resume")?;
    let image = state.db.get("VM", vm)?.string("suspend_VDI");
    vdi::remove(state, &image)?;
    state.db.set("VM", vm, "suspend_VDI", NULL_REF)?;
    state.db.set("VM", vm, "resident_on", state.master.clone())?;
    state.db.set("VM", vm, "power_state", "Running")?;
    // The guest goes on with the devices that it had; its agent with what it told.
    let guest_metrics = state.db.get("VM", vm)?.string("guest_metrics");
    if guest_metrics == NULL_REF && !state.hold_guests {
        bring_up_guest(state, vm)?;
    }
    update_allowed_operations(state, vm)
}

/// Goes on on another host; its disks stay where they are.
fn pool_migrate(state: &mut State, vm: &str, host: &str) -> ApiResult<()> {
    assert_operation(state, vm, "pool_migrate")?;
    state.db.get("host", host)?;
    state.db.set("VM", vm, "resident_on", host)
}

/// Static minimum, static maximum, dynamic minimum, dynamic maximum, in bytes.
fn set_memory(state: &mut State, vm: &str, limits: [i64; 4]) -> ApiResult<()> {
    let [static_min, static_max, dynamic_min, dynamic_max] = limits;
    let ordered = static_min <= dynamic_min && dynamic_min <= dynamic_max && dynamic_max <= static_max;
    if !ordered {
        let text = limits.map(|limit| limit.to_string()).join(" ");
        return Err(ApiError::new("MEMORY_CONSTRAINT_VIOLATION", [text]));
    }
    let power_state = state.db.get("VM", vm)?.str("power_state").to_lowercase();
    if power_state != "halted" {
        return Err(ApiError::new("VM_BAD_POWER_STATE", [vm, "halted", &power_state]));
    }
    let names = ["memory_static_min", "memory_static_max", "memory_dynamic_min", "memory_dynamic_max"];
    names.iter().zip(limits).try_for_each(|(name, limit)| state.db.set("VM", vm, name, limit))
}

fn set_dynamic_range(state: &mut State, vm: &str, min: i64, max: i64) -> ApiResult<()> {
    state.db.set("VM", vm, "memory_dynamic_min", min)?;
    state.db.set("VM", vm, "memory_dynamic_max", max)
}
