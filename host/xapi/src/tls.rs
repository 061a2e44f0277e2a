//! Which certificates are believed, for calls and disk streams alike.

use std::error::Error as StdError;
use std::fmt::{self, Write as _};
use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use crate::endpoint::Address;
use crate::error::Error;

/// Which server certificate is believed.
#[derive(Clone, PartialEq, Eq)]
pub enum Trust {
    /// Whatever the system's authorities signed, for the right name.
    System,
    /// Whatever these authorities signed, for the right name: certificates in PEM.
    CaPem(Vec<u8>),
    /// Exactly one certificate. Name, chain and dates do not matter, and the host still has to prove by its
    /// signature that it owns the key. It fits hosts with a self-signed certificate, which is what they come with.
    Pinned {
        /// SHA-256 of the certificate (DER).
        sha256: [u8; 32],
    },
}

impl Trust {
    /// Reads a pin as people write it: 64 hexadecimal digits, colons allowed.
    pub fn parse_pin(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != ':' && !c.is_whitespace()).collect();
        if digits.len() != 64 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        let mut sha256 = [0; 32];
        for (n, byte) in sha256.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).ok()?;
        }
        Some(Self::Pinned { sha256 })
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("System"),
            Self::CaPem(pem) => write!(f, "CaPem({} bytes)", pem.len()),
            Self::Pinned { sha256 } => write!(f, "Pinned({})", hex(sha256)),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// The TLS configuration of an endpoint, made when it is first needed: a plain endpoint meets TLS only when a host
/// redirects a disk stream, which it does to `https` always.
pub(crate) struct Tls {
    believed: Believed,
    /// Beside a pin: the certificates (SHA-256) that the pool has named for its hosts.
    as_well: SharedDigests,
    config: OnceLock<Arc<ClientConfig>>,
}

/// SHA-256 of certificates, to which some may come while connections are made.
type SharedDigests = Arc<RwLock<Vec<[u8; 32]>>>;

/// Which certificates are believed, and who says so.
enum Believed {
    /// The operator.
    Trust(Trust),
    /// The pool, of one of its hosts: these (SHA-256) and no others, whatever their names.
    Named(Vec<[u8; 32]>),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.believed {
            Believed::Trust(trust) => trust.fmt(f),
            Believed::Named(_) => f.write_str("Named"),
        }
    }
}

impl Tls {
    pub(crate) fn new(trust: Trust) -> Self {
        Self::of(Believed::Trust(trust))
    }

    fn of(believed: Believed) -> Self {
        Self { believed, as_well: Arc::default(), config: OnceLock::new() }
    }

    /// Whether one certificate is believed and no other, though each host of a pool has its own.
    pub(crate) fn is_pinned(&self) -> bool {
        matches!(self.believed, Believed::Trust(Trust::Pinned { .. }))
    }

    /// Lets a pin believe the certificates in `pem` as well, which the pool has told of a host of its own.
    pub(crate) fn believe_as_well(&self, pem: &str) {
        let Ok(named) = digests(pem) else { return };
        let mut believed = self.as_well.write().unwrap_or_else(PoisonError::into_inner);
        for digest in named {
            if !believed.contains(&digest) {
                believed.push(digest);
            }
        }
    }

    /// What believes the certificates in `pem`, which the pool has told.
    pub(crate) fn named(pem: &str) -> Result<Self, String> {
        Ok(Self::of(Believed::Named(digests(pem)?)))
    }

    /// Why a certificate is believed that is.
    pub(crate) fn because(&self) -> &'static str {
        match self.believed {
            Believed::Trust(Trust::System) => "an authority of this machine signed it",
            Believed::Trust(Trust::CaPem(_)) => "an authority of `ca_file` signed it",
            Believed::Trust(Trust::Pinned { .. }) => "it is the one of `certificate_sha256`",
            Believed::Named(_) => "the pool names it",
        }
    }

    pub(crate) fn config(&self, address: &Address) -> Result<Arc<ClientConfig>, Error> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let config = client_config(&self.believed, &self.as_well)
            .map_err(|reason| Error::Tls { address: address.to_string(), reason })?;
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

/// A configuration that believes nobody, for a client that makes plain calls only.
pub(crate) fn config_without_trust() -> Result<ClientConfig, String> {
    client_config(&Believed::Named(Vec::new()), &Arc::default())
}

