//! A client's connection, plain or TLS. Blocking: a thread per connection is the cheapest there is for a few.

use rustix::net::{RecvFlags, recv};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

pub(super) enum Connection {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Connection {
    pub(super) fn new(tcp: TcpStream, tls: Option<Arc<ServerConfig>>) -> anyhow::Result<Self> {
        tcp.set_nodelay(true)?;
        Ok(match tls {
            None => Self::Plain(tcp),
            Some(config) => Self::Tls(Box::new(StreamOwned::new(ServerConnection::new(config)?, tcp))),
        })
    }

    /// Takes up to as many bytes as `scratch` has, and forgets them; 0 at the end. Plain ones are never copied out of the
    /// kernel.
    pub(super) fn discard(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => Ok(recv(tcp, scratch, RecvFlags::TRUNC)?.1),
            Self::Tls(tls) => tls.read(scratch),
        }
    }

    /// Says that nothing more comes, and waits until the client has closed: to close before it would reset the
    /// connection under what is still on its way.
    pub(super) fn close(self) {
        let mut tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(mut tls) => {
                tls.conn.send_close_notify();
                let _ = tls.flush();
                tls.sock
            }
        };
        let _ = tcp.shutdown(Shutdown::Write);
        let _ = io::copy(&mut tcp, &mut io::sink());
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            // Clients of HTTP do not always say farewell.
            Self::Tls(tls) => tls.read(buffer).or_else(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Ok(0),
                _ => Err(error),
            }),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}
