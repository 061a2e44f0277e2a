//! A host of a pool that says what the test tells it to, over real sockets.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use vmferry_xapi::{Endpoint, Session};

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
    /// An import: 200 at once, this many bytes are read, the task succeeds, and the connection is dropped as it is.
    Import(u64, TestTask),
    /// A conversation on the connection, which ends it.
    Talk(Box<dyn FnOnce(TcpStream) -> Later<()> + Send>),
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

pub(crate) fn talk<F: Future<Output = ()> + Send + 'static>(f: impl FnOnce(TcpStream) -> F + Send + 'static) -> Reply {
    Reply::Talk(Box::new(|socket| Box::pin(f(socket))))
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
    tls: Option<tokio_rustls::TlsAcceptor>,
}

impl Host {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(crate) async fn start_with(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let host = Self {
            port: listener.local_addr().expect("bound").port(),
            task: TestTask::new(),
            rules: Arc::default(),
            log: Arc::new(watch::Sender::new(Vec::new())),
            tls,
        };
        host.on("session.login_with_password", |_| value(SESSION));
        host.on("session.logout", |_| value(""));
        host.on("task.create", |_| value(TASK));
        host.on("task.destroy", |_| value(""));
        let task = host.task.clone();
        host.on("task.get_record", move |_| value(task.record()));
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
        match self.tls.clone() {
            None => {
                let mut socket = socket;
                if let Some(Reply::Talk(talk)) = self.serve(&mut socket).await {
                    talk(socket).await;
                }
            }
            Some(tls) => {
                // A client that refuses the certificate is part of some tests.
                if let Ok(mut socket) = tls.accept(socket).await {
                    self.serve(&mut socket).await;
                }
            }
        }
    }

    /// Serves calls until the connection ends; gives back a conversation to be held on it.
    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, socket: &mut S) -> Option<Reply> {
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
                Reply::Import(length, task) => {
                    socket.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await.ok()?;
                    socket.flush().await.ok()?;
                    let taken = tokio::io::copy(&mut socket.take(length), &mut tokio::io::sink()).await.ok()?;
                    assert_eq!(taken, length, "the whole body");
                    task.succeed("");
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

/// Closes a connection the hard way: the peer gets a reset.
pub(crate) fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).expect("linger");
    drop(socket);
}
