//! The repository in a folder as the engine meets it: the real component, real files, and no byte of payload in the guest.

use crate::house::{Pieces, Source, bundled, draft, failure, in_folder, info};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use vmferry_disk::encoding::SealKey;
use vmferry_model::plugin::PluginFailure;
use vmferry_model::target::{DiskReceipt, PointStore, Shape, StoredExtent, StoredPoint};
use vmferry_sandbox::{HostServices, Instance, Target};

const CHUNK: usize = 64 << 10;
/// 40 chunks and a bit.
const SIZE: u64 = 40 * CHUNK as u64 + 512;

async fn set_up(folder: &Path, key: Option<&str>) -> Arc<Target> {
    let mut with = serde_json::json!({ "folder": folder, "create": true, "pack_size": "4 MiB" });
    if let Some(key) = key {
        with["key"] = key.into();
    }
    let mut instance = in_folder(folder, with);
    instance.grants.seal = key.map(str::to_owned).into_iter().collect();
    let seal_keys = [("backup".to_owned(), SealKey::new([7; 32]))].into();
    let host = HostServices { seal_keys, ..HostServices::default() };
    bundled("target-repository").await.target(Instance { host, ..instance }).await.expect("set up")
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

async fn keep(target: &Target, id: &str, base: Option<&str>, chunks: &[(u64, usize, u8)]) -> StoredPoint {
    let source = Box::new(Source::of(chunks));
    let receipt = target.write(&draft(id), info(SIZE, base), source).await.expect("written");
    let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: Some("root".to_owned()) };
    target.commit(&draft(id), &[receipt]).await.expect("committed")
}

/// Chunks of which each is full of one byte.
fn disk(letters: &[u8]) -> Vec<(u64, usize, u8)> {
    let at = |(number, letter): (usize, &u8)| ((number * CHUNK) as u64, CHUNK, *letter);
    letters.iter().enumerate().map(at).collect()
}

/// What comes back of a point, by its offset.
async fn restore(target: &Target, id: &str) -> BTreeMap<u64, (usize, u8)> {
    let layout = target.layout(id, "disk", None).await.expect("a layout");
    let pieces = Pieces::default();
    target.read(id, "disk", &layout, Box::new(pieces.clone())).await.expect("read");
    let pieces = pieces.0.lock().expect("unpoisoned");
    assert!(pieces.is_sorted_by_key(|(offset, _)| *offset));
    let letters = pieces.iter().map(|(offset, bytes)| {
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "one letter at {offset}");
        (*offset, (bytes.len(), bytes[0]))
    });
    letters.collect()
}

/// Files of the repository, by their paths.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test]
async fn points_come_back_as_they_were_and_payload_never_enters_the_guest() {
    for key in [None, Some("backup")] {
        let folder = folder();
        let target = set_up(folder.path(), key).await;
        assert_eq!(target.shape(), Shape { chunk_size: CHUNK as u32, only_newest: false });
        assert_eq!(target.points(None).await.expect("none yet"), []);

        let mut first = disk(b"abcdefgh");
        first.push((40 * CHUNK as u64, 512, b'z'));
        let point = keep(&target, "one", None, &first).await;
        assert_eq!((point.disks[0].size, point.disks[0].digest.as_deref()), (SIZE, Some("root")));
        keep(&target, "two", Some("one"), &[(CHUNK as u64, CHUNK, b'X'), (3 * CHUNK as u64, CHUNK, 0)]).await;
        keep(&target, "three", None, &first).await;

        let mut expected: BTreeMap<_, _> = first.iter().map(|(at, length, letter)| (*at, (*length, *letter))).collect();
        assert_eq!(restore(&target, "one").await, expected);
        assert_eq!(restore(&target, "three").await, expected);
        expected.insert(CHUNK as u64, (CHUNK, b'X'));
        expected.remove(&(3 * CHUNK as u64));
        assert_eq!(restore(&target, "two").await, expected);
        assert_eq!(target.verify("two").await.expect("verified"), []);
        assert_eq!(target.metadata("one").await.expect("metadata"), draft("one").metadata);
        let changed = target.layout("two", "disk", Some("one")).await.expect("a layout");
        let extent = |number: u64| StoredExtent { offset: number * CHUNK as u64, length: CHUNK as u64 };
        assert_eq!(changed, [extent(1), extent(3)]);

        let passed = target.passed();
        assert_eq!(passed.copied, 0, "{passed:?}");
        assert!(passed.stored > 0 && passed.restored > 0, "{passed:?}");
        let stored: u64 = files(folder.path()).iter().map(|path| path.metadata().expect("a file").len()).sum();
        assert!(stored < 20_000, "nine chunks of one letter each, three times, took {stored} bytes");
    }
}

#[tokio::test]
async fn what_nobody_needs_is_told_and_waits_for_whoever_began_to_use_it() {
    let folder = folder();
    let target = set_up(folder.path(), None).await;
    keep(&target, "one", None, &disk(b"abcdefgh")).await;
    keep(&target, "two", Some("one"), &[(0, CHUNK, b'X')]).await;
    target.delete("one").await.expect("deleted");
    target.delete("one").await.expect("no error");
    assert_eq!(restore(&target, "two").await.len(), 8);
    target.delete("two").await.expect("deleted");

    target.write(&draft("lost"), info(SIZE, None), Box::new(Source::of(&disk(b"qrst")))).await.expect("written");
    let found = target.collect(&["lost".to_owned()], true).await.expect("collected");
    assert_eq!(found.len(), 2, "a pack of each point: {found:?}");
    assert!(found.iter().all(|one| one.what.starts_with("packs/") && one.why.contains("No recovery point needs it")));
    target.abort(&draft("lost")).await.expect("aborted");
    assert!(!folder.path().join("drafts").read_dir().expect("a folder").any(|_| true));
    assert_eq!(files(&folder.path().join("packs")).len(), 2, "they wait");
}

#[tokio::test]
async fn damage_is_found_told_and_remembered() {
    let folder = folder();
    let target = set_up(folder.path(), None).await;
    keep(&target, "one", None, &disk(b"abcd")).await;
    let pack = files(&folder.path().join("packs")).pop().expect("a pack");
    let mut bytes = std::fs::read(&pack).expect("read");
    // The table of five entries is in front; the first chunk follows it.
    let first = 12 + 2 + 5 * 41 + 32;
    bytes[first + 4] ^= 1;
    std::fs::write(&pack, &bytes).expect("written");
    let found = target.verify("one").await.expect("looked at");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].extent, Some(StoredExtent { offset: 0, length: CHUNK as u64 }));
    assert_eq!(target.points(None).await.expect("points")[0].damaged.as_deref(), Some(&*found[0].message));
    let refused = failure(
        target.read("one", "disk", &[StoredExtent { offset: 0, length: 1 }], Box::new(Pieces::default())).await,
    );
    assert!(matches!(&refused, PluginFailure::Refused { message, .. } if message.contains("damaged")), "{refused}");
}

#[tokio::test]
async fn a_repository_does_not_open_without_its_key() {
    let folder = folder();
    let target = set_up(folder.path(), Some("backup")).await;
    keep(&target, "one", None, &disk(b"abcd")).await;
    for path in files(folder.path()) {
        let bytes = std::fs::read(&path).expect("read");
        for word in [&b"erp"[..], b"nightly", b"content", &[b'a'; 32]] {
            assert!(!bytes.windows(word.len()).any(|found| found == word), "{} says {word:?}", path.display());
        }
    }
    let with = serde_json::json!({ "folder": folder.path() });
    let refused = bundled("target-repository").await.target(in_folder(folder.path(), with)).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("`key`")));
}
