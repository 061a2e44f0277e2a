//! What can be wrong with a file.

use crate::Guid;
use std::io;

/// A file that cannot be used, or something that cannot be done with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhdxError {
    /// The storage failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It does not begin as a VHDX file does.
    #[error("this is no VHDX file: it begins with {found:02x?}")]
    NoVhdx {
        /// Its first eight bytes.
        found: [u8; 8],
    },
    /// Neither of the two copies of a structure is whole.
    #[error("both copies of the {part} are damaged")]
    BothDamaged {
        /// Which structure.
        part: &'static str,
    },
    /// A structure that contradicts itself or the specification.
    #[error("the {part} at byte {at} is wrong: {problem}")]
    Wrong {
        /// Which structure.
        part: &'static str,
        /// Where it stands in the file.
        at: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// Something that a reader has to know and this one does not.
    #[error("the file needs {what} {id}, which is not known here")]
    Unknown {
        /// Kind of thing.
        what: &'static str,
        /// Which.
        id: Guid,
    },
    /// Changes wait in the file's log.
    #[error("the file was not closed after its last change: its log has to be replayed first")]
    LogNotEmpty,
    /// A disk that VHDX cannot have.
    #[error("VHDX has no disk of {size} bytes in blocks of {block_size}")]
    NoSuchDisk {
        /// Size asked for.
        size: u64,
        /// Block size asked for.
        block_size: u32,
    },
    /// A block that is not on the disk, or that does not come in its order.
    #[error("block {block} is not one of the {blocks} of the disk, or is out of order")]
    NoSuchBlock {
        /// Which.
        block: u64,
        /// How many there are.
        blocks: u64,
    },
    /// A block of which only some sectors are in this file. Only Hyper-V makes such.
    #[error("block {block} is only in part in this file: another program wrote to it")]
    PartialBlock {
        /// Which.
        block: u64,
    },
    /// Two things at one place.
    #[error("byte {at} of the file has two uses, one of them block {block}")]
    Overlap {
        /// Where.
        at: u64,
        /// Whose.
        block: u64,
    },
    /// A block that is said to be where the file is not.
    #[error("block {block} is at byte {at}, and the file ends at byte {length}")]
    OutOfFile {
        /// Which.
        block: u64,
        /// Where.
        at: u64,
        /// Where the file ends.
        length: u64,
    },
    /// The parent's description does not fit.
    #[error("the path of the parent is too long for its place: {path}")]
    PathTooLong {
        /// The path.
        path: String,
    },
}

impl VhdxError {
    pub(crate) fn wrong(part: &'static str, at: u64, problem: impl Into<String>) -> Self {
        Self::Wrong { part, at, problem: problem.into() }
    }
}
