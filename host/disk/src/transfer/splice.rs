//! The engine that leaves the payload in the kernel. It looks at bitmaps and the last footer and nothing else.
//!
//! ```text
//! source's socket ── splice ──> intake pipe ── splice ──────────────────> socket of the last living sink
//!                                    └─ tee ──> a sink's own pipe ── splice ──> that sink's socket
//! ```
//!
//! `tee` shares pages, so a further sink costs no copy. Between two pieces the pipes of living sinks are empty.
//!
//! The kernel may refuse any of these calls. Pipes, `tee` and every sink's socket are tried with the first
//! bitmap, which is still at hand when one of them fails; the source's socket with the first read of payload,
//! which has moved nothing when it fails. So a refusal comes before the first byte of payload, and the
//! transfer goes on in lockstep.

use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::net::{SendFlags, send};
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice as splice_fds, tee,
};
use tokio::net::TcpStream;

use super::fan_out::FanOut;
use super::flow::Flow;
use super::intake::Intake;
use super::socket::{SocketReader, SocketWriter};
use super::{NotSpliced, TransferError};
use crate::vhd::SECTOR_SIZE;

/// What an unprivileged process may ask for (`fs.pipe-max-size`). With 64 KiB it takes a quarter more CPU.
const PIPE_SIZE: usize = 1 << 20;

/// What a new pipe holds by default. The kernel gives less to a user who has many; lockstep is better then.
const MIN_PIPE_SIZE: usize = 64 << 10;

/// Moves a VHD stream whose head the sinks have got. If the kernel refuses, it says why, and the rest of the
/// stream is for another engine.
pub(super) async fn splice<R, W>(flow: &mut Flow<'_, R, W>) -> Result<Option<NotSpliced>, TransferError>
where
    R: SocketReader,
    W: SocketWriter,
{
    let pipes = match Pipes::new(flow.sinks.count()) {
        Ok(pipes) => pipes,
        Err(refusal) => return Ok(Some(NotSpliced::Kernel(refusal))),
    };
    let mut tried = false;
    while flow.goes_on() {
        let opaque = usize::try_from(flow.checks.opaque()).unwrap_or(usize::MAX);
        if opaque == 0 {
            let metadata = flow.checks.metadata() as usize;
            let filled = flow.take(metadata).await?;
            let bytes = &flow.buffer[..filled];
            if flow.is_complete() {
                flow.sinks.write(bytes).await;
            } else if tried {
                announce(&mut flow.sinks, bytes).await;
            } else {
                tried = true;
                if let Some(refusal) = pipes.attempt(&mut flow.sinks, bytes).await {
                    return Ok(Some(NotSpliced::Kernel(refusal)));
                }
            }
        } else if !tried || flow.intake.gives_without_socket() {
            flow.copy(opaque).await?;
        } else {
            match flow.intake.splice(&pipes.intake, opaque.min(pipes.size)).await? {
                Ok(moved) => {
                    flow.checks.skip(moved as u64)?;
                    // Here a refusal is the failure of the sink.
                    pipes.pass_on(&mut flow.sinks, moved, None).await;
                }
                Err(refusal) => return Ok(Some(NotSpliced::Kernel(refusal))),
            }
        }
    }
    Ok(None)
}

/// Sends metadata, with a word to the kernel that data follows, which spares a small packet.
async fn announce<W: SocketWriter>(sinks: &mut FanOut<'_, W>, bytes: &[u8]) {
    let flags = SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sinks.begin_piece();
    sinks
        .hand_on(bytes.len(), |_, lane, cx| {
            let rest = &bytes[lane.taken()..];
            let mut call = |tcp: &TcpStream| Ok(retry_on_intr(|| send(tcp, rest, flags))?);
            Pin::new(&mut *lane.writer).poll_write_call(cx, &mut call)
        })
        .await;
}

impl<R: SocketReader> Intake<'_, R> {
    /// The next bytes do not come from the socket, or none come at all.
    fn gives_without_socket(&self) -> bool {
        self.has_ended() || self.reader().read_ahead() > 0
    }

    /// Moves at most `most` bytes from the socket into an empty pipe; 0 at the end of the stream. The inner error is
    /// the kernel's, which does not do such a thing.
    async fn splice(&mut self, pipe: &Pipe, most: usize) -> Result<io::Result<usize>, TransferError> {
        let most = self.allowance(most).await;
        let mut call = |tcp: &TcpStream| move_bytes(tcp, &pipe.writer, most);
        let moved = self.wait(|reader, cx| Pin::new(reader).poll_read_call(cx, &mut call)).await?;
        match moved {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(Err(error)),
            moved => {
                let bytes = moved.as_ref().map_or(0, |bytes| *bytes);
                self.came(moved);
                Ok(Ok(bytes))
            }
        }
    }
}

/// The pipes of a transfer, all of one size. The kernel counts it in slots of a page each, so what fits into one
/// pipe fits into any other.
struct Pipes {
    intake: Pipe,
    /// For each sink but the last, which is never served by a copy.
    copies: Vec<Pipe>,
    size: usize,
}

