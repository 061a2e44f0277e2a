//! HTTP/1.1 by hand: answers before the request was read, bodies without a length and answers inside of a
//! body are things that no framework does.

use std::collections::BTreeMap;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// The limit of xapi on TCP for request line and headers together.
const MAX_HEAD: usize = 1024;

/// RPC bodies beyond this are refused.
pub(crate) const MAX_RPC_BODY: u64 = 300 << 10;

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection with what was read from it and not used yet.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    /// A second handle of the socket, to hear that the peer is gone without reading what it sent.
    socket: Option<TcpStream>,
    buffer: Vec<u8>,
    reset: bool,
}

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The text after `?`, as it came.
    pub(crate) query: String,
    /// Query arguments and cookies; a cookie wins.
    pub(crate) params: BTreeMap<String, String>,
    /// By lower-case name.
    headers: BTreeMap<String, String>,
    keep_alive: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("the connection ended")]
    Closed,
    #[error("the head is larger than {MAX_HEAD} bytes")]
    TooLarge,
    #[error("the head is no HTTP: {0}")]
    Malformed(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Connection {
    pub(crate) fn new(stream: impl Stream + 'static, socket: Option<TcpStream>) -> Self {
        Self { stream: Box::new(stream), socket, buffer: Vec::new(), reset: false }
    }

    /// A connection that was just accepted, in the clear.
    pub(crate) fn accepted(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let socket = socket.into_std()?;
        let watched = TcpStream::from_std(socket.try_clone()?)?;
        Ok(Self::new(TcpStream::from_std(socket)?, Some(watched)))
    }

    /// The same connection under TLS. What the peer sent in the clear after it had asked for TLS is an error.
    pub(crate) async fn start_tls(self, acceptor: &TlsAcceptor) -> io::Result<Self> {
        if !self.buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes in the clear before the TLS handshake"));
        }
        Ok(Self::new(acceptor.accept(self.stream).await?, self.socket))
    }

    /// The next request, up to its empty line.
    pub(crate) async fn read_head(&mut self) -> Result<Request, HeadError> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                if head.len() > MAX_HEAD {
                    return Err(HeadError::TooLarge);
                }
                return Request::parse(&head);
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(HeadError::TooLarge);
            }
            if self.fill().await? == 0 {
                return Err(HeadError::Closed);
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(8192);
        self.stream.read_buf(&mut self.buffer).await
    }

    /// Fills the whole slice; the end of the connection before that is an error.
    pub(crate) async fn read_exact(&mut self, mut target: &mut [u8]) -> io::Result<()> {
        while !target.is_empty() {
            let read = self.read_some(target).await?;
            target = &mut target[read..];
        }
        Ok(())
    }

    /// At least one byte of the slice, unless it is empty; the end of the connection is an error.
    pub(crate) async fn read_some(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            return match self.stream.read(target).await? {
                0 if !target.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
                read => Ok(read),
            };
        }
        let buffered = self.buffer.len().min(target.len());
        target[..buffered].copy_from_slice(&self.buffer[..buffered]);
        self.buffer.drain(..buffered);
        Ok(buffered)
    }

    /// Resolves when the peer has closed its side or is gone. Nothing is read, so that a stalled sender stays stalled.
    pub(crate) async fn closed(&mut self) {
        let Some(socket) = &self.socket else {
            return std::future::pending().await;
        };
        while let Ok(ready) = socket.ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                return;
            }
            // Data is waiting and stays there: forget that, and wait for the next thing to happen on the socket.
            let _ = socket.try_io(Interest::READABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.stream.flush().await
    }

    /// Has the connection end by RST as soon as it is dropped.
    pub(crate) fn reset(&mut self) {
        // The peer may be gone already, which is as well.
        self.reset = self.socket.as_ref().is_some_and(|socket| socket.set_zero_linger().is_ok());
    }

    /// Ends the connection; over TLS with the closing alert. Nothing where it ends by RST.
    pub(crate) async fn shutdown(&mut self) {
        if self.reset {
            return;
        }
        // The peer may be gone already, which is as well.
        let _ = self.stream.shutdown().await;
    }

    pub(crate) async fn respond(&mut self, response: Response<'_>) -> io::Result<()> {
        self.write(&response.bytes()).await?;
        self.flush().await
    }
}

