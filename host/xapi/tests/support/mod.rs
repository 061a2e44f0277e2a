//! A host of a pool that says what the test tells it to, over real sockets.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::HandshakeKind;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use vmferry_xapi::{Endpoint, Session, Trust};

pub(crate) const SESSION: &str = "OpaqueRef:5e551000-0000-0000-0000-000000000001";
pub(crate) const TASK: &str = "OpaqueRef:7a500000-0000-0000-0000-000000000001";

/// No test waits longer than this for something that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What the host does about a request.
pub(crate) enum Reply {
    /// Success with this XML in `<value>`.
    Value(String),
    /// Failure with this code and parameters.
    Failure(Vec<String>),
    /// These bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// A conversation on the connection, which ends it.
    Talk(Box<dyn FnOnce(Wire) -> Later<()> + Send>),
    /// A reply that takes its time.
    Later(Later<Self>),
}

pub(crate) fn value(xml: impl Into<String>) -> Reply {
    Reply::Value(xml.into())
}

pub(crate) fn failure<const N: usize>(words: [&str; N]) -> Reply {
    Reply::Failure(words.map(str::to_owned).to_vec())
}

pub(crate) fn raw(bytes: impl AsRef<[u8]>) -> Reply {
    Reply::Raw(bytes.as_ref().to_vec())
}

pub(crate) fn later(f: impl Future<Output = Reply> + Send + 'static) -> Reply {
    Reply::Later(Box::pin(f))
}

/// A struct in XML from names and XML values.
pub(crate) fn members(members: &[(&str, &str)]) -> String {
    let members: String =
        members.iter().map(|(k, v)| format!("<member><name>{k}</name><value>{v}</value></member>")).collect();
    format!("<struct>{members}</struct>")
}

pub(crate) fn list<S: AsRef<str>>(items: &[S]) -> String {
    let items: String = items.iter().map(|i| format!("<value>{}</value>", i.as_ref())).collect();
    format!("<array><data>{items}</data></array>")
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `VM.snapshot` for a call, `GET /export_raw_vdi` for a stream.
    pub(crate) name: String,
    /// The whole head.
    pub(crate) head: String,
    /// The whole body of a call.
    pub(crate) body: String,
}

type Rule = Box<dyn FnMut(&Request) -> Reply + Send>;

/// A task whose end the test decides.
#[derive(Clone)]
pub(crate) struct TestTask(Arc<watch::Sender<(&'static str, String)>>);

impl TestTask {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(("pending", String::new()))))
    }

    pub(crate) fn succeed(&self, result: &str) {
        self.0.send_replace(("success", result.to_owned()));
    }

    pub(crate) fn fail(&self, words: &[&str]) {
        self.0.send_replace(("failure", list(words)));
    }

    /// As XAPI ends a stream that it could not read or write to its end.
    pub(crate) fn fail_with_io_error(&self) {
        self.fail(&["VDI_IO_ERROR", "Device I/O errors"]);
    }

    /// Nobody knows the task any more.
    pub(crate) fn vanish(&self) {
        self.0.send_replace(("gone", String::new()));
    }

    fn is_gone(&self) -> bool {
        self.0.borrow().0 == "gone"
    }

    fn record(&self) -> String {
        let (status, detail) = self.0.borrow().clone();
        let (result, error_info) = match status {
            "failure" => (String::new(), detail),
            _ => (detail.replace('<', "&lt;"), list::<&str>(&[])),
        };
        members(&[
            ("uuid", "7a5c"),
            ("name_label", "a task"),
            ("status", status),
            ("result", &result),
            ("error_info", &error_info),
            ("progress", "<double>0.5</double>"),
        ])
    }

    fn events(&self, operation: &str) -> String {
        let event = members(&[
            ("id", "1"),
            ("timestamp", "0.0"),
            ("class", "task"),
            ("operation", operation),
            ("ref", TASK),
            ("snapshot", &self.record()),
        ]);
        batch(&[event])
    }
}

/// An answer of `event.from`.
pub(crate) fn batch(events: &[String]) -> String {
    let counts = members(&[("task", "<i4>1</i4>")]);
    members(&[
        ("events", &list(events)),
        ("token", "00000000000000000002,00000000000000000000"),
        ("valid_ref_counts", &counts),
    ])
}

#[derive(Clone)]
pub(crate) struct Host {
    pub(crate) port: u16,
    pub(crate) task: TestTask,
    rules: Arc<Mutex<HashMap<String, Rule>>>,
    log: Arc<watch::Sender<Vec<Request>>>,
    handshakes: Arc<Mutex<Vec<HandshakeKind>>>,
    tls: Option<TlsAcceptor>,
}

