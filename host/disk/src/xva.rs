//! XVA: a VM as one file, which XCP-ng and XenServer export, and import by `xe vm-import`.
//!
//! ```text
//! ova.xml                     what the VM is, as an XML-RPC value
//! Ref:4/00000000              first MiB of a disk
//! Ref:4/00000000.xxhash       its XXH64, 16 upper-case hexadecimal digits
//! Ref:4/00000007              eighth MiB: those that are not there are zero
//! Ref:4/00000007.xxhash
//! Ref:9/00000000              the next disk: they come in the order of their names as text
//! …
//! ```
//!
//! It is a tar, ended by two blocks of zeroes. The first and the last chunk of a disk are always there, so the end of the last is the
//! end of the disk. Old exports have `.checksum` instead: SHA-1 in lower-case hexadecimal digits. A host that has sent nothing for some
//! seconds sends a chunk of no bytes, which uses a number up: the gap between two numbers says how many chunks are zero, the number
//! itself says nothing.
//!
//! [`Writer`] makes such a file, [`Reader`] reads one as it comes, and [`Archive`] reads parts of one that lies on a disk.
//! [`Entries`] decides for both what may follow what, and touches nothing.

mod archive;
mod checksum;
mod entries;
mod error;
mod reader;
mod tar;
mod writer;

pub use archive::{Archive, ArchivedDisk};
pub use checksum::Checksum;
pub use entries::{ChunkEntry, Entries, Entry};
pub use error::XvaError;
pub use reader::Reader;
pub use writer::Writer;

use bytes::Bytes;

/// Bytes of a chunk, but for the last of a disk: what hosts write.
pub const CHUNK: u64 = 1 << 20;
/// Most bytes of a chunk that is read. Hosts read chunks of any size, and never wrote any but [`CHUNK`].
pub const MAX_CHUNK: u64 = 16 << 20;
/// Most bytes of `ova.xml` that are read. A VM with a dozen of disks has a tenth of a MiB.
pub const MAX_METADATA: u64 = 16 << 20;
/// Bytes of a tar block.
pub const BLOCK: usize = 512;

/// The first member.
const METADATA: &str = "ova.xml";
/// A last member that exports before XenServer 4.1 have: all checksums once more.
const CHECKSUM_TABLE: &str = "checksum.xml";

/// A piece of a disk, of which the checksum was right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it lies on the disk in bytes.
    pub offset: u64,
    /// What is there.
    pub bytes: Bytes,
}

/// What a member of as many bytes takes in the tar.
fn padded(length: u64) -> u64 {
    length.next_multiple_of(BLOCK as u64)
}
