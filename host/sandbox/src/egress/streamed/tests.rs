//! Streams as a guest of the target world has them, to servers on loopback.

use super::*;
use crate::egress::{AwsKey, Credential, Egress};
use crate::grants::{Grants, Refusal, Rights};
use crate::lent::HostServices;
use crate::lookup::Lookups;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::Waker;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};
use wasmtime_wasi_http::{RequestOptions, WasiHttpHooks};

const MIB: u64 = 1 << 20;

/// What sockets and pieces under way may hold: far less than what is sent.
const UNDER_WAY: u64 = 24 * MIB;

struct Call {
    egress: Egress,
    refusals: Refusals,
    moved: Arc<AtomicU64>,
    options: RequestOptions,
}

/// A call that may ask servers on loopback, with bodies of at most `limit`.
fn call(limit: u64, credentials: Vec<Credential>) -> Call {
    let grants = Grants { http: vec!["http://127.0.0.1:*".parse().expect("a pattern")], ..Grants::default() };
    granted(limit, grants, credentials)
}

fn granted(limit: u64, grants: Grants, credentials: Vec<Credential>) -> Call {
    let lent = Lent {
        tenant: String::new(),
        plugin: "store".to_owned(),
        rights: Rights::new("store", None, grants),
        store_quota: 0,
        services: HostServices { credentials, ..HostServices::default() },
        lookups: Lookups::of(Arc::default()),
    };
    let (refusals, moved) = (Refusals::default(), Arc::<AtomicU64>::default());
    let counted = moved.clone();
    let streams = Streams::new(limit, Arc::new(move |bytes| _ = counted.fetch_add(bytes, SeqCst)));
    let egress = Egress::streamed(Arc::new(lent), refusals.clone(), streams);
    Call { egress, refusals, moved, options: RequestOptions::default() }
}

type Reply = Result<http::Response<WasiBody>, Error>;

impl Call {
    /// A request without a body.
    async fn get(&mut self, url: &str) -> Reply {
        let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
        self.request(http::Request::get(url).body(body).expect("a request")).await
    }

    /// A request with a body of `length`, and the end that the guest writes to.
    fn put(&mut self, url: &str, length: Option<u64>) -> (HostOutgoingBody, impl Future<Output = Reply> + use<>) {
        let (written, body) = HostOutgoingBody::new(StreamContext::Request, length, 1, MIB as usize);
        let mut request = http::Request::put(url).header("host", "guests.example.org");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        (written, self.request(request.body(body).expect("a request")))
    }

    fn request(&mut self, request: http::Request<WasiBody>) -> impl Future<Output = Reply> + use<> {
        let sent = Pin::from(self.egress.send_request(request, Some(self.options), Box::new(async { Ok(()) })));
        async move { Ok(sent.await?.0) }
    }
}

/// Writes as fast as the host takes it, and says how much it took.
async fn write(mut body: HostOutgoingBody, pieces: impl Iterator<Item = Bytes>, taken: &AtomicU64) {
    let mut stream = body.take_output_stream().expect("not taken yet");
    for piece in pieces {
        // The host has closed it where the server answered early, or was given up.
        if stream.write_ready().await.is_err() || stream.write(piece.clone()).is_err() {
            break;
        }
        taken.fetch_add(piece.len() as u64, SeqCst);
    }
    drop(stream);
    let _ = body.finish(None);
}

fn pieces(bytes: u64) -> impl Iterator<Item = Bytes> {
    let piece = Bytes::from(vec![7; MIB as usize]);
    (0..bytes / MIB).map(move |_| piece.clone())
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let url = format!("http://{}/bucket/key", listener.local_addr().expect("an address"));
    (listener, url)
}

/// A server that takes whole requests, answers each `200` with what it was sent first, and never closes a connection.
/// Gives the heads that it read, by connection.
fn echo(listener: TcpListener) -> JoinHandle<Vec<Vec<String>>> {
    tokio::spawn(async move {
        let mut heads = Vec::new();
        // A test that ends drops the client, which ends its connections.
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufStream::new(stream);
            let mut of_this = Vec::new();
            while let Some(head) = read_head(&mut stream).await {
                let is_last = head.starts_with("GET /bucket/last");
                of_this.push(head);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell").await.expect("open");
                stream.flush().await.expect("open");
                if is_last {
                    heads.push(of_this);
                    return heads;
                }
            }
            heads.push(of_this);
        }
        heads
    })
}

/// Reads a request's head and body.
async fn read_head(stream: &mut BufStream<TcpStream>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("text").to_lowercase().replace("get /", "GET /");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: u64 = length.map_or(0, |length| length.parse().expect("a length"));
    let read = tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await.expect("open");
    (read == length).then_some(head)
}

async fn text(reply: Reply) -> String {
    let body = reply.expect("an answer").into_body().collect().await.expect("whole").to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}

