//! A repository's objects in a bucket of a store that nobody here wrote: moto, which keeps the rules of Amazon S3.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use target_s3::{Addressing, Bucket, Lock, Mode, Object, Piece, Storage, Store};
use vmferry_peers::{Peer, script};
use vmferry_plugin_api::delta::double::Delta;
use vmferry_plugin_api::delta::{Chunk, Delta as _, Encoding, Info, Kind, Payload};
use vmferry_plugin_api::http::{Reply, Request, double};
use vmferry_plugin_api::stream::Input;
use vmferry_plugin_api::{Error, ErrorCode, log};

const MIB: usize = 1 << 20;

/// A store that lives as long as this value.
struct Moto {
    url: String,
    process: Child,
    _input: ChildStdin,
}

impl Moto {
    /// A store with an empty bucket called `backup`, to which this thread's requests go.
    fn start(python: &Peer) -> Self {
        Self::with_bucket(python, "")
    }

    /// The same, the bucket made with another header.
    fn with_bucket(python: &Peer, header: &str) -> Self {
        let mut command = Command::new(python.path());
        command.arg(script("py/s3_server.py")).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let moto = Self { url: url.trim().to_owned(), _input: process.stdin.take().unwrap(), process };
        double::serve(ask);
        assert_eq!(moto.plain("PUT", "/backup", header).status, 200);
        moto
    }

    /// A request that no plugin makes.
    fn plain(&self, method: &str, path: &str, header: &str) -> Reply {
        let headers = header.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        let url = format!("{}{path}", self.url);
        ask(&Request { method: method.to_owned(), url, headers: headers.into_iter().collect(), body: Vec::new() })
            .unwrap()
    }

    fn bucket(&self) -> Bucket {
        Bucket {
            endpoint: self.url.clone(),
            bucket: "backup".to_owned(),
            prefix: "site-a".to_owned(),
            addressing: Addressing::Path,
            part_mib: 5,
            lock: None,
        }
    }

    fn store(&self) -> Store {
        Store::new(self.bucket()).with_pause(Duration::from_millis(1))
    }

    fn uploads(&self) -> String {
        let listed = self.plain("GET", "/backup?uploads", "").read(1 << 20).unwrap();
        String::from_utf8(listed).unwrap()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// moto wants to know who asks, and does not look whether it is true.
const ANYBODY: &str = "authorization: AWS4-HMAC-SHA256 Credential=AK/20261126/us-east-1/s3/aws4_request, \
    SignedHeaders=host, Signature=0\r\n";

/// Sends a request as the host would.
fn ask(request: &Request) -> Result<Reply, Error> {
    let broken = |error: std::io::Error| Error::unavailable(error.to_string(), 1);
    let rest = request.url.strip_prefix("http://").unwrap();
    let (server, path) = rest.split_at(rest.find('/').unwrap());
    let mut stream = TcpStream::connect(server).map_err(broken)?;
    let mut head = format!("{} {path} HTTP/1.1\r\nhost: {server}\r\nconnection: close\r\n{ANYBODY}", request.method);
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", request.body.len()));
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&request.body)).map_err(broken)?;
    let mut answer = BufReader::new(stream);
    let (mut status, mut headers, mut line) = (0, Vec::new(), String::new());
    while answer.read_line(&mut line).map_err(broken)? > 2 {
        let text = line.trim();
        match text.split_once(": ") {
            None => status = text.split(' ').nth(1).unwrap().parse().unwrap(),
            Some((name, value)) => headers.push((name.to_lowercase(), value.to_owned())),
        }
        line.clear();
    }
    if status == 0 {
        return Err(Error::unavailable("no answer", 1));
    }
    Ok(Reply { status, headers, body: Input::double(answer, &request.url) })
}

