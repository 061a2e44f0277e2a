//! From a fresh connection to an open export.

use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::wire::{self, Agreed, ClientOption, OptionReply};
use super::{Client, NbdError};

/// The name of an export. XAPI's holds the reference of a session, which opens the pool to whoever
/// has it: it is shown only up to its `?`.
#[derive(Clone, PartialEq, Eq)]
pub struct ExportName(String);

impl ExportName {
    /// A name as `VDI.get_nbd_info` gives it.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
}

impl fmt::Debug for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, secret) = self.0.split_once('?').unwrap_or((&self.0, ""));
        write!(f, "ExportName({shown}{})", if secret.is_empty() { "" } else { "?…" })
    }
}

/// A connection on which the export is not open yet.
///
/// ```no_run
/// # async fn example(tcp: tokio::net::TcpStream) -> Result<(), Box<dyn std::error::Error>> {
/// # use vmferry_disk::nbd::{ExportName, Handshake};
/// # async fn tls(tcp: tokio::net::TcpStream) -> std::io::Result<tokio::net::TcpStream> { Ok(tcp) }
/// let (tcp, agreed) = Handshake::begin(tcp).await?.start_tls().await?;
/// let tls = tls(tcp).await?;
/// let client = Handshake::resume(tls, agreed).open(&ExportName::new("/disk")).await?;
/// # Ok(()) }
/// ```
///
/// There is no time limit here: XAPI attaches the disk when the export is opened, which can take long.
#[derive(Debug)]
pub struct Handshake<S> {
    stream: S,
    agreed: Agreed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Handshake<S> {
    /// Reads the server's greeting and answers it.
    pub async fn begin(mut stream: S) -> Result<Self, NbdError> {
        let doing = "waiting for the greeting";
        let mut raw = [0; wire::GREETING];
        stream.read_exact(&mut raw).await.map_err(failed(doing))?;
        let agreed = wire::decode_greeting(&raw)?;
        send(&mut stream, &agreed.client_flags(), "answering the greeting").await?;
        Ok(Self { stream, agreed })
    }

    /// Asks for TLS. What comes back is to be upgraded by the caller and handed to
    /// [`resume`](Self::resume); not a byte behind the server's yes was read from it.
    pub async fn start_tls(mut self) -> Result<(S, Agreed), NbdError> {
        let option = ClientOption::StartTls;
        send(&mut self.stream, &wire::encode_option(option, &[]), "asking for TLS").await?;
        let failed = failed("waiting for the answer about TLS");
        let mut raw = [0; wire::OPTION_REPLY];
        self.stream.read_exact(&mut raw).await.map_err(failed)?;
        let reply = OptionReply::decode(&raw, option)?;
        match reply.refusal() {
            Some(reply) => Err(NbdError::TlsRefused { reply }),
            // Ahead of TLS anybody can have written it.
            None if reply.data_length > 0 => Err(NbdError::BadOptionReply { what: "text behind a yes to TLS" }),
            None => Ok((self.stream, self.agreed)),
        }
    }

    /// Goes on over the upgraded stream. There is no second greeting.
    pub fn resume(stream: S, agreed: Agreed) -> Self {
        Self { stream, agreed }
    }

    /// Opens an export; reads can follow. A server that does not want to just closes the connection.
    pub async fn open(mut self, name: &ExportName) -> Result<Client<S>, NbdError> {
        let option = wire::encode_option(ClientOption::ExportName, name.0.as_bytes());
        send(&mut self.stream, &option, "asking for the export").await?;
        let mut raw = [0; wire::EXPORT];
        let doing = "waiting for the export";
        self.stream.read_exact(&mut raw).await.map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => NbdError::ExportRefused,
            _ => NbdError::Handshake { doing, source },
        })?;
        if !self.agreed.no_zeroes {
            self.stream.read_exact(&mut [0; wire::EXPORT_PADDING]).await.map_err(failed(doing))?;
        }
        Ok(Client::new(self.stream, wire::decode_export(&raw)))
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8], doing: &'static str) -> Result<(), NbdError> {
    stream.write_all(bytes).await.map_err(failed(doing))?;
    stream.flush().await.map_err(failed(doing))
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> NbdError {
    move |source| NbdError::Handshake { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_in_an_export_name_is_not_shown() {
        let name = ExportName::new("/f00d?session_id=OpaqueRef:secret");
        assert_eq!(format!("{name:?}"), "ExportName(/f00d?…)");
        assert_eq!(format!("{:?}", ExportName::new("disk")), "ExportName(disk)");
    }
}
