//! Images that are like disks of VMs: holes, text, data that does not compress, and files that are there twice.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The grain of what changes.
const GRAIN: usize = 64 << 10;

/// Numbers that are always the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A piece of a file: text half of the time, else bytes that do not compress.
fn piece(random: &mut Random, bytes: &mut [u8]) {
    const WORDS: &[&str] =
        &["replica", "snapshot", "  disk = ", "\n", "error: ", "0x00000000", "volume ", "the ", "</key>", "2026-11-26"];
    if random.next().is_multiple_of(2) {
        bytes.chunks_mut(8).for_each(|eight| eight.copy_from_slice(&random.next().to_le_bytes()[..eight.len()]));
        return;
    }
    let mut at = 0;
    while at < bytes.len() {
        let number = random.next();
        let word = WORDS[number as usize % WORDS.len()].as_bytes();
        let length = word.len().min(bytes.len() - at);
        bytes[at..at + length].copy_from_slice(&word[..length]);
        at += length;
        if number.is_multiple_of(5) && at < bytes.len() {
            bytes[at] = (number >> 32) as u8;
            at += 1;
        }
    }
}

/// Makes an image in files of 64 KiB to 8 MiB.
pub(crate) fn make(path: &Path, mib: u64) -> anyhow::Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut out = BufWriter::new(File::create(path)?);
    let mut left = mib << 20;
    let mut kept = Vec::new();
    while left > 0 {
        let grains = 1 + random.next() as usize % 128;
        let mut bytes = vec![0; (grains * GRAIN).min(left as usize)];
        match random.next() % 10 {
            0..4 => {}
            4 if !kept.is_empty() => {
                let length = bytes.len().min(Vec::len(&kept));
                bytes[..length].copy_from_slice(&kept[..length]);
            }
            _ => {
                bytes.chunks_mut(GRAIN).for_each(|grain| piece(&mut random, grain));
                kept.clone_from(&bytes);
            }
        }
        out.write_all(&bytes)?;
        left -= bytes.len() as u64;
    }
    Ok(out.flush()?)
}

/// Makes an image of bytes that nothing compresses, and none of which are there twice.
pub(crate) fn noise(path: &Path, mib: u64) -> anyhow::Result<()> {
    let mut noise = blake3::Hasher::new().finalize_xof().take(mib << 20);
    std::io::copy(&mut noise, &mut File::create(path)?)?;
    Ok(())
}

/// Makes an image that differs in one grain in `in_how_many`.
pub(crate) fn change(from: &Path, to: &Path, in_how_many: u64) -> anyhow::Result<()> {
    std::fs::copy(from, to)?;
    let file = File::options().write(true).open(to)?;
    let mut random = Random(in_how_many.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut grain = vec![0; GRAIN];
    for at in 0..file.metadata()?.len() / GRAIN as u64 {
        if random.next().is_multiple_of(in_how_many) {
            piece(&mut random, &mut grain);
            file.write_all_at(&grain, at * GRAIN as u64)?;
        }
    }
    Ok(())
}
