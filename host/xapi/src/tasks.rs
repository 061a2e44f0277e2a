//! Background work of a pool: started, awaited by events, and cleaned up.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use crate::api_error::ApiError;
use crate::decode;
use crate::error::Error;
use crate::events::Events;
use crate::params;
use crate::records::{Task, TaskStatus};
use crate::reference::Ref;
use crate::retry::pause_while_full;
use crate::session::Session;
use crate::value::Value;
use crate::xmlrpc;

/// How long one call for events waits. Short enough to notice a task that vanished without an event.
const EVENT_WAIT: Duration = Duration::from_secs(30);

/// An empty batch that comes sooner than this was not waited for: the host does not follow single tasks.
const EVENT_TOO_SOON: Duration = Duration::from_secs(1);

/// How long the task of a call may go on. Snapshots, clones and the like take seconds, on a bad day minutes; a task whose
/// toolstack was restarted stays pending for a day.
const CALL_LIMIT: Duration = Duration::from_secs(3600);

/// First and longest pause between looks at a task where events do not work.
const POLL_FIRST: Duration = Duration::from_millis(250);
const POLL_LONGEST: Duration = Duration::from_secs(5);

impl Session {
    /// Calls `method` (without `Async.`) as a task, waits for its end, reads its result as a `T` and destroys the task.
    ///
    /// If the future is dropped, the work goes on in the pool, and the task goes away with its end.
    pub async fn call_async<T: DeserializeOwned>(&self, method: &str, params: Vec<Value>) -> Result<T, Error> {
        let mut attempt = 0;
        let value = loop {
            let task: Ref<Task> = self.call(&format!("Async.{method}"), params.clone()).await?;
            let task = OwnedTask::new(self.clone(), task);
            let outcome = task.wait(CALL_LIMIT).await;
            task.destroy().await;
            attempt += 1;
            match (outcome, pause_while_full(attempt)) {
                // The task found no place in a queue, so its work was not begun.
                (Err(Error::Api(ApiError::TooManyPendingTasks)), Some(pause)) => tokio::time::sleep(pause).await,
                (outcome, _) => break outcome.map_err(Error::after_it_was_sent)?,
            }
        };
        decode::from_value(&value).map_err(|e| Error::decode(method, e))
    }

    /// Waits for the end of a task and gives its result. The task stays.
    ///
    /// Events tell the end at once; where they fail, the task is looked at from time to time. A task that is gone is
    /// [`Error::TaskVanished`], because nobody can tell any more how it ended.
    pub async fn wait_task(&self, task: &Ref<Task>) -> Result<Value, Error> {
        let mut watch = Watch::Events(self.events([format!("task/{task}")]));
        let mut record = self.task_record(task).await?;
        loop {
            if let Some(outcome) = outcome(task, &record) {
                return outcome;
            }
            record = match watch.next_state(task).await {
                Some(record) => record,
                None => self.task_record(task).await?,
            };
        }
    }

    async fn task_record(&self, task: &Ref<Task>) -> Result<Task, Error> {
        match self.get_record(task).await {
            Err(Error::Api(ApiError::HandleInvalid { .. })) => Err(Error::TaskVanished { task: task.to_string() }),
            answer => answer,
        }
    }
}

/// How the next state of a task is learnt.
enum Watch {
    Events(Events),
    Poll { pause: Duration },
}

impl Watch {
    /// The task's new state; `None` if it is time to look.
    async fn next_state(&mut self, task: &Ref<Task>) -> Option<Task> {
        let events = match self {
            Self::Poll { pause } => {
                tokio::time::sleep(*pause).await;
                *pause = (*pause * 2).min(POLL_LONGEST);
                return None;
            }
            Self::Events(events) => events,
        };
        let asked = Instant::now();
        match events.next(EVENT_WAIT).await {
            Ok(batch) => {
                let ours = batch.iter().rfind(|event| event.reference == task.as_str());
                if ours.is_none() && asked.elapsed() < EVENT_TOO_SOON {
                    *self = Self::Poll { pause: POLL_FIRST };
                }
                ours?.record::<Task>()?.ok().map(|(_, record)| record)
            }
            Err(e) => {
                tracing::debug!(%task, error = %e, "events fail, the task is polled");
                *self = Self::Poll { pause: POLL_FIRST };
                None
            }
        }
    }
}

