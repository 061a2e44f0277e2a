//! VHDX, the disk files of Hyper-V, after the public specification [MS-VHDX]: made, read, changed in place with the format's own log,
//! replayed after a crash, and checked.
//!
//! ```text
//!   0        "vhdxfile", creator         from 1 MiB on, in whole MiB:
//!  64, 128 KiB   the two headers           the log
//! 192, 256 KiB   the two region tables     metadata: size, block size, sectors, identity, parent
//!                                          the BAT: where each block is
//!                                          blocks
//! ```
//!
//! Payload passes nothing here: a caller asks [`Space`] for room, has the bytes put there in its own way, syncs, and then has the
//! BAT say so, by [`Image::commit`]. What a block had before stays where it is until somebody asks for room again. Whole blocks only: a
//! child has a block or has not, so sector bitmaps are never made, and those that Hyper-V made are told, not read.
//!
//! [MS-VHDX]: https://learn.microsoft.com/openspecs/windows_protocols/ms-vhdx/

mod bat;
mod error;
mod guid;
mod header;
mod image;
mod log;
mod memory;
mod metadata;
mod region;
mod space;
mod storage;
mod wire;

pub use bat::Block;
pub use error::VhdxError;
pub use guid::Guid;
pub use image::{Image, WriteIds, recover, written_by};
pub use memory::MemoryFile;
pub use metadata::{Disk, Parent};
pub use space::Space;
pub use storage::Storage;

/// What everything in a file is aligned to.
pub const MIB: u64 = 1 << 20;
