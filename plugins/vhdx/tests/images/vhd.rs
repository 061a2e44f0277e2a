//! What is VHD's alone.

use crate::model::{self, AnyImage};
use std::collections::BTreeMap;
use vmferry_vhd::{BLOCK_SIZE, Block, Guid, Image, MAX_SIZE, MemoryFile, SECTOR, Storage, WriteIds, written_by};

const BLOCK: u64 = BLOCK_SIZE as u64;

fn image(size: u64) -> Image<MemoryFile> {
    Image::make(MemoryFile::default(), size)
}

#[test]
fn what_cannot_be_a_disk_or_a_change_is_refused() {
    for size in [0, 1000, MAX_SIZE + SECTOR] {
        assert!(Image::create(MemoryFile::default(), size, 0, model::ids(0)).is_err());
    }
    let image = image(2 * BLOCK);
    for wrong in [[(2, Block::Zero), (3, Block::Zero)], [(1, Block::Zero), (0, Block::Zero)]] {
        assert!(image.place_blocks(&wrong).is_err());
    }
    for place in [Block::Present(513), Block::Present(0), Block::Present(MAX_SIZE * 2), Block::Partial(4096)] {
        assert!(image.place_blocks(&[(0, place)]).is_err(), "{place:?}");
    }
}

#[test]
fn a_check_names_what_overlaps_what_is_not_there_and_what_is_not_whole() {
    let image = image(4 * BLOCK);
    let changes = model::changes(&image, &BTreeMap::from([(0, Some(1)), (1, Some(2))]));
    image.place_blocks(&changes).expect("placed");
    let at = changes[1].1.offset().expect("a place");
    image.place_blocks(&[(2, Block::Present(at - SECTOR)), (3, Block::Present(1 << 40))]).expect("placed");
    let first = changes[0].1.offset().expect("a place");
    image.file().write_at(first - 100, &[0xfe]).expect("written");
    let length = image.file().length().expect("a length");
    let mut faults: Vec<String> = image.check().expect("read").iter().map(ToString::to_string).collect();
    faults.dedup();
    assert_eq!(
        faults,
        [
            format!("byte {at} of the file has two uses, one of them block 1"),
            format!("block 3 is at byte {}, and the file ends at byte {length}", 1u64 << 40),
            "block 0 is only in part in this file: another program wrote to it".to_owned(),
            "block 2 is only in part in this file: another program wrote to it".to_owned(),
        ]
    );
    assert!(image.space().is_err());
}

#[test]
fn data_is_aligned_behind_bitmaps_that_say_that_it_is_there() {
    let image = image(100 * BLOCK);
    for at in image.room(100) {
        let mut bitmap = [0; SECTOR as usize];
        image.file().read_at(at - SECTOR, &mut bitmap).expect("read");
        assert!(at % 4096 == 0 && bitmap == [0xff; SECTOR as usize]);
    }
}

#[test]
fn who_wrote_is_told_by_one_sector_and_by_the_footers() {
    let mut image = image(BLOCK);
    let WriteIds { data, .. } = model::ids(0);
    assert_eq!(written_by(image.file()).expect("read"), model::ids(0));
    image.stamp(Guid::new(7)).expect("stamped");
    assert_eq!(written_by(image.file()).expect("read"), WriteIds { file: Guid::new(7), data });
    image.change(&[], model::ids(1));
    assert_eq!(written_by(image.file()).expect("read"), model::ids(1));
    image.file().write_at(1536, &[0; 512]).expect("written");
    assert_eq!(written_by(image.file()).expect("read"), WriteIds { file: Guid::NIL, data: model::ids(1).data });
    assert!(Image::reopen(image.into_file()).stamp(Guid::new(8)).is_err());
}

#[test]
fn a_file_that_was_cut_off_or_is_too_small_for_its_disk_is_refused() {
    let image = image(2000 * BLOCK);
    image.file().set_length(4096).expect("cut");
    let told = Image::open(image.file()).expect_err("refused").to_string();
    assert_eq!(told, "the header at byte 512 is wrong: the file ends at byte 4096, within the BAT: it was cut off");
}

#[test]
fn a_footer_that_was_lost_comes_back_behind_the_blocks() {
    let mut image = image(2 * BLOCK);
    let changes = model::changes(&image, &BTreeMap::from([(0, Some(1)), (1, Some(2))]));
    image.change(&changes, model::ids(1));
    let content = model::content(&image);
    image.file().set_length(image.file().length().expect("a length") - SECTOR).expect("cut");
    let mut image = Image::reopen(image.into_file());
    image.change(&[], model::ids(2));
    assert_eq!(model::content(&image), content);
    let mut last = [0; 8];
    image.file().read_at(image.file().length().expect("a length") - SECTOR, &mut last).expect("read");
    assert_eq!(&last, b"conectix");
}
