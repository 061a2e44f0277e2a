//! Changed block tracking: turning it on and off, asking it, and keeping a snapshot for nothing but its log.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::vdi::{self, attachments, managed, size_of};
use crate::db::Row;
use crate::error::{ApiError, ApiResult};
use crate::state::{State, fields};
use crate::value::{Value, datetime};

/// The type of a snapshot of which only the log is left.
pub(crate) const METADATA: &str = "cbt_metadata";

/// Without it in the features of its driver, an SR tracks nothing.
pub(crate) const FEATURE: &str = "VDI_CONFIG_CBT";

pub(super) const DATA_DESTROY: &str = "data_destroy";

/// Whether nothing but its VBDs keeps a snapshot from losing its data.
pub(crate) fn is_held(state: &State, vdi: &str) -> bool {
    let held = |row: &Row| row.bool("is_a_snapshot") && row.bool("cbt_enabled") && !row.list("VBDs").is_empty();
    state.db.find("VDI", vdi).is_some_and(held)
}

pub(super) fn run(state: &mut State, message: &str, this: &str, other: &str) -> Option<ApiResult<Value>> {
    let void = |outcome: ApiResult<()>| Some(outcome.map(|()| Value::void()));
    match message {
        "enable_cbt" => void(enable(state, this)),
        "disable_cbt" => void(disable(state, this)),
        DATA_DESTROY => void(data_destroy(state, this)),
        "list_changed_blocks" => Some(list_changed_blocks(state, this, other).map(Value::String)),
        // Neither goes together with tracking; what they do otherwise is not the business of this module.
        "set_on_boot" | "pool_migrate" => match state.db.find("VDI", this)?.bool("cbt_enabled") {
            true => Some(Err(ApiError::new("VDI_CBT_ENABLED", [this]))),
            false => None,
        },
        _ => None,
    }
}

/// Refuses what cannot be done to a snapshot without data.
pub(crate) fn assert_has_data(row: &Row, vdi: &str) -> ApiResult<()> {
    match row.str("type") {
        METADATA => Err(ApiError::new("VDI_INCOMPATIBLE_TYPE", [vdi, METADATA])),
        _ => Ok(()),
    }
}

fn assert_configurable(state: &State, vdi: &str) -> ApiResult<()> {
    let row = managed(state, vdi)?;
    let kind = row.str("type");
    if !["user", "system"].contains(&kind) {
        return Err(ApiError::new("VDI_INCOMPATIBLE_TYPE", [vdi, kind]));
    }
    if row.bool("is_a_snapshot") {
        return Err(ApiError::not_allowed(&format!("VDI is a snapshot: {vdi}")));
    }
    if row.str("on_boot") == "reset" {
        return Err(ApiError::bare("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"));
    }
    let sr = row.str("SR");
    if state.driver(sr)?.map("features").contains_key(FEATURE) {
        return Ok(());
    }
    Err(ApiError::new("SR_OPERATION_NOT_SUPPORTED", [sr]))
}

fn enable(state: &mut State, vdi: &str) -> ApiResult<()> {
    assert_configurable(state, vdi)?;
    let restricted = |row: &Row| row.entry("license_params", "restrict_cbt") == Some("true");
    if state.db.table("host").any(|(_, row)| restricted(row)) {
        return Err(ApiError::new("LICENCE_RESTRICTION", ["CBT"]));
    }
    if vdi::is_raw(state, state.db.get("VDI", vdi)?) {
        return Err(ApiError::backend(66, "Invalid VDI type"));
    }
    state.changes.start(vdi);
    state.db.set("VDI", vdi, "cbt_enabled", true)
}

fn disable(state: &mut State, vdi: &str) -> ApiResult<()> {
    assert_configurable(state, vdi)?;
    stop(state, vdi)
}

fn stop(state: &mut State, vdi: &str) -> ApiResult<()> {
    state.changes.remove(vdi);
    state.db.set("VDI", vdi, "cbt_enabled", false)
}

/// What happens at the first use after a crash of the host: the log was not closed, so it counts for nothing.
pub(crate) fn break_log(state: &mut State, vdi: &str) -> ApiResult<()> {
    assert_configurable(state, vdi)?;
    if !state.changes.tracks(vdi) {
        return Err(ApiError::new("VDI_NO_CBT_METADATA", [vdi]));
    }
    stop(state, vdi)?;
    let uuid = state.db.get("VDI", vdi)?.string("uuid");
    let message = fields! {
        "name" => "VDI_CBT_METADATA_INCONSISTENT",
        "priority" => 3,
        "cls" => "VDI",
        "body" => format!("The change log of disk {uuid} was not closed"),
        "obj_uuid" => uuid,
        "timestamp" => datetime(state.now()),
    };
    state.db.insert("message", message).map(|_| ())
}

/// Again on the same snapshot it does nothing.
fn data_destroy(state: &mut State, vdi: &str) -> ApiResult<()> {
    let row = managed(state, vdi)?;
    if row.str("type") == METADATA {
        return Ok(());
    }
    if !row.bool("is_a_snapshot") {
        return Err(ApiError::not_allowed(&format!("VDI is not a snapshot: {vdi}")));
    }
    if !row.bool("cbt_enabled") {
        return Err(ApiError::new("VDI_NO_CBT_METADATA", [vdi]));
    }
    if !row.list("VBDs").is_empty() {
        return Err(ApiError::new("VDI_IN_USE", [vdi, DATA_DESTROY]));
    }
    let sr = row.string("SR");
    state.db.set("VDI", vdi, "type", METADATA)?;
    state.db.remove_entry("VDI", vdi, "sm_config", "vhd-parent")?;
    vdi::drop_file(state, vdi)?;
    vdi::refresh_sr(state, &sr)
}

/// The bitmap as text. `from` is the older one.
fn list_changed_blocks(state: &State, from: &str, to: &str) -> ApiResult<String> {
    managed(state, from)?;
    let row = managed(state, to)?;
    if !attachments(state, row).is_empty() {
        return Err(ApiError::new("VDI_IN_USE", [to, "list_changed_blocks"]));
    }
    let changed = state.changes.between(from, to);
    let changed = changed.ok_or_else(|| ApiError::backend(460, "Source and target VDI are unrelated"))?;
    Ok(BASE64.encode(changed.encode(size_of(row))))
}
