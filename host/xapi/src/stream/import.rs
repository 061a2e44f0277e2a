//! Writing a disk: `PUT /import_raw_vdi`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::connection::Connection;
use super::head::{self, Head, Request};
use super::open::{Late, MAX_PAGE, Opened, malformed, open};
use super::{after_failure, as_io, settle};
use crate::error::Error;
use crate::records::{Task, Vdi};
use crate::reference::Ref;
use crate::session::{Login, Session};
use crate::tasks::OwnedTask;
use crate::text::excerpt;

const NAME: &str = "PUT /import_raw_vdi";

/// How long the body waits for the answer's head. XAPI answers at once, and a redirect has to be seen before the
/// body begins.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a broken connection is read for what the host had to say. Linux keeps received bytes after a reset, so
/// they are there at once or not at all.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long an aborted import waits for its task.
const TASK_AFTER_ABORT: Duration = Duration::from_secs(60);

/// A VHD stream into a disk. Exactly the promised number of bytes has to be written.
///
/// The answer is watched while bytes are written, so an early failure ends the writing. A write that succeeds proves
/// nothing; [`Import::finish`] does. Dropped, it closes its connection, upon which the host gives up, and removes
/// its task in the background; blocks that arrived stay written.
pub struct Import {
    connection: Connection,
    address: String,
    login: Arc<Login>,
    task: OwnedTask,
    length: u64,
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
        let task = OwnedTask::create(self, label).await?;
        let query =
            vec![("format", "vhd".to_owned()), ("vdi", vdi.to_string()), ("task_id", task.reference().to_string())];
        let request = Request { verb: "PUT", path: "/import_raw_vdi", query, length: Some(length) };
        match open(self, request, HEAD_TIMEOUT, Late::GoOn).await {
            Ok(opened) => Ok(Import::new(opened, task, length)),
            Err(e @ Error::Http { .. }) => Err(after_failure(e, task).await),
            Err(e) => {
                task.destroy().await;
                Err(e)
            }
        }
    }
}

impl Import {
    fn new(opened: Opened, task: OwnedTask, length: u64) -> Self {
        Self {
            connection: opened.connection,
            address: opened.address.to_string(),
            login: opened.login,
            task,
            length,
            written: 0,
            answer: Answer { head: opened.head, bytes: opened.received, judged: 0, ended: false },
            state: State::Writing,
        }
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes promised.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The task that the host ends with the stream.
    pub fn task(&self) -> &Ref<Task> {
        self.task.reference()
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
        let Self { mut connection, address, login, task, length, written, mut answer, state } = self;
        let early = match state {
            State::Failed(error) => Some(error),
            _ if written != length => Some(Error::NotAtEnd { bytes: written, length: Some(length) }),
            _ => None,
        };
        if let Some(error) = early {
            drop(connection);
            return Err(after_failure(error, task).await);
        }
        let at = address.clone();
        let end_of_stream = async move {
            let failed = |e| Error::transport(&*at, NAME, e);
            // The write side stays open until the host has closed: its TLS proxy takes a half-closed connection for
            // a closed one.
            let flushed = connection.flush().await;
            let read = std::future::poll_fn(|cx| answer.poll_fill(&mut connection, cx)).await;
            answer.refusal(&at, &login).map_or(Ok(()), Err)?;
            flushed.and(read).map_err(failed)?;
            match answer.meaning() {
                Meaning::Accepted => Ok(()),
                _ => Err(failed(io::Error::other("the connection ended without an answer"))),
            }
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

    /// Looks at the answer without waiting for it. Whatever is said before the last byte, other than 200, ends the
    /// writing, and so does the end of the connection.
    fn watch(&mut self, cx: &mut Context<'_>) {
        let read = self.answer.poll_fill(&mut self.connection, cx);
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
        let State::LastWords { cause, until } = &mut self.state else {
            return Poll::Ready(Error::Cut { address: self.address.clone(), bytes: self.written, length: self.length });
        };
        let read = self.answer.poll_fill(&mut self.connection, cx);
        if read.is_pending() && until.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if let Some(refusal) = self.answer.refusal(&self.address, &self.login) {
            return Poll::Ready(refusal);
        }
        Poll::Ready(match cause.take() {
            Some(cause) => Error::transport(&*self.address, NAME, cause),
            None => Error::Cut { address: self.address.clone(), bytes: self.written, length: self.length },
        })
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

    fn refusal(&mut self, address: &str, login: &Login) -> Option<Error> {
        match self.meaning() {
            Meaning::None | Meaning::Accepted => None,
            Meaning::Garbage(reason) => Some(malformed(NAME, reason)),
            Meaning::Refused { status, page } => Some(Error::Http {
                address: address.to_owned(),
                during: NAME.to_owned(),
                status,
                excerpt: excerpt(&page, &[login.reference.expose()]),
            }),
        }
    }
}

impl AsyncWrite for Import {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if matches!(this.state, State::Writing) {
            this.watch(cx);
        }
        if matches!(this.state, State::Writing) {
            if buf.len() as u64 > this.length - this.written {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "the import is {} bytes long, {} more were to follow {}",
                        this.length,
                        buf.len(),
                        this.written
                    ),
                )));
            }
            match ready!(Pin::new(&mut this.connection).poll_write(cx, buf)) {
                Ok(n) => {
                    this.written += n as u64;
                    return Poll::Ready(Ok(n));
                }
                Err(e) => this.give_up(Some(e)),
            }
        }
        this.poll_failure(cx).map(Err)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.state, State::Writing) {
            match ready!(Pin::new(&mut this.connection).poll_flush(cx)) {
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
