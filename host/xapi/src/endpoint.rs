//! Where a pool is, who logs in, and which certificate is believed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::tls::{Tls, Trust};

/// How long an answer to a call may take unless told otherwise. Calls that block until an operation is done are
/// better made as tasks; this bound only ends what nothing else ends.
const RPC_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a host may take no byte of an import unless told otherwise. It may take minutes to attach the disk, and
/// whoever writes has shorter limits of his own and better words for it.
const STANDSTILL: Duration = Duration::from_secs(20 * 60);

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).field("password", &"…").finish()
    }
}

/// Why a URL names no pool. The texts leave out the URL, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// It does not parse.
    #[error("not a URL ({reason}); write https://host, and percent-encode special characters in user and password")]
    NotAUrl {
        /// The parser's reason.
        reason: String,
    },
    /// It is neither http nor https.
    #[error("the scheme \"{scheme}\" is not http or https; write https://host")]
    Scheme {
        /// What stands there.
        scheme: String,
    },
    /// It has a path, a query or a fragment.
    #[error("the URL of a pool ends after host and port; percent-encode \"/\", \"?\" and \"#\" in user and password")]
    TooLong,
    /// User or password are not UTF-8 once decoded.
    #[error("user or password are not UTF-8 after percent-decoding")]
    NotUtf8,
}

/// The address of a host: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) tls: bool,
    /// A name or an IP address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Address {
    /// The same scheme and port on `host`, which is an address as XAPI gives them; one with a port of its own is
    /// taken at its word.
    pub(crate) fn at(&self, host: &str) -> Self {
        let host = host.trim();
        if let Ok(socket) = host.parse::<SocketAddr>() {
            return Self { tls: self.tls, host: socket.ip().to_string(), port: socket.port() };
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.split_once(':') {
            Some((name, port)) if bare.parse::<IpAddr>().is_err() && port.parse::<u16>().is_ok() => {
                Self { tls: self.tls, host: name.to_owned(), port: port.parse().unwrap_or(self.port) }
            }
            _ => Self { tls: self.tls, host: bare.to_owned(), port: self.port },
        }
    }

    /// From an absolute URL whose path does not matter, as in a redirect.
    pub(crate) fn of_url(url: &Url) -> Option<Self> {
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = match url.host()? {
            Host::Domain(name) => name.to_owned(),
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => ip.to_string(),
        };
        Some(Self { tls, host, port: url.port_or_known_default()? })
    }

    /// Where XML-RPC calls go.
    pub(crate) fn rpc_url(&self) -> String {
        format!("{}://{self}/", if self.tls { "https" } else { "http" })
    }
}

/// Host and port as they stand in a URL or a `Host` header.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = if self.tls { 443 } else { 80 };
        match (self.host.contains(':'), self.port == default) {
            (true, true) => write!(f, "[{}]", self.host),
            (true, false) => write!(f, "[{}]:{}", self.host, self.port),
            (false, true) => f.write_str(&self.host),
            (false, false) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Which of a pool's networks disk streams and NBD take. Calls always go to the configured address.
///
/// Wherever a stream goes, the certificate is judged as that of the host it goes to: by a pin, or by authorities and the name or
/// management address by which the host is known, never by its address on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StreamNetwork {
    /// That of the hosts' management addresses.
    #[default]
    Management,
    /// The one that the pool's `other_config:xo:backupNetwork` names, if there is such a key. Hosts without an address on it are
    /// reached by their management address; see [`Session::stream_warnings`](crate::Session::stream_warnings).
    OfPool,
    /// The one with this uuid, or with this name. A host without an address on it is an error.
    Named(String),
}

/// A pool: the address of one of its hosts, credentials, and which certificate is believed.
///
/// Clones share one TLS configuration, and with it what is remembered for quicker handshakes.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(crate) address: Address,
    pub(crate) credentials: Option<Credentials>,
    /// Shared by all clones, and so by all sessions at the pool.
    pub(crate) tls: Arc<Tls>,
    /// The hosts that the pool had when a session last asked, shared in the same way: one of them is the master when the
    /// one at `address` is gone.
    members: Arc<Mutex<Vec<Address>>>,
    pub(crate) stream_network: StreamNetwork,
    pub(crate) rpc_timeout: Duration,
    pub(crate) standstill: Duration,
}

