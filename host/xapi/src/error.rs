//! What can go wrong between this client and a pool.

use std::error::Error as StdError;

use crate::api_error::ApiError;
use crate::decode::DecodeError;
use crate::xmlrpc::Malformed;

/// Whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Not before somebody changed something.
    Never,
    /// The same may succeed later by itself.
    Later,
}

/// A failure of a call or of a disk stream. No text of it holds a password or a session reference.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// XAPI answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),

    /// The connection could not be made, broke, or timed out.
    #[error("{address}: {during} failed: {source}; check that the host is up and reachable")]
    Transport {
        /// Host and port.
        address: String,
        /// The call or request under way.
        during: String,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },

    /// The host took longer to answer than it may.
    #[error("{address}: no answer to {during} within {seconds} s; check the host's load and its storage")]
    Timeout {
        /// Host and port.
        address: String,
        /// The call or request under way.
        during: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },

    /// The server's certificate does not satisfy the endpoint's [`Trust`](crate::Trust).
    #[error(
        "{address}: the certificate is not trusted ({reason}); if the host is the right one, set \
         certificate_sha256 = \"{presented_sha256}\", or ca_file to the authority that signed it"
    )]
    CertificateNotTrusted {
        /// Host and port.
        address: String,
        /// SHA-256 of the leaf certificate that was presented, in hexadecimal.
        presented_sha256: String,
        /// Why it is refused.
        reason: String,
    },

    /// TLS could not be set up for a reason other than trust.
    #[error("{address}: TLS failed: {reason}")]
    Tls {
        /// Host and port.
        address: String,
        /// What is wrong.
        reason: String,
    },

    /// An HTTP answer other than 200, be it in its place or in the body after an early 200.
    #[error("{address}: {during} was answered with HTTP {status}: {excerpt}")]
    Http {
        /// Host and port.
        address: String,
        /// The call or request under way.
        during: String,
        /// The status code.
        status: u16,
        /// The beginning of the body, without markup.
        excerpt: String,
    },

    /// The server's answer is not what the protocol allows.
    #[error("the answer to {during} is malformed: {reason} at byte {position}, near \"{snippet}\"")]
    Malformed {
        /// The call or request under way.
        during: String,
        /// What is wrong.
        reason: String,
        /// Where in the answer.
        position: u64,
        /// What stands there, references masked.
        snippet: String,
    },

    /// The answer is well-formed but not of the expected type.
    #[error("the answer to {during} has an unexpected form: {source}")]
    Decode {
        /// The call under way.
        during: String,
        /// Where and why.
        source: DecodeError,
    },

    /// An XML-RPC fault, which XAPI sends for calls it cannot dispatch.
    #[error("{method} cannot be called on this host: {text}")]
    Fault {
        /// The call.
        method: String,
        /// The fault's text.
        text: String,
    },

    /// A call that cannot be put on the wire.
    #[error("{during} cannot be sent: {reason}")]
    Unsendable {
        /// The call or request.
        during: String,
        /// Why not.
        reason: String,
    },

    /// The endpoint has no user and password.
    #[error("{address}: user and password are missing; set username and password_file, or put them into the URL")]
    NoCredentials {
        /// Host and port.
        address: String,
    },

    /// Hosts name each other as master in a circle, or the pool has none.
    #[error("no master was found; the last host asked was {last}, and it named another")]
    NoMaster {
        /// The last host asked.
        last: String,
    },

    /// The session was logged out by its owner.
    #[error("{method} was called on a session that is logged out")]
    LoggedOut {
        /// The call.
        method: String,
    },

    /// The task is gone: collected, or lost with a restart of the master. Its outcome is unknown.
    #[error("the task {task} vanished before its end was seen; whether its work was done has to be checked")]
    TaskVanished {
        /// Reference of the task.
        task: String,
    },

    /// The task was cancelled.
    #[error("the task {task} was cancelled")]
    TaskCancelled {
        /// Reference of the task.
        task: String,
    },

    /// The stream ended but its task did not.
    #[error("the stream is over, but its task {task} is still pending after {seconds} s")]
    TaskPending {
        /// Reference of the task.
        task: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },

    /// Disk streams are to take a network that does not lead to the host.
    #[error("{reason}")]
    Network {
        /// What is missing, and what to do.
        reason: String,
    },

    /// A redirect that is not followed.
    #[error("{during} is redirected to {location}, which is not followed: {reason}")]
    Redirect {
        /// The request.
        during: String,
        /// Scheme, host and port of the location.
        location: String,
        /// Why not.
        reason: String,
    },

    /// The connection ended before everything was sent.
    #[error("{address}: the connection ended after {bytes}{} bytes",
        .length.map_or_else(String::new, |length| format!(" of {length}")))]
    Cut {
        /// Host and port.
        address: String,
        /// Bytes handed to the connection. The host may have taken fewer.
        bytes: u64,
        /// Bytes promised, where that is known.
        length: Option<u64>,
    },

    /// The stream was closed by its user before its end, or written beyond it.
    #[error("the stream was finished at {bytes} bytes{}; read or write it to its end first, or abort it",
        .length.map_or_else(String::new, |length| format!(" instead of {length}")))]
    NotAtEnd {
        /// Bytes that went through.
        bytes: u64,
        /// Bytes promised, where that is known.
        length: Option<u64>,
    },

    /// The host's task failed, and the stream did, too.
    #[error("the transfer failed on the host: {task}; on the wire: {stream}")]
    Transfer {
        /// What the host says.
        #[source]
        task: ApiError,
        /// What happened to the stream.
        stream: Box<Self>,
    },
}

