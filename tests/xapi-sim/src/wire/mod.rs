//! The bytes: HTTP heads, XML-RPC, JSON-RPC.

pub(crate) mod http;
pub(crate) mod jsonrpc;
pub(crate) mod xmlrpc;

use crate::value::Value;

/// A call as either encoding carries it. The session, where there is one, is the first parameter.
#[derive(Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) params: Vec<Value>,
}

/// The request could not be understood; XAPI answers 500 with a page and closes.
#[derive(Debug, thiserror::Error)]
#[error("malformed request: {0}")]
pub(crate) struct Malformed(pub(crate) String);
