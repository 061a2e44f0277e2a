//! Reading a disk: `GET /export_raw_vdi`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::connection::Connection;
use super::head::{self, Request};
use super::open::{Late, MAX_PAGE, Opened, malformed, open};
use super::{after_failure, as_io, settle};
use crate::error::Error;
use crate::records::{Task, Vdi};
use crate::reference::Ref;
use crate::session::{Login, Session};
use crate::tasks::OwnedTask;
use crate::text::excerpt;

const NAME: &str = "GET /export_raw_vdi";

/// How long the answer's head may take. It comes before the disk is attached.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How an error begins that XAPI writes into a body whose 200 went out before.
const ERROR_IN_BODY: &[u8] = b"HTTP/";

/// How long an aborted export waits for its task.
const TASK_AFTER_ABORT: Duration = Duration::from_secs(60);

/// The VHD stream of a disk, or of what changed in it since a base. Reads end where the host closes the connection.
///
/// The end of the data proves nothing; [`Export::finish`] and the structure of the stream do. Dropped, it closes
/// its connection, upon which the host gives up, and removes its task in the background.
pub struct Export {
    connection: Connection,
    address: String,
    login: Arc<Login>,
    task: OwnedTask,
    body: Body,
    received: u64,
    /// Why reading failed. The reader gets its text, [`Export::finish`] the error itself.
    failure: Option<Error>,
}

enum Body {
    /// The first bytes, until it is clear whether they are data or an error.
    Beginning(Vec<u8>),
    /// Data, beginning with what was read ahead.
    Data {
        ahead: Vec<u8>,
        taken: usize,
    },
    /// An error in place of data, gathered for its excerpt.
    ErrorPage(Vec<u8>),
    Ended,
    Failed,
}

impl Session {
    /// Opens the VHD stream of `vdi`: whole, or with `base` only the blocks that differ from it. `label` names the
    /// task that the pool shows.
    pub async fn export_vdi(&self, vdi: &Ref<Vdi>, base: Option<&Ref<Vdi>>, label: &str) -> Result<Export, Error> {
        let task = OwnedTask::create(self, label).await?;
        let mut query = vec![("format", "vhd".to_owned()), ("vdi", vdi.to_string())];
        query.extend(base.map(|base| ("base", base.to_string())));
        query.push(("task_id", task.reference().to_string()));
        let request = Request { verb: "GET", path: "/export_raw_vdi", query, length: None };
        match open(self, request, HEAD_TIMEOUT, Late::Fail).await {
            Ok(opened) => Ok(Export::new(opened, task)),
            Err(e @ Error::Http { .. }) => Err(after_failure(e, task).await),
            Err(e) => {
                task.destroy().await;
                Err(e)
            }
        }
    }
}

impl Export {
    fn new(opened: Opened, task: OwnedTask) -> Self {
        Self {
            connection: opened.connection,
            address: opened.address.to_string(),
            login: opened.login,
            task,
            body: Body::Beginning(opened.received),
            received: 0,
            failure: None,
        }
    }

    /// Bytes read so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The task that the host ends with the stream.
    pub fn task(&self) -> &Ref<Task> {
        self.task.reference()
    }

    /// Confirms a stream that was read to its end: waits for the host's task to succeed, and destroys it.
    ///
    /// After a failed read it tells why, as the host sees it.
    pub async fn finish(self) -> Result<(), Error> {
        let Self { mut connection, address, task, body, received, failure, .. } = self;
        if let Some(failure) = failure {
            drop(connection);
            return Err(after_failure(failure, task).await);
        }
        let ahead = match &body {
            Body::Data { ahead, taken } => *taken < ahead.len(),
            Body::Beginning(ahead) => !ahead.is_empty(),
            Body::ErrorPage(_) | Body::Ended | Body::Failed => false,
        };
        let at = address.clone();
        // Owns the connection, which is closed as soon as its end is known to be none.
        let end_of_stream = async move {
            let mut byte = [0];
            let more = match body {
                _ if ahead => true,
                Body::Ended => false,
                _ => connection.read(&mut byte).await.map_err(|e| Error::transport(at, NAME, e))? > 0,
            };
            if more { Err(Error::NotAtEnd { bytes: received, length: None }) } else { Ok(()) }
        };
        let outcome = settle(end_of_stream, &task, &address).await;
        task.destroy().await;
        outcome
    }

