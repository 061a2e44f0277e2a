//! Where the chunks of a disk are: pages for stretches of it, and a root that says where the pages are.
//!
//! A page is for [`PAGE_CHUNKS`] chunks and holds runs: neighbours on the disk that are neighbours in a pack. A point has a root of
//! its own for each disk, complete by itself; pages that a delta did not touch are those of the point before.
//!
//! ```text
//! page   varint  number of packs; for each 20 bytes: its id, zeroes for the pack that the page itself is in
//!        varint  number of runs; for each, as varints:
//!                chunks without data since the run before · length in chunks · which of the packs · first entry
//! root   varint  size of the disk in bytes
//!        packs as above, without zeroes
//!        varint  number of pages; for each, as varints: pages that are absent before it · which pack · entry
//! ```

use crate::names::PackId;
use crate::table::MOST_ENTRIES;
use crate::wire::{Malformed, Reader, Writer};
use std::collections::BTreeMap;

/// Chunks that one page is for: 256 MiB of a disk where chunks have 64 KiB.
pub(crate) const PAGE_CHUNKS: usize = 4096;
/// No disk is larger; a size beyond is damage.
pub(crate) const LARGEST_DISK: u64 = 1 << 47;

/// An entry of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) pack: PackId,
    pub(crate) entry: u16,
}

/// Neighbours on the disk that are neighbours in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first chunk, counted from the page's first.
    pub(crate) start: u16,
    /// How many chunks: one at least.
    pub(crate) length: u16,
    /// Where the first one is.
    pub(crate) first: Place,
}

/// Ascending runs that do not overlap.
pub(crate) type Page = Vec<Run>;

/// A page written out: for each chunk where it is.
pub(crate) type Slots = Vec<Option<Place>>;

/// Where the pages of a disk are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// Size of the disk in bytes.
    pub(crate) size: u64,
    /// For each page where it is; none where the disk has no data.
    pub(crate) pages: Slots,
}

impl Run {
    /// Its chunks: number in the page and place.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (usize, Place)> {
        let Self { start, length, first } = *self;
        let place = move |number: u16| Place { pack: first.pack, entry: first.entry + number };
        (0..length).map(move |number| (usize::from(start + number), place(number)))
    }
}

/// How many pages a disk has.
pub(crate) fn page_count(size: u64, chunk_size: u32) -> u64 {
    size.div_ceil(u64::from(chunk_size) * PAGE_CHUNKS as u64)
}

pub(crate) fn slots(page: &[Run]) -> Slots {
    let mut slots = vec![None; PAGE_CHUNKS];
    for (number, place) in page.iter().flat_map(Run::chunks) {
        slots[number] = Some(place);
    }
    slots
}

pub(crate) fn runs(slots: &[Option<Place>]) -> Page {
    let mut page = Page::new();
    for (number, place) in slots.iter().enumerate().filter_map(|(number, place)| Some((number, (*place)?))) {
        match page.last_mut() {
            Some(last)
                if usize::from(last.start + last.length) == number
                    && last.first.pack == place.pack
                    && last.first.entry + last.length == place.entry =>
            {
                last.length += 1;
            }
            _ => page.push(Run { start: number as u16, length: 1, first: place }),
        }
    }
    page
}

/// Numbers for packs, in the order of their first use.
#[derive(Default)]
struct Packs {
    ids: Vec<PackId>,
    numbers: BTreeMap<PackId, u64>,
}

impl Packs {
    fn of(places: impl Iterator<Item = Place>) -> Self {
        let mut packs = Self::default();
        for place in places {
            packs.numbers.entry(place.pack).or_insert_with(|| {
                packs.ids.push(place.pack);
                packs.ids.len() as u64 - 1
            });
        }
        packs
    }

    fn encode(&self, out: &mut Writer) {
        out.varint(self.ids.len() as u64);
        self.ids.iter().for_each(|id| out.raw(id.as_bytes()));
    }

    fn number(&self, id: &PackId) -> u64 {
        self.numbers.get(id).copied().unwrap_or_default()
    }
}

fn decode_packs(reader: &mut Reader<'_>, most: usize) -> Result<Vec<PackId>, Malformed> {
    let count = reader.count(20, most)?;
    (0..count).map(|_| reader.array().map(PackId::from_bytes)).collect()
}

/// A place of `length` entries in one of `packs`, if there may be one.
fn decode_place(reader: &mut Reader<'_>, packs: &[PackId], length: u64) -> Result<Place, Malformed> {
    let (pack, entry) = (reader.varint()?, reader.varint()?);
    let pack =
        usize::try_from(pack).ok().and_then(|pack| packs.get(pack)).ok_or(reader.malformed("an unknown pack"))?;
    let entries = if *pack == PackId::SELF { MOST_ENTRIES as u64 } else { u64::from(pack.entries()) };
    match entry.checked_add(length) {
        Some(end) if end <= entries => Ok(Place { pack: *pack, entry: entry as u16 }),
        _ => Err(reader.malformed("an entry beyond the end of its pack")),
    }
}

pub(crate) fn encode_page(page: &[Run]) -> Vec<u8> {
    let packs = Packs::of(page.iter().map(|run| run.first));
    let mut out = Writer::default();
    packs.encode(&mut out);
    out.varint(page.len() as u64);
    let mut end = 0;
    for run in page {
        out.varint(u64::from(run.start - end));
        out.varint(u64::from(run.length));
        out.varint(packs.number(&run.first.pack));
        out.varint(u64::from(run.first.entry));
        end = run.start + run.length;
    }
    out.0
}

