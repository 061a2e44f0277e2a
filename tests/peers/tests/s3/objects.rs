//! A repository's objects in a bucket, by the plugin's code without its sandbox, so that a test can stand in a request's way.

use crate::server::{Kind, Server, with_each_server};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use target_s3::{Addressing, Bucket, Lock, Mode, Store};
use vmferry_plugin_api::delta::double::Delta;
use vmferry_plugin_api::delta::double::Restore;
use vmferry_plugin_api::delta::{self, Chunk, Delta as _, Encoding, Info, Payload};
use vmferry_plugin_api::http::{Reply, Request, double};
use vmferry_plugin_api::stream::Input;
use vmferry_plugin_api::target::{DiskReceipt, Draft};
use vmferry_plugin_api::{Error, ErrorCode, log};
use vmferry_repository::{Object, Piece, Repository, Settings, Storage};

pub(crate) const MIB: usize = 1 << 20;

/// More than any object here has.
pub(crate) const WHOLE: u64 = 1 << 30;

/// A store with an empty bucket called `backup`, to which this thread's requests go. `None` where it may be missing.
pub(crate) fn start(kind: Kind) -> anyhow::Result<Option<Server>> {
    start_with(kind, "")
}

/// The same, the bucket made with another header.
fn start_with(kind: Kind, header: &str) -> anyhow::Result<Option<Server>> {
    let Some(server) = Server::start(kind)? else { return Ok(None) };
    double::serve(move |request| ask(kind, request));
    assert_eq!(plain(&server, "PUT", "/backup", header).status, 200);
    Ok(Some(server))
}

/// A request that no plugin makes.
fn plain(server: &Server, method: &str, path: &str, header: &str) -> Reply {
    let headers = header.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
    let url = format!("{}{path}", server.url);
    let headers = headers.into_iter().collect();
    ask(server.kind, &Request { method: method.to_owned(), url, headers, body: Vec::new() }).unwrap()
}

pub(crate) fn bucket(server: &Server) -> Bucket {
    bucket_at(&server.url)
}

pub(crate) const LOCK: Option<Lock> = Some(Lock { mode: Mode::Compliance, days: 30 });

fn bucket_at(url: &str) -> Bucket {
    Bucket {
        endpoint: url.to_owned(),
        bucket: "backup".to_owned(),
        prefix: "site-a".to_owned(),
        addressing: Addressing::Path,
        part_size: 5 << 20,
        lock: None,
    }
}

pub(crate) fn store(server: &Server) -> Store {
    in_bucket(bucket(server))
}

pub(crate) fn in_bucket(bucket: Bucket) -> Store {
    Store::new(bucket).with_pause(Duration::from_millis(1))
}

/// Whether there are parts of an upload that was not ended.
fn has_parts(server: &Server) -> bool {
    match server.kind {
        Kind::Moto => {
            let listed = plain(server, "GET", "/backup?uploads", "").read(1 << 20).unwrap();
            String::from_utf8(listed).unwrap().contains("<UploadId>")
        }
        Kind::S3sFs => {
            let mut files = std::fs::read_dir(server.folder()).unwrap().map(|file| file.unwrap().file_name());
            files.any(|name| name.to_string_lossy().starts_with(".upload"))
        }
    }
}

/// moto wants to know who asks, and does not look whether it is true.
const ANYBODY: &str = "authorization: AWS4-HMAC-SHA256 Credential=AK/20261126/us-east-1/s3/aws4_request, \
    SignedHeaders=host, Signature=0\r\n";

