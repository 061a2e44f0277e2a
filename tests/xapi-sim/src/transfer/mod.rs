//! Transfers: what exports and imports of disks and of VMs share.

mod export;
mod import;
pub(crate) mod xva;

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;

pub(crate) use export::export;
pub(crate) use import::import;

use crate::calls::vdi::detach_from_dom0;
use crate::core::Core;
use crate::error::{ApiError, ApiResult};
use crate::fault::{FaultKind, Use};
use crate::state::{HostNumber, State};
use crate::wire::http::{Connection, Request, Response, error_page};

/// A transfer that was accepted: authenticated, with its task.
struct Accepted {
    task: String,
    fault: Option<FaultKind>,
}

/// Why a transfer ends early.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The connection is of no use any more.
    Connection,
    /// It is to end by RST.
    Reset,
    /// The work failed; the connection could still carry an answer.
    Api(ApiError),
}

impl From<ApiError> for Broken {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Self::Connection
    }
}

impl Broken {
    /// What the task says: an interrupted transfer looks like a broken device.
    fn api_error(&self) -> ApiError {
        match self {
            Self::Connection | Self::Reset => ApiError::device_io(),
            Self::Api(error) => error.clone(),
        }
    }
}

/// Everything that can be said before the first byte of an answer: faults, credentials, the host that does not see the SR,
/// the task. `None` when the request has been answered.
async fn accept(
    core: &Arc<Core>,
    host: HostNumber,
    connection: &mut Connection,
    request: &Request,
    used: Use<'_>,
) -> std::io::Result<Option<Accepted>> {
    let redirect = core.with(|state| elsewhere(state, host, request)).or_else(|| core.redirect_transfers_to.clone());
    let fault = core.with(|state| {
        state.calls.push(format!("{} {}", request.method, request.path.trim_end_matches('/')));
        // Where a transfer is not to be had no fault waits for it.
        let fault = if redirect.is_some() { None } else { state.faults.strike(used) };
        if fault == Some(FaultKind::SessionLost)
            && let Some(session) = request.param("session_id")
        {
            state.close_session(session);
        }
        fault
    });
    match fault {
        Some(FaultKind::Http500) => {
            refuse(connection, "500 Internal Server Error", "Internal error").await?;
            return Ok(None);
        }
        Some(FaultKind::CloseWithoutAnswer) => return Ok(None),
        _ => {}
    }
    if let Err(error) = core.with(|state| authenticate(state, request)) {
        if let Some(task) = request.param("task_id") {
            core.with(|state| state.finish_task(task, Err(&error)));
        }
        let body = error_page("401 Unauthorized", "Please log in");
        let headers = vec![("www-authenticate", "Basic realm=\"XAPI\"".to_owned())];
        let status = "401 Unauthorized";
        connection
            .respond(Response { status, content_type: "text/html", headers, body: &body, keep_alive: false })
            .await?;
        return Ok(None);
    }
    if let Some(base) = redirect {
        // The task is not touched: it is the other host's business.
        let location = format!("{base}{}?{}", request.path, request.query);
        let headers = vec![("location", location)];
        connection
            .respond(Response { status: "302 Found", content_type: "text/html", headers, body: b"", keep_alive: false })
            .await?;
        return Ok(None);
    }
    match core.with(|state| task_of(state, request, used)) {
        Ok(task) => Ok(Some(Accepted { task, fault })),
        Err(error) => {
            refuse(connection, "500 Internal Server Error", &error.to_string()).await?;
            Ok(None)
        }
    }
}

/// Scheme and address of a host that sees the SR of this transfer, where this one does not.
fn elsewhere(state: &State, host: HostNumber, request: &Request) -> Option<String> {
    let sr = match request.param("vdi") {
        Some(vdi) => state.db.find("VDI", &state.db.by_ref_or_uuid("VDI", vdi).ok()?)?.string("SR"),
        None => state.db.by_ref_or_uuid("SR", request.param("sr_id").or_else(|| request.param("sr_uuid"))?).ok()?,
    };
    if state.sees(&state.host(host).reference, &sr) {
        return None;
    }
    state.hosts.iter().find(|host| state.sees(&host.reference, &sr)).map(|host| host.url.clone())
}

fn authenticate(state: &mut State, request: &Request) -> ApiResult<()> {
    let failed = || ApiError::bare("SESSION_AUTHENTICATION_FAILED");
    if let Some(session) = request.param("session_id") {
        return state.use_session(session).map_err(|_| failed());
    }
    let basic = request.header("authorization").and_then(|value| value.strip_prefix("Basic "));
    let decoded = basic.and_then(|basic| base64::engine::general_purpose::STANDARD.decode(basic.trim()).ok());
    match decoded {
        Some(given) if given == format!("{}:{}", state.username, state.password).into_bytes() => Ok(()),
        _ => Err(failed()),
    }
}

/// The caller's task, or a new one.
fn task_of(state: &mut State, request: &Request, used: Use<'_>) -> ApiResult<String> {
    if let Some(task) = request.param("task_id") {
        return state.db.by_ref_or_uuid("task", task);
    }
    let label = if matches!(used, Use::Export) { "VDI Export" } else { "VDI Import" };
    state.create_task(label, "")
}

