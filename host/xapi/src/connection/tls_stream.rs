//! TLS over TCP with large buffers, on rustls' unbuffered API.
//!
//! ```text
//! read:   socket ── up to 256 KiB a call ──> incoming ── decrypted record by record ──> the caller's buffer
//! write:  the caller's buffer ── encrypted record by record ──> outgoing ── one call ──> socket
//! ```
//!
//! rustls' own stream reads and writes a record or four at a time, which costs seventy system calls more for each MiB,
//! and keeps queues between record layer and socket that are copied into and out of.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ClientConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// The longest record: header, 16 KiB of data, and what encryption adds.
const MAX_RECORD: usize = 5 + (16 << 10) + 2048;

/// How far the buffer for received records grows, for a peer that sends faster than it is read.
const MAX_INCOMING: usize = 256 << 10;

/// How much is encrypted at once: sixteen records, one system call.
const MAX_SEALED: usize = 256 << 10;

/// A TLS connection, after its handshake.
pub(crate) struct TlsStream {
    tcp: TcpStream,
    tls: UnbufferedClientConnection,
    incoming: Incoming,
    /// Decrypted bytes that a small read had no room for, or that came while the connection was written to.
    plain: Vec<u8>,
    /// How many bytes of `plain` have been read.
    taken: usize,
    outgoing: Outgoing,
    /// The peer has said that it sends no more, or has closed the connection.
    ended: bool,
    /// The farewell has been encrypted.
    closing: bool,
    /// Why there is nothing more to be read or written.
    failure: Option<rustls::Error>,
}

/// Records as they come off the socket. Those before `start` are dealt with, those from `end` on have not come.
struct Incoming {
    space: Vec<u8>,
    start: usize,
    end: usize,
}

/// Records on their way to the socket. Those before `sent` are gone.
#[derive(Default)]
struct Outgoing {
    space: Vec<u8>,
    sent: usize,
    end: usize,
}

/// What a step is taken for.
#[derive(Clone, Copy)]
enum Wish<'a> {
    Read,
    Write(&'a [u8]),
    Close,
}

/// What a step led to.
enum Step {
    /// A record was dealt with; there may be more.
    Again,
    /// The wish to write was granted: this much was encrypted.
    Sealed(usize),
    /// Nothing can be done without more records.
    Starved,
}