impl Pipes {
    fn new(sinks: usize) -> io::Result<Self> {
        let intake = Pipe::new()?;
        let copies = (1..sinks).map(|_| Pipe::new()).collect::<io::Result<Vec<_>>>()?;
        let mut size = PIPE_SIZE;
        for pipe in copies.iter().chain([&intake]) {
            size = size.min(pipe.resize(PIPE_SIZE)?);
        }
        if size < MIN_PIPE_SIZE {
            return Err(io::Error::other(format!("the kernel gives pipes of {size} bytes only")));
        }
        for pipe in copies.iter().chain([&intake]) {
            pipe.resize(size)?;
        }
        Ok(Self { intake, copies, size })
    }

    /// Sends the first metadata the way that payload goes. If the kernel refuses, it goes by ordinary writes.
    async fn attempt<W: SocketWriter>(&self, sinks: &mut FanOut<'_, W>, bytes: &[u8]) -> Option<io::Error> {
        let (first, rest) = bytes.split_at(bytes.len().min(SECTOR_SIZE));
        let refusal = match retry_on_intr(|| write(&self.intake.writer, first)) {
            Ok(written) if written == first.len() => self.pass_on(sinks, written, Some(first)).await,
            refused => {
                sinks.write(first).await;
                let short = io::Error::other("the kernel does not take a sector into a pipe");
                Some(refused.map_or_else(io::Error::from, |_| short))
            }
        };
        sinks.write(rest).await;
        refusal
    }

    /// Hands the `length` bytes in the intake pipe to every living sink; done when the slowest has taken them. If the
    /// kernel refuses and they are `at_hand`, they are written instead, and the refusal is told.
    async fn pass_on<W: SocketWriter>(
        &self,
        sinks: &mut FanOut<'_, W>,
        length: usize,
        at_hand: Option<&[u8]>,
    ) -> Option<io::Error> {
        let direct = (0..sinks.count()).rfind(|sink| sinks.lives(*sink))?;
        for (sink, copy) in self.copies.iter().enumerate() {
            if sink == direct || !sinks.lives(sink) {
                continue;
            }
            let Err(error) = self.intake.copy_to(copy, length) else { continue };
            if let Some(bytes) = at_hand {
                sinks.write(bytes).await;
                return Some(error);
            }
            sinks.fail(sink, error);
        }
        let mut refusal = None;
        let mut left = length;
        sinks.begin_piece();
        sinks
            .hand_on(length, |sink, lane, cx| {
                let pipe = if sink == direct { &self.intake } else { &self.copies[sink] };
                let most = length - lane.taken();
                let mut call = |tcp: &TcpStream| move_bytes(&pipe.reader, tcp, most);
                let moved = ready!(Pin::new(&mut *lane.writer).poll_write_call(cx, &mut call));
                match (moved, at_hand) {
                    (Err(error), Some(bytes)) if error.kind() == io::ErrorKind::Unsupported => {
                        refusal = Some(error);
                        let rest = &bytes[lane.taken()..];
                        Pin::new(&mut *lane.writer).poll_write(cx, rest)
                    }
                    (moved, _) => {
                        if sink == direct {
                            left -= *moved.as_ref().unwrap_or(&0);
                        }
                        Poll::Ready(moved)
                    }
                }
            })
            .await;
        if left > 0 {
            self.intake.discard(left);
        }
        refusal
    }
}

/// A pipe whose calls never wait.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, writer })
    }

    /// Asks for `size` bytes; how many it holds then.
    fn resize(&self, size: usize) -> io::Result<usize> {
        // More than it has may be refused, and then it has what it had.
        let _ = fcntl_setpipe_size(&self.writer, size);
        Ok(fcntl_getpipe_size(&self.writer)?)
    }

    /// Drops `length` bytes, all that a failed sink has left here.
    fn discard(&self, mut length: usize) {
        let mut space = [0; 4096];
        while length > 0 {
            match read(&self.reader, &mut space) {
                Ok(bytes) if bytes > 0 => length = length.saturating_sub(bytes),
                _ => break,
            }
        }
    }

    /// Copies the first `length` bytes into an empty pipe and leaves them here.
    fn copy_to(&self, other: &Self, length: usize) -> io::Result<()> {
        match retry_on_intr(|| tee(&self.reader, &other.writer, length, SpliceFlags::NONBLOCK)) {
            Ok(copied) if copied == length => Ok(()),
            Ok(copied) => Err(io::Error::other(format!("the kernel copied {copied} of {length} bytes of a pipe"))),
            Err(error) => Err(error.into()),
        }
    }
}

/// Moves at most `most` bytes. One of the two is a pipe.
fn move_bytes(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    // Data always follows a piece, at least the last footer, so the kernel may wait for it.
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK | SpliceFlags::MORE;
    retry_on_intr(|| splice_fds(&from, None, &to, None, most, flags)).map_err(|error| match error {
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM => {
            io::Error::new(io::ErrorKind::Unsupported, io::Error::from(error))
        }
        error => error.into(),
    })
}
