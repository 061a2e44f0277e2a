//! Disk bytes: VHD streams, digests and the transfer engines. Knows no XAPI.
//!
//! - [`vhd`]: the stream format. [`vhd::Head`] tells length and blocks from the first bytes,
//!   [`vhd::Scan`] checks the rest as it passes, [`vhd::Writer`] lays out new streams.
//! - [`qcow2`]: the head of qcow2 streams, which tells where disks beyond VHD have data, and a writer of files; [`image`]: raw files.
//! - [`extent`]: ranges of a disk; [`cbt`]: those that changed, by a bitmap of changed blocks.
//! - [`chunked`]: XAPI's raw framing for any ranges, its check, and [`chunked::Resync`], which leaves out what a
//!   target holds.
//! - [`chunks`]: the chunks of a disk that a store gets.
//! - [`restored`]: what a store gives back, as a stream.
//! - [`nbd`]: a client that reads ranges over several connections, and streams made of them.
//! - [`digest`]: BLAKE3 leaves of 64 KiB, the table that keeps them, and its root.
//! - [`encoding`]: how a store has pieces of a disk written down.
//! - [`part`]: one sink's part of a stream that feeds several.
//! - [`xva`]: a VM as one file, which hosts import and export.
//! - [`transfer`]: one source, many sinks, bytes checked on the way.
//!
//! `vhd`, `qcow2`, `xva::Entries`, `chunked::Scan` and the hashing in `digest` do no I/O; only [`vhd::Head::read`], [`qcow2::Head::read`], the digest tables,
//! `chunked::Resync`, `nbd` and `transfer` touch the outside.

pub mod cbt;
pub mod chunked;
pub mod chunks;
pub mod digest;
pub mod encoding;
pub mod extent;
mod framing;
pub mod image;
pub mod nbd;
pub mod part;
pub mod qcow2;
pub mod restored;
pub mod transfer;
pub mod vhd;
pub mod xva;
