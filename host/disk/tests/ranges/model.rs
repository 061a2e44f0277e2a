//! The oracle: a disk as a list of flags, one for each sector, and helpers over plain values.

use vmferry_disk::chunked::{END_MARKER, Scan, ScanReport};
use vmferry_disk::extent::{Extent, Extents};

pub(crate) const SECTOR: u64 = 512;

/// The sectors that are in `extents`.
pub(crate) fn sectors(extents: &Extents, count: usize) -> Vec<bool> {
    let mut set = vec![false; count];
    for Extent { offset, length } in extents.iter() {
        let from = (offset / SECTOR) as usize;
        set[from..from + (length / SECTOR) as usize].fill(true);
    }
    set
}

/// The runs of set flags, each flag standing for `unit` bytes.
pub(crate) fn runs(set: &[bool], unit: u64) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for (offset, _) in (0..).step_by(unit as usize).zip(set).filter(|(_, set)| **set) {
        match runs.last_mut() {
            Some(run) if run.end() == offset => run.length += unit,
            _ => runs.push(Extent { offset, length: unit }),
        }
    }
    runs
}

/// Recognisable content: each sector differs from all others.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let word = |at: usize| (at as u64 / SECTOR + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[at % 8];
    (0..length).map(word).collect()
}

/// A `chunked` stream with these frames, by the description of the format alone.
pub(crate) fn encode(disk: &[u8], frames: impl IntoIterator<Item = Extent>) -> Vec<u8> {
    let mut stream = Vec::new();
    for Extent { offset, length } in frames {
        stream.extend(offset.to_le_bytes());
        stream.extend((length as u32).to_le_bytes());
        stream.extend(&disk[offset as usize..(offset + length) as usize]);
    }
    stream.extend(END_MARKER);
    stream
}

/// Feeds a stream in pieces of `cut` bytes and applies it to `onto`.
pub(crate) fn apply(
    mut scan: Scan,
    stream: &[u8],
    cut: usize,
    onto: &mut [u8],
) -> Result<ScanReport, vmferry_disk::chunked::ChunkedError> {
    for bytes in stream.chunks(cut) {
        scan.feed(bytes, &mut |piece| {
            let at = piece.offset as usize;
            onto[at..at + piece.bytes.len()].copy_from_slice(piece.bytes);
        })?;
    }
    scan.finish()
}
