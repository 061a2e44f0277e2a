//! Transfers: one stream, read once, checked on its way to every sink.
//!
//! An engine knows byte ends and nothing of XAPI. There is no queue inside of it: the slowest sink
//! sets the pace, and the source feels it through its socket.
//!
//! A transfer's success says that the stream was complete and that every byte was handed over.
//! Whether the other side made a disk of it, only the other side knows: XAPI answers an import
//! with 200 before it reads the body.

mod fan_out;
mod intake;
mod lockstep;

use std::fmt;
use std::io;
use std::time::Duration;

pub use lockstep::lockstep;

use crate::digest::Leaf;
use crate::vhd::{ScanReport, VhdError};

/// How bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineName {
    /// One buffer, read, checked, and written to all sinks before the next read.
    Lockstep,
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lockstep => "lockstep",
        })
    }
}

/// Watches a transfer. Called for each read and each write, from inside of it: count and return.
pub trait Progress: Send + Sync {
    /// The source gave `bytes` more. The head, read before, is counted at the start.
    fn read(&self, bytes: u64);
    /// The `sink`th sink took `bytes` more.
    fn written(&self, sink: usize, bytes: u64);
}

/// Nobody watches.
impl Progress for () {
    fn read(&self, _: u64) {}
    fn written(&self, _: usize, _: u64) {}
}

/// What a transfer does besides moving bytes.
pub struct Options<'a> {
    /// Takes the digest of every 64 KiB of disk that the stream sets. With it, a bitmap that sets a
    /// part of a leaf fails the transfer. The leaves mean something only if the transfer succeeds.
    pub leaves: Option<&'a mut (dyn FnMut(u64, Leaf) + Send)>,
    /// Told of every read and write.
    pub progress: &'a dyn Progress,
    /// A side that is waited for and moves no byte for this long has stalled. A side that is
    /// slow, or that waits for the other one, has not.
    pub stall: Duration,
    /// In place of `stall` for the first wait on each side: XAPI answers before it attaches the
    /// disk, which can take minutes, while a socket already takes bytes.
    pub first_byte: Duration,
}

/// A transfer whose stream was complete. Each sink has its own result.
#[derive(Debug)]
pub struct Outcome {
    /// The engine that did it.
    pub engine: EngineName,
    /// Bytes of the stream, head included.
    pub bytes_read: u64,
    /// The sinks, in the order they were given.
    pub sinks: Vec<SinkOutcome>,
    /// What the stream held.
    pub scan: ScanReport,
}

/// What became of a sink.
#[derive(Debug)]
pub struct SinkOutcome {
    /// Bytes that it took, head included.
    pub bytes_written: u64,
    /// `Ok` if it took and flushed the whole stream.
    pub result: Result<(), SinkError>,
}

/// Why a sink was dropped from a transfer.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Writing failed.
    #[error("the sink failed at byte {at}")]
    Io {
        /// Bytes that it took before.
        at: u64,
        /// What it said.
        source: io::Error,
    },
    /// It takes no more bytes.
    #[error("the sink closed at byte {at}")]
    Closed {
        /// Bytes that it took before.
        at: u64,
    },
    /// It moved no byte for too long.
    #[error("the sink stalled at byte {at}: nothing taken for {} s", .waited.as_secs())]
    Stalled {
        /// Bytes that it took before.
        at: u64,
        /// The limit that it broke.
        waited: Duration,
    },
}

/// Why a transfer failed. No living sink has got the end of the stream then.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Source side: reading failed.
    #[error("the source failed at byte {at}")]
    Source {
        /// Bytes of the stream read before.
        at: u64,
        /// What it said.
        source: io::Error,
    },
    /// Source side: no byte for too long.
    #[error("the source stalled at byte {at}: nothing came for {} s", .waited.as_secs())]
    SourceStalled {
        /// Bytes of the stream read before.
        at: u64,
        /// The limit that it broke.
        waited: Duration,
    },
    /// Source side: the stream ended early. To HTTP this looks like success.
    #[error("the source ended at byte {at} of {expected}: the stream is cut")]
    Truncated {
        /// Bytes of the stream read.
        at: u64,
        /// Bytes that its head promised.
        expected: u64,
    },
    /// The stream's bytes are not what its head promised.
    #[error("the stream is damaged")]
    Structure(#[from] VhdError),
    /// The stream sets a part of a digest leaf, so that the leaf cannot be known. XAPI exports
    /// never do.
    #[error("the stream sets only a part of the 64 KiB of disk from byte {disk_offset} on: no digest can be made")]
    PartialBitmap {
        /// Where the leaf starts on the disk.
        disk_offset: u64,
    },
    /// Sink side: all sinks failed, so the source was not read any further.
    #[error("no sink is left at byte {at}{}", first_failure(.sinks))]
    NoSinkLeft {
        /// Bytes of the stream read.
        at: u64,
        /// How each of them failed.
        sinks: Vec<SinkOutcome>,
    },
}

fn first_failure(sinks: &[SinkOutcome]) -> String {
    let failure = sinks.iter().find_map(|sink| sink.result.as_ref().err());
    failure.map_or_else(String::new, |error| format!(": {error}"))
}
