//! Streams that have to be refused, each with its own error.

use vmferry_disk::vhd::{DiskType, Head, HeadError, NewDisk, Parent, Scan, VhdError, WriteError, Writer};

use crate::model::{self, Model, ModelBlock};

/// Three blocks of 4 KiB, the BAT at byte 2048, the first block at 2560.
fn model() -> Model {
    let block =
        |number| ModelBlock { number, gap: 0, set: vec![true; 8], data: model::pattern(4096, u64::from(number)) };
    Model {
        virtual_size: 16384,
        block_size: 4096,
        header_offset: 512,
        table_gap: 512,
        spare_entries: 4,
        disk_type: DiskType::Dynamic,
        blocks: vec![block(0), block(1), block(3)],
    }
}

/// The sector in which the `index`th block starts.
fn sector(index: u32) -> u32 {
    5 + 9 * index
}

fn with_entry(block: usize, sector: u32) -> Result<Head, VhdError> {
    let mut stream = model().encode();
    stream[2048 + 4 * block..][..4].copy_from_slice(&sector.to_be_bytes());
    model::head_of(&stream)
}

#[test]
fn a_bat_that_cannot_be_true_is_refused() {
    assert_eq!(with_entry(0, sector(0)).unwrap().used_blocks(), 3);
    let error = |block, sector| with_entry(block, sector).unwrap_err();
    assert_eq!(error(5, 100), VhdError::BlockBeyondDisk { at: 2068, block: 5 });
    assert_eq!(error(1, 4), VhdError::BlockInHead { at: 2052, block: 1, offset: 2048 });
    assert_eq!(error(1, 0), VhdError::BlockInHead { at: 2052, block: 1, offset: 0 });
    let overlap = |at, block, other| VhdError::BlocksOverlap { at, block, other };
    assert_eq!(error(1, sector(0)), overlap(2052, 1, 0));
    assert_eq!(error(1, sector(0) + 8), overlap(2052, 1, 0));
    assert_eq!(error(0, sector(2) + 1), overlap(2048, 0, 3));
    // The last sector that 32 bits can name is far away, but it is a place.
    let far = with_entry(3, u32::MAX - 1).unwrap();
    assert_eq!(far.stream_length(), u64::from(u32::MAX - 1) * 512 + 512 + 4096 + 512);
}

#[test]
fn a_bat_shorter_than_the_disk_is_refused() {
    let mut short = model();
    short.spare_entries = 0;
    let mut stream = short.encode();
    // The size of a fifth block, in both footers.
    let longer = Model { virtual_size: 16384 + 512, ..short }.encode();
    stream[..512].copy_from_slice(&longer[..512]);
    let error = model::head_of(&stream).unwrap_err();
    assert_eq!(error, VhdError::TableTooShort { at: 540, entries: 4, needed: 5 });
}

#[test]
fn the_last_footer_has_to_equal_the_first() {
    let stream = model().encode();
    for at in [stream.len() - 512, stream.len() - 100, stream.len() - 1] {
        let mut bad = stream.clone();
        bad[at] ^= 0x20;
        let error = model::scan(&bad, 1000, |_| {}).unwrap_err();
        assert_eq!(error, VhdError::FooterMismatch { at: at as u64 });
    }
}

#[test]
fn bytes_behind_the_end_are_an_error() {
    let mut stream = model().encode();
    let at = stream.len() as u64;
    stream.push(0);
    for cut in [1, 7, stream.len()] {
        assert_eq!(model::scan(&stream, cut, |_| {}), Err(VhdError::TrailingBytes { at }));
    }
}

#[test]
fn only_payload_and_gaps_can_be_skipped() {
    let stream = model().encode();
    let head = model::head_of(&stream).unwrap();
    let mut scan = Scan::new(&head);
    assert_eq!(scan.opaque(), 0);
    assert_eq!(scan.skip(1), Err(VhdError::SkipTooFar { at: 2560, asked: 1, allowed: 0 }));
    scan.feed(&stream[2560..3072 + 100], &mut |_| {}).unwrap();
    assert_eq!(scan.opaque(), 3996);
    assert_eq!(scan.skip(3997), Err(VhdError::SkipTooFar { at: 3172, asked: 3997, allowed: 3996 }));
    scan.skip(3996).unwrap();
    assert_eq!((scan.opaque(), scan.remaining()), (0, stream.len() as u64 - 7168));
}

#[tokio::test]
async fn reading_a_head_takes_nothing_behind_the_bat() {
    let mut model = model();
    model.blocks[0].gap = 3;
    let stream = model.encode();
    let mut rest = stream.as_slice();
    let head = Head::read(&mut rest).await.unwrap();
    assert_eq!(head.raw(), &stream[..2560]);
    assert_eq!(rest, &stream[2560..]);
}

#[tokio::test]
async fn a_cut_head_says_where_it_ends() {
    let stream = model().encode();
    for cut in [0, 1, 511, 512, 1535, 1536, 2048, 2559] {
        let error = Head::read(&mut &stream[..cut]).await.unwrap_err();
        assert!(matches!(error, HeadError::Truncated { at } if at == cut as u64), "{error}");
    }
    let error = Head::read(&mut [0u8; 4096].as_slice()).await.unwrap_err();
    assert!(matches!(error, HeadError::Vhd(VhdError::BadCookie { at: 0, .. })), "{error}");
}

#[test]
fn a_stream_that_vhd_cannot_express_is_refused() {
    let disk = |virtual_size| model::new_disk(virtual_size);
    let error = |disk: &NewDisk, used: &[u32]| Writer::new(disk, used).unwrap_err();
    let small = disk(8 << 20);
    assert_eq!(error(&small, &[0, 4]), WriteError::BadBlock { block: 4, blocks: 4 });
    assert_eq!(error(&small, &[1, 0]), WriteError::BadBlock { block: 0, blocks: 4 });
    assert_eq!(error(&small, &[1, 1]), WriteError::BadBlock { block: 1, blocks: 4 });
    assert_eq!(error(&disk(513), &[]), WriteError::Vhd(VhdError::OddSize { at: 48, size: 513 }));
    for size in [4 << 40, 1 << 62, u64::MAX] {
        assert_eq!(error(&disk(size), &[]), WriteError::TooLarge { size, blocks: 0 });
    }
    let parent = |path: String| {
        let parent = Parent { unique_id: uuid::Uuid::nil(), timestamp: 0, path };
        NewDisk { parent: Some(parent), ..small.clone() }
    };
    assert!(Writer::new(&parent("x".repeat(256)), &[]).is_ok());
    for path in ["x".repeat(257), "€".repeat(170)] {
        assert_eq!(error(&parent(path.clone()), &[]), WriteError::ParentPathTooLong { path });
    }
}

/// 2040 GiB is what XAPI allows; a used 2 TiB would need positions of more than 32 bits.
#[test]
fn the_largest_disk_of_xapi_fits_with_all_of_its_blocks() {
    let blocks = |gib: u32| (0..gib * 512).collect::<Vec<_>>();
    let largest = Writer::new(&model::new_disk(2040 << 30), &blocks(2040)).unwrap();
    assert_eq!(largest.head().used_blocks(), 2040 * 512);
    let used = 2048 * 512;
    let too_large = Writer::new(&model::new_disk(2 << 40), &blocks(2048)).unwrap_err();
    assert_eq!(too_large, WriteError::TooLarge { size: 2 << 40, blocks: used });
    assert!(Writer::new(&model::new_disk(2 << 40), &blocks(1)).is_ok());
}
