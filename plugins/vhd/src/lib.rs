//! Dynamic VHD, the disk files of Hyper-V before VHDX and of many others, after the public specification: made, read, changed in place,
//! and checked.
//!
//! ```text
//!    0  copy of the footer: size, identity        2048  the BAT: for each block the sector where it is
//!  512  the header: where the BAT is                    blocks: sector bitmap, then data from a multiple of 4096 on
//! 1536  who wrote last: a sector of ours, which         a footer behind the last block
//!       no other reader looks at
//! ```
//!
//! As with `vmferry_vhdx`, payload passes nothing here, and blocks are whole: all bits of a sector bitmap are set. What VHD lacks is a log:
//! a change of the BAT is atomic for its sectors alone. Who changes it in place therefore writes down elsewhere, first, what will be
//! changed, and does it again after a crash: [`Image::commit`] may be done as often as it was interrupted. Until then the file shows
//! some blocks as they were and some as they will be, and each of them whole.

mod error;
mod footer;
mod header;
mod image;
mod space;
mod wire;

pub use error::VhdError;
pub use image::{Disk, Image, written_by};
pub use space::Space;
pub use vmferry_vhdx::{Block, Guid, MemoryFile, Storage, WriteIds};

/// The unit of places in the BAT, in bytes.
pub const SECTOR: u64 = 512;
/// Bytes of a block of the disks made here: what everybody makes.
pub const BLOCK_SIZE: u32 = 2 << 20;
/// The largest disk, in bytes: 2040 GiB, as Hyper-V and qemu have it.
pub const MAX_SIZE: u64 = 2040 << 30;