impl TlsStream {
    /// Makes the handshake as a client. `name` is what the certificate is checked against.
    pub(crate) async fn connect(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        tcp: TcpStream,
    ) -> io::Result<Self> {
        let tls = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
        let incoming = Incoming { space: vec![0; 2 * MAX_RECORD], start: 0, end: 0 };
        let mut stream = Self {
            tcp,
            tls,
            incoming,
            plain: Vec::new(),
            taken: 0,
            outgoing: Outgoing::default(),
            ended: false,
            closing: false,
            failure: None,
        };
        loop {
            let step = stream.step(Wish::Read, &mut ReadBuf::new(&mut []));
            if let Ok(Step::Again) = step {
                continue;
            }
            // After an error, too: the alert says to the peer why.
            let sent = stream.flush().await;
            step?;
            sent?;
            if !stream.tls.is_handshaking() {
                return Ok(stream);
            }
            if poll_fn(|cx| stream.poll_receive(cx)).await? == 0 {
                let reason = "the peer closed the connection in the TLS handshake";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, reason));
            }
        }
    }

    /// Version, cipher suite and the host's certificate (DER), as the handshake agreed.
    pub(crate) fn handshake(&self) -> Option<(String, String, Vec<u8>)> {
        let (version, cipher) = (self.tls.protocol_version()?, self.tls.negotiated_cipher_suite()?);
        let certificate = self.tls.peer_certificates()?.first()?.to_vec();
        Some((format!("{version:?}"), format!("{:?}", cipher.suite()), certificate))
    }

    /// Takes the next step: deals with a record that has come, or else does what is wished for. Of decrypted bytes
    /// `buf` gets as many as it has room for.
    fn step(&mut self, wish: Wish<'_>, buf: &mut ReadBuf<'_>) -> io::Result<Step> {
        if let Some(failure) = &self.failure {
            return Err(invalid(failure.clone()));
        }
        let Self { tls, incoming, plain, outgoing, ended, .. } = self;
        let UnbufferedStatus { mut discard, state } = tls.process_tls_records(incoming.unprocessed());
        let step = match state {
            Ok(ConnectionState::ReadTraffic(mut records)) => {
                let mut outcome = Ok(Step::Again);
                while let Some(record) = records.next_record() {
                    match record {
                        Ok(record) => {
                            discard += record.discard;
                            let n = record.payload.len().min(buf.remaining());
                            buf.put_slice(&record.payload[..n]);
                            plain.extend_from_slice(&record.payload[n..]);
                        }
                        Err(e) => outcome = Err(invalid(e)),
                    }
                }
                outcome
            }
            Ok(ConnectionState::EncodeTlsData(mut message)) => {
                outgoing.append(|space| message.encode(space)).map(|_| Step::Again).map_err(io::Error::other)
            }
            // What was encoded goes out before everything that comes after it, and that is all that rustls asks for.
            Ok(ConnectionState::TransmitTlsData(message)) => {
                message.done();
                Ok(Step::Again)
            }
            Ok(ConnectionState::PeerClosed) => {
                *ended = true;
                Ok(Step::Again)
            }
            Ok(ConnectionState::Closed) => {
                *ended = true;
                Ok(Step::Starved)
            }
            Ok(ConnectionState::WriteTraffic(mut traffic)) => match wish {
                Wish::Read => Ok(Step::Starved),
                Wish::Write(data) => {
                    let data = &data[..data.len().min(MAX_SEALED)];
                    let sealed = outgoing.append(|space| traffic.encrypt(data, space));
                    sealed.map(|_| Step::Sealed(data.len())).map_err(io::Error::other)
                }
                Wish::Close => {
                    let sealed = outgoing.append(|space| traffic.queue_close_notify(space));
                    sealed.map(|_| Step::Sealed(0)).map_err(io::Error::other)
                }
            },
            Ok(ConnectionState::BlockedHandshake) => Ok(Step::Starved),
            // Early data is a server's; a state of a later rustls is nothing that a client without options meets.
            Ok(_) => Err(io::Error::other("an unknown state of the TLS connection")),
            Err(e) => {
                incoming.discard(discard);
                self.fail(e.clone());
                return Err(invalid(e));
            }
        };
        incoming.discard(discard);
        step
    }

    /// Encodes what rustls has to say to the peer after an error. No record is looked at any more.
    fn fail(&mut self, error: rustls::Error) {
        let Self { tls, incoming, outgoing, .. } = self;
        if tls.wants_write()
            && let Ok(ConnectionState::EncodeTlsData(mut alert)) = tls.process_tls_records(incoming.unprocessed()).state
        {
            // Best effort: the connection is lost either way.
            let _ = outgoing.append(|space| alert.encode(space));
        }
        self.failure = Some(error);
    }

    /// Gives `buf` what has come already.
    fn hand_out(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        if self.taken < self.plain.len() {
            let n = buf.remaining().min(self.plain.len() - self.taken);
            buf.put_slice(&self.plain[self.taken..self.taken + n]);
            self.taken += n;
            if self.taken == self.plain.len() {
                self.plain.clear();
                self.taken = 0;
            }
        }
        while buf.remaining() > 0 {
            if let Step::Starved = self.step(Wish::Read, buf)? {
                break;
            }
        }
        Ok(())
    }

    /// Encrypts the beginning of what is wished to be written, and says how much that is.
    fn seal(&mut self, wish: Wish<'_>) -> io::Result<usize> {
        loop {
            match self.step(wish, &mut ReadBuf::new(&mut []))? {
                Step::Again => {}
                Step::Sealed(bytes) => return Ok(bytes),
                Step::Starved => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Reads what the socket has; 0 at its end.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = ReadBuf::new(self.incoming.room());
        ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut room))?;
        let received = room.filled().len();
        self.incoming.received(received);
        Poll::Ready(Ok(received))
    }

    /// Hands all encrypted bytes to the socket.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, outgoing, .. } = self;
        while outgoing.sent < outgoing.end {
            let waiting = &outgoing.space[outgoing.sent..outgoing.end];
            match ready!(Pin::new(&mut *tcp).poll_write(cx, waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => outgoing.sent += n,
            }
        }
        (outgoing.sent, outgoing.end) = (0, 0);
        Poll::Ready(Ok(()))
    }
}