impl Error {
    /// Whether the same may succeed later by itself.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Api(e) | Self::Transfer { task: e, .. } => e.retry(),
            Self::Transport { .. }
            | Self::Timeout { .. }
            | Self::TaskVanished { .. }
            | Self::TaskPending { .. }
            | Self::Cut { .. } => Retry::Later,
            Self::Http { status, .. } if *status >= 500 || *status == 408 => Retry::Later,
            _ => Retry::Never,
        }
    }

    /// Whether the call may have been done, or may still be at work, all the same: the answer is what was lost.
    pub fn leaves_outcome_open(&self) -> bool {
        match self {
            Self::Transport { .. } => !self.was_not_sent(),
            Self::Timeout { .. }
            | Self::Http { .. }
            | Self::Malformed { .. }
            | Self::Decode { .. }
            | Self::TaskVanished { .. }
            | Self::TaskPending { .. } => true,
            _ => false,
        }
    }

    /// The error of XAPI in it, if there is one.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(e) | Self::Transfer { task: e, .. } => Some(e),
            _ => None,
        }
    }

    pub(crate) fn transport(
        address: impl Into<String>,
        during: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self::Transport { address: address.into(), during: during.into(), source: source.into() }
    }

    /// A failure to connect.
    pub(crate) fn unsent(address: impl Into<String>, during: impl Into<String>, reason: String) -> Self {
        Self::transport(address, during, NotConnected(reason))
    }

    /// Whether the connection could not even be made, so that the host has not seen the call.
    pub(crate) fn was_not_sent(&self) -> bool {
        matches!(self, Self::Transport { source, .. } if source.is::<NotConnected>())
    }

    /// The same of a question about a call that had been sent: that this one was not sent says nothing about that one.
    pub(crate) fn after_it_was_sent(self) -> Self {
        match self {
            Self::Transport { address, during, source } if source.is::<NotConnected>() => {
                Self::transport(address, during, source.to_string())
            }
            other => other,
        }
    }

    pub(crate) fn malformed(during: &str, malformed: Malformed) -> Self {
        let Malformed { reason, position, snippet } = malformed;
        Self::Malformed { during: during.to_owned(), reason, position, snippet }
    }

    pub(crate) fn decode(during: &str, source: DecodeError) -> Self {
        Self::Decode { during: during.to_owned(), source }
    }
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotConnected(String);
