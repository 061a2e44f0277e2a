//! How a disk's data comes back.

use crate::map::{PAGE_CHUNKS, Page, Place, Root, Run, slots};
use crate::marks::Marks;
use crate::names::{Digest, PackId, UNSOUND};
use crate::repository::{Pack, Repository};
use crate::storage::ATTEMPTS;
use std::collections::BTreeSet;
use std::rc::Rc;
use vmferry_plugin_api::delta::{Encoding, Restore};
use vmferry_plugin_api::stream::Input;
use vmferry_plugin_api::target::{Damage, Extent};
use vmferry_plugin_api::{Error, ErrorCode};

/// Bytes that are read from one object at once.
const MOST_AT_ONCE: u64 = 8 << 20;
/// Damages that are told one by one.
const MOST_DAMAGES: usize = 1000;

/// A chunk that is read back.
#[derive(Clone, Debug)]
struct Part {
    /// Where it lies on the disk, in bytes.
    offset: u64,
    place: Place,
    stored: u32,
    encoding: Encoding,
    digest: Digest,
}

impl Repository<'_> {
    /// The ranges of a disk that may hold something else than zeroes; with `since`, those that may differ from that point.
    pub fn layout(&self, point: &str, disk: &str, since: Option<&str>) -> Result<Vec<Extent>, Error> {
        let (_, head, body) = self.committed(point)?;
        let root = body.root(&head, disk)?;
        let mut extents = Extents { chunk_size: u64::from(self.chunk_size), size: root.size, all: Vec::new() };
        let Some(since) = since else {
            self.each_page(root, 0..root.pages.len(), |number, page| {
                page.iter().for_each(|run| extents.add(number, usize::from(run.start), usize::from(run.length)));
                Ok(())
            })?;
            return Ok(extents.all);
        };
        let (_, head, body) = self.committed(since)?;
        let before = body.root(&head, disk)?;
        for (number, place) in root.pages.iter().enumerate() {
            let place_before = before.pages.get(number).copied().flatten();
            if *place == place_before {
                continue;
            }
            let [now, before] = [*place, place_before].map(|place| self.slots_at(place));
            for (slot, (now, before)) in now?.iter().zip(before?).enumerate() {
                if *now != before {
                    extents.add(number, slot, 1);
                }
            }
        }
        Ok(extents.all)
    }

    fn slots_at(&self, place: Option<Place>) -> Result<Vec<Option<Place>>, Error> {
        Ok(slots(&self.pages(place.as_slice())?.concat()))
    }

    /// Reads ranges of a disk back, in ascending order. Chunks that these begin or end inside of are put whole.
    pub fn read(&self, point: &str, disk: &str, extents: &[Extent], restore: &dyn Restore) -> Result<(), Error> {
        let (_, head, body) = self.committed(point)?;
        let root = body.root(&head, disk)?;
        let size = u64::from(self.chunk_size);
        let mut reader =
            Reader { repository: self, restore, batch: Vec::new(), pack: None, on_damage: &mut |_, error| Err(error) };
        let mut next = 0;
        for extent in extents {
            // In chunks. Two extents may share one, which is put once.
            let first = (extent.offset / size).max(next);
            let end = extent.offset.saturating_add(extent.length).min(root.size).div_ceil(size);
            if first >= end {
                continue;
            }
            next = end;
            let pages = (first / PAGE_CHUNKS as u64) as usize..end.div_ceil(PAGE_CHUNKS as u64) as usize;
            self.each_page(root, pages, |number, page| reader.add_page(number, &page, first..end))?;
        }
        reader.flush()
    }

    /// Checks that everything stored for a point is there and unchanged, and remembers what it found.
    pub fn verify(&self, point: &str, check: &dyn Restore) -> Result<Vec<Damage>, Error> {
        let tag = self.names.draft(point);
        let absent = || Error::not_found(format!("the repository has no recovery point {point}"));
        let (name, _) = self.find(tag)?.ok_or_else(absent)?;
        let mut found = Damages::default();
        match self.read_point(&name) {
            Ok(None) => return Err(absent()),
            Ok(Some((head, body))) => {
                let mut seen = Marks::default();
                for (disk, root) in head.disks.iter().zip(&body.roots) {
                    found.disk = Some(disk.disk.clone());
                    self.verify_disk(root, check, &mut seen, &mut found)?;
                }
            }
            Err(error) if error.is_damaged() => found.add(None, &error.message),
            Err(error) => return Err(error),
        }
        self.remember_unsound(found.packs)?;
        let damages = found.all;
        let summary = damages.first().map(|first| match damages.len() {
            1 => first.message.clone(),
            more => format!("{} ({more} damages in all)", first.message),
        });
        self.remember_damage(&name, summary.as_deref())?;
        Ok(damages)
    }

    /// Has nobody refer to these packs anew, so that whoever meets one of their chunks stores it once more.
    fn remember_unsound(&self, mut packs: BTreeSet<PackId>) -> Result<(), Error> {
        if packs.is_empty() {
            return Ok(());
        }
        for batch in self.batches(UNSOUND)? {
            packs.retain(|id| !batch.packs.contains(id));
        }
        self.put_batches(UNSOUND, self.now(), &packs.into_iter().collect::<Vec<_>>())
    }

    fn verify_disk(
        &self,
        root: &Root,
        check: &dyn Restore,
        seen: &mut Marks,
        found: &mut Damages,
    ) -> Result<(), Error> {
        let size = u64::from(self.chunk_size);
        for number in (0..root.pages.len()).filter(|number| root.pages[*number].is_some()) {
            let from = number as u64 * PAGE_CHUNKS as u64;
            let page_extent = || {
                let offset = from * size;
                Extent { offset, length: (PAGE_CHUNKS as u64 * size).min(root.size - offset) }
            };
            let page = match self.pages(root.pages[number].as_slice()) {
                Ok(pages) => pages.concat(),
                Err(error) if error.is_damaged() => {
                    found.add(Some(page_extent()), &error.message);
                    found.packs.extend(root.pages[number].map(|place| place.pack));
                    continue;
                }
                Err(error) => return Err(error),
            };
            // Chunks that were checked for another place, or another disk, need not be read again.
            let fresh: Page = page.iter().flat_map(|run| fresh(run, seen)).collect();
            let mut on_damage = |part: &Part, error: Error| {
                let length = size.min(root.size.saturating_sub(part.offset));
                found.add(Some(Extent { offset: part.offset, length }), &error.message);
                found.packs.insert(part.place.pack);
                Ok(())
            };
            let mut reader =
                Reader { repository: self, restore: check, batch: Vec::new(), pack: None, on_damage: &mut on_damage };
            reader.add_page(number, &fresh, 0..u64::MAX)?;
            reader.flush()?;
        }
        Ok(())
    }
}