/// SHA-256 of each certificate in `pem`, which the pool has told.
fn digests(pem: &str) -> Result<Vec<[u8; 32]>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let certificates = certificates.map_err(|e| format!("the pool names something else than a certificate: {e}"))?;
    if certificates.is_empty() {
        return Err("the pool names no certificate".to_owned());
    }
    Ok(certificates.iter().map(|der| Sha256::digest(der).into()).collect())
}

/// The configuration for what is believed: TLS 1.2 and 1.3, ring. Sessions are resumed, which saves a host the costly
/// half of its handshakes.
fn client_config(believed: &Believed, as_well: &SharedDigests) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let judge = match believed {
        Believed::Named(digests) => Judge::Named(digests.clone()),
        Believed::Trust(Trust::Pinned { sha256 }) => Judge::Pin { sha256: *sha256, as_well: Arc::clone(as_well) },
        Believed::Trust(Trust::System) => Judge::Authorities(web_pki(system_roots()?, &provider)?),
        Believed::Trust(Trust::CaPem(pem)) => Judge::Authorities(web_pki(pem_roots(pem)?, &provider)?),
    };
    let verifier = Verifier { judge, provider: Arc::clone(&provider) };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

fn web_pki(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, String> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|e| e.to_string())
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err("the system has no certificate authorities; set certificate_sha256 or ca_file".to_owned());
    }
    Ok(roots)
}

fn pem_roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("ca_file is not PEM: {e}"))?;
        roots.add(certificate).map_err(|e| format!("ca_file has an unusable certificate: {e}"))?;
    }
    if roots.is_empty() {
        return Err("ca_file has no certificate".to_owned());
    }
    Ok(roots)
}

/// Why a certificate was refused. It carries the digest, so that a person can compare it and pin it.
#[derive(Debug)]
struct Refused {
    sha256: [u8; 32],
    reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl StdError for Refused {}

#[derive(Debug)]
enum Judge {
    Pin { sha256: [u8; 32], as_well: SharedDigests },
    Named(Vec<[u8; 32]>),
    Authorities(Arc<WebPkiServerVerifier>),
}

#[derive(Debug)]
struct Verifier {
    judge: Judge,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented: [u8; 32] = Sha256::digest(leaf).into();
        let reason = match &self.judge {
            Judge::Pin { sha256, .. } if *sha256 == presented => return Ok(ServerCertVerified::assertion()),
            Judge::Pin { as_well, .. }
                if as_well.read().unwrap_or_else(PoisonError::into_inner).contains(&presented) =>
            {
                return Ok(ServerCertVerified::assertion());
            }
            Judge::Pin { sha256, .. } => format!("certificate_sha256 is {}, the host presented another", hex(sha256)),
            Judge::Named(named) if named.contains(&presented) => return Ok(ServerCertVerified::assertion()),
            Judge::Named(_) => "the host presented another than the pool has named".to_owned(),
            Judge::Authorities(authorities) => {
                match authorities.verify_server_cert(leaf, intermediates, server, ocsp, now) {
                    Ok(verified) => return Ok(verified),
                    Err(e) => e.to_string(),
                }
            }
        };
        let refused = Refused { sha256: presented, reason };
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused)))))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The TLS failure in the chain of causes of `error`, if there is one. I/O errors hide what they wrap from
/// [`StdError::source`], so they are opened on the way.
pub(crate) fn tls_error(address: &Address, error: &(dyn StdError + 'static)) -> Option<Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return Some(explain(address, tls));
        }
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    None
}

fn explain(address: &Address, error: &rustls::Error) -> Error {
    if let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(refused))) = error
        && let Some(refused) = refused.downcast_ref::<Refused>()
    {
        return Error::CertificateNotTrusted {
            address: address.to_string(),
            presented_sha256: hex(&refused.sha256),
            reason: refused.reason.clone(),
        };
    }
    Error::Tls { address: address.to_string(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_with_and_without_colons() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        assert_eq!(Trust::parse_pin(&plain), Some(Trust::Pinned { sha256: [0xab; 32] }));
        assert_eq!(Trust::parse_pin(&colons), Some(Trust::Pinned { sha256: [0xab; 32] }));
        for bad in ["", "ab", &"zz".repeat(32), &"+a".repeat(32)] {
            assert_eq!(Trust::parse_pin(bad), None, "{bad}");
        }
    }

    #[test]
    fn authorities_that_are_none_are_refused() {
        for pem in [&b""[..], b"no PEM at all", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            client_config(&Believed::Trust(Trust::CaPem(pem.to_vec())), &Arc::default())
                .expect_err("no authority in it");
        }
    }
}
