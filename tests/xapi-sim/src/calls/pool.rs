//! Pool, hosts, SRs, networks, messages, and objects that are nothing but their record.

use super::Args;
use super::vdi::{collect_garbage, refresh_sr};
use crate::error::{ApiError, ApiResult};
use crate::state::{State, fields};
use crate::value::{Value, datetime, parse_datetime};

pub(super) fn run(state: &mut State, class: &str, message: &str, args: &Args) -> Option<ApiResult<Value>> {
    let this = args.text(0);
    let void = |outcome: ApiResult<()>| Some(outcome.map(|()| Value::void()));
    match (class, message) {
        ("host", "get_servertime" | "get_server_localtime") => {
            Some(state.db.get("host", this).map(|_| datetime(state.now())))
        }
        ("host", "get_server_certificate") => {
            Some(state.db.get("host", this).map(|_| Value::String(state.certificate_pem.clone())))
        }
        ("host", "call_plugin") => {
            Some(state.db.get("host", this).and_then(|_| Err(ApiError::new("XENAPI_MISSING_PLUGIN", [args.text(1)]))))
        }
        ("host", "enable") => void(state.db.set("host", this, "enabled", true)),
        ("host", "disable") => void(state.db.set("host", this, "enabled", false)),
        ("SR", "scan") => void(scan(state, this)),
        ("SR", "forget") => void(forget_sr(state, this)),
        ("SR", "update") => void(refresh_sr(state, this)),
        ("network", "create") => Some(create_network(state, args).map(Value::String)),
        ("network", "destroy") => void(destroy_network(state, this)),
        ("network", "add_purpose") => void(add_purpose(state, this, args.text(1))),
        ("network", "remove_purpose") => void(remove_purpose(state, this, args.text(1))),
        ("message", "create") => Some(create_message(state, args).map(Value::String)),
        ("message", "get") => Some(Ok(messages(state, args.text(0), args.text(1), args.text(2)))),
        ("message", "get_since") => Some(Ok(messages(state, "", "", args.text(0)))),
        ("message", "destroy") => void(state.db.remove("message", this).map(|_| ())),
        ("PIF", "plug") => void(state.db.set("PIF", this, "currently_attached", true)),
        ("PIF", "unplug") => void(state.db.set("PIF", this, "currently_attached", false)),
        ("PBD", "plug") => void(state.db.set("PBD", this, "currently_attached", true)),
        ("PBD", "unplug") => void(unplug_pbd(state, this)),
        ("PBD" | "secret" | "console", "create") => {
            let fields = State::record_fields(class, args.record(0));
            Some(fields.and_then(|fields| state.db.insert(class, fields)).map(Value::String))
        }
        ("PBD" | "secret" | "console", "destroy") => void(state.db.remove(class, this).map(|_| ())),
        _ => None,
    }
}

fn scan(state: &mut State, sr: &str) -> ApiResult<()> {
    state.db.get("SR", sr)?;
    if !state.hold_gc {
        collect_garbage(state)?;
    }
    refresh_sr(state, sr)
}

/// Takes an SR and its disks out of the database; the disks stay where they are. Their attachments go with the next
/// collection of dead records, which is at once here.
fn forget_sr(state: &mut State, sr: &str) -> ApiResult<()> {
    let row = state.db.get("SR", sr)?;
    let (pbds, vdis) = (row.list("PBDs"), row.list("VDIs"));
    let plugged = |pbd: &&String| state.db.find("PBD", pbd).is_some_and(|pbd| pbd.bool("currently_attached"));
    if pbds.iter().any(|pbd| plugged(&pbd)) {
        return Err(ApiError::new("SR_HAS_PBD", [sr]));
    }
    for pbd in pbds {
        state.db.remove("PBD", &pbd)?;
    }
    for vdi in vdis {
        for vbd in state.db.get("VDI", &vdi)?.list("VBDs") {
            state.db.remove("VBD", &vbd)?;
        }
        state.db.remove("VDI", &vdi)?;
    }
    state.db.remove("SR", sr).map(|_| ())
}