impl Incoming {
    fn unprocessed(&mut self) -> &mut [u8] {
        &mut self.space[self.start..self.end]
    }

    fn discard(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Where the next bytes go. There is always room for the rest of a record.
    fn room(&mut self) -> &mut [u8] {
        if self.space.len() - self.end < MAX_RECORD {
            self.space.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            // A message of the handshake stays here until it is whole: a chain of certificates may take 64 KiB.
            let needed = self.end + MAX_RECORD;
            self.space.resize(needed.max(self.space.len()), 0);
        }
        &mut self.space[self.end..]
    }

    fn received(&mut self, bytes: usize) {
        self.end += bytes;
        if self.end == self.space.len() && self.space.len() < MAX_INCOMING {
            self.space.resize(MAX_INCOMING, 0);
        }
    }
}

impl Outgoing {
    /// Lets `encode` write behind what waits, with as much room as it asks for.
    fn append<E: Into<NoRoom>>(
        &mut self,
        mut encode: impl FnMut(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, NoRoom> {
        loop {
            match encode(&mut self.space[self.end..]).map_err(Into::into) {
                Ok(n) => {
                    self.end += n;
                    return Ok(n);
                }
                Err(NoRoom::Needs(bytes)) => self.space.resize(self.end + bytes, 0),
                Err(other) => return Err(other),
            }
        }
    }
}

/// Why rustls did not encode or encrypt.
#[derive(Debug, thiserror::Error)]
enum NoRoom {
    #[error("{0} bytes more are needed")]
    Needs(usize),
    #[error(transparent)]
    Encode(EncodeError),
    #[error(transparent)]
    Encrypt(EncryptError),
}

impl From<EncodeError> for NoRoom {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => Self::Needs(required_size),
            other => Self::Encode(other),
        }
    }
}

impl From<EncryptError> for NoRoom {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => Self::Needs(required_size),
            other => Self::Encrypt(other),
        }
    }
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    /// A connection that ends without a farewell ends like any other: neither end is proof of anything, and hosts
    /// that proxy TLS do not always send one.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            let handed = this.hand_out(buf);
            // What waits, such as the answer to a change of keys. A peer that takes no more may still have said why.
            let sent = this.poll_send(cx);
            handed?;
            if buf.filled().len() > before || this.ended {
                break;
            }
            this.ended = ready!(this.poll_receive(cx))? == 0;
            if let (true, Poll::Ready(Err(e))) = (this.ended, sent) {
                return Poll::Ready(Err(e));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    /// Takes what it encrypts. Up to 256 KiB of it may wait for the socket when this returns; the next write, or the
    /// flush at the end, waits for them.
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(this.poll_send(cx))?;
        let sealed = this.seal(Wish::Write(data))?;
        match this.poll_send(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(sealed)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    /// Says farewell and closes the write side.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        if !std::mem::replace(&mut this.closing, true) {
            this.seal(Wish::Close)?;
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use rustls::{HandshakeKind, ServerConfig, SupportedProtocolVersion};
    use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
    use sha2::{Digest, Sha256};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::server::TlsStream as Served;

    use super::*;
    use crate::endpoint::Address;
    use crate::tls::{Tls, Trust};

    const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

    /// A server that rustls' buffered stream serves, and a client configuration that believes it.
    struct Fixture {
        listener: TcpListener,
        acceptor: TlsAcceptor,
        certificate: CertificateDer<'static>,
    }

    impl Fixture {
        async fn new(version: &'static SupportedProtocolVersion) -> Self {
            Self::with_chain(version, 0).await
        }

        /// Whose server presents its certificate again and again, up to `length` bytes.
        async fn with_chain(version: &'static SupportedProtocolVersion, length: usize) -> Self {
            let made = rcgen::generate_simple_self_signed(["xen1".to_owned()]).expect("a certificate");
            let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .expect("a version")
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone(); 1 + length / made.cert.der().len()], key)
                .expect("a key of the certificate");
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            Self { listener, acceptor: Arc::new(config).into(), certificate: made.cert.der().clone() }
        }

        fn client(&self, sha256: [u8; 32]) -> Arc<ClientConfig> {
            let address = Address { tls: true, host: "xen1".to_owned(), port: 443 };
            Tls::new(Trust::Pinned { sha256 }).config(&address).expect("a configuration")
        }

        fn believing(&self) -> Arc<ClientConfig> {
            self.client(Sha256::digest(&self.certificate).into())
        }

        async fn connect(&self, config: &Arc<ClientConfig>) -> (io::Result<TlsStream>, io::Result<Served<TcpStream>>) {
            let address = self.listener.local_addr().expect("bound");
            let dial = async {
                let tcp = TcpStream::connect(address).await?;
                TlsStream::connect(Arc::clone(config), ServerName::try_from("xen1").expect("a name"), tcp).await
            };
            let accept = async {
                let (tcp, _) = self.listener.accept().await?;
                self.acceptor.accept(tcp).await
            };
            tokio::join!(dial, accept)
        }

        async fn pair(&self) -> (TlsStream, Served<TcpStream>) {
            let (client, server) = self.connect(&self.believing()).await;
            (client.expect("a client"), server.expect("a server"))
        }
    }

    /// Sizes from 1 to `most`, small ones as often as large ones.
    fn sizes(most: usize) -> impl Iterator<Item = usize> {
        let mut seed = 0x9e37_79b9_u32;
        std::iter::repeat_with(move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bits = (seed >> 24) % (most.ilog2() + 1);
            (seed as usize & ((2 << bits) - 1)).clamp(1, most)
        })
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
    }

    #[tokio::test]
    async fn what_is_written_in_any_pieces_comes_back_in_any_pieces() {
        const LENGTH: usize = 5_000_003;
        for version in VERSIONS {
            let (client, served) = Fixture::new(version).await.pair().await;
            let echo = tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(served);
                tokio::io::copy(&mut from, &mut to).await.expect("echoes");
                to.shutdown().await.expect("says farewell");
            });
            let (mut from, mut to) = tokio::io::split(client);
            let sent = pattern(LENGTH);
            let sending = async {
                let mut left = &sent[..];
                for size in sizes(1 << 20) {
                    let (now, later) = left.split_at(size.min(left.len()));
                    to.write_all(now).await.expect("writes");
                    left = later;
                    if left.is_empty() {
                        break;
                    }
                }
                to.shutdown().await.expect("says farewell");
            };
            let receiving = async {
                let (mut received, mut space) = (Vec::new(), vec![0; 1 << 20]);
                for size in sizes(1 << 20) {
                    match from.read(&mut space[..size]).await.expect("reads") {
                        0 => break,
                        n => received.extend_from_slice(&space[..n]),
                    }
                }
                received
            };
            let ((), received) = tokio::join!(sending, receiving);
            assert!(received == sent, "{version:?}");
            echo.await.expect("no panic");
        }
    }

    #[tokio::test]
    async fn both_sides_may_write_more_than_the_sockets_hold_before_either_reads() {
        const LENGTH: usize = 8 << 20;
        for version in VERSIONS {
            let (mut client, mut served) = Fixture::new(version).await.pair().await;
            let theirs = tokio::spawn(async move {
                let mut space = vec![0; LENGTH];
                served.read_exact(&mut space).await.expect("reads");
                served.write_all(&space).await.expect("writes");
                served.flush().await.expect("flushes");
                served
            });
            let sent = pattern(LENGTH);
            client.write_all(&sent).await.expect("writes");
            client.flush().await.expect("flushes");
            let mut received = vec![0; LENGTH];
            client.read_exact(&mut received).await.expect("reads");
            assert!(received == sent);
            theirs.await.expect("no panic");
        }
    }

    #[tokio::test]
    async fn the_end_of_a_connection_is_an_end_with_and_without_a_farewell() {
        for version in VERSIONS {
            for farewell in [true, false] {
                let (mut client, mut served) = Fixture::new(version).await.pair().await;
                served.write_all(b"the last words").await.expect("writes");
                served.flush().await.expect("flushes");
                if farewell {
                    served.shutdown().await.expect("says farewell");
                }
                drop(served);
                let mut words = String::new();
                client.read_to_string(&mut words).await.expect("an end like any other");
                assert_eq!(words, "the last words");
                assert_eq!(client.read(&mut [0; 8]).await.expect("still at its end"), 0);
            }
        }
    }

    #[tokio::test]
    async fn a_second_connection_resumes_the_first_ones_session() {
        for version in VERSIONS {
            let fixture = Fixture::new(version).await;
            let config = fixture.believing();
            let mut kinds = Vec::new();
            for _ in 0..2 {
                let (client, served) = fixture.connect(&config).await;
                let (mut client, mut served) = (client.expect("a client"), served.expect("a server"));
                // With 1.3 the ticket comes behind the handshake.
                served.write_all(b"hello").await.expect("writes");
                client.read_exact(&mut [0; 5]).await.expect("reads");
                kinds.push(served.get_ref().1.handshake_kind());
            }
            assert_eq!(kinds, [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)], "{version:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_believed_is_told_so() {
        for version in VERSIONS {
            let fixture = Fixture::new(version).await;
            let (client, served) = fixture.connect(&fixture.client([7; 32])).await;
            let refused = client.err().expect("another certificate");
            assert!(refused.get_ref().is_some_and(|e| e.is::<rustls::Error>()), "{refused:?}");
            let told = served.expect_err("refused").to_string();
            assert!(told.contains("alert"), "{version:?}: {told}");
        }
    }

    #[tokio::test]
    async fn bytes_that_are_no_records_are_an_error_that_stays() {
        for version in VERSIONS {
            let (mut client, served) = Fixture::new(version).await.pair().await;
            let (mut tcp, _) = served.into_inner();
            tcp.write_all(b"\x17\x03\x03\x00\x20 not what was agreed upon, not at all").await.expect("writes");
            for _ in 0..2 {
                let error = client.read(&mut [0; 8]).await.expect_err("forged");
                assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{version:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_chain_of_certificates_may_be_longer_than_some_records() {
        for version in VERSIONS {
            let fixture = Fixture::with_chain(version, 60_000).await;
            let (mut client, mut served) = fixture.pair().await;
            served.write_all(b"hello").await.expect("writes");
            client.read_exact(&mut [0; 5]).await.expect("reads");
        }
    }

    #[tokio::test]
    async fn a_handshake_that_ends_early_is_an_error() {
        let fixture = Fixture::new(&rustls::version::TLS12).await;
        let address = fixture.listener.local_addr().expect("bound");
        let tcp = TcpStream::connect(address).await.expect("connects");
        drop(fixture.listener.accept().await.expect("accepts"));
        let name = ServerName::try_from("xen1").expect("a name");
        TlsStream::connect(fixture.believing(), name, tcp).await.err().expect("no server");
    }
}