/// Reads a page that is in the pack `own`.
pub(crate) fn decode_page(bytes: &[u8], own: PackId) -> Result<Page, Malformed> {
    let mut reader = Reader::new(bytes);
    let packs = decode_packs(&mut reader, PAGE_CHUNKS)?;
    let count = reader.count(4, PAGE_CHUNKS)?;
    let mut page = Page::with_capacity(count);
    let mut end = 0_u64;
    for _ in 0..count {
        let (gap, length) = (reader.varint()?, reader.varint()?);
        let start = end.saturating_add(gap);
        end = start.saturating_add(length);
        if length == 0 || end > PAGE_CHUNKS as u64 {
            return Err(reader.malformed("a run beyond the end of its page"));
        }
        let mut first = decode_place(&mut reader, &packs, length)?;
        if first.pack == PackId::SELF {
            first.pack = own;
        }
        page.push(Run { start: start as u16, length: length as u16, first });
    }
    reader.finish()?;
    Ok(page)
}

impl Root {
    pub(crate) fn encode(&self, out: &mut Writer) {
        let present = self.pages.iter().flatten();
        let packs = Packs::of(present.clone().copied());
        out.varint(self.size);
        packs.encode(out);
        out.varint(present.count() as u64);
        let mut absent = 0_u64;
        for page in &self.pages {
            let Some(place) = page else {
                absent += 1;
                continue;
            };
            out.varint(absent);
            out.varint(packs.number(&place.pack));
            out.varint(u64::from(place.entry));
            absent = 0;
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>, chunk_size: u32) -> Result<Self, Malformed> {
        let size = reader.varint()?;
        if size > LARGEST_DISK {
            return Err(reader.malformed("a disk of an impossible size"));
        }
        let all = page_count(size, chunk_size) as usize;
        let packs = decode_packs(reader, all)?;
        let count = reader.count(3, all)?;
        let mut pages = Slots::new();
        for _ in 0..count {
            let absent = reader.varint()?;
            match usize::try_from(absent) {
                Ok(absent) if absent < all - pages.len() => pages.resize(pages.len() + absent, None),
                _ => return Err(reader.malformed("a page beyond the end of the disk")),
            }
            pages.push(Some(decode_place(reader, &packs, 1)?));
        }
        pages.resize(all, None);
        Ok(Self { size, pages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;
    use proptest::prelude::*;

    fn pack(number: u8) -> PackId {
        PackId::new(Names::new([0; 32]).draft("draft"), &[number; 32], 100)
    }

    fn places(length: usize) -> impl Strategy<Value = Slots> {
        let place = (0_u8..3, 0_u16..100).prop_map(|(number, entry)| Place { pack: pack(number), entry });
        prop::collection::vec(prop::option::of(place), length)
    }

    #[test]
    fn neighbours_are_one_run() {
        let at = |number, entry| Some(Place { pack: pack(number), entry });
        let slots = [None, at(1, 4), at(1, 5), at(2, 6), None, at(2, 7)];
        let expected = [(1, 2, at(1, 4)), (3, 1, at(2, 6)), (5, 1, at(2, 7))];
        let found: Vec<_> = runs(&slots).iter().map(|run| (run.start, run.length, Some(run.first))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_page_knows_the_pack_that_it_is_in_without_its_name() {
        let run = Run { start: 3, length: 2, first: Place { pack: PackId::SELF, entry: 7 } };
        let page = decode_page(&encode_page(&[run]), pack(5)).expect("whole");
        assert_eq!(page, [Run { first: Place { pack: pack(5), entry: 7 }, ..run }]);
    }

    #[test]
    fn places_that_cannot_be_are_refused() {
        let run = Run { start: 0, length: 1, first: Place { pack: pack(1), entry: 0 } };
        let refused = |run| decode_page(&encode_page(&[run]), pack(9)).is_err();
        assert!(!refused(Run { length: 100, ..run }));
        assert!(refused(Run { length: 101, ..run }) && refused(Run { length: 0, ..run }));
        assert!(refused(Run { start: PAGE_CHUNKS as u16, ..run }));
        let root = Root { size: 1 << 30, pages: vec![None, Some(run.first), None, None] };
        let mut out = Writer::default();
        root.encode(&mut out);
        assert_eq!(Root::decode(&mut Reader::new(&out.0), 1 << 16), Ok(root));
        assert!(Root::decode(&mut Reader::new(&out.0), 1 << 20).is_err(), "a page beyond the end");
    }

    proptest! {
        #[test]
        fn a_page_comes_back(slots in places(PAGE_CHUNKS)) {
            let page = runs(&slots);
            prop_assert_eq!(&super::slots(&page), &slots);
            prop_assert_eq!(decode_page(&encode_page(&page), pack(9)), Ok(page));
        }

        #[test]
        fn anything_is_refused_or_a_map(bytes: Vec<u8>) {
            if let Ok(page) = decode_page(&bytes, pack(9)) {
                prop_assert_eq!(runs(&super::slots(&page)).iter().map(|run| u64::from(run.length)).sum::<u64>(),
                    page.iter().map(|run| u64::from(run.length)).sum::<u64>());
            }
            let mut reader = Reader::new(&bytes);
            if let Ok(root) = Root::decode(&mut reader, 1 << 16) {
                prop_assert_eq!(root.pages.len() as u64, page_count(root.size, 1 << 16));
            }
        }
    }
}
