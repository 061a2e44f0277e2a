//! New qcow2 files: version 3, clusters of 64 KiB, zeroes left out.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use super::{CLUSTER_BITS, HEADER_SIZE, MAX_VIRTUAL_SIZE};
use crate::digest::is_zero;
use crate::image::{check_empty, check_place};
use crate::vhd::SECTOR_SIZE;

/// What everybody's clusters have.
const BITS: u32 = 16;
const CLUSTER: u64 = 1 << BITS;
const _: () = assert!(*CLUSTER_BITS.start() <= BITS && BITS <= *CLUSTER_BITS.end());

/// Entries of an L2 table, which is one cluster.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Refcounts in a block of one cluster: 16 bits each.
const REFCOUNTS: u64 = CLUSTER / 2;
/// An entry whose cluster is used once. All are.
const COPIED: u64 = 1 << 63;

/// Writes a disk into an empty file, in the order of the disk.
///
/// ```text
/// cluster 0      header, written last: what was not finished is no qcow2 file
/// cluster 1      L1 table
/// then           clusters of data; behind those of 512 MiB of disk their L2 table
/// then           refcount blocks, refcount table
/// ```
#[derive(Debug)]
pub struct Writer {
    file: File,
    size: u64,
    /// The first cluster of the file that is not used, where the file stands.
    free: u64,
    l1: Vec<u64>,
    /// The table that is being filled, and its number in the L1 table.
    l2: Vec<u64>,
    l2_number: u64,
    /// The cluster of the disk that was begun, and its bytes.
    open: u64,
    opened: Vec<u8>,
    /// First byte of the disk that may be put.
    next: u64,
}

impl Writer {
    /// A disk of `size` bytes, which are whole sectors of 512. `file` is empty.
    pub fn new(mut file: File, size: u64) -> io::Result<Self> {
        if size > MAX_VIRTUAL_SIZE || !size.is_multiple_of(SECTOR_SIZE as u64) {
            let why = format!("no qcow2 file is made for {size} bytes: whole sectors, at most {MAX_VIRTUAL_SIZE}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        check_empty(&file)?;
        let l1 = vec![0; size.div_ceil(L2_ENTRIES * CLUSTER) as usize];
        let free = 1 + clusters(l1.len() as u64 * 8);
        file.seek(SeekFrom::Start(free * CLUSTER))?;
        let l2 = vec![0; L2_ENTRIES as usize];
        Ok(Self { file, size, free, l1, l2, l2_number: 0, open: 0, opened: Vec::new(), next: 0 })
    }

    /// Takes a piece, behind all that were taken before. What nobody puts is zero.
    pub fn put(&mut self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        check_place(offset, bytes.len(), self.size)?;
        if offset < self.next {
            let why =
                format!("disk byte {offset} comes behind disk byte {}: a qcow2 file is written forward", self.next);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        while !bytes.is_empty() {
            let (cluster, within) = (offset / CLUSTER, (offset % CLUSTER) as usize);
            if !self.opened.is_empty() && cluster != self.open {
                self.close()?;
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(CLUSTER as usize - within));
            if taken.len() as u64 == CLUSTER {
                self.write_cluster(cluster, taken)?;
            } else {
                self.open = cluster;
                self.opened.resize(within, 0);
                self.opened.extend_from_slice(taken);
            }
            offset += taken.len() as u64;
            self.next = offset;
            bytes = rest;
        }
        Ok(())
    }

    /// Writes what makes a qcow2 file of it, waits until everything is on the storage, and gives the file back.
    pub fn finish(mut self) -> io::Result<File> {
        self.close()?;
        self.close_l2()?;
        let (table, table_clusters) = self.write_refcounts()?;
        self.file.seek(SeekFrom::Start(CLUSTER))?;
        self.file.write_all(&big_endian(&self.l1))?;
        self.file.sync_all()?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&self.header(table, table_clusters))?;
        self.file.sync_all()?;
        Ok(self.file)
    }

    /// Writes the cluster that was begun, if there is one.
    fn close(&mut self) -> io::Result<()> {
        let mut opened = std::mem::take(&mut self.opened);
        if !opened.is_empty() {
            opened.resize(CLUSTER as usize, 0);
            self.write_cluster(self.open, &opened)?;
        }
        opened.clear();
        self.opened = opened;
        Ok(())
    }

    /// Writes a cluster of the disk, if there is something in it.
    fn write_cluster(&mut self, cluster: u64, bytes: &[u8]) -> io::Result<()> {
        if is_zero(bytes) {
            return Ok(());
        }
        if cluster / L2_ENTRIES != self.l2_number {
            self.close_l2()?;
            self.l2_number = cluster / L2_ENTRIES;
        }
        self.l2[(cluster % L2_ENTRIES) as usize] = self.append(bytes)? | COPIED;
        Ok(())
    }

    /// Writes the L2 table, if there is something in it.
    fn close_l2(&mut self) -> io::Result<()> {
        if self.l2.iter().any(|entry| *entry != 0) {
            let table = big_endian(&self.l2);
            self.l1[self.l2_number as usize] = self.append(&table)? | COPIED;
            self.l2.fill(0);
        }
        Ok(())
    }

    /// Writes whole clusters behind all others. Where they start.
    fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let offset = self.free * CLUSTER;
        self.file.write_all(bytes)?;
        self.free += clusters(bytes.len() as u64);
        Ok(offset)
    }

    /// Writes refcount blocks and table, which count themselves. Where the table starts, and its clusters.
    fn write_refcounts(&mut self) -> io::Result<(u64, u64)> {
        let (mut blocks, mut table) = (0, 0);
        let used = loop {
            let used = self.free + blocks + table;
            let needed = (used.div_ceil(REFCOUNTS), clusters(used.div_ceil(REFCOUNTS) * 8));
            if needed == (blocks, table) {
                break used;
            }
            (blocks, table) = needed;
        };
        let mut entries = vec![0; (table * CLUSTER / 8) as usize];
        let mut block = vec![0; CLUSTER as usize];
        for number in 0..blocks {
            let counted = (used - number * REFCOUNTS).min(REFCOUNTS) as usize;
            block.chunks_exact_mut(2).enumerate().for_each(|(index, count)| {
                count.copy_from_slice(&u16::from(index < counted).to_be_bytes());
            });
            entries[number as usize] = self.append(&block)?;
        }
        Ok((self.append(&big_endian(&entries))?, table))
    }

    fn header(&self, refcount_table: u64, refcount_table_clusters: u64) -> Vec<u8> {
        let mut header = b"QFI\xfb".to_vec();
        let mut four = |number: u64| header.extend_from_slice(&(number as u32).to_be_bytes());
        // Version; no backing file: two halves of its place, and its name's length; bits of a cluster.
        [3, 0, 0, 0, BITS.into()].into_iter().for_each(&mut four);
        [self.size >> 32, self.size].into_iter().for_each(&mut four);
        // No encryption; the L1 table.
        [0, self.l1.len() as u64, 0, CLUSTER].into_iter().for_each(&mut four);
        [refcount_table >> 32, refcount_table, refcount_table_clusters].into_iter().for_each(&mut four);
        // No snapshots, and no features: 3 times 8 bytes. Refcounts of 2^4 bits; the header's length.
        [0; 9].into_iter().chain([4, HEADER_SIZE as u64]).for_each(&mut four);
        // No extension follows.
        header.extend_from_slice(&[0; 8]);
        header
    }
}

/// Clusters that `bytes` take.
fn clusters(bytes: u64) -> u64 {
    bytes.div_ceil(CLUSTER)
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
