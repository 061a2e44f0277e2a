//! A target as the engine meets it: the example that comes with the program, and a guest that uses what the host lends.

use crate::house::{Locks, Pieces, Source, bundled, draft, failure, in_folder, info, load};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::sync::oneshot;
use vmferry_disk::encoding::SealKey;
use vmferry_model::plugin::PluginFailure;
use vmferry_model::target::{
    BrokenOff, Chunk, Chunks, DiskReceipt, PointStore, Shape, StoredExtent, StoredGarbage, StoredPoint,
};
use vmferry_sandbox::{Grants, HostServices, Instance, Passed, Target};

const CHUNK: usize = 2 << 20;
const SIZE: u64 = 3 * CHUNK as u64 + 5;

async fn in_a_folder() -> (Arc<Target>, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let with = serde_json::json!({ "folder": folder.path() });
    let target = bundled("example-target-folder").await.target(in_folder(folder.path(), with)).await.expect("set up");
    (target, folder)
}

fn extent(offset: u64, length: u64) -> StoredExtent {
    StoredExtent { offset, length }
}

async fn keep(target: &Target, id: &str, base: Option<&str>, source: Source) -> StoredPoint {
    let receipt = target.write(&draft(id), info(SIZE, base), Box::new(source)).await.expect("written");
    let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: Some("root".to_owned()) };
    target.commit(&draft(id), &[receipt]).await.expect("committed")
}

#[tokio::test]
async fn a_disk_goes_and_comes_back_without_passing_through_the_plugin() {
    let (target, folder) = in_a_folder().await;
    assert_eq!(target.shape(), Shape { chunk_size: CHUNK as u32, only_newest: false });
    let source = Source::of(&[(0, CHUNK, 1), (CHUNK as u64, CHUNK, 0), (3 * CHUNK as u64, 5, 3)]);
    let point = keep(&target, "a", None, source).await;
    assert_eq!((point.disks[0].size, point.disks[0].digest.as_deref()), (SIZE, Some("root")));
    assert_eq!(target.points(Some("vm")).await.expect("points"), [point]);
    assert_eq!(target.metadata("a").await.expect("metadata"), draft("a").metadata);
    let layout = target.layout("a", "disk", None).await.expect("a layout");
    assert_eq!(layout, [extent(0, CHUNK as u64), extent(3 * CHUNK as u64, 5)]);

    // Of both chunks only what was asked for comes.
    let wanted = [extent(1, 2), extent(7, 1), extent(3 * CHUNK as u64 + 4, 1)];
    let pieces = Pieces::default();
    target.read("a", "disk", &wanted, Box::new(pieces.clone())).await.expect("read");
    let pieces: Vec<_> = pieces.0.lock().expect("unpoisoned").iter().map(|(at, bytes)| (*at, bytes.to_vec())).collect();
    assert_eq!(pieces, [(1, vec![1, 1]), (7, vec![1]), (3 * CHUNK as u64 + 4, vec![3])]);
    assert_eq!(target.verify("a").await.expect("verified"), []);

    let data = CHUNK as u64 + 5;
    assert_eq!(target.passed(), Passed { stored: data, restored: 2 * data, copied: 0 });
    let file = std::fs::metadata(folder.path().join("a").join("disk.raw")).expect("the disk");
    assert_eq!(file.len(), SIZE);
}

#[tokio::test]
async fn a_delta_is_a_point_of_its_own() {
    let (target, folder) = in_a_folder().await;
    keep(&target, "a", None, Source::of(&[(0, CHUNK, 1), (2 * CHUNK as u64, CHUNK, 2)])).await;
    keep(&target, "b", Some("a"), Source::of(&[(0, CHUNK, 9)])).await;
    assert_eq!(target.layout("b", "disk", Some("a")).await.expect("a layout"), [extent(0, CHUNK as u64)]);
    target.hold("b", true).await.expect("kept");
    target.delete("a").await.expect("deleted");
    target.delete("a").await.expect("one never heard of is no error");
    let points = target.points(None).await.expect("points");
    assert_eq!(points.iter().map(|point| (&*point.id, point.held)).collect::<Vec<_>>(), [("b", true)]);
    let disk = std::fs::read(folder.path().join("b").join("disk.raw")).expect("the disk");
    assert_eq!((disk[0], disk[CHUNK], disk[2 * CHUNK], disk.len()), (9, 0, 2, SIZE as usize));
}

#[tokio::test]
async fn what_became_no_point_is_collected() {
    let (target, _folder) = in_a_folder().await;
    let source = Source::of(&[(0, CHUNK, 1)]).breaking_off("the pool is gone");
    let refused = failure(target.write(&draft("a"), info(SIZE, None), Box::new(source)).await);
    assert!(matches!(&refused, PluginFailure::Refused { message, .. } if message.contains("the pool is gone")));
    assert_eq!(target.collect(&["a".to_owned()], true).await.expect("nothing"), []);
    let found = target.collect(&[], true).await.expect("collected");
    assert!(matches!(&found[..], [StoredGarbage { what, .. }] if what == "a.draft"), "{found:?}");
    target.abort(&draft("a")).await.expect("a draft never heard of is no error");
}

/// Asks, before it gives the second chunk, whether the first is where it belongs.
struct Watching {
    source: Source,
    file: PathBuf,
    given: usize,
}

