//! What calls do. A call is checked against the schema, then goes to the code of its message, or to the
//! accessor that follows from a field.

pub(crate) mod cbt;
pub(crate) mod device;
pub(crate) mod event;
mod generic;
pub(crate) mod nbd;
mod pool;
mod session;
mod task;
pub(crate) mod vdi;
pub(crate) mod vm;

use std::collections::BTreeMap;

use crate::error::{ApiError, ApiResult};
use crate::schema::{Class, SCHEMA};
use crate::state::State;
use crate::value::Value;
use crate::wire::Call;

/// The parameters of a call, of the types that its message declares.
#[derive(Debug)]
pub(crate) struct Args {
    /// Empty for the login calls.
    pub(crate) session: String,
    values: Vec<Value>,
}

impl Args {
    fn value(&self, at: usize) -> Value {
        self.values.get(at).cloned().unwrap_or(Value::Nil)
    }

    fn text(&self, at: usize) -> &str {
        self.values.get(at).map_or("", Value::as_str)
    }

    fn int(&self, at: usize) -> i64 {
        match self.values.get(at) {
            Some(Value::Int(value)) => *value,
            _ => 0,
        }
    }

    pub(crate) fn float(&self, at: usize) -> f64 {
        match self.values.get(at) {
            Some(Value::Float(value)) => *value,
            _ => 0.0,
        }
    }

    fn list(&self, at: usize) -> Vec<String> {
        match self.values.get(at) {
            Some(Value::Array(items)) => items.iter().map(|item| item.as_str().to_owned()).collect(),
            _ => Vec::new(),
        }
    }

    fn record(&self, at: usize) -> BTreeMap<String, Value> {
        match self.values.get(at) {
            Some(Value::Struct(members)) => members.clone(),
            _ => BTreeMap::new(),
        }
    }
}

/// A call that is known, complete, of the right types, and in a living session.
#[derive(Debug)]
pub(crate) struct Prepared {
    class: &'static Class,
    message: String,
    pub(crate) args: Args,
    pub(crate) is_async: bool,
}

/// Why a call cannot be made.
#[derive(Debug)]
pub(crate) enum Refused {
    Error(ApiError),
    /// `Async.` before a call that has no asynchronous form: a fault of the protocol, not an API error.
    NoAsync(String),
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self::Error(error)
    }
}

/// `event.from`, which waits.
pub(crate) const EVENT_FROM: &str = "event.from";

impl Prepared {
    pub(crate) fn new(state: &mut State, call: Call) -> Result<Self, Refused> {
        let Call { method, params } = call;
        let unknown = || ApiError::unknown_method(&method);
        let (is_async, bare) = match method.strip_prefix("Async.").or_else(|| method.strip_prefix("InternalAsync.")) {
            Some(bare) => (true, bare),
            None => (false, method.as_str()),
        };
        let (class, name) = bare.split_once('.').ok_or_else(unknown)?;
        let class = SCHEMA.class(class).ok_or_else(unknown)?;
        let message = class.message(name).ok_or_else(unknown)?;
        if message.removed {
            return Err(ApiError::bare("MESSAGE_REMOVED").into());
        }
        if is_async && !message.has_async {
            return Err(Refused::NoAsync(method));
        }
        let mut params = params.into_iter();
        let session = match message.takes_session {
            true => params.next().map_or_else(String::new, |session| session.as_str().to_owned()),
            false => String::new(),
        };
        let given = params.len();
        if given < message.required_params() || given > message.params.len() {
            let expected = message.params.len().to_string();
            return Err(ApiError::new("MESSAGE_PARAMETER_COUNT_MISMATCH", [bare, &expected, &given.to_string()]).into());
        }
        if message.takes_session {
            state.use_session(&session)?;
        }
        let typed = message.params.iter().zip(params).map(|(param, value)| param.kind.coerce(&param.name, value));
        let values = typed.collect::<ApiResult<_>>()?;
        Ok(Self { class, message: name.to_owned(), args: Args { session, values }, is_async })
    }

    pub(crate) fn method(&self) -> String {
        format!("{}.{}", self.class.name, self.message)
    }

    /// The operation that this call is on its object, as `current_operations` shows it: (class, object, operation).
    pub(crate) fn operation(&self) -> Option<(&'static str, &str, &'static str)> {
        let object = self.args.text(0);
        let operation = |class: &'static str, names: &[&'static str]| {
            let name = names.iter().find(|name| **name == self.message)?;
            Some((class, object, *name))
        };
        match self.class.name.as_str() {
            "VM" => operation(
                "VM",
                &[
                    "snapshot",
                    "clone",
                    "copy",
                    "revert",
                    "provision",
                    "start",
                    "start_on",
                    "clean_shutdown",
                    "hard_shutdown",
                    "pool_migrate",
                    "destroy",
                ],
            ),
            "VDI" => operation(
                "VDI",
                &[
                    "snapshot",
                    "clone",
                    "copy",
                    "resize",
                    "destroy",
                    "enable_cbt",
                    "disable_cbt",
                    "data_destroy",
                    "list_changed_blocks",
                ],
            ),
            _ => None,
        }
    }

    /// The disk that has to be let go by all before the call is done, if it is such a call.
    pub(crate) fn waits_for_vbds_of(&self) -> Option<&str> {
        (self.class.name == "VDI" && self.message == cbt::DATA_DESTROY).then(|| self.args.text(0))
    }

    /// Does the call.
    pub(crate) fn run(&self, state: &mut State) -> ApiResult<Value> {
        let args = &self.args;
        let outcome = match self.class.name.as_str() {
            "session" => session::run(state, &self.message, args),
            "task" => task::run(state, &self.message, args),
            "event" => event::run(state, &self.message, args),
            "VM" => vm::run(state, &self.message, args),
            "VDI" => vdi::run(state, &self.message, args),
            "VBD" | "VIF" | "VTPM" => device::run(state, &self.class.name, &self.message, args),
            class => pool::run(state, class, &self.message, args),
        };
        match outcome {
            Some(outcome) => outcome,
            None => generic::run(state, self.class, &self.message, args),
        }
    }
}
