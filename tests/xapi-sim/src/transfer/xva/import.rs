//! `PUT /import`: 200 before the body is read; the objects first, then their disks; undone as a whole when something fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::{Accepted, Attached, Broken, Flow, accept, fail_late, refuse_with_task};
use super::{CHECKSUM, METADATA, checksum, import_error, tar};
use crate::calls::device::{create_vbd, create_vif};
use crate::calls::vdi::{self, Mode, attach_to_dom0};
use crate::calls::vm;
use crate::core::Core;
use crate::db::Fields;
use crate::error::{ApiError, ApiResult};
use crate::fault::{FaultKind, Use};
use crate::schema::SCHEMA;
use crate::state::{HostNumber, State};
use crate::value::{NULL_REF, Value};
use crate::wire::http::{Connection, Request};
use crate::wire::xmlrpc;

/// The newest API whose exports are taken: our own.
const API: (i64, i64) = (2, 21);

/// How an import is wanted.
struct Options {
    sr: String,
    /// Uuid and addresses stay as they are.
    restore: bool,
    /// Wrong checksums do not matter.
    force: bool,
}

/// The connection is closed afterwards, whatever happened.
pub(crate) async fn import(
    core: &Arc<Core>,
    host: HostNumber,
    connection: &mut Connection,
    request: &Request,
) -> std::io::Result<()> {
    let Some(Accepted { task, fault }) = accept(core, host, connection, request, Use::Import).await? else {
        return Ok(());
    };
    if request.header("transfer-encoding").is_some() {
        let error = ApiError::bare("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED");
        return refuse_with_task(core, connection, &task, "403 Forbidden", &error).await;
    }
    let flag = |name: &str| request.param(name) == Some("true");
    let options = match core.with(|state| sr(state, request)) {
        Ok(sr) => Options { sr, restore: flag("restore"), force: flag("force") },
        Err(error) => return refuse_with_task(core, connection, &task, "500 Internal Server Error", &error).await,
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\ncache-control: no-cache, no-store\r\ntask-id: {task}\r\n\
         content-type: application/octet-stream\r\n\r\n"
    );
    connection.write(head.as_bytes()).await?;
    connection.flush().await?;
    let early = fault.as_ref().and_then(FaultKind::api_error);
    let mut incoming = Incoming { core, host, flow: Flow::new(core, fault), connection, task: &task };
    let mut made = Made::default();
    let outcome = match early {
        Some(error) => Err(error.into()),
        None => receive(&mut incoming, &options, &mut made).await,
    };
    drop(incoming);
    match outcome {
        Ok(()) => {
            core.with(|state| {
                for vm in &made.vms {
                    // It cannot be gone: nobody may destroy it while it is imported.
                    let _ = state.db.remove_entry("VM", vm, "current_operations", &task);
                    let _ = vm::update_allowed_operations(state, vm);
                }
            });
            let result = xmlrpc::value_text(&Value::strings(made.vms));
            core.with(|state| state.finish_task(&task, Ok(result)));
        }
        Err(broken) => {
            if !options.force {
                core.with(|state| made.undo(state, &task));
            }
            fail_late(core, connection, &task, &as_import(broken)).await;
        }
    }
    Ok(())
}

/// A body that ends too early is told as such, unlike at raw imports.
fn as_import(broken: Broken) -> Broken {
    match broken {
        Broken::Connection => Broken::Api(ApiError::bare("IMPORT_ERROR_PREMATURE_EOF")),
        other => other,
    }
}

fn sr(state: &State, request: &Request) -> ApiResult<String> {
    if let Some(sr) = request.param("sr_id").or_else(|| request.param("sr_uuid")) {
        return state.db.by_ref_or_uuid("SR", sr);
    }
    let default = state.db.table("pool").next().map(|(_, pool)| pool.string("default_SR")).unwrap_or_default();
    let known = state.db.find("SR", &default).map(|_| default.clone());
    known.ok_or_else(|| ApiError::new("DEFAULT_SR_NOT_FOUND", [default]))
}

