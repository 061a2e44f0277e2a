//! What can go wrong between us and an NBD server. No text holds an export name, which is a secret.

use std::fmt;
use std::io;

/// What a server says by the error field of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Errno {
    /// 1: not permitted.
    NotPermitted,
    /// 5: the storage failed.
    Io,
    /// 12: out of memory.
    OutOfMemory,
    /// 22: a request that the server does not understand, or not for whole sectors.
    Invalid,
    /// 28: no space.
    NoSpace,
    /// 75: too much was asked for.
    TooLarge,
    /// 95: not supported.
    NotSupported,
    /// 108: the server is going down.
    Shutdown,
    /// Any other number.
    Other(u32),
}

impl Errno {
    /// The error behind a number; `None` is success.
    pub(super) fn from_wire(error: u32) -> Option<Self> {
        Some(match error {
            0 => return None,
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::OutOfMemory,
            22 => Self::Invalid,
            28 => Self::NoSpace,
            75 => Self::TooLarge,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            other => Self::Other(other),
        })
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPermitted => "not permitted",
            Self::Io => "its storage failed",
            Self::OutOfMemory => "out of memory",
            Self::Invalid => "invalid request",
            Self::NoSpace => "no space",
            Self::TooLarge => "too large a request",
            Self::NotSupported => "not supported",
            Self::Shutdown => "it is shutting down",
            Self::Other(other) => return write!(f, "error {other}"),
        })
    }
}

/// Why the connection to an NBD server is of no more use. Offsets are bytes of the disk.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The connection failed before the export was open.
    #[error("the NBD handshake failed: {doing}")]
    Handshake {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The other side speaks something else.
    #[error("no NBD server: it greets with {:?}", String::from_utf8_lossy(.found))]
    NotNbd {
        /// Its first bytes.
        found: [u8; 8],
    },
    /// It speaks a form of NBD without options, hence without TLS.
    #[error("the NBD server does not speak the fixed newstyle protocol")]
    NotNewstyle,
    /// Its answer to an option is none.
    #[error("the NBD server's answer to an option makes no sense: {what}")]
    BadOptionReply {
        /// What is wrong with it.
        what: &'static str,
    },
    /// It does not do TLS.
    #[error(
        "the NBD server refuses TLS (reply {reply:#010x}): give the network the purpose `nbd` instead of `insecure_nbd`"
    )]
    TlsRefused {
        /// The type of its reply.
        reply: u32,
    },
    /// It closed the connection when asked for the export; the protocol has no other way to say no.
    #[error(
        "the NBD server closed the connection in place of opening the export: the session or the disk is gone, \
         all of its connections are taken, or it demands TLS"
    )]
    ExportRefused,
    /// There is nothing to read through.
    #[error("{count} NBD connections to one disk, 1 to {most} were expected")]
    BadConnectionCount {
        /// How many were given.
        count: usize,
        /// How many a server takes.
        most: usize,
    },
    /// The export is smaller than the disk.
    #[error("the NBD export has {size} bytes, but bytes up to {end} are to be read: it is of another disk")]
    ExportTooSmall {
        /// Size of the export in bytes.
        size: u64,
        /// First byte that is not to be read.
        end: u64,
    },
    /// The server refused to read.
    #[error("the NBD server cannot read {length} bytes at byte {offset}: {errno}")]
    Refused {
        /// First byte of the request.
        offset: u64,
        /// Bytes of the request.
        length: u64,
        /// What the server says.
        errno: Errno,
    },
    /// A reply that is none.
    #[error("the NBD server's reply for byte {offset} starts with {found:#010x}: the connection is out of step")]
    BadReply {
        /// First byte of the oldest request.
        offset: u64,
        /// In place of the magic number.
        found: u32,
    },
    /// A reply to something that was not asked for.
    #[error("the NBD server replies to request {found}, which is none of those under way from byte {offset} on")]
    UnknownCookie {
        /// First byte of the oldest request.
        offset: u64,
        /// The reply's cookie.
        found: u64,
    },
    /// The connection failed.
    #[error("the NBD connection failed at byte {offset}")]
    Io {
        /// First byte that did not come.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The connection ended.
    #[error("the NBD server closed the connection at byte {offset}")]
    Closed {
        /// First byte that did not come.
        offset: u64,
    },
    /// It was told before why nothing comes any more.
    #[error("reading by NBD has failed before")]
    FailedBefore,
}

impl From<NbdError> for io::Error {
    /// Never [`io::ErrorKind::UnexpectedEof`], which readers of streams take for an end.
    fn from(error: NbdError) -> Self {
        let kind = match &error {
            NbdError::Io { source, .. } if source.kind() != io::ErrorKind::UnexpectedEof => source.kind(),
            NbdError::Io { .. } | NbdError::Closed { .. } => io::ErrorKind::ConnectionAborted,
            NbdError::BadReply { .. } | NbdError::UnknownCookie { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
