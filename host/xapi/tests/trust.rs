//! Facts about certificates.

mod support;

use std::sync::Arc;

use rustls::HandshakeKind;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use support::{EARLY_OK, Host, Identity, PATIENCE, SESSION, acceptor, members, raw, value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{Endpoint, Error, Ref, Retry, Session, Trust};

async fn host(identity: &Identity) -> Host {
    host_with_chain(vec![identity.certificate.clone()], identity.key.clone_key()).await
}

async fn host_with_chain(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Host {
    Host::start_with(Some(acceptor(chain, key, rustls::DEFAULT_VERSIONS))).await
}

fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn login(endpoint: Endpoint) -> Result<Session, Error> {
    tokio::time::timeout(PATIENCE, Session::login(&endpoint, "test")).await.expect("bounded")
}

#[tokio::test]
async fn a_pinned_certificate_is_believed_for_calls_and_streams_whatever_its_name() {
    let identity = Identity::new("elsewhere.invalid");
    let host = host(&identity).await;
    let session = login(host.endpoint().with_trust(identity.pin())).await.expect("login");
    assert!(session.endpoint_is_tls());

    host.on("GET /export_raw_vdi", |_| raw("HTTP/1.1 200 OK\r\n\r\nconectix"));
    let mut export = session.export_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), None, "export").await.expect("opens");
    let mut body = Vec::new();
    export.read_to_end(&mut body).await.expect("reads");
    assert_eq!(body, b"conectix");
    host.task.succeed("");
    export.finish().await.expect("confirmed");
}

#[tokio::test]
async fn an_import_over_tls_is_written_whole_and_ends_with_the_connection_however_it_ends() {
    const LENGTH: u64 = 5_000_001;
    let identity = Identity::new("xen1");
    let host = host(&identity).await;
    let session = login(host.endpoint().with_trust(identity.pin())).await.expect("login");
    host.on_stream("PUT /import_raw_vdi", |mut wire| async move {
        wire.say(EARLY_OK).await;
        assert_eq!(wire.swallow(LENGTH).await.len() as u64, LENGTH, "the whole body");
        wire.task.succeed("");
        // Dropped as it is, without a farewell.
    });
    let mut import = session.import_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), LENGTH, "import").await.expect("opens");
    import.write_all(&vec![7; LENGTH as usize]).await.expect("writes");
    tokio::time::timeout(PATIENCE, import.finish()).await.expect("bounded").expect("confirmed");
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_is_refused_with_its_digest_and_the_keys_to_set() {
    let presented = Identity::new("xen1");
    let host = host(&presented).await;
    let error = login(host.endpoint().with_trust(Trust::Pinned { sha256: [7; 32] })).await.expect_err("not the one");
    let text = error.to_string();
    for part in [hex(presented.digest()).as_str(), &hex([7; 32]), "certificate_sha256", "ca_file", "127.0.0.1"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(matches!(error, Error::CertificateNotTrusted { .. }));
    assert_eq!(error.retry(), Retry::Never);
    assert!(host.requests().is_empty(), "no password was sent");
}

#[tokio::test]
async fn a_host_that_only_shows_the_pinned_certificate_does_not_own_its_key() {
    let (real, thief) = (Identity::new("xen1"), Identity::new("xen1"));
    let provider = rustls::crypto::ring::default_provider();
    let key = provider.key_provider.load_private_key(thief.key.clone_key()).expect("a key");
    let stolen = rustls::sign::CertifiedKey::new(vec![real.certificate.clone()], key);
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(stolen)));
    let host = Host::start_with(Some(Arc::new(config).into())).await;
    let error = login(host.endpoint().with_trust(real.pin())).await.expect_err("no proof");
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    assert!(host.requests().is_empty(), "no password was sent");
}

