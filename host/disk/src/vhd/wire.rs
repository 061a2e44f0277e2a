//! Reading and writing big-endian fields at fixed places.

use super::SECTOR_SIZE;

/// The `N` bytes at `at`, which the caller knows to be inside of `raw`.
pub(crate) fn bytes_at<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

pub(super) fn u16_at(raw: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes_at(raw, at))
}

pub(crate) fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(raw, at))
}

pub(crate) fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes_at(raw, at))
}

pub(super) fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
    raw[at..at + bytes.len()].copy_from_slice(bytes);
}

/// One's complement of the sum of all bytes, the checksum's own four counted as zero.
pub(super) fn checksum(raw: &[u8], checksum_at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    !sum(raw).wrapping_sub(sum(&raw[checksum_at..checksum_at + 4]))
}

/// `bytes` rounded up to whole sectors.
pub(super) fn round_to_sector(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR_SIZE as u64)
}