/// Chunks of these sizes in MiB, each of another byte.
fn payloads(sizes: &[usize]) -> (Vec<Box<dyn Payload>>, Vec<u8>) {
    let info = Info {
        disk: "disk".to_owned(),
        content: "content".to_owned(),
        size: 1 << 40,
        kind: Kind::Full,
        expected_bytes: 0,
        extensions: Vec::new(),
    };
    let chunk = |(at, size): (usize, &usize)| (at as u64 * 64 * MIB as u64, vec![at as u8 + 1; size * MIB]);
    let chunks: Vec<(u64, Vec<u8>)> = sizes.iter().enumerate().map(chunk).collect();
    let all = chunks.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let delta = Delta::new(info, chunks);
    let payload = |chunk: Box<dyn Chunk>| chunk.encode(&Encoding::Identity).unwrap();
    (std::iter::from_fn(|| delta.next().unwrap()).map(payload).collect(), all)
}

fn get(store: &Store, name: &str, offset: u64, length: u64) -> Option<Vec<u8>> {
    let input = store.open(name, offset, length).unwrap()?;
    let mut all = Vec::new();
    loop {
        let piece = input.read(1 << 20).unwrap();
        if piece.is_empty() {
            return Some(all);
        }
        all.extend(piece);
    }
}

fn names(objects: &[Object]) -> Vec<(&str, u64)> {
    objects.iter().map(|object| (object.name.as_str(), object.length)).collect()
}

#[test]
fn an_object_comes_back_as_it_was_made() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let moto = Moto::start(&python);
    let store = moto.store();
    let (payloads, bytes) = payloads(&[1, 2]);
    let mut pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    pieces.push(Piece::Bytes(b"table"[..].into()));
    store.put("packs/a~1", &pieces).unwrap();
    assert_eq!(get(&store, "packs/a~1", 0, u64::MAX).unwrap(), [&bytes, &b"table"[..]].concat());
    assert_eq!(get(&store, "packs/a~1", MIB as u64 - 1, 2).unwrap(), [1, 2], "a range");
    assert_eq!(get(&store, "packs/a~1", 3 * MIB as u64, 100).unwrap(), b"table", "a range beyond its end");
    assert_eq!(get(&store, "packs/a~1", 9 * MIB as u64, 100).unwrap(), b"", "a range behind its end");
    assert_eq!(get(&store, "packs/a~1", 0, 0).unwrap(), b"", "a range of nothing");
    assert_eq!(get(&store, "packs/b", 0, 10), None);
    assert_eq!(get(&store, "packs/b", 0, 0), None);
    Ok(())
}

#[test]
fn a_large_object_is_made_of_parts_and_of_ranges_of_others() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let moto = Moto::start(&python);
    let store = moto.store();
    let (payloads, bytes) = payloads(&[2, 2, 2, 2, 2, 2, 1]);
    let mut pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    let table = vec![9; 6 * MIB];
    pieces.push(Piece::Bytes((&table).into()));
    store.put("packs/large", &pieces).unwrap();
    let whole = [bytes, table].concat();
    assert!(get(&store, "packs/large", 0, u64::MAX).unwrap() == whole);
    assert!(!moto.uploads().contains("<UploadId>"), "{}", moto.uploads());

    let (from, length) = (3 * MIB + 1, 11 * MIB);
    let pieces = [
        Piece::Range { name: "packs/large", offset: from as u64, length: length as u64 },
        Piece::Bytes(b"end"[..].into()),
    ];
    store.put("packs/less", &pieces).unwrap();
    assert!(get(&store, "packs/less", 0, u64::MAX).unwrap() == [&whole[from..from + length], b"end"].concat());
    Ok(())
}

#[test]
fn only_one_makes_what_must_not_exist() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let moto = Moto::start(&python);
    let store = moto.store();
    assert!(store.create("repository", b"one").unwrap());
    assert!(!store.create("repository", b"other").unwrap());
    assert_eq!(get(&store, "repository", 0, 10).unwrap(), b"one");

    // The answer to the first attempt is lost: what is there then is one's own, or another's.
    let lose_first = |other: bool| {
        let (asked, other_made) = (AtomicU32::new(0), other);
        double::serve(move |request| {
            let lost = request.method == "PUT" && asked.fetch_add(1, SeqCst) == 0;
            if lost && other_made {
                ask(&Request { headers: Vec::new(), ..request.clone() })?;
                return Err(Error::unavailable("cut", 1));
            }
            let reply = ask(request)?;
            if lost { Err(Error::unavailable("cut", 1)) } else { Ok(reply) }
        });
    };
    lose_first(false);
    assert!(store.create("points/mine", b"same").unwrap());
    lose_first(true);
    assert!(!store.create("points/theirs", b"same").unwrap());
    Ok(())
}