/// What an import has made so far.
#[derive(Default)]
struct Made {
    vms: Vec<String>,
    vdis: Vec<String>,
    networks: Vec<String>,
}

impl Made {
    /// Each of them is as it was made, so nothing can stand in the way.
    fn undo(&self, state: &mut State, task: &str) {
        for vm in &self.vms {
            let _ = state.db.remove_entry("VM", vm, "current_operations", task);
            let _ = vm::destroy(state, vm);
        }
        for disk in &self.vdis {
            let _ = vdi::remove(state, disk);
        }
        for network in &self.networks {
            let _ = state.db.remove("network", network);
        }
    }
}

/// A disk whose chunks are to come.
struct Disk {
    vdi: String,
    size: u64,
}

struct Incoming<'a> {
    core: &'a Core,
    host: HostNumber,
    flow: Flow<'a>,
    connection: &'a mut Connection,
    task: &'a str,
}

impl Incoming<'_> {
    async fn bytes(&mut self, length: usize) -> Result<Vec<u8>, Broken> {
        let mut bytes = vec![0; length];
        self.flow.receive(self.connection, &mut bytes).await?;
        Ok(bytes)
    }

    /// The next member with its body. Two blocks of zeroes are the end, where none is expected.
    async fn member(&mut self) -> Result<(String, Vec<u8>), Broken> {
        let mut block = [0; tar::BLOCK];
        self.flow.receive(self.connection, &mut block).await?;
        let Some((name, length)) = tar::parse(&block).map_err(import_error)? else {
            return Err(import_error("Tar.Header.End_of_stream").into());
        };
        let body = self.bytes(length).await?;
        self.bytes(length.next_multiple_of(tar::BLOCK) - length).await?;
        Ok((name, body))
    }
}

async fn receive(incoming: &mut Incoming<'_>, options: &Options, made: &mut Made) -> Result<(), Broken> {
    let (name, body) = incoming.member().await?;
    if name != METADATA {
        return Err(ApiError::new("IMPORT_ERROR_UNEXPECTED_FILE", [METADATA, &name]).into());
    }
    let objects = objects(&body)?;
    let (core, task) = (incoming.core, incoming.task);
    let disks = core.with(|state| {
        let disks = make(state, &objects, options, made, task)?;
        let _ = state.db.set_entry("task", task, "other_config", "object_creation", "complete");
        Ok::<_, ApiError>(disks)
    })?;
    // One length for all gaps, of whichever disk: that of the first chunk there is.
    let mut first_length = None;
    for (prefix, disk) in disks {
        let vbd = core.with(|state| attach_to_dom0(state, incoming.host, &disk.vdi, Mode::Rw))?;
        let _attached = Attached { core, vbds: vec![vbd] };
        receive_disk(incoming, &prefix, &disk, options.force, &mut first_length).await?;
        core.with(|state| {
            let sr = options.sr.clone();
            vdi::refresh_sr(state, &sr)
        })?;
    }
    incoming.flow.finish(incoming.connection).await
}

async fn receive_disk(
    incoming: &mut Incoming<'_>,
    prefix: &str,
    disk: &Disk,
    force: bool,
    first_length: &mut Option<u64>,
) -> Result<(), Broken> {
    let core = incoming.core;
    let (mut last, mut offset) = (-1i64, 0);
    while offset < disk.size {
        let (name, chunk) = incoming.member().await?;
        let length = *first_length.get_or_insert(chunk.len() as u64);
        let invalid = || import_error("Stream_vdi.Failure(\"Invalid XVA file\")");
        let number = name.strip_prefix(prefix).and_then(|suffix| suffix.strip_prefix('/')).ok_or_else(invalid)?;
        let number: i64 = number.parse().map_err(|_| invalid())?;
        if number <= last {
            return Err(invalid().into());
        }
        offset += (number - last - 1) as u64 * length;
        last = number;
        core.with(|state| vdi::write(state, &disk.vdi, offset, &chunk))?;
        offset += chunk.len() as u64;
        let (summed, sum) = incoming.member().await?;
        if summed != format!("{name}{CHECKSUM}") {
            return Err(import_error(format!("Failure(\"Found unsupported checksum file: {summed}\")")).into());
        }
        if checksum(&chunk).as_bytes() != sum && !force {
            return Err(import_error(format!("Stream_vdi.Invalid_checksum(\"Block {name} checksum failed\")")).into());
        }
    }
    Ok(())
}

