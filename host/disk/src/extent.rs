//! Ranges of a disk: what changed, what has to travel, what is asked for at a time.

use crate::digest::LEAF_SIZE;
use crate::vhd::{BLOCK_SIZE, Head};

/// A range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Extent {
    /// First byte behind it. No disk reaches beyond 2^64 bytes, so a range that claims to ends there.
    pub const fn end(self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    const fn between(offset: u64, end: u64) -> Self {
        Self { offset, length: end.saturating_sub(offset) }
    }

    /// The smallest range of whole `grain`s that holds it.
    pub(crate) fn widened(self, grain: u64) -> Self {
        let offset = self.offset - self.offset % grain;
        Self::between(offset, self.end().checked_next_multiple_of(grain).unwrap_or(u64::MAX))
    }
}

/// Ranges of a disk: ascending, disjoint, none empty, and none touching the next one.
///
/// Takes 16 bytes a range, so a disk of 2 TiB with every other 64 KiB in it takes 256 MiB; scattered
/// writes of a working day are far from that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extents {
    list: Vec<Extent>,
}

impl Extents {
    /// No range.
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// All of a disk of `disk_size` bytes.
    pub fn whole_disk(disk_size: u64) -> Self {
        [Extent { offset: 0, length: disk_size }].into_iter().collect()
    }

    /// What a VHD stream sets if its bitmaps are full, as those of XAPI's exports are: its blocks, up
    /// to the end of the disk.
    pub fn of_vhd(head: &Head) -> Self {
        let block_size = u64::from(head.block_size());
        let block = |number| Extent { offset: u64::from(number) * block_size, length: block_size };
        head.block_numbers().map(block).collect::<Self>().clipped(head.virtual_size())
    }

    /// Adds a range. Ranges that it overlaps or touches become one with it. Costs nothing to speak of
    /// behind the last range, and a move of all that is behind it elsewhere.
    pub fn insert(&mut self, extent: Extent) {
        if extent.length == 0 {
            return;
        }
        // Mostly it starts behind the last one, and then there is nothing to search.
        let behind = self.list.last().is_none_or(|last| last.offset <= extent.offset);
        let first = if behind { self.list.len().saturating_sub(1) } else { 0 };
        let from = first + self.list[first..].partition_point(|other| other.end() < extent.offset);
        let to = first + self.list[first..].partition_point(|other| other.offset <= extent.end());
        let touched = &self.list[from..to];
        let offset = touched.first().map_or(extent.offset, |first| first.offset.min(extent.offset));
        let end = touched.last().map_or(extent.end(), |last| last.end().max(extent.end()));
        self.list.splice(from..to, [Extent::between(offset, end)]);
    }

    /// The ranges, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Extent> {
        self.list.iter().copied()
    }

    /// How many ranges.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// There is no range.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether one of the ranges holds this byte.
    pub fn holds(&self, offset: u64) -> bool {
        let behind = self.list.partition_point(|extent| extent.offset <= offset);
        behind > 0 && offset < self.list[behind - 1].end()
    }

    /// Bytes in all ranges.
    pub fn total_bytes(&self) -> u64 {
        self.list.iter().map(|extent| extent.length).sum()
    }

    /// First byte behind the last range.
    pub fn end(&self) -> u64 {
        self.list.last().map_or(0, |last| last.end())
    }

    /// What is in the one or in the other.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all = [self.list.as_slice(), &other.list].concat();
        all.sort_unstable();
        all.into_iter().collect()
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Self::new();
        let mut others = other.iter().peekable();
        for extent in self.iter() {
            let mut at = extent.offset;
            while others.next_if(|other| other.end() <= at).is_some() {}
            while let Some(cut) = others.peek().copied().filter(|cut| cut.offset < extent.end()) {
                left.insert(Extent::between(at, cut.offset));
                at = cut.end();
                if at >= extent.end() {
                    break;
                }
                others.next();
            }
            left.insert(Extent::between(at, extent.end()));
        }
        left
    }

    /// The digest leaves that the ranges touch, ascending.
    pub fn leaf_numbers(&self) -> impl Iterator<Item = u64> {
        let mut next = 0;
        self.iter().flat_map(move |extent| {
            let first = next.max(extent.offset / LEAF_SIZE);
            next = extent.end().div_ceil(LEAF_SIZE);
            first..next
        })
    }

    /// What lies inside of a disk of `disk_size` bytes.
    #[must_use]
    pub fn clipped(mut self, disk_size: u64) -> Self {
        self.list.truncate(self.list.partition_point(|extent| extent.offset < disk_size));
        if let Some(last) = self.list.last_mut() {
            *last = Extent::between(last.offset, last.end().min(disk_size));
        }
        self
    }

    /// Widened to whole digest leaves of 64 KiB, the last one up to the end of the disk.
    #[must_use]
    pub fn to_leaves(&self, disk_size: u64) -> Self {
        self.widened(LEAF_SIZE, disk_size)
    }

    /// Widened to whole VHD blocks of 2 MiB, the last one up to the end of the disk.
    #[must_use]
    pub fn to_vhd_blocks(&self, disk_size: u64) -> Self {
        self.widened(BLOCK_SIZE.into(), disk_size)
    }

    /// Widened to whole multiples of `grain` bytes, the last one up to the end of the disk.
    #[must_use]
    pub fn widened(&self, grain: u64, disk_size: u64) -> Self {
        self.iter().map(|extent| extent.widened(grain)).collect::<Self>().clipped(disk_size)
    }

    /// The ranges in pieces of at most `most` bytes (0 counts as 1), each as long as it can be.
    pub fn split(&self, most: u32) -> impl Iterator<Item = Extent> {
        let mut cursor = Cursor::default();
        std::iter::from_fn(move || cursor.next(self, most))
    }

    /// The `index`th range.
    pub(crate) fn get(&self, index: usize) -> Option<Extent> {
        self.list.get(index).copied()
    }
}