/// A whole answer with its length.
pub(crate) struct Response<'a> {
    pub(crate) status: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: &'a [u8],
    pub(crate) keep_alive: bool,
}

impl Response<'_> {
    fn bytes(&self) -> Vec<u8> {
        let connection = if self.keep_alive { "keep-alive" } else { "close" };
        let mut head = format!(
            "HTTP/1.1 {}\r\ncontent-length: {}\r\ncontent-type: {}\r\nconnection: {connection}\r\n\
             cache-control: no-cache, no-store\r\n",
            self.status,
            self.body.len(),
            self.content_type,
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.body);
        bytes
    }
}

/// The page with which XAPI tells errors of HTTP.
pub(crate) fn error_page(status: &str, detail: &str) -> Vec<u8> {
    let mut text = String::new();
    for character in detail.chars() {
        match character {
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '&' => text.push_str("&amp;"),
            other => text.push(other),
        }
    }
    format!("<html><body><h1>HTTP {status}</h1><p>{text}</p></body></html>").into_bytes()
}

impl Request {
    fn parse(head: &[u8]) -> Result<Self, HeadError> {
        let malformed = |text: &str| HeadError::Malformed(text.to_owned());
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        request.parse(head).map_err(|error| HeadError::Malformed(error.to_string()))?;
        let method = request.method.ok_or_else(|| malformed("no method"))?.to_owned();
        let target = request.path.ok_or_else(|| malformed("no path"))?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers: BTreeMap<String, String> = request
            .headers
            .iter()
            .map(|header| (header.name.to_lowercase(), String::from_utf8_lossy(header.value).trim().to_owned()))
            .collect();
        let mut params: BTreeMap<String, String> = pairs(query, &['&']).collect();
        if let Some(cookies) = headers.get("cookie") {
            params.extend(pairs(cookies, &[';', '&']));
        }
        let connection = headers.get("connection").map(|value| value.to_lowercase());
        let keep_alive = match connection.as_deref() {
            Some("close") => false,
            Some("keep-alive") => true,
            _ => request.version == Some(1),
        };
        Ok(Self { method, path: path.to_owned(), query: query.to_owned(), params, headers, keep_alive })
    }

    pub(crate) fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    /// `None` when the header is missing or no number.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }
}

fn pairs<'a>(text: &'a str, separators: &'a [char]) -> impl Iterator<Item = (String, String)> + 'a {
    text.split(separators).filter(|pair| !pair.trim().is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name.trim()), decode(value.trim()))
    })
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_come_from_query_and_cookies_and_cookies_win() {
        let head = b"PUT /import_raw_vdi?vdi=a%20b&session_id=query&chunked HTTP/1.1\r\nHost: x\r\n\
                     Cookie: session_id=cookie; task_id=t\r\nContent-Length: 12\r\n\r\n";
        let request = Request::parse(head).unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/import_raw_vdi"));
        assert_eq!(request.param("vdi"), Some("a b"));
        assert_eq!(request.param("session_id"), Some("cookie"));
        assert_eq!(request.param("task_id"), Some("t"));
        assert_eq!(request.param("chunked"), Some(""));
        assert_eq!(request.content_length(), Some(12));
        assert!(request.keep_alive());
    }

    #[test]
    fn a_head_beyond_the_limit_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(4096);
            let head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(MAX_HEAD));
            client.write_all(head.as_bytes()).await.unwrap();
            let mut connection = Connection::new(server, None);
            assert!(matches!(connection.read_head().await, Err(HeadError::TooLarge)));
        });
    }
}
