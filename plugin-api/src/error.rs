//! Ways to say that something failed.

use crate::{Error, ErrorCode};

/// The code that `seal.open` and `restore.finish` fail with.
const DAMAGED: &str = "damaged";

impl Error {
    /// The settings are wrong. The message names the key and says what is expected.
    pub fn config(message: impl Into<String>) -> Self {
        Self::with_code(ErrorCode::Config, message)
    }

    /// Something outside failed that may work later; the host may ask again after so many seconds.
    pub fn unavailable(message: impl Into<String>, retry_after_seconds: u64) -> Self {
        Self { retry_after: Some(retry_after_seconds), ..Self::with_code(ErrorCode::Unavailable, message) }
    }

    /// The named thing does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::with_code(ErrorCode::NotFound, message)
    }

    /// Stored bytes are not what was stored.
    pub fn damaged(message: impl Into<String>) -> Self {
        Self::with_code(ErrorCode::Other(DAMAGED.to_owned()), message)
    }

    /// Whether stored bytes are not what was stored, in the plugin's words or the host's.
    pub fn is_damaged(&self) -> bool {
        matches!(&self.code, ErrorCode::Other(code) if code == DAMAGED)
    }

    /// A failure that asking again would not cure.
    pub fn with_code(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after: None, extensions: Vec::new() }
    }
}
