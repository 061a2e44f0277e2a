//! Reading a disk: `GET /export_raw_vdi`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use vmferry_disk::transfer::{SocketCall, SocketReader, poll_readable};

use super::head::{self, Direction};
use super::open::MAX_PAGE;
use super::{Answered, Stream, as_io, settle};
use crate::connection::Connection;
use crate::error::Error;
use crate::records::{Task, Vdi};
use crate::reference::Ref;
use crate::session::Session;

/// How an error begins that XAPI writes into a body whose 200 went out before.
const ERROR_IN_BODY: &[u8] = b"HTTP/";

/// The stream of a disk, or of what changed in it since a base. Reads end where the host closes the connection.
///
/// The end of the data proves nothing; [`Export::finish`] and the structure of the stream do. Dropped, it closes
/// its connection, upon which the host gives up, and removes its task in the background.
pub struct Export {
    stream: Stream,
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
        self.export("vhd", vdi, base, label).await
    }

    /// The same as a qcow2 stream, which a disk beyond VHD's 2040 GiB has alone. Older hosts do not know the format. Against a base the
    /// host compares what both disks hold before it sends the first byte.
    pub async fn export_qcow2(&self, vdi: &Ref<Vdi>, base: Option<&Ref<Vdi>>, label: &str) -> Result<Export, Error> {
        self.export("qcow2", vdi, base, label).await
    }

    async fn export(
        &self,
        format: &str,
        vdi: &Ref<Vdi>,
        base: Option<&Ref<Vdi>>,
        label: &str,
    ) -> Result<Export, Error> {
        let mut query = vec![("format", format.to_owned()), ("vdi", vdi.to_string())];
        query.extend(base.map(|base| ("base", base.to_string())));
        let (stream, Answered { bytes, .. }) = Stream::open(self, Direction::Export, query, None, label).await?;
        Ok(Export { stream, body: Body::Beginning(bytes), received: 0, failure: None })
    }
}

impl Export {
    /// Bytes read so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Host and port that serve the stream: the master's, or those of the host that it redirected to.
    pub fn address(&self) -> &str {
        &self.stream.peer.address
    }

    /// The task that the host ends with the stream.
    pub fn task(&self) -> &Ref<Task> {
        self.stream.task.reference()
    }

    /// Confirms a stream that was read to its end: waits for the host's task to succeed, and destroys it.
    ///
    /// After a failed read it tells why, as the host sees it.
    pub async fn finish(self) -> Result<(), Error> {
        let Self { stream, body, received, failure } = self;
        if let Some(failure) = failure {
            return Err(stream.failed(failure).await);
        }
        let ahead = match &body {
            Body::Data { ahead, taken } => *taken < ahead.len(),
            Body::Beginning(ahead) => !ahead.is_empty(),
            Body::ErrorPage(_) | Body::Ended | Body::Failed => false,
        };
        let Stream { mut connection, peer, task } = stream;
        let told = &peer;
        // Owns the connection, which is closed as soon as its end is known to be none.
        let end_of_stream = async move {
            let mut byte = [0];
            let more = match body {
                _ if ahead => true,
                Body::Ended => false,
                _ => connection.read(&mut byte).await.map_err(|e| told.transport(e))? > 0,
            };
            if more { Err(Error::NotAtEnd { bytes: received, length: None }) } else { Ok(()) }
        };
        settle(end_of_stream, task, &peer).await
    }

    /// Closes the connection, waits (bounded) until the host has let go of the disk, and destroys the task.
    pub async fn abort(self) {
        self.stream.abort().await;
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
            Ok(Some(head)) => self.stream.peer.refusal(head.status, &page[head.length..]),
            _ => self.stream.peer.malformed("an error in place of the disk".to_owned()),
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
                    match ready!(Self::poll_more(&mut this.stream.connection, cx, bytes)) {
                        Ok(false) => {
                            this.body = Body::Data { ahead: std::mem::take(bytes), taken: 0 };
                            continue;
                        }
                        other => other.map(drop),
                    }
                }
                Body::ErrorPage(page) => {
                    let more = ready!(Self::poll_more(&mut this.stream.connection, cx, page));
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
                    let read = ready!(Pin::new(&mut this.stream.connection).poll_read(cx, buf));
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
                let error = this.stream.peer.transport(e);
                return Poll::Ready(Err(this.fail(kind, error)));
            }
        }
    }
}

impl SocketReader for Export {
    fn lends_socket(&self) -> bool {
        self.stream.connection.tcp().is_some()
    }

    fn read_ahead(&self) -> usize {
        match &self.body {
            Body::Beginning(bytes) | Body::ErrorPage(bytes) => bytes.len(),
            Body::Data { ahead, taken } => ahead.len() - taken,
            Body::Ended | Body::Failed => 0,
        }
    }

    fn poll_read_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let tcp = match (&this.body, this.stream.connection.tcp()) {
            (Body::Ended, _) => return Poll::Ready(Ok(0)),
            (Body::Data { ahead, taken }, Some(tcp)) if *taken == ahead.len() => tcp,
            // Whether data begins here or an error, only a read can tell.
            _ => return Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        };
        Poll::Ready(match ready!(poll_readable(tcp, cx, call)) {
            Ok(moved) => {
                this.received += moved as u64;
                if moved == 0 {
                    this.body = Body::Ended;
                }
                Ok(moved)
            }
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Err(e),
            Err(e) => {
                let kind = e.kind();
                let error = this.stream.peer.transport(e);
                Err(this.fail(kind, error))
            }
        })
    }
}
