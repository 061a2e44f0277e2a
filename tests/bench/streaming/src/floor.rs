//! What nobody can leave out, alone and in the cache: the lower bound of a transfer that has to do it.

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::hint::black_box;
use vmferry_disk::digest::LEAF_SIZE;

/// Largest record of TLS.
const RECORD_SIZE: usize = 16 << 10;

/// Arguments.
#[derive(Args)]
pub(crate) struct Floor {
    /// What to do
    work: Work,
    /// With how many MiB
    #[arg(long)]
    mib: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Work {
    /// Decrypt and encrypt every record
    Aead,
    /// Hash every 64 KiB
    Blake3,
}

impl Floor {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.work {
            Work::Aead => aead(self.mib << 20).map_err(|_| anyhow!("AES-GCM failed")),
            Work::Blake3 => {
                blake3(self.mib << 20);
                Ok(())
            }
        }
    }
}

fn aead(bytes: u64) -> Result<(), ring::error::Unspecified> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32])?);
    let mut record = vec![0; RECORD_SIZE];
    for number in 0..bytes / RECORD_SIZE as u64 {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record)?;
        key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record)?;
        record.truncate(RECORD_SIZE);
    }
    black_box(record);
    Ok(())
}

fn blake3(bytes: u64) {
    let leaf = black_box(vec![7; LEAF_SIZE as usize]);
    for _ in 0..bytes / LEAF_SIZE {
        black_box(blake3::hash(black_box(&leaf)));
    }
}
