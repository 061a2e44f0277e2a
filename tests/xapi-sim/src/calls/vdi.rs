//! Disks: records, chains, base copies, garbage collection, and what attaching them to a VM allows.

use super::{Args, cbt, nbd};
use crate::config::SrKind;
use crate::db::{Fields, Row};
use crate::error::{ApiError, ApiResult};
use crate::state::{HostNumber, State, fields};
use crate::storage::node::NodeId;
use crate::storage::{BLOCK_SIZE, SECTOR_SIZE, vhd};
use crate::value::{EPOCH, NULL_REF, Value, datetime};

/// Links of a VHD chain, the live file counted.
const MAX_CHAIN: usize = 30;

/// The largest disk that is not a VHD.
const MAX_LARGE_SIZE: u64 = 16 << 40;

/// Whether a new disk made from another one is its snapshot or a disk of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fork {
    Snapshot,
    Clone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Ro,
    Rw,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ro => "RO",
            Self::Rw => "RW",
        }
    }
}

pub(super) fn run(state: &mut State, message: &str, args: &Args) -> Option<ApiResult<Value>> {
    let this = args.text(0);
    let void = |outcome: ApiResult<()>| Some(outcome.map(|()| Value::void()));
    match message {
        "create" => {
            let outcome = State::record_fields("VDI", args.record(0)).and_then(|fields| create(state, fields));
            Some(outcome.map(Value::String))
        }
        "destroy" => void(destroy(state, this)),
        "snapshot" => Some(fork(state, this, Fork::Snapshot).map(Value::String)),
        "clone" => Some(fork(state, this, Fork::Clone).map(Value::String)),
        "copy" => Some(copy(state, args).map(Value::String)),
        "resize" => void(resize(state, this, args.int(1))),
        "update" => void(managed(state, this).map(|_| ())),
        "get_nbd_info" => Some(nbd::info(state, this, &args.session)),
        _ => cbt::run(state, message, this, args.text(1)),
    }
}

pub(super) fn managed<'a>(state: &'a State, vdi: &str) -> ApiResult<&'a Row> {
    let row = state.db.get("VDI", vdi)?;
    match row.bool("managed") {
        true => Ok(row),
        false => Err(ApiError::new("VDI_NOT_MANAGED", [vdi])),
    }
}

pub(crate) fn node_of(state: &State, vdi: &str) -> ApiResult<NodeId> {
    let node = state.disks.get(vdi).copied();
    node.ok_or_else(|| ApiError::internal(format!("no storage behind {vdi}")))
}

pub(crate) fn size_of(row: &Row) -> u64 {
    u64::try_from(row.int("virtual_size")).unwrap_or(0)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// In which format the file of a disk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImageFormat {
    Vhd,
    Raw,
    Qcow2,
}

