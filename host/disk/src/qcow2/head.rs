//! The head of a stream: its tables, turned into ranges as they come.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::header::{ENTRY_SIZE, Header};
use super::{HEADER_SIZE, HeadError, MAX_RANGES, Qcow2Error};
use crate::extent::{Extent, Extents};

/// Bytes asked of the reader at a time.
const READ_SIZE: usize = 64 << 10;

/// Bits of a table entry that give a place in the stream.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Nobody else uses the cluster: true of every entry of a stream without snapshots, and of no interest here.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster is zeroes, whatever its entry points at.
const ZERO: u64 = 1;

/// What a stream was asked for, which decides what an absent cluster means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A whole disk: what is absent is zeroes, and zeroes are nothing to list.
    Whole,
    /// What differs from a base: what is absent is as there, and what became zeroes is listed.
    Difference,
}

/// The head of a stream, fully checked: every table was read, and there is no data in front of any of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    virtual_size: u64,
    cluster_size: u64,
    extents: Extents,
    length: u64,
}

impl Head {
    /// Reads a head, and not a byte of what follows. There is no time limit here; the first byte of an export may take
    /// long, since XAPI attaches the disk after it has answered, and compares it with a base before it sends anything.
    pub async fn read(reader: &mut (impl AsyncRead + Unpin), content: Content) -> Result<Self, HeadError> {
        let mut parser = HeadParser::new(content);
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let at = parser.fed();
            let wanted = usize::try_from(parser.wanted()).map_or(buffer.len(), |wanted| wanted.min(buffer.len()));
            let read = reader.read(&mut buffer[..wanted]).await.map_err(|source| HeadError::Io { at, source })?;
            if read == 0 {
                return Err(HeadError::Truncated { at });
            }
            match parser.feed(&mut &buffer[..read])? {
                Parsed::More(more) => parser = more,
                Parsed::Head(head) => return Ok(head),
            }
        }
    }

    /// Size of the disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.cluster_size
    }

    /// The ranges of the disk that the stream sets, in whole clusters up to the end of the disk: those that hold data,
    /// or that may differ from the base. Where they are more than [`MAX_RANGES`], gaps between them are in them too.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Bytes from the start of the stream to the end of the last table.
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// Takes the bytes of a head in any pieces. Memory follows the entries that are in use and is bounded by
/// [`MAX_L1_ENTRIES`](super::MAX_L1_ENTRIES) and [`MAX_RANGES`], whatever a stream claims.
#[derive(Debug)]
pub struct HeadParser {
    content: Content,
    /// Bytes taken.
    at: u64,
    stage: Stage,
}

/// What [`HeadParser::feed`] came to.
#[derive(Debug)]
pub enum Parsed {
    /// The head goes on.
    More(HeadParser),
    /// The head is complete and good.
    Head(Head),
}

/// The part being read.
#[derive(Debug)]
enum Stage {
    /// The header, as far as it has come.
    Header([u8; HEADER_SIZE]),
    /// What lies in front of the L1 table, and the table.
    L1(L1),
    /// What lies in front of the next L2 table, and that table.
    L2(L2),
}

#[derive(Debug)]
struct L1 {
    header: Header,
    entry: [u8; ENTRY_SIZE as usize],
    tables: Vec<Table>,
}

#[derive(Debug)]
struct L2 {
    header: Header,
    entry: [u8; ENTRY_SIZE as usize],
    /// Those still to be read, the next one last.
    tables: Vec<Table>,
    /// First byte behind the last table.
    tables_end: u64,
    ranges: Ranges,
}

/// An L2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Table {
    /// Byte of the stream at which it starts.
    offset: u64,
    /// Its number in the L1 table.
    index: u32,
}

impl HeadParser {
    /// A parser that has seen nothing.
    pub fn new(content: Content) -> Self {
        Self { content, at: 0, stage: Stage::Header([0; HEADER_SIZE]) }
    }

    /// Bytes taken so far.
    pub fn fed(&self) -> u64 {
        self.at
    }

    /// Bytes that surely belong to the head and are still to come; more may be wanted then.
    pub fn wanted(&self) -> u64 {
        self.part().1 - self.at
    }

