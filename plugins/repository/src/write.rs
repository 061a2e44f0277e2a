//! How a disk's data gets into the repository.

use crate::draft::{DraftDisk, Work, receipt};
use crate::envelope::Kind;
use crate::index::{Hooks, MOST_OF_SEGMENT, MOST_OF_WRITER};
use crate::map::{LARGEST_DISK, PAGE_CHUNKS, Page, Place, Root, Slots, encode_page, page_count, runs, slots};
use crate::names::{CONDEMNED, Digest, PackId, SENTENCED, Tag, UNSOUND};
use crate::repository::{Repository, table_digest};
use crate::storage::Piece;
use crate::table::{Entry, Form, LONGEST_STORED, MOST_ENTRIES, Table};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use vmferry_plugin_api::delta::{Chunk, Delta, Encoding, Info, Kind as DeltaKind, Payload};
use vmferry_plugin_api::target::Draft;
use vmferry_plugin_api::{Error, ErrorCode, seal};

/// Runs of finished pages that are held until the end, so that the pages of a disk lie behind each other: 4 MiB.
const MOST_HELD_RUNS: usize = 128 << 10;

impl Repository<'_> {
    /// Stores one disk's data, and answers its receipt.
    pub fn write(&self, draft: &Draft, delta: &dyn Delta) -> Result<Vec<u8>, Error> {
        let info = delta.info();
        let base = self.base(draft, &info)?;
        let work = self.begin_work(draft, &info.disk)?;
        let dedup = self.dedup(info.expected_bytes)?;
        let tag = self.names.draft(&draft.id);
        let mut writer = Writer::new(self, tag, work, dedup, &info, base.as_ref().map(|(_, root)| root));
        while let Some(chunk) = delta.next()? {
            writer.add(&*chunk)?;
        }
        let (root, finished) = writer.finish()?;
        let disk = DraftDisk {
            disk: info.disk,
            content: info.content,
            base: base.map(|(tag, _)| tag),
            stored: finished.stored,
            used: finished.dedup.used,
            root,
            hooks: finished.hooks,
        };
        let content = disk.encode();
        let object = self.names.draft_disk(tag, &disk.disk, &content);
        self.put(Kind::Draft, &object, &content)?;
        self.storage.sync()?;
        self.check_work(&finished.work)?;
        Ok(receipt(&object))
    }

    /// The point that a delta adds to: its tag, and where the disk's pages are there.
    fn base(&self, draft: &Draft, info: &Info) -> Result<Option<(Tag, Root)>, Error> {
        let unsupported =
            |why: String| Err(Error::with_code(ErrorCode::Unsupported, format!("disk {}: {why}", info.disk)));
        if info.size > LARGEST_DISK {
            return unsupported(format!("{} bytes are more than a repository takes, {LARGEST_DISK}", info.size));
        }
        let base = match &info.kind {
            DeltaKind::Full => return Ok(None),
            DeltaKind::Delta(base) => base,
            DeltaKind::Other(kind) => return unsupported(format!("data of the kind `{kind}` is not known here")),
        };
        if draft.base.as_ref().is_some_and(|of_draft| of_draft != base) {
            return unsupported(format!("it adds to the recovery point {base}, and its draft to another"));
        }
        let (_, head, body) = self.committed(base)?;
        let mut root = body.root(&head, &info.disk)?.clone();
        if root.size > info.size {
            return unsupported(format!(
                "it has become smaller than it is in the recovery point {base}; a full copy is needed once"
            ));
        }
        root.size = info.size;
        root.pages.resize(page_count(info.size, self.chunk_size) as usize, None);
        Ok(Some((self.names.draft(base), root)))
    }

    /// What a writer of about so many bytes may refer to.
    fn dedup(&self, expected_bytes: u64) -> Result<Dedup, Error> {
        let mut dedup = Dedup::default();
        for prefix in [CONDEMNED, SENTENCED, UNSOUND] {
            dedup.avoided.extend(self.batches(prefix)?.into_iter().flat_map(|batch| batch.packs));
        }
        let segments = self.storage.list(crate::names::INDEX)?;
        // Reading an index that is larger than the data costs more than it can save.
        if segments.iter().map(|segment| segment.length).sum::<u64>() > expected_bytes {
            return Ok(dedup);
        }
        for segment in segments {
            if let Some(hooks) = self.segment(&segment.name)? {
                dedup.hooks.merge(&hooks, MOST_OF_WRITER, |id| !dedup.avoided.contains(id));
            }
        }
        dedup.hooks.sort();
        Ok(dedup)
    }
}

