//! Which entries of which packs somebody needs.

use crate::map::{Place, Root};
use crate::names::PackId;
use crate::repository::Repository;
use std::collections::HashMap;
use vmferry_plugin_api::Error;

/// A set of entries: a bit for each, so that the entries of 10 TiB in chunks of 64 KiB take less than 50 MiB.
#[derive(Default)]
pub(crate) struct Marks {
    packs: HashMap<PackId, Box<[u64]>>,
}

impl Marks {
    /// Marks `length` entries from `first` on. True if the first was not marked before.
    pub(crate) fn mark(&mut self, first: Place, length: u16) -> bool {
        let words = usize::from(first.pack.entries()).div_ceil(64);
        let bits = self.packs.entry(first.pack).or_insert_with(|| vec![0; words].into());
        let mut fresh = false;
        for entry in (first.entry..first.entry.saturating_add(length)).rev() {
            // Maps never name an entry that its pack does not have.
            if let Some(word) = bits.get_mut(usize::from(entry) / 64) {
                let bit = 1 << (entry % 64);
                fresh = *word & bit == 0;
                *word |= bit;
            }
        }
        fresh
    }

    pub(crate) fn has(&self, pack: &PackId, entry: usize) -> bool {
        let word = self.packs.get(pack).and_then(|bits| bits.get(entry / 64));
        word.is_some_and(|word| word & 1 << (entry % 64) != 0)
    }

    /// How many entries of a pack are marked.
    pub(crate) fn count(&self, pack: &PackId) -> usize {
        let bits = self.packs.get(pack).map_or(&[][..], |bits| bits);
        bits.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The packs that have marks.
    pub(crate) fn packs(&self) -> impl Iterator<Item = &PackId> {
        self.packs.keys()
    }
}

impl Repository<'_> {
    /// Marks everything that a disk needs. Pages that were marked before were walked then.
    pub(crate) fn mark_disk(&self, root: &Root, marks: &mut Marks) -> Result<(), Error> {
        let mut fresh = root.clone();
        for page in &mut fresh.pages {
            *page = page.filter(|place| marks.mark(*place, 1));
        }
        let all = fresh.pages.len();
        self.each_page(&fresh, 0..all, |_, page| {
            for run in page {
                marks.mark(run.first, run.length);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;

    #[test]
    fn entries_are_marked_one_by_one() {
        let pack = PackId::new(Names::new([0; 32]).draft("draft"), &[1; 32], 200);
        let mut marks = Marks::default();
        assert!(marks.mark(Place { pack, entry: 60 }, 10));
        assert!(!marks.mark(Place { pack, entry: 69 }, 1));
        assert!(marks.mark(Place { pack, entry: 70 }, 1));
        assert_eq!(
            (marks.count(&pack), marks.has(&pack, 59), marks.has(&pack, 60), marks.has(&pack, 71)),
            (11, false, true, false)
        );
        assert!(!marks.mark(Place { pack, entry: 300 }, 1), "no such entry");
    }
}