#[test]
fn what_was_made_is_listed_page_by_page_and_what_was_deleted_is_not() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let moto = Moto::start(&python);
    let store = moto.store();
    // Pages of two, as a store may have them that keeps to a smaller limit.
    double::serve(|request| {
        let url = request.url.replace("list-type=2", "list-type=2&max-keys=2");
        ask(&Request { url, ..request.clone() })
    });
    for name in ["points/b", "points/a~1", "points/c.held", "pointsman", "packs/a"] {
        store.put(name, &[Piece::Bytes(name.as_bytes().into())]).unwrap();
    }
    moto.plain("PUT", "/backup/other/points/a", "");
    assert_eq!(names(&store.list("points/").unwrap()), [("points/a~1", 10), ("points/b", 8), ("points/c.held", 13)]);
    assert_eq!(store.list("").unwrap().len(), 5, "nothing outside of the prefix");
    store.delete("points/b").unwrap();
    store.delete("points/b").unwrap();
    assert_eq!(names(&store.list("points/").unwrap()), [("points/a~1", 10), ("points/c.held", 13)]);
    Ok(())
}

/// Has every third request refused as busy, broken before it arrives, or its answer lost, in turn.
fn stumble() -> Rc<AtomicU32> {
    let stumbles = Rc::new(AtomicU32::new(0));
    let (count, asked) = (stumbles.clone(), AtomicU32::new(0));
    double::serve(move |request| {
        if asked.fetch_add(1, SeqCst) % 3 != 0 {
            return ask(request);
        }
        match count.fetch_add(1, SeqCst) % 3 {
            0 => {
                let body = "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";
                let headers = vec![("retry-after".to_owned(), "0".to_owned())];
                Ok(Reply { status: 503, headers, body: Input::double(body.as_bytes(), "busy") })
            }
            1 => Err(Error::unavailable("connection refused", 1)),
            _ => ask(request).and(Err(Error::unavailable("connection reset", 1))),
        }
    });
    stumbles
}

#[test]
fn a_store_that_stumbles_is_asked_again() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let moto = Moto::start(&python);
    let store = moto.store();
    let stumbles = stumble();
    let (payloads, bytes) = payloads(&[2, 2, 2, 2]);
    let pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    for round in 0..4 {
        let name = format!("packs/{round}");
        store.put(&name, &pieces).unwrap();
        assert!(get(&store, &name, 0, u64::MAX).unwrap() == bytes);
        assert!(store.create(&format!("points/{round}"), b"point").unwrap());
    }
    assert_eq!(store.list("packs/").unwrap().len(), 4);
    store.delete("packs/0").unwrap();
    assert!(stumbles.load(SeqCst) > 9);
    Ok(())
}

#[test]
fn an_upload_that_fails_leaves_no_parts_behind() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let moto = Moto::start(&python);
    let store = moto.store();
    double::serve(|request| match request.url.contains("partNumber=2") {
        true => Err(Error::unavailable("connection reset", 1)),
        false => ask(request),
    });
    let (payloads, _) = payloads(&[2, 2, 2, 2]);
    let pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    let error = store.put("packs/a", &pieces).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(!moto.uploads().contains("<UploadId>"), "{}", moto.uploads());
    assert_eq!(get(&store, "packs/a", 0, 10), None);
    Ok(())
}

