//! Disk files for Hyper-V, made by the component: the bytes go from the source into them and back without passing through it.

use crate::house::{Locks, Pieces, Source, bundled, draft, failure, in_folder, info};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use vmferry_model::plugin::PluginFailure;
use vmferry_model::target::{DiskReceipt, PointStore, Shape, StoredExtent};
use vmferry_sandbox::{Grants, HostServices, Instance, Passed, Target};

const MIB: u64 = 1 << 20;
const CHUNK: usize = MIB as usize;
const SIZE: u64 = 5 * MIB + 512;

async fn target(folder: &Path, points: &str) -> Arc<Target> {
    target_of(folder, "vhdx", points).await
}

async fn target_of(folder: &Path, format: &str, points: &str) -> Arc<Target> {
    let config = serde_json::json!({ "folder": folder, "points": points, "format": format });
    let instance = in_folder(folder, config);
    let grants = Grants { lock: true, ..instance.grants };
    let host = HostServices { leases: Some(Arc::new(Locks::default())), ..HostServices::default() };
    bundled("target-hyperv").await.target(Instance { grants, host, ..instance }).await.expect("set up")
}

async fn keep(target: &Target, id: &str, base: Option<&str>, chunks: &[(u64, usize, u8)]) {
    let receipt = target.write(&draft(id), info(SIZE, base), Box::new(Source::of(chunks))).await.expect("written");
    let receipt = DiskReceipt { disk: "disk".to_owned(), receipt, digest: None };
    target.commit(&draft(id), &[receipt]).await.expect("committed");
}