#[async_trait]
impl Chunks for Watching {
    async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff> {
        if self.given > 0 {
            let written = std::fs::read(&self.file).expect("the disk");
            assert_eq!(written[self.given * CHUNK - 1], self.given as u8, "asked for more before it was written");
        }
        self.given += 1;
        self.source.next().await
    }
}

#[tokio::test]
async fn the_source_waits_until_a_chunk_is_written() {
    let (target, folder) = in_a_folder().await;
    let source = Source::of(&[(0, CHUNK, 1), (CHUNK as u64, CHUNK, 2), (2 * CHUNK as u64, CHUNK, 3)]);
    let file = folder.path().join("a.draft").join("disk.raw");
    let watching = Box::new(Watching { source, file, given: 0 });
    target.write(&draft("a"), info(SIZE, None), watching).await.expect("written");
}

/// Gives one chunk, says so, and never comes to the next.
struct Hanging {
    source: Source,
    reached: Option<oneshot::Sender<()>>,
    _gone: oneshot::Sender<()>,
}

#[async_trait]
impl Chunks for Hanging {
    async fn next(&mut self) -> Result<Option<Chunk>, BrokenOff> {
        match self.source.next().await {
            Ok(None) => {
                let _ = self.reached.take().map(|reached| reached.send(()));
                std::future::pending().await
            }
            chunk => chunk,
        }
    }
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_ends() {
    let (target, _folder) = in_a_folder().await;
    let ((reached, at_the_end), (gone, dropped)) = (oneshot::channel(), oneshot::channel());
    let source = Source::of(&[(0, CHUNK, 1)]);
    let source = Box::new(Hanging { source, reached: Some(reached), _gone: gone });
    let draft = draft("a");
    let write = target.write(&draft, info(SIZE, None), source);
    tokio::select! { _ = write => panic!("the source has no end"), at = at_the_end => at.expect("one chunk") }
    assert!(dropped.await.is_err(), "the guest is gone, and its source with it");
}

/// The guest that does what its settings say, with these grants and whatever the host has.
async fn guest(folder: &Path, does: &str, grants: Grants) -> Arc<Target> {
    let requests = "[grants]\nseal = ['*']\nlock = true\nfolders = true";
    let plugin = load("misbehaves_as_target", "target", requests).await;
    let host = HostServices {
        seal_keys: [("backup".to_owned(), SealKey::new([7; 32]))].into(),
        leases: Some(Arc::new(Locks::default())),
        ..HostServices::default()
    };
    let instance = in_folder(folder, serde_json::json!({ "does": does, "folder": folder }));
    let grants = Grants { folders: instance.grants.folders.clone(), ..grants };
    plugin.target(Instance { grants, host, ..instance }).await.expect("set up")
}

#[tokio::test]
async fn what_is_sealed_on_its_way_comes_back_and_is_not_to_be_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let grants = Grants { seal: vec!["backup".to_owned()], ..Grants::default() };
    let target = guest(folder.path(), "seal", grants).await;
    let source = Source::of(&[(0, 1 << 20, b'x')]);
    target.write(&draft("a"), info(1 << 20, None), Box::new(source)).await.expect("written");
    let stored = std::fs::read(folder.path().join("chunk")).expect("a file");
    assert!(stored.len() < 1000 && !stored.windows(4).any(|bytes| bytes == b"xxxx"), "{} bytes", stored.len());
    let pieces = Pieces::default();
    target.read("a", "disk", &[extent(0, 1 << 20)], Box::new(pieces.clone())).await.expect("read");
    assert_eq!(pieces.0.lock().expect("unpoisoned")[..], [(0, vec![b'x'; 1 << 20].into())]);
    assert_eq!(target.passed().copied, 0);
}

#[tokio::test]
async fn keys_and_locks_are_granted_by_the_line_that_a_refusal_names() {
    let folder = tempfile::tempdir().expect("a folder");
    for (does, line) in [("seal", "grants.seal = [\"backup\"]"), ("lock", "grants.lock = true")] {
        let target = guest(folder.path(), does, Grants::default()).await;
        let source = Source::of(&[(0, 1 << 20, 1)]);
        let refused = failure(target.write(&draft("a"), info(1 << 20, None), Box::new(source)).await);
        assert!(matches!(&refused, PluginFailure::Denied(text) if text.contains(line)), "{refused}");
    }
}

#[tokio::test]
async fn a_lock_is_given_back_and_its_epoch_grows() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = guest(folder.path(), "lock", Grants { lock: true, ..Grants::default() }).await;
    for epoch in ["1", "2"] {
        let receipt = target.write(&draft("a"), info(0, None), Box::new(Source::of(&[]))).await.expect("written");
        assert_eq!(String::from_utf8(receipt).as_deref(), Ok(epoch));
    }
}

#[tokio::test]
async fn locks_and_seals_of_one_call_have_bounds() {
    let folder = tempfile::tempdir().expect("a folder");
    for (does, said) in [("hammer-locks", "take and renew locks 100 times"), ("seal-much", "8388609 bytes at once")] {
        let grants = Grants { lock: true, seal: vec!["backup".to_owned()], ..Grants::default() };
        let target = guest(folder.path(), does, grants).await;
        let source = Source::of(&[(0, 1 << 20, 1)]);
        let refused = failure(target.write(&draft("a"), info(1 << 20, None), Box::new(source)).await);
        let is_limit = |code: &str, message: &str| code == "limit" && message.contains(said);
        assert!(
            matches!(&refused, PluginFailure::Refused { code, message } if is_limit(code, message)),
            "{does}: {refused}"
        );
    }
}