#[test]
fn what_a_store_keeps_is_what_was_sent() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let moto = Moto::start(&python);
    let store = moto.store();
    double::serve(|request| {
        // What a store answers that got other bytes.
        let mut reply = ask(request)?;
        reply.headers.retain(|(name, _)| name != "x-amz-checksum-crc32c");
        reply.headers.push(("x-amz-checksum-crc32c".to_owned(), "AAAAAA==".to_owned()));
        Ok(reply)
    });
    let error = store.put("packs/a", &[Piece::Bytes(b"abc"[..].into())]).unwrap_err();
    assert!(error.is_damaged() && error.message.contains("packs/a"), "{}", error.message);
    // CRC-32C of nothing is zero.
    store.put("packs/a", &[]).unwrap();
    Ok(())
}

#[test]
fn what_is_locked_stays_and_is_told() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let moto = Moto::with_bucket(&python, "x-amz-bucket-object-lock-enabled: true");
    let lock = Some(Lock { mode: Mode::Compliance, days: 30 });
    let store = Store::new(Bucket { lock, ..moto.bucket() }).with_pause(Duration::from_millis(1));
    store.put("packs/a", &[Piece::Bytes(b"abc"[..].into())]).unwrap();
    let made = moto.plain("HEAD", "/backup/site-a/packs/a", "");
    assert_eq!(made.header("x-amz-object-lock-mode"), Some("COMPLIANCE"));
    let version = made.header("x-amz-version-id").unwrap().to_owned();
    store.delete("packs/a").unwrap();
    assert_eq!(get(&store, "packs/a", 0, 10), None, "it is no longer seen");
    let deleted = moto.plain("DELETE", &format!("/backup/site-a/packs/a?versionId={version}"), "");
    assert_eq!(deleted.status, 403, "and it is still there");

    // What is sent in parts is locked from its beginning. moto forgets it.
    let begun = Rc::new(AtomicU32::new(0));
    let seen = begun.clone();
    double::serve(move |request| {
        if request.url.ends_with("?uploads=") {
            let locked = |name: &str| request.headers.iter().any(|(found, _)| found == name);
            assert!(locked("x-amz-object-lock-mode") && locked("x-amz-object-lock-retain-until-date"));
            seen.fetch_add(1, SeqCst);
        }
        ask(request)
    });
    store.put("packs/large", &[Piece::Bytes(vec![1; 6 * MIB].into())]).unwrap();
    assert_eq!(begun.load(SeqCst), 1);

    // A store that refuses to hide what is locked.
    double::serve(|_| {
        let body = "<Error><Code>AccessDenied</Code><Message>Object is WORM protected.</Message></Error>";
        Ok(Reply { status: 403, headers: Vec::new(), body: Input::double(body.as_bytes(), "locked") })
    });
    log::double::take_lines();
    store.delete("packs/a").unwrap();
    let lines = log::double::take_lines();
    assert!(
        lines.len() == 1 && lines[0].starts_with("Level::Warn: ") && lines[0].contains("packs/a is locked"),
        "{lines:?}"
    );
    Ok(())
}

#[test]
fn a_refusal_says_what_to_do() -> anyhow::Result<()> {
    let Some(python) = Peer::python()? else { return Ok(()) };
    let moto = Moto::start(&python);
    let elsewhere = Store::new(Bucket { bucket: "absent".to_owned(), ..moto.bucket() });
    for error in [elsewhere.list("").unwrap_err(), elsewhere.open("a", 0, 1).unwrap_err()] {
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(
            error.message.contains("NoSuchBucket") && error.message.contains("correct `bucket`"),
            "{}",
            error.message
        );
    }
    for (code, advice) in [
        ("RequestTimeTooSkewed", "set this host's by NTP"),
        ("SignatureDoesNotMatch", "[[plugin.target-s3.credentials]]"),
        ("AccessDenied", "s3:PutObject"),
    ] {
        double::serve(move |_| {
            let body = format!("<Error><Code>{code}</Code><Message>No.</Message></Error>");
            Ok(Reply { status: 403, headers: Vec::new(), body: Input::double(std::io::Cursor::new(body), "no") })
        });
        let error = moto.store().list("").unwrap_err();
        assert!(error.message.contains(code) && error.message.contains(advice), "{}", error.message);
    }
    Ok(())
}
