//! Transfers: one stream, read once, checked on its way to every sink.
//!
//! An engine knows byte ends and nothing of XAPI. There is no queue inside of it: the slowest sink
//! sets the pace, and the source feels it through its socket. [`lockstep()`] takes any ends, [`relay()`] prefers
//! to let the kernel move the bytes. Which sinks a job cannot do without is not asked here: one that fails is
//! dropped and told, and the others go on.
//!
//! Dropping the future of a transfer ends it at once. The ends stay with the caller, who closes them.
//!
//! A transfer's success says that the stream was complete and that every byte was handed over.
//! Whether the other side made a disk of it, only the other side knows: XAPI answers an import
//! with 200 before it reads the body.

mod checks;
mod fan_out;
mod flow;
mod intake;
mod lockstep;
mod patience;
mod relay;
mod socket;
#[cfg(target_os = "linux")]
mod splice;
mod throttle;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use checks::{Content, Layout};
pub use lockstep::lockstep;
pub use relay::relay;
pub use socket::{SocketCall, SocketReader, SocketWriter, poll_readable, poll_writable};
pub(crate) use throttle::Gate;
pub use throttle::Throttle;

use crate::chunked::ChunkedError;
use crate::digest::Leaf;
use crate::vhd::VhdError;

/// How bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineName {
    /// One buffer, read, checked, and written to all sinks before the next read.
    Lockstep,
    /// The kernel moves the payload from socket to socket; only metadata is looked at. Linux alone has it.
    Splice,
    /// Buffers that are filled ahead of a sink that takes them on a thread of its own: [`chunks`](crate::chunks). What fills them
    /// is one of the others, so no transfer names it; it is that of one sink.
    Pooled,
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lockstep => "lockstep",
            Self::Splice => "splice",
            Self::Pooled => "pooled",
        })
    }
}

/// Why [`relay()`] moved a stream through user space.
#[derive(Debug, thiserror::Error)]
pub enum NotSpliced {
    /// Leaves are asked for, so the data has to be seen.
    #[error("the data is hashed on its way")]
    Digest,
    /// The `chunked` framing has too many frames to gain by it.
    #[error("the stream is not VHD")]
    Chunked,
    /// There is nothing to move the stream to.
    #[error("there is no sink")]
    NoSink,
    /// The source has no plain TCP socket.
    #[error("the source is not plain TCP")]
    Source,
    /// A sink has no plain TCP socket.
    #[error("sink {sink} is not plain TCP")]
    Sink {
        /// The first such sink.
        sink: usize,
    },
    /// The kernel refused.
    #[error("the kernel does not splice here: {0}")]
    Kernel(io::Error),
}

/// Watches a transfer. Called for each read and each write, from inside of it: count and return.
pub trait Progress: Send + Sync {
    /// The source gave `bytes` more. The head, read before, is counted at the start.
    fn read(&self, bytes: u64);
    /// The `sink`th sink took `bytes` more.
    fn written(&self, sink: usize, bytes: u64);
    /// A number that grows while the source works and gives nothing, as one that compares much and finds little to
    /// send: see [`Resync::work`](crate::chunked::Resync::work). Such a source has not stalled.
    fn work(&self) -> u64 {
        0
    }
    /// The same of the `sink`th sink, which may write without taking anything, or wait for a limit of its own: see
    /// [`Part::work`](crate::part::Part::work).
    fn sink_work(&self, _sink: usize) -> u64 {
        0
    }
}

/// Nobody watches.
impl Progress for () {
    fn read(&self, _: u64) {}
    fn written(&self, _: usize, _: u64) {}
}

/// What a transfer does besides moving bytes.
pub struct Options<'a> {
    /// Takes the digest of every 64 KiB of disk that the stream sets. With it, a stream that sets a
    /// part of a leaf fails. The leaves mean something only if the transfer succeeds.
    pub leaves: Option<&'a mut (dyn FnMut(u64, Leaf) + Send)>,
    /// Told of every read and write.
    pub progress: &'a dyn Progress,
    /// All of them have to let a read pass. One that is listed twice counts each byte twice, as for a link
    /// that two of the sinks are behind.
    pub throttles: &'a [Arc<Throttle>],
    /// A side that is waited for and moves no byte for this long has stalled. A side that is
    /// slow, or that waits for the other one or for a throttle, has not.
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
    /// Why [`relay()`] did not let the kernel do it.
    pub not_spliced: Option<NotSpliced>,
    /// Bytes of the stream, head included.
    pub bytes_read: u64,
    /// The sinks, in the order they were given.
    pub sinks: Vec<SinkOutcome>,
    /// What the stream held.
    pub content: Content,
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
    #[error("the source ended at byte {at}{}: the stream is cut", of(*.expected))]
    Truncated {
        /// Bytes of the stream read.
        at: u64,
        /// Bytes that its head promised. A `chunked` stream promises nothing.
        expected: Option<u64>,
    },
    /// The stream's bytes are not what its head promised.
    #[error("the VHD stream is damaged")]
    Structure(#[from] VhdError),
    /// The stream's frames are not what was planned.
    #[error("the chunked stream is damaged")]
    Framing(#[from] ChunkedError),
    /// A bitmap leaves out a sector of a block. XAPI's exports never do, so it is a flipped bit, and that sector
    /// would be missing on the target.
    #[error("the stream sends a block of the disk without the sector at disk byte {disk_offset}")]
    PartialBitmap {
        /// Where that sector starts on the disk.
        disk_offset: u64,
    },
    /// The stream sets a part of a digest leaf, so that the leaf cannot be known.
    #[error("the stream sets only a part of the 64 KiB of disk from byte {disk_offset} on: no digest can be made")]
    PartialLeaf {
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

fn of(expected: Option<u64>) -> String {
    expected.map_or_else(String::new, |expected| format!(" of {expected}"))
}