impl ImageFormat {
    /// As the creator of the disk asked for it, else the first that the SR has; the old way to ask for a raw file is the
    /// key `type`.
    fn of(sm_config: Option<&Value>, sr: SrKind) -> ApiResult<Self> {
        let entry = |key: &str| match sm_config {
            Some(Value::Struct(config)) => config.get(key).map(Value::as_str),
            _ => None,
        };
        let old_way = entry("type").filter(|kind| *kind == "raw");
        match entry("image-format").or(old_way).or(sr.image_formats().first().copied()) {
            Some("vhd") => Ok(Self::Vhd),
            Some("raw") => Ok(Self::Raw),
            Some("qcow2") => Ok(Self::Qcow2),
            _ => Err(ApiError::backend(78, "VDI Creation failed: unknown image format")),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Vhd => "vhd",
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    fn max_size(self) -> u64 {
        match self {
            Self::Vhd => vhd::MAX_SIZE,
            Self::Raw | Self::Qcow2 => MAX_LARGE_SIZE,
        }
    }

    /// Sizes are multiples of 2 MiB, of volumes of a sector; at least one and at most what the format can describe.
    fn round_size(self, size: i64, sr: SrKind) -> ApiResult<u64> {
        let unit = if sr == SrKind::Volumes { SECTOR_SIZE } else { BLOCK_SIZE };
        let rounded = u64::try_from(size).ok().and_then(|size| size.max(1).checked_next_multiple_of(unit));
        let size = rounded.filter(|size| *size <= self.max_size());
        size.ok_or_else(|| ApiError::backend(79, "VDI Invalid size"))
    }
}

fn image_format(state: &State, row: &Row) -> ApiResult<ImageFormat> {
    ImageFormat::of(Some(row.get("sm_config")), state.sr_kind(row.str("SR"))?)
}

/// Whether an export in that format can be told what is allocated, instead of reading everything.
pub(crate) fn is_qcow2(state: &State, row: &Row) -> bool {
    image_format(state, row) == Ok(ImageFormat::Qcow2)
}

/// Whether the file of a disk is nothing but its content.
pub(super) fn is_raw(state: &State, row: &Row) -> bool {
    image_format(state, row) == Ok(ImageFormat::Raw)
}

/// How many bytes are free on an SR, by what lies on it and not by its record.
fn free_space(state: &State, sr: &str) -> ApiResult<u64> {
    let row = state.db.get("SR", sr)?;
    let size = u64::try_from(row.int("physical_size")).unwrap_or(0);
    let used: u64 = row.list("VDIs").iter().map(|vdi| utilisation(state, vdi)).sum();
    Ok(size.saturating_sub(used))
}

/// Bytes that a disk takes on its SR, its parents not counted. Without data there is the log alone.
fn utilisation(state: &State, vdi: &str) -> u64 {
    match (state.disks.get(vdi), state.db.find("VDI", vdi)) {
        (Some(node), _) => state.nodes.utilisation(*node),
        (None, Some(row)) => crate::storage::cbt::encoded_length(size_of(row)) as u64,
        (None, None) => 0,
    }
}

fn assert_space(state: &State, sr: &str, needed: u64) -> ApiResult<()> {
    match free_space(state, sr)? >= needed {
        true => Ok(()),
        false => Err(ApiError::sr_full()),
    }
}

/// A write of a transfer; it fails when the SR is full or the disk too small.
pub(crate) fn write(state: &mut State, vdi: &str, offset: u64, data: &[u8]) -> ApiResult<()> {
    let row = state.db.get("VDI", vdi)?;
    let (sr, size) = (row.string("SR"), size_of(row));
    let end = offset.checked_add(data.len() as u64);
    if end.is_none_or(|end| end > size) {
        return Err(ApiError::device_io());
    }
    let node = node_of(state, vdi)?;
    let growth = state.nodes.growth(node, offset, data.len() as u64);
    if growth > 0 {
        assert_space(state, &sr, growth)?;
    }
    put(state, vdi, offset, data)
}

/// Writes and notes it in the change log. Who writes into a snapshot damages it, and no log tells of that.
pub(crate) fn put(state: &mut State, vdi: &str, offset: u64, data: &[u8]) -> ApiResult<()> {
    let node = node_of(state, vdi)?;
    state.nodes.write(node, offset, data);
    if !state.db.get("VDI", vdi)?.bool("is_a_snapshot") {
        state.changes.record(vdi, offset, data.len() as u64);
    }
    Ok(())
}

pub(crate) fn create(state: &mut State, mut fields: Fields) -> ApiResult<String> {
    let sr = fields.get("SR").map_or("", Value::as_str).to_owned();
    let plugged = state.db.get("SR", &sr)?.list("PBDs");
    if plugged.is_empty() {
        return Err(ApiError::new("SR_HAS_NO_PBDS", [sr]));
    }
    if !plugged.iter().any(|pbd| state.db.find("PBD", pbd).is_some_and(|pbd| pbd.bool("currently_attached"))) {
        return Err(ApiError::new("SR_NOT_ATTACHED", [sr]));
    }
    if fields.get("type").is_some_and(|kind| kind.as_str() == cbt::METADATA) {
        return Err(ApiError::new("VDI_INCOMPATIBLE_TYPE", [NULL_REF, cbt::METADATA]));
    }
    let kind = state.sr_kind(&sr)?;
    let format = ImageFormat::of(fields.get("sm_config"), kind)?;
    if !kind.image_formats().contains(&format.as_str()) {
        return Err(ApiError::backend(78, "VDI Creation failed: the SR does not support the image format"));
    }
    let size = match fields.get("virtual_size") {
        Some(Value::Int(size)) => format.round_size(*size, kind)?,
        _ => format.round_size(0, kind)?,
    };
    // Thin: the first block has to fit, not the whole disk.
    assert_space(state, &sr, BLOCK_SIZE)?;
    fields.insert("virtual_size".to_owned(), Value::Int(signed(size)));
    let node = state.nodes.create(None, format != ImageFormat::Vhd);
    let vdi = insert(state, fields, node)?;
    refresh_sr(state, &sr)?;
    Ok(vdi)
}

/// A record with its file. The location of a VDI is its uuid, as on a file based SR.
fn insert(state: &mut State, mut fields: Fields, node: NodeId) -> ApiResult<String> {
    let uuid = uuid::Uuid::new_v4().to_string();
    fields.insert("uuid".to_owned(), Value::String(uuid.clone()));
    fields.insert("location".to_owned(), Value::String(uuid));
    fields.entry("managed".to_owned()).or_insert(Value::Bool(true));
    let vdi = state.db.insert("VDI", fields)?;
    state.disks.insert(vdi.clone(), node);
    Ok(vdi)
}

/// The VBDs through which a disk is attached now.
pub(crate) fn attachments<'a>(state: &'a State, row: &Row) -> Vec<&'a Row> {
    let vbds = row.list("VBDs");
    vbds.iter().filter_map(|vbd| state.db.find("VBD", vbd)).filter(|vbd| vbd.bool("currently_attached")).collect()
}