/// An object of `ova.xml`.
struct Object {
    class: String,
    id: String,
    fields: Fields,
}

fn objects(body: &[u8]) -> ApiResult<Vec<Object>> {
    let text = std::str::from_utf8(body).map_err(|error| import_error(error.to_string()))?;
    let document = xmlrpc::parse_value(text).map_err(|error| import_error(error.to_string()))?;
    let member = |value: &Value, name: &str| match value {
        Value::Struct(members) => members.get(name).cloned(),
        _ => None,
    };
    let missing = |name: &str| import_error(format!("Failure(\"Failed to find key '{name}'\")"));
    let version = member(&document, "version").ok_or_else(|| missing("version"))?;
    let number = |name: &str| match member(&version, name) {
        Some(Value::Int(number)) => Ok(number),
        _ => Err(missing(name)),
    };
    for text in ["hostname", "date", "product_version", "product_brand", "build_number"] {
        member(&version, text).ok_or_else(|| missing(text))?;
    }
    if (number("xapi_major")?, number("xapi_minor")?) > API {
        return Err(ApiError::bare("IMPORT_INCOMPATIBLE_VERSION"));
    }
    if number("export_vsn")? < 2 {
        return Err(import_error("exports with a table of checksums are not simulated"));
    }
    let Some(Value::Array(list)) = member(&document, "objects") else { return Err(missing("objects")) };
    let object = |object: &Value| {
        let text =
            |name: &str| member(object, name).map(|value| value.as_str().to_owned()).ok_or_else(|| missing(name));
        let (class, id) = (text("class")?, text("id")?);
        let Some(Value::Struct(record)) = member(object, "snapshot") else { return Err(missing("snapshot")) };
        Ok(Object { fields: whole(&class, record)?, class, id })
    };
    list.iter().map(object).collect()
}

/// Every field of the class, of its type. Where one is missing its default stands in, if it has one; what is unknown is passed over.
fn whole(class: &str, mut record: BTreeMap<String, Value>) -> ApiResult<Fields> {
    let Some(class) = SCHEMA.class(class) else { return Ok(record) };
    let mut fields = Fields::new();
    for field in &class.fields {
        let value = match record.remove(&field.name) {
            Some(value) => field.kind.coerce(&field.name, value)?,
            None if field.has_default() => field.initial(),
            None => {
                let text = format!("Failure(\"{}: the member {} is not present in rpc\")", class.name, field.name);
                return Err(import_error(text));
            }
        };
        fields.insert(field.name.clone(), value);
    }
    Ok(fields)
}