/// How a task ended; `None` while it goes on.
fn outcome(task: &Ref<Task>, record: &Task) -> Option<Result<Value, Error>> {
    let cancelled = || Error::TaskCancelled { task: task.to_string() };
    match record.status {
        TaskStatus::Success => {
            let during = format!("the result of task \"{}\"", record.name_label);
            Some(xmlrpc::decode_value(&record.result).map_err(|e| Error::malformed(&during, e)))
        }
        TaskStatus::Cancelled => Some(Err(cancelled())),
        TaskStatus::Failure => Some(Err(match record.error_info.split_first() {
            Some((code, _)) if code == "TASK_CANCELLED" => cancelled(),
            Some((code, params)) => ApiError::from_wire(code, params).into(),
            None => ApiError::Internal { message: "the task failed without a reason".to_owned() }.into(),
        })),
        TaskStatus::Pending | TaskStatus::Cancelling | TaskStatus::Other(_) => None,
    }
}

/// A task that this client made and has to remove. Dropped, it is removed in the background: destroying a task that
/// runs marks it, and the host removes it at its end.
pub(crate) struct OwnedTask {
    session: Session,
    task: Ref<Task>,
    destroyed: bool,
}

impl OwnedTask {
    fn new(session: Session, task: Ref<Task>) -> Self {
        Self { session, task, destroyed: false }
    }

    /// A new task, for an HTTP request that will end it.
    pub(crate) async fn create(session: &Session, label: &str) -> Result<Self, Error> {
        let task = session.call("task.create", params![label, ""]).await?;
        Ok(Self::new(session.clone(), task))
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn reference(&self) -> &Ref<Task> {
        &self.task
    }

    /// Waits for its end, at most for `bound`.
    pub(crate) async fn wait(&self, bound: Duration) -> Result<Value, Error> {
        let pending = |_| Err(Error::TaskPending { task: self.task.to_string(), seconds: bound.as_secs() });
        tokio::time::timeout(bound, self.session.wait_task(&self.task)).await.unwrap_or_else(pending)
    }

    /// Removes it. Best effort: a task that stays is collected by the host.
    pub(crate) async fn destroy(mut self) {
        destroy(&self.session, &self.task).await;
        self.destroyed = true;
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        if self.destroyed {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            let (session, task) = (self.session.clone(), self.task.clone());
            runtime.spawn(async move { destroy(&session, &task).await });
        }
    }
}

async fn destroy(session: &Session, task: &Ref<Task>) {
    if let Err(e) = session.call::<()>("task.destroy", params![task]).await {
        tracing::debug!(%task, error = %e, "the task could not be destroyed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(status: TaskStatus, result: &str, error_info: &[&str]) -> Task {
        let error_info = error_info.iter().map(|s| (*s).to_owned()).collect();
        Task { status, result: result.to_owned(), error_info, ..Task::default() }
    }

    fn ended(record: &Task) -> Result<Value, Error> {
        outcome(&Ref::new("OpaqueRef:t"), record).expect("it ended")
    }

    #[test]
    fn a_result_is_an_xml_text_or_nothing() {
        let reference = ended(&task(TaskStatus::Success, "<value>OpaqueRef:1</value>", &[])).expect("success");
        assert_eq!(reference.as_str(), Some("OpaqueRef:1"));
        for nothing in ["", "<value></value>", "<value/>"] {
            let value = ended(&task(TaskStatus::Success, nothing, &[])).expect(nothing);
            assert_eq!(value.as_str(), Some(""));
        }
        let list =
            ended(&task(TaskStatus::Success, "<value><array><data><value>a</value></data></array></value>", &[]));
        assert_eq!(list.expect("a set"), Value::Array(vec![Value::String("a".to_owned())]));
        assert!(matches!(ended(&task(TaskStatus::Success, "<value>", &[])), Err(Error::Malformed { .. })));
    }

    #[test]
    fn ends_are_told_apart() {
        assert!(outcome(&Ref::null(), &task(TaskStatus::Pending, "", &[])).is_none());
        assert!(outcome(&Ref::null(), &task(TaskStatus::Cancelling, "", &[])).is_none());
        assert!(matches!(
            ended(&task(TaskStatus::Cancelled, "", &["TASK_CANCELLED", "x"])),
            Err(Error::TaskCancelled { .. })
        ));
        assert!(matches!(
            ended(&task(TaskStatus::Failure, "", &["TASK_CANCELLED", "x"])),
            Err(Error::TaskCancelled { .. })
        ));
        assert!(matches!(
            ended(&task(TaskStatus::Failure, "", &["VDI_IO_ERROR", "Device I/O errors"])),
            Err(Error::Api(ApiError::VdiIoError { .. }))
        ));
        assert!(matches!(ended(&task(TaskStatus::Failure, "", &[])), Err(Error::Api(ApiError::Internal { .. }))));
    }
}
