//! Reading disks by NBD: which hosts serve a disk, and connections to them.
//!
//! ```text
//! get_nbd_info ──> addresses, certificate, secret export name
//! one address after the other:  TCP ── greeting ── STARTTLS ── handshake with that certificate ── export opened
//! ```
//!
//! Every connection attaches the disk to the host's own domain once more, and a host has sixteen of them, so they are
//! opened one after the other and no more than asked for. Dropped, a connection is closed, and the host detaches.

use std::fmt;
use std::io;
use std::time::Duration;

use rustls_pki_types::ServerName;
use serde::{Deserialize, Deserializer};
use tokio::time::timeout;
use vmferry_disk::nbd::{Client, ExportName, Handshake, MAX_CONNECTIONS, NbdError};

use crate::connection::{Connection, connect_tcp};
use crate::endpoint::Address;
use crate::error::Error;
use crate::params;
use crate::records::{Network, Vdi};
use crate::reference::Ref;
use crate::session::Session;
use crate::tls::{self, Tls};

/// How long a server may take until it is ready to open an export. There are other addresses, and other ways to read
/// a disk.
const NEGOTIATION: Duration = Duration::from_secs(10);

/// How long opening an export may take: the host attaches the disk to its own domain first.
const ATTACH: Duration = Duration::from_secs(120);

/// A connection to a disk that a host serves by NBD.
pub type NbdClient = Client<Connection>;

/// Where a host serves a disk by NBD.
#[derive(Clone, Debug, Deserialize)]
pub struct NbdServerInfo {
    /// The disk's name there. It holds the session and is shown without.
    #[serde(rename = "exportname", deserialize_with = "export_name")]
    pub export: ExportName,
    /// An IP address of the host, on a network that may be used for NBD.
    pub address: String,
    /// The TCP port.
    pub port: u16,
    /// The host's certificate, PEM.
    #[serde(rename = "cert")]
    pub certificate: String,
    /// A name that the certificate is for.
    pub subject: String,
}

fn export_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ExportName, D::Error> {
    String::deserialize(deserializer).map(ExportName::new)
}

/// Open connections to a disk.
#[derive(Debug)]
pub struct NbdConnections {
    /// At least one.
    pub clients: Vec<NbdClient>,
    /// Whether they are encrypted. They are not where the pool's networks have the purpose `insecure_nbd`.
    pub encrypted: bool,
    /// Why there are fewer than were asked for.
    pub fewer: Option<NbdFailure>,
}

/// Why a disk cannot be read by NBD. It can always be exported instead.
#[derive(Debug, thiserror::Error)]
pub enum NbdUnavailable {
    /// No network lets hosts that see the disk serve it.
    #[error(
        "no host that sees the disk has a network for NBD; give one the purpose with `xe network-param-add \
         param-name=purpose param-key=nbd uuid=…`"
    )]
    NoNetwork,
    /// The disk is served, but not on the network that streams take.
    #[error(
        "no host that sees the disk serves it by NBD on network {network}, which disk streams are to take; give it the purpose with \
         `xe network-param-add param-name=purpose param-key=nbd uuid=…`"
    )]
    NotOnNetwork {
        /// Its name.
        network: String,
    },
    /// The pool did not tell where the disk is served.
    #[error("where the disk is served by NBD cannot be asked: {0}")]
    Unknown(#[from] Error),
    /// No address that the pool named let us in.
    #[error("no NBD server opens the disk: {}", list(.0))]
    NoServer(Vec<NbdFailure>),
}

/// Why a server at one address is of no use.
#[derive(Debug)]
pub struct NbdFailure {
    /// IP address and port.
    pub address: String,
    /// What went wrong.
    pub cause: NbdCause,
}

/// What went wrong on the way to an open export.
#[derive(Debug, thiserror::Error)]
pub enum NbdCause {
    /// No connection to it.
    #[error("no connection ({0}); check that the network's firewall lets port 10809 through")]
    Connection(io::Error),
    /// It took too long.
    #[error("no answer within {} s while {doing}", .waited.as_secs())]
    Timeout {
        /// What was being done.
        doing: &'static str,
        /// The limit.
        waited: Duration,
    },
    /// It could not be made sure that it is the pool's host.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// It speaks, and says no.
    #[error("{}", chain(.0))]
    Protocol(NbdError),
}

impl fmt::Display for NbdFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.cause)
    }
}

fn list(failures: &[NbdFailure]) -> String {
    failures.iter().map(NbdFailure::to_string).collect::<Vec<_>>().join("; ")
}

