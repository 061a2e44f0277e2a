//! Opening a disk stream: connect, send the head, read the answer's head, follow redirects.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::head::{self, Direction, Head, Request};
use super::{Answered, Peer};
use crate::connection::Connection;
use crate::endpoint::Address;
use crate::error::Error;
use crate::route::Destination;
use crate::session::{Login, Session};
use crate::tls::Tls;

/// How many redirects are followed. A host redirects once, to one that sees the storage.
const MAX_REDIRECTS: usize = 3;

/// How much of an error page is read, and for how long.
pub(super) const MAX_PAGE: usize = 8 * 1024;
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the head of an export's answer may take. It comes before the disk is attached.
const EXPORT_HEAD: Duration = Duration::from_secs(60);

/// How long the body of an import waits for the answer's head, because a redirect has to be seen before the body begins.
/// XAPI answers at once; who does not may want to see the body first.
const IMPORT_HEAD: Duration = Duration::from_secs(10);

/// A request that was accepted, or not refused yet.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) peer: Peer,
    pub(super) answered: Answered,
    /// The host, as it is known.
    at: Address,
}

/// Sends `request`, completed by the session, to the pool's master, or to the host it redirects to: on the network that
/// streams take.
pub(super) async fn open(session: &Session, mut request: Request) -> Result<Opened, Error> {
    let name = request.direction.name();
    let login = session.current(name)?;
    request.query.push(("session_id", login.reference.expose().to_owned()));
    let mut address = login.master.clone();
    for redirects in 0..=MAX_REDIRECTS {
        let to = session.destination(address.clone(), redirects == 0).await?;
        let mut opened = send(session, &request, &login, to).await?;
        let Some(Head { status, location, .. }) = &opened.answered.head else { return Ok(opened) };
        match *status {
            200 => return Ok(opened),
            301 | 302 | 303 | 307 | 308 => {
                address = head::redirect_target(&opened.at, location.as_deref())
                    .map_err(|(location, reason)| Error::Redirect { during: name.to_owned(), location, reason })?;
                tracing::debug!(request = name, host = %address, "redirected");
            }
            status => {
                let page = read_page(&mut opened).await;
                return Err(opened.peer.refusal(status, &page));
            }
        }
    }
    let reason = format!("more than {MAX_REDIRECTS} redirects");
    Err(Error::Redirect { during: name.to_owned(), location: address.rpc_url(), reason })
}

async fn send(session: &Session, request: &Request, login: &Arc<Login>, to: Destination) -> Result<Opened, Error> {
    let direction = request.direction;
    let head = request.encode(&to.address).ok_or_else(|| Error::Unsendable {
        during: direction.name().to_owned(),
        reason: "its head is larger than the 1024 bytes that XAPI takes".to_owned(),
    })?;
    let (patience, standstill) = match direction {
        Direction::Export => (EXPORT_HEAD, None),
        Direction::Import => (IMPORT_HEAD, Some(session.standstill())),
    };
    let peer = Peer { direction, address: to.address.to_string(), login: Arc::clone(login) };
    let dial = async |tls: &Tls| Connection::dial(&to, tls, standstill, direction.name()).await;
    let mut connection = match dial(session.tls()).await {
        // Each host has a certificate of its own, and the operator may have told the master's alone.
        Err(e @ Error::CertificateNotTrusted { .. }) if to.host != login.master => {
            let named = session.tls_named_for(&to.host).await?;
            dial(&named.ok_or(e)?).await?
        }
        dialed => dialed?,
    };
    connection.write_all(&head).await.map_err(|e| peer.transport(e))?;
    connection.flush().await.map_err(|e| peer.transport(e))?;

    let mut bytes = Vec::new();
    let deadline = Instant::now() + patience;
    let head = loop {
        if let Some(head) = head::parse(&bytes).map_err(|reason| peer.malformed(reason))? {
            bytes.drain(..head.length);
            break Some(head);
        }
        match timeout_at(deadline, connection.read_buf(&mut bytes)).await {
            Ok(Ok(0)) => {
                let ended = io::Error::other("the host closed the connection without an answer");
                return Err(peer.transport(ended));
            }
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return Err(peer.transport(e)),
            Err(_) => match direction {
                Direction::Export => return Err(peer.timeout(direction.name(), patience)),
                Direction::Import => break None,
            },
        }
    };
    Ok(Opened { connection, peer, answered: Answered { head, bytes }, at: to.host })
}

async fn read_page(opened: &mut Opened) -> Vec<u8> {
    let mut page = std::mem::take(&mut opened.answered.bytes);
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
