//! Ends of a transfer on loopback TCP, which stop where and how a test asks for.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vmferry_disk::transfer::{Progress, SocketCall, SocketWriter, poll_writable};

/// What an end does where it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Closes the connection.
    Close,
    /// Resets it.
    Reset,
    /// Does nothing any more.
    Stall,
}

/// Buffer asked of a sink's sockets, so that what the far end does is soon felt at the near one.
const SOCKET_BUFFER: u32 = 128 << 10;

/// More than the sockets of a sink ever hold.
pub(crate) const IN_SOCKETS: usize = 1 << 20;

/// The two ends of a connection.
async fn pair(buffer: Option<u32>) -> io::Result<(TcpStream, TcpStream)> {
    let (connecting, listening) = (TcpSocket::new_v4()?, TcpSocket::new_v4()?);
    if let Some(size) = buffer {
        connecting.set_send_buffer_size(size)?;
        listening.set_recv_buffer_size(size)?;
    }
    listening.bind(([127, 0, 0, 1], 0).into())?;
    let listener = listening.listen(1)?;
    let (near, far) = tokio::join!(connecting.connect(listener.local_addr()?), listener.accept());
    Ok((near?, far?.0))
}

/// Counts what is read from the source.
pub(crate) struct Meter(watch::Sender<u64>);

impl Meter {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    /// The total, as it grows.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

impl Progress for Meter {
    fn read(&self, bytes: u64) {
        self.0.send_modify(|total| *total += bytes);
    }

    fn written(&self, _: usize, _: u64) {}
}

/// The near end of a connection whose far end sends `bytes` and stops. A reset overtakes what is on its way, so it
/// waits until `meter` has seen them; what a head is read from is there at once.
pub(crate) async fn source(bytes: Vec<u8>, stop: Stop, meter: &Meter) -> TcpStream {
    let (near, mut far) = pair(None).await.expect("a connection");
    let mut read = meter.subscribe();
    tokio::spawn(async move {
        if far.write_all(&bytes).await.is_err() {
            return;
        }
        match stop {
            Stop::Close => {}
            Stop::Reset => {
                if bytes.len() > 4096 {
                    let _ = read.wait_for(|total| *total >= bytes.len() as u64).await;
                }
                far.set_zero_linger().expect("a socket");
            }
            // Until the near end is closed.
            Stop::Stall => drop(far.read(&mut [0]).await),
        }
    });
    near
}

/// The far end of a sink.
pub(crate) struct Taker(JoinHandle<(Vec<u8>, Option<TcpStream>)>);

impl Taker {
    /// What it took, once it has stopped.
    pub(crate) async fn bytes(self) -> Vec<u8> {
        self.0.await.expect("the far end does not panic").0
    }
}

/// The near end of a connection whose far end takes all bytes up to `limit` and stops there. One that stalls keeps its
/// socket open as long as the taker is.
pub(crate) async fn sink(limit: usize, stop: Stop) -> (TcpStream, Taker) {
    let (near, far) = pair(Some(SOCKET_BUFFER)).await.expect("a connection");
    let taking = tokio::spawn(async move {
        let mut taken = Vec::new();
        let mut far = far.take(limit as u64);
        far.read_to_end(&mut taken).await.expect("bytes or an end");
        let far = far.into_inner();
        if stop == Stop::Reset && taken.len() == limit {
            far.set_zero_linger().expect("a socket");
        }
        (taken, (stop == Stop::Stall).then_some(far))
    });
    (near, Taker(taking))
}

/// A sink that stops by itself: the first write after `limit` bytes fails. What the far end has got by then is
/// its own matter.
pub(crate) struct Failing {
    pub(crate) tcp: TcpStream,
    pub(crate) left: usize,
    pub(crate) stop: Stop,
}

impl Failing {
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(&mut TcpStream, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.left == 0 {
            return match self.stop {
                Stop::Close => Poll::Ready(Ok(0)),
                Stop::Reset => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Stop::Stall => Poll::Pending,
            };
        }
        let written = write(&mut self.tcp, cx);
        if let Poll::Ready(Ok(bytes)) = written {
            self.left = self.left.saturating_sub(bytes);
        }
        written
    }
}

impl AsyncWrite for Failing {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let most = bytes.len().min(this.left);
        this.write(cx, |tcp, cx| Pin::new(tcp).poll_write(cx, &bytes[..most]))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl SocketWriter for Failing {
    fn lends_socket(&self) -> bool {
        true
    }

    fn poll_write_call(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        call: &mut SocketCall<'_>,
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |tcp, cx| poll_writable(tcp, cx, call))
    }
}