/// The chunks of a run that were not seen before, one by one.
fn fresh(run: &Run, seen: &mut Marks) -> Page {
    let unseen = run.chunks().filter(|(_, place)| seen.mark(*place, 1));
    unseen.map(|(start, first)| Run { start: start as u16, length: 1, first }).collect()
}

/// Extents of a disk, made of chunks that ascend.
struct Extents {
    chunk_size: u64,
    size: u64,
    all: Vec<Extent>,
}

impl Extents {
    fn add(&mut self, page: usize, slot: usize, chunks: usize) {
        let offset = (page as u64 * PAGE_CHUNKS as u64 + slot as u64) * self.chunk_size;
        let end = (offset + chunks as u64 * self.chunk_size).min(self.size);
        match self.all.last_mut() {
            Some(last) if last.offset + last.length == offset => last.length = end - last.offset,
            _ => self.all.push(Extent { offset, length: end.saturating_sub(offset) }),
        }
    }
}

/// What a verification found so far.
#[derive(Default)]
struct Damages {
    /// The disk that is looked at.
    disk: Option<String>,
    all: Vec<Damage>,
    /// The packs that have it.
    packs: BTreeSet<PackId>,
}

impl Damages {
    /// Adds one; the same right behind the last one makes that longer.
    fn add(&mut self, extent: Option<Extent>, message: &str) {
        if let (Some(last), Some(extent)) = (self.all.last_mut(), &extent)
            && let Some(before) = &mut last.extent
            && last.disk == self.disk
            && last.message == message
            && before.offset + before.length == extent.offset
        {
            before.length += extent.length;
        } else if self.all.len() < MOST_DAMAGES {
            self.all.push(Damage { disk: self.disk.clone(), extent, message: message.to_owned() });
        }
    }
}

/// Brings chunks back: those that lie behind each other in a pack with one read.
struct Reader<'r, 'a> {
    repository: &'r Repository<'a>,
    restore: &'r dyn Restore,
    /// Chunks that lie behind each other in `pack`.
    batch: Vec<Part>,
    pack: Option<Rc<Pack>>,
    /// What follows from a chunk that is damaged.
    on_damage: &'r mut dyn FnMut(&Part, Error) -> Result<(), Error>,
}

