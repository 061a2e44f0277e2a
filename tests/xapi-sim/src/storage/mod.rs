//! What lies on an SR: nodes in chains, change logs, and the formats on the wire.

pub(crate) mod cbt;
pub(crate) mod node;
pub(crate) mod qcow2;
pub(crate) mod vhd;

/// The unit in which VHD allocates, and in which exports are selected.
pub(crate) const BLOCK_SIZE: u64 = 2 << 20;

pub(crate) const SECTOR_SIZE: u64 = 512;
