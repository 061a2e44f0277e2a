//! A `chunked` stream from anywhere: refused, or the planned bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_disk::chunked::{Coverage, Plan, Scan, ScanReport};
use vmferry_disk::extent::{Extent, Extents};

const SECTOR: u64 = 512;

/// How an input is read: its first six bytes.
struct Mode {
    coverage: Coverage,
    /// Bytes given at a time.
    cut: usize,
    /// Take the high bytes of offsets and lengths for zero, or nothing random would be in place.
    repair: bool,
    plan: Plan,
}

impl Mode {
    /// The plan has up to four ranges of 1 to 8 sectors, with gaps of up to 7 before each.
    fn of([mode, cut, ranges @ ..]: [u8; 6]) -> Self {
        let coverage = if mode & 1 == 0 { Coverage::Whole } else { Coverage::Part };
        let mut extents = Extents::new();
        let mut next = 0;
        for range in &ranges[..usize::from(mode >> 2 & 3) + 1] {
            let extent =
                Extent { offset: next + u64::from(range >> 4 & 7) * SECTOR, length: u64::from(range % 8 + 1) * SECTOR };
            next = extent.end();
            extents.insert(extent);
        }
        let plan = Plan::new(next + SECTOR, extents, coverage).expect("sectors of the disk");
        Self { coverage, cut: usize::from(cut) * 7 + 1, repair: mode & 2 != 0, plan }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, stream)) = input.split_first_chunk::<6>() else { return };
    let mode = Mode::of(*mode);
    let mut stream = stream.to_vec();
    if mode.repair {
        repair(&mut stream);
    }
    let whole = scan(&mode.plan, &stream, stream.len().max(1));
    assert_eq!(scan(&mode.plan, &stream, mode.cut), whole);
    let Some((report, bytes)) = whole else { return };
    let planned = mode.plan.extents().total_bytes();
    assert_eq!(report.stream_length, stream.len() as u64);
    assert_eq!(report.data_bytes, bytes.len() as u64);
    assert_eq!(report.data_bytes + report.left_out_bytes, planned);
    assert!(mode.coverage == Coverage::Part || report.left_out_bytes == 0);
    assert_eq!(report.stream_length, report.data_bytes + 12 * (report.frames + 1));
});

/// Makes the numbers in the headers small. The lengths tell where the next header is.
fn repair(stream: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = stream.get_mut(at..at + 12) {
        header[2..8].fill(0);
        header[10..].fill(0);
        at += 12 + usize::from(u16::from_le_bytes([header[8], header[9]]));
    }
}

/// The report, and each byte with its place, if the stream was good.
fn scan(plan: &Plan, stream: &[u8], cut: usize) -> Option<(ScanReport, Vec<(u64, u8)>)> {
    let mut scan = Scan::new(plan);
    let mut bytes = Vec::new();
    let mut next = 0;
    for fed in stream.chunks(cut) {
        let taken = scan.feed(fed, &mut |piece| {
            assert!(!piece.bytes.is_empty());
            assert!(piece.offset >= next, "the disk's order");
            next = piece.offset + piece.bytes.len() as u64;
            let planned = |extent: Extent| extent.offset <= piece.offset && next <= extent.end();
            assert!(plan.extents().iter().any(planned), "inside of a planned range");
            bytes.extend((piece.offset..).zip(piece.bytes.iter().copied()));
        });
        taken.ok()?;
    }
    let report = scan.finish().ok()?;
    assert!(scan.is_complete());
    Some((report, bytes))
}
