//! Random streams, cuts and disks against the model.

use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use vmferry_disk::digest::{LEAF_SIZE, Leaf, LeafError, LeafHasher, leaf_count};
use vmferry_disk::vhd::{BLOCK_SIZE, DiskType, Piece, SECTOR_SIZE, Scan, Writer};

use crate::model::{self, Model, ModelBlock};

fn any_block(block_size: u32) -> impl Strategy<Value = ModelBlock> {
    let sectors = block_size as usize / SECTOR_SIZE;
    let set = prop_oneof![
        Just(vec![true; sectors]),
        Just(vec![false; sectors]),
        proptest::collection::vec(any::<bool>(), sectors),
    ];
    (prop_oneof![4 => Just(0), 1 => 1..9usize], set, any::<u64>()).prop_map(move |(gap, set, seed)| ModelBlock {
        number: 0,
        gap,
        set,
        data: model::pattern(block_size as usize, seed >> 8),
    })
}

/// Any shape: odd ends of the disk, blocks in any order, gaps, partial bitmaps.
fn any_model() -> impl Strategy<Value = Model> {
    (12..17u32, 1..100u64, 512..1600u64, 0..3u64, 0..200u32, any::<bool>())
        .prop_flat_map(|(shift, sectors, header_offset, table_sectors, spare_entries, dynamic)| {
            let block_size = 1 << shift;
            let virtual_size = sectors * 512;
            let blocks = virtual_size.div_ceil(u64::from(block_size)) as u32;
            let numbers: Vec<u32> = (0..blocks).collect();
            let order = subsequence(numbers, 0..=blocks as usize).prop_shuffle();
            let model = Model {
                virtual_size,
                block_size,
                header_offset,
                table_gap: (header_offset + 1024).next_multiple_of(512) - (header_offset + 1024) + table_sectors * 512,
                spare_entries,
                disk_type: if dynamic { DiskType::Dynamic } else { DiskType::Differencing },
                blocks: Vec::new(),
            };
            (Just(model), order).prop_flat_map(move |(model, order)| {
                let blocks = proptest::collection::vec(any_block(block_size), order.len());
                (Just(model), Just(order), blocks)
            })
        })
        .prop_map(|(mut model, order, mut blocks)| {
            for (block, number) in blocks.iter_mut().zip(order) {
                block.number = number;
            }
            model.blocks = blocks;
            model
        })
}

/// The shape that XAPI sends, with blocks of 64 KiB to keep it small.
fn any_export() -> impl Strategy<Value = Model> {
    any_model().prop_map(|mut model| {
        model.block_size = LEAF_SIZE as u32;
        model.virtual_size = 12 * LEAF_SIZE - 1024;
        model.blocks.truncate(8);
        for (number, block) in (0..).zip(&mut model.blocks) {
            block.number = number * 3 / 2;
            block.gap = 0;
            block.set = vec![true; 128];
            block.data = model::pattern(LEAF_SIZE as usize, u64::from(number) * 1000);
        }
        model
    })
}

/// Adjacent pieces joined, so that cuts do not show.
#[derive(Debug, Default, PartialEq)]
struct Runs(Vec<(u64, Vec<u8>)>);

impl Runs {
    fn add(&mut self, piece: Piece<'_>) {
        match self.0.last_mut() {
            Some((at, bytes)) if *at + bytes.len() as u64 == piece.offset => {
                bytes.extend(piece.bytes);
            }
            _ => self.0.push((piece.offset, piece.bytes.to_vec())),
        }
    }
}

/// What a careful receiver gets.
struct Received {
    leaves: Vec<(u64, Leaf)>,
    disk: Vec<u8>,
}

