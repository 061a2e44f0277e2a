//! A TCP connection, with or without TLS.

mod tls_stream;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tls_stream::TlsStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::Error;
use crate::route::Destination;
use crate::rpc::{CONNECT_TIMEOUT, KEEPALIVE_AFTER, KEEPALIVE_EVERY, KEEPALIVE_TIMES};
use crate::tls::{self, Tls};

/// A connection to a host, with or without TLS.
pub struct Connection {
    kind: Kind,
}

enum Kind {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tls() { "Connection(TLS)" } else { "Connection(plain)" })
    }
}

impl Connection {
    /// Connects to `address`, where `host` is expected; `during` names the request in errors. For `standstill` see [`connect_tcp`].
    pub(crate) async fn dial(
        Destination { address, host }: &Destination,
        tls: &Tls,
        standstill: Option<Duration>,
        during: &str,
    ) -> Result<Self, Error> {
        let failed = |e: io::Error| {
            tls::tls_error(address, &e).unwrap_or_else(|| Error::transport(address.to_string(), during, e))
        };
        let connecting = async {
            let tcp = connect_tcp(&address.host, address.port, standstill).await.map_err(failed)?;
            if !address.tls {
                return Ok(Self::plain(tcp));
            }
            let name = ServerName::try_from(host.host.clone())
                .map_err(|e| Error::Tls { address: address.to_string(), reason: e.to_string() })?;
            Self::encrypted(tcp, tls.config(address)?, name).await.map_err(failed)
        };
        timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
            Err(Error::Timeout {
                address: address.to_string(),
                during: format!("the connection for {during}"),
                seconds: CONNECT_TIMEOUT.as_secs(),
            })
        })
    }

    pub(crate) fn plain(tcp: TcpStream) -> Self {
        Self { kind: Kind::Plain(tcp) }
    }

    /// Makes the TLS handshake on `tcp`.
    pub(crate) async fn encrypted(
        tcp: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let stream = TlsStream::connect(config, name, tcp).await?;
        Ok(Self { kind: Kind::Tls(Box::new(stream)) })
    }

    /// Whether it is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self.kind, Kind::Tls(_))
    }

    /// Version, cipher suite and the host's certificate (DER), where it is encrypted.
    pub(crate) fn handshake(&self) -> Option<(String, String, Vec<u8>)> {
        match &self.kind {
            Kind::Plain(_) => None,
            Kind::Tls(tls) => tls.handshake(),
        }
    }

    /// The socket, if bytes lie on it as they are.
    pub(crate) fn tcp(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Plain(tcp) => Some(tcp),
            Kind::Tls(_) => None,
        }
    }
}

/// Connects a socket that notices when its host is gone: by keepalive, or, with `standstill`, when for so long no
/// byte was acknowledged or taken.
///
/// Linux lets `standstill` (`TCP_USER_TIMEOUT`) override how often keepalive is tried, so a socket that mostly reads
/// is better off without.
pub(crate) async fn connect_tcp(host: &str, port: u16, standstill: Option<Duration>) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(&tcp);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER);
    #[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd", target_os = "windows"))]
    let keepalive = keepalive.with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_TIMES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(standstill)?;
    Ok(tcp)
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Kind::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Kind::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Kind::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Kind::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_standstill_is_the_kernels_to_end_where_one_is_given() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        for standstill in [None, Some(Duration::from_secs(90))] {
            let tcp = connect_tcp("127.0.0.1", port, standstill).await.expect("connects");
            let socket = SockRef::from(&tcp);
            assert_eq!(socket.tcp_user_timeout().expect("an option"), standstill);
            assert!(socket.keepalive().expect("an option") && tcp.nodelay().expect("an option"));
        }
    }
}
