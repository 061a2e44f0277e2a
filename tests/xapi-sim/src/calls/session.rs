//! Logging in and out.

use super::Args;
use crate::error::{ApiError, ApiResult};
use crate::state::State;
use crate::value::Value;

pub(super) fn run(state: &mut State, message: &str, args: &Args) -> Option<ApiResult<Value>> {
    match message {
        "login_with_password" => Some(login(state, args)),
        "logout" => {
            state.close_session(&args.session);
            Some(Ok(Value::void()))
        }
        _ => None,
    }
}

fn login(state: &mut State, args: &Args) -> ApiResult<Value> {
    // A member refuses the login, and only the login, and names the master.
    if let Some(master) = &state.master_address {
        return Err(ApiError::new("HOST_IS_SLAVE", [master.as_str()]));
    }
    let (user, password) = (args.text(0), args.text(1));
    if user != state.username || password != state.password {
        return Err(ApiError::new("SESSION_AUTHENTICATION_FAILED", [user, "Authentication failure"]));
    }
    state.open_session(args.text(3)).map(Value::String)
}
