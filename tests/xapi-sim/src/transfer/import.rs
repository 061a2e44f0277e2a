//! `PUT /import_raw_vdi`: 200 before the body is read; how it went is told in the task.

use std::sync::Arc;

use super::{Accepted, Broken, Flow, accept, fail_late, refuse_with_task, report_progress};
use crate::calls::vdi::{self, Mode, attach_to_dom0, detach_from_dom0, refresh_sr, size_of};
use crate::core::Core;
use crate::error::{ApiError, ApiResult};
use crate::fault::{FaultKind, Use};
use crate::state::{HostNumber, State, fields};
use crate::storage::vhd::{self, FOOTER_SIZE, HEADER_SIZE, Header};
use crate::storage::{BLOCK_SIZE, SECTOR_SIZE};
use crate::value::Value;
use crate::wire::http::{Connection, Request};

/// How the disk's content is written in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Vhd,
    /// From offset 0 on.
    Raw,
    /// XAPI's own: offset (u64), length (u32), data, and so on, little-endian, ended by an empty one at 0.
    Chunked,
}

/// A request that cannot be served as it is.
struct Refusal {
    status: &'static str,
    error: ApiError,
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
    let accepted = framing(request).and_then(|framing| {
        let target = core.with(|state| target(state, request, framing))?;
        Ok((framing, target))
    });
    let (framing, target) = match accepted {
        Ok(accepted) => accepted,
        Err(refusal) => return refuse_with_task(core, connection, &task, refusal.status, &refusal.error).await,
    };
    if fault != Some(FaultKind::ReplyLost) {
        let head = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\ncache-control: no-cache, no-store\r\ntask-id:{task}\r\n\
             content-type: application/octet-stream\r\n\r\n"
        );
        connection.write(head.as_bytes()).await?;
        connection.flush().await?;
    }
    let flow = Flow::new(core, fault.clone());
    let mut incoming = Incoming { core, host, connection, flow, task: &task, position: 0, percent: 0 };
    let outcome = receive(&mut incoming, fault, framing, &target, request.content_length()).await;
    drop(incoming);
    match outcome {
        Ok(()) => {
            let result = crate::wire::xmlrpc::value_text(&Value::String(target));
            core.with(|state| state.finish_task(&task, Ok(result)));
        }
        Err(broken) => fail_late(core, connection, &task, &broken).await,
    }
    Ok(())
}

fn framing(request: &Request) -> Result<Framing, Refusal> {
    let not_found = |text: String| Refusal { status: "404 Not Found", error: ApiError::internal(text) };
    if let Some(encoding) = request.header("transfer-encoding") {
        return Err(not_found(format!("Cannot handle encoding: {encoding}")));
    }
    let chunked = request.param("chunked").is_some();
    match (request.param("format").unwrap_or("raw").to_lowercase().as_str(), chunked) {
        ("raw", false) => Ok(Framing::Raw),
        ("raw", true) => Ok(Framing::Chunked),
        ("vhd", false) => Ok(Framing::Vhd),
        ("vhd", true) => Err(not_found("Chunked and vhd do not go together".to_owned())),
        (format, _) => Err(not_found(format!("Unknown format {format}"))),
    }
}

/// The VDI that was named, or a new one on the SR that was named.
fn target(state: &mut State, request: &Request, framing: Framing) -> Result<String, Refusal> {
    let internal = |error| Refusal { status: "500 Internal Server Error", error };
    if let Some(vdi) = request.param("vdi") {
        return state.db.by_ref_or_uuid("VDI", vdi).map_err(internal);
    }
    let bad = |error| Refusal { status: "400 Bad Request", error };
    let Some(sr) = request.param("sr_id").or_else(|| request.param("sr_uuid")) else {
        return Err(bad(ApiError::bare("VDI_MISSING")));
    };
    let Some(size) = request.content_length().filter(|_| framing == Framing::Raw) else {
        return Err(bad(ApiError::internal("Only raw with a Content-Length goes into an SR")));
    };
    let create = |state: &mut State| -> ApiResult<String> {
        let sr = state.db.by_ref_or_uuid("SR", sr)?;
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        vdi::create(
            state,
            fields! { "SR" => sr, "name_label" => "Imported VDI", "virtual_size" => size, "type" => "user" },
        )
    };
    create(state).map_err(internal)
}

/// The body: received by way of the flow, with its position.
struct Incoming<'a> {
    core: &'a Core,
    host: HostNumber,
    connection: &'a mut Connection,
    flow: Flow<'a>,
    task: &'a str,
    position: u64,
    percent: u64,
}

impl Incoming<'_> {
    async fn fill(&mut self, target: &mut [u8]) -> Result<(), Broken> {
        self.flow.receive(self.connection, target).await?;
        self.position += target.len() as u64;
        Ok(())
    }

    async fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let mut array = [0; N];
        self.fill(&mut array).await?;
        Ok(array)
    }

    /// Forward only: a stream cannot be read again.
    async fn skip_to(&mut self, position: u64) -> Result<(), Broken> {
        if position < self.position {
            return Err(broken_stream(&vhd::VhdError::Backwards(self.position)));
        }
        let mut scratch = vec![0; 64 << 10];
        while self.position < position {
            let step = (position - self.position).min(scratch.len() as u64) as usize;
            self.fill(&mut scratch[..step]).await?;
        }
        Ok(())
    }

    fn report(&mut self, total: u64) {
        report_progress(self.core, self.task, &mut self.percent, self.position, total);
    }
}

