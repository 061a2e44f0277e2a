//! A target: a deduplicating repository of recovery points in a bucket of Amazon S3, or of what speaks its protocol.

mod bucket;
mod storage;
mod store;
mod xml;

pub use bucket::{Addressing, Bucket, Lock, Mode};
pub use storage::{Object, Piece, Storage};
pub use store::Store;
