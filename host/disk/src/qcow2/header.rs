//! The header: what the disk is, and where its L1 table stands.

use super::{CLUSTER_BITS, HEADER_SIZE, MAX_HEAD_LENGTH, MAX_L1_ENTRIES, MAX_VIRTUAL_SIZE, Qcow2Error};
use crate::vhd::SECTOR_SIZE;
use crate::vhd::wire::{bytes_at, u32_at, u64_at};

/// Bytes of an entry of either table.
pub(super) const ENTRY_SIZE: u64 = 8;

/// Refcounts may be wrong, which nobody reads here.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA_FILE: u64 = 1 << 2;
/// How compressed clusters are packed, which are refused one by one.
const COMPRESSION_TYPE: u64 = 1 << 3;
const SUBCLUSTERS: u64 = 1 << 4;

/// What is needed of the header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) version: u32,
    /// Bytes of a cluster.
    pub(super) cluster_size: u64,
    pub(super) virtual_size: u64,
    pub(super) l1_entries: u32,
    /// Byte at which the L1 table starts.
    pub(super) l1_offset: u64,
}

impl Header {
    pub(super) fn decode(raw: &[u8; HEADER_SIZE]) -> Result<Self, Qcow2Error> {
        let found: [u8; 4] = bytes_at(raw, 0);
        if found != *b"QFI\xfb" {
            return Err(Qcow2Error::BadMagic { at: 0, found });
        }
        let version = u32_at(raw, 4);
        if !matches!(version, 2 | 3) {
            return Err(Qcow2Error::UnknownVersion { at: 4, found: version });
        }
        if version == 3 {
            check_features(u64_at(raw, 72))?;
        }
        if u64_at(raw, 8) != 0 {
            return Err(Qcow2Error::BackingFile { at: 8 });
        }
        let bits = u32_at(raw, 20);
        if !CLUSTER_BITS.contains(&bits) {
            return Err(Qcow2Error::BadClusterSize { at: 20, bits });
        }
        let virtual_size = u64_at(raw, 24);
        if !virtual_size.is_multiple_of(SECTOR_SIZE as u64) {
            return Err(Qcow2Error::OddSize { at: 24, size: virtual_size });
        }
        if virtual_size > MAX_VIRTUAL_SIZE {
            return Err(Qcow2Error::DiskTooLarge { at: 24, size: virtual_size });
        }
        let method = u32_at(raw, 32);
        if method != 0 {
            return Err(Qcow2Error::Encrypted { at: 32, method });
        }
        let (cluster_size, entries, offset) = (1 << bits, u32_at(raw, 36), u64_at(raw, 40));
        let header = Self { version, cluster_size, virtual_size, l1_entries: entries, l1_offset: offset };
        if entries > MAX_L1_ENTRIES {
            return Err(Qcow2Error::L1TooLong { at: 36, entries });
        }
        let needed = virtual_size.div_ceil(header.l2_reach());
        if u64::from(entries) < needed {
            return Err(Qcow2Error::L1TooShort { at: 36, entries, needed });
        }
        if entries > 0 {
            header.check_table(40, offset, cluster_size)?;
        }
        Ok(header)
    }

    /// Bytes of disk that one L2 table stands for.
    pub(super) fn l2_reach(&self) -> u64 {
        self.cluster_size / ENTRY_SIZE * self.cluster_size
    }

    /// First byte behind the L1 table.
    pub(super) fn l1_end(&self) -> u64 {
        self.l1_offset + u64::from(self.l1_entries) * ENTRY_SIZE
    }

    /// Checks the place of a table, which byte `at` gives as `offset` and which must not start before `least`.
    pub(super) fn check_table(&self, at: u64, offset: u64, least: u64) -> Result<(), Qcow2Error> {
        if !offset.is_multiple_of(self.cluster_size) {
            return Err(Qcow2Error::Misaligned { at, offset });
        }
        if offset < least {
            return Err(Qcow2Error::TableBehind { at, offset });
        }
        // An L1 table may be longer than a cluster, but by less than matters here.
        if offset > MAX_HEAD_LENGTH - self.cluster_size {
            return Err(Qcow2Error::TableTooFar { at, offset });
        }
        Ok(())
    }
}

fn check_features(features: u64) -> Result<(), Qcow2Error> {
    let at = 72;
    let has = |feature| features & feature != 0;
    if has(CORRUPT) {
        return Err(Qcow2Error::Corrupt { at });
    }
    if has(EXTERNAL_DATA_FILE) {
        return Err(Qcow2Error::ExternalDataFile { at });
    }
    if has(SUBCLUSTERS) {
        return Err(Qcow2Error::Subclusters { at });
    }
    match features & !(DIRTY | COMPRESSION_TYPE) {
        0 => Ok(()),
        bits => Err(Qcow2Error::UnknownFeatures { at, bits }),
    }
}
