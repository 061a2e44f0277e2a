//! One call from request to answer: faults, waiting calls, asynchronous calls.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::calls::event::Wait;
use crate::calls::{EVENT_FROM, Prepared, Refused, cbt, vm};
use crate::core::Core;
use crate::error::{ApiError, ApiResult};
use crate::fault::{FaultKind, Use};
use crate::schema::SCHEMA;
use crate::state::{HostNumber, State};
use crate::value::Value;
use crate::wire::{Call, xmlrpc};

/// A wrong password is answered late. A real host takes 5 s; a test need not.
const WRONG_PASSWORD_DELAY: Duration = Duration::from_millis(50);

/// Events are held back so long, to be told together.
const EVENT_BATCH: Duration = Duration::from_millis(50);

pub(crate) enum Answer {
    Value(Value),
    Error(ApiError),
    /// `Async.` before a call that has no asynchronous form.
    NoAsync(String),
    /// 500 and a page.
    Http500,
    /// The connection is closed.
    Nothing,
}

impl From<ApiResult<Value>> for Answer {
    fn from(outcome: ApiResult<Value>) -> Self {
        match outcome {
            Ok(value) => Self::Value(value),
            Err(error) => Self::Error(error),
        }
    }
}

/// The only call that a member does not take.
const LOGIN: &str = "session.login_with_password";

pub(crate) async fn answer(core: &Arc<Core>, host: HostNumber, call: Call) -> Answer {
    core.note_call(&call.method);
    let fault = core.with(|state| {
        let fault = state.faults.strike(Use::Call(&call.method));
        if fault == Some(FaultKind::SessionLost)
            && let Some(session) = call.params.first()
        {
            state.close_session(session.as_str());
        }
        fault
    });
    if call.method == LOGIN && !core.with(|state| state.is_master(host)) {
        let master = core.with(|state| state.db.get("host", &state.master).map(|row| row.string("address")));
        return Answer::from(master.and_then(|master| Err(ApiError::new("HOST_IS_SLAVE", [master]))));
    }
    match fault {
        Some(FaultKind::Http500) => Answer::Http500,
        Some(FaultKind::CloseWithoutAnswer | FaultKind::CutAfter(_) | FaultKind::ResetAfter(_)) => Answer::Nothing,
        Some(FaultKind::ReplyLost) => {
            run(core, call, None).await;
            Answer::Nothing
        }
        fault => run(core, call, fault).await,
    }
}

async fn run(core: &Arc<Core>, call: Call, fault: Option<FaultKind>) -> Answer {
    if call.method == "system.listMethods" {
        let methods = SCHEMA.methods().into_iter().chain(["system.listMethods".to_owned()]);
        return Answer::Value(Value::strings(methods));
    }
    let prepared = match core.with(|state| Prepared::new(state, call)) {
        Ok(prepared) => prepared,
        Err(Refused::Error(error)) => return Answer::Error(error),
        Err(Refused::NoAsync(method)) => return Answer::NoAsync(method),
    };
    if prepared.is_async {
        return start_task(core, prepared, fault).into();
    }
    if let Some(error) = fault.as_ref().and_then(FaultKind::api_error) {
        return Answer::Error(error);
    }
    let outcome = if prepared.method() == EVENT_FROM {
        wait_for_events(core, &prepared).await
    } else {
        wait_for_vbds(core, &prepared).await;
        core.with(|state| prepared.run(state))
    };
    if matches!(fault, Some(FaultKind::StallAfter(_))) {
        core.stall().await;
    }
    if outcome.as_ref().is_err_and(|error| error.code == "SESSION_AUTHENTICATION_FAILED") {
        sleep(WRONG_PASSWORD_DELAY).await;
    }
    outcome.into()
}

/// The task is there before the work has begun; how that goes is told in the task alone.
fn start_task(core: &Arc<Core>, prepared: Prepared, fault: Option<FaultKind>) -> ApiResult<Value> {
    let task = core.with(|state| state.create_task(&format!("Async.{}", prepared.method()), ""))?;
    let (core, running) = (core.clone(), task.clone());
    tokio::spawn(async move { core.while_alive(run_task(&core, prepared, running, fault)).await });
    Ok(Value::String(task))
}

async fn run_task(core: &Core, prepared: Prepared, task: String, fault: Option<FaultKind>) {
    let begun = core.with(|state| begin(state, &prepared, &task));
    if matches!(fault, Some(FaultKind::StallAfter(_))) {
        core.stall().await;
    } else {
        // Others may see the operation in progress.
        tokio::task::yield_now().await;
    }
    wait_for_vbds(core, &prepared).await;
    core.with(|state| {
        let outcome = begun.and_then(|()| {
            end(state, &prepared, &task);
            match fault.as_ref().and_then(FaultKind::api_error) {
                Some(error) => Err(error),
                None => prepared.run(state),
            }
        });
        state.finish_task(&task, outcome.as_ref().map(xmlrpc::value_text));
    });
}

/// Shows the operation on its object, if it may be done at all.
fn begin(state: &mut State, prepared: &Prepared, task: &str) -> ApiResult<()> {
    let Some((class, object, operation)) = prepared.operation() else {
        return Ok(());
    };
    if class == "VM" {
        vm::assert_operation(state, object, operation)?;
    }
    state.db.set_entry(class, object, "current_operations", task, operation)
}

fn end(state: &mut State, prepared: &Prepared, task: &str) {
    if let Some((class, object, _)) = prepared.operation() {
        // The object may have been destroyed meanwhile; the call will tell.
        let _ = state.db.remove_entry(class, object, "current_operations", task);
    }
}

/// Has patience with those who still let go of the disk. Whether they have is found out by the call.
async fn wait_for_vbds(core: &Core, prepared: &Prepared) {
    let Some(vdi) = prepared.waits_for_vbds_of() else {
        return;
    };
    let deadline = Instant::now() + core.data_destroy_patience;
    let mut changes = core.changes();
    while core.with(|state| cbt::is_held(state, vdi)) {
        if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn wait_for_events(core: &Core, prepared: &Prepared) -> ApiResult<Value> {
    let wait = Wait::new(&prepared.args)?;
    // Longer than any client waits, and a number that a clock can add.
    let patience = Duration::try_from_secs_f64(wait.timeout.clamp(0.0, 86_400.0)).unwrap_or_default();
    let deadline = Instant::now() + patience;
    let mut changes = core.changes();
    while !core.with(|state| {
        state.use_session(&prepared.args.session)?;
        Ok(wait.has_events(&state.db))
    })? {
        match timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) if wait.tasks_only() => {}
            Ok(Ok(())) => sleep(EVENT_BATCH.min(deadline.saturating_duration_since(Instant::now()))).await,
            Ok(Err(_)) | Err(_) => break,
        }
    }
    core.with(|state| Ok(wait.answer(&state.db)))
}