fn chain(error: &NbdError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

impl Session {
    /// Where `vdi` is served by NBD: every address of every host that sees it, on networks made for that. No such
    /// network means no entry, and no error.
    pub async fn get_nbd_info(&self, vdi: &Ref<Vdi>) -> Result<Vec<NbdServerInfo>, Error> {
        self.call("VDI.get_nbd_info", params![vdi]).await
    }

    /// Opens `count` connections to `vdi` (1 to 16), one after the other. The addresses are tried in turn until one
    /// opens the disk, and the rest goes there as well. Fewer connections than asked for are a success.
    ///
    /// A connection is encrypted, and only with the certificate that the pool names for the host, unless the pool
    /// itself says by the purpose of its networks that NBD is not.
    pub async fn nbd_clients(&self, vdi: &Ref<Vdi>, count: usize) -> Result<NbdConnections, NbdUnavailable> {
        let servers = self.get_nbd_info(vdi).await?;
        if servers.is_empty() {
            return Err(NbdUnavailable::NoNetwork);
        }
        let servers = match self.route().await? {
            Some(route) => route.servers(servers).map_err(|network| NbdUnavailable::NotOnNetwork { network })?,
            None => servers,
        };
        let encrypted = self.nbd_is_encrypted().await?;
        let mut failures = Vec::new();
        for info in &servers {
            let server = Server { info, tls: encrypted.then(|| Tls::named(&info.certificate)) };
            let first = match server.open().await {
                Ok(client) => client,
                Err(cause) => {
                    failures.push(server.failure(cause));
                    continue;
                }
            };
            let (mut clients, mut fewer) = (vec![first], None);
            while clients.len() < count.min(MAX_CONNECTIONS) && fewer.is_none() {
                match server.open().await {
                    Ok(client) => clients.push(client),
                    Err(cause) => fewer = Some(server.failure(cause)),
                }
            }
            return Ok(NbdConnections { clients, encrypted, fewer });
        }
        Err(NbdUnavailable::NoServer(failures))
    }

    /// Whether the pool's hosts encrypt NBD. That must not be learnt from a server: anybody on the way could say no.
    /// The two purposes exclude each other in a pool.
    async fn nbd_is_encrypted(&self) -> Result<bool, Error> {
        let networks = self.get_all_records::<Network>().await?;
        let has = |purpose: &str| networks.iter().any(|(_, network)| network.purpose.iter().any(|p| p == purpose));
        Ok(has("nbd") || !has("insecure_nbd"))
    }
}

/// One address and how to speak to it.
struct Server<'a> {
    info: &'a NbdServerInfo,
    /// `None` for a plain connection. Shared by all connections, so that their handshakes are short.
    tls: Option<Result<Tls, String>>,
}

impl Server<'_> {
    async fn open(&self) -> Result<NbdClient, NbdCause> {
        let ready = bounded(NEGOTIATION, "connecting", self.negotiate()).await?;
        let opened = ready.open(&self.info.export);
        bounded(ATTACH, "opening the disk", async { opened.await.map_err(NbdCause::Protocol) }).await
    }

    /// Up to where the export can be named: its name is a secret.
    async fn negotiate(&self) -> Result<Handshake<Connection>, NbdCause> {
        let config = match &self.tls {
            Some(Ok(tls)) => Some(tls.config(&self.address()).map_err(|e| NbdCause::Tls(e.to_string()))?),
            Some(Err(reason)) => return Err(NbdCause::Tls(reason.clone())),
            None => None,
        };
        let tcp = connect_tcp(&self.info.address, self.info.port, None).await.map_err(NbdCause::Connection)?;
        let Some(config) = config else {
            return Handshake::begin(Connection::plain(tcp)).await.map_err(NbdCause::Protocol);
        };
        let greeted = Handshake::begin(tcp).await.map_err(NbdCause::Protocol)?;
        let (tcp, agreed) = greeted.start_tls().await.map_err(NbdCause::Protocol)?;
        let connection = Connection::encrypted(tcp, config, self.name()?).await.map_err(|e| self.tls_cause(&e))?;
        Ok(Handshake::resume(connection, agreed))
    }

    /// The name to ask for. The certificate is known, so one that is no DNS name does no harm.
    fn name(&self) -> Result<ServerName<'static>, NbdCause> {
        ServerName::try_from(self.info.subject.clone())
            .or_else(|_| ServerName::try_from(self.info.address.clone()))
            .map_err(|e| NbdCause::Tls(e.to_string()))
    }

    fn tls_cause(&self, error: &io::Error) -> NbdCause {
        NbdCause::Tls(match tls::tls_error(&self.address(), error) {
            Some(Error::CertificateNotTrusted { reason, .. } | Error::Tls { reason, .. }) => reason,
            _ => error.to_string(),
        })
    }

    fn address(&self) -> Address {
        Address { tls: self.tls.is_some(), host: self.info.address.clone(), port: self.info.port }
    }

    fn failure(&self, cause: NbdCause) -> NbdFailure {
        NbdFailure { address: self.address().to_string(), cause }
    }
}

async fn bounded<T>(
    waited: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, NbdCause>>,
) -> Result<T, NbdCause> {
    timeout(waited, work).await.unwrap_or(Err(NbdCause::Timeout { doing, waited }))
}