    /// Takes from the front of `input` what belongs to the head and leaves the rest there.
    pub fn feed(mut self, input: &mut &[u8]) -> Result<Parsed, Qcow2Error> {
        loop {
            let (start, end) = self.part();
            self.skip_to(start, input);
            while self.at < end {
                if input.is_empty() {
                    return Ok(Parsed::More(self));
                }
                self.take(input)?;
            }
            self.stage = match self.stage {
                Stage::Header(raw) => {
                    let header = Header::decode(&raw)?;
                    Stage::L1(L1 { header, entry: [0; 8], tables: Vec::new() })
                }
                Stage::L1(l1) => Stage::L2(l1.into_l2()?),
                Stage::L2(mut l2) => {
                    l2.tables.pop();
                    Stage::L2(l2)
                }
            };
            if let Stage::L2(l2) = &mut self.stage
                && l2.tables.is_empty()
            {
                let Header { virtual_size, cluster_size, .. } = l2.header;
                let extents = sorted(std::mem::take(&mut l2.ranges.list)).clipped(virtual_size);
                return Ok(Parsed::Head(Head { virtual_size, cluster_size, extents, length: self.at }));
            }
        }
    }

    /// First byte of the part being read, and first byte behind it.
    fn part(&self) -> (u64, u64) {
        match &self.stage {
            Stage::Header(_) => (0, HEADER_SIZE as u64),
            // Without entries it may claim to be anywhere.
            Stage::L1(L1 { header: Header { l1_entries: 0, .. }, .. }) => (self.at, self.at),
            Stage::L1(l1) => (l1.header.l1_offset, l1.header.l1_end()),
            Stage::L2(l2) => {
                let start = l2.tables.last().map_or(self.at, |table| table.offset);
                (start, start + l2.header.cluster_size)
            }
        }
    }

    fn skip_to(&mut self, start: u64, input: &mut &[u8]) {
        let gap = start.saturating_sub(self.at).min(input.len() as u64);
        *input = &input[gap as usize..];
        self.at += gap;
    }

    /// Takes some bytes of the part that the parser stands in, up to the end of one entry.
    fn take(&mut self, input: &mut &[u8]) -> Result<(), Qcow2Error> {
        let bytes: &mut [u8] = match &mut self.stage {
            Stage::Header(raw) => raw,
            Stage::L1(L1 { entry, .. }) | Stage::L2(L2 { entry, .. }) => entry,
        };
        // Tables start with a cluster, so entries are where multiples of their size are.
        let from = (self.at % bytes.len() as u64) as usize;
        let (taken, rest) = input.split_at((bytes.len() - from).min(input.len()));
        bytes[from..from + taken.len()].copy_from_slice(taken);
        *input = rest;
        self.at += taken.len() as u64;
        if !self.at.is_multiple_of(ENTRY_SIZE) {
            return Ok(());
        }
        let at = self.at - ENTRY_SIZE;
        match &mut self.stage {
            Stage::Header(_) => Ok(()),
            Stage::L1(l1) => l1.enter(at),
            Stage::L2(l2) => l2.enter(at, self.content),
        }
    }
}

impl L1 {
    /// Books the entry that is complete and stands at byte `at`.
    fn enter(&mut self, at: u64) -> Result<(), Qcow2Error> {
        let entry = u64::from_be_bytes(self.entry);
        if entry & !(OFFSET | COPIED) != 0 {
            return Err(Qcow2Error::BadEntry { at, entry });
        }
        let offset = entry & OFFSET;
        if offset == 0 {
            return Ok(());
        }
        let index = (at - self.header.l1_offset) / ENTRY_SIZE;
        let first = index * self.header.l2_reach();
        if first >= self.header.virtual_size {
            return Err(Qcow2Error::BeyondDisk { at, offset: first });
        }
        self.header.check_table(at, offset, self.header.l1_end())?;
        // Bounded by the limit on entries.
        self.tables.push(Table { offset, index: index as u32 });
        Ok(())
    }

