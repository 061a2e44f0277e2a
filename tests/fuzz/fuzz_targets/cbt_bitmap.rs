//! A bitmap of changed blocks for a disk of any size: refused, or its bits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_disk::cbt::{CBT_BLOCK_SIZE, bitmap_length, changed_extents};

fuzz_target!(|input: &[u8]| {
    let Some((size, bitmap)) = input.split_first_chunk::<8>() else { return };
    let size = u64::from_le_bytes(*size);
    assert_eq!(changed_extents(bitmap, size).is_ok(), bitmap_length(size) == bitmap.len() as u64);

    // A size that fits to the bitmap; what is left of the number decides how the disk ends.
    let blocks = bitmap.len() as u64 * 8;
    let disk_size = (blocks * CBT_BLOCK_SIZE).saturating_sub(size % (8 * CBT_BLOCK_SIZE));
    let changed = changed_extents(bitmap, disk_size).expect("the length is right");
    assert!(changed.end() <= disk_size);
    let mut set = vec![false; blocks as usize];
    for piece in changed.split(CBT_BLOCK_SIZE as u32) {
        assert!(piece.offset.is_multiple_of(CBT_BLOCK_SIZE));
        assert_eq!(piece.length, CBT_BLOCK_SIZE.min(disk_size - piece.offset));
        set[(piece.offset / CBT_BLOCK_SIZE) as usize] = true;
    }
    for (block, set) in set.into_iter().enumerate() {
        let bit = bitmap[block / 8] >> (7 - block % 8) & 1;
        let inside = (block as u64 * CBT_BLOCK_SIZE) < disk_size;
        assert_eq!(set, inside && bit == 1, "block {block}");
    }
});
