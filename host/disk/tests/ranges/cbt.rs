//! Bitmaps of changed blocks against one flag for each block.

use proptest::prelude::*;
use vmferry_disk::cbt::{CBT_BLOCK_SIZE, CbtError, bitmap_length, changed_extents};

use crate::model::runs;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn changed_extents_are_the_runs_of_set_bits(
        mut changed in proptest::collection::vec(any::<bool>(), 0..300),
        beyond in any::<u8>(),
        short in 0..128u64,
    ) {
        let blocks = changed.len();
        let disk_size = (blocks as u64 * CBT_BLOCK_SIZE).saturating_sub(short * 512);
        // As the storage manager makes it: eight blocks a byte, the first one on top.
        let mut bitmap: Vec<u8> = changed
            .chunks(8)
            .map(|eight| eight.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit)) << (8 - eight.len()))
            .collect();
        if let Some(last) = bitmap.last_mut().filter(|_| blocks % 8 != 0) {
            *last |= beyond >> (blocks % 8);
        }
        let got = changed_extents(&bitmap, disk_size).unwrap();

        let last_length = disk_size - (blocks as u64).saturating_sub(1) * CBT_BLOCK_SIZE;
        let last_changed = changed.pop().unwrap_or_default();
        changed.push(last_changed);
        let mut expected = runs(&changed, CBT_BLOCK_SIZE);
        if let Some(run) = expected.last_mut().filter(|_| last_changed) {
            run.length -= CBT_BLOCK_SIZE - last_length;
        }
        prop_assert_eq!(got.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn any_bytes_give_ranges_of_the_disk_or_an_error(
        bitmap in proptest::collection::vec(any::<u8>(), 0..40),
        disk_size in prop_oneof![0..30_000_000u64, any::<u64>()],
    ) {
        match changed_extents(&bitmap, disk_size) {
            Ok(changed) => prop_assert!(changed.end() <= disk_size),
            Err(CbtError::WrongLength { expected, found, .. }) => {
                prop_assert_eq!((expected, found), (bitmap_length(disk_size), bitmap.len() as u64));
                prop_assert_ne!(expected, found);
            }
        }
    }
}
