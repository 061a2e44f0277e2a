//! What can be wrong with a file.

use std::io;

/// A file that cannot be used, or something that cannot be done with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhdError {
    /// The storage failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It has a footer neither at its beginning nor at its end.
    #[error("this is no VHD file: it begins with {found:02x?}")]
    NoVhd {
        /// Its first eight bytes.
        found: [u8; 8],
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
    /// A kind of VHD that is not read here.
    #[error("a VHD of the type {kind} is not read here, only dynamic ones are")]
    NotDynamic {
        /// 2 is a fixed one, 4 a differencing one.
        kind: u32,
    },
    /// A disk that VHD cannot have.
    #[error("VHD has no disk of {size} bytes: whole sectors and 2040 GiB are what it can have")]
    NoSuchDisk {
        /// Size asked for.
        size: u64,
    },
    /// A block that is not on the disk, that does not come in its order, or whose place cannot be said.
    #[error("block {block} is not one of the {blocks} of the disk, is out of order, or its place is none")]
    NoSuchBlock {
        /// Which.
        block: u64,
        /// How many there are.
        blocks: u64,
    },
    /// A block of which only some sectors are said to be there.
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
    /// The BAT cannot say where another block is.
    #[error("the file has no room for another block: VHD knows no place beyond 2 TiB")]
    Full,
}

impl VhdError {
    pub(crate) fn wrong(part: &'static str, at: u64, problem: impl Into<String>) -> Self {
        Self::Wrong { part, at, problem: problem.into() }
    }
}
