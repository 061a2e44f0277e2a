//! The host certificate, made at start.

use std::sync::Arc;

use anyhow::Context as _;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;

pub(crate) struct HostCertificate {
    pub(crate) pem: String,
    /// Hex of the SHA-256 of the certificate, which is what a client pins.
    pub(crate) sha256: String,
    pub(crate) acceptor: TlsAcceptor,
}

impl HostCertificate {
    /// Self-signed for `localhost` and 127.0.0.1, as a fresh host's certificate is for its own name.
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).context("make a certificate")?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // What stands in front of xapi speaks TLS 1.2.
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        Ok(Self {
            pem: made.cert.pem(),
            sha256: hex(&Sha256::digest(made.cert.der())),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