impl FromIterator<Extent> for Extents {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut all = Self::new();
        extents.into_iter().for_each(|extent| all.insert(extent));
        all
    }
}

/// A place in a list of extents, for those who own the list and cannot keep an iterator over it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    index: usize,
    /// Bytes of that extent which are behind.
    within: u64,
}

impl Cursor {
    /// The next piece, of at most `most` bytes.
    pub(crate) fn next(&mut self, extents: &Extents, most: u32) -> Option<Extent> {
        let extent = extents.get(self.index)?;
        let left = extent.length - self.within;
        let piece = Extent { offset: extent.offset + self.within, length: left.min(u64::from(most.max(1))) };
        if piece.length == left {
            *self = Self { index: self.index + 1, within: 0 };
        } else {
            self.within += piece.length;
        }
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(list: &[(u64, u64)]) -> Extents {
        list.iter().map(|&(offset, length)| Extent { offset, length }).collect()
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let merged = extents(&[(10, 5), (20, 5), (15, 5), (100, 0), (40, 1)]);
        assert_eq!(merged.iter().map(|e| (e.offset, e.length)).collect::<Vec<_>>(), [(10, 15), (40, 1)]);
        assert_eq!((merged.total_bytes(), merged.end(), merged.count()), (16, 41, 2));
    }

    #[test]
    fn what_the_other_has_is_cut_out() {
        let whole = extents(&[(0, 100), (200, 100)]);
        let cut = |other: &[(u64, u64)]| whole.without(&extents(other));
        assert_eq!(cut(&[]), whole);
        assert_eq!(cut(&[(0, 300)]), Extents::new());
        assert_eq!(cut(&[(10, 10), (50, 200), (290, 50)]), extents(&[(0, 10), (20, 30), (250, 40)]));
        assert_eq!(cut(&[(100, 100)]), whole);
        assert_eq!(cut(&[(50, 300)]), extents(&[(0, 50)]));
    }

    #[test]
    fn leaves_that_two_ranges_touch_are_named_once() {
        let touched = extents(&[(0, 1), (LEAF_SIZE - 1, 2), (LEAF_SIZE + 10, 1), (5 * LEAF_SIZE, LEAF_SIZE)]);
        assert_eq!(touched.leaf_numbers().collect::<Vec<_>>(), [0, 1, 5]);
    }

    #[test]
    fn a_range_beyond_the_last_byte_ends_there() {
        let beyond = extents(&[(u64::MAX - 10, 100), (u64::MAX - 20, 5)]);
        assert_eq!(beyond.end(), u64::MAX);
        assert_eq!(beyond.to_leaves(1 << 40), Extents::new());
        assert_eq!(beyond.to_leaves(u64::MAX).total_bytes(), 65535);
    }

    #[test]
    fn widened_ranges_end_with_the_disk() {
        let disk_size = 3 * LEAF_SIZE + 512;
        let touched = extents(&[(1, 1), (2 * LEAF_SIZE, 1), (3 * LEAF_SIZE + 100, 1)]);
        assert_eq!(touched.to_leaves(disk_size), extents(&[(0, LEAF_SIZE), (2 * LEAF_SIZE, LEAF_SIZE + 512)]));
        assert_eq!(touched.to_vhd_blocks(disk_size), Extents::whole_disk(disk_size));
    }
}
