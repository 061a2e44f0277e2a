//! One connection with an open export: requests go out, payload comes in.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::NbdError;
use super::wire::{self, SimpleReply};
use crate::extent::Extent;

/// A connection to an NBD server with an open export. Made by [`Handshake`](super::Handshake), read
/// through a [`Reader`](super::Reader).
///
/// Payload is given in the order of the requests. XAPI's server answers in that order; payload of a
/// server that does not is kept until its turn comes.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    size: u64,
    /// Requests whose payload was not given out in full, oldest first. Their cookies follow each other.
    in_flight: VecDeque<Request>,
    next_cookie: u64,
    reply: Reply,
    /// Emptied buffers of payload that came before its turn.
    spare: Vec<Vec<u8>>,
    /// Requests on their way out.
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that the stream took.
    sent: usize,
    flushed: bool,
    /// Sending has failed. What the server said before it closed is still read; then reading fails as well.
    mute: bool,
}

#[derive(Debug)]
struct Request {
    cookie: u64,
    extent: Extent,
    /// Its reply has begun.
    answered: bool,
    /// Bytes of payload given out.
    given: u64,
    /// Payload that came before its turn, from its first byte on.
    early: Vec<u8>,
}

/// What the next byte from the server is.
#[derive(Debug, Clone, Copy)]
enum Reply {
    /// A reply's start, of which `filled` bytes came.
    Start { raw: [u8; wire::REPLY], filled: usize },
    /// Payload, of which `left` bytes are to come.
    Payload { cookie: u64, left: u64 },
}

/// Bytes read at a time of payload whose turn has not come.
const EARLY_READ: u64 = 64 << 10;

