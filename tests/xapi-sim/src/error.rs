//! A failed call: the error code and its parameters, as they travel.

/// `[code, param, …]`, the only form in which XAPI tells an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code} {params:?}")]
pub(crate) struct ApiError {
    pub(crate) code: String,
    pub(crate) params: Vec<String>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new<S: Into<String>>(code: impl Into<String>, params: impl IntoIterator<Item = S>) -> Self {
        Self { code: code.into(), params: params.into_iter().map(Into::into).collect() }
    }

    pub(crate) fn bare(code: &str) -> Self {
        Self { code: code.to_owned(), params: Vec::new() }
    }

    pub(crate) fn handle_invalid(class: &str, reference: &str) -> Self {
        Self::new("HANDLE_INVALID", [class, reference])
    }

    pub(crate) fn session_invalid(session: &str) -> Self {
        Self::new("SESSION_INVALID", [session])
    }

    pub(crate) fn unknown_method(method: &str) -> Self {
        Self::new("MESSAGE_METHOD_UNKNOWN", [method])
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new("INTERNAL_ERROR", [message.into()])
    }

    pub(crate) fn not_allowed(reason: &str) -> Self {
        Self::new("OPERATION_NOT_ALLOWED", [reason])
    }

    /// What a broken raw disk transfer leaves in its task, whatever broke it.
    pub(crate) fn device_io() -> Self {
        Self::new("VDI_IO_ERROR", ["Device I/O errors"])
    }

    /// Storage manager errors carry an empty status, a text and the standard error output.
    pub(crate) fn backend(code: u32, text: &str) -> Self {
        Self::new(format!("SR_BACKEND_FAILURE_{code}"), ["", text, ""])
    }

    /// A full SR answers with the storage manager's code 44, not with `SR_FULL`.
    pub(crate) fn sr_full() -> Self {
        Self::backend(44, "There is insufficient space")
    }

    /// Code first, as in `ErrorDescription` and in `error_info` of a task.
    pub(crate) fn description(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.code.as_str()).chain(self.params.iter().map(String::as_str))
    }
}