/// Sends a request as the host would.
pub(crate) fn ask(kind: Kind, request: &Request) -> Result<Reply, Error> {
    let broken = |error: std::io::Error| Error::unavailable(error.to_string(), 1);
    let rest = request.url.strip_prefix("http://").unwrap();
    let (server, path) = rest.split_at(rest.find('/').unwrap());
    let mut stream = TcpStream::connect(server).map_err(broken)?;
    let who = if kind == Kind::Moto { ANYBODY } else { "" };
    let mut head = format!("{} {path} HTTP/1.1\r\nhost: {server}\r\nconnection: close\r\n{who}", request.method);
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

/// A full copy, or what is added to a point.
fn info(base: Option<&str>) -> Info {
    Info {
        disk: "disk".to_owned(),
        content: "content".to_owned(),
        size: 64 << 20,
        kind: base.map_or(delta::Kind::Full, |base| delta::Kind::Delta(base.to_owned())),
        expected_bytes: 0,
        extensions: Vec::new(),
    }
}

/// Chunks of these sizes in MiB, each of another byte.
pub(crate) fn payloads(sizes: &[usize]) -> (Vec<Box<dyn Payload>>, Vec<u8>) {
    let chunk = |(at, size): (usize, &usize)| (at as u64 * 64 * MIB as u64, vec![at as u8 + 1; size * MIB]);
    let chunks: Vec<(u64, Vec<u8>)> = sizes.iter().enumerate().map(chunk).collect();
    let all = chunks.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let delta = Delta::new(info(None), chunks);
    let payload = |chunk: Box<dyn Chunk>| chunk.encode(&Encoding::Identity).unwrap();
    (std::iter::from_fn(|| delta.next().unwrap()).map(payload).collect(), all)
}

pub(crate) fn get(store: &Store, name: &str, offset: u64, length: u64) -> Option<Vec<u8>> {
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

fn an_object_comes_back_as_it_was_made(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    let (payloads, bytes) = payloads(&[1, 2]);
    let mut pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    pieces.push(Piece::Bytes(b"table"[..].into()));
    store.put("packs/a~1", &pieces).unwrap();
    assert_eq!(get(&store, "packs/a~1", 0, WHOLE).unwrap(), [&bytes, &b"table"[..]].concat());
    assert_eq!(get(&store, "packs/a~1", MIB as u64 - 1, 2).unwrap(), [1, 2], "a range");
    assert_eq!(get(&store, "packs/a~1", 3 * MIB as u64, 100).unwrap(), b"table", "a range beyond its end");
    assert_eq!(get(&store, "packs/a~1", 9 * MIB as u64, 100).unwrap(), b"", "a range behind its end");
    assert_eq!(get(&store, "packs/a~1", 0, 0).unwrap(), b"", "a range of nothing");
    assert_eq!(get(&store, "packs/b", 0, 10), None);
    assert_eq!(get(&store, "packs/b", 0, 0), None);
    Ok(())
}

fn a_large_object_is_made_of_parts_and_of_ranges_of_others(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    let (payloads, bytes) = payloads(&[2, 2, 2, 2, 2, 2, 1]);
    let mut pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    let table = vec![9; 6 * MIB];
    pieces.push(Piece::Bytes((&table).into()));
    store.put("packs/large", &pieces).unwrap();
    let whole = [bytes, table].concat();
    assert!(get(&store, "packs/large", 0, WHOLE).unwrap() == whole);
    assert!(!has_parts(&server));

    let (from, length) = (3 * MIB + 1, 11 * MIB);
    let pieces = [
        Piece::Range { name: "packs/large", offset: from as u64, length: length as u64 },
        Piece::Bytes(b"end"[..].into()),
    ];
    store.put("packs/less", &pieces).unwrap();
    assert!(get(&store, "packs/less", 0, WHOLE).unwrap() == [&whole[from..from + length], b"end"].concat());
    Ok(())
}

fn only_one_makes_what_must_not_exist(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    assert!(store.create("repository", b"one").unwrap());
    assert!(!store.create("repository", b"other").unwrap());
    assert_eq!(get(&store, "repository", 0, 10).unwrap(), b"one");

    // The answer to the first attempt is lost: what is there then is one's own, or another's.
    let lose_first = |other: bool| {
        let (asked, other_made) = (AtomicU32::new(0), other);
        double::serve(move |request| {
            let lost = request.method == "PUT" && asked.fetch_add(1, SeqCst) == 0;
            if lost && other_made {
                ask(kind, &Request { headers: Vec::new(), ..request.clone() })?;
                return Err(Error::unavailable("cut", 1));
            }
            let reply = ask(kind, request)?;
            if lost { Err(Error::unavailable("cut", 1)) } else { Ok(reply) }
        });
    };
    lose_first(false);
    assert!(store.create("points/mine", b"same").unwrap());
    lose_first(true);
    assert!(!store.create("points/theirs", b"same").unwrap());
    Ok(())
}

fn what_was_made_is_listed_page_by_page_and_what_was_deleted_is_not(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    // Pages of two, as a store may have them that keeps to a smaller limit.
    double::serve(move |request| {
        let url = request.url.replace("list-type=2", "list-type=2&max-keys=2");
        ask(kind, &Request { url, ..request.clone() })
    });
    for name in ["points/b", "points/a~1", "points/c.held", "pointsman", "packs/a"] {
        store.put(name, &[Piece::Bytes(name.as_bytes().into())]).unwrap();
    }
    plain(&server, "PUT", "/backup/other/points/a", "");
    assert_eq!(names(&store.list("points/").unwrap()), [("points/a~1", 10), ("points/b", 8), ("points/c.held", 13)]);
    assert_eq!(store.list("").unwrap().len(), 5, "nothing outside of the prefix");
    store.delete("points/b").unwrap();
    store.delete("points/b").unwrap();
    assert_eq!(names(&store.list("points/").unwrap()), [("points/a~1", 10), ("points/c.held", 13)]);
    Ok(())
}

/// Has every third request refused as busy, broken before it arrives, or its answer lost, in turn.
fn stumble(kind: Kind) -> Rc<AtomicU32> {
    let stumbles = Rc::new(AtomicU32::new(0));
    let (count, asked) = (stumbles.clone(), AtomicU32::new(0));
    double::serve(move |request| {
        if asked.fetch_add(1, SeqCst) % 3 != 0 {
            return ask(kind, request);
        }
        match count.fetch_add(1, SeqCst) % 3 {
            0 => {
                let body = "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";
                let headers = vec![("retry-after".to_owned(), "0".to_owned())];
                Ok(Reply { status: 503, headers, body: Input::double(body.as_bytes(), "busy") })
            }
            1 => Err(Error::unavailable("connection refused", 1)),
            _ => ask(kind, request).and(Err(Error::unavailable("connection reset", 1))),
        }
    });
    stumbles
}

fn a_store_that_stumbles_is_asked_again(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    let stumbles = stumble(kind);
    let (payloads, bytes) = payloads(&[2, 2, 2, 2]);
    let pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    for round in 0..4 {
        let name = format!("packs/{round}");
        store.put(&name, &pieces).unwrap();
        assert!(get(&store, &name, 0, WHOLE).unwrap() == bytes);
        assert!(store.create(&format!("points/{round}"), b"point").unwrap());
    }
    assert_eq!(store.list("packs/").unwrap().len(), 4);
    store.delete("packs/0").unwrap();
    assert!(stumbles.load(SeqCst) > 9);
    Ok(())
}

fn an_upload_that_fails_leaves_no_parts_behind(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    double::serve(move |request| match request.url.contains("partNumber=2") {
        true => Err(Error::unavailable("connection reset", 1)),
        false => ask(kind, request),
    });
    let (payloads, _) = payloads(&[2, 2, 2, 2]);
    let pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    let error = store.put("packs/a", &pieces).unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(!has_parts(&server));
    assert_eq!(get(&store, "packs/a", 0, 10), None);
    Ok(())
}

fn what_a_store_keeps_is_what_was_sent(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    double::serve(move |request| {
        // What a store answers that got other bytes.
        let mut reply = ask(kind, request)?;
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

/// With moto alone: s3s-fs has neither locks nor versions. What becomes of that stands in `promises`.
#[test]
fn what_is_locked_stays_and_is_told() -> anyhow::Result<()> {
    let kind = Kind::Moto;
    let Some(server) = start_with(kind, "x-amz-bucket-object-lock-enabled: true")? else { return Ok(()) };
    let store = in_bucket(Bucket { lock: LOCK, ..bucket(&server) });
    store.put("packs/a", &[Piece::Bytes(b"abc"[..].into())]).unwrap();
    let made = plain(&server, "HEAD", "/backup/site-a/packs/a", "");
    assert_eq!(made.header("x-amz-object-lock-mode"), Some("COMPLIANCE"));
    let version = made.header("x-amz-version-id").unwrap().to_owned();
    store.delete("packs/a").unwrap();
    assert_eq!(get(&store, "packs/a", 0, 10), None, "it is no longer seen");
    let deleted = plain(&server, "DELETE", &format!("/backup/site-a/packs/a?versionId={version}"), "");
    assert_eq!(deleted.status, 403, "and it is still there");
    assert!(store.create("points/a", b"point").unwrap());

    // What is sent in parts is locked from its beginning. moto forgets it.
    let begun = Rc::new(AtomicU32::new(0));
    let seen = begun.clone();
    double::serve(move |request| {
        if request.url.ends_with("?uploads=") {
            let locked = |name: &str| request.headers.iter().any(|(found, _)| found == name);
            assert!(locked("x-amz-object-lock-mode") && locked("x-amz-object-lock-retain-until-date"));
            seen.fetch_add(1, SeqCst);
        }
        ask(kind, request)
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
fn only_an_object_stores_word_is_taken_for_it() {
    let store = in_bucket(bucket_at("http://proxy.example.org"));
    let answering = |status: u16, body: &'static str| {
        double::serve(move |_| {
            Ok(Reply { status, headers: Vec::new(), body: Input::double(body.as_bytes(), "a proxy") })
        });
    };
    // A page of something on the way is no empty bucket, nor is a page of a listing without the next.
    for page in [
        "<html/>",
        "<ListBucketResult/>",
        "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        "<ListBucketResult><Contents><Key>site-a/a</Key></Contents><IsTruncated>false</IsTruncated></ListBucketResult>",
    ] {
        answering(200, page);
        assert_eq!(store.list("").unwrap_err().code, ErrorCode::Unsupported, "{page}");
    }
    answering(404, "<html>no such page</html>");
    store.open("packs/a", 0, 10).expect_err("not absent");
    store.delete("packs/a").expect_err("not deleted");
    answering(200, "whole");
    assert_eq!(store.open("packs/a", 3, 2).unwrap_err().code, ErrorCode::Unsupported, "not the range");
}

fn a_refusal_says_what_to_do(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let elsewhere = in_bucket(Bucket { bucket: "absent".to_owned(), ..bucket(&server) });
    // s3s-fs says of an object in a bucket that is missing what it says of a missing object.
    let read = (kind == Kind::Moto).then(|| elsewhere.open("a", 0, 1).unwrap_err());
    for error in std::iter::once(elsewhere.list("").unwrap_err()).chain(read) {
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
        let error = store(&server).list("").unwrap_err();
        assert!(error.message.contains(code) && error.message.contains(advice), "{}", error.message);
    }
    Ok(())
}

fn recovery_points_come_back_from_a_store_that_stumbles(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    let stumbles = stumble(kind);
    let settings = Settings { chunk_size: Some(1 << 20), pack_size: 8 << 20, grace: 0, ..Settings::default() };
    let repository = Repository::make(&store, settings, &|| 1_795_000_000, [7; 32]).unwrap();
    let draft = |id: &str, base: Option<&str>| Draft {
        id: id.to_owned(),
        job: "job".to_owned(),
        vm: "vm".to_owned(),
        name: "erp".to_owned(),
        taken_at: if base.is_none() { 1_794_000_000 } else { 1_794_000_600 },
        base: base.map(str::to_owned),
        metadata: "{\"format\":1}".to_owned(),
        extensions: Vec::new(),
    };
    let mut disk = vec![0; 64 * MIB];
    let point = |id: &str, base: Option<&str>, chunks: Vec<(usize, u8)>, disk: &mut [u8]| {
        let bytes = |byte: u8| (0..MIB).map(|at| byte ^ (at >> 8) as u8).collect::<Vec<u8>>();
        let chunks: Vec<_> = chunks.into_iter().map(|(at, byte)| ((at * MIB) as u64, bytes(byte))).collect();
        for (at, bytes) in &chunks {
            disk[*at as usize..][..MIB].copy_from_slice(bytes);
        }
        let draft = draft(id, base);
        let receipt = repository.write(&draft, &Delta::new(info(base), chunks)).unwrap();
        let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: None };
        repository.commit(&draft, &[receipt]).unwrap()
    };
    point("one", None, (0..30).map(|at| (at * 2, at as u8)).collect(), &mut disk);
    let first = disk.clone();
    point("two", Some("one"), vec![(4, 200), (5, 201)], &mut disk);

    for (id, expected) in [("one", &first), ("two", &disk)] {
        let extents = repository.layout(id, "disk", None).unwrap();
        let restore = Restore::of_size(64 * MIB);
        repository.read(id, "disk", &extents, &restore).unwrap();
        assert!(restore.disk() == *expected, "{id}");
        assert_eq!(repository.verify(id, &Restore::default()).unwrap(), []);
    }
    repository.delete("one").unwrap();
    assert_eq!(repository.points(None).unwrap().len(), 1);
    repository.collect(&[], true).unwrap();
    let restore = Restore::of_size(64 * MIB);
    repository.read("two", "disk", &repository.layout("two", "disk", None).unwrap(), &restore).unwrap();
    assert!(restore.disk() == disk, "without the point that it was made from");
    assert!(stumbles.load(SeqCst) > 9);
    Ok(())
}

with_each_server!(
    an_object_comes_back_as_it_was_made,
    a_large_object_is_made_of_parts_and_of_ranges_of_others,
    only_one_makes_what_must_not_exist,
    what_was_made_is_listed_page_by_page_and_what_was_deleted_is_not,
    a_store_that_stumbles_is_asked_again,
    an_upload_that_fails_leaves_no_parts_behind,
    what_a_store_keeps_is_what_was_sent,
    a_refusal_says_what_to_do,
    recovery_points_come_back_from_a_store_that_stumbles,
);
