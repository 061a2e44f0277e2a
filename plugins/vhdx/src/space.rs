//! Which MiB of a file are taken.

use crate::MIB;

/// One bit for each MiB of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    taken: Vec<u64>,
    /// Where the search for room goes on, in MiB: what is allocated in a row lies in a row, as far as it can.
    next: u64,
}

impl Space {
    /// Takes this range; whether any of it was taken before. The ends are rounded to whole MiB outwards.
    pub fn take(&mut self, offset: u64, length: u64) -> bool {
        let mut overlap = false;
        for unit in offset / MIB..(offset + length).div_ceil(MIB) {
            let (word, bit) = ((unit / 64) as usize, 1 << (unit % 64));
            if self.taken.len() <= word {
                self.taken.resize(word + 1, 0);
            }
            overlap |= self.taken[word] & bit != 0;
            self.taken[word] |= bit;
        }
        overlap
    }

    /// Whether the MiB with this number is taken.
    fn is_taken(&self, unit: u64) -> bool {
        self.taken.get((unit / 64) as usize).is_some_and(|word| word & 1 << (unit % 64) != 0)
    }

    /// Takes the next `length` bytes that are free in a row, behind the end of the file if need be; where they begin.
    pub fn allocate(&mut self, length: u64) -> u64 {
        let units = length.div_ceil(MIB);
        let mut start = self.next;
        while let Some(taken) = (start..start + units).rev().find(|unit| self.is_taken(*unit)) {
            start = taken + 1;
        }
        self.take(start * MIB, units * MIB);
        self.next = start + units;
        start * MIB
    }

    /// The end of what is taken.
    pub fn end(&self) -> u64 {
        let last = self.taken.iter().rposition(|word| *word != 0);
        last.map_or(0, |word| (64 * (word as u64 + 1) - u64::from(self.taken[word].leading_zeros())) * MIB)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_in_order_and_then_the_end_grows() {
        let mut space = Space::default();
        assert_eq!(space.end(), 0);
        assert!(!space.take(0, 3 * MIB) && !space.take(5 * MIB, 1) && !space.take(100 * MIB, 2 * MIB));
        assert_eq!(space.end(), 102 * MIB);
        assert!(space.take(101 * MIB, MIB));
        let places: Vec<u64> = (0..3).map(|_| space.allocate(2 * MIB) / MIB).collect();
        assert_eq!(places, [3, 6, 8]);
        let mut full = space.clone();
        let last = (0..60).map(|_| full.allocate(2 * MIB) / MIB).last();
        assert_eq!(last, Some(102 + 2 * (60 - 45 - 1)));
    }
}
