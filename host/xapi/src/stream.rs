//! Raw disk streams over HTTP: [`Export`] reads a disk, [`Import`] writes one.
//!
//! XAPI answers `200 OK` before it opens the disk, in both directions, so the status says nothing about success.
//! An export's end looks the same whether the data is complete or the connection was cut, and an error that comes
//! after the 200 is written into the body. What proves success is the task that XAPI ends with the stream, together
//! with the bytes counted here and the structure of the stream, which is its reader's to check.

mod export;
pub(crate) mod head;
mod import;
mod open;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use export::Export;
pub use import::Import;

use self::head::{Direction, Head, Request};
use self::open::{Opened, open};
use crate::connection::Connection;
use crate::error::Error;
use crate::session::{Login, Session};
use crate::tasks::OwnedTask;
use crate::text::excerpt;
use crate::value::Value;
use crate::xmlrpc::Malformed;

/// How long a task may go on after its stream ended well. A host waits up to 300 s for a disk to be unplugged from
/// its own domain before it ends the task.
const TASK_AFTER_SUCCESS: Duration = Duration::from_secs(330);

/// How long a failed stream waits for its task to tell the reason.
const TASK_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// The same when the host answered with an error page: the page holds the reason already, and a task that the request never
/// reached stays pending for ever.
const TASK_AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// How long an aborted stream waits for its task.
const TASK_AFTER_ABORT: Duration = Duration::from_secs(60);

/// How long a stream may go on after its task failed, so that both can be told.
const CLOSE_AFTER_FAILURE: Duration = Duration::from_secs(2);

/// How long a host may keep a connection open after its task succeeded.
const CLOSE_AFTER_TASK: Duration = Duration::from_secs(60);

/// What both directions have. Dropped, it closes the connection, upon which the host gives up, and removes the task
/// in the background.
struct Stream {
    connection: Connection,
    peer: Peer,
    /// The task that the host ends with the stream.
    task: OwnedTask,
}

/// The other end of a stream, as errors tell of it.
struct Peer {
    direction: Direction,
    /// Host and port.
    address: String,
    /// The session that the request carried.
    login: Arc<Login>,
}

/// What has come of an answer when its stream is opened.
struct Answered {
    /// The head, if it has come.
    head: Option<Head>,
    /// What followed it, or its beginning.
    bytes: Vec<u8>,
}

impl Stream {
    /// Makes a task named `label` and asks for a stream that ends it. `query` is completed by task and session.
    async fn open(
        session: &Session,
        direction: Direction,
        mut query: Vec<(&'static str, String)>,
        length: Option<u64>,
        label: &str,
    ) -> Result<(Self, Answered), Error> {
        let task = OwnedTask::create(session, label).await?;
        query.push(("task_id", task.reference().to_string()));
        match open(session, Request { direction, query, length }).await {
            Ok(Opened { connection, peer, answered, .. }) => Ok((Self { connection, peer, task }, answered)),
            Err(e @ Error::Http { .. }) => Err(after_failure(e, task).await),
            Err(e) => {
                task.destroy().await;
                Err(e)
            }
        }
    }

    /// Closes the connection, waits (bounded) until the host has let go of the disk, and destroys the task.
    async fn abort(self) {
        drop(self.connection);
        // However it ends, it is over; and a task that does not end in time is removed by the host at its end.
        let _ = self.task.wait(TASK_AFTER_ABORT).await;
        self.task.destroy().await;
    }

    /// Closes the connection and says why the stream failed: `failure`, and what the host's task adds to it.
    async fn failed(self, failure: Error) -> Error {
        drop(self.connection);
        after_failure(failure, self.task).await
    }
}

impl Peer {
    fn transport(&self, cause: io::Error) -> Error {
        Error::transport(&*self.address, self.direction.name(), cause)
    }

    fn timeout(&self, during: &str, bound: Duration) -> Error {
        Error::Timeout { address: self.address.clone(), during: during.to_owned(), seconds: bound.as_secs() }
    }

    /// An answer with another status than 200, of which `page` is the body.
    fn refusal(&self, status: u16, page: &[u8]) -> Error {
        Error::Http {
            address: self.address.clone(),
            during: self.direction.name().to_owned(),
            status,
            excerpt: excerpt(page, &[self.login.reference.expose()]),
        }
    }

    /// An answer that is no HTTP. Its text is not shown: it is whatever some other server sent.
    fn malformed(&self, reason: String) -> Error {
        Error::malformed(self.direction.name(), Malformed { reason, position: 0, snippet: String::new() })
    }
}

/// One outcome from what happened on the wire and what the host's task says.
fn verdict(stream: Result<(), Error>, task: Result<Value, Error>) -> Result<(), Error> {
    match stream {
        Ok(()) => task.map(drop),
        Err(stream) => Err(blame(stream, task)),
    }
}

/// Why a stream failed: the host's reason and what was seen here, as far as there are both.
fn blame(stream: Error, task: Result<Value, Error>) -> Error {
    match task {
        Err(Error::Api(task)) => Error::Transfer { task, stream: Box::new(stream) },
        _ => stream,
    }
}

/// Ends a stream whose connection is closed already: asks the task for the reason, and destroys it.
async fn after_failure(stream: Error, task: OwnedTask) -> Error {
    let bound = if matches!(stream, Error::Http { .. }) { TASK_AFTER_REFUSAL } else { TASK_AFTER_FAILURE };
    let told = task.wait(bound).await;
    task.destroy().await;
    blame(stream, told)
}

/// Waits until both the connection and the task are over, and destroys the task. Whichever ends first, the other has
/// to follow soon.
async fn settle(
    end_of_stream: impl Future<Output = Result<(), Error>>,
    task: OwnedTask,
    peer: &Peer,
) -> Result<(), Error> {
    let outcome = both_over(end_of_stream, &task, peer).await;
    task.destroy().await;
    outcome
}

async fn both_over(
    end_of_stream: impl Future<Output = Result<(), Error>>,
    task: &OwnedTask,
    peer: &Peer,
) -> Result<(), Error> {
    let end_of_task = task.session().wait_task(task.reference());
    tokio::pin!(end_of_stream, end_of_task);
    tokio::select! {
        () = tokio::time::sleep(TASK_AFTER_SUCCESS) => {
            Err(peer.timeout("the end of the stream or of its task", TASK_AFTER_SUCCESS))
        }
        stream = &mut end_of_stream => {
            let bound = if stream.is_ok() { TASK_AFTER_SUCCESS } else { TASK_AFTER_FAILURE };
            verdict(stream, task.wait(bound).await)
        }
        ended = &mut end_of_task => match ended {
            Err(task) => match tokio::time::timeout(CLOSE_AFTER_FAILURE, end_of_stream).await {
                Ok(Err(stream)) => Err(blame(stream, Err(task))),
                _ => Err(task),
            },
            Ok(_) => tokio::time::timeout(CLOSE_AFTER_TASK, end_of_stream)
                .await
                .unwrap_or_else(|_| Err(peer.timeout("the end of the stream", CLOSE_AFTER_TASK))),
        },
    }
}

/// The failure as an I/O error for the reader or writer. The typed error stays with the stream, whose `finish`
/// gives it together with what the host says.
fn as_io(kind: io::ErrorKind, error: &Error) -> io::Error {
    io::Error::new(kind, error.to_string())
}
