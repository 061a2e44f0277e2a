//! Any sequence of changes, and any damage.

use crate::model::{self, AnyImage, Content};
use proptest::prelude::*;
use std::collections::BTreeMap;
use vmferry_vhdx::{Block, Disk, Image, MIB, MemoryFile, Storage, recover};

fn delta(blocks: u64) -> impl Strategy<Value = BTreeMap<u64, Option<u8>>> {
    prop::collection::btree_map(0..blocks, prop::option::weighted(0.8, 1..=255u8), 0..6)
}

fn check_changes<I: AnyImage<File = MemoryFile>>(sectors: u64, deltas: &[BTreeMap<u64, Option<u8>>]) {
    let image = I::make(MemoryFile::default(), 6 * I::BLOCK + 512 * sectors);
    let room_for_two = image.room(2 * 7).into_iter().max().map(|last| last + I::BLOCK + 512);
    let mut image = I::make(MemoryFile::default(), image.size());
    let mut expected = Content::new();
    for (number, delta) in deltas.iter().enumerate() {
        let changes = model::changes(&image, delta);
        image.change(&changes, model::ids(number as u128));
        model::apply(&mut expected, delta);
        assert!(image.is_sound());
        image = I::reopen(image.at().clone());
        assert_eq!(model::content(&image), expected);
        assert_eq!(image.written_by(), model::ids(number as u128));
    }
    // The disk twice: what is there, and what a change needs before it counts.
    assert!(Some(image.at().length().expect("a length")) <= room_for_two);
}

fn damage(file: &MemoryFile, anywhere: &[(u64, u8)], places: &[u64], near: &[(usize, u64, u8)]) {
    let near = near.iter().map(|(place, offset, byte)| (places[place % places.len()] + offset, *byte));
    for (offset, byte) in anywhere.iter().copied().chain(near) {
        file.write_at(offset, &[byte]).expect("written");
    }
}

fn small<I: AnyImage<File = MemoryFile>>() -> MemoryFile {
    let mut image = I::make(MemoryFile::default(), 3 * I::BLOCK);
    let changes = model::changes(&image, &BTreeMap::from([(0, Some(1)), (1, None), (2, Some(3))]));
    image.change(&changes, model::ids(0));
    image.at().clone()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_changes_give_what_the_model_says_and_reuse_what_they_free(
        sectors in 1u64..20,
        deltas in prop::collection::vec(delta(7), 1..6),
    ) {
        check_changes::<Image<MemoryFile>>(sectors, &deltas);
        check_changes::<vmferry_vhd::Image<MemoryFile>>(sectors, &deltas);
    }

    #[test]
    fn no_damage_makes_a_reader_panic_or_never_end(
        anywhere in prop::collection::vec((0..6u64 << 20, any::<u8>()), 1..20),
        near in prop::collection::vec((0..5usize, 0..4096u64, any::<u8>()), 0..20),
    ) {
        let file = small::<Image<MemoryFile>>();
        damage(&file, &anywhere, &[64 << 10, 192 << 10, MIB, 2 * MIB, 3 * MIB], &near);
        let _ = recover(&file);
        if let Ok(image) = Image::open(&file) {
            let _ = (image.check(), image.space(), image.blocks(0..100));
        }
        let file = small::<vmferry_vhd::Image<MemoryFile>>();
        damage(&file, &anywhere, &[0, 512, 1536, 2048, 4096], &near);
        if let Ok(image) = vmferry_vhd::Image::open(&file) {
            let _ = (image.check(), image.space(), image.blocks(0..100));
        }
    }
}

#[test]
fn a_disk_of_several_sector_bitmaps_has_its_blocks_where_they_belong() {
    let mut image = Image::create(MemoryFile::default(), model::disk(13 << 30), model::ids(0), "test").expect("made");
    let far = [0, 4095, 4096, 8191, 8192, 8193, 13 * 1024 - 1];
    let delta: BTreeMap<u64, Option<u8>> = far.into_iter().zip((1..).map(Some)).collect();
    let changes = model::changes(&image, &delta);
    image.commit(&changes, model::ids(1)).expect("committed");
    assert_eq!(image.blocks(4094..4098).expect("blocks"), [Block::Absent, changes[1].1, changes[2].1, Block::Absent]);
    let expected: Content = far.into_iter().zip(1..).collect();
    assert_eq!(model::content(&image), expected);
}

#[test]
fn a_change_that_does_not_fit_in_the_log_is_made_in_parts() {
    // The BAT of 3 TiB has 6144 sectors, and each changes.
    const BLOCKS: u64 = 3 << 20;
    let mut image = Image::create(MemoryFile::default(), model::disk(3 << 40), model::ids(0), "test").expect("made");
    let changes: Vec<(u64, Block)> = (0..BLOCKS).step_by(500).map(|block| (block, Block::Zero)).collect();
    image.commit(&changes, model::ids(1)).expect("committed");
    let image = Image::open(image.into_file()).expect("opened");
    let found = (0..).zip(image.blocks(0..BLOCKS).expect("blocks")).filter(|(_, place)| *place != Block::Absent);
    assert!(found.eq(changes));
}

#[test]
fn what_cannot_be_a_disk_or_a_change_is_refused() {
    for wrong in [
        Disk { size: 0, ..model::disk(0) },
        Disk { size: 1000, ..model::disk(0) },
        Disk { size: (64 << 40) + 512, ..model::disk(0) },
        Disk { block_size: 512 << 10, ..model::disk(MIB) },
        Disk { block_size: 3 << 20, ..model::disk(MIB) },
        Disk { logical_sector: 520, ..model::disk(MIB) },
    ] {
        assert!(Image::create(MemoryFile::default(), wrong, model::ids(0), "test").is_err());
    }
    let image = Image::create(MemoryFile::default(), model::disk(2 * MIB), model::ids(0), "test").expect("made");
    for wrong in [[(2, Block::Zero), (3, Block::Zero)], [(1, Block::Zero), (0, Block::Zero)]] {
        assert!(image.place_blocks(&wrong).is_err());
    }
    assert!(image.place_blocks(&[(0, Block::Present(512))]).is_err());
}

#[test]
fn a_check_names_what_overlaps_and_what_is_not_there() {
    let image = Image::create(MemoryFile::default(), model::disk(4 * MIB), model::ids(0), "test").expect("made");
    let changes = model::changes(&image, &BTreeMap::from([(0, Some(1))]));
    let at = changes[0].1.offset().expect("a place");
    image.place_blocks(&changes).expect("placed");
    let wrong = [(1, Block::Present(at)), (2, Block::Partial(0)), (3, Block::Present(1 << 60))];
    image.place_blocks(&wrong).expect("placed");
    let faults: Vec<String> = image.check().expect("read").iter().map(ToString::to_string).collect();
    assert_eq!(
        faults,
        [
            format!("byte {at} of the file has two uses, one of them block 1"),
            "block 2 is only in part in this file: another program wrote to it".to_owned(),
            format!("block 3 is at byte {}, and the file ends at byte {}", 1u64 << 60, at + MIB),
        ]
    );
    assert!(image.space().is_err());
}
