//! Writing a disk: `PUT /import_raw_vdi`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep};
use vmferry_disk::transfer::{SocketCall, SocketWriter, poll_writable};

use super::head::{self, Direction, Head};
use super::open::MAX_PAGE;
use super::{Answered, Peer, Stream, as_io, settle};
use crate::connection::Connection;
use crate::error::Error;
use crate::records::{Task, Vdi};
use crate::reference::Ref;
use crate::session::Session;

/// How long a broken connection is read for what the host had to say. Linux keeps received bytes after a reset, so
/// they are there at once or not at all.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A stream into a disk: VHD, of which exactly the promised number of bytes has to be written, or `chunked`, which
/// tells its end itself.
///
/// The answer is watched while bytes are written, so an early failure ends the writing. A write that succeeds proves
/// nothing; [`Import::finish`] does. Dropped, it closes its connection, upon which the host gives up, and removes
/// its task in the background; blocks that arrived stay written.
pub struct Import {
    stream: Stream,
    /// Bytes promised; `None` if the stream tells its own end.
    length: Option<u64>,
    written: u64,
    answer: Answer,
    state: State,
}

enum State {
    Writing,
    /// The connection is done for; the answer is read to its end for the reason.
    LastWords {
        cause: Option<io::Error>,
        until: Pin<Box<Sleep>>,
    },
    /// Why writing failed. The writer got its text, [`Import::finish`] gives the error itself.
    Failed(Error),
}

/// What the host has answered so far. No sockets.
#[derive(Default)]
struct Answer {
    head: Option<Head>,
    /// Before the head is whole its bytes, then the body's, up to a bound.
    bytes: Vec<u8>,
    /// How many of `bytes` have been judged, so that a write costs nothing while there is no news.
    judged: usize,
    ended: bool,
}

/// What the answer means.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// Nothing yet.
    None,
    /// 200 and nothing against it.
    Accepted,
    /// An error, be it in the status or in the body after a 200.
    Refused { status: u16, page: Vec<u8> },
    /// No HTTP.
    Garbage(String),
}

impl Answer {
    fn push(&mut self, bytes: &[u8]) {
        let room = MAX_PAGE.max(head::MAX_RESPONSE_HEAD).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Whether something has come since the last time this was asked that speaks against going on.
    fn objects(&mut self) -> bool {
        if self.bytes.len() == self.judged {
            return false;
        }
        let meaning = self.meaning();
        self.judged = self.bytes.len();
        !matches!(meaning, Meaning::None | Meaning::Accepted)
    }

    fn meaning(&mut self) -> Meaning {
        if self.head.is_none() {
            match head::parse(&self.bytes) {
                Ok(None) => return Meaning::None,
                Ok(Some(head)) => {
                    self.bytes.drain(..head.length);
                    self.head = Some(head);
                }
                Err(reason) => return Meaning::Garbage(reason),
            }
        }
        match self.head.as_ref().map(|head| head.status) {
            None => Meaning::None,
            Some(200) => match head::parse(&self.bytes) {
                Ok(Some(late)) => Meaning::Refused { status: late.status, page: self.bytes[late.length..].to_vec() },
                _ => Meaning::Accepted,
            },
            Some(status) => Meaning::Refused { status, page: self.bytes.clone() },
        }
    }
}

impl Session {
    /// Opens a VHD stream of exactly `length` bytes into `vdi`. `label` names the task that the pool shows.
    pub async fn import_vdi(&self, vdi: &Ref<Vdi>, length: u64, label: &str) -> Result<Import, Error> {
        let query = vec![("format", "vhd".to_owned()), ("vdi", vdi.to_string())];
        Import::open(self, query, Some(length), label).await
    }