async fn refuse(connection: &mut Connection, status: &'static str, detail: &str) -> std::io::Result<()> {
    let body = error_page(status, detail);
    let headers = Vec::new();
    connection.respond(Response { status, content_type: "text/html", headers, body: &body, keep_alive: false }).await
}

/// Refuses with the task failed.
async fn refuse_with_task(
    core: &Core,
    connection: &mut Connection,
    task: &str,
    status: &'static str,
    error: &ApiError,
) -> std::io::Result<()> {
    core.with(|state| state.finish_task(task, Err(error)));
    refuse(connection, status, &error.to_string()).await
}

/// Disks that hang on a control domain, for as long as this lives.
pub(crate) struct Attached<'a> {
    pub(crate) core: &'a Core,
    pub(crate) vbds: Vec<String>,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.core.with(|state| self.vbds.iter().for_each(|vbd| detach_from_dom0(state, vbd)));
    }
}

/// The bytes of one body, or of the payload of one NBD connection: counted, and stopped where a fault says so.
pub(crate) struct Flow<'a> {
    core: &'a Core,
    id: u64,
    moved: u64,
    fault: Option<FaultKind>,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(core: &'a Core, fault: Option<FaultKind>) -> Self {
        Self { core, id: core.transfers.begin(), moved: 0, fault }
    }

    /// How many of the next `wanted` bytes may move before the fault strikes.
    fn until_fault(&self, wanted: usize) -> usize {
        let Some(at) = self.fault.as_ref().and_then(FaultKind::strikes_at) else {
            return wanted;
        };
        usize::try_from(at.saturating_sub(self.moved)).unwrap_or(usize::MAX).min(wanted)
    }

    /// Damages the next bytes to move, if a fault says so and its place is among them.
    fn damage<'b>(&self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        let mut bytes = Cow::Borrowed(bytes);
        if let Some(FaultKind::FlipByte(at)) = self.fault
            && let Some(place) = at.checked_sub(self.moved).and_then(|place| usize::try_from(place).ok())
            && place < bytes.len()
        {
            bytes.to_mut()[place] ^= 0xff;
        }
        bytes
    }

    fn advance(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        self.core.transfers.advance(self.id, self.moved);
    }

    /// What the fault does, once its place has been reached.
    async fn strike(&mut self, connection: &mut Connection) -> Result<(), Broken> {
        match self.fault.take() {
            Some(FaultKind::StallAfter(_)) => tokio::select! {
                () = self.core.stall() => Ok(()),
                () = connection.closed() => Err(Broken::Connection),
            },
            Some(FaultKind::ResetAfter(_)) => Err(Broken::Reset),
            Some(FaultKind::FailAfter(_)) => Err(ApiError::device_io().into()),
            _ => Err(Broken::Connection),
        }
    }

    /// What is left for the faults behind the last byte.
    async fn finish(&mut self, connection: &mut Connection) -> Result<(), Broken> {
        match self.until_fault(1) {
            0 => self.strike(connection).await,
            _ => Ok(()),
        }
    }

    /// Goes on with zeroes, if the fault says so.
    async fn overrun(&mut self, connection: &mut Connection) -> Result<(), Broken> {
        let zeroes = [0; 64 << 10];
        while self.fault == Some(FaultKind::Endless) {
            self.send(connection, &zeroes).await?;
        }
        Ok(())
    }

    pub(crate) async fn send(&mut self, connection: &mut Connection, mut bytes: &[u8]) -> Result<(), Broken> {
        loop {
            let (now, later) = bytes.split_at(self.until_fault(bytes.len()));
            connection.write(&self.damage(now)).await?;
            self.advance(now.len());
            if later.is_empty() {
                return Ok(());
            }
            connection.flush().await?;
            self.strike(connection).await?;
            bytes = later;
        }
    }

    /// Counts as the bytes come, so that whoever waits for a number of them is told at once.
    async fn receive(&mut self, connection: &mut Connection, mut target: &mut [u8]) -> Result<(), Broken> {
        while !target.is_empty() {
            let now = self.until_fault(target.len());
            if now == 0 {
                self.strike(connection).await?;
                continue;
            }
            let read = connection.read_some(&mut target[..now]).await?;
            if let Cow::Owned(damaged) = self.damage(&target[..read]) {
                target[..read].copy_from_slice(&damaged);
            }
            self.advance(read);
            target = &mut target[read..];
        }
        Ok(())
    }
}

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        self.core.transfers.end(self.id);
    }
}

/// Tells how far a transfer is, in whole per cent, as the tools behind XAPI do.
fn report_progress(core: &Core, task: &str, last: &mut u64, done: u64, total: u64) {
    let percent = (done * 100).checked_div(total).unwrap_or(100).min(100);
    if percent != *last {
        *last = percent;
        // The caller may have destroyed the task; the transfer goes on.
        let _ = core.with(|state| state.db.set("task", task, "progress", percent as f64 / 100.0));
    }
}

/// An error after the 200: it goes into the same socket, behind whatever was sent, and into the task.
async fn fail_late(core: &Core, connection: &mut Connection, task: &str, broken: &Broken) {
    let error = broken.api_error();
    core.with(|state| state.finish_task(task, Err(&error)));
    match broken {
        Broken::Connection => {}
        Broken::Reset => connection.reset(),
        // The peer may be gone; the task has the error anyway.
        Broken::Api(_) => {
            let _ = refuse(connection, "500 Internal Server Error", &error.to_string()).await;
        }
    }
}
