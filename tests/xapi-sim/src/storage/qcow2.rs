//! The qcow2 format: encoding as XAPI exports it. No I/O.
//!
//! An export is strictly sequential, all numbers big-endian, every part starts with a cluster of 64 KiB:
//!
//! ```text
//!  header, version 3, without a backing file whatever it was made against
//!  refcount table, eight bytes for each of the blocks
//!  refcount blocks, two bytes for each cluster of the stream
//!  L1 table, eight bytes for each 512 MiB of disk
//!  L2 tables of those that hold anything, eight bytes for each cluster
//!  clusters of data in the order of the disk, the last one padded
//! ```

use std::collections::BTreeSet;

pub(crate) const CLUSTER_SIZE: u64 = 64 << 10;
const CLUSTER_BITS: u32 = 16;
const ENTRIES: u64 = CLUSTER_SIZE / 8;
const REFCOUNTS: u64 = CLUSTER_SIZE / 2;
const HEADER_LENGTH: u32 = 112;
/// Nobody else refers to what an entry points at.
const COPIED: u64 = 1 << 63;

/// The stream up to the first cluster of data. `clusters` are the numbers of those that follow, in ascending order.
pub(crate) fn encode_head(size: u64, clusters: &BTreeSet<u64>) -> Vec<u8> {
    let l1_entries = size.div_ceil(CLUSTER_SIZE).div_ceil(ENTRIES);
    let l2_tables: BTreeSet<u64> = clusters.iter().map(|cluster| cluster / ENTRIES).collect();
    let l1_clusters = l1_entries.div_ceil(ENTRIES);
    let counted = 1 + l1_clusters + (l2_tables.len() + clusters.len()) as u64;
    let (table_clusters, blocks) = refcount_clusters(counted);
    let l1_start = 1 + table_clusters + blocks;
    let l2_start = l1_start + l1_clusters;
    let data_start = l2_start + l2_tables.len() as u64;

    let mut head = Part::default();
    head.bytes.extend(b"QFI\xfb");
    head.u32s(&[3]);
    head.u64s([0]); // no backing file
    head.u32s(&[0, CLUSTER_BITS]);
    head.u64s([size]);
    head.u32s(&[0, l1_entries as u32]); // no encryption
    head.u64s([l1_start * CLUSTER_SIZE, CLUSTER_SIZE]);
    head.u32s(&[table_clusters as u32, 0]); // no snapshots
    head.u64s([0; 4]); // where they would be; no features of any kind
    head.u32s(&[4, HEADER_LENGTH]); // refcounts of 2^4 bits
    head.pad();
    head.u64s((0..blocks).map(|block| (1 + table_clusters + block) * CLUSTER_SIZE));
    head.pad();
    let referenced = data_start + clusters.len() as u64;
    head.bytes.extend((0..referenced).flat_map(|_| 1u16.to_be_bytes()));
    head.pad();
    let pointers = |start: u64| (start..).map(|cluster| (cluster * CLUSTER_SIZE) | COPIED);
    head.table(l1_entries, l2_tables.iter().copied().zip(pointers(l2_start)));
    let mut data = pointers(data_start);
    for table in l2_tables {
        let first = table * ENTRIES;
        let used = clusters.range(first..first + ENTRIES).map(|cluster| cluster - first);
        head.table(ENTRIES, used.zip(data.by_ref()).collect::<Vec<_>>());
    }
    head.bytes
}

/// How many clusters the refcount table and the refcount blocks take, which count themselves as well.
fn refcount_clusters(others: u64) -> (u64, u64) {
    let (mut table, mut blocks) = (1, 1);
    loop {
        let needed = (others + table + blocks).div_ceil(REFCOUNTS);
        if needed <= blocks {
            return (table, blocks);
        }
        (table, blocks) = (needed.div_ceil(ENTRIES), needed);
    }
}

#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
}

impl Part {
    fn u32s(&mut self, values: &[u32]) {
        self.bytes.extend(values.iter().flat_map(|value| value.to_be_bytes()));
    }

    fn u64s(&mut self, values: impl IntoIterator<Item = u64>) {
        self.bytes.extend(values.into_iter().flat_map(u64::to_be_bytes));
    }

    /// Fills the cluster up with zeroes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(CLUSTER_SIZE as usize), 0);
    }

    /// A table with these (index, entry).
    fn table(&mut self, entries: u64, used: impl IntoIterator<Item = (u64, u64)>) {
        let mut table = vec![0; entries as usize];
        used.into_iter().for_each(|(index, entry)| table[index as usize] = entry);
        self.u64s(table);
        self.pad();
    }
}
