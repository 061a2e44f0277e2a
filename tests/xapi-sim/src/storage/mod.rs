//! What lies on an SR: VHD nodes in chains, change logs, and the VHD format on the wire.

pub(crate) mod cbt;
pub(crate) mod node;
pub(crate) mod vhd;

/// The unit in which VHD allocates, and in which exports are selected.
pub(crate) const BLOCK_SIZE: u64 = 2 << 20;

pub(crate) const SECTOR_SIZE: u64 = 512;
