//! VHD streams: dynamic and differencing disks that are read and written strictly forward.
//!
//! All numbers are big-endian. What XAPI sends, and what [`Writer`] makes:
//!
//! ```text
//! byte 0         footer, 512 bytes (a copy of the last one)
//! byte 512       header, 1024 bytes
//! byte 1536      one sector of zeroes, the place of a parent locator
//! byte 2048      BAT: 4 bytes an entry, padded with ff to a sector
//! then           blocks: sector bitmap, then data; ascending, without gaps
//! end            footer, 512 bytes
//! ```
//!
//! [`Head`] and [`Scan`] take more than that: other positions of header and BAT, blocks in any
//! order, gaps between them (batmap, parent locators), other block sizes. Footer, header and BAT
//! have to come first, in this order, and the last footer directly behind the last block.
//!
//! An HTTP export answers 200 before it reads anything and ends by closing the connection, so
//! a cut stream looks like a complete one to an HTTP client. The structure checked here is what
//! tells them apart.

mod error;
mod footer;
mod head;
mod header;
mod scan;
pub(crate) mod wire;
mod writer;

pub use error::{HeadError, Part, VhdError, WriteError};
pub use footer::{DiskType, Footer, Geometry};
pub use head::{Head, HeadParser, Parsed};
pub use header::{Header, ParentLocator};
pub use scan::{Piece, Scan, ScanReport};
pub use writer::{NewDisk, Parent, StreamPart, Writer};

/// Bytes of a sector, the unit of every position in the BAT and of the sector bitmaps.
pub const SECTOR_SIZE: usize = 512;
/// Bytes of a footer.
pub const FOOTER_SIZE: usize = 512;
/// Bytes of a header.
pub const HEADER_SIZE: usize = 1024;
/// Bytes of a block as XAPI and nearly everybody else makes them: 2 MiB.
pub const BLOCK_SIZE: u32 = 2 << 20;
/// Smallest block that is read: its bitmap is one byte.
pub const MIN_BLOCK_SIZE: u32 = 4096;
/// Largest block that is read. Its bitmap (64 KiB) is kept in memory.
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;
/// Most BAT entries that are read: a disk of 2 TiB, the end of the format, has 2^20 blocks of
/// 2 MiB. Some tools make the table a little longer than the disk.
pub const MAX_TABLE_ENTRIES: u32 = (1 << 20) + (16 << 10);
/// Furthest position of the header or the BAT that is read. Metadata before the BAT is a few
/// parent locators, and the whole head is kept in memory.
pub const MAX_TABLE_OFFSET: u64 = 1 << 20;
