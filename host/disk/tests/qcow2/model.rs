//! The oracle: a disk as a list of clusters, and a stream of it by the description of the format alone.

use vmferry_disk::extent::Extent;
use vmferry_disk::qcow2::{Content, Head, HeadParser, Parsed, Qcow2Error};

/// What an L2 table says of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cluster {
    Absent,
    /// Flagged as zeroes, with or without a place that is kept for it.
    Zero {
        placed: bool,
    },
    Data,
}

/// A disk, and how its stream is laid out.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    /// Bytes of the disk; its clusters are those that it has room for.
    pub(crate) size: u64,
    pub(crate) clusters: Vec<Cluster>,
    /// Clusters of something else in front of the L1 table and in front of each L2 table.
    pub(crate) gap: u64,
    /// How far the order of the L2 tables is turned from that of the disk.
    pub(crate) turned: usize,
}

impl Image {
    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    pub(crate) fn entries(&self) -> usize {
        self.cluster() as usize / 8
    }

    /// The stream up to its first cluster of data, and what is in its tables: byte by byte what a reader must take.
    pub(crate) fn head(&self) -> Vec<u8> {
        let cluster = self.cluster();
        let used = |table: &&[Cluster]| table.iter().any(|cluster| *cluster != Cluster::Absent);
        let tables: Vec<&[Cluster]> = self.clusters.chunks(self.entries()).collect();
        let l1_offset = (1 + self.gap) * cluster;
        let l1_end = (l1_offset + 8 * tables.len() as u64).next_multiple_of(cluster);
        let mut order: Vec<usize> = (0..tables.len()).filter(|index| used(&tables[*index])).collect();
        let turned = self.turned.checked_rem(order.len()).unwrap_or(0);
        order.rotate_left(turned);
        let place = |nth: usize| l1_end + (nth as u64 * (1 + self.gap) + self.gap) * cluster;
        let mut data = order.len().checked_sub(1).map_or(0, place) + cluster;

        let mut stream = vec![0xa5; l1_offset as usize];
        stream[..104].fill(0);
        let mut put = |at: usize, bytes: &[u8]| stream[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &(tables.len() as u32).to_be_bytes());
        put(40, &l1_offset.to_be_bytes());
        for index in 0..tables.len() {
            let offset = order.iter().position(|other| *other == index).map_or(0, |nth| place(nth) | 1 << 63);
            stream.extend(offset.to_be_bytes());
        }
        for (nth, index) in order.iter().enumerate() {
            stream.resize(place(nth) as usize, 0xa5);
            for state in tables[*index] {
                let mut placed = || {
                    data += cluster;
                    (data - cluster) | 1 << 63
                };
                let entry = match state {
                    Cluster::Absent => 0,
                    Cluster::Zero { placed: false } => 1,
                    Cluster::Zero { placed: true } => placed() | 1,
                    Cluster::Data => placed(),
                };
                stream.extend(entry.to_be_bytes());
            }
            stream.resize((place(nth) + cluster) as usize, 0);
        }
        stream
    }

    /// The ranges that a reader must find.
    pub(crate) fn expected(&self, content: Content) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for (state, offset) in self.clusters.iter().zip((0..).step_by(self.cluster() as usize)) {
            let listed = match state {
                Cluster::Absent => false,
                Cluster::Zero { .. } => content == Content::Difference,
                Cluster::Data => true,
            };
            let length = self.cluster().min(self.size - offset);
            match runs.last_mut() {
                _ if !listed => {}
                Some(run) if run.end() == offset => run.length += length,
                _ => runs.push(Extent { offset, length }),
            }
        }
        runs
    }
}

/// Feeds a stream in pieces of `cut` bytes. The head, if it is complete, and the bytes that were taken.
pub(crate) fn read(stream: &[u8], content: Content, cut: usize) -> Result<(Option<Head>, u64), Qcow2Error> {
    let mut parser = HeadParser::new(content);
    let mut taken = 0;
    for mut piece in stream.chunks(cut) {
        let length = piece.len();
        let parsed = parser.feed(&mut piece)?;
        taken += (length - piece.len()) as u64;
        match parsed {
            Parsed::More(more) => {
                assert!(piece.is_empty() && more.wanted() > 0 && more.fed() == taken);
                parser = more;
            }
            Parsed::Head(head) => return Ok((Some(head), taken)),
        }
    }
    Ok((None, taken))
}

/// An image of 64-byte tables: three of them in use and one not, with all kinds of clusters.
pub(crate) fn example() -> Image {
    let mut clusters = vec![Cluster::Absent; 64 * 3 + 40];
    for (at, state) in [
        (0, Cluster::Data),
        (1, Cluster::Data),
        (63, Cluster::Zero { placed: true }),
        (128, Cluster::Data),
        (130, Cluster::Zero { placed: false }),
        (191, Cluster::Data),
        (192, Cluster::Data),
        (231, Cluster::Data),
    ] {
        clusters[at] = state;
    }
    Image { version: 3, cluster_bits: 9, size: 512 * 232, clusters, gap: 1, turned: 1 }
}