/// `None` if stream or digests are refused.
fn receive(stream: &[u8], onto: &[u8]) -> Option<Received> {
    let size = model::head_of(stream).ok()?.virtual_size();
    let mut disk = onto.to_vec();
    disk.resize(size as usize, 0);
    let mut hasher = LeafHasher::new(size);
    let mut leaves = Vec::new();
    let mut hashed = Ok(());
    model::scan(stream, stream.len(), |piece| {
        model::write_piece(&mut disk, piece);
        if hashed.is_ok() {
            hashed = hasher.feed(piece, &mut |leaf, digest| leaves.push((leaf, digest)));
        }
    })
    .ok()?;
    hashed.and(hasher.finish()).ok()?;
    Some(Received { leaves, disk })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_stream_does_to_a_disk_what_the_model_says(model in any_model()) {
        let stream = model.encode();
        let head = model::head_of(&stream).unwrap();
        prop_assert_eq!(head.stream_length(), stream.len() as u64);
        let mut numbers: Vec<u32> = model.blocks.iter().map(|block| block.number).collect();
        numbers.sort_unstable();
        prop_assert_eq!(head.block_numbers().collect::<Vec<_>>(), numbers);

        let mut expected = model::pattern(model.virtual_size as usize, 5);
        let mut disk = expected.clone();
        model.apply(&mut expected);
        let report = model::apply(&stream, &mut disk).unwrap();
        prop_assert!(disk == expected);
        prop_assert_eq!(report.blocks as usize, model.blocks.len());
        prop_assert_eq!(report.stream_length, stream.len() as u64);
        let mut data_bytes = 0;
        model::scan(&stream, 999, |piece| data_bytes += piece.bytes.len() as u64).unwrap();
        prop_assert_eq!(report.data_bytes, data_bytes);
    }

    #[test]
    fn the_cuts_between_feeds_do_not_matter(model in any_model(), cut in 1..5000usize) {
        let stream = model.encode();
        let mut whole = Runs::default();
        let mut pieces = Runs::default();
        let report = model::scan(&stream, stream.len(), |piece| whole.add(piece)).unwrap();
        prop_assert_eq!(model::scan(&stream, cut, |piece| pieces.add(piece)).unwrap(), report);
        prop_assert!(whole == pieces);
    }

    #[test]
    fn skipped_payload_leaves_the_report_as_it_is(model in any_model(), most in 1..70_000u64) {
        let stream = model.encode();
        let head = model::head_of(&stream).unwrap();
        let mut scan = Scan::new(&head);
        while scan.remaining() > 0 {
            let skipped = scan.opaque().min(most);
            scan.skip(skipped).unwrap();
            let at = stream.len() - scan.remaining() as usize;
            let fed = if scan.opaque() > 0 { 0 } else { 100.min(stream.len() - at) };
            scan.feed(&stream[at..at + fed], &mut |_| {}).unwrap();
        }
        let fed = model::scan(&stream, 4096, |_| {}).unwrap();
        prop_assert_eq!(scan.finish().unwrap(), fed);
    }

    #[test]
    fn a_cut_stream_is_not_a_success(model in any_model(), cut in any::<Index>()) {
        let stream = model.encode();
        let cut = cut.index(stream.len());
        let error = model::scan(&stream[..cut], 4096, |_| {}).unwrap_err();
        let truncated = matches!(error, vmferry_disk::vhd::VhdError::Truncated { at, .. } if at == cut as u64);
        prop_assert!(truncated, "{error}");
    }

    /// Whatever happens to a stream on its way, it is refused, or harmless, or its digests differ.
    #[test]
    fn a_changed_stream_never_passes_for_the_original(
        model in any_export(),
        changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let good = model.encode();
        let onto = model::pattern(model.virtual_size as usize, 77);
        let original = receive(&good, &onto).expect("the original is good");
        let mut bad = good.clone();
        // Half of the changes hit the metadata, which is a small part of the bytes.
        for (number, (at, value)) in changes.iter().enumerate() {
            let range = if number % 2 == 0 { good.len().min(4096) } else { good.len() };
            bad[at.index(range)] = *value;
        }
        if let Some(Received { leaves, disk }) = receive(&bad, &onto) {
            prop_assert!(disk == original.disk || leaves != original.leaves);
            for (leaf, digest) in leaves {
                let start = (leaf * LEAF_SIZE) as usize;
                let end = disk.len().min(start + LEAF_SIZE as usize);
                prop_assert_eq!(digest, Leaf::of(&disk[start..end]));
            }
        }
    }

    #[test]
    fn leaves_are_those_of_the_disk(
        sectors in 1..600usize,
        cuts in proptest::collection::vec(1..100_000usize, 1..8),
        zeroes in any::<(Index, Index)>(),
    ) {
        let mut disk = model::pattern(sectors * 512, 3);
        let (a, b) = (zeroes.0.index(disk.len()), zeroes.1.index(disk.len()));
        disk[a.min(b)..a.max(b)].fill(0);
        let mut hasher = LeafHasher::new(disk.len() as u64);
        let mut leaves = Vec::new();
        let mut at = 0;
        for cut in cuts.iter().cycle() {
            let end = disk.len().min(at + cut);
            let piece = Piece { offset: at as u64, bytes: &disk[at..end] };
            hasher.feed(piece, &mut |leaf, digest| leaves.push((leaf, digest))).unwrap();
            at = end;
            if at == disk.len() {
                break;
            }
        }
        hasher.finish().unwrap();
        let expected: Vec<_> =
            (0..).zip(disk.chunks(LEAF_SIZE as usize).map(Leaf::of)).collect();
        prop_assert_eq!(leaves.len() as u64, leaf_count(disk.len() as u64));
        prop_assert_eq!(leaves, expected);
    }

    #[test]
    fn a_leaf_that_is_partly_set_has_no_digest(model in any_model()) {
        let mut model = model;
        model.disk_type = DiskType::Differencing;
        let stream = model.encode();
        let mut covered = vec![false; model.virtual_size as usize];
        model::scan(&stream, stream.len(), |piece| {
            let at = piece.offset as usize;
            covered[at..at + piece.bytes.len()].fill(true);
        }).unwrap();
        let whole = covered.chunks(LEAF_SIZE as usize).all(|leaf| {
            leaf.iter().all(|set| *set) || leaf.iter().all(|set| !*set)
        });
        let got = receive(&stream, &[]);
        // Blocks that are smaller than a leaf, and not in order, are refused even if all are there.
        prop_assert!(got.is_none() || whole);
        if whole && model.block_size == LEAF_SIZE as u32 {
            prop_assert!(got.is_some());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_written_is_read(
        sectors in 1..20_000u64,
        used in proptest::collection::btree_set(0..5u32, 0..5),
    ) {
        let disk = model::pattern(sectors as usize * 512, sectors);
        let blocks = (disk.len() as u64).div_ceil(u64::from(BLOCK_SIZE));
        let used: Vec<u32> = used.into_iter().filter(|block| u64::from(*block) < blocks).collect();
        let writer = Writer::new(&model::new_disk(disk.len() as u64), &used).unwrap();
        let stream = model::render(&writer, &disk);
        let formula = 2048 + (4 * blocks).next_multiple_of(512)
            + used.len() as u64 * (512 + (2 << 20)) + 512;
        prop_assert_eq!(stream.len() as u64, formula);
        prop_assert_eq!(writer.head().stream_length(), formula);

        let mut read = vec![0; disk.len()];
        let report = model::apply(&stream, &mut read).unwrap();
        prop_assert_eq!((report.blocks as usize, report.partial_blocks), (used.len(), 0));
        let mut expected = vec![0; disk.len()];
        for block in used {
            let start = block as usize * BLOCK_SIZE as usize;
            let end = disk.len().min(start + BLOCK_SIZE as usize);
            expected[start..end].copy_from_slice(&disk[start..end]);
        }
        prop_assert!(read == expected);
    }
}

#[test]
fn a_hasher_names_the_byte_that_it_misses() {
    let mut hasher = LeafHasher::new(1 << 20);
    let piece = Piece { offset: LEAF_SIZE, bytes: &[1; 512] };
    hasher.feed(piece, &mut |_, _| {}).unwrap();
    assert_eq!(hasher.finish(), Err(LeafError::Partial { leaf: 1, missing: LEAF_SIZE + 512 }));
}