/// What is known of chunks that are there already.
#[derive(Default)]
struct Dedup {
    hooks: Hooks,
    /// Packs not to refer to: somebody may remove them, or they are damaged.
    avoided: HashSet<PackId>,
    known: Known,
    /// Others' packs that were referred to.
    used: BTreeSet<PackId>,
}

/// Chunks of the packs that were met last.
#[derive(Default)]
struct Known {
    places: HashMap<Digest, Place>,
    packs: VecDeque<(PackId, Vec<Digest>)>,
}

impl Known {
    /// Packs whose chunks are known: 2 GiB of a disk, in 12 MiB.
    const MOST: usize = 64;

    fn add(&mut self, id: PackId, table: &Table) {
        if self.packs.len() >= Self::MOST
            && let Some((oldest, chunks)) = self.packs.pop_front()
        {
            for digest in chunks {
                if self.places.get(&digest).is_some_and(|place| place.pack == oldest) {
                    self.places.remove(&digest);
                }
            }
        }
        let mut chunks = Vec::with_capacity(table.entries.len());
        for (entry, number) in table.entries.iter().zip(0..).filter(|(entry, _)| entry.is_chunk()) {
            self.places.insert(entry.digest, Place { pack: id, entry: number });
            chunks.push(entry.digest);
        }
        self.packs.push_back((id, chunks));
    }

    fn has(&self, id: &PackId) -> bool {
        self.packs.iter().any(|(pack, _)| pack == id)
    }
}

impl Dedup {
    /// Where a chunk is already.
    fn find(&mut self, repository: &Repository<'_>, own: Tag, digest: &Digest) -> Result<Option<Place>, Error> {
        if !self.known.places.contains_key(digest) {
            let candidates: Vec<PackId> = self.hooks.find(digest).collect();
            for id in candidates {
                if self.known.has(&id) || self.avoided.contains(&id) {
                    continue;
                }
                match repository.original(&id) {
                    Ok(Some(pack)) => self.known.add(id, &pack.table),
                    Ok(None) => drop(self.avoided.insert(id)),
                    Err(error) if error.is_damaged() => drop(self.avoided.insert(id)),
                    Err(error) => return Err(error),
                }
                if self.known.places.contains_key(digest) {
                    break;
                }
            }
        }
        let place = self.known.places.get(digest).copied();
        if let Some(place) = place.filter(|place| place.pack.tag() != own) {
            self.used.insert(place.pack);
        }
        Ok(place)
    }
}

/// A pack that is being filled.
#[derive(Default)]
struct Filling {
    entries: Vec<Entry>,
    data: Vec<Data>,
    stored: u64,
    /// Chunks of it, by their digests.
    chunks: HashMap<Digest, u16>,
    /// Numbers of the disk's pages that are in it.
    pages: Vec<usize>,
}

enum Data {
    Chunk(Box<dyn Payload>),
    Page(Vec<u8>),
}

struct Writer<'r, 'a> {
    repository: &'r Repository<'a>,
    tag: Tag,
    work: Work,
    dedup: Dedup,
    filling: Filling,
    /// The page that is being written.
    page: Option<Open>,
    /// Finished pages that are in no pack yet.
    held: VecDeque<(usize, Page)>,
    held_runs: usize,
    root: Root,
    /// Where the chunk after the last one begins, in bytes.
    end: u64,
    hooks: Hooks,
    stored: u64,
}

/// A page that is being written.
struct Open {
    number: usize,
    /// What it was before.
    before: Page,
    /// Where its chunks are now.
    slots: Slots,
}

/// What is left of a writer that is done.
struct Finished {
    work: Work,
    dedup: Dedup,
    hooks: Hooks,
    stored: u64,
}

