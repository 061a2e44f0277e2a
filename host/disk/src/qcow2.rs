//! qcow2: where a stream has data, by the tables in front of the data, and files that are written anew.
//!
//! XAPI exports disks beyond VHD's 2 TiB in this format. All numbers are big-endian, every part but the header starts
//! with a cluster, and XAPI's clusters have 64 KiB. What it sends:
//!
//! ```text
//! byte 0         header: size of the disk and of a cluster, place of the L1 table
//! cluster 1      refcount table, then refcount blocks: not looked at
//! then           L1 table: 8 bytes an entry, the place of an L2 table or 0
//! then           L2 tables: 8 bytes an entry, the place of a cluster of data or 0; a cluster each
//! then           clusters of data: not read here
//! ```
//!
//! A stream cannot be read backwards. So [`Head`] takes any order and gaps, as long as the L1 table comes before the L2
//! tables, and all of them before the first cluster of data. It reads the bytes up to the end of the last table, not
//! one of what follows, and keeps ranges instead of tables.
//!
//! An entry of an L2 table is `0` where the disk has zeroes or, in a stream against a base, what the base has. A flag
//! (bit 0, since version 3) says that a cluster is zeroes whatever the base has. A stream against a base names
//! no backing file, so who asked for it has to know: [`Content`].

mod error;
mod head;
mod header;
mod writer;

pub use error::{HeadError, Qcow2Error};
pub use head::{Content, Head, HeadParser, Parsed};
pub use writer::Writer;

/// Bytes of the header that are looked at. Version 2 has 72, but its first cluster holds more.
pub const HEADER_SIZE: usize = 104;
/// Powers of two that a cluster's bytes may be: those that the format allows.
pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest disk whose tables are read: four times what XCP-ng makes in this format.
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// Most entries of an L1 table that are read. The largest disk has 2^17 in clusters of 64 KiB; 16 bytes of memory are kept
/// for each that is used.
pub const MAX_L1_ENTRIES: u32 = 1 << 20;
/// Furthest byte at which a table may end. The L2 tables of the largest disk, all of it in use, have 8 GiB in clusters of
/// 64 KiB, and its refcounts 2 GiB; who claims more would keep a reader waiting for nothing.
pub const MAX_HEAD_LENGTH: u64 = 16 << 30;
/// Most ranges that are kept, in 16 MiB. Where a disk has more, neighbours become one, with what lies between them.
pub const MAX_RANGES: usize = 1 << 20;