/// A stream that makes no sense ends like one that broke; the reason stays on the host.
fn broken_stream(error: &vhd::VhdError) -> Broken {
    tracing::debug!(%error, "import refused the stream");
    Broken::Api(ApiError::device_io())
}

async fn receive(
    incoming: &mut Incoming<'_>,
    fault: Option<FaultKind>,
    framing: Framing,
    target: &str,
    length: Option<u64>,
) -> Result<(), Broken> {
    if let Some(error) = fault.as_ref().and_then(FaultKind::api_error) {
        return Err(error.into());
    }
    // The shortest VHD there is; a probe with an empty body does not get as far as the disk.
    if framing == Framing::Vhd && length.is_some_and(|length| length < (FOOTER_SIZE + HEADER_SIZE) as u64) {
        return Err(ApiError::device_io().into());
    }
    let core = incoming.core;
    let vbd = core.with(|state| attach_to_dom0(state, incoming.host, target, Mode::Rw))?;
    let _detach = Detach { core, vbd, target };
    let size = core.with(|state| state.db.get("VDI", target).map(size_of))?;
    match framing {
        Framing::Vhd => receive_vhd(incoming, target, length.unwrap_or(size)).await?,
        Framing::Raw => receive_raw(incoming, target, length.unwrap_or(size)).await?,
        Framing::Chunked => receive_chunked(incoming, target).await?,
    }
    incoming.flow.finish(incoming.connection).await
}

/// Whatever was written stays, and the sizes in the records tell it.
struct Detach<'a> {
    core: &'a Core,
    vbd: String,
    target: &'a str,
}

impl Drop for Detach<'_> {
    fn drop(&mut self) {
        self.core.with(|state| {
            detach_from_dom0(state, &self.vbd);
            let sr = state.db.find("VDI", self.target).map(|row| row.string("SR"));
            if let Some(sr) = sr {
                // The SR cannot be gone while it has a disk.
                let _ = refresh_sr(state, &sr);
            }
        });
    }
}

/// Blocks in the order in which they come, each sector only where its bit is set. Type and parent are not looked at.
async fn receive_vhd(incoming: &mut Incoming<'_>, target: &str, length: u64) -> Result<(), Broken> {
    let footer = incoming.array::<FOOTER_SIZE>().await?;
    let header_offset = vhd::decode_footer(&footer).map_err(|error| broken_stream(&error))?;
    // The header of a fixed disk is nowhere: that offset is the largest there is.
    if header_offset == u64::MAX {
        return Err(broken_stream(&vhd::VhdError::NoHeader));
    }
    incoming.skip_to(header_offset).await?;
    let header = incoming.array::<HEADER_SIZE>().await?;
    let header = vhd::decode_header(&header).map_err(|error| broken_stream(&error))?;
    incoming.skip_to(header.table_offset).await?;
    let mut table = vec![0; header.table_size()];
    incoming.fill(&mut table).await?;

    let mut bitmap = vec![0; header.bitmap_size()];
    let mut data = vec![0; header.block_size as usize];
    for (offset, block) in header.blocks_in_order(&table) {
        incoming.skip_to(offset).await?;
        incoming.fill(&mut bitmap).await?;
        receive_block(incoming, target, &header, block, &bitmap, &mut data).await?;
        incoming.report(length);
    }
    // The last sector of the announced length is the closing footer.
    incoming.skip_to(length.saturating_sub(FOOTER_SIZE as u64)).await?;
    let footer = incoming.array::<FOOTER_SIZE>().await?;
    vhd::decode_footer(&footer).map_err(|error| broken_stream(&error))?;
    Ok(())
}

async fn receive_block(
    incoming: &mut Incoming<'_>,
    target: &str,
    header: &Header,
    block: u64,
    bitmap: &[u8],
    data: &mut [u8],
) -> Result<(), Broken> {
    let start = incoming.position;
    for (first, sectors) in vhd::runs(bitmap, header.block_size / SECTOR_SIZE) {
        incoming.skip_to(start + first * SECTOR_SIZE).await?;
        let run = &mut data[..(sectors * SECTOR_SIZE) as usize];
        incoming.fill(run).await?;
        let offset = block * header.block_size + first * SECTOR_SIZE;
        incoming.core.with(|state| vdi::write(state, target, offset, run))?;
    }
    incoming.skip_to(start + header.block_size).await
}

async fn receive_raw(incoming: &mut Incoming<'_>, target: &str, length: u64) -> Result<(), Broken> {
    let mut data = vec![0; BLOCK_SIZE as usize];
    while incoming.position < length {
        let offset = incoming.position;
        let piece = &mut data[..(length - offset).min(BLOCK_SIZE) as usize];
        incoming.fill(piece).await?;
        incoming.core.with(|state| vdi::write(state, target, offset, piece))?;
        incoming.report(length);
    }
    Ok(())
}

async fn receive_chunked(incoming: &mut Incoming<'_>, target: &str) -> Result<(), Broken> {
    let mut data = vec![0; BLOCK_SIZE as usize];
    loop {
        let mut offset = u64::from_le_bytes(incoming.array().await?);
        let mut left = u64::from(u32::from_le_bytes(incoming.array().await?));
        if offset == 0 && left == 0 {
            return Ok(());
        }
        while left > 0 {
            let piece = &mut data[..left.min(BLOCK_SIZE) as usize];
            incoming.fill(piece).await?;
            incoming.core.with(|state| vdi::write(state, target, offset, piece))?;
            offset = offset.saturating_add(piece.len() as u64);
            left -= piece.len() as u64;
        }
    }
}
