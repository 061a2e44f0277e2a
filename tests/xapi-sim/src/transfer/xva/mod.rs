//! `GET /export` and `PUT /import`: a VM as a tar of `ova.xml` and of a MiB after the other of its disks.

mod export;
mod import;
mod tar;

pub(crate) use export::export;
pub(crate) use import::import;

use crate::error::ApiError;
use twox_hash::XxHash64;

/// Bytes of a chunk, but for the last one of a disk.
const CHUNK: u64 = 1 << 20;
const METADATA: &str = "ova.xml";
const CHECKSUM: &str = ".xxhash";

fn checksum(chunk: &[u8]) -> String {
    format!("{:016X}", XxHash64::oneshot(0, chunk))
}

/// What xapi makes of an exception that it has no name for.
fn import_error(text: impl Into<String>) -> ApiError {
    ApiError::new("IMPORT_ERROR", [text.into()])
}
