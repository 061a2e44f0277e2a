//! Why bytes cannot be written down or read back.

/// Why bytes cannot be written down or read back. Which bytes, the caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// A sealed encoding was asked for without a key.
    #[error("the encoding is sealed, and no key was given")]
    NoKey,
    /// Decoded they are more than they may be.
    #[error("they decode to more than the {most} bytes that may come")]
    TooLong {
        /// What was allowed.
        most: usize,
    },
    /// They are not exactly one Zstandard frame.
    #[error("they are not one Zstandard frame")]
    NotOneFrame,
    /// Zstandard refuses them.
    #[error("they are a damaged Zstandard frame: {0}")]
    Zstd(&'static str),
    /// Too few to be sealed.
    #[error("{length} bytes are too few to be sealed ones")]
    SealedTooShort {
        /// How many there are.
        length: usize,
    },
    /// Sealed by something newer, or not sealed.
    #[error(
        "they are sealed in version {found}, and only version 1 is known: use a newer vmferry, or they are damaged"
    )]
    UnknownVersion {
        /// The version that they claim.
        found: u8,
    },
    /// They were changed, or it is not their key.
    #[error("they were changed since they were sealed, or they were sealed with another key")]
    Forged,
    /// Too many to be sealed at once.
    #[error("{length} bytes are too many to be sealed at once")]
    TooLongToSeal {
        /// How many there are.
        length: usize,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes, without which nothing can be sealed")]
    NoRandomness,
    /// The system gave no memory.
    #[error("there is no memory for Zstandard")]
    NoMemory,
}
