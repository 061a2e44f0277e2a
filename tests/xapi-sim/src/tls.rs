//! The host certificate, made at start, and what speaks TLS with it.

use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{CertificateParams, DnType, KeyPair, SerialNumber};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::cipher_suite::{
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;

/// The first name in the certificate.
pub(crate) const HOST_NAME: &str = "localhost";

/// Every simulated host has this key, since making one takes seconds; it protects nothing. The certificates of two pools
/// carry different names of their issuer, so that neither is taken for the other's.
const HOST_KEY: &str = include_str!("host-key.pem");

pub(crate) struct HostCertificate {
    pub(crate) pem: String,
    /// Hex of the SHA-256 of the certificate, which is what a client pins.
    pub(crate) sha256: String,
    pub(crate) acceptor: TlsAcceptor,
}

impl HostCertificate {
    /// Self-signed for `localhost` and 127.0.0.1, as a fresh host's certificate is for its own name. No two are equal.
    pub(crate) fn generate() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new([HOST_NAME.to_owned(), "127.0.0.1".to_owned()])?;
        let id = uuid::Uuid::new_v4();
        params.serial_number = Some(SerialNumber::from_slice(id.as_bytes()));
        params.distinguished_name.push(DnType::CommonName, format!("simulated host {id}"));
        let key = KeyPair::from_pem(HOST_KEY).context("read the host key")?;
        let made = params.self_signed(&key).context("make a certificate")?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // What stands in front of xapi and xapi-nbd speaks TLS 1.2 with these.
        let provider = CryptoProvider {
            cipher_suites: vec![TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256],
            ..rustls::crypto::ring::default_provider()
        };
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS12])?
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key)?;
        Ok(Self {
            pem: made.pem(),
            sha256: hex(&Sha256::digest(made.der())),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
