//! What the way to a pool's master is like, for whoever looks for the reason of a trouble.

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::connection::Connection;
use crate::error::Error;
use crate::route::Destination;
use crate::rpc::CONNECT_TIMEOUT;
use crate::session::Session;
use crate::stream::head;
use crate::tls::hex;

/// How the connection to a host is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// The version of TLS, such as `TLSv1_2`.
    pub version: String,
    /// The cipher suite.
    pub cipher: String,
    /// SHA-256 of the host's certificate, in hexadecimal.
    pub certificate_sha256: String,
    /// Why the certificate is believed, as the end of "it is believed because …".
    pub because: &'static str,
}

impl Session {
    /// How connections to the master are encrypted; `None` if they are not.
    pub async fn encryption(&self) -> Result<Option<Encryption>, Error> {
        const DURING: &str = "a look at TLS";
        let connection = self.dial_master(DURING).await?;
        Ok(connection.handshake().map(|(version, cipher, certificate)| Encryption {
            version,
            cipher,
            certificate_sha256: hex(&Sha256::digest(certificate)),
            because: self.tls().because(),
        }))
    }

    /// The status with which the master answers `GET path` without credentials. `path` begins with a slash.
    pub async fn status_of(&self, path: &str) -> Result<u16, Error> {
        let during = format!("GET {path}");
        let address = self.current(&during)?.master.to_string();
        let mut connection = self.dial_master(&during).await?;
        let transport = |e| Error::transport(&*address, &*during, e);
        let request = format!("{during} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        let asking = async {
            connection.write_all(request.as_bytes()).await.map_err(transport)?;
            connection.flush().await.map_err(transport)?;
            let mut bytes = Vec::new();
            loop {
                if let Some(head) = head::parse(&bytes).map_err(|e| transport(std::io::Error::other(e)))? {
                    return Ok(head.status);
                }
                if connection.read_buf(&mut bytes).await.map_err(transport)? == 0 {
                    return Err(transport(std::io::Error::other("the host closed the connection without an answer")));
                }
            }
        };
        let late =
            || Error::Timeout { address: address.clone(), during: during.clone(), seconds: CONNECT_TIMEOUT.as_secs() };
        timeout(CONNECT_TIMEOUT, asking).await.unwrap_or_else(|_| Err(late()))
    }

    async fn dial_master(&self, during: &str) -> Result<Connection, Error> {
        let master = self.current(during)?.master.clone();
        let there = Destination { address: master.clone(), host: master };
        Connection::dial(&there, self.tls(), None, during).await
    }
}
