//! An NBD client as XAPI's server needs it.
//!
//! That server speaks fixed newstyle with the options `EXPORT_NAME` and `STARTTLS` alone, answers one
//! request after the other by simple replies, wants whole sectors, and closes the connection behind
//! every error. There is no reconnecting here: the name of the export is a credential of the caller,
//! and a transfer that broke starts again.
//!
//! - [`Handshake`]: from a connection to an open export. Dialing and TLS are the caller's.
//! - [`Reader`]: extents of the disk in order, over up to 16 connections, asking ahead.
//! - [`Source`]: the same as a stream that an engine can move.

mod client;
mod error;
mod handshake;
mod reader;
mod source;
mod wire;

pub use client::Client;
pub use error::{Errno, NbdError};
pub use handshake::{ExportName, Handshake};
pub use reader::{Pace, Reader};
pub use source::Source;
pub use wire::Agreed;

/// Most connections to one disk. XAPI's server takes 16 a host, whatever the disk.
pub const MAX_CONNECTIONS: usize = 16;
