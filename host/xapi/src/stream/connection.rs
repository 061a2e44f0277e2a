//! A TCP connection, with or without TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::endpoint::Address;
use crate::error::Error;
use crate::rpc::{CONNECT_TIMEOUT, KEEPALIVE_AFTER, KEEPALIVE_EVERY, KEEPALIVE_TIMES, UNACKNOWLEDGED};
use crate::tls::{self, Tls};

/// A connection to a host.
pub(super) enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Connects to `address`; `during` names the request in errors.
    pub(super) async fn dial(address: &Address, tls: &Tls, during: &str) -> Result<Self, Error> {
        let late = || Error::Timeout {
            address: address.to_string(),
            during: format!("the connection for {during}"),
            seconds: CONNECT_TIMEOUT.as_secs(),
        };
        timeout(CONNECT_TIMEOUT, Self::connect(address, tls, during)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn connect(address: &Address, tls: &Tls, during: &str) -> Result<Self, Error> {
        let failed = |e: io::Error| {
            tls::tls_error(address, &e).unwrap_or_else(|| Error::transport(address.to_string(), during, e))
        };
        let tcp = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(failed)?;
        tune(&tcp).map_err(failed)?;
        if !address.tls {
            return Ok(Self::Plain(tcp));
        }
        let name = ServerName::try_from(address.host.clone())
            .map_err(|e| Error::Tls { address: address.to_string(), reason: e.to_string() })?;
        let connector = TlsConnector::from(tls.config(address)?);
        let stream = connector.connect(name, tcp).await.map_err(failed)?;
        Ok(Self::Tls(Box::new(stream)))
    }
}

/// A dead host is noticed by keepalive, one that takes no more bytes by the user timeout.
fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER);
    #[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd", target_os = "windows"))]
    let keepalive = keepalive.with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_TIMES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}

impl AsyncRead for Connection {
    /// A TLS connection that ends without saying so ends here like a plain one: neither end is proof of anything,
    /// and hosts that proxy TLS do not always say it.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => match Pin::new(tls).poll_read(cx, buf) {
                Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                other => other,
            },
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
