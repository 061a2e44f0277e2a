//! A server on loopback that hears what `notify-webhook` sends: enough HTTP for that one client.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// The largest request that is read; a run's report has some KiB.
const MAX_REQUEST: u64 = 1 << 20;

/// The server, for as long as it is held.
pub(super) struct Listener {
    address: SocketAddr,
    kinds: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Listener {
    pub(super) async fn start() -> std::io::Result<Self> {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = socket.local_addr()?;
        let kinds: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&kinds);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                if let Ok(kind) = hear(stream).await {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push(kind);
                }
            }
        });
        Ok(Self { address, kinds, serving })
    }

    /// The server's address as a grant names it.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Kinds of the events heard so far.
    pub(super) fn heard(&self) -> Vec<String> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Reads one request, takes it, and says which kind of event it brought.
async fn hear(stream: TcpStream) -> std::io::Result<String> {
    let mut stream = stream.take(MAX_REQUEST);
    let mut request = Vec::new();
    let body = loop {
        if stream.read_buf(&mut request).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(body) = body(&request) {
            break body;
        }
    };
    let event: serde_json::Value = serde_json::from_slice(body)?;
    stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await?;
    Ok(event["kind"].as_str().unwrap_or("an event without a kind").to_owned())
}

/// The body of a request, once it is complete.
fn body(request: &[u8]) -> Option<&[u8]> {
    let end = request.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&request[..end]).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    request.get(end + 4..)?.get(..length)
}

#[cfg(test)]
mod tests {
    use super::body;

    #[test]
    fn a_body_is_there_when_all_of_it_is() {
        let request = b"POST /hook HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(body(request), Some(b"{}".as_slice()));
        assert_eq!(body(&request[..request.len() - 1]), None);
        assert_eq!(body(b"POST /hook HTTP/1.1\r\ncontent-length: 9999999999999999999999\r\n\r\n"), None);
    }
}
