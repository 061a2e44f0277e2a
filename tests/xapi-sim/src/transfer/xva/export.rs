//! `GET /export`: 200 before the first disk is attached, a body that ends with the connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::{Accepted, Attached, Broken, Flow, accept, fail_late, refuse_with_task};
use super::{CHECKSUM, CHUNK, METADATA, checksum, tar};
use crate::calls::vdi::{Mode, attach_to_dom0, node_of, size_of};
use crate::calls::vm;
use crate::core::Core;
use crate::db::Row;
use crate::error::{ApiError, ApiResult};
use crate::fault::Use;
use crate::schema::{SCHEMA, Type};
use crate::state::{HostNumber, State};
use crate::value::{EPOCH, NULL_REF, Value};
use crate::wire::http::{Connection, Request};
use crate::wire::xmlrpc::value_text;

/// What will be sent.
struct Plan {
    vm: String,
    metadata: String,
    /// Name in the archive, and reference, in the order of the names as text.
    disks: BTreeMap<String, String>,
}

/// The connection is closed afterwards, whatever happened.
pub(crate) async fn export(
    core: &Arc<Core>,
    host: HostNumber,
    connection: &mut Connection,
    request: &Request,
) -> std::io::Result<()> {
    let Some(Accepted { task, fault }) = accept(core, host, connection, request, Use::Export).await? else {
        return Ok(());
    };
    let plan = match core.with(|state| plan(state, request, &task)) {
        Ok(plan) => plan,
        Err(error) => return refuse_with_task(core, connection, &task, "500 Internal Server Error", &error).await,
    };
    let head = format!(
        "HTTP/1.0 200 OK\r\nConnection: close\r\ncache-control: no-cache, no-store\r\ntask-id: {task}\r\n\
         content-type: application/octet-stream\r\ncontent-disposition: attachment; filename=\"export.xva\"\r\n\r\n"
    );
    connection.write(head.as_bytes()).await?;
    let mut flow = Flow::new(core, fault);
    let sent = send(core, host, connection, &mut flow, &plan).await;
    core.with(|state| {
        // The VM may be gone meanwhile.
        let _ = state.db.remove_entry("VM", &plan.vm, "current_operations", &task);
    });
    match sent {
        Ok(()) => core.with(|state| state.finish_task(&task, Ok(String::new()))),
        Err(broken) => fail_late(core, connection, &task, &broken).await,
    }
    Ok(())
}

fn plan(state: &mut State, request: &Request, task: &str) -> ApiResult<Plan> {
    let vm = request.param("ref").or_else(|| request.param("uuid"));
    let vm = vm.ok_or_else(|| ApiError::internal("Not_found"))?;
    let vm = state.db.by_ref_or_uuid("VM", vm)?;
    vm::assert_operation(state, &vm, "export")?;
    let ids = ids(state, &vm)?;
    let mut disks = BTreeMap::new();
    for vbd in state.db.get("VM", &vm)?.list("VBDs") {
        let vbd = state.db.get("VBD", &vbd)?;
        if vbd.str("type") == "CD" || vbd.bool("empty") {
            continue;
        }
        let vdi = vbd.string("VDI");
        let sr = state.db.get("VDI", &vdi)?.string("SR");
        if state.db.get("SR", &sr)?.str("content_type") != "iso" {
            disks.insert(ids[&vdi].1.clone(), vdi);
        }
    }
    let metadata = value_text(&document(state, &ids)?);
    state.db.set_entry("VM", &vm, "current_operations", task, "export")?;
    Ok(Plan { vm, metadata, disks })
}

/// The objects of a VM, with their class and what the archive calls them: counted in the order in which they are found.
fn ids(state: &State, vm: &str) -> ApiResult<BTreeMap<String, (&'static str, String)>> {
    let row = state.db.get("VM", vm)?;
    let mut found = vec![("VM", vm.to_owned())];
    for vif in row.list("VIFs") {
        let network = state.db.get("VIF", &vif)?.string("network");
        found.extend([("VIF", vif), ("network", network)]);
    }
    for vbd in row.list("VBDs") {
        let device = state.db.get("VBD", &vbd)?;
        let (vdi, empty) = (device.string("VDI"), device.bool("empty"));
        found.push(("VBD", vbd));
        if !empty {
            let sr = state.db.get("VDI", &vdi)?.string("SR");
            found.extend([("VDI", vdi), ("SR", sr)]);
        }
    }
    let mut ids = BTreeMap::new();
    for (class, reference) in found {
        let id = format!("Ref:{}", ids.len());
        ids.entry(reference).or_insert((class, id));
    }
    Ok(ids)
}