impl Endpoint {
    /// Reads `https://host`, `http://host`, with `:port` and percent-encoded `user:password@` where wanted.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let url = Url::parse(url.trim()).map_err(|e| EndpointError::NotAUrl { reason: e.to_string() })?;
        let address = Address::of_url(&url).ok_or_else(|| EndpointError::Scheme { scheme: url.scheme().to_owned() })?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(EndpointError::TooLong);
        }
        let decode = |part: &str| {
            percent_decode_str(part).decode_utf8().map(|s| s.into_owned()).map_err(|_| EndpointError::NotUtf8)
        };
        let credentials = match url.password() {
            Some(password) => Some(Credentials { user: decode(url.username())?, password: decode(password)? }),
            None => None,
        };
        let tls = Arc::new(Tls::new(Trust::System));
        let members = Arc::default();
        Ok(Self {
            address,
            credentials,
            tls,
            members,
            stream_network: StreamNetwork::Management,
            rpc_timeout: RPC_TIMEOUT,
            standstill: STANDSTILL,
        })
    }

    /// Sets user and password, in place of those in the URL.
    #[must_use]
    pub fn with_credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.credentials = Some(Credentials { user: user.into(), password: password.into() });
        self
    }

    /// Sets which certificate is believed; [`Trust::System`] unless set.
    #[must_use]
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.tls = Arc::new(Tls::new(trust));
        self
    }

    /// Sets which network disk streams and NBD take; [`StreamNetwork::Management`] unless set.
    #[must_use]
    pub fn with_stream_network(mut self, network: StreamNetwork) -> Self {
        self.stream_network = network;
        self
    }

    /// Which network disk streams and NBD take.
    pub fn stream_network(&self) -> &StreamNetwork {
        &self.stream_network
    }

    /// Sets how long an answer to a call may take; one hour unless set.
    #[must_use]
    pub fn with_rpc_timeout(mut self, timeout: Duration) -> Self {
        self.rpc_timeout = timeout;
        self
    }

    /// Sets after how long the kernel ends an import of which the host takes no byte; 20 minutes unless set. It is the
    /// backstop of the limits that a transfer has, so it should be twice the longest of them.
    #[must_use]
    pub fn with_standstill(mut self, limit: Duration) -> Self {
        self.standstill = limit;
        self
    }

    /// Every address at which a host of the pool is known to be.
    pub(crate) fn known_hosts(&self) -> Vec<Address> {
        let mut known = self.members.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !known.contains(&self.address) {
            known.push(self.address.clone());
        }
        known
    }

    pub(crate) fn remember_members(&self, members: Vec<Address>) {
        *self.members.lock().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// Whether user and password are known.
    pub fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.address.tls
    }

    /// The host, without port and scheme.
    pub fn host(&self) -> &str {
        &self.address.host
    }
}

/// Scheme, host and port; never the credentials.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.address.rpc_url().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_address_and_decoded_credentials() {
        let at = Endpoint::parse("https://root:p%40ss%23w%3Ard@xen1.company.tld").expect("parses");
        assert_eq!(at.to_string(), "https://xen1.company.tld");
        let credentials = at.credentials.expect("both are there");
        assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("root", "p@ss#w:rd"));

        let plain = Endpoint::parse("http://[::1]:8080/").expect("parses");
        assert_eq!((plain.to_string().as_str(), plain.is_tls(), plain.host()), ("http://[::1]:8080", false, "::1"));
        assert_eq!(plain.credentials, None);
    }

    #[test]
    fn what_is_no_pool_is_refused_without_repeating_it() {
        for (url, says) in [
            ("xen1.company.tld", "not a URL"),
            ("ftp://xen1", "scheme"),
            ("https://", "not a URL"),
            ("https://root:secret@xen1/pool", "ends after host and port"),
            ("https://root:sec#ret@xen1", "not a URL"),
            ("https://root:%ff%fe@xen1", "UTF-8"),
        ] {
            let text = Endpoint::parse(url).expect_err(url).to_string();
            assert!(text.contains(says), "{url}: {text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn debug_output_has_no_password() {
        let at = Endpoint::parse("https://root:hunter2@xen1").expect("parses");
        assert!(!format!("{at:?} {at}").contains("hunter2"));
    }

    #[test]
    fn a_master_keeps_scheme_and_port_unless_it_names_one() {
        let at = Endpoint::parse("https://xen1:8443").expect("parses").address;
        assert_eq!(at.at("10.0.0.2").to_string(), "10.0.0.2:8443");
        assert_eq!(at.at("fe80::2").to_string(), "[fe80::2]:8443");
        assert_eq!(at.at("127.0.0.1:9000").to_string(), "127.0.0.1:9000");
        assert_eq!(at.at("xen2:443").to_string(), "xen2");
    }
}
