//! Checksums of chunks.

use twox_hash::XxHash64;

/// How a chunk is summed, which the name of the member with its checksum tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// `.xxhash`: XXH64 with seed 0, 16 upper-case hexadecimal digits. What hosts write.
    XxHash,
    /// `.checksum`: SHA-1, 40 lower-case hexadecimal digits. What they wrote before.
    Sha1,
}

impl Checksum {
    pub(super) const ALL: [Self; 2] = [Self::XxHash, Self::Sha1];

    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::XxHash => ".xxhash",
            Self::Sha1 => ".checksum",
        }
    }

    /// Bytes of the member that holds it.
    pub fn length(self) -> u64 {
        match self {
            Self::XxHash => 16,
            Self::Sha1 => 40,
        }
    }

    /// The checksum of a chunk, as it is written.
    pub fn of(self, chunk: &[u8]) -> String {
        match self {
            Self::XxHash => format!("{:016X}", XxHash64::oneshot(0, chunk)),
            Self::Sha1 => {
                let sum = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, chunk);
                sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
            }
        }
    }
}
