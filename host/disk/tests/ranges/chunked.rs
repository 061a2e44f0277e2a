//! The `chunked` framing: what was planned passes, and nothing else does.

use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;
use vmferry_disk::chunked::{
    ChunkedError, Coverage, END_MARKER, MAX_FRAME, Plan, PlanError, Scan, chunked_bytes, vhd_bytes,
};
use vmferry_disk::digest::LEAF_SIZE;
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::vhd::{BLOCK_SIZE, NewDisk, Writer};

use crate::model::{SECTOR, apply, encode, pattern};

const LEAVES: u64 = 24;
/// The last leaf is a short one.
const DISK_SIZE: u64 = LEAVES * LEAF_SIZE - 1024;

fn any_extents() -> impl Strategy<Value = Extents> {
    proptest::collection::vec(any::<bool>(), LEAVES as usize).prop_map(|leaves| {
        let leaf = |(index, _)| Extent { offset: index * LEAF_SIZE, length: LEAF_SIZE };
        (0..).zip(leaves).filter(|(_, set)| *set).map(leaf).collect::<Extents>().clipped(DISK_SIZE)
    })
}

fn plan(extents: &Extents, coverage: Coverage) -> Plan {
    Plan::new(DISK_SIZE, extents.clone(), coverage).expect("ranges of the disk")
}

fn scan(extents: &Extents, coverage: Coverage, stream: &[u8], cut: usize) -> Result<(Vec<u8>, u64), ChunkedError> {
    let mut onto = vec![0xee; DISK_SIZE as usize];
    let report = apply(Scan::new(&plan(extents, coverage)), stream, cut, &mut onto)?;
    assert_eq!(report.stream_length, stream.len() as u64);
    assert_eq!(report.data_bytes + report.left_out_bytes, extents.total_bytes());
    Ok((onto, report.left_out_bytes))
}