impl<'r, 'a> Writer<'r, 'a> {
    fn new(
        repository: &'r Repository<'a>,
        tag: Tag,
        work: Work,
        dedup: Dedup,
        info: &Info,
        base: Option<&Root>,
    ) -> Self {
        let pages = page_count(info.size, repository.chunk_size) as usize;
        let root = base.cloned().unwrap_or_else(|| Root { size: info.size, pages: vec![None; pages] });
        Self {
            repository,
            tag,
            work,
            dedup,
            filling: Filling::default(),
            page: None,
            held: VecDeque::new(),
            held_runs: 0,
            root,
            end: 0,
            hooks: Hooks::default(),
            stored: 0,
        }
    }

    fn add(&mut self, chunk: &dyn Chunk) -> Result<(), Error> {
        let (offset, length) = (chunk.offset(), u64::from(chunk.length()));
        let size = u64::from(self.repository.chunk_size);
        let whole = length == size || offset.checked_add(length) == Some(self.root.size) && length > 0 && length < size;
        if offset % size != 0 || offset < self.end || !whole || offset + length > self.root.size {
            let message =
                format!("a chunk of {length} bytes at {offset} does not fit a disk of {} bytes", self.root.size);
            return Err(Error::with_code(ErrorCode::Unsupported, message));
        }
        self.end = offset + length;

        let number = offset / size;
        let (page, slot) = ((number / PAGE_CHUNKS as u64) as usize, (number % PAGE_CHUNKS as u64) as usize);
        self.turn_to(page)?;
        let place = if chunk.is_zero() { None } else { Some(self.store(chunk)?) };
        if let Some(open) = &mut self.page {
            open.slots[slot] = place;
        }
        Ok(())
    }

    /// Makes `page` the one that is being written.
    fn turn_to(&mut self, page: usize) -> Result<(), Error> {
        if self.page.as_ref().is_some_and(|open| open.number == page) {
            return Ok(());
        }
        self.finish_page()?;
        let before = match self.root.pages[page] {
            None => Page::new(),
            Some(place) => self.repository.pages(&[place])?.concat(),
        };
        self.page = Some(Open { number: page, slots: slots(&before), before });
        Ok(())
    }

    /// Where a chunk is, now at the latest.
    fn store(&mut self, chunk: &dyn Chunk) -> Result<Place, Error> {
        let digest: Digest = chunk.digest().try_into().map_err(|digest: Vec<u8>| {
            let message = format!("the host gave a digest of {} bytes instead of 32", digest.len());
            Error::with_code(ErrorCode::Unsupported, message)
        })?;
        if let Some(entry) = self.filling.chunks.get(&digest) {
            return Ok(Place { pack: PackId::SELF, entry: *entry });
        }
        if let Some(place) = self.dedup.find(self.repository, self.tag, &digest)? {
            return Ok(place);
        }
        let (form, payload) = self.encode(chunk)?;
        let stored = payload.length();
        if stored == 0 || stored > u64::from(LONGEST_STORED) {
            let message = format!("the host encoded {} bytes as {stored}", chunk.length());
            return Err(Error::with_code(ErrorCode::Unsupported, message));
        }
        self.make_room(stored)?;
        let entry = self.push(form, chunk.length(), digest, stored, Data::Chunk(payload));
        self.filling.chunks.insert(digest, entry);
        Ok(Place { pack: PackId::SELF, entry })
    }

    /// The chunk compressed, or as it is where that saves less than an eighth: reading it back is cheaper then.
    fn encode(&self, chunk: &dyn Chunk) -> Result<(Form, Box<dyn Payload>), Error> {
        let settings = &self.repository.settings;
        let (plain, compressed) = match &settings.key {
            None => (Encoding::Identity, Encoding::Zstd),
            Some(key) => (Encoding::Sealed(key.clone()), Encoding::ZstdSealed(key.clone())),
        };
        if settings.compress {
            let payload = chunk.encode(&compressed)?;
            let length = u64::from(chunk.length());
            if payload.length() <= length - length / 8 {
                return Ok((form_of(&compressed)?, payload));
            }
        }
        Ok((form_of(&plain)?, chunk.encode(&plain)?))
    }