fn assert_detached(state: &State, vdi: &str, operation: &str) -> ApiResult<()> {
    let row = managed(state, vdi)?;
    match attachments(state, row).is_empty() {
        true => Ok(()),
        false => Err(ApiError::new("VDI_IN_USE", [vdi, operation])),
    }
}

/// Attaching follows readers and writers. Refused with one parameter, unlike by the life cycle of the VDI.
pub(crate) fn assert_attachable(state: &State, vdi: &str, mode: Mode) -> ApiResult<()> {
    let row = managed(state, vdi)?;
    cbt::assert_has_data(row, vdi)?;
    if mode == Mode::Rw && row.bool("read_only") {
        return Err(ApiError::new("VDI_READONLY", [vdi]));
    }
    let attached = attachments(state, row);
    let clash = match mode {
        _ if row.bool("sharable") => false,
        Mode::Rw => !attached.is_empty(),
        Mode::Ro => attached.iter().any(|vbd| vbd.str("mode") == "RW"),
    };
    match clash {
        true => Err(ApiError::new("VDI_IN_USE", [vdi])),
        false => Ok(()),
    }
}

/// Attaches a disk to the control domain of a host, which shows as a VBD for as long as it lasts.
pub(crate) fn attach_to_dom0(state: &mut State, host: HostNumber, vdi: &str, mode: Mode) -> ApiResult<String> {
    assert_attachable(state, vdi, mode)?;
    let row = state.db.get("VDI", vdi)?;
    if mode == Mode::Rw && row.bool("is_a_snapshot") {
        return Err(ApiError::new("VDI_READONLY", [vdi]));
    }
    let host = state.host(host);
    if !state.sees(&host.reference, row.str("SR")) {
        return Err(ApiError::new("SR_NOT_ATTACHED", [row.str("SR")]));
    }
    let dom0 = host.dom0.clone();
    let (number, device) = super::device::free_device(state, &dom0)?;
    state.db.insert(
        "VBD",
        fields! {
            "VM" => dom0,
            "VDI" => vdi,
            "userdevice" => number,
            "device" => device,
            "mode" => mode.as_str(),
            "type" => "Disk",
            "bootable" => false,
            "unpluggable" => true,
            "empty" => false,
            "currently_attached" => true,
        },
    )
}

