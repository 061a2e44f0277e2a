//! Ends that lend their TCP socket, so that the kernel can move bytes from one to the other.
//!
//! The end keeps its socket, its counters and its errors: it waits until the socket is ready, makes
//! the call that it is given, and treats the outcome as that of a read or write of its own.
//!
//! ```text
//! splice ── poll_read_call(call) ──> Export: waits for its socket, call(&tcp), counts the bytes
//! ```

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;

/// A system call on a non-blocking socket. `Ok` has the bytes of the stream that it moved.
///
/// It fails with [`io::ErrorKind::WouldBlock`] when the socket is not ready, and with
/// [`io::ErrorKind::Unsupported`] when the kernel refuses this kind of call: nothing was moved and
/// the socket is as good as before.
pub type SocketCall<'a> = dyn FnMut(&TcpStream) -> io::Result<usize> + 'a;

/// A reader that may lend its socket. By default it has none.
pub trait SocketReader: AsyncRead + Unpin {
    /// Whether the bytes of the stream lie on a TCP socket as they are, so not under TLS. The
    /// answer does not change while the stream is read.
    fn lends_socket(&self) -> bool {
        false
    }

    /// Bytes that came off the socket before. The next reads give them; while there are any, no
    /// call is made on the socket.
    fn read_ahead(&self) -> usize {
        0
    }

    /// Makes `call` on the socket as soon as it is readable, and again as long as it would block.
    ///
    /// The outcome is that of a read: bytes count as read, 0 is the end of the stream, an error
    /// is the reader's. [`io::ErrorKind::Unsupported`] alone leaves the reader as it was. Neither
    /// comes [`io::ErrorKind::WouldBlock`] out, nor is the call made while [`Self::read_ahead`] is not 0.
    fn poll_read_call(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// A writer that may lend its socket. By default it has none.
pub trait SocketWriter: AsyncWrite + Unpin {
    /// Whether the bytes of the stream go onto a TCP socket as they are, so not under TLS. The
    /// answer does not change while the stream is written. Such a writer buffers nothing.
    fn lends_socket(&self) -> bool {
        false
    }

    /// Makes `call` on the socket as soon as it is writable, and again as long as it would block.
    ///
    /// The outcome is that of a write: bytes count as written, an error is the writer's, and all
    /// that a write looks at besides (an early answer of the peer) is looked at.
    /// [`io::ErrorKind::Unsupported`] alone leaves the writer as it was. [`io::ErrorKind::WouldBlock`]
    /// does not come out.
    fn poll_write_call(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// Makes `call` on `tcp` as soon as it is readable, and again as long as it would block.
pub fn poll_readable(tcp: &TcpStream, cx: &mut Context<'_>, call: &mut SocketCall<'_>) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        match tcp.try_io(Interest::READABLE, || call(tcp)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

/// Makes `call` on `tcp` as soon as it is writable, and again as long as it would block.
pub fn poll_writable(tcp: &TcpStream, cx: &mut Context<'_>, call: &mut SocketCall<'_>) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_io(Interest::WRITABLE, || call(tcp)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

impl SocketReader for TcpStream {
    fn lends_socket(&self) -> bool {
        true
    }

    fn poll_read_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        poll_readable(&self, cx, call)
    }
}

impl SocketWriter for TcpStream {
    fn lends_socket(&self) -> bool {
        true
    }

    fn poll_write_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        poll_writable(&self, cx, call)
    }
}
