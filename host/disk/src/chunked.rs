//! The `chunked` raw framing of XAPI's `import_raw_vdi`: any ranges of a disk, each with its place.
//!
//! ```text
//! frame   offset on the disk, u64 LE · length, u32 LE · that many bytes of the disk
//! …
//! end     12 zero bytes
//! ```
//!
//! Unlike VHD it knows no 2 TiB limit and no blocks of 2 MiB, and nothing in it tells what was to come:
//! a stream is checked against the [`Plan`] that it was made from.

mod error;
mod plan;
mod resync;
mod scan;

pub use error::{ChunkedError, PlanError};
pub use plan::{Coverage, Plan, chunked_bytes, vhd_bytes};
pub use resync::{Resync, ResyncCounts, ResyncError};
pub use scan::{Scan, ScanReport};

use crate::extent::Extent;

/// Bytes of a frame's header.
pub const FRAME_HEADER: usize = 12;
/// What ends a stream: the header of a frame at byte 0 without a byte in it.
pub const END_MARKER: [u8; FRAME_HEADER] = [0; FRAME_HEADER];
/// Longest frame that is made. The importer has one buffer of 2 MiB, which it fills and then writes to
/// the disk: a longer frame is cut there, and a shorter one costs it a write more.
pub const MAX_FRAME: u32 = 2 << 20;

/// The header of the frame that holds `extent`, which is at most `u32::MAX` bytes long.
pub fn frame_header(extent: Extent) -> [u8; FRAME_HEADER] {
    let mut header = END_MARKER;
    header[..8].copy_from_slice(&extent.offset.to_le_bytes());
    header[8..].copy_from_slice(&(extent.length as u32).to_le_bytes());
    header
}

/// What the header of a frame says.
fn parse_header(header: [u8; FRAME_HEADER]) -> Extent {
    let [a, b, c, d, e, f, g, h, length @ ..] = header;
    let offset = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    Extent { offset, length: u32::from_le_bytes(length).into() }
}