pub(crate) fn detach_from_dom0(state: &mut State, vbd: &str) {
    // Already gone when the VDI was forgotten meanwhile.
    let _ = state.db.remove("VBD", vbd);
}

fn destroy(state: &mut State, vdi: &str) -> ApiResult<()> {
    assert_detached(state, vdi, "destroy")?;
    remove(state, vdi)
}

/// Without asking whether it is in use: undoing what was just made.
pub(crate) fn remove(state: &mut State, vdi: &str) -> ApiResult<()> {
    let row = state.db.get("VDI", vdi)?;
    let (sr, vbds) = (row.string("SR"), row.list("VBDs"));
    for vbd in vbds {
        state.db.remove("VBD", &vbd)?;
    }
    drop_file(state, vdi)?;
    state.changes.remove(vdi);
    state.db.remove("VDI", vdi)?;
    refresh_sr(state, &sr)
}

/// Takes the data of a disk away, if it has any, and what then serves nobody.
pub(super) fn drop_file(state: &mut State, vdi: &str) -> ApiResult<()> {
    if let Some(node) = state.disks.remove(vdi) {
        state.nodes.remove(node);
    }
    match state.hold_gc {
        true => Ok(()),
        false => collect_garbage(state),
    }
}

fn resize(state: &mut State, vdi: &str, size: i64) -> ApiResult<()> {
    assert_detached(state, vdi, "resize")?;
    let row = managed(state, vdi)?;
    cbt::assert_has_data(row, vdi)?;
    let (sr, old) = (row.string("SR"), size_of(row));
    let new = image_format(state, row)?.round_size(size, state.sr_kind(&sr)?)?;
    if new < old {
        return Err(ApiError::backend(79, "VDI Invalid size: shrinking not allowed"));
    }
    state.db.set("VDI", vdi, "virtual_size", signed(new))?;
    refresh_sr(state, &sr)
}

/// Snapshot and clone are one mechanism: the file of the disk becomes a hidden base copy, and two empty children are
/// made. The disk keeps its uuid.
pub(crate) fn fork(state: &mut State, vdi: &str, kind: Fork) -> ApiResult<String> {
    let row = managed(state, vdi)?;
    cbt::assert_has_data(row, vdi)?;
    if row.bool("sharable") && kind == Fork::Snapshot {
        return Err(ApiError::new("VDI_IS_SHARABLE", [vdi]));
    }
    if row.str("on_boot") == "reset" {
        return Err(ApiError::bare("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"));
    }
    let source = row.fields.clone();
    let sr = row.string("SR");
    // Changes of a raw file are kept in a VHD, those of a volume are not.
    let knows_blocks = image_format(state, row)? != ImageFormat::Qcow2 && state.sr_kind(&sr)? != SrKind::Volumes;
    let tracked = kind == Fork::Snapshot && row.bool("cbt_enabled");
    let node = node_of(state, vdi)?;
    if state.nodes.depth(node) >= MAX_CHAIN {
        return Err(ApiError::backend(109, "The snapshot chain is too long"));
    }
    assert_space(state, &sr, BLOCK_SIZE)?;

    let copied = |names: &[&str]| -> Fields {
        names.iter().filter_map(|name| Some(((*name).to_owned(), source.get(*name)?.clone()))).collect()
    };
    let mut base = copied(&["SR", "virtual_size", "type", "sharable", "sm_config"]);
    base.extend(fields! { "name_label" => "base copy", "managed" => false, "read_only" => true });
    let base = insert(state, base, node)?;
    let base_uuid = state.db.get("VDI", &base)?.string("uuid");

    let live_node = state.nodes.create(Some(node), !knows_blocks);
    state.disks.insert(vdi.to_owned(), live_node);
    state.db.set_entry("VDI", vdi, "sm_config", "vhd-parent", base_uuid.as_str())?;

    let mut new = copied(&[
        "name_label",
        "name_description",
        "SR",
        "virtual_size",
        "type",
        "sharable",
        "read_only",
        "other_config",
        "xenstore_data",
        "sm_config",
        "tags",
        "on_boot",
        "allow_caching",
    ]);
    if kind == Fork::Snapshot {
        new.extend(fields! { "is_a_snapshot" => true, "snapshot_of" => vdi, "snapshot_time" => datetime(state.now()) });
    }
    let new_node = state.nodes.create(Some(node), !knows_blocks);
    let new = insert(state, new, new_node)?;
    state.db.set_entry("VDI", &new, "sm_config", "vhd-parent", base_uuid)?;
    if tracked {
        state.changes.snapshot(vdi, &new);
        state.db.set("VDI", &new, "cbt_enabled", true)?;
    }
    refresh_sr(state, &sr)?;
    Ok(new)
}

