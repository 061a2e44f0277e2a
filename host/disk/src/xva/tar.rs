//! Headers of tar members, as hosts write them: before POSIX, with nothing but name, length and checksum.

use super::BLOCK;

const NAME: std::ops::Range<usize> = 0..100;
const LENGTH: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
/// Where POSIX tars say that they are, and may have more of the name.
const MAGIC: std::ops::Range<usize> = 257..262;
const PREFIX: std::ops::Range<usize> = 345..500;

/// What a header says of its member.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) length: u64,
    /// It is a plain file.
    pub(super) is_file: bool,
}

/// The header of a file. Names longer than 100 bytes and lengths from 8 GiB do not occur.
pub(super) fn encode(name: &str, length: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut text = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    text(NAME.start, name);
    // Mode, owner and group, and below the date: hosts leave all of them at zero.
    for at in [100, 108, 116] {
        text(at, "0000000");
    }
    text(LENGTH.start, &format!("{length:011o}"));
    text(136, "00000000000");
    text(KIND, "0");
    let sum = sum(&block);
    block[CHECKSUM.start..CHECKSUM.end - 1].copy_from_slice(format!("{sum:07o}").as_bytes());
    block
}

/// Reads a header; `None` where there is none.
pub(super) fn decode(block: &[u8; BLOCK]) -> Option<Header> {
    if octal(&block[CHECKSUM])? != u64::from(sum(block)) {
        return None;
    }
    let has_prefix = &block[MAGIC] == b"ustar" && block[PREFIX.start] != 0;
    Some(Header {
        name: String::from_utf8_lossy(until_nul(&block[NAME])).into_owned(),
        length: octal(&block[LENGTH])?,
        is_file: matches!(block[KIND], 0 | b'0') && !has_prefix,
    })
}

/// Sum of all bytes, with spaces in place of the checksum.
fn sum(block: &[u8; BLOCK]) -> u32 {
    let spaces = CHECKSUM.len() as u32 * u32::from(b' ');
    let other = block.iter().enumerate().filter(|(at, _)| !CHECKSUM.contains(at));
    spaces + other.map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Digits, ended by a space or zero byte.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    if !digits.bytes().all(|byte| matches!(byte, b'0'..=b'7')) {
        return None;
    }
    u64::from_str_radix(digits, 8).ok()
}