/// Makes the objects, class by class; answers with the disks that are to be filled, by their names.
fn make(
    state: &mut State,
    objects: &[Object],
    options: &Options,
    made: &mut Made,
    task: &str,
) -> ApiResult<BTreeMap<String, Disk>> {
    let text = |fields: &Fields, name: &str| fields.get(name).map_or("", Value::as_str).to_owned();
    let of_class = |class: &'static str| objects.iter().filter(move |object| object.class == class);
    let find = |id: &str| objects.iter().find(|object| object.id == id);
    // What has a name in the archive and an object here.
    let mut table: BTreeMap<String, String> = BTreeMap::new();
    let mut disks = BTreeMap::new();
    for object in of_class("VDI") {
        let sr = text(&object.fields, "SR");
        let original = find(&sr).ok_or_else(|| ApiError::new("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", [sr]))?;
        if text(&original.fields, "content_type") == "iso" {
            continue;
        }
        let mut fields = State::record_fields("VDI", object.fields.clone())?;
        fields.insert("SR".to_owned(), options.sr.as_str().into());
        let vdi = vdi::create(state, fields)?;
        made.vdis.push(vdi.clone());
        table.insert(object.id.clone(), vdi.clone());
        let size = match object.fields.get("virtual_size") {
            Some(Value::Int(size)) => u64::try_from(*size).unwrap_or(0),
            _ => 0,
        };
        disks.insert(object.id.clone(), Disk { vdi, size });
    }
    for object in of_class("VM") {
        let mut fields = State::record_fields("VM", object.fields.clone())?;
        if let (false, Some(Value::Struct(keys))) = (options.restore, fields.get_mut("other_config")) {
            keys.remove("mac_seed");
        }
        for reference in ["affinity", "appliance", "suspend_SR", "suspend_VDI"] {
            fields.insert(reference.to_owned(), Value::null_ref());
        }
        let vm = vm::create(state, fields)?;
        made.vms.push(vm.clone());
        if options.restore {
            state.db.set("VM", &vm, "uuid", text(&object.fields, "uuid"))?;
        }
        let strings = object.fields.get("bios_strings").cloned().unwrap_or_else(Value::empty_map);
        state.db.set("VM", &vm, "bios_strings", strings)?;
        state.db.set_entry("VM", &vm, "current_operations", task, "import")?;
        table.insert(object.id.clone(), vm);
    }
    for object in of_class("network") {
        let (name, bridge) = (text(&object.fields, "name_label"), text(&object.fields, "bridge"));
        let same = |field: &str, wanted: &str| {
            state.db.table("network").find(|(_, row)| row.str(field) == wanted).map(|(network, _)| network.clone())
        };
        let network = match same("name_label", &name).or_else(|| same("bridge", &bridge)) {
            Some(network) => network,
            None => {
                let network = state.db.insert("network", State::record_fields("network", object.fields.clone())?)?;
                made.networks.push(network.clone());
                network
            }
        };
        table.insert(object.id.clone(), network);
    }
    let lookup = |fields: &Fields, field: &str| {
        let id = text(fields, field);
        table.get(&id).cloned().ok_or_else(|| ApiError::new("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", [id]))
    };
    for object in of_class("VBD") {
        let mut fields = State::record_fields("VBD", object.fields.clone())?;
        let (vm, vdi) = (lookup(&object.fields, "VM")?, lookup(&object.fields, "VDI").ok());
        let is_cd = text(&fields, "type") == "CD";
        if vdi.is_none() && !is_cd {
            continue;
        }
        fields.insert("VM".to_owned(), vm.into());
        fields.insert("empty".to_owned(), Value::Bool(vdi.is_none()));
        fields.insert("VDI".to_owned(), vdi.unwrap_or_else(|| NULL_REF.to_owned()).into());
        create_vbd(state, fields)?;
    }
    for object in of_class("VIF") {
        let mut fields = State::record_fields("VIF", object.fields.clone())?;
        fields.insert("VM".to_owned(), lookup(&object.fields, "VM")?.into());
        fields.insert("network".to_owned(), lookup(&object.fields, "network")?.into());
        if !options.restore {
            fields.insert("MAC".to_owned(), Value::void());
        }
        create_vif(state, fields)?;
    }
    // Only what hangs on a VM as a disk is in the archive.
    let is_disk =
        |id: &String| of_class("VBD").any(|vbd| text(&vbd.fields, "VDI") == *id && text(&vbd.fields, "type") != "CD");
    Ok(disks.into_iter().filter(|(id, _)| is_disk(id)).collect())
}