/// The disk as a point shows it.
async fn disk(target: &Target, point: &str) -> Vec<u8> {
    let extents = target.layout(point, "disk", None).await.expect("a layout");
    let pieces = Pieces::default();
    target.read(point, "disk", &extents, Box::new(pieces.clone())).await.expect("read");
    let mut disk = vec![0; SIZE as usize];
    for (offset, bytes) in pieces.0.lock().expect("unpoisoned").iter() {
        disk[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    disk
}

/// A disk whose blocks are full of these bytes.
fn blocks(bytes: [u8; 6]) -> Vec<u8> {
    let mut disk: Vec<u8> = bytes.iter().flat_map(|byte| vec![*byte; CHUNK]).collect();
    disk.truncate(SIZE as usize);
    disk
}

const FULL: [(u64, usize, u8); 3] = [(0, CHUNK, 1), (2 * MIB, CHUNK, 3), (5 * MIB, 512, 6)];
const DELTA: [(u64, usize, u8); 3] = [(0, CHUNK, 0), (MIB, CHUNK, 7), (5 * MIB, 512, 8)];

#[tokio::test]
async fn no_byte_of_a_disk_passes_through_the_plugin_whatever_the_setting() {
    for (points, kept) in [("differencing", 2), ("copies", 2), ("newest", 1)] {
        let folder = tempfile::tempdir().expect("a folder");
        let target = target(folder.path(), points).await;
        assert_eq!(target.shape(), Shape { chunk_size: CHUNK as u32, only_newest: points != "copies" });
        keep(&target, "a", None, &FULL).await;
        keep(&target, "b", Some("a"), &DELTA).await;
        assert_eq!(target.points(Some("vm")).await.expect("points").len(), kept);
        assert_eq!(disk(&target, "b").await, blocks([0, 7, 3, 0, 0, 8]), "{points}");
        if kept == 2 {
            assert_eq!(disk(&target, "a").await, blocks([1, 0, 3, 0, 0, 6]), "{points}");
            let extent = |offset, length| StoredExtent { offset, length };
            let since = target.layout("b", "disk", Some("a")).await.expect("a layout");
            assert_eq!(since, [extent(0, 2 * MIB), extent(5 * MIB, 512)]);
            target.delete("a").await.expect("deleted");
            assert_eq!(disk(&target, "b").await, blocks([0, 7, 3, 0, 0, 8]), "{points}");
        }
        assert_eq!(target.verify("b").await.expect("verified"), []);
        assert_eq!(target.collect(&[], false).await.expect("nothing"), []);
        let Passed { stored, copied, .. } = target.passed();
        assert_eq!((stored, copied), (2 * MIB + 512 + MIB + 512, 0), "{points}");
    }
}

/// The only file of this kind in the folder.
fn only(folder: &TempDir, kind: &str) -> std::path::PathBuf {
    let vm = folder.path().join("job-nightly").join("vm-vm");
    let files = std::fs::read_dir(vm).expect("the VM's folder").map(|entry| entry.expect("an entry").path());
    let found: Vec<_> = files.filter(|path| path.extension().is_some_and(|found| found == kind)).collect();
    let [only] = found.as_slice() else { panic!("{found:?}") };
    only.clone()
}

#[tokio::test]
async fn a_byte_that_changed_in_a_disk_file_is_found_and_not_restored() {
    let folder = tempfile::tempdir().expect("a folder");
    let target = target(folder.path(), "newest").await;
    keep(&target, "a", None, &FULL).await;
    let path = only(&folder, "vhdx");
    let mut file = std::fs::read(&path).expect("the disk");
    let at = file.windows(CHUNK).rposition(|bytes| bytes[0] == 3 && bytes[CHUNK - 1] == 3).expect("the third block");
    file[at + 5] = 4;
    std::fs::write(&path, file).expect("written");
    let restored = Pieces::default();
    let all = [StoredExtent { offset: 0, length: SIZE }];
    let refused = failure(target.read("a", "disk", &all, Box::new(restored)).await);
    assert!(matches!(refused, PluginFailure::Refused { .. }), "{refused}");
    let damages = target.verify("a").await.expect("verified");
    let extents: Vec<_> = damages.iter().map(|damage| damage.extent).collect();
    assert_eq!(extents, [Some(StoredExtent { offset: 2 * MIB, length: MIB })]);
    assert!(target.points(None).await.expect("points")[0].damaged.is_some());
}

#[tokio::test]
async fn a_vhd_is_changed_in_place_and_its_time_tells_whether_a_guest_wrote_to_it() {
    const BLOCK: usize = 2 * CHUNK;
    const LAST: usize = CHUNK + 512;
    let folder = tempfile::tempdir().expect("a folder");
    let target = target_of(folder.path(), "vhd", "newest").await;
    assert_eq!(target.shape(), Shape { chunk_size: BLOCK as u32, only_newest: true });
    keep(&target, "a", None, &[(0, BLOCK, 1), (4 * MIB, LAST, 3)]).await;
    keep(&target, "b", Some("a"), &[(0, BLOCK, 0), (2 * MIB, BLOCK, 2), (4 * MIB, LAST, 4)]).await;
    assert_eq!(disk(&target, "b").await, blocks([0, 0, 2, 2, 4, 4]));
    assert_eq!(target.passed().copied, 0);
    assert_eq!(target.verify("b").await.expect("verified"), []);
    assert_eq!(target.points(None).await.expect("points")[0].damaged, None);
    let path = only(&folder, "vhd");
    let mut file = std::fs::read(&path).expect("the disk");
    let at = file.windows(CHUNK).position(|bytes| bytes[0] == 2 && bytes[CHUNK - 1] == 2).expect("the second block");
    file[at] = 5;
    std::fs::write(&path, file).expect("written");
    let damaged = target.points(None).await.expect("points")[0].damaged.clone();
    assert!(damaged.is_some_and(|told| told.contains("was written by something else")));
}

#[tokio::test]
async fn a_source_that_breaks_off_leaves_the_point_as_it_was() {
    for points in ["differencing", "copies", "newest"] {
        let folder = tempfile::tempdir().expect("a folder");
        let target = target(folder.path(), points).await;
        keep(&target, "a", None, &FULL).await;
        let source = Source::of(&DELTA).breaking_off("the pool is gone");
        let refused = failure(target.write(&draft("b"), info(SIZE, Some("a")), Box::new(source)).await);
        assert!(refused.to_string().contains("the pool is gone"), "{refused}");
        target.abort(&draft("b")).await.expect("aborted");
        assert_eq!(disk(&target, "a").await, blocks([1, 0, 3, 0, 0, 6]));
        assert_eq!(target.collect(&[], false).await.expect("nothing"), []);
    }
}
