//! Tasks that clients make themselves, and how tasks end.

use super::Args;
use crate::error::ApiResult;
use crate::state::State;
use crate::value::{Value, datetime};

pub(super) fn run(state: &mut State, message: &str, args: &Args) -> Option<ApiResult<Value>> {
    match message {
        "create" => Some(state.create_task(args.text(0), args.text(1)).map(Value::String)),
        "destroy" => Some(destroy(state, args.text(0))),
        "cancel" => Some(cancel(state, args.text(0))),
        "set_status" => Some(set_status(state, args.text(0), args.text(1))),
        _ => None,
    }
}

fn destroy(state: &mut State, task: &str) -> ApiResult<Value> {
    state.db.remove("task", task)?;
    Ok(Value::void())
}

/// Only a wish: it shows in `current_operations`, and an operation that has a check point may notice it. Raw disk
/// transfers have none.
fn cancel(state: &mut State, task: &str) -> ApiResult<Value> {
    let wish = format!("OpaqueRef:{}", uuid::Uuid::new_v4());
    state.db.set_entry("task", task, "current_operations", &wish, "cancel")?;
    Ok(Value::void())
}

fn set_status(state: &mut State, task: &str, status: &str) -> ApiResult<Value> {
    state.db.set("task", task, "status", status)?;
    if status != "pending" && status != "cancelling" {
        let now = datetime(state.now());
        state.db.set("task", task, "finished", now)?;
        state.db.set("task", task, "progress", 1.0)?;
    }
    Ok(Value::void())
}
