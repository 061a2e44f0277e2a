//! Streams of a disk in memory, by the description of their formats alone, and what a transfer is given.

use std::time::Duration;

use uuid::Uuid;
use vmferry_disk::chunked::{Coverage, END_MARKER, Plan};
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::transfer::Options;
use vmferry_disk::vhd::{BLOCK_SIZE, NewDisk, StreamPart, Writer};

pub(crate) const SECTOR: u64 = 512;
pub(crate) const LEAF: u64 = 65536;

/// Recognisable content: each sector differs from all others.
pub(crate) fn pattern(length: u64) -> Vec<u8> {
    let word = |at: u64| (at / SECTOR + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[at as usize % 8];
    (0..length).map(word).collect()
}

pub(crate) fn extents(list: &[(u64, u64)]) -> Extents {
    list.iter().map(|&(offset, length)| Extent { offset, length }).collect()
}

pub(crate) fn plan(disk_size: u64, extents: &Extents, coverage: Coverage) -> Plan {
    Plan::new(disk_size, extents.clone(), coverage).expect("ranges of the disk")
}

/// The `chunked` stream of `extents` in frames of at most `frame` bytes.
pub(crate) fn chunked(disk: &[u8], extents: &Extents, frame: u32) -> Vec<u8> {
    let mut stream = Vec::new();
    for Extent { offset, length } in extents.split(frame) {
        stream.extend(offset.to_le_bytes());
        stream.extend((length as u32).to_le_bytes());
        stream.extend(&disk[offset as usize..(offset + length) as usize]);
    }
    stream.extend(END_MARKER);
    stream
}

/// What lays out the VHD of these blocks of a disk.
pub(crate) fn vhd_writer(disk_size: u64, blocks: &[u32]) -> Writer {
    let disk = NewDisk { virtual_size: disk_size, unique_id: Uuid::nil(), creator: *b"test", parent: None };
    Writer::new(&disk, blocks).expect("a small disk")
}

/// The stream that a writer laid out.
pub(crate) fn vhd(writer: &Writer, disk: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for part in writer.parts() {
        match part {
            StreamPart::Bytes(bytes) => stream.extend(bytes),
            StreamPart::Disk { offset, length } => {
                let inside = &disk[offset as usize..disk.len().min((offset + u64::from(length)) as usize)];
                stream.extend(inside);
                stream.resize(stream.len() + BLOCK_SIZE as usize - inside.len(), 0);
            }
        }
    }
    stream
}

pub(crate) fn options() -> Options<'static> {
    let minute = Duration::from_secs(60);
    Options { leaves: None, progress: &(), throttles: &[], stall: minute, first_byte: minute }
}