    /// Adds an entry to the pack that is being filled, and answers its number.
    fn push(&mut self, form: Form, plain: u32, digest: Digest, stored: u64, data: Data) -> u16 {
        self.filling.entries.push(Entry { form, stored: stored as u32, plain, digest });
        self.filling.data.push(data);
        self.filling.stored += stored;
        self.filling.entries.len() as u16 - 1
    }

    /// Makes sure that so many bytes fit into the pack that is being filled.
    fn make_room(&mut self, stored: u64) -> Result<(), Error> {
        let full = self.filling.stored + stored > self.repository.settings.pack_size
            || self.filling.entries.len() == MOST_ENTRIES;
        if full && !self.filling.entries.is_empty() { self.flush() } else { Ok(()) }
    }

    /// Writes the pack that is being filled, and tells whoever refers to it what it is called.
    fn flush(&mut self) -> Result<(), Error> {
        let repository = self.repository;
        repository.renew_work(&mut self.work)?;
        let Filling { entries, data, stored, pages, .. } = std::mem::take(&mut self.filling);
        let table = Table { entries };
        let content = table.encode();
        let id = PackId::new(self.tag, &table_digest(&content), table.entries.len() as u16);
        let name = id.name();
        let envelope = repository.sealing.wrap(Kind::Table, &name, &content)?;
        let mut pieces = vec![Piece::Bytes(envelope.into())];
        pieces.extend(data.iter().map(|data| match data {
            Data::Chunk(payload) => Piece::Payload(&**payload),
            Data::Page(bytes) => Piece::Bytes(bytes.into()),
        }));
        repository.storage.put(&name, &pieces)?;
        self.stored += stored;

        let chunks = || table.entries.iter().filter(|entry| entry.is_chunk());
        self.hooks.add(id, chunks().map(|entry| &entry.digest), MOST_OF_SEGMENT);
        self.dedup.known.add(id, &table);
        let named = |place: &mut Place| {
            if place.pack == PackId::SELF {
                place.pack = id;
            }
        };
        self.page.iter_mut().flat_map(|open| &mut open.slots).flatten().for_each(named);
        self.held.iter_mut().flat_map(|(_, page)| page).for_each(|run| named(&mut run.first));
        pages.into_iter().for_each(|number| self.root.pages[number].iter_mut().for_each(named));
        Ok(())
    }

    /// Puts the page that was being written with those that are finished, unless it is as it was.
    fn finish_page(&mut self) -> Result<(), Error> {
        let Some(Open { number, before, slots }) = self.page.take() else { return Ok(()) };
        let page = runs(&slots);
        if page == before {
            return Ok(());
        }
        if page.is_empty() {
            self.root.pages[number] = None;
            return Ok(());
        }
        self.held_runs += page.len();
        self.held.push_back((number, page));
        if self.held_runs > MOST_HELD_RUNS { self.store_pages() } else { Ok(()) }
    }

    /// Moves the finished pages into packs.
    fn store_pages(&mut self) -> Result<(), Error> {
        while let Some((_, page)) = self.held.front() {
            // It is written down when it is clear which pack it will be in: it has no other name for chunks of that one.
            let about = encode_page(page).len() as u64;
            self.make_room(about)?;
            let Some((number, page)) = self.held.pop_front() else { break };
            let plain = encode_page(&page);
            let digest = table_digest(&plain);
            let length = plain.len() as u32;
            let (form, stored) = match &self.repository.settings.key {
                None => (Form::Page, plain),
                Some(key) => (Form::SealedPage, seal::seal(key, &plain)?),
            };
            let entry = self.push(form, length, digest, stored.len() as u64, Data::Page(stored));
            self.filling.pages.push(number);
            self.root.pages[number] = Some(Place { pack: PackId::SELF, entry });
        }
        self.held_runs = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<(Root, Finished), Error> {
        self.finish_page()?;
        self.store_pages()?;
        if !self.filling.entries.is_empty() {
            self.flush()?;
        }
        self.hooks.sort();
        let Self { work, dedup, hooks, stored, root, .. } = self;
        Ok((root, Finished { work, dedup, hooks, stored }))
    }
}

fn form_of(encoding: &Encoding) -> Result<Form, Error> {
    Form::of(encoding).ok_or_else(|| Error::with_code(ErrorCode::Unsupported, "an encoding that no pack knows"))
}
