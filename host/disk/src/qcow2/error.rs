//! What can be wrong with the head of a qcow2 stream. Every variant says where: `at` is the byte of the stream.

use std::io;

use super::{CLUSTER_BITS, MAX_HEAD_LENGTH, MAX_L1_ENTRIES, MAX_VIRTUAL_SIZE};

/// The bytes are not the head of a qcow2 stream that can be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what each means, `at` is always the byte of the stream")]
pub enum Qcow2Error {
    #[error("byte {at}: no qcow2 header here, it starts with {:?}", String::from_utf8_lossy(.found))]
    BadMagic { at: u64, found: [u8; 4] },
    #[error("byte {at}: version {found}, only 2 and 3 are known")]
    UnknownVersion { at: u64, found: u32 },
    #[error("byte {at}: the image has a backing file, so it does not tell all of the disk")]
    BackingFile { at: u64 },
    #[error("byte {at}: the image is encrypted (method {method})")]
    Encrypted { at: u64, method: u32 },
    #[error("byte {at}: the data is in another file")]
    ExternalDataFile { at: u64 },
    #[error("byte {at}: clusters are divided into subclusters, which are not known")]
    Subclusters { at: u64 },
    #[error("byte {at}: the image is marked as corrupt")]
    Corrupt { at: u64 },
    #[error("byte {at}: unknown incompatible features {bits:#x}")]
    UnknownFeatures { at: u64, bits: u64 },
    #[error("byte {at}: clusters of 2^{bits} bytes, only {CLUSTER_BITS:?} are known")]
    BadClusterSize { at: u64, bits: u32 },
    #[error("byte {at}: a disk of {size} bytes does not end with a sector")]
    OddSize { at: u64, size: u64 },
    #[error("byte {at}: a disk of {size} bytes, at most {MAX_VIRTUAL_SIZE} are read")]
    DiskTooLarge { at: u64, size: u64 },
    #[error("byte {at}: an L1 table of {entries} entries, at most {MAX_L1_ENTRIES} are read")]
    L1TooLong { at: u64, entries: u32 },
    #[error("byte {at}: an L1 table of {entries} entries is too short, the disk needs {needed}")]
    L1TooShort { at: u64, entries: u32, needed: u64 },
    #[error("byte {at}: byte {offset} is the start of no cluster")]
    Misaligned { at: u64, offset: u64 },
    #[error("byte {at}: a table at byte {offset}, which has passed; it would have to be read backwards")]
    TableBehind { at: u64, offset: u64 },
    #[error("byte {at}: a table at byte {offset} would end beyond byte {MAX_HEAD_LENGTH}")]
    TableTooFar { at: u64, offset: u64 },
    #[error("byte {at}: the L2 table at byte {offset} is named twice")]
    TableTwice { at: u64, offset: u64 },
    #[error("byte {at}: {entry:#018x} is no table entry, reserved bits are set")]
    BadEntry { at: u64, entry: u64 },
    #[error("byte {at}: a compressed cluster, which is not known")]
    Compressed { at: u64 },
    #[error("byte {at}: data at byte {offset}, in front of tables that end at byte {tables_end}")]
    DataBeforeTables { at: u64, offset: u64, tables_end: u64 },
    #[error("byte {at}: an entry for byte {offset} of the disk, which is beyond its end")]
    BeyondDisk { at: u64, offset: u64 },
}

/// The head of a stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The reader failed.
    #[error("reading the qcow2 head failed at byte {at}")]
    Io {
        /// Bytes read before.
        at: u64,
        /// What the reader said.
        source: io::Error,
    },
    /// The reader ended inside of the head.
    #[error("the stream ends at byte {at}, inside of the qcow2 head")]
    Truncated {
        /// Bytes read before.
        at: u64,
    },
    /// The bytes are not a qcow2 head.
    #[error(transparent)]
    Qcow2(#[from] Qcow2Error),
}