#[tokio::test]
async fn a_request_waits_for_its_server_and_not_in_memory() {
    const SENT: u64 = 128 * MIB;
    let (listener, url) = listen().await;
    let taken = Arc::new(AtomicU64::new(0));
    let seen = taken.clone();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let (mut read, mut piece) = (0, vec![0; 1 << 16]);
        while read < SENT {
            read += stream.read(&mut piece).await.expect("open") as u64;
            let ahead = seen.load(SeqCst).saturating_sub(read);
            assert!(ahead <= UNDER_WAY, "the guest is {ahead} bytes ahead of the server");
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("open");
    });
    let mut call = call(SENT, Vec::new());
    let (body, answer) = call.put(&url, Some(SENT));
    let (answer, ()) = tokio::join!(answer, write(body, pieces(SENT), &taken));
    assert_eq!(answer.expect("an answer").status(), 204);
    server.await.expect("never ahead");
    assert_eq!(call.moved.load(SeqCst), SENT, "all of it was noted as progress");
}

#[tokio::test]
async fn an_answer_waits_for_its_guest_and_not_in_memory() {
    const SENT: u64 = 128 * MIB;
    let (listener, url) = listen().await;
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let server = tokio::spawn(async move {
        let mut stream = BufStream::new(listener.accept().await.expect("a connection").0);
        read_head(&mut stream).await.expect("a request");
        let mut stream = stream.into_inner();
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SENT}\r\n\r\n").as_bytes()).await.expect("open");
        for piece in pieces(SENT) {
            stream.write_all(&piece).await.expect("open");
            counted.fetch_add(MIB, SeqCst);
        }
    });
    let mut call = call(SENT, Vec::new());
    let mut body = call.get(&url).await.expect("an answer").into_body();
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        received += frame.expect("more").into_data().expect("data").len() as u64;
        let ahead = sent.load(SeqCst).saturating_sub(received);
        assert!(ahead <= UNDER_WAY, "the server is {ahead} bytes ahead of the guest");
    }
    assert_eq!(received, SENT);
    assert_eq!(call.moved.load(SeqCst), SENT, "all of it was noted as progress");
    server.await.expect("never ahead");
}

#[tokio::test]
async fn a_piece_goes_on_as_the_buffer_that_it_came_in() {
    let (waiting, _) = watch::channel(None);
    let (guest, body) = HostOutgoingBody::new(StreamContext::Request, Some(MIB), 1, MIB as usize);
    let body = Arc::new(Mutex::new(body));
    let mut body = Outgoing { body, length: Some(MIB), limit: MIB, sent: 0, waiting, moved: Arc::new(|_| {}) };
    let piece = Bytes::from(vec![7; MIB as usize]);
    write(guest, std::iter::once(piece.clone()), &AtomicU64::new(0)).await;
    let sent = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
    assert_eq!((sent.as_ptr(), sent.len()), (piece.as_ptr(), piece.len()));
}

#[tokio::test]
async fn requests_of_one_call_share_a_connection_and_keep_their_length() {
    let (listener, url) = listen().await;
    let server = echo(listener);
    let mut call = call(MIB, Vec::new());
    for _ in 0..3 {
        let (body, answer) = call.put(&url, Some(MIB));
        let taken = AtomicU64::new(0);
        let (answer, ()) = tokio::join!(answer, write(body, pieces(MIB), &taken));
        assert_eq!(text(answer).await, "well");
    }
    assert_eq!(text(call.get(&url.replace("key", "last")).await).await, "well");
    let heads = server.await.expect("served");
    assert_eq!(heads.iter().map(Vec::len).collect::<Vec<_>>(), [4], "one connection");
    for head in &heads[0][..3] {
        assert!(head.contains("\r\ncontent-length: 1048576\r\n") && !head.contains("transfer-encoding"), "{head}");
        assert!(head.contains("\r\nhost: 127.0.0.1:") && !head.contains("guests.example.org"), "{head}");
    }
}