#[tokio::test]
async fn a_self_signed_certificate_is_unknown_to_the_system() {
    let identity = Identity::new("127.0.0.1");
    let host = host(&identity).await;
    let error = login(host.endpoint()).await.expect_err("unknown");
    match error {
        Error::CertificateNotTrusted { presented_sha256, .. } => assert_eq!(presented_sha256, hex(identity.digest())),
        // A machine without any authority says so instead.
        Error::Tls { reason, .. } => assert!(reason.contains("certificate_sha256"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_authority_is_believed_for_the_right_name_only() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).expect("an authority");
    let issuer = rcgen::Issuer::new(params, key);
    for (name, right) in [("127.0.0.1", true), ("elsewhere.invalid", false)] {
        let key = rcgen::KeyPair::generate().expect("a key");
        let leaf = rcgen::CertificateParams::new([name.to_owned()]).expect("parameters");
        let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
        let host =
            host_with_chain(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into()).await;
        let trust = Trust::CaPem(authority.pem().into_bytes());
        let outcome = login(host.endpoint().with_trust(trust)).await;
        match outcome {
            Ok(_) => assert!(right, "{name}"),
            Err(Error::CertificateNotTrusted { .. }) => assert!(!right, "{name}"),
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_ca_file_without_a_certificate_is_refused_before_anything_is_sent() {
    let identity = Identity::new("127.0.0.1");
    let host = host(&identity).await;
    let error = login(host.endpoint().with_trust(Trust::CaPem(b"not PEM".to_vec()))).await.expect_err("useless");
    assert!(error.to_string().contains("ca_file"), "{error}");
}

#[tokio::test]
async fn all_sessions_at_an_endpoint_and_their_streams_share_what_makes_handshakes_short() {
    let identity = Identity::new("xen1");
    let host = host(&identity).await;
    host.on("GET /export_raw_vdi", |_| raw(EARLY_OK));
    let endpoint = host.endpoint().with_trust(identity.pin());
    for _ in 0..2 {
        let session = login(endpoint.clone()).await.expect("login");
        drop(session.export_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), None, "export").await.expect("opens"));
    }
    let handshakes = host.handshakes();
    assert_eq!(handshakes[0], HandshakeKind::Full);
    assert!(handshakes.len() >= 4 && handshakes[1..].iter().all(|k| *k == HandshakeKind::Resumed), "{handshakes:?}");
}

/// A master, and a member of its pool with a certificate of its own that exports a disk.
async fn master_and_member(named: &Identity, presented: &Identity) -> (Session, Host) {
    let identity = Identity::new("xen1");
    let (master, member) = (host(&identity).await, host(presented).await);
    let location = format!("https://127.0.0.1:{}/export_raw_vdi?session_id={SESSION}", member.port);
    master.on("GET /export_raw_vdi", move |_| raw(format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\n\r\n")));
    let record = |port: u16| members(&[("uuid", "u"), ("address", &format!("127.0.0.1:{port}"))]);
    let hosts = members(&[("OpaqueRef:h1", &record(master.port)), ("OpaqueRef:h2", &record(member.port))]);
    master.on("host.get_all_records", move |_| value(&hosts));
    let pem = named.pem.clone();
    master.on("host.get_server_certificate", move |request| {
        assert!(request.body.contains("OpaqueRef:h2"), "of the host that was redirected to");
        value(&pem)
    });
    member.on("GET /export_raw_vdi", |_| raw([EARLY_OK, b"conectix"].concat()));
    (login(master.endpoint().with_trust(identity.pin())).await.expect("login"), member)
}

#[tokio::test]
async fn a_redirect_is_followed_to_a_host_whose_certificate_the_pool_names() {
    let identity = Identity::new("xen2");
    let (session, _member) = master_and_member(&identity, &identity).await;
    let mut export = session.export_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), None, "export").await.expect("opens");
    let mut body = Vec::new();
    export.read_to_end(&mut body).await.expect("reads");
    assert_eq!(body, b"conectix");
}

#[tokio::test]
async fn a_redirect_is_not_followed_to_a_host_with_another_certificate_than_the_pool_names() {
    let (session, member) = master_and_member(&Identity::new("xen2"), &Identity::new("xen2")).await;
    let error = session.export_vdi(&Ref::<Vdi>::new("OpaqueRef:d"), None, "export").await.err().expect("another");
    assert!(matches!(error, Error::CertificateNotTrusted { .. }), "{error:?}");
    assert!(member.requests().is_empty(), "no session was told");
}
