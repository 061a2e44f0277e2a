//! Digests of disks: one BLAKE3 leaf for each 64 KiB, a table of leaves, one root.
//!
//! A delta hashes only the leaves that it touches: the table of the new point is the base's table
//! with these replaced. The root stands for the whole disk.

mod leaf;
mod root;
mod table;

pub(crate) use leaf::is_zero;
pub use leaf::{LEAF_DIGEST, LEAF_SIZE, Leaf, LeafError, LeafHasher, leaf_count};
pub use root::{ParseRootError, Root};
pub use table::{DraftTable, Table, TableError, remove_abandoned_drafts};
