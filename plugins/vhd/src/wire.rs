//! Big-endian fields at fixed places, and the checksum.

/// The `N` bytes at `at`, which the caller knows to be inside of `raw`.
pub(crate) fn bytes_at<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

pub(crate) fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes_at(raw, at))
}

pub(crate) fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes_at(raw, at))
}

pub(crate) fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
    raw[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The complement of the sum of all bytes but the four of the checksum itself, which stands at `at`.
pub(crate) fn checksum(raw: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    !sum(&raw[..at]).wrapping_add(sum(&raw[at + 4..]))
}

/// Puts the checksum where it belongs.
pub(crate) fn seal(raw: &mut [u8], at: usize) {
    let sum = checksum(raw, at);
    put(raw, at, &sum.to_be_bytes());
}
