//! What cannot be understood is refused, with its place.

use vmferry_disk::qcow2::{Content, MAX_HEAD_LENGTH, Qcow2Error};

use crate::model::{example, read};

/// Where the tables of [`example`] stand: a gap, the L1 table, and the L2 tables of numbers 2, 3 and 0, each behind a gap.
const L1: u64 = 1024;
const L2: [u64; 3] = [4 * 512, 6 * 512, 8 * 512];
const TABLES_END: u64 = 9 * 512;

/// The example with these bytes at `at`.
fn changed(at: u64, bytes: &[u8]) -> Result<(), Qcow2Error> {
    let mut stream = example().head();
    stream[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    read(&stream, Content::Whole, 100).map(|(head, _)| assert!(head.is_some(), "more is wanted"))
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    use Qcow2Error::*;
    assert_eq!(changed(0, b"QFI\xfb"), Ok(()));
    let (at, copied) = (L2[0], 1u64 << 63);
    let far = MAX_HEAD_LENGTH;
    for (place, bytes, expected) in [
        (0, &b"conectix"[..], BadMagic { at: 0, found: *b"cone" }),
        (4, &1u32.to_be_bytes(), UnknownVersion { at: 4, found: 1 }),
        (8, &112u64.to_be_bytes(), BackingFile { at: 8 }),
        (20, &8u32.to_be_bytes(), BadClusterSize { at: 20, bits: 8 }),
        (20, &22u32.to_be_bytes(), BadClusterSize { at: 20, bits: 22 }),
        (24, &1000u64.to_be_bytes(), OddSize { at: 24, size: 1000 }),
        (24, &(1u64 << 62).to_be_bytes(), DiskTooLarge { at: 24, size: 1 << 62 }),
        (32, &2u32.to_be_bytes(), Encrypted { at: 32, method: 2 }),
        (36, &u32::MAX.to_be_bytes(), L1TooLong { at: 36, entries: u32::MAX }),
        (36, &3u32.to_be_bytes(), L1TooShort { at: 36, entries: 3, needed: 4 }),
        (40, &1000u64.to_be_bytes(), Misaligned { at: 40, offset: 1000 }),
        (40, &0u64.to_be_bytes(), TableBehind { at: 40, offset: 0 }),
        (40, &far.to_be_bytes(), TableTooFar { at: 40, offset: far }),
        (72, &2u64.to_be_bytes(), Corrupt { at: 72 }),
        (72, &4u64.to_be_bytes(), ExternalDataFile { at: 72 }),
        (72, &16u64.to_be_bytes(), Subclusters { at: 72 }),
        (72, &0x69u64.to_be_bytes(), UnknownFeatures { at: 72, bits: 0x60 }),
        (L1, &(L2[2] | 1).to_be_bytes(), BadEntry { at: L1, entry: L2[2] | 1 }),
        (L1, &L1.to_be_bytes(), TableBehind { at: L1, offset: L1 }),
        (L1, &far.to_be_bytes(), TableTooFar { at: L1, offset: far }),
        (L1, &L2[0].to_be_bytes(), TableTwice { at: L1 + 16, offset: L2[0] }),
        (at, &(1u64 << 62).to_be_bytes(), Compressed { at }),
        (at, &(copied | 2).to_be_bytes(), BadEntry { at, entry: copied | 2 }),
        (at, &L2[2].to_be_bytes(), DataBeforeTables { at, offset: L2[2], tables_end: TABLES_END }),
        (L2[1] + 8 * 40, &TABLES_END.to_be_bytes(), BeyondDisk { at: L2[1] + 8 * 40, offset: 512 * 232 }),
    ] {
        assert_eq!(changed(place, bytes), Err(expected));
    }
    // What concerns only refcounts and clusters that are refused one by one.
    assert_eq!(changed(72, &9u64.to_be_bytes()), Ok(()));
}

#[test]
fn a_misaligned_cluster_and_an_l1_entry_beyond_the_disk_are_refused() {
    let mut image = example();
    image.cluster_bits = 12;
    image.size = 232 << 12;
    let mut stream = image.head();
    let l2 = stream.len() - 4096;
    stream[l2..l2 + 8].copy_from_slice(&(1u64 << 20 | 512).to_be_bytes());
    let refused = read(&stream, Content::Whole, 100).unwrap_err();
    assert_eq!(refused, Qcow2Error::Misaligned { at: l2 as u64, offset: 1 << 20 | 512 });
    assert_eq!(
        changed(24, &(64u64 * 512 * 3).to_be_bytes()),
        Err(Qcow2Error::BeyondDisk { at: L1 + 24, offset: 64 * 512 * 3 })
    );
}

#[test]
fn version_2_knows_no_flags() {
    let mut image = example();
    image.version = 2;
    let refused = read(&image.head(), Content::Whole, 100).unwrap_err();
    assert!(matches!(refused, Qcow2Error::BadEntry { entry: 1, .. }), "{refused}");
    assert_eq!(refused.to_string(), "byte 2064: 0x0000000000000001 is no table entry, reserved bits are set");
}
