//! qemu-img as an independent reader and writer of VHD.

use std::ffi::OsStr;
use std::path::Path;

use vmferry_disk::vhd::{BLOCK_SIZE, Writer};

use crate::{model, qemu_img};

fn convert(arguments: &[&str], from: &Path, to: &Path) {
    let paths = [from.as_os_str(), to.as_os_str()];
    qemu_img::run([OsStr::new("convert")].into_iter().chain(arguments.iter().map(OsStr::new)).chain(paths));
}

/// A disk with holes, an odd end, and data at both ends of its blocks.
fn disk(length: usize) -> Vec<u8> {
    let mut disk = model::pattern(length, 17);
    for (block, bytes) in disk.chunks_mut(BLOCK_SIZE as usize).enumerate() {
        let end = bytes.len() - 512;
        match block % 3 {
            0 => bytes[4096.min(end)..end].fill(0),
            1 => bytes.fill(0),
            _ => {}
        }
    }
    disk
}

const SIZES: [usize; 4] = [512, 7 << 20, (9 << 20) + 512, 32 << 20];

#[test]
fn qemu_reads_what_is_written() {
    if qemu_img::is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (vhd, raw) = (folder.path().join("disk.vhd"), folder.path().join("disk.raw"));
    for size in SIZES {
        let disk = disk(size);
        let used: Vec<u32> = (0..)
            .zip(disk.chunks(BLOCK_SIZE as usize))
            .filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0))
            .map(|(block, _)| block)
            .collect();
        let writer = Writer::new(&model::new_disk(size as u64), &used).unwrap();
        std::fs::write(&vhd, model::render(&writer, &disk)).unwrap();
        convert(&["-f", "vpc", "-O", "raw"], &vhd, &raw);
        assert!(std::fs::read(&raw).unwrap() == disk, "a disk of {size} bytes");
    }
}

#[test]
fn what_qemu_writes_is_read() {
    if qemu_img::is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (vhd, raw) = (folder.path().join("disk.vhd"), folder.path().join("disk.raw"));
    for size in SIZES {
        let disk = disk(size);
        std::fs::write(&raw, &disk).unwrap();
        convert(&["-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on"], &raw, &vhd);
        let stream = std::fs::read(&vhd).unwrap();
        let head = model::head_of(&stream).unwrap();
        assert_eq!(head.virtual_size(), size as u64);
        assert_eq!(head.header().table_offset, 1536, "qemu leaves no room for a locator");
        let mut read = vec![0; size];
        model::apply(&stream, &mut read).unwrap();
        assert!(read == disk, "a disk of {size} bytes");
    }
}
