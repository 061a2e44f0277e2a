//! Disks as files: qemu-img reads them as what was put.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::image::Raw;
use vmferry_disk::qcow2::Writer;

use crate::model::{extents, pattern};
use crate::qemu_img;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn create(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).expect("a new file")
}

/// Has the ranges of a disk of `size` bytes written in pieces of at most `piece` bytes as both kinds of files.
fn write(folder: &Folder, disk: &[u8], size: u64, ranges: &Extents, piece: u32) {
    let mut raw = Raw::new(create(&folder.path("raw")), size).expect("a new disk");
    let mut qcow2 = Writer::new(create(&folder.path("qcow2")), size).expect("a new disk");
    for Extent { offset, length } in ranges.split(piece) {
        let bytes = &disk[offset as usize..(offset + length) as usize];
        raw.put(offset, bytes).expect("inside of the disk");
        qcow2.put(offset, bytes).expect("inside of the disk");
    }
    raw.finish().expect("a whole disk");
    qcow2.finish().expect("a whole disk");
}

fn check_by_qemu(folder: &Folder) {
    let [raw, qcow2] = ["raw", "qcow2"].map(|name| folder.path(name).into_os_string());
    qemu_img::run(["check".as_ref(), "-f".as_ref(), "qcow2".as_ref(), qcow2.as_os_str()]);
    let formats = ["compare", "-f", "raw", "-F", "qcow2"].map(AsRef::as_ref);
    qemu_img::run(formats.into_iter().chain([raw.as_os_str(), qcow2.as_os_str()]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn both_kinds_hold_what_was_put(
        ranges in proptest::collection::vec((0..4000u64, 1..500u64), 0..6), piece in 1..700u32,
        zeroed in proptest::collection::vec((0..4000usize, 1..600usize), 0..4),
    ) {
        let mut disk = pattern(4001 * 512);
        for (from, count) in zeroed {
            let end = disk.len().min((from + count) * 512);
            disk[from * 512..end].fill(0);
        }
        let size = disk.len() as u64;
        let ranges = extents(&ranges.iter().map(|(from, count)| (from * 512, count * 512)).collect::<Vec<_>>()).clipped(size);
        let folder = Folder::new();
        write(&folder, &disk, size, &ranges, piece * 512);
        let mut expected = vec![0; disk.len()];
        for range in ranges.iter().map(|extent| extent.offset as usize..extent.end() as usize) {
            expected[range.clone()].copy_from_slice(&disk[range]);
        }
        prop_assert!(fs::read(folder.path("raw")).unwrap() == expected);
        prop_assert_eq!(&fs::read(folder.path("qcow2")).unwrap()[24..32], size.to_be_bytes());
        if !qemu_img::is_missing() {
            check_by_qemu(&folder);
        }
    }
}

/// 3 TiB with something at both ends: the file counts itself beyond one refcount block's reach of tables, and stays small.
#[test]
fn a_large_disk_with_little_in_it_is_a_small_file() {
    let (folder, size) = (Folder::new(), 3 << 40);
    let mut qcow2 = Writer::new(create(&folder.path("qcow2")), size).unwrap();
    let mut raw = Raw::new(create(&folder.path("raw")), size).unwrap();
    for offset in [0, 1 << 40, size - 512] {
        qcow2.put(offset, &[7; 512]).unwrap();
        raw.put(offset, &[7; 512]).unwrap();
    }
    qcow2.put(size, &[]).unwrap();
    let length = qcow2.finish().unwrap().metadata().unwrap().len();
    assert_eq!(length, (1 + 1 + 3 + 3 + 1 + 1) * 65536);
    assert!(raw.finish().unwrap().metadata().unwrap().blocks() * 512 <= 1 << 20);
    if !qemu_img::is_missing() {
        qemu_img::run(["check".as_ref(), folder.path("qcow2").as_os_str()]);
    }
}

#[test]
fn what_was_not_finished_is_no_qcow2_file() {
    let folder = Folder::new();
    let mut qcow2 = Writer::new(create(&folder.path("qcow2")), 1 << 30).unwrap();
    qcow2.put(0, &[7; 65536]).unwrap();
    drop(qcow2);
    assert_eq!(fs::read(folder.path("qcow2")).unwrap()[..4], [0; 4]);
}

#[test]
fn what_is_no_piece_of_a_new_disk_is_refused() {
    let folder = Folder::new();
    let mut qcow2 = Writer::new(create(&folder.path("qcow2")), 1 << 20).unwrap();
    let mut raw = Raw::new(create(&folder.path("raw")), 1 << 20).unwrap();
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    for offset in [(1 << 20) - 511, 1 << 20, u64::MAX] {
        assert_eq!(kind(qcow2.put(offset, &[1; 512])), io::ErrorKind::InvalidInput);
        assert_eq!(kind(raw.put(offset, &[1; 512])), io::ErrorKind::InvalidInput);
    }
    qcow2.put(1024, &[1; 512]).unwrap();
    assert_eq!(kind(qcow2.put(1024, &[1; 512])), io::ErrorKind::InvalidInput);
    let used = || File::options().write(true).open(folder.path("raw")).expect("it is there");
    assert_eq!(kind(Raw::new(used(), 1 << 20).map(drop)), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(Writer::new(used(), 1 << 20).map(drop)), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(Writer::new(create(&folder.path("odd")), 100).map(drop)), io::ErrorKind::InvalidInput);
}