/// The disk after a stream that holds `extents`.
fn expected_disk(disk: &[u8], extents: &Extents) -> Vec<u8> {
    let mut expected = vec![0xee; disk.len()];
    for Extent { offset, length } in extents.iter() {
        let range = offset as usize..(offset + length) as usize;
        expected[range.clone()].copy_from_slice(&disk[range]);
    }
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_planned_stream_passes_however_it_is_cut(
        extents in any_extents(), frame in 1..400u32, cut in 1..300_000usize,
    ) {
        let disk = pattern(DISK_SIZE as usize);
        let stream = encode(&disk, extents.split(frame * 512));
        for coverage in [Coverage::Whole, Coverage::Part] {
            let (onto, left_out) = scan(&extents, coverage, &stream, cut).unwrap();
            prop_assert!(onto == expected_disk(&disk, &extents));
            prop_assert_eq!(left_out, 0);
        }
    }

    #[test]
    fn leaves_may_be_left_out_where_the_plan_says_so(
        extents in any_extents(), keep in proptest::collection::vec(any::<bool>(), LEAVES as usize),
        frame in 1..4u32, cut in 1..100_000usize,
    ) {
        let disk = pattern(DISK_SIZE as usize);
        let kept: Extents = extents
            .split(LEAF_SIZE as u32)
            .filter(|leaf| keep[(leaf.offset / LEAF_SIZE) as usize])
            .collect();
        let stream = encode(&disk, kept.split(frame * LEAF_SIZE as u32));
        let (onto, left_out) = scan(&extents, Coverage::Part, &stream, cut).unwrap();
        prop_assert!(onto == expected_disk(&disk, &kept));
        prop_assert_eq!(left_out, extents.total_bytes() - kept.total_bytes());
        prop_assert_eq!(scan(&extents, Coverage::Whole, &stream, cut).is_ok(), kept == extents);
    }

    #[test]
    fn a_cut_stream_is_not_a_success(extents in any_extents(), cut in any::<Index>()) {
        let disk = pattern(DISK_SIZE as usize);
        let stream = encode(&disk, extents.split(MAX_FRAME));
        let at = cut.index(stream.len());
        for coverage in [Coverage::Whole, Coverage::Part] {
            prop_assert_eq!(
                scan(&extents, coverage, &stream[..at], 4096),
                Err(ChunkedError::Truncated { at: at as u64 })
            );
        }
    }

    /// Flips anywhere: refused, or the bytes of the disk are in their place except for the flipped one.
    #[test]
    fn a_changed_header_never_puts_data_elsewhere(
        extents in any_extents(), at in any::<Index>(), value in 1..=255u8, in_part in any::<bool>(),
    ) {
        let coverage = if in_part { Coverage::Part } else { Coverage::Whole };
        let disk = pattern(DISK_SIZE as usize);
        let frames: Vec<Extent> = extents.split(LEAF_SIZE as u32).collect();
        let mut stream = encode(&disk, frames.iter().copied());
        // Mostly headers: they are a small part of the bytes.
        let header = at.index(frames.len() + 1);
        let start: u64 = frames[..header].iter().map(|frame| frame.length + 12).sum();
        stream[start as usize + at.index(12)] ^= value;
        if let Ok((onto, left_out)) = scan(&extents, coverage, &stream, 4096) {
            prop_assert!(in_part && left_out > 0, "a whole plan takes no other header");
            for (index, leaf) in onto.chunks(LEAF_SIZE as usize).enumerate() {
                let from = index * LEAF_SIZE as usize;
                let original = &disk[from..from + leaf.len()];
                prop_assert!(leaf == original || leaf.iter().all(|byte| *byte == 0xee), "leaf {index}");
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_on_plan(
        extents in any_extents(), stream in proptest::collection::vec(any::<u8>(), 0..200), cut in 1..50usize,
    ) {
        let _ = scan(&extents, Coverage::Whole, &stream, cut);
        let _ = scan(&extents, Coverage::Part, &stream, cut);
    }

    #[test]
    fn lengths_are_known_before(
        sectors in 1..40_000u64, list in proptest::collection::vec((0..40_000u64, 1..5_000u64), 0..12),
    ) {
        let disk_size = sectors * SECTOR;
        let extents: Extents = list
            .iter()
            .map(|&(from, length)| Extent { offset: from * SECTOR, length: length * SECTOR })
            .collect::<Extents>()
            .clipped(disk_size);
        let stream = encode(&pattern(disk_size as usize), extents.split(MAX_FRAME));
        prop_assert_eq!(chunked_bytes(&extents), stream.len() as u64);
        let plan = Plan::new(disk_size, extents.clone(), Coverage::Whole).unwrap();
        prop_assert_eq!(plan.stream_length(), Some(stream.len() as u64));
        prop_assert_eq!(plan.in_part().stream_length(), None);

        let blocks: Vec<u32> = extents
            .to_vhd_blocks(disk_size)
            .split(BLOCK_SIZE)
            .map(|block| (block.offset / u64::from(BLOCK_SIZE)) as u32)
            .collect();
        let writer = Writer::new(&new_disk(disk_size), &blocks).unwrap();
        prop_assert_eq!(vhd_bytes(disk_size, &extents), Some(writer.head().stream_length()));
        prop_assert_eq!(&Extents::of_vhd(writer.head()), &extents.to_vhd_blocks(disk_size));
    }
}

fn new_disk(virtual_size: u64) -> NewDisk {
    NewDisk { virtual_size, unique_id: Uuid::from_u128(1), creator: *b"tap\0", parent: None }
}

#[test]
fn vhd_ends_where_its_writer_does() {
    const TIB: u64 = 1 << 40;
    let scattered = |count: u64| -> Extents {
        (0..count).map(|block| Extent { offset: block * u64::from(BLOCK_SIZE), length: 512 }).collect()
    };
    let blocks: Vec<u32> = (0..(1 << 20)).collect();
    // A full disk of 2 TiB does not fit, since its metadata and bitmaps take room as well.
    for used in [0, 1, (1 << 20) - 300, (1 << 20) - 257, (1 << 20) - 256, (1 << 20) - 255, 1 << 20] {
        let written = Writer::new(&new_disk(2 * TIB), &blocks[..used]);
        let length = written.ok().map(|writer| writer.head().stream_length());
        assert_eq!(vhd_bytes(2 * TIB, &scattered(used as u64)), length, "{used} blocks");
    }
    assert_eq!(vhd_bytes(64 * TIB, &scattered(1)), None);
    assert_eq!(chunked_bytes(&scattered(1)), 12 + 512 + 12);
}

/// The figure of the design: 4 KiB writes scattered over a disk cost at most 1/16 of the 2 MiB way.
#[test]
fn scattered_writes_travel_as_leaves() {
    let disk_size = 64 << 30;
    let writes: Extents = (0..2000u64).map(|n| Extent { offset: n * 8000 * 4096, length: 4096 }).collect();
    let chunked = chunked_bytes(&writes.to_leaves(disk_size));
    let vhd = vhd_bytes(disk_size, &writes).unwrap();
    assert!(chunked * 16 <= vhd, "{chunked} against {vhd}");
}

#[test]
fn a_plan_is_inside_of_the_disk_and_of_whole_sectors() {
    let extents = |offset, length| [Extent { offset, length }].into_iter().collect::<Extents>();
    let plan = |offset, length| Plan::new(4096, extents(offset, length), Coverage::Whole).map(|_| ());
    assert_eq!(plan(3584, 512), Ok(()));
    assert_eq!(plan(3584, 1024), Err(PlanError::BeyondDisk { end: 4608, disk_size: 4096 }));
    assert_eq!(plan(0, u64::MAX), Err(PlanError::BeyondDisk { end: u64::MAX, disk_size: 4096 }));
    assert_eq!(plan(100, 512), Err(PlanError::NotSectors { offset: 100, length: 512 }));
    assert_eq!(plan(512, 100), Err(PlanError::NotSectors { offset: 512, length: 100 }));
}

/// Two ranges: leaves 2 to 4, and leaf 8.
fn two_ranges() -> Extents {
    [(2, 3), (8, 1)].map(|(from, count)| extent(from, count)).into_iter().collect()
}

fn extent(from: u64, leaves: u64) -> Extent {
    Extent { offset: from * LEAF_SIZE, length: leaves * LEAF_SIZE }
}

fn refusal(coverage: Coverage, frames: &[Extent]) -> ChunkedError {
    let stream = encode(&pattern(DISK_SIZE as usize), frames.iter().copied());
    scan(&two_ranges(), coverage, &stream, 1 << 20).expect_err("a damaged stream")
}

#[test]
fn each_damage_has_its_own_error() {
    let leaf = |leaf| leaf * LEAF_SIZE;
    let whole = |frames: &[Extent]| refusal(Coverage::Whole, frames);
    let out_of_place = |at, offset, expected| ChunkedError::OutOfPlace { at, offset, expected };
    let behind = |leaves: u64, frames: u64| leaves * LEAF_SIZE + frames * 12;

    assert_eq!(whole(&[]), ChunkedError::Missing { at: 0, offset: leaf(2) });
    assert_eq!(whole(&[extent(2, 3)]), ChunkedError::Missing { at: behind(3, 1), offset: leaf(8) });
    assert_eq!(whole(&[extent(3, 2)]), out_of_place(0, leaf(3), Some(leaf(2))));
    assert_eq!(whole(&[extent(8, 1), extent(2, 3)]), out_of_place(0, leaf(8), Some(leaf(2))));
    let repeated = [extent(2, 1), extent(2, 1)];
    assert_eq!(whole(&repeated), out_of_place(behind(1, 1), leaf(2), Some(leaf(3))));
    let surplus = [extent(2, 3), extent(8, 1), extent(9, 1)];
    assert_eq!(whole(&surplus), out_of_place(behind(4, 2), leaf(9), None));
    let long = [extent(2, 4)];
    let too_long = ChunkedError::TooLong { at: 0, offset: leaf(2), length: 4 * LEAF_SIZE, end: leaf(5) };
    assert_eq!(whole(&long), too_long);
    assert_eq!(whole(&[extent(2, 0)]), ChunkedError::EmptyFrame { at: 0, offset: leaf(2) });

    let part = |frames: &[Extent]| refusal(Coverage::Part, frames);
    assert_eq!(part(&[extent(5, 1)]), out_of_place(0, leaf(5), Some(leaf(2))));
    assert_eq!(part(&[extent(8, 1), extent(2, 1)]), out_of_place(behind(1, 1), leaf(2), None));
    assert_eq!(part(&[extent(9, 1)]), out_of_place(0, leaf(9), Some(leaf(2))));
    assert_eq!(part(&long), too_long);
    let half = |leaf| Extent { offset: leaf * LEAF_SIZE, length: LEAF_SIZE / 2 };
    let middle = LEAF_SIZE / 2 + 12;
    let left_out = |at, offset| ChunkedError::LeftOutInside { at, offset };
    assert_eq!(part(&[half(2)]), left_out(middle, leaf(2) + LEAF_SIZE / 2));
    assert_eq!(part(&[half(2), extent(8, 1)]), left_out(middle, leaf(2) + LEAF_SIZE / 2));
    let late = Extent { offset: leaf(3) + 512, length: 512 };
    assert_eq!(part(&[late]), left_out(0, leaf(3) + 512));
}

#[test]
fn nothing_may_follow_the_end_marker() {
    let stream = [END_MARKER.as_slice(), &[0]].concat();
    let mut scan = Scan::new(&plan(&Extents::new(), Coverage::Whole));
    assert!(!scan.is_complete());
    assert_eq!(scan.feed(&stream, &mut |_| {}), Err(ChunkedError::TrailingBytes { at: 12 }));
    assert!(scan.is_complete());
    assert_eq!(
        ChunkedError::OutOfPlace { at: 0, offset: 1, expected: None }.to_string(),
        "byte 0: a frame for disk byte 1, but nothing was to come"
    );
}