    fn into_l2(self) -> Result<L2, Qcow2Error> {
        let Self { header, entry, mut tables } = self;
        tables.sort_unstable_by(|one, other| other.cmp(one));
        if let Some(twice) = tables.windows(2).find(|pair| pair[0].offset == pair[1].offset) {
            let at = header.l1_offset + u64::from(twice[0].index) * ENTRY_SIZE;
            return Err(Qcow2Error::TableTwice { at, offset: twice[0].offset });
        }
        let tables_end = tables.first().map_or(0, |last| last.offset + header.cluster_size);
        Ok(L2 { header, entry, tables, tables_end, ranges: Ranges::new(header.cluster_size, MAX_RANGES) })
    }
}

impl L2 {
    /// Books the entry that is complete and stands at byte `at`.
    fn enter(&mut self, at: u64, content: Content) -> Result<(), Qcow2Error> {
        let (entry, header) = (u64::from_be_bytes(self.entry), &self.header);
        let Some(table) = self.tables.last().filter(|_| entry != 0) else { return Ok(()) };
        if entry & COMPRESSED != 0 {
            return Err(Qcow2Error::Compressed { at });
        }
        let flags = if header.version == 2 { COPIED } else { COPIED | ZERO };
        if entry & !(OFFSET | flags) != 0 {
            return Err(Qcow2Error::BadEntry { at, entry });
        }
        let (offset, is_zero) = (entry & OFFSET, entry & ZERO != 0);
        if !offset.is_multiple_of(header.cluster_size) {
            return Err(Qcow2Error::Misaligned { at, offset });
        }
        if offset != 0 && offset < self.tables_end {
            return Err(Qcow2Error::DataBeforeTables { at, offset, tables_end: self.tables_end });
        }
        let number = (at - table.offset) / ENTRY_SIZE;
        let place = u64::from(table.index) * header.l2_reach() + number * header.cluster_size;
        if place >= header.virtual_size {
            return Err(Qcow2Error::BeyondDisk { at, offset: place });
        }
        let listed = match content {
            Content::Whole => offset != 0 && !is_zero,
            Content::Difference => offset != 0 || is_zero,
        };
        if listed {
            self.ranges.push(Extent { offset: place, length: header.cluster_size });
        }
        Ok(())
    }
}

/// Ranges in the order of the tables, which need not be that of the disk. Kept few: beyond `most` they are widened to
/// multiples of a `grain`, twice as large each time.
#[derive(Debug)]
struct Ranges {
    list: Vec<Extent>,
    grain: u64,
    most: usize,
}

impl Ranges {
    fn new(grain: u64, most: usize) -> Self {
        Self { list: Vec::new(), grain, most }
    }

    fn push(&mut self, extent: Extent) {
        let extent = extent.widened(self.grain);
        match self.list.last_mut() {
            Some(last) if (last.offset..=last.end()).contains(&extent.offset) => {
                last.length = last.length.max(extent.end() - last.offset);
            }
            _ => self.list.push(extent),
        }
        // Half of them have to go, so that the work of it is rare.
        let mut most = self.most;
        while self.list.len() > most {
            most = self.most / 2;
            self.grain *= 2;
            let extents = std::mem::take(&mut self.list).into_iter().map(|extent| extent.widened(self.grain));
            self.list = sorted(extents.collect()).iter().collect();
        }
    }
}

/// The ranges as [`Extents`], which are quickly made of sorted ones alone.
fn sorted(mut list: Vec<Extent>) -> Extents {
    list.sort_unstable();
    list.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_ranges_become_fewer_that_hold_them_all() {
        const CLUSTER: u64 = 64 << 10;
        let mut ranges = Ranges::new(CLUSTER, 8);
        let mut exact = Extents::new();
        // Backwards and with gaps of one to seven clusters.
        for n in (0..100).rev() {
            let extent = Extent { offset: (n * 4 + n % 3) * 2 * CLUSTER, length: CLUSTER };
            ranges.push(extent);
            exact.insert(extent);
            assert!(ranges.list.len() <= 8, "{ranges:?}");
        }
        let kept = sorted(ranges.list);
        assert!(exact.count() == 100 && kept.count() <= 8, "{kept:?}");
        assert!(exact.without(&kept).is_empty(), "{kept:?}");
    }
}
