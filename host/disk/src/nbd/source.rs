//! A disk read by NBD that looks like a stream.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Client, NbdError, Pace, Reader};
use crate::chunked::Plan;
use crate::extent::Extent;
use crate::framing::{Framing, Payload};
use crate::vhd::Writer;

/// A stream whose payload comes by NBD: `chunked` frames of a plan, or the VHD that a writer laid out.
///
/// Payload is read into the caller's buffer and copied nowhere else. What is read ahead waits in the
/// sockets: no more than a [`Pace`] on each connection.
#[derive(Debug)]
pub struct Source<S> {
    reader: Reader<S>,
    framing: Framing,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Source<S> {
    /// All of a plan as `chunked` frames of at most [`MAX_FRAME`](crate::chunked::MAX_FRAME). Nothing is left out, even if the plan
    /// allows it: that is what [`Resync`](crate::chunked::Resync) does.
    pub fn chunked(clients: Vec<Client<S>>, plan: &Plan, pace: Pace) -> Result<Self, NbdError> {
        Self::new(clients, Framing::chunked(plan), pace)
    }

    /// The VHD that `writer` laid out. Its head comes first, to be read by [`Head::read`](crate::vhd::Head::read) as that of any
    /// other VHD source.
    pub fn vhd(clients: Vec<Client<S>>, writer: &Writer, pace: Pace) -> Result<Self, NbdError> {
        Self::new(clients, Framing::vhd(writer), pace)
    }

    fn new(clients: Vec<Client<S>>, framing: Framing, pace: Pace) -> Result<Self, NbdError> {
        let reader = Reader::new(clients, Arc::clone(framing.extents()), pace)?;
        Ok(Self { reader, framing })
    }

    /// The connections, to be closed.
    pub fn into_clients(self) -> Vec<Client<S>> {
        self.reader.into_clients()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Source<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { reader, framing } = self.get_mut();
        framing.poll_read(cx, buffer, reader)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Payload for Reader<S> {
    /// The reader has the same ranges, so it gives what comes next without being told.
    fn poll_fill(&mut self, cx: &mut Context<'_>, _: Extent, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let given = ready!(self.poll_read(cx, buffer))?;
        Poll::Ready(Ok(given.map_or(0, |given| given.bytes)))
    }
}
