//! Opening a disk stream: connect, send the head, read the answer's head, follow redirects.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::Connection;
use super::head::{self, Head, Request};
use crate::endpoint::Address;
use crate::error::Error;
use crate::session::{Login, Session};
use crate::text::excerpt;
use crate::xmlrpc::Malformed;

/// How many redirects are followed. A host redirects once, to one that sees the storage.
const MAX_REDIRECTS: usize = 3;

/// How much of an error page is read, and for how long.
pub(super) const MAX_PAGE: usize = 8 * 1024;
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// What happens when the answer's head takes longer than the bound.
#[derive(Clone, Copy)]
pub(super) enum Late {
    /// The stream failed.
    Fail,
    /// The answer is read when it comes: the host may want to see the body first.
    GoOn,
}

/// A request that was accepted, or not refused yet.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) address: Address,
    /// The session that the request carries.
    pub(super) login: Arc<Login>,
    /// What has come of the answer: its head, if that is whole, and the bytes from there on; else the bytes so far.
    pub(super) head: Option<Head>,
    pub(super) received: Vec<u8>,
}

/// Sends `request`, completed by the session, to the pool's master, or to the host it redirects to.
pub(super) async fn open(
    session: &Session,
    mut request: Request,
    bound: Duration,
    late: Late,
) -> Result<Opened, Error> {
    let name = request.name();
    let login = session.current(&name)?;
    request.query.push(("session_id", login.reference.expose().to_owned()));
    let mut address = login.master.clone();
    for _ in 0..=MAX_REDIRECTS {
        let mut opened = send(session, &request, &login, address, bound, late).await?;
        let Some(head) = opened.head.take() else { return Ok(opened) };
        match head.status {
            200 => {
                opened.head = Some(head);
                return Ok(opened);
            }
            301 | 302 | 303 | 307 | 308 => {
                address = head::redirect_target(&opened.address, head.location.as_deref())
                    .map_err(|(location, reason)| Error::Redirect { during: name.clone(), location, reason })?;
                tracing::debug!(request = %name, host = %address, "redirected");
            }
            status => {
                let page = read_page(&mut opened).await;
                return Err(Error::Http {
                    address: opened.address.to_string(),
                    during: name,
                    status,
                    excerpt: excerpt(&page, &[login.reference.expose()]),
                });
            }
        }
    }
    let reason = format!("more than {MAX_REDIRECTS} redirects");
    Err(Error::Redirect { during: name, location: address.rpc_url(), reason })
}

async fn send(
    session: &Session,
    request: &Request,
    login: &Arc<Login>,
    address: Address,
    bound: Duration,
    late: Late,
) -> Result<Opened, Error> {
    let name = request.name();
    let head = request.encode(&address).ok_or_else(|| Error::Unsendable {
        during: name.clone(),
        reason: "its head is larger than the 1024 bytes that XAPI takes".to_owned(),
    })?;
    let mut connection = Connection::dial(&address, session.tls(), &name).await?;
    let failed = |e| Error::transport(address.to_string(), &*name, e);
    connection.write_all(&head).await.map_err(failed)?;
    connection.flush().await.map_err(failed)?;

    let mut received = Vec::new();
    let deadline = Instant::now() + bound;
    let head = loop {
        if let Some(head) = head::parse(&received).map_err(|reason| malformed(&name, reason))? {
            received.drain(..head.length);
            break Some(head);
        }
        match timeout_at(deadline, connection.read_buf(&mut received)).await {
            Ok(Ok(0)) => return Err(failed(io::Error::other("the host closed the connection without an answer"))),
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Err(failed(e)),
            Err(_) if matches!(late, Late::GoOn) => break None,
            Err(_) => {
                return Err(Error::Timeout { address: address.to_string(), during: name, seconds: bound.as_secs() });
            }
        }
    };
    Ok(Opened { connection, address, login: Arc::clone(login), head, received })
}

/// An answer that is no HTTP. Its text is not shown: it is whatever some other server sent.
pub(super) fn malformed(during: &str, reason: String) -> Error {
    Error::malformed(during, Malformed { reason, position: 0, snippet: String::new() })
}

async fn read_page(opened: &mut Opened) -> Vec<u8> {
    let mut page = std::mem::take(&mut opened.received);
    let reading = async {
        while page.len() < MAX_PAGE {
            match opened.connection.read_buf(&mut page).await {
                Ok(n) if n > 0 => {}
                _ => break,
            }
        }
    };
    // What came in time is enough for an excerpt.
    let _ = timeout(PAGE_TIMEOUT, reading).await;
    page
}