impl Host {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(crate) async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let host = Self {
            port: listener.local_addr().expect("bound").port(),
            task: TestTask::new(),
            rules: Arc::default(),
            log: Arc::new(watch::Sender::new(Vec::new())),
            handshakes: Arc::default(),
            tls,
        };
        host.on("session.login_with_password", |_| value(SESSION));
        host.on("session.logout", |_| value(""));
        host.on("host.get_all_records", |_| value(members(&[])));
        host.on("task.create", |_| value(TASK));
        host.on("task.destroy", |_| value(""));
        let task = host.task.clone();
        host.on("task.get_record", move |_| {
            if task.is_gone() { failure(["HANDLE_INVALID", "task", TASK]) } else { value(task.record()) }
        });
        let task = host.task.clone();
        host.on("event.from", move |request| {
            if !request.body.contains("00000000000000000002,") {
                return value(task.events("add"));
            }
            let mut state = task.0.subscribe();
            let task = task.clone();
            later(async move {
                state.wait_for(|(status, _)| *status != "pending").await.expect("the task lives");
                value(task.events("mod"))
            })
        });
        let serving = host.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serving.clone().accept(socket));
            }
        });
        host
    }

    /// Sets what happens when `name` is asked for.
    pub(crate) fn on(&self, name: &str, rule: impl FnMut(&Request) -> Reply + Send + 'static) -> &Self {
        self.rules.lock().expect("not poisoned").insert(name.to_owned(), Box::new(rule));
        self
    }

    /// Sets what is said on a stream's connection when `name` is asked for.
    pub(crate) fn on_stream<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &str,
        script: impl Fn(Wire) -> F + Send + Sync + 'static,
    ) -> &Self {
        let script = Arc::new(script);
        self.on(name, move |_| {
            let script = Arc::clone(&script);
            Reply::Talk(Box::new(move |wire| Box::pin(async move { script(wire).await })))
        })
    }

    /// A host whose streams called `name` go as `script` says, and a session at it.
    pub(crate) async fn streaming<F: Future<Output = ()> + Send + 'static>(
        name: &str,
        script: impl Fn(Wire) -> F + Send + Sync + 'static,
    ) -> (Self, Session) {
        let host = Self::start().await;
        host.on_stream(name, script);
        let session = host.login().await;
        (host, session)
    }

    /// Answers `first` once, then what stood before.
    pub(crate) fn once(&self, name: &str, first: impl FnOnce(&Request) -> Reply + Send + 'static) -> &Self {
        let mut then = self.rules.lock().expect("not poisoned").remove(name);
        let mut first = Some(first);
        self.on(name, move |request| match (first.take(), &mut then) {
            (Some(first), _) => first(request),
            (None, Some(then)) => then(request),
            (None, None) => failure(["MESSAGE_METHOD_UNKNOWN", &request.name]),
        })
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        let url = format!("{}://root:hunter2@127.0.0.1:{}", self.scheme(), self.port);
        Endpoint::parse(&url).expect("a good URL")
    }

    pub(crate) async fn login(&self) -> Session {
        Session::login(&self.endpoint(), "test").await.expect("login")
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.borrow().clone()
    }

    /// How the TLS connections so far began.
    pub(crate) fn handshakes(&self) -> Vec<HandshakeKind> {
        self.handshakes.lock().expect("not poisoned").clone()
    }

    /// Names of all requests so far.
    pub(crate) fn names(&self) -> Vec<String> {
        self.requests().into_iter().map(|r| r.name).collect()
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        self.names().iter().filter(|n| *n == name).count()
    }

    /// Waits until `name` was asked for.
    pub(crate) async fn asked_for(&self, name: &str) {
        let mut log = self.log.subscribe();
        let seen = log.wait_for(|log| log.iter().any(|r| r.name == name));
        tokio::time::timeout(PATIENCE, seen).await.expect(name).expect("the host lives");
    }

    async fn accept(self, socket: TcpStream) {
        // Or a reset would take back what was said right before it.
        socket.set_nodelay(true).expect("an option of every socket");
        let mut socket = match &self.tls {
            None => Socket::Plain(socket),
            Some(tls) => match tls.accept(socket).await {
                Ok(socket) => {
                    let kind = socket.get_ref().1.handshake_kind().expect("it is done");
                    self.handshakes.lock().expect("not poisoned").push(kind);
                    Socket::Tls(Box::new(socket))
                }
                // A client that refuses the certificate is part of some tests.
                Err(_) => return,
            },
        };
        if let Some(Reply::Talk(talk)) = self.serve(&mut socket).await {
            talk(Wire { socket, task: self.task }).await;
        }
    }

    /// Serves calls until the connection ends; gives back a conversation to be held on it.
    async fn serve(&self, socket: &mut Socket) -> Option<Reply> {
        loop {
            let request = read_request(socket).await?;
            self.log.send_modify(|log| log.push(request.clone()));
            let mut reply = match self.rules.lock().expect("not poisoned").get_mut(&request.name) {
                Some(rule) => rule(&request),
                None => failure(["MESSAGE_METHOD_UNKNOWN", &request.name]),
            };
            while let Reply::Later(later) = reply {
                reply = later.await;
            }
            let envelope = match reply {
                Reply::Value(xml) => members(&[("Status", "Success"), ("Value", &xml)]),
                Reply::Failure(words) => members(&[("Status", "Failure"), ("ErrorDescription", &list(&words))]),
                Reply::Raw(bytes) => {
                    socket.write_all(&bytes).await.ok()?;
                    socket.shutdown().await.ok()?;
                    return None;
                }
                talk => return Some(talk),
            };
            let body =
                format!("<methodResponse><params><param><value>{envelope}</value></param></params></methodResponse>");
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-length: {}\r\n\r\n", body.len());
            socket.write_all(format!("{head}{body}").as_bytes()).await.ok()?;
            socket.flush().await.ok()?;
        }
    }
}