/// A copy without a chain, on any SR, or into an existing disk.
fn copy(state: &mut State, args: &Args) -> ApiResult<String> {
    let (vdi, sr, base, into) = (args.text(0), args.text(1), args.text(2), args.text(3));
    if !base.is_empty() && base != NULL_REF {
        return Err(ApiError::new("NOT_IMPLEMENTED", ["VDI.copy with base_vdi"]));
    }
    if into.is_empty() || into == NULL_REF {
        return copy_to(state, vdi, sr);
    }
    assert_attachable(state, vdi, Mode::Ro)?;
    assert_attachable(state, into, Mode::Rw)?;
    let (size, room) = (size_of(state.db.get("VDI", vdi)?), size_of(state.db.get("VDI", into)?));
    if room < size {
        return Err(ApiError::new("VDI_TOO_SMALL", [into, &size.to_string()]));
    }
    fill(state, vdi, into)?;
    Ok(into.to_owned())
}

/// A new disk on an SR, by default that of the original.
pub(super) fn copy_to(state: &mut State, vdi: &str, sr: &str) -> ApiResult<String> {
    assert_attachable(state, vdi, Mode::Ro)?;
    let target = copy_record(state, vdi, sr)?;
    match fill(state, vdi, &target) {
        Ok(()) => Ok(target),
        Err(error) => {
            remove(state, &target)?;
            Err(error)
        }
    }
}

/// Writes what one disk holds into another one.
fn fill(state: &mut State, vdi: &str, target: &str) -> ApiResult<()> {
    let (node, size) = (node_of(state, vdi)?, size_of(state.db.get("VDI", vdi)?));
    let pages: Vec<(u64, crate::storage::node::Page)> =
        state.nodes.stored_pages(node).map(|(offset, page)| (offset, page.clone())).collect();
    for (offset, page) in pages {
        write(state, target, offset, within(size, offset, &page))?;
    }
    let sr = state.db.get("VDI", target)?.string("SR");
    refresh_sr(state, &sr)
}

/// What of a page lies on a disk of `size`, whose last page may be cut.
pub(crate) fn within(size: u64, offset: u64, page: &[u8]) -> &[u8] {
    &page[..size.saturating_sub(offset).min(page.len() as u64) as usize]
}

fn copy_record(state: &mut State, vdi: &str, sr: &str) -> ApiResult<String> {
    let row = state.db.get("VDI", vdi)?;
    let mut fields = row.fields.clone();
    fields.retain(|name, _| {
        ["name_label", "name_description", "virtual_size", "type", "other_config", "xenstore_data", "tags"]
            .contains(&name.as_str())
    });
    fields
        .insert("SR".to_owned(), if sr.is_empty() || sr == NULL_REF { row.string("SR") } else { sr.to_owned() }.into());
    create(state, fields)
}

/// Removes base copies that nobody needs and folds those with a single child, as the storage manager does in its own time;
/// here it is done when this returns.
pub(crate) fn collect_garbage(state: &mut State) -> ApiResult<()> {
    while collect_garbage_once(state)? {}
    Ok(())
}

/// One step of that; false when nothing is left to do.
pub(crate) fn collect_garbage_once(state: &mut State) -> ApiResult<bool> {
    match next_garbage(state) {
        None => return Ok(false),
        Some(Garbage::Unused { base }) => {
            let node = node_of(state, &base)?;
            state.nodes.remove(node);
            forget(state, &base)?;
        }
        Some(Garbage::SingleChild { base, child }) => coalesce(state, &base, &child)?,
    }
    Ok(true)
}

