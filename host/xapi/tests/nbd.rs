//! Facts about connections to a host's NBD server, against one that says what the test tells it to.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::{Host, Identity, PATIENCE, SESSION, Socket, in_no_time, list, members, value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::nbd::{NbdError, Pace, Reader};
use vmferry_xapi::records::Vdi;
use vmferry_xapi::{NbdCause, NbdConnections, NbdUnavailable, Ref, Session};

const SIZE: u64 = 1 << 20;

/// What an NBD server does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// As a host's on a network with the purpose `nbd`.
    Encrypted,
    /// As a host's on a network with the purpose `insecure_nbd`.
    Plain,
    /// It takes the connection and says nothing.
    Silent,
    /// It closes the connection when the export is named.
    Closed,
}

/// A server and what it has seen.
struct Server {
    port: u16,
    /// Connections open now and at most.
    open: watch::Receiver<usize>,
    most: Arc<AtomicUsize>,
    /// Export names that were told, and whether by TLS.
    named: Arc<std::sync::Mutex<Vec<(String, bool)>>>,
}

impl Server {
    /// Serves a disk whose every byte is its sector's number; `limit` connections at a time.
    async fn start(manner: Manner, identity: &Identity, limit: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let acceptor = identity.acceptor(&[&rustls::version::TLS12]);
        let (count, open) = watch::channel(0);
        let (count, most, named) = (Arc::new(count), Arc::new(AtomicUsize::new(0)), Arc::default());
        let server = Self { port, open, most: Arc::clone(&most), named: Arc::clone(&named) };
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let now = *count.borrow() + 1;
                if now > limit {
                    continue;
                }
                count.send_replace(now);
                most.fetch_max(now, Ordering::Relaxed);
                let (acceptor, named, count) = (acceptor.clone(), Arc::clone(&named), Arc::clone(&count));
                tokio::spawn(async move {
                    // However a conversation ends, it is the client's business.
                    let _ = serve(Socket::Plain(tcp), manner, acceptor, &named).await;
                    count.send_modify(|count| *count -= 1);
                });
            }
        });
        server
    }

    fn entry(&self, certificate: &str, subject: &str) -> String {
        members(&[
            ("exportname", &format!("/d15c0000?session_id={SESSION}")),
            ("address", "127.0.0.1"),
            ("port", &self.port.to_string()),
            ("cert", certificate),
            ("subject", subject),
        ])
    }

    fn named(&self) -> Vec<(String, bool)> {
        self.named.lock().expect("not poisoned").clone()
    }

    async fn until_none_is_open(&mut self) {
        let none = self.open.wait_for(|open| *open == 0);
        tokio::time::timeout(PATIENCE, none).await.expect("closed").expect("the server lives");
    }
}

async fn serve(
    mut socket: Socket,
    manner: Manner,
    acceptor: tokio_rustls::TlsAcceptor,
    named: &std::sync::Mutex<Vec<(String, bool)>>,
) -> std::io::Result<()> {
    if manner == Manner::Silent {
        return socket.read_u8().await.map(drop);
    }
    socket.write_all(b"NBDMAGICIHAVEOPT\0\x01").await?;
    socket.flush().await?;
    assert_eq!(socket.read_u32().await?, 1, "fixed newstyle and nothing else");
    loop {
        assert_eq!(&socket.read_u64().await?.to_be_bytes(), b"IHAVEOPT");
        let (option, length) = (socket.read_u32().await?, socket.read_u32().await?);
        let mut data = vec![0; length as usize];
        socket.read_exact(&mut data).await?;
        match (option, &socket) {
            (5, Socket::Plain(_)) => {
                let reply: u32 = if manner == Manner::Plain { 0x8000_0002 } else { 1 };
                socket.write_u64(0x3_e889_0455_65a9).await?;
                for word in [5, reply, 0] {
                    socket.write_u32(word).await?;
                }
                socket.flush().await?;
                if reply == 1
                    && let Socket::Plain(tcp) = socket
                {
                    socket = Socket::Tls(Box::new(acceptor.accept(tcp).await?));
                }
            }
            (1, _) => {
                let encrypted = matches!(socket, Socket::Tls(_));
                let name = String::from_utf8(data).expect("a name is text");
                named.lock().expect("not poisoned").push((name, encrypted));
                if manner == Manner::Closed || encrypted != (manner == Manner::Encrypted) {
                    return Ok(());
                }
                socket.write_u64(SIZE).await?;
                socket.write_u16(3).await?;
                socket.write_all(&[0; 124]).await?;
                socket.flush().await?;
                break;
            }
            other => panic!("option {}", other.0),
        }
    }
    loop {
        assert_eq!(socket.read_u32().await?, 0x2560_9513);
        if socket.read_u32().await? != 0 {
            return Ok(());
        }
        let (cookie, offset, length) = (socket.read_u64().await?, socket.read_u64().await?, socket.read_u32().await?);
        socket.write_u32(0x6744_6698).await?;
        socket.write_u32(0).await?;
        socket.write_u64(cookie).await?;
        let data: Vec<u8> = (offset..offset + u64::from(length)).map(byte_at).collect();
        socket.write_all(&data).await?;
        socket.flush().await?;
    }
}

