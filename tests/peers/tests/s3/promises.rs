//! What a store has to keep, and what becomes of a repository in one that does not.

use crate::objects::{LOCK, MIB, WHOLE, ask, bucket, get, in_bucket, payloads, start, store};
use crate::server::{Kind, with_each_server};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use target_s3::{Bucket, Store};
use vmferry_plugin_api::ErrorCode;
use vmferry_plugin_api::delta::double::Delta;
use vmferry_plugin_api::delta::{Info, Kind as Data};
use vmferry_plugin_api::http::{Request, double};
use vmferry_plugin_api::target::{DiskReceipt, Draft};
use vmferry_repository::{Piece, Repository, Settings, Storage};

const CRC32C: &str = "x-amz-checksum-crc32c";

fn make(store: &Store) -> Result<Repository<'_>, vmferry_plugin_api::Error> {
    Repository::make(store, Settings::default(), &|| 1_795_000_000, [7; 32])
}

/// Changes a request on its way.
type Change = fn(&mut Request);

/// Has the first `most` requests that carry a check sum changed on their way; how many were.
fn change(kind: Kind, most: u32, change: Change) -> Rc<AtomicU32> {
    let changed = Rc::new(AtomicU32::new(0));
    let count = changed.clone();
    double::serve(move |request| {
        let mut request = request.clone();
        if request.headers.iter().any(|(name, _)| name == CRC32C) && count.load(SeqCst) < most {
            count.fetch_add(1, SeqCst);
            change(&mut request);
        }
        ask(kind, &request)
    });
    changed
}

fn flip(request: &mut Request) {
    let middle = request.body.len() / 2;
    request.body[middle] ^= 1;
}

fn other_sum(request: &mut Request) {
    request.headers.iter_mut().filter(|(name, _)| name == CRC32C).for_each(|(_, sum)| *sum = "AAAAAA==".to_owned());
}

/// moto answers the sum that it was told, whatever the bytes are.
#[test]
fn bytes_that_changed_on_their_way_are_refused_and_sent_again() -> anyhow::Result<()> {
    let kind = Kind::S3sFs;
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    // Of several pieces, so that the sum is made of sums.
    let (payloads, bytes) = payloads(&[1, 2]);
    let mut pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    pieces.push(Piece::Bytes(b"table"[..].into()));
    let whole = [&bytes, &b"table"[..]].concat();
    for (number, spoil) in [flip as Change, other_sum].into_iter().enumerate() {
        let name = format!("packs/{number}");
        let changed = change(kind, 2, spoil);
        store.put(&name, &pieces).unwrap();
        assert!(get(&store, &name, 0, WHOLE).unwrap() == whole);
        assert_eq!(changed.load(SeqCst), 2);

        change(kind, u32::MAX, spoil);
        let error = store.put(&name, &pieces).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(error.message.contains("BadDigest") && error.message.contains(&name), "{}", error.message);
    }
    Ok(())
}

/// Neither store compares the sum of a part, so each part is sent as an object as well, where one does.
#[test]
fn the_check_sum_of_each_part_is_that_of_its_bytes() -> anyhow::Result<()> {
    let kind = Kind::S3sFs;
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    let sent = Rc::new(AtomicU32::new(0));
    let (count, at) = (sent.clone(), format!("{}/backup/part", server.url));
    double::serve(move |request| {
        if request.url.contains("partNumber=") {
            assert!(request.headers.iter().any(|(name, _)| name == CRC32C));
            let reply = ask(kind, &Request { url: format!("{at}-{}", count.fetch_add(1, SeqCst)), ..request.clone() })?;
            assert_eq!(reply.status, 200, "{:?}", String::from_utf8_lossy(&reply.read(1 << 20)?));
        }
        ask(kind, request)
    });
    let (payloads, _) = payloads(&[2, 2, 2, 2, 2]);
    let mut pieces: Vec<Piece<'_>> = payloads.iter().map(|payload| Piece::Payload(payload.as_ref())).collect();
    pieces.push(Piece::Bytes(vec![9; 6 * MIB].into()));
    store.put("packs/a", &pieces).unwrap();
    assert_eq!(sent.load(SeqCst), 3);
    Ok(())
}

fn a_store_that_makes_what_exists_gets_no_repository(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let store = store(&server);
    double::serve(move |request| {
        let mut request = request.clone();
        request.headers.retain(|(name, _)| name != "if-none-match");
        ask(kind, &request)
    });
    let error = make(&store).err().unwrap();
    assert_eq!(error.code, ErrorCode::Unsupported);
    assert!(error.message.contains("If-None-Match"), "{}", error.message);
    assert_eq!(store.list("")?, [], "nothing is left that would be taken for one");
    Ok(())
}

fn a_store_without_object_lock_gets_no_point_that_is_to_be_locked(kind: Kind) -> anyhow::Result<()> {
    let Some(server) = start(kind)? else { return Ok(()) };
    let locked = in_bucket(Bucket { lock: LOCK, ..bucket(&server) });
    let told = match kind {
        Kind::Moto => "is the bucket made with Object Lock? `lock` needs it",
        Kind::S3sFs => "the store does not say that this is locked",
    };
    let error = make(&locked).err().unwrap();
    assert!(error.message.contains(told), "{}", error.message);
    assert_eq!(locked.list("")?, []);

    // Nor where a repository was made before `lock` was set.
    let unlocked = store(&server);
    let draft = Draft {
        id: "one".to_owned(),
        job: "job".to_owned(),
        vm: "vm".to_owned(),
        name: "erp".to_owned(),
        taken_at: 1_794_000_000,
        base: None,
        metadata: "{\"format\":1}".to_owned(),
        extensions: Vec::new(),
    };
    let info = Info {
        disk: "disk".to_owned(),
        content: "content".to_owned(),
        size: 1 << 20,
        kind: Data::Full,
        expected_bytes: 0,
        extensions: Vec::new(),
    };
    let receipt = make(&unlocked)?.write(&draft, &Delta::new(info, Vec::new()))?;
    let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: None };
    for _ in 0..2 {
        let error = make(&locked)?.commit(&draft, std::slice::from_ref(&receipt)).unwrap_err();
        assert!(error.message.contains(told), "{}", error.message);
        assert_eq!(make(&unlocked)?.points(None)?, []);
    }
    Ok(())
}

with_each_server!(
    a_store_that_makes_what_exists_gets_no_repository,
    a_store_without_object_lock_gets_no_point_that_is_to_be_locked,
);