    /// Closes the connection, waits (bounded) until the host has let go of the disk, and destroys the task.
    pub async fn abort(self) {
        drop(self.connection);
        // However it ends, it is over; and a task that does not end in time is removed by the host at its end.
        let _ = self.task.wait(TASK_AFTER_ABORT).await;
        self.task.destroy().await;
    }

    fn fail(&mut self, kind: io::ErrorKind, error: Error) -> io::Error {
        let io = as_io(kind, &error);
        self.failure = Some(error);
        self.body = Body::Failed;
        io
    }

    /// The failure that an error in the body stands for.
    fn error_in_body(&self, page: &[u8]) -> Error {
        match head::parse(page) {
            Ok(Some(head)) => Error::Http {
                address: self.address.clone(),
                during: NAME.to_owned(),
                status: head.status,
                excerpt: excerpt(&page[head.length..], &[self.login.reference.expose()]),
            },
            _ => malformed(NAME, "an error in place of the disk".to_owned()),
        }
    }

    /// Reads some bytes more into `buffer`; `false` at the end.
    fn poll_more(connection: &mut Connection, cx: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<io::Result<bool>> {
        let mut space = [0; 4096];
        let mut space = ReadBuf::new(&mut space);
        ready!(Pin::new(connection).poll_read(cx, &mut space))?;
        buffer.extend_from_slice(space.filled());
        Poll::Ready(Ok(!space.filled().is_empty()))
    }
}

impl AsyncRead for Export {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let read = match &mut this.body {
                Body::Ended => return Poll::Ready(Ok(())),
                Body::Failed => return Poll::Ready(Err(io::Error::other("the export has failed before"))),
                Body::Beginning(bytes) => {
                    let known = bytes.len().min(ERROR_IN_BODY.len());
                    if bytes[..known] != ERROR_IN_BODY[..known] {
                        this.body = Body::Data { ahead: std::mem::take(bytes), taken: 0 };
                        continue;
                    }
                    if known == ERROR_IN_BODY.len() {
                        this.body = Body::ErrorPage(std::mem::take(bytes));
                        continue;
                    }
                    match ready!(Self::poll_more(&mut this.connection, cx, bytes)) {
                        Ok(false) => {
                            this.body = Body::Data { ahead: std::mem::take(bytes), taken: 0 };
                            continue;
                        }
                        other => other.map(drop),
                    }
                }
                Body::ErrorPage(page) => {
                    let more = ready!(Self::poll_more(&mut this.connection, cx, page));
                    if matches!(more, Ok(true)) && page.len() < MAX_PAGE {
                        continue;
                    }
                    let page = std::mem::take(page);
                    let error = this.error_in_body(&page);
                    return Poll::Ready(Err(this.fail(io::ErrorKind::Other, error)));
                }
                Body::Data { ahead, taken } if *taken < ahead.len() => {
                    let n = buf.remaining().min(ahead.len() - *taken);
                    buf.put_slice(&ahead[*taken..*taken + n]);
                    *taken += n;
                    this.received += n as u64;
                    return Poll::Ready(Ok(()));
                }
                Body::Data { .. } => {
                    let before = buf.filled().len();
                    let wanted = buf.remaining() > 0;
                    let read = ready!(Pin::new(&mut this.connection).poll_read(cx, buf));
                    if read.is_ok() {
                        let n = buf.filled().len() - before;
                        this.received += n as u64;
                        if n == 0 && wanted {
                            this.body = Body::Ended;
                        }
                        return Poll::Ready(Ok(()));
                    }
                    read
                }
            };
            if let Err(e) = read {
                let kind = e.kind();
                let error = Error::transport(&*this.address, NAME, e);
                return Poll::Ready(Err(this.fail(kind, error)));
            }
        }
    }
}