fn byte_at(offset: u64) -> u8 {
    (offset / 512 % 251) as u8
}

fn disk() -> Ref<Vdi> {
    Ref::new("OpaqueRef:d15c0000-0000-0000-0000-000000000001")
}

/// A pool whose networks have `purpose`, and which names these servers.
async fn pool(purpose: &str, entries: Vec<String>) -> (Host, Session) {
    let host = Host::start().await;
    host.on("VDI.get_nbd_info", move |_| value(list(&entries)));
    let network = |uuid: &str, purpose: &str| {
        let purposes: Vec<&str> = Some(purpose).into_iter().filter(|p| !p.is_empty()).collect();
        members(&[("uuid", uuid), ("purpose", &list(&purposes))])
    };
    let networks = members(&[("OpaqueRef:n1", &network("n1", "")), ("OpaqueRef:n2", &network("n2", purpose))]);
    host.on("network.get_all_records", move |_| value(&networks));
    let session = host.login().await;
    (host, session)
}

async fn open(session: &Session, count: usize) -> Result<NbdConnections, NbdUnavailable> {
    tokio::time::timeout(PATIENCE, session.nbd_clients(&disk(), count)).await.expect("bounded")
}

fn no_secret(text: &str) {
    assert!(!text.contains(SESSION) && !text.contains("5e551000"), "a secret in {text}");
}

#[tokio::test]
async fn a_disk_is_read_by_encrypted_connections_to_the_host_that_the_pool_names() {
    let identity = Identity::new("xen1.company.tld");
    let mut server = Server::start(Manner::Encrypted, &identity, 16).await;
    let (_host, session) = pool("nbd", vec![server.entry(&identity.pem, "xen1.company.tld")]).await;
    let connections = open(&session, 3).await.expect("served");
    assert!(connections.encrypted && connections.fewer.is_none());
    assert!(connections.clients.iter().all(|client| client.size() == SIZE));
    no_secret(&format!("{connections:?}"));
    let name = format!("/d15c0000?session_id={SESSION}");
    assert_eq!(server.named(), vec![(name, true); 3]);

    let extents: Extents = [Extent { offset: 512, length: SIZE - 512 }].into_iter().collect();
    let pace = Pace { depth: 2, request_size: 64 << 10 };
    let mut reader = Reader::new(connections.clients, extents, pace).expect("inside of the disk");
    let (mut buffer, mut at) = (vec![0; 100_000], 512);
    while let Some(piece) = reader.read(&mut buffer).await.expect("reads") {
        assert_eq!(piece.offset, at);
        assert!(piece.bytes.iter().zip(at..).all(|(byte, at)| *byte == byte_at(at)));
        at += piece.bytes.len() as u64;
    }
    assert_eq!(at, SIZE);
    drop(reader);
    server.until_none_is_open().await;
}

#[tokio::test]
async fn connections_are_plain_where_the_pool_says_so() {
    let identity = Identity::new("xen1");
    let server = Server::start(Manner::Plain, &identity, 16).await;
    let (_host, session) = pool("insecure_nbd", vec![server.entry(&identity.pem, "xen1")]).await;
    let connections = open(&session, 1).await.expect("served");
    assert!(!connections.encrypted);
    assert_eq!(server.named().len(), 1);
}