impl Reader<'_, '_> {
    /// Adds those chunks of a page that are in `chunks`, counted from the disk's first.
    fn add_page(&mut self, number: usize, page: &[Run], chunks: std::ops::Range<u64>) -> Result<(), Error> {
        let from = (number * PAGE_CHUNKS) as u64;
        for (slot, place) in page.iter().flat_map(Run::chunks) {
            let chunk = from + slot as u64;
            if chunks.contains(&chunk) {
                self.add(chunk * u64::from(self.repository.chunk_size), place)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, offset: u64, place: Place) -> Result<(), Error> {
        let same = self.batch.last().is_some_and(|last| last.place.pack == place.pack);
        let pack = match &self.pack {
            Some(pack) if same => Rc::clone(pack),
            _ => match self.repository.pack(&place.pack) {
                Ok(pack) => pack,
                Err(error) => return self.lost(offset, place, error),
            },
        };
        let part = match part_of(&self.repository.settings.key, &pack, offset, place) {
            Ok(part) => part,
            Err(error) => return self.lost(offset, place, error),
        };
        if let (Some(first), Some(last)) = (self.batch.first(), self.batch.last()) {
            let begin = pack.offset(first.place.entry);
            let end = pack.offset(last.place.entry) + u64::from(last.stored);
            let follows = same && pack.offset(place.entry) == end;
            if !follows || end + u64::from(part.stored) - begin > MOST_AT_ONCE {
                self.flush()?;
            }
        }
        self.batch.push(part);
        self.pack = Some(pack);
        Ok(())
    }

    /// A chunk that nothing is there of.
    fn lost(&mut self, offset: u64, place: Place, error: Error) -> Result<(), Error> {
        if !error.is_damaged() {
            return Err(error);
        }
        let part = Part { offset, place, stored: 0, encoding: Encoding::Identity, digest: [0; 32] };
        (self.on_damage)(&part, error)
    }

    /// Puts the batch.
    fn flush(&mut self) -> Result<(), Error> {
        let mut batch = std::mem::take(&mut self.batch);
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let mut attempts = ATTEMPTS;
        while let Some(first) = batch.first() {
            let length = batch.iter().map(|part| u64::from(part.stored)).sum();
            let opened = self.repository.storage.open(&pack.object, pack.offset(first.place.entry), length)?;
            let Some(input) = opened else {
                return self.one_by_one(&batch);
            };
            let mut done = 0;
            match self.put(&batch, &input, &mut done) {
                // The bytes broke off. Those that came are not asked for again.
                Err(error) if error.code == ErrorCode::Unavailable && attempts > 1 => attempts -= 1,
                put => return put,
            }
            batch.drain(..done);
        }
        Ok(())
    }

    /// Puts chunks of a pack that another host shrank meanwhile: what is left of it lies elsewhere, and perhaps not behind each other.
    fn one_by_one(&mut self, batch: &[Part]) -> Result<(), Error> {
        let repository = self.repository;
        batch.iter().take(1).for_each(|part| repository.forget(&part.place.pack));
        for part in batch {
            let moved = repository.pack(&part.place.pack).and_then(|pack| {
                let moved = part_of(&repository.settings.key, &pack, part.offset, part.place)?;
                let input =
                    repository.storage.open(&pack.object, pack.offset(part.place.entry), u64::from(moved.stored))?;
                Ok((moved, input.ok_or_else(|| Error::damaged(format!("{} is missing", part.place.pack.name())))?))
            });
            match moved {
                Ok((moved, input)) => self.put(&[moved], &input, &mut 0)?,
                Err(error) if error.is_damaged() => (self.on_damage)(part, error)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Puts chunks that come out of `input` one after the other, and counts them.
    fn put(&mut self, batch: &[Part], input: &Input, done: &mut usize) -> Result<(), Error> {
        for part in batch {
            let Part { offset, stored, encoding, digest, place } = part;
            match self.restore.put_from(*offset, encoding, Some(digest), input, u64::from(*stored)) {
                Ok(()) => {}
                Err(error) if error.is_damaged() => {
                    let message =
                        format!("entry {} of {} is damaged: {}", place.entry, place.pack.name(), error.message);
                    (self.on_damage)(part, Error { message, ..error })?;
                }
                Err(error) => return Err(error),
            }
            *done += 1;
        }
        Ok(())
    }
}

/// How the chunk at `place` is read for `offset` on the disk.
fn part_of(key: &Option<String>, pack: &Pack, offset: u64, place: Place) -> Result<Part, Error> {
    let entry = pack.table.entries.get(usize::from(place.entry));
    let encoding = entry.and_then(|entry| entry.form.encoding(key.as_deref()));
    match (entry, encoding) {
        (Some(entry), Some(encoding)) => {
            Ok(Part { offset, place, stored: entry.stored, encoding, digest: entry.digest })
        }
        _ => Err(Error::damaged(format!("{} is damaged: it has no chunk {}", pack.object, place.entry))),
    }
}