fn document(state: &State, ids: &BTreeMap<String, (&'static str, String)>) -> ApiResult<Value> {
    let mut objects = Vec::new();
    for (reference, (class, id)) in ids {
        let record = record(class, state.db.get(class, reference)?, ids);
        objects.push(Value::map([
            ("class", Value::from(*class)),
            ("id", Value::from(id.as_str())),
            ("snapshot", record),
        ]));
    }
    let version = Value::map([
        ("hostname", Value::from("localhost")),
        ("date", Value::from("2026-08-21")),
        ("product_version", Value::from("8.3.0")),
        ("product_brand", Value::from("XCP-ng")),
        ("build_number", Value::from("cloud")),
        ("xapi_major", Value::Int32(2)),
        ("xapi_minor", Value::Int32(21)),
        ("export_vsn", Value::Int32(2)),
    ]);
    Ok(Value::map([("version", version), ("objects", Value::Array(objects))]))
}

/// A record in which objects of the archive have their names there, and all others are nothing.
fn record(class: &str, row: &Row, ids: &BTreeMap<String, (&'static str, String)>) -> Value {
    let known = |reference: &str| ids.get(reference).map(|(_, id)| id.clone());
    let fields = SCHEMA.class(class).map(|class| class.fields.as_slice()).unwrap_or_default();
    let mut record: BTreeMap<String, Value> = BTreeMap::new();
    for field in fields {
        let value = match (&field.kind, row.get(&field.name)) {
            (Type::Ref(_), value) => known(value.as_str()).unwrap_or_else(|| NULL_REF.to_owned()).into(),
            (Type::Set(item), Value::Array(items)) if matches!(**item, Type::Ref(_)) => {
                Value::strings(items.iter().filter_map(|item| known(item.as_str())))
            }
            (Type::Map(_, value), _) if matches!(**value, Type::Ref(_)) => Value::empty_map(),
            (_, value) => value.clone(),
        };
        record.insert(field.name.clone(), value);
    }
    let mut set = |name: &str, value: Value| {
        if let Some(field) = record.get_mut(name) {
            *field = value;
        }
    };
    set("current_operations", Value::empty_map());
    set("allowed_operations", Value::Array(Vec::new()));
    set("currently_attached", Value::Bool(false));
    if class == "VM" {
        set("power_state", "Halted".into());
        set("is_a_snapshot", Value::Bool(false));
        set("snapshot_time", Value::DateTime(EPOCH.to_owned()));
        set("transportable_snapshot_id", Value::void());
    }
    Value::Struct(record)
}

async fn send(
    core: &Core,
    host: HostNumber,
    connection: &mut Connection,
    flow: &mut Flow<'_>,
    plan: &Plan,
) -> Result<(), Broken> {
    member(connection, flow, METADATA, plan.metadata.as_bytes()).await?;
    for (id, vdi) in &plan.disks {
        let vbd = core.with(|state| attach_to_dom0(state, host, vdi, Mode::Ro))?;
        let _attached = Attached { core, vbds: vec![vbd] };
        send_disk(core, connection, flow, id, vdi).await?;
    }
    flow.send(connection, &[0; 2 * tar::BLOCK]).await
}

async fn send_disk(
    core: &Core,
    connection: &mut Connection,
    flow: &mut Flow<'_>,
    id: &str,
    vdi: &str,
) -> Result<(), Broken> {
    let size = core.with(|state| state.db.get("VDI", vdi).map(size_of))?;
    let chunks = size.div_ceil(CHUNK);
    for number in 0..chunks {
        let mut chunk = vec![0; CHUNK.min(size - number * CHUNK) as usize];
        core.with(|state| {
            state.nodes.read(node_of(state, vdi)?, number * CHUNK, &mut chunk);
            Ok::<_, ApiError>(())
        })?;
        if number == 0 || number + 1 == chunks || chunk.iter().any(|byte| *byte != 0) {
            let name = format!("{id}/{number:08}");
            member(connection, flow, &name, &chunk).await?;
            member(connection, flow, &format!("{name}{CHECKSUM}"), checksum(&chunk).as_bytes()).await?;
        }
    }
    Ok(())
}

async fn member(connection: &mut Connection, flow: &mut Flow<'_>, name: &str, body: &[u8]) -> Result<(), Broken> {
    let (header, padding) = tar::header(name, body.len());
    for part in [&header[..], body, &padding] {
        flow.send(connection, part).await?;
    }
    Ok(())
}
