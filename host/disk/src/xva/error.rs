//! What can be wrong with an XVA. `at` is the byte of the file where the member begins.

use std::io;

use super::{MAX_CHUNK, MAX_METADATA};

/// The file is no XVA that can be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what each means, `at` is always the byte of the file")]
pub enum XvaError {
    #[error("reading the XVA failed at byte {at}")]
    Io { at: u64, source: io::Error },
    #[error("the XVA ends at byte {at}, before its last member is whole: it was cut off; copy or export it again")]
    Truncated { at: u64 },
    #[error("the file is compressed with {with}: unpack it first, for example `{command} < FILE > FILE.xva`")]
    Compressed { with: &'static str, command: &'static str },
    #[error("byte {at}: no header of a tar member: it is no XVA, or damaged here")]
    NoHeader { at: u64 },
    #[error("byte {at}: a tar member of {length} bytes, whose header says that it is no plain file")]
    NoFile { at: u64, length: u64 },
    #[error("byte {at}: {found:?} where {expected} belongs")]
    Unexpected { at: u64, found: String, expected: String },
    #[error("byte {at}: the XVA ends where {expected} belongs")]
    EndsEarly { at: u64, expected: String },
    #[error("byte {at}: ova.xml of {length} bytes, at most {MAX_METADATA} are read")]
    MetadataTooLong { at: u64, length: u64 },
    #[error("byte {at}: a chunk of {length} bytes, at most {MAX_CHUNK} are read")]
    ChunkTooLong { at: u64, length: u64 },
    #[error("byte {at}: chunk {name} would lie beyond any disk")]
    BeyondDisk { at: u64, name: String },
    #[error("byte {at}: the checksum of chunk {chunk} is wrong: the XVA is damaged; copy or export it again")]
    BadChecksum { at: u64, chunk: String },
}

impl XvaError {
    /// The error of a reader at this byte.
    pub(super) fn io(at: u64, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated { at },
            _ => Self::Io { at, source },
        }
    }
}
