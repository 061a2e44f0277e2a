//! Disk bytes: VHD streams, digests and the transfer engines. Knows no XAPI.
//!
//! - [`vhd`]: the stream format. [`vhd::Head`] tells length and blocks from the first bytes,
//!   [`vhd::Scan`] checks the rest as it passes, [`vhd::Writer`] lays out new streams.
//! - [`digest`]: BLAKE3 leaves of 64 KiB, the table that keeps them, and its root.
//! - [`transfer`]: one source, many sinks, bytes checked on the way.
//!
//! `vhd` and the hashing in `digest` do no I/O; only [`vhd::Head::read`], the digest tables and
//! `transfer` touch the outside.

pub mod digest;
pub mod transfer;
pub mod vhd;
