//! Extents against a list of flags.

use proptest::prelude::*;
use vmferry_disk::digest::LEAF_SIZE;
use vmferry_disk::extent::{Extent, Extents};
use vmferry_disk::vhd::BLOCK_SIZE;

use crate::model::{SECTOR, runs, sectors};

/// Sectors of the disks here: three VHD blocks and a bit.
const SECTORS: usize = 3 * 4096 + 77;
const DISK_SIZE: u64 = SECTORS as u64 * SECTOR;

fn any_list() -> impl Strategy<Value = Vec<Extent>> {
    let near_a_leaf = (0..97u64, 0..3u64, 0..300u64).prop_map(|(leaf, from, length)| (leaf * 128 + from, length));
    let anywhere = (0..SECTORS as u64, 0..40u64);
    let extent = prop_oneof![near_a_leaf, anywhere].prop_map(|(from, length)| {
        let from = from.min(SECTORS as u64);
        Extent { offset: from * SECTOR, length: length.min(SECTORS as u64 - from) * SECTOR }
    });
    proptest::collection::vec(extent, 0..30)
}

fn collect(list: &[Extent]) -> Extents {
    list.iter().copied().collect()
}

fn flags(list: &[Extent]) -> Vec<bool> {
    let mut set = vec![false; SECTORS];
    for extent in list {
        set[(extent.offset / SECTOR) as usize..(extent.end() / SECTOR) as usize].fill(true);
    }
    set
}

/// Sets all of a grain of which a sector is set.
fn widen(set: &[bool], grain: u64) -> Vec<bool> {
    let grain = (grain / SECTOR) as usize;
    set.chunks(grain).flat_map(|grain| vec![grain.contains(&true); grain.len()]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn extents_are_the_runs_of_what_was_inserted(list in any_list()) {
        let extents = collect(&list);
        let expected = runs(&flags(&list), SECTOR);
        prop_assert_eq!(extents.total_bytes(), expected.iter().map(|run| run.length).sum::<u64>());
        prop_assert_eq!(extents.end(), expected.last().map_or(0, |run| run.end()));
        prop_assert_eq!((extents.count(), extents.is_empty()), (expected.len(), expected.is_empty()));
        prop_assert_eq!(extents.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn union_clip_and_widening_do_what_flags_do(a in any_list(), b in any_list(), size in 0..=SECTORS) {
        let (of_a, of_b) = (flags(&a), flags(&b));
        let either: Vec<bool> = of_a.iter().zip(&of_b).map(|(a, b)| *a || *b).collect();
        prop_assert_eq!(sectors(&collect(&a).union(&collect(&b)), SECTORS), either);

        let mut clipped = of_a.clone();
        clipped[size..].fill(false);
        prop_assert_eq!(sectors(&collect(&a).clipped(size as u64 * SECTOR), SECTORS), clipped);

        prop_assert_eq!(sectors(&collect(&a).to_leaves(DISK_SIZE), SECTORS), widen(&of_a, LEAF_SIZE));
        let blocks = widen(&of_a, BLOCK_SIZE.into());
        prop_assert_eq!(sectors(&collect(&a).to_vhd_blocks(DISK_SIZE), SECTORS), blocks);
    }

    #[test]
    fn pieces_are_the_extents_again_and_as_long_as_they_can_be(list in any_list(), most in 0..200_000u32) {
        let extents = collect(&list);
        let most = if most < 512 { most + 50_000 } else { most };
        let pieces: Vec<Extent> = extents.split(most).collect();
        prop_assert!(pieces.iter().all(|piece| piece.length > 0 && piece.length <= u64::from(most)));
        let fewest: u64 = extents.iter().map(|extent| extent.length.div_ceil(most.into())).sum();
        prop_assert_eq!(pieces.len() as u64, fewest);
        prop_assert!(pieces.windows(2).all(|pair| pair[0].end() <= pair[1].offset));
        prop_assert_eq!(collect(&pieces), extents);
    }
}

#[test]
fn a_piece_of_no_bytes_is_one_of_a_byte() {
    assert_eq!(Extents::whole_disk(3).split(0).count(), 3);
}