    /// Opens a stream of extents in XAPI's `chunked` framing into `vdi`; what no extent names stays as it is. `label`
    /// names the task that the pool shows.
    ///
    /// Its length is unknown beforehand: the host takes the end marker (12 zero bytes) for the end, and writing on
    /// behind it fails. It knows no limit of 2 TiB.
    pub async fn import_chunked(&self, vdi: &Ref<Vdi>, label: &str) -> Result<Import, Error> {
        let query = vec![("format", "raw".to_owned()), ("chunked", "true".to_owned()), ("vdi", vdi.to_string())];
        Import::open(self, query, None, label).await
    }
}

impl Import {
    async fn open(
        session: &Session,
        query: Vec<(&'static str, String)>,
        length: Option<u64>,
        label: &str,
    ) -> Result<Self, Error> {
        let (stream, answered) = Stream::open(session, Direction::Import, query, length, label).await?;
        let Answered { head, bytes } = answered;
        let answer = Answer { head, bytes, judged: 0, ended: false };
        Ok(Self { stream, length, written: 0, answer, state: State::Writing })
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes promised; `None` for `chunked`.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The task that the host ends with the stream.
    pub fn task(&self) -> &Ref<Task> {
        self.stream.task.reference()
    }

    /// Confirms a stream that was written whole: waits until the host has closed the connection and its task has
    /// succeeded, and destroys the task.
    ///
    /// After a failed write it tells why, as the host sees it.
    pub async fn finish(mut self) -> Result<(), Error> {
        if matches!(self.state, State::LastWords { .. }) {
            let error = std::future::poll_fn(|cx| self.poll_last_words(cx)).await;
            self.state = State::Failed(error);
        }
        let Self { stream, length, written, mut answer, state } = self;
        let early = match state {
            State::Failed(error) => Some(error),
            _ if length.is_some_and(|length| written != length) => Some(Error::NotAtEnd { bytes: written, length }),
            _ => None,
        };
        if let Some(error) = early {
            return Err(stream.failed(error).await);
        }
        let Stream { mut connection, peer, task } = stream;
        let told = &peer;
        let end_of_stream = async move {
            // The write side stays open until the host has closed: its TLS proxy takes a half-closed connection for
            // a closed one.
            let flushed = connection.flush().await;
            let read = std::future::poll_fn(|cx| answer.poll_fill(&mut connection, cx)).await;
            answer.refusal(told).map_or(Ok(()), Err)?;
            flushed.and(read).map_err(|e| told.transport(e))?;
            match answer.meaning() {
                Meaning::Accepted => Ok(()),
                _ => Err(told.transport(io::Error::other("the connection ended without an answer"))),
            }
        };
        settle(end_of_stream, task, &peer).await
    }

    /// Closes the connection, waits (bounded) until the host has let go of the disk, and destroys the task.
    pub async fn abort(self) {
        self.stream.abort().await;
    }

    /// Looks at the answer without waiting for it. Whatever is said before the last byte, other than 200, ends the
    /// writing, and so does the end of the connection.
    fn watch(&mut self, cx: &mut Context<'_>) {
        let read = self.answer.poll_fill(&mut self.stream.connection, cx);
        let cause = match read {
            Poll::Ready(Err(e)) => Some(e),
            Poll::Ready(Ok(())) => None,
            Poll::Pending if self.answer.objects() => None,
            Poll::Pending => return,
        };
        self.give_up(cause);
    }

    fn give_up(&mut self, cause: Option<io::Error>) {
        self.state = State::LastWords { cause, until: Box::pin(sleep(LAST_WORDS)) };
    }

    /// Reads what the host still has to say, and makes an error of it.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let cut = || Error::Cut { address: self.stream.peer.address.clone(), bytes: self.written, length: self.length };
        let State::LastWords { cause, until } = &mut self.state else { return Poll::Ready(cut()) };
        let read = self.answer.poll_fill(&mut self.stream.connection, cx);
        if read.is_pending() && until.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if let Some(refusal) = self.answer.refusal(&self.stream.peer) {
            return Poll::Ready(refusal);
        }
        Poll::Ready(match cause.take() {
            Some(cause) => self.stream.peer.transport(cause),
            None => cut(),
        })
    }

    /// Writes by `put`, unless the host has objected, and counts the bytes.
    fn poll_put(
        &mut self,
        cx: &mut Context<'_>,
        put: impl FnOnce(&mut Connection, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if matches!(self.state, State::Writing) {
            self.watch(cx);
        }
        if matches!(self.state, State::Writing) {
            match ready!(put(&mut self.stream.connection, cx)) {
                Ok(n) => {
                    self.written += n as u64;
                    return Poll::Ready(Ok(n));
                }
                Err(e) if e.kind() == io::ErrorKind::Unsupported => return Poll::Ready(Err(e)),
                Err(e) => self.give_up(Some(e)),
            }
        }
        self.poll_failure(cx).map(Err)
    }

    /// Ends the writing with the reason. The I/O error has its text.
    fn poll_failure(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let State::Failed(error) = &self.state {
            return Poll::Ready(as_io(io::ErrorKind::BrokenPipe, error));
        }
        let error = ready!(self.poll_last_words(cx));
        let io = as_io(io::ErrorKind::BrokenPipe, &error);
        self.state = State::Failed(error);
        Poll::Ready(io)
    }
}

impl Answer {
    /// Reads the answer; ready at its end.
    fn poll_fill(&mut self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [0; 2048];
        while !self.ended {
            let mut space = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut *connection).poll_read(cx, &mut space));
            self.push(space.filled());
            // After an error there is nothing more to read, as after the end.
            self.ended = read.is_err() || space.filled().is_empty();
            read?;
        }
        Poll::Ready(Ok(()))
    }

    fn refusal(&mut self, peer: &Peer) -> Option<Error> {
        match self.meaning() {
            Meaning::None | Meaning::Accepted => None,
            Meaning::Garbage(reason) => Some(peer.malformed(reason)),
            Meaning::Refused { status, page } => Some(peer.refusal(status, &page)),
        }
    }
}

impl AsyncWrite for Import {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let (State::Writing, Some(length)) = (&this.state, this.length)
            && buf.len() as u64 > length.saturating_sub(this.written)
        {
            let (more, written) = (buf.len(), this.written);
            let reason = format!("the import is {length} bytes long, {more} more were to follow {written}");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidInput, reason)));
        }
        this.poll_put(cx, |connection, cx| Pin::new(connection).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.state, State::Writing) {
            match ready!(Pin::new(&mut this.stream.connection).poll_flush(cx)) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(e) => this.give_up(Some(e)),
            }
        }
        this.poll_failure(cx).map(Err)
    }

    /// Flushes only. Closing the write side before the answer has ended would look to the host like a lost
    /// connection; [`Import::finish`] ends the stream.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl SocketWriter for Import {
    fn lends_socket(&self) -> bool {
        self.stream.connection.tcp().is_some()
    }

    /// How much the call moves is its maker's to bound: bytes beyond the promised length fail [`Import::finish`].
    fn poll_write_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_put(cx, |connection, cx| match connection.tcp() {
            Some(tcp) => poll_writable(tcp, cx, call),
            None => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        })
    }
}