const NEW_REPLY: Reply = Reply::Start { raw: [0; wire::REPLY], filled: 0 };

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// A connection behind its handshake.
    pub(super) fn new(stream: S, size: u64) -> Self {
        Self {
            stream,
            size,
            in_flight: VecDeque::new(),
            next_cookie: 0,
            reply: NEW_REPLY,
            spare: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            flushed: true,
            mute: false,
        }
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Says goodbye when everything was read, so that the server lets go of the disk at once. Dropping the
    /// client does the same as soon as the server notices.
    pub async fn disconnect(mut self) -> io::Result<()> {
        self.stream.write_all(&wire::encode_disconnect()).await?;
        self.stream.flush().await?;
        self.stream.shutdown().await
    }

    /// Takes a request, of at most `u32::MAX` bytes and not empty; it goes out with the next poll.
    pub(super) fn request(&mut self, extent: Extent) {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.outgoing.extend_from_slice(&wire::encode_read(cookie, extent));
        self.in_flight.push_back(Request { cookie, extent, answered: false, given: 0, early: Vec::new() });
    }

    /// Sends what the stream takes. It fails later, by [`poll_payload`](Self::poll_payload).
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) {
        self.mute = self.mute || matches!(self.poll_send_all(cx), Poll::Ready(Err(_)));
    }

    fn poll_send_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outgoing[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
            self.flushed = false;
        }
        self.outgoing.clear();
        self.sent = 0;
        if !self.flushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives payload of the oldest request: at least a byte, at most what `buffer` holds. `buffer` is
    /// not empty, and there is a request.
    pub(super) fn poll_payload(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<Given, NbdError>> {
        loop {
            if let Some(given) = self.give_early(buffer) {
                return Poll::Ready(Ok(given));
            }
            match self.reply {
                Reply::Start { .. } => ready!(self.poll_start(cx))?,
                Reply::Payload { cookie, left } if self.is_oldest(cookie) => {
                    let room = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                    let taken = ready!(self.poll_read(cx, &mut buffer[..room]))?;
                    self.payload_came(cookie, left, taken);
                    return Poll::Ready(Ok(self.give(taken)));
                }
                Reply::Payload { cookie, left } => ready!(self.poll_early(cx, cookie, left))?,
            }
        }
    }

    /// Reads the start of a reply.
    fn poll_start(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NbdError>> {
        let Reply::Start { mut raw, filled } = self.reply else { return Poll::Ready(Ok(())) };
        let taken = ready!(self.poll_read(cx, &mut raw[filled..]))?;
        let filled = filled + taken;
        self.reply = Reply::Start { raw, filled };
        if filled < wire::REPLY {
            return Poll::Ready(Ok(()));
        }
        let offset = self.wanted();
        let reply = SimpleReply::decode(&raw).map_err(|found| NbdError::BadReply { offset, found })?;
        let request = self.request_mut(reply.cookie).filter(|request| !request.answered);
        let request = request.ok_or(NbdError::UnknownCookie { offset, found: reply.cookie })?;
        let Extent { offset, length } = request.extent;
        if let Some(errno) = reply.error {
            return Poll::Ready(Err(NbdError::Refused { offset, length, errno }));
        }
        request.answered = true;
        self.reply = Reply::Payload { cookie: reply.cookie, left: length };
        Poll::Ready(Ok(()))
    }

    /// Reads payload whose turn has not come.
    fn poll_early(&mut self, cx: &mut Context<'_>, cookie: u64, left: u64) -> Poll<Result<(), NbdError>> {
        let Some(request) = self.request_mut(cookie) else { return Poll::Ready(Ok(())) };
        let mut early = std::mem::take(&mut request.early);
        if early.capacity() == 0 {
            early = self.spare.pop().unwrap_or_default();
            early.reserve(left as usize);
        }
        let filled = early.len();
        early.resize(filled + left.min(EARLY_READ) as usize, 0);
        let read = self.poll_read(cx, &mut early[filled..]);
        let taken = match &read {
            Poll::Ready(Ok(taken)) => *taken,
            _ => 0,
        };
        early.truncate(filled + taken);
        if let Some(request) = self.request_mut(cookie) {
            request.early = early;
        }
        ready!(read)?;
        self.payload_came(cookie, left, taken);
        Poll::Ready(Ok(()))
    }

    fn payload_came(&mut self, cookie: u64, left: u64, taken: usize) {
        self.reply = match left - taken as u64 {
            0 => NEW_REPLY,
            left => Reply::Payload { cookie, left },
        };
    }

    /// Payload of the oldest request that came before its turn.
    fn give_early(&mut self, buffer: &mut [u8]) -> Option<Given> {
        let oldest = self.in_flight.front()?;
        let early = oldest.early.get(oldest.given as usize..).filter(|early| !early.is_empty())?;
        let taken = early.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&early[..taken]);
        Some(self.give(taken))
    }

    /// Counts payload of the oldest request that goes out now, and forgets a request that has had all.
    fn give(&mut self, bytes: usize) -> Given {
        let offset = self.wanted();
        let Some(oldest) = self.in_flight.front_mut() else {
            return Given { offset, bytes, last: true };
        };
        oldest.given += bytes as u64;
        let last = oldest.given == oldest.extent.length;
        if last
            && let Some(Request { mut early, .. }) = self.in_flight.pop_front()
            && !early.is_empty()
        {
            early.clear();
            self.spare.push(early);
        }
        Given { offset, bytes, last }
    }

    /// Reads at least a byte.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize, NbdError>> {
        let mut buffer = ReadBuf::new(buffer);
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
        let offset = self.wanted();
        Poll::Ready(match (read, buffer.filled().len()) {
            (Ok(()), 0) => Err(NbdError::Closed { offset }),
            (Ok(()), taken) => Ok(taken),
            // TLS says so of a peer that closes without a farewell.
            (Err(error), _) if error.kind() == io::ErrorKind::UnexpectedEof => Err(NbdError::Closed { offset }),
            (Err(source), _) => Err(NbdError::Io { offset, source }),
        })
    }

    /// The byte of the disk that is to come next.
    fn wanted(&self) -> u64 {
        self.in_flight.front().map_or(0, |oldest| oldest.extent.offset + oldest.given)
    }

    fn is_oldest(&self, cookie: u64) -> bool {
        self.in_flight.front().is_some_and(|oldest| oldest.cookie == cookie)
    }

    fn request_mut(&mut self, cookie: u64) -> Option<&mut Request> {
        let oldest = self.in_flight.front()?.cookie;
        let index = usize::try_from(cookie.checked_sub(oldest)?).ok()?;
        self.in_flight.get_mut(index)
    }
}

/// Payload that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    /// Where on the disk it belongs.
    pub(super) offset: u64,
    pub(super) bytes: usize,
    /// The request has had all of its payload.
    pub(super) last: bool,
}