fn unplug_pbd(state: &mut State, pbd: &str) -> ApiResult<()> {
    let sr = state.db.get("PBD", pbd)?.string("SR");
    let vdis = state.db.get("SR", &sr)?.list("VDIs");
    let used =
        |vdi: &String| state.db.find("VDI", vdi).is_some_and(|row| !super::vdi::attachments(state, row).is_empty());
    if let Some(vdi) = vdis.iter().find(|vdi| used(vdi)) {
        return Err(ApiError::new("VDI_IN_USE", [vdi.as_str(), "unplug"]));
    }
    state.db.set("PBD", pbd, "currently_attached", false)
}

fn create_network(state: &mut State, args: &Args) -> ApiResult<String> {
    let mut fields = State::record_fields("network", args.record(0))?;
    if fields.get("bridge").is_none_or(|bridge| bridge.as_str().is_empty()) {
        let taken: Vec<String> = state.db.table("network").map(|(_, row)| row.string("bridge")).collect();
        let bridge = (0..).map(|number| format!("xapi{number}")).find(|bridge| !taken.contains(bridge));
        fields.insert("bridge".to_owned(), bridge.unwrap_or_default().into());
    }
    state.db.insert("network", fields)
}

fn destroy_network(state: &mut State, network: &str) -> ApiResult<()> {
    let row = state.db.get("network", network)?;
    let (vifs, pifs) = (row.list("VIFs"), row.list("PIFs"));
    if !pifs.is_empty() {
        return Err(ApiError::new("NETWORK_CONTAINS_PIF", pifs));
    }
    let attached = |vif: &String| state.db.find("VIF", vif).is_some_and(|row| row.bool("currently_attached"));
    if vifs.iter().any(attached) {
        return Err(ApiError::new("NETWORK_CONTAINS_VIF", vifs));
    }
    for vif in vifs {
        state.db.remove("VIF", &vif)?;
    }
    state.db.remove("network", network).map(|_| ())
}

/// Either all NBD of a pool is encrypted or none is.
fn add_purpose(state: &mut State, network: &str, purpose: &str) -> ApiResult<()> {
    let mut purposes = state.db.get("network", network)?.list("purpose");
    let opposite = if purpose == "nbd" { "insecure_nbd" } else { "nbd" };
    let clash = state.db.table("network").any(|(_, row)| row.list("purpose").iter().any(|other| other == opposite));
    if clash {
        return Err(ApiError::new("NETWORK_INCOMPATIBLE_PURPOSES", [purpose, opposite]));
    }
    if !purposes.iter().any(|other| other == purpose) {
        purposes.push(purpose.to_owned());
    }
    state.db.set("network", network, "purpose", Value::strings(purposes))
}

fn remove_purpose(state: &mut State, network: &str, purpose: &str) -> ApiResult<()> {
    let mut purposes = state.db.get("network", network)?.list("purpose");
    purposes.retain(|other| other != purpose);
    state.db.set("network", network, "purpose", Value::strings(purposes))
}

fn create_message(state: &mut State, args: &Args) -> ApiResult<String> {
    let now = datetime(state.now());
    state.db.insert(
        "message",
        fields! {
            "name" => args.text(0),
            "priority" => args.int(1),
            "cls" => args.text(2),
            "obj_uuid" => args.text(3),
            "timestamp" => now,
            "body" => args.text(4),
        },
    )
}

/// Messages about one object, or about all where class and uuid are empty, not older than a date.
fn messages(state: &State, class: &str, uuid: &str, since: &str) -> Value {
    let since = parse_datetime(since);
    let wanted = state.db.table("message").filter(|(_, row)| {
        (class.is_empty() || row.str("cls") == class && row.str("obj_uuid") == uuid)
            && parse_datetime(row.str("timestamp")) >= since
    });
    Value::map(wanted.map(|(reference, row)| (reference.clone(), row.record())))
}