enum Garbage {
    Unused { base: String },
    SingleChild { base: String, child: String },
}

fn next_garbage(state: &State) -> Option<Garbage> {
    let owner = |node: NodeId| state.disks.iter().find(|(_, other)| **other == node).map(|(vdi, _)| vdi.clone());
    state.db.table("VDI").filter(|(_, row)| !row.bool("managed")).find_map(|(base, _)| {
        let children = state.nodes.children(*state.disks.get(base)?);
        match children.as_slice() {
            [] => Some(Garbage::Unused { base: base.clone() }),
            [child] => Some(Garbage::SingleChild { base: base.clone(), child: owner(*child)? }),
            _ => None,
        }
    })
}

/// A base copy takes in its only child. If that is a base copy too, the lower one survives; if it is a disk, the file
/// takes over the disk's name.
fn coalesce(state: &mut State, base: &str, child: &str) -> ApiResult<()> {
    let child_node = node_of(state, child)?;
    let grandchildren = state.nodes.children(child_node);
    let merged =
        state.nodes.merge_into_parent(child_node).ok_or_else(|| ApiError::internal("no parent to coalesce into"))?;
    let base_row = state.db.get("VDI", base)?;
    if state.db.get("VDI", child)?.bool("managed") {
        let parent = base_row.entry("sm_config", "vhd-parent").map(str::to_owned);
        state.disks.insert(child.to_owned(), merged);
        match parent {
            Some(parent) => state.db.set_entry("VDI", child, "sm_config", "vhd-parent", parent)?,
            None => state.db.remove_entry("VDI", child, "sm_config", "vhd-parent")?,
        }
        return forget(state, base);
    }
    let base_uuid = base_row.string("uuid");
    let size = state.db.get("VDI", child)?.int("virtual_size");
    state.db.set("VDI", base, "virtual_size", size)?;
    for grandchild in grandchildren {
        let owner = state.disks.iter().find(|(_, node)| **node == grandchild).map(|(vdi, _)| vdi.clone());
        if let Some(owner) = owner {
            state.db.set_entry("VDI", &owner, "sm_config", "vhd-parent", base_uuid.as_str())?;
        }
    }
    forget(state, child)
}

fn forget(state: &mut State, vdi: &str) -> ApiResult<()> {
    state.disks.remove(vdi);
    state.db.remove("VDI", vdi).map(|_| ())
}

/// Brings the sizes in the records up to date: those of the VDIs and of the SR. Between two of these they are stale.
pub(crate) fn refresh_sr(state: &mut State, sr: &str) -> ApiResult<()> {
    let (mut used, mut allocated) = (0, 0);
    for vdi in state.db.get("SR", sr)?.list("VDIs") {
        let stored = utilisation(state, &vdi);
        used += stored;
        state.db.set("VDI", &vdi, "physical_utilisation", signed(stored))?;
        let row = state.db.get("VDI", &vdi)?;
        if row.bool("managed") {
            allocated += size_of(row);
        }
    }
    state.db.set("SR", sr, "physical_utilisation", signed(used))?;
    state.db.set("SR", sr, "virtual_allocation", signed(allocated))
}

/// How a differencing export names the file of its base. The identity is that of the file, not of the VDI.
pub(crate) fn parent_of_export(state: &State, base: &str) -> ApiResult<vhd::Parent> {
    let row = state.db.get("VDI", base)?;
    let sr = state.db.get("SR", row.str("SR"))?.string("uuid");
    let node = node_of(state, base)?;
    let file =
        state.nodes.get(node).filter(|file| !file.raw).ok_or_else(|| ApiError::internal("base VDI is not a vhd"))?;
    let made = match row.str("snapshot_time") {
        EPOCH | "" => state.now(),
        time => crate::value::parse_datetime(time).unwrap_or_else(|| state.now()),
    };
    Ok(vhd::Parent {
        uuid: file.vhd_uuid,
        timestamp: vhd::timestamp(made.as_second()),
        path: format!("/var/run/sr-mount/{sr}/{}.vhd", row.str("uuid")),
    })
}