#[tokio::test]
async fn a_name_is_not_told_to_a_server_that_refuses_tls_where_the_pool_has_it() {
    let identity = Identity::new("xen1");
    let server = Server::start(Manner::Plain, &identity, 16).await;
    let (_host, session) = pool("nbd", vec![server.entry(&identity.pem, "xen1")]).await;
    match open(&session, 1).await {
        Err(NbdUnavailable::NoServer(failures)) => {
            assert!(matches!(failures[0].cause, NbdCause::Protocol(NbdError::TlsRefused { .. })), "{failures:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(server.named().is_empty());
}

#[tokio::test]
async fn a_name_is_not_told_to_a_server_with_another_certificate_for_the_same_name() {
    let (real, other) = (Identity::new("xen1"), Identity::new("xen1"));
    let server = Server::start(Manner::Encrypted, &other, 16).await;
    let (_host, session) = pool("nbd", vec![server.entry(&real.pem, "xen1")]).await;
    match open(&session, 1).await {
        Err(NbdUnavailable::NoServer(failures)) => match &failures[0].cause {
            NbdCause::Tls(reason) => assert!(reason.contains("the pool has named"), "{reason}"),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    assert!(server.named().is_empty());
}

#[tokio::test]
async fn a_certificate_that_is_none_is_an_error_and_no_reason_to_go_without() {
    let identity = Identity::new("xen1");
    let server = Server::start(Manner::Encrypted, &identity, 16).await;
    for bad in ["", "no PEM", "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n"] {
        let (_host, session) = pool("nbd", vec![server.entry(bad, "xen1")]).await;
        let error = open(&session, 1).await.expect_err("nothing to go by");
        assert!(error.to_string().contains("TLS failed"), "{error}");
    }
    assert!(server.named().is_empty());
}

#[tokio::test]
async fn no_network_for_nbd_is_told_with_the_way_to_make_one() {
    let (_host, session) = pool("", Vec::new()).await;
    let error = open(&session, 1).await.expect_err("nobody serves it");
    assert!(matches!(error, NbdUnavailable::NoNetwork), "{error:?}");
    assert!(error.to_string().contains("param-key=nbd"), "{error}");
}

#[tokio::test]
async fn addresses_are_tried_in_turn_and_each_failure_is_told() {
    let identity = Identity::new("xen1");
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let dead = Server {
        port: free.local_addr().expect("bound").port(),
        open: watch::channel(0).1,
        most: Arc::default(),
        named: Arc::default(),
    };
    drop(free);
    let closed = Server::start(Manner::Closed, &identity, 16).await;
    let good = Server::start(Manner::Encrypted, &identity, 16).await;
    let entries = [&dead, &closed, &good].map(|server| server.entry(&identity.pem, "xen1"));

    let (_host, session) = pool("nbd", entries.to_vec()).await;
    assert_eq!(open(&session, 2).await.expect("the last one").clients.len(), 2);
    assert_eq!((closed.named().len(), good.named().len()), (1, 2));

    let (_host, session) = pool("nbd", entries[..2].to_vec()).await;
    let error = open(&session, 2).await.expect_err("none is left");
    let text = format!("{error} {error:?}");
    for port in [dead.port, closed.port] {
        assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    }
    no_secret(&text);
    match error {
        NbdUnavailable::NoServer(failures) => {
            assert!(matches!(failures[0].cause, NbdCause::Connection(_)), "{failures:?}");
            assert!(matches!(failures[1].cause, NbdCause::Protocol(NbdError::ExportRefused)), "{failures:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn fewer_connections_than_asked_for_are_a_success_with_a_reason() {
    let identity = Identity::new("xen1");
    let mut server = Server::start(Manner::Encrypted, &identity, 2).await;
    let (_host, session) = pool("nbd", vec![server.entry(&identity.pem, "xen1")]).await;
    let connections = open(&session, 4).await.expect("served");
    assert_eq!(connections.clients.len(), 2);
    assert!(connections.fewer.is_some());
    assert_eq!(server.most.load(Ordering::Relaxed), 2);
    drop(connections);
    server.until_none_is_open().await;
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let identity = Identity::new("xen1");
    let mut server = Server::start(Manner::Silent, &identity, 16).await;
    let (_host, session) = pool("nbd", vec![server.entry(&identity.pem, "xen1")]).await;
    let mut open = server.open.clone();
    let opening = tokio::spawn(async move { session.nbd_clients(&disk(), 1).await });
    open.wait_for(|open| *open == 1).await.expect("connected");
    match in_no_time(opening).await.expect("no panic") {
        Err(NbdUnavailable::NoServer(failures)) => {
            assert!(matches!(failures[0].cause, NbdCause::Timeout { .. }), "{failures:?}");
        }
        other => panic!("{other:?}"),
    }
    server.until_none_is_open().await;
}

#[tokio::test]
async fn where_a_disk_is_served_is_shown_without_the_session() {
    let identity = Identity::new("xen1");
    let server = Server::start(Manner::Encrypted, &identity, 16).await;
    let (_host, session) = pool("nbd", vec![server.entry(&identity.pem, "xen1")]).await;
    let info = session.get_nbd_info(&disk()).await.expect("told");
    assert_eq!((info[0].address.as_str(), info[0].port, info[0].subject.as_str()), ("127.0.0.1", server.port, "xen1"));
    no_secret(&format!("{info:?}"));

    // An answer that cannot be read does not show it either.
    let (_host, session) = pool("nbd", vec![members(&[("exportname", &format!("/d?session_id={SESSION}"))])]).await;
    let error = session.get_nbd_info(&disk()).await.expect_err("incomplete");
    no_secret(&format!("{error} {error:?}"));
}
