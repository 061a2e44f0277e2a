//! An XVA that somebody gave: as it comes, and in parts from a file.
//!
//! Bit 0 of the first byte has the checksums of headers and chunks made right, so that what is behind them is reached.

#![no_main]

use std::fs::File;
use std::io::Write;

use libfuzzer_sys::fuzz_target;
use vmferry_disk::xva::{Archive, BLOCK, Checksum, MAX_CHUNK, Piece, Reader};

fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else { return };
    let mut xva = bytes.to_vec();
    if mode & 1 == 1 {
        repair(&mut xva);
    }
    let (pieces, whole) = read(&xva);
    for pair in pieces.windows(2) {
        let [(before, first), (disk, second)] = pair else { continue };
        assert!(before < disk || first.offset + first.bytes.len() as u64 <= second.offset);
    }
    assert!(pieces.iter().all(|(_, piece)| piece.bytes.len() as u64 <= MAX_CHUNK));
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&xva).expect("written");
    let parts = read_parts(file);
    if whole {
        let pieces = pieces.into_iter().filter(|(_, piece)| !piece.bytes.is_empty()).collect();
        assert_eq!(parts, Some(pieces));
    }
});

/// The pieces, and whether they are all.
fn read(xva: &[u8]) -> (Vec<(String, Piece)>, bool) {
    let mut pieces = Vec::new();
    let Ok(mut reader) = Reader::open(xva) else { return (pieces, false) };
    loop {
        match reader.next_piece() {
            Ok(Some(piece)) => pieces.push(piece),
            Ok(None) => return (pieces, true),
            Err(_) => return (pieces, false),
        }
    }
}

/// The same from a file; `None` where it is not whole.
fn read_parts(file: File) -> Option<Vec<(String, Piece)>> {
    let archive = Archive::open(file).ok()?;
    let mut pieces = Vec::new();
    for disk in archive.disks() {
        for extent in disk.extents().iter() {
            let mut at = extent.offset;
            while at < extent.end() {
                let piece = archive.chunk(disk, at).ok()??;
                at = piece.offset + piece.bytes.len() as u64;
                pieces.push((disk.id.clone(), piece));
            }
        }
    }
    Some(pieces)
}

/// Walks over the members as far as their headers lead.
fn repair(xva: &mut [u8]) {
    let (mut at, mut before) = (0, 0..0);
    while let Some(block) = xva.get_mut(at..at + BLOCK) {
        let named = |suffix: &[u8]| block[..100].windows(suffix.len()).any(|part| part == suffix);
        let kind =
            if named(b".xxhash") { Some(Checksum::XxHash) } else { named(b".checksum").then_some(Checksum::Sha1) };
        if block.iter().all(|byte| *byte == 0) {
            return;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:07o}").as_bytes());
        block[155] = 0;
        let digits = std::str::from_utf8(&block[124..135]).ok();
        let Some(length) = digits.and_then(|digits| usize::from_str_radix(digits, 8).ok()) else { return };
        let body = at + BLOCK..(at + BLOCK).saturating_add(length);
        if let Some(kind) = kind
            && let Some(chunk) = xva.get(before.clone())
        {
            let sum = kind.of(chunk);
            if let Some(body) = xva.get_mut(body.clone()).filter(|body| body.len() == sum.len()) {
                body.copy_from_slice(sum.as_bytes());
            }
        }
        at = body.end.saturating_add(BLOCK - 1) / BLOCK * BLOCK;
        before = body;
    }
}
