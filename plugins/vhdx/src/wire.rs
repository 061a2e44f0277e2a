//! Little-endian fields at fixed places, and the checksum.

/// The `N` bytes at `at`, which the caller knows to be inside of `raw`.
pub(crate) fn bytes_at<const N: usize>(raw: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&raw[at..at + N]);
    bytes
}

pub(crate) fn u16_at(raw: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(raw, at))
}

pub(crate) fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(raw, at))
}

pub(crate) fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(raw, at))
}

pub(crate) fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
    raw[at..at + bytes.len()].copy_from_slice(bytes);
}

/// CRC-32C of `raw`, the four bytes of the checksum itself, which every structure has at its byte 4, counted as zero.
pub(crate) fn checksum(raw: &[u8]) -> u32 {
    let without = crc32c(crc32c(!0, &raw[..4]), &[0; 4]);
    !crc32c(without, &raw[8..])
}

/// Puts the checksum where it belongs.
pub(crate) fn seal(raw: &mut [u8]) {
    let sum = checksum(raw);
    put(raw, 4, &sum.to_le_bytes());
}

fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

/// By the reversed Castagnoli polynomial.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0x82f6_3b78 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli_s() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        // RFC 3720, B.4: 32 bytes of zeroes.
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_structure_with_its_checksum_gives_the_same_one() {
        let mut raw = *b"head....and what follows";
        seal(&mut raw);
        assert_eq!(checksum(&raw), u32_at(&raw, 4));
    }
}
