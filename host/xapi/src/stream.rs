//! Raw disk streams over HTTP: [`Export`] reads a disk, [`Import`] writes one.
//!
//! XAPI answers `200 OK` before it opens the disk, in both directions, so the status says nothing about success.
//! An export's end looks the same whether the data is complete or the connection was cut, and an error that comes
//! after the 200 is written into the body. What proves success is the task that XAPI ends with the stream, together
//! with the bytes counted here and the structure of the stream, which is its reader's to check.

mod connection;
mod export;
mod head;
mod import;
mod open;

use std::io;
use std::time::Duration;

pub use export::Export;
pub use import::Import;

use crate::error::Error;
use crate::tasks::OwnedTask;
use crate::value::Value;

/// How long a task may go on after its stream ended well. A host waits up to 300 s for a disk to be unplugged from
/// its own domain before it ends the task.
const TASK_AFTER_SUCCESS: Duration = Duration::from_secs(330);

/// How long a failed stream waits for its task to tell the reason.
const TASK_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// The same when the host answered with an error page: the page holds the reason already, and a task that the request never
/// reached stays pending for ever.
const TASK_AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// How long a host may keep a connection open after its task succeeded.
const CLOSE_AFTER_TASK: Duration = Duration::from_secs(60);

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

/// Waits until both the connection and the task are over. Whichever ends first, the other has to follow soon.
async fn settle(
    end_of_stream: impl Future<Output = Result<(), Error>>,
    task: &OwnedTask,
    address: &str,
) -> Result<(), Error> {
    let end_of_task = task.session().wait_task(task.reference());
    tokio::pin!(end_of_stream, end_of_task);
    tokio::select! {
        () = tokio::time::sleep(TASK_AFTER_SUCCESS) => Err(Error::Timeout {
            address: address.to_owned(),
            during: "the end of the stream or of its task".to_owned(),
            seconds: TASK_AFTER_SUCCESS.as_secs(),
        }),
        stream = &mut end_of_stream => {
            let bound = if stream.is_ok() { TASK_AFTER_SUCCESS } else { TASK_AFTER_FAILURE };
            verdict(stream, task.wait(bound).await)
        }
        ended = &mut end_of_task => match ended {
            Err(e) => Err(e),
            Ok(_) => tokio::time::timeout(CLOSE_AFTER_TASK, end_of_stream).await.unwrap_or_else(|_| {
                Err(Error::Timeout {
                    address: address.to_owned(),
                    during: "the end of the stream".to_owned(),
                    seconds: CLOSE_AFTER_TASK.as_secs(),
                })
            }),
        },
    }
}

/// The failure as an I/O error for the reader or writer. The typed error stays with the stream, whose `finish`
/// gives it together with what the host says.
fn as_io(kind: io::ErrorKind, error: &Error) -> io::Error {
    io::Error::new(kind, error.to_string())
}