async fn read_request<S: AsyncRead + Unpin>(socket: &mut S) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("a head is text");
    let mut words = head.split([' ', '?']);
    let (verb, path) = (words.next()?, words.next()?);
    if verb != "POST" {
        let name = format!("{verb} {path}");
        return Some(Request { name, head, body: String::new() });
    }
    let length = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.expect("XAPI needs a length").parse().expect("a number")];
    socket.read_exact(&mut body).await.ok()?;
    let body = String::from_utf8(body).expect("a call is text");
    let name = body.split("<methodName>").nth(1)?.split('<').next()?.to_owned();
    Some(Request { name, head, body })
}

/// Lets time pass as fast as everybody does nothing but wait for it.
pub(crate) async fn in_no_time<F: Future>(work: F) -> F::Output {
    tokio::time::pause();
    let output = work.await;
    tokio::time::resume();
    output
}

/// What XAPI answers at once, in both directions.
pub(crate) const EARLY_OK: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/vhd\r\n\r\n";

/// The host's end of a stream.
pub(crate) struct Wire {
    socket: Socket,
    /// The task that the stream belongs to.
    pub(crate) task: TestTask,
}

impl Wire {
    /// Sends bytes; `false` if the client has closed the connection.
    pub(crate) async fn try_say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.socket.write_all(bytes.as_ref()).await.is_ok() && self.socket.flush().await.is_ok()
    }

    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.try_say(bytes).await, "the client reads");
    }

    /// Reads up to `length` bytes of a body, fewer if it ends before.
    pub(crate) async fn swallow(&mut self, length: u64) -> Vec<u8> {
        let mut body = Vec::new();
        // How a client that gives up ends its connection does not matter here.
        let _ = (&mut self.socket).take(length).read_to_end(&mut body).await;
        body
    }

    /// Waits until the client closes the connection.
    pub(crate) async fn until_closed(&mut self) {
        self.swallow(u64::MAX).await;
    }

    /// Whether the client has said that it sends no more.
    pub(crate) async fn is_closed_by_client(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(100), self.socket.read_u8()).await.is_ok()
    }

    /// Says that nothing more is sent.
    pub(crate) async fn half_close(&mut self) {
        self.socket.shutdown().await.expect("half closed");
    }

    /// Closes the connection the hard way: the client gets a reset.
    pub(crate) fn reset(self) {
        let tcp = match &self.socket {
            Socket::Plain(tcp) => tcp,
            Socket::Tls(tls) => tls.get_ref().0,
        };
        socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO)).expect("linger");
    }
}

/// A certificate for `name` that nobody signed but itself, and its key.
pub(crate) struct Identity {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) pem: String,
}

impl Identity {
    pub(crate) fn new(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        Self {
            certificate: made.cert.der().clone(),
            key: PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into(),
            pem: made.cert.pem(),
        }
    }

    /// What a client sets to believe it.
    pub(crate) fn pin(&self) -> Trust {
        Trust::Pinned { sha256: self.digest() }
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.certificate).into()
    }

    pub(crate) fn acceptor(&self, versions: &[&'static rustls::SupportedProtocolVersion]) -> TlsAcceptor {
        acceptor(vec![self.certificate.clone()], self.key.clone_key(), versions)
    }
}

pub(crate) fn acceptor(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> TlsAcceptor {
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a key of the certificate");
    Arc::new(config).into()
}

/// A connection that a test's server has accepted.
pub(crate) enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
