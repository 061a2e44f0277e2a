//! `GET /export_raw_vdi`: 200 before anything is known, a body that ends with the connection.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Accepted, Attached, Broken, Flow, accept, fail_late, refuse_with_task, report_progress};
use crate::calls::vdi::{Mode, attach_to_dom0, detach_from_dom0, is_qcow2, node_of, parent_of_export, size_of, within};
use crate::core::Core;
use crate::error::{ApiError, ApiResult};
use crate::fault::{FaultKind, Use};
use crate::state::{HostNumber, State};
use crate::storage::{BLOCK_SIZE, qcow2, vhd};
use crate::wire::http::{Connection, Request};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Raw,
    Vhd,
    Qcow2,
}

impl Format {
    fn parse(text: &str) -> Option<Self> {
        match text.to_lowercase().as_str() {
            "raw" => Some(Self::Raw),
            "vhd" => Some(Self::Vhd),
            "qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Raw => "application/octet-stream",
            Self::Vhd => "application/vhd",
            Self::Qcow2 => "application/x-qemu-disk",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What will be sent.
struct Plan {
    size: u64,
    blocks: BTreeSet<u64>,
    head: vhd::Head,
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
    let known = Format::parse(request.param("format").unwrap_or("raw"));
    let Some(format) = known.filter(|format| *format != Format::Qcow2 || core.qcow2_streams) else {
        let error = ApiError::internal("Unknown format");
        return refuse_with_task(core, connection, &task, "404 Not Found", &error).await;
    };
    let disks = core.with(|state| {
        let vdi = request.param("vdi").ok_or_else(|| ApiError::internal("Failure(\"Missing vdi parameter\")"))?;
        let vdi = state.db.by_ref_or_uuid("VDI", vdi)?;
        let base = request.param("base").map(|base| state.db.by_ref_or_uuid("VDI", base)).transpose()?;
        let uuid = state.db.get("VDI", &vdi)?.string("uuid");
        Ok((vdi, base, uuid))
    });
    let (vdi, base, uuid) = match disks {
        Ok(disks) => disks,
        Err(error) => return refuse_with_task(core, connection, &task, "500 Internal Server Error", &error).await,
    };
    if fault == Some(FaultKind::ReplyLost) {
        core.with(|state| state.finish_task(&task, Ok(String::new())));
        return Ok(());
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nConnection: close\r\ncache-control: no-cache, no-store\r\ntask-id:{task}\r\n\
         content-type: {}\r\ncontent-disposition: attachment; filename=\"{uuid}.{}\"\r\n\r\n",
        format.content_type(),
        format.extension(),
    );
    connection.write(head.as_bytes()).await?;
    connection.flush().await?;
    let sent = match core.with(|state| attach(state, host, &vdi, base.as_deref())) {
        Ok(vbds) => {
            let _attached = Attached { core, vbds };
            send(core, connection, &task, fault, &vdi, base.as_deref(), format).await
        }
        Err(error) => Err(error.into()),
    };
    match sent {
        Ok(()) => core.with(|state| state.finish_task(&task, Ok(String::new()))),
        Err(broken) => fail_late(core, connection, &task, &broken).await,
    }
    Ok(())
}

async fn send(
    core: &Core,
    connection: &mut Connection,
    task: &str,
    fault: Option<FaultKind>,
    vdi: &str,
    base: Option<&str>,
    format: Format,
) -> Result<(), Broken> {
    if let Some(error) = fault.as_ref().and_then(FaultKind::api_error) {
        return Err(error.into());
    }
    let mut flow = Flow::new(core, fault);
    if format == Format::Qcow2 {
        let (size, clusters) = core.with(|state| clusters(state, vdi, base))?;
        send_qcow2(core, connection, &mut flow, vdi, size, &clusters).await?;
    } else {
        let plan = core.with(|state| plan(state, vdi, base, format))?;
        match format {
            Format::Vhd => send_vhd(core, connection, &mut flow, task, vdi, &plan).await?,
            _ => send_raw(core, connection, &mut flow, task, vdi, &plan).await?,
        }
    }
    flow.overrun(connection).await?;
    connection.flush().await?;
    flow.finish(connection).await
}

/// The disk and its base hang on the control domain for as long as they are read.
fn attach(state: &mut State, host: HostNumber, vdi: &str, base: Option<&str>) -> ApiResult<Vec<String>> {
    let mut vbds = vec![attach_to_dom0(state, host, vdi, Mode::Ro)?];
    // A disk against itself is attached once.
    if let Some(base) = base.filter(|base| *base != vdi) {
        match attach_to_dom0(state, host, base, Mode::Ro) {
            Ok(vbd) => vbds.push(vbd),
            Err(error) => {
                vbds.iter().for_each(|vbd| detach_from_dom0(state, vbd));
                return Err(error);
            }
        }
    }
    Ok(vbds)
}

fn plan(state: &State, vdi: &str, base: Option<&str>, format: Format) -> ApiResult<Plan> {
    let row = state.db.get("VDI", vdi)?;
    let size = size_of(row);
    if format == Format::Vhd && size > vhd::MAX_SIZE {
        return Err(ApiError::new("VDI_TOO_LARGE", [vdi, &vhd::MAX_SIZE.to_string()]));
    }
    let node = node_of(state, vdi)?;
    let parent = base.map(|base| parent_of_export(state, base)).transpose()?;
    let blocks = match base {
        None => state.nodes.full_blocks(node),
        Some(base) => state.nodes.delta_blocks(node, node_of(state, base)?),
    };
    // A base that was larger may have blocks beyond the end.
    let blocks = blocks.into_iter().filter(|block| block * BLOCK_SIZE < size).collect();
    let head = vhd::encode_head(size, &blocks, uuid::Uuid::new_v4(), parent.as_ref());
    Ok(Plan { size, blocks, head })
}

/// The size of a disk, and its clusters that a qcow2 export holds. A base beside it need not be related to it.
fn clusters(state: &State, vdi: &str, base: Option<&str>) -> ApiResult<(u64, BTreeSet<u64>)> {
    let (row, node) = (state.db.get("VDI", vdi)?, node_of(state, vdi)?);
    let mut clusters = match base {
        None => state.nodes.full_pages(node, is_qcow2(state, row)),
        Some(base) => {
            let tell_allocation = is_qcow2(state, row) && is_qcow2(state, state.db.get("VDI", base)?);
            state.nodes.delta_pages(node, node_of(state, base)?, tell_allocation)
        }
    };
    // A base that was larger may have clusters beyond the end.
    clusters.retain(|cluster| cluster * qcow2::CLUSTER_SIZE < size_of(row));
    Ok((size_of(row), clusters))
}

/// Tells nobody how far it is, as the tool behind XAPI does not.
async fn send_qcow2(
    core: &Core,
    connection: &mut Connection,
    flow: &mut Flow<'_>,
    vdi: &str,
    size: u64,
    clusters: &BTreeSet<u64>,
) -> Result<(), Broken> {
    flow.send(connection, &qcow2::encode_head(size, clusters)).await?;
    let mut data = vec![0; qcow2::CLUSTER_SIZE as usize];
    for cluster in clusters {
        core.with(|state| {
            state.nodes.read(node_of(state, vdi)?, cluster * qcow2::CLUSTER_SIZE, &mut data);
            Ok::<_, ApiError>(())
        })?;
        flow.send(connection, &data).await?;
    }
    Ok(())
}

async fn send_vhd(
    core: &Core,
    connection: &mut Connection,
    flow: &mut Flow<'_>,
    task: &str,
    vdi: &str,
    plan: &Plan,
) -> Result<(), Broken> {
    let total = vhd::stream_length(plan.size, plan.blocks.len());
    let mut percent = 0;
    flow.send(connection, &plan.head.bytes).await?;
    for block in &plan.blocks {
        flow.send(connection, &vhd::full_bitmap()).await?;
        send_block(core, connection, flow, vdi, *block, BLOCK_SIZE).await?;
        report_progress(core, task, &mut percent, flow.moved, total);
    }
    flow.send(connection, &plan.head.footer).await
}

/// The whole disk; with a base, what did not change is sent as zeroes.
async fn send_raw(
    core: &Core,
    connection: &mut Connection,
    flow: &mut Flow<'_>,
    task: &str,
    vdi: &str,
    plan: &Plan,
) -> Result<(), Broken> {
    let zeroes = vec![0; BLOCK_SIZE as usize];
    let mut percent = 0;
    for block in 0..plan.size.div_ceil(BLOCK_SIZE) {
        let length = BLOCK_SIZE.min(plan.size - block * BLOCK_SIZE);
        match plan.blocks.contains(&block) {
            true => send_block(core, connection, flow, vdi, block, length).await?,
            false => flow.send(connection, &zeroes[..length as usize]).await?,
        }
        report_progress(core, task, &mut percent, flow.moved, plan.size);
    }
    Ok(())
}

/// The first `length` bytes of a block in the merged view of the chain, as of now. Behind the end of the disk are zeroes.
async fn send_block(
    core: &Core,
    connection: &mut Connection,
    flow: &mut Flow<'_>,
    vdi: &str,
    block: u64,
    length: u64,
) -> Result<(), Broken> {
    let pages = core.with(|state| Ok::<_, ApiError>(state.nodes.block_pages(node_of(state, vdi)?, block)))?;
    let zeroes = vec![0; BLOCK_SIZE as usize / pages.len()];
    for (offset, page) in (0u64..).step_by(zeroes.len()).zip(&pages) {
        flow.send(connection, within(length, offset, page.as_deref().unwrap_or(&zeroes))).await?;
    }
    Ok(())
}
