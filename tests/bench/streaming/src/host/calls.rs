//! The calls that a transfer makes, and the tasks that they are about.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest wait of an `event.from`; less than what clients ask for.
const EVENT_WAIT: Duration = Duration::from_secs(10);

/// Given with the first events of a task, which tell how it stands. Who comes with it waits for a change.
const TOKEN: &str = "00000000000000000001,00000000000000000000";

const TASK: &str = "OpaqueRef:task-";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Pending,
    Success,
    Failure,
}

/// All tasks ever made; a task's number is its place.
#[derive(Default)]
pub(super) struct Tasks {
    tasks: Mutex<Vec<Status>>,
    ended: Condvar,
}

impl Tasks {
    /// Ends a task with its stream. A stream without one is fine.
    pub(super) fn end(&self, task: &str, good: bool) {
        let status = if good { Status::Success } else { Status::Failure };
        let mut tasks = self.lock();
        if let Some(task) = number(task).and_then(|number| tasks.get_mut(number)) {
            *task = status;
        }
        self.ended.notify_all();
    }

    /// Answers an XML-RPC call.
    pub(super) fn answer(&self, call: &str) -> String {
        let method = call.split("<methodName>").nth(1).and_then(|rest| rest.split('<').next()).unwrap_or_default();
        let task = call.find(TASK).and_then(|at| number(&call[at..]));
        let value = match (method, task) {
            ("session.login_with_password", _) => "OpaqueRef:session".to_owned(),
            ("session.logout" | "task.destroy", _) => String::new(),
            ("task.create", _) => self.create(),
            ("task.get_record", Some(number)) => record(self.status(number)),
            ("event.from", Some(number)) => self.events(number, call.contains(TOKEN)),
            _ => return failure(method),
        };
        response(&[("Status", "Success"), ("Value", &value)])
    }

    fn create(&self) -> String {
        let mut tasks = self.lock();
        tasks.push(Status::Pending);
        format!("{TASK}{}", tasks.len() - 1)
    }

    fn status(&self, number: usize) -> Status {
        self.lock().get(number).copied().unwrap_or(Status::Failure)
    }

    /// How the task stands; with `wait` as soon as it has ended.
    fn events(&self, number: usize, wait: bool) -> String {
        if wait {
            let pending = |tasks: &mut Vec<Status>| tasks.get(number) == Some(&Status::Pending);
            drop(self.ended.wait_timeout_while(self.lock(), EVENT_WAIT, pending));
        }
        let event = members(&[
            ("id", "1"),
            ("timestamp", "0.0"),
            ("class", "task"),
            ("operation", if wait { "mod" } else { "add" }),
            ("ref", &format!("{TASK}{number}")),
            ("snapshot", &record(self.status(number))),
        ]);
        let events = format!("<array><data><value>{event}</value></data></array>");
        members(&[("events", &events), ("token", TOKEN), ("valid_ref_counts", "<struct></struct>")])
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Status>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of the task whose reference `text` begins with.
fn number(text: &str) -> Option<usize> {
    let digits = text.strip_prefix(TASK)?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

fn record(status: Status) -> String {
    let (status, error_info) = match status {
        Status::Pending => ("pending", ""),
        Status::Success => ("success", ""),
        Status::Failure => ("failure", "<value>VDI_IO_ERROR</value>"),
    };
    let error_info = format!("<array><data>{error_info}</data></array>");
    members(&[("uuid", "task"), ("name_label", "transfer"), ("status", status), ("error_info", &error_info)])
}

fn failure(method: &str) -> String {
    let words = format!("<array><data><value>MESSAGE_METHOD_UNKNOWN</value><value>{method}</value></data></array>");
    response(&[("Status", "Failure"), ("ErrorDescription", &words)])
}

fn response(envelope: &[(&str, &str)]) -> String {
    let envelope = members(envelope);
    format!("<methodResponse><params><param><value>{envelope}</value></param></params></methodResponse>")
}

fn members(members: &[(&str, &str)]) -> String {
    let member = |(name, value): &(&str, &str)| format!("<member><name>{name}</name><value>{value}</value></member>");
    format!("<struct>{}</struct>", members.iter().map(member).collect::<String>())
}
