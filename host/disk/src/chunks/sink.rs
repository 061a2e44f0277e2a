//! The sink of a transfer that makes chunks.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::AsyncWrite;

use super::handover::Sender;
use super::{Assembler, BrokenOff, Buffers, Chunk, ChunkError, Follower};
use crate::transfer::{Layout, SocketWriter};

/// Takes a stream, as a sink of [`relay`](crate::transfer::relay()) and of [`lockstep`](crate::transfer::lockstep()), and hands its
/// chunks over. It lends no socket. Flushing it behind a complete stream is what tells the receiver of the end; dropped before, it
/// tells that the stream broke off.
#[derive(Debug)]
pub struct ChunkSink {
    follower: Follower,
    assembler: Assembler,
    out: Out,
}

impl ChunkSink {
    pub(super) fn new(layout: Layout<'_>, assembler: Assembler, sender: Sender) -> Self {
        let out = Out { sender, chunk_size: assembler.chunk_size(), handles: VecDeque::new() };
        Self { follower: Follower::new(layout), assembler, out }
    }

    /// Ends it before its stream did, and has the receiver told why.
    pub fn abort(self, why: impl Into<String>) {
        self.out.sender.end(Err(BrokenOff(why.into())));
    }

    /// Takes bytes of one kind, up to the end of a chunk; how many.
    fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { follower, assembler, out } = self;
        let (mut length, place) = follower.ahead(bytes.len());
        if let Some(offset) = place {
            // So at most one chunk is begun, and there is room for it.
            let (room, begun) = assembler.room(offset);
            length = usize::try_from(room).map_or(length, |room| room.min(length));
            if !begun {
                ready!(out.sender.poll_room(cx)).map_err(refused)?;
            }
        }
        let mut taken = Ok(());
        let fed = follower.feed(&bytes[..length], &mut |piece| {
            if taken.is_ok() {
                taken = assembler.take(piece, out);
            }
        });
        fed.and(taken).map_err(invalid)?;
        Poll::Ready(Ok(length))
    }

    /// Hands on what is left of a complete stream, and its end.
    fn end(&mut self) -> io::Result<()> {
        if self.follower.is_complete() {
            self.assembler.finish(&mut self.out).map_err(invalid)?;
            self.out.sender.end(Ok(()));
        }
        Ok(())
    }
}

impl AsyncWrite for ChunkSink {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sink = self.get_mut();
        if let Some(why) = sink.out.sender.refused() {
            return Poll::Ready(Err(refused(why)));
        }
        let mut taken = 0;
        while taken < bytes.len() {
            match sink.poll_take(cx, &bytes[taken..]) {
                Poll::Ready(more) => taken += more?,
                Poll::Pending if taken > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sink = self.get_mut();
        match sink.out.sender.refused() {
            Some(why) => Poll::Ready(Err(refused(why))),
            None => Poll::Ready(sink.end()),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl SocketWriter for ChunkSink {}

fn refused(why: BrokenOff) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, why)
}

fn invalid(error: ChunkError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Where chunks go, and their memory.
#[derive(Debug)]
struct Out {
    sender: Sender,
    chunk_size: usize,
    /// One for each buffer that was ever made. It is the only one as soon as the receiver has dropped the chunk, and then the
    /// buffer can be filled again.
    handles: VecDeque<BytesMut>,
}

impl Buffers for Out {
    fn empty(&mut self) -> BytesMut {
        for _ in 0..self.handles.len() {
            let Some(mut handle) = self.handles.pop_front() else { break };
            if handle.try_reclaim(self.chunk_size) {
                return handle;
            }
            self.handles.push_back(handle);
        }
        BytesMut::with_capacity(self.chunk_size)
    }

    fn full(&mut self, offset: u64, mut chunk: BytesMut) {
        let bytes = chunk.split().freeze();
        self.handles.push_back(chunk);
        self.sender.put(Chunk { offset, bytes });
    }
}
