//! A repository of recovery points: chunks stored once, whatever points they are of, in a place that only keeps objects.
//!
//! A disk is cut into chunks of one size. A chunk is known by the BLAKE3 of its bytes, which the host computes; one that is there already is
//! not stored again, and one of zeroes not at all. Chunks are gathered in *packs*, written once. *Pages* say for a stretch
//! of a disk which entries of which packs it consists of; a *root* says where a disk's pages are, and a point has a root of its own for
//! each disk. So every point is whole by itself, and a delta costs the chunks and pages that changed.
//!
//! ```text
//! point ── root of a disk ── page ── run of chunks ──┐
//!                       └─── page ── run of chunks ──┤
//!                                                    ▼
//!              pack: table (form, length, digest of each entry) · entry · entry · entry
//! ```
//!
//! Whatever moves chunks moves handles: their bytes stay with the host. FORMAT.md beside this crate says what every object looks like;
//! [`draft`](self) has the reasons why hosts can share a repository without locks.

mod collect;
mod draft;
mod envelope;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod index;
mod map;
mod marks;
mod names;
mod points;
mod read;
mod repository;
mod segments;
mod storage;
mod table;
pub mod target;
mod wire;
mod write;

pub use names::TEMPORARY;
pub use repository::{DEFAULT_CHUNK_SIZE, Repository, Settings};
pub use storage::{Object, Piece, Storage};
