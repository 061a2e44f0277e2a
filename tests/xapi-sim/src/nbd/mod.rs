//! The NBD server of a host, as xapi-nbd speaks: a read-only one that knows little, answers strictly in order, and closes
//! the connection behind every error.

mod wire;

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use self::wire::{Request, command, errno, option, reply};
use crate::calls::nbd::{Security, security};
use crate::calls::vdi::{Mode, attach_to_dom0, node_of, size_of};
use crate::core::Core;
use crate::error::{ApiError, ApiResult};
use crate::fault::{FaultKind, Use};
use crate::state::{HostNumber, State};
use crate::storage::SECTOR_SIZE;
use crate::transfer::{Attached, Broken, Flow};
use crate::wire::http::Connection;

/// Each connection holds a disk of the control domain; further ones are closed at once.
const MAX_CONNECTIONS: usize = 16;

/// A reply is sent in pieces of this size.
const BUFFER: usize = 512 << 10;

/// Serves NBD for one host until told to stop.
pub(crate) async fn serve(
    core: Arc<Core>,
    host: HostNumber,
    listener: TcpListener,
    tls: TlsAcceptor,
    stop: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    crate::server::accept(listener, stop, |socket| {
        let (core, tls, slots) = (core.clone(), tls.clone(), slots.clone());
        async move {
            match slots.try_acquire() {
                Ok(_slot) => Ok(core.while_reachable(handle(&core, host, socket, &tls)).await.unwrap_or(Ok(()))?),
                Err(_) => Ok(()),
            }
        }
    })
    .await;
}

async fn handle(core: &Core, host: HostNumber, socket: TcpStream, tls: &TlsAcceptor) -> std::io::Result<()> {
    let Some(security) = core.with(|state| security(state)) else {
        return Ok(());
    };
    let at = socket.local_addr()?.ip();
    core.with(|state| state.arrivals.push((at, "NBD".to_owned())));
    let mut connection = Connection::accepted(socket)?;
    connection.write(&wire::greeting()).await?;
    connection.flush().await?;
    let _client_flags: [u8; 4] = array(&mut connection).await?;
    let Some((mut connection, name)) = negotiate(connection, security, tls).await? else {
        return Ok(());
    };
    let fault = core.with(|state| {
        state.calls.push("NBD EXPORT_NAME".to_owned());
        state.faults.strike(Use::Nbd)
    });
    if let Ok(export) = core.with(|state| open(state, host, &name, fault.as_ref())) {
        let flow = Flow::new(core, fault);
        let _attached = Attached { core, vbds: vec![export.vbd.clone()] };
        if let Err(Broken::Reset) = transmit(core, &mut connection, flow, &export).await {
            connection.reset();
        }
    }
    connection.shutdown().await;
    Ok(())
}

async fn array<const N: usize>(connection: &mut Connection) -> std::io::Result<[u8; N]> {
    let mut array = [0; N];
    connection.read_exact(&mut array).await?;
    Ok(array)
}

/// Options up to the name of an export. `None` when the connection ends without one.
async fn negotiate(
    mut connection: Connection,
    security: Security,
    tls: &TlsAcceptor,
) -> std::io::Result<Option<(Connection, String)>> {
    let mut in_clear = true;
    loop {
        let (magic, option, length) = wire::decode_option(&array(&mut connection).await?);
        if magic != wire::OPTION_MAGIC || length > wire::MAX_OPTION_DATA {
            return Ok(None);
        }
        let mut data = vec![0; length as usize];
        connection.read_exact(&mut data).await?;
        let forced = security == Security::Tls && in_clear;
        let answer = match option {
            option::EXPORT_NAME if forced => return Ok(None),
            option::EXPORT_NAME => return Ok(String::from_utf8(data).ok().map(|name| (connection, name))),
            option::ABORT => reply::ACK,
            option::STARTTLS if security == Security::Plain => reply::ERR_POLICY,
            option::STARTTLS if !in_clear || !data.is_empty() => reply::ERR_INVALID,
            option::STARTTLS => reply::ACK,
            _ if forced => reply::ERR_TLS_REQD,
            option::LIST => reply::ERR_POLICY,
            _ => reply::ERR_UNSUP,
        };
        connection.write(&wire::option_reply(option, answer)).await?;
        connection.flush().await?;
        match (option, answer) {
            (option::ABORT, _) => {
                connection.shutdown().await;
                return Ok(None);
            }
            (option::STARTTLS, reply::ACK) => {
                connection = connection.start_tls(tls).await?;
                in_clear = false;
            }
            _ => {}
        }
    }
}

struct Export {
    vdi: String,
    vbd: String,
    size: u64,
}

/// Whatever is wrong with a name, the connection is closed without a word.
fn open(state: &mut State, host: HostNumber, name: &str, fault: Option<&FaultKind>) -> ApiResult<Export> {
    let counts_bytes = |fault: &FaultKind| fault.strikes_at().is_some() || matches!(fault, FaultKind::FlipByte(_));
    if fault.is_some_and(|fault| !counts_bytes(fault)) {
        return Err(ApiError::internal("injected"));
    }
    let (uuid, session) = wire::parse_export_name(name).ok_or_else(|| ApiError::internal("no export name"))?;
    state.use_session(&session)?;
    let vdi = state.db.by_uuid("VDI", &uuid)?;
    let vbd = attach_to_dom0(state, host, &vdi, Mode::Ro)?;
    let size = size_of(state.db.get("VDI", &vdi)?);
    Ok(Export { vdi, vbd, size })
}

/// Requests one after the other, up to a disconnect or the first error.
async fn transmit(core: &Core, connection: &mut Connection, mut flow: Flow<'_>, export: &Export) -> Result<(), Broken> {
    connection.write(&wire::export_information(export.size)).await?;
    connection.flush().await?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let Some(request) = Request::decode(&array(connection).await?) else {
            return Ok(());
        };
        let error = match request.command {
            command::DISC => return Ok(()),
            command::READ if is_aligned(&request) => errno::NONE,
            command::WRITE => errno::EPERM,
            _ => errno::EINVAL,
        };
        connection.write(&request.reply(error)).await?;
        connection.flush().await?;
        let end = request.offset.checked_add(request.length.into());
        // A read beyond the end has been promised its data by now; it gets none.
        if error != errno::NONE || end.is_none_or(|end| end > export.size) {
            return Ok(());
        }
        send_data(core, connection, &mut flow, export, &request, &mut buffer).await?;
    }
}

fn is_aligned(request: &Request) -> bool {
    request.offset.is_multiple_of(SECTOR_SIZE) && u64::from(request.length).is_multiple_of(SECTOR_SIZE)
}

async fn send_data(
    core: &Core,
    connection: &mut Connection,
    flow: &mut Flow<'_>,
    export: &Export,
    request: &Request,
    buffer: &mut [u8],
) -> Result<(), Broken> {
    let (mut offset, mut left) = (request.offset, request.length as usize);
    while left > 0 {
        let piece = &mut buffer[..left.min(BUFFER)];
        core.with(|state| {
            state.nodes.read(node_of(state, &export.vdi)?, offset, piece);
            Ok::<_, ApiError>(())
        })?;
        flow.send(connection, piece).await?;
        offset += piece.len() as u64;
        left -= piece.len();
    }
    Ok(connection.flush().await?)
}
