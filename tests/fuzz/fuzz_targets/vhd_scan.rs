//! A VHD stream from anywhere: refused, or scanned to the end that its head promised.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_disk::vhd::{Head, HeadParser, Parsed, Piece, Scan, ScanReport};

/// How an input is read; its first byte.
struct Mode {
    /// Repair the checksums of footer and header first, or nothing random would get past them.
    repair: bool,
    /// Skip the payload, so that a stream of megabytes needs an input of a few sectors.
    condensed: bool,
    /// Bytes given at a time.
    cut: usize,
}

impl Mode {
    fn of(byte: u8) -> Self {
        Self { repair: byte & 1 != 0, condensed: byte & 2 != 0, cut: 1 + 37 * usize::from(byte >> 2) }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, stream)) = input.split_first() else { return };
    let mode = Mode::of(*mode);
    let mut stream = stream.to_vec();
    if mode.repair {
        repair(&mut stream);
    }
    let Some((head, rest)) = parse(&stream, mode.cut) else { return };
    assert_eq!(head.block_numbers().count(), head.used_blocks() as usize);
    assert!(head.stream_length() >= head.raw().len() as u64 + 512);

    if mode.condensed {
        scan_condensed(&head, rest, mode.cut);
        return;
    }
    let cut = scan_whole(&head, rest, mode.cut);
    let whole = scan_whole(&head, rest, rest.len().max(1));
    assert_eq!(cut, whole);
    if let Some((report, bytes)) = whole {
        assert_eq!(report.stream_length, stream.len() as u64);
        assert_eq!(report.data_bytes, bytes.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    }
});

/// Makes the checksums of the first footer and of the header right, and the last footer equal.
fn repair(stream: &mut [u8]) {
    fix_checksum(stream, 0, 512, 64);
    let Some(offset) = stream.get(16..24) else { return };
    let offset = u64::from_be_bytes(offset.try_into().expect("eight bytes"));
    if let Ok(offset) = usize::try_from(offset) {
        fix_checksum(stream, offset, 1024, 36);
    }
    if stream.len() >= 2048 {
        let last = stream.len() - 512;
        stream.copy_within(..512, last);
    }
}

fn fix_checksum(stream: &mut [u8], offset: usize, length: usize, at: usize) {
    let part = offset.checked_add(length).and_then(|end| stream.get_mut(offset..end));
    let Some(part) = part else { return };
    part[at..at + 4].fill(0);
    let sum = part.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn parse(stream: &[u8], cut: usize) -> Option<(Head, &[u8])> {
    let mut parser = HeadParser::new();
    let mut at = 0;
    for bytes in stream.chunks(cut) {
        let mut left = bytes;
        let parsed = parser.feed(&mut left).ok()?;
        at += bytes.len() - left.len();
        match parsed {
            Parsed::More(more) => parser = more,
            Parsed::Head(head) => {
                assert_eq!(head.raw(), &stream[..at]);
                return Some((head, &stream[at..]));
            }
        }
    }
    None
}

/// The set bytes of the disk, adjacent ones joined, if the stream was good.
type Runs = Vec<(u64, Vec<u8>)>;

fn scan_whole(head: &Head, rest: &[u8], cut: usize) -> Option<(ScanReport, Runs)> {
    let mut scan = Scan::new(head);
    let mut runs = Runs::new();
    let mut sink = |piece: Piece<'_>| {
        assert!(!piece.bytes.is_empty());
        assert!(piece.offset + piece.bytes.len() as u64 <= head.virtual_size());
        match runs.last_mut() {
            Some((at, bytes)) if *at + bytes.len() as u64 == piece.offset => {
                bytes.extend_from_slice(piece.bytes);
            }
            _ => runs.push((piece.offset, piece.bytes.to_vec())),
        }
    };
    for bytes in rest.chunks(cut) {
        scan.feed(bytes, &mut sink).ok()?;
    }
    let report = scan.finish().ok()?;
    let mut places: Vec<_> = runs.iter().map(|(at, bytes)| (*at, bytes.len() as u64)).collect();
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
    Some((report, runs))
}

fn scan_condensed(head: &Head, mut rest: &[u8], cut: usize) {
    let mut scan = Scan::new(head);
    while scan.remaining() > 0 {
        let (before, opaque) = (scan.remaining(), scan.opaque());
        scan.skip(opaque).expect("what is opaque can be skipped");
        assert_eq!(scan.remaining(), before - opaque);
        if scan.opaque() > 0 || scan.remaining() == 0 {
            continue;
        }
        // Metadata ends at the latest with the bitmap of the largest block.
        let most = rest.len().min(cut).min(scan.remaining() as usize);
        if most == 0 {
            break;
        }
        // One byte at a time where payload might begin, since payload is not in the input.
        let taken = if most < 512 { 1 } else { 512 };
        if scan.feed(&rest[..taken], &mut |_| {}).is_err() {
            return;
        }
        rest = &rest[taken..];
    }
    let complete = scan.remaining() == 0;
    assert_eq!(scan.finish().is_ok(), complete);
}