#[tokio::test]
async fn bodies_are_limited_both_ways() {
    let (listener, url) = listen().await;
    let server = echo(listener);
    let mut small = call(3, Vec::new());
    let (_body, answer) = small.put(&url, Some(4));
    assert!(matches!(answer.await, Err(Error::HttpRequestBodySize(Some(3)))), "told in advance");
    // Without a length it is found out on the way.
    let (body, answer) = small.put(&url, None);
    let taken = AtomicU64::new(0);
    let (answer, ()) = tokio::join!(answer, write(body, pieces(MIB), &taken));
    assert!(matches!(answer, Err(Error::HttpRequestBodySize(Some(3)))), "{answer:?}");
    assert!(matches!(small.get(&url).await, Err(Error::HttpResponseBodySize(Some(3)))));
    server.abort();
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_it_said_is_no_request() {
    let (listener, url) = listen().await;
    let server = tokio::spawn(async move {
        let mut stream = BufStream::new(listener.accept().await.expect("a connection").0);
        read_head(&mut stream).await
    });
    let mut call = call(4 * MIB, Vec::new());
    let (mut body, answer) = call.put(&url, Some(2 * MIB));
    let mut stream = body.take_output_stream().expect("not taken yet");
    stream.write(Bytes::from(vec![7; MIB as usize])).expect("room");
    // Neither finished nor aborted: a guest that dropped everything.
    drop((stream, body));
    assert!(matches!(answer.await, Err(Error::HttpProtocolError)));
    assert_eq!(server.await.expect("ran"), None, "the server got no whole request");
}

#[tokio::test]
async fn a_silent_server_ends_its_request_and_a_silent_guest_does_not() {
    let patience = Duration::from_millis(50);
    let (listener, url) = listen().await;
    let server = tokio::spawn(async move {
        let (mut streams, mut piece) = (Vec::new(), [0; 1 << 12]);
        while let Ok((mut stream, _)) = listener.accept().await {
            while stream.read(&mut piece).await.is_ok_and(|read| read > 0) {}
            streams.push(stream);
        }
    });
    let mut call = call(MIB, Vec::new());
    call.options.first_byte_timeout = Some(patience);
    assert!(matches!(call.get(&url).await, Err(Error::HttpResponseTimeout)));
    server.abort();

    // With no patience at all, whoever is waited for has been waited for too long.
    let (waiting, waited_for) = watch::channel(None);
    let mut fallen = std::pin::pin!(falls_silent(waited_for, Duration::ZERO));
    assert!(fallen.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "the guest is waited for");
    waiting.send_replace(Some(Instant::now()));
    fallen.await;
}

#[tokio::test]
async fn a_name_is_looked_at_where_the_connection_is_made() {
    let (listener, url) = listen().await;
    let named = url.replace("127.0.0.1", "localhost");
    let grants = Grants { http: vec!["http://localhost:*".parse().expect("a pattern")], ..Grants::default() };
    let mut refused = granted(MIB, grants.clone(), Vec::new());
    assert!(matches!(refused.get(&named).await, Err(Error::DestinationIpProhibited)));
    let refusal = refused.refusals.first().expect("noted").to_string();
    assert!(refusal.contains("a loopback address") && refusal.contains("private_addresses = true"), "{refusal}");

    let server = echo(listener);
    let mut allowed = granted(MIB, Grants { private_addresses: true, ..grants }, Vec::new());
    assert_eq!(text(allowed.get(&named.replace("key", "last")).await).await, "well");
    server.await.expect("served");
}

#[tokio::test]
async fn what_was_not_granted_does_not_leave() {
    let mut call = granted(MIB, Grants::default(), Vec::new());
    assert!(matches!(call.get("http://127.0.0.1:1/").await, Err(Error::HttpRequestDenied)));
    assert!(call.refusals.first().is_some_and(|refusal| refusal.to_string().contains("http://127.0.0.1:1")));
}

#[tokio::test]
async fn the_host_says_who_asks_and_the_guest_does_not() {
    let (listener, url) = listen().await;
    let server = echo(listener);
    let at = || "http://127.0.0.1:*".parse().expect("a pattern");
    let mut call = call(MIB, vec![Credential::bearer(at(), "t0ken").expect("a credential")]);
    let mut own = http::Request::get(&url)
        .body(http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync())
        .expect("a request");
    own.headers_mut().insert("authorization", "Bearer mine".parse().expect("a value"));
    assert!(matches!(call.request(own).await, Err(Error::HttpRequestDenied)));
    assert!(matches!(call.refusals.first(), Some(Refusal::OwnCredential { .. })));
    assert_eq!(text(call.get(&url.replace("key", "last")).await).await, "well");
    let heads = server.await.expect("served");
    assert_eq!(heads[0].len(), 1, "the other never left");
    assert!(heads[0][0].contains("\r\nauthorization: bearer t0ken\r\n"), "{}", heads[0][0]);
}

#[tokio::test]
async fn an_object_store_gets_a_signature() {
    let (listener, url) = listen().await;
    let server = echo(listener);
    let key = AwsKey {
        access_key: "AK".to_owned(),
        secret_key: "hush".to_owned(),
        session_token: Some("for-a-while".to_owned()),
        region: "eu-central-1".to_owned(),
        service: "s3".to_owned(),
    };
    let at = "http://127.0.0.1:*".parse().expect("a pattern");
    let mut call = call(MIB, vec![Credential::aws(at, key).expect("a credential")]);
    assert_eq!(text(call.get(&url.replace("key", "last")).await).await, "well");
    let head = server.await.expect("served").remove(0).remove(0);
    for line in
        ["aws4-hmac-sha256 credential=ak/", "x-amz-content-sha256: unsigned-payload", "security-token: for-a-while"]
    {
        assert!(head.contains(line), "{line} in {head}");
    }
    assert!(!head.contains("hush"), "{head}");
}
